"""Optimizers by their names in transformers.Trainer: which package one needs, and which parameters keep states of 32 bits."""

from __future__ import annotations

from importlib.util import find_spec

from torch import Tensor, nn
from torch.optim import Optimizer

from mhr.errors import ConfigError
from mhr.layers import AdapterBank
from mhr.runs.train_settings import BITSANDBYTES_OPTIMIZERS, TORCHAO_OPTIMIZERS

PACKAGES = {
    **dict.fromkeys(BITSANDBYTES_OPTIMIZERS, "bitsandbytes"),
    **dict.fromkeys(TORCHAO_OPTIMIZERS, "torchao"),
}
"""Optimizer -> the package that has it, where that is not torch or transformers."""


def transformers_name(optimizer: str) -> str:
    """The name that Trainer has for an optimizer of the settings."""
    return {"adamw": "adamw_torch"}.get(optimizer, optimizer)


def check_optimizer(optimizer: str) -> None:
    """Raise ConfigError where the package of an optimizer is not installed."""
    package = PACKAGES.get(optimizer)
    if package is not None and find_spec(package) is None:
        raise ConfigError(
            f"optimizer is {optimizer!r}, which needs the package {package}, and it is not installed: pip install {package}, or "
            "use adamw"
        )


def keep_wide_states(optimizer: Optimizer, model: nn.Module) -> None:
    """Give routing logits, and embeddings as Trainer does, states of 32 bits where the optimizer is one of bitsandbytes: their
    gradients are sparse, of a row or a few at a step, and a block of 8-bit states has one scale for all of its rows."""
    if not type(optimizer).__module__.startswith("bitsandbytes"):
        return
    from bitsandbytes.optim import GlobalOptimManager

    bank = getattr(model, "mhr", None)
    wide: list[Tensor] = list(bank.router_parameters()) if isinstance(bank, AdapterBank) else []
    wide += [m.weight for m in model.modules() if isinstance(m, nn.Embedding) and m.weight.requires_grad]
    manager = (
        GlobalOptimManager.get_instance()
    )  # one a process, by the ids of parameters, which those of another run may have had
    for parameter in model.parameters():
        manager.pid2config.pop(id(parameter), None)
    manager.override_config(wide, "optim_bits", 32)
