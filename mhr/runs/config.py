"""Reading the settings of a run: preset, file, `--set` and flags, the later over the earlier, typed and checked.

load_config("recipe.yaml", preset="t0", overrides=["train.lr=3e-3"], steps=500)
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, get_origin

import yaml

from mhr.config import BEHIND, AdapterConfig
from mhr.errors import ConfigError, nearest
from mhr.methods import BY_TOKEN, METHODS, Method
from mhr.runs.adapt_settings import AdaptConfig
from mhr.runs.data_settings import DataConfig
from mhr.runs.settings import RunConfig
from mhr.runs.train_settings import TrainConfig
from mhr.setting import Setting, check_setting, convert, expected, settings_of
from mhr.yaml_text import file_text, read_mapping, read_value

SECTIONS: dict[str, type] = {"adapter": AdapterConfig, "data": DataConfig, "train": TrainConfig, "adapt": AdaptConfig}


COUNTED_TWICE = (("train.steps", "train.epochs"), ("train.eval_every", "train.eval_every_epochs"))
"""Pairs of settings, in optimizer steps and in epochs, of each of which a run has one."""
WORDING = ("data.template", "data.prompt", "data.verbalizers")
"""How examples are put into words: by a file, or by the two others."""


@dataclasses.dataclass(frozen=True, slots=True)
class Said:
    """A value and where it was set: a file, "--set", a flag, or "" by a program."""

    value: Any
    origin: str = ""

    def error(self, text: str) -> ConfigError:
        return ConfigError(f"{self.origin}: {text}" if self.origin else text)


def presets() -> dict[str, str]:
    """The packaged presets: name -> first line of its file, which says what it is."""
    found = {}
    for entry in sorted(resources.files("mhr.runs").joinpath("presets").iterdir(), key=lambda e: e.name):
        if entry.name.endswith(".yaml"):
            found[entry.name.removesuffix(".yaml")] = entry.read_text("utf-8").partition("\n")[0].removeprefix("# ")
    return found


def load_config(
    file: str | Path | None = None,
    preset: str | None = None,
    overrides: Sequence[str] = (),
    flags: Mapping[str, Said] | None = None,
    **settings: Any,
) -> RunConfig:
    """The settings of a run: defaults < preset < `file` (YAML) < `overrides` ("train.lr=1e-3") < `flags` and `settings`.

    A file may name its preset (`preset: t0`). `settings` are names of settings (lr=1e-3), with their section where that is
    `adapt` or where two sections have the same one ({"data.temperature": 4}); None leaves a setting as it is. `flags` are the
    same by their full names, with where each was set. What belongs to the method of a preset or file (`Setting.of_method`) is
    dropped where another one is asked for, and its targets where adapters with places of their own (`BEHIND`) take the place of LoRAs or the other
    way round, and where methods fix others; `adapter.parts` where the adapter is no LoRA.

    Raises ConfigError, naming where it was set and the key: a key that is unknown (the nearest is named) or given twice, a
    value of the wrong type or out of range.
    """
    said = read_mapping(file_text(file), str(file)) if file is not None else {}
    own_preset = said.pop("preset", None)
    preset = preset or own_preset
    layers = [_preset(preset)] if preset else []
    layers.append(dict(_flatten(said, str(file))))
    layers.append(dict(assignment(text) for text in overrides))
    layers.append({full_name(name): Said(value) for name, value in settings.items() if value is not None})
    layers.append(dict(flags or {}))
    merged: dict[str, Said] = {}
    for layer in layers:
        if "method" in layer and "method" in merged and layer["method"].value != merged["method"].value:
            chosen = METHODS.get(str(layer["method"].value))
            without = chosen is not None and chosen.routing is None
            merged = {
                key: value
                for key, value in merged.items()
                if _typed_in(value) or not (key.startswith("adapter.") if without else _of_method(key))
            }
        if _places(merged) != _places({**merged, **layer}):
            merged = {key: value for key, value in merged.items() if key != "adapter.targets" or _typed_in(value)}
        if _adapter_of({**merged, **layer}) != "lora":
            merged = {key: value for key, value in merged.items() if key != "adapter.parts" or _typed_in(value)}
        for pair in COUNTED_TWICE:
            _drop_other(pair, merged, layer)
        _drop_other_words(merged, layer)
        merged.update(layer)
    return _build(merged)


def _drop_other(pair: tuple[str, str], merged: dict[str, Said], layer: Mapping[str, Said]) -> None:
    """Epochs take the place of steps that a preset or file has, and the other way round. Raises ConfigError where both are said
    in one place, or both on the command line."""
    said = {key: one for key, one in layer.items() if key in pair and not _unset(one)}
    before = {key: one for key, one in merged.items() if key in pair and _typed_in(one) and not _unset(one)}
    if said and len(said | before) == 2:
        steps, epochs = ((said | before)[key] for key in pair)
        raise next(iter(said.values())).error(
            f"{pair[1]} is {epochs.value} and {pair[0]} is {steps.value}: give one of them"
        )
    for key in pair:
        if said and key not in said:
            merged.pop(key, None)


def _unset(one: Said) -> bool:
    """Whether what was said is that a setting is to be left out."""
    return one.value in (None, "none")


def _typed_in(one: Said) -> bool:
    """Whether a value was given on the command line, by a flag or --set."""
    return one.origin.startswith("-")


def _drop_other_words(merged: dict[str, Said], layer: Mapping[str, Said]) -> None:
    """A prompt and verbalizers take the place of a template that a preset or file has, and the other way round."""
    said = {key for key, one in layer.items() if key in WORDING and one.value not in (None, "none", {})}
    others = WORDING[1:] if said == {"data.template"} else WORDING[:1] if said and "data.template" not in said else ()
    for key in others:
        if key in merged and not _typed_in(merged[key]):
            del merged[key]


def _of_method(key: str) -> bool:
    return key in all_settings() and all_settings()[key][1].of_method


def _places(said: Mapping[str, Said]) -> tuple[bool, str | None]:
    """What decides which layers are adapted, beside the setting that names them."""
    method = _method_of(said)
    return _adapter_of(said) in BEHIND, None if method is None else method.targets


def _adapter_of(said: Mapping[str, Said]) -> str:
    """The kind of adapter that these settings ask for."""
    method = _method_of(said)
    chosen = said["adapter.adapter"].value if "adapter.adapter" in said else AdapterConfig.adapter
    return str((method and method.adapter) or chosen)


def _method_of(said: Mapping[str, Said]) -> Method | None:
    return METHODS.get(str(said["method"].value if "method" in said else RunConfig.method))


def to_dict(config: RunConfig) -> dict[str, Any]:
    """Every setting, nested as in a file; `load_config` reads it back to the same configuration."""
    values = dataclasses.asdict(config)
    if config.train.epochs is not None:
        del values["train"]["steps"]
    if config.train.eval_every_epochs is not None:
        del values["train"]["eval_every"]
    if config.adapter is None:
        del values["adapter"]
    else:
        values["adapter"] = config.adapter.to_dict()
        for key in METHODS[config.method].fixed:
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


def differences(one: dict[str, Any], other: dict[str, Any]) -> list[tuple[str, Any, Any]]:
    """(dotted name, value in one, value in the other) of every nested setting that is not the same in both."""
    before, now = flat(one), flat(other)
    return [
        (key, before.get(key), now.get(key))
        for key in [*before, *now.keys() - before]
        if before.get(key) != now.get(key)
    ]


# ---- names -----------------------------------------------------------------------------------------------------------


@cache
def all_settings() -> dict[str, tuple[Any, Setting]]:
    """Every setting of a run by its dotted name: its type and what is known of it."""
    known = dict(settings_of(RunConfig))
    for section, cls in SECTIONS.items():
        known |= {f"{section}.{name}": found for name, found in settings_of(cls).items()}
    del known["adapter.method"]  # the setting `method` decides it
    return known


def home_of(key: str) -> str | None:
    """The setting that a key is, or is an entry of: adapter.router of adapter.router.hidden. None where there is none."""
    known = all_settings()
    if key in known:
        return key
    parts = key.split(".")
    for n in range(len(parts) - 1, 0, -1):
        name = ".".join(parts[:n])
        if name in known and _is_mapping(known[name][0]):
            return name
    return None


def _is_mapping(hint: Any) -> bool:
    return get_origin(hint) is dict or any(get_origin(option) is dict for option in getattr(hint, "__args__", ()))


def _unknown(key: str) -> str:
    """What is wrong with a key that is no setting."""
    known = all_settings()
    leaf = key.rpartition(".")[2]
    if key in SECTIONS:
        first = next(name for name in known if name.startswith(f"{key}."))
        return f"{key!r} is a section of settings: set one of them, as in {first}"
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


def full_name(name: str) -> str:
    """The dotted name of a setting that may be given without its section."""
    known = all_settings()
    if name in known:
        return name
    found = [key for key in known if key.rpartition(".")[2] == name and not key.startswith("adapt.")]
    if len(found) == 1:
        return found[0]
    if found:
        raise ConfigError(f"setting {name!r} is ambiguous: write {' or '.join(map(repr, found))}")
    raise ConfigError(f"unknown setting {name!r}: {nearest(name, known)}")


# ---- reading ---------------------------------------------------------------------------------------------------------


def _preset(name: str) -> dict[str, Said]:
    known = presets()
    if name not in known:
        raise ConfigError(f"unknown preset {name!r}: {nearest(name, known)}")
    text = resources.files("mhr.runs").joinpath("presets", f"{name}.yaml").read_text("utf-8")
    return dict(_flatten(read_mapping(text, f"preset {name}"), f"preset {name}"))


def _flatten(values: Mapping[str, Any], origin: str) -> Iterator[tuple[str, Said]]:
    for name, value in values.items():
        if name in SECTIONS:
            if value is not None and not isinstance(value, dict):
                raise ConfigError(f"{origin}: {name} is {value!r}, expected a section of settings")
            for key, item in (value or {}).items():
                yield f"{name}.{key}", Said(item, origin)
        else:
            yield str(name), Said(value, origin)


def assignment(text: str) -> tuple[str, Said]:
    """What `--set NAME=VALUE` says. Raises ConfigError for a string of another form."""
    name, equals, value = text.partition("=")
    if not equals:
        raise ConfigError(f"--set {text!r} has no '=': expected a setting and its value, as in train.lr=1e-3")
    try:
        return name.strip(), Said(read_value(value), "--set")
    except ValueError:
        raise ConfigError(f"--set {text!r}: cannot read the value {value!r}") from None


def assignments(texts: Iterable[str]) -> dict[str, Said]:
    """What `--set` says, each time that it is given, by the full names of settings. Raises ConfigError."""
    return gathered(dict(assignment(text) for text in texts))


def typed(key: str, said: Said, hint: Any, known: Setting) -> Any:
    """The value of a setting as its type, `hint`. Raises ConfigError, naming where it was set, the key and what was expected."""
    try:
        value = said.value if said.value in known.words else convert(said.value, hint)
    except (ValueError, OverflowError):
        raise said.error(f"{key} is {said.value!r:.200}, expected {expected(hint, known)}") from None
    try:
        check_setting(key, value, hint, known)
    except ConfigError as error:
        raise said.error(str(error)) from None
    return value


def gathered(merged: Mapping[str, Said]) -> dict[str, Said]:
    """The settings given, entries of mappings put into these. Raises ConfigError for unknown keys."""
    found: dict[str, Said] = {}
    for key, said in merged.items():
        home = home_of(key)
        if home is None:
            raise said.error(_unknown(key))
        if home == key:
            found[key] = said
        else:
            before = found[home].value if home in found else None
            entries = dict(before) if isinstance(before, Mapping) else {}
            found[home] = Said(entries | {key.removeprefix(f"{home}."): said.value}, said.origin)
    return found


def _build(merged: Mapping[str, Said]) -> RunConfig:
    merged = gathered(merged)
    values: dict[str, dict[str, Any]] = {section: {} for section in ["", *SECTIONS]}
    for key, said in merged.items():
        section, _, name = key.rpartition(".")
        values[section][name] = typed(key, said, *all_settings()[key])
    method = values[""].get("method", RunConfig.method)
    built: dict[str, Any] = {}
    for section, cls in SECTIONS.items():
        settings = values[section]
        if section == "adapter":
            row = METHODS[method]
            fixed = row.fixed
            if row.routing is None and settings:
                first = f"adapter.{next(iter(settings))}"
                raise merged[first].error(f"{first} does not go with method {method!r}, which has no adapter")
            if row.routing is None:
                built[section] = None
                continue
            for name in fixed:
                if settings.get(name) not in (fixed[name], None):
                    free = [
                        other
                        for other in METHODS.values()
                        if other.routing and other.routing not in BY_TOKEN and name not in other.fixed
                    ]
                    alike = [other for other in free if (other.routing, other.adapter) == (row.routing, row.adapter)]
                    raise merged[f"adapter.{name}"].error(
                        f"adapter.{name} is {settings[name]!r}, but method {method!r} trains {fixed[name]!r}: leave it out, or choose "
                        f"{', '.join(other.name for other in alike or free)}"
                    )
            settings = {**settings, **fixed}
        built[section] = _checked(cls, settings, section, merged)
    return _checked(RunConfig, {**values[""], **built}, "", merged)


def _checked(cls: type, values: dict[str, Any], section: str, merged: Mapping[str, Said]) -> Any:
    """cls(**values), where an error, which begins with the name of the setting, gets its section and where that was set."""
    try:
        return cls(**values)
    except ConfigError as error:
        prefix = f"{section}." if section else ""
        name = str(error).partition(" ")[0].rstrip(":").partition(".")[0] if section else str(error).partition(" ")[0]
        key = prefix + name
        if key not in all_settings():
            raise
        raise merged.get(key, Said(None)).error(f"{prefix}{error}") from None
