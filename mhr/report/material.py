"""What a report is about: runs in groups, each with its name, and all their scores."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mhr.analysis.scores import Scores
from mhr.errors import DataError
from mhr.methods import title_of
from mhr.runs.notes import shots_in_words
from mhr.runs.run import RunFolder


@dataclass
class Group:
    """One run, or the adaptations of one run in one mode to several tasks with several seeds.

    runs         its run folders; none where only scores are known
    trained      parameters that one of them trains, where that is known
    protocol     how settings were chosen, where that is known
    inspections  what `mhr inspect --output` wrote about them
    """

    label: str
    path: Path
    runs: list[RunFolder] = field(default_factory=list)
    trained: int | None = None
    protocol: str = ""
    inspections: list[dict[str, Any]] = field(default_factory=list)

    @property
    def info(self) -> dict[str, Any]:
        return self.runs[0].info if self.runs else {}

    @property
    def pretrained(self) -> bool:
        return self.info.get("kind") == "pretrain"


@dataclass
class Material:
    """Everything that was found, in the order it was named. notes: what a reader has to know about it, one line each."""

    groups: dict[str, Group] = field(default_factory=dict)
    scores: Scores = field(default_factory=Scores)
    notes: list[str] = field(default_factory=list)
    collections: dict[str, str] = field(default_factory=dict)
    """Label of a group -> the task collection it was trained or judged on."""
    asked: dict[str, set[str]] = field(default_factory=dict)
    """Label of a group -> how it was asked in its evaluations, "" in the usual way (`mhr.evaluation.result.unusual`)."""
    unjudged: list[Path] = field(default_factory=list)
    """A run of every group that no evaluation was found for."""

    def group(self, label: str, path: Path) -> Group:
        """A new group; a label that is taken gets its path behind it."""
        if label in self.groups:
            label = f"{label} ({path})"
        if label in self.groups:
            raise DataError(f"{path} is given twice: name each run once")
        self.groups[label] = Group(label, path)
        return self.groups[label]


def label_of(info: Mapping[str, Any], *others: Mapping[str, Any]) -> str:
    """What a run is called, or several of one method and mode: these, and how they met their tasks."""
    if info.get("kind") == "adapt":
        shots = [len(one.get("shots", [])) for one in (info, *others)]
        return adapted_label(str(info.get("method")), str(info.get("mode")), shots)
    return f"{title_of(str(info.get('method', 'run')))}, pretrained"


def adapted_label(method: str, mode: str, shots: Iterable[int]) -> str:
    """What adaptations are called that had these numbers of shots: "MHR-z, 32 shots"."""
    return ", ".join(filter(None, [title_of(method, mode), shots_in_words(shots)]))
