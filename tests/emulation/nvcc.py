"""nvcc and cuobjdump, of this machine or of the packages that `make nvcc` brings; setup.py's build with them, and one of single kernels."""

from __future__ import annotations

import fcntl
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from tests.emulation.emulator import ROOT, BuildFailed, ninja

PLACES = [os.environ["CUDA_HOME"]] if "CUDA_HOME" in os.environ else [None, str(Path(sys.prefix, "cuda/nvidia/cu13"))]


def tool(name: str) -> str | None:
    return next(filter(None, (shutil.which(name, path=place and f"{place}/bin") for place in PLACES)), None)


NVCC = tool("nvcc")
WITHOUT = "nvcc not found: set CUDA_HOME, install the CUDA toolkit, or make nvcc"

# What a machine's /usr/local/bin/nvcc may be: a script. This one also keeps the assembler's report of each object beside it.
WRAPPER = """#!/bin/sh
case $1 in -std=*) ;; *) exec {nvcc} "$@" ;; esac
for word; do out=$word; done
{nvcc} "$@" -Xptxas=-v 2>"$out.log" || {{ code=$?; cat "$out.log" >&2; exit $code; }}
"""


def version() -> str:
    text = subprocess.run([str(NVCC), "--version"], capture_output=True, text=True, check=True).stdout
    found = re.search(r"release (\d+\.\d+)", text)
    assert found, text
    return found[1]


def build() -> Path:
    """The folder of setup.py's build: objects, the assembler's report of each, and the two libraries in `mhr`."""
    folder = ROOT / "build" / "nvcc"
    wrapper = folder / "bin" / "nvcc"
    wrapper.parent.mkdir(parents=True, exist_ok=True)
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for known in (ROOT / "build").glob("native-*"):
            if not known.name.endswith("-cuda") and not (folder / f"{known.name}-cuda").exists():
                # The objects for the CPU are the same with CUDA and without: they need not be compiled again.
                shutil.copytree(known, folder / f"{known.name}-cuda")
        wrapper.write_text(WRAPPER.format(nvcc=shlex.quote(str(NVCC))))
        wrapper.chmod(0o755)
        environment = {name: value for name, value in os.environ.items() if name != "CUDA_HOME"}
        environment |= {"MHR_CUDA": "1", "PATH": f"{wrapper.parent}{os.pathsep}{os.environ['PATH']}"}
        command = [sys.executable, "setup.py", "-q", "build_ext", "--build-temp", folder, "--build-lib", folder]
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise BuildFailed((done.stdout + done.stderr)[-4000:])
    return folder


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
