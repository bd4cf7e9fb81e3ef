"""What is asked of an extraction, see `mhr.merging.extraction`. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass

from mhr.errors import ConfigError
from mhr.merging.methods import STORED_DTYPES
from mhr.setting import Settings, setting


@dataclass
class ExtractConfig(Settings):
    """How the difference of two models becomes a LoRA."""

    rank: int | None = setting(
        None,
        "Rank of the factors in every layer, or the most that --rank-energy may take.",
        at_least=1,
        flag="--rank",
    )
    rank_energy: float | None = setting(
        None,
        """Of each layer the least rank that keeps this share of the squared Frobenius norm of its difference, as in 0.95. Layers are filled up
        with zeros to the highest one, unless --patterns is given.""",
        above=0,
        at_most=1,
        flag="--rank-energy",
    )
    modules_to_save: list[str] | None = setting(
        None,
        """Modules that are taken whole from FULL, as PEFT's modules_to_save, by their names or the last parts of these: norms, embeddings, a
        head, layers with a bias that differs.""",
        flag="--modules-to-save",
        metavar="NAME,...",
        repeated=True,
    )
    ignore: list[str] | None = setting(
        None,
        "Modules or parameters that stay as BASE has them although FULL differs, by their names or the last parts of these.",
        flag="--ignore",
        metavar="NAME,...",
        repeated=True,
    )
    dtype: str | None = setting(
        None,
        f"Of the tensors written: {', '.join(STORED_DTYPES)}. Unset: as FULL has them.",
        choices=STORED_DTYPES,
        flag="--dtype",
    )
    patterns: bool = setting(
        False,
        "Keep each layer's own rank, as rank_pattern and alpha_pattern, which vLLM and llama.cpp ignore.",
        flag="--patterns",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rank is None and self.rank_energy is None:
            raise ConfigError(
                "neither rank nor rank_energy is given: say how large the LoRA may be, with --rank or --rank-energy"
            )
