"""`mhr`: the list of commands. To add one, write its file and add its line at the end of this one."""

from __future__ import annotations

from typing import Annotated

import typer

from . import adapt, benchmark, data, demo, doctor, evaluate, inspect, merge, pretrain, report, sweep
from .commands import Commands
from .console import out
from .many import ManyValues

app = typer.Typer(
    name="mhr",
    cls=Commands,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="A first run: `mhr demo`. What this machine can do: `mhr doctor`.",
)


def _version(wanted: bool) -> None:
    if not wanted:
        return
    import torch

    import mhr
    from mhr.ops import native_ops

    ops = native_ops()
    native = [f"{name} ({', '.join(devices)})" for name, devices in ops.items() if devices]
    out.print(f"mhr {mhr.__version__}, torch {torch.__version__}", soft_wrap=True)
    out.print(
        f"native ops: {', '.join(native) or 'none, the pure-torch references serve (see mhr doctor)'}", soft_wrap=True
    )
    raise typer.Exit


@app.callback()
def mhr(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Print versions and which ops are native."),
    ] = False,
) -> None:
    """One bank of adapters for many tasks: train it, adapt it to a new task from a few examples, ship it as one LoRA."""


app.command(epilog=pretrain.EXAMPLES)(pretrain.pretrain)
app.command(epilog=adapt.EXAMPLES, cls=ManyValues)(adapt.adapt)
app.command(epilog=sweep.EXAMPLES, cls=ManyValues)(sweep.sweep)
app.command(epilog=merge.EXAMPLES)(merge.merge)
app.command(epilog=evaluate.EXAMPLES, cls=ManyValues)(evaluate.evaluate)
app.command(epilog=benchmark.EXAMPLES)(benchmark.benchmark)
app.command(epilog=inspect.EXAMPLES)(inspect.inspect)
app.command(epilog=report.EXAMPLES)(report.report)
app.add_typer(data.app)
app.command(epilog=doctor.EXAMPLES)(doctor.doctor)
app.command(epilog=demo.EXAMPLES)(demo.demo)
