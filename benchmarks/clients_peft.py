"""The part of `clients.py` that runs in the clients' environment, without mhr: PEFT and transformers, asked for next tokens.

    python clients_peft.py PLAN.json ROWS.json

The plan: {"base": FOLDER, "folders": {name: PEFT folder}, "references": {name: FILE.npy}, "prompts": [{"text", "ids"}]}. All folders are loaded beside
one another. A row compares one adapter on all prompts: in batches whose rows go through other adapters (PEFT's adapter_names), and alone by
transformers' own load_adapter. Names of adapters are those of the references, and "base" is the model without one.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import peft
import torch
from transformers import AutoModelForCausalLM

BASE = "__base__"
"""PEFT's name for a row without an adapter."""


def by_rows(model: peft.PeftModel, names: list[str], ids: list[int]) -> dict[str, np.ndarray]:
    """One prompt under every adapter in one batch: name -> log-probabilities of the next token."""
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([ids] * len(names)), adapter_names=names, logits_to_keep=1).logits[:, -1]
    return dict(zip(names, logits.log_softmax(-1).numpy(), strict=True))


def alone(base: str, folder: str, prompts: list[list[int]]) -> np.ndarray:
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    model.load_adapter(folder)
    with torch.no_grad():
        return np.stack(
            [model(torch.tensor([ids]), logits_to_keep=1).logits[0, -1].log_softmax(-1).numpy() for ids in prompts]
        )


def compared(client: str, name: str, ours: np.ndarray, theirs: np.ndarray) -> dict[str, Any]:
    return {
        "client": client,
        "adapter": name,
        "agreement": float((ours.argmax(-1) == theirs.argmax(-1)).mean()),
        "kl": float((np.exp(ours) * (ours - theirs)).sum(-1).mean()),
        "difference": float(np.abs(ours - theirs).max()),
    }


def main(plan_file: str, rows_file: str) -> None:
    torch.set_num_threads(1)
    plan = json.loads(Path(plan_file).read_text("utf-8"))
    ids = [prompt["ids"] for prompt in plan["prompts"]]
    references = {name: np.load(file)[: len(ids)].astype(np.float64) for name, file in plan["references"].items()}
    folders = list(plan["folders"].items())
    base = AutoModelForCausalLM.from_pretrained(plan["base"], dtype=torch.float32)
    model = peft.PeftModel.from_pretrained(base, folders[0][1], folders[0][0]).eval()
    for name, folder in folders[1:]:
        model.load_adapter(folder, name)
    names = [*plan["folders"], BASE]
    mixed = [by_rows(model, names, prompt) for prompt in ids]
    rows = [
        compared("PEFT, adapter_names", name, references[name.strip("_")], np.stack([row[name] for row in mixed]))
        for name in names
    ]
    for name, folder in folders:
        found = alone(plan["base"], folder, ids)
        rows.append(compared("transformers, load_adapter", name, references[name], found))
    Path(rows_file).write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
