"""What a merge has to tell: inputs, weights, distances, errors and scores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mhr.adapters.layer import AdapterLayer, LoraFactors
from mhr.errors import CheckpointError
from mhr.files import read_json, write_json_atomically

REPORT_FILE = "merge_report.json"


@dataclass
class MergeReport:
    """Written beside every merged adapter as REPORT_FILE.

    method      its name; `settings` those that it was given
    space       "factor" or "delta"; "bank" where whole banks were averaged, skill by skill
    to, dtype   the form that was written
    inputs      of each, in the order given: name, task, base model, ranks, scalings, and the weight that it got
    distance    Frobenius distance between the inputs' weight updates, [K][K]; of whole banks between their tensors
    cosine      and the cosine between them
    layers      how many layers were merged; `rank` the ranks that they have now
    error       of re-factoring, `||D - A B||_F / ||D||_F`: "overall" and by layer; {} where nothing was re-factored
    notes       notes of the method
    scores      with --evaluate: "tasks" -> name of the input or "merged" -> score by task and their "mean"
    remarks     what programs that read a PEFT folder have to know
    """

    method: str
    space: str
    to: str
    dtype: str | None
    settings: dict[str, Any]
    inputs: list[dict[str, Any]]
    distance: list[list[float]] = field(default_factory=list)
    cosine: list[list[float]] = field(default_factory=list)
    layers: int = 0
    rank: list[int] = field(default_factory=list)
    error: dict[str, Any] = field(default_factory=dict)
    notes: dict[str, Any] = field(default_factory=dict)
    scores: dict[str, Any] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)

    def write(self, folder: Path) -> None:
        write_json_atomically(folder / REPORT_FILE, asdict(self))


def read_report(folder: str | Path) -> MergeReport:
    """The report beside a merged adapter. Raises CheckpointError where there is none."""
    return MergeReport(**read_json(Path(folder) / REPORT_FILE, CheckpointError))


class Gram:
    """Inner products [K, K] of K adapters, added up layer by layer in float64.

    Of LoRAs those of their weight updates `D = (alpha / R) A B`, by `<D_i, D_j> = s_i s_j sum((A_i^T A_j) * (B_i B_j^T))` and so
    without forming any; of IA3 those of the vectors minus 1; otherwise those of the tensors.
    """

    def __init__(self, n: int):
        self.products = torch.zeros(n, n, dtype=torch.float64)

    def add(self, layers: Sequence[AdapterLayer]) -> None:
        """One layer of every adapter."""
        factors = [layer for layer in layers if isinstance(layer, LoraFactors)]
        if factors:
            self._add_factors(factors)
            return
        for tensors in zip(*(layer.tensors().values() for layer in layers), strict=True):
            self.add_tensors(tensors, layers[0].origin)

    def add_tensors(self, tensors: Sequence[Tensor], origin: float = 0.0) -> None:
        """One tensor of every adapter."""
        flat = torch.stack([t.double().flatten() - origin for t in tensors])
        self.products += flat @ flat.T

    def _add_factors(self, layers: Sequence[LoraFactors]) -> None:
        sides = [(f.scaling * f.a.double(), f.b.double()) for f in layers]
        for i, (a, b) in enumerate(sides):
            for j, (other_a, other_b) in enumerate(sides[: i + 1]):
                product = ((a.T @ other_a) * (b @ other_b.T)).sum()
                self.products[i, j] += product
                if i != j:
                    self.products[j, i] += product

    @property
    def distance(self) -> list[list[float]]:
        """`||D_i - D_j||_F` for all pairs."""
        squares = self.products.diagonal()
        return (squares[:, None] + squares[None] - 2 * self.products).clamp(min=0).sqrt().tolist()

    @property
    def cosine(self) -> list[list[float]]:
        """`<D_i, D_j> / (||D_i|| ||D_j||)`; 0 with an adapter that is 0."""
        norms = self.products.diagonal().sqrt()
        return (self.products / (norms[:, None] * norms[None]).clamp(min=1e-300)).tolist()
