"""The benchmark of context-mhr takes steps that train."""

from __future__ import annotations

import pytest

pytest.importorskip("mhr_benchmarks")

from mhr_benchmarks import contexts
from mhr_benchmarks.train import Setting


@pytest.mark.parametrize("method", [name for name in contexts.METHODS if name != "mhr"])
def test_both_methods_take_a_step(
    method: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(contexts, "small", lambda width: Setting(width, 1, 4, contexts.VOCABULARY, 8, 8, 4))
    monkeypatch.setattr("sys.argv", ["contexts", "--method", method, "--width", "32", "--rounds", "4"])
    contexts.main()
    said = capsys.readouterr().out
    assert f"{method} / mhr: " in said
    assert "4 rounds" in said
