"""What is asked of routing by token, see `mhr.experts.route_tokens`. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass

from mhr.methods import BY_TOKEN, listed
from mhr.runs.adapt_settings import EXPERTS_OF_BANKS
from mhr.setting import Settings, as_in, setting
from mhr.token_settings import TokenSettings


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
    subtract: list[str] | None = setting(
        None,
        """General LoRAs (folders) whose average is subtracted from each of the others first, factor by factor, as GenKnowSub does.
        Unset: none.""",
        flag="--subtract",
        metavar="FOLDER,...",
        repeated=True,
    )
