"""Rows of one question and one answer under other names than ours.

Alpaca       instruction, input (may be empty), output
completions  prompt, completion; or prompt, chosen, of preferences, whose rejected answer is not read
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mhr.data.forms.form import Source, has, reads_rows
from mhr.data.forms.messages import conversation


@reads_rows("alpaca", "instruction and output", lambda row, _: has(row, "instruction") and "output" in row)
def read_alpaca(row: Mapping[str, Any], source: Source) -> dict[str, Any]:
    parts = [row["instruction"], row.get("input") or ""]
    joined = "\n\n".join(p.strip() for p in parts if p.strip()) if all(isinstance(p, str) for p in parts) else None
    return {"input": joined, "targets": row["output"]}


@reads_rows("completion", "prompt and completion", lambda row, _: has(row, "prompt") and "completion" in row)
def read_completion(row: Mapping[str, Any], source: Source) -> dict[str, Any]:
    return _answered(row["prompt"], row["completion"])


@reads_rows("preference", "prompt and chosen", lambda row, _: has(row, "prompt") and "chosen" in row)
def read_preference(row: Mapping[str, Any], source: Source) -> dict[str, Any]:
    chosen = row["chosen"]
    if isinstance(chosen, list) and isinstance(row["prompt"], str):
        return conversation(chosen)  # the whole conversation, its prompt once more beside it
    return _answered(row["prompt"], chosen)


def _answered(prompt: Any, answer: Any) -> dict[str, Any]:
    if isinstance(prompt, list) and isinstance(answer, list):
        return conversation([*prompt, *answer])
    return {"input": prompt, "targets": answer}
