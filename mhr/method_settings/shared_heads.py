"""Settings of routing whose first heads are the same for all tasks. This module imports no torch."""

from __future__ import annotations

from dataclasses import dataclass

from mhr.errors import ConfigError
from mhr.setting import Settings, setting


@dataclass
class SharedHeadsSettings(Settings):
    """How many heads tasks have in common."""

    shared: int = setting(1, "Heads, the first ones, that all tasks share; the others are each task's own.", at_least=1)

    def check_heads(self, n_heads: int) -> None:
        """Raise ConfigError where tasks would have no head of their own in a bank of so many."""
        if self.shared >= n_heads:
            raise ConfigError(
                f"router.shared is {self.shared}, but the bank has n_heads {n_heads}, so that no head is a task's own: use at most "
                f"{n_heads - 1}"
                if n_heads > 1
                else f"n_heads is {n_heads}, but with shared heads there is at least one more, which is each task's own: use 2 or more"
            )
