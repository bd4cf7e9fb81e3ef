"""The benchmark of routing by token times all three models."""

from __future__ import annotations

import pytest

pytest.importorskip("mhr_benchmarks")

from mhr_benchmarks import tokens
from mhr_benchmarks.train import Setting


def test_what_each_adds_is_told(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(tokens, "small", lambda width: Setting(width, 1, 4, tokens.VOCABULARY, 8, 8, 4))
    monkeypatch.setattr(tokens, "NEW_TOKENS", 2)
    monkeypatch.setattr("sys.argv", ["tokens", "--width", "32", "--rounds", "2", "--rank", "2"])
    tokens.main()
    said = capsys.readouterr().out
    assert "rank 2, one pass: frozen " in said
    assert said.count("arrow / one LoRA") == 2


def test_the_ops_by_themselves(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.argv", ["tokens", "--width", "32", "--rounds", "1", "--rank", "2", "--ops"])
    tokens.main()
    said = capsys.readouterr().out
    assert "rank 2, 1024 tokens: frozen " in said
    assert said.count("arrow / one LoRA") == 3
