"""What a benchmark leaves in a folder: its results as JSON, its tables as a Markdown page, its plots as PNG and SVG."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mhr.files import make_folder, write_bytes_atomically, write_json_atomically, write_text_atomically

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def save(record: Mapping[str, Any], folder: Path, figures: Mapping[str, Figure]) -> list[Path]:
    """Writes NAME.json, NAME.md and the plots; returns the files."""
    make_folder(folder)
    name = record["benchmark"]
    written = [
        write_json_atomically(folder / f"{name}.json", _finite(record)),
        write_text_atomically(folder / f"{name}.md", page(record, list(figures))),
    ]
    for title, figure in figures.items():
        for kind in ("png", "svg"):
            written.append(write_bytes_atomically(folder / f"{title}.{kind}", _drawn(figure, kind)))
    return written


def page(record: Mapping[str, Any], figures: list[str]) -> str:
    """The tables in Markdown, with the command and the machine above them."""
    lines = [f"# Benchmark: {record['benchmark']}", "", f"`{record['command']}`", ""]
    lines += ["; ".join(f"{key.replace('_', ' ')} {cell(value)}" for key, value in record["machine"].items()), ""]
    lines += [f"![{name}]({name}.svg)" for name in figures]
    for table in record["tables"]:
        lines += ["", f"## {table['title']}", ""]
        lines += ["| " + " | ".join(map(str, table["columns"])) + " |", "|---" * len(table["columns"]) + "|"]
        lines += ["| " + " | ".join(map(cell, row)) + " |" for row in table["rows"]]
        if table.get("note"):
            lines += ["", table["note"]]
    return "\n".join([*lines, ""])


def _finite(value: Any) -> Any:
    """With null for NaN and infinities, which JSON does not have: errors of results that disagree."""
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def cell(value: Any) -> str:
    """Three digits of a fraction, all of a large number."""
    if isinstance(value, float):
        return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _drawn(figure: Figure, kind: str) -> bytes:
    import matplotlib

    buffer = io.BytesIO()
    # Text in an SVG stays text, and equal plots are equal files.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "mhr"}):
        figure.savefig(buffer, format=kind, metadata={"Date": None} if kind == "svg" else None)
    return buffer.getvalue()
