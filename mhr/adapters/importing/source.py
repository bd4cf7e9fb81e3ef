"""A path that is imported: a folder, or a file of tensors that another program wrote, read without running anything in it."""

from __future__ import annotations

import json
import pickle
import re
import shlex
import struct
import zipfile
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from mhr.errors import CheckpointError

SAVE_AS_SAFETENSORS = (
    "import json, sys, torch; from safetensors.torch import save_file; "
    "c = torch.load(sys.argv[1], map_location='cpu', weights_only=False); h = dict(c.get('hyper_parameters', {})); "
    "save_file({k: v.clone().contiguous() for k, v in c.get('state_dict', c).items()}, sys.argv[2], "
    "{'hyper_parameters': json.dumps({k: v for k, v in h.items() if v is None or isinstance(v, (str, int, float, bool))}), "
    "'global_step': str(c.get('global_step', ''))})"
)
"""A program for python -c that saves the tensors and plain settings of a pickle as safetensors, which hold nothing that runs. Whoever
runs it trusts the pickle."""


STUMBLES = (
    RuntimeError,
    EOFError,
    ValueError,
    LookupError,
    AttributeError,
    AssertionError,
    TypeError,
    ArithmeticError,
    struct.error,
)
"""What torch raises for a damaged file, depending on where it is truncated."""


class ForeignPath:
    """What is to be imported. path: a folder or a file."""

    def __init__(self, path: str | Path):
        self.path = Path(path)

    @property
    def is_folder(self) -> bool:
        return self.path.is_dir()

    @cached_property
    def held(self) -> Mapping[str, Any]:
        """What a file holds: a pickle of torch's, tensors and plain values alone, or a safetensors file, whose metadata
        `hyper_parameters` (JSON) and `global_step` come with its tensors as `state_dict`. {} for a folder.

        Raises CheckpointError for a file that is missing, truncated, neither of both, or holds anything else, with what saves it as
        safetensors.
        """
        if self.is_folder:
            return {}
        if not self.path.is_file():
            raise CheckpointError(f"nothing to import at {self.path}: there is no such file or folder")
        try:
            with open(self.path, "rb") as file:
                start = file.read(9)
            return self._safetensors() if start[8:] == b"{" else self._pickle()
        except OSError as fault:
            raise CheckpointError(f"cannot read {self.path}: {fault.strerror or fault}") from None

    def held_briefly(self) -> str:
        """What a source that is of no format holds, for an error."""
        names = sorted((entry.name for entry in self.path.iterdir()) if self.is_folder else self.held)
        return f" (it holds {', '.join(names[:4]) or 'nothing'}{' ...' if len(names) > 4 else ''})"

    def _safetensors(self) -> Mapping[str, Any]:
        try:
            with safe_open(self.path, framework="pt") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, it is no mapping
        except SafetensorError as fault:
            raise CheckpointError(
                f"cannot read {self.path}: it is truncated or no safetensors file ({fault})"
            ) from None
        try:
            settings = json.loads(metadata.get("hyper_parameters", "{}"))
        except ValueError:
            raise CheckpointError(f"{self.path} has metadata hyper_parameters that is no JSON") from None
        if not settings:
            return tensors
        return {"state_dict": tensors, "hyper_parameters": settings, "global_step": metadata.get("global_step")}

    def _pickle(self) -> Mapping[str, Any]:
        # Newer files are archives, of which the tensors can be mapped; those before torch 1.6 are pickles from end to end.
        try:
            held = torch.load(self.path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(self.path))
        except pickle.UnpicklingError as fault:
            beyond = re.search(r"GLOBAL ([\w.]+)", str(fault))
            if beyond is None:
                raise CheckpointError(
                    f"cannot read {self.path}: it is truncated, or no file of tensors that torch wrote"
                ) from None
            raise CheckpointError(
                f"{self.path} holds {beyond[1]} besides tensors, which may run code when it is read, so nothing of it was read: if you "
                f"trust where it comes from, save it as safetensors with python -c {shlex.quote(SAVE_AS_SAFETENSORS)} "
                f"{shlex.quote(str(self.path))} {shlex.quote(str(self.path.with_suffix('.safetensors')))} and import that"
            ) from None
        except STUMBLES as fault:
            reason = str(fault).partition("\n")[0]
            raise CheckpointError(f"cannot read {self.path}: it is truncated or damaged ({reason})") from None
        if not isinstance(held, Mapping) or not all(isinstance(key, str) for key in held):
            raise CheckpointError(
                f"{self.path} holds a {type(held).__name__}, expected a dictionary of names and tensors"
            )
        return held
