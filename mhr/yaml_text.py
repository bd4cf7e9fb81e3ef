"""YAML as settings and templates are written in it: only true and false are Booleans, keys are names, and a repeated one is an error."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from mhr.errors import ConfigError

MERGE = "tag:yaml.org,2002:merge"
"""What the key << stands for."""

MOST_NESTED = 100
"""Collections in each other that libyaml may read: it recurses on C's stack, at whose end the process ends."""

LENIENT = re.compile(r"\t|[|>][-+\d]*#")
"""What libyaml may take where PyYAML refuses it."""


class _Rules:
    """YAML in which only true and false are Booleans (`noise: off` is a string), a key is the string that is written (`no`, `0`), and a
    repeated one is an error."""

    yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in resolvers if first in "tTfF" or not tag.endswith(":bool")]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self: Any, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(None, None, "a key is no name", key.start_mark)
            if key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key {key.value!r} is given twice", key.start_mark)
            seen.add(key.value)
            if key.tag != MERGE:
                key.tag = self.DEFAULT_SCALAR_TAG
        return yaml.constructor.SafeConstructor.construct_mapping(self, node, deep)


class _Loader(_Rules, yaml.SafeLoader):
    pass


if yaml.__with_libyaml__:

    class _FastLoader(_Rules, yaml.CSafeLoader):
        pass


def _load(text: str) -> Any:
    """What a text says, by libyaml, which takes a tenth of the time, where it is there. Faults are told in PyYAML's words."""
    if yaml.__with_libyaml__ and not LENIENT.search(text):
        try:
            if _depth(text) <= MOST_NESTED:
                return yaml.load(text, _FastLoader)
        except yaml.YAMLError:
            pass
    return yaml.load(text, _Loader)


def _depth(text: str) -> int:
    """The most collections that are in each other."""
    depth = most = 0
    for event in yaml.parse(text, yaml.CSafeLoader):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        most = max(most, depth)
    return most


def read_value(text: str) -> Any:
    """The value that a string stands for. Raises ValueError where it is not YAML."""
    try:
        return _load(text)
    except (yaml.YAMLError, RecursionError) as error:
        raise ValueError(str(error)) from None


def read_mapping(text: str, origin: str, expected: str = "settings such as 'train: {steps: 100}'") -> dict[str, Any]:
    """What a file maps its keys to, nothing of an empty one. Raises ConfigError, which names the `origin` and says what is `expected`."""
    try:
        values = _load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        raise ConfigError(f"{origin}{line}: {getattr(error, 'problem', None) or 'not YAML'}") from None
    except RecursionError:
        raise ConfigError(f"{origin}: is nested too deep: expected {expected}") from None
    except ValueError as error:  # an integer of thousands of digits, a date that is none
        raise ConfigError(f"{origin}: has a value that cannot be read: {error}") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(f"{origin}: expected {expected}, got {type(values).__name__}")
    return values


def file_text(file: str | Path) -> str:
    """The text of a file of settings. Raises ConfigError where there is none."""
    path = Path(file)
    if not path.is_file():
        raise ConfigError(f"no configuration file at {path}: expected a YAML file; packaged ones are presets")
    try:
        return path.read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{path}: is no text file (byte {error.start} is not UTF-8): expected YAML such as 'train: {{steps: 100}}'"
        ) from None
