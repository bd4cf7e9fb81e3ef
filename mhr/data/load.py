"""One door to every format: find the reader that fits a path, and read."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import mhr.data.crossfit
import mhr.data.files
import mhr.data.glue
import mhr.data.hub
import mhr.data.superni  # noqa: F401  (each registers its readers)
from mhr.data.example import TaskCollection
from mhr.data.faults import Faults
from mhr.data.orders import orders_suite
from mhr.data.reading import ReadOptions, readers, reads
from mhr.data.skills import skills_suite
from mhr.data.templates import check_labels, check_used, given_templates, packaged_templates, read_templates, reword
from mhr.errors import ConfigError, DataError, nearest


def load_tasks(
    path: str | Path,
    *,
    reader: str | None = None,
    max_train: int | None = None,
    limit_test: int = 100,
    max_test: int | None = None,
    definitions: bool = True,
    definition_form: str = "plain",
    positives: int = 0,
    column_map: Mapping[str, str] | None = None,
    split_list: str | None = None,
    subset: str | None = None,
    seed: int = 0,
    train_seed: int | None = None,
    template: str | None = None,
    prompt: str | None = None,
    verbalizers: Mapping[str, str] | None = None,
    on_bad_row: str = "error",
    faults: Faults | None = None,
) -> TaskCollection:
    """The tasks at `path`: "builtin:skills" or "builtin:orders", a Super-NaturalInstructions folder, a file of rows or a folder of them
    (`mhr.data.files`), a CrossFit folder, a folder written by datasets' save_to_disk, or the hub id of a dataset.

    reader       name of the reader, where the one found by the path is not meant
    max_train    at most this many training examples a task, drawn by `train_seed`; None keeps all (400 of builtin:skills)
    limit_test   at most this many evaluation examples a task, drawn by `seed`, each label by its share (`mhr.data.drawing`);
                 of Super-NaturalInstructions the first ones, as that benchmark defines
    max_test     as many of a test split that rows have, instead of `limit_test`, which then is of rows without a split alone: what is
                 trained on does not depend on it
    definitions  Super-NaturalInstructions: put the task's definition before each input
    definition_form  Super-NaturalInstructions: how the input follows it, one of `mhr.data.definition_forms.DEFINITION_FORMS`
    positives    Super-NaturalInstructions: put this many solved examples before each input
    column_map   rows: our column -> theirs, {"input": "question", "targets": "answers.text", "task": "subject"}
    split_list   Super-NaturalInstructions: folder of splits/ that says what is held out; None takes "default"
    subset       hub: the dataset's configuration ("sst2" of "nyu-mll/glue")
    seed         of what is drawn, and of the suite's strings
    train_seed   of the examples that `max_train` draws, where those for evaluation are to stay the same; None: `seed`
    template     prompt templates, a YAML file or a packaged name, see `mhr.data.templates`
    prompt, verbalizers    the template of all tasks without a file: its `input` and its `verbalizers`
    on_bad_row   "error" refuses a collection with a faulty row; "skip" leaves such rows out and counts them in its notes
    faults       where faults are collected; None raises a DataError on the first one (`on_bad_row` is then theirs)

    Raises DataError where nothing can be read or something is wrong with it, ConfigError for options out of range.
    """
    templates = None if template is None else read_templates(template)
    if prompt is not None or verbalizers:
        if template is not None:
            raise ConfigError(f"template is {template!r}, and prompt or verbalizers are given: leave one out")
        templates = given_templates(prompt, verbalizers)
    options = ReadOptions(
        max_train,
        limit_test,
        definitions,
        positives,
        dict(column_map or {}),
        split_list,
        subset,
        seed,
        templates,
        definition_form,
        train_seed,
        max_test,
    )
    faults = faults or Faults(on_bad_row=on_bad_row)
    reader_ = readers[reader or find_reader(str(path))]
    collection = reader_.read(str(path), options, faults)
    if templates is None:
        return collection
    check_used(templates, template, collection)
    collection = collection if reader_.words else reword(collection, templates)
    if template not in packaged_templates():  # those have all labels of their tasks, which a few rows need not have
        check_labels(templates, collection)
    return collection


def find_reader(path: str) -> str:
    """The name of the reader that recognises a path.

    Raises DataError where none does, ConfigError for an empty path and for an unknown built-in collection.
    """
    if not path.strip():
        raise ConfigError(
            "the path of the task collection is empty: expected a file, a folder, builtin:skills or builtin:orders"
        )
    try:
        asked = sorted(readers.items(), key=lambda entry: entry[1].fallback)
        found = next((name for name, reader in asked if reader.recognises(path)), None)
    except (OSError, ValueError) as error:
        where = getattr(error, "filename", None) or path
        raise DataError(f"{where}: cannot be read: {getattr(error, 'strerror', None) or error}") from None
    if found is not None:
        return found
    if path.startswith("builtin:"):
        raise ConfigError(
            f"unknown built-in collection {path!r}: {nearest(path, ['builtin:skills', 'builtin:orders'])}"
        )
    root = Path(path)
    expected = "expected " + ", or ".join(reader.layout for reader in readers.values() if reader.layout)
    if root.is_file():
        raise DataError(f"{path}: cannot tell the format of a {root.suffix or 'nameless'} file: {expected}")
    if root.is_dir():
        held = "is an empty folder" if next(root.iterdir(), None) is None else "is a folder of no known layout"
        raise DataError(f"{path}: {held}: {expected}")
    raise DataError(f"{path}: no such file or folder, and no hub id of the form owner/name")


@reads("skills", lambda path: path == "builtin:skills", "")
def _read_skills(path: str, options: ReadOptions, faults: Faults) -> TaskCollection:
    return skills_suite(options.seed, 400 if options.max_train is None else options.max_train, options.limit_test)


@reads("orders", lambda path: path == "builtin:orders", "")
def _read_orders(path: str, options: ReadOptions, faults: Faults) -> TaskCollection:
    return orders_suite(options.seed, 200 if options.max_train is None else options.max_train, options.limit_test)
