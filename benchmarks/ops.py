"""One adapted layer: ours against PEFT's Poly, PEFT's LoRA, eager torch and the frozen linear alone.

Overhead is the time of an adapted layer less that of the frozen linear, in the same round. PEFT's Poly layer draws relaxed
Bernoulli noise for every example in training and cannot do without it; ours is timed both with that noise (one mix for each
example, as PEFT's) and without (one mix for each distinct task, as the T0 recipe trains).
"""

from __future__ import annotations

import copy
import random
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mhr.ops import route, routed_linear

from .measure import (
    computed_dtypes,
    copy_bandwidth,
    interleave,
    machine,
    median_difference,
    quiet_machine,
    require_peft,
    worst_error,
)
from .ops_report import DTYPES, plots, tables

__all__ = ["plots", "run"]

N_TASKS, N_SKILLS = 64, 8
# Largest RMS error against float64 on the same inputs with which ours is timed.
AGREEMENT = {torch.float32: 2e-5, torch.bfloat16: 4e-2}


@dataclass(frozen=True)
class Case:
    """One shape of the grid. `distinct` tasks in the batch: 0 means one for each example."""

    batch: int
    length: int
    n_in: int
    n_out: int
    n_heads: int
    rank: int
    distinct: int
    dtype: torch.dtype
    train: bool

    @property
    def shape(self) -> str:
        width = f"{self.n_in}" if self.n_in == self.n_out else f"{self.n_in}-{self.n_out}"
        return f"{self.batch}x{self.length} d{width} H{self.n_heads} r{self.rank} t{self.distinct or self.batch}"

    @property
    def peers(self) -> list[str]:
        """Who is timed. Every shape is held against PEFT's Poly, one in six against all there is."""
        others = ["peft_lora", "eager", *(["ours_with_noise"] if self.train else [])]
        everyone = (self.n_heads, self.rank) == (8, 4) or self.batch * self.length == 1
        return ["linear", "peft_poly", "ours", *(others if everyone else [])]

    @property
    def least_bytes(self) -> int:
        """Bytes that any implementation must move beyond the linear's: x and y, then dy, x and dx, each read or written."""
        columns = self.n_in + 2 * self.n_out
        if self.train:
            columns += self.n_out + 3 * self.n_in
        return self.batch * self.length * columns * self.dtype.itemsize


def grid(quick: bool) -> list[Case]:
    """The shapes: every dtype that the processor computes in and every rank, with the other axes thinned where `quick`."""
    batches = [(8, 128)] if quick else [(1, 128), (8, 128), (32, 64), (16, 256)]
    widths = [(512, 512), (2048, 2048)] if quick else [(512, 512), (1024, 1024), (2048, 2048), (512, 2048)]
    return [
        Case(batch, length, n_in, n_out, n_heads, rank, distinct, dtype, train)
        for dtype in computed_dtypes()
        for train in (False, True)
        for batch, length in batches
        for n_in, n_out in widths
        for n_heads in ([8] if quick else [1, 8])
        for rank in ([4, 16] if quick else [1, 4, 16])
        for distinct in ([4] if quick else [1, 4, 0])
        if distinct <= batch and not (distinct == 0 and batch == 1)
    ]


class Layers:
    """The same adapted layer in every implementation, with the same weights."""

    def __init__(self, case: Case):
        from peft import LoraConfig, PolyConfig
        from peft.tuners.lora.layer import Linear as LoraLinear
        from peft.tuners.poly.layer import Linear as PolyLinear

        torch.manual_seed(0)
        self.case = case
        dtype = case.dtype
        self.base = nn.Linear(case.n_in, case.n_out).to(dtype).requires_grad_(False)
        config = PolyConfig(
            r=case.rank,
            n_tasks=N_TASKS,
            n_skills=N_SKILLS,
            n_splits=case.n_heads,
            target_modules=["x"],
            init_weights=False,
        )
        self.poly = PolyLinear(self.base, "default", config).to(dtype)
        self.poly.train(case.train)
        lora = LoraConfig(r=case.rank, lora_alpha=1, target_modules=["x"], init_lora_weights=False)
        self.lora = LoraLinear(self.base, "default", lora, r=case.rank, lora_alpha=1, init_lora_weights=False).to(dtype)
        self.bank_a, self.bank_b = self.poly.poly_lora_A["default"], self.poly.poly_lora_B["default"]
        self.peft_logits = self.poly.poly_router["default"].module_logits
        shape = (N_TASKS, case.n_heads, N_SKILLS)
        self.logits = nn.Parameter(self.peft_logits.detach().float().view(shape).clone())
        self.x = torch.randn(case.batch, case.length, case.n_in).to(dtype).requires_grad_(case.train)
        self.dy = torch.randn(case.batch, case.length, case.n_out).to(dtype)
        ids = torch.arange(case.batch) % (case.distinct or case.batch)
        self.ids = ids[torch.randperm(case.batch)]
        # Once a batch, for all layers: distinct tasks and the row of each example.
        self.tasks, self.rows = torch.unique(self.ids, return_inverse=True)
        self.each = torch.arange(case.batch)

    def linear(self) -> Tensor:
        return self.base(self.x)

    def peft_poly(self) -> Tensor:
        return self.poly(self.x, task_ids=self.ids)

    def peft_lora(self) -> Tensor:
        return self.lora(self.x)

    def eager(self) -> Tensor:
        case = self.case
        p = torch.sigmoid(self.logits[self.tasks])
        w = (p / (p.sum(-1, keepdim=True) + 1e-12)).to(self.bank_a.dtype)
        A = torch.einsum("uhs,hsdr->uhdr", w, self.bank_a).reshape(-1, case.n_in, case.rank)
        B = torch.einsum("uhs,hsrd->urhd", w, self.bank_b).reshape(-1, case.rank, case.n_out)
        return self.base(self.x) + torch.bmm(torch.bmm(self.x, A[self.rows]), B[self.rows]) / case.rank

    def ours(self) -> Tensor:
        w = route(self.logits, self.tasks)
        return routed_linear(
            self.x, self.base.weight, self.base.bias, self.bank_a, self.bank_b, w, self.rows, 1 / self.case.rank
        )

    def ours_with_noise(self) -> Tensor:
        noise = torch.logit(torch.rand(self.case.batch, self.case.n_heads, N_SKILLS), eps=1e-7)
        w = route(self.logits, self.ids, noise)
        return routed_linear(
            self.x, self.base.weight, self.base.bias, self.bank_a, self.bank_b, w, self.each, 1 / self.case.rank
        )

    def leaves(self, name: str) -> list[Tensor]:
        """What receives gradients in an implementation."""
        own = {
            "linear": [],
            "peft_poly": [self.bank_a, self.bank_b, self.peft_logits],
            "peft_lora": [p for p in self.lora.parameters() if p.requires_grad],
        }
        return [self.x, *own.get(name, [self.bank_a, self.bank_b, self.logits])]

    def step(self, name: str) -> Callable[[], Any]:
        """One forward, with its backward in training."""
        forward = getattr(self, name)
        if not self.case.train:
            return torch.no_grad()(forward)
        leaves = self.leaves(name)
        return lambda: torch.autograd.grad(forward(), leaves, self.dy)

    def in_float64(self) -> Layers:
        """The same weights and inputs, for `eager`."""
        twin = copy.copy(self)
        twin.base = copy.deepcopy(self.base).double()
        for name in ("bank_a", "bank_b", "logits", "x", "dy"):
            tensor = getattr(self, name)
            setattr(twin, name, tensor.detach().double().requires_grad_(tensor.requires_grad))
        return twin

    def results(self, name: str) -> list[Tensor]:
        """The output and, in training, the gradients of the input, the banks and the logits."""
        out = getattr(self, name)()
        return [out, *(torch.autograd.grad(out, self.leaves(name), self.dy) if self.case.train else ())]

    def errors(self) -> dict[str, float]:
        """The largest RMS error of each implementation that computes the same, against float64."""
        self.poly.eval()
        truth = self.in_float64().results("eager")
        found = {name: worst_error(self.results(name), truth) for name in ("ours", "peft_poly", "eager")}
        self.poly.train(self.case.train)
        return found


def measure(case: Case, budget: float, least: int, limit: float = float("inf")) -> dict[str, Any]:
    """Errors and times of one case; no time where ours is off."""
    layers = Layers(case)
    errors = layers.errors()
    result: dict[str, Any] = {
        "shape": case.shape,
        "rank": case.rank,
        "n_in": case.n_in,
        "tokens": case.batch * case.length,
        "dtype": str(case.dtype).removeprefix("torch."),
        "mode": "train" if case.train else "forward",
        "errors": errors,
        "agrees": errors["ours"] <= AGREEMENT[case.dtype],
    }
    if not result["agrees"]:
        return result
    times = interleave({name: layers.step(name) for name in case.peers}, budget, least, limit=limit)
    linear = statistics.median(times["linear"])
    over = {n: median_difference(times[n], times["linear"]) for n in case.peers if n != "linear"}
    result["repetitions"] = len(times["linear"])
    result["us"] = {name: statistics.median(values) * 1e6 for name, values in times.items()}
    result["overhead_us"] = {name: value * 1e6 for name, value in over.items()}
    result["of_poly"] = {n: over[n] / over["peft_poly"] for n in ("ours", "ours_with_noise") if n in over}
    result["of_lora"] = over["ours"] / over["peft_lora"] if "peft_lora" in over else None
    result["of_linear"] = {name: 1 + value / linear for name, value in over.items()}
    result["gb_per_s"] = case.least_bytes / over["ours"] / 1e9 if over["ours"] > 0 else None
    return result


def tiny() -> Case:
    """The cost of calling: one example of length 1, width 64, forward and backward."""
    return Case(1, 1, 64, 64, 1, 4, 1, torch.float32, True)


def growth(quick: bool) -> list[Case]:
    """How cost grows with the tokens: one example of four tasks to the longest that is quick to measure."""
    lengths = (8, 32, 128) if quick else (8, 32, 128, 512)
    return [Case(4, length, 1024, 1024, 8, 4, 4, torch.float32, True) for length in lengths]


def run(quick: bool = False, minutes: float | None = None) -> dict[str, Any]:
    """Measures the grid; returns the machine, every result, and tables for people. Raises ConfigError without PEFT.

    The whole grid takes hours. `minutes` ends it early: shapes come in a random order, always the same, so that what was
    measured is a fair sample of the grid. The quick form ends within two, whatever the processor.
    """
    require_peft()
    budget, least, limit = (0.5, 5, 4.0) if quick else (0.5, 30, float("inf"))
    cases = grid(quick)
    order = random.Random(0).sample(range(len(cases)), len(cases))
    end = time.monotonic() + 60 * (minutes or (1.4 if quick else float("inf")))
    measured: dict[int, dict[str, Any]] = {}
    with quiet_machine():
        bandwidth = copy_bandwidth()
        smallest = measure(tiny(), budget, 200, limit)
        growing = [measure(case, budget, least, limit) for case in growth(quick)]
        for index in order:
            if time.monotonic() > end:
                break
            measured[index] = measure(cases[index], budget, least, limit)
            print(f"{len(measured)}/{len(cases)} {cases[index].shape}", flush=True)
        host = {**machine(), "copy_gb_per_s": round(bandwidth, 1)}
    results = {
        "benchmark": "ops",
        "quick": quick,
        "machine": host,
        "shapes_of_grid": len(cases),
        "emulated": [name for name in DTYPES if getattr(torch, name) not in computed_dtypes()],
        "results": [measured[index] for index in sorted(measured)],
        "tiny": smallest,
        "growth": growing,
    }
    return {**results, "tables": tables(results)}
