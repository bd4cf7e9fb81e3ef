"""Studies in several settings whose trials come first: what they decide is committed before a test seed runs."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from .choices import FOLDER, settled
from .command import add_workers
from .stages import SomePiece
from .workers import side_by_side


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


def run_all(do: Callable[[SomePiece, Path], None], pieces: Iterable[SomePiece], output: Path, workers: int) -> None:
    """Make the pieces that are not done. do: makes one of them in `output`, or what is missing of it; new processes import it."""
    for _ in side_by_side(partial(do, output=output), list(pieces), workers, lambda piece: piece.folder):
        pass


def run_study(
    name: str,
    args: argparse.Namespace,
    *,
    plan: Mapping[str, Any],
    trials: Callable[[Path], None],
    seeds: Callable[[Mapping[str, Any]], None],
) -> dict[str, Any] | None:
    """Run what comes next. Returns what the trials decided, for the page; None where that is to be committed first.

    name    of the study's module
    args    of `parser_of_settings`
    plan    what the trials depend on
    trials  runs them and freezes what they decide in a file
    seeds   runs the test seeds with that
    """
    file = (args.output if args.quick else FOLDER) / f"{name}_{args.setting}.json"
    try:
        chosen = settled(file, plan, partial(trials, file), quick=args.quick, publishes=args.only_publish)
        if chosen is not None and not args.only_publish:
            seeds(chosen)
    except KeyboardInterrupt:
        sys.exit("Interrupted: the same command goes on where it was.")
    return chosen


def command_of_setting(name: str, args: argparse.Namespace) -> str:
    """The command as a page names it. name: of the study's module."""
    return f"python -m mhr_benchmarks.studies.{name} --output DIR --setting {args.setting}{' --quick' * args.quick}"


def published_in(args: argparse.Namespace, given: Path | None, usual: Path) -> Path:
    """The folder that results go to: the one that is given, or the usual one, which a quick study leaves alone."""
    return given or (args.output if args.quick else usual)
