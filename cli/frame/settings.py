"""Settings on the command line: flags that are made of the fields of settings, and `--set` for those without a flag.

    @takes("model", "method", "adapter", "train", sets=("adapter", "data", "train"), common=("--output", "--model"))
    def pretrain(output: options.Output, *, given: Given) -> None: ...

A command says which settings it uses, by name or section; no other one is taken.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import wraps
from inspect import Parameter
from typing import Annotated, Any, get_args, get_origin

import typer

from mhr.analysis.settings import InspectConfig
from mhr.errors import ConfigError
from mhr.loading import Loading
from mhr.merging.extract_settings import ExtractConfig
from mhr.merging.methods import MergeConfig, own_settings
from mhr.prediction.settings import PredictConfig
from mhr.runs.config import Said, all_settings, assignments, typed
from mhr.runs.import_settings import ImportConfig
from mhr.runs.route_settings import RouteConfig
from mhr.runs.scoring import LoadingConfig, ScopeConfig, ScoringConfig
from mhr.setting import Setting, settings_of
from mhr.sweeps.settings import SweepConfig

from .command import show_all

PANELS = {
    "": "Settings",
    "adapter": "Adapter",
    "train": "Training",
    "data": "Data",
    "adapt": "Few-shot adaptation",
    "loading": "Settings",
    "scope": "Settings",
    "scoring": "Scoring",
    "merge": "Merging",
    "inspect": "Settings",
    "predict": "Answers",
    "sweep": "Settings",
    "import": "Settings",
    "extract": "Settings",
    "route": "Settings",
}
"""Section -> the heading of its flags in help."""

OF_COMMANDS: dict[str, type] = {
    "loading": LoadingConfig,
    "scope": ScopeConfig,
    "scoring": ScoringConfig,
    "merge": MergeConfig,
    "inspect": InspectConfig,
    "predict": PredictConfig,
    "sweep": SweepConfig,
    "import": ImportConfig,
    "extract": ExtractConfig,
    "route": RouteConfig,
}
"""Sections that no file of settings has."""

SETTINGS = (
    all_settings()
    | {f"{section}.{name}": found for section, cls in OF_COMMANDS.items() for name, found in settings_of(cls).items()}
    | {f"merge.{name}": (hint, known) for name, (hint, known, _) in own_settings().items()}
)
"""Every setting by its full name: those of runs, and those that are of the command line alone."""

OPTIONS = tuple(settings_of(Loading))
"""Settings of a run that say how its base model is loaded."""

LOADING = ("loading.base", *(f"loading.{name}" for name in OPTIONS))
"""Settings of loading the base model of a run, which knows its kind."""

READING = tuple(
    f"data.{name}"
    for name in (
        "definitions",
        "definition_form",
        "positives",
        "column_map",
        "on_bad_row",
        "split_list",
        "subset",
        "max_test",
        "template",
        "prompt",
        "verbalizers",
    )
)
"""Settings that say how a collection is read."""

HelpAll = Annotated[
    bool,
    typer.Option("--help-all", is_eager=True, callback=show_all, help="Show all options, each in full."),
]


@dataclass(frozen=True)
class Given:
    """What a command line says of settings: by `--set`, as it was written, and by flags."""

    overrides: tuple[str, ...]
    flags: Mapping[str, Said]

    def said(self) -> list[str]:
        """The flags of settings that were given, and "--set"."""
        return [*(one.origin for one in self.flags.values()), *(["--set"] if self.overrides else [])]

    def named(self) -> dict[str, Said]:
        """What is said, by the full names of settings, with where it was. Raises ConfigError."""
        return {**assignments(self.overrides), **self.flags}

    def values(self, section: str) -> dict[str, Any]:
        """What is said of a section, by the names in it, as their types. Raises ConfigError."""
        return {
            name.rpartition(".")[2]: typed(name, one, *SETTINGS[name])
            for name, one in self.named().items()
            if name.rpartition(".")[0] == section
        }


def loading_of(given: Given) -> dict[str, Any]:
    """What is said of loading the base model, as the arguments base, kind and loading of library calls. Raises ConfigError."""
    said = given.values("loading")
    options = {name: said.pop(name) for name in OPTIONS if name in said}
    return said | ({"loading": Loading(**options)} if options else {})


def takes(
    *names: str, sets: Sequence[str] = (), common: Sequence[str] = (), of_run: Sequence[str] = ()
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command the flags of the settings `names`, and `--set` for the settings of `sets`, if there are any.

    Both hold names of settings ("data.template") and of sections ("train": all of it). The command gets what was said as
    `given`. `common` are the options that `--help` shows; `--help-all` shows the others too, and the settings of `sets` that have
    none. Settings and sections `of_run` are those of the run that the command reads, unless they are given.
    """
    flags = {name: known for name, known in _of(names).items() if known.flag or known.switches}

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        @wraps(command)
        def with_settings(**values: Any) -> None:
            del values["help_all"]
            texts = tuple(values.pop("set_", None) or ())
            _refuse_others(texts, sets)
            said = dict(_said(flags, values))
            command(**values, **({"given": Given(texts, said)} if names or sets else {}))

        signature = inspect.signature(command, eval_str=True)
        own = [p.replace(kind=Parameter.KEYWORD_ONLY) for p in signature.parameters.values() if p.name != "given"]
        made = [
            Parameter(key, Parameter.KEYWORD_ONLY, default=None, annotation=of) for key, of in _options(flags, of_run)
        ]
        if sets:
            made.append(Parameter("set_", Parameter.KEYWORD_ONLY, default=None, annotation=_set_option(sets)))
        made.append(Parameter("help_all", Parameter.KEYWORD_ONLY, default=False, annotation=HelpAll))
        # What typer reads of a command.
        vars(with_settings)["__signature__"] = signature.replace(parameters=[*own, *made])
        with_settings.__annotations__ = {p.name: p.annotation for p in [*own, *made]}
        others = {name: known for name, known in _of(sets).items() if name not in flags}
        vars(with_settings)["common"] = tuple(common)
        vars(with_settings)["unflagged"] = [
            (name, _metavar(SETTINGS[name][0], known), known.doc + _default(name, known, of_run))
            for name, known in others.items()
        ]
        return with_settings

    return decorate


def _of(names: Iterable[str]) -> dict[str, Setting]:
    """The settings of these names and sections, in this order."""
    found = {}
    for name in names:
        own = [name] if name in SETTINGS else [key for key in SETTINGS if key.rpartition(".")[0] == name]
        if not own:
            raise KeyError(name)
        found |= {key: SETTINGS[key][1] for key in own}
    return found


def _refuse_others(texts: Iterable[str], sets: Sequence[str]) -> None:
    """Raise ConfigError for an assignment of a setting that the command does not use."""
    used = _of(sets)
    for name in assignments(texts):
        if name not in used:
            raise ConfigError(
                f"--set: {name} has no effect on this command, which uses {_in_words(sets)}: leave it out"
            )


def _in_words(names: Sequence[str]) -> str:
    return ", ".join(name if name in SETTINGS else f"{name}.*" for name in names if name)


def split(names: list[str] | None) -> list[str] | None:
    """["a,b", "c"] -> ["a", "b", "c"]; None stays None. Raises ConfigError for an empty name."""
    if not names:
        return None
    parts = [part.strip() for name in names for part in name.split(",")]
    if not all(parts):
        raise ConfigError(f"{','.join(names)!r} has an empty name: expected names separated by commas, as in a,b")
    return parts


# ---- one setting -----------------------------------------------------------------------------------------------------


def _flags(known: Setting) -> dict[str, tuple[str, str | None]]:
    """Name of the parameter -> the flag, and the value that it stands for, where it takes none."""
    flags = [(flag, None) for flag in known.flag[:1]] + list(known.switches.items())
    return {flag.lstrip("-").replace("-", "_"): (flag, value) for flag, value in flags}


def _options(settings: Mapping[str, Setting], of_run: Sequence[str]) -> Iterator[tuple[str, Any]]:
    """(name of the parameter, its annotation) of each flag of these settings."""
    for name, known in settings.items():
        hint = SETTINGS[name][0]
        default = _default(name, known, of_run)
        more: dict[str, Any] = {"rich_help_panel": PANELS[name.rpartition(".")[0]], "show_default": False}
        for key, (flag, value) in _flags(known).items():
            if value is not None:
                option = typer.Option(flag, help=f"{known.doc} This one: {value}.", **more)
                yield key, Annotated[bool, option]
            elif _holds(hint, bool):  # what no file can set needs no flag to unset it
                both = flag if name.partition(".")[0] in OF_COMMANDS else f"{flag}/--no-{flag.lstrip('-')}"
                option = typer.Option(both, help=known.doc + default, **more)
                yield key, Annotated[bool | None, option]
            else:
                option = typer.Option(*known.flag, metavar=_metavar(hint, known), help=known.doc + default, **more)
                of = list[str] if _holds(hint, list) and (known.repeated or not _has_commas(known)) else str
                yield key, Annotated[of | None, option]


def _said(settings: Mapping[str, Setting], values: dict[str, Any]) -> Iterator[tuple[str, Said]]:
    """What the flags of each setting say, taken out of the values that typer read."""
    for name, known in settings.items():
        found = []
        for key, (flag, stands_for) in _flags(known).items():
            value = values.pop(key)
            if value and _has_commas(known) and known.repeated:
                value = split(value)
            elif isinstance(value, str) and _has_commas(known) and not _holds(SETTINGS[name][0], dict):
                value = [part.strip() for part in value.split(",")]
            if value if stands_for is not None else value not in (None, []):
                found.append(Said(value if stands_for is None else stands_for, flag))
        if len(found) > 1:
            raise ConfigError(f"{' and '.join(one.origin for one in found)} are both given: give one of them")
        if found:
            yield name, found[0]


def _has_commas(known: Setting) -> bool:
    """Whether a list is written as one value with commas, not as an option that is repeated."""
    return known.metavar.endswith(",...")


def _default(name: str, known: Setting, of_run: Sequence[str]) -> str:
    """How help ends for a setting with a default, or one `of_run`."""
    if name in of_run:
        return " (default: as the run)"
    value = known.default
    if value is None or value is False or value in ([], {}):
        return ""
    shown = ",".join(map(str, value)) if isinstance(value, list) else value
    return f" (default: the run's, or {shown})" if name.partition(".")[0] in of_run else f" (default {shown})"


def _metavar(hint: Any, known: Setting) -> str:
    return known.metavar or (
        "true|false" if _holds(hint, bool) else "N" if _holds(hint, int) else "X" if _holds(hint, float) else "NAME"
    )


def _holds(hint: Any, kind: type) -> bool:
    """Whether a type is of a kind, or has it as an alternative: list[str] | None is a list."""
    return any(option is kind or get_origin(option) is kind for option in (hint, *get_args(hint)))


def _set_option(sets: Sequence[str]) -> Any:
    example = next(
        e
        for e in ("train.clip=0.1", "data.definitions=false", "adapt.full_lr=1e-5")
        if e.partition("=")[0] in _of(sets)
    )
    return Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="A.B=C",
            help=f"Any setting by its name in the file, as in {example}. Repeat it for more. Of "
            + ", ".join(f"`{name}`" for name in _in_words(sets).split(", "))
            + ".",
            rich_help_panel="Settings",
            show_default=False,
        ),
    ]
