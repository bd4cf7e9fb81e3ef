"""YAML as settings are written in it: only true and false are Booleans, and a repeated key is an error."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from mhr.errors import ConfigError


class _Loader(yaml.SafeLoader):
    """YAML in which only true and false are Booleans (`noise: off` is a string), and a repeated key is an error."""

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


def read_value(text: str) -> Any:
    """The value that a string stands for. Raises ValueError where it is not YAML."""
    try:
        return yaml.load(text, _Loader)
    except (yaml.YAMLError, RecursionError) as error:
        raise ValueError(str(error)) from None


def read_settings(text: str, origin: str) -> dict[str, Any]:
    """The settings of a file, of which errors name the `origin`. Raises ConfigError."""
    try:
        values = yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        raise ConfigError(f"{origin}{line}: {getattr(error, 'problem', None) or 'not YAML'}") from None
    except RecursionError:
        raise ConfigError(f"{origin}: is nested too deep: expected settings such as 'train: {{steps: 100}}'") from None
    except ValueError as error:  # an integer of thousands of digits, a date that is none
        raise ConfigError(f"{origin}: has a value that cannot be read: {error}") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(f"{origin}: expected settings such as 'train: {{steps: 100}}', got {type(values).__name__}")
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
