"""The command lines that studies have in common."""

from __future__ import annotations

import argparse
from pathlib import Path

from . import RESULTS


def parser_of(doc: str | None, page: str = "the page goes") -> argparse.ArgumentParser:
    """A parser with --tasks, --output, --results and --quick. doc: of the study's module; page: what goes where --results says."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", required=True, help="a folder in the layout of Super-NaturalInstructions")
    parser.add_argument("--output", required=True, type=Path, help="runs and scores so far; the same folder resumes")
    parser.add_argument("--results", type=Path, default=RESULTS, help=f"where {page}")
    parser.add_argument("--quick", action="store_true", help="a few steps and examples: to see that everything runs")
    return parser


def add_workers(parser: argparse.ArgumentParser, default: int = 1) -> None:
    parser.add_argument(
        "--workers", type=int, default=default, help="processes that train, one thread each (default %(default)s)"
    )


def command_of(study: str, args: argparse.Namespace) -> str:
    """The command as a page names it: the folder of the tasks by its name alone. study: its module."""
    quick = " --quick" if args.quick else ""
    return f"python -m mhr_benchmarks.studies.{study} --tasks {Path(args.tasks).name} --output DIR{quick}"
