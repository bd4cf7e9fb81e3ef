"""In-context examples: solved training rows of a task that stand before the question.

A row that a chat template renders, and any other conversation, gets turns:

    system | user: input of shot 1 | assistant: its answer | ... | user: the question

Any other row gets running text, in which a shot reads as an input and its answer do in training, and empty lines part them:

    input of shot 1 its answer⏎⏎input of shot 2 its answer⏎⏎the question

An input with a mask gets its shots likewise, each with its answer's word in place of the mask, parted by the separator token:

    The film is good. It was great.[SEP]It bored me. It was terrible.[SEP]the question, with its [MASK]

Shots are the training examples of the task in their `shot_order`, the same for every question, but never a question itself
nor another row with the same input.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

from mhr.data.collators import GeneratorCollator
from mhr.data.drawing import shot_order
from mhr.data.example import Example, Task
from mhr.data.forms.messages import render
from mhr.data.mask_collator import MaskedCollator
from mhr.data.masked import BREAK, solved, text_of_pieces
from mhr.data.tokens import running_text
from mhr.errors import ConfigError, DataError
from mhr.evaluation.loaded import LoadedModel


@dataclass(frozen=True, slots=True)
class Prompted:
    """A question as the model is asked it: `example` with its `shots` in its input and messages."""

    example: Example
    shots: tuple[Example, ...] = ()


def draw_in_context(task: Task, examples: Sequence[Example], shots: int, seed: int = 0) -> list[tuple[Example, ...]]:
    """The `shots` shots of each example. Raises DataError where the task has fewer training rows that are not the question."""
    order = shot_order(task.train, task.name, seed) if shots else []
    drawn = []
    for example in examples:
        own = tuple(islice((shot for shot in order if shot.input != example.input), shots))
        if len(own) < shots:
            raise DataError(
                f"task {task.name!r} has {len(order)} training rows, of which {len(own)} are other ones than {example.id!r}, but "
                f"{shots} shots are asked for: use --shots {len(own)} or fewer, or leave the task out"
            )
        drawn.append(own)
    return drawn


def prompt(example: Example, shots: Sequence[Example], rendered: bool = False) -> Example:
    """The example with shots before its question; what it answers stays as it is. System turns of shots are left out.

    rendered  whether a chat template renders it, so that shots are turns though it is no conversation
    """
    if not shots:
        return example
    if example.pieces:
        known = [part for shot in shots for part in (*solved(shot.pieces, shot.targets[0]), BREAK)]
        pieces = (*known, *example.pieces)
        return replace(example, input=text_of_pieces(pieces), pieces=pieces)
    if rendered or example.messages:
        system = [turn for turn in example.messages if turn["role"] == "system"]
        turns = [*system, *(turn for shot in shots for turn in _turns(shot)), *_turns(example)]
        return replace(example, input=render(turns[:-1], example.tools), messages=tuple(turns))
    answered = [running_text(shot.input, shot.targets[0]) for shot in shots]
    return replace(example, input="\n\n".join([*answered, example.input]))


def fit_shots(
    loaded: LoadedModel,
    examples: Sequence[Example],
    drawn: Sequence[tuple[Example, ...]],
    max_input_length: int,
    max_target_length: int,
) -> list[Prompted]:
    """The examples with those of their shots with which the prompt has at most `max_input_length` tokens: each of the shots in turn,
    unless it is too long beside those before it. A shot is never cut.

    Raises ConfigError for an encoder, which scores pairs and goes on from no text.
    """
    if not any(drawn):
        return [Prompted(example) for example in examples]
    collator = loaded.collator(max_input_length, max_target_length)
    if not isinstance(collator, GeneratorCollator | MaskedCollator):
        raise ConfigError(
            f"{loaded.description} is an encoder, which scores pairs of an input and a choice: leave shots out"
        )

    def with_shots(i: int, shots: Sequence[Example]) -> Example:
        return prompt(examples[i], shots, loaded.renders(examples[i]))

    kept = list(drawn)
    whole = collator.too_long([with_shots(i, shots) for i, shots in enumerate(kept)])
    long = [i for i, cut in enumerate(whole) if cut and kept[i]]
    for i in long:
        kept[i] = ()
    for number in range(max((len(drawn[i]) for i in long), default=0)):
        tried = [(i, (*kept[i], drawn[i][number])) for i in long if number < len(drawn[i])]
        found = collator.too_long([with_shots(i, shots) for i, shots in tried])
        for (i, shots), cut in zip(tried, found, strict=True):
            kept[i] = kept[i] if cut else shots
    return [Prompted(with_shots(i, shots), shots) for i, shots in enumerate(kept)]


def count_dropped(prompted: Iterable[Prompted], shots: int) -> dict[str, Any]:
    """Numbers of shots: those of all prompts ("of"), those of them that did not fit ("dropped"), and these task by task ("tasks")."""
    tasks: dict[str, int] = {}
    total = 0
    for one in prompted:
        total += shots
        missing = shots - len(one.shots)
        if missing:
            tasks[one.example.task] = tasks.get(one.example.task, 0) + missing
    return {"of": total, "dropped": sum(tasks.values()), "tasks": tasks}


def _turns(example: Example) -> list[Mapping[str, Any]]:
    """The turns of an example without system turns, its answer last; a row that is no conversation is one question."""
    turns = [turn for turn in example.messages if turn["role"] != "system"]
    return turns or [{"role": "user", "content": example.input}, {"role": "assistant", "content": example.targets[0]}]
