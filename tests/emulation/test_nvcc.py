"""The same sources under nvcc: what the GPU will get, and that the library with it loads where there is no GPU."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.emulation.emulator import ROOT, ninja

NVCC = os.environ.get("CUDA_HOME", "") and f"{os.environ['CUDA_HOME']}/bin/nvcc" or shutil.which("nvcc")
# The most registers of a thread that leave room for the blocks an SM should hold: 3 of 128 threads, 2, 2 of 256.
MOST_REGISTERS = {
    "shrink": 168,
    "expand": 168,
    "outer": 255,
    "finish": 64,
    "gather": 64,
    "pad": 64,
    "mix": 128,
    "weighted": 128,
    "route": 64,
}


def architectures() -> list[int]:
    """Those that the extension is built for, as far as this nvcc knows them."""
    known = subprocess.run([str(NVCC), "--list-gpu-arch"], capture_output=True, text=True, check=True).stdout
    return [arch for arch in (80, 90, 100) if f"compute_{arch}" in known]


pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not NVCC, reason="nvcc not found: set CUDA_HOME or install the CUDA toolkit"),
]


@pytest.fixture(scope="module")
def objects() -> Path:
    """The kernels compiled for every architecture, with the assembler's report beside each object."""
    folder = ROOT / "build" / "nvcc"
    targets = " ".join(f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in architectures())
    flags = f"-std=c++17 -O3 -Xcompiler=-fPIC,-fvisibility=hidden -Xptxas=-v -I{ROOT / 'csrc'} {targets}"
    rule = f"{NVCC} {flags} -MD -MF $out.d -c $in -o $out > $out.log 2>&1 || (cat $out.log && false)"
    sources = sorted((ROOT / "csrc" / "cuda").glob("*.cu"))
    lines = [f"rule nvcc\n  command = {rule}\n  depfile = $out.d\n  deps = gcc"]
    ninja(folder, [*lines, *(f"build {source.name}.o: nvcc {source}" for source in sources)])
    return folder


def test_no_spills_no_stack_few_registers(objects: Path) -> None:
    report = re.compile(
        r"Compiling entry function '(\S+)' for '(sm_\d+)'\n.*\n\s*(\d+) bytes stack frame, (\d+) bytes spill stores, "
        r"(\d+) bytes spill loads\n.*Used (\d+) registers"
    )
    kernels = 0
    faults = []
    for log in objects.glob("*.log"):
        for name, arch, stack, stores, loads, registers in report.findall(log.read_text()):
            kernels += 1
            kind = next(k for k in MOST_REGISTERS if k in name)
            if (stack, stores, loads) != ("0", "0", "0") or int(registers) > MOST_REGISTERS[kind]:
                faults.append(f"{name} {arch}: stack {stack}, spills {stores}/{loads}, registers {registers}")
    assert kernels >= len(architectures()) * 45, "the assembler's report was not understood"
    assert not faults, "\n".join(faults)


def test_library_with_cuda_loads_on_any_torch(objects: Path, tmp_path: Path) -> None:
    torch_home = Path(torch.__file__).parent
    assert NVCC
    flags = "-std=c++17 -O2 -shared -cudart=static -Xcompiler=-fPIC,-fvisibility=hidden -DMHR_WITH_CUDA -DTORCH_TARGET_VERSION=0x020b000000000000"
    library = tmp_path / "kernels.so"
    command = [NVCC, *flags.split(), f"-I{ROOT / 'csrc'}", f"-isystem={torch_home / 'include'}"]
    command += [f"-isystem={torch_home / 'include' / 'torch' / 'csrc' / 'api' / 'include'}"]
    command += [str(path) for path in sorted((ROOT / "csrc" / "cuda").glob("*_torch.cpp"))]
    command += [str(path) for path in sorted(objects.glob("*.o"))]
    command += [
        "-o",
        str(library),
        f"-L{torch_home / 'lib'}",
        "-Xlinker=--no-as-needed",
        "-ltorch",
        "-ltorch_cpu",
        "-lc10",
    ]
    built = subprocess.run(command, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr[-4000:]
    check = f"""
import torch, mhr.ops
before = mhr.ops.native_ops()
torch.ops.load_library({str(library)!r})
after = mhr.ops.native_ops()
ours = {{"mix", "mix_backward", "routed_adapter_forward", "routed_adapter_backward_dy", "routed_adapter_backward_x",
         "route", "route_backward", "weighted_average"}}
assert {{name for name, devices in after.items() if "cuda" in devices}} >= ours, after
x = torch.randn(4, 8)
assert torch.equal(mhr.ops.weighted_average([x, x], [0.5, 0.5]), x)  # the CPU's own ops are untouched
"""
    loaded = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, cwd=ROOT)
    assert loaded.returncode == 0, loaded.stderr[-4000:]
