"""Runs reported to trackers (Weights & Biases, MLflow, Trackio) by Trainer's own integrations."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.integrations import get_reporting_integration_callbacks

from mhr.errors import ConfigError

OWN = "tensorboard"
"""What every run writes anyway: `mhr.training.watch.TensorBoard`."""


def reporting(names: Sequence[str] | None) -> list[TrainerCallback]:
    """The callbacks that report to the trackers of these names. Raises ConfigError where the package of one is not installed."""
    found = []
    for name in dict.fromkeys(names or ()):
        if name == OWN:
            continue
        try:
            (kind,) = get_reporting_integration_callbacks([name])
            found.append(_flat(kind)())
        except (RuntimeError, ImportError) as error:
            raise ConfigError(
                f"report_to has {name!r}, whose package is not installed or cannot be imported ({error}): pip install {name}, or "
                "leave it out"
            ) from error
    return found


def _flat(kind: type[TrainerCallback]) -> type[TrainerCallback]:
    """An integration that gets the numbers of a record by names of one level, as Trainer has them, and validations likewise."""

    class Flat(kind):
        def on_log(
            self,
            args: TrainingArguments,
            state: TrainerState,
            control: TrainerControl,
            model: Any = None,
            logs: Any = None,
            **kwargs: Any,
        ) -> None:
            super().on_log(args, state, control, model=model, logs=numbers_of(logs), **kwargs)

        def on_evaluate(
            self,
            args: TrainingArguments,
            state: TrainerState,
            control: TrainerControl,
            model: Any = None,
            metrics: Any = None,
            **kwargs: Any,
        ) -> None:
            super().on_log(args, state, control, model=model, logs=numbers_of(metrics or {}), **kwargs)

    Flat.__name__ = kind.__name__
    return Flat


def numbers_of(record: dict[str, Any]) -> dict[str, float]:
    """{"loss": 2.0, "router_lr": None, "tasks": {"a b": 1.0}} -> {"loss": 2.0, "tasks/a b": 1.0}; what a tracker does not take in
    a name (MLflow takes letters, digits, spaces and _-./) becomes _."""
    found: dict[str, float] = {}
    for name, value in record.items():
        for key, number in value.items() if isinstance(value, dict) else [("", value)]:
            if isinstance(number, (int, float)) and name != "step":
                whole = f"{name}/{key}" if key else name
                found[re.sub(r"[^A-Za-z0-9 _\-./]", "_", whole)] = float(number)
    return found
