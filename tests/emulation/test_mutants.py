"""The planted bugs of mutants.py are still in the kernels' text; whether they are noticed is what `make mutants` asks."""

from __future__ import annotations

from tests.emulation.emulator import ROOT
from tests.emulation.mutants import MUTANTS


def test_every_mutant_has_its_line() -> None:
    texts = {path.name: path.read_text() for path in (ROOT / "csrc" / "cuda").iterdir()}
    lost = [m.name for m in MUTANTS if m.old not in texts[m.file] or m.old == m.new]
    assert not lost, f"the text to change is gone: {lost}"
    assert len({m.name for m in MUTANTS}) == len(MUTANTS)
