"""Prompt templates: how an example's columns become the text a model reads, and its labels the words a model ranks.

A YAML (or JSON) file, or the name of a packaged one:

    tasks:                                     # by name or pattern ("*mnli*"); the first that fits
      sst2:
        input: "{sentence} It was"             # {input}, {task} and the columns of the row, nested ones by dots; {{ is a brace;
                                               # {mask} is where a masked language model answers, "{sentence} It was {mask}."
        choice: "{choice}."                    # {choice} is a label's word; default "{choice}"
        verbalizers: {negative: terrible, positive: great}
    input: "{input}"                           # for all other tasks; so are choice and verbalizers

Without verbalizers labels are their own words. With them, rows without choices are ranked among all words, and labels that
are numbers are found as strings ("0"). `input` and `verbalizers` of all tasks may also be given without a file. After Gao et al. 2021 (LM-BFF, arXiv 2012.15723).
"""

from __future__ import annotations

import string
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from importlib import resources
from pathlib import Path
from typing import Any

from mhr.data.columns import MISSING, look_up
from mhr.data.example import Example, Task, TaskCollection
from mhr.data.masked import MASK, MASK_FIELD, Piece, stripped, text_of_pieces
from mhr.errors import ConfigError, nearest
from mhr.yaml_text import read_mapping

KEYS = ("input", "choice", "verbalizers")


@dataclass(frozen=True, slots=True)
class Template:
    """How one task, or a collection of them, is put into words.

    origin  the file and task, or the settings, for error lines
    used    labels that rows were found to have
    """

    input: str = "{input}"
    choice: str = "{choice}"
    verbalizers: dict[str, str] = field(default_factory=dict)
    origin: str = ""
    used: set[str] = field(default_factory=set, compare=False)

    @property
    def masked(self) -> bool:
        """Whether a masked language model is to answer."""
        return MASK_FIELD in fields_of(self.input)

    def render_input(self, columns: Mapping[str, Any]) -> str:
        """The input of an example with these columns. Raises ConfigError for a field that is none of them."""
        return text_of_pieces(self._pieces("input", self.input, columns))

    def render_pieces(self, columns: Mapping[str, Any]) -> tuple[Piece, ...]:
        """The same piece by piece where it has a mask, and nothing otherwise."""
        return self._pieces("input", self.input, columns) if self.masked else ()

    def render_choice(self, label: str, columns: Mapping[str, Any]) -> str:
        """A label as it is ranked and trained on. Raises ConfigError for a label without a word, and for an unknown field."""
        if self.verbalizers and label not in self.verbalizers:
            raise ConfigError(f"{self.origin}: no verbalizer for label {label!r}: {nearest(label, self.verbalizers)}")
        word = self.verbalizers.get(label, label)
        return text_of_pieces(self._pieces("choice", self.choice, {**columns, "choice": word}))

    def _pieces(self, what: str, text: str, columns: Mapping[str, Any]) -> tuple[Piece, ...]:
        written = []
        for literal, name, _, _ in string.Formatter().parse(text):
            written.append(Piece(literal))
            if name is None:
                continue
            if name == MASK_FIELD:
                written.append(MASK)
                continue
            value = look_up(columns, name)
            if value is MISSING:
                raise ConfigError(f"{self.origin}: unknown field {{{name}}} in {what}: {nearest(name, columns)}")
            written.append(Piece("" if value is None else str(value), "field"))
        return stripped(written)


class Templates:
    """The templates of a file, by task."""

    def __init__(self, by_task: dict[str, Template], other: Template | None):
        self.by_task = by_task
        self.other = other

    @property
    def every(self) -> list[Template]:
        """All of them."""
        return [*self.by_task.values(), *([] if self.other is None else [self.other])]

    @property
    def masked(self) -> bool:
        """Whether a masked language model is to answer some task."""
        return any(template.masked for template in self.every)

    def of(self, task: str) -> Template | None:
        """The template of a task: by its name, by the first pattern that fits it, or the one for all other tasks."""
        found = (template for pattern, template in self.by_task.items() if fnmatchcase(task, pattern))
        return self.by_task.get(task) or next(found, self.other)


def packaged_templates() -> list[str]:
    """Names of the packaged templates."""
    folder = resources.files("mhr.data").joinpath("prompts")
    return sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml"))


def read_templates(name: str) -> Templates:
    """The templates in a file, or the packaged ones of a name. Raises ConfigError for what cannot be read or has no meaning."""
    if Path(name).suffix in (".yaml", ".yml", ".json"):
        try:
            text = Path(name).read_text("utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "it is no text in UTF-8"
            raise ConfigError(f"cannot read the templates in {name}: {reason}") from None
    elif name in packaged_templates():
        text = resources.files("mhr.data").joinpath("prompts", f"{name}.yaml").read_text("utf-8")
    else:
        raise ConfigError(
            f"no templates called {name!r}: {nearest(name, packaged_templates())} A file ends in .yaml or .json"
        )
    expected = "templates such as 'input: \"{input} Answer:\"'"
    values = read_mapping(text, name, expected)
    if not values:
        raise ConfigError(f"{name} is empty: expected {expected}")
    tasks = values.pop("tasks", {})
    if not isinstance(tasks, dict):
        raise ConfigError(f"{name}: tasks is a {type(tasks).__name__}, expected a template for each task")
    by_task = {task: _template(found, f"{name}, task {task!r}") for task, found in tasks.items()}
    return Templates(by_task, _template(values, name) if values else None)


def given_templates(prompt: str | None, verbalizers: Mapping[str, str] | None) -> Templates:
    """The template of all tasks that the settings `prompt` and `verbalizers` make. Raises ConfigError for what has no meaning."""
    values: dict[str, Any] = {"verbalizers": dict(verbalizers or {})}
    return Templates({}, _template(values | ({} if prompt is None else {"input": prompt}), "prompt"))


def fields_of(text: str) -> list[str]:
    """The names of the fields in a template. Raises ValueError for one that is not a plain name in braces."""
    names = []
    for _, name, how, conversion in string.Formatter().parse(text):
        if name is None:
            continue
        plain = all(part.replace("_", "a").replace("-", "a").isalnum() for part in name.split("."))
        if how or conversion or not plain or name[0].isdigit():
            raise ValueError(name)
        names.append(name)
    return names


def _template(values: Any, origin: str) -> Template:
    if not isinstance(values, dict):
        raise ConfigError(f"{origin}: expected {', '.join(KEYS)}, got {values!r:.60}")
    for key in values:
        if key not in KEYS:
            raise ConfigError(f"{origin}: unknown key {key!r}: {nearest(str(key), KEYS)}")
    texts = {key: values.get(key, f"{{{key}}}") for key in ("input", "choice")}
    for key, text in texts.items():
        if not isinstance(text, str) or not text.strip():
            raise ConfigError(f"{origin}: {key} is {text!r:.60}, expected a string with fields such as {{{key}}}")
        try:
            fields_of(text)
        except ValueError as error:
            raise ConfigError(
                f"{origin}: {key} {text!r:.60}: expected plain fields such as {{{key}}}, and {{{{ or }}}} for a brace "
                f"({error or 'a field without a name'})"
            ) from None
    masks = fields_of(texts["input"]).count(MASK_FIELD)
    if masks > 1 or MASK_FIELD in fields_of(texts["choice"]):
        raise ConfigError(
            f"{origin}: {{mask}} stands {masks} times in input and {fields_of(texts['choice']).count(MASK_FIELD)} times in choice, "
            "expected once, in input: there is one answer"
        )
    if masks and len(fields_of(texts["input"])) == 1:
        raise ConfigError(
            f"{origin}: input {texts['input']!r:.60} has no field but {{mask}}, so that all inputs are the same: add one, such as "
            "{input}"
        )
    words = values.get("verbalizers") or {}
    if not isinstance(words, dict) or not all(isinstance(w, str) and w.strip() for w in words.values()):
        raise ConfigError(
            f"{origin}: verbalizers is {words!r:.60}, expected a word for each label, as in {{'0': terrible}}"
        )
    if len(set(words.values())) < len(words):
        raise ConfigError(f"{origin}: two verbalizers are the same word: labels must differ")
    if words and "choice" not in fields_of(texts["choice"]):
        raise ConfigError(
            f"{origin}: choice {texts['choice']!r:.60} leaves {{choice}} out, so that all choices are the same"
        )
    return Template(texts["input"], texts["choice"], {str(k): w for k, w in words.items()}, origin)


def check_used(templates: Templates, origin: str | None, collection: TaskCollection) -> None:
    """Raise ConfigError where not one task of a collection has a template."""
    if len(collection) and not any(templates.of(task) for task in collection):
        raise ConfigError(
            f"{origin}: none of its tasks {', '.join(map(repr, list(templates.by_task)[:6]))} is in "
            f"{collection.source}: {nearest(next(iter(templates.by_task), ''), collection)}"
        )


def check_labels(templates: Templates, collection: TaskCollection) -> None:
    """Raise ConfigError for a verbalizer of a label that no row of a collection has, in a template that rows were put into words by."""
    for template in templates.every:
        for label in template.verbalizers:
            if template.used and label not in template.used:
                raise ConfigError(
                    f"{template.origin}: verbalizer of {label!r}, which is no label in {collection.source}: "
                    f"{nearest(label, sorted(template.used))}"
                )


def reword(collection: TaskCollection, templates: Templates) -> TaskCollection:
    """A collection that was read without templates, put into words by them; {input} and {task} are its fields."""
    return collection.of([_reword(task, templates) for task in collection.values()])


def _reword(task: Task, templates: Templates) -> Task:
    template = templates.of(task.name)
    if template is None:
        return task

    def put(example: Example) -> Example:
        template.used.update(example.targets, example.choices)
        columns = {"input": example.input, "task": task.name}
        return replace(
            example,
            input=template.render_input(columns),
            targets=tuple(template.render_choice(target, columns) for target in example.targets),
            choices=tuple(template.render_choice(c, columns) for c in example.choices or template.verbalizers),
            messages=(),
            pieces=template.render_pieces(columns),
            tools=(),
        )

    train, test, validation = ([put(e) for e in part] for part in (task.train, task.test, task.validation))
    every = {e.choices for e in [*train, *test]}
    choices = every.pop() if len(every) == 1 else ()
    return replace(task, train=train, test=test, validation=validation, choices=choices)
