"""The real tasks, where they are at hand."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from mhr.data import load_tasks
from mhr.data.check import check_collection

ROOT = Path(os.environ.get("MHR_TASKS") or Path(__file__).parents[2].parent / "shared" / "data" / "superni")

pytestmark = [
    pytest.mark.shared_data,
    pytest.mark.skipif(
        not ROOT.is_dir(), reason=f"real tasks are absent: {ROOT} is no folder (MHR_TASKS names another)"
    ),
]


def test_every_task_loads_as_the_manifest_says():
    manifest = json.loads((ROOT / "manifest.json").read_text())
    tasks = load_tasks(ROOT)
    assert len(tasks) == manifest["tasks_total"]
    assert sum(len(t.train) + len(t.test) for t in tasks.values()) == manifest["instances_total"]
    for told in manifest["tasks"]:
        task = tasks[told["task"]]
        assert task.held_out == (told["split"] == "heldout")
        assert bool(task.choices) == (told["kind"] == "classification")
        assert len(task.test) == 100


def test_it_is_sound():
    report = check_collection(ROOT, definitions=False)
    assert report.ok
    assert (report.totals["training_tasks"], report.totals["held_out_tasks"]) == (105, 16)
    assert report.totals["duplicates_between"] == 0


def test_a_list_of_the_publishers_names_tasks_that_are_not_here():
    report = check_collection(ROOT, split_list="official")
    assert not report.ok
    assert {Path(f.file).name for f in report.faults} <= {"train_tasks.txt", "test_tasks.txt", "excluded_tasks.txt"}
