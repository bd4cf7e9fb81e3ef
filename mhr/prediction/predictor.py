"""Ask a model: texts in, answers out, each by the task that it is of, with the prompts of training and evaluation."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from mhr.adapters.base import weights_digest
from mhr.adapters.index import folder_of
from mhr.contexts import embeds, give_contexts
from mhr.data.example import Example, Task
from mhr.data.questions import ask_texts
from mhr.data.reading import ReadOptions
from mhr.data.templates import given_templates, read_templates
from mhr.errors import ConfigError, DataError, TaskError, nearest
from mhr.evaluation import LoadedModel, generate_answers, load_model, rank_choices
from mhr.evaluation.sampling import Sampling
from mhr.evaluation.score import check_target, told
from mhr.loading import Loading
from mhr.objectives.usable import mask_fault
from mhr.prediction.settings import PredictConfig
from mhr.runs import load_config
from mhr.runs.run import RUN_FILE, RunFolder
from mhr.setting import MOST_SEED
from mhr.task_heads import RANK, TaskHeads


@dataclass(frozen=True, slots=True)
class Answer:
    """What a model says.

    text      the answer
    how       "generation", "ranking" of choices, or "classification" and "regression" by a head
    choices   those that were ranked, or the classes; scores: of each, greater is better, or the number
    truncated whether the input was
    """

    text: str
    how: str
    choices: tuple[str, ...] = ()
    scores: tuple[float, ...] = ()
    truncated: bool = False


@dataclass
class Predictor:
    """A model that answers, as `mhr.load` gives it.

    loaded   the model, its tokenizer, and how tasks are routed
    reading  how rows become examples: prompt templates and names of columns
    only     the task that the run is of, where it has one only; "" otherwise
    """

    loaded: LoadedModel
    reading: ReadOptions
    only: str = ""
    met: dict[str, str] = field(default_factory=dict)
    """Tasks that the model does not know but by these definitions."""
    weights: str = field(init=False)
    """What distinguishes the weights from others, as they were before any task was met: see `mhr.adapters.base.weights_digest`."""

    def __post_init__(self) -> None:
        self.weights = weights_digest(self.model)

    @property
    def model(self) -> PreTrainedModel:
        """The transformers model, in evaluation mode; `model.mhr` is its bank, where it has one."""
        return self.loaded.model

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        return self.loaded.tokenizer

    @property
    def tasks(self) -> list[str]:
        """The tasks that are answered differently; none where the model does the same for all."""
        heads = self.loaded.heads
        return list(dict.fromkeys([*self._routed, *(heads.tasks if heads is not None else ())]))

    @property
    def _routed(self) -> list[str]:
        """The tasks that are routed differently."""
        bank = self.loaded.bank
        return list(bank.tasks) if bank is not None and bank.needs_tasks else []

    @property
    def _takes_definitions(self) -> bool:
        """Whether a task that the model does not know is routed by its definition."""
        bank = self.loaded.bank
        return bank is not None and embeds(bank) and bank.config.own_settings().context == "definition"

    def predict(
        self,
        texts: Sequence[str],
        tasks: str | Sequence[str] | None = None,
        choices: Sequence[str] | None = None,
        **settings: Any,
    ) -> list[str]:
        """The answer to each text, in their order.

        tasks     the task of all texts, or of each; None: the only one that the model knows. One batch may mix them
        choices   answers to rank, the best of which is given; None generates, which encoders cannot
        settings  those of `PredictConfig`: max_new_tokens, temperature, top_p, seed, stop, batch_size, unseen ...

        Raises TaskError for an unknown task, naming the nearest, ConfigError for settings that are out of range or change nothing,
        DataError for an empty text.
        """
        if isinstance(texts, str):
            raise ConfigError(f"texts is the string {texts!r:.60}, expected a list of strings")
        if tasks is not None and not isinstance(tasks, str) and len(tasks) != len(texts):
            raise ConfigError(f"{len(texts)} texts and {len(tasks)} tasks are given: expected one task for each text")
        one = tasks if isinstance(tasks, str) else None
        config = PredictConfig(task=one, choices=None if choices is None else list(choices), **settings)
        self.check(config)
        named: str | Sequence[str] = self.default_task(config) if tasks is None else tasks
        examples = self.ask(texts, named, config)
        self.check_used(examples, config)
        return [answer.text for answer in self.answer(examples, config)]

    def meet(self, task: str, definition: str) -> None:
        """Have a task that the model does not know routed by its definition from now on, without training.

        Raises ConfigError for a task that it knows, and for a model that does not route by definitions.
        """
        bank, what = self.loaded.bank, self.loaded.description
        if bank is None or not self._takes_definitions:
            raise ConfigError(
                f"a definition is given of task {task!r}, but {what} does not route by definitions: leave it out, or use a run of a method "
                "that does"
            )
        if self.met.get(task) == definition:
            return
        if task in bank.tasks and task not in self.met:
            raise ConfigError(f"a definition is given of task {task!r}, which {what} knows already: leave it out")
        if task in self.met:
            bank.remove_tasks([task])
        give_contexts(self.model, self.tokenizer, [Task(task, definition=definition)])
        self.met[task] = definition

    def ask(self, texts: Sequence[str], tasks: str | Sequence[str], config: PredictConfig) -> list[Example]:
        """Texts as examples, by the prompt templates of the run."""
        return ask_texts(texts, self.reading, tasks, choices=config.choices or ())

    def default_task(self, config: PredictConfig) -> str:
        """The task of what names none; "" where that is open."""
        known = self.tasks
        return config.task or self.only or (known[0] if len(known) == 1 else "")

    def check(self, config: PredictConfig) -> None:
        """Raise ConfigError for a task that changes nothing, TaskError for one that is unknown, after what is new of one is taken."""
        if config.definition is not None:
            assert config.task is not None
            self.meet(config.task, config.definition)
        alike = not self.tasks
        if alike and config.task not in (None, self.only) and self.reading.templates is None:
            raise ConfigError(
                f"task is {config.task!r}, but {self.loaded.description} does the same for all tasks: leave task out"
            )
        if not self._routed and config.unseen != "error":
            raise ConfigError(
                f"unseen is {config.unseen!r}, but {self.loaded.description} routes all tasks alike: leave unseen out"
            )
        if config.task is not None:
            self._check_tasks([config.task], config.unseen)
        if config.choices and config.of_generation:
            raise ConfigError(
                f"{config.of_generation} is for generated answers, but choices are ranked: leave one of the two out"
            )

    def check_examples(self, examples: Sequence[Example], config: PredictConfig) -> None:
        """Raise what keeps the model from answering them, before any of them is: TaskError, or DataError for an encoder that has
        nothing to rank, and for choices that a head has no outputs for."""
        self._check_tasks(list(dict.fromkeys(example.task for example in examples)), config.unseen)
        fault = mask_fault(self.loaded.kind, examples)
        if fault is not None:
            raise ConfigError(f"{self.loaded.description} cannot answer: {fault}")
        for example in examples:
            if self.loaded.heads is not None:
                self._check_head(example, self.loaded.heads)
            elif not example.choices and not self.loaded.objective.generates:
                raise self._nothing_to_rank(example)

    def check_used(self, examples: Sequence[Example], config: PredictConfig) -> None:
        """Raise ConfigError for a setting that changes the answer to none of the examples: one of generated answers where none is
        generated, and choices where each example has its own."""
        if not examples:
            return
        if config.of_generation and all(map(self._ranks, examples)):
            raise ConfigError(
                f"{config.of_generation} is for generated answers, but all of these are ranked, or a head's: leave it out"
            )
        if config.choices and all(e.choices and e.choices != tuple(config.choices) for e in examples):
            raise ConfigError("choices are for rows that have none, but each row has its own: leave them out")

    def answer(
        self,
        examples: Sequence[Example],
        config: PredictConfig | None = None,
        *,
        first: int = 0,
        stream: Callable[[str], None] | None = None,
        advance: Callable[[float], None] | None = None,
    ) -> list[Answer]:
        """The answer to each example, in their order: the best of its choices, or a generated one where it has none.

        first    place of the first one among all that are asked, where these are a part of them: with it `config.seed` decides the draws,
                 so that no two parts have the same
        stream   called with each further piece of a generated answer; examples are answered one by one then
        advance  called with the number of examples done
        """
        config = config or PredictConfig()
        self.check_examples(examples, config)
        asked = config.max_new_tokens
        read, written = self.loaded.lengths(config.max_input_length, asked and max(asked, 2))
        common: dict[str, Any] = {
            "max_input_length": read,
            "batch_size": config.batch_size,
            # A bank that does the same for all tasks needs to know none.
            "unseen": config.unseen if self._routed else "uniform",
            "advance": advance,
        }
        found: dict[int, Answer] = {}
        ranked = [i for i, example in enumerate(examples) if self._ranks(example)]
        for i, one in zip(
            ranked,
            rank_choices(
                self.loaded,
                [examples[i] for i in ranked],
                max_target_length=written,
                length_norm=self.loaded.length_norm,
                **common,
            ),
            strict=True,
        ):
            found[i] = Answer(one.answer, one.how, one.options, tuple(one.scores), one.cut_input)
        others = [i for i in range(len(examples)) if i not in found]
        # Rows that a chat template renders end at its end token, others at the tokenizer's: each at its own alone.
        parts = [[i for i in others if self.loaded.renders(examples[i]) == rendered] for rendered in (True, False)]
        for part in filter(None, parts if stream is None else [[i] for i in others]):
            seed = _seed_at(config.seed, first + part[0])
            sampling = Sampling(config.temperature, config.top_p, seed) if config.temperature else None
            generated = generate_answers(
                self.loaded,
                [examples[i] for i in part],
                max_new_tokens=min(written, asked or written),
                sampling=sampling,
                stop=config.stop,
                stream=stream,
                **common,
            )
            for i, answer in zip(part, generated, strict=True):
                found[i] = Answer(answer.text, "generation", truncated=answer.cut_input)
        return [found[i] for i in range(len(examples))]

    def options(self, example: Example) -> tuple[str, ...]:
        """What an example is answered with one of: its choices, or the classes of the head that answers it; nothing where it is answered
        in words or by a number."""
        heads = self.loaded.heads
        if example.choices or heads is None:
            return example.choices
        return heads.heads[heads.of(example.task)].labels

    def _ranks(self, example: Example) -> bool:
        return bool(example.choices) or self.loaded.heads is not None

    def _check_tasks(self, tasks: Sequence[str], unseen: str) -> None:
        known = self._routed
        if not known or unseen != "error":
            return
        for task in tasks:
            if not task:
                raise TaskError(
                    f"{self.loaded.description} answers each of {len(known)} tasks in its own way, and no task is named: give one (--task, "
                    f"or a column task), or --unseen uniform; {nearest('', known)}"
                )
            if task not in known:
                defined = "; a new one needs its definition (--definition)" if self._takes_definitions else ""
                raise TaskError(f"unknown task {task!r} of {self.loaded.description}: {nearest(task, known)}{defined}")

    def _check_head(self, example: Example, heads: TaskHeads) -> None:
        """Raise TaskError where no head answers an example, DataError where the one that does has no use for its choices."""
        head = heads.heads[heads.of(example.task, example.choices)]
        other = next((choice for choice in example.choices if choice not in head.labels), None)
        if head.kind == RANK:
            if not example.choices:
                raise self._nothing_to_rank(example)
        elif other is not None:
            answers = f"with one of {', '.join(map(repr, head.labels[:10]))}" if head.labels else "with a number"
            raise DataError(
                f"row {example.id!r} has the choice {other!r:.40}, but the head of task {example.task!r} answers {answers}: leave its "
                "choices out"
            )

    def _nothing_to_rank(self, example: Example) -> DataError:
        return DataError(
            f"{self.loaded.description} is an encoder, which ranks choices and generates nothing, but row {example.id!r} has none: give "
            "the rows a column choices, or all of them --choices A,B,..."
        )


def _seed_at(seed: int | None, place: int) -> int | None:
    """The seed of what is drawn from the example at a place on: the one that was asked for at the first, others elsewhere."""
    return seed if seed is None or place == 0 else random.Random(f"{seed}/{place}").randrange(MOST_SEED + 1)


def load(
    path: str | Path,
    *,
    task: str | None = None,
    base: str | None = None,
    kind: str | None = None,
    loading: Loading | None = None,
    chat_template: str | None = None,
    system: str | None = None,
    template: str | None = None,
    prompt: str | None = None,
    verbalizers: dict[str, str] | None = None,
    column_map: dict[str, str] | None = None,
) -> Predictor:
    """What answers at `path`: a run (pretrained or adapted), an adapter folder (ours or PEFT's), or a transformers model.

        bank = mhr.load("runs/mhr")
        bank.predict(["rev last: abcd", "next first: abcd"], tasks=["rev-last", "next-first"])

    `Predictor.predict` gives answers; `model` and `tokenizer` are transformers' own.

    task                   of a folder with an adapter for each task (`mhr merge --each-task`): the one that is meant
    base, kind, loading    see `mhr.evaluation.load_model`
    chat_template, system  see `mhr.data.chat_format.ChatFormat`; None: as the model was trained
    template, prompt, verbalizers, column_map  see `mhr.load_tasks`; None: as the run reads its tasks

    Raises CheckpointError for what is missing, unfinished, damaged or no model, ConfigError for settings that do not fit it.
    """
    if task is not None:
        path = folder_of(path, task)
    check_target(path)
    held = (Path(path) / RUN_FILE).is_file()
    run = RunFolder.open(path) if held else None
    data = load_config(
        run.path / "config.yaml" if run else None,
        template=template,
        prompt=prompt,
        verbalizers=verbalizers,
        column_map=column_map,
    ).data
    templates = None if data.template is None else read_templates(data.template)
    if data.prompt is not None or data.verbalizers:
        templates = given_templates(data.prompt, data.verbalizers)
    reading = ReadOptions(column_map=dict(data.column_map or {}), templates=templates)
    named = [task] if task is not None else list(run.info.get("tasks") or []) if run else []
    loaded = load_model(path, base=base, kind=kind, loading=loading)
    loaded.chat = told(loaded.chat, chat_template, system)
    loaded.collator(*loaded.lengths())  # refuses a chat template that the model or its tokenizer has no use for
    return Predictor(loaded, reading, str(named[0]) if len(named) == 1 else "")
