"""Maps the command line and the benchmarks to installed packages. Everything else is in pyproject.toml."""

from __future__ import annotations

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["mhr", "mhr.*"]), "mhr_cli", "mhr_benchmarks"],
    package_dir={"mhr_cli": "cli", "mhr_benchmarks": "benchmarks"},
)
