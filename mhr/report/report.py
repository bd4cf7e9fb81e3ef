"""The report: one self-contained page, and the same tables as Markdown and JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup, escape

from mhr import __version__
from mhr.files import make_folder, prepare_output, write_json_atomically, write_text_atomically
from mhr.locks import one_writer
from mhr.report.blocks import Details, Figure, Section
from mhr.report.material import Material
from mhr.report.sections import sections
from mhr.report.sources import read_sources
from mhr.report.tables import Table

PAGE_FILE, MARKDOWN_FILE, JSON_FILE = "report.html", "report.md", "report.json"
DEFAULT_TITLE = "mhr report"


@dataclass(frozen=True)
class Report:
    """A report in memory."""

    title: str
    made: str
    material: Material
    sections: list[Section]

    def to_html(self) -> str:
        """One page without any other file: figures, styles and the few lines of script that sort tables are inside."""
        folder = resources.files("mhr.report")
        environment = jinja2.Environment(
            autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
        )
        template = environment.from_string(folder.joinpath("page.html").read_text("utf-8"))
        blocks = {"Table": Table, "Figure": Figure, "Details": Details}
        return template.render(
            title=self.title,
            made=self.made,
            version=__version__,
            sections=self.sections,
            kind=lambda block: next((name for name, of in blocks.items() if isinstance(block, of)), "text"),
            style=Markup(folder.joinpath("page.css").read_text("utf-8")),
            script=Markup(folder.joinpath("page.js").read_text("utf-8")),
            markup=Markup,
            breakable=breakable,
        )

    def to_markdown(self) -> str:
        """Sentences and tables; figures and settings are in the page."""
        parts = [f"# {self.title}", "", f"{self.made}, mhr {__version__}", ""]
        for section in self.sections:
            inside = [block for block in section.blocks if isinstance(block, (str, Table))]
            if inside:
                parts += [f"## {section.title}", ""]
            for block in inside:
                parts += [
                    block.to_markdown() if isinstance(block, Table) else block,
                    *([""] if isinstance(block, str) else []),
                ]
        return "\n".join(parts).rstrip() + "\n"

    def to_json(self) -> dict[str, Any]:
        """Sentences and tables by section, and the runs with their settings. Scores are fractions."""
        return {
            "title": self.title,
            "made": self.made,
            "version": __version__,
            "text": {s.key: [b for b in s.blocks if isinstance(b, str)] for s in self.sections},
            "tables": {b.key: b.to_json() for s in self.sections for b in s.blocks if isinstance(b, Table)},
            "runs": {
                label: {"path": str(group.path), "runs": [str(run.path) for run in group.runs], "info": group.info}
                for label, group in self.material.groups.items()
            },
        }


def breakable(name: str) -> Markup:
    """A name that a page may break after its underscores."""
    return Markup("_<wbr>").join(map(escape, name.split("_")))


def make_report(paths: Sequence[str | Path], title: str = DEFAULT_TITLE) -> Report:
    """The report of what the paths name: runs, adaptations, evaluations, inspections, score tables, studies, demos.

    Raises DataError or CheckpointError, one line, for what cannot be reported.
    """
    material = read_sources(paths)
    made = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    return Report(title, made, material, sections(material))


@one_writer
def write_report(
    paths: Sequence[str | Path], output: str | Path, *, title: str = DEFAULT_TITLE, overwrite: bool = False
) -> Report:
    """`make_report`, written into the folder `output` as report.html, report.md and report.json.

    Raises MhrError for a folder that holds something else, or something at all without `overwrite`.
    """
    prepare_output(output, overwrite)
    report = make_report(paths, title)
    page, markdown, record = report.to_html(), report.to_markdown(), report.to_json()
    folder = make_folder(output)
    write_json_atomically(folder / JSON_FILE, record)  # first, as it marks the folder as an output
    write_text_atomically(folder / PAGE_FILE, page)
    write_text_atomically(folder / MARKDOWN_FILE, markdown)
    return report
