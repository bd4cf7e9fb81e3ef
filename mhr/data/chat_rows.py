"""Conversations -> token rows by a chat template, for training, ranking and generation alike.

The text of a conversation is encoded as a whole, without the tokenizer's own special tokens, for the template writes them. What
an assistant turn is trained on is the difference of two prefixes: the conversation up to and with the turn, without that up to
where the turn is opened; it ends in the turn's end token. Tokens are told by their position, never by their value.
"""

from __future__ import annotations

from collections.abc import Sequence
from os.path import commonprefix
from typing import Any

from transformers import PreTrainedTokenizerBase

from mhr.data.chat_template import STAND_IN, ChatTemplate, Turn
from mhr.data.example import Example
from mhr.data.middle import Parts, pick, spans_within
from mhr.data.special_tokens import PROBE
from mhr.data.tokens import IGNORED, TokenRow, TokenRows, shared, tokenise, tokens_within
from mhr.errors import ConfigError, DataError


class ChatRows:
    """Encodes examples by one template.

    system             the system turn of conversations without one
    max_prompt_length  tokens of all turns before the answer: longer ones are truncated from their middle
    max_answer_length  tokens of an answer, its end token included
    """

    def __init__(self, template: ChatTemplate, system: str | None, max_prompt_length: int, max_answer_length: int):
        self.template, self.system = template, system
        self.max_prompt_length, self.max_answer_length = max_prompt_length, max_answer_length
        if max_answer_length < template.lead_tokens() + 2:
            raise ConfigError(
                f"max_target_length is {max_answer_length}, but {template.origin} puts {template.lead_tokens()} tokens "
                f"({template.lead!r:.40}) before every answer, which leaves no room for it: raise max_target_length"
            )

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        return self.template.tokenizer

    def __repr__(self) -> str:
        return f"ChatRows({self.template!r}, {self.system!r}, {self.max_prompt_length}, {self.max_answer_length})"

    def turns(self, example: Example) -> list[Turn]:
        """The turns before the answer."""
        turns: list[Turn] = list(example.messages[:-1]) or [{"role": "user", "content": example.input}]
        if self.system is not None and turns[0]["role"] != "system":
            turns.insert(0, {"role": "system", "content": self.system})
        return turns

    def prompts(self, examples: Sequence[Example]) -> TokenRows:
        """What the model goes on from: the turns before the answer, and the opening of the answer."""
        whole = [self._opened(example, self.turns(example)) for example in examples]
        rows = [self._shortened(e, w)[0] for e, w in zip(examples, whole, strict=True)]
        return TokenRows(rows, [len(row) > self.max_prompt_length for row in whole])

    def answers(self, examples: Sequence[Example], answers: Sequence[Sequence[str]]) -> tuple[TokenRows, TokenRows]:
        """Prompts, and the answers to each, one example's after the other's, as assistant turns with their end tokens."""
        prompts, said = TokenRows([], []), TokenRows([], [])
        for example, own in zip(examples, answers, strict=True):
            whole, rows = self._whole(example, own)
            kept, _ = self._shortened(example, whole)
            prompts.ids.append(kept)
            prompts.cut.append(len(kept) < len(whole))
            for row in rows:
                short, cut = self._ended(row)
                said.ids.append(short)
                said.cut.append(cut)
        return prompts, said

    def rows(self, examples: Sequence[Example], train_on: str) -> list[TokenRow]:
        """What is trained on: the first target of each example, and with "all" the assistant turns before it too. Where the template
        writes earlier turns in another way once later ones follow, the last turn alone."""
        return [self._row(example, train_on) for example in examples]

    def _row(self, example: Example, train_on: str) -> TokenRow:
        whole, (answer,) = self._whole(example, example.targets[:1])
        earlier = self._earlier(example, whole) if train_on == "all" else []
        labels = [IGNORED] * len(whole)
        for span in earlier or ():
            labels[span] = whole[span]
        prompt, spans = self._shortened(example, whole)
        said, cut = self._ended(answer)
        return TokenRow(prompt + said, pick(labels, spans) + said, len(prompt) < len(whole), cut, earlier is None)

    def _whole(self, example: Example, answers: Sequence[str]) -> tuple[list[int], list[list[int]]]:
        """The prompt, and what follows it with each answer, before anything is truncated."""
        turns = self.turns(example)
        said = [self._turn(example, answer) for answer in answers]
        texts = [self._told(example, self.template.answered, [*turns, turn]) for turn in said]
        rows = tokenise(self.tokenizer, text=texts, add_special_tokens=False)["input_ids"] if texts else []
        prompt = self._opened(example, turns)
        prompt = prompt[: min([len(prompt), *(shared(prompt, row) for row in rows)])]
        return prompt, [self._ending(row[len(prompt) :]) for row in rows]

    def _ending(self, row: list[int]) -> list[int]:
        """An answer up to its end token."""
        if self.template.its_own and self.template.end in row:
            return row[: len(row) - row[::-1].index(self.template.end)]
        return [*row, self.template.end]

    def _ended(self, row: list[int]) -> tuple[list[int], bool]:
        """An answer of at most `max_answer_length` tokens, the last of them its end token, and whether it was truncated."""
        room = self.max_answer_length - 1
        return [*row[:-1][:room], row[-1]], len(row) - 1 > room

    @staticmethod
    def _turn(example: Example, answer: str) -> Turn:
        """An answer as an assistant turn; the conversation's own with all that it holds beside its content."""
        own = example.messages[-1] if example.messages else {}
        return own if own.get("content") == answer else {"role": "assistant", "content": answer}

    def _opened(self, example: Example, turns: Sequence[Turn]) -> list[int]:
        """The tokens of a prompt that stay the same when an answer follows. A last space is the next word's."""
        text = self._told(example, self.template.prompt, turns)
        if example.tools and text == self.template.prompt(turns):
            raise DataError(
                f"{_named(example)} has tools, which {self.template.origin} does not write: name a template that does "
                "(--chat-template NAME|FILE), or leave tools out of the rows"
            )
        return tokens_within(self.tokenizer, text.removesuffix(" "), text + self.template.lead + PROBE)

    def _earlier(self, example: Example, prompt: list[int]) -> list[slice] | None:
        """Where the assistant turns of a prompt stand, ends included; None where the template wrote one of them otherwise when it
        was the last."""
        turns = self.turns(example)
        found = []
        for k, turn in enumerate(turns):
            if turn["role"] != "assistant":
                continue
            begin = self._opened(example, turns[:k])
            text = self._told(example, self.template.answered, turns[: k + 1])
            row = tokenise(self.tokenizer, text=[text], add_special_tokens=False)["input_ids"][0]
            end = len(begin) + len(self._ending(row[len(begin) :])) - (not self.template.its_own)
            if shared(begin, prompt) < len(begin) or shared(row, prompt) < end:
                return None
            found.append(slice(len(begin), end))
        return found

    # ---- cutting -------------------------------------------------------------------------------------------------------

    def _shortened(self, example: Example, prompt: list[int]) -> tuple[list[int], list[slice]]:
        """A prompt of at most `max_prompt_length` tokens, and the spans of the whole one that it is made of."""
        limit = self.max_prompt_length
        if len(prompt) <= limit:
            return prompt, [slice(0, len(prompt))]
        parts = self._parts(example, prompt)
        spans = spans_within(len(prompt), parts, limit)
        if spans is None:
            raise DataError(
                f"{_named(example)}: its system turn and what {self.template.origin} writes around the question take "
                f"{parts.head + parts.tail} tokens, which leaves no room for the question in {limit}: raise max_input_length"
            )
        return pick(prompt, spans), spans

    def _parts(self, example: Example, prompt: list[int]) -> Parts:
        """Where the turns of a prompt stand: found by rendering it with a STAND_IN in place of a turn."""
        turns = self.turns(example)
        text = self.template.prompt(turns, example.tools)
        first = next(i for i, turn in enumerate(turns) if turn["role"] != "system")
        users = [i for i in range(first, len(turns)) if turns[i]["role"] == "user"] or [first]
        begins = [self._begin(text, example, i) for i in users]
        ending = self.template.prompt([*turns[:-1], {**turns[-1], "content": STAND_IN}], example.tools)
        tail = len(commonprefix([text[::-1], ending[::-1]]))
        if begins[0] is None or begins[-1] is None or begins[-1] > len(text) - tail:
            # The template writes turns otherwise than they are: its beginning and its end are what is known.
            return Parts(0, (0,))
        places = [0 if b is None else len(self._text_tokens(text, b)) for b in begins]
        kept = (places[0], *(p for p, b in zip(places[1:], begins[1:], strict=True) if b is not None))
        before_tail = len(self._text_tokens(text, len(text) - tail))
        return Parts(places[0], kept, max(len(prompt) - before_tail, 0))

    def _begin(self, text: str, example: Example, i: int) -> int | None:
        """Where the content of turn i begins in the text."""
        turns = self.turns(example)
        try:
            marked = self.template.render([*turns[:i], {**turns[i], "content": STAND_IN}], example.tools)
        except DataError:
            return None
        begin = len(commonprefix([text, marked]))
        return begin if text.startswith(turns[i]["content"], begin) else None

    def _text_tokens(self, text: str, end: int) -> list[int]:
        return tokens_within(self.tokenizer, text[:end], text)

    def _told(self, example: Example, render: Any, turns: Sequence[Turn]) -> str:
        """What `render` makes of the turns. Raises DataError, naming the example, where the template refuses them."""
        try:
            return str(render(turns, example.tools))
        except DataError as error:
            raise DataError(f"{_named(example)}: {error}") from None


def _named(example: Example) -> str:
    return f"example {example.id!r} of task {example.task!r}"
