"""The part of `clients.py` that runs in the clients' environment, without mhr: llama.cpp's server, asked for next tokens.

    python clients_llama.py PLAN.json ROWS.jsonl

The plan: {"base": FILE.gguf, "adapters": {name: FILE.gguf or null}, "references": {name: FILE.npy of [prompts, vocabulary]},
"prompts": [{"text", "ids"}]}. Every row compares one prompt under one adapter: log-probabilities of next tokens against the reference's.
The adapters are loaded once, by one server, and each request names its own, another than the one before: they are swapped while it serves.
"""

from __future__ import annotations

import json
import sys
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import xllamacpp

LIKELIEST = 1000
"""Tokens that the server tells of: telling all 49,152 takes it ten times as long as computing them."""


def serve(base: str, adapters: list[str]) -> xllamacpp.Server:
    """What `llama-server -m BASE --lora-init-without-apply --lora FILE --lora FILE` starts, on a port that is free."""
    params = xllamacpp.CommonParams()
    params.model.path = base
    params.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(file, 1.0) for file in adapters]
    params.lora_init_without_apply = True
    params.n_ctx, params.n_parallel, params.port = 1024, 1, 0
    params.cpuparams.n_threads = 1
    return xllamacpp.Server(params)


def ask(server: xllamacpp.Server, path: str, body: dict[str, Any]) -> dict[str, Any]:
    request = urllib.request.Request(
        server.listening_address + path, json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=600) as answer:
        return json.load(answer)


def log_probabilities(server: xllamacpp.Server, ids: list[int], scales: list[float]) -> dict[int, float]:
    """Token -> log-probability of the LIKELIEST next tokens, as the model gives them before any sampling."""
    asked = {
        "prompt": ids,
        "n_predict": 1,
        "n_probs": LIKELIEST,
        "temperature": 0.0,
        "post_sampling_probs": False,
        "cache_prompt": False,
        "lora": [{"id": i, "scale": scale} for i, scale in enumerate(scales)],
    }
    (told,) = ask(server, "/completion", asked)["completion_probabilities"]
    return {token["id"]: token["logprob"] for token in told["top_logprobs"]}


def compared(ours: np.ndarray, theirs: dict[int, float]) -> dict[str, Any]:
    """Log-probabilities of all next tokens against those of the client's likeliest; of the latter both sides are made to sum to 1,
    for the server's own sums are off by 1e-5."""
    kept, told = np.array(list(theirs)), np.array(list(theirs.values()))
    p, q = (x - np.log(np.exp(x).sum()) for x in (ours[kept], told))
    return {
        "ours": int(ours.argmax()),
        "theirs": int(kept[told.argmax()]),
        "covered": float(np.exp(ours[kept]).sum()),
        "kl": float(np.exp(p) @ (p - q)),
        "difference": float(np.abs(p - q).max()),
    }


def main(plan_file: str, rows_file: str) -> None:
    plan = json.loads(Path(plan_file).read_text("utf-8"))
    rows = Path(rows_file)
    done = {(row["adapter"], row["prompt"]) for row in map(json.loads, rows.open())} if rows.is_file() else set()
    loras = [name for name, file in plan["adapters"].items() if file]
    references = {name: np.load(file, mmap_mode="r") for name, file in plan["references"].items()}
    server = serve(plan["base"], [plan["adapters"][name] for name in loras])
    for i, prompt in enumerate(plan["prompts"]):
        told = {"content": prompt["text"], "add_special": False, "parse_special": True}
        same = ask(server, "/tokenize", told)["tokens"] == prompt["ids"]
        for name, reference in references.items():
            if (name, i) in done:
                continue
            ours = reference[i].astype(np.float64)
            theirs = log_probabilities(server, prompt["ids"], [float(name == lora) for lora in loras])
            row = {"adapter": name, "prompt": i, "same_tokens": same, **compared(ours, theirs)}
            with rows.open("a") as file:
                file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
