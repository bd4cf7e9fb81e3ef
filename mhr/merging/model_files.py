"""Two models on disk, parameter by parameter: safetensors files that are read lazily, by the names that transformers has for them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from huggingface_hub import snapshot_download
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoConfig, PretrainedConfig

from mhr.adapters.base import BaseModel
from mhr.adapters.peft_modules import LOCAL, skeleton
from mhr.adapters.tensor_file import TensorFile
from mhr.backbones import source_of
from mhr.backbones.kinds import kind_of_config
from mhr.errors import CheckpointError
from mhr.files import read_json

INDEX = "model.safetensors.index.json"
WEIGHTS = "model.safetensors"
READ = ("*.safetensors", INDEX, "*.json")
"""What is fetched of a model on the hub: no code, and no pickle."""


@dataclass(frozen=True)
class ModelFiles:
    """A model as its folder holds it. Nothing of its values is read before `read` asks for it.

    name    as the user gave it; `folder` where it lies
    """

    name: str
    folder: Path

    @cached_property
    def config(self) -> PretrainedConfig:
        """Raises CheckpointError where there is none, or where the weights are quantised."""
        try:
            config = AutoConfig.from_pretrained(self.folder, **LOCAL)
        except Exception as fault:  # noqa: BLE001  a setting of a wrong kind or size raises whatever computes with it first
            raise CheckpointError(f"{self.name} is no model that transformers can read: {_line(fault)}") from None
        if getattr(config, "quantization_config", None) is not None:
            raise CheckpointError(
                f"{self.name} is quantised, so its weights are no numbers that can be subtracted: name the same model in 16 or 32 bits"
            )
        return config

    @cached_property
    def kind(self) -> str:
        """As `mhr.backbones.kinds.kind_of_config` has it, but a checkpoint with a masked-LM head keeps that."""
        named = (self.config.architectures or [""])[0]
        return "masked" if named.endswith("ForMaskedLM") else kind_of_config(self.config)

    @cached_property
    def skeleton(self) -> nn.Module:
        """The model without its weights. Raises CheckpointError where transformers has no class for it without running its code."""
        found = skeleton(BaseModel(str(self.folder), self.kind))
        if found is None:
            raise CheckpointError(
                f"{self.name} ({self.config.model_type}) cannot be built without code of its own, which is not run here: expected an "
                "architecture that transformers has"
            )
        return found

    @cached_property
    def aliases(self) -> dict[str, list[str]]:
        """Each parameter and stored buffer by its first name -> all of its names: more than one where modules share it."""
        found: dict[int, list[str]] = {}
        for name, tensor in self.skeleton.state_dict(keep_vars=True).items():
            found.setdefault(id(tensor), []).append(name)
        return {names[0]: names for names in found.values()}

    @cached_property
    def places(self) -> dict[str, tuple[TensorFile, str]]:
        """First name of a parameter -> the file that holds it and its name there. Raises CheckpointError for one that none holds, or
        in another shape than the configuration says."""
        held = self._held()
        prefix = f"{getattr(self.skeleton, 'base_model_prefix', '') or 'model'}."
        shapes = {name: tuple(t.shape) for name, t in self.skeleton.state_dict(keep_vars=True).items()}
        found = {}
        for name, names in self.aliases.items():
            # Checkpoints of a model without its head, and heads on one, differ by this prefix.
            tried = [other for one in names for other in (one, one.removeprefix(prefix), prefix + one)]
            key = next((one for one in tried if one in held), None)
            if key is None:
                raise CheckpointError(
                    f"the checkpoint of {self.name} holds no tensor {name!r}: load it with transformers and save it again, which writes all "
                    "by the names that it has now"
                )
            if held[key].shapes[key] != shapes[name]:
                raise CheckpointError(
                    f"the checkpoint of {self.name} holds {key} as {list(held[key].shapes[key])}, but its configuration asks for "
                    f"{list(shapes[name])}: the two do not belong together"
                )
            found[name] = held[key], key
        return found

    @cached_property
    def first_names(self) -> dict[str, str]:
        """Every name of a parameter -> its first one."""
        return {name: first for first, names in self.aliases.items() for name in names}

    def read(self, name: str) -> Tensor:
        """A parameter by any of its names."""
        file, key = self.places[self.first_names[name]]
        return file.read([key])[key]

    def dtype(self, name: str) -> torch.dtype | None:
        """Of a parameter, before it is read."""
        file, key = self.places[self.first_names[name]]
        return file.dtypes[key]

    def owners(self) -> Iterator[tuple[str, str, nn.Module]]:
        """Of every parameter its first name, and the module that has it with its name."""
        modules = dict(self.skeleton.named_modules(remove_duplicate=False))
        for name in self.aliases:
            owner = name.rpartition(".")[0]
            yield name, owner, modules[owner]

    def _held(self) -> dict[str, TensorFile]:
        """Name of a tensor -> the file that holds it."""
        if (self.folder / INDEX).is_file():
            listed = read_json(self.folder / INDEX, CheckpointError).get("weight_map")
            if not isinstance(listed, dict) or not all(isinstance(file, str) for file in listed.values()):
                raise CheckpointError(
                    f"{self.folder / INDEX} names no files of weights (weight_map): the folder is damaged"
                )
            shards = {name: self._open(name) for name in dict.fromkeys(listed.values())}
            return {key: file for file in shards.values() for key in file}
        if (self.folder / WEIGHTS).is_file():
            file = self._open(WEIGHTS)
            return dict.fromkeys(file, file)
        raise CheckpointError(
            f"{self.name} has no {WEIGHTS} and no {INDEX} in {self.folder}: expected a model in safetensors; load it with transformers and "
            "save it again"
        )

    def _open(self, name: str) -> TensorFile:
        try:
            return TensorFile(self.folder / name)
        except (OSError, SafetensorError) as fault:
            raise CheckpointError(f"cannot read {self.folder / name}: {_line(fault)}") from None


def model_files(name: str | Path) -> ModelFiles:
    """The files of a model: a folder, a built-in name, a GGUF file, which is unpacked, or a hub id, which is fetched if it is not here.

    Raises MhrError for what is none of these.
    """
    source = source_of(str(name))
    if Path(source).is_dir():
        return ModelFiles(str(name), Path(source))
    try:
        return ModelFiles(str(name), Path(snapshot_download(source, allow_patterns=list(READ))))
    except Exception as fault:  # noqa: BLE001  the client's HTTP library is not the same in all of its versions
        raise CheckpointError(
            f"{name} is neither a local folder nor a hub id that can be reached: {_line(fault)}"
        ) from None


def _line(fault: Exception) -> str:
    said = " ".join(str(fault).split())
    return said[:297] + "..." if len(said) > 300 else said or type(fault).__name__
