"""The same sources under nvcc, by setup.py itself: what the GPU will get, and that the library with it loads where there is none.

nvcc is found through a script on the PATH, as some machines have it. Where the machine has none, NVIDIA's packages for pip
bring one: `make nvcc`.
"""

from __future__ import annotations

import json
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import setuptools

from tests.emulation import nvcc, sass
from tests.emulation.emulator import ROOT
from tests.emulation.kernel_table import ARCH, BUDGET, SOURCE, measure
from tests.emulation.nvcc import NVCC, WITHOUT


def setup_py() -> dict[str, Any]:
    """What setup.py defines."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(setuptools, "setup", lambda **_: None)
        patch.syspath_prepend(ROOT)
        return runpy.run_path(str(ROOT / "setup.py"))


SETUP = setup_py()
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


@pytest.fixture(scope="module")
def built() -> Path:
    return nvcc.build()


@pytest.mark.slow
@pytest.mark.skipif(not NVCC, reason=WITHOUT)
def test_no_spills_no_stack_few_registers(built: Path) -> None:
    kernels = 0
    faults = []
    archs = SETUP["cuda_archs"](NVCC)
    for log in built.glob("native-*-cuda/cuda-*.log"):
        for arch in archs:
            for name, found in sass.resources(log.read_text(), f"sm_{arch}").items():
                kernels += 1
                kind = next(k for k in MOST_REGISTERS if name.startswith(k))
                if found.stack or found.spills or found.registers > MOST_REGISTERS[kind]:
                    faults.append(f"{name} sm_{arch}: {found}")
    assert kernels >= len(archs) * 70, "the assembler's report was not understood"
    assert not faults, "\n".join(faults)


@pytest.mark.slow
@pytest.mark.skipif(not NVCC, reason=WITHOUT)
def test_instructions_of_a_step_only_fall(built: Path) -> None:
    """Of the budget: to the instruction with its compiler, within a tenth with another one."""
    tool = sass.cuobjdump()
    if not tool:
        pytest.skip("cuobjdump not found: pip install nvidia-cuda-cuobjdump, and name it in MHR_CUOBJDUMP")
    budget = json.loads(BUDGET.read_text())
    assert budget["arch"] == ARCH
    (obj,) = built.glob(f"native-*-cuda/cuda-{SOURCE}.cu.o")
    found, slack = measure(obj, tool), 1.0 if nvcc.version() == budget["nvcc"] else 1.1
    assert found.keys() == budget["instructions"].keys()
    rose = {name: n for name, n in found.items() if n > slack * budget["instructions"][name]}
    assert not rose, f"more instructions than {BUDGET.name} allows: {rose}"


@pytest.mark.slow
@pytest.mark.skipif(not NVCC, reason=WITHOUT)
def test_library_with_cuda_loads_on_any_torch(built: Path, tmp_path: Path) -> None:
    package = tmp_path / "mhr"
    package.mkdir()
    for path in (ROOT / "mhr").iterdir():
        if path.suffix != ".so":
            (package / path.name).symlink_to(path)
    for path in (built / "mhr").glob("*.so"):
        (package / path.name).symlink_to(path)
    check = """
import torch, mhr.ops
native = mhr.ops.native_ops()
ours = {"mix", "mix_backward", "routed_adapter_forward", "routed_adapter_backward_dy", "routed_adapter_backward_x",
        "route", "route_backward", "weighted_average"}
assert {name for name, devices in native.items() if "cuda" in devices} >= ours, native
assert mhr.ops.build_info()["cuda_archs"], mhr.ops.build_info()
x = torch.randn(4, 8)
assert torch.equal(mhr.ops.weighted_average([x, x], [0.5, 0.5]), x)
"""
    loaded = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, cwd=tmp_path)
    assert loaded.returncode == 0, loaded.stderr[-4000:]


@pytest.mark.slow
@pytest.mark.skipif(not NVCC, reason=WITHOUT)
def test_what_a_gpu_runs_first_compiles(tmp_path: Path) -> None:
    """The program that compares each PTX wrapper with its emulation: nothing else reads its half for nvcc."""
    command = [str(NVCC), "-std=c++17", "-arch=sm_80", f"-I{ROOT / 'csrc'}", "-c", "-o", str(tmp_path / "object")]
    done = subprocess.run([*command, str(ROOT / "tests/cuda/conformance.cu")], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def script(path: Path, text: str) -> str:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


@pytest.fixture
def compiler(tmp_path: Path) -> str:
    """An nvcc that knows four architectures."""
    return script(tmp_path / "nvcc", "for a in 75 80 90 120; do echo compute_$a; done")


@pytest.mark.parametrize(
    ("named", "archs"), [(None, ["80", "90"]), ("", ["80", "90"]), (" ; ", ["80", "90"]), ("120; 75", ["75", "120"])]
)
def test_an_empty_list_of_architectures_means_the_usual_ones(
    named: str | None, archs: list[str], compiler: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MHR_CUDA_ARCHS", raising=False)
    if named is not None:
        monkeypatch.setenv("MHR_CUDA_ARCHS", named)
    assert SETUP["cuda_archs"](compiler) == archs


@pytest.mark.parametrize("named", ["9", "90;70", "ninety"])
def test_an_architecture_that_nvcc_does_not_know_ends_the_build_in_one_line(
    named: str, compiler: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MHR_CUDA_ARCHS", named)
    wrong = named.rpartition(";")[2]
    with pytest.raises(SystemExit, match=rf"^mhr: MHR_CUDA_ARCHS names {wrong}: \S+ compiles for 75, 80, 90, 120$"):
        SETUP["cuda_archs"](compiler)


def test_ptx_is_made_once_assembled_for_each_architecture_and_kept() -> None:
    assert SETUP["gencode"](["80", "90"]) == "-gencode=arch=compute_80,code=[sm_80,sm_90,compute_80]"


def test_the_toolkit_is_where_nvcc_says_not_where_a_script_lies(tmp_path: Path) -> None:
    toolkit = tmp_path / "toolkit"
    (toolkit / "bin").mkdir(parents=True)
    real = script(toolkit / "bin" / "nvcc", f"echo '#$ TOP={toolkit}/bin/..' >&2")
    assert SETUP["cuda_home"](script(tmp_path / "nvcc", f'exec {real} "$@"')) == toolkit
