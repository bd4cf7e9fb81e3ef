"""`make gpu-check`: builds, tests and measures on a machine with an NVIDIA GPU, and loses nothing on the way.

Needs nvcc and that machine's Python with torch, pytest, pybind11 and setuptools 77 or newer, no network; with ninja and
pytest-xdist it is faster. Without transformers no model is tested and no training step measured, without PEFT nothing is compared with
it; vLLM and LoRAFusion are compared with where they are installed. Every step is a process of its own, with a time limit and a
log, and whatever one does, the next is run; what is not there, or refuses to run here, is noted. In DIR:

    gpu_check.json            the machine, and of each step its command, outcome, seconds and last lines
    gpu_check_logs.tar.gz     every log, and the profiler's report
    gpu.json, gpu.md          what was measured, from the first shape on

All three are written again after each step. MHR_COMMIT names the commit where .git did not travel with the sources.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mhr.files import make_folder, write_json_atomically, writing_file

ROOT = Path(__file__).resolve().parents[1]
MINUTES, QUICK_MINUTES = 8.0, 3.0
LEAST_SECONDS = 5.0  # in which no step gets anywhere
GRACE_SECONDS = 5.0  # between asking a process to end and ending it
LAST_LINES = 12
SOURCES = {".py", ".cpp", ".cu", ".cuh", ".h"}
# What a tool says that cannot work on this machine; of our kernels it speaks in other words.
REFUSALS = re.compile(
    r"^=.*(Device not supported|Failed to initialize|LibraryNotLoaded|ERR_NVGPUCTRPERM|not permitted|not supported on).*"
    r"|^.*([Uu]nrecogni[sz]ed|[Uu]nknown) option.*",
    re.MULTILINE,
)


@dataclass(frozen=True)
class Step:
    name: str
    command: Sequence[str]
    seconds: float
    """Its time limit."""
    environment: Mapping[str, str] = field(default_factory=dict)
    tool: str | None = None
    """A program that may be absent, or refuse this machine: that is noted and fails nothing."""


def tests(*more: str) -> list[str]:
    """A pytest command without the fixtures that the tests of models share, and all that those import. A file that cannot be
    imported fails, and the others are run."""
    own = ["-p", "no:cacheprovider", "--confcutdir=tests/cuda", "--continue-on-collection-errors"]
    return [sys.executable, "-m", "pytest", "-q", *own, *more]


def measure(parts: Sequence[str], options: argparse.Namespace, seconds: float, run: str) -> list[str]:
    command = [sys.executable, "-m", "benchmarks.gpu", *parts, "--device", options.device, "--run", run]
    quick = ["--quick"] if options.quick else []
    return [*command, *quick, "--output", str(options.output.resolve()), "--minutes", f"{0.75 * seconds / 60:.2f}"]


def steps(options: argparse.Namespace, run: str, work: Path) -> list[Step]:
    """What is done, in order: what is worth most comes before what may hang. The limits leave room for a slow start."""
    if options.device == "cpu":
        return [
            Step("setup", [sys.executable, "setup.py", "--name"], 60),
            Step("tests", tests("--collect-only", "-q", "tests/cuda", "tests/ops"), 120),
            Step("measure", measure([], options, 120, run), 240),
            *tools(options, work),
        ]
    quick = options.quick
    build = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
    parallel = ["-n", "8"] if importlib.util.find_spec("xdist") else []
    shapes, whole = (45, 50) if quick else (130, 100)
    return [
        Step("machine", ["nvidia-smi", "-q"], 20, tool="nvidia-smi"),
        Step("build", build, 150, {"MHR_CUDA": "1", "MHR_CUDA_ARCHS": gpu_arch()}),
        Step("wrappers", tests("tests/cuda/test_conformance.py"), 60),
        Step("kernels", tests("tests/cuda/test_kernels.py"), 90),
        Step("time kernels", measure(["kernels"], options, 60, run), 60),
        Step("time shapes", measure(["shapes"], options, shapes, run), shapes),
        Step("time steps", measure(["steps"], options, whole, run), whole),
        Step("ops", tests("tests/ops", "-k", "cuda", *parallel), 100),
        *tools(options, work),
    ]


def tools(options: argparse.Namespace, work: Path) -> list[Step]:
    """The profiler and the sanitizers, on our kernels alone; initcheck on all, for it must see who wrote what ours read."""
    # PyTorch's allocator hands out parts of large blocks, in which a step out of a tensor is no step out of memory.
    # API errors are torch's own probing for what the driver offers.
    uncached = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    sanitizer = ["compute-sanitizer", "--report-api-errors", "no", "--error-exitcode", "1"]
    ours = ["--kernel-regex", "kns=mhr"]
    few = tests("tests/cuda/test_kernels.py", "-k", "sanitizer")
    once = [sys.executable, "-m", "benchmarks.gpu", "once", "--device", options.device]
    report = str(work / "kernels")
    kernels = "regex:shrink|expand|outer|gather|finish|mix"
    profiler = ["ncu", "--set", "full", "--clock-control", "none", "-k", kernels, "-c", "16", "-f", "-o", report]
    found = [
        Step(f"sanitizer, {tool}", [*sanitizer, *of, "--tool", tool, *few], seconds, uncached, tool="compute-sanitizer")
        for tool, of, seconds in (
            ("memcheck", ours, 50),
            ("racecheck", ours, 50),
            ("initcheck", [], 30),
            ("synccheck", ours, 30),
        )
    ]
    if options.quick:
        return found[:1]
    return [
        Step("profile", [*profiler, *once], 60, tool="ncu"),
        Step("profile, in words", ["ncu", "--import", f"{report}.ncu-rep", "--page", "details"], 30, tool="ncu"),
        *found,
    ]


def gpu_arch() -> str:
    """The GPU's compute capability as nvcc writes it, "90"; empty, which is every usual one, where nobody says."""
    try:
        told = output(["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader", "--id=0"])
    except (OSError, subprocess.SubprocessError):
        return ""
    found = re.match(r"(\d+)\.(\d)", told)
    return "".join(found.groups()) if found else ""


def output(command: Sequence[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True, cwd=ROOT)
    return done.stdout.strip()


def machine() -> dict[str, Any]:
    """What this ran on and which sources it ran; what a program does not tell is the reason that it does not."""
    fields = "name,driver_version,clocks.sm,clocks.mem,clocks.max.sm,clocks.max.mem,power.limit,memory.total"
    versions = "import torch; print(torch.__version__, torch.version.cuda)"
    asked = {
        "gpu": ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader"],
        "torch": [sys.executable, "-c", versions],
        "nvcc": ["nvcc", "--version"],
        "commit": ["git", "describe", "--always", "--dirty", "--exclude", "*"],
    }
    found: dict[str, Any] = {"python": platform.python_version(), "cores": os.cpu_count(), "sources": sources()}
    for name, command in asked.items():
        try:
            found[name] = output(command).splitlines()[-1]
        except (OSError, subprocess.SubprocessError, IndexError) as error:
            found[name] = f"unknown: {error}".partition("\n")[0][:120]
    found["commit"] = os.environ.get("MHR_COMMIT") or found["commit"]
    found["programs"] = {name: shutil.which(name) for name in ("make", "nvcc", "ninja", "ncu", "compute-sanitizer")}
    return found


def sources() -> str:
    """SHA-256 of what is built and measured, names and contents: it tells two trees apart without their history."""
    digest = hashlib.sha256()
    folders = ("csrc", "mhr", "benchmarks")
    files = [path for folder in folders for path in (ROOT / folder).rglob("*") if path.suffix in SOURCES]
    for path in sorted([*files, ROOT / "setup.py"]):
        digest.update(path.relative_to(ROOT).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def run_step(step: Step, log: Path, seconds: float) -> dict[str, Any]:
    """Runs a step for at most `seconds`, its output in `log`; ends whatever it has started. Raises nothing of its own."""
    result = {"step": step.name, "command": [*step.command], "limit_s": round(seconds, 1), "log": log.name}
    if step.tool and shutil.which(step.tool) is None:
        return {**result, "outcome": "absent", "why": f"{step.tool} is not on the PATH"}
    if seconds < LEAST_SECONDS:
        return {**result, "outcome": "left out", "why": "no time was left"}
    begin = time.monotonic()
    environment = {**os.environ, "PYTHONUNBUFFERED": "1", **step.environment}
    with open(log, "wb") as out:
        try:
            process = subprocess.Popen(
                step.command, cwd=ROOT, env=environment, stdout=out, stderr=out, start_new_session=True
            )
        except OSError as error:
            return {**result, "outcome": "failed", "why": str(error)}
        try:
            code: int | None = process.wait(seconds)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            end_group(process)
    text = log.read_text("utf-8", errors="replace")
    lines = text.splitlines()
    result |= {"rc": code, "seconds": round(time.monotonic() - begin, 1), "last_lines": lines[-LAST_LINES:]}
    refusal = REFUSALS.search(text) if step.tool and code else None
    if code is None:
        return {**result, "outcome": "timed out", "why": f"not done in {seconds:.0f} s"}
    if refusal:
        return {**result, "outcome": "refused", "why": f"{step.tool}: {refusal.group().strip(' =')[:160]}"}
    return {**result, "outcome": "failed" if code else "ok", "why": f"exit code {code}" if code else ""}


def end_group(process: subprocess.Popen[bytes]) -> None:
    """Ends a process and all that it started, also what outlived it."""
    for how in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, how)
        except ProcessLookupError:
            break
        try:
            process.wait(GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            continue


class Record:
    """gpu_check.json and the archive of the logs, whole after every step."""

    def __init__(self, output: Path, work: Path, about: Mapping[str, Any]):
        self.output, self.work = output, work
        self.content: dict[str, Any] = {**about, "steps": []}

    def add(self, result: Mapping[str, Any]) -> None:
        self.content["steps"].append(result)
        self.write()

    def write(self) -> None:
        write_json_atomically(self.output / "gpu_check.json", self.content)
        with writing_file(self.output / "gpu_check_logs.tar.gz") as path, tarfile.open(path, "w:gz") as archive:
            for file in sorted(self.work.iterdir()):
                archive.add(file, f"gpu_check_logs/{file.name}")


def told(result: Mapping[str, Any]) -> str:
    return f"{result['step']:<22} {result['outcome']:<10} {result.get('seconds', 0):>6} s  {result['why']}".rstrip()


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results"), metavar="DIR")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu only tries the script")
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_MINUTES:g} minutes in place of {MINUTES:g}")
    parser.add_argument("--minutes", type=float, help="for all of it")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    minutes = options.minutes or (QUICK_MINUTES if options.quick else MINUTES)
    end = time.monotonic() + 60 * minutes
    run = time.strftime("%Y-%m-%d %H:%M:%S")
    make_folder(options.output)
    work = ROOT / "build" / "gpu_check"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    command = ["gpu_check", "--device", options.device, *(["--quick"] if options.quick else [])]
    record = Record(options.output, work, {"command": command, "run": run, "machine": machine()})
    record.write()
    print(json.dumps(record.content["machine"]), flush=True)
    wrong = False
    for number, step in enumerate(steps(options, run, work)):
        log = work / f"{number:02}-{re.sub(r'[^a-z]+', '-', step.name)}.log"
        result = run_step(step, log, min(step.seconds, end - time.monotonic()))
        record.add(result)
        print(told(result), flush=True)
        if result["outcome"] in ("failed", "timed out"):
            print("\n".join(f"    {line}" for line in result.get("last_lines", [])), flush=True)
        wrong |= result["outcome"] == "failed" or (result["outcome"] in ("timed out", "left out") and not step.tool)
    print(f"\n{options.output}:")
    print("\n".join(map(told, record.content["steps"])))
    return int(wrong)


if __name__ == "__main__":
    sys.exit(main())
