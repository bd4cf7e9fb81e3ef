"""Adapters on disk and in memory: what they hold and which base model they belong to."""

from __future__ import annotations

from mhr.checkpoint.adapter import (
    CONFIG_FILE,
    TENSORS_FILE,
    AdapterCheckpoint,
    attach_checkpoint,
    checkpoint_of,
    is_adapter,
    load_adapter,
    load_checkpoint,
    open_adapter,
    read_adapter,
    routing_keys,
    routing_states,
    routing_weights,
    save_adapter,
    write_adapter,
    write_config,
)
from mhr.checkpoint.base import BaseModel, check_base, describe_base, fingerprint, kind_of, same_base
from mhr.checkpoint.tensor_file import TensorFile, TensorWriter, file_digest

__all__ = [
    "CONFIG_FILE",
    "TENSORS_FILE",
    "AdapterCheckpoint",
    "BaseModel",
    "TensorFile",
    "TensorWriter",
    "attach_checkpoint",
    "check_base",
    "checkpoint_of",
    "describe_base",
    "file_digest",
    "fingerprint",
    "is_adapter",
    "kind_of",
    "load_adapter",
    "load_checkpoint",
    "open_adapter",
    "read_adapter",
    "routing_keys",
    "routing_states",
    "routing_weights",
    "same_base",
    "save_adapter",
    "write_adapter",
    "write_config",
]
