"""A setting, written once: its type, doc and range make the key in a file, the flag, the line of help and the error.

    @dataclass
    class TrainConfig(Settings):
        steps: int = setting(1000, "Optimizer steps.", at_least=1, flag="--steps")
        scheduler: str = setting("linear", "Learning rate after the warm-up.", choices=("linear", "cosine"))

To add one is to write that line, in the class of its section (`mhr.config.AdapterConfig`, `mhr.runs.settings` and those
beside it), or beside a method of its own (`own_settings`). It is checked when the object is made: ConfigError
says the name, what was got and what was expected. With a flag, the commands that take the section have it. The first sentence
of the doc is the line of help; all of it is what `--help-all` shows. This module imports no torch.
"""

from __future__ import annotations

import dataclasses
import math
import types
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from mhr.errors import ConfigError, nearest

_KEY = "setting"
S = TypeVar("S", bound="Settings")

MOST_SEED = 2**32 - 1
"""Greatest seed: numpy, which transformers seeds too, takes no more."""


@dataclass(frozen=True, slots=True)
class Setting:
    """What is known of a setting besides its name and type.

    doc         what it does; the first sentence stands alone
    choices     the strings that are allowed, or a function that returns them; empty: all
    flag        its flags, the first one is its name in errors; none: it is set in files and with --set
    switches    flag -> the value that this flag, which takes none, stands for
    metavar     what stands for its value in help; empty: by its type. A list whose ends in ",..." is written as one value with commas
    repeated    its flag may be given several times, for more of such a list
    words       values that mean themselves where they would mean something else ("none" nothing)
    reads       it names what is read: a path, or a name of what is none, such as a hub id
    of_method   it means something to some methods only, so it leaves with the method of a preset when another is asked for
    only        other settings of its section, or of another by their full names -> the values with which it has an effect; empty: it always has one

    Bounds are for numbers, and for those inside lists and mappings.
    """

    doc: str
    default: Any = None
    at_least: float | None = None
    above: float | None = None
    at_most: float | None = None
    below: float | None = None
    choices: tuple[str, ...] | Callable[[], Iterable[str]] = ()
    flag: tuple[str, ...] = ()
    switches: Mapping[str, str] = field(default_factory=dict)
    metavar: str = ""
    repeated: bool = False
    words: tuple[str, ...] = ()
    reads: bool = False
    of_method: bool = False
    only: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def summary(self) -> str:
        """The first sentence of the doc."""
        first, dot, _ = self.doc.partition(". ")
        return first + ("." if dot else "")

    @property
    def allowed(self) -> tuple[str, ...]:
        return tuple(self.choices() if callable(self.choices) else self.choices)

    @property
    def range(self) -> str:
        """The bounds in words, "" without any: "of at least 0 and below 1"."""
        low = f"above {_number(self.above)}" if self.above is not None else ""
        low = f"of at least {_number(self.at_least)}" if self.at_least is not None else low
        high = f"below {_number(self.below)}" if self.below is not None else ""
        high = f"at most {_number(self.at_most)}" if self.at_most is not None else high
        return " and ".join(filter(None, (low, high)))

    def holds(self, number: float) -> bool:
        """Whether a number is within the bounds; NaN and infinity are not."""
        return (
            math.isfinite(number)
            and (self.at_least is None or number >= self.at_least)
            and (self.above is None or number > self.above)
            and (self.at_most is None or number <= self.at_most)
            and (self.below is None or number < self.below)
        )


def setting(default: Any, doc: str, *, flag: str = "", **known: Any) -> Any:
    """A dataclass field with this default and what else `Setting` knows; several flags are separated by spaces.

    A list or mapping is copied for each object.
    """
    return _field(Setting(" ".join(doc.split()), default, flag=tuple(flag.split()), **known))


def as_in(cls: type, name: str, default: Any, **changes: Any) -> Any:
    """A field like `cls.name`, with another default, and with changes to what `Setting` knows."""
    return _field(dataclasses.replace(settings_of(cls)[name][1], default=default, **changes))


def _field(known: Setting) -> Any:
    metadata, default = {_KEY: known}, known.default
    if isinstance(default, (list, dict)):
        return field(default_factory=lambda: type(default)(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def settings_of(cls: type) -> dict[str, tuple[Any, Setting]]:
    """The settings of a dataclass: name -> its type and what is known of it; fields of other kinds are left out."""
    return _settings_of(cls)


@cache
def _settings_of(cls: type) -> dict[str, tuple[Any, Setting]]:
    hints = get_type_hints(cls)
    return {f.name: (hints[f.name], f.metadata[_KEY]) for f in dataclasses.fields(cls) if _KEY in f.metadata}


def read_by(settings: Any) -> list[str]:
    """What an object of settings names to be read (`Setting.reads`), one by one."""
    named = (getattr(settings, name) for name, (_, known) in settings_of(type(settings)).items() if known.reads)
    return [one for value in named for one in (value if isinstance(value, list) else [value]) if one is not None]


class Settings:
    """Base of dataclasses of settings: each is checked when the object is made.

    A tuple becomes a list, so that an object equals the one that is read back from its file.
    """

    def __post_init__(self) -> None:
        for name, (hint, known) in settings_of(type(self)).items():
            value = getattr(self, name)
            check_setting(name, value, hint, known)
            object.__setattr__(self, name, _as_in_a_file(value))

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)  # type: ignore[call-overload]

    @classmethod
    def from_dict(cls: type[S], values: Mapping[str, Any], what: str = "setting") -> S:
        """The object with these settings. Raises ConfigError for an unknown one, naming the nearest."""
        known = settings_of(cls)
        for key in values:
            if key not in known:
                raise ConfigError(f"unknown {what} {key!r}: {nearest(key, known)}")
        return cls(**values)


def _as_in_a_file(value: Any) -> Any:
    if isinstance(value, tuple | list):
        return [_as_in_a_file(item) for item in value]
    if isinstance(value, dict):
        return {key: _as_in_a_file(item) for key, item in value.items()}
    return value


def check_setting(name: str, value: Any, hint: Any, known: Setting) -> None:
    """Raise ConfigError, beginning with the name, where a value is not of the type, not in range or no choice."""
    if not _is_a(value, hint):
        raise ConfigError(f"{name} is {_shown(value)}, expected {expected(hint, known)}")
    if isinstance(value, Mapping):
        for key, item in value.items():
            _check_one(f"{name} {key!r}", "is", item, hint, known)
    elif isinstance(value, (list, tuple)):
        for item in value:
            _check_one(name, "has", item, hint, known)
    else:
        _check_one(name, "is", value, hint, known)


def _check_one(name: str, verb: str, value: Any, hint: Any, known: Setting) -> None:
    if isinstance(value, (list, tuple)):
        for item in value:
            _check_one(name, "has", item, hint, known)
    elif isinstance(value, (int, float)) and not isinstance(value, bool) and not known.holds(value):
        raise ConfigError(f"{name} {verb} {_shown(value)}, expected {expected(_number_of(hint), known)}")
    elif isinstance(value, str) and known.choices and value not in known.allowed:
        raise ConfigError(f"{name} {verb} {_shown(value)}, expected {one_of(value, known.allowed)}")


def one_of(value: str, allowed: Iterable[str]) -> str:
    """The allowed strings in words, and which of them was probably meant."""
    near = nearest(value, allowed)
    return f"one of {', '.join(allowed)}" + (f": {near}" if near.startswith("did you mean") else "")


def convert(value: Any, hint: Any) -> Any:
    """`value`, as a file or a command line holds it, as the type `hint`; ValueError where it cannot be.

    "1e5" is a number, also where an integer is expected, "a,b" a list, "a=1,b=2" a mapping and "none" nothing, where the type
    allows those.
    """
    if get_origin(hint) in (Union, types.UnionType):
        options = get_args(hint)
        if type(None) in options and (value is None or value == "none"):
            return None
        exact = [o for o in options if isinstance(value, get_origin(o) or o)]
        for option in exact or [o for o in options if o is not type(None)]:
            try:
                return convert(value, option)
            except ValueError:
                continue
        raise ValueError
    if get_origin(hint) is list:
        if isinstance(value, str):
            value = [part.strip() for part in value.split(",")]
        if not isinstance(value, Iterable) or isinstance(value, Mapping):
            raise ValueError
        return [convert(item, get_args(hint)[0]) for item in value]
    if get_origin(hint) is dict:
        key_type, value_type = get_args(hint)
        if isinstance(value, str):  # a number has no "=", so that names before it may have some
            split = str.rsplit if value_type in (int, float) else str.split
            pairs = [[side.strip() for side in split(part, "=", 1)] for part in value.split(",")]
            value = {name: item for name, item in pairs}  # noqa: C416  (a part that is no pair is a ValueError)
            if len(value) < len(pairs) or not all(map(all, pairs)):  # a name twice, or half of a pair
                raise ValueError
        if not isinstance(value, Mapping):
            raise ValueError
        return {convert(k, key_type): convert(v, value_type) for k, v in value.items()}
    if hint is Any:
        return value
    if isinstance(value, bool) or hint is bool:
        if isinstance(value, bool) and hint is bool:
            return value
        raise ValueError
    if hint is str and isinstance(value, (str, int, float)):
        return str(value)
    if hint is float and isinstance(value, (str, int, float)):
        return _as_float(value)
    if hint is int and isinstance(value, (str, int, float)):
        if isinstance(value, int) or (isinstance(value, str) and value.strip().lstrip("+-").isdecimal()):
            return int(value)
        number = float(value)  # YAML reads 1e5 as a string
        if number.is_integer():
            return int(number)
    raise ValueError


def _as_float(value: str | float) -> float:
    try:
        return float(value)
    except OverflowError:  # an integer of more digits than a float has
        raise ValueError from None


def expected(hint: Any, known: Setting | None = None) -> str:
    """A type, with its range, in words: "an integer of at least 1 or none"."""
    if get_origin(hint) in (Union, types.UnionType):
        return " or ".join(expected(option, known) for option in get_args(hint))
    if get_origin(hint) is list:
        return f"a list of {_plural(get_args(hint)[0])}"
    if get_origin(hint) is dict:
        return f"a mapping of names to {_plural(get_args(hint)[1])}"
    name = {int: "an integer", float: "a number", bool: "true or false", str: "a string", type(None): "none"}[hint]
    return f"{name} {known.range}" if known and known.range and hint in (int, float) else name


def _plural(hint: Any) -> str:
    if get_origin(hint) is list:
        return f"lists of {_plural(get_args(hint)[0])}"
    return "values" if hint is Any else f"{expected(hint).partition(' ')[2]}s"


def _is_a(value: Any, hint: Any) -> bool:
    if hint is Any:
        return True
    if get_origin(hint) in (Union, types.UnionType):
        return any(_is_a(value, option) for option in get_args(hint))
    if get_origin(hint) is list:
        return isinstance(value, (list, tuple)) and all(_is_a(item, get_args(hint)[0]) for item in value)
    if get_origin(hint) is dict:
        return isinstance(value, Mapping) and all(_is_a(item, get_args(hint)[1]) for item in value.values())
    if hint is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    return isinstance(value, hint) and (hint is bool or not isinstance(value, bool))


def _number_of(hint: Any) -> Any:
    """The type of the numbers in a type: int for list[int] | None."""
    for option in get_args(hint):
        found = _number_of(option)
        if found in (int, float):
            return found
    return hint


def _number(value: float | None) -> str:
    return str(value) if isinstance(value, int) else f"{value:g}"


def _shown(value: Any) -> str:
    """A value in an error line, never longer than a line should be."""
    try:
        text = repr(value)
    except ValueError:  # an integer of thousands of digits
        return f"an integer of about {round(value.bit_length() * math.log10(2))} digits"
    return text if len(text) <= 200 else text[:200] + "..."
