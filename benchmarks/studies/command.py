"""The command lines that studies have in common."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
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


def parser_of_settings(doc: str | None, settings: Iterable[str]) -> argparse.ArgumentParser:
    """A parser for a study in several settings, whose trials come first. settings: their names, "suite" among them."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", required=True, type=Path, help="runs and scores so far; the same folder resumes")
    parser.add_argument("--setting", choices=list(settings), default="suite", help="tasks and model (default suite)")
    parser.add_argument(
        "--tasks",
        help="but for the suite: a folder in the layout of Super-NaturalInstructions; default: ../shared/data/superni",
    )
    parser.add_argument("--seeds", type=int, help="only the first so many test seeds; default: all")
    parser.add_argument("--quick", action="store_true", help="a few steps and tasks: to see that everything runs")
    parser.add_argument("--only-publish", action="store_true", help="train nothing; publish what is done")
    parser.add_argument(
        "--results", type=Path, help="where the results go (default benchmarks/results; --quick: the output)"
    )
    add_workers(parser, 2)
    return parser


def add_workers(parser: argparse.ArgumentParser, default: int = 1) -> None:
    parser.add_argument(
        "--workers", type=int, default=default, help="processes that train, one thread each (default %(default)s)"
    )


def command_of(study: str, args: argparse.Namespace) -> str:
    """The command as a page names it: the folder of the tasks by its name alone. study: its module."""
    quick = " --quick" if args.quick else ""
    return f"python -m mhr_benchmarks.studies.{study} --tasks {Path(args.tasks).name} --output DIR{quick}"
