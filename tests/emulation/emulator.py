"""Builds the CUDA kernels for the CPU emulator, and runs launches of them on torch CPU tensors.

Three builds of the same sources: `plain` (numbers, schedules, barriers, memory nobody wrote), `address` (AddressSanitizer
and UndefinedBehaviorSanitizer: steps outside global or shared memory, alignment) and `race` (ThreadSanitizer: missing
barriers, conflicts between blocks).
"""

from __future__ import annotations

import fcntl
import os
import platform
import shutil
import struct
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[2]
CSRC = ROOT / "csrc"
# The environment's own ninja is beside its Python, which may not be on the path.
NINJA = shutil.which("ninja") or shutil.which("ninja", path=str(Path(sys.executable).parent))
DTYPES = {torch.bfloat16: 0, torch.float16: 1, torch.float32: 2, torch.float64: 3}

# Kernels move 16 bytes of any type at once, which nvcc lets them.
LANGUAGE = "-std=c++17 -fno-strict-aliasing"
WARNINGS = "-Wall -Wextra -Werror -Wno-unknown-pragmas"
FLAVOURS = {
    "plain": "-O2 -fPIC -fvisibility=hidden",  # as a library needs it, which is made of the same objects
    # To optimise watched kernels takes longer than to run them. What is left out is of addresses, which AddressSanitizer sees used.
    "address": "-O0 -g1 -fsanitize=address,undefined -fno-sanitize=null,object-size,pointer-overflow -fno-sanitize-recover=all",
    "race": "-O0 -g1 -fsanitize=thread -DMHR_RACE_CHECK",
}


class BuildFailed(Exception):
    """The compiler refused something; its message."""


class EmulatorFault(AssertionError):
    """A launch was refused, a kernel did something wrong, or a sanitizer stopped the process."""


def missing_tools() -> str | None:
    """Why the emulator cannot be built here, or None."""
    if platform.machine() != "x86_64":
        return f"the CUDA emulator switches stacks with x86-64 instructions, this machine is {platform.machine()}"
    if shutil.which("g++") is None:
        return "g++ not found"
    return None if NINJA else "ninja not found"


def build(flavour: str) -> Path:
    """Compiles what changed since the last call; returns the driver's path."""
    sources = [*_kernels(), ROOT / "tests" / "emulation" / "driver.cpp"]
    return _compile(ROOT / "build" / "emulation" / flavour, sources, "driver", FLAVOURS[flavour], "")


def build_changed(own: Path, flavour: str, source: Path, folder: Path) -> Path:
    """The driver `own` with `source` in place of the kernels' file of that name, built with the headers of its own tree."""
    # A planted bug may leave a variable without use; to compile it takes longer than to run it.
    flags = f"{LANGUAGE} {FLAVOURS[flavour]} -O0 -w -I{source.parent.parent}"
    folder.mkdir(parents=True, exist_ok=True)
    changed, driver = folder / f"{source.name}.o", folder / "driver"
    # Its functions come first, so that those of headers are taken from it.
    others = [o for o in sorted(own.parent.glob("*.o")) if o.name != changed.name]
    for command in (
        ["g++", *flags.split(), "-c", "-x", "c++", source, "-o", changed],
        ["g++", *flags.split(), changed, *others, "-o", driver],
    ):
        result = subprocess.run(command, capture_output=True, text=True)
        if result.returncode:
            raise BuildFailed(f"{source} does not build:\n{result.stderr[-4000:]}")
    return driver


def build_library() -> Path:
    """A library that registers the emulated kernels as the CPU's own; to be loaded where mhr._C is left out."""
    torch_home = Path(torch.__file__).parent
    includes = " ".join(f"-isystem {torch_home / 'include' / path}" for path in ("", "torch/csrc/api/include"))
    defines = f"-DMHR_EMULATED -DTORCH_TARGET_VERSION=0x020b000000000000 {includes}"
    libraries = f"-L{torch_home / 'lib'} -Wl,--no-as-needed -ltorch -ltorch_cpu -lc10"
    kernels = [build("plain").with_name(f"{source.name}.o") for source in _kernels()]
    sources = sorted((CSRC / "cuda").glob("*_torch.cpp"))
    folder, flags = ROOT / "build" / "emulation" / "library", f"{FLAVOURS['plain']} {defines}"
    return _compile(folder, sources, "emulated.so", flags, f"-shared {libraries}", kernels)


def _kernels() -> list[Path]:
    return [*sorted((CSRC / "emulation").glob("*.cpp")), *sorted((CSRC / "cuda").glob("*.cu"))]


def _compile(
    folder: Path, sources: Sequence[Path], target: str, flags: str, link_flags: str, others: Sequence[Path] = ()
) -> Path:
    """others: objects that are there, to be linked with those of the sources."""
    flags = f"{LANGUAGE} {flags} {WARNINGS} -I{CSRC}"
    lines = [
        "rule cxx\n  command = g++ -MMD -MF $out.d $flags -c -x c++ $in -o $out\n  depfile = $out.d\n  deps = gcc",
        f"rule link\n  command = g++ {flags} $in -o $out {link_flags}",
    ]
    objects = []
    for source in sources:
        objects.append(f"{source.name}.o")
        own = flags
        if source.name == "mma.cpp":  # touches nothing of a kernel
            own = f"{LANGUAGE} {FLAVOURS['plain']} {WARNINGS} -I{CSRC}"
        elif source.parent == CSRC / "emulation":  # never watched for races: it is what orders the kernels' threads,
            # and most of the time
            own = flags.replace("-fsanitize=thread", "") + " -O2"
        lines.append(f"build {objects[-1]}: cxx {source}\n  flags = {own}")
    lines.append(f"build {target}: link {' '.join([*objects, *map(str, others)])}")
    ninja(folder, lines)
    return folder / target


def ninja(folder: Path, lines: Sequence[str]) -> None:
    """Brings a build folder up to date; processes that want the same one wait for each other."""
    folder.mkdir(parents=True, exist_ok=True)
    text = "\n".join([*lines, ""])
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        build_file = folder / "build.ninja"
        if not build_file.exists() or build_file.read_text() != text:
            build_file.write_text(text)
        result = subprocess.run([NINJA or "ninja", "-C", str(folder)], capture_output=True, text=True)
    if result.returncode:
        raise BuildFailed(f"the build in {folder} failed:\n{result.stdout[-4000:]}")


@dataclass(frozen=True)
class Output:
    """A tensor that the launch writes in full."""

    shape: tuple[int, ...]
    dtype: torch.dtype = torch.float32


@dataclass(frozen=True)
class Updated:
    """A tensor that the launch reads and writes."""

    tensor: torch.Tensor


Argument = int | float | torch.Tensor | Output | Updated | None


@dataclass
class Call:
    """One launch: its name in driver.cpp, its arguments in the driver's order, the seed of the schedule, and by how many
    bytes the tensors miss an alignment of 256."""

    name: str
    arguments: Sequence[Argument]
    seed: int = 0
    shift: int = 0
    outputs: list[Output] = field(init=False)

    def __post_init__(self) -> None:
        self.outputs = []
        for a in self.arguments:
            if isinstance(a, Output):
                self.outputs.append(a)
            elif isinstance(a, Updated):
                self.outputs.append(Output(tuple(a.tensor.shape), a.tensor.dtype))

    def encode(self) -> bytes:
        name = self.name.encode()
        parts = [struct.pack("<qqq", self.seed, self.shift, len(name)), name]
        for a in self.arguments:
            if isinstance(a, float):
                parts.append(struct.pack("<d", a))
            elif isinstance(a, int):
                parts.append(struct.pack("<q", a))
            elif a is None:
                parts.append(struct.pack("<q", -1))
            elif isinstance(a, Output):
                parts.append(struct.pack("<q", torch.Size(a.shape).numel() * a.dtype.itemsize))
            else:
                data = _bytes_of(a.tensor if isinstance(a, Updated) else a)
                parts += [struct.pack("<q", len(data)), data]
        return b"".join(parts)


def _bytes_of(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes()


def run(driver: Path, calls: Sequence[Call]) -> list[list[torch.Tensor]]:
    """The outputs of each call, in the order of its arguments. Raises EmulatorFault with the kernel's line."""
    with tempfile.TemporaryDirectory() as folder:
        request, response = Path(folder, "request"), Path(folder, "response")
        request.write_bytes(b"".join(call.encode() for call in calls))
        environment = {**os.environ, "ASAN_OPTIONS": "detect_leaks=0", "TSAN_OPTIONS": "halt_on_error=1"}
        command = [str(driver), str(request), str(response)]
        if shutil.which("setarch"):  # ThreadSanitizer of gcc 12 does not know the wider address randomisation
            command = ["setarch", platform.machine(), "-R", *command]
        result = subprocess.run(command, capture_output=True, text=True, env=environment)
        data = response.read_bytes() if response.exists() else b""
    if result.returncode:
        raise EmulatorFault(f"the driver ended with code {result.returncode}:\n{result.stderr[:6000]}")
    at = 0
    results = []
    for call in calls:
        (status,) = struct.unpack_from("<q", data, at)
        at += 8
        if status:
            (length,) = struct.unpack_from("<q", data, at)
            raise EmulatorFault(f"{call.name}, seed {call.seed}: {data[at + 8 : at + 8 + length].decode()}")
        tensors = []
        for output in call.outputs:
            (size,) = struct.unpack_from("<q", data, at)
            tensor = torch.empty(output.shape, dtype=output.dtype)
            if size:
                raw = torch.frombuffer(bytearray(data[at + 8 : at + 8 + size]), dtype=torch.uint8)
                tensor = raw.view(output.dtype).reshape(output.shape)
            tensors.append(tensor)
            at += 8 + size
        results.append(tensors)
    return results
