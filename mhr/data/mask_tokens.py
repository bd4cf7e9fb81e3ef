"""Inputs with a mask -> token rows, and words -> the tokens that a masked language model says there.

A word's token is the one that it is in running text at that place: behind a space the one with the space (RoBERTa's and
GPT-2's "Ġgreat", SentencePiece's "▁great"), at the beginning of a text or behind a bracket the one without. Directly behind a
field it is a new word, as behind a space.

A row that is too long has its fields truncated at their ends, the longest first, and nothing else: neither mask nor template.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from transformers import PreTrainedTokenizerBase

from mhr.data.example import Example
from mhr.data.masked import Piece
from mhr.data.special_tokens import PROBE
from mhr.data.tokens import check_choices, tokenise
from mhr.errors import ConfigError, DataError


@dataclass(frozen=True, slots=True)
class MaskedRows:
    """ids: the tokens of each input; places: where in it the mask is; cut: whether it was truncated; types: segment of each token,
    where the model asks."""

    ids: list[list[int]]
    places: list[int]
    cut: list[bool]
    types: list[list[int]] | None = None


def check_mask_token(tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise ConfigError for a tokenizer without a mask token."""
    if tokenizer.mask_token_id is None:
        raise ConfigError(
            f"the tokenizer of {tokenizer.name_or_path or 'the model'} has no mask token, which a masked language model answers at: "
            "take one such as BERT, RoBERTa or DeBERTa, or another kind of model"
        )


def without_mask(example: Example) -> str | None:
    """Why a masked language model cannot answer an example, or None."""
    if not example.pieces:
        return (
            "has no {mask} in its input, where a masked language model answers: give --prompt with one, or a template"
        )
    if not example.choices:
        return "has no choices, whose words a masked language model answers with: give --verbalizers"
    return None


def encode_masked(tokenizer: PreTrainedTokenizerBase, examples: Sequence[Example], max_length: int) -> MaskedRows:
    """Inputs with the tokenizer's special tokens, at most `max_length` tokens each.

    Raises DataError for one without a mask, and where a prompt leaves no room for any of its fields.
    """
    for example in examples:
        reason = without_mask(example)
        if reason:
            raise DataError(f"example {example.id!r} of task {example.task!r} {reason}")
    encode = _Encoder(tokenizer)
    found = encode([example.pieces for example in examples], examples)
    for i, row in enumerate(found.ids):
        if len(row) > max_length:
            short = encode.shortened(examples[i], max_length)
            found.ids[i], found.places[i], found.cut[i] = short.ids[0], short.places[0], True
            if found.types is not None and short.types is not None:
                found.types[i] = short.types[0]
    return found


def masked_lengths(tokenizer: PreTrainedTokenizerBase, examples: Sequence[Example]) -> list[int]:
    """Tokens of each input, with special tokens, before anything is truncated."""
    texts = [_text(tokenizer, example.pieces) for example in examples]
    return [len(row) for row in tokenise(tokenizer, text=texts)["input_ids"]] if texts else []


class MaskWords:
    """The tokens of words at the mask of an input; each word is looked up once."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        self.tokenizer = tokenizer
        self._known: dict[tuple[str, tuple[str, ...]], list[int]] = {}

    def __call__(self, example: Example) -> list[int]:
        """The token of each choice, in their order.

        Raises DataError, naming the word, for one that is not one token, or a special one (unknown words are), and for two choices
        with the same.
        """
        check_choices(example)
        lead = _lead(example.pieces)
        key = lead, example.choices
        if key not in self._known:
            self._known[key] = self._look_up(example, lead)
        return self._known[key]

    def _look_up(self, example: Example, lead: str) -> list[int]:
        tokens: dict[int, str] = {}
        where = f"of task {example.task!r}"
        name = self.tokenizer.name_or_path or "the model"
        for word in dict.fromkeys(example.choices):
            own = self._tokens(lead, word)
            pieces = ", ".join(map(repr, self.tokenizer.convert_ids_to_tokens(own)))
            if len(own) != 1:
                raise DataError(
                    f"word {word!r:.40} {where} is {len(own)} tokens ({pieces}) of the tokenizer of {name}, and a mask stands for one: "
                    "choose a word that is one token (--verbalizers)"
                )
            if own[0] in self.tokenizer.all_special_ids:
                raise DataError(
                    f"word {word!r:.40} {where} is unknown to the tokenizer of {name} ({pieces}): choose one of its words "
                    "(--verbalizers)"
                )
            other = tokens.setdefault(own[0], word)
            if other != word:
                raise DataError(
                    f"words {other!r:.40} and {word!r:.40} {where} are the same token {pieces} of the tokenizer of {name}: choose words "
                    "that differ (--verbalizers)"
                )
        found = {word: token for token, word in tokens.items()}
        return [found[word] for word in example.choices]

    def _tokens(self, lead: str, word: str) -> list[int]:
        """Those of a word behind `lead`."""
        before, text = (PROBE, f"{PROBE} {word}") if lead == " " else (lead, lead + word)
        whole, alone = (
            tokenise(self.tokenizer, text=[part], add_special_tokens=False)["input_ids"][0] if part else []
            for part in (text, before)
        )
        return whole[len(alone) :] if whole[: len(alone)] == alone else whole


class _Encoder:
    """Pieces -> rows of tokens, however long they are."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        check_mask_token(tokenizer)
        self.tokenizer = tokenizer

    def __call__(self, inputs: Sequence[Sequence[Piece]], examples: Sequence[Example]) -> MaskedRows:
        texts = [_text(self.tokenizer, pieces) for pieces in inputs]
        rows = tokenise(self.tokenizer, text=texts)
        places = [
            self._place(row, pieces, example)
            for row, pieces, example in zip(rows["input_ids"], inputs, examples, strict=True)
        ]
        return MaskedRows(rows["input_ids"], places, [False] * len(texts), rows.get("token_type_ids"))

    def shortened(self, example: Example, max_length: int) -> MaskedRows:
        """The row of an example with the ends of its longest fields left out."""
        ends = {i: self._ends(p.text) for i, p in enumerate(example.pieces) if p.role == "field" and p.text}

        def kept(units: int) -> MaskedRows:
            """With so many units of each field."""
            pieces = [
                replace(piece, text=piece.text[: ends[i][min(units, len(ends[i])) - 1]]) if i in ends else piece
                for i, piece in enumerate(example.pieces)
            ]
            return self([pieces], [example])

        def fits(units: int) -> bool:
            return len(kept(units).ids[0]) <= max_length

        most = max(map(len, ends.values()), default=0)
        if not most or not fits(1):
            raise DataError(
                f"example {example.id!r} of task {example.task!r}: the prompt around its input leaves no room for that in {max_length} "
                "tokens: raise max_input_length, or shorten the prompt"
            )
        return kept(_last_true(fits, 1, most))

    def _ends(self, text: str) -> list[int]:
        """Where a text may be truncated: behind its tokens, or behind any character where the tokenizer does not tell."""
        if not self.tokenizer.is_fast:
            return list(range(1, len(text) + 1))
        spans = tokenise(self.tokenizer, text=[text], add_special_tokens=False, return_offsets_mapping=True)
        return sorted({end for _, end in spans["offset_mapping"][0] if end > 0}) or [len(text)]

    def _place(self, row: Sequence[int], pieces: Sequence[Piece], example: Example) -> int:
        """Where the mask of the prompt is, in a row whose text may hold the same token by itself."""
        number = next(i for i, piece in enumerate(pieces) if piece.role == "mask")
        before = _text(self.tokenizer, pieces[:number]).count(self.tokenizer.mask_token)
        masks = [i for i, token in enumerate(row) if token == self.tokenizer.mask_token_id]
        if len(masks) != _text(self.tokenizer, pieces).count(self.tokenizer.mask_token):
            raise DataError(
                f"example {example.id!r} of task {example.task!r}: its text makes the mask token {self.tokenizer.mask_token!r} by itself: "
                "leave that out of it"
            )
        return masks[before]


def _last_true(fits: Callable[[int], bool], low: int, high: int) -> int:
    """The largest of low .. high that fits, given that `low` does, and that what is larger than one that does not, does not."""
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low


def _text(tokenizer: PreTrainedTokenizerBase, pieces: Sequence[Piece]) -> str:
    """The pieces as the tokenizer reads them."""
    return "".join(_written(tokenizer, pieces))


def _written(tokenizer: PreTrainedTokenizerBase, pieces: Sequence[Piece]) -> Iterator[str]:
    special = {"mask": tokenizer.mask_token, "break": tokenizer.sep_token or tokenizer.eos_token}
    for piece in pieces:
        yield str(special.get(piece.role) or piece.text)


def _lead(pieces: Sequence[Piece]) -> str:
    """What a word at the mask stands behind: "" at the beginning, " " for white space and fields, or a bracket and the like."""
    number = next(i for i, piece in enumerate(pieces) if piece.role == "mask")
    before = pieces[number - 1] if number else None
    if before is None or before.role == "break":
        return ""
    if before.role == "field" or before.text[-1].isspace():
        return " "
    return before.text.split()[-1]
