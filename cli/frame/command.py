"""A command: what of its options help shows at first, several values after one option, and arguments that cannot be meant."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import typer
from typer.core import TyperArgument, TyperCommand, TyperOption

from mhr.errors import ConfigError

MANY: dict[str, Callable[[str, list[str]], bool]] = {
    "--grid": lambda argument, before: "=" in argument,
    # Where the model comes first, as in `mhr evaluate MODEL --harness a b`, what follows can be nothing else.
    "--harness": lambda argument, before: not before[0].startswith("-"),
}
"""Option that takes several values in a row, which click has not (`--grid lr=1e-3,1e-4 router_lr=0.5,0.1`) -> whether an
argument after its first value, with the arguments before the option, is one more value."""

ALL = "mhr.help_all"
"""What a context holds where `--help-all` was asked for."""
EXAMPLES = 2
"""Lines of examples that the short help shows."""


UNFLAGGED = "Settings without an option: --set NAME=VALUE, or a file of settings"
"""The heading of these in help."""


def command_class(command: Callable[..., Any]) -> type[Command]:
    """The class of which `--help` shows the common options of a command alone, as `takes` keeps them; none: all."""
    kept = {name: vars(command)[name] for name in ("common", "unflagged") if name in vars(command)}
    return type("Command", (Command,), kept)


class Command(TyperCommand):
    """`--help` shows the common options in a line each, `--help-all` all of them in full and the settings that have none."""

    common: Collection[str] = ()
    unflagged: Sequence[tuple[str, str, str]] = ()
    """(name, what stands for its value, help) of each setting that only `--set` and files reach."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        for argument in args:
            if any("\ud800" <= letter <= "\udfff" for letter in argument):
                shown = argument.encode("utf-8", "backslashreplace").decode()
                raise ConfigError(
                    f"argument {shown!r} has bytes that are no UTF-8: rename what it names, or type it again"
                )
        spread = list(self._spread(args))
        self._refuse_what_cannot_be_meant(spread)
        return super().parse_args(ctx, spread)

    def _spread(self, args: list[str]) -> Iterator[str]:
        """`--option A B` as `--option A --option B` for the options of MANY."""
        option: str | None = None
        last = ""
        before: list[str] = []
        for position, argument in enumerate(args):
            if option is not None and last != option:
                if argument.startswith("-") or not before or not MANY[option](argument, before):
                    option = None
                else:
                    yield option
            if argument in MANY:
                option, before = argument, args[:position]
            last = argument
            yield argument

    def _refuse_what_cannot_be_meant(self, args: list[str]) -> None:
        """Raise ConfigError for an empty value, for another value of an option that takes one, for values of a list that are
        separated by blanks where they would be read as arguments, and for replacing and going on at once."""
        options = {name: p for p in self.params if isinstance(p, TyperOption) for name in (*p.opts, *p.secondary_opts)}
        # Texts are no paths.
        several = any(isinstance(p, TyperArgument) and p.nargs != 1 and p.metavar != "TEXT" for p in self.params)
        said: dict[str, str] = {}
        flags: set[str | None] = set()
        rest = iter(args)
        behind: tuple[str, str] | None = None
        for argument in rest:
            name, equals, value = argument.partition("=")
            option = options.get(name if argument.startswith("--") else argument)
            if argument == "--":
                return
            if option is None:
                if not argument:
                    raise ConfigError("an argument is empty (''): give it a value, or leave it out")
                if behind and several and not argument.startswith("-") and not Path(argument).exists():
                    flag, first = behind
                    raise ConfigError(
                        f"{argument!r} behind {flag} {first} would be read as an argument of its own, and no such path exists: "
                        f"separate values by commas, as in {flag} {first},{argument}"
                    )
                continue
            behind = None
            if option.is_flag:
                flags.add(option.name)
                if {"overwrite", "resume"} <= flags:
                    raise ConfigError(
                        "--overwrite and --resume are both given: one replaces what the output folder holds, the other goes on "
                        "with it, so leave one out"
                    )
                continue
            if not equals:
                value = next(rest, "-")
            if not value:
                raise ConfigError(f"{name} is empty (''): give it a value, or leave it out")
            listed = ",..." in (option.metavar or "")
            if listed:
                behind = (name, value)
            first = said.setdefault(option.name or name, value)
            # A number that is given again replaces the first one, as command lines have it everywhere.
            if first != value and not option.multiple and (listed or not _is_number(value)):
                raise ConfigError(f"{name} is given twice, {first!r} and {value!r}: it takes one value, leave one out")

    def get_params(self, ctx: Any) -> list[Any]:
        params = super().get_params(ctx)
        for param in params:
            if isinstance(param, TyperOption) and param.is_flag:
                param.metavar = ""  # Typer would show <bool>, as if a switch took a value
        return params

    def format_help(self, ctx: Any, formatter: Any) -> None:
        if ctx.meta.get(ALL):
            full = copy.copy(self)
            full.params = [*self.params, *self._by_set()]
            TyperCommand.format_help(full, ctx, formatter)
            return
        if not self.common:
            super().format_help(ctx, formatter)
            return
        short = copy.copy(self)
        short.common = ()
        short.add_help_option = False
        short.params = [self._shortened(p) for p in self.params]
        vars(short)["get_usage"] = self.get_usage  # which says what is required
        short.help = (self.help or "").partition("\n\n")[0]
        title, *examples = (self.epilog or "").strip().split("\n\n")
        hidden = sum(getattr(p, "hidden", False) for p in short.params)
        more = f"**{ctx.command_path} --help-all** shows {hidden} more options, and each in full."
        # A backslash at the end of a line breaks it in Markdown.
        short.epilog = "\\\n".join([title, *examples[:EXAMPLES], more])
        TyperCommand.format_help(short, ctx, formatter)

    def _by_set(self) -> Iterator[Any]:
        """The settings without an option as help shows options, made of `--set`."""
        for name, metavar, text in self.unflagged:
            shown = copy.copy(next(param for param in self.params if "--set" in param.opts))
            shown.opts, shown.metavar, shown.help, shown.rich_help_panel = [name], metavar, text, UNFLAGGED
            yield shown

    def _shortened(self, param: Any) -> Any:
        """A parameter with the first sentence of its help, hidden where it is an option that is not common."""
        param = copy.copy(param)
        text, default, told = (param.help or "").partition(" (default")
        first, dot, _ = text.partition(". ")
        param.help = first + ("." if dot else "") + default + told
        if isinstance(param, TyperOption):
            param.hidden = {*param.opts, *param.secondary_opts}.isdisjoint(self.common)
            param.opts = [name for name in param.opts if not name.startswith("--")] + _first_long(param.opts)
            param.rich_help_panel = "Common options"
        if param.required:
            param.required, param.help = False, f"{param.help} (required)"
        return param


def _first_long(names: list[str]) -> list[str]:
    return [name for name in names if name.startswith("--")][:1]


def show_all(ctx: typer.Context, wanted: bool) -> None:
    """What `--help-all` does."""
    if wanted:
        ctx.meta[ALL] = True
        typer.echo(ctx.get_help(), nl=False)
        raise typer.Exit


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
