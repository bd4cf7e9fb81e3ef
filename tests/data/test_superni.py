from __future__ import annotations

import json
from pathlib import Path

import pytest

from mhr.data import Faults, load_tasks
from mhr.errors import DataError
from tests.data.conftest import SuperNI, instances


def strict(root: Path, **options: object) -> str:
    """The line of the first error."""
    with pytest.raises(DataError) as error:
        load_tasks(root, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_lists_say_what_is_held_out(superni: SuperNI):
    tasks = load_tasks(superni({"a": instances(3), "b": instances(3), "c": instances(3)}, ["c", "a"], ["b"]))
    assert list(tasks) == ["c", "a", "b"]
    assert list(tasks.held_out()) == ["b"]
    assert tasks["a"].category == "Questions"


def test_the_first_hundred_are_for_evaluation_whatever_the_limit(superni: SuperNI):
    root = superni({"a": instances(130)})
    for limit in (20, 100):
        task = load_tasks(root, limit_test=limit)["a"]
        assert [e.id for e in task.test] == [f"x-{i}" for i in range(limit)]
        assert [e.id for e in task.train] == [f"x-{i}" for i in range(100, 130)]
    task = load_tasks(root, limit_test=110)["a"]
    assert (len(task.test), len(task.train)) == (110, 20)


def test_max_train_draws_by_seed(superni: SuperNI):
    root = superni({"a": instances(150)})
    draws = [[e.id for e in load_tasks(root, max_train=8, seed=seed)["a"].train] for seed in (0, 0, 1)]
    assert draws[0] == draws[1] != draws[2]
    assert len(draws[0]) == 8


def test_prompts(superni: SuperNI):
    root = superni({"a": instances(1)})
    assert load_tasks(root, definitions=False)["a"].test[0].input == "question 0"
    assert load_tasks(root)["a"].test[0].input == "Answer a.\n\nInput: question 0\nOutput:"
    both = load_tasks(root, positives=1)
    assert both["a"].test[0].input == "Answer a.\n\nInput: is it?\nOutput: yes\n\nInput: question 0\nOutput:"
    assert load_tasks(root, positives=2).notes == ["a (1): fewer positive examples than the 2 asked for"]


def test_the_published_prompt(superni: SuperNI):
    root = superni({"a": instances(1)})
    published = "Task definition: Answer a.\nNow complete the following example -\nInput: question 0\nOutput:"
    assert load_tasks(root, definition_form="published")["a"].test[0].input == published
    assert load_tasks(root, definition_form="published", definitions=False)["a"].test[0].input == "question 0"


def test_few_distinct_outputs_are_a_label_set(superni: SuperNI):
    free = [{"id": f"y-{i}", "input": "q", "output": [f"answer {i}"]} for i in range(40)]
    tasks = load_tasks(superni({"a": instances(40), "b": free}))
    assert tasks["a"].choices == ("no", "yes")
    assert {e.choices for e in tasks["a"].test} == {("no", "yes")}
    assert tasks["b"].choices == ()


def test_labels_of_the_first_hundred_that_training_lacks(superni: SuperNI):
    """A manifest says that they are labels all the same."""
    content = instances(130)
    content[7]["output"] = ["maybe"]
    root = superni({"a": content})
    task = load_tasks(root)["a"]
    assert (task.choices, task.untaught) == (("maybe", "no", "yes"), {"test": ("maybe",)})
    (root / "manifest.json").write_text(
        json.dumps({"tasks": [{"task": "a", "labels": {"yes": 3, "no": 2, "maybe": 1}}]})
    )
    assert load_tasks(root)["a"].untaught == {}


def test_the_manifest_says_the_label_set(superni: SuperNI):
    root = superni({"a": instances(5)})
    manifest = {"tasks": [{"task": "a", "labels": {"yes": 3, "no": 2, "maybe": 0}}]}
    (root / "manifest.json").write_text(json.dumps(manifest))
    assert load_tasks(root)["a"].choices == ("maybe", "no", "yes")


def test_outputs_may_be_several(superni: SuperNI):
    root = superni({"a": [{"id": "1", "input": "q", "output": [" x ", "y", "x"]}, {"input": "r", "output": "z"}]})
    assert [e.targets for e in load_tasks(root)["a"].test] == [("x", "y"), ("z",)]


def test_empty_outputs_are_left_out_and_noted(superni: SuperNI):
    content = [
        {"id": "1", "input": "q", "output": ["", "x"]},
        *({"id": i, "input": "q", "output": [" "]} for i in "23"),
    ]
    tasks = load_tasks(superni({"a": content}))
    assert [(e.id, e.targets) for e in tasks["a"].test] == [("1", ("x",))]
    assert tasks.notes == ["a (2): instances whose outputs are empty strings were left out"]


def test_without_lists_every_file_is_a_training_task(superni: SuperNI):
    root = superni({"a": instances(2), "b": instances(2)})
    for file in (root / "splits" / "default").iterdir():
        file.unlink()
    (root / "splits" / "default").rmdir()
    (root / "splits").rmdir()
    tasks = load_tasks(root)
    assert list(tasks.training()) == ["a", "b"]
    assert tasks.notes == ["there is no splits folder: every task is a training task"]


def test_files_in_no_list_are_left_out_and_noted(superni: SuperNI):
    tasks = load_tasks(superni({"a": instances(2), "b": instances(2)}, ["a"]))
    assert list(tasks) == ["a"]
    assert tasks.notes == ["1 files of tasks/ are in no list of default and were left out"]


def test_a_cut_file_is_told_with_its_line(superni: SuperNI):
    root = superni({"a": instances(5)})
    file = root / "tasks" / "a.json"
    lines = file.read_text().splitlines()
    cut = next(i for i, line in enumerate(lines) if "question 3" in line)
    file.write_text("\n".join([*lines[:cut], lines[cut][:20]]))
    line = strict(root)
    assert line.startswith(f"{file}:{cut + 1}: is not valid JSON")
    assert line.endswith("(the file seems to be truncated)")


@pytest.mark.parametrize("output", [None, [], [3], {}])
def test_an_instance_without_output_is_told_with_file_line_and_id(superni: SuperNI, output: object):
    content = instances(4)
    content[2]["output"] = output
    root = superni({"a": content})
    file = root / "tasks" / "a.json"
    at = next(i for i, line in enumerate(file.read_text().splitlines(), 1) if "x-2" in line) - 1
    expected = f"{file}:{at}: instance 'x-2' has no output: expected a list of strings"
    assert strict(root) == expected


def test_the_line_is_right_when_texts_look_like_keys(superni: SuperNI):
    content = instances(3)
    content[0]["input"] = 'is "Instances": [ {} ] a key?'
    del content[1]["output"]
    root = superni({"a": content})
    file = root / "tasks" / "a.json"
    text = file.read_text().replace("Answer a.", r"Say \"Instances\": [1, 2].")
    file.write_text(text)
    at = next(i for i, line in enumerate(text.splitlines(), 1) if "x-1" in line) - 1
    assert strict(root).startswith(f"{file}:{at}: instance 'x-1' has no output")


def test_an_instance_without_input_is_told(superni: SuperNI):
    root = superni({"a": [{"id": "x", "input": " ", "output": ["y"]}]})
    assert "instance 'x' has no input" in strict(root)


def test_a_label_that_is_not_among_the_choices_is_told(superni: SuperNI):
    root = superni({"a": instances(3)})
    (root / "manifest.json").write_text(json.dumps({"tasks": [{"task": "a", "labels": {"no": 1, "maybe": 1}}]}))
    line = strict(root)
    assert line.endswith("instance 'x-0': label 'yes' is not among the choices 'maybe', 'no'")


def test_a_listed_task_without_a_file_is_told(superni: SuperNI):
    root = superni({"a": instances(2)}, ["a", "b"])
    line = strict(root)
    assert line.startswith(f"{root / 'splits' / 'default' / 'train_tasks.txt'}:2: task 'b' has no file tasks/b.json")


@pytest.mark.parametrize(("train", "test"), [(["a", "b", "a"], []), (["a", "b"], ["a"])])
def test_a_task_listed_twice_is_told(superni: SuperNI, train: list[str], test: list[str]):
    line = strict(superni({"a": instances(2), "b": instances(2)}, train, test))
    assert "task 'a' is listed twice, first at train_tasks.txt:1" in line


def test_an_unknown_list_names_the_nearest(superni: SuperNI):
    assert "did you mean 'default'?" in strict(superni({"a": instances(2)}), split_list="defalt")


def test_a_file_without_instances_or_definition_is_told(superni: SuperNI):
    root = superni({"a": []})
    assert "a.json: no instances" in strict(root)
    (root / "tasks" / "a.json").write_text(json.dumps({"Instances": instances(2)}))
    assert "a.json: no definition" in strict(root)
    assert len(load_tasks(root, definitions=False)["a"].test) == 2


def test_bytes_that_are_no_text_are_told(superni: SuperNI):
    root = superni({"a": instances(2)})
    (root / "tasks" / "a.json").write_bytes(b'{"Definition":\n ["\xff"]}')
    assert "a.json:2: byte 18 is not UTF-8" in strict(root)


def test_collecting_goes_on_after_each_fault(superni: SuperNI):
    content = instances(4)
    del content[1]["output"]
    content[3]["input"] = None
    root = superni({"a": content, "b": instances(2), "c": []}, ["a", "b", "c", "d"])
    faults = Faults(strict=False)
    tasks = load_tasks(root, faults=faults)
    assert [e.id for e in tasks["a"].test] == ["x-0", "x-2"]
    assert list(tasks) == ["a", "b"]
    assert [Path(f.file).name for f in faults.found] == ["train_tasks.txt", "a.json", "a.json", "c.json"]
    assert str(faults.found[1]).startswith(f"{root}/tasks/a.json:")


def test_a_manifest_with_one_label_is_told(superni: SuperNI):
    root = superni({"a": instances(3, ("yes",))})
    (root / "manifest.json").write_text(json.dumps({"tasks": [{"task": "a", "labels": {"yes": 3}}]}))
    assert "a.json: the manifest gives one label, 'yes', so that any answer is right" in strict(root)


def test_what_no_model_can_read_is_told(superni: SuperNI):
    content = instances(3)
    content[1]["input"] = "cut \ud83d"
    root = superni({"a": content})
    assert "instance 'x-1' holds half of a surrogate pair" in strict(root)
    tasks = load_tasks(root, on_bad_row="skip")
    assert [e.id for e in tasks["a"].test] == ["x-0", "x-2"]
    assert tasks.notes[0].startswith("faulty rows skipped: 1 (a 1), the first: ")
    for text, said in (("[" * 5000, "nested too deeply"), ("9" * 5000, "is not valid JSON: Exceeds the limit")):
        (root / "tasks" / "a.json").write_text(text)
        assert said in strict(root)
