"""Studies whose trials come first: what they decide is committed before a test seed runs."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from mhr.locks import locked

from . import RESULTS
from .choices import FOLDER, settled
from .command import add_workers
from .stages import STATE, SomePiece, states_of
from .unfinished import hold, take_up
from .workers import side_by_side


def parser_of_settings(doc: str | None, settings: Iterable[str] = ()) -> argparse.ArgumentParser:
    """A parser for a study whose trials come first. settings: names of those that it is asked in, the usual one first; none where it
    has no more than one."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", required=True, type=Path, help="runs and scores so far; the same folder resumes")
    names = list(settings)
    if names:
        parser.add_argument("--setting", choices=names, default=names[0], help="tasks and model (default %(default)s)")
    else:
        parser.set_defaults(setting=None)
    parser.add_argument(
        "--tasks",
        help="a folder in the layout of Super-NaturalInstructions, where real tasks are asked for; default: ../shared/data/superni",
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
    pieces = list(pieces)
    done = states_of(pieces, output)
    missing = [piece for piece in pieces if piece not in done]
    for _ in side_by_side(partial(alone, do, output=output), missing, workers, lambda piece: piece.folder):
        pass


def alone(do: Callable[[SomePiece, Path], None], piece: SomePiece, output: Path) -> None:
    """Make a piece once no other process is at it: the workers of a study that was ended have a while left for a checkpoint, in
    which the same command may have been started again."""
    with locked(output / piece.folder, wait=True):
        do(piece, output)


def run_study(
    name: str,
    args: argparse.Namespace,
    *,
    plan: Mapping[str, Any],
    trials: Callable[[Path], None],
    do: Callable[[SomePiece, Path], None],
    pieces: Callable[[dict[str, Any], int | None], Sequence[SomePiece]],
    publish: Callable[[dict[str, Any], Sequence[SomePiece]], str],
) -> None:
    """Run what comes next. What is found before the study is finished is held in NAME.unfinished.json beside its results, for another
    machine to go on from.

    name     of the study's module
    args     of `parser_of_settings`
    plan     what the trials depend on
    trials   runs them and freezes what they decide in a file
    do       makes one piece, see `run_all`
    pieces   those of the test seeds, with what was decided, of the first so many seeds (None: all)
    publish  writes the results of the pieces that are done, and returns what is to be said
    """
    full = full_name(name, args)
    file = (args.output if args.quick else FOLDER) / f"{full}.json"
    held = published_in(args, args.results, RESULTS) / f"{full}.unfinished.json"
    take_up(held, args.output)
    if args.only_publish and not file.is_file():
        hold(held, args.output, _found_in(args))
        print(f"Nothing was chosen, so there is nothing to publish. What the trials found so far: {held}")
        return
    try:
        chosen = settled(file, plan, partial(trials, file), quick=args.quick)
        if chosen is None:
            return
        if not args.only_publish:
            run_all(do, pieces(chosen, args.seeds), args.output, args.workers)
    except KeyboardInterrupt:
        sys.exit("Interrupted: the same command goes on where it was.")
    planned = pieces(chosen, None)
    print(publish(chosen, planned))
    finished = len(states_of(planned, args.output)) == len(planned)
    hold(held, args.output, [] if finished else [piece.folder for piece in planned])


def _found_in(args: argparse.Namespace) -> list[str]:
    """The folders that have a state: of trials, as long as nothing was chosen."""
    output: Path = args.output
    files = (output / (args.setting or "")).rglob(STATE)
    return sorted(str(file.parent.relative_to(output)) for file in files)


def full_name(name: str, args: argparse.Namespace) -> str:
    """The study of a module in the setting that was asked for: what its files are named after."""
    return name if args.setting is None else f"{name}_{args.setting}"


def command_of_setting(name: str, args: argparse.Namespace) -> str:
    """The command as a page names it. name: of the study's module."""
    setting = "" if args.setting is None else f" --setting {args.setting}"
    return f"python -m mhr_benchmarks.studies.{name} --output DIR{setting}{' --quick' * args.quick}"


def published_in(args: argparse.Namespace, given: Path | None, usual: Path) -> Path:
    """The folder that results go to: the one that is given, or the usual one, which a quick study leaves alone."""
    return given or (args.output if args.quick else usual)
