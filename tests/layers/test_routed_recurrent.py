"""HRA against its equations in plain torch, over depth and through whole models, and what has no place for it."""

from __future__ import annotations

import copy
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AlbertConfig, AlbertModel, T5Config, T5ForConditionalGeneration

import mhr
from mhr import AdapterBank, AdapterConfig
from mhr.adapters import checkpoint_of, collapse, collapse_task, fold_into, load_adapter, save_adapter, save_peft
from mhr.adapters.plain import attach_plain
from mhr.adapters.write import write_plain
from mhr.errors import CheckpointError, ConfigError, MergeError, TargetError
from mhr.few_shot.starts import Start
from mhr.layers import together
from mhr.layers.layouts import Layout
from mhr.merging import merge
from mhr.methods import idle_rates, refusal
from mhr.runs import load_config
from mhr.training.seeding import seed_bank
from tests.architectures import build
from tests.models import WIDTH, random_batch, randomise, tiny_model

TASKS = ["boolq", "rte", "copa"]
IDS = ["copa", "boolq", "copa", "rte"]
HRA: dict[str, Any] = {"method": "private", "adapter": "recurrent"}

pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing_(en|dis)able. is deprecated:FutureWarning")


class Stack(nn.Module):
    """Blocks that each end in a Linear of one shape."""

    def __init__(self, depth: int = 3) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(6, 6) for _ in range(depth))

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = x + block(x).tanh()
        return x


def adapted(model: Any = None, **settings: Any) -> tuple[Any, AdapterBank]:
    """A model with a bank in which everything has a value."""
    torch.manual_seed(0)
    if model is None:
        model, settings = Stack().double(), {"targets": ["0", "1", "2"], **settings}
    bank = mhr.attach(model, AdapterConfig(**{**HRA, "rank": 5, **settings}), TASKS)
    randomise(bank)
    return model, bank


def stated(model: Any, x: Tensor, task: str, bank: dict[str, Tensor], weights: Tensor) -> Tensor:
    """One example [L, D] through `Stack`, by the equations."""
    a, u, bias = bank["bank_a"][0, 0], bank["carry_a"].flatten(), bank["bias_a"].flatten()
    head = torch.einsum("hs,hsro->hro", weights[TASKS.index(task)], bank["bank_b"]).permute(1, 0, 2).flatten(1)
    h: Any = 0
    for layer in model.blocks:
        y = layer.base(x)
        h = F.relu(y @ a + u * h + bias)
        x = x + (y + h @ head).tanh()
    return x


POLY = {"method": "mhr", "n_heads": 2, "n_skills": 4, "granularity": "coarse"}


@pytest.mark.parametrize("settings", [{}, POLY], ids=["private", "mhr"])
def test_outputs_and_every_gradient_are_those_of_the_equations(settings: dict[str, Any]) -> None:
    model, bank = adapted(**settings)
    (held,) = bank.banks().values()
    x = torch.randn(4, 5, 6, dtype=torch.float64, requires_grad=True)
    leaves = {"x": x, **held, **dict(bank.routers.named_parameters())}
    weights = next(iter(bank.groups.values()))(bank.for_batch(TASKS))
    expected = torch.stack([stated(model, one, task, held, weights) for one, task in zip(x, IDS, strict=True)])
    found = model(x, task_ids=IDS)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
    upstream = torch.randn_like(found)
    one, two = (torch.autograd.grad((y * upstream).sum(), list(leaves.values())) for y in (found, expected))
    for name, a, b in zip(leaves, one, two, strict=True):
        assert b.any(), name
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11, msg=name)


def test_tokens_of_packed_rows_have_the_head_of_their_task() -> None:
    model, bank = adapted()
    x = torch.randn(2, 5, 6, dtype=torch.float64)
    tasks, lengths = ["rte", "copa", "boolq"], [3, 3, 4]
    batch = bank.for_batch(tasks).packed(torch.tensor([0, 3, 6, 10]), (2, 5))
    with torch.no_grad():
        packed = model(x, task_ids=batch).view(10, 6)
        for task, part, own in zip(tasks, packed.split(lengths), x.view(10, 6).split(lengths), strict=True):
            torch.testing.assert_close(model(own[None], task_ids=[task])[0], part)


def test_it_begins_as_the_base_model_and_every_part_of_it_learns() -> None:
    model = tiny_model("t5")
    batch = random_batch(model)
    with torch.no_grad():
        before = model(**batch).logits
        bank = mhr.attach(model, AdapterConfig(**HRA), TASKS)
        assert torch.equal(model(**batch, task_ids=IDS).logits, before)
    assert list(bank.layers) == [
        f"{coder}.block.{i}.layer.{j}.DenseReluDense.wo"
        for coder, j in (("encoder", 1), ("decoder", 2))
        for i in (0, 1)
    ]
    assert list(bank.banks()) == [f"tied.encoder.{WIDTH}", f"tied.decoder.{WIDTH}"]
    randomise(bank)
    model(**batch, task_ids=IDS).loss.backward()
    for name, held in bank.banks().items():
        for key, p in held.items():
            assert p.grad is not None, (name, key)
            assert p.grad.any(), (name, key)


def test_one_layer_gives_its_carry_a_gradient_too() -> None:
    model, bank = adapted(Stack(1), targets=["0"])
    model(torch.randn(4, 3, 6), task_ids=IDS).sum().backward()
    assert all(p.grad is not None for p in bank.adapter_parameters())


# ---- the state --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["t5", "bart", "gpt2", "llama"])
@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_hands_the_state_through_blocks(name: str, reentrant: bool) -> None:
    model, bank = adapted(tiny_model(name, **{"num_hidden_layers": 3} if name == "llama" else {}).double())
    model.train()
    batch = random_batch(model)

    def gradients() -> dict[str, Tensor]:
        model.zero_grad()
        loss = model(**batch, task_ids=IDS).loss
        assert not bank.state.carried
        mhr_free = model(
            **{key: t.flip(0) for key, t in batch.items()}, task_ids=IDS[::-1]
        ).loss  # another pass meanwhile
        (loss + 0 * mhr_free).backward()
        return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    plain = gradients()
    assert any("carry_a" in key and g.any() for key, g in plain.items())
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    model.enable_input_require_grads()
    found = gradients()
    assert found.keys() == plain.keys()
    for key, gradient in plain.items():
        torch.testing.assert_close(found[key], gradient, rtol=1e-9, atol=1e-12, msg=key)


@pytest.mark.parametrize("name", ["t5", "bart", "gpt2", "llama"])
@pytest.mark.parametrize("beams", [1, 3])
def test_generation_with_a_cache_is_that_without(name: str, beams: int) -> None:
    model, _ = adapted(tiny_model(name).double())
    batch = {key: t for key, t in random_batch(model).items() if key in ("input_ids", "attention_mask")}
    asked: dict[str, Any] = {"max_new_tokens": 5, "num_beams": beams, "do_sample": False, "task_ids": IDS}
    asked |= {"output_scores": True, "return_dict_in_generate": True, "eos_token_id": None, "pad_token_id": 0}
    one, two = (model.generate(**batch, **asked, use_cache=cached) for cached in (True, False))
    assert torch.equal(one.sequences, two.sequences)
    assert len(one.scores) == 5
    for a, b in zip(one.scores, two.scores, strict=True):
        torch.testing.assert_close(a, b)
    alone = model.generate(**{key: t[:1] for key, t in batch.items()}, **{**asked, "task_ids": IDS[:1]})
    assert torch.equal(alone.sequences[0, : one.sequences.shape[1]], one.sequences[0])


def test_a_part_that_is_called_alone_begins_at_zero() -> None:
    model, bank = adapted(tiny_model("t5"))
    batch = random_batch(model)
    with torch.no_grad():
        whole = model(**batch, task_ids=IDS)
        with bank.routing(IDS):
            encoded = [model.get_encoder()(batch["input_ids"], batch["attention_mask"])[0] for _ in range(2)]
    assert torch.equal(encoded[0], encoded[1])
    assert torch.equal(encoded[0], whole.encoder_last_hidden_state)
    assert not bank.state.carried


def test_a_copy_and_a_detached_model_keep_no_state_of_the_other() -> None:
    model, bank = adapted()
    other = copy.deepcopy(model)
    x = torch.randn(4, 3, 6, dtype=torch.float64)
    with torch.no_grad(), other.mhr.routing(IDS):
        expected = model(x, task_ids=IDS)
        assert torch.equal(other(x), expected)
        assert torch.equal(other(x), expected)
    hooks = len(model._forward_pre_hooks)
    assert hooks
    mhr.detach(model)
    assert not model._forward_pre_hooks
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_layers_that_are_called_again_and_again_hand_on_to_themselves() -> None:
    config = AlbertConfig(
        vocab_size=64, embedding_size=WIDTH, hidden_size=WIDTH, num_hidden_layers=3, num_attention_heads=4
    )
    config.intermediate_size, config.hidden_dropout_prob, config.attention_probs_dropout_prob = 64, 0.0, 0.0
    model, bank = adapted(AlbertModel(config).double().eval())
    (name,) = bank.layers
    states = []
    layer = bank.layers[name]
    layer.register_forward_hook(lambda *_: states.append(bank.state.carried[layer.chain]))
    ids = torch.randint(1, 64, (4, 5))
    with torch.no_grad():
        for _ in range(2):
            model(input_ids=ids, task_ids=IDS)
    assert len(states) == 6
    assert torch.equal(states[0], states[3])
    assert not torch.equal(states[0], states[1])


def test_torch_compile_takes_the_chain_whole() -> None:
    torch._dynamo.reset()
    model, bank = adapted()
    x, batch = torch.randn(4, 3, 6, dtype=torch.float64), bank.for_batch(IDS)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    for _ in range(2):
        one, two = (
            torch.autograd.grad(m(x, task_ids=batch).square().sum(), bank.adapter_parameters())
            for m in (model, compiled)
        )
        for a, b in zip(one, two, strict=True):
            assert a.any()
            torch.testing.assert_close(a, b)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_in_half_precision_and_under_autocast_it_is_close(dtype: torch.dtype) -> None:
    model, bank = adapted(tiny_model("bert-encoder"))
    batch = random_batch(model)
    exact = model(**batch, task_ids=IDS)[0]
    with torch.autocast("cpu", dtype):
        under = model(**batch, task_ids=IDS)[0]
    assert 0 < (under - exact).norm() / exact.norm() < 0.05
    rounded = model.to(dtype)(**batch, task_ids=IDS)[0]
    assert rounded.dtype == dtype
    assert 0 < (rounded - exact).norm() / exact.norm() < 0.05


class Mixed(Stack):
    """Its second block sees the tokens one behind the other, as a mixture of experts does."""

    def forward(self, x: Tensor) -> Tensor:
        shape = x.shape
        for i, block in enumerate(self.blocks):
            x = x.reshape(-1, 6) if i == 1 else x.view(shape)
            x = x + block(x).tanh()
        return x.view(shape)


def test_tokens_that_a_layer_sees_in_one_line_are_the_same() -> None:
    (model, _), (flat, _) = adapted(), adapted(Mixed().double(), targets=["0", "1", "2"])
    flat.mhr.layers["blocks.1"].layout = Layout.TOKENS
    flat.load_state_dict(model.state_dict())
    x = torch.randn(4, 3, 6, dtype=torch.float64)
    with torch.no_grad():
        assert torch.equal(flat(x, task_ids=IDS), model(x, task_ids=IDS))


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_where_heads_are_mixed_together(reentrant: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    model, bank = adapted(tiny_model("llama").double())
    model.train()

    def gradients() -> list[Tensor]:
        model.zero_grad()
        model(**random_batch(model), task_ids=IDS).loss.backward()
        return [p.grad.clone() for p in bank.adapter_parameters()]

    plain = gradients()
    monkeypatch.setattr(together, "wanted", lambda bank: True)
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    model.enable_input_require_grads()
    for one, two in zip(gradients(), plain, strict=True):
        assert two.any()
        torch.testing.assert_close(one, two)


# ---- tasks ------------------------------------------------------------------------------------------------------------


def test_heads_move_with_tasks_and_the_controller_stays() -> None:
    _, bank = adapted()
    (held,) = bank.banks().values()
    heads, controller = held["bank_b"].clone(), {key: held[key] for key in ("bank_a", "carry_a", "bias_a")}
    bank.set_tasks(["copa", "wic", "boolq"])
    (now,) = bank.banks().values()
    assert torch.equal(now["bank_b"][:, [0, 2]], heads[:, [2, 0]])
    assert not now["bank_b"][:, 1].any()
    assert all(now[key] is p for key, p in controller.items())
    assert list(bank.task_skills()) == ["layers.tied.all.6.bank_b"]


@pytest.mark.parametrize("mode", ["head", "mhr"])
def test_a_new_task_trains_its_head_and_in_mode_mhr_the_controller(mode: str) -> None:
    model, bank = adapted(tiny_model("t5"))
    batch = random_batch(model)
    start = Start(model, None, "tiny", mode)
    for seed in (0, 1):
        start.begin("wic", seed)
        trained = {name for name, p in model.named_parameters() if p.requires_grad}
        names = ["bank_b"] if mode == "head" else ["bank_a", "bank_b", "bias_a", "carry_a"]
        coders = ("decoder.block.0.layer.2", "encoder.block.0.layer.1")
        assert sorted(trained) == [f"{coder}.DenseReluDense.wo.{name}" for coder in coders for name in names]
        for name, held in bank.banks().items():
            assert not held["bank_b"].any()
            assert held["bank_b"].shape[1] == 1
            assert torch.equal(held["bank_a"], start.first[f"layers.{name}.bank_a"])
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1.0)
        before = float(model(**batch, task_ids=["wic"] * 4).loss.detach())
        for _ in range(2):
            optimizer.zero_grad()
            loss = model(**batch, task_ids=["wic"] * 4).loss
            loss.backward()
            optimizer.step()
        assert loss < before


def test_modes_and_rates() -> None:
    assert [m for m in ("head", "mhr", "mu", "random", "full") if refusal(m, "hra", averaged=False)] == []
    assert "no row to train: use mode 'head'" in (refusal("z", "hra", averaged=False) or "")
    assert "not shared by all tasks" in (refusal("lora", "hra", averaged=False) or "")
    assert "nothing to route" in (refusal("head", "hra", averaged=True) or "")
    assert "no heads over a common controller, as those of hra have" in (refusal("head", "mhr", averaged=False) or "")
    assert idle_rates("head", "hra") == ("router_lr",) == idle_rates("mhr", "hra") == idle_rates("mu", "hra")
    assert load_config(method="private", **{"adapter.adapter": "recurrent"}).trained_as == "hra"
    assert load_config(method="hra").adapter.share == "down"


def test_parameters_are_a_controller_and_a_head_for_each_task() -> None:
    """R (D + 2) for all tasks, and R D for each of them, in an encoder and in a decoder; however deep they are."""
    rank, width, counts = 64, 768, []
    for depth, tasks in ((2, TASKS), (12, TASKS), (12, TASKS[:1])):
        with torch.device("meta"):
            model = T5ForConditionalGeneration(
                T5Config(d_model=width, d_kv=64, d_ff=3072, num_layers=depth, num_heads=12)
            )
        bank = mhr.attach(model, AdapterConfig(**HRA, rank=rank), tasks)
        assert len(bank.layers) == 2 * depth
        counts.append(sum(p.numel() for p in model.parameters() if p.requires_grad))
    assert counts[0] == counts[1] == 2 * rank * (width + 2 + 3 * width)
    assert counts[1] - counts[2] == 2 * 2 * rank * width


# ---- merges to itself -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["t5", "gpt2", "bert-encoder"])
def test_one_task_is_one_of_its_kind_with_one_controller(name: str, tmp_path: Path) -> None:
    model, bank = adapted(tiny_model(name).double())
    plain = collapse_task(checkpoint_of(model, "tiny"), "copa")
    batch = random_batch(model)
    other = tiny_model(name).double()
    attach_plain(other, plain)
    with torch.no_grad():
        torch.testing.assert_close(other(**batch)[0], model(**batch, task_ids=["copa"] * 4)[0])
    held = other.mhr.banks()
    assert held.keys() == bank.banks().keys()
    assert all(bank["bank_b"].shape[:2] == (1, 1) for bank in held.values())
    (tmp_path / "plain").mkdir()
    write_plain(plain, tmp_path / "plain", "copa")
    again = tiny_model(name).double()
    tensors = load_adapter(tmp_path / "plain", again).tensors()
    assert all(torch.equal(t, tensors[key]) for key, t in other.mhr.tensors().items())


def test_the_average_has_the_mean_of_the_heads() -> None:
    model, bank = adapted()
    (held,) = bank.banks().values()
    for layer in collapse(checkpoint_of(model, "tiny"), None).layers.values():
        torch.testing.assert_close(layer.b, held["bank_b"][0].mean(0))
        assert torch.equal(layer.a, held["bank_a"][0, 0])


def test_what_has_no_place_for_it_says_so(tmp_path: Path) -> None:
    base = tiny_model("bert-encoder")
    model, _ = adapted(copy.deepcopy(base))
    save_adapter(model, tmp_path / "hra", base="tiny")
    plain = collapse_task(checkpoint_of(model, "tiny"), "copa")
    with pytest.raises(
        MergeError, match=r"a state that goes from layer to layer, which no weight can take up: keep it .*--to mhr"
    ):
        fold_into(base, plain)
    with pytest.raises(CheckpointError, match="PEFT has no recurrent adapters: write it as an adapter of ours"):
        save_peft(plain, tmp_path / "peft")
    for settings in (
        {"method": "ties"},
        {"method": "uniform", "space": "delta"},
        {"method": "uniform", "task": ["copa", "rte"]},
    ):
        with pytest.raises(
            MergeError, match="is an HRA, whose head reads the state of its own controller, so that it does not"
        ):
            merge(tmp_path / "hra", **settings, output=tmp_path / "merged")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hra"]
    (tmp_path / "plain").mkdir()
    write_plain(plain, tmp_path / "plain", "copa")
    with pytest.raises(MergeError, match=r"skills that share a projection \(share 'down'\): leave init_skills out"):
        seed_bank(model, [str(tmp_path / "plain")])


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"share": "up"}, "share is 'up', but the skills of a recurrent adapter share their controller: leave it out"),
        (
            {"method": "poly"},
            "granularity is 'fine', but a recurrent adapter has the same head in all layers: set granularity",
        ),
        ({"method": "pha"}, "adapter is 'recurrent', but method 'pha' generates adapters"),
        ({"dropout": 0.5}, "dropout is 0.5, which is for lora"),
        ({"norm": True}, "norm is true, which is for bottlenecks"),
        ({"method": "mtl-lora"}, "a matrix between the two factors of a lora"),
    ],
)
def test_settings_that_do_not_fit(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        AdapterConfig(**{**HRA, **settings})


@pytest.mark.parametrize(
    ("name", "config", "targets", "said"),
    [
        ("t5", {}, ["EncDecAttention.v"], "'decoder.block.0.layer.1.EncDecAttention.v' is part of cross-attention"),
        ("bart", {}, "attention", "encoder_attn.*is part of cross-attention"),
        (
            "bert",
            {"chunk_size_feed_forward": 2},
            None,
            "called with 2 tokens at a time: set chunk_size_feed_forward to 0",
        ),
    ],
)
def test_layers_that_no_token_goes_through_once(name: str, config: dict[str, Any], targets: Any, said: str) -> None:
    model = tiny_model(name, **config)
    with pytest.raises(TargetError, match=f"{said}.*or set adapter to 'bottleneck'"):
        mhr.attach(model, AdapterConfig(**HRA, targets=targets), TASKS)
    assert not hasattr(model, "mhr")


@pytest.mark.parametrize(
    ("kind", "name", "said"),
    [
        ("causal", "reformer", "is part of a reversible block"),
        ("seq2seq", "pegasus_x", "is called with global tokens too"),
    ],
)
def test_blocks_that_do_not_see_the_tokens_once(kind: str, name: str, said: str) -> None:
    model = build(kind, name)
    with pytest.raises(TargetError, match=f"{said}.*, and a recurrent adapter follows each token through the layers"):
        mhr.attach(model, AdapterConfig(**HRA), TASKS)


def test_layers_with_other_tokens_are_named() -> None:
    class Shrinking(Stack):
        def forward(self, x: Tensor) -> Tensor:
            for before, block in pairwise(self.blocks):
                x = block(before(x)[:, ::2])
            return x

    model, _ = adapted(Shrinking(2).double(), targets=["0", "1"])
    with pytest.raises(
        TargetError,
        match=r"layer 'blocks.1' got x \[4, 3, 6\], and the recurrent adapter before it had \[4, 5\] tokens",
    ):
        model(torch.randn(4, 5, 6, dtype=torch.float64), task_ids=IDS)
