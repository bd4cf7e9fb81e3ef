"""Answer by heads: the class, the choice or the number that the head of an example's task gives."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from mhr.data.example import Example, Task
from mhr.data.head_collator import places_of
from mhr.data.labels import check_answers
from mhr.data.tokens import pad
from mhr.errors import DataError
from mhr.evaluation.batching import in_batches
from mhr.evaluation.loaded import LoadedModel
from mhr.evaluation.ranked import Ranked
from mhr.objectives.classification import scores_at
from mhr.task_heads import CLASSIFY, RANK, REGRESS, TaskHead


def check_headed(loaded: LoadedModel, task: Task, examples: Sequence[Example], split: str) -> str | None:
    """Why the heads of a model cannot answer the examples of a task, or None.

    Raises DataError where the task has a head, and examples have choices or targets that are not among its answers.
    """
    assert loaded.heads is not None
    numbers = {loaded.head_for(example) for example in examples}
    if None in numbers:
        return f"the model has no head for it: adapt the model to it, or evaluate {', '.join(map(repr, list(loaded.heads.tasks)[:3]))}"
    for number in numbers:
        assert number is not None
        head = loaded.heads.heads[number]
        if head.kind == RANK and not all(example.choices for example in examples):
            return "has no choices to rank"
        if head.kind == CLASSIFY:
            for example in examples:
                other = next((choice for choice in example.choices if choice not in head.labels), None)
                if other is not None and other not in example.targets:
                    raise DataError(
                        f"example {example.id!r} of task {task.name!r} has the choice {other!r:.40}, which is none of the classes that "
                        f"the task was trained on: {', '.join(map(repr, head.labels[:10]))}"
                    )
        check_answers(task, head, examples, split)
    return None


def head_of_examples(loaded: LoadedModel, examples: Sequence[Example]) -> TaskHead:
    """The head that answers the examples of a task, which `check_headed` has passed."""
    number = loaded.head_for(examples[0])
    assert loaded.heads is not None
    assert number is not None
    return loaded.heads.heads[number]


def ask_heads(
    loaded: LoadedModel,
    examples: Sequence[Example],
    max_length: int,
    batch_size: int | None,
    unseen: str,
    advance: Callable[[float], None],
) -> list[Ranked]:
    """What the heads say of the examples: a score of each choice, in the order of `options`, or one number.

    Raises TaskError for a task without a head.
    """
    assert loaded.heads is not None
    numbers = [loaded.heads.of(loaded.task or e.task, e.choices) for e in examples]
    collator = loaded.collator(max_length, 2)
    encoded, scored = collator.encode(examples, numbers)
    device = loaded.device

    def score(batch: list[int]) -> list[list[float]]:
        rows = [row for i in batch for row in dict.fromkeys(scored[i].rows)]
        at = {row: position for position, row in enumerate(rows)}
        tasks = [examples[i].task for i in batch for _ in dict.fromkeys(scored[i].rows)]
        ids, mask = loaded.pad([encoded.ids[row] for row in rows])
        inputs = {"input_ids": ids, "attention_mask": mask}
        if encoded.types is not None:
            inputs["token_type_ids"] = pad([encoded.types[row] for row in rows], 0)[0].to(device)
        with loaded.routing(tasks, unseen):
            logits = loaded.model(**inputs).logits
        moved = [replace(scored[i], rows=[at[row] for row in scored[i].rows]) for i in batch]
        places = {name: tensor.to(device) for name, tensor in places_of(moved).items()}
        found, _ = scores_at(logits, places["rows"], places["columns"])
        return [row[: len(scored[i].rows)] for i, row in zip(batch, found.tolist(), strict=True)]

    def done(batch: list[int]) -> None:
        advance(len(batch))

    sizes = [sum(len(encoded.ids[row]) for row in dict.fromkeys(s.rows)) for s in scored]
    scores = in_batches(score, sizes, device=device, batch_size=batch_size, done=done)
    return [
        _ranked(loaded.heads.heads[number], example, own, any(encoded.cut[row] for row in where.rows))
        for number, example, own, where in zip(numbers, examples, scores, scored, strict=True)
    ]


def _ranked(head: TaskHead, example: Example, scores: list[float], cut: bool) -> Ranked:
    if head.kind == REGRESS:
        return Ranked(scores, cut, False, (), "regression")
    if head.kind == RANK:
        return Ranked(scores, cut, False, example.choices)
    by_label = dict(zip(head.labels, scores, strict=True))
    same = by_label.keys() == set(example.choices)
    options = example.choices if same else head.labels  # as they stand in the example, where it has them
    return Ranked([by_label[option] for option in options], cut, False, options, "classification")
