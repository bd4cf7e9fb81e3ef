"""Prompt templates: what a model reads and ranks, from every reader, and what is wrong with a template."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mhr.data import load_tasks
from mhr.data.forms.glue import GLUE
from mhr.data.masked import MASK, text_of_pieces
from mhr.data.templates import packaged_templates, read_templates
from mhr.errors import ConfigError, DataError
from tests.glue import write_glue


@pytest.fixture
def template(tmp_path: Path) -> Any:
    def write(text: str) -> str:
        file = tmp_path / "prompts.yaml"
        file.write_text(text, "utf-8")
        return str(file)

    return write


def collection(tmp_path: Path, *rows: dict[str, Any], task: str = "sst2") -> str:
    file = tmp_path / f"{task}.jsonl"
    file.write_text("".join(json.dumps({"split": "train", **row}) + "\n" for row in rows))
    return str(file)


def test_rows_are_put_into_words_by_their_own_columns(tmp_path: Path, template: Any) -> None:
    path = collection(
        tmp_path, {"sentence": "a fine film", "targets": 1, "n": None}, {"sentence": "dull", "targets": "0", "n": 3}
    )
    prompts = template('input: "{sentence} ({task}{n}) {{x}} It was"\nverbalizers: {"0": terrible, "1": great}')
    train = load_tasks(path, template=prompts)["sst2"].train
    assert [e.input for e in train] == ["a fine film (sst2) {x} It was", "dull (sst23) {x} It was"]
    assert [e.targets for e in train] == [("great",), ("terrible",)]
    assert {e.choices for e in train} == {("terrible", "great")}


def test_choices_have_a_template_of_their_own(tmp_path: Path, template: Any) -> None:
    row = {"question": "2 + 2", "targets": 1, "choices": ["three", "four"]}
    path = collection(tmp_path, row, task="sums")
    prompts = template('tasks: {"su*": {input: "{question} =", choice: "{choice}!"}}\ninput: "{input}"')
    (example,) = load_tasks(path, template=prompts)["sums"].train
    assert (example.input, example.targets, example.choices) == ("2 + 2 =", ("four!",), ("three!", "four!"))


def test_a_column_map_gives_fields_our_names_too(tmp_path: Path, template: Any) -> None:
    path = collection(tmp_path, {"question": "why", "answer": "so"})
    found = load_tasks(
        path, column_map={"input": "question", "targets": "answer"}, template=template('input: "{input} {question}?"')
    )
    assert found["sst2"].train[0].input == "why why?"


def test_a_task_without_a_template_is_read_as_it_is(tmp_path: Path, template: Any) -> None:
    rows = [{"input": "as it is", "targets": "so", "task": task} for task in ("sst2", "mnli")]
    found = load_tasks(collection(tmp_path, *rows), template=template("tasks: {mnli: {input: x}}"))
    assert [task.train[0].input for task in found.values()] == ["as it is", "x"]


def test_a_template_that_fits_no_task_is_told(tmp_path: Path, template: Any) -> None:
    path = collection(tmp_path, {"input": "as it is", "targets": "so"})
    with pytest.raises(ConfigError, match=r"prompts.yaml: none of its tasks 'sts2', 'm\*' is in .*did you mean 'sst2'"):
        load_tasks(path, template=template('tasks: {sts2: {input: x}, "m*": {input: x}}'))


def test_own_columns_of_a_row_are_reached_whatever_its_form(tmp_path: Path, template: Any) -> None:
    path = collection(tmp_path, {"instruction": "add", "input": "1 2", "output": "3"})
    found = load_tasks(path, template=template('input: "{instruction}|{input}|{output}"'))["sst2"].train[0]
    assert (found.input, found.targets) == ("add|1 2|3", ("3",))


def test_collections_that_are_no_rows_take_templates(template: Any) -> None:
    prompts = template('tasks: {min-box: {input: "Q {input} A", choice: "{choice}."}}')
    plain, put = (load_tasks("builtin:skills", template=t) for t in (None, prompts))
    for before, after in zip(plain["min-box"].test, put["min-box"].test, strict=True):
        assert after.input == f"Q {before.input} A"
        assert after.targets == tuple(f"{t}." for t in before.targets)
        assert after.choices == tuple(f"{c}." for c in before.choices)
    assert put["rev-last"].test == plain["rev-last"].test


@pytest.mark.parametrize("layout", ["rows", "superni"])
@pytest.mark.parametrize("offered", [True, False], ids=["choices", "no choices"])
@pytest.mark.parametrize("choice", ["{choice}", "{choice}."])
@pytest.mark.parametrize("words", ["", "\nverbalizers: {good: fine, bad: awful}"], ids=["labels", "words"])
def test_every_layout_is_put_into_the_same_words(
    tmp_path: Path, template: Any, layout: str, offered: bool, choice: str, words: str
) -> None:
    """Targets are among the choices, where there are choices."""
    labels = ("good", "bad")
    if layout == "rows":
        offer = {"choices": list(labels)} if offered else {}
        rows = [{"input": f"x{i}", "targets": labels[i % 2], **offer, "task": "task1_x"} for i in range(8)]
        path = collection(tmp_path, *rows)
    else:
        instances = [{"id": f"{i}", "input": f"x{i}", "output": [labels[i % 2]]} for i in range(8)]
        known = {"Definition": ["Say."], "Categories": ["c"], "Positive Examples": [], "Instances": instances}
        (tmp_path / "tasks").mkdir()
        (tmp_path / "tasks" / "task1_x.json").write_text(json.dumps(known))
        path = str(tmp_path)
    put = load_tasks(path, template=template(f'input: "Q {{input}}"\nchoice: "{choice}"{words}'), definitions=False)
    (task,) = put.values()
    said = [choice.replace("{choice}", {"good": "fine", "bad": "awful"}[c] if words else c) for c in labels]
    for example in (*task.train, *task.test):
        assert example.targets[0] in said
        assert set(example.choices) == (set(said) if words or example.choices else set())
        assert not example.choices or example.targets[0] in example.choices


def test_packaged_templates_have_words_for_their_labels(tmp_path: Path) -> None:
    assert packaged_templates() == ["glue", "lm-bff"]
    found = read_templates("glue")
    sst2 = found.of("glue-sst2")
    assert sst2 is not None
    assert sst2.render_input({"sentence": "fine"}) == "fine It was"
    assert tuple(sst2.verbalizers.values()) == ("terrible", "great")
    assert found.of("squad") is None
    path = collection(tmp_path, {"sentence": "fine", "targets": "positive"})
    assert load_tasks(path, template="glue")["sst2"].train[0].choices == ("terrible", "great")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('input: "{sentense} It was"', r"prompts.yaml: unknown field \{sentense\} in input: did you mean 'sentence'"),
        ('tasks: {sst2: {input: "{sentnce}"}}', r"prompts.yaml, task 'sst2': unknown field \{sentnce\} in input"),
        ('input: x\nchoice: "{choise}"', r"unknown field \{choise\} in choice: did you mean 'choice'"),
        ("input: x\nverbalisers: {a: b}", r"unknown key 'verbalisers': did you mean 'verbalizers'"),
        ("input: x\nverbalizers: {postive: great}", r"no verbalizer for label 'positive': did you mean 'postive'"),
        ("input: x\nverbalizers: {a: great, b: great}", "two verbalizers are the same word"),
        ("input: x\nverbalizers: {a: great}\nchoice: it", r"leaves \{choice\} out"),
        ('input: "{sentence.}"', "expected plain fields"),
        ('input: "{0}"', "expected plain fields"),
        ('input: "{sentence!r}"', "expected plain fields"),
        ('input: "{sentence"', "expected plain fields"),
        ("input: 3", "input is 3, expected a string"),
        ("input: [", r"prompts.yaml, line 1: "),
        ("input: x\ninput: y", r"prompts.yaml, line 2: key 'input' is given twice"),
        ("tasks:\n  sst2: {input: x}\n  sst2: {input: y}", r"prompts.yaml, line 3: key 'sst2' is given twice"),
        ('input: x\nverbalizers: {0: a, "0": b}', r"prompts.yaml, line 2: key '0' is given twice"),
        ("input: x\n? [a]\n: y", r"prompts.yaml, line 2: a key is no name"),
        ("input: " + "[" * 5000, "prompts.yaml"),
        ("input: " + "1" * 5000, "has a value that cannot be read"),
        ("input: 2024-02-31", "has a value that cannot be read"),
        ("", "prompts.yaml is empty: expected templates"),
        ("- a", "expected templates"),
        ("tasks: [a]", "tasks is a list"),
        ("tasks: {sst2: x}", "task 'sst2': expected input, choice, verbalizers, got 'x'"),
        ("verbalizers: {a: 3}", "expected a word for each label"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(tmp_path: Path, template: Any, text: str, said: str) -> None:
    path = collection(tmp_path, {"sentence": "fine", "targets": "positive"})
    with pytest.raises(ConfigError, match=said) as caught:
        load_tasks(path, template=template(text))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "label", ["yes", "no", "on", "off", "true", "null", "~", "1", "01", "0.10", "1e3", "1_000", "2024-01-02"]
)
def test_a_label_needs_no_quotation_marks(tmp_path: Path, template: Any, label: str) -> None:
    path = collection(tmp_path, *({"sentence": "fine", "targets": own} for own in (label, "other")))
    prompts = template(f'\ufeffinput: "{{sentence}}"\nverbalizers: {{{label}: great, other: terrible}}')
    train = load_tasks(path, template=prompts)["sst2"].train
    assert [(e.targets, e.choices) for e in train] == [((w,), ("great", "terrible")) for w in ("great", "terrible")]


@pytest.mark.parametrize("word", ["yes", "no", "on", "off", "Yes", "NO"])
def test_words_that_older_yaml_takes_for_booleans_are_words(tmp_path: Path, template: Any, word: str) -> None:
    path = collection(tmp_path, *({"sentence": "fine", "targets": own} for own in "ab"))
    prompts = template(f'input: "{{sentence}}"\nverbalizers: {{a: {word}, b: maybe}}')
    assert load_tasks(path, template=prompts)["sst2"].train[0].choices == (word, "maybe")


def test_a_template_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read the templates in .*nowhere.yaml"):
        read_templates(str(tmp_path / "nowhere.yaml"))
    with pytest.raises(ConfigError, match="no templates called 'gleu': did you mean 'glue'"):
        read_templates("gleu")


def test_class_labels_of_a_data_set_are_found_by_their_names(tmp_path: Path) -> None:
    import datasets

    features = datasets.Features(
        {"sentence": datasets.Value("string"), "label": datasets.ClassLabel(names=["negative", "positive"])}
    )
    table = datasets.Dataset.from_dict({"sentence": ["fine", "dull"], "label": [1, 0]}, features=features)
    withheld = datasets.Dataset.from_dict({"sentence": ["new"], "label": [-1]}, features=features)
    datasets.DatasetDict({"train": table, "test": withheld}).save_to_disk(str(tmp_path / "sst2"))
    tasks = load_tasks(tmp_path / "sst2", column_map={"targets": "label"}, template="glue")
    assert tasks.notes[0] == "sst2: the labels of split 'test' are withheld, so it was left out"
    found = tasks["sst2"].train
    assert [(e.input, e.targets, e.choices) for e in found] == [
        ("fine It was", ("great",), ("terrible", "great")),
        ("dull It was", ("terrible",), ("terrible", "great")),
    ]


def test_nested_columns_and_own_columns_of_a_form_are_fields(tmp_path: Path):
    rows = [
        {"instruction": "Add.", "input": "1 2", "output": "3", "of": {"who": "ann", "all": ["x", "y"], "none": None}},
        {"instruction": "Sub.", "input": "", "output": "1", "of": {"who": "bob", "all": ["z", "w"], "none": None}},
    ]
    (tmp_path / "sums_train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = tmp_path / "words.yaml"
    words.write_text('input: "{of.who}{of.none}/{of.all.1}: {instruction} [{input}]"\n')
    found = load_tasks(tmp_path / "sums_train.jsonl", template=str(words))["sums"].train
    assert [e.input for e in found] == ["ann/y: Add. [1 2]", "bob/w: Sub. []"]
    words.write_text('input: "{of.whom}"\n')
    with pytest.raises(ConfigError, match=r"unknown field \{of.whom\} in input"):
        load_tasks(tmp_path / "sums_train.jsonl", template=str(words))


def test_what_a_prompt_template_wrote_is_no_conversation(tmp_path: Path):
    turns = [{"role": "user", "content": "why?"}, {"role": "assistant", "content": "so."}]
    (tmp_path / "x_train.jsonl").write_text(json.dumps({"messages": turns}) + "\n")
    words = tmp_path / "words.yaml"
    words.write_text('input: "Q {input}"\n')
    (example,) = load_tasks(tmp_path / "x_train.jsonl", template=str(words))["x"].train
    assert (example.input, example.messages) == ("Q why?", ())


def test_a_prompt_and_verbalizers_need_no_file(tmp_path: Path, template: Any) -> None:
    path = collection(tmp_path, {"sentence": "fine", "targets": "pos"}, {"sentence": "dull", "targets": "neg"})
    told = {"prompt": "{sentence} It was", "verbalizers": {"neg": "bad", "pos": "great"}}
    read = load_tasks(path, **told)["sst2"].train
    same = load_tasks(path, template=template('input: "{sentence} It was"\nverbalizers: {neg: bad, pos: great}'))
    assert read == same["sst2"].train
    assert [(e.input, e.targets, e.choices) for e in read][:1] == [("fine It was", ("great",), ("bad", "great"))]
    assert load_tasks(path, prompt="{sentence}!")["sst2"].train[0].input == "fine!"
    with pytest.raises(ConfigError, match="leave one out"):
        load_tasks(path, template=template('input: "{sentence}"'), **told)


@pytest.mark.parametrize("label", [1, "1"])
@pytest.mark.parametrize("words", [{"neg": "bad", "pos": "great"}, {"pos": "great", "neg": "bad"}])
def test_a_number_means_no_place_among_verbalizers(tmp_path: Path, label: int | str, words: dict[str, str]) -> None:
    told = {"prompt": "{sentence} It was", "verbalizers": words}
    with pytest.raises(ConfigError, match="no verbalizer for label '1': known: "):
        load_tasks(collection(tmp_path, {"sentence": "fine", "targets": label}), **told)
    offering = collection(tmp_path, {"sentence": "fine", "targets": label, "choices": ["neg", "pos"]})
    (example,) = load_tasks(offering, **told)["sst2"].train
    assert (example.targets, example.choices) == (("great",), ("bad", "great"))


WORDS = "{neg: bad, pos: great, nag: no}"


@pytest.mark.parametrize(
    "text",
    [
        f'input: "{{sentence}}"\nverbalizers: {WORDS}',
        f'tasks: {{sst2: {{input: "{{sentence}}", verbalizers: {WORDS}}}}}',
        f'tasks: {{other: {{input: x}}, "s*": {{input: "{{sentence}}", verbalizers: {WORDS}}}}}\ninput: "{{input}}"',
    ],
    ids=["of all tasks", "of a task", "of a pattern"],
)
def test_verbalizers_of_no_label_are_refused(tmp_path: Path, template: Any, text: str) -> None:
    rows = [{"sentence": "fine", "targets": "pos"}, {"sentence": "dull", "targets": "neg"}]
    path = collection(tmp_path, *rows)
    with pytest.raises(ConfigError, match=r"verbalizer of 'nag', which is no label in .*did you mean 'neg'"):
        load_tasks(path, template=template(text))


def test_verbalizers_of_collections_that_are_no_rows_are_of_their_labels(template: Any) -> None:
    labels = load_tasks("builtin:orders")
    name, choices = next((task.name, task.choices) for task in labels.values() if task.choices)
    words = {label: f"w{i}" for i, label in enumerate([*choices, "none of them"])}
    text = json.dumps({"tasks": {name: {"input": "{input}", "verbalizers": words}}})
    with pytest.raises(ConfigError, match="verbalizer of 'none of them', which is no label in builtin:orders"):
        load_tasks("builtin:orders", template=template(text))


def test_a_label_that_is_offered_and_a_template_without_rows_are_no_fault(tmp_path: Path, template: Any) -> None:
    rows = [{"sentence": "fine", "targets": "pos"}, {"sentence": "dull", "targets": "neg"}]
    words = {"neg": "bad", "pos": "great", "nag": "no"}
    # A label that rows offer and none has is one all the same.
    unread = template(f'tasks: {{mnli: {{input: "{{x}}", verbalizers: {WORDS}}}}}\ninput: "{{sentence}}"')
    assert load_tasks(collection(tmp_path, *rows), template=unread)["sst2"].train[0].choices == ()
    offered = collection(tmp_path, *({**row, "choices": ["neg", "pos", "nag"]} for row in rows), task="offered")
    assert load_tasks(offered, prompt="{sentence}", verbalizers=words)["offered"].train[0].choices == (
        "bad",
        "great",
        "no",
    )


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('input: "{sentence} {mask} {mask}"', r"\{mask\} stands 2 times in input and 0 times in choice"),
        ('input: "{sentence} {mask}"\nchoice: "{choice} {mask}"', r"\{mask\} stands 1 times in input and 1 times"),
        ('input: "It is {mask}"', r"has no field but \{mask\}"),
        ('input: "{sentence}"\nchoice: "{mask}"', r"\{mask\} stands 0 times in input and 1 times in choice"),
    ],
)
def test_a_mask_stands_once_and_beside_a_field(tmp_path: Path, template: Any, text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        load_tasks(collection(tmp_path, {"sentence": "x", "targets": "a"}), template=template(text))


def test_a_row_whose_fields_are_all_empty_has_no_input(tmp_path: Path) -> None:
    path = collection(tmp_path, {"sentence": "", "targets": "a"})
    with pytest.raises(DataError, match="has an empty input by its template"):
        load_tasks(path, prompt="{sentence} It was {mask}.")


def test_collections_that_are_no_rows_get_masks_too() -> None:
    tasks = load_tasks("builtin:orders", prompt="{task}: {input} {mask}")
    example = next(iter(tasks.values())).train[0]
    assert example.pieces[-1] == MASK
    assert example.input == text_of_pieces(example.pieces)
    assert example.pieces[0].text == example.task


def test_packaged_prompts_with_a_mask_are_those_of_the_paper(tmp_path: Path) -> None:
    path = collection(tmp_path, {"premise": "It rains", "hypothesis": "it is wet", "targets": "neutral"}, task="mnli")
    (example,) = load_tasks(path, template="lm-bff")["mnli"].train
    assert (example.input, example.choices) == ("It rains? {mask}, it is wet", ("Yes", "Maybe", "No"))
    assert read_templates("lm-bff").masked
    assert not read_templates("glue").masked


def test_packaged_prompts_with_a_mask_read_the_layout_of_glue(tmp_path: Path) -> None:
    tasks = load_tasks(write_glue(tmp_path / "glue"), template="lm-bff")
    masked = {name: task for name, task in tasks.items() if task.train[0].pieces}
    assert sorted(masked) == ["cola", "mnli", "mrpc", "qnli", "qqp", "rte", "sst2"]
    for name, task in masked.items():
        assert len(task.choices) == len(GLUE[name].labels)
        assert {e.choices for e in [*task.train, *task.test]} == {task.choices}
        assert task.metrics == GLUE[name].metrics
    assert masked["sst2"].choices == (
        "terrible",
        "great",
    )  # in the order of GLUE's label numbers, by which F1 finds the positive one
    assert masked["mrpc"].choices == ("No", "Yes")
