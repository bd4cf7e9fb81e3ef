"""What a sweep is asked for besides its adaptations, see `mhr.sweeps.sweep`. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass

from mhr.methods import MODES
from mhr.setting import Settings, setting


@dataclass
class SweepConfig(Settings):
    """Modes of adapting, and where the work is done."""

    modes: list[str] = setting(
        ["mhr"],
        f"Modes of `mhr adapt`: {', '.join(MODES)}. One that some of the runs do not allow is left out there.",
        flag="--modes",
        metavar="NAME,...",
    )
    launcher: str = setting(
        "local",
        "local (processes of this machine), or ray (a Ray cluster whose machines share the folders; RAY_ADDRESS names it).",
        choices=("local", "ray"),
        flag="--launcher",
    )
    workers: int | None = setting(
        None, "Processes. Unset: one for each GPU, otherwise for each core.", at_least=1, flag="--workers"
    )
