"""The native extension, `mhr._C` and `mhr._autograd`: loading it, and saying which of its kernels the dispatcher will use.

The ops work without it, through their references in this package. A library that exists and fails to load is a fault and
warns; `MHR_NATIVE=0` leaves it out on purpose (tests and benchmarks compare the two).
"""

from __future__ import annotations

import importlib.util
import os
import warnings
from collections.abc import Callable
from typing import Any

import torch

LIBRARY = torch.library.Library("mhr", "FRAGMENT")
_TAGS = (torch.Tag.pt2_compliant_tag, torch.Tag.needs_exact_strides)
_DEVICES = {"CPU": "cpu", "CUDA": "cuda"}
_names: list[str] = []
_natives: dict[str, Any] = {}


def register(schema: str, reference: Callable[..., Any], fake: Callable[..., Any]) -> Any:
    """Defines the op `mhr::<schema>` with its pure-torch reference and fake kernel; returns the callable op.

    The reference serves every device for which the extension registers no kernel of its own.
    """
    LIBRARY.define(schema, tags=_TAGS)
    name = schema.partition("(")[0]
    LIBRARY.impl(name, reference, "CompositeExplicitAutograd")
    torch.library.register_fake(f"mhr::{name}", fake, lib=LIBRARY)
    _names.append(name)
    return getattr(torch.ops.mhr, name).default


def _load(name: str, without: str) -> Any:
    if os.environ.get("MHR_NATIVE", "1") == "0" or importlib.util.find_spec(name) is None:
        return None
    try:
        return importlib.import_module(name)
    except (ImportError, OSError, RuntimeError) as error:
        warnings.warn(
            f"mhr: the native library {name} is there but does not load ({error}); {without}. "
            "Rebuild it with: pip install --no-build-isolation -e .",
            RuntimeWarning,
            stacklevel=2,
        )
        return None


_extension = _load("mhr._C", "the slow references serve instead")
# Autograd nodes in C++: these are bound to the very torch they were compiled with, the kernels are not.
nodes = _load("mhr._autograd", "autograd nodes in Python serve instead") if _extension is not None else None


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
