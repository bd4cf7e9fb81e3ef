"""The rows of one task, and the splits that are made of them once all are read."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field, replace

from mhr.data.answers import Answers
from mhr.data.drawing import draw_order, hold_out
from mhr.data.example import Example, Task
from mhr.data.faults import Faults, Notes
from mhr.data.reading import ReadOptions, label_set, untaught_labels


@dataclass(frozen=True, slots=True)
class Unanswered:
    """A row without an answer, and the error where its answer was not withheld.

    faulty: it is missing or -1, which is a fault where other rows of its split have answers
    """

    file: str
    line: int
    message: str
    faulty: bool = False


@dataclass(slots=True)
class TaskRows:
    """Examples of one task by split ("" where rows have none), and what its rows say of it.

    metrics     those that judge it, by the form of its rows; such a task has choices only where its rows say so
    references  its targets are references, all ways to say the same: each is an example to learn from, and those of one input are
                the targets of a single example to be judged on
    """

    name: str
    splits: dict[str, list[Example]] = field(default_factory=lambda: defaultdict(list))
    unanswered: dict[str, list[Unanswered]] = field(default_factory=lambda: defaultdict(list))
    names: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    """Split -> its names in the files: train_r1 and train_r2 are both "train"."""
    answers: Answers = field(default_factory=Answers)
    held_out: bool | None = None
    category: str = ""
    metrics: tuple[str, ...] = ()
    references: bool = False
    definitions: set[str] = field(default_factory=set)
    """What its rows give as its definition; it is one where all that give any agree."""

    def add(self, split: str, named: str, example: Example) -> None:
        self.splits[split].append(example)
        self.names[split].add(named)

    def finish(self, options: ReadOptions, faults: Faults, notes: Notes) -> Task | None:
        """The task; None where nothing of it is left."""
        for split in dict.fromkeys([*self.splits, *self.unanswered]):
            self._settle(split, faults, notes)
        train, validation, test, unsplit = (self.splits.get(s, []) for s in ("train", "validation", "test", ""))
        if self.references:
            train, unsplit = _spread(train), _spread(unsplit)
            validation, test = _gathered(validation), _gathered(test)
        self._note_names(notes)
        if test and validation:
            notes.add(
                "validation examples are not judged on, since there is a test split", self.name, str(len(validation))
            )
        test, validation = (test, validation) if test else (validation, [])
        every = train + unsplit + test
        if not every:
            return None
        untaught: dict[str, tuple[str, ...]] = {}
        given = train + unsplit  # what is drawn from rows without a split is of a split that has its label
        judged = test  # all of it, so that which of its examples are drawn decides nothing about training
        train, test = self._share_out(train, unsplit, test, options, notes)
        test = _gathered(test) if self.references else test
        choices = every[0].choices if len({e.choices for e in every}) == 1 else ()
        if not self.metrics and not any(e.choices for e in every):
            choices = label_set(every)
            train, test = ([replace(e, choices=choices) for e in part] for part in (train, test))
            if choices:
                untaught = untaught_labels(given, validation=validation, test=judged)
                validation = self._of_labels(validation, choices, notes)
        if len(every) >= 10 and len({e.targets for e in every}) == 1:
            notes.add(
                "all answers are the same, so that there is nothing to learn", self.name, repr(every[0].targets[0])[:40]
            )
        validation = draw_order(validation, self.name, options.seed)
        return Task(
            self.name,
            options.cap(self.name, train),
            test,
            bool(self.held_out),
            self.category,
            choices,
            validation,
            self.metrics,
            self._definition(),
            untaught=untaught,
        )

    def _of_labels(self, validation: list[Example], choices: tuple[str, ...], notes: Notes) -> list[Example]:
        """Validation examples with these choices: a label that no other split has is none of the task's."""
        kept = [replace(e, choices=choices) for e in validation if e.targets[0] in choices]
        if len(kept) < len(validation):
            what = "validation examples with a label that no other split has were left out"
            notes.add(what, self.name, str(len(validation) - len(kept)))
        return kept

    def _definition(self) -> str:
        given = self.definitions - {""}
        return next(iter(given)) if len(given) == 1 else ""

    def _share_out(
        self, train: list[Example], unsplit: list[Example], test: list[Example], options: ReadOptions, notes: Notes
    ) -> tuple[list[Example], list[Example]]:
        """Training and evaluation examples. The latter stand in drawn order, so that the first N of them are a fair sample."""
        if test:
            most = options.limit_test if options.max_test is None else options.max_test
            drawn = draw_order(test, self.name, options.seed)[:most]
            if len(drawn) < len(test):
                what = f"examples for evaluation were drawn from its test split by seed {options.seed}, each label by its share"
                notes.add(what, self.name, f"{len(drawn)} of {len(test)}")
            return train + unsplit, drawn
        if not unsplit:
            notes.add("there is no test split, so no examples for evaluation", self.name)
            return train, []
        # As many as a fifth, so that a small task keeps most of its examples to learn from.
        left, drawn = hold_out(unsplit, min(options.limit_test, len(unsplit) // 5), self.name, options.seed)
        what = f"there is no test split, so examples for evaluation were drawn from its rows by seed {options.seed}"
        notes.add(what, self.name, f"{len(drawn)} of {len(unsplit)}")
        trained = {e.input for e in (*train, *left)}
        repeated = sum(e.input in trained for e in drawn)
        if repeated:
            notes.add(
                "inputs repeat, so examples for evaluation have inputs that are trained on", self.name, str(repeated)
            )
        return train + left, drawn

    def _settle(self, split: str, faults: Faults, notes: Notes) -> None:
        """What becomes of the rows of a split that have no answer."""
        examples, unanswered = self.splits.get(split, []), self.unanswered.get(split, [])
        withheld = all(e.targets == ("-1",) for e in examples)
        if withheld and split in ("validation", "test"):
            notes.add(f"the labels of split {split!r} are withheld, so it was left out", self.name)
            self.splits.pop(split, None)
            return
        empty = [row for row in unanswered if not row.faulty]
        for row in unanswered:
            if row.faulty or not examples:
                faults.row(row.file, row.line, row.message, self.name)
        if withheld and len(examples) > 1:
            faults.add(self.name, 0, f"every answer of its {len(examples)} rows is -1: the labels seem to be withheld")
        if empty and examples:
            notes.add("rows whose answer is empty were left out", self.name, str(len(empty)))

    def _note_names(self, notes: Notes) -> None:
        for split, what in (("train", "are trained on"), ("validation", "are judged on"), ("test", "are judged on")):
            names = sorted(self.names.get(split, ()))
            if len(names) > 1 and not any(e.part for e in self.splits[split]):  # parts are judged apart
                notes.add(f"splits {', '.join(names)} {what} together", self.name)


def _spread(examples: list[Example]) -> list[Example]:
    """An example for each reference."""
    return [replace(example, targets=(target,)) for example in examples for target in example.targets]


def _gathered(examples: list[Example]) -> list[Example]:
    """An example for each input, in the place of its first one, with the references of all."""
    by_input: dict[str, list[Example]] = defaultdict(list)
    for example in examples:
        by_input[example.input].append(example)
    return [
        replace(same[0], targets=tuple(dict.fromkeys(t for e in same for t in e.targets))) for same in by_input.values()
    ]
