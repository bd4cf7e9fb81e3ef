"""Base models by name: the built-in one, whose weights lie in this package, local folders and hub ids."""

from __future__ import annotations

from mhr.backbones.load import BUILTIN, load_backbone
from mhr.backbones.untrained import forget_untrained, untrained_modules

__all__ = ["BUILTIN", "forget_untrained", "load_backbone", "untrained_modules"]
