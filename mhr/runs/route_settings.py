"""What is asked of routing by token, see `mhr.experts.route_tokens`. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from mhr.errors import ConfigError
from mhr.method_settings.tokens import TokenSettings
from mhr.methods import BY_TOKEN, listed
from mhr.runs.adapt_settings import EXPERTS_OF_BANKS
from mhr.setting import MOST_SEED, Settings, as_in, setting, settings_of

OF_CHOICE = {"top_k", "temperature"}
"""Settings of methods by which tokens choose some."""

OF_GATES = ("tasks", "steps", "batch_size", "lr", "seed")
"""Settings of methods that train gates."""


@dataclass
class RouteConfig(Settings):
    """How each token chooses among LoRAs, and which these are."""

    method: str = setting(
        next(iter(BY_TOKEN)),
        f"How a token chooses: {listed(BY_TOKEN)}.",
        choices=lambda: BY_TOKEN,
        flag="--method",
    )
    top_k: int = as_in(TokenSettings, "top_k", TokenSettings.top_k, flag=("--top-k",))
    temperature: float = as_in(TokenSettings, "temperature", TokenSettings.temperature, flag=("--temperature",))
    experts: str | None = setting(
        None,
        """LoRAs that a bank stands for: tasks (the mixture of each of its tasks) or skills. Unset: tasks; skills of a bank that does the same
        for all tasks.""",
        choices=EXPERTS_OF_BANKS,
        flag="--experts",
    )
    tasks: str | None = setting(
        None,
        "Collection with the LoRAs' own tasks, on which gates are trained. Unset: that of the first input that is a run.",
        reads=True,
        flag="--tasks",
        metavar="PATH",
    )
    steps: int = setting(100, "Optimizer steps of each gate.", at_least=1, flag="--steps")
    batch_size: int = setting(16, "Examples of a step of a gate.", at_least=1, at_most=2**16, flag="--batch-size")
    lr: float | None = setting(
        None,
        f"Learning rate of gates. Unset: {', '.join(f'{row.gate_lr:g} ({name})' for name, row in BY_TOKEN.items() if row.gates)}.",
        above=0,
        flag="--lr",
    )
    seed: int = setting(0, "Seed of the order of a gate's examples.", at_least=0, at_most=MOST_SEED, flag="--seed")
    subtract: list[str] | None = setting(
        None,
        """General LoRAs (folders) whose average is subtracted from each of the others first, factor by factor, as GenKnowSub does.
        Unset: none.""",
        reads=True,
        flag="--subtract",
        metavar="FOLDER,...",
        repeated=True,
    )

    def refuse_idle(self, given: Iterable[str]) -> None:
        """Raise ConfigError where one of the settings that were given, be it by its default value, changes nothing with the method."""
        own, gates = self.own_settings, BY_TOKEN[self.method].gates
        for name in given:
            if name in OF_CHOICE and name not in own:
                raise ConfigError(
                    f"{name} is {getattr(self, name)!r}, but with method {self.method!r} tokens attend to all adapters: leave it out"
                )
            if name in OF_GATES and not gates:
                gated = " or ".join(repr(other) for other, row in BY_TOKEN.items() if row.gates)
                raise ConfigError(
                    f"{name} is {getattr(self, name)!r}, but method {self.method!r} trains no gates: use method {gated}, or leave it out"
                )

    @property
    def own_settings(self) -> dict[str, object]:
        """The settings of the method's own, for `AdapterConfig.router`."""
        own = BY_TOKEN[self.method].settings
        return {} if own is None else {name: getattr(self, name) for name in settings_of(own)}
