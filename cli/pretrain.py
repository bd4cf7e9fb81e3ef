"""`mhr pretrain`: train a bank of adapters on many tasks."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mhr.errors import ConfigError
from mhr.runs.config import COUNTED_TWICE, Said

from .frame import options
from .frame.console import note, print_json, working
from .frame.settings import OPTIONS, Given, takes

EXAMPLES = """**Examples**

mhr pretrain --preset demo --output runs/mhr

mhr pretrain --preset superni --tasks natural-instructions --n-heads 4 --output runs/superni

mhr pretrain --model facebook/bart-base --tasks tasks.jsonl --method poly --rank 16 --steps 5000 --output runs/bart

mhr pretrain --preset demo --eval-every 100 --early-stopping 3 --keep-best --output runs/best

mhr pretrain runs/mhr --continue-as-mu --steps 1000 --output runs/mu

mhr pretrain --preset glue-adamix-bert --tasks sst2.jsonl --output runs/adamix
"""

Source = Annotated[
    Path | None,
    typer.Argument(
        metavar="RUN",
        help="Finished run to train on from. It goes on with its settings, a new optimizer and schedule.",
        show_default=False,
    ),
]

TOP = ("model", "kind", "tasks", "method", "init_skills", "head", "share_heads")


@takes(
    *("model", "kind", "tasks", "method", "adapter", "init_skills", "continue_as", *OPTIONS, "data.template", "data.on_bad_row", "train"),
    *("data.chat_template", "data.train_on", "data.system", "data.packing", "data.max_input_length", "data.max_target_length"),
    *("data.prompt", "data.verbalizers"),
    *("head", "share_heads", "data.weights", "data.group_by_length", "data.workers", "data.cache"),
    sets=(*TOP, "adapter", "data", "train", "adapt"),
    common=(
        *("--output", "--tasks", "--model", "--preset", "--config", "--method", "--n-skills", "--n-heads", "--rank", "--lr"),
        *("--router-lr", "--steps", "--batch-size", "--seed", "--resume", "--overwrite", "--set"),
    ),
)  # fmt: skip
def pretrain(
    output: options.ResumableOutput,
    run: Source = None,
    overwrite: options.Overwrite = False,
    resume: options.Resume = False,
    json: options.Json = False,
    config: options.Config = None,
    preset: options.Preset = None,
    *,
    given: Given,
) -> None:
    """Train a bank of adapters, and how tasks are routed over it, on many tasks at once.

    The run folder holds the resolved settings, metrics per task, TensorBoard logs, resumable checkpoints and the trained
    adapter. `torchrun -m mhr_cli pretrain ...` trains on several processes. With RUN, its adapter is trained on for as many steps as
    are asked for: as it is, or, with --continue-as-mu, as the average of its skills.
    """
    resumed = resume and config is None and (output / "config.yaml").is_file()
    if resumed:
        config = output / "config.yaml"
    with working():
        from mhr.data.truncation import truncation_line, untrained_lines
        from mhr.evaluation import choice_scorer
        from mhr.runs import load_config
        from mhr.runs.notes import best_line, notes_of
        from mhr.runs.unused import refuse_unused
        from mhr.training import pretrain as train
        from mhr.training.peak import memory_line

        flags = given.flags
        if run is not None:
            if (config and not resumed) or preset:
                raise ConfigError(f"{run} brings the settings of its run: leave --config and --preset out")
            flags = {"continue_from": Said(str(run), "RUN")} | (dict(flags) if resumed else continued(run, given))
            config = config or run / "config.yaml"
        settings = load_config(config, preset, given.overrides, flags)
        refuse_unused(given.named(), settings)
        if settings.trust_remote_code and not given.values("").get("trust_remote_code"):
            raise ConfigError(
                f"{config} sets trust_remote_code, which a file alone does not switch on: add --trust-remote-code if you trust "
                f"{settings.model}"
            )
        done = train(settings, str(output), resume=resume, overwrite=overwrite, scorer=choice_scorer)
    if json:
        print_json(done.info)
    for line in notes_of(done.info):
        note(f"Note: {line}")
    compared = done.info.get("consistency", {}).get("squared_difference")
    if compared:
        note(
            f"Consistency compares single logits by their squared difference, for tasks with one choice or a number: {', '.join(compared)}"
        )
    lost = done.info.get("truncated")
    for line in [*done.info.get("notes", ()), best_line(done.info), truncation_line(lost), *untrained_lines(lost)]:
        if line:
            note(f"Note: {line}")
    if done.info.get("memory"):
        note(memory_line(done.info["memory"]))
    note(f"Trained: {Path(done.path)}")


def continued(run: Path, given: Given) -> dict[str, Said]:
    """The settings of a run that goes on from another, beside those of that run. Raises MhrError for a folder that is no run, and
    where it is not said for how long."""
    from mhr.runs import RunFolder

    source = RunFolder.open(run).config()
    named = given.named()
    if not any(name in named for name in COUNTED_TWICE[0]):
        raise ConfigError(
            f"{run} was trained for {source.train.steps} steps, and it is not said for how many it goes on: add --steps N"
        )
    # What an earlier phase began with, or ended in, is not asked for again.
    once = ("init_skills", "train.switch_to_mu_at", "train.anneal_to_mu", "train.anneal_by")
    cleared = {name: Said("half" if name == once[-1] else None) for name in once if name not in named}
    return {**cleared, "continue_as": Said("bank"), **given.flags}
