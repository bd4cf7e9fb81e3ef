"""The CUDA registrations and the host code of nvcc on a machine without a GPU, under a runtime that only records (cudart.cpp).

The library registers the CUDA ops as the CPU's own, for a process of MHR_NATIVE=0: their checks, allocations and launches run as they
would on a GPU, the kernels do not. So results are not numbers, and what can be asked is which kernels would have started, with
which grid, shared memory, attributes, stream and device.
"""

from __future__ import annotations

import ctypes
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from tests.emulation import nvcc
from tests.emulation.emulator import NINJA, ROOT, ninja
from tests.emulation.nvcc import NVCC, WITHOUT

HERE = Path(__file__).parent
STREAM = 0x51DE
"""What stands for torch's current stream."""


def missing_tools() -> str | None:
    """Why the stub cannot be built here, or None."""
    if not NVCC:
        return WITHOUT
    return None if NINJA else "ninja not found"


def build_stub(csrc: Path = ROOT / "csrc", folder: Path = ROOT / "build" / "stub") -> Path:
    """Compiles what changed since the last call; returns the library's path. csrc: the repository's own sources, or others, whose kernels are compiled as well."""
    torch_home = Path(torch.__file__).parent
    includes = " ".join(f"-isystem {torch_home / 'include' / path}" for path in ("", "torch/csrc/api/include"))
    host = f"-O2 -fPIC -fvisibility=hidden -DMHR_STUB -DTORCH_TARGET_VERSION=0x020b000000000000 {includes}"
    libraries = f"-L{torch_home / 'lib'} -Wl,--no-as-needed -ltorch -ltorch_cpu -lc10"
    lines = [
        f"rule nvcc\n  command = {NVCC} -std=c++17 -I{csrc} $flags -MD -MF $out.d -c $in -o $out\n  depfile = $out.d\n  deps = gcc",
        f"rule cxx\n  command = g++ -std=c++17 -I{csrc} {host} -MMD -MF $out.d -c $in -o $out\n  depfile = $out.d\n  deps = gcc",
        f"rule link\n  command = g++ -shared -Wl,-Bsymbolic $in -o $out {libraries}",
    ]
    objects = ["cudart.cpp.o"]
    lines.append(f"build {objects[0]}: nvcc {HERE / 'cudart.cpp'}\n  flags = -Xcompiler=-O2,-fPIC")
    kernels = sorted((csrc / "cuda").glob("*.cu"))
    if csrc == ROOT / "csrc":
        built = nvcc.build()
        for source in kernels:
            (found,) = built.glob(f"native-*-cuda/cuda-{source.name}.o")
            objects.append(str(found))
    else:
        # Only the host's half is wanted, so that the kernels are translated as fast as can be.
        flags = "-Xcicc -O0 -gencode=arch=compute_90,code=compute_90 -Xcompiler=-O2,-fPIC,-fvisibility=hidden"
        for source in kernels:
            objects.append(f"{source.name}.o")
            lines.append(f"build {objects[-1]}: nvcc {source}\n  flags = {flags}")
    for source in sorted((csrc / "cuda").glob("*_torch.cpp")):
        objects.append(f"{source.name}.o")
        lines.append(f"build {objects[-1]}: cxx {source}")
    lines.append(f"build stub.so: link {' '.join(objects)}")
    ninja(folder, lines)
    return folder / "stub.so"


@dataclass(frozen=True)
class Record:
    """A launch, or, with an empty name, a copy or a fill.

    bytes   of dynamic shared memory, or moved
    raised  the most dynamic shared memory that the kernel was allowed before, or -1
    device  of the guard around it; -2 where there is none
    """

    name: str
    grid: tuple[int, int, int]
    threads: int
    bytes: int
    raised: int
    stream: int
    device: int

    @property
    def kind(self) -> str:
        """The kernel's name in the sources, such as "shrink_kernel"."""
        found = re.search(r"([a-z_]+_kernel)", self.name)
        return found[1].lstrip("_") if found else ""


class Stub:
    """The library, loaded: it serves mhr's ops from then on."""

    def __init__(self, path: Path):
        torch.ops.load_library(str(path))
        self._library = ctypes.CDLL(str(path))
        self._library.stub_begin.argtypes = [ctypes.c_void_p]
        self._library.stub_records.restype = ctypes.c_char_p
        self.restart()

    def restart(self) -> None:
        self._library.stub_begin(STREAM)

    @contextmanager
    def recording(self) -> Iterator[list[Record]]:
        """The records of what runs inside the block; they are there when it ends."""
        found: list[Record] = []
        self.restart()
        yield found
        for line in self._library.stub_records().decode().splitlines():
            name, *numbers = line.split()
            x, y, z, threads, size, raised, stream, device = map(int, numbers)
            found.append(Record("" if name == "-" else name, (x, y, z), threads, size, raised, stream, device))
