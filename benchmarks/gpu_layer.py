"""A whole adapted linear on a GPU, and mixing and averaging: ours against PEFT's Poly and LoRA, eager torch,
torch.compile and, where it can be imported, LoRAFusion."""

from __future__ import annotations

import copy
import importlib.util
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mhr.ops import mix, routed_linear, routed_linears, weighted_average

from .gpu_adapter import AGREEMENT
from .gpu_timer import Compared, Row, Timer, attempt
from .measure import worst_error

N_SKILLS, N_HEADS = 8, 8
COMPILED = (8192, 4096, 16, 8)  # torch.compile takes its time: at one shape only

# Not even tried, since what follows an interrupted capture may suffer from it.
UNCAPTURED = {"peft_poly": "PEFT's Poly reads task ids back to the host"}

Peer = tuple[Callable[[], Tensor], list[Tensor]]
"""A forward call, and what its backward pass differentiates in."""


def formula(x: Tensor, linear: nn.Linear, bank_a: Tensor, bank_b: Tensor, w: Tensor) -> Tensor:
    """linear(x) + (x A_u) B_u for x [U, L, I], the factors mixed from the banks by w [U, H, S]."""
    a, b = mixed(bank_a, bank_b, w)
    return linear(x) + torch.bmm(torch.bmm(x, a), b)


def mixed(bank_a: Tensor, bank_b: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
    """A [U, I, R] and B [U, R, O]."""
    tasks, rank = len(w), bank_a.shape[-1]
    a = torch.einsum("uhs,hsdr->uhdr", w, bank_a).reshape(tasks, -1, rank)
    b = torch.einsum("uhs,hsrd->urhd", w, bank_b).reshape(tasks, rank, -1)
    return a, b


def peft_layer(base: nn.Linear, config: Any, dtype: torch.dtype) -> nn.Module:
    """The layer that PEFT makes of a linear."""
    from peft import get_peft_model

    holder = nn.ModuleDict({"x": base})
    get_peft_model(holder, config)
    layer: nn.Module = holder["x"]
    return layer.to(base.weight.device, dtype)


class Layer:
    """A frozen linear of N tokens in T equal segments, adapted in every way."""

    def __init__(self, device: str, n: int, d: int, rank: int, tasks: int):
        torch.manual_seed(0)
        dtype = torch.bfloat16
        self.n, self.tasks, self.rank = n, tasks, rank
        self.x = torch.randn(tasks, n // tasks, d, device=device, dtype=dtype, requires_grad=True)
        self.dy = torch.randn(tasks, n // tasks, d, device=device, dtype=dtype)
        self.base = nn.Linear(d, d, device=device, dtype=dtype).requires_grad_(False)
        shapes = ((N_HEADS, N_SKILLS, d // N_HEADS, rank), (N_HEADS, N_SKILLS, rank, d // N_HEADS))
        self.bank_a, self.bank_b = (
            (torch.randn(*s, device=device) * d**-0.5).to(dtype).requires_grad_() for s in shapes
        )
        self.w = torch.rand(tasks, N_HEADS, N_SKILLS, device=device).softmax(-1).requires_grad_()
        self.rows = torch.arange(tasks, device=device)
        self.own = [self.x, self.bank_a, self.bank_b, self.w]

    def linear(self) -> Peer:
        return lambda: F.linear(self.x, self.base.weight, self.base.bias), [self.x]

    def ours(self) -> Peer:
        x, base = self.x, self.base
        return (
            lambda: routed_linear(x, base.weight, base.bias, self.bank_a, self.bank_b, self.w, self.rows, 1.0),
            self.own,
        )

    def eager(self) -> Peer:
        return lambda: formula(self.x, self.base, self.bank_a, self.bank_b, self.w.to(self.x.dtype)), self.own

    def compile(self) -> Peer:
        torch._dynamo.reset()
        backend = "inductor" if self.x.is_cuda else "eager"
        return torch.compile(self.eager()[0], backend=backend), self.own

    def peft_poly(self) -> Peer:
        from peft import PolyConfig

        config = PolyConfig(r=self.rank, n_tasks=self.tasks, n_skills=N_SKILLS, n_splits=N_HEADS, target_modules=["x"])
        layer = peft_layer(copy.deepcopy(self.base), config, self.x.dtype)

        return lambda: layer(self.x, task_ids=self.rows), [self.x, *(p for p in layer.parameters() if p.requires_grad)]

    def peft_lora(self) -> Peer:
        from peft import LoraConfig

        config = LoraConfig(r=self.rank, lora_alpha=self.rank, target_modules=["x"], init_lora_weights=False)
        layer = peft_layer(copy.deepcopy(self.base), config, self.x.dtype)
        return lambda: layer(self.x), [self.x, *(p for p in layer.parameters() if p.requires_grad)]

    def lorafusion(self) -> Peer:
        """LoRAFusion's fused linear, forward only, its factors mixed beforehand.

        It takes a block of tokens at a time: its rank, how many of them are tokens, its segment's first block, and where its
        z and B lie.
        """
        from lorafusion.ops.triton_ops.config import get_lora_kernel_config
        from lorafusion.ops.triton_ops.fused_multi_lora_xw_sb import fused_multi_lora_xw_sb

        block = get_lora_kernel_config("fused_multi_lora_xw_sb").block_size_m
        length, device = self.n // self.tasks, self.x.device
        if length % block:
            raise ValueError(f"segments of {length} tokens are no multiple of its blocks of {block}")
        with torch.no_grad():
            a, b = mixed(self.bank_a, self.bank_b, self.w.to(self.x.dtype))
        b = b.mT.contiguous()
        z = torch.empty(self.tasks, length, self.rank, device=device, dtype=self.x.dtype)
        each = length // block
        table = [[self.rank, block, t * each] for t in range(self.tasks) for _ in range(each)]
        given = {
            "block_to_lookup_table": torch.tensor(table, dtype=torch.int32, device=device),
            "block_to_alpha": torch.ones(len(table), dtype=self.x.dtype, device=device),
            "s_ptrs_list": torch.tensor([t.data_ptr() for t in z for _ in range(each)], device=device),
            "b_ptrs_list": torch.tensor([t.data_ptr() for t in b for _ in range(each)], device=device),
            "raw_b_list": [*b],  # keeps what is pointed to
            "max_r": max(16, self.rank),
            "total_r": self.rank,
            "bias": self.base.bias,
        }

        def forward() -> Tensor:
            torch.bmm(self.x, a, out=z)
            return fused_multi_lora_xw_sb(self.x.flatten(0, 1), self.base.weight, **given).view_as(self.dy)

        return forward, []

    def error(self, forward: Callable[[], Tensor]) -> float:
        """RMS error of y against float64."""
        with torch.no_grad():
            exact = copy.deepcopy(self.base).double()
            truth = formula(self.x.double(), exact, self.bank_a.double(), self.bank_b.double(), self.w.double())
            return worst_error([forward()], [truth])


def layer(timer: Timer, n: int, d: int, rank: int, tasks: int) -> Row:
    """Overheads in microseconds of whole adapted layers over the frozen linear, forward and forward + backward."""
    case = Layer(timer.device, n, d, rank, tasks)
    result: Row = {"errors": {}, "forward": {}, "train": {}}
    names = ["linear", "ours", "peft_poly", "peft_lora", "eager"]
    if (n, d, rank, tasks) == COMPILED or not timer.on_gpu:
        names.append("compile")
    if importlib.util.find_spec("lorafusion"):
        names.append("lorafusion")
    peers = {}

    def kept(name: str, function: Callable[[], Any]) -> Any:
        found, why = attempt(function)
        if why:
            result.setdefault("failed", {}).setdefault(name, why)
        return found

    for name in names:
        peer = kept(name, partial(_peer, case, name, result))
        if peer:
            peers[name] = peer
    runs = {
        "forward": {name: torch.no_grad()(forward) for name, (forward, _) in peers.items()},
        "train": {name: partial(_gradients, *peer, case.dy) for name, peer in peers.items() if peer[1]},
    }
    for mode, of in runs.items():
        compared = Compared(timer, of, UNCAPTURED)
        for name in of:
            row = kept(name, partial(_beside_the_linear, compared, name))
            if row:
                result[mode][name] = row
    result["agrees"] = result["errors"].get("ours", 0.0) <= AGREEMENT
    for mode in ("forward", "train"):
        found = result[mode]
        for peer in ("peft_poly", "peft_lora"):
            if "ours" in found and peer in found:
                found["ours"][f"of_{peer}"] = found["ours"]["over_us"] / found[peer]["over_us"]
    return result


def _peer(case: Layer, name: str, result: Row) -> Peer:
    """Made ready, its error noted where it computes what ours does."""
    forward, leaves = getattr(case, name)()
    if name in ("ours", "eager", "lorafusion"):
        result["errors"][name] = case.error(forward)
    return forward, leaves


def _beside_the_linear(compared: Compared, name: str) -> Row:
    return {**compared.row(name), **compared.over(name, "linear")}


def _gradients(forward: Callable[[], Any], leaves: list[Tensor], upstream: Any) -> tuple[Tensor, ...]:
    return torch.autograd.grad(forward(), leaves, upstream)


N_TOGETHER = 3  # q, k and v


class Together:
    """Frozen linears of the same x, N tokens in T equal segments, adapted by factors that are there: in one call, and in one each."""

    def __init__(self, device: str, n: int, d: int, rank: int, tasks: int):
        def normal(*shape: int, spread: float) -> Tensor:
            return (torch.randn(*shape, device=device) * spread).bfloat16()

        torch.manual_seed(0)
        self.x = normal(n, d, spread=1).requires_grad_()
        self.weights = [normal(d, d, spread=d**-0.5) for _ in range(N_TOGETHER)]
        self.dys = [normal(n, d, spread=1) for _ in range(N_TOGETHER)]
        self.a = normal(tasks, d, N_TOGETHER * rank, spread=d**-0.5).requires_grad_()
        self.a_each = [a.detach().contiguous().requires_grad_() for a in self.a.split(rank, -1)]
        self.b = [normal(tasks, rank, d, spread=rank**-0.5).requires_grad_() for _ in range(N_TOGETHER)]
        self.rows = torch.arange(tasks, device=device)

    def frozen(self) -> list[Tensor]:
        return [F.linear(self.x, weight) for weight in self.weights]

    def together(self) -> list[Tensor]:
        return routed_linears(self.x, self.weights, [None] * N_TOGETHER, self.a, self.b, self.rows)

    def apart(self) -> list[Tensor]:
        each = zip(self.weights, self.a_each, self.b, strict=True)
        return [routed_linear(self.x, weight, None, a, b, None, self.rows) for weight, a, b in each]

    def leaves(self, how: str) -> list[Tensor]:
        return [self.x, *{"frozen": [], "together": [self.a, *self.b], "apart": [*self.a_each, *self.b]}[how]]

    def results(self, how: str) -> list[Tensor]:
        """y of each, dX, dA side by side, dB of each."""
        ys = getattr(self, how)()
        dx, *grads = torch.autograd.grad(ys, self.leaves(how), self.dys)
        d_a = torch.cat(grads[:-N_TOGETHER], -1)
        return [*(y.detach() for y in ys), dx, d_a, *grads[-N_TOGETHER:]]

    def exact(self) -> list[Tensor]:
        """The same in float64, by matrix products."""
        with torch.no_grad():
            segments, n = len(self.rows), len(self.x)
            x, a = self.x.double().view(segments, n // segments, -1), self.a.double()
            dx, ys, d_a, d_b = torch.zeros_like(x), [], [], []
            for weight, a_i, b, dy in zip(self.weights, a.chunk(N_TOGETHER, -1), self.b, self.dys, strict=True):
                w, b, dy = weight.double(), b.double(), dy.double().view(segments, n // segments, -1)
                ys.append((x @ w.T + x @ a_i @ b).flatten(0, 1))
                dz = dy @ b.mT
                dx += dy @ w + dz @ a_i.mT
                d_a.append(x.mT @ dz)
                d_b.append((x @ a_i).mT @ dy)
        return [*ys, dx.flatten(0, 1), torch.cat(d_a, -1), *d_b]

    def bytes_moved(self) -> dict[str, int]:
        """The least that the adapters of one call read and write beyond the frozen linears, forward and forward + backward.

        Forward reads x once, every y, A and B, writes every y and z. Backward reads x, every dy, dX, z, A and B, writes dX and, in
        float32, dA and dB.
        """
        activation = self.x.nbytes
        factors = self.a.nbytes + sum(b.nbytes for b in self.b)
        kept = len(self.x) * self.a.shape[-1] * 4
        forward = (1 + 2 * N_TOGETHER) * activation + factors + kept
        return {"forward": forward, "train": forward + (3 + N_TOGETHER) * activation + 3 * factors + kept}


def together(timer: Timer, bandwidth: float, n: int, d: int, rank: int, tasks: int) -> Row:
    """Overheads over the frozen linears of one call for all of them, and of a call for each."""
    case = Together(timer.device, n, d, rank, tasks)
    truth = case.exact()
    errors = {how: worst_error(case.results(how), truth) for how in ("together", "apart")}
    result: Row = {"N": n, "d": d, "r": rank, "T": tasks, "errors": errors}
    result["agrees"] = errors["together"] <= AGREEMENT
    moved = case.bytes_moved()
    for mode in ("forward", "train"):
        runs = {}
        for how in ("frozen", "together", "apart"):
            forward, leaves = getattr(case, how), case.leaves(how)
            train = partial(_gradients, forward, leaves, case.dys)
            runs[how] = torch.no_grad()(forward) if mode == "forward" else train
        compared = Compared(timer, runs)
        found = {how: compared.row(how) for how in runs}
        over = {how: compared.over(how, "frozen")["over_us"] for how in ("together", "apart")}
        floor = moved[mode] / bandwidth / 1e3
        result[mode] = {**found, "over_us": over, "floor_us": floor, "of_floor": over["together"] / floor}
    return result


def mixing(timer: Timer, bandwidth: float, n_layers: int, d: int, rank: int, tasks: int) -> Row:
    """All factors of a model in one call, and back, against an einsum for each."""
    torch.manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, device=timer.device).bfloat16().requires_grad_()

    banks = [random(N_HEADS, N_SKILLS, d // N_HEADS, rank) for _ in range(n_layers)]
    banks += [random(N_HEADS, N_SKILLS, rank, d // N_HEADS) for _ in range(n_layers)]
    head_dims = [1] * n_layers + [2] * n_layers
    w = torch.rand(tasks, N_HEADS, N_SKILLS, device=timer.device).softmax(-1).requires_grad_()

    def ours() -> list[Tensor]:
        return mix(banks, [w] * len(banks), head_dims)

    def einsums(banks: list[Tensor], w: Tensor) -> list[Tensor]:
        a = [torch.einsum("uhs,hsdr->uhdr", w, b).flatten(1, 2) for b in banks[:n_layers]]
        b = [torch.einsum("uhs,hsrd->urhd", w, b).flatten(2) for b in banks[n_layers:]]
        return a + b

    def eager() -> list[Tensor]:
        return einsums(banks, w.bfloat16())

    truth = einsums([bank.double() for bank in banks], w.double())
    errors = {name: worst_error(peer(), truth) for name, peer in (("ours", ours), ("eager", eager))}
    result: Row = {"what": f"mix, {len(banks)} banks, d {d}, r {rank}, T {tasks}", "errors": errors}
    factors = ours()
    grads = [torch.randn_like(factor) for factor in factors]
    read, written = (sum(t.nbytes for t in tensors) for tensors in (banks, factors))

    def train(forward: Callable[[], list[Tensor]]) -> tuple[Tensor, ...]:
        return torch.autograd.grad(forward(), [*banks, w], grads)

    for mode, run, peer, moved in (
        ("forward", torch.no_grad()(ours), torch.no_grad()(eager), read + written),
        ("train", partial(train, ours), partial(train, eager), 3 * read + 2 * written),
    ):
        result[mode] = against_eager(timer, run, peer, moved / bandwidth / 1e3)
    return result


def averaging(timer: Timer, bandwidth: float, count: int, size: int) -> Row:
    """`count` tensors of `size` elements in one pass, against one pass for each."""
    tensors = [torch.randn(size, device=timer.device).bfloat16() for _ in range(count)]
    weights = [1.0 / count] * count

    def eager() -> Tensor:
        total = tensors[0].float() * weights[0]
        for tensor, weight in zip(tensors[1:], weights[1:], strict=True):
            total.add_(tensor, alpha=weight)
        return total.bfloat16()

    truth = torch.zeros(size, dtype=torch.float64, device=timer.device)
    for tensor, weight in zip(tensors, weights, strict=True):
        truth.add_(tensor, alpha=weight)
    results = {"ours": weighted_average(tensors, weights), "eager": eager()}
    floor = (count + 1) * tensors[0].nbytes / bandwidth / 1e3
    return {
        "what": f"weighted_average, {count} of {tensors[0].nbytes >> 20} MiB",
        "errors": {name: worst_error([found], [truth]) for name, found in results.items()},
        "forward": against_eager(timer, lambda: weighted_average(tensors, weights), eager, floor),
    }


def against_eager(timer: Timer, ours: Callable[[], Any], eager: Callable[[], Any], floor: float) -> Row:
    compared = Compared(timer, {"ours": ours, "eager": eager})
    found = compared.row("ours")
    of_eager = found["us"] / compared.row("eager")["us"]
    return {**found, "floor_us": floor, "of_floor": found["us"] / floor, "of_eager": of_eager}
