"""Options that take several values in a row, which click has not: `--grid lr=1e-3,1e-4 router_lr=0.5,0.1`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from typer.core import TyperCommand

MANY: dict[str, Callable[[str, list[str]], bool]] = {
    "--grid": lambda argument, before: "=" in argument,
    # Where the model comes first, as in `mhr evaluate MODEL --harness a b`, what follows can be nothing else.
    "--harness": lambda argument, before: not before[0].startswith("-"),
}
"""Option -> whether an argument after its first value, with the arguments before the option, is one more value."""


class ManyValues(TyperCommand):
    """A command that reads `--option A B` as `--option A --option B` for the options of MANY."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        spread: list[str] = []
        option: str | None = None
        before: list[str] = []
        for position, argument in enumerate(args):
            if option is not None and spread[-1] != option:
                if argument.startswith("-") or not before or not MANY[option](argument, before):
                    option = None
                else:
                    spread.append(option)
            if argument in MANY:
                option, before = argument, args[:position]
            spread.append(argument)
        return super().parse_args(ctx, spread)
