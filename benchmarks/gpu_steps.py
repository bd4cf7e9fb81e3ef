"""Whole training steps on a GPU in bfloat16: of T5-large's shape and of a Llama of a billion parameters.

As called, which holds the host's time, and as the replay of a graph of the step. Ours is compared with float64 in float32
first; the disagreement stands beside the time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import partial

import torch

from .gpu_layer import UNCAPTURED
from .gpu_timer import Row, Timer, attempt
from .train import AGREEMENT, Peers, Setting

T5_LARGE = Setting(1024, 24, 16, 32128, 16, 512, 128, "cuda")
LLAMA_1B = Setting(2048, 16, 32, 128256, 8, 512, 512, "cuda", "llama")
STEPS = {"T5-large": T5_LARGE, "Llama-1B": LLAMA_1B}
TINY = {
    "T5, tiny": Setting(32, 1, 2, 64, 8, 6, 3, "cpu"),
    "Llama, tiny": Setting(32, 1, 4, 64, 8, 6, 6, "cpu", "llama"),
}
DEPTH = 4  # blocks, one after the other, of the model that AGREEMENT was measured on


def agreement(setting: Setting) -> float:
    """The disagreement in float32 that a depth explains: a rounding of each block's is carried to the end."""
    return AGREEMENT * max(1.0, setting.blocks / DEPTH)


def steps(timer: Timer, name: str, setting: Setting) -> Iterator[Row]:
    """The row of one model, given out whenever another implementation is in it."""
    peers = Peers(setting)
    result: Row = {"what": name, "setting": asdict(setting), "failed": {}, "ms": {}, "of_frozen": {}}

    def note(key: str, function: Callable[[], None]) -> None:
        _, why = attempt(function)
        if why:
            result["failed"][key] = why

    def disagreement() -> None:
        result["errors"] = {peer: max(of.values()) for peer, of in peers.errors().items()}
        result["agreement"] = agreement(setting)
        result["agrees"] = result["errors"]["ours"] <= result["agreement"]

    def as_called(peer: str) -> None:
        model = peers.models[peer].to(torch.bfloat16)
        result["ms"][peer] = {"called": timer.called_seconds(peers.step(peer)) * 1e3}
        result["of_frozen"][peer] = result["ms"][peer]["called"] / result["ms"]["frozen"]["called"]
        result.setdefault("trained", {})[peer] = sum(p.numel() for p in model.parameters() if p.requires_grad)

    def in_graph(peer: str) -> None:
        step = peers.step(peer, prepared=True)
        result["ms"][peer]["graph"] = timer.device_seconds(timer.captured(step)) * 1e3

    note("float64", disagreement)
    yield result
    order = ["frozen", "ours", "peft_poly", "peft_lora", "eager", "ours_with_noise"]
    for peer in order:
        note(peer, partial(as_called, peer))
        yield result
    # Last, because an interrupted capture may leave its mark on what follows.
    for peer in order:
        if peer in result["ms"] and peer not in UNCAPTURED:
            note(f"{peer}, graph", partial(in_graph, peer))
            yield result
