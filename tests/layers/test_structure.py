"""Where the Linear layers of a model stand: the defaults of the first release come out, and what is not understood is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

import mhr
from mhr import AdapterConfig
from mhr.errors import TargetError
from mhr.layers.structure import structure_of
from mhr.layers.targets import find_targets, unadapted
from tests.architectures import MAPPINGS, architectures, build, configuration
from tests.models import randomise

TASKS = ["boolq", "rte", "copa"]

# Layers that the first release adapted by default, by architecture: endings, of which a model has some, or a pattern.
ATTENTION: dict[str, list[str] | str] = {
    **dict.fromkeys(["t5", "mt5", "umt5", "longt5", "switch_transformers"], ["q", "k", "v", "o"]),
    **dict.fromkeys(
        ["bart", "mbart", "pegasus", "marian", "m2m_100", "opt", "whisper"], ["q_proj", "k_proj", "v_proj", "out_proj"]
    ),
    **dict.fromkeys(
        ["llama", "mistral", "mixtral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "cohere", "olmo", "olmo2"],
        ["q_proj", "k_proj", "v_proj", "o_proj"],
    ),
    **dict.fromkeys(["phi", "phi3"], ["q_proj", "k_proj", "v_proj", "dense", "qkv_proj", "o_proj"]),
    "gpt2": ["attn.c_attn", "attn.c_proj"],
    **dict.fromkeys(["gpt_neox", "bloom", "falcon"], ["query_key_value", "dense"]),
    **dict.fromkeys(
        ["bert", "roberta", "xlm-roberta", "electra", "camembert"], ["query", "key", "value", "attention.output.dense"]
    ),
    "distilbert": ["q_lin", "k_lin", "v_lin", "out_lin"],
    "deberta-v2": ["query_proj", "key_proj", "value_proj", "attention.output.dense"],
}
FEED_FORWARD: dict[str, list[str] | str] = {
    **dict.fromkeys(["t5", "mt5", "umt5", "longt5"], ["wo"]),
    **dict.fromkeys(["bart", "mbart", "pegasus", "marian", "m2m_100", "opt", "whisper", "phi"], ["fc2"]),
    **dict.fromkeys(
        ["llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "cohere", "olmo", "olmo2", "phi3"],
        ["down_proj"],
    ),
    "gpt2": ["mlp.c_proj"],
    **dict.fromkeys(["gpt_neox", "bloom", "falcon"], ["dense_4h_to_h"]),
    **dict.fromkeys(
        ["bert", "roberta", "xlm-roberta", "electra", "camembert", "deberta-v2"], r".*layer\.\d+\.output\.dense"
    ),
    "distilbert": ["ffn.lin2"],
}
LISTED = [(kind, name) for kind, name in architectures() if name in ATTENTION]


def first_release(model: nn.Module, targets: list[str] | str, outside: list[str]) -> list[str]:
    known = [name.rsplit(".", 1)[-1] for name, _ in model.named_modules()]
    if isinstance(targets, list):
        targets = [t for t in targets if t.rsplit(".", 1)[-1] in known]
    return find_targets(model, targets, outside)


def check_defaults(model: nn.Module, name: str) -> None:
    outside = [head for head in ("classifier", "score", "classification_head") if hasattr(model, head)]
    assert find_targets(model, None, outside) == first_release(model, ATTENTION[name], outside)
    if name in FEED_FORWARD:
        assert find_targets(model, None, outside, "bottleneck") == first_release(model, FEED_FORWARD[name], outside)


@pytest.mark.parametrize(("kind", "name"), LISTED)
def test_defaults_are_those_of_the_first_release(kind: str, name: str) -> None:
    check_defaults(build(kind, name), name)


def test_every_architecture_of_the_first_release_is_compared() -> None:
    assert {name for _, name in LISTED} == set(ATTENTION)
    assert set(FEED_FORWARD) < set(ATTENTION)


@pytest.mark.parametrize("name", sorted(ATTENTION))
def test_defaults_of_the_sizes_that_people_train_are_those_of_the_first_release(name: str) -> None:
    """Where heads, key heads and widths differ, and none is as large as another by chance."""
    kind = next(kind for kind, other in LISTED if other == name)
    config = type(configuration(name))()
    for layers in ("num_hidden_layers", "encoder_layers", "decoder_layers", "num_decoder_layers"):
        if layers in vars(config) or layers in config.attribute_map:
            setattr(config, layers, 2)
    if getattr(config, "layer_types", None) is not None:
        config.layer_types = config.layer_types[:2]
    model_class = MAPPINGS[kind][name]
    with torch.device("meta"):
        check_defaults(
            getattr(transformers, model_class if isinstance(model_class, str) else model_class[0])(config), name
        )


@pytest.mark.parametrize(
    ("kind", "name", "settings"),
    [
        ("classifier", "deberta-v2", {"share_att_key": False}),
        ("causal", "falcon", {"new_decoder_architecture": True, "num_kv_heads": 2}),
        ("causal", "falcon", {"multi_query": False, "parallel_attn": False}),
        ("causal", "gpt_neox", {"use_parallel_residual": False}),
        ("causal", "gemma", {"head_dim": 16, "num_key_value_heads": 1}),
        (
            "causal",
            "qwen3",
            {"head_dim": 32, "intermediate_size": 128},
        ),  # heads as wide together as the feed-forward part
        ("causal", "opt", {"word_embed_proj_dim": 16}),
        ("seq2seq", "t5", {"feed_forward_proj": "gated-gelu", "d_kv": 16}),
        ("causal", "mistral", {"intermediate_size": 32}),
    ],
)
def test_variants_of_an_architecture(kind: str, name: str, settings: dict[str, Any]) -> None:
    config = configuration(name)
    for key, value in settings.items():
        setattr(config, key, value)
    config = type(config)(**{k: v for k, v in config.to_dict().items() if k != "architectures"})
    model_class = MAPPINGS[kind][name]
    with torch.device("meta"):
        check_defaults(
            getattr(transformers, model_class if isinstance(model_class, str) else model_class[0])(config), name
        )


def test_experts_are_left_out_and_told() -> None:
    model = build("causal", "mixtral")
    assert find_targets(model, "all-linear") == find_targets(model, ["q_proj", "k_proj", "v_proj", "o_proj"])
    for targets in (None, "all-linear", ["attention"]):
        (line,) = unadapted(model, targets)
        assert line.startswith(
            "not adapted: model.layers.0.mlp.experts.gate_up_proj and 3 more like it: holds the weights"
        )
    assert unadapted(model, ["q_proj"]) == []
    with pytest.raises(TargetError, match=r"does not show outputs of feed-forward blocks; 'model.layers.0.mlp.experts"):
        find_targets(model, None, adapter="bottleneck")
    for targets in (["down_proj"], ["experts.down_proj"], r".*\.experts\.down_proj"):
        with pytest.raises(TargetError, match="a parameter that holds the weights of several experts"):
            find_targets(model, targets)


def test_a_name_that_means_experts_too_says_so() -> None:
    """DeepSeek-V3 has a dense block, shared experts and dealt ones, whose last projections are all called down_proj."""
    model = build("causal", "deepseek_v3")
    bank = mhr.attach(model, AdapterConfig(targets=["down_proj"], n_heads=4), TASKS)
    assert list(bank.layers) == ["model.layers.0.mlp.down_proj", "model.layers.1.mlp.shared_experts.down_proj"]
    assert len(bank.notes) == 1
    assert bank.notes[0].startswith("not adapted: model.layers.1.mlp.experts.down_proj: holds the weights")


def test_what_chooses_is_adapted_by_its_name_only() -> None:
    model = build("causal", "qwen2_moe")
    assert "model.layers.0.mlp.shared_expert_gate" not in find_targets(model, "all-linear")
    lines = unadapted(model, "all-linear")
    assert len(lines) == 2
    assert (
        lines[1]
        == "not adapted: model.layers.0.mlp.shared_expert_gate and 1 more like it: chooses experts or positions"
    )
    assert len(find_targets(model, ["shared_expert_gate"])) == 2
    assert "indexer" not in " ".join(find_targets(build("causal", "deepseek_v32"), "all-linear"))


def test_layers_that_are_not_called_are_left_out_and_told() -> None:
    model = build("causal", "mamba")
    assert find_targets(model, "all-linear") == [f"backbone.layers.{i}.mixer.in_proj" for i in (0, 1)]
    assert any(
        "mixer.x_proj and 5 more like it: is not always called" in line for line in unadapted(model, "all-linear")
    )
    for targets in (None, ["feed-forward"]):
        with pytest.raises(TargetError, match="the structure of 'mamba' does not show"):
            find_targets(model, targets)
    # What returns to d_model in RWKV's feed-forward part is read, and a gate beside it is no output.
    assert structure_of(build("causal", "rwkv")).outputs == []


class Attend(nn.Module):
    def __init__(self, width: int, inner: int, back: int):
        super().__init__()
        self.into, self.back = nn.Linear(width, 3 * inner), nn.Linear(inner, back)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.into(x).chunk(3, -1)
        return self.back(torch.softmax(q @ k.transpose(-1, -2), -1) @ v)


class Block(nn.Module):
    """Of a model of tomorrow, or of someone else's code: names that no table holds."""

    def __init__(self, inner: int = 24, back: int = 16):
        super().__init__()
        self.attn_norm, self.self_attn = nn.LayerNorm(16), Attend(16, inner, back)
        self.wide, self.narrow, self.router = nn.Linear(16, 48), nn.Linear(48, 16), nn.Linear(16, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.self_attn(self.attn_norm(x))
        return x + self.router(x).softmax(-1)[..., :1] * self.narrow(self.wide(x).relu())


class Tomorrow(nn.Module):
    def __init__(self, **sizes: int):
        super().__init__()
        self.embed, self.stack = nn.Embedding(64, 16), nn.ModuleList(Block(**sizes) for _ in range(2))
        self.heads = nn.ModuleList([nn.Linear(16, 64, bias=False)])
        self.heads[0].weight = self.embed.weight

    def forward(self, ids: Tensor, flat: bool = False) -> Tensor:
        x = self.embed(ids)
        for block in self.stack:
            x = block(x.flatten(0, 1)).view_as(x) if flat else block(x)
        return self.heads[0](x)


def test_a_model_of_tomorrow() -> None:
    model = Tomorrow()
    attention = [f"stack.{i}.self_attn.{name}" for i in (0, 1) for name in ("into", "back")]
    assert find_targets(model, None) == attention
    assert find_targets(model, None, adapter="bottleneck") == ["stack.0.narrow", "stack.1.narrow"]
    every = find_targets(model, "all-linear")
    assert sorted(every) == sorted([*attention, *(f"stack.{i}.{name}" for i in (0, 1) for name in ("wide", "narrow"))])
    randomise(mhr.attach(model, AdapterConfig(targets="all-linear", n_heads=4), TASKS))
    ids = torch.randint(64, (3, 5), generator=torch.Generator().manual_seed(0))
    mixed = model(ids, task_ids=TASKS)
    alone = torch.cat([model(ids[i : i + 1], task_ids=[task]) for i, task in enumerate(TASKS)])
    torch.testing.assert_close(mixed, alone)
    assert not torch.allclose(mixed, model(ids, task_ids=TASKS[::-1]), atol=1e-3)


def test_rows_that_a_model_of_tomorrow_flattens_are_refused() -> None:
    """As many tokens as examples: [B, D] is no answer to which example a token is of."""
    model = Tomorrow()
    mhr.attach(model, AdapterConfig(n_heads=4), TASKS)
    with pytest.raises(TargetError, match=r"'stack.0.self_attn.into' got x \[3, 16\] for 3 task ids"):
        model(torch.zeros(3, 1, dtype=torch.long), flat=True, task_ids=TASKS)


def test_attention_that_does_not_return_to_the_width_is_not_guessed() -> None:
    model = Tomorrow(back=12)
    assert structure_of(model).outputs == structure_of(model).attention == []
    with pytest.raises(TargetError, match="the structure of 'Tomorrow' does not show the projections of attention"):
        mhr.attach(model, AdapterConfig(n_heads=4), TASKS)
    assert any("does not return to the width of the model" in line for line in unadapted(model, "all-linear"))


def test_the_tied_head_among_blocks_is_left_out() -> None:
    assert structure_of(Tomorrow()).left_out["heads.0"] == "is tied to an embedding"
