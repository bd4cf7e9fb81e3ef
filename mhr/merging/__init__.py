"""Merging: from a bank with routing to one plain adapter, or into the weights of the base model."""

from __future__ import annotations

from mhr.checkpoint.plain import LoraFactors, PlainAdapter, PlainIA3, PlainLora, attach_plain, plain_checkpoint
from mhr.merging.collapse import collapse, merge_methods
from mhr.merging.fold import fold_into
from mhr.merging.merge import DTYPES, FORMS, find_adapter, merge
from mhr.merging.task import merge_task
from mhr.merging.uniform import merge_uniform
from mhr.merging.weighted import merge_weighted

__all__ = [
    "DTYPES",
    "FORMS",
    "LoraFactors",
    "PlainAdapter",
    "PlainIA3",
    "PlainLora",
    "attach_plain",
    "collapse",
    "find_adapter",
    "fold_into",
    "merge",
    "merge_methods",
    "merge_task",
    "merge_uniform",
    "merge_weighted",
    "plain_checkpoint",
]
