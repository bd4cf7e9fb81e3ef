"""`make gpu-check` without a GPU: a dry run of all of it, and what its steps may do to it."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import Any

import pytest

from mhr_benchmarks import gpu, gpu_check
from mhr_benchmarks.gpu_check import Step


def content(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "gpu_check.json").read_text())


@pytest.mark.slow
def test_dry_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = gpu_check.main(["--device", "cpu", "--quick", "--output", str(tmp_path)])
    assert code == 0, capsys.readouterr().out
    outcomes = {step["step"]: step["outcome"] for step in content(tmp_path)["steps"]}
    assert outcomes.pop("sanitizer, memcheck") in ("absent", "ok", "refused")
    assert outcomes == {"setup": "ok", "tests": "ok", "measure": "ok"}
    measured = json.loads((tmp_path / "gpu.json").read_text())
    assert measured["run"] == content(tmp_path)["run"]
    assert measured["failed"] == []
    assert all(measured[section] for section in ("kernels", "ops", "shapes", "steps"))
    for table in measured["tables"]:
        assert {len(row) for row in table["rows"]} == {len(table["columns"])}
    titles = [line for line in (tmp_path / "gpu.md").read_text().splitlines() if line.startswith("## ")]
    assert len(titles) == len(measured["tables"]) == 8
    with tarfile.open(tmp_path / "gpu_check_logs.tar.gz") as archive:
        assert len(archive.getnames()) == 3


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):  # type: ignore[no-untyped-def]
    """Runs these steps in place of its own; the exit code and the records of the steps."""
    monkeypatch.setattr(gpu_check, "machine", dict)
    monkeypatch.setattr(gpu_check, "ROOT", tmp_path)
    monkeypatch.setattr(gpu_check, "LEAST_SECONDS", 0.0)

    def start(*steps: Step, minutes: float = 1.0) -> tuple[int, list[dict[str, Any]]]:
        monkeypatch.setattr(gpu_check, "steps", lambda options, run, work: steps)
        out = tmp_path / "out"
        code = gpu_check.main(["--device", "cpu", "--output", str(out), "--minutes", str(minutes)])
        return code, content(out)["steps"]

    return start


def sh(name: str, text: str, seconds: float = 20.0, **more: Any) -> Step:
    return Step(name, ["sh", "-c", text], seconds, **more)


def test_a_step_that_fails_or_hangs_stops_no_other_and_leaves_its_log(run: Any, tmp_path: Path) -> None:
    code, found = run(
        sh("fails", "echo about to; exit 3"),
        Step("is not there", [str(tmp_path / "nothing")], 5),
        sh("hangs", "echo begun; sleep 60", seconds=0.5),
        sh("works", 'echo "$GIVEN"', environment={"GIVEN": "value"}),
    )
    assert code == 1
    assert [step["outcome"] for step in found] == ["failed", "failed", "timed out", "ok"]
    assert found[0]["why"] == "exit code 3"
    assert found[2]["last_lines"] == ["begun"]
    assert found[3]["last_lines"] == ["value"]
    with tarfile.open(tmp_path / "out" / "gpu_check_logs.tar.gz") as archive:
        member = archive.extractfile("gpu_check_logs/00-fails.log")
        assert member is not None
        assert member.read() == b"about to\n"


def test_a_step_takes_along_all_that_it_started(run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mark = tmp_path / "mark"
    child = f"(trap '' TERM; sleep 0.6; touch {shlex.quote(str(mark))}) &"
    monkeypatch.setattr(gpu_check, "GRACE_SECONDS", 0.1)
    code, found = run(sh("hangs", f"{child} sleep 60", seconds=0.2), sh("leaves one behind", f"{child} exit 0"))
    assert code == 1
    assert [step["outcome"] for step in found] == ["timed out", "ok"]
    time.sleep(0.8)
    assert not mark.exists()


def test_results_are_there_while_the_next_step_runs(run: Any, tmp_path: Path) -> None:
    out = tmp_path / "out"
    code, _ = run(sh("first", "echo one"), sh("second", f"cp {out}/gpu_check.json {out}/seen.json"))
    assert code == 0
    seen = json.loads((out / "seen.json").read_text())["steps"]
    assert [(step["step"], step["outcome"]) for step in seen] == [("first", "ok")]


def test_what_no_time_is_left_for_is_said(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_check, "LEAST_SECONDS", 5.0)
    code, found = run(sh("works", "exit 0"), sh("profiles", "exit 0", tool="sh"), minutes=0.0001)
    assert code == 1
    assert [(step["outcome"], step["why"]) for step in found] == [("left out", "no time was left")] * 2


REFUSED = '========= Error: Device not supported. Please refer to the "Supported Devices" section'


@pytest.mark.parametrize(
    ("says", "outcome", "code"),
    [
        (f"echo '{REFUSED}'; echo '========= ERROR SUMMARY: 2 errors'; exit 1", "refused", 0),
        ("echo '==ERROR== Failed to initialize the profiler: LibraryNotLoaded'; exit 1", "refused", 0),
        ("echo 'unrecognised option --kernel-regex'; exit 1", "refused", 0),
        ("echo '========= Invalid __global__ read of size 4 bytes'; exit 1", "failed", 1),
        ("echo 'E RuntimeError: this is not supported on the CPU'; exit 1", "failed", 1),
        ("echo '========= ERROR SUMMARY: 0 errors'", "ok", 0),
        ("sleep 60", "timed out", 0),
    ],
)
def test_a_tool_that_refuses_this_machine_is_noted_and_one_that_finds_something_fails(
    says: str, outcome: str, code: int, run: Any
) -> None:
    got, (step,) = run(sh("sanitizer", says, seconds=0.5 if "sleep" in says else 20.0, tool="sh"))
    assert (got, step["outcome"]) == (code, outcome)
    assert outcome != "refused" or "sh: " in step["why"]


def test_a_tool_that_is_absent_is_noted(run: Any) -> None:
    code, (step,) = run(Step("profile", ["no-such-profiler"], 5, tool="no-such-profiler"))
    assert (code, step["outcome"]) == (0, "absent")
    assert "no-such-profiler is not on the PATH" in step["why"]


def options(*arguments: str) -> Any:
    return gpu_check.parse(["--output", "there", *arguments])


@pytest.mark.parametrize("quick", [[], ["--quick"]])
def test_the_steps_for_a_gpu(quick: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their order, and that each of their commands is one."""
    monkeypatch.setattr(gpu_check, "output", lambda command: "9.0")
    found = gpu_check.steps(options(*quick), "now", tmp_path)
    names = [step.name for step in found]
    assert names.index("time steps") < names.index("sanitizer, memcheck")
    assert found[names.index("build")].environment == {"MHR_CUDA": "1", "MHR_CUDA_ARCHS": "90"}
    sanitizers = [step for step in found if step.tool == "compute-sanitizer"]
    # Of kernels that it does not watch initcheck does not see what they write, and ours read what torch's wrote.
    assert all(("--kernel-regex" in step.command) == (step.name != "sanitizer, initcheck") for step in sanitizers)
    assert all(step.environment == {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"} for step in sanitizers)
    measuring = []
    for step in found:
        words = list(step.command)
        for word in words:
            if word.startswith("tests/") or word == "setup.py":
                assert (gpu_check.ROOT / word).exists(), word
        if "benchmarks.gpu" in words:
            measuring.append(gpu.parse(words[words.index("benchmarks.gpu") + 1 :]))
    assert [m.parts for m in measuring][:3] == [["kernels"], ["shapes"], ["steps"]]
    assert all(m.output == Path("there").resolve() and m.run == "now" for m in measuring[:3])
    assert all(m.quick == bool(quick) and m.device == "cuda" for m in measuring[:3])
    assert all(
        60 * m.minutes < s.seconds for m, s in zip(measuring[:3], found[names.index("time kernels") :], strict=False)
    )


NEEDED = {"torch", "pytest", "pybind11", "setuptools"}
WITHOUT_THE_REST = f"""
import re, sys
from importlib.metadata import packages_distributions, requires

def named(distribution):
    return re.sub("[-_.]+", "-", distribution).lower()

# What mhr asks for, and PEFT, which its benchmarks do.
asked = [text for text in requires("mhr") if "extra ==" not in text or "bench" in text]
ours = {{named(re.match("[A-Za-z0-9._-]+", text)[0]) for text in asked}} - {NEEDED!r}
absent = {{module for module, of in packages_distributions().items() if ours & set(map(named, of))}}

class Without:
    def __init__(self, finder):
        self.finder = finder

    def find_spec(self, name, *more):
        return None if name.partition(".")[0] in absent else self.finder.find_spec(name, *more)

    def __getattr__(self, name):
        return getattr(self.finder, name)

assert "transformers" in absent and "peft" in absent
sys.meta_path[:] = map(Without, sys.meta_path)
"""


@pytest.mark.slow
def test_what_is_not_named_as_needed_may_be_absent(tmp_path: Path) -> None:
    """Kernels and shapes are measured, and the tests of the ops are found, without what models import."""
    (tmp_path / "without_the_rest.py").write_text(WITHOUT_THE_REST)
    collected = gpu_check.tests("--collect-only", "-q", "tests/cuda", "tests/ops")[3:]
    measured = ["kernels", "shapes", "--device", "cpu", "--quick", "--output", str(tmp_path)]
    for module, arguments in (("pytest", collected), ("benchmarks.gpu", measured)):
        run = f"import without_the_rest, runpy, sys; sys.argv[1:] = {arguments!r}; runpy.run_module({module!r}, run_name='__main__', alter_sys=True)"
        environment = {**os.environ, "PYTHONPATH": str(tmp_path), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
        done = subprocess.run(
            [sys.executable, "-c", run],
            cwd=gpu_check.ROOT,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]


def test_a_file_that_cannot_be_imported_stops_no_other(tmp_path: Path) -> None:
    (tmp_path / "test_broken.py").write_text("import no_such_package")
    (tmp_path / "test_whole.py").write_text("def test_one(): pass")
    done = subprocess.run(
        gpu_check.tests(str(tmp_path)), cwd=gpu_check.ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "1 passed, 1 error" in done.stdout


def test_where_nvidia_smi_does_not_tell_the_architecture_every_usual_one_is_built(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def absent(command: Any) -> str:
        raise FileNotFoundError

    monkeypatch.setattr(gpu_check, "output", absent)
    assert gpu_check.gpu_arch() == ""
    for told, arch in (("10.0", "100"), ("8.6", "86"), ("[N/A]", "")):
        monkeypatch.setattr(gpu_check, "output", lambda command, told=told: told)
        assert gpu_check.gpu_arch() == arch


def test_the_record_names_its_sources_also_without_git(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder in ("csrc", "mhr", "benchmarks"):
        (tmp_path / folder).mkdir()
    (tmp_path / "setup.py").touch()
    (tmp_path / "csrc" / "a.cu").write_text("one")
    monkeypatch.setattr(gpu_check, "ROOT", tmp_path)
    monkeypatch.setenv("MHR_COMMIT", "abc123")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(gpu_check.sys, "executable", str(tmp_path / "python"))
    first = gpu_check.machine()
    assert first["commit"] == "abc123"
    assert all(first[name].startswith("unknown: ") for name in ("gpu", "nvcc", "torch"))
    assert gpu_check.machine()["sources"] == first["sources"]
    (tmp_path / "csrc" / "a.cu").write_text("two")
    assert gpu_check.machine()["sources"] != first["sources"]
