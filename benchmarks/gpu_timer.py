"""Times on a GPU: a cold L2, events around a graph's replay, the host kept ahead; and every kernel's own time.

On the CPU, which only tries the scripts, by the wall clock and torch's profiler of operators.
"""

from __future__ import annotations

import re
import statistics
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from .measure import in_turn, median_difference

Row = dict[str, Any]
FLUSH_BYTES = 256 << 20  # several times the L2 of any GPU
LONG = 0.05  # seconds of calls in a row that need not be more of them
AHEAD = 400_000  # cycles the GPU idles for, some 0.2 ms, so that the host has enqueued all that follows


class Timer:
    """Times of calls."""

    def __init__(self, device: str, repetitions: int):
        self.device, self.repetitions = device, repetitions
        self.on_gpu = device == "cuda"
        self._buffer = torch.zeros((FLUSH_BYTES if self.on_gpu else 1024) // 4, device=device)
        self._sink = torch.zeros((), device=device)

    def flush(self) -> None:
        """Fills the L2 by reading. A buffer that was written would have to be written back while the next kernel runs."""
        torch.sum(self._buffer, dim=0, out=self._sink)

    def device_seconds(self, function: Callable[[], Any]) -> float:
        """Of one call on the device, the median of runs with a cold L2."""
        return statistics.median(self.device_rounds({"it": function})["it"])

    def device_rounds(self, functions: Mapping[str, Callable[[], Any]]) -> dict[str, list[float]]:
        """Seconds of each call on the device, each with a cold L2, in rounds of all of them in turn."""
        times: dict[str, list[Any]] = {name: [] for name in functions}
        for function in functions.values():
            for _ in range(2 if self.on_gpu else 0):
                function()
        for turn in range(self.repetitions):
            for name in in_turn(functions, turn):
                times[name].append(self._events(functions[name]) if self.on_gpu else _wall(functions[name]))
        if not self.on_gpu:
            return times
        torch.cuda.synchronize()
        return {name: [begin.elapsed_time(end) / 1e3 for begin, end in of] for name, of in times.items()}

    def _events(self, function: Callable[[], Any]) -> tuple[torch.cuda.Event, torch.cuda.Event]:
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        self.flush()
        torch.cuda._sleep(AHEAD)
        begin.record()
        function()
        end.record()
        return begin, end

    def called_seconds(self, function: Callable[[], Any]) -> float:
        """Of one call among others, as a model makes it: whichever is longer, the host's time or the device's."""
        return statistics.median(self.called_rounds({"it": function})["it"])

    def called_rounds(self, functions: Mapping[str, Callable[[], Any]]) -> dict[str, list[float]]:
        """`called_seconds` of each, in rounds of all of them in turn."""
        calls, rounds = (10, 3) if self.on_gpu else (1, 1)

        def several(function: Callable[[], Any], calls: int) -> None:
            for _ in range(calls):
                function()
            if self.on_gpu:
                torch.cuda.synchronize()

        each = {}
        for name, function in functions.items():
            several(function, 1)
            one = _wall(partial(several, function, 1))
            each[name] = max(1, min(calls, int(LONG / one)))
        times: dict[str, list[float]] = {name: [] for name in functions}
        for turn in range(rounds):
            for name in in_turn(functions, turn):
                times[name].append(_wall(partial(several, functions[name], each[name])) / each[name])
        return times

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


class Compared:
    """Several calls, timed in rounds of all of them in turn: clocks that drift, drift for all alike.

    A call that does not run leaves the others their times. `uncaptured` says of which calls a graph is not to be tried, and why.
    """

    def __init__(
        self, timer: Timer, functions: Mapping[str, Callable[[], Any]], uncaptured: Mapping[str, str] | None = None
    ):
        self._timer = timer
        tried = {name: attempt(function)[1] for name, function in functions.items()}
        self._failed = {name: why for name, why in tried.items() if why}
        self._functions = {name: function for name, function in functions.items() if name not in self._failed}
        self._called = timer.called_rounds(self._functions)
        known = uncaptured if uncaptured and timer.on_gpu else {}
        self._not_captured: dict[str, str] = {}
        replays = {}
        for name, function in self._functions.items():
            replay, why = (None, known[name]) if name in known else attempt(partial(timer.captured, function))
            if why:
                self._not_captured[name] = why
            else:
                replays[name] = replay
        self._device = timer.device_rounds(replays)
        self._profiled: dict[str, float] = {}

    def row(self, name: str) -> Row:
        """`us`: on the device, in a graph's replay, or of its kernels together where `not_captured` says why there is no graph, so that
        waiting for the host is nobody's; `called_us`: of a call among others. Raises RuntimeError where it failed."""
        self._need(name)
        called = {"called_us": statistics.median(self._called[name]) * 1e6}
        if name in self._not_captured:
            return {"us": self._of_kernels(name) * 1e6, **called, "not_captured": self._not_captured[name]}
        return {"us": statistics.median(self._device[name]) * 1e6, **called}

    def over(self, name: str, base: str) -> Row:
        """The medians of the differences from another call within a round; on the device of both calls' kernels, by the profiler, where
        either is not captured. Raises RuntimeError where either failed."""
        self._need(name)
        self._need(base)
        if {name, base} & self._not_captured.keys():
            device = self._of_kernels(name) - self._of_kernels(base)
        else:
            device = median_difference(self._device[name], self._device[base])
        called = median_difference(self._called[name], self._called[base])
        return {"over_us": device * 1e6, "called_over_us": called * 1e6}

    def _need(self, name: str) -> None:
        if name in self._failed:
            raise RuntimeError(f"{name} did not run: {self._failed[name]}")

    def _of_kernels(self, name: str) -> float:
        """Seconds of all kernels of a call, by the profiler."""
        if name not in self._profiled:
            found = self._timer.kernels(self._functions[name]).values()
            self._profiled[name] = sum(kernel["us"] * kernel["launches"] for kernel in found) / 1e6
        return self._profiled[name]


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
