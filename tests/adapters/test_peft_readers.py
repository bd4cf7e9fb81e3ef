"""PEFT folders by default: one rank, one alpha, and the same update whatever a reader makes of patterns; layers that the base has."""

from __future__ import annotations

import json
from pathlib import Path

import peft
import pytest
import torch
from safetensors.torch import load_file

from mhr.adapters import (
    BaseModel,
    LoraFactors,
    PeftWriter,
    PlainAdapter,
    describe_base,
    fold_into,
    load_peft,
    plain_checkpoint,
    save_peft,
    write_adapter,
)
from mhr.adapters.peft_readers import vllm_rank
from mhr.errors import CheckpointError, ConfigError, MhrError
from mhr.merging import merge
from tests.adapters.test_peft import close, load_with_peft, output
from tests.cli.running import refuse
from tests.models import tiny_model

LAYERS = [f"model.layers.{i}.self_attn.{name}_proj" for i in (0, 1) for name in "qkv"]
SIZES: dict[str, tuple[int, float]] = dict(
    zip(LAYERS, [(4, 4.0), (2, 5.0), (3, 1.0), (1, 0.5), (4, 3.0), (2, 2.0)], strict=True)
)
"""Layer of a tiny Llama -> rank and alpha, each layer's own; k and v are half as wide as q."""


def unequal(base: str, seed: int = 3, dtype: torch.dtype = torch.float32) -> PlainAdapter:
    """A random LoRA on a tiny Llama, whose layers have ranks and scalings of their own."""
    model, generator = tiny_model("llama"), torch.Generator().manual_seed(seed)

    def factors(name: str, rank: int, alpha: float) -> LoraFactors:
        out, inputs = model.get_submodule(name).weight.shape
        a, b = torch.randn(inputs, rank, generator=generator), torch.randn(rank, out, generator=generator)
        return LoraFactors((0.2 * a).to(dtype), (0.2 * b).to(dtype), alpha)

    layers = {name: factors(name, *size) for name, size in SIZES.items()}
    return PlainAdapter(layers, describe_base(model, base))


@pytest.fixture
def base(tmp_path: Path) -> str:
    tiny_model("llama").save_pretrained(tmp_path / "base")
    return str(tmp_path / "base")


def read(folder: Path) -> tuple[dict[str, object], dict[str, torch.Tensor]]:
    tensors = load_file(folder / "adapter_model.safetensors")
    return json.loads((folder / "adapter_config.json").read_text()), {k: t.double() for k, t in tensors.items()}


def by_vllm(folder: Path) -> dict[str, torch.Tensor]:
    """The update of each layer [I, O] as vLLM computes it: one scaling lora_alpha / r for all of them."""
    config, tensors = read(folder)
    assert not config["modules_to_save"]
    assert config["bias"] == "none"
    scaling = config["lora_alpha"] / config["r"]
    return {
        name: scaling
        * (tensors[f"base_model.model.{name}.lora_A.weight"].T @ tensors[f"base_model.model.{name}.lora_B.weight"].T)
        for name in LAYERS
    }


def by_llama_cpp(folder: Path) -> dict[str, torch.Tensor]:
    """As llama.cpp computes it: one lora_alpha for all of them, over the rank that each layer's own factor B has."""
    config, tensors = read(folder)
    found = {}
    for name in LAYERS:
        a, b = (tensors[f"base_model.model.{name}.lora_{part}.weight"] for part in "AB")
        found[name] = config["lora_alpha"] / b.shape[1] * (a.T @ b.T)
    return found


def off(found: dict[str, torch.Tensor], plain: PlainAdapter) -> float:
    """How far updates are off those of an adapter, relative, over all layers."""
    truth = torch.cat([f.scaling * (f.a.double() @ f.b.double()).flatten() for f in plain.layers.values()])
    got = torch.cat([found[name].flatten() for name in plain.layers])
    return float((got - truth).norm() / truth.norm())


@pytest.mark.parametrize("multiple", [None, 1, 8, 32])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-7), (torch.bfloat16, 3e-3), (torch.float16, 4e-4)])
def test_every_reader_computes_the_same(base, tmp_path, multiple, dtype, tolerance):
    plain = unequal(base, dtype=dtype)
    written = PeftWriter(rank_multiple=multiple).write(plain, tmp_path / "lora")
    config, tensors = read(written.path)
    rank = {None: 4, 1: 4}.get(multiple, multiple)
    assert (config["r"], config["rank_pattern"], config["alpha_pattern"]) == (rank, {}, {})
    assert (written.rank, written.alpha, written.patterns) == (rank, config["lora_alpha"], False)
    assert config["lora_alpha"] / rank == pytest.approx(1 / 3)  # the least of the scalings
    assert {t.shape[0] for name, t in tensors.items() if "lora_A" in name} == {rank}
    assert {t.dtype for t in load_file(written.path / "adapter_model.safetensors").values()} == {dtype}
    for reader in (by_vllm, by_llama_cpp):
        assert off(reader(written.path), plain) < tolerance
    if dtype == torch.float32:
        folded = tiny_model("llama")
        fold_into(folded, plain)
        close(output(load_with_peft("llama", written.path)), output(folded), 2e-6)


def test_patterns_are_what_such_readers_go_wrong_on(base, tmp_path):
    plain = unequal(base)
    written = PeftWriter(patterns=True).write(plain, tmp_path / "lora")
    assert off(by_vllm(written.path), plain) > 0.3
    assert off(by_llama_cpp(written.path), plain) > 0.3
    folded = tiny_model("llama")
    fold_into(folded, plain)
    close(output(load_with_peft("llama", written.path)), output(folded), 2e-6)
    assert written.patterns
    assert "vLLM and llama.cpp ignore rank_pattern and alpha_pattern" in written.remarks[0]


def test_equal_layers_are_written_as_they_are(base, tmp_path):
    """No bit changes, and alpha is the number that it was: rank 3 and alpha 1 have no scaling that a float holds."""
    factors = {
        name: LoraFactors(f.a[:, :1].repeat(1, 3), f.b[:1].repeat(3, 1), 1.0)
        for name, f in unequal(base).layers.items()
    }
    plain = PlainAdapter(factors, unequal(base).base)
    again = load_peft(save_peft(plain, tmp_path / "lora"))
    wide = load_peft(save_peft(plain, tmp_path / "wide", rank_multiple=16))
    for name, expected in factors.items():
        assert (again.layers[name].alpha, again.layers[name].rank) == (1.0, 3)
        assert torch.equal(again.layers[name].a, expected.a)
        assert torch.equal(again.layers[name].b, expected.b)
        assert torch.equal(wide.layers[name].b[:3], expected.b)
        assert not wide.layers[name].b[3:].any()
        assert wide.layers[name].scaling == pytest.approx(1 / 3, rel=1e-15)


def test_targets_are_told_by_kind_where_that_says_all(base, tmp_path):
    """q_proj stands for every layer of that name; where one is left out, each has its own name, and PEFT adapts no other."""
    plain = unequal(base)
    assert read(save_peft(plain, tmp_path / "all"))[0]["target_modules"] == ["q_proj", "k_proj", "v_proj"]
    some = PlainAdapter({name: layer for name, layer in plain.layers.items() if name != LAYERS[5]}, plain.base)
    folder = save_peft(some, tmp_path / "some")
    assert read(folder)[0]["target_modules"] == LAYERS[:5]
    folded = tiny_model("llama")
    fold_into(folded, some)
    close(output(load_with_peft("llama", folder)), output(folded), 2e-6)
    gone = PlainAdapter(plain.layers, BaseModel("gone", "causal"))
    assert read(save_peft(gone, tmp_path / "gone"))[0]["target_modules"] == LAYERS


@pytest.mark.parametrize("space", ["factor", "delta"])
def test_a_merge_of_unequal_inputs(base, tmp_path, space):
    """At rank 24 on layers that are 16 wide, products are of rank 16: every layer has another rank than its neighbour."""
    inputs = []
    for seed, rank, alpha in ((1, 12, 6.0), (2, 12, 24.0)):
        plain = unequal(base, seed)
        torch.manual_seed(seed)
        layers = {
            name: LoraFactors(
                f.a[:, :1].repeat(1, rank) * torch.randn(f.a.shape[0], rank), torch.randn(rank, f.b.shape[1]), alpha
            )
            for name, f in plain.layers.items()
        }
        inputs.append(save_peft(PlainAdapter(layers, plain.base), tmp_path / f"input-{seed}"))
    rank = 24 if space == "delta" else None
    folder = merge(
        inputs, method="uniform", space=space, rank=rank, to="peft-lora", base=base, output=tmp_path / "lora"
    )
    ours = merge(inputs, method="uniform", space=space, rank=rank, base=base, kind="causal", output=tmp_path / "ours")
    from mhr.adapters import collapse, read_adapter

    truth = collapse(read_adapter(ours), None)
    config, _ = read(folder)
    assert (config["r"], config["rank_pattern"], config["alpha_pattern"]) == (rank or 12, {}, {})
    for reader in (by_vllm, by_llama_cpp):
        assert off(reader(folder), truth) < 1e-6
    merged = tiny_model("llama")
    fold_into(merged, truth)
    close(output(load_with_peft("llama", folder)), output(merged))
    if space == "delta":
        kept = merge(
            inputs,
            method="uniform",
            space=space,
            rank=24,
            patterns=True,
            to="peft-lora",
            base=base,
            output=tmp_path / "kept",
        )
        assert read(kept)[0]["rank_pattern"]
        assert off(by_llama_cpp(kept), truth) > 0.01


# ---- what no reader takes ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"rank_multiple": 0}, "rank_multiple is 0, expected an integer of at least 1 and at most 512"),
        ({"rank_multiple": 1024}, "rank_multiple is 1024, expected .* at most 512"),
        ({"rank_multiple": 2.5}, "rank_multiple is 2.5, expected an integer"),
        ({"rank_multiple": 8, "patterns": True}, "patterns keep each layer's own rank: leave one of the two out"),
        ({"rank_multiple": 8, "to": "mhr"}, "rank_multiple is 8, but with to 'mhr' no PEFT folder"),
        ({"patterns": True, "to": "model"}, "patterns is True, but with to 'model' no PEFT folder"),
    ],
)
def test_ranks_and_patterns_that_make_no_sense(base, tmp_path, settings, match):
    save_peft(unequal(base), tmp_path / "lora")
    with pytest.raises(ConfigError, match=match) as caught:
        merge(tmp_path / "lora", output=tmp_path / "out", **({"to": "peft-lora"} | settings))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_rank_that_the_reader_has_no_kernel_for(tmp_path):
    plain = PlainAdapter({"q": LoraFactors(torch.zeros(600, 520), torch.zeros(520, 600), 1.0)}, BaseModel(""))
    save_peft(plain, tmp_path / "lora")
    said = refuse(
        "merge", tmp_path / "lora", "--to", "peft-lora", "--rank-multiple", "16", "--output", tmp_path / "out"
    )
    assert "the rank, rounded up to a multiple of 16, is 528, and readers take 512 at most" in said
    assert not (tmp_path / "out").exists()
    assert [vllm_rank(r) for r in (1, 4, 8, 9, 65, 300, 512)] == [1, 8, 8, 16, 128, 320, 512]


def test_a_scaling_that_float16_cannot_take_up(tmp_path):
    a, b = torch.ones(8, 2).half(), torch.full((2, 8), 60000.0).half()
    plain = PlainAdapter({"p": LoraFactors(a, b, 2.0), "q": LoraFactors(a, b / 60000, 1.0)}, BaseModel(""))
    with pytest.raises(CheckpointError, match="'base_model.model.p.lora_B.weight' .* float16 cannot hold: write"):
        save_peft(plain, tmp_path / "lora")
    assert not (tmp_path / "lora" / "adapter_config.json").exists()
    assert len(load_peft(save_peft(plain.cast(torch.float32), tmp_path / "wide")).layers) == 2


def test_an_ia3_has_no_rank(tmp_path):
    theirs = peft.get_peft_model(tiny_model("llama"), peft.IA3Config(target_modules=["k_proj"], feedforward_modules=[]))
    theirs.save_pretrained(tmp_path / "ia3")
    with pytest.raises(CheckpointError, match="is an IA3, which has no rank: leave --rank-multiple out"):
        merge(tmp_path / "ia3", to="peft-lora", rank_multiple=8, output=tmp_path / "out")


# ---- the base's own layers ---------------------------------------------------------------------------------------------


def renamed(plain: PlainAdapter, names: dict[str, str]) -> PlainAdapter:
    layers = {names.get(name, name): layer for name, layer in plain.layers.items()}
    return PlainAdapter(layers, BaseModel(plain.base.name_or_path, "causal"))


def test_a_base_without_any_of_the_layers_is_refused(base, tmp_path):
    """Readers would leave out every layer, and answer as the base does without a word."""
    plain = renamed(unequal(base), {name: f"transformer.{name}" for name in LAYERS})
    write_adapter(plain_checkpoint(plain), tmp_path / "ours")
    said = refuse("merge", tmp_path / "ours", "--to", "peft-lora", "--output", tmp_path / "out")
    assert "has none of the 6 layers that" in said
    assert (
        "such as 'transformer.model.layers.0.self_attn.q_proj': name the model that it was trained on with --model"
        in said
    )
    assert not (tmp_path / "out").exists()


def test_layers_of_other_sizes_are_refused(base, tmp_path):
    plain = renamed(unequal(base), {LAYERS[0]: LAYERS[1], LAYERS[1]: LAYERS[0]})
    with pytest.raises(
        CheckpointError, match=r"k_proj' of the adapter has \(in, out\) features \(32, 32\), that of .* \(32, 16\)"
    ):
        save_peft(plain, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_some_missing_layers_are_named(base, tmp_path):
    writer = PeftWriter()
    (remark, *_) = writer.write(renamed(unequal(base), {LAYERS[2]: "vision.q"}), tmp_path / "out").remarks
    assert remark.endswith("lacks 1 of what the adapter brings, which readers leave out: vision.q")
    (remark,) = writer.write(renamed(unequal("gone"), {}), tmp_path / "gone").remarks
    assert remark == "base model 'gone' is not here, so the layers were not compared with its own"


@pytest.mark.parametrize("kind", ["encoder", ""])
def test_an_adapter_of_a_model_without_its_head(tmp_path, kind):
    """An encoder by itself has other names of layers than the class that classifies with it; the kind may be unknown."""
    model = tiny_model("bert-encoder")
    model.save_pretrained(tmp_path / "base")
    names = [f"encoder.layer.{i}.attention.self.query" for i in (0, 1)]
    layers = {name: LoraFactors(torch.ones(32, 2), torch.ones(2, 32), 1.0) for name in names}
    plain = PlainAdapter(layers, BaseModel(str(tmp_path / "base"), kind))
    remarks = PeftWriter().write(plain, tmp_path / "lora").remarks
    assert not any("lacks" in remark or "not here" in remark for remark in remarks)
    strange = PlainAdapter({f"x.{name}": layer for name, layer in layers.items()}, plain.base)
    with pytest.raises(CheckpointError, match="has none of the 2 layers"):
        PeftWriter().write(strange, tmp_path / "strange")


def test_modules_beside_the_lora_are_named(base, tmp_path):
    plain = unequal(base)
    weight = {"weight": tiny_model("llama").lm_head.weight.detach().clone()}
    brings = PlainAdapter(plain.layers, plain.base, {"lm_head": weight})
    remarks = PeftWriter().write(brings, tmp_path / "out").remarks
    assert remarks[0].startswith(
        "vLLM and llama.cpp refuse modules_to_save (lm_head): this folder is for PEFT and transformers"
    )


def test_the_base_is_asked_once_for_many_adapters(base, tmp_path, monkeypatch):
    from mhr.adapters import peft_export

    calls = []
    skeleton = peft_export.skeleton
    monkeypatch.setattr(peft_export, "skeleton", lambda *known: calls.append(known) or skeleton(*known))
    writer = PeftWriter()
    for seed in range(4):
        writer.write(unequal(base, seed), tmp_path / str(seed))
    assert len(calls) == 1


def test_a_folder_that_cannot_be_written(base, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(MhrError, match="cannot write"):
        save_peft(unequal(base), tmp_path / "file" / "lora")
