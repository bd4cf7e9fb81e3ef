"""Checks of an argument that is no setting (those: `mhr.setting`): each raises ConfigError with what was got and what was expected, the name first."""

from __future__ import annotations

import math
from typing import Any

from mhr.errors import ConfigError
from mhr.setting import one_of


def check_choice(name: str, value: Any, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ConfigError(f"{name} is {value!r}, expected {one_of(str(value), allowed)}")


def check_whole(name: str, value: Any, at_least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < at_least:
        raise ConfigError(f"{name} is {value!r}, expected an integer of at least {at_least}")


def check_number(
    name: str, value: Any, above: float | None = None, at_least: float | None = None, below: float = math.inf
) -> None:
    number = isinstance(value, (int, float)) and not isinstance(value, bool) and value < below
    if number and (above is None or value > above) and (at_least is None or value >= at_least):
        return
    low = f"above {above:g}" if above is not None else f"of at least {at_least:g}"
    high = f" and below {below:g}" if below < math.inf else ""
    raise ConfigError(f"{name} is {value!r}, expected a number {low}{high}")
