"""Which layers are adapted, and which of them share a routing table."""

from __future__ import annotations

import pytest
from torch import nn

import mhr
from mhr import AdapterConfig
from mhr.errors import ConfigError, TargetError
from mhr.layers.targets import find_targets, unadapted
from tests.models import MODELS, random_batch, randomise, tiny_model

TASKS = ["boolq", "rte"]

# Layers by default, and groups by granularity (None: refused, because the architecture has no such part).
EXPECTED = {
    "t5": {"layers": 24, "fine": 24, "layer": 6, "block": 4, "coder": 2, "coarse": 1},
    "bart": {"layers": 24, "fine": 24, "layer": 6, "block": 4, "coder": 2, "coarse": 1},
    "llama": {"layers": 8, "fine": 8, "layer": 2, "block": 2, "coder": None, "coarse": 1},
    "gpt2": {"layers": 4, "fine": 4, "layer": 2, "block": 2, "coder": None, "coarse": 1},
    "bert": {"layers": 8, "fine": 8, "layer": 2, "block": 2, "coder": 1, "coarse": 1},
    "bert-encoder": {"layers": 8, "fine": 8, "layer": 2, "block": 2, "coder": 1, "coarse": 1},
}


@pytest.mark.parametrize("granularity", ["fine", "layer", "block", "coder", "coarse"])
@pytest.mark.parametrize("name", MODELS)
def test_granularity_says_which_layers_share_a_table(name: str, granularity: str) -> None:
    model = tiny_model(name)
    config = AdapterConfig(n_heads=4, granularity=granularity)
    expected = EXPECTED[name][granularity]
    if expected is None:
        with pytest.raises(TargetError, match=r"granularity 'coder' does not fit layer '.*': .* use 'coarse'"):
            mhr.attach(model, config, TASKS)
        return
    bank = mhr.attach(model, config, TASKS)
    assert len(bank.layers) == EXPECTED[name]["layers"]
    assert len(bank.groups) == expected
    assert {id(layer.router) for layer in bank.layers.values()} == {id(r) for r in bank.groups.values()}
    for group, router in bank.groups.items():
        members = [n for n, layer in bank.layers.items() if layer.router is router]
        assert members
        assert all(n.startswith(group) for n in members)
    randomise(bank)
    model(**random_batch(model), task_ids=["rte", "boolq", "rte", "rte"])[0].sum().backward()
    assert all(p.grad.any() for p in bank.router_parameters())


def test_block_granularity_needs_a_block() -> None:
    model = tiny_model("llama")
    with pytest.raises(TargetError, match="granularity 'block' does not fit layer 'lm_head'"):
        mhr.attach(model, AdapterConfig(targets=["lm_head"], granularity="block"), TASKS)


def test_a_list_matches_whole_names_and_endings() -> None:
    model = tiny_model("t5")
    assert len(find_targets(model, ["q"])) == 6
    assert find_targets(model, ["encoder.block.1.layer.0.SelfAttention.k"]) == [
        "encoder.block.1.layer.0.SelfAttention.k"
    ]
    assert len(find_targets(model, ["SelfAttention.q", "EncDecAttention.q"])) == 6
    assert len(find_targets(model, ["o"])) == 6  # not wo
    assert len(find_targets(model, ["wi_0", "wi_1", "wo"])) == 12


def test_a_string_is_a_regular_expression_for_the_whole_name() -> None:
    model = tiny_model("t5")
    assert len(find_targets(model, r"decoder\..*\.(q|v)")) == 8
    with pytest.raises(TargetError, match=r"target 'q\|v' matches no layer"):
        find_targets(model, "q|v")
    with pytest.raises(ConfigError, match=r"targets '\(' is not a regular expression"):
        find_targets(model, "(")


def test_targets_are_in_the_model_s_order_and_come_once() -> None:
    model = tiny_model("llama")
    found = find_targets(model, ["v_proj", "q_proj", "self_attn.q_proj"])
    assert found == [f"model.layers.{i}.self_attn.{p}_proj" for i in (0, 1) for p in "qv"]


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (["q_proj", "qroj"], "target 'qroj' matches no layer: did you mean 'q_proj'"),
        (["self_attn"], "target 'self_attn' matches 'model.layers.0.self_attn', which is no Linear layer"),
        ([], "targets is empty: name at least one layer; Linear layers end in down_proj, gate_proj, k_proj, lm_head"),
    ],
)
def test_targets_that_match_nothing_are_an_error(targets: list[str], message: str) -> None:
    with pytest.raises(TargetError) as error:
        find_targets(tiny_model("llama"), targets)
    assert message in str(error.value)


def test_words_stand_for_layers_by_where_they_stand() -> None:
    model = tiny_model("llama")
    attention = [f"{p}_proj" for p in "qkvo"]
    feed_forward = ["gate_proj", "up_proj", "down_proj"]
    for words, endings in (
        ("attention", attention),
        (None, attention),
        (["feed-forward"], feed_forward),
        ("all-linear", attention + feed_forward),
        (["attention", "feed-forward"], attention + feed_forward),
        (["attention", "down_proj", "lm_head"], [*attention, "down_proj", "lm_head"]),
    ):
        assert find_targets(model, words) == find_targets(model, endings), words
    assert find_targets(model, None, adapter="bottleneck") == find_targets(model, ["down_proj"])
    assert not unadapted(model, "all-linear")
    with pytest.raises(TargetError, match="did you mean 'all-linear'"):
        find_targets(model, ["all_linear"])


def test_a_model_whose_structure_is_not_understood_needs_targets() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    for targets in (None, "all-linear", ["feed-forward"]):
        with pytest.raises(
            TargetError, match=r"the structure of 'Sequential' does not show .*: name the layers"
        ) as caught:
            find_targets(model, targets)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("adapter", "targets", "heads", "message"),
    [
        ("lora", ["k_proj"], 5, r"n_heads is 5, .* the 32 input features of layer 'model.layers.0.self_attn.k_proj'"),
        ("lora", ["k_proj"], 32, r"n_heads is 32, .* the 16 output features of .*: use one of 1, 2, 4, 8, 16, or"),
        ("ia3", ["k_proj"], 32, r"n_heads is 32, .* the 16 output features"),
    ],
)
def test_heads_that_do_not_divide_are_an_error_that_names_the_layer(
    adapter: str, targets: list[str], heads: int, message: str
) -> None:
    with pytest.raises(TargetError, match=message):
        mhr.attach(tiny_model("llama"), AdapterConfig(adapter=adapter, targets=targets, n_heads=heads), TASKS)


def test_heads_need_not_divide_the_input_of_ia3() -> None:
    bank = mhr.attach(tiny_model("llama"), AdapterConfig(adapter="ia3", targets=["lm_head"], n_heads=64), TASKS)
    assert list(bank.layers) == ["lm_head"]
