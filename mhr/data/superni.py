"""Super-NaturalInstructions in its original layout: a clone of allenai/natural-instructions, or a folder laid out so.

tasks/<task>.json       Definition [str], Positive Examples [{input, output}], Instances [{id, input, output [str]}]
splits/<name>/{train,test,excluded}_tasks.txt   one task a line; the test list is the held-out tasks
manifest.json           optional; its "labels" are the label set of a classification task
"""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

from mhr.data.definition_forms import after_definition
from mhr.data.example import Example, Task, TaskCollection
from mhr.data.faults import Faults, Notes, has_surrogate
from mhr.data.opening import FileFault, read_text
from mhr.data.reading import ReadOptions, finish, label_set, reads, untaught_labels
from mhr.errors import nearest

N_EVALUATION = 100
"""The first instances of every task are for evaluation and are never trained on, as upstream."""


def is_superni(path: str) -> bool:
    """Whether a folder has the layout: task files, or split lists."""
    root = Path(path)
    return root.is_dir() and ((root / "splits").is_dir() or next(root.glob("tasks/*.json"), None) is not None)


@reads(
    "superni",
    is_superni,
    "a Super-NaturalInstructions folder (tasks/*.json, splits)",
    uses=("definitions", "positives", "definition_form", "split_list"),
)
def read_superni(path: str, options: ReadOptions, faults: Faults) -> TaskCollection:
    """One Task a file, training tasks first, each list in its own order."""
    root = Path(path)
    notes = Notes()
    listed = _listed_tasks(root, options, faults, notes)
    labels = _manifest_labels(root, faults)
    tasks = []
    for name, held_out in listed.items():
        task = _read_task(root / "tasks" / f"{name}.json", held_out, labels.get(name, ()), options, faults, notes)
        if task is not None:
            tasks.append(task)
    return finish(path, tasks, notes, faults)


def _listed_tasks(root: Path, options: ReadOptions, faults: Faults, notes: Notes) -> dict[str, bool]:
    """Tasks that the split lists name, and whether each is held out; without lists, every file is a training task."""
    files = {file.stem for file in (root / "tasks").glob("*.json")}
    if options.split_list is None and not (root / "splits").is_dir():
        notes.add("there is no splits folder: every task is a training task")
        return dict.fromkeys(sorted(files), False)
    folder = root / "splits" / (options.split_list or "default")
    if not folder.is_dir():
        known = [f.name for f in (root / "splits").glob("*") if f.is_dir()]
        faults.add(folder, 0, f"no such folder of split lists: {nearest(folder.name, known)}")
        return {}
    listed: dict[str, bool] = {}
    where: dict[str, str] = {}
    for kind in ("train", "test", "excluded"):
        file = folder / f"{kind}_tasks.txt"
        if not file.is_file():
            if kind == "train":
                faults.add(file, 0, "missing: it names the training tasks, one a line")
            continue
        for line, text in enumerate((_read_text(file, faults) or "").splitlines(), 1):
            name = text.strip().removesuffix(".json")
            if not name:
                continue
            if name in where:
                faults.add(file, line, f"task {name!r} is listed twice, first at {where[name]}: keep one")
                continue
            where[name] = f"{file.name}:{line}"
            if kind == "excluded":
                continue
            if name not in files:
                faults.add(
                    file, line, f"task {name!r} has no file tasks/{name}.json: add the file or take the line out"
                )
                continue
            listed[name] = kind == "test"
    left_out = len(files - where.keys())
    if left_out:
        notes.add(f"{left_out} files of tasks/ are in no list of {folder.name} and were left out")
    return listed


def _manifest_labels(root: Path, faults: Faults) -> dict[str, tuple[str, ...]]:
    file = root / "manifest.json"
    text = _read_text(file, faults) if file.is_file() else None
    manifest = _parse(file, text, faults) if text is not None else {}
    tasks = manifest.get("tasks", []) if isinstance(manifest, dict) else []
    return {
        t["task"]: tuple(sorted(label.strip() for label in t["labels"]))
        for t in tasks
        if isinstance(t, dict) and t.get("task") and t.get("labels")
    }


def _read_task(
    file: Path, held_out: bool, labels: tuple[str, ...], options: ReadOptions, faults: Faults, notes: Notes
) -> Task | None:
    text = _read_text(file, faults)
    content = _parse(file, text, faults) if text is not None else None
    if text is None or content is None:
        return None
    instances = content.get("Instances") if isinstance(content, dict) else None
    if not isinstance(instances, list) or not instances:
        faults.add(file, 0, 'no instances: expected an object whose "Instances" is a list of {"id", "input", "output"}')
        return None
    lines = _Lines(text)
    prompt = _Prompt(file, content, options, faults, notes)
    examples: list[tuple[int, Example]] = []
    for index, instance in enumerate(instances):
        example = _example(file, instance, index, lines, prompt, faults)
        if example is not None:
            examples.append((index, example))
    blank = sum(not e.targets for _, e in examples)
    if blank:
        # The publishers allow it; there is nothing to train on, nor to compare an answer with.
        notes.add("instances whose outputs are empty strings were left out", file.stem, str(blank))
        examples = [(i, e) for i, e in examples if e.targets]
    if len(labels) == 1:
        faults.add(
            file, 0, f"the manifest gives one label, {labels[0]!r}, so that any answer is right: give at least two"
        )
    choices = labels or label_set([e for _, e in examples])
    if choices:
        examples = [(i, replace(e, choices=choices)) for i, e in examples]
        for index, example in examples:
            if example.targets[0] not in choices:
                shown = ", ".join(repr(c) for c in choices[:8])
                faults.row(
                    file,
                    lines.of(index),
                    f"instance {example.id!r}: label {example.targets[0]!r} is not among the choices {shown}",
                    file.stem,
                )
        examples = [(i, e) for i, e in examples if e.targets[0] in choices]
    first_train = max(N_EVALUATION, options.limit_test)
    test = [e for i, e in examples if i < options.limit_test]
    rest = [e for i, e in examples if i >= first_train]
    untaught = {} if labels or not choices else untaught_labels(rest, test=test)
    train = options.cap(file.stem, rest)
    categories = content.get("Categories") or [""]
    definition = _definition(content)
    category = str(categories[0])
    return Task(file.stem, train, test, held_out, category, choices, definition=definition, untaught=untaught)


def _example(file: Path, instance: Any, index: int, lines: _Lines, prompt: _Prompt, faults: Faults) -> Example | None:
    def bad(message: str) -> Example | None:
        faults.row(file, lines.of(index), message, file.stem)
        return None

    if not isinstance(instance, dict):
        return bad(f'instance {index} is no object: expected {{"id", "input", "output"}}')
    name = str(instance.get("id", index))
    text, outputs = instance.get("input"), instance.get("output")
    if not isinstance(text, str) or not text.strip():
        return bad(f"instance {name!r} has no input: expected a string that is not empty")
    outputs = [outputs] if isinstance(outputs, str) else outputs
    if not isinstance(outputs, list) or not outputs or not all(isinstance(o, str) for o in outputs):
        return bad(f"instance {name!r} has no output: expected a list of strings")
    if has_surrogate(name, text, *outputs):
        return bad(f"instance {name!r} holds half of a surrogate pair, an emoji cut in two: repair the text")
    targets = tuple(dict.fromkeys(o.strip() for o in outputs if o.strip()))
    return Example(file.stem, prompt(text), targets, (), name)


def _definition(content: dict[str, Any]) -> str:
    """What a task file says that the task asks for; empty where it says nothing."""
    found = content.get("Definition")
    found = found[0] if isinstance(found, list) and found else found
    return found.strip() if isinstance(found, str) else ""


class _Prompt:
    """Instance input -> what the model reads: the definition, positive examples, and the input, as the options say."""

    def __init__(self, file: Path, content: dict[str, Any], options: ReadOptions, faults: Faults, notes: Notes):
        parts = []
        if options.definitions:
            definition = _definition(content)
            if definition:
                parts.append(definition)
            else:
                faults.add(
                    file, 0, 'no definition: expected "Definition" to hold a string; definitions can be turned off'
                )
        shown = (content.get("Positive Examples") or [])[: options.positives]
        if len(shown) < options.positives:
            notes.add(f"fewer positive examples than the {options.positives} asked for", file.stem, str(len(shown)))
        for number, example in enumerate(shown, 1):
            if (
                isinstance(example, dict)
                and isinstance(example.get("input"), str)
                and isinstance(example.get("output"), str)
            ):
                parts.append(f"Input: {example['input'].strip()}\nOutput: {example['output'].strip()}")
            else:
                faults.add(file, 0, f"positive example {number} lacks a string as its input or output")
        self.head, self.form = "\n\n".join(parts), options.definition_form

    def __call__(self, text: str) -> str:
        return after_definition(self.form, self.head, text.strip())


class _Lines:
    """The line on which an instance of a task file begins. The file is scanned when the first error asks for it."""

    def __init__(self, text: str):
        self.text = text
        self.starts: list[int] | None = None

    def of(self, index: int) -> int:
        if self.starts is None:
            self.starts = self._scan()
        return self.text.count("\n", 0, self.starts[index]) + 1

    def _scan(self) -> list[int]:
        # A quote inside a JSON string is escaped, so an unescaped "Instances" before a colon is the key.
        key = re.search(r'(?<!\\)"Instances"\s*:\s*\[', self.text)
        starts: list[int] = []
        assert key is not None, "asked for an instance of a file that has instances"
        position = key.end()
        decoder = json.JSONDecoder()
        while True:
            while self.text[position] in " \t\r\n,":
                position += 1
            if self.text[position] == "]":
                return starts
            starts.append(position)
            position = decoder.raw_decode(self.text, position)[1]


def _read_text(file: Path, faults: Faults) -> str | None:
    """The text of a file, or None after telling why it cannot be read."""
    try:
        return read_text(file)
    except FileFault as error:
        faults.add(file, error.line, str(error))
        return None


def _parse(file: Path, text: str, faults: Faults) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        cut = (
            " (the file seems to be truncated)"
            if error.pos >= len(text.rstrip()) or "Unterminated" in error.msg
            else ""
        )
        faults.add(file, error.lineno, f"is not valid JSON: {error.msg} at column {error.colno}{cut}")
    except RecursionError:
        faults.add(file, 0, "is not valid JSON: it is nested too deeply")
    except ValueError as error:  # an integer of more digits than Python converts
        faults.add(file, 0, f"is not valid JSON: {str(error).partition(';')[0]}")
    return None
