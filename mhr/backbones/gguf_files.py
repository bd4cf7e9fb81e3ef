"""Models in GGUF files: unpacked once into a cache, as folders that transformers loads, saves and exports."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from transformers import AutoConfig, AutoTokenizer, GenerationConfig, PreTrainedModel
from transformers.utils import is_gguf_available, quantization_config

from mhr.backbones.kinds import kind_of_config, loader_of, possible_kinds
from mhr.errors import MhrError
from mhr.files import cache_folder, writing_folder
from mhr.locks import locked

MAGIC = b"GGUF"


def unpacked(file: Path, name: str) -> Path:
    """The folder in the cache with the model of a GGUF file, its configuration and its tokenizer; made on the first call.

    The weights are those of the file to the last bit, in float32: the file's blocks hold w = d q + m with 16-bit d and m, which no
    16-bit type holds. The folder is named by the SHA-256 of the file, so that a file that was moved is known again and one that
    was changed is not. It appears whole or not at all, and of several processes one writes it.

    file   a GGUF file with a model of an architecture that transformers reads
    name   what errors call it

    Raises MhrError for a file that is missing, is damaged, or holds no model (a LoRA, a vocabulary, a vision tower), and where
    the package gguf is missing.
    """
    if not file.is_file():
        raise MhrError(f"cannot load model {name!r}: there is no such file")
    with open(file, "rb") as stream:
        if stream.read(len(MAGIC)) != MAGIC:
            raise MhrError(f"cannot load model {name!r}: {file} is no GGUF file, it does not begin with 'GGUF'")
        stream.seek(0)
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    folder = cache_folder() / "gguf" / digest[:32]
    with locked(folder, wait=True):
        if not (folder / "config.json").is_file():
            if not is_gguf_available():
                raise MhrError(f"cannot load model {name!r}: reading GGUF needs a package: pip install gguf")
            _unpack(file, name, folder)
    return folder


def _unpack(file: Path, name: str, folder: Path) -> None:
    try:
        model, tokenizer = _read(file, name)
    except MhrError:
        raise
    except Exception as error:  # transformers and gguf raise nearly every class on a file that is damaged or foreign
        said = " ".join(str(error).split())[:300] or type(error).__name__
        said = f"it lacks {said}" if isinstance(error, KeyError) else said
        raise MhrError(f"cannot load model {name!r}: {file} holds no model that can be read here: {said}") from error
    try:
        with writing_folder(folder) as written:
            model.save_pretrained(written)
            tokenizer.save_pretrained(written)
    except MhrError as error:
        raise MhrError(f"cannot keep model {name!r} unpacked: {error}, with the variable MHR_CACHE") from error


def _read(file: Path, name: str) -> tuple[PreTrainedModel, Any]:
    where: dict[str, Any] = {"gguf_file": file.name}
    config = AutoConfig.from_pretrained(file.parent, **where)
    auto = loader_of(kind_of_config(config), config)
    if auto is None:
        raise MhrError(f"cannot load model {name!r} ({config.model_type}): {possible_kinds(config)}")
    if hasattr(
        quantization_config, "GgufConfig"
    ):  # newer versions of transformers keep the weights packed where they can
        where["quantization_config"] = quantization_config.GgufConfig(dequantize=True)
    model, found = auto.from_pretrained(file.parent, dtype=torch.float32, output_loading_info=True, **where)
    missing = sorted(found["missing_keys"])
    if missing:  # they would be drawn at random
        raise MhrError(
            f"cannot load model {name!r}: {file} holds no whole model, {missing[0]} is missing"
            + (f" and {len(missing) - 1} more" if len(missing) > 1 else "")
            + ": expected one that llama.cpp runs by itself, no LoRA, vocabulary or vision tower"
        )
    return _plain(model), AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)


def _plain(model: PreTrainedModel) -> PreTrainedModel:
    """The same model, no longer marked as one that came from GGUF, which transformers would refuse to save."""
    config = model.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    with init_empty_weights():
        plain = type(model)(config)
    # Strictly: what the file does not hold must not stay empty.
    plain.load_state_dict(model.state_dict(), strict=True, assign=True)
    plain.tie_weights()
    plain.generation_config = GenerationConfig.from_model_config(config)
    return plain.eval()
