"""Times on a GPU: a cold L2, events around a graph's replay, the host kept ahead; and every kernel's own time.

On the CPU, which only tries the scripts, by the wall clock and torch's profiler of operators.
"""

from __future__ import annotations

import re
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

Row = dict[str, Any]
FLUSH_BYTES = 256 << 20  # several times the L2 of any GPU
LONG = 0.05  # seconds of calls in a row that need not be more of them
AHEAD = 400_000  # cycles the GPU idles for, some 0.2 ms, so that the host has enqueued all that follows


class Timer:
    """Medians of the times of a call."""

    def __init__(self, device: str, repetitions: int):
        self.device, self.repetitions = device, repetitions
        self.on_gpu = device == "cuda"
        self._buffer = torch.zeros((FLUSH_BYTES if self.on_gpu else 1024) // 4, device=device)
        self._sink = torch.zeros((), device=device)

    def flush(self) -> None:
        """Fills the L2 by reading. A buffer that was written would have to be written back while the next kernel runs."""
        torch.sum(self._buffer, dim=0, out=self._sink)

    def device_seconds(self, function: Callable[[], Any]) -> float:
        """Of one call on the device, each run with a cold L2."""
        for _ in range(2 if self.on_gpu else 0):
            function()
        if not self.on_gpu:
            return statistics.median(_wall(function) for _ in range(self.repetitions))
        events = []
        for _ in range(self.repetitions):
            begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            self.flush()
            torch.cuda._sleep(AHEAD)
            begin.record()
            function()
            end.record()
            events.append((begin, end))
        torch.cuda.synchronize()
        return statistics.median(begin.elapsed_time(end) for begin, end in events) / 1e3

    def called_seconds(self, function: Callable[[], Any], calls: int = 10) -> float:
        """Of one call among others, as a model makes it: whichever is longer, the host's time or the device's."""
        function()
        calls, rounds = (calls, 3) if self.on_gpu else (1, 1)

        def several(calls: int) -> None:
            for _ in range(calls):
                function()
            if self.on_gpu:
                torch.cuda.synchronize()

        several(0)
        one = _wall(lambda: several(1))
        calls = max(1, min(calls, int(LONG / one)))
        return statistics.median(_wall(lambda: several(calls)) for _ in range(rounds)) / calls

    def times(self, function: Callable[[], Any], uncaptured: str | None = None) -> Row:
        """`us`: on the device, in a graph's replay, or of its kernels together where `not_captured` says why there is no graph,
        so that waiting for the host is nobody's; `called_us`: of a call among others. `uncaptured` says that a graph is not to be
        tried, and why."""
        called = self.called_seconds(function) * 1e6
        replay, why = (None, uncaptured) if uncaptured and self.on_gpu else attempt(lambda: self.captured(function))
        if why:
            device = sum(kernel["us"] * kernel["launches"] for kernel in self.kernels(function).values())
            return {"us": device, "called_us": called, "not_captured": why}
        return {"us": self.device_seconds(replay) * 1e6, "called_us": called}

    def captured(self, function: Callable[[], Any]) -> Callable[[], Any]:
        """The replay of a graph of one call, after some on a side stream. Raises RuntimeError where it cannot be captured."""
        if not self.on_gpu:
            return function
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(2):
                function()
        torch.cuda.current_stream().wait_stream(stream)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph):
                function()
        except RuntimeError:
            # The generator would go on believing that it is within a graph, and refuse to draw.
            generator = torch.cuda.default_generators[torch.cuda.current_device()]
            generator.graphsafe_set_state(generator.clone_state())
            raise
        return graph.replay

    def kernels(self, function: Callable[[], Any]) -> dict[str, Row]:
        """`us` of a launch, `launches` of a call, by the kernel's name; of ours alone on the CPU, where they are operators."""
        function()
        activities = [ProfilerActivity.CUDA, ProfilerActivity.CPU] if self.on_gpu else [ProfilerActivity.CPU]

        def seen(run: Callable[[], Any]) -> dict[str, tuple[float, int]]:
            with profile(activities=activities) as found:
                for _ in range(self.repetitions):
                    self.flush()
                    run()
                if self.on_gpu:
                    torch.cuda.synchronize()
            if self.on_gpu:
                events = [e for e in found.key_averages() if e.device_type == DeviceType.CUDA]
                return {e.key: (e.self_device_time_total, e.count) for e in events}
            return {e.key: (e.self_cpu_time_total, e.count) for e in found.key_averages() if "mhr::" in e.key}

        flushing = seen(lambda: None)
        sums: dict[str, list[float]] = {}
        for name, (total, count) in seen(function).items():
            if name not in flushing:
                of = sums.setdefault(kernel_name(name), [0.0, 0])
                of[0] += total
                of[1] += count
        return {
            name: {"us": total / count, "launches": count / self.repetitions}
            for name, (total, count) in sums.items()
            if count
        }

    def temporaries(self, function: Callable[[], Any]) -> int:
        """Bytes of device memory that a call needs beyond what it returns; 0 on the CPU, which does not tell."""
        if not self.on_gpu:
            return 0
        function()
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        kept = function()
        torch.cuda.synchronize()
        temporary = torch.cuda.max_memory_allocated() - torch.cuda.memory_allocated()
        assert torch.cuda.memory_allocated() >= before
        del kept
        return temporary

    def rates(self, size: int) -> dict[str, float]:
        """GB/s of a copy, bytes read and written counted, and TFLOP/s of a bfloat16 product of random matrices."""
        source = torch.randn(size * size, device=self.device)
        target = torch.empty_like(source)
        copy = self.device_seconds(lambda: target.copy_(source))
        a, b = (torch.randn(size, size, device=self.device, dtype=torch.bfloat16) for _ in range(2))
        product = self.device_seconds(lambda: a @ b)
        return {"copy_gb_per_s": 2 * source.nbytes / copy / 1e9, "gemm_tflop_per_s": 2 * size**3 / product / 1e12}


def _wall(function: Callable[[], Any]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def kernel_name(name: str) -> str:
    """`shrink_kernel<bf16, 16>` of `void mhr::cuda::shrink_kernel<__nv_bfloat16, 16>(mhr::cuda::ShrinkArgs)`."""
    plain = re.sub(r"^void |\(anonymous namespace\)::|mhr::cuda::", "", name)
    plain = plain.replace("__nv_bfloat16", "bf16").replace("__half", "fp16")
    depth, end = 0, len(plain)
    for at, character in enumerate(plain):
        depth += {"<": 1, ">": -1}.get(character, 0)
        if character == "(" and depth == 0:
            end = at
            break
    return plain[:end][:100]


def attempt(function: Callable[[], Any]) -> tuple[Any, str | None]:
    """What a call gives, and None; or None, and what went wrong: whatever one peer or shape does, the others are measured."""
    try:
        return function(), None
    except Exception as error:  # noqa: BLE001
        return None, first_line(error)


def first_line(error: BaseException) -> str:
    """What an error says, in one line."""
    return f"{type(error).__name__}: {error}".partition("\n")[0][:200]
