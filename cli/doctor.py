"""`mhr doctor`: what is installed, what runs natively, and what is missing with the command that installs it."""

from __future__ import annotations

import typer
from rich.table import Table

from .frame import options
from .frame.console import out, print_json, working
from .frame.settings import takes

EXAMPLES = """**Examples**

mhr doctor

mhr doctor --json
"""


@takes()
def doctor(json: options.Json = False) -> None:
    """Say what this machine has and what it lacks: versions, native ops, SIMD level, threads, GPU.

    Exit code 0 where nothing needed is missing, 1 otherwise.
    """
    with working(models=False):
        from mhr.doctor import examine

        found = examine()
    if json:
        print_json(found.to_dict())
    else:
        for title, rows in found.sections.items():
            if not rows:
                continue
            table = Table(
                title=title, title_justify="left", title_style="bold", show_header=False, box=None, padding=(0, 2)
            )
            for name, value in rows.items():
                table.add_row(name, value)
            out.print(table)
            out.print()
        for lack in found.missing:
            out.print(f"[yellow]missing[/yellow] {lack.what}", soft_wrap=True)
            out.print(f"        fix: [bold]{lack.fix}[/bold]", soft_wrap=True)
        if not found.missing:
            out.print("[green]Nothing is missing.[/green]")
    if any(lack.needed for lack in found.missing):
        raise typer.Exit(1)
