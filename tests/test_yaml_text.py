"""YAML of settings: what its rules make of values, and that libyaml changes nothing but the time."""

from __future__ import annotations

import random

import pytest
import yaml

from mhr import yaml_text
from mhr.errors import ConfigError
from mhr.runs.config import dump_config, load_config, presets
from mhr.yaml_text import read_mapping, read_value

WORDS = [
    "a b: ",
    "- ",
    "\n",
    "\n  ",
    "\n    ",
    "{",
    "}",
    "[",
    "]",
    ", ",
    ": ",
    "'",
    '"',
    "#",
    " ",
    "\t",
    "1",
    "0x1f",
    "1e3",
    "off",
    "true",
    "null",
    "~",
    "017",
    "1_0",
    "1:30",
    ".nan",
    "2020-01-01",
    "&x ",
    "*x",
    "<<: ",
    "? ",
    "!!str ",
    "!t ",
    "---",
    "...",
    "%",
    "@",
    "`",
    "\\n",
    "é",
    "😀",
    "\u2028",
    "\x85",
    "\r\n",
]
BLOCKS = ("|", "|-", ">", "|\n", ">\n", "|#")


def said(text: str) -> tuple[bool, str]:
    """Whether it is YAML, and its value or the fault."""
    try:
        return True, repr(read_value(text))
    except ValueError as error:
        return False, str(error)


def test_libyaml_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    draw = random.Random(0)
    texts = ["".join(draw.choices((*WORDS, *BLOCKS), k=draw.randint(1, 14))) for _ in range(2500)]
    texts += [dump_config(load_config(preset=name)) for name in presets()]
    texts += ["[" * n + "]" * n for n in (99, 100, 101, 5000)]
    found = [said(text) for text in texts]
    monkeypatch.setattr(yaml, "__with_libyaml__", False)
    assert found == [said(text) for text in texts]
    assert min(sum(is_value for is_value, _ in found), sum(not is_value for is_value, _ in found)) > 500


@pytest.mark.parametrize("fast", [True, False])
def test_only_true_and_false_are_booleans_and_keys_are_names(fast: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if fast and not yaml.__with_libyaml__:
        pytest.skip("PyYAML comes without libyaml here")
    monkeypatch.setattr(yaml, "__with_libyaml__", fast)
    assert read_mapping("noise: off\nno: yes\n0: true\n", "x.yaml") == {"noise": "off", "no": "yes", "0": True}
    with pytest.raises(ConfigError, match=r"^x.yaml, line 2: key 'a' is given twice$"):
        read_mapping("a: 1\na: 2\n", "x.yaml")
    with pytest.raises(ConfigError, match=r"^x.yaml: is nested too deep: expected "):
        read_mapping("[" * 5000 + "]" * 5000, "x.yaml")


def test_libyaml_is_what_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    if not yaml.__with_libyaml__:
        pytest.skip("PyYAML comes without libyaml here")
    monkeypatch.setattr(yaml_text, "_Loader", None)
    assert read_value("{a: [1, off]}") == {"a": [1, "off"]}
