"""Adapters on disk and in memory: banks and plain ones, what they hold, which base model they belong to, and their forms.

A model's live bank is a `mhr.layers.AdapterBank`; stored it is an `AdapterCheckpoint`; routed by fixed weights it is a
`PlainAdapter`, a dictionary of `AdapterLayer`s. A PEFT folder is another way to write a plain one.
"""

from __future__ import annotations

from mhr.adapters.base import BaseModel, check_base, check_reopens, describe_base, fingerprint, kind_of, same_base
from mhr.adapters.checkpoint import (
    AdapterCheckpoint,
    attach_checkpoint,
    checkpoint_of,
    context_state,
    empty_contexts,
    is_adapter,
    load_adapter,
    load_checkpoint,
    open_adapter,
    read_adapter,
    routing_states,
    routing_transforms,
    routing_weights,
    save_adapter,
    write_adapter,
)
from mhr.adapters.collapse import collapse, collapse_task
from mhr.adapters.find import find_adapter
from mhr.adapters.fold import fold_into
from mhr.adapters.layer import (
    AdapterLayer,
    BiasShift,
    BottleneckFactors,
    FilmVectors,
    IA3Vector,
    LoraFactors,
    RecurrentFactors,
)
from mhr.adapters.open import open_plain, read_bank
from mhr.adapters.peft import is_peft, load_peft
from mhr.adapters.peft_export import PeftFolder, PeftWriter, save_peft
from mhr.adapters.peft_poly import is_poly, open_poly, save_poly
from mhr.adapters.plain import PlainAdapter, attach_plain, plain_checkpoint

__all__ = [
    "AdapterCheckpoint",
    "AdapterLayer",
    "BaseModel",
    "BiasShift",
    "BottleneckFactors",
    "FilmVectors",
    "IA3Vector",
    "LoraFactors",
    "PeftFolder",
    "PeftWriter",
    "PlainAdapter",
    "RecurrentFactors",
    "attach_checkpoint",
    "attach_plain",
    "check_base",
    "check_reopens",
    "checkpoint_of",
    "collapse",
    "collapse_task",
    "context_state",
    "describe_base",
    "find_adapter",
    "fingerprint",
    "fold_into",
    "is_adapter",
    "is_peft",
    "is_poly",
    "kind_of",
    "load_adapter",
    "load_checkpoint",
    "load_peft",
    "open_adapter",
    "open_plain",
    "open_poly",
    "plain_checkpoint",
    "read_adapter",
    "read_bank",
    "routing_states",
    "routing_transforms",
    "routing_weights",
    "same_base",
    "save_adapter",
    "save_peft",
    "save_poly",
    "write_adapter",
]
