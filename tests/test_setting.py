"""A setting is written once: type, doc and range of its field decide what is taken, what is refused and what is said."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from typing import Any

import pytest

from mhr.config import AdapterConfig
from mhr.errors import ConfigError
from mhr.methods import ROUTING_METHODS
from mhr.runs.adapt_settings import AdaptConfig
from mhr.runs.config import all_settings, load_config, to_dict
from mhr.setting import Settings, as_in, convert, setting, settings_of


@dataclass
class Oven(Settings):
    heat: float = setting(180.0, "Degrees Celsius. Of the air.", above=0, at_most=300, flag="--heat -H")
    trays: int | None = setting(None, "Trays in it.", at_least=1)
    mode: str = setting("fan", "How it heats.", choices=("fan", "grill"))
    times: list[int] = setting([5], "Minutes of each phase.", at_least=1)
    names: dict[str, float] = setting({}, "Weight of each loaf.", above=0)
    lit: bool = setting(False, "Whether the lamp is on.")


@dataclass
class Kiln(Oven):
    heat: float = as_in(Oven, "heat", 900.0, at_most=1300)


def test_a_value_is_taken_or_refused_with_one_line() -> None:
    assert Oven(heat=20, trays=2, times=[1, 2], names={"rye": 0.5}) == Oven(20, 2, "fan", [1, 2], {"rye": 0.5}, False)
    assert Oven().times is not Oven().times
    assert Kiln().heat == 900
    assert settings_of(Kiln)["heat"][1].doc == settings_of(Oven)["heat"][1].doc
    for values, said in (
        ({"heat": 0}, "heat is 0, expected a number above 0 and at most 300"),
        ({"heat": float("nan")}, "heat is nan, expected a number above 0"),
        ({"heat": float("inf")}, "heat is inf, expected a number above 0"),
        ({"heat": "hot"}, "heat is 'hot', expected a number above 0"),
        ({"heat": True}, "heat is True"),
        ({"trays": 1.5}, "trays is 1.5, expected an integer of at least 1 or none"),
        ({"mode": "gril"}, "mode is 'gril', expected one of fan, grill: did you mean 'grill'"),
        ({"times": [3, 0]}, "times has 0, expected an integer of at least 1"),
        ({"times": 3}, "times is 3, expected a list of integers"),
        ({"names": {"rye": 0.0}}, "names 'rye' is 0.0, expected a number above 0"),
        ({"lit": 1}, "lit is 1, expected true or false"),
    ):
        with pytest.raises(ConfigError, match=said):
            Oven(**values)
    with pytest.raises(ConfigError, match="heat is 1301, expected a number above 0 and at most 1300"):
        Kiln(heat=1301)
    with pytest.raises(ConfigError, match="unknown setting 'haet': did you mean 'heat'"):
        Oven.from_dict({"haet": 1})


@pytest.mark.parametrize(
    ("text", "hint", "value"),
    [
        ("1e5", int, 100000),
        ("123456789012345678901", int, 123456789012345678901),
        ("1e-4", float, 1e-4),
        ("none", int | None, None),
        ("a,b", list[str], ["a", "b"]),
        ("1, 2", list[int], [1, 2]),
        ("a=1,b=x=y", dict[str, str], {"a": "1", "b": "x=y"}),
        ("a=1, b = 2", dict[str, int], {"a": 1, "b": 2}),
    ],
)
def test_texts_become_values(text: str, hint: Any, value: Any) -> None:
    assert convert(text, hint) == value


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("1.5", int),
        ("many", float),
        ("true", bool),
        ("a", dict[str, int]),
        ("a=", dict[str, str]),
        ("=b", dict[str, str]),
        ("a=1,a=2", dict[str, int]),
        (10**400, float),
    ],
)
def test_what_is_no_value_of_a_type_is_refused(text: Any, hint: Any) -> None:
    with pytest.raises(ValueError):
        convert(text, hint)


def outside(known: Any) -> list[float]:
    """A number beyond each bound."""
    found: list[float] = []
    for bound, step in ((known.at_least, -1), (known.above, 0), (known.at_most, 1), (known.below, 0)):
        if bound is not None:
            found.append(bound + step)
    return found


@pytest.mark.parametrize("name", all_settings())
def test_every_setting_has_a_doc_a_type_a_range_and_reaches_file_and_error(name: str) -> None:
    hint, known = all_settings()[name]
    assert known.doc.endswith("."), known.doc
    assert len(known.summary) <= 120
    section, _, leaf = name.rpartition(".")
    values = to_dict(load_config())
    if name != "adapter.router":  # which is in a file where a method has settings of its own
        assert leaf in (values[section] if section else values)
    if "int" in str(hint) or "float" in str(hint):
        if name == "adapt.grid":  # whose values have the ranges of the settings that they stand for
            return
        bounds = outside(known)
        assert bounds, f"{name} has no range"
        for number in bounds:
            value: Any = [number] if "list" in str(hint) else {"a": number} if "dict" in str(hint) else number
            with pytest.raises(ConfigError, match=rf"^{name} .*, expected an? (integer|number) "):
                load_config(**{name: value})
            with pytest.raises(ConfigError, match=rf"^--set: {name} .*, expected an? (integer|number) "):
                load_config(overrides=[f"{name}={value!r}"])
    elif known.allowed:
        with pytest.raises(ConfigError, match=rf"^{name} (is|has) 'no such', expected one of "):
            load_config(**{name: "no such"})


@dataclass
class NetworkSettings(Settings):
    hidden: int = setting(64, "Width of the hidden layer.", at_least=1)
    lr: float = setting(1e-3, "Learning rate of the network.", above=0)


def test_a_routing_method_may_have_settings_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "router" not in AdapterConfig().to_dict()
    with pytest.raises(ConfigError, match=r"^--set: adapter.router .*method 'mhr' has no settings of its own"):
        load_config(overrides=["adapter.router.hidden=3"])
    monkeypatch.setitem(ROUTING_METHODS, "mhr", dataclasses.replace(ROUTING_METHODS["mhr"], settings=NetworkSettings))
    config = load_config(overrides=["adapter.router.hidden=8", "adapter.router.lr=1e-2"])
    assert config.adapter is not None
    assert config.adapter.router == {"hidden": 8, "lr": 0.01}
    assert AdapterConfig.from_dict(config.adapter.to_dict()) == config.adapter
    assert AdapterConfig().router == {"hidden": 64, "lr": 1e-3}
    assert to_dict(config)["adapter"]["router"]["hidden"] == 8
    for override, said in (
        ("adapter.router.hidden=0", "adapter.router.hidden is 0, expected an integer of at least 1"),
        ("adapter.router.hidden=many", "adapter.router.hidden is 'many', expected an integer"),
        ("adapter.router.hiden=3", "unknown setting of method 'mhr' 'hiden': did you mean 'hidden'"),
    ):
        with pytest.raises(ConfigError, match=said):
            load_config(overrides=[override])


def test_entries_of_a_mapping_can_be_set_one_by_one() -> None:
    config = load_config(overrides=["adapt.shots_for.boolq=50", "data.column_map.input=question"])
    assert config.adapt.shots_for == {"boolq": 50}
    assert config.data.column_map == {"input": "question"}


def test_what_a_file_holds_equals_what_was_given() -> None:
    """As a resumed run compares them: a caller in Python may give tuples, JSON has lists."""
    oven = Oven(times=(5, 6))  # type: ignore[arg-type]
    assert oven == Oven.from_dict(json.loads(json.dumps(oven.to_dict())))
    few = AdaptConfig(seeds=(13, 42), grid={"lr": (1e-3, 1e-2)})  # type: ignore[arg-type, dict-item]
    assert few == AdaptConfig.from_dict(json.loads(json.dumps(few.to_dict())))
    assert few.seeds == [13, 42]
