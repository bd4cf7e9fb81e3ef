"""Problems for the routed adapter's kernels, their launches, and what must come out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from tests.emulation.bounds import Bounded, gelu, gelu_slope, product, worst
from tests.emulation.emulator import DTYPES, Argument, Call, Output, Updated, run

# Of a sum in float32 by tensor cores: the splits into tf32 terms lose 2^-22 each, and 16 products at a time are truncated.
FLOAT32_ERROR = 1e-6


@dataclass(frozen=True)
class Case:
    lengths: tuple[int, ...]  # tokens of each segment
    n_in: int
    n_out: int
    rank: int
    dtype: torch.dtype = torch.bfloat16
    float_factors: bool = False
    bottleneck: bool = False  # GELU and biases
    equal_segments: bool = False  # no offsets
    overwrite: bool = False  # y and dx are written, not added to
    shift: int = 0  # bytes by which tensors miss their alignment
    blocks: int = 264  # that the GPU is taken to hold
    absent: bool = False  # some segments have row -1
    a_stride: int = 0  # of a row of A, where it is not the rank
    left_out: int = 0  # tokens before the first segment: tensors larger than the memory
    given: bool = False  # y and dx are written, what they add to is another tensor
    given_shift: int = 0  # bytes by which that one alone misses its alignment

    def __str__(self) -> str:
        kind = str(self.dtype).removeprefix("torch.") + ("-float-factors" if self.float_factors else "")
        form = "-gelu" * self.bottleneck + "-misaligned" * bool(self.shift) + "-few-blocks" * (self.blocks < 264)
        lengths = "+".join(map(str, self.lengths[:6])) + ("..." if len(self.lengths) > 6 else "")
        return f"{lengths}-{self.n_in}to{self.n_out}-r{self.rank}-{kind}{form}"


class Problem:
    """The tensors of a case. Rows of A and B repeat, come unsorted, and one row of each serves no segment."""

    def __init__(self, case: Case, seed: int = 0) -> None:
        self.case = case
        generator = torch.Generator().manual_seed(1000 * seed + len(str(case)))
        factor_dtype = torch.float32 if case.float_factors else case.dtype
        n_segments, self.n_rows_a, self.n_rows_b = len(case.lengths), 3, 4

        def normal(*shape: int, dtype: torch.dtype = case.dtype) -> torch.Tensor:
            return torch.randn(*shape, generator=generator).to(dtype)

        self.n_tokens = sum(case.lengths)
        self.offsets = torch.tensor([0, *case.lengths]).cumsum(0)
        some_a, some_b = ((2, -1, 0, 2), (-1, 3, 0)) if case.absent else ((2, 0, 0, 2), (1, 3, 0))
        self.rows_a = torch.tensor([some_a[i % 4] for i in range(n_segments)], dtype=torch.int64)
        self.rows_b = torch.tensor([some_b[i % 3] for i in range(n_segments)], dtype=torch.int64)
        self.x = normal(self.n_tokens, case.n_in)
        self.y = normal(self.n_tokens, case.n_out)
        self.dy = normal(self.n_tokens, case.n_out)
        self.dx = normal(self.n_tokens, case.n_in)
        self.a = (normal(self.n_rows_a, case.n_in, case.rank, dtype=torch.float32) / case.n_in**0.5).to(factor_dtype)
        self.b = normal(self.n_rows_b, case.rank, case.n_out, dtype=factor_dtype)
        self.bias_a = normal(self.n_rows_a, case.rank, dtype=factor_dtype) if case.bottleneck else None
        self.bias_b = normal(self.n_rows_b, case.n_out, dtype=factor_dtype) if case.bottleneck else None
        self.base = normal(case.n_out) if case.overwrite and case.rank != 150 else None
        self.z = normal(self.n_tokens, case.rank, dtype=torch.float32)
        self.dz = normal(self.n_tokens, case.rank, dtype=torch.float32)
        self.scale = 0.75

    def sums(self, tensor: torch.Tensor) -> tuple[Updated, torch.Tensor | None, int]:
        """What becomes the sum, what is added to in its place if anything is, and at which of its bytes that begins."""
        c = self.case
        if not c.given:
            return Updated(tensor), None, 0
        before = torch.zeros(c.given_shift // tensor.itemsize, dtype=tensor.dtype)
        return Updated(torch.full_like(tensor, torch.nan)), torch.cat([before, tensor.flatten()]), c.given_shift

    def calls(self, seed: int) -> list[Call]:
        c = self.case
        y, *given_y = self.sums(self.y)
        dx, *given_x = self.sums(self.dx)
        kind = (DTYPES[c.dtype], int(c.float_factors), c.left_out + self.n_tokens, c.left_out, len(c.lengths), c.blocks)
        offsets = None if c.equal_segments else self.offsets + c.left_out
        activation = int(c.bottleneck)
        forward = (*kind, self.n_rows_a, self.n_rows_b, c.n_in, c.n_out, c.rank, activation, self.scale, offsets)
        a = torch.nn.functional.pad(self.a, (0, c.a_stride - c.rank)) if c.a_stride else self.a
        biases = self.bias_a, self.bias_b
        forward += (self.rows_a, self.rows_b, self.x, a, c.a_stride, self.b, *biases, y)
        forward += (int(c.overwrite), self.base, *given_y)
        backward_dy = (*kind, self.n_rows_b, c.n_out, c.rank, activation, self.scale, offsets, self.rows_b)
        backward_dy += (self.dy, self.b, self.z, Output((self.n_tokens, c.rank)))
        backward_dy += (Output((self.n_rows_b, c.rank, c.n_out)),)
        backward_x = (*kind, self.n_rows_a, c.n_in, c.rank, int(not c.overwrite), offsets, self.rows_a)
        backward_x += (self.x, a, c.a_stride, self.dz, dx, *given_x, Output((self.n_rows_a, c.n_in, c.rank)))
        return [
            Call("routed_adapter_forward", (*forward, Output((self.n_tokens, c.rank))), seed, c.shift),
            Call(
                "routed_adapter_backward_dy",
                (*backward_dy, Output((self.n_rows_b, c.n_out)) if c.bottleneck else None),
                seed,
                c.shift,
            ),
            Call(
                "routed_adapter_backward_x",
                (*backward_x, Output((self.n_rows_a, c.rank)) if c.bottleneck else None),
                seed,
                c.shift,
            ),
        ]

    def expected(self) -> list[dict[str, Bounded]]:
        """For each call its outputs by name, in the order in which the call returns them."""
        c = self.case

        def empty(*shape: int) -> Bounded:
            return Bounded.exact(torch.zeros(*shape))

        def add(total: Bounded, row: int, part: Bounded) -> None:
            if row < 0:
                return
            total.value[row] += part.value
            total.error[row] += part.error + total.value[row].abs() * 2.0**-22

        def operand(factors: torch.Tensor, row: int) -> Bounded:  # in float32 they are rounded to the kernel's type
            factor = Bounded.exact(factors[row] if row >= 0 else torch.zeros_like(factors[0]))
            return factor.rounded(c.dtype) if c.float_factors and row >= 0 else factor

        y, z = Bounded.exact(self.y), empty(self.n_tokens, c.rank)
        dz, db, dbias_b = empty(self.n_tokens, c.rank), empty(*self.b.shape), empty(self.n_rows_b, c.n_out)
        dx, da, dbias_a = Bounded.exact(self.dx), empty(*self.a.shape), empty(self.n_rows_a, c.rank)
        for g in range(len(c.lengths)):
            tokens = slice(int(self.offsets[g]), int(self.offsets[g + 1]))
            u, v = int(self.rows_a[g]), int(self.rows_b[g])
            a, b = operand(self.a, u), operand(self.b, v)
            x, dy = Bounded.exact(self.x[tokens]), Bounded.exact(self.dy[tokens])

            zs = product(x, a, c.dtype)
            if self.bias_a is not None and u >= 0:
                zs = zs.plus(Bounded.exact(self.bias_a[u]))
            added = product((gelu(zs) if c.bottleneck else zs).rounded(c.dtype), b, c.dtype)
            terms = [added.scaled(self.scale)]
            if not c.overwrite:
                terms.append(y[tokens])
            elif self.base is not None:
                terms.append(Bounded.exact(self.base.expand(len(x.value), -1)))
            if self.bias_b is not None and v >= 0:
                terms.append(Bounded.exact(self.bias_b[v].expand(len(x.value), -1)).scaled(self.scale))
            put(z, tokens, zs)
            ys = Bounded.sum(*terms)
            for _ in range(launches(c) if v >= 0 or c.overwrite else 0):
                ys = ys.rounded(c.dtype)
            put(y, tokens, ys)

            saved = Bounded.exact(self.z[tokens])
            inner = product(dy, b.mT, c.dtype).scaled(self.scale)
            put(dz, tokens, inner.times(gelu_slope(saved)) if c.bottleneck else inner)
            t = (gelu(saved) if c.bottleneck else saved).rounded(c.dtype)
            add(db, v, product(t.mT, dy, c.dtype).scaled(self.scale))
            ones = Bounded.exact(torch.ones(1, dy.value.shape[0]))
            add(dbias_b, v, product(ones, dy, c.dtype)[0].scaled(self.scale))

            given = Bounded.exact(self.dz[tokens]).rounded(c.dtype)
            add(da, u, product(x.mT, given, c.dtype))
            add(dbias_a, u, product(ones, given, c.dtype)[0])
            dxs = product(given, a.mT, c.dtype)
            if not c.overwrite:
                dxs = dx[tokens].plus(dxs)
            for _ in range(launches(c)):
                dxs = dxs.rounded(c.dtype)
            put(dx, tokens, dxs)

        dy_pass = {"dz": dz, "db": db}
        x_pass = {"dx": dx, "da": da}
        if c.bottleneck:
            dy_pass["dbias_b"] = dbias_b
            x_pass["dbias_a"] = dbias_a
        return [{"y": y, "z": z}, dy_pass, x_pass]


@dataclass(frozen=True)
class Group:
    """Layers that read the same x: `case` but for the rank and the output features, which each has of its own."""

    case: Case
    layers: tuple[tuple[int, int], ...]

    def __str__(self) -> str:
        return f"{self.case}-{'+'.join(f'r{rank}to{n_out}' for rank, n_out in self.layers)}"


class Siblings:
    """The tensors of a group: the layers' A and z lie side by side. Their backward pass through x is that of one layer."""

    def __init__(self, group: Group) -> None:
        self.case = group.case
        self.layers = [
            Problem(replace(group.case, rank=rank, n_out=n_out), seed)
            for seed, (rank, n_out) in enumerate(group.layers, 1)
        ]
        for layer in self.layers:
            layer.x = self.layers[0].x
        self.z = torch.cat([layer.z for layer in self.layers], -1)

    def calls(self, seed: int) -> list[Call]:
        c, first = self.case, self.layers[0]
        a = torch.cat([layer.a for layer in self.layers], -1)
        if c.a_stride:
            a = torch.nn.functional.pad(a, (0, c.a_stride - a.shape[-1]))
        n, rank = self.z.shape
        kind = (DTYPES[c.dtype], int(c.float_factors), n, len(c.lengths), c.blocks)
        offsets = None if c.equal_segments else first.offsets
        forward: list[Argument] = [*kind, first.n_rows_a, first.n_rows_b, c.n_in, rank, first.scale, int(c.overwrite)]
        forward += [offsets, first.rows_a, first.rows_b, first.x, a, c.a_stride, Output((n, rank)), len(self.layers)]
        backward: list[Argument] = [*kind, first.n_rows_b, rank, first.scale, offsets, first.rows_b, self.z]
        backward += [Output((n, rank)), len(self.layers)]
        for layer in self.layers:
            own = layer.case
            forward += [own.rank, own.n_out, layer.b, Updated(layer.y), layer.base]
            backward += [own.rank, own.n_out, layer.dy, layer.b, Output((layer.n_rows_b, own.rank, own.n_out))]
        return [
            Call("routed_linears_forward", forward, seed, c.shift),
            Call("routed_linears_backward_dy", backward, seed, c.shift),
        ]

    def expected(self) -> list[dict[str, Bounded]]:
        each = [layer.expected() for layer in self.layers]

        def beside(call: int, name: str) -> dict[str, Bounded]:
            parts = [calls[call][name] for calls in each]
            return {name: Bounded(torch.cat([p.value for p in parts], -1), torch.cat([p.error for p in parts], -1))}

        ys = {f"y of layer {i}": calls[0]["y"] for i, calls in enumerate(each)}
        dbs = {f"db of layer {i}": calls[1]["db"] for i, calls in enumerate(each)}
        return [beside(0, "z") | ys, beside(1, "dz") | dbs]


def check(driver: Path, case: Case, seeds: Sequence[int]) -> None:
    """Every output within its bound, and the same bits whatever order the threads ran in."""
    check_problem(driver, Problem(case), seeds)


def check_problem(driver: Path, problem: Problem | Siblings, seeds: Sequence[int]) -> None:
    expected = problem.expected()
    n = len(expected)
    results = run(driver, [call for seed in seeds for call in problem.calls(seed)])
    for i, outputs in enumerate(results):
        names = expected[i % n]
        assert len(outputs) == len(names)
        for (name, bound), actual, first in zip(names.items(), outputs, results[i % n], strict=True):
            assert worst(actual, bound) <= 1, f"{name}, seed {seeds[i // n]}"
            assert torch.equal(actual, first), f"{name} differs between seeds"


def assert_float32_accuracy(problem: Problem, results: Sequence[Sequence[torch.Tensor]]) -> None:
    """RMS errors of a float32 problem's outputs: bounds of each element, which grow with the terms of a sum, hide errors that do."""
    for names, outputs in zip(problem.expected(), results, strict=True):
        for (name, bound), actual in zip(names.items(), outputs, strict=True):
            error = (actual.double() - bound.value).square().mean().sqrt() / bound.value.square().mean().sqrt()
            assert error < FLOAT32_ERROR, f"{name} is off by {error:.1e}"


def with_wrong_offsets() -> list[Call]:
    """Offsets that fall, and promise more tiles and chunks than there are."""
    problem = Problem(Case((100,) * 12, 72, 136, 16, bottleneck=True))
    calls = []
    for offsets in ([0, 1200] * 6 + [0], [0, -(1 << 40), 1 << 40] * 4 + [0], list(range(1200, -1, -100))):
        problem.offsets = torch.tensor(offsets)
        calls += problem.calls(7)
    return calls


def put(total: Bounded, at: slice, part: Bounded) -> None:
    total.value[at] = part.value
    total.error[at] = part.error


def launches(case: Case) -> int:
    """Ranks beyond 512 bytes a token are added by several launches, each rounding once."""
    return -(-case.rank * case.dtype.itemsize // 512)


BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
CASES: tuple[Case, ...] = (
    Case((70, 1, 0, 133), 64, 192, 1),
    Case((70, 1, 0, 133), 192, 72, 4),
    Case((70, 1, 0, 133), 512, 512, 16),
    Case((40, 40, 40), 136, 520, 16, equal_segments=True),
    Case((33, 64), 128, 200, 32, bottleneck=True),
    Case((17, 65, 5), 320, 136, 64, bottleneck=True),
    Case((17, 65), 96, 64, 100, overwrite=True),
    Case((20, 9), 64, 72, 300, bottleneck=True),
    Case((20, 3), 576, 64, 8, bottleneck=True),
    Case((3, 2), 1, 1, 1),
    Case((19, 30), 65, 37, 5, bottleneck=True),
    Case((650, 20), 64, 64, 8, bottleneck=True),
    Case(tuple((i * 5) % 11 if i % 7 != 3 else 0 for i in range(40)), 72, 64, 16),
    Case((0, 0), 64, 64, 4, bottleneck=True),
    Case((), 64, 64, 4),
    Case((50, 30), 128, 96, 12, float_factors=True, bottleneck=True),
    Case((70, 3), 128, 136, 16, FP16),
    Case((17, 40), 80, 64, 7, FP16, bottleneck=True),
    Case((70, 1, 0, 60), 64, 100, 16, FP32),
    Case((35, 35), 300, 36, 3, FP32, bottleneck=True, equal_segments=True),
    Case((33, 9), 33, 35, 33, FP32, bottleneck=True, overwrite=True),
    Case((40,), 64, 128, 64, FP32),
    Case((20,), 40, 32, 150, FP32, overwrite=True),
    Case((20, 50), 64, 128, 16, shift=8),
    Case((20, 50), 64, 32, 4, FP32, shift=8),
    Case((20, 50), 64, 32, 4, shift=8, bottleneck=True),
    Case((20, 3), 64, 72, 300, bottleneck=True, overwrite=True),
    Case((20, 9, 70, 5, 3, 40), 64, 136, 16, bottleneck=True, absent=True),
    Case((20, 9, 70), 64, 72, 300, absent=True, overwrite=True),
    Case((20, 70), 72, 64, 4, a_stride=8),
    Case((20, 70), 72, 64, 33, FP32, bottleneck=True, a_stride=36),
    # Blocks that take several column blocks, one after the other.
    Case((300, 20), 64, 1100, 16, bottleneck=True, blocks=4),
    Case((520, 33), 72, 531, 5, blocks=2),
    Case((70,), 64, 768, 32, bottleneck=True, blocks=1),
    Case((260, 40), 64, 520, 64, bottleneck=True, blocks=2),
    Case((40, 20), 64, 600, 100, blocks=2),
    Case((130, 20), 64, 270, 40, FP32, bottleneck=True, blocks=2),
    Case((40, 40, 40, 16), 64, 520, 16, FP16, blocks=2),
)
# Segments so short that tiles are.
SHORT = (5, 16, 0, 9, 1, 20, 3, 8)
SHORT_CASES = (
    Case(SHORT, 1096, 1032, 16),
    Case(SHORT, 1096, 1032, 5, bottleneck=True, blocks=4),
    Case(SHORT, 1096, 1032, 16, overwrite=True, blocks=4),
    Case((12,) * 6, 600, 531, 12, equal_segments=True, blocks=4),
    Case((1,) * 40, 264, 264, 4),
    Case(SHORT, 520, 400, 32, bottleneck=True, blocks=4),
    Case(SHORT, 264, 264, 30, float_factors=True, overwrite=True),
    Case(SHORT, 520, 400, 64, bottleneck=True, blocks=4),
    Case(SHORT, 200, 136, 100, overwrite=True, absent=True),
    Case(SHORT, 72, 136, 300, bottleneck=True, blocks=4),
    Case(SHORT, 520, 260, 16, FP16, bottleneck=True, blocks=4, absent=True),
    Case(SHORT, 264, 260, 33, FP16),
    Case(SHORT, 520, 516, 16, FP32, bottleneck=True, blocks=4),
    Case(SHORT, 260, 264, 20, FP32, overwrite=True, blocks=4),
    Case(SHORT, 260, 136, 150, FP32, bottleneck=True),
    Case(SHORT, 136, 264, 16, shift=8, blocks=4),
    Case(SHORT, 72, 64, 3, FP32, shift=8, bottleneck=True),
    Case(SHORT, 72, 64, 3, FP32, a_stride=4),
)
# Segments of one row that are no neighbours, in one chunk and over several.
MIXED = (30, 7, 50, 0, 21)
ROW_CASES = (
    Case(MIXED * 5, 72, 300, 16, bottleneck=True),
    Case(MIXED * 3, 64, 520, 5, absent=True, blocks=2),
    Case((20,) * 12, 64, 264, 32, bottleneck=True, equal_segments=True),
    Case(MIXED * 3, 72, 136, 64, bottleneck=True, blocks=4),
    Case(MIXED * 2, 33, 35, 100, absent=True),
    Case(MIXED * 2, 72, 264, 16, FP16),
    Case(MIXED * 2, 36, 140, 33, FP32, bottleneck=True, absent=True),
)
# What is added to is not what is written.
GIVEN_CASES = (
    Case((70, 1, 0, 33), 72, 200, 16, bottleneck=True, given=True),
    Case((70, 3), 64, 136, 300, given=True),
    Case((20, 9, 70, 5, 3, 40), 264, 520, 16, absent=True, blocks=4, given=True),
    Case((20, 50), 64, 128, 16, given=True, given_shift=8),
    Case(SHORT, 264, 260, 16, bottleneck=True, absent=True, given=True),
    Case(SHORT, 136, 264, 300, blocks=4, given=True),
    Case((40, 9), 33, 35, 5, FP16, given=True),
    Case((33, 20), 36, 140, 150, FP32, absent=True, given=True),
)
# Runs that end in tiles of one token: more tiles than long ones there could be.
MANY_TILES = Case((17, 0, 17, 1), 264, 136, 16)
CASES += (*SHORT_CASES, *ROW_CASES, *GIVEN_CASES, MANY_TILES)
GROUPS = (
    Group(Case((20, 9, 1), 576, 0, 0), ((16, 72), (16, 136), (16, 40))),
    Group(Case(SHORT, 1096, 0, 0, blocks=4), ((4, 64), (5, 37), (4, 264))),
    Group(Case((70, 3), 64, 0, 0, overwrite=True), ((4, 64), (100, 72), (4, 64))),
    Group(Case((30, 7, 50, 0, 21) * 2, 72, 0, 0, absent=True, a_stride=40, blocks=4), ((20, 264), (16, 520))),
    Group(Case((17, 40), 80, 0, 0, float_factors=True), ((6, 40), (300, 48))),
    Group(Case((30, 20), 576, 0, 0, FP16, shift=8), ((8, 40), (8, 40))),
    Group(Case((40, 3), 576, 0, 0, FP32, absent=True, overwrite=True), ((4, 33), (12, 64))),
)
# Sums of thousands of terms, each in one accumulator from the first to the last.
LONG_SUMS = (Case((16,), 4096, 4096, 16, FP32, blocks=1), Case((4096,), 64, 72, 16, FP32, blocks=1))
# Tensors of more than 2^31 elements, of which a few tokens at the end are used.
SPARSE = Case((8,), 16384, 16384, 4, bottleneck=True, left_out=1 << 17)
