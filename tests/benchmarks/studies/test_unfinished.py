"""Studies that end on another machine than the one that they began on."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from mhr_benchmarks.studies import trials_first
from mhr_benchmarks.studies.choices import freeze
from mhr_benchmarks.studies.stages import Stages, states_of
from mhr_benchmarks.studies.trials_first import parser_of_settings, run_study
from mhr_benchmarks.studies.unfinished import hold, take_up


@dataclass(frozen=True, eq=False)
class Piece:
    folder: str
    rates: Mapping[str, Sequence[float]] = field(default_factory=dict)


def make(piece: Piece, output: Path) -> None:
    stages = Stages(output / piece.folder, {"unit": piece.folder})
    stages.state["scores"] = {"row": len(piece.folder)}
    stages.finish(piece.rates)


def test_what_is_held_is_taken_up_where_nothing_is(tmp_path: Path) -> None:
    held, first, second = tmp_path / "new" / "held.json", tmp_path / "first", tmp_path / "second"
    take_up(held, second)  # nothing is held
    for name in ("a/1", "a/2"):
        make(Piece(name), first)
    hold(held, first, ["a/1", "a/2", "a/none"])
    assert json.loads(held.read_text()).keys() == {"a/1", "a/2"}
    (second / "a" / "2").mkdir(parents=True)
    (second / "a" / "2" / "state.json").write_text('{"own": 1}')
    take_up(held, second)
    assert (second / "a" / "1" / "state.json").read_bytes() == (first / "a" / "1" / "state.json").read_bytes()
    assert json.loads((second / "a" / "2" / "state.json").read_text()) == {"own": 1}
    hold(held, first, [])
    assert not held.exists()


def test_a_piece_is_done_with_the_rates_that_are_asked_of_it(tmp_path: Path) -> None:
    make(Piece("a", {"row": (0.1,)}), tmp_path)
    Stages(tmp_path / "b", {"unit": "b"}).save()  # has only begun
    asked = [Piece("a"), Piece("a", {"row": (0.1,)}), Piece("a", {"row": (0.1, 0.3)}), Piece("a", {"other": (0.1,)})]
    assert list(states_of([*asked, Piece("b"), Piece("c")], tmp_path)) == asked[:2]


@pytest.mark.parametrize("name", ["quag", "quag_real"])
def test_another_machine_goes_on_until_the_study_is_finished(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(trials_first, "FOLDER", tmp_path / "choices")
    monkeypatch.setattr("mhr_benchmarks.studies.choices.is_committed", lambda file: True)
    held = tmp_path / "results" / f"{name}.unfinished.json"
    setting = name.partition("_")[2]
    prefix = f"{setting}/" if setting else ""
    ran: list[str] = []

    def run_all(do: object, pieces: list[Piece], output: Path, workers: int) -> None:
        for piece in pieces:
            if piece not in states_of(pieces, output):
                ran.append(piece.folder)
                make(piece, output)

    monkeypatch.setattr(trials_first, "run_all", run_all)

    def run(machine: str, *flags: str, ends: int = 2) -> str:
        """On a machine with a folder of its own. ends: the number of the seed that is not run any more."""
        parser = parser_of_settings("", ["real", "suite"] if setting else [])
        output = tmp_path / machine
        args = parser.parse_args(["--output", str(output), "--results", str(tmp_path / "results"), *flags])

        def pieces(chosen: dict[str, Any], seeds: int | None) -> list[Piece]:
            return [Piece(f"{prefix}units/{i}") for i in (1, 2)[:seeds]]

        def trials(file: Path) -> None:
            run_all(None, [Piece(f"{prefix}trials/{i}") for i in (1, 2)[: 1 if ends == 0 else 2]], output, 1)
            if ends == 0:
                raise KeyboardInterrupt
            freeze(file, {}, {"lr": 0.1})

        run_study(
            "quag",
            args,
            plan={},
            trials=trials,
            do=make,
            pieces=pieces,
            publish=lambda chosen, own: f"{len(states_of(own, output))} of {len(own)}",
        )
        return capsys.readouterr().out

    with pytest.raises(SystemExit, match="goes on where it was"):
        run("first", ends=0)
    assert "Nothing was chosen" in run("first", "--only-publish")
    assert json.loads(held.read_text()).keys() == {f"{prefix}trials/1"}
    assert "Commit it" in run("second")
    assert ran == [f"{prefix}trials/1", f"{prefix}trials/2"]
    assert run("second", "--seeds", "1") == "1 of 2\n"
    assert json.loads(held.read_text()).keys() == {f"{prefix}units/1"}
    assert run("third") == "2 of 2\n"
    assert ran[2:] == [f"{prefix}units/1", f"{prefix}units/2"]
    assert not held.exists()
