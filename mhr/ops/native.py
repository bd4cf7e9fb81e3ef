"""The native extension, `mhr._C` and `mhr._autograd`: loading it, and saying which of its kernels the dispatcher will use.

The ops work without it, through their references in this package. A library that exists and fails to load is an error and
warns; `MHR_NATIVE=0` leaves it out on purpose (tests and benchmarks compare the two).
"""

from __future__ import annotations

import functools
import importlib.util
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_iter

_SOURCE = Path(__file__).parents[2]
_IN_PLACE = (_SOURCE / "setup.py").exists()  # imported from the clone, so it is there that the library is looked for
REBUILD = f"pip install --no-deps --editable {_SOURCE}" if _IN_PLACE else "pip install --no-deps --force-reinstall ."
WITHOUT_NODES = "autograd nodes in Python are used instead, some 25 us slower a call"
LIBRARY = torch.library.Library("mhr", "FRAGMENT")
_TAGS = (torch.Tag.pt2_compliant_tag, torch.Tag.needs_exact_strides)
_DEVICES = {"CPU": "cpu", "CUDA": "cuda"}
_names: list[str] = []
_natives: dict[str, Any] = {}


def register_op(schema: str, reference: Callable[..., Any], fake: Callable[..., Any]) -> Any:
    """Defines the op `mhr::<schema>` with its pure-torch reference and fake kernel; returns the callable op.

    The reference serves every device for which the extension registers no kernel of its own.
    """
    LIBRARY.define(schema, tags=_TAGS)
    name = schema.partition("(")[0]
    LIBRARY.impl(name, reference, "CompositeExplicitAutograd")
    torch.library.register_fake(f"mhr::{name}", _on_one_device(name, fake), lib=LIBRARY)
    _names.append(name)
    return getattr(torch.ops.mhr, name).default


def _on_one_device(name: str, fake: Callable[..., Any]) -> Callable[..., Any]:
    """A fake kernel, to which the dispatcher also gives a tensor on the meta device beside others: one that was never materialised, so
    that nothing would be computed of it."""

    @functools.wraps(fake)
    def checked(*args: Any) -> Any:
        devices = {t.device for t in tree_iter(args) if isinstance(t, Tensor)}
        if len(devices) > 1:
            raise RuntimeError(
                f"mhr::{name}: tensors must be on one device, got {', '.join(sorted(map(str, devices)))}"
            )
        return fake(*args)

    return checked


def _load(name: str, without: str) -> Any:
    if os.environ.get("MHR_NATIVE", "1") == "0" or importlib.util.find_spec(name) is None:
        return None
    try:
        return importlib.import_module(name)
    except (ImportError, OSError, RuntimeError) as error:
        warnings.warn(
            f"mhr: the native library {name} is there but does not load ({error}); {without}. Rebuild it with: {REBUILD}",
            RuntimeWarning,
            stacklevel=2,
        )
        return None


def _load_nodes() -> Any:
    """The autograd nodes in C++. Unlike the kernels they are bound to the very torch they were compiled with: another one
    might load them, and lay out its objects in another way."""
    if _extension is None:
        return None
    built = _extension.build_info()["torch"]
    if built.partition("+")[0] != torch.__version__.partition("+")[0]:
        warnings.warn(
            f"mhr: the native library was built with torch {built} and runs with {torch.__version__}: its kernels are used, but "
            f"{WITHOUT_NODES}. Rebuild it with: {REBUILD}",
            RuntimeWarning,
            stacklevel=2,
        )
        return None
    return _load("mhr._autograd", WITHOUT_NODES)


def _note_level() -> None:
    """Say that MHR_SIMD asks for what this machine cannot do."""
    wanted = os.environ.get("MHR_SIMD")
    if _extension is None or not wanted:
        return
    info = _extension.build_info()
    if wanted != info["simd"]:
        warnings.warn(
            f"mhr: MHR_SIMD is {wanted!r}, which this machine does not have: {info['simd']} is used. It has "
            f"{', '.join(info['simd_levels'])}",
            RuntimeWarning,
            stacklevel=2,
        )


_extension = _load("mhr._C", "the slow references are used instead")
_note_level()
nodes = _load_nodes()


def build_info() -> dict[str, Any]:
    """How the loaded extension was built and what it chose at run time; empty where none is loaded."""
    if _extension is None:
        return {}
    return {**_extension.build_info(), "autograd": "Python" if nodes is None else "C++"}


def native_ops() -> dict[str, list[str]]:
    """Each op of `mhr.ops` with the devices on which a native kernel serves it, for example `{"mix": ["cpu"]}`.

    An empty list means that the pure-torch reference serves the op everywhere.
    """
    has_kernel = torch._C._dispatch_has_kernel_for_dispatch_key
    return {
        name: [device for key, device in _DEVICES.items() if has_kernel(f"mhr::{name}", key)] for name in sorted(_names)
    }
