"""Arrow: its directions, its outputs and gradients against the equations in float64, and against PEFT's own."""

from __future__ import annotations

from pathlib import Path

import peft
import pytest
import torch
from torch import Tensor, nn
from transformers import ByT5Tokenizer

import mhr
from mhr import AdapterBank, AdapterConfig
from mhr.adapters import checkpoint_of, collapse_task, load_adapter, routing_weights, save_adapter
from mhr.errors import CheckpointError, ConfigError
from mhr.experts import route_tokens
from mhr.routing import TokenRouter, make_router
from mhr.routing.arrow import arrow_directions
from tests.models import random_batch, randomise, tiny_model

NAMES = ["boolq", "rte", "copa"]


class Layers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 10), nn.Linear(10, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x).tanh())


def routed(model: nn.Module, targets: list[str] | None = None, **router: float) -> AdapterBank:
    torch.manual_seed(0)
    config = AdapterConfig(method="arrow", rank=2, alpha=3.0, targets=targets, router=router)
    bank = mhr.attach(model, config, NAMES)
    randomise(bank)
    for layer in bank.layers.values():
        assert isinstance(layer.router, TokenRouter)
        layer.router.fill(arrow_directions(layer.bank_a[0], layer.bank_b[0]))
    return bank


def test_a_direction_is_the_one_that_a_lora_changes_most() -> None:
    torch.manual_seed(0)
    a, b = torch.randn(4, 9, 3, dtype=torch.float64), torch.randn(4, 3, 7, dtype=torch.float64)
    found = arrow_directions(a, b)
    for s in range(4):
        first = torch.linalg.svd(a[s] @ b[s]).U[:, 0]
        torch.testing.assert_close(found[s], first * (first @ found[s]).sign(), rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(found.norm(dim=-1), torch.ones(4, dtype=torch.float64))
    torch.testing.assert_close(arrow_directions(-5 * a, b), found, rtol=1e-9, atol=1e-10)


def test_a_lora_that_changes_nothing_has_no_direction_and_a_wide_one_has() -> None:
    a, b = torch.randn(2, 3, 5), torch.randn(2, 5, 4)  # rank above the inputs
    b[1] = 0
    found = arrow_directions(a, b)
    assert not found[1].any()
    torch.testing.assert_close(found[0].norm(), torch.tensor(1.0))


@pytest.mark.parametrize("router", [{}, {"top_k": 1}, {"top_k": 3, "temperature": 0.3}])
def test_outputs_and_every_gradient_are_those_of_the_equations(router: dict[str, float]) -> None:
    model = Layers().double()
    bank = routed(model, ["first"], **router)
    (layer,) = bank.layers.values()
    x = torch.randn(4, 5, 6, dtype=torch.float64, requires_grad=True)
    v = torch.stack([torch.linalg.svd(layer.bank_a[0, s] @ layer.bank_b[0, s]).U[:, 0] for s in range(3)]).detach()
    rows = []
    for token in x.flatten(0, 1):
        scores = (v @ token).abs()
        best = scores.topk(router.get("top_k", 2)).indices
        c = torch.softmax(scores[best] / router.get("temperature", 1.0), 0)
        update = sum(c[j] * (token @ layer.bank_a[0, s] @ layer.bank_b[0, s]) for j, s in enumerate(best))
        rows.append(layer.base(token) + 3.0 / 2 * update)
    stated = model.second(torch.stack(rows).view(4, 5, 10).tanh())
    found = model(x)
    torch.testing.assert_close(found, stated, rtol=1e-10, atol=1e-12)
    with torch.no_grad():  # where one kernel does all of it
        torch.testing.assert_close(model(x), stated, rtol=1e-10, atol=1e-12)
    upstream, leaves = torch.randn_like(stated), [x, layer.bank_a, layer.bank_b]
    one, two = (torch.autograd.grad((y * upstream).sum(), leaves) for y in (found, stated))
    for a, b in zip(one, two, strict=True):
        assert b.any()
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)


def test_tasks_say_nothing_and_examples_stand_alone() -> None:
    model = tiny_model("t5")
    routed(model)
    batch = random_batch(model)
    with torch.no_grad():
        expected = model(**batch).logits
        assert torch.equal(model(**batch, task_ids=model.mhr.for_batch(["wic"] * 4, unseen="uniform")).logits, expected)
        with mhr.disabled(model):
            assert not torch.allclose(model(**batch).logits, expected)
        alone = model(**{name: t[1:2] for name, t in batch.items()}).logits
    torch.testing.assert_close(alone, expected[1:2], rtol=1e-4, atol=1e-5)


def test_a_hook_of_the_layer_below_is_not_passed_over() -> None:
    model, x = Layers().requires_grad_(False), torch.randn(3, 6)
    routed(model, ["first"])
    with torch.no_grad():
        plain = model(x)
        base = model.first.base  # type: ignore[union-attr]
        hook = base.register_forward_hook(lambda module, args, y: y + 1.0)
        hooked = model(x)
        hook.remove()
        assert torch.equal(model(x), plain)
        y = model.first(x) + 1.0
        expected = model.second(y.tanh())
    assert not torch.allclose(hooked, plain)
    torch.testing.assert_close(hooked, expected, rtol=1e-5, atol=1e-5)


def test_a_checkpoint_holds_the_directions(tmp_path: Path) -> None:
    model = tiny_model("t5")
    bank = routed(model)
    save_adapter(model, tmp_path / "adapter", base="tiny")
    other = tiny_model("t5")
    again = load_adapter(tmp_path / "adapter", other)
    assert any(name.endswith(".directions") for name in bank.tensors())
    for name, tensor in bank.tensors().items():
        assert torch.equal(tensor, again.tensors()[name]), name
    with torch.no_grad():
        assert torch.equal(model(**random_batch(model)).logits, other(**random_batch(other)).logits)


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing_(en|dis)able. is deprecated:FutureWarning")
def test_gradient_checkpointing_changes_nothing() -> None:
    model = tiny_model("t5").double().train()
    bank = routed(model)

    def gradients() -> list[Tensor]:
        return list(torch.autograd.grad(model(**random_batch(model)).logits.square().sum(), bank.adapter_parameters()))

    plain = gradients()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    for one, two in zip(gradients(), plain, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-9, atol=1e-9)


def test_torch_compile_takes_it_whole() -> None:
    torch._dynamo.reset()
    small = Layers()
    routed(small, ["first", "second"])
    x = torch.randn(4, 3, 6)
    torch.testing.assert_close(torch.compile(small, backend="aot_eager", fullgraph=True)(x), small(x))


def test_half_precision_chooses_in_float32() -> None:
    model = Layers()
    bank = routed(model, ["first"])
    router = next(iter(bank.groups.values()))
    assert isinstance(router, TokenRouter)
    x = torch.randn(50, 6).bfloat16()
    expected = router.choose(x.float())
    model.to(torch.bfloat16)
    assert router.directions.dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        found = router.choose(x)
        out = model(x)
    assert torch.equal(found[0], expected[0])
    assert found[1].dtype == torch.float32
    assert out.dtype == torch.bfloat16


def test_experts_keep_their_directions_when_others_go() -> None:
    bank = routed(Layers(), ["first"])
    router, layer = next(iter(bank.groups.values())), next(iter(bank.layers.values()))
    before = router.directions.clone(), layer.bank_a.detach().clone()  # type: ignore[operator]
    bank.set_tasks(["copa", "boolq"])
    assert torch.equal(router.directions, before[0][[2, 0]])
    assert torch.equal(layer.bank_a, before[1][:, [2, 0]])
    with pytest.raises(ConfigError, match=r"router\.top_k is 2, but there is 1 to choose from: expected 1 to 1"):
        bank.set_tasks(["copa"])


def test_what_it_is_not_for_is_one_line() -> None:
    with pytest.raises(ConfigError, match=r"router\.top_k is 4, but there are 3 to choose from: expected 1 to 3"):
        make_router(AdapterConfig(method="arrow", router={"top_k": 4}), NAMES)
    for settings, said in (
        (
            {"adapter": "ia3"},
            "adapter is 'ia3', but method 'arrow' routes each token over finished adapters of kind 'lora'",
        ),
        ({"granularity": "coarse"}, "granularity is 'coarse'.*expected 'fine'"),
        ({"dropout": 0.1}, "dropout is 0.1.*expected 0.0"),
        ({"n_skills": 4}, "n_skills is 4, but arrow has one skill per task"),
        ({"router": {"temperature": 0}}, r"router\.temperature is 0.*, expected a number above 0"),
    ):
        with pytest.raises(ConfigError, match=said):
            AdapterConfig(**{"method": "arrow", **settings})  # type: ignore[arg-type]
    model = Layers()
    mhr.attach(model, AdapterConfig(method="arrow", targets=["first"]), NAMES)
    with pytest.raises(ConfigError, match="method 'arrow' has no directions yet"):
        model(torch.randn(2, 6))
    bank = checkpoint_of(model, "tiny")
    for refused in (routing_weights, lambda bank: collapse_task(bank, "rte")):
        with pytest.raises(CheckpointError, match=r"routes each token by itself \(method 'arrow'\)"):
            refused(bank)


# ---- PEFT -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def loras(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Path]]:
    """A tiny decoder, and four LoRAs of it as PEFT writes them, each with a strongest direction that stands out; three are for tasks,
    the last one is general. Their alphas differ."""
    root = tmp_path_factory.mktemp("loras")
    tiny_model("llama", vocab_size=384).save_pretrained(root / "base")
    ByT5Tokenizer().save_pretrained(root / "base")
    folders = []
    for seed in range(4):
        torch.manual_seed(seed)
        config = peft.LoraConfig(
            r=3, lora_alpha=6 + 3 * (seed == 1), target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM"
        )
        model = peft.get_peft_model(tiny_model("llama", vocab_size=384), config)
        for name, p in model.named_parameters():
            if "lora_" in name:
                nn.init.normal_(p, std=0.3)
                if "lora_A" in name:
                    p.data[0] *= 6
        model.save_pretrained(root / f"lora-{seed}")
        folders.append(root / f"lora-{seed}")
    return root / "base", folders


@pytest.mark.parametrize("general", [False, True], ids=["arrow", "GenKnowSub"])
@pytest.mark.parametrize(("top_k", "temperature"), [(2, 1.0), (1, 1.0), (3, 0.25)])
def test_it_computes_what_pefts_arrow_does(
    loras: tuple[Path, list[Path]], top_k: int, temperature: float, general: bool, tmp_path: Path
) -> None:
    base, folders = loras
    if general:  # PEFT subtracts factors as they are, whatever their alphas
        folders = [folders[0], folders[2], folders[0], folders[3]]
    config = peft.ArrowConfig(top_k=top_k, router_temperature=temperature, use_gks=general, rng_seed=0)
    theirs = peft.tuners.lora.create_arrow_model(
        tiny_model("llama", vocab_size=384),
        [str(f) for f in folders[:3]],
        config,
        [str(folders[3])] if general else None,
    )
    ours = tiny_model("llama", vocab_size=384)
    run = route_tokens(
        folders[:3],
        top_k=top_k,
        temperature=temperature,
        subtract=[str(folders[3])] if general else None,
        base=str(base),
        output=tmp_path / "run",
    )
    load_adapter(run.adapter, ours)
    batch = random_batch(ours)
    with torch.no_grad():
        expected, plain = theirs(**batch).logits, tiny_model("llama", vocab_size=384)(**batch).logits
        torch.testing.assert_close(ours(**batch).logits, expected, rtol=1e-4, atol=1e-5)
    assert (expected - plain).abs().max() > 0.05
