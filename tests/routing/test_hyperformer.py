"""HyperFormer and HyperFormer++ against their equations in plain torch, their sizes, and what is refused of generated adapters."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import T5Config, T5ForConditionalGeneration

import mhr
from mhr import AdapterBank, AdapterConfig
from mhr.adapters import checkpoint_of, collapse, collapse_task, load_adapter, save_adapter
from mhr.adapters.collapse import take_skill
from mhr.adapters.open import open_bank, open_skills, plain_of
from mhr.adapters.plain import attach_plain
from mhr.errors import ConfigError, MergeError
from mhr.layers.parameter_groups import parameter_groups
from mhr.merging.averages import merge_weighted
from mhr.merging.inputs import check_sources
from mhr.methods import refusal
from mhr.routing.projections import Projections
from mhr.runs import load_config
from tests.models import random_batch, randomise, tiny_model

TASKS = ["boolq", "rte", "copa"]
IDS = ["copa", "boolq", "copa", "rte"]
NAMES = [f"block.{i}.{place}" for i in range(2) for place in ("attention", "output")]


class Model(nn.Module):
    """Two blocks of two layers of one shape."""

    def __init__(self) -> None:
        super().__init__()
        self.block = nn.ModuleList(
            nn.ModuleDict({"attention": nn.Linear(6, 6), "output": nn.Linear(6, 6)}) for _ in range(2)
        )

    def forward(self, x: Tensor) -> Tensor:
        for block in self.block:
            x = block["output"](torch.tanh(block["attention"](x)))
        return x


def adapted(method: str = "hyperformer++", **settings: Any) -> tuple[nn.Module, AdapterBank]:
    torch.manual_seed(0)
    model = Model().double()
    router = {"size": 4, "hidden": 7, **settings.pop("router", {})}
    config = {"method": method, "adapter": "bottleneck", "n_skills": 5, "rank": 2, "targets": ["attention", "output"]}
    bank = mhr.attach(model, AdapterConfig(**{**config, **settings}, router=router), TASKS)
    randomise(bank)
    return model, bank


def vector(contexts: Projections, task: str, name: str, tied: bool) -> Tensor:
    """e of one task and layer, by the equation."""
    hidden = contexts.first.weight @ contexts.vectors[TASKS.index(task)] + contexts.first.bias
    if tied:
        block, place = int(name.split(".")[1]), ("attention", "output").index(name.split(".")[2])
        hidden = hidden + contexts.third.weight @ torch.cat(
            [contexts.blocks.weight[block], contexts.places.weight[place]]
        )
    e = contexts.second.weight @ torch.relu(hidden) + contexts.second.bias
    e = (e - e.mean()) / (e.var(unbiased=False) + 1e-5).sqrt()
    return e * contexts.norm.weight + contexts.norm.bias


def generated(bank: AdapterBank, task: str, name: str, tied: bool) -> dict[str, Tensor]:
    """The factors of one task and layer: what each generator makes of e."""
    e = vector(bank.contexts, task, name, tied)
    return {key: sum(e[s] * g[0, s] for s in range(5)) for key, g in bank.layers[name].bank().items()}


@pytest.mark.parametrize("method", ["hyperformer", "hyperformer++"])
@pytest.mark.parametrize("adapter", ["bottleneck", "lora", "film"])
def test_outputs_and_every_gradient_are_those_of_the_equations(method: str, adapter: str) -> None:
    tied = method == "hyperformer++"
    model, bank = adapted(method, adapter=adapter)
    assert isinstance(bank.contexts, Projections)
    x = torch.randn(4, 3, 6, dtype=torch.float64, requires_grad=True)

    def layer(name: str, task: str, h: Tensor) -> Tensor:
        base, made = bank.layers[name].base, generated(bank, task, name, tied)
        y = base(h)
        if adapter == "lora":
            return y + 0.5 * h @ made["bank_a"] @ made["bank_b"]
        if adapter == "film":
            return (1 + made["bank_scale"]) * y + made["bank_shift"]
        update = F.gelu(y @ made["bank_a"] + made["bias_a"]) @ made["bank_b"] + made["bias_b"]
        normal = (update - update.mean(-1, keepdim=True)) / (update.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt()
        return y + made["scale_b"] * normal + made["shift_b"]

    expected = []
    for example, task in zip(x, IDS, strict=True):
        h = example
        for block in range(2):
            h = layer(f"block.{block}.output", task, torch.tanh(layer(f"block.{block}.attention", task, h)))
        expected.append(h)
    stated, found = torch.stack(expected), model(x, task_ids=IDS)
    torch.testing.assert_close(found, stated, rtol=1e-9, atol=1e-11)
    leaves = {"x": x, **{name: p for name, p in model.named_parameters() if p.requires_grad}}
    assert any("places" in name for name in leaves) == tied
    upstream = torch.randn_like(stated)
    one, two = (torch.autograd.grad((y * upstream).sum(), list(leaves.values())) for y in (found, stated))
    for name, a, b in zip(leaves, one, two, strict=True):
        assert b.any(), name
        torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-9, msg=name)


def test_layers_of_one_shape_share_a_bank_that_is_stored_once(tmp_path: Path) -> None:
    model, bank = adapted()
    assert [layer.tied for layer in bank.layers.values()] == [False, True, True, True]
    assert {id(layer.bank()["bank_a"]) for layer in bank.layers.values()} == {id(bank.layers[NAMES[0]].bank_a)}
    stored = [name for name in bank.tensors() if name.startswith("layers.")]
    assert len(stored) == 6
    assert all(name.startswith("layers.tied.all.6.") for name in stored)
    for layer in bank.layers.values():
        layer.reset()
    assert [layer.tied for layer in bank.layers.values()] == [False, True, True, True]
    other, separate = adapted("hyperformer")
    assert not any(layer.tied for layer in separate.layers.values())
    copied = copy.deepcopy(model)
    with torch.no_grad():
        copied.mhr.layers[NAMES[0]].bank_a.add_(1.0)
    assert not torch.equal(copied.mhr.layers[NAMES[3]].bank()["bank_a"], bank.layers[NAMES[3]].bank()["bank_a"])
    assert copied.mhr.layers[NAMES[3]].bank()["bank_a"] is copied.mhr.layers[NAMES[0]].bank_a
    mhr.detach(model)
    assert isinstance(model.block[1]["output"], nn.Linear)


def test_encoder_and_decoder_have_banks_of_their_own_and_so_have_shapes() -> None:
    model = tiny_model("t5")
    config = AdapterConfig(method="hyperformer++", adapter="lora", targets=["q", "wi_0", "wo"], n_skills=5)
    bank = mhr.attach(model, config, TASKS)
    shapes = {"32x32", "32x64", "64x32"}
    assert set(bank.banks()) == {f"tied.{coder}.{shape}" for coder in ("encoder", "decoder") for shape in shapes}
    # A block of the encoder and one of the decoder differ, and the q of self-attention and of cross-attention.
    assert bank.contexts.blocks.num_embeddings == 4
    assert bank.contexts.places.num_embeddings == len({name.split(".", 3)[3] for name in bank.layers})


def test_a_task_is_one_bottleneck_with_a_norm_and_back(tmp_path: Path) -> None:
    model = tiny_model("bert-encoder").double()
    bank = mhr.attach(model, AdapterConfig(method="hyperformer++", adapter="bottleneck", n_skills=5), TASKS)
    randomise(bank)
    save_adapter(model, tmp_path / "bank", base="tiny")
    batch = random_batch(model)
    with torch.no_grad():
        routed = model(**batch, task_ids=["rte"] * 4)[0]
    lazily = plain_of(open_bank(tmp_path / "bank"), "rte").read()
    for plain in (collapse_task(checkpoint_of(model, "tiny"), "rte"), lazily):
        assert next(iter(plain.shapes.values())).norm
        worn = tiny_model("bert-encoder").double()
        attach_plain(worn, plain)
        with torch.no_grad():
            torch.testing.assert_close(worn(**batch)[0], routed)
        save_adapter(worn, tmp_path / "plain", base="tiny")
        again = tiny_model("bert-encoder").double()
        assert load_adapter(tmp_path / "plain", again).config.norm
        with torch.no_grad():
            torch.testing.assert_close(again(**batch)[0], routed)


def test_tasks_average_by_their_vectors() -> None:
    model, _ = adapted()
    checkpoint = checkpoint_of(model, "tiny")
    both = merge_weighted(checkpoint, weights={"rte": 1.0, "copa": 1.0})
    one, two = (collapse_task(checkpoint, task) for task in ("rte", "copa"))
    for name in NAMES:
        torch.testing.assert_close(both.layers[name].a, (one.layers[name].a + two.layers[name].a) / 2)


def test_what_has_no_average_says_how_it_is_merged(tmp_path: Path) -> None:
    model, _ = adapted()
    checkpoint = checkpoint_of(model, "tiny")
    said = (
        "method 'hyperformer\\+\\+', whose skills are directions .* --method task --task boolq, or all with --each-task"
    )
    save_adapter(model, tmp_path / "bank", base="tiny")
    for merge in (
        lambda: collapse(checkpoint, None),
        lambda: take_skill(checkpoint, 0),
        lambda: open_skills(open_bank(tmp_path / "bank")),
        lambda: merge_weighted(checkpoint, weights=[0.2] * 5),
    ):
        with pytest.raises(MergeError, match=said):
            merge()


@pytest.mark.parametrize("method", ["hyperformer", "hyperformer++", "hyper-lora"])
def test_what_takes_skills_for_adapters_is_refused(method: str) -> None:
    for mode in ("mu", "lora"):
        assert "have no average: use mode 'mhr' or 'z'" in (refusal(mode, method, averaged=False) or "")
    assert refusal("z", method, averaged=False) is None
    for setting in ({"switch_to_mu_at": 2}, {"anneal_to_mu": 2}, {"init_skills": ["folder"]}):
        (name,) = setting
        with pytest.raises(
            ConfigError, match=f"{name} is given, but the skills of method '{method.replace('+', '.')}' are no adapters"
        ):
            load_config(method=method, steps=4, **setting)


def test_a_task_without_a_vector_has_the_base_model() -> None:
    model, bank = adapted()
    x = torch.randn(4, 3, 6, dtype=torch.float64)
    with torch.no_grad():
        unknown = model(x, task_ids=bank.for_batch(["wic"] * 4, unseen="uniform"))
        with mhr.disabled(model):
            torch.testing.assert_close(unknown, model(x))


def test_generated_adapters_begin_as_small_as_others() -> None:
    torch.manual_seed(0)
    model = tiny_model("t5")
    mhr.attach(model, AdapterConfig(method="hyperformer++", adapter="bottleneck", rank=16), TASKS)
    plain = collapse_task(checkpoint_of(model, "tiny"), "rte")
    for layer in plain.layers.values():
        for factor in (layer.a, layer.b):
            assert 0.015 < factor.std() < 0.025
        assert not layer.bias_a.any()
        assert not layer.shift_b.any()
    mhr.detach(model)
    mhr.attach(model, AdapterConfig(method="hyperformer++", adapter="lora", rank=16), TASKS)
    layer = next(iter(collapse_task(checkpoint_of(model, "tiny"), "rte").layers.values()))
    assert not layer.b.any()
    assert 0.8 < layer.a.std() * 3 * 32**0.5 < 1.2  # of U(-b, b), b = sqrt(1/3) / sqrt(32)


def test_the_network_and_the_tasks_vectors_have_rates_of_their_own() -> None:
    model, bank = adapted(router={"network_lr": 0.02})
    groups = {g.name: g for g in parameter_groups(model, lr=0.1, router_lr=0.5, weight_decay=0.3, decaying=set())}
    assert groups["network"].lr == 0.02
    assert {id(p) for p in groups["contexts"].parameters} == {id(bank.contexts.vectors)}
    assert groups["contexts"].lr == 0.05
    own = {id(p) for name, p in bank.contexts.named_parameters() if name != "vectors"}
    assert {id(p) for p in groups["network"].parameters} == own
    assert {id(p) for p in bank.shared_router_parameters()} == own


def test_hyperformer_plus_plus_trains_as_many_parameters_as_its_paper_says() -> None:
    with torch.device("meta"):
        model = T5ForConditionalGeneration(T5Config(d_model=768, d_kv=64, d_ff=3072, num_layers=12, num_heads=12))
    whole = sum(p.numel() for p in model.parameters())
    assert round(whole / 1e6, 1) == 222.9
    norms = [name for name, module in model.named_modules() if type(module).__name__ == "T5LayerNorm"]
    bank = mhr.attach(
        model,
        AdapterConfig(
            method="hyperformer++",
            adapter="bottleneck",
            rank=24,
            targets=["SelfAttention.o", "DenseReluDense.wo"],
            modules_to_save=norms,
        ),
        ["cola", "sst2", "mrpc", "stsb", "qqp", "mnli", "qnli", "rte"],
    )
    assert len(bank.layers) == 48
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert f"{trained / 8 / whole:.2%}" == "0.29%"


@pytest.mark.parametrize("adapter", ["bottleneck", "lora", "film"])
def test_under_autocast_and_in_bfloat16_it_is_close_and_of_the_same_dtype(adapter: str) -> None:
    model = tiny_model("bert-encoder")
    bank = mhr.attach(model, AdapterConfig(method="hyperformer++", adapter=adapter), TASKS)
    randomise(bank, size=0.1)
    batch = random_batch(model)
    exact = model(**batch, task_ids=IDS)[0]
    layer = next(iter(bank.layers.values()))
    with torch.autocast("cpu", torch.bfloat16):
        under = model(**batch, task_ids=IDS)[0]
        with bank.routing(IDS):
            assert layer(torch.randn(4, 3, layer.in_features)).dtype == torch.bfloat16
        assert bank.weigh(bank.for_batch(IDS))[0].dtype == torch.float32
    assert (under - exact).norm() / exact.norm() < 0.05
    rounded = model.to(torch.bfloat16)(**batch, task_ids=IDS)[0]
    assert (rounded - exact).norm() / exact.norm() < 0.05


def test_bottlenecks_with_and_without_a_norm_do_not_merge(tmp_path: Path) -> None:
    for name, norm in (("with", True), ("without", False)):
        model = tiny_model("bert-encoder")
        mhr.attach(model, AdapterConfig(method="shared", adapter="bottleneck", norm=norm), ["rte"])
        save_adapter(model, tmp_path / name, base="tiny")
    sources = [plain_of(open_bank(tmp_path / name)) for name in ("with", "without")]
    with pytest.raises(MergeError, match="one has bottlenecks with a layer norm and the other without"):
        check_sources(sources, "factor")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"adapter": "ia3"}, "adapter is 'ia3', but method 'hyperformer..' takes sums of skills, and scalings by 1 have none"),
        ({"n_heads": 2}, r"n_heads is 2, but hyperformer\+\+ has 1 head"),
        ({"norm": True, "adapter": "lora"}, "norm is true, which is for bottlenecks, but adapter is 'lora'"),
        ({"adapter": "lora", "parts": ["q"]}, r"parts is \['q'\], which method 'hyperformer..' generates no LoRAs for"),
        ({"noise": "per_task"}, "noise is 'per_task', but method 'hyperformer..' has no logits in its routing"),
        ({"router": {"shots": 4}}, "router.shots is 4, but the context is 'learnt'"),
    ],
)  # fmt: skip
def test_settings_that_do_not_go_together(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        AdapterConfig(**{"method": "hyperformer++", "adapter": "bottleneck", **settings})


def test_a_bottleneck_of_any_method_may_have_a_norm() -> None:
    model = tiny_model("bert-encoder").double()
    bank = mhr.attach(model, AdapterConfig(method="adamix", adapter="bottleneck", norm=True), TASKS)
    randomise(bank)
    layer = next(iter(bank.layers.values()))
    assert (layer.scale_b.shape[1], layer.bank_a.shape[1]) == (
        1,
        4,
    )  # the up projection is shared, and so is what follows it
    model.train()
    bank.seed_draws(1, 2)
    batch = bank.for_batch(IDS)
    x = torch.randn(4, 5, 64, dtype=torch.float64)
    with bank.routing(batch):
        found = layer(x)
    skill = int(batch.draws[0, 0, 0])
    h = layer.base(x)
    update = F.gelu(h @ layer.bank_a[0, skill] + layer.bias_a[0, skill]) @ layer.bank_b[0, 0] + layer.bias_b[0, 0]
    torch.testing.assert_close(found, h + layer.scale_b[0, 0] * F.layer_norm(update, (32,)) + layer.shift_b[0, 0])
