"""`mhr adapt`: teach a pretrained run new tasks from a few examples each."""

from __future__ import annotations

from typing import Annotated

import typer

from mhr.methods import MODES, listed

from .frame import few_shot, options
from .frame.console import note, print_json, working
from .frame.settings import PANELS, Given, loading_of, takes

EXAMPLES = """**Examples**

mhr adapt runs/mhr --task init-upper --mode z --output runs/mhr-z

mhr adapt runs/superni --task task1206,task1212 --mode mu --shots 32 --seeds 13,42,58 --output runs/superni-mu

mhr adapt runs/mhr --task min-box --grid lr=1e-2,1e-3 router_lr=0.5,0.1 --patience 3 --output runs/searched
"""

CHAT = ("data.chat_template", "data.train_on", "data.system")

Mode = Annotated[
    str,
    typer.Option(
        metavar="NAME",
        help=f"What is trained: {', '.join(MODES)}. In short: {listed(MODES)}.",
        rich_help_panel=PANELS["adapt"],
    ),
]


@takes(
    *few_shot.SETTINGS,
    *CHAT,
    sets=("adapt", *few_shot.OF_RUN, *CHAT),
    of_run=("adapt", *few_shot.OF_RUN, *CHAT),
    common=(
        *("--output", "--task", "--tasks", "--mode", "--shots", "--seeds", "--steps", "--batch-size", "--lr", "--router-lr"),
        *("--grid", "--resume", "--overwrite"),
    ),
)  # fmt: skip
def adapt(
    run: options.Run,
    output: options.ResumableOutput,
    overwrite: options.Overwrite = False,
    resume: options.Resume = False,
    json: options.Json = False,
    mode: Mode = "mhr",
    shots: few_shot.Shots = None,
    grid: few_shot.Grid = None,
    *,
    given: Given,
) -> None:
    """Adapt a pretrained run to new tasks, from a few examples of each.

    Writes one adapted checkpoint per task and seed, at DIR/TASK/SEED. Without --task: every held-out task of the
    collection the run was trained on, or of --tasks. Without --grid, --patience and the like, each is one training and its
    last step counts. What is not given is as the `adapt` settings of the run say.
    """
    few = few_shot.few_shot_settings(shots, grid, given)
    with working():
        from mhr.data.truncation import truncation_line
        from mhr.few_shot import adapt as train
        from mhr.files import read_json
        from mhr.runs.notes import notes_of
        from mhr.training.peak import memory_line

        runs = train(
            str(run),
            given.values("scope").get("names"),
            mode=mode,
            output=str(output),
            tasks_path=given.values("").get("tasks"),
            **given.values("data"),
            **loading_of(given),
            overwrite=overwrite,
            resume=resume,
            **few,
        )
        described = read_json(output / "adapt.json")
        notes = [*notes_of(described), *described["notes"]]
    if json:
        print_json([str(folder.path) for folder in runs])
    for line in notes:
        note(f"Note: {line}")
    for folder in runs:
        truncated = truncation_line(folder.info.get("truncated"))
        if truncated:
            note(f"{folder.path}: {truncated}")
        chosen = folder.info["selection"]
        if chosen:
            trial = chosen["trials"][chosen["chosen"]]
            values = ", ".join(f"{name} {value:g}" for name, value in trial["settings"].items())
            note(
                f"{folder.path}: chose {', '.join(filter(None, [values, 'step ' + str(trial['step'])]))} on {chosen['on']}"
            )
    if runs[-1].info.get("memory"):
        note(memory_line(runs[-1].info["memory"]))
    note(f"Adapted: {len(runs)} checkpoints in {output} (protocol {runs[0].info['protocol']})")
    note(f"Next: mhr evaluate {runs[0].path}")
