"""How a base model is loaded: one set of options, the same wherever one is."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

from mhr.errors import ConfigError
from mhr.setting import Settings, setting

WEIGHT_DTYPES = ("auto", "float32", "bfloat16", "float16", "float64")
QUANTIZED = ("no", "4bit", "8bit")
ATTENTIONS = ("sdpa", "eager", "flash_attention_2", "flash_attention_3", "flex_attention")
HALF = ("bfloat16", "float16")


@dataclass(frozen=True)
class Loading(Settings):
    """Options of loading a base model, see `mhr.backbones.load_backbone`. None is what a run says, or the default."""

    dtype: str | None = setting(
        None,
        """Of the base model's weights: float32, bfloat16, float16, or auto, the checkpoint's. Bank and routing are float32 beside
        them (float64 beside float64). Unset: float32, or as the run.""",
        choices=WEIGHT_DTYPES,
        flag="--dtype",
    )
    quantize: str | None = setting(
        None,
        """Hold the base model's weights in 4bit (NF4) or 8bit, by bitsandbytes. no: as they are. Embeddings and the output layer
        stay in dtype.""",
        choices=QUANTIZED,
        flag="--quantize",
    )
    attn: str | None = setting(
        None,
        "Attention of the base model: sdpa, eager, flash_attention_2 and others. Unset: what transformers chooses.",
        choices=ATTENTIONS,
        flag="--attn",
    )
    device_map: str | None = setting(
        None,
        "Where the base model's layers go: auto, balanced, sequential, or a device such as cuda:1. Unset: one device.",
        flag="--device-map",
    )
    revision: str | None = setting(
        None, "Branch, tag or commit of the base model on the hub. Unset: its main branch.", flag="--revision"
    )
    trust_remote_code: bool = setting(
        False,
        """Run the Python files that the base model brings, where it asks for it. Other commands on the run ask again: nothing that
        a folder says switches this on.""",
        flag="--trust-remote-code",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.attn and self.attn.startswith("flash") and self.dtype not in ("auto", *HALF):
            raise ConfigError(
                f"attn is {self.attn!r}, but dtype is {self.dtype or 'float32'}: it computes in 16 bits, use it with dtype "
                "bfloat16, float16 or auto"
            )

    @classmethod
    def of(cls, settings: Any) -> Loading:
        """The options among the attributes of an object with other settings too."""
        return cls(**{f.name: getattr(settings, f.name) for f in fields(cls)})

    def over(self, run: Any, base: str | None = None) -> Loading:
        """These options, and where they say nothing those of the run's settings; a run never says that code is trusted. base: a model in
        the place of the run's, of which it says no revision."""
        left = {"trust_remote_code"} | ({"revision"} if base else set())
        own = {f.name: getattr(run, f.name) for f in fields(self) if f.name not in left}
        return replace(self, **{name: value for name, value in own.items() if getattr(self, name) is None})

    def said(self) -> dict[str, Any]:
        """The options that say something, by their names."""
        found = {f.name: getattr(self, f.name) for f in fields(self)}
        return {name: value for name, value in found.items() if value not in (None, False)}
