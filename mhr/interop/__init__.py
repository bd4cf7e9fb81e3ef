"""Adapters of other libraries, in and out."""

from __future__ import annotations

from mhr.interop.peft import PeftAdapter, is_peft, load_peft, save_peft

__all__ = ["PeftAdapter", "is_peft", "load_peft", "save_peft"]
