"""Routing by token beside one LoRA and the frozen model, at inference, in turn: `python -m mhr_benchmarks.tokens`.

The T5 of `mhr benchmark train`. What is compared is the time that each adds to the frozen model: of Arrow, top 2 of 8 LoRAs, over that of one
LoRA. One thread; its CPU time, so that other work on the machine counts for little.
"""

from __future__ import annotations

import argparse
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=512, help="d of the T5; default: %(default)s")
    parser.add_argument("--rank", type=int, nargs="+", default=[4, 16], help="rank of the LoRAs; default: 4 and 16")
    parser.add_argument("--rounds", type=int, default=20, help="calls of each; default: %(default)s")
    asked = parser.parse_args()
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
                own = {name: statistics.median(found) * 1e3 for name, found in times.items()}
                more = {name: median_difference(times[name], times["frozen"]) * 1e3 for name in ("one LoRA", "arrow")}
                print(
                    f"rank {rank}, {what}: {', '.join(f'{name} {value:.1f} ms' for name, value in own.items())}; added "
                    f"{more['one LoRA']:.1f} and {more['arrow']:.1f} ms, arrow / one LoRA {more['arrow'] / more['one LoRA']:.2f}"
                )


if __name__ == "__main__":
    main()
