"""Bases in 4 and 8 bits on the command line: trained, evaluated, merged and exported."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedModel
from transformers.quantizers import HfQuantizer
from transformers.quantizers.quantizer_bnb_4bit import Bnb4BitHfQuantizer

import mhr
from mhr.adapters import load_adapter
from mhr.backbones import load_backbone
from mhr.evaluation import load_model
from mhr.loading import Loading
from tests.cli.running import refuse, succeed

pytestmark = pytest.mark.usefixtures("small_and_quick")

SMALL = ("--steps", 3, "--batch-size", 4, "--n-skills", 2, "--rank", 2, "--set", "data.max_input_length=32")


@pytest.mark.parametrize("bits", ["4bit", "8bit"])
def test_a_quantised_base_is_trained_merged_and_exported(bits: str, backbone, tasks_file: Path, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    base = backbone("llama", hidden_size=64)
    run = tmp_path / "run"
    succeed(
        "pretrain", "--model", base, "--tasks", tasks_file, "--quantize", bits, *SMALL, "--lr", 0.2, "--output", run
    )
    info = json.loads((run / "run.json").read_text())
    assert info["config"]["quantize"] == bits
    adapted = load_model(run)
    assert adapted.model.is_quantized  # as it was trained
    assert not getattr(load_model(run, loading=Loading(quantize="no")).model, "is_quantized", False)
    assert any(p.abs().max() > 0 for p in adapted.bank.adapter_parameters())
    succeed("evaluate", run, "--task", "rev-last", "--limit", 2)
    succeed(
        "adapt",
        run,
        "--task",
        "next-first",
        "--mode",
        "z",
        "--shots",
        4,
        "--steps",
        2,
        "--seeds",
        1,
        "--output",
        tmp_path / "z",
    )
    merging = ("merge", run, "--method", "task", "--task", "rev-last")
    succeed(*merging, "--to", "peft-lora", "--output", tmp_path / "lora")
    succeed(*merging, "--to", "model", "--output", tmp_path / "whole")
    succeed(*merging, "--to", "model", "--quantize", "no", "--output", tmp_path / "beside")
    generator = torch.Generator().manual_seed(0)
    batch = {
        "input_ids": torch.randint(3, 60, (2, 9), generator=generator),
        "attention_mask": torch.ones(2, 9, dtype=torch.long),
    }
    route = {"task_ids": ["rev-last"] * 2}
    # The reference: a plain model with the weights that bitsandbytes itself says its layers hold, and the trained bank on it.
    plain = load_backbone(base)[0]
    held = dequantised(load_backbone(base, loading=Loading(quantize=bits))[0])
    rounded = {name: plain.get_parameter(name).detach().clone() for name in held}
    with torch.no_grad():
        for name, weight in held.items():
            assert 0 < (rounded[name] - weight).abs().max() < 0.2 * rounded[name].abs().max()
            plain.get_parameter(name).copy_(weight)
    whole = load_backbone(tmp_path / "whole")[0]
    beside = load_backbone(tmp_path / "beside")[0]
    assert {p.dtype for p in whole.parameters()} == {torch.float32}
    lora = load_file(tmp_path / "lora" / "adapter_model.safetensors")
    settings = json.loads((tmp_path / "lora" / "adapter_config.json").read_text())
    scale = settings["lora_alpha"] / settings["r"]
    folded = 0
    for name, weight in held.items():
        layer = f"base_model.model.{name.removesuffix('.weight')}"
        delta = torch.zeros_like(weight)
        if f"{layer}.lora_A.weight" in lora:
            delta = scale * lora[f"{layer}.lora_B.weight"] @ lora[f"{layer}.lora_A.weight"]
            assert delta.abs().max() > 1e-3
            folded += 1
        torch.testing.assert_close(whole.get_parameter(name), weight + delta, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(beside.get_parameter(name), rounded[name] + delta, rtol=1e-5, atol=1e-6)
    assert folded == 8  # q, k, v and o of two blocks
    load_adapter(run / "adapter", plain)
    with torch.no_grad():
        want = plain.double()(**batch, **route).logits
        with mhr.disabled(plain):
            effect = (want - plain(**batch).logits).abs().max().item()
        assert effect > 0.01
        torch.testing.assert_close(whole.double()(**batch).logits, want, rtol=1e-5, atol=1e-5)
        # With activations in float32 bitsandbytes computes 4 bits in float32, and 8 bits so in training mode alone: in evaluation
        # it rounds activations to 8 bits too (LLM.int8), which is its own arithmetic.
        exported = PeftModel.from_pretrained(load_backbone(base, loading=Loading(quantize=bits))[0], tmp_path / "lora")
        for model, more in ((adapted.model, route), (exported, {})):
            model.train()
            torch.testing.assert_close(model(**batch, **more).logits.double(), want, rtol=1e-4, atol=1e-4 * effect)
            model.eval()
            loose = effect / 20 if bits == "8bit" else 1e-4 * effect
            torch.testing.assert_close(model(**batch, **more).logits.double(), want, rtol=0, atol=loose)


@pytest.mark.parametrize("bits", ["4bit", "8bit"])
def test_what_is_folded_into_was_quantised_as_in_training(
    bits: str, backbone, tasks_file: Path, tmp_path: Path
) -> None:
    """Out of weights that were rounded to bfloat16: out of others come other codes."""
    pytest.importorskip("bitsandbytes")
    base, run = backbone("llama", hidden_size=64), tmp_path / "run"
    trained = ("--quantize", bits, "--dtype", "bfloat16")
    succeed("pretrain", "--model", base, "--tasks", tasks_file, *trained, *SMALL, "--output", run)
    succeed("merge", run, "--method", "task", "--task", "rev-last", "--to", "model", "--output", tmp_path / "whole")
    held = dequantised(load_backbone(base, loading=Loading(quantize=bits, dtype="bfloat16"))[0])
    whole = load_backbone(tmp_path / "whole")[0]
    spared = [name for name in held if ".mlp." in name]  # the bank adapts attention alone
    assert spared
    for name in spared:
        torch.testing.assert_close(whole.get_parameter(name), held[name].float(), rtol=0, atol=0)


def test_what_cannot_be_dequantised_is_not_merged_into_a_model(
    backbone, tasks_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As torchao's layers, which transformers reads and cannot turn back."""
    pytest.importorskip("bitsandbytes")
    run = tmp_path / "run"
    base = backbone("llama", hidden_size=64)
    succeed("pretrain", "--model", base, "--tasks", tasks_file, "--quantize", "4bit", *SMALL, "--output", run)

    loads = []

    def load(*args: object, **more: object) -> object:
        loads.append(args)
        return load_backbone(*args, **more)

    monkeypatch.setattr(Bnb4BitHfQuantizer, "_dequantize", HfQuantizer._dequantize)
    monkeypatch.setattr("mhr.merging.to_folder.load_backbone", load)
    error = refuse(
        "merge", run, "--method", "task", "--task", "rev-last", "--to", "model", "--output", tmp_path / "whole"
    )
    assert "is quantised" in error
    assert "--model" in error
    assert len(loads) == 1
    assert not (tmp_path / "whole").exists()


def dequantised(model: PreTrainedModel) -> dict[str, Tensor]:
    """The weights of its quantised layers, by bitsandbytes' own functions."""
    functions = pytest.importorskip("bitsandbytes").functional
    found = {}
    for name, module in model.named_modules():
        weight = getattr(module, "weight", None)
        if getattr(weight, "quant_state", None) is not None:
            found[f"{name}.weight"] = functions.dequantize_4bit(weight.data, weight.quant_state)
        elif getattr(weight, "SCB", None) is not None:
            found[f"{name}.weight"] = functions.int8_vectorwise_dequant(weight.data, weight.SCB)
    assert len(found) == 14  # seven Linears in each of two blocks
    return found


def test_what_cannot_be_quantised_is_one_line_and_nothing_is_written(
    backbone, tasks_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mhr.backbones import load, options

    def untouched(*args: object, **kwargs: object) -> None:
        raise AssertionError("something was loaded")

    command = ("pretrain", "--model", backbone("llama"), "--tasks", tasks_file, "--output", tmp_path / "run")
    with monkeypatch.context() as patch:
        patch.setattr(load, "source_of", untouched)
        patch.setattr(options.importlib.util, "find_spec", lambda name: None)
        assert "--quantize 4bit (quantize) needs bitsandbytes: pip install 'mhr[quantized]'" in refuse(
            *command, "--quantize", "4bit"
        )
        patch.setitem(options.FLASH, "flash_attention_2", (lambda: False, "flash-attn"))
        line = refuse(*command, "--attn", "flash_attention_2", "--dtype", "bfloat16")
        assert "--attn flash_attention_2 (attn) needs a GPU" in line
        assert "pip install flash-attn, or use --attn sdpa" in line
    assert "computes in 16 bits, use it with dtype bfloat16" in refuse(*command, "--attn", "flash_attention_2")
    assert "is a folder, not a hub id: leave revision out" in refuse(*command, "--revision", "main")
    assert "expected one of sdpa, eager" in refuse(*command, "--attn", "flash")
    assert "would be trained in bfloat16" in refuse(*command, "--method", "full", "--dtype", "bfloat16")
    if options.importlib.util.find_spec("bitsandbytes"):
        assert "the base model is quantised" in refuse(*command, "--method", "full", "--quantize", "8bit")
    assert not (tmp_path / "run").exists()


def test_dtype_attention_and_device_map_reach_the_model(backbone, tasks_file: Path, tmp_path: Path) -> None:
    """The bank is float32 beside a bfloat16 base, whose run is close to that of a float32 one."""
    command = ("pretrain", "--model", backbone("llama"), "--tasks", tasks_file, *SMALL)
    more = ("--dtype", "bfloat16", "--attn", "eager", "--device-map", "cpu")
    succeed(*command, "--output", tmp_path / "wide")
    succeed(*command, *more, "--output", tmp_path / "half")
    losses = [
        json.loads((tmp_path / name / "metrics.jsonl").read_text().splitlines()[-1])["loss"]
        for name in ("wide", "half")
    ]
    assert losses[0] == pytest.approx(losses[1], rel=0.02)
    assert json.loads((tmp_path / "half" / "run.json").read_text())["memory"]["resident"] > 10**8
    model = load_model(tmp_path / "half").model
    assert model.dtype == torch.bfloat16
    assert model.config._attn_implementation == "eager"
    bank = model.mhr
    assert {p.dtype for p in (*bank.adapter_parameters(), *bank.router_parameters())} == {torch.float32}
    assert load_model(tmp_path / "half", loading=Loading(dtype="float32")).model.dtype == torch.float32
