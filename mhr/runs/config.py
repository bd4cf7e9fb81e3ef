"""Reading the settings of a run: preset, file, `--set` and flags, the later over the earlier, typed and checked.

load_config("recipe.yaml", preset="t0", overrides=["train.lr=3e-3"], steps=500)
"""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, Union, get_args, get_origin, get_type_hints

import yaml

from mhr.config import AdapterConfig
from mhr.errors import ConfigError, nearest
from mhr.runs.adapt_settings import AdaptConfig
from mhr.runs.methods import METHODS
from mhr.runs.settings import DataConfig, RunConfig, TrainConfig

SECTIONS: dict[str, type] = {"adapter": AdapterConfig, "data": DataConfig, "train": TrainConfig, "adapt": AdaptConfig}

# Settings that mean something for one method only: they leave with a preset's method when another is asked for.
OF_A_METHOD = (
    "adapter.adapter",
    "adapter.dropout",
    "adapter.n_heads",
    "adapter.n_skills",
    "adapter.noise",
    "adapter.share",
    "adapter.straight_through",
    "train.consistency",
)


@dataclasses.dataclass(frozen=True, slots=True)
class Setting:
    """A value and where it was said."""

    value: Any
    origin: str


def presets() -> dict[str, str]:
    """The packaged presets: name -> first line of its file, which says what it is."""
    found = {}
    for entry in sorted(resources.files("mhr.runs").joinpath("presets").iterdir(), key=lambda e: e.name):
        if entry.name.endswith(".yaml"):
            found[entry.name.removesuffix(".yaml")] = entry.read_text("utf-8").partition("\n")[0].removeprefix("# ")
    return found


def load_config(
    file: str | Path | None = None, preset: str | None = None, overrides: Sequence[str] = (), **flags: Any
) -> RunConfig:
    """The settings of a run: defaults < preset < `file` (YAML) < `overrides` ("train.lr=1e-3") < `flags` (lr=1e-3).

    A file may name its preset (`preset: t0`). Flags are names of settings, with their section where that is `adapt` or
    where two sections have the same one ({"data.temperature": 4}); None leaves a setting as it is. What belongs
    to a preset's method (OF_A_METHOD) is dropped where another one is asked for, and its targets where bottlenecks, which have
    places of their own, take the place of LoRAs or the other way round.

    Raises ConfigError, naming file or flag and key: a key that is unknown (the nearest is named) or given twice, a value
    of the wrong type or out of range.
    """
    said = _read_yaml(Path(file).read_text("utf-8"), str(file)) if file is not None and _readable(Path(file)) else {}
    own_preset = said.pop("preset", None)
    preset = preset or own_preset
    layers = [_preset(preset)] if preset else []
    layers.append(dict(_flatten(said, str(file))))
    layers.append(dict(_assignment(text) for text in overrides))
    layers.append(
        {_full_name(name): Setting(v, "--" + name.replace("_", "-")) for name, v in flags.items() if v is not None}
    )
    merged: dict[str, Setting] = {}
    for layer in layers:
        if "method" in layer and "method" in merged and layer["method"].value != merged["method"].value:
            gone = (
                [key for key in merged if key.startswith("adapter.")]
                if layer["method"].value == "full"
                else OF_A_METHOD
            )
            merged = {key: setting for key, setting in merged.items() if key not in gone}
        if _has_bottlenecks(merged) != _has_bottlenecks({**merged, **layer}):
            merged.pop("adapter.targets", None)
        merged.update(layer)
    return _build(merged)


def _has_bottlenecks(settings: Mapping[str, Setting]) -> bool:
    method = settings["method"].value if "method" in settings else RunConfig.method
    chosen = settings["adapter.adapter"].value if "adapter.adapter" in settings else None
    return "bottleneck" in (chosen, (METHODS.get(str(method)) or {}).get("adapter"))


def to_dict(config: RunConfig) -> dict[str, Any]:
    """Every setting, nested as in a file; `load_config` reads it back to the same configuration."""
    values = dataclasses.asdict(config)
    if values["adapter"] is None:
        del values["adapter"]
    else:
        for key in METHODS[config.method] or ():
            del values["adapter"][key]
    return values


def dump_config(config: RunConfig) -> str:
    """Every setting, as YAML."""
    return yaml.safe_dump(to_dict(config), sort_keys=False, allow_unicode=True)


def flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by their dotted names."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[prefix + key] = value
    return found


# ---- names and types -------------------------------------------------------------------------------------------------


@cache
def _types() -> dict[str, Any]:
    """Type of every setting by its dotted name."""
    known: dict[str, Any] = {}
    for name, hint in get_type_hints(RunConfig).items():
        if name not in SECTIONS:
            known[name] = hint
    for section, cls in SECTIONS.items():
        for name, hint in get_type_hints(cls).items():
            known[f"{section}.{name}"] = hint
    del known["adapter.method"]  # the setting `method` decides it
    return known


def _unknown(key: str) -> str:
    """What is wrong with a key that is no setting."""
    known = _types()
    leaf = key.rpartition(".")[2]
    if key == "adapter.method":
        return f"unknown key {key!r}: the setting 'method' decides it"
    same = [name for name in known if name.rpartition(".")[2] == leaf]
    if same:
        return f"unknown key {key!r}: did you mean " + " or ".join(map(repr, same)) + "?"
    section = key.rpartition(".")[0]
    siblings = [name for name in known if name.rpartition(".")[0] == section]
    if siblings and section:
        near = nearest(leaf, [name.rpartition(".")[2] for name in siblings])
        return f"unknown key {key!r}: in section {section!r}, {near}"
    return f"unknown key {key!r}: {nearest(key, [*known, *SECTIONS])}"


def _full_name(flag: str) -> str:
    """The dotted name of a setting that may be given without its section."""
    known = _types()
    if flag in known:
        return flag
    found = [name for name in known if name.rpartition(".")[2] == flag and not name.startswith("adapt.")]
    if len(found) == 1:
        return found[0]
    if found:
        raise ConfigError(f"setting {flag!r} is ambiguous: write {' or '.join(map(repr, found))}")
    raise ConfigError(f"unknown setting {flag!r}: {nearest(flag, known)}")


def _convert(value: Any, hint: Any) -> Any:
    """`value` as the type `hint`; ValueError where it cannot be."""
    if get_origin(hint) in (Union, types.UnionType):
        options = get_args(hint)
        if type(None) in options and (value is None or value == "none"):
            return None
        exact = [o for o in options if isinstance(value, get_origin(o) or o)]
        for option in exact or [o for o in options if o is not type(None)]:
            try:
                return _convert(value, option)
            except ValueError:
                continue
        raise ValueError
    if get_origin(hint) is list:
        if isinstance(value, str):
            value = [part.strip() for part in value.split(",")]
        if not isinstance(value, Iterable) or isinstance(value, Mapping):
            raise ValueError
        return [_convert(item, get_args(hint)[0]) for item in value]
    if get_origin(hint) is dict:
        if not isinstance(value, Mapping):
            raise ValueError
        key_type, value_type = get_args(hint)
        return {_convert(k, key_type): _convert(v, value_type) for k, v in value.items()}
    if isinstance(value, bool) or hint is bool:
        if isinstance(value, bool) and hint is bool:
            return value
        raise ValueError
    if hint is str and isinstance(value, (str, int, float)):
        return str(value)
    if hint is float and isinstance(value, (str, int, float)):
        return float(value)
    if hint is int and isinstance(value, (str, int, float)):
        number = float(value)  # YAML reads 1e5 as text
        if number.is_integer():
            return int(number)
    raise ValueError


def _type_name(hint: Any) -> str:
    if get_origin(hint) in (Union, types.UnionType):
        return " or ".join(_type_name(option) for option in get_args(hint))
    if get_origin(hint) is list:
        return f"a list of {_plural(get_args(hint)[0])}"
    if get_origin(hint) is dict:
        return f"a mapping of names to {_plural(get_args(hint)[1])}"
    return {int: "a whole number", float: "a number", bool: "true or false", str: "a text", type(None): "null"}[hint]


def _plural(hint: Any) -> str:
    return f"lists of {_plural(get_args(hint)[0])}" if get_origin(hint) is list else f"{_type_name(hint)[2:]}s"


# ---- reading ---------------------------------------------------------------------------------------------------------


class _Loader(yaml.SafeLoader):
    """YAML in which only true and false are Booleans (`noise: off` is a text), and a repeated key is an error."""

    yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in resolvers if first in "tTfF" or not tag.endswith(":bool")]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key {key.value!r} is given twice", key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def _readable(file: Path) -> bool:
    """True, or ConfigError where there is no such file."""
    if not file.is_file():
        raise ConfigError(f"no configuration file at {file}: expected a YAML file; presets are named with --preset")
    return True


def _read_yaml(text: str, origin: str) -> dict[str, Any]:
    try:
        values = yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        raise ConfigError(f"{origin}{line}: {getattr(error, 'problem', None) or 'not YAML'}") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(f"{origin}: expected settings such as 'train: {{steps: 100}}', got {type(values).__name__}")
    return values


def _preset(name: str) -> dict[str, Setting]:
    known = presets()
    if name not in known:
        raise ConfigError(f"unknown preset {name!r}: {nearest(name, known)}")
    text = resources.files("mhr.runs").joinpath("presets", f"{name}.yaml").read_text("utf-8")
    return dict(_flatten(_read_yaml(text, f"preset {name}"), f"preset {name}"))


def _flatten(values: Mapping[str, Any], origin: str) -> Iterator[tuple[str, Setting]]:
    for name, value in values.items():
        if name in SECTIONS:
            if value is not None and not isinstance(value, dict):
                raise ConfigError(f"{origin}: {name} is {value!r}, expected a section of settings")
            for key, item in (value or {}).items():
                yield f"{name}.{key}", Setting(item, origin)
        else:
            yield str(name), Setting(value, origin)


def _assignment(text: str) -> tuple[str, Setting]:
    name, equals, value = text.partition("=")
    if not equals:
        raise ConfigError(f"--set {text!r} has no '=': expected a setting and its value, as in train.lr=1e-3")
    try:
        return name.strip(), Setting(yaml.load(value, _Loader), "--set")
    except yaml.YAMLError:
        raise ConfigError(f"--set {text!r}: cannot read the value {value!r}") from None


def _build(merged: Mapping[str, Setting]) -> RunConfig:
    known = _types()
    values: dict[str, dict[str, Any]] = {section: {} for section in ["", *SECTIONS]}
    for key, setting in merged.items():
        if key not in known:
            raise ConfigError(f"{setting.origin}: {_unknown(key)}")
        try:
            value = _convert(setting.value, known[key])
        except ValueError:
            raise ConfigError(
                f"{setting.origin}: {key} is {setting.value!r}, expected {_type_name(known[key])}"
            ) from None
        section, _, name = key.rpartition(".")
        values[section][name] = value
    method = values[""].get("method", RunConfig.method)
    built: dict[str, Any] = {}
    for section, cls in SECTIONS.items():
        settings = values[section]
        if section == "adapter":
            fixed = METHODS.get(method, {})
            if fixed is None and settings:
                first = next(iter(settings))
                raise ConfigError(
                    f"{merged[f'adapter.{first}'].origin}: adapter.{first} does not go with method 'full', which has no adapter"
                )
            if fixed is None:
                built[section] = None
                continue
            if "adapter" in settings and settings["adapter"] != fixed.get("adapter", settings["adapter"]):
                raise ConfigError(
                    f"{merged['adapter.adapter'].origin}: adapter.adapter is {settings['adapter']!r}, but method {method!r} "
                    f"trains {fixed['adapter']!r}: leave it out, or choose mhr, poly or another method that leaves it open"
                )
            settings = {**settings, **fixed}
        built[section] = _checked(cls, settings, section, merged)
    return _checked(RunConfig, {**values[""], **built}, "", merged)


def _checked(cls: type, values: dict[str, Any], section: str, merged: Mapping[str, Setting]) -> Any:
    """cls(**values), where an error, which begins with the name of the setting, also says where that was set."""
    try:
        return cls(**values)
    except ConfigError as error:
        key = (f"{section}." if section else "") + str(error).partition(" ")[0]
        if key not in merged:
            raise
        prefix = f"{section}." if section else ""
        raise type(error)(f"{merged[key].origin}: {prefix}{error}") from None
