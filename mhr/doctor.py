"""What this machine has for mhr and what it lacks, each lack with the command that fixes it."""

from __future__ import annotations

import os
import platform
import shutil
from dataclasses import asdict, dataclass
from importlib import metadata
from typing import Any

import torch
from packaging.requirements import Requirement

from mhr import __version__
from mhr.ops import native_ops
from mhr.ops.native import REBUILD, build_info


@dataclass(frozen=True, slots=True)
class Lack:
    """Something missing. needed: whether mhr does not work without it; otherwise it is slower or can do less."""

    what: str
    fix: str
    needed: bool


@dataclass(frozen=True, slots=True)
class Findings:
    """sections: title -> {name: what was found}; missing: the lacks, the needed ones first."""

    sections: dict[str, dict[str, str]]
    missing: list[Lack]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def examine() -> Findings:
    """Look at the installed packages, the native extension, the processor and the GPU. Changes nothing."""
    packages, missing = _packages()
    sections = {
        "Versions": {"mhr": __version__, "python": platform.python_version(), **packages},
        "Native ops": _native_ops(missing),
        "Native extension": {name.replace("_", " "): _shown(value) for name, value in build_info().items()},
        "Processor": _processor(),
        "GPU": _gpu(missing),
    }
    return Findings(sections, sorted(missing, key=lambda lack: not lack.needed))


def _packages() -> tuple[dict[str, str], list[Lack]]:
    """The packages that mhr asks for, with their versions, and those that are absent or too old."""
    found: dict[str, str] = {}
    missing = []
    try:
        asked = metadata.requires("mhr") or []
    except metadata.PackageNotFoundError:
        return {}, [
            Lack("mhr is not installed, only importable: its command and requirements are unknown", REBUILD, False)
        ]
    for requirement in map(Requirement, asked):
        marker = requirement.marker
        needed = marker is None or marker.evaluate({"extra": ""})
        if marker is not None and not needed and not marker.evaluate({"extra": "bench"}):
            continue
        try:
            version = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            why = requirement.name + ("" if needed else ", which the benchmarks compare with")
            missing.append(Lack(why, f"pip install '{requirement.name}{requirement.specifier}'", needed))
            continue
        found[requirement.name] = version
        if not requirement.specifier.contains(version, prereleases=True):
            why = f"{requirement.name} {version} is too old: expected {requirement.specifier}"
            missing.append(Lack(why, f"pip install '{requirement.name}{requirement.specifier}'", needed))
    return dict(sorted(found.items())), missing


def _native_ops(missing: list[Lack]) -> dict[str, str]:
    """Each op with the devices on which it is native."""
    if os.environ.get("MHR_NATIVE") == "0":
        missing.append(Lack("the native extension, which MHR_NATIVE=0 switches off", "unset MHR_NATIVE", False))
    elif not build_info():
        if not any(map(shutil.which, ("c++", "g++", "clang++"))):
            missing.append(Lack("a C++ compiler", "apt-get install g++", False))
        missing.append(Lack("the native extension mhr._C; the slow pure-torch references are used", REBUILD, False))
    elif build_info()["autograd"] == "Python":
        what = (
            f"autograd nodes in C++ for torch {torch.__version__}; the extension was built with {build_info()['torch']}"
        )
        missing.append(Lack(what, REBUILD, False))
    return {name: ", ".join(devices) or "reference only" for name, devices in native_ops().items()}


def _shown(value: Any) -> str:
    return ", ".join(value) if isinstance(value, list) else str(value) or "none"


def _processor() -> dict[str, str]:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "machine": f"{platform.system()} {platform.machine()}",
        "SIMD that torch sees": torch.backends.cpu.get_cpu_capability(),
        "cores": str(cores),
        "threads": f"{torch.get_num_threads()} (OMP_NUM_THREADS {os.environ.get('OMP_NUM_THREADS', 'unset')})",
    }


def _gpu(missing: list[Lack]) -> dict[str, str]:
    if torch.cuda.is_available():
        gpus = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
        if not any("cuda" in devices for devices in native_ops().values()):
            missing.append(Lack("CUDA kernels: the references are used on the GPU", f"MHR_CUDA=1 {REBUILD}", False))
        return {
            f"cuda:{i}": f"{g.name}, {g.total_memory / 2**30:.0f} GiB, sm_{g.major}{g.minor}"
            for i, g in enumerate(gpus)
        }
    if shutil.which("nvidia-smi"):
        what = f"CUDA for torch {torch.__version__}, which does not see the NVIDIA GPU of this machine"
        missing.append(Lack(what, "install the CUDA build of torch, then " + REBUILD, False))
    return {"none": "training and evaluation run on the processor"}
