"""The divergence of two passes: its values, whom it moves, which positions and choices it counts."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mhr.objectives import Distributions, PassLosses, chunks
from mhr.objectives.consistency import divergences, example_divergences
from mhr.objectives.heads import States
from mhr.objectives.ranking import pad_choices


def kl(p: Tensor, q: Tensor) -> Tensor:
    return (p * (p / q).log()).sum(-1)


def normal(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64, requires_grad=True)


def told(logits: Tensor) -> Distributions:
    return Distributions(States(logits), torch.tensor([len(logits)]))


def test_it_is_the_symmetric_divergence_with_detached_targets() -> None:
    a, b = normal(6, 7), normal(6, 7, seed=1)
    found = divergences(*(told(x) for x in (a, b)))
    p, q = a.detach().softmax(-1), b.detach().softmax(-1)
    torch.testing.assert_close(found.detach(), 0.5 * (kl(p, q) + kl(q, p)))
    found.sum().backward()
    # The gradient of KL(target || softmax(z)) for z is softmax(z) - target.
    torch.testing.assert_close(a.grad, 0.5 * (p - q))
    torch.testing.assert_close(b.grad, 0.5 * (q - p))


def test_equal_passes_neither_diverge_nor_move_anything() -> None:
    a, b = normal(6, 7).detach().float().requires_grad_(), normal(6, 7).detach().float().requires_grad_()
    found = divergences(*(told(x) for x in (a, b)))
    assert not found.detach().any()
    found.sum().backward()
    assert not a.grad.any()
    assert not b.grad.any()


def test_it_is_in_float32_whatever_the_logits() -> None:
    a, b = (normal(6, 7, seed=s).detach().bfloat16() for s in (0, 1))
    found = divergences(*(told(x) for x in (a, b)))
    assert found.dtype == torch.float32
    p, q = a.double().softmax(-1), b.double().softmax(-1)
    torch.testing.assert_close(found.double(), 0.5 * (kl(p, q) + kl(q, p)), rtol=1e-5, atol=1e-6)


def test_choices_that_an_example_does_not_have_count_nothing() -> None:
    counts = [2, 3, 1]
    scores = [normal(6, seed=s) for s in (0, 1)]
    padded = [pad_choices(s, counts) for s in scores]
    found = divergences(*(Distributions(States(p), torch.ones(3), classes=~p.isinf()) for p in padded))
    for i, (x, y) in enumerate(zip(*(s.detach().split(counts) for s in scores), strict=True)):
        p, q = x.softmax(0), y.softmax(0)
        expected = 0.5 * (kl(p, q) + kl(q, p)) if counts[i] > 1 else (x - y).square().sum()
        torch.testing.assert_close(found[i].detach(), expected)
    found.sum().backward()
    for s in scores:
        assert s.grad.isfinite().all()
        assert s.grad.all()


def test_one_logit_is_compared_by_its_square() -> None:
    a, b = normal(6, 1), normal(6, 1, seed=1)
    found = divergences(*(told(x) for x in (a, b)))
    torch.testing.assert_close(found, F.mse_loss(a, b, reduction="none")[..., 0])
    assert found.requires_grad


@pytest.mark.parametrize("per_token", [True, False])
def test_it_is_summed_over_an_example_s_positions_or_averaged_as_its_loss_is(per_token: bool) -> None:
    lengths = torch.tensor([2, 0, 1])
    first, second = (Distributions(States(normal(3, 7, seed=s).detach()), lengths) for s in (0, 1))
    each = divergences(first, second)
    counts = lengths if per_token else torch.ones(3, dtype=torch.long)
    losses = [PassLosses(torch.zeros(3), counts, ["a", "b", "c"], prediction) for prediction in (first, second)]
    total = each[0] + each[1]
    expected = torch.stack([total if per_token else total / 2, torch.zeros_like(total), each[2]])
    torch.testing.assert_close(example_divergences(*losses), expected)


def test_its_runs_are_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for largest in (2**25, 14):
        monkeypatch.setattr(chunks, "LARGEST", largest)
        a, b = normal(5, 7), normal(5, 7, seed=1)
        each = divergences(told(a), told(b))
        each.sum().backward()
        found.append((each.detach(), a.grad, b.grad))
    torch.testing.assert_close(found[0], found[1])
