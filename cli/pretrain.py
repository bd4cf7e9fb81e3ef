"""`mhr pretrain`: train a bank of adapters on many tasks."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mhr.errors import ConfigError
from mhr.methods import METHODS, listed

from . import options
from .console import note, print_json, working
from .options import SETTINGS

EXAMPLES = """**Examples**

mhr pretrain --preset demo --output runs/mhr

mhr pretrain --preset superni --tasks natural-instructions --n-heads 4 --output runs/superni

mhr pretrain --model facebook/bart-base --tasks tasks.jsonl --method poly --rank 16 --steps 5000 --output runs/bart

mhr pretrain --preset glue-adamix-bert --tasks sst2.jsonl --share-up --output runs/adamix
"""

Model = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="Backbone: a hub id, a folder that save_pretrained wrote, or builtin:t5-tiny (the default).",
        rich_help_panel=SETTINGS,
    ),
]
Method = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help=f"What is trained: {listed(METHODS)}.",
        rich_help_panel=SETTINGS,
    ),
]
OPEN = [name for name, method in METHODS.items() if method.routing and not method.adapter]

Adapter = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help=f"What is routed: lora, ia3 or bottleneck (default lora), with method {', '.join(OPEN)}.",
        rich_help_panel=SETTINGS,
    ),
]
Skills = Annotated[
    int | None,
    typer.Option(
        "--n-skills",
        "--skills",
        help="Skills in the bank that tasks mix (default 8), or that adamix draws (4).",
        rich_help_panel=SETTINGS,
    ),
]
Heads = Annotated[
    int | None,
    typer.Option(
        "--n-heads",
        "--heads",
        help="Blocks of features that are routed apart; must divide the sizes of the adapted layers (default 8).",
        rich_help_panel=SETTINGS,
    ),
]
Rank = Annotated[
    int | None,
    typer.Option(help="Rank of the low-rank factors, width of bottlenecks (default 4).", rich_help_panel=SETTINGS),
]
ShareUp = Annotated[
    bool,
    typer.Option("--share-up", help="adamix: one up projection for all skills.", rich_help_panel=SETTINGS),
]
ShareDown = Annotated[
    bool,
    typer.Option("--share-down", help="adamix: one down projection for all skills.", rich_help_panel=SETTINGS),
]
Consistency = Annotated[
    float | None,
    typer.Option(
        help="adamix: weight of the divergence between two passes that draw different skills; 0 makes one pass. Unset: as "
        "published, 1 for encoders and 100 per target token for generators.",
        rich_help_panel=SETTINGS,
    ),
]
Targets = Annotated[
    str | None,
    typer.Option(
        metavar="NAMES",
        help="Layers to adapt, by their names or endings, as in q,v. Unset: the attention projections, or for bottlenecks the "
        "outputs of the feed-forward blocks. A regular expression goes in --set adapter.targets=...",
        rich_help_panel=SETTINGS,
    ),
]
InitSkills = Annotated[
    list[str] | None,
    typer.Option(
        "--init-skills",
        metavar="FOLDER",
        help="An adapter (ours or PEFT's, or a folder of them) that a skill begins as, the first ones in order; repeat it for "
        "more. The other skills are drawn.",
        rich_help_panel=SETTINGS,
        show_default=False,
    ),
]
Lr = Annotated[
    float | None, typer.Option(help="Learning rate of the adapters (default 0.001).", rich_help_panel=SETTINGS)
]
RouterLr = Annotated[
    float | None,
    typer.Option(
        help="Learning rate of the routing, much larger than the adapters' (default 0.1).", rich_help_panel=SETTINGS
    ),
]
Steps = Annotated[int | None, typer.Option(help="Updates of the weights (default 1000).", rich_help_panel=SETTINGS)]
BatchSize = Annotated[
    int | None, typer.Option(help="Examples per forward pass and process (default 16).", rich_help_panel=SETTINGS)
]
Accumulation = Annotated[
    int | None, typer.Option(help="Forward passes per update (default 1).", rich_help_panel=SETTINGS)
]
Precision = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="no (as the weights are), bf16 or fp16 (default no).", rich_help_panel=SETTINGS),
]
Scheduler = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="Learning rate after the warm-up: linear, cosine or constant (default linear).",
        rich_help_panel=SETTINGS,
    ),
]
SwitchToMu = Annotated[
    int | None,
    typer.Option(
        "--switch-to-mu-at",
        metavar="STEP",
        help="After this step all skills weigh alike: the bank trains on as its average, one adapter for all tasks, for "
        "zero-shot use (MHR-mu).",
        rich_help_panel=SETTINGS,
        show_default=False,
    ),
]
AnnealToMu = Annotated[
    int | None,
    typer.Option(
        "--anneal-to-mu",
        metavar="STEPS",
        help="The same by degrees: over the last so many steps the routing goes to uniform by a cosine.",
        rich_help_panel=SETTINGS,
        show_default=False,
    ),
]
Seed = Annotated[
    int | None,
    typer.Option(
        help="Fixes initial values, the order of examples, dropout and noise (default 42).", rich_help_panel=SETTINGS
    ),
]


def pretrain(
    output: options.Output,
    tasks: options.Tasks = None,
    overwrite: options.Overwrite = False,
    resume: options.Resume = False,
    json: options.Json = False,
    config: options.Config = None,
    preset: options.Preset = None,
    set_: options.Set = None,
    model: Model = None,
    method: Method = None,
    adapter: Adapter = None,
    n_skills: Skills = None,
    n_heads: Heads = None,
    rank: Rank = None,
    share_up: ShareUp = False,
    share_down: ShareDown = False,
    consistency: Consistency = None,
    targets: Targets = None,
    lr: Lr = None,
    router_lr: RouterLr = None,
    steps: Steps = None,
    batch_size: BatchSize = None,
    accumulation: Accumulation = None,
    precision: Precision = None,
    scheduler: Scheduler = None,
    seed: Seed = None,
    template: options.Template = None,
    switch_to_mu_at: SwitchToMu = None,
    anneal_to_mu: AnnealToMu = None,
    init_skills: InitSkills = None,
) -> None:
    """Train a bank of adapters, and how tasks are routed over it, on many tasks at once.

    The run folder holds the resolved settings, metrics per task, TensorBoard logs, resumable checkpoints and the trained
    adapter. `torchrun -m mhr_cli pretrain ...` trains on several processes.
    """
    if resume and config is None and (output / "config.yaml").is_file():
        config = output / "config.yaml"
    with working():
        from mhr.runs import load_config
        from mhr.training import pretrain as train

        settings = load_config(
            config,
            preset,
            set_ or (),
            model=model,
            tasks=tasks,
            method=method,
            adapter=adapter,
            n_skills=n_skills,
            n_heads=n_heads,
            rank=rank,
            share=_share(share_up, share_down),
            consistency=consistency,
            targets=options.split([targets]) if targets else None,
            lr=lr,
            router_lr=router_lr,
            steps=steps,
            batch_size=batch_size,
            accumulation=accumulation,
            precision=precision,
            scheduler=scheduler,
            seed=seed,
            template=template,
            switch_to_mu_at=switch_to_mu_at,
            anneal_to_mu=anneal_to_mu,
            init_skills=init_skills or None,
        )
        run = train(settings, str(output), resume=resume, overwrite=overwrite)
    if json:
        print_json(run.info)
    compared = run.info.get("consistency", {}).get("squared_difference")
    if compared:
        note(
            f"Consistency compares single logits by their squared difference, for tasks with one choice: {', '.join(compared)}"
        )
    note(f"Trained: {Path(run.path)}")


def _share(up: bool, down: bool) -> str | None:
    if up and down:
        raise ConfigError("--share-up and --share-down are both given, which leaves one skill: give one of them")
    return "up" if up else "down" if down else None
