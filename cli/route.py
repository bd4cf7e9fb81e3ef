"""`mhr route`: finished LoRAs, among which each token chooses."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .frame import options
from .frame.console import note, out, print_json, working
from .frame.settings import LOADING, Given, loading_of, takes

EXAMPLES = """**Examples**

mhr route runs/private --top-k 2 --output runs/arrow

mhr route lora-a lora-b lora-c --model google/flan-t5-base --output runs/arrow

mhr route runs/private --method phatgoose --steps 100 --output runs/gated

mhr route runs/bottlenecks --method adapter-fusion --steps 500 --output runs/fused

mhr evaluate runs/arrow
"""

Sources = Annotated[
    list[Path],
    typer.Argument(
        metavar="INPUT...",
        help="Runs, adapters (ours or PEFT's LoRAs), or folders of them. A bank stands for an adapter of each of its tasks.",
        show_default=False,
    ),
]


@takes(
    "route",
    *LOADING,
    "loading.kind",
    common=("--output", "--method", "--top-k", "--temperature", "--experts", "--model", "--kind", "--overwrite", "--json"),
)  # fmt: skip
def route(
    paths: Sources,
    output: options.Output,
    overwrite: options.Overwrite = False,
    json: options.Json = False,
    *,
    given: Given,
) -> None:
    """Route each token by itself over LoRAs that are finished: no task is named, and none has to be known.

    The run that is written answers with `mhr evaluate` and `mhr predict`. It is no one LoRA, so it is not merged; its inputs are.
    """
    with working():
        from mhr.experts import route_tokens

        run = route_tokens(paths, output=output, overwrite=overwrite, **given.values("route"), **loading_of(given))
    info = run.info
    if json:
        print_json({"output": str(output), **info})
    else:
        tasks = info["tasks"]
        shown = ", ".join(tasks[:4]) + (f" and {len(tasks) - 4} more" if len(tasks) > 4 else "")
        adapter = run.config().adapter
        kind = "LoRA" if adapter is None or adapter.adapter == "lora" else adapter.adapter
        kind += "s" if len(tasks) > 1 else ""
        out.print(f"{info['method']} on {info['base']}, {len(tasks)} {kind} ({shown})", markup=False, soft_wrap=True)
    note(f"Routed: {output}")
