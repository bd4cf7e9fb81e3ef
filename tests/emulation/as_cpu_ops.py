"""A pytest plugin (-p) that puts the emulated CUDA kernels behind mhr's ops on the CPU; wants MHR_NATIVE=0."""

from __future__ import annotations

import torch

import mhr.ops
from tests.emulation.emulator import build_library

assert not mhr.ops.native.build_info(), "the CPU's own kernels are loaded: set MHR_NATIVE=0"
torch.ops.load_library(str(build_library()))
