"""Options of loading, as transformers takes them; what this machine cannot do is refused before anything is loaded."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from transformers import BitsAndBytesConfig, PretrainedConfig
from transformers.quantizers import HfQuantizer
from transformers.utils import is_flash_attn_2_available, is_flash_attn_3_available

from mhr.errors import ConfigError, MhrError, nearest
from mhr.loading import HALF, Loading

FLASH = {
    "flash_attention_2": (is_flash_attn_2_available, "flash-attn"),
    "flash_attention_3": (is_flash_attn_3_available, "flash-attn-3"),
}

DEVICE_MAPS = ("auto", "balanced", "balanced_low_0", "sequential")


def check_loading(loading: Loading) -> None:
    """Raise MhrError, in one line, for options that need what is not here: bitsandbytes, flash attention, a device."""
    if loading.quantize in ("4bit", "8bit") and importlib.util.find_spec("bitsandbytes") is None:
        raise MhrError(f"--quantize {loading.quantize} (quantize) needs bitsandbytes: pip install 'mhr[quantized]'")
    available, package = FLASH.get(loading.attn or "", (lambda: True, ""))
    if not available():
        raise MhrError(
            f"--attn {loading.attn} (attn) needs a GPU that it is made for and a package: pip install {package}, or use --attn sdpa"
        )
    if loading.device_map is not None:
        _check_device_map(loading.device_map)


def _check_device_map(name: str) -> None:
    if name in DEVICE_MAPS:
        return
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError(
            f"--device-map: device_map is {name!r}, expected {', '.join(DEVICE_MAPS)}, or a device such as cpu or cuda:0: "
            f"{nearest(name, [*DEVICE_MAPS, 'cpu', 'cuda:0'])}"
        ) from None
    if device.type not in ("cpu", "meta"):
        here = torch.accelerator.current_accelerator()
        count = torch.accelerator.device_count() if here is not None and here.type == device.type else 0
        if (device.index or 0) < count:
            return
        found = f"{count} of {device.type}" if count else f"no {device.type} that torch {torch.__version__} can use"
    elif device.type == "meta" or device.index:
        found = "one cpu, and weights have to be somewhere"
    else:
        return
    raise ConfigError(
        f"--device-map: device_map is {name!r}, but this machine has {found}: leave it out, or name another"
    )


def arguments_of(loading: Loading, config: PretrainedConfig, name: str, whole: Sequence[str] = ()) -> dict[str, Any]:
    """The arguments of `from_pretrained` for the model `name`, whose configuration is `config`.

    whole  names of modules that are not quantised beside those that transformers spares: heads, which are trained

    4 bits are NF4, their scales quantised again, and computed with in the dtype of the rest: float32 where that is not said.

    Raises ConfigError where a model that is quantised already is to be quantised.
    """
    dtype = loading.dtype or "float32"
    found: dict[str, Any] = {"dtype": dtype if dtype == "auto" else getattr(torch, dtype)}
    if loading.attn:
        found["attn_implementation"] = loading.attn
    if loading.device_map:
        found["device_map"] = loading.device_map
    if loading.quantize not in ("4bit", "8bit"):
        return found
    held: Any = getattr(config, "quantization_config", None)
    if held is not None:
        method = held.get("quant_method") if isinstance(held, dict) else held.quant_method
        raise ConfigError(
            f"quantize is {loading.quantize!r}, but model {name!r} is quantised already ({getattr(method, 'value', method)}): leave "
            "quantize out"
        )
    spared = list(whole) or None
    if loading.quantize == "8bit":
        return found | {"quantization_config": BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=spared)}
    computed = found["dtype"] if dtype != "auto" else getattr(config, "dtype", None) or torch.float32
    four = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=computed,
        llm_int8_skip_modules=spared,
    )
    return found | {"quantization_config": four}


def check_precision_of(model: nn.Module, precision: str) -> None:
    """Raise ConfigError where a model in 16 bits is to compute in the other kind of 16 bits, which its norms cannot.

    precision: "no", "bf16" or "fp16".
    """
    held = str(getattr(model, "dtype", torch.float32)).removeprefix("torch.")
    computed = {"bf16": "bfloat16", "fp16": "float16"}.get(precision, held)
    if held in HALF and held != computed:
        raise ConfigError(
            f"precision is {precision!r}, but the base model is in {held}: leave precision out, which computes in {held}, or load the base "
            f"with dtype {computed} or float32"
        )


def can_dequantise(model: nn.Module) -> bool:
    """Whether a model is quantised in a way that transformers can turn back into floating point."""
    quantiser = getattr(model, "hf_quantizer", None)
    turns_back = quantiser is not None and type(quantiser)._dequantize is not HfQuantizer._dequantize
    return bool(getattr(model, "is_quantized", False)) and turns_back


def keep_differentiable(model: nn.Module) -> None:
    """Keep 4-bit layers from repacking themselves on CPUs with AVX512-BF16.

    There bitsandbytes 0.50 repacks a layer at its first call in evaluation mode: from then on its product has no gradient, which is
    cut off silently, its scales are rounded to bfloat16, and widths that are no multiple of 64 fail.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            vars(module)["support_avx512bf16_for_cpu"] = False
