"""Examples -> batches, for the three kinds of models.

Every batch is a dict of tensors and of `task_ids`, the names of the tasks of its rows, which stay on the host. Texts that are
too long are truncated, and counted by task: `truncation`. The counts are those of this object: where processes of a data loader
have copies of it, the batches have to carry what theirs counted (`mhr.training.feeding`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate
from typing import Any, ClassVar

import torch
from transformers import PreTrainedTokenizerBase

from mhr.data.chat_format import PLAIN, ChatFormat
from mhr.data.chat_rows import ChatRows
from mhr.data.chat_template import find_chat_template
from mhr.data.example import Example
from mhr.data.special_tokens import end_token, pad_token
from mhr.data.tokens import (
    IGNORED,
    TokenRow,
    TokenRows,
    encode,
    encode_answers,
    encode_pairs,
    encode_prompts,
    encode_targets,
    pad,
)
from mhr.data.truncation import Truncation
from mhr.errors import ConfigError

Batch = dict[str, Any]


class Collator(ABC):
    """Common part: lengths in tokens, the counts of what is truncated, and padding.

    by_rows  whether a batch is `collate_rows(encode_rows(examples), tasks)`, so that rows can be encoded ahead and stored
    chats    whether conversations are put into the words of a chat template; otherwise they are read in plain words
    """

    by_rows: ClassVar[bool] = False
    chats: ClassVar[bool] = False

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        max_input_length: int = 512,
        max_target_length: int = 128,
        chat: ChatFormat | None = None,
    ):
        for name, value in (("max_input_length", max_input_length), ("max_target_length", max_target_length)):
            if value < 2:
                raise ConfigError(f"{name} is {value}, expected at least 2 tokens")
        self.chat = chat or ChatFormat()
        if not self.chats and self.chat not in (ChatFormat(), ChatFormat(PLAIN)):
            raise ConfigError(
                "chat_template, train_on and system are for decoders, and this model reads plain text: leave them out"
            )
        self.tokenizer = tokenizer
        self.max_input_length = max_input_length
        self.max_target_length = max_target_length
        self.truncation = Truncation()

    @abstractmethod
    def __call__(self, examples: Sequence[Example]) -> Batch:
        """The batch that training and scoring take."""

    def _padded(self, rows: Sequence[list[int]], left: bool = False) -> Batch:
        """input_ids and attention_mask [B, L]."""
        ids, mask = pad(rows, pad_token(self.tokenizer), left=left)
        return {"input_ids": ids, "attention_mask": mask}


class GeneratorCollator(Collator):
    """What encoder-decoders and decoders have in common: an input is read, and an answer generated token by token."""

    @abstractmethod
    def encode_inputs(self, examples: Sequence[Example]) -> TokenRows:
        """What `generate` takes, unpadded."""

    @abstractmethod
    def encode_answers(
        self, examples: Sequence[Example], answers: Sequence[Sequence[str]]
    ) -> tuple[TokenRows, TokenRows]:
        """The inputs, and some answers to each, one example's after the other's."""

    def too_long(self, examples: Sequence[Example]) -> list[bool]:
        """Whether each input has more tokens than are kept."""
        return self.encode_inputs(examples).cut

    def answer_text(self, example: Example, text: str) -> str:
        """What a generated text says."""
        return text

    def _counted(
        self, examples: Sequence[Example], answers: Sequence[Sequence[str]]
    ) -> tuple[list[list[int]], list[list[int]]]:
        """The tokens of `encode_answers`, after counting how many texts were truncated."""
        inputs, targets = self.encode_answers(examples, answers)
        self.truncation.note("inputs", (e.task for e in examples), inputs.cut)
        owners = (e.task for e, own in zip(examples, answers, strict=True) for _ in own)
        self.truncation.note("targets", owners, targets.cut)
        return inputs.ids, targets.ids

    def collate_rows(self, rows: Sequence[TokenRow], tasks: Sequence[str]) -> Batch:
        """Rows of `encode_rows`, padded on the right, and the names of their tasks; counts those that were truncated."""
        self.count_rows(rows, tasks)
        labels, _ = pad([row.labels for row in rows], IGNORED)
        return {**self._padded([row.ids for row in rows]), "labels": labels, "task_ids": list(tasks)}

    def count_rows(self, rows: Sequence[TokenRow], tasks: Sequence[str]) -> None:
        """Count the rows that were truncated, by task, and what else of them is not trained on."""
        self.truncation.note("inputs", tasks, (row.cut for row in rows))
        self.truncation.note("targets", tasks, (row.cut_target for row in rows))
        self.truncation.note_rows(tasks, rows)


class Seq2SeqCollator(GeneratorCollator):
    """Encoder-decoders: input_ids, attention_mask [B, L]; labels [B, T], IGNORED where padded."""

    by_rows = True

    def __call__(self, examples: Sequence[Example]) -> Batch:
        return self.collate_rows(self.encode_rows(examples), [e.task for e in examples])

    def encode_rows(self, examples: Sequence[Example]) -> list[TokenRow]:
        """The input and the first target of each example, the latter as labels, which have a row of their own."""
        inputs, targets = self.encode_answers(examples, [e.targets[:1] for e in examples])
        return list(map(TokenRow, inputs.ids, targets.ids, inputs.cut, targets.cut))

    def encode_inputs(self, examples: Sequence[Example]) -> TokenRows:
        return encode(self.tokenizer, [e.input for e in examples], self.max_input_length)

    def encode_answers(
        self, examples: Sequence[Example], answers: Sequence[Sequence[str]]
    ) -> tuple[TokenRows, TokenRows]:
        texts = [answer for own in answers for answer in own]
        distinct = list(dict.fromkeys(texts))  # examples of a task share their choices
        rows = encode_targets(self.tokenizer, distinct, self.max_target_length)
        found = dict(zip(distinct, zip(rows.ids, rows.cut, strict=True), strict=True))
        return self.encode_inputs(examples), TokenRows([found[t][0] for t in texts], [found[t][1] for t in texts])


class CausalCollator(GeneratorCollator):
    """Decoders: prompt, target and end token in one row; labels are IGNORED up to the target. Rows that a chat template renders are
    encoded by `ChatRows`, others as running text. Long prompts are truncated from their middle."""

    chats = True

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        max_input_length: int = 512,
        max_target_length: int = 128,
        chat: ChatFormat | None = None,
    ):
        super().__init__(tokenizer, max_input_length, max_target_length, chat)
        self._chat_rows: ChatRows | None = None
        if self.chat.chosen:
            self.chat_rows()  # what is wrong with a template is told before anything is trained

    def chat_rows(self) -> ChatRows:
        """What encodes the rows that the chat template renders. Raises ConfigError where there is no template."""
        if self._chat_rows is None:
            template = find_chat_template(self.tokenizer, self.chat)
            lengths = self.max_input_length, self.max_target_length
            self._chat_rows = ChatRows(template, self.chat.system, *lengths)
        return self._chat_rows

    by_rows = True

    def __call__(self, examples: Sequence[Example]) -> Batch:
        return self.collate_rows(self.encode_rows(examples), [e.task for e in examples])

    def encode_rows(self, examples: Sequence[Example]) -> list[TokenRow]:
        """One row an example, to train on. Counts nothing: `collate_rows` does, so that rows may be encoded elsewhere."""
        rendered, plain = self._parted(examples)
        rows = dict(zip(rendered, self._chats(rendered, examples), strict=True))
        others = [examples[i] for i in plain]
        prompts, targets = self._plain_answers(others, [e.targets[:1] for e in others])
        made = zip(prompts.ids, prompts.cut, targets.ids, targets.cut, strict=True)
        for i, (prompt, cut, target, cut_target) in zip(plain, made, strict=True):
            rows[i] = TokenRow(prompt + target, [IGNORED] * len(prompt) + target, cut, cut_target)
        return [rows[i] for i in range(len(examples))]

    def encode_inputs(self, examples: Sequence[Example]) -> TokenRows:
        """Prompts; of a conversation with the opening of the answer."""
        rendered, plain = self._parted(examples)
        chats = [examples[i] for i in rendered]
        found = self.chat_rows().prompts(chats) if chats else TokenRows([], [])
        texts = [examples[i].input for i in plain]
        others = encode_prompts(self.tokenizer, texts, self.max_input_length) if texts else TokenRows([], [])
        return _in_order([(rendered, found), (plain, others)])

    def encode_answers(
        self, examples: Sequence[Example], answers: Sequence[Sequence[str]]
    ) -> tuple[TokenRows, TokenRows]:
        """Prompts and answers; those of a conversation are assistant turns with their end tokens."""
        parts = self._parted(examples)
        prompts, said = [], []
        places = [list(range(b - len(own), b)) for own, b in zip(answers, accumulate(map(len, answers)), strict=True)]
        for numbers, encoded in zip(parts, (self._chat_answers, self._plain_answers), strict=True):
            found = encoded([examples[i] for i in numbers], [answers[i] for i in numbers])
            prompts.append((numbers, found[0]))
            said.append(([place for i in numbers for place in places[i]], found[1]))
        return _in_order(prompts), _in_order(said)

    def answer_ends(self, examples: Sequence[Example]) -> list[int]:
        """The tokens that answers to these examples are trained to end in, and generated ones end at."""
        rendered, plain = self._parted(examples)
        ends = [end_token(self.tokenizer)] if plain or not rendered else []
        return ends + [end for end in ([self.chat_rows().template.end] if rendered else []) if end not in ends]

    def answer_text(self, example: Example, text: str) -> str:
        """What a generated text says: without what a chat template puts before every answer (an empty reasoning)."""
        lead = self.chat_rows().template.lead.strip() if self.chat.renders(example) else ""
        return text.strip().removeprefix(lead).strip()

    def _parted(self, examples: Sequence[Example]) -> tuple[list[int], list[int]]:
        """Numbers of the examples that a chat template renders, and of the others."""
        rendered = [i for i, example in enumerate(examples) if self.chat.renders(example)]
        chosen = set(rendered)
        return rendered, [i for i in range(len(examples)) if i not in chosen]

    def _chats(self, rendered: Sequence[int], examples: Sequence[Example]) -> list[TokenRow]:
        return self.chat_rows().rows([examples[i] for i in rendered], self.chat.train_on) if rendered else []

    def _chat_answers(
        self, examples: Sequence[Example], answers: Sequence[Sequence[str]]
    ) -> tuple[TokenRows, TokenRows]:
        return self.chat_rows().answers(examples, answers) if examples else (TokenRows([], []), TokenRows([], []))

    def _plain_answers(
        self, examples: Sequence[Example], answers: Sequence[Sequence[str]]
    ) -> tuple[TokenRows, TokenRows]:
        if not examples:
            return TokenRows([], []), TokenRows([], [])
        lengths = self.max_input_length, self.max_target_length
        return encode_answers(self.tokenizer, [e.input for e in examples], answers, *lengths)


def _in_order(parts: Sequence[tuple[Sequence[int], TokenRows]]) -> TokenRows:
    """Rows of several parts by the numbers that they have in the whole."""
    ids: dict[int, list[int]] = {}
    cut: dict[int, bool] = {}
    for numbers, rows in parts:
        ids.update(zip(numbers, rows.ids, strict=True))
        cut.update(zip(numbers, rows.cut, strict=True))
    return TokenRows([ids[i] for i in range(len(ids))], [cut[i] for i in range(len(ids))])


class RankingCollator(Collator):
    """Encoders that score (input, choice) pairs: one row a pair, the examples' choices (`Example.compared`) one after the other.

    input_ids, attention_mask (and token_type_ids where the tokenizer makes them) [sum of counts, L]; labels [B], the
    position of the right choice; choice_counts, a list of B integers; task_ids, one a row. Only inputs are truncated, never
    choices; `max_input_length` is that of a pair.
    """

    def __call__(self, examples: Sequence[Example]) -> Batch:
        examples = [replace(e, choices=e.compared) for e in examples]
        pairs = encode_pairs(self.tokenizer, examples, self.max_input_length)
        tasks = [e.task for e in examples for _ in e.choices]
        self.truncation.note("inputs", tasks, pairs.cut)
        batch = self._padded(pairs.ids)
        if pairs.types is not None:
            batch["token_type_ids"] = pad(pairs.types, 0)[0]
        return {
            **batch,
            "labels": torch.tensor([e.choices.index(e.targets[0]) for e in examples]),
            "choice_counts": [len(e.choices) for e in examples],
            "task_ids": tasks,
        }
