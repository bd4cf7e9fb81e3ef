"""Tiny base models on disk, and PEFT models on them with random weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from tests.models import tiny_model
from tests.tokenizers import make_word_tokenizer


@pytest.fixture(scope="session")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Folders with a tiny model and its tokenizer, by name."""
    found = {}
    for name in ("t5", "llama"):
        folder = tmp_path_factory.mktemp("bases") / name
        tiny_model(name).save_pretrained(folder)
        make_word_tokenizer().save_pretrained(folder)
        found[name] = str(folder)
    return found


def shaken(model: nn.Module, seed: int = 3) -> nn.Module:
    """The model with noise on everything that is trained, in evaluation mode."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.add_(0.3 * torch.randn(p.shape, generator=generator, dtype=torch.float64).to(p))
    return model.eval()


def said(folder: Path) -> list[str]:
    """What is in a folder, which refusals leave as it was."""
    return sorted(entry.name for entry in folder.iterdir())
