"""`mhr inspect`: what a run learnt about its tasks."""

from __future__ import annotations

from rich.text import Text

from ._inspect_tables import blocks
from .frame import options
from .frame.console import note, out, print_json, working
from .frame.settings import LOADING, Given, loading_of, takes

EXAMPLES = """**Examples**

mhr inspect runs/mhr

mhr inspect runs/mhr --output runs/plots

mhr inspect runs/mhr --alignment --examples 16 --output runs/mhr/inspection

mhr inspect runs/mhr --transfer --task rev-last,min-box,first-upper --limit 20
"""


@takes(
    "inspect",
    "tasks",
    "scope.names",
    "data.on_bad_row",
    *LOADING,
    of_run=("tasks", "data.on_bad_row"),
    common=(
        *("--tasks", "--task", "--output", "--overwrite", "--json", "--alignment", "--examples", "--transfer", "--limit"),
    ),
)  # fmt: skip
def inspect(
    run: options.Run,
    output: options.OptionalOutput = None,
    overwrite: options.Overwrite = False,
    json: options.Json = False,
    *,
    given: Given,
) -> None:
    """Show a run's parameters, its routing as a heat map, entropy per layer, and which tasks route alike.

    --alignment and --transfer use its training tasks, or those of --task. With --output, DIR holds the heat maps and curves
    as PNG and SVG, and inspection.json, which `mhr report` reads where DIR is in the run's folder.
    """
    with working():
        from mhr.report.inspecting import inspect_fully

        result = inspect_fully(
            run,
            **given.values("inspect"),
            **given.values(""),
            **given.values("scope"),
            **given.values("data"),
            **loading_of(given),
            output=output,
            overwrite=overwrite,
            say=note,
        )
    if json:
        print_json(result.to_json())
    else:
        for block in blocks(result):
            out.print(block, soft_wrap=isinstance(block, Text))
    if output:
        note(f"Written: {len(result.plots)} plots and inspection.json in {output}")
