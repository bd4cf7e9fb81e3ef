"""What the packages hold: weights, presets, templates and pages beside their modules, and in an sdist all that a build takes."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
MADE = {".pyc", ".so"}


def test_every_file_of_the_package_that_is_no_module_is_installed() -> None:
    patterns = PYPROJECT["tool"]["setuptools"]["package-data"]["mhr"]
    package = ROOT / "mhr"
    installed = {path for pattern in patterns for path in package.glob(pattern)}
    there = {p for p in package.rglob("*") if p.is_file() and p.suffix not in {".py", *MADE}}
    assert there
    assert there <= installed


def test_every_requirement_is_pinned_at_a_version_within_its_range() -> None:
    lines = (ROOT / "constraints.txt").read_text("utf-8").splitlines()
    pins = {
        canonicalize_name(name): version for name, found, version in (line.partition("==") for line in lines) if found
    }
    project = PYPROJECT["project"]
    asked = [*project["dependencies"], *PYPROJECT["build-system"]["requires"]]
    asked += [requirement for extra in project["optional-dependencies"].values() for requirement in extra]
    for requirement in map(Requirement, asked):
        assert requirement.specifier.contains(pins[canonicalize_name(requirement.name)]), requirement


def run(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_source_distribution_holds_all_that_it_takes_to_build_and_test(tmp_path: Path) -> None:
    made = run(f"import build_backend; print(build_backend.build_sdist({str(tmp_path)!r}))")
    assert made.returncode == 0, made.stderr
    with tarfile.open(next(tmp_path.glob("mhr-*.tar.gz"))) as archive:
        held = {name.partition("/")[2] for name in archive.getnames()}
    needed = {"setup.py", "pyproject.toml", "build_backend.py", "constraints.txt", "README.md", "LICENSE", "Makefile"}
    for folder in ("benchmarks", "cli", "csrc", "examples", "mhr", "tests"):
        files = [p for p in (ROOT / folder).rglob("*") if p.is_file() and p.suffix not in MADE]
        needed |= {p.relative_to(ROOT).as_posix() for p in files if "results" not in p.parts}
    assert not sorted(needed - held)
    assert not [name for name in held if Path(name).suffix in MADE]


def test_the_build_takes_the_torch_that_is_there_and_asks_for_one_only_where_there_is_none() -> None:
    told = run(
        "import build_backend as b, torch; print(b._torch_of_its_own(), b.find_torch().version == torch.__version__)"
    )
    assert told.stdout == "[] True\n", told.stderr
    told = run("import build_backend as b; b.find_torch = lambda: None; print(b._torch_of_its_own())")
    assert told.stdout == "['torch>=2.11']\n", told.stderr


def test_max_jobs_is_heeded_and_checked() -> None:
    code = (
        "import setuptools, sys; setuptools.setup = lambda **k: None; sys.argv = ['setup.py']; import runpy;"
        "print(runpy.run_path('setup.py')['max_jobs']())"
    )
    assert run(code, MAX_JOBS="3").stdout == "3\n"
    assert run(code, MAX_JOBS="").stdout == "None\n"
    assert "MAX_JOBS is 'many': expected an integer of at least 1" in run(code, MAX_JOBS="many").stderr


def test_a_wheel_holds_no_module_that_an_earlier_build_left_behind(tmp_path: Path) -> None:
    left = tmp_path / "mhr" / "gone.py"
    left.parent.mkdir()
    left.touch()
    code = f"import sys, runpy; sys.argv = ['setup.py', '-q', 'build_py', '--build-lib', {str(tmp_path)!r}]; runpy.run_path('setup.py')"
    built = run(code, MHR_NATIVE="0")
    assert built.returncode == 0, built.stderr
    assert (tmp_path / "mhr/__init__.py").exists()
    assert not left.exists()
