"""`mhr report`: one page about runs, side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .frame import options
from .frame.console import note, out, print_json, working
from .frame.settings import takes

EXAMPLES = """**Examples**

mhr report runs/demo --output report

mhr report runs/mhr runs/poly runs/lora --output report

mhr report runs/mhr-z runs/mhr-mu sweep/results.jsonl --title "Few-shot, three seeds" --output report
"""

Sources = Annotated[
    list[Path],
    typer.Argument(
        metavar="RUN...",
        help="Runs, folders of adaptations, a demo, evaluations, inspections, tables of scores (.jsonl, .parquet) or studies "
        "(.json). Evaluations and inspections that were written into a run's folder are found by themselves.",
        show_default=False,
    ),
]
Title = Annotated[str, typer.Option(metavar="TEXT", help="Heading of the page.")]


@takes()
def report(
    runs: Sources,
    output: options.Output,
    overwrite: options.Overwrite = False,
    json: options.Json = False,
    title: Title = "mhr report",
) -> None:
    """Compare runs on one self-contained page: who won by how much, tasks, curves, routing, alignment, costs, settings.

    Writes DIR/report.html, and its tables as DIR/report.md and DIR/report.json. The page needs no network, is light or dark as
    the reader's system, and can be printed.
    """
    with working():
        from mhr.report.report import PAGE_FILE, write_report

        made = write_report(runs, output, title=title, overwrite=overwrite)
    if json:
        print_json(made.to_json())
    else:
        for line in made.sections[0].blocks if made.sections and made.sections[0].key == "summary" else []:
            if isinstance(line, str):
                out.print(line, markup=False, soft_wrap=True)
    note(f"Written: {output / PAGE_FILE}")
