"""Gradient alignment: inner products against gradients that are held all at once, and facts that are known beforehand."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from mhr import AdapterConfig, attach
from mhr.adapters import checkpoint_of
from mhr.analysis.alignment import align, align_run, gram_matrices, mean_cosine, points
from mhr.backbones import load_backbone
from mhr.data import load_tasks
from mhr.data.collators import Seq2SeqCollator
from mhr.errors import CheckpointError, ConfigError, DataError, TaskError
from mhr.few_shot.shots import draw_shots
from mhr.layers import detach
from mhr.runs import RunFolder, load_config
from mhr.training import pretrain
from tests.models import randomise

NAMES = ["rev-last", "next-first", "min-box"]


def fixed(rows: torch.Tensor, sizes: dict[str, list[tuple[int, ...]]]):
    """Parameters of these shapes, and functions that hand out the rows as their gradients."""
    groups = {name: [nn.Parameter(torch.zeros(shape)) for shape in shapes] for name, shapes in sizes.items()}
    flat = [p for own in groups.values() for p in own]
    starts = {p: sum(q.numel() for q in flat[:i]) for i, p in enumerate(flat)}

    def gradient(row: torch.Tensor):
        return lambda ps: [row[starts[p] : starts[p] + p.numel()].view_as(p) for p in ps]

    return [gradient(row) for row in rows], groups


@pytest.mark.parametrize("budget", [4, 16 * 5, 16 * 7, 10**9])
def test_windows_of_any_size_give_the_same(budget: int) -> None:
    rows = torch.randn(4, 23, generator=torch.Generator().manual_seed(0))
    gradients, groups = fixed(rows, {"a": [(3, 2), (2, 2)], "b": [(1,), (3, 4)]})
    gram, layers = gram_matrices(gradients, groups, budget)
    wide = rows.double()
    torch.testing.assert_close(gram, wide @ wide.T)
    for name, part in (("a", wide[:, :10]), ("b", wide[:, 10:])):
        assert layers[name] == pytest.approx(mean_cosine(part @ part.T))


def test_memory_is_the_window_and_not_all_gradients() -> None:
    rows = torch.randn(6, 40)
    gradients, groups = fixed(rows, {"a": [(8, 5)]})
    asked: list[int] = []

    def counted(gradient):
        def compute(parameters):
            asked.append(1)
            return gradient(parameters)

        return compute

    gram_matrices([counted(g) for g in gradients], groups, budget=4 * 6 * 10)  # ten columns at a time
    assert len(asked) == 6 * 4


def test_equal_opposite_and_missing_gradients() -> None:
    a = torch.tensor([1.0, 2.0])
    gradients, groups = fixed(torch.stack([a, 2 * a, -a, 0 * a]), {"layer": [(2,)]})
    gram, _ = gram_matrices(gradients, groups)
    assert mean_cosine(gram) == pytest.approx((1 - 1 - 1) / 3)  # the pairs with the gradient that is 0 are left out
    gradients, groups = fixed(torch.zeros(3, 2), {"layer": [(2,)]})
    assert mean_cosine(gram_matrices(gradients, groups)[0]) is None


@pytest.fixture(scope="module")
def backbone():
    return load_backbone("builtin:t5-tiny")


def examples(n: int = 4):
    suite = load_tasks("builtin:skills", max_train=20, limit_test=1)
    return {name: draw_shots(suite[name], n, 0) for name in NAMES}


def test_it_is_the_cosine_of_the_loss_gradients_of_the_bank(backbone) -> None:
    model, tokenizer = backbone
    config = AdapterConfig(n_heads=2, n_skills=3, rank=2, noise="per_example")
    bank = attach(model, config, NAMES)
    randomise(bank, size=0.05)
    collator = Seq2SeqCollator(tokenizer, 32, 16)
    rows, summed = [], []
    for name, own in examples().items():
        batch = collator(own)
        task_ids = batch.pop("task_ids")
        model.zero_grad()
        loss = model(**batch, task_ids=task_ids).loss
        loss.backward()
        rows.append(torch.cat([p.grad.flatten() for p in bank.adapter_parameters()]).double())
        summed.append(torch.cat([p.grad.sum(dim=1).flatten() for p in bank.adapter_parameters()]).double())
        assert task_ids == [name] * 4
    model.zero_grad()
    stacked, mixed = torch.stack(rows), torch.stack(summed)
    checkpoint = checkpoint_of(model, "builtin:t5-tiny")
    detach(model)
    found = align(checkpoint, model, examples(), collator)
    torch.testing.assert_close(found.gram, stacked @ stacked.T, rtol=1e-4, atol=1e-8)
    torch.testing.assert_close(found.mixed_gram, mixed @ mixed.T, rtol=1e-4, atol=1e-8)
    assert not hasattr(model, "mhr")
    assert found.layers.keys() == found.mixed_layers.keys() == bank.layers.keys()
    told = found.to_json()
    assert told["mean"] == pytest.approx(mean_cosine(found.gram))
    assert told["mixed"] == pytest.approx(mean_cosine(mixed @ mixed.T), rel=1e-3)
    assert told["loss"] == pytest.approx(sum(found.losses.values()) / 3)
    assert all(loss > 0 for loss in told["losses"].values())


def test_one_adapter_for_all_is_its_own_mix(backbone) -> None:
    model, tokenizer = backbone
    bank = attach(model, AdapterConfig(method="shared", rank=2), NAMES)
    randomise(bank, size=0.05)
    checkpoint = checkpoint_of(model, "builtin:t5-tiny")
    detach(model)
    found = align(checkpoint, model, examples(), Seq2SeqCollator(tokenizer, 32, 16))
    torch.testing.assert_close(found.mixed_gram, found.gram)
    assert found.mixed_layers == pytest.approx(found.layers)


def test_tasks_with_adapters_of_their_own_are_at_right_angles(backbone) -> None:
    model, tokenizer = backbone
    bank = attach(model, AdapterConfig(method="private", rank=2), NAMES)
    randomise(bank, size=0.05)
    checkpoint = checkpoint_of(model, "builtin:t5-tiny")
    detach(model)
    found = align(checkpoint, model, examples(), Seq2SeqCollator(tokenizer, 32, 16))
    assert found.mean == 0.0


def test_routing_scales_the_gradients_of_a_head(backbone) -> None:
    """With one head, `g_i . g_j = (w_i . w_j) (d_i . d_j)` in each layer: d are the gradients of the mixed factors."""
    model, tokenizer = backbone
    bank = attach(model, AdapterConfig(method="poly", n_skills=2, rank=2, targets=r"encoder\.block\.0\..*\.q"), NAMES)
    randomise(bank, size=0.05)
    with torch.no_grad():  # equal skills: routing changes no activation, so d stays the same
        for layer in bank.layers.values():
            for p in layer.bank().values():
                p[:, 1] = p[:, 0]
    collator = Seq2SeqCollator(tokenizer, 32, 16)
    checkpoint = checkpoint_of(model, "builtin:t5-tiny")
    (table,) = [router.table()[:, 0] for router in bank.groups.values()]
    detach(model)
    found = align(checkpoint, model, examples(), collator)
    key = next(key for key in checkpoint.tensors if key.startswith("routers."))
    checkpoint.tensors[key].zero_()
    even = align(checkpoint, model, examples(), collator)
    torch.testing.assert_close(found.gram, even.gram * (table @ table.T).double() * 2, rtol=1e-4, atol=1e-9)
    # The mixed factors' gradients are the d themselves, however the tasks are routed.
    torch.testing.assert_close(found.mixed_gram, even.mixed_gram, rtol=1e-4, atol=1e-9)
    torch.testing.assert_close(even.mixed_gram, even.gram * 2, rtol=1e-4, atol=1e-9)
    assert found.mean != pytest.approx(found.mixed)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    few = {"steps": 4, "batch_size": 4, "save_every": 2, "keep_checkpoints": 2, "n_heads": 2, "n_skills": 2, "rank": 2}
    config = load_config(preset="demo", **few)
    return pretrain(config, str(tmp_path_factory.mktemp("runs") / "mhr"), progress=False).path


def test_a_run_at_every_point_it_kept(run: Path) -> None:
    suite = load_tasks("builtin:skills", max_train=20, limit_test=1)
    assert [step for step, _ in points(RunFolder.open(run))] == [2, 4]
    said: list[str] = []
    held_out = "init-upper"
    found = align_run(run, suite.select(["rev-last", "next-first", held_out]), examples=2, say=said.append)
    assert [one.step for one in found] == [2, 4]
    assert len(said) == 2
    assert found[0].tasks == ["rev-last", "next-first", held_out]
    assert all(-1 <= one.mean <= 1 for one in found if one.mean is not None)
    again = align_run(run, suite.select(["rev-last", "next-first", held_out]), examples=2)
    assert torch.equal(again[-1].gram, found[-1].gram)


def test_what_cannot_be_aligned(run: Path, tmp_path: Path) -> None:
    suite = load_tasks("builtin:skills", max_train=20, limit_test=1)
    with pytest.raises(TaskError, match="name at least two"):
        align_run(run, suite.select(["rev-last"]))
    with pytest.raises(DataError, match=r"fewer than the 999 examples asked for: use --examples \d+ or fewer$"):
        align_run(run, load_tasks("builtin:skills").select(NAMES), examples=999)
    with pytest.raises(ConfigError, match="examples is 0"):
        align_run(run, suite, examples=0)
    empty = RunFolder.create(tmp_path / "run")
    empty.write(method="full", status="running")
    with pytest.raises(CheckpointError, match="has no adapter"):
        align_run(empty.path, suite)
