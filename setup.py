"""Builds csrc/ into mhr._C and mhr._autograd and maps the command line and the benchmarks to installed packages.

Everything else is in pyproject.toml; which torch both are compiled against, in build_backend.py. Environment: MHR_NATIVE=0
builds neither, MHR_CUDA=0|1 leaves the CUDA kernels out or demands them (default: where nvcc is found and torch has CUDA),
MHR_CUDA_ARCHS lists their architectures ("80;90"), CUDA_HOME names the toolkit, CXX the C++ compiler, MAX_JOBS limits how many
run at once.
"""

from __future__ import annotations

import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

from build_backend import Torch, find_torch

ROOT = Path(__file__).resolve().parent
CSRC = ROOT / "csrc"
TORCH_MINIMUM = "2.11"
CUDA_ARCHS = ("80", "90", "100")
CXX_FLAGS = ["-std=c++17", "-O3", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra"]
# What one translation unit may use beyond the machine's baseline; which of them runs is chosen when the library is loaded.
# -Wno-maybe-uninitialized: g++ 12 warns about its own avx512fintrin.h.
SIMD_FLAGS = {
    "kernels_avx2.cpp": ["-mavx2", "-mfma", "-mf16c"],
    "kernels_avx512.cpp": [
        *("-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mavx512bf16", "-mfma", "-mf16c"),
        "-Wno-maybe-uninitialized",
    ],
}


def find_nvcc(torch: Torch) -> str | None:
    """The CUDA compiler to use, or None where the CUDA kernels are left out."""
    wanted = os.environ.get("MHR_CUDA", "")
    if wanted == "0" or (wanted != "1" and torch.cuda is None):
        return None
    home = os.environ.get("CUDA_HOME")
    nvcc = shutil.which("nvcc", path=f"{home}/bin") if home else shutil.which("nvcc")
    if nvcc is None and wanted == "1":
        sys.exit(
            "MHR_CUDA=1, but there is no nvcc: set CUDA_HOME to the CUDA toolkit (make nvcc puts one into .venv/cuda)"
        )
    return nvcc


def cuda_archs(nvcc: str) -> list[str]:
    """The architectures to compile for, oldest first: those named, or of the usual ones those that this nvcc knows."""
    told = subprocess.run([nvcc, "--list-gpu-arch"], capture_output=True, text=True, check=True).stdout
    known = set(re.findall(r"compute_(\d+)", told))
    named = [arch.strip() for arch in os.environ.get("MHR_CUDA_ARCHS", "").split(";") if arch.strip()]
    strangers = [arch for arch in named if arch not in known]
    archs = sorted(named or known & set(CUDA_ARCHS), key=int) if not strangers else []
    if not archs:
        sys.exit(
            f"mhr: MHR_CUDA_ARCHS names {', '.join(strangers or CUDA_ARCHS)}: {nvcc} compiles for "
            f"{', '.join(sorted(known, key=int))}"
        )
    return archs


def gencode(archs: list[str]) -> str:
    """PTX once, of the oldest architecture, from which the assembler makes machine code for each: the kernels use nothing that is newer.
    The PTX is kept too, which the driver compiles for architectures that came after them."""
    code = ",".join(f"sm_{arch}" for arch in archs)
    return f"-gencode=arch=compute_{archs[0]},code=[{code},compute_{archs[0]}]"


def cuda_home(nvcc: str) -> Path:
    """The toolkit of a compiler, as that one tells it: what is on the PATH may be a script or a link from elsewhere."""
    dry_run = subprocess.run(
        [nvcc, "--dryrun", "-c", "-x", "cu", os.devnull, "-o", os.devnull], capture_output=True, text=True, check=False
    )
    top = next((line.partition("TOP=")[2] for line in dry_run.stderr.splitlines() if line.startswith("#$ TOP=")), None)
    return Path(top or Path(nvcc).resolve().parent.parent).resolve()


class Step(NamedTuple):
    """One command of the build, run in the build folder: `command` makes `out` from `inputs`."""

    out: str
    inputs: list[str]
    command: str
    compiles: bool = True


def shell(*arguments: str | Path) -> str:
    return shlex.join(map(str, arguments))


class FreshBuild(build_py):
    """build_py into an empty folder: setuptools packs all that lies there, also modules that earlier sources had."""

    def run(self) -> None:
        if not self.editable_mode:
            shutil.rmtree(self.build_lib, ignore_errors=True)
        super().run()


class NativeBuild(build_ext):
    """build_ext through ninja where there is one: parallel, incremental. A finished library is moved into place in one step."""

    def initialize_options(self) -> None:
        super().initialize_options()
        self.build_temp = str(ROOT / "build")

    def build_extensions(self) -> None:
        try:
            import pybind11
        except ImportError:
            sys.exit("mhr: the build needs pybind11: pip install pybind11, or build in isolation (pip install .)")
        torch = find_torch()
        if torch is None:
            sys.exit("mhr: the build needs torch: pip install torch, or build in isolation (pip install .)")
        cxx = os.environ.get("CXX") or shutil.which("g++") or shutil.which("c++")
        if cxx is None:
            sys.exit(
                "mhr: no C++ compiler: install g++, name one in CXX, or set MHR_NATIVE=0 to do without the native kernels "
                "(slower, pure torch)"
            )
        targets = [Path(self.get_ext_fullpath(ext.name)) for ext in self.extensions]
        kernels, autograd = (target.name for target in targets)
        nvcc = find_nvcc(torch)
        archs = cuda_archs(nvcc) if nvcc else []
        work = (
            Path(self.build_temp).resolve()
            / f"native-{kernels.split('.')[1]}-torch{torch.version}{'-cuda' if nvcc else ''}"
        )
        work.mkdir(parents=True, exist_ok=True)
        home = torch.home
        headers = [home / "include", home / "include/torch/csrc/api/include", sysconfig.get_path("include")]
        x86 = platform.machine().lower() in ("x86_64", "amd64")
        major, minor = TORCH_MINIMUM.split(".")
        defines = [
            f"-DTORCH_TARGET_VERSION=0x{int(major):02x}{int(minor):02x}000000000000",
            f'-DMHR_TORCH_VERSION="{torch.version}"',
            f'-DMHR_TORCH_MINIMUM="{TORCH_MINIMUM}"',
            *(["-DMHR_X86"] if x86 else []),
        ]
        flags = [cxx, *CXX_FLAGS, f"-I{CSRC}"]
        system = [f"-isystem{path}" for path in headers]
        # The stable ABI comes with pybind11 of its own: torch's copy, which lies among its headers, refuses to serve it.
        stable = [*flags, *defines, f"-isystem{pybind11.get_include()}", *system]
        libraries = [f"-L{home / 'lib'}", "-Wl,--no-as-needed", "-ltorch", "-ltorch_cpu", "-lc10"]
        objects = [
            compiled(source, *stable, *SIMD_FLAGS.get(source.name, []))
            for source in sorted(CSRC.glob("cpu/*.cpp"))
            if x86 or source.name not in SIMD_FLAGS
        ]
        objects.append(compiled(CSRC / "module.cpp", *stable, f'-DMHR_CUDA_ARCHS="{";".join(archs)}"'))
        node = compiled(CSRC / "autograd.cpp", *flags, *system, "-std=c++20")
        cuda_libraries = []
        if nvcc:
            cuda = cuda_home(nvcc)
            nvcc_flags = [
                nvcc,
                "-std=c++17",
                "-O3",
                "-Xcompiler=-fPIC,-fvisibility=hidden",
                f"-I{CSRC}",
                gencode(archs),
            ]
            objects += [compiled(source, *nvcc_flags) for source in sorted(CSRC.glob("cuda/*.cu"))]
            for source in sorted(CSRC.glob("cuda/*_torch.cpp")):
                objects.append(compiled(source, *stable, f"-isystem{cuda / 'include'}"))
            folder = cuda / ("lib64" if (cuda / "lib64").is_dir() else "lib")
            cuda_libraries = [f"-L{folder}", "-lcudart_static", "-lrt", "-ldl", "-lpthread"]
        links = [
            linked(kernels, cxx, objects, [*libraries, *cuda_libraries]),
            linked(autograd, cxx, [node], [*libraries, "-ltorch_python"]),
        ]
        run_steps([*objects, node], links, work, self.parallel or max_jobs())
        for target in targets:
            self.install_file(work / target.name, target)

    @staticmethod
    def install_file(built: Path, target: Path) -> None:
        """Copies beside the target and renames, so that a process that has the old library open keeps it whole."""
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.exists() and target.stat().st_mtime_ns == built.stat().st_mtime_ns:
            return
        beside = target.with_name(f".{target.name}.{os.getpid()}")
        shutil.copy2(built, beside)
        os.replace(beside, target)

    def copy_extensions_to_source(self) -> None:
        for ext in self.extensions:
            built = Path(self.build_lib) / self.get_ext_filename(ext.name)
            self.install_file(built, ROOT / self.get_ext_filename(ext.name))


def max_jobs() -> int | None:
    """How many compilers MAX_JOBS lets run at once; None is as many as there are processors."""
    wanted = os.environ.get("MAX_JOBS", "")
    if wanted and (not wanted.isdecimal() or int(wanted) < 1):
        sys.exit(f"mhr: MAX_JOBS is {wanted!r}: expected an integer of at least 1")
    return int(wanted) if wanted else None


def compiled(source: Path, *command: str | Path) -> Step:
    out = "-".join(source.relative_to(CSRC).parts) + ".o"
    return Step(out, [str(source)], shell(*command, "-MMD", "-MF", f"{out}.d", "-c", source, "-o", out))


def linked(out: str, cxx: str, objects: list[Step], libraries: list[str]) -> Step:
    inputs = [step.out for step in objects]
    return Step(out, inputs, shell(cxx, "-shared", "-o", out, *inputs, *libraries), compiles=False)


def run_steps(compilations: list[Step], links: list[Step], work: Path, jobs: int | None) -> None:
    """Runs what is out of date, or everything where there is no ninja."""
    ninja = shutil.which("ninja") or shutil.which("ninja", path=str(Path(sys.executable).parent))
    if ninja:
        (work / "build.ninja").write_text("\n".join([NINJA_RULES, *map(ninja_edge, [*compilations, *links]), ""]))
        done = subprocess.run([ninja, "-C", str(work), *([f"-j{jobs}"] if jobs else [])], check=False).returncode == 0
    else:

        def run(step: Step) -> bool:
            return subprocess.run(step.command, shell=True, cwd=work, check=False).returncode == 0

        with ThreadPoolExecutor(jobs or os.cpu_count()) as pool:
            done = all(pool.map(run, compilations)) and all(map(run, links))
    if not done:
        sys.exit("mhr: the native extension did not compile; the compiler's message is above")


NINJA_RULES = """ninja_required_version = 1.5
rule compile
  command = $run
  depfile = $out.d
  deps = gcc
rule link
  command = $run"""


def ninja_edge(step: Step) -> str:
    inputs = " ".join(path.replace("$", "$$").replace(" ", "$ ").replace(":", "$:") for path in step.inputs)
    rule = "compile" if step.compiles else "link"
    return f"build {step.out}: {rule} {inputs}\n  run = {step.command.replace('$', '$$')}"


setup(
    packages=[
        *find_packages(include=["mhr", "mhr.*"]),
        *("mhr_cli", *(f"mhr_cli.{name}" for name in find_packages("cli"))),
        *("mhr_benchmarks", *(f"mhr_benchmarks.{name}" for name in find_packages("benchmarks"))),
    ],
    package_dir={"mhr_cli": "cli", "mhr_benchmarks": "benchmarks"},
    ext_modules=[]
    if os.environ.get("MHR_NATIVE") == "0"
    else [Extension("mhr._C", sources=[]), Extension("mhr._autograd", sources=[])],
    cmdclass={"build_ext": NativeBuild, "build_py": FreshBuild},
)
