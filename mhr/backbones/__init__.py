"""Base models by name: the built-in one, whose weights lie in this package, local folders and hub ids."""

from __future__ import annotations

from mhr.backbones.kinds import KINDS
from mhr.backbones.load import BUILTIN, load_backbone

__all__ = ["BUILTIN", "KINDS", "load_backbone"]
