"""Adapter folders as runs: those that a user's own loop saved with `mhr.adapters.save_adapter`, PEFT Poly, and PEFT LoRA and IA3."""

from __future__ import annotations

from mhr.adapters.checkpoint import is_adapter, read_adapter
from mhr.adapters.importing.formats import ForeignBank, reads_bank
from mhr.adapters.importing.source import ForeignPath
from mhr.adapters.open import read_bank
from mhr.adapters.peft import is_peft, load_peft
from mhr.adapters.peft_poly import is_poly, numbered
from mhr.adapters.plain import plain_checkpoint


@reads_bank(
    "mhr-adapter", "an adapter folder that mhr.adapters.save_adapter wrote", lambda source: is_adapter(source.path)
)
def read_ours(source: ForeignPath) -> ForeignBank:
    bank = read_adapter(source.path)
    steps = bank.info.get("step")
    return ForeignBank(bank, steps=steps if isinstance(steps, int) and not isinstance(steps, bool) else None)


@reads_bank("peft-poly", "a PEFT Poly folder", lambda source: is_poly(source.path))
def read_poly(source: ForeignPath) -> ForeignBank:
    return ForeignBank(read_bank(source.path))


@reads_bank("peft", "a PEFT LoRA or IA3 folder", lambda source: is_peft(source.path))
def read_plain(source: ForeignPath) -> ForeignBank:
    return ForeignBank(plain_checkpoint(load_peft(source.path), numbered(1)[0]))
