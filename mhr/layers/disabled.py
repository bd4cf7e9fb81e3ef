"""The frozen base of a model with a bank, for as long as a block lasts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from mhr.layers.bank import bank_of
from mhr.layers.masters import narrow_dtype


@contextmanager
def disabled(model: nn.Module) -> Iterator[None]:
    """Inside the block the model answers as without its bank, bit for bit; the bank is kept, as in PEFT's disable_adapter.

        with mhr.disabled(model):
            reference = model(**batch).logits

    Modules that are trained whole (`modules_to_save`) have the values and the dtype that they had when the bank was attached, and ask
    for no gradient. Task ids are accepted and not used. Blocks may be nested, and an exception ends them as usual.
    Raises ConfigError for a model without a bank.
    """
    bank = bank_of(model)
    state = bank.state
    if state.disabled:
        yield
        return
    trained = [(name, tensor, tensor.data, tensor.requires_grad) for name, tensor in bank.saved_tensors().items()]
    state.disabled = True
    try:
        for name, tensor, data, _ in trained:
            tensor.requires_grad_(False)
            original = bank.originals[name]
            tensor.data = original.to(data.device, narrow_dtype(data, original))
        yield
    finally:
        state.disabled = False
        for _, tensor, data, asked in trained:
            tensor.data = data
            tensor.requires_grad_(asked)
