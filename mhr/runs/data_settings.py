"""Settings of a run's data, documented where they stand."""

from __future__ import annotations

from dataclasses import dataclass

from mhr.data.chat_format import PLAIN, TRAIN_ON, ChatFormat
from mhr.data.definition_forms import DEFINITION_FORMS
from mhr.data.faults import ON_BAD_ROW
from mhr.data.templates import given_templates, read_templates
from mhr.errors import ConfigError
from mhr.setting import Settings, setting

SAMPLERS = ("proportional", "uniform", "temperature")


@dataclass
class DataConfig(Settings):
    """Which examples are read, how they are truncated, and how often each task is drawn."""

    max_input_length: int = setting(
        256,
        "Maximum input length in tokens. Longer inputs are truncated, and counted.",
        at_least=2,
        flag="--max-input-length",
    )
    max_target_length: int = setting(64, "Maximum target length in tokens.", at_least=2, flag="--max-target-length")
    packing: bool = setting(
        False,
        """Put several examples of a batch in one row, up to max_input_length + max_target_length tokens (decoders). Each is
        routed, attended to and learnt as if it stood alone.""",
        flag="--packing",
    )
    sampler: str = setting(
        "proportional",
        """How tasks are drawn: proportional, uniform or temperature. proportional: to their number of examples; temperature:
        to size ** (1 / temperature).""",
        choices=SAMPLERS,
    )
    temperature: float = setting(
        2.0,
        "Temperature of the temperature sampler: 1 is proportional, large values are nearly uniform.",
        above=0,
        only={"sampler": ("temperature",)},
    )
    max_train: int | None = setting(
        None,
        """Training examples of a task that are read, at most. Drawn by train_seed; the others are never trained on. Unset: all.""",
        at_least=1,
    )
    max_test: int = setting(
        100,
        """Examples for evaluation of a task's test split, at most (of its validation split where it has no other). Drawn by a fixed seed, each
        label by its share; of rows without a split a fifth, at most 100.""",
        at_least=1,
    )
    train_seed: int = setting(
        0, "Seed of the training examples that max_train draws. Those for evaluation are the same with any.", at_least=0
    )
    max_per_task: int | None = setting(
        None,
        "Maximum size of a task in the sampling proportions. Unset: no limit.",
        at_least=1,
    )
    weights: dict[str, float] = setting(
        {},
        """Weights of tasks: how many times as often each is drawn as the sampler says. sums=2,capitals=0.5; a task without one
        has 1.""",
        above=0,
        flag="--weights",
        metavar="TASK=WEIGHT,...",
    )
    group_by_length: bool = setting(
        False,
        """Batch examples of like length, so that less of a batch is padding. Within windows of 50 batches; each task is drawn
        as often.""",
        flag="--group-by-length",
    )
    workers: int = setting(
        0,
        """Processes that make batches beside the training process. 0: it makes them itself. Also the number of those that tokenise
        ahead, which is one for each core with 0. Batches are the same with any number.""",
        at_least=0,
        at_most=1024,
        flag="--workers",
    )
    cache: bool | None = setting(
        None,
        """Tokenise all examples before training, and keep the result for later runs. In the cache folder: MHR_CACHE, or
        ~/.cache/mhr. Losses are the same. Unset: from 10000 examples on, where the run draws as many or more.""",
        flag="--cache",
    )
    definitions: bool = setting(
        True, "Begin an input with the definition of its task (Super-NaturalInstructions).", flag="--definitions"
    )
    definition_form: str = setting(
        "plain",
        """How an input follows the definition of its task: plain or published (Super-NaturalInstructions). plain: the definition, an empty
        line, the input; published: "Task definition: ..." and "Now complete the following example -", without positives.""",
        choices=DEFINITION_FORMS,
    )
    positives: int = setting(
        0, "Solved examples shown before an input (Super-NaturalInstructions).", at_least=0, flag="--positives"
    )
    column_map: dict[str, str] | None = setting(
        None,
        """Columns by the name they have here: input=question,targets=answer. Of input, targets, choices, task and split, where
        those of files or of a Hugging Face dataset have other names; a dot leads into a nested column, translation.de.""",
        flag="--columns",
        metavar="OURS=THEIRS,...",
    )
    on_bad_row: str = setting(
        "error",
        """What a faulty row does: error or skip. error: the collection is refused, naming file and line; skip: the row is left
        out and counted.""",
        choices=ON_BAD_ROW,
        flag="--on-bad-row",
    )
    split_list: str | None = setting(
        None,
        """Folder of splits/ that says which tasks are held out (Super-NaturalInstructions). Unset: default.""",
        reads=True,
        flag="--split-list",
    )
    subset: str | None = setting(
        None, "Configuration of a Hugging Face dataset (sst2 of nyu-mll/glue).", flag="--subset"
    )
    fit: bool = setting(False, "Keep only the tasks whose inputs fit max_input_length, so that nothing is truncated.")
    max_choices: int | None = setting(
        None,
        """Keep only the tasks with at most this many answer choices. An encoder reads its input once for each. Unset: no
        limit.""",
        at_least=2,
    )
    template: str | None = setting(
        None,
        """Prompt templates: a YAML file, or the name of a packaged one (glue). Unset: inputs and choices as they are read, or as
        the run's settings say.""",
        reads=True,
        flag="--template",
        metavar="FILE",
    )
    prompt: str | None = setting(
        None,
        """Prompt of all tasks, as `input` of a template: "{sentence} It was {mask}.". {input}, {task} and the columns of a row are its
        fields; {mask}, once, is where a masked language model answers. Unset: as template says.""",
        flag="--prompt",
        metavar="TEXT",
    )
    verbalizers: dict[str, str] = setting(
        {},
        """Words that stand for the labels: negative=terrible,positive=great. With {mask} in the prompt each is one token. Unset: the
        labels themselves.""",
        flag="--verbalizers",
        metavar="LABEL=WORD,...",
    )
    chat_template: str | None = setting(
        None,
        """Chat template of a decoder: auto (its tokenizer's own), none, a name (chatml) or a Jinja file. All of these but none render
        every row, one that is no conversation as a user turn and its answer. Unset: conversations are rendered by the tokenizer's
        own, other rows are plain text.""",
        reads=True,
        flag="--chat-template",
        metavar="NAME|FILE",
        words=(PLAIN,),
    )
    train_on: str = setting(
        "last",
        "Turns of a conversation that are trained on: last, or all of the assistant's.",
        choices=TRAIN_ON,
        flag="--train-on",
    )
    system: str | None = setting(
        None, "System turn of rows that a chat template renders and that have none.", flag="--system", metavar="TEXT"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.train_seed and self.max_train is None:
            raise ConfigError(
                f"train_seed is {self.train_seed}, but all training examples are read: set max_train to how many are drawn, or leave "
                "train_seed out"
            )
        if self.definition_form == "published" and self.positives:
            raise ConfigError(
                f"positives is {self.positives}, but definition_form is 'published', which shows none: leave one of them out"
            )
        self.chat  # noqa: B018  (refuses settings that do not fit each other)
        if self.prompt is not None or self.verbalizers:
            if self.template is not None:
                raise ConfigError(
                    f"template is {self.template!r}, and {'prompt' if self.prompt is not None else 'verbalizers'} is given, which a "
                    "template has itself: leave one out"
                )
            given_templates(self.prompt, self.verbalizers)  # refuses what has no meaning

    @property
    def masked(self) -> bool:
        """Whether a prompt has a {mask}, for a masked language model to answer at."""
        if self.template is not None:
            return read_templates(self.template).masked
        return given_templates(self.prompt, self.verbalizers).masked

    @property
    def chat(self) -> ChatFormat:
        """How the rows of a decoder become text."""
        return ChatFormat(self.chat_template, self.train_on, self.system)
