"""The planted bugs of mutants.py and stub/mutants.py are still in the kernels' text; whether they are noticed is what `make mutants` asks."""

from __future__ import annotations

from tests.emulation.emulator import ROOT
from tests.emulation.planted import MUTANTS
from tests.emulation.stub import mutants as launchers


def test_every_mutant_has_its_line() -> None:
    texts = {path.name: path.read_text() for path in (ROOT / "csrc" / "cuda").iterdir()}
    planted = [(m.name, m.file, m.old, m.new) for m in MUTANTS] + list(launchers.MUTANTS)
    lost = [name for name, file, old, new in planted if old not in texts[file] or old == new]
    assert not lost, f"the text to change is gone: {lost}"
    assert len({name for name, *_ in planted}) == len(planted)
