"""Inputs with a mask: what a prompt template with `{mask}` makes of a row, piece by piece.

    "{input} It was {mask}."    Piece("A fine film.", "field"), Piece(" It was "), Piece("{mask}", "mask"), Piece(".")

A masked language model answers at the mask, by the word of each label (its verbalizer). Only the fields may be truncated.
After Gao et al. 2021 (LM-BFF, arXiv 2012.15723).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

MASK_FIELD = "mask"
"""The field of a template where the answer stands."""


@dataclass(frozen=True, slots=True)
class Piece:
    """Text of an input. role: "text" of a template, "field" (a value of the row), "mask" (where the answer stands), or "break"
    (between two solved examples)."""

    text: str
    role: str = "text"


MASK = Piece(f"{{{MASK_FIELD}}}", "mask")
BREAK = Piece("\n\n", "break")


def text_of_pieces(pieces: Sequence[Piece]) -> str:
    """The pieces as they are shown to people."""
    return "".join(piece.text for piece in pieces)


def stripped(pieces: Sequence[Piece]) -> tuple[Piece, ...]:
    """The pieces without empty ones, and without white space around the whole."""
    kept = list(pieces)
    for end, strip in ((0, str.lstrip), (-1, str.rstrip)):
        while kept and kept[end].role in ("text", "field"):
            kept[end] = Piece(strip(kept[end].text), kept[end].role)
            if kept[end].text:
                break
            del kept[end]
    return tuple(piece for piece in kept if piece.text)


def solved(pieces: Sequence[Piece], word: str) -> tuple[Piece, ...]:
    """The pieces with a word in place of the mask, none of which may be truncated."""
    return tuple(Piece(word if piece.role == "mask" else piece.text) for piece in pieces)
