"""Safetensors files that are read and written tensor by tensor, so that none has to fit into memory."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from mhr.errors import CheckpointError
from mhr.files import writing

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
"""Names of dtypes in the header of a safetensors file."""

DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}

PIECE = 1 << 20  # bytes that are copied at a time


class TensorFile(Mapping[str, Tensor]):
    """A safetensors file on disk as a mapping from names to tensors, each read when it is asked for; `read` brings several.

    `shapes` and `dtypes` tell them before.

    Raises SafetensorError for a file that is truncated or none, OSError for one that cannot be read.
    """

    def __init__(self, path: str | Path, digest: str | None = None):
        """digest: its SHA-256, where that is known; otherwise it is computed when it is asked for."""
        self.path = Path(path)
        if digest is not None:
            self.digest = digest
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.dtypes: dict[str, torch.dtype | None] = {}
        with safe_open(self.path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118, it is no mapping
                view = file.get_slice(name)
                self.shapes[name] = tuple(view.get_shape())
                self.dtypes[name] = DTYPES.get(view.get_dtype())

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the file."""
        return file_digest(self.path)

    def __getitem__(self, name: str) -> Tensor:
        if name not in self.shapes:
            raise KeyError(name)
        return self.read([name])[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.shapes)

    def __len__(self) -> int:
        return len(self.shapes)

    def read(self, names: Iterable[str] | None = None) -> dict[str, Tensor]:
        """Copies of the tensors of these names; None reads all. Raises CheckpointError where the file can no longer be read."""
        # The pages of a mapped file count as this process's memory until the mapping goes, so it does not stay open.
        try:
            with safe_open(self.path, framework="pt") as file:
                return {name: file.get_tensor(name).clone() for name in (self.shapes if names is None else names)}
        except (OSError, SafetensorError) as fault:
            raise CheckpointError(f"cannot read {self.path}: {fault}") from None


class TensorView(TensorFile):
    """Tensors of a file under other names, and in other shapes of as many elements.

    places: new name -> (name in the file, shape)
    """

    def __init__(self, file: TensorFile, places: Mapping[str, tuple[str, tuple[int, ...]]]):
        self.file, self.path, self.places = file, file.path, dict(places)
        self.shapes = {name: shape for name, (_, shape) in self.places.items()}
        self.dtypes = {name: file.dtypes[key] for name, (key, _) in self.places.items()}

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the file."""
        return self.file.digest

    def read(self, names: Iterable[str] | None = None) -> dict[str, Tensor]:
        names = list(self.shapes if names is None else names)
        held = self.file.read(self.places[name][0] for name in names)
        return {name: held[self.places[name][0]].view(self.places[name][1]) for name in names}


class TensorWriter:
    """Writes a safetensors file one tensor after the other; `size` and `sha256` describe it after the block.

        with TensorWriter(path) as file:
            file.add("layer.weight", tensor)

    The header stands first and is known last, so tensors wait in a temporary file in the same folder. Raises CheckpointError, and writes
    nothing, for values that are not finite: what is read is finite, so that a dtype of 16 bits is too narrow for what was made of it.
    """

    size: int
    sha256: str

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self._header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        self._end = 0

    def __enter__(self) -> TensorWriter:
        self._data = tempfile.TemporaryFile(dir=self.path.parent)
        return self

    def add(self, name: str, tensor: Tensor) -> None:
        data = tensor.detach().cpu().contiguous()
        if not data.isfinite().all():
            told = (
                f"would have values that {str(data.dtype).removeprefix('torch.')} cannot hold: write it in another dtype, with --dtype"
                if data.dtype.itemsize < 4
                else "holds nan or infinity: train it again"
            )
            raise CheckpointError(f"tensor {name!r} of {self.path.name} {told}")
        # numpy knows no bfloat16, and a tensor without dimensions has no bytes to view.
        self._data.write(data.reshape(-1).view(torch.uint8).numpy().data)
        begin, self._end = self._end, self._end + data.numel() * data.element_size()
        described = {"dtype": DTYPE_NAMES[data.dtype], "shape": list(data.shape), "data_offsets": [begin, self._end]}
        self._header[name] = described

    def add_all(self, tensors: Mapping[str, Tensor]) -> None:
        for name, tensor in tensors.items():
            self.add(name, tensor)

    def __exit__(
        self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                with writing(self.path):
                    self._finish()
        finally:
            self._data.close()

    def _finish(self) -> None:
        header = json.dumps(self._header, separators=(",", ":")).encode()
        header += b" " * (-len(header) % 8)  # tensors begin at a multiple of 8 bytes
        temporary = self.path.with_name(f".{self.path.name}.{secrets.token_hex(4)}.tmp")
        try:
            with open(temporary, "xb") as file:
                file.write(len(header).to_bytes(8, "little") + header)
                self._data.seek(0)
                shutil.copyfileobj(self._data, file, PIECE)
                self.size = file.tell()
                file.flush()
                os.fsync(file.fileno())
            self.sha256 = file_digest(temporary)
            os.replace(temporary, self.path)
        finally:
            temporary.unlink(missing_ok=True)


def file_digest(path: str | Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest_of(file: TensorFile, *settings: Any) -> str:
    """What distinguishes adapters made of files with `settings`."""
    text = json.dumps([file.digest, *settings], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()
