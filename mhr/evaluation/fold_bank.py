"""Fold the bank of a loaded model into its base weights, for programs that know nothing of tasks."""

from __future__ import annotations

from mhr.adapters import checkpoint_of, collapse, collapse_task, fold_into
from mhr.backbones import forget_untrained
from mhr.errors import MergeError
from mhr.evaluation.loaded import LoadedModel
from mhr.layers import detach


def fold_bank(loaded: LoadedModel) -> str:
    """Make `loaded` a plain model, in place, which is exact: its one task's mixture, that of `loaded.task`, or the average of its
    skills goes into the base weights. A model without a bank stays as it is. Returns what was folded, in words.

    Raises MergeError for adapters that cannot be folded, and for routing by token.
    """
    bank = loaded.bank
    if bank is None:
        return "none: it has no bank"
    if bank.config.routing.by_token:
        raise MergeError(
            f"{loaded.description} routes each token by itself (method {bank.config.method!r}), and no weights of a plain model do: merge its "
            "LoRAs into one with mhr merge --method uniform"
        )
    checkpoint = checkpoint_of(loaded.model, loaded.description)
    task = loaded.task or (bank.tasks[0] if len(bank.tasks) == 1 else None)
    task = task if bank.needs_tasks else None
    plain = collapse(checkpoint, None) if task is None else collapse_task(checkpoint, task)
    brought = list(bank.saved)
    detach(loaded.model)
    forget_untrained(loaded.model, brought)
    fold_into(loaded.model, plain)
    loaded.task = None
    vars(loaded).pop("heads", None)  # those of the one task are left
    if task is not None:
        return f"the mixture of task {task!r}"
    return "the average of its skills" if bank.needs_tasks else "the same for all tasks"
