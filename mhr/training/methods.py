"""Names of the methods that a run can train, as a user says them, and what each one means for the adapter bank."""

from __future__ import annotations

METHODS: dict[str, dict[str, str] | None] = {
    "mhr": {"method": "mhr", "adapter": "lora"},
    "poly": {"method": "poly", "adapter": "lora"},
    "lora": {"method": "shared", "adapter": "lora"},
    "private": {"method": "private", "adapter": "lora"},
    "ia3": {"method": "shared", "adapter": "ia3"},
    "poly-ia3": {"method": "poly", "adapter": "ia3"},
    "random": {"method": "random", "adapter": "lora"},
    "uniform": {"method": "uniform", "adapter": "lora"},
    "hash": {"method": "hash", "adapter": "lora"},
    "full": None,
}
"""Name of a method -> the fields of AdapterConfig that it fixes; None has no adapter and trains all weights."""

MODES = ("mhr", "z", "mu", "lora", "full", "random")
"""Ways to adapt to a new task, see `mhr.training.adapt`; "poly" is accepted for "mhr"."""
