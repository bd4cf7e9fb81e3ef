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


def headed(loaded: LoadedModel, task: Task, examples: Sequence[Example], split: str) -> tuple[TaskHead | None, str]:
    """The head that answers the examples of a task, and why none does, "" where one does. Of several of one kind it is the first.

    Raises DataError where the task has a head, and examples have choices or targets that are not among its answers.
    """
    heads = loaded.heads
    assert heads is not None
    numbers = {loaded.head_for(example) for example in examples}
    if None in numbers:
        known = ", ".join(map(repr, list(heads.tasks)[:3]))
        return None, f"the model has no head for it: adapt the model to it, or evaluate {known}"
    kinds = {heads.heads[number].kind for number in numbers if number is not None}
    if len(kinds) > 1:
        return None, f"its examples have heads of different kinds: {', '.join(sorted(kinds))}"
    (kind,) = kinds
    if kind == RANK and not all(example.choices for example in examples):
        return None, "has no choices to rank"
    for example in examples if kind == CLASSIFY else ():
        labels = heads.heads[heads.of(loaded.task or task.name, example.choices)].labels
        other = next((choice for choice in example.choices if choice not in labels), None)
        if other is not None and other not in example.targets:
            raise DataError(
                f"example {example.id!r} of task {task.name!r} has the choice {other!r:.40}, which is none of the classes that the task "
                f"was trained on: {', '.join(map(repr, labels[:10]))}"
            )
    for number in numbers:
        assert number is not None
        own = [example for example in examples if loaded.head_for(example) == number]
        check_answers(task, heads.heads[number], own, split)
    number = loaded.head_for(examples[0])
    return None if number is None else heads.heads[number], ""


def ask_heads(
    loaded: LoadedModel,
    examples: Sequence[Example],
    max_length: int,
    batch_size: int | None,
    unseen: str,
    advance: Callable[[float], None],
) -> list[Ranked]:
    """What the heads say of the examples: a score of each choice of an example (of each class where it has none), in the order of
    `options`, or one number.

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
    # One of the choices of the example, as they stand there, where it has some: the head may know other classes too.
    options = tuple(choice for choice in example.choices if choice in by_label) or head.labels
    return Ranked([by_label[option] for option in options], cut, False, options, "classification")
