"""What thins out an update before updates are merged, so that fewer of their elements get in one another's way."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Thinner = Callable[[Tensor], Tensor]
"""A tensor with the elements that are dropped set to 0: the same ones each time it is called."""


@dataclass(frozen=True)
class Sparsifier:
    """A way to thin out tensors.

    neutral  settings of a method -> whether it leaves everything as it is
    thinner  a tensor, a name of its own and the settings -> what thins it out
    kept     settings -> what every element that is left is to be divided by, for the whole to stay what it was on average
    """

    neutral: Callable[[dict[str, Any]], bool]
    thinner: Callable[[Tensor, str, dict[str, Any]], Thinner]
    kept: Callable[[dict[str, Any]], float] = lambda settings: 1.0


def largest(tensor: Tensor, name: str, settings: dict[str, Any]) -> Thinner:
    """The share `density` of elements of largest magnitude (TIES, arXiv 2306.01708), at least one, and what equals the least of them."""
    low = _at(tensor.abs().flatten(), max(1, int(settings["density"] * tensor.numel())))
    return lambda tensor: torch.where(tensor.abs() >= low, tensor, 0.0)


def between(tensor: Tensor, name: str, settings: dict[str, Any]) -> Thinner:
    """The share `density` of largest magnitudes behind the share `gamma` of the very largest (Model Breadcrumbs, arXiv 2312.06795).

    At least one element is kept. Where gamma + density is more than 1, fewer of the largest are dropped.
    """
    n = tensor.numel()
    kept = max(1, int(settings["density"] * n))
    outliers = min(int(settings["gamma"] * n), n - kept)
    magnitudes = tensor.abs().flatten()
    low, high = _at(magnitudes, outliers + kept), _at(magnitudes, outliers + 1)

    def thin(tensor: Tensor) -> Tensor:
        magnitude = tensor.abs()
        return torch.where((magnitude >= low) & (magnitude <= high), tensor, 0.0)

    return thin


def at_random(tensor: Tensor, name: str, settings: dict[str, Any]) -> Thinner:
    """Each element with probability `1 - drop` (DARE, arXiv 2311.03099)."""
    key = f"{settings['seed']}/{name}"
    return lambda tensor: torch.where(keep(tensor.shape, settings["drop"], key), tensor, 0.0)


def by_rank(tensor: Tensor, name: str, settings: dict[str, Any]) -> Thinner:
    """Large magnitudes more often than small ones, each divided by its own probability (MAGPRUNE of DELLA, arXiv 2406.11617).

        m ~ Bernoulli(1 - p),  p_i = drop + epsilon / 2 - epsilon * r_i / (n - 1),  x_i -> m_i x_i / (1 - p_i)

    r_i from 0 to n - 1 is the rank of the magnitude of x_i among the n weights of one output, the first axis of a matrix; of a vector,
    among all.
    """
    key, drop, epsilon = f"{settings['seed']}/{name}", settings["drop"], settings["epsilon"]

    def thin(tensor: Tensor) -> Tensor:
        order = tensor.abs().argsort(dim=0, stable=True)
        places = (
            torch.linspace(0, 1, len(tensor), dtype=tensor.dtype) if len(tensor) > 1 else tensor.new_full((1,), 0.5)
        )
        ranks = torch.empty_like(tensor)
        ranks.scatter_(0, order, places.reshape(-1, *[1] * (tensor.dim() - 1)).expand_as(tensor))
        dropped = drop + epsilon / 2 - epsilon * ranks
        return torch.where(uniform_numbers(tensor.shape, key) >= dropped, tensor / (1 - dropped), 0.0)

    return thin


SPARSIFIERS = {
    "magnitude": Sparsifier(lambda settings: settings["density"] == 1, largest),
    "random": Sparsifier(lambda settings: settings["drop"] == 0, at_random, lambda settings: 1 - settings["drop"]),
    "rank": Sparsifier(lambda settings: settings["drop"] == settings["epsilon"] == 0, by_rank),
    "both-ends": Sparsifier(lambda settings: settings["density"] == 1, between),
}


def keep(shape: torch.Size, drop: float, key: str) -> Tensor:
    """Which elements are kept, each with probability `1 - drop`: the same for the same key, on every machine."""
    return uniform_numbers(shape, key) >= drop


def uniform_numbers(shape: torch.Size, key: str) -> Tensor:
    """Numbers from U(0, 1), the same for the same key, on every machine."""
    seed = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "little", signed=True)
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def _at(magnitudes: Tensor, place: int) -> float:
    """The magnitude at a place, counted from 1 at the largest."""
    return float(magnitudes.kthvalue(len(magnitudes) - place + 1).values)
