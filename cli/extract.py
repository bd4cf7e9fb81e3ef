"""`mhr extract`: a LoRA out of a model that was fine-tuned whole."""

from __future__ import annotations

from typing import Annotated

import typer

from .frame import options
from .frame.console import note, out, print_json, working
from .frame.settings import Given, takes

EXAMPLES = """**Examples**

mhr extract models/tuned HuggingFaceTB/SmolLM2-135M --rank 32 --output lora

mhr extract models/tuned models/base --rank 128 --rank-energy 0.95 --output lora

mhr extract models/tuned models/base --rank 32 --modules-to-save norm,input_layernorm --ignore embed_tokens --output lora
"""

Full = Annotated[
    str, typer.Argument(metavar="FULL", help="The fine-tuned model: a folder or a hub id.", show_default=False)
]
Base = Annotated[str, typer.Argument(metavar="BASE", help="The model that it was fine-tuned from.", show_default=False)]


@takes(
    "extract", common=("--output", "--overwrite", "--json", "--rank", "--rank-energy", "--modules-to-save", "--ignore")
)
def extract(
    full: Full,
    base: Base,
    output: options.Output,
    overwrite: options.Overwrite = False,
    json: options.Json = False,
    *,
    given: Given,
) -> None:
    """Make a PEFT LoRA of the difference of two models, by singular value decomposition of each layer.

    Exact where the difference is of no higher rank. What no LoRA holds (norms, embeddings, biases) and differs is named and refused, unless
    --modules-to-save or --ignore says what becomes of it. Models are read one parameter at a time. extract_report.json in DIR has each layer's
    rank and relative error.
    """
    with working():
        from mhr.files import read_json
        from mhr.merging.extraction import EXTRACT_REPORT
        from mhr.merging.extraction import extract as make

        make(full, base, output=output, overwrite=overwrite, **given.values("extract"))
        report = read_json(output / EXTRACT_REPORT)
    if json:
        print_json({"output": str(output), **report})
    else:
        ranks = sorted(set(report["ranks"].values()))
        shown = str(ranks[0]) if len(ranks) == 1 else f"{ranks[0]} to {ranks[-1]}"
        worst = max(report["error"]["layers"], key=report["error"]["layers"].get)
        out.print(f"{len(report['ranks'])} layers, rank {shown}", soft_wrap=True)
        out.print(
            f"relative error {report['error']['overall']:.2e}, at most {report['error']['layers'][worst]:.2e} ({worst})",
            markup=False,
            soft_wrap=True,
        )
        if report["modules_to_save"]:
            out.print(f"taken whole: {', '.join(report['modules_to_save'])}", markup=False, soft_wrap=True)
        for name, apart in report["ignored"].items():
            far = "not 0, as it is there" if apart is None else f"{apart:.2e} from it"
            out.print(f"left as in the base: {name}, which is {far}", markup=False, soft_wrap=True)
    for line in report["remarks"]:
        note(f"note: {line}")
    note(f"Extracted: {output}")
