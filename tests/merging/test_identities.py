"""What every merge of several adapters has to leave alone, whatever the method."""

from __future__ import annotations

from itertools import permutations

import pytest
import torch

from mhr.adapters import LoraFactors, PlainAdapter
from mhr.merging import MERGE_METHODS, MergeReport, merge, read_report
from mhr.merging.plan import combiners
from tests.merging.loras import deltas, error, ia3, load, lora, same, save

NEEDS_DATA = ("fisher", "mera-activations", "search", "soup-greedy")
COMBINATIONS = [
    (name, space) for name, method in MERGE_METHODS.items() for space in method.spaces if name not in NEEDS_DATA
]
# Settings with which a method changes nothing by itself.
NEUTRAL = {
    name: {
        "magnitude": {"density": 1.0},
        "both-ends": {"density": 1.0},
        "random": {"drop": 0.0},
        "rank": {"drop": 0.0, "epsilon": 0.0},
    }[method.sparsifier]
    for name, method in MERGE_METHODS.items()
    if method.sparsifier is not None
} | {"sce": {"density": 1.0}}
AVERAGES = [c for c in COMBINATIONS if c[0] not in NEUTRAL and not MERGE_METHODS[c[0]].sums and c[0] != "slerp"]
ANY_NUMBER = [c for c in COMBINATIONS if MERGE_METHODS[c[0]].n_inputs is None]


def settings(name: str, n: int) -> dict:
    return {"method": name, **({"weights": [1.0] * n} if MERGE_METHODS[name].weights == "needed" else {})}


def test_the_contract_covers_every_method() -> None:
    several = {name for name, method in MERGE_METHODS.items() if method.spaces}
    assert {name for name, _ in COMBINATIONS} | set(NEEDS_DATA) == several == set(combiners)
    named = {name for name, method in MERGE_METHODS.items() if method.consensus is None and method.spaces}
    averages = {"uniform", "weighted", "soup-uniform", "soup-greedy", "fisher", "search", "mera", "mera-activations"}
    assert named == averages | {"sce", "model_stock", "slerp"}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("to", ["mhr", "peft-lora"])
@pytest.mark.parametrize(("name", "space"), ANY_NUMBER)
def test_one_input_returns_itself_bit_for_bit(name, space, to, dtype, tmp_path):
    given = lora(1, dtype=dtype)
    output = merge(
        save(tmp_path, given), **settings(name, 1), **NEUTRAL.get(name, {}), space=space, to=to, output=tmp_path / "out"
    )
    assert same(load(output), given)


@pytest.mark.parametrize(("name", "space"), ANY_NUMBER)
def test_the_order_of_inputs_changes_nothing(name, space, tmp_path):
    folders = save(tmp_path, lora(1), lora(2, alpha=5.0), lora(3))
    weighted = MERGE_METHODS[name].weights != "none"
    found = []
    for number, order in enumerate(permutations(range(3))):
        weights = {"weights": [(0.2, 0.5, 0.3)[i] for i in order]} if weighted else {}
        output = merge(
            [folders[i] for i in order],
            method=name,
            **weights,
            space=space,
            to="peft-lora",
            output=tmp_path / f"{number}",
        )
        found.append((output / "adapter_model.safetensors").read_bytes())
        report = read_report(output)
        assert [i["name"] for i in report.inputs] == [str(folders[i]) for i in order]
        assert_told_in_order(report, order)
    assert len(set(found)) == 1


def assert_told_in_order(report: MergeReport, order: tuple[int, ...]) -> None:
    """Distances stand in the order in which the inputs were named."""
    plain = [deltas(lora(1)), deltas(lora(2, alpha=5.0)), deltas(lora(3))]
    for i, row in enumerate(report.distance):
        for j, distance in enumerate(row):
            x, y = plain[order[i]], plain[order[j]]
            assert distance == pytest.approx(float((x - y).norm()), rel=1e-6, abs=1e-4)
            assert report.cosine[i][j] == pytest.approx(float(x @ y / x.norm() / y.norm()), abs=1e-9)


@pytest.mark.parametrize("copies", [2, 3, 7, 49])
@pytest.mark.parametrize(("name", "space"), AVERAGES)
def test_an_average_of_copies_is_the_copy(name, space, copies, tmp_path):
    given = lora(1)
    output = merge(save(tmp_path, *[given] * copies), **settings(name, copies), space=space, output=tmp_path / "out")
    assert same(load(output), given)
    assert [i["weight"] for i in read_report(output).inputs] == pytest.approx([1 / copies] * copies)


@pytest.mark.parametrize(("name", "space"), [c for c in COMBINATIONS if MERGE_METHODS[c[0]].weights != "none"])
def test_a_weight_of_0_leaves_an_input_out(name, space, tmp_path):
    one, two = lora(1), lora(2)
    output = merge(
        save(tmp_path, one, two),
        method=name,
        weights=[1, 0],
        **NEUTRAL.get(name, {}),
        space=space,
        output=tmp_path / "out",
    )
    assert error(deltas(load(output)), deltas(one)) < 2e-6


@pytest.mark.parametrize("name", sorted({name for name, _ in ANY_NUMBER} - {"mera"}))
def test_vectors_of_an_ia3(name, tmp_path):
    given = ia3(1)
    output = merge(save(tmp_path, given), **settings(name, 1), **NEUTRAL.get(name, {}), output=tmp_path / "one")
    found = load(output)
    for name_, layer in given.layers.items():
        torch.testing.assert_close(found.layers[name_].v, layer.v, rtol=1e-6, atol=1e-6)
    # Numbers that are dropped or trimmed fall back to 1, where an IA3 does nothing, and not to 0.
    if MERGE_METHODS[name].sparsifier is not None:
        harsh = {"density": 0.01} if "density" in NEUTRAL[name] else {"drop": 0.99}
        harsh |= {"epsilon": 0.01} if "epsilon" in NEUTRAL[name] else {}
        found = load(merge(save(tmp_path, given), method=name, **harsh, output=tmp_path / "harsh"))
        assert float((torch.cat([layer.v for layer in found.layers.values()]) == 1).float().mean()) > 0.9


def test_weights_are_those_of_the_inputs(tmp_path):
    one, two = lora(1), lora(2)
    folders = save(tmp_path, one, two)
    found = load(merge(folders, method="weighted", weights=[3, 1], output=tmp_path / "a"))
    for name, factors in found.layers.items():
        torch.testing.assert_close(factors.a, 0.75 * one.layers[name].a + 0.25 * two.layers[name].a)
        torch.testing.assert_close(factors.b, 0.75 * one.layers[name].b + 0.25 * two.layers[name].b)
    by_name = {str(folders[1]): 1.0, str(folders[0]): 3.0}
    assert same(load(merge(folders, method="weighted", weights=by_name, output=tmp_path / "b")), found)
    by_task = merge(folders, method="weighted", task=["x", "y"], weights={"x": 3, "y": 1}, output=tmp_path / "c")
    assert same(load(by_task), found)
    assert [i["task"] for i in read_report(by_task).inputs] == ["x", "y"]


def test_scalings_that_differ_are_shared_by_both_factors(tmp_path):
    """Averaging factors of unlike scaling is the average of the balanced ones, `sqrt(s) A` and `sqrt(s) B`."""
    one, two = lora(1, alpha=1.0), lora(2, alpha=16.0)
    found = load(merge(save(tmp_path, one, two), output=tmp_path / "out"))
    for name, factors in found.layers.items():
        x, y = one.layers[name], two.layers[name]
        a = (x.scaling**0.5 * x.a + y.scaling**0.5 * y.a) / 2
        b = (x.scaling**0.5 * x.b + y.scaling**0.5 * y.b) / 2
        assert factors.scaling == 4.0
        assert error(factors.scaling * factors.a @ factors.b, a @ b) < 1e-6


def test_sums_are_held_in_float32(tmp_path):
    """256 + 1 - 256 in bfloat16 would be 0."""
    values = (256.0, 1.0, -256.0)
    adapters = [
        PlainAdapter(
            {"q": LoraFactors(torch.full((4, 1), v).bfloat16(), torch.ones(1, 4).bfloat16(), 1.0)}, lora(0).base
        )
        for v in values
    ]
    found = load(merge(save(tmp_path, *adapters), output=tmp_path / "out"))
    assert torch.equal(found.layers["q"].a, torch.full((4, 1), 1 / 3).bfloat16())
