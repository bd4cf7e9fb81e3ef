"""Base models by name: the built-in one, whose weights lie in this package, local folders and hub ids."""

from __future__ import annotations

from mhr.backbones.load import BUILTIN, KINDS, load_backbone

__all__ = ["BUILTIN", "KINDS", "load_backbone"]
