"""Names of the methods that a run can train, as a user says them, and what each one means for the adapter bank."""

from __future__ import annotations

METHODS: dict[str, dict[str, str] | None] = {
    "mhr": {"method": "mhr"},
    "poly": {"method": "poly"},
    "lora": {"method": "shared", "adapter": "lora"},
    "private": {"method": "private"},
    "ia3": {"method": "shared", "adapter": "ia3"},
    "poly-ia3": {"method": "poly", "adapter": "ia3"},
    "bottleneck": {"method": "shared", "adapter": "bottleneck"},
    "adamix": {"method": "adamix", "adapter": "bottleneck"},
    "adamix-lora": {"method": "adamix", "adapter": "lora"},
    "random": {"method": "random"},
    "uniform": {"method": "uniform"},
    "hash": {"method": "hash"},
    "full": None,
}
"""Name of a method -> the fields of AdapterConfig that it fixes (where it leaves `adapter` open, that is a setting);
None has no adapter and trains all weights."""

MODES = ("mhr", "z", "mu", "lora", "full", "random")
"""Ways to adapt to a new task, see `mhr.few_shot.adapt`; "poly" is accepted for "mhr"."""
