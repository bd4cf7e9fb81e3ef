"""Studies: each is one command that takes up where it was interrupted, and shows with --quick that everything runs.

    workers.py      what is done side by side, each piece in a process of one thread
    jobs.py         runs to be pretrained, as such pieces
    stages.py       what is done and found, on disk, stage by stage
    task_files.py   tasks as a file that every run of a study reads
    command.py      the command lines that studies have in common
    tables.py       tables and cells of their pages
    fitting.py      which tasks suit a study by the length of their inputs
    claims.py       questions that are asked beforehand, and what is said of them
    choices.py      what trials decided: frozen in a file of the repository before a test seed runs
    trials_first.py the command of a study that makes such choices
    unfinished.py   what it found so far, in a file of the repository that another machine goes on from
    seen_loss.py    loss on held-out examples of the tasks that were trained on
    flops.py        arithmetic of an optimizer step

A study plans (NAME_plan.py), asks its questions beforehand (NAME_claims.py), is run (NAME.py) and published (NAME_page.py).
"""

from __future__ import annotations

from pathlib import Path

RESULTS = Path(__file__).parent.parent / "results"
"""Where studies write their tables and pages unless told otherwise: benchmarks/results."""
