"""One routed adapter alone on a GPU: its time, kernel by kernel, its floor in bytes, and the peers of the op itself.

Peers are a loop of cuBLAS products over the tasks and, where vLLM can be imported, its Triton kernels, which go forward only.
"""

from __future__ import annotations

import copy
import importlib.util
import inspect
from collections.abc import Callable
from functools import partial, reduce

import torch
from torch import Tensor

from .gpu_timer import Compared, Row, Timer, attempt
from .measure import worst_error

# RMS error of a bfloat16 result against float64 beyond which it is marked: one rounding is 2^-9, a sum of rounded sums a few.
AGREEMENT = 2e-2


class Adapter:
    """One routed adapter with N tokens in equal segments, as many as tasks or more, which take turns."""

    def __init__(self, device: str, n: int, d: int, rank: int, tasks: int, n_segments: int | None = None):
        def normal(*shape: int, spread: float = 1.0) -> Tensor:
            return (torch.randn(*shape, device=device) * spread).bfloat16()

        torch.manual_seed(0)
        self.x, self.y, self.dy, self.dx = (normal(n, d) for _ in range(4))
        self.a, self.b = normal(tasks, d, rank, spread=d**-0.5), normal(tasks, rank, d, spread=rank**-0.5)
        n_segments = n_segments or tasks
        self.length = n // n_segments
        self.rows = torch.arange(n_segments, device=device) % tasks
        self.segments = [(i % tasks, slice(i * self.length, (i + 1) * self.length)) for i in range(n_segments)]
        self.z: Tensor = self.forward(self.y.clone())

    def forward(self, y: Tensor) -> Tensor:
        return torch.ops.mhr.routed_adapter_forward(
            y, self.x, self.a, self.b, self.rows, None, None, None, None, "none", 1.0
        )

    def backward(self, dx: Tensor) -> tuple[Tensor, Tensor]:
        dz, db, _ = torch.ops.mhr.routed_adapter_backward_dy(
            self.dy, self.z, self.b, self.rows, None, "none", 1.0, False
        )
        da, _ = torch.ops.mhr.routed_adapter_backward_x(dx, self.x, dz, self.a, self.rows, None, True, False)
        return da, db

    def forward_cublas(self, y: Tensor) -> None:
        for t, s in self.segments:
            y[s].addmm_(self.x[s] @ self.a[t], self.b[t])

    def backward_cublas(self, dx: Tensor) -> tuple[Tensor, ...]:
        da, db = [], []
        for t, s in self.segments:
            dz = self.dy[s] @ self.b[t].mT
            db.append((self.x[s] @ self.a[t]).mT @ self.dy[s])
            da.append(self.x[s].mT @ dz)
            dx[s].addmm_(dz, self.a[t].mT)
        tasks = len(self.a)
        return tuple(torch.stack([reduce(torch.add, parts[t::tasks]) for t in range(tasks)]) for parts in (da, db))

    def forward_vllm(self) -> Callable[[Tensor], None]:
        """vLLM's shrink and expand, made ready."""
        from vllm.lora.ops.triton_ops import LoRAKernelMeta, lora_expand, lora_shrink

        n, tasks = len(self.x), len(self.a)
        device = self.x.device
        meta = LoRAKernelMeta.make(max_loras=tasks, max_num_tokens=n, device=device)
        meta.prepare_tensors(self.rows.to(torch.int32).repeat_interleave(self.length))
        # Later releases ask whether kernels are specialised to the number of adapters.
        more = [False] if len(inspect.signature(meta.meta_args).parameters) > 1 else []
        given = meta.meta_args(n, *more)
        a, b = [self.a.mT.contiguous()], [self.b.mT.contiguous()]
        z = torch.empty(1, n, self.a.shape[-1], device=device)

        def forward(y: Tensor) -> None:
            lora_shrink(self.x, a, z, *given, 1.0)
            lora_expand(z, b, y, *given, offset_start=0, add_inputs=True)

        return forward

    def errors(self) -> dict[str, float]:
        """The largest RMS errors of ours and of cuBLAS against float64: y, dx, dA, dB."""
        exact = copy.copy(self)
        for name in ("x", "y", "dy", "dx", "a", "b"):
            setattr(exact, name, getattr(self, name).double())

        def results(case: Adapter, how: str) -> list[Tensor]:
            y, dx = case.y.clone(), case.dx.clone()
            getattr(case, f"forward{how}")(y)
            return [y, dx, *getattr(case, f"backward{how}")(dx)]

        truth = results(exact, "_cublas")
        found = {name: worst_error(results(self, how), truth) for name, how in (("ours", ""), ("cublas", "_cublas"))}
        self.exact_y = truth[0]
        return found

    def bytes_moved(self) -> dict[str, int]:
        """The least that each direction reads and writes: activations, factors, their gradients and what forward keeps.

        Forward reads x, y, A and B, writes y and z. Backward reads dy, x, dx, z, A and B, writes dx, dA and dB.
        """
        factors = self.a.nbytes + self.b.nbytes
        gradients = sum(t.nbytes for t in self.backward(self.dx.clone()))
        return {
            "forward": 3 * self.x.nbytes + factors + self.z.nbytes,
            "backward": 4 * self.x.nbytes + factors + self.z.nbytes + gradients,
        }


def adapter(
    timer: Timer, bandwidth: float, n: int, d: int, rank: int, tasks: int, n_segments: int | None = None
) -> Row:
    """Times of the op alone beside its floor: `of_floor` counts `bytes_moved`, `of_moved` also the partial sums, which are
    written and read once, as the allocator tells them."""
    case = Adapter(timer.device, n, d, rank, tasks, n_segments)
    result: Row = {"N": n, "d": d, "r": rank, "T": tasks, "G": len(case.segments), "errors": case.errors()}
    result["agrees"] = result["errors"]["ours"] <= AGREEMENT
    moved = case.bytes_moved()
    vllm, of_vllm = _vllm(case)
    for name, ours, peer, target in (
        ("forward", case.forward, case.forward_cublas, case.y.clone()),
        ("backward", case.backward, case.backward_cublas, case.dx.clone()),
    ):
        run = partial(ours, target)
        partials = timer.temporaries(run)
        runs: dict[str, Callable[[], object]] = {"ours": run, "cublas": partial(peer, target)}
        if name == "forward" and vllm:
            runs["vllm"] = vllm
        compared = Compared(timer, runs)
        found, cublas = compared.row("ours"), compared.row("cublas")
        floor = moved[name] / bandwidth / 1e3
        result[name] = {
            **found,
            "floor_us": floor,
            "of_floor": found["us"] / floor,
            "partials_mb": partials / 1e6,
            "of_moved": found["us"] / (floor + 2 * partials / bandwidth / 1e3),
            "cublas_us": cublas["us"],
            "of_cublas": found["us"] / cublas["us"],
        }
        if "vllm" in runs:
            times, why = attempt(partial(compared.row, "vllm"))
            of_vllm = why or {"error": of_vllm, **times}
    result["forward"]["vllm"] = of_vllm
    return result


def _vllm(case: Adapter) -> tuple[Callable[[], None] | None, float | str]:
    """vLLM's forward pass and its error, or None and why there is none."""
    if importlib.util.find_spec("vllm") is None:
        return None, "not installed"

    def ready() -> tuple[Callable[[], None], float]:
        forward = case.forward_vllm()
        once, often = case.y.clone(), case.y.clone()
        forward(once)
        return partial(forward, often), worst_error([once], [case.exact_y])

    found, why = attempt(ready)
    return (None, why) if why else found


def kernels(timer: Timer, bandwidth: float, n: int, d: int, rank: int, tasks: int) -> Row:
    """Every kernel of a forward and of a backward pass of the op, with its own time, beside the direction's floor."""
    case = Adapter(timer.device, n, d, rank, tasks)
    moved = case.bytes_moved()
    result: Row = {"N": n, "d": d, "r": rank, "T": tasks}
    for name, ours, target in (("forward", case.forward, case.y.clone()), ("backward", case.backward, case.dx.clone())):
        found = timer.kernels(partial(ours, target))
        result[name] = {
            "floor_us": moved[name] / bandwidth / 1e3,
            "sum_us": sum(k["us"] * k["launches"] for k in found.values()),
            "kernels": found,
        }
    return result
