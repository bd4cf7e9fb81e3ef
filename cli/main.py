"""`mhr`: the list of commands. To add one, write its file and add its line at the end of this one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import typer

from . import (
    adapt,
    benchmark,
    chat,
    data,
    demo,
    demo_llm,
    doctor,
    evaluate,
    extract,
    import_,
    inspect,
    merge,
    predict,
    pretrain,
    report,
    route,
    sweep,
)
from .frame.command import command_class
from .frame.console import out
from .frame.group import Commands

TOUR = """\
mhr trains one bank of adapters on many tasks, adapts it to a new task from a few examples, and ships it as one plain LoRA.

From nothing to a LoRA that PEFT loads, in minutes and without a download:

  mhr pretrain --preset demo --output runs/mhr                               train a bank on the built-in tasks
  mhr adapt runs/mhr --task init-upper --mode z --seeds 13 --output runs/z   a new task, from 32 examples
  mhr evaluate runs/z/init-upper/13                                          how well it answers
  mhr merge runs/z/init-upper/13 --to peft-lora --output lora                one LoRA, for PEFT and others
  mhr inspect runs/mhr --output runs/plots                                   which tasks route alike

Your own tasks: mhr data check FILE_OR_FOLDER. All of it at once: mhr demo. This machine: mhr doctor.
All commands: mhr --help. One command: mhr COMMAND --help."""

app = typer.Typer(
    name="mhr",
    cls=Commands,
    invoke_without_command=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="A first run: `mhr demo`. What this machine can do: `mhr doctor`. The way from nothing to a LoRA: `mhr`.",
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
        f"native ops: {', '.join(native) or 'none, the pure-torch references are used (see mhr doctor)'}",
        soft_wrap=True,
    )
    raise typer.Exit


@app.callback()
def mhr(
    context: typer.Context,
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Print versions and which ops are native."),
    ] = False,
) -> None:
    """One bank of adapters for many tasks: train it, adapt it to a new task from a few examples, ship it as one LoRA."""
    if context.invoked_subcommand is None:
        out.print(TOUR, soft_wrap=True)


def _add(command: Callable[..., None], examples: str) -> None:
    name = command.__name__.strip("_").replace("_", "-")  # import_ is called as no function can be
    app.command(name, epilog=examples, cls=command_class(command))(command)


_add(pretrain.pretrain, pretrain.EXAMPLES)
_add(adapt.adapt, adapt.EXAMPLES)
_add(sweep.sweep, sweep.EXAMPLES)
_add(merge.merge, merge.EXAMPLES)
_add(evaluate.evaluate, evaluate.EXAMPLES)
_add(predict.predict, predict.EXAMPLES)
_add(chat.chat, chat.EXAMPLES)
_add(benchmark.benchmark, benchmark.EXAMPLES)
_add(inspect.inspect, inspect.EXAMPLES)
_add(report.report, report.EXAMPLES)
app.add_typer(data.app)
_add(doctor.doctor, doctor.EXAMPLES)
_add(demo.demo, demo.EXAMPLES)
_add(demo_llm.demo_llm, demo_llm.EXAMPLES)
_add(import_.import_, import_.EXAMPLES)
_add(route.route, route.EXAMPLES)
_add(extract.extract, extract.EXAMPLES)
