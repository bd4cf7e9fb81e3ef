"""nvcc and cuobjdump, of this machine or of the packages that `make nvcc` brings, and the adapter's kernels by them alone."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from tests.emulation.emulator import ROOT, ninja

PLACES = [os.environ["CUDA_HOME"]] if "CUDA_HOME" in os.environ else [None, str(Path(sys.prefix, "cuda/nvidia/cu13"))]


def tool(name: str) -> str | None:
    return next(filter(None, (shutil.which(name, path=place and f"{place}/bin") for place in PLACES)), None)


NVCC = tool("nvcc")


def version() -> str:
    text = subprocess.run([str(NVCC), "--version"], capture_output=True, text=True, check=True).stdout
    found = re.search(r"release (\d+\.\d+)", text)
    assert found, text
    return found[1]


def compile_kernel(name: str, arch: str) -> Path:
    """The object of csrc/cuda/NAME.cu for one architecture, with the assembler's report beside it as .log."""
    folder = ROOT / "build" / f"nvcc-{arch}"
    target = f"-gencode=arch={arch.replace('sm', 'compute')},code={arch}"
    flags = f"-std=c++17 -O3 -Xcompiler=-fPIC,-fvisibility=hidden -Xptxas=-v -I{ROOT / 'csrc'} {target}"
    rule = f"{NVCC} {flags} -MD -MF $out.d -c $in -o $out > $out.log 2>&1 || (cat $out.log && false)"
    source = ROOT / "csrc" / "cuda" / f"{name}.cu"
    lines = [f"rule nvcc\n  command = {rule}\n  depfile = $out.d\n  deps = gcc", f"build {name}.cu.o: nvcc {source}"]
    ninja(folder, lines)
    return folder / f"{name}.cu.o"
