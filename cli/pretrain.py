"""`mhr pretrain`: train a bank of adapters on many tasks."""

from __future__ import annotations

from pathlib import Path

from mhr.errors import ConfigError

from .frame import options
from .frame.console import note, print_json, working
from .frame.settings import OPTIONS, Given, takes

EXAMPLES = """**Examples**

mhr pretrain --preset demo --output runs/mhr

mhr pretrain --preset superni --tasks natural-instructions --n-heads 4 --output runs/superni

mhr pretrain --model facebook/bart-base --tasks tasks.jsonl --method poly --rank 16 --steps 5000 --output runs/bart

mhr pretrain --preset demo --eval-every 100 --early-stopping 3 --keep-best --output runs/best

mhr pretrain --preset glue-adamix-bert --tasks sst2.jsonl --share-up --output runs/adamix
"""

TOP = ("model", "kind", "tasks", "method", "init_skills", "head", "share_heads")


@takes(
    *("model", "kind", "tasks", "method", "adapter", "init_skills", *OPTIONS, "data.template", "data.on_bad_row", "train"),
    *("data.chat_template", "data.train_on", "data.system", "data.packing", "data.max_input_length", "data.max_target_length"),
    *("head", "share_heads", "data.weights", "data.group_by_length", "data.workers", "data.cache"),
    sets=(*TOP, "adapter", "data", "train", "adapt"),
    common=(
        *("--output", "--tasks", "--model", "--preset", "--config", "--method", "--n-skills", "--n-heads", "--rank", "--lr"),
        *("--router-lr", "--steps", "--batch-size", "--seed", "--resume", "--overwrite", "--set"),
    ),
)  # fmt: skip
def pretrain(
    output: options.Output,
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
    adapter. `torchrun -m mhr_cli pretrain ...` trains on several processes.
    """
    if resume and config is None and (output / "config.yaml").is_file():
        config = output / "config.yaml"
    with working():
        from mhr.data.truncation import truncation_line, untrained_lines
        from mhr.evaluation import choice_scorer
        from mhr.runs import load_config
        from mhr.runs.notes import best_line, notes_of
        from mhr.runs.unused import refuse_unused
        from mhr.training import pretrain as train
        from mhr.training.peak import memory_line

        settings = load_config(config, preset, given.overrides, given.flags)
        refuse_unused(given.named(), settings)
        if settings.trust_remote_code and not given.values("").get("trust_remote_code"):
            raise ConfigError(
                f"{config} sets trust_remote_code, which a file alone does not switch on: add --trust-remote-code if you trust "
                f"{settings.model}"
            )
        run = train(settings, str(output), resume=resume, overwrite=overwrite, scorer=choice_scorer)
    if json:
        print_json(run.info)
    for line in notes_of(run.info):
        note(f"Note: {line}")
    compared = run.info.get("consistency", {}).get("squared_difference")
    if compared:
        note(
            f"Consistency compares single logits by their squared difference, for tasks with one choice or a number: {', '.join(compared)}"
        )
    lost = run.info.get("truncated")
    for line in [*run.info.get("notes", ()), best_line(run.info), truncation_line(lost), *untrained_lines(lost)]:
        if line:
            note(f"Note: {line}")
    if run.info.get("memory"):
        note(memory_line(run.info["memory"]))
    note(f"Trained: {Path(run.path)}")
