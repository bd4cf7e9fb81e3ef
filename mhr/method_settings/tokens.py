"""Settings of methods that route each token by itself. This module imports no torch."""

from __future__ import annotations

from dataclasses import dataclass

from mhr.setting import Settings, setting


@dataclass
class TokenSettings(Settings):
    """How many LoRAs a token takes, and how it shares itself out among them."""

    top_k: int = setting(2, "LoRAs that each token takes, those of its highest scores.", at_least=1)
    temperature: float = setting(
        1.0, "What scores are divided by before the softmax over those that are taken.", above=0
    )
