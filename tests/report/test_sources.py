"""What a report reads, what it calls it, and what it refuses, each with one line."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from mhr.errors import CheckpointError, DataError, MhrError
from mhr.report.report import write_report
from mhr.report.sources import read_sources
from tests.report.material import a_run, adaptations, an_evaluation, rows

ROW = {"task": "rev-last", "mode": "z", "method": "mhr", "seed": 1, "metric": "exact_match", "value": 0.5}


def test_runs_with_the_evaluations_in_their_folders(tmp_path: Path) -> None:
    mhr, poly = a_run(tmp_path / "mhr"), a_run(tmp_path / "poly", "poly")
    an_evaluation(mhr / "evaluation", {"rev-last": 0.5, "tail-place": 0.25})
    an_evaluation(poly / "scores", {"rev-last": 0.75, "tail-place": 0.5})
    found = read_sources([mhr, poly])
    assert list(found.groups) == ["MHR, pretrained", "Poly, pretrained"]
    assert found.scores.of("Poly, pretrained", "tail-place") == {None: 0.5}
    assert found.scores.majority == {"rev-last": 0.1, "tail-place": 0.1}
    assert found.groups["MHR, pretrained"].trained == 1000
    assert found.notes == []


def test_adaptations_are_one_contestant_with_its_seeds(tmp_path: Path) -> None:
    folder = adaptations(tmp_path / "z", {"tail-place": {1: 0.5, 2: 0.7}, "rotl-second": {1: 0.1, 2: 0.3}})
    found = read_sources([folder])
    assert list(found.groups) == ["MHR-z, 2 shots"]
    assert found.scores.of("MHR-z, 2 shots", "tail-place") == {"1": 0.5, "2": 0.7}
    assert len(found.groups["MHR-z, 2 shots"].runs) == 4


def test_different_numbers_of_shots_are_told_as_a_range(tmp_path: Path) -> None:
    scores = {"tail-place": {1: 0.5}, "rotl-second": {1: 0.1}, "min-box": {1: 0.1}}
    folder = adaptations(tmp_path / "z", scores, shots={"rotl-second": 8, "min-box": 5})
    assert list(read_sources([folder]).groups) == ["MHR-z, 2 to 8 shots"]
    table = rows(
        tmp_path / "t.jsonl", *(ROW | {"task": f"t{n}", "shots": n} for n in (32, 50, 8)), ROW | {"mode": "mu"}
    )
    assert read_sources([table]).scores.contestants == ["MHR-z, 8 to 50 shots", "MHR-mu"]


def test_equal_names_are_told_apart_by_their_folders(tmp_path: Path) -> None:
    a, b = a_run(tmp_path / "a"), a_run(tmp_path / "b")
    assert list(read_sources([a, b]).groups) == ["MHR, pretrained", f"MHR, pretrained ({b})"]


def test_an_adapted_run_on_another_task_is_transfer(tmp_path: Path) -> None:
    folder = adaptations(tmp_path / "z", {"tail-place": {1: 0.5}})
    an_evaluation(folder / "tail-place" / "1" / "others", {"rotl-second": 0.2})
    found = read_sources([folder])
    assert found.scores.tasks == ["tail-place"]
    assert [(s.trained_on, s.task, s.value) for s in found.scores.transfer] == [("tail-place", "rotl-second", 0.2)]


def test_tables_of_scores(tmp_path: Path) -> None:
    content = [ROW, ROW | {"seed": 2, "value": 0.7}, ROW | {"mode": "mu"}, ROW | {"metric": "seconds", "value": 9.0}]
    table = rows(tmp_path / "sweep.jsonl", *content)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(content), tmp_path / "sweep.parquet")
    for path in (table, tmp_path / "sweep.parquet"):
        found = read_sources([path])
        assert found.scores.contestants == ["MHR-z", "MHR-mu"]
        assert found.scores.of("MHR-z", "rev-last") == {"1": 0.5, "2": 0.7}
        left_out, seeds = found.notes
        assert left_out == f"{path}: left out: 1 row of metrics that are not known ('seconds')"
        assert seeds.endswith("differences are over those in common: MHR-z has 1, 2; MHR-mu has 1.")


@pytest.mark.parametrize("order", [1, -1])
def test_of_several_metrics_the_first_of_a_task_gives_its_score(tmp_path: Path, order: int) -> None:
    values = {"exact_match": 0.5, "nist": 3.25, "rouge_l": 0.75}
    content = [ROW | {"seed": seed, "metric": m, "value": v} for m, v in values.items() for seed in (1, 2)][::order]
    alone = ROW | {"task": "alone", "metric": "nist", "value": 2.0}
    found = read_sources([rows(tmp_path / "t.jsonl", *content, alone)])
    main = "exact_match" if order == 1 else "rouge_l"  # nist is never a score
    assert found.scores.metric("rev-last") == main
    assert found.scores.of("MHR-z", "rev-last") == {"1": values[main], "2": values[main]}
    assert {m: found.scores.measured("MHR-z", "rev-last", m) for m in values} == {m: [v, v] for m, v in values.items()}
    (note,) = found.notes
    assert note.endswith("left out: 1 row of metrics that are no score ('nist'), on tasks without another")


def test_contestants_of_a_table_have_names_of_their_own(tmp_path: Path) -> None:
    table = rows(tmp_path / "t.jsonl", *(ROW | {"mode": mode} for mode in ("z", "first", "second", "third")))
    assert read_sources([table]).scores.contestants == ["MHR-z", "MHR", "MHR (second)", "MHR (third)"]


def test_a_sweep(tmp_path: Path) -> None:
    row = {
        "run": "mhr",
        "mode": "z",
        "task": "x",
        "seed": 13,
        "status": "done",
        "method": "mhr",
        "shots": 32,
        "trained": 192,
        "collection": "builtin:skills",
    }
    row |= {"protocol": "held-out", "score": 0.5, "accuracy": None, "exact_match": 0.5, "majority": 0.1, "n": 100}
    content = [row, row | {"score": 0.75}, row | {"run": "other"}, row | {"seed": 42, "status": "failed"}]
    rows(tmp_path / "results.jsonl", *content)
    (tmp_path / "sweep.json").write_text("{}")
    found = read_sources([tmp_path])
    assert found.scores.contestants == ["MHR-z, 32 shots", "MHR-z, 32 shots (other)"]
    assert found.scores.of("MHR-z, 32 shots", "x") == {"13": 0.75}  # tried again: the last row counts
    assert (found.groups["MHR-z, 32 shots"].protocol, found.groups["MHR-z, 32 shots"].trained) == ("held-out", 192)
    assert found.scores.metric("x") == "exact_match"
    assert found.notes == [f"{tmp_path / 'results.jsonl'}: left out: 1 unit that failed"]
    assert set(found.collections.values()) == {"builtin:skills"}
    rows(tmp_path / "results.jsonl", row | {"status": "failed"})
    assert "no scores but 1 unit that failed: its column error says why; mhr sweep --resume" in refused(tmp_path)
    (tmp_path / "results.jsonl").unlink()
    assert "without results yet" in refused(tmp_path)


@pytest.mark.parametrize("cut", [1, 20, -8, -1])
def test_a_sweep_that_is_at_work_or_was_killed(cut: int, tmp_path: Path) -> None:
    """A truncated row, be it inside a letter, is none yet; what was asked for and has no row is said, unit by unit."""
    row = {"run": "mhr", "mode": "z", "task": "x", "seed": 13, "status": "done", "method": "mhr", "score": 0.5}
    units = [["mhr", mode, task, seed] for mode, task in (("z", "x"), ("z", "é"), ("mu", "x")) for seed in (13, 42)]
    (tmp_path / "sweep.json").write_text(json.dumps({"units": units}))
    lines = [json.dumps(row | {"seed": seed, "task": task, "status": status}, ensure_ascii=False).encode() + b"\n"
             for task, seed, status in (("x", 13, "done"), ("x", 42, "failed"), ("é", 13, "done"))]  # fmt: skip
    (tmp_path / "results.jsonl").write_bytes(b"".join(lines[:2]) + lines[2][:cut])
    found = read_sources([tmp_path])
    assert found.scores.of("MHR-z", "x") == {"13": 0.5}
    assert found.notes == [
        f"{tmp_path}: 4 of the 6 units of the sweep are missing, such as mhr/z/é/13: go on with mhr sweep --resume",
        f"{tmp_path / 'results.jsonl'}: left out: 1 unit that failed",
    ]
    (tmp_path / "results.jsonl").write_bytes(b"".join(lines))
    assert read_sources([tmp_path]).notes[0].startswith(f"{tmp_path}: 3 of the 6 units of the sweep are missing")


def test_a_study(tmp_path: Path) -> None:
    measures = {"category": "rev", "n": 100, "score": 0.5, "accuracy": 0.5, "majority": 0.2}
    study = {
        "plan": {},
        "scores": {"zero-shot mhr": {"x": {"None": measures}}, "32-shot mhr-z": {"x": {"13": measures}}},
        "runs": {"adapted mhr-z": {"parameters": {"trained": 192}}, "pretrained mhr": {"parameters": {"trained": 7}}},
    }
    (tmp_path / "study.json").write_text(json.dumps(study))
    found = read_sources([tmp_path / "study.json"])
    assert found.scores.of("32-shot mhr-z", "x") == {"13": 0.5}
    assert found.scores.of("zero-shot mhr", "x") == {None: 0.5}
    assert [group.trained for group in found.groups.values()] == [7, 192]


def test_different_collections_are_compared_where_they_meet(tmp_path: Path) -> None:
    a = an_evaluation(tmp_path / "a" / "e", {"x-1": 0.5, "x-2": 0.5}, source="first")
    b = an_evaluation(tmp_path / "b" / "e", {"x-2": 0.6, "x-3": 0.6}, source="second")
    notes = read_sources([a, b]).notes
    assert notes[0] == "The runs are of different task collections: first, second."
    assert notes[1].startswith("Contestants are compared on the 1 tasks that all of them were judged on")
    c = an_evaluation(tmp_path / "c" / "e", {"y": 0.6}, source="third")
    assert "not ranked" in read_sources([a, b, c]).notes[1]


def test_what_is_unfinished_or_not_evaluated_is_said(tmp_path: Path) -> None:
    run = a_run(tmp_path / "mhr")
    told = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(told | {"status": "interrupted"}))
    notes = read_sources([run]).notes
    assert "is not done (status interrupted)" in notes[0]
    assert notes[1] == f"{run} has no scores: mhr evaluate {run} --output {run / 'evaluation'}"
    an_evaluation(run / "e", {"rev-last": 1.0}, split="train")
    assert any("judges the train split: left out" in note for note in read_sources([run]).notes)


def test_uneven_numbers_of_examples_are_said(tmp_path: Path) -> None:
    a, b = an_evaluation(tmp_path / "a" / "e", {"x": 0.5}), an_evaluation(tmp_path / "b" / "e", {"x": 0.6})
    told = json.loads((b / "evaluation.json").read_text())
    told["tasks"]["x"]["n"] = 20
    (b / "evaluation.json").write_text(json.dumps(told))
    assert "different numbers of examples, as on x" in read_sources([a, b]).notes[-1]


def test_how_contestants_were_asked_is_said_where_it_differs(tmp_path: Path) -> None:
    a = an_evaluation(tmp_path / "a" / "e", {"x": 0.5}, settings={"shots": 4, "seed": 0})
    b = an_evaluation(tmp_path / "b" / "e", {"x": 0.6}, settings={"task": "y", "n_beams": 3})
    c = an_evaluation(tmp_path / "c" / "e", {"x": 0.6}, settings={"shots": 0})
    told = "Contestants were evaluated in different ways: model a: 4 shots by seed 0; model b: routed as y, 3 beams."
    assert told in read_sources([a, b, c]).notes
    d = an_evaluation(tmp_path / "d" / "e", {"x": 0.6}, settings={"shots": 4, "seed": 0})
    assert read_sources([a, d]).notes == []
    run = a_run(tmp_path / "run")
    an_evaluation(run / "evaluation", {"x": 0.5}, settings={"protocol": "held-out"})
    usual = an_evaluation(tmp_path / "e" / "e", {"x": 0.5}, settings={"protocol": None})
    assert read_sources([run, usual]).notes == []


def refused(*paths: Path) -> str:
    with pytest.raises(MhrError) as fault:
        read_sources(paths)
    line = str(fault.value)
    assert "\n" not in line
    return line


def test_what_cannot_be_reported(tmp_path: Path) -> None:
    assert refused().startswith("no run is named")
    assert "no such file or folder" in refused(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    assert "it holds nothing" in refused(tmp_path / "empty")
    run = a_run(tmp_path / "runs" / "mhr")
    assert re.search(r"is no run but holds 1: name them, as in .*runs/mhr", refused(tmp_path / "runs"))
    assert "given twice, first as" in refused(run, run.parent / "." / ".." / "runs" / "mhr")
    (tmp_path / "notes.txt").write_text("x")
    assert "is nothing to report" in refused(tmp_path / "notes.txt")
    (tmp_path / "other.json").write_text('{"a": 1}')
    assert "its keys are a" in refused(tmp_path / "other.json")
    (tmp_path / "cut.json").write_text('{"a":')
    assert "is no valid JSON" in refused(tmp_path / "cut.json")
    (tmp_path / "study.json").write_text('{"plan": {}, "scores": [1]}')
    assert "study.json is no study: its scores are [1], expected an object" in refused(tmp_path / "study.json")


def test_seeds_of_one_task_are_no_contestants(tmp_path: Path) -> None:
    folder = adaptations(tmp_path / "z", {"rev-last": {1: 0.5, 2: 0.7}})
    assert refused(folder / "rev-last") == (
        f"{folder / 'rev-last'} holds the adaptations to one task: name {folder}, which holds those to all, and their seeds"
    )


def test_two_evaluations_of_a_run_are_named(tmp_path: Path) -> None:
    run = a_run(tmp_path / "mhr")
    an_evaluation(run / "evaluation", {"rev-last": 0.5})
    again = an_evaluation(run / "evaluation2", {"rev-last": 0.5})
    told = refused(run)
    assert told.startswith(f"{again / 'evaluation.json'}: two scores for MHR, pretrained on task 'rev-last': give each")
    assert told.endswith("an evaluation inside a run's folder is found by itself")


@pytest.mark.parametrize("score", [float("nan"), float("inf"), 85.0, "high", None])
def test_a_score_that_is_none_is_refused_before_anything_is_written(score: object, tmp_path: Path) -> None:
    folder = an_evaluation(tmp_path / "a" / "e", {"x": 0.5})
    told = json.loads((folder / "evaluation.json").read_text())
    told["tasks"]["x"]["score"] = score
    (folder / "evaluation.json").write_text(json.dumps(told))
    with pytest.raises(DataError, match=f"task 'x' has score {score!r}: expected a number of at most 1"):
        write_report([folder], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_tables_that_are_no_tables(tmp_path: Path) -> None:
    def table(*content: dict[str, object]) -> Path:
        return rows(tmp_path / "t.jsonl", *content)

    lacking = {key: value for key, value in ROW.items() if key != "seed"}
    assert re.search(
        r"t.jsonl:2: no 'seed': a table of scores has the columns task, mode", refused(table(ROW, lacking))
    )
    assert "value is 'high', expected a number" in refused(table(ROW | {"value": "high"}))
    assert "holds no scores but 1 row of metrics that are not known ('seconds'): expected" in refused(
        table(ROW | {"metric": "seconds"})
    )
    told = "t.jsonl:2: two scores for MHR-z on task 'rev-last', seed 1, by exact_match, the first in row 1"
    assert told in refused(table(ROW, ROW))
    assert "value is 71.2, expected a value of exact_match of at most 1" in refused(table(ROW | {"value": 71.2}))
    (tmp_path / "t.jsonl").write_text("{")
    assert "t.jsonl:1: no valid JSON" in refused(tmp_path / "t.jsonl")
    (tmp_path / "t.parquet").write_text("PAR1")
    assert "is no readable Parquet file" in refused(tmp_path / "t.parquet")


def test_an_evaluation_without_scores(tmp_path: Path) -> None:
    folder = an_evaluation(tmp_path / "a" / "e", {"x": 0.5})
    told = json.loads((folder / "evaluation.json").read_text())
    del told["tasks"]["x"]["score"]
    (folder / "evaluation.json").write_text(json.dumps(told))
    with pytest.raises(DataError, match="task 'x' has no score"):
        read_sources([folder])


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        (
            "study.json",
            {"plan": {}, "scores": {"a": {"t": 3}}},
            "or what it names, is not as this version of mhr writes it",
        ),
        (
            "study.json",
            {"plan": {}, "scores": {"a": {}}, "runs": None},
            "or what it names, is not as this version of mhr writes it",
        ),
        (
            "demo.json",
            {"trained": {"a": 3}},
            r"or what it names, is not as this version of mhr writes it \(KeyError: 'scores'\)",
        ),
        (
            "adapt.json",
            {"runs": [{"task": "t"}]},
            r"or what it names, is not as this version of mhr writes it \(KeyError: 'path'\)",
        ),
        ("inspection.json", {"alignment": [{"step": 3}]}, "alignment is .* expected points with step and mean"),
        ("inspection.json", {"alignment": [3]}, "alignment is .* expected points with step and mean"),
        ("evaluation.json", {"split": "test", "tasks": {"t": {"score": 1, "majority": "x"}}}, "has majority 'x'"),
        ("evaluation.json", {"split": "test", "tasks": {"t": {"score": 1, "n": [3]}}}, r"and n \[3\]: expected"),
        ("evaluation.json", {"split": "test", "tasks": {"t": {"score": 1, "n": True}}}, "and n True: expected"),
    ],
)
def test_a_file_that_was_changed_is_told_in_one_line(
    name: str, content: dict[str, object], told: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_text(json.dumps(content))
    with pytest.raises(DataError, match=f"{name}.*{told}") as caught:
        write_report([tmp_path / name], tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_sweep_that_was_changed_is_told_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "sweep.json").write_text('{"units": [1]}')
    (tmp_path / "results.jsonl").write_text("")
    with pytest.raises(
        DataError, match=r"sweep.json, or what it names, is not as this version of mhr writes it \(TypeError"
    ):
        read_sources([tmp_path])


def test_adaptations_that_never_ran(tmp_path: Path) -> None:
    (tmp_path / "adapt.json").write_text('{"runs": [{"path": "x/1"}]}')
    with pytest.raises(CheckpointError, match="lists 1 adaptations and holds none"):
        read_sources([tmp_path])


def test_what_was_left_out_and_skipped_is_noted(tmp_path: Path) -> None:
    left_out = {"alone": "it has no choices", "other": "it has no training examples"}
    run = a_run(tmp_path / "run", left_out=left_out, skipped=["skipped checkpoint-40: model.safetensors is damaged"])
    folder = adaptations(tmp_path / "z", {"tail-place": {1: 0.5}})
    described = json.loads((folder / "adapt.json").read_text())
    (folder / "adapt.json").write_text(json.dumps(described | {"left_out": {"alone": "it has no choices"}}))
    notes = read_sources([run, folder]).notes
    assert f"{run}: task 'alone' was left out: it has no choices" in notes
    assert f"{run}: task 'other' was left out: it has no training examples" in notes
    assert f"{run}: skipped checkpoint-40: model.safetensors is damaged" in notes
    assert f"{folder}: task 'alone' was left out: it has no choices" in notes
