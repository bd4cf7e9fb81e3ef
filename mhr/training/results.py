"""What a training leaves: the adapter or the model, and which step it is of."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from mhr.adapters import checkpoint_of, collapse, plain_checkpoint, save_adapter, write_adapter
from mhr.files import writing_folder
from mhr.runs.run import RunFolder
from mhr.training.trainer import RoutedTrainer


def best_of(run: RunFolder, trainer: RoutedTrainer) -> dict[str, Any] | None:
    """The best validation of a run: its step, and the loss and score there; None where nothing was validated."""
    step = trainer.state.best_global_step
    if trainer.validation is None or step is None:
        return None
    found = run.validations()[step]
    kept = trainer.config.keep_best
    return {
        "step": step,
        "loss": found["loss"],
        "score": found["score"],
        "by": trainer.config.best_by or "loss",
        "kept": kept,
    }


def save_result(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, run: RunFolder, base: str, step: int
) -> None:
    """Write what was trained: the adapter, its average where the run ended in that, or the whole model where there is none.
    step: after which it is."""
    config = run.config()
    info: dict[str, Any] = {"run": run.path.name, "step": step}
    if config.ends_in_mu:
        assert config.adapter is not None
        checkpoint = checkpoint_of(model, base)
        info["average_of"] = config.adapter.to_dict()
        write_adapter(replace(plain_checkpoint(collapse(checkpoint, None)), info=info), run.adapter)
        return
    if hasattr(model, "mhr"):
        save_adapter(model, run.adapter, base=base, info=info)
        return
    with writing_folder(run.model) as folder:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
