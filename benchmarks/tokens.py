"""Routing by token beside one LoRA and the frozen model, at inference, in turn: `python -m mhr_benchmarks.tokens`.

The T5 of `mhr benchmark train`. What is compared is the time that each adds to the frozen model: of Arrow, top 2 of 8 LoRAs, over that of one
LoRA. `--ops` times the two ops by themselves, on as many tokens as a layer reads in one pass, as a decoder's, and as when one is written in each row; y is
written before, and between calls other factors are used, as in a model. One thread; its CPU time, so that other work on the machine counts for little.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import mhr
from mhr.routing import TokenRouter

from .measure import interleave, median_difference, quiet_machine
from .train import BATCH, INPUT, TARGET, TARGETS, VOCABULARY, backbone, small

EXPERTS, TOP_K = 8, 2
LAYERS = 24
NEW_TOKENS = 16


def adapted(width: int, rank: int, method: str | None) -> nn.Module:
    """The T5, frozen, or with a bank in which everything has a value."""
    torch.manual_seed(0)
    model = backbone(small(width)).eval().requires_grad_(False)
    if method is None:
        return model
    names = [f"task{i}" for i in range(EXPERTS)]
    router = {"top_k": TOP_K} if method == "arrow" else {}
    bank = mhr.attach(model, mhr.AdapterConfig(method=method, rank=rank, targets=TARGETS["t5"], router=router), names)
    for layer in bank.layers.values():
        held = layer.bank()
        nn.init.normal_(held["bank_b"], std=width**-0.5)
        if isinstance(layer.router, TokenRouter):
            found = layer.router.directions_of(held["bank_a"][0], held["bank_b"][0])
            assert found is not None
            layer.router.fill(found)
    return model


def steps(models: dict[str, nn.Module], rows: int, length: int) -> dict[str, dict[str, Callable[[], Any]]]:
    """Reading a batch in one pass, and generating answers to it token by token, by each of the models."""
    torch.manual_seed(0)
    ids = torch.randint(3, VOCABULARY, (rows, length))
    mask, labels = torch.ones_like(ids), torch.randint(3, VOCABULARY, (rows, TARGET))

    def read(model: Any) -> Callable[[], Tensor]:
        return lambda: model(input_ids=ids, attention_mask=mask, labels=labels).logits

    def answer(model: Any) -> Callable[[], Tensor]:
        many = {"max_new_tokens": NEW_TOKENS, "min_new_tokens": NEW_TOKENS}
        return lambda: model.generate(input_ids=ids, attention_mask=mask, **many)

    return {
        what: {name: make(model) for name, model in models.items()}
        for what, make in (("one pass", read), ("answers", answer))
    }


def ops(width: int, rank: int, tokens: int) -> dict[str, Callable[[], Any]]:
    """Writing y by itself, and with what one LoRA and what Arrow adds to it, each time by the factors of another layer."""
    torch.manual_seed(0)
    one, arrow = torch.ops.mhr.routed_linear_forward.default, torch.ops.mhr.token_routed_adapter.default
    rows, weight = torch.zeros(1, dtype=torch.long), torch.ones(1, 1, 1)
    x, y = torch.randn(2, 4, tokens, width)
    before, memory = (
        torch.randn(tokens, width),
        torch.randn(1 << 18),
    )  # 1 MB, as the weights of a linear that are read in between
    A, B = torch.randn(LAYERS, EXPERTS, width, rank) / width**0.5, torch.randn(LAYERS, EXPERTS, rank, width)
    directions = nn.functional.normalize(torch.randn(LAYERS, EXPERTS, width), dim=-1)
    routed = list(zip(directions, A, B, strict=True))
    single = [(a[None, :1], b[None, :1]) for _, a, b in routed]
    places = list(zip(x, y, strict=True))
    turn = itertools.cycle(range(LAYERS))

    def write() -> tuple[int, Tensor, Tensor]:
        layer = next(turn)
        memory.sum()
        given, out = places[layer % len(places)]
        return layer, given, out.copy_(before)

    def adds_one() -> None:
        layer, given, out = write()
        one(out, given, None, *single[layer], weight, None, rows, None, None, 1e-6, True)

    def adds_arrow() -> None:
        layer, given, out = write()
        arrow(out, given, *routed[layer], TOP_K, 1.0, False, 1e-6)

    return {"frozen": write, "one LoRA": adds_one, "arrow": adds_arrow}


def told(what: str, times: dict[str, list[float]], unit: str) -> str:
    """A line on the times of each and what two of them add to the frozen one's."""
    per = {"ms": 1e3, "us": 1e6}[unit]
    own = {name: statistics.median(found) * per for name, found in times.items()}
    more = {name: median_difference(times[name], times["frozen"]) * per for name in ("one LoRA", "arrow")}
    return (
        f"{what}: {', '.join(f'{name} {value:.1f} {unit}' for name, value in own.items())}; added {more['one LoRA']:.1f} and "
        f"{more['arrow']:.1f} {unit}, arrow / one LoRA {more['arrow'] / more['one LoRA']:.2f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=512, help="d of the T5; default: %(default)s")
    parser.add_argument("--rank", type=int, nargs="+", default=[4, 16], help="rank of the LoRAs; default: 4 and 16")
    parser.add_argument("--rounds", type=int, default=20, help="calls of each; default: %(default)s")
    parser.add_argument("--ops", action="store_true", help="time the ops by themselves, 100 times as often")
    asked = parser.parse_args()
    if asked.ops:
        print(f"ops by themselves, d {asked.width}, top {TOP_K} of {EXPERTS}, {100 * asked.rounds} rounds")
        with quiet_machine(), torch.no_grad():
            for rank in asked.rank:
                for tokens in (BATCH * INPUT, BATCH * TARGET, BATCH):
                    calls = ops(asked.width, rank, tokens)
                    times = interleave(calls, budget=0.0, least=100 * asked.rounds, most=100 * asked.rounds)
                    print(told(f"rank {rank}, {tokens} tokens", times, "us"), flush=True)
        return
    print(f"T5 of d {asked.width}, 4 + 4 blocks, {BATCH} rows, top {TOP_K} of {EXPERTS}, {asked.rounds} rounds")
    with quiet_machine(), torch.no_grad():
        for rank in asked.rank:
            models = {
                "frozen": adapted(asked.width, rank, None),
                "one LoRA": adapted(asked.width, rank, "shared"),
                "arrow": adapted(asked.width, rank, "arrow"),
            }
            for what, calls in steps(models, BATCH, INPUT).items():
                times = interleave(calls, budget=0.0, least=asked.rounds, most=asked.rounds)
                print(told(f"rank {rank}, {what}", times, "ms"), flush=True)


if __name__ == "__main__":
    main()
