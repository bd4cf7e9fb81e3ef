"""Checks of an argument that is no setting (those: `mhr.setting`): each raises ConfigError with what was got and what was expected, the name first."""

from __future__ import annotations

from typing import Any

from mhr.errors import ConfigError
from mhr.setting import one_of


def check_choice(name: str, value: Any, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ConfigError(f"{name} is {value!r}, expected {one_of(str(value), allowed)}")


def check_whole(name: str, value: Any, at_least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < at_least:
        raise ConfigError(f"{name} is {value!r}, expected an integer of at least {at_least}")
