"""What other programs make of what `mhr merge` writes: `make clients`, or `python -m mhr_benchmarks.clients --clients ENVIRONMENT`.

SmolLM2-135M-Instruct (extra `smollm2`) gets a small bank, trained for seconds on the instruction tasks that ship with the package, at
learning rates so high that its adapters change many a next token. Two of its tasks, and the merge of one of them with a LoRA of random values that
PEFT wrote, of another rank and scaling, which differ from layer to layer, are written twice: as a PEFT folder, and folded into the base as a plain model. Then, on 50 prompts
(PEFT: the first 10),

llama.cpp   its own converters make GGUF files of the base and of the PEFT folders; its server, which swaps the adapters from
            request to request, gives log-probabilities of next tokens, compared with those of our merged models in transformers
mergekit    `base+lora`, compared with our merged models weight by weight
PEFT        loads all folders beside one another; each row of a batch goes through its own (`adapter_names`)

What is done is skipped, so the same command takes up what was interrupted. It ends with 1 where a client disagrees.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import peft
import safetensors.torch
import torch
import transformers
import yaml
from transformers import AutoModelForCausalLM, PreTrainedModel

from mhr.backbones import load_backbone
from mhr.data import load_tasks
from mhr.files import make_folder, read_json, write_json_atomically, write_text_atomically
from mhr.merging import merge
from mhr.runs import load_config
from mhr.training import pretrain

from .measure import machine
from .pages import save

BASE = "builtin:smollm2-135m"
TASKS = ("city-ledger", "order-reply")
UNEQUAL = "unequal inputs"
PROMPTS, PEFT_PROMPTS = 50, 10
LEAST_AGREEMENT = 0.98
LEAST_DISTANCE = 10
"""A client's KL to our model, times this, is still less than that of another adapter."""

LARGEST_DIFFERENCE = 1e-5
"""Of a weight that mergekit made from ours; between them lies the rounding of one float32 product."""

BANK = (
    *("method=private", "adapter.n_heads=null", "adapter.n_skills=null"),
    f"data.weights={{{', '.join(f'{task}: 1000' for task in TASKS)}}}",
    *("train.steps=16", "train.batch_size=4", "train.save_every=100", "train.lr=5e-3"),
)
"""Settings over the preset demo-llm: a skill for each task, so that few optimizer steps tell the tasks of TASKS apart."""

FOREIGN = {"r": 6, "lora_alpha": 3, "rank_pattern": {"k_proj": 9}, "alpha_pattern": {"v_proj": 12}}
"""Of a LoRA that PEFT writes, with another rank than the bank's, another scaling, and both uneven."""

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Clients:
    """Where the clients are and where everything is kept.

    environment  a virtual environment that `make clients` makes
    folder       what has been done
    """

    environment: Path
    folder: Path

    def run(self, *command: str | Path, log: str) -> None:
        """Run a program of the environment; what it says goes to a file."""
        file = self.folder / f"{log}.log"
        with file.open("w") as said:
            ended = subprocess.run([str(part) for part in command], stdout=said, stderr=subprocess.STDOUT, check=False)
        if ended.returncode:
            raise SystemExit(f"{' '.join(map(str, command))} ended with {ended.returncode}: see {file}")

    @property
    def python(self) -> Path:
        return self.environment / "bin" / "python"

    @property
    def converters(self) -> Path:
        """llama.cpp's own, unmodified."""
        return self.environment / "llama.cpp"

    def versions(self) -> dict[str, str]:
        names = ("xllamacpp", "mergekit", "peft", "transformers", "torch")
        asked = f"import importlib.metadata as m, json; print(json.dumps({{n: m.version(n) for n in {names!r}}}))"
        told = subprocess.run([str(self.python), "-c", asked], stdout=subprocess.PIPE, check=True, text=True).stdout
        archive = next(self.environment.glob("llama_cpp_python-*.tar.gz")).name
        return json.loads(told) | {"llama.cpp converters": archive.removesuffix(".tar.gz").replace("_", "-")}


def once(target: Path, make: Callable[[Path], Any]) -> Path:
    """`target`, made by `make` under another name first, unless it is there."""
    if not target.exists():
        part = target.with_name(f"part-{target.name}")
        make(part)
        part.rename(target)
    return target


def shipped(clients: Clients) -> dict[str, Path]:
    """Name -> folder with what `mhr merge` wrote of it: `lora`, a PEFT folder, and `model`, a plain model."""
    config = load_config(preset="demo-llm", overrides=BANK)
    bank = pretrain(config, str(clients.folder / "bank"), resume=True).path
    folders = {name: make_folder(clients.folder / name.replace(" ", "-")) for name in (*TASKS, UNEQUAL)}
    given: dict[str, dict[str, Any]] = {name: {"inputs": bank, "method": "task", "task": name} for name in TASKS}
    inputs = [folders[TASKS[0]] / "lora", once(clients.folder / "foreign", foreign)]
    given[UNEQUAL] = {"inputs": inputs, "method": "weighted", "weights": [0.6, 0.4], "space": "delta", "rank": 64}
    for name, how in given.items():
        for to, kind in (("peft-lora", "lora"), ("model", "model")):
            once(folders[name] / kind, partial(_merge, how | {"to": to, "base": BASE}))
    return folders


def _merge(how: dict[str, Any], path: Path) -> None:
    merge(**how, output=path, overwrite=True)


def foreign(path: Path) -> None:
    """A LoRA of random values in a folder that PEFT writes."""
    model, _ = load_backbone(BASE)
    targets = ["q_proj", "k_proj", "v_proj", "o_proj"]
    lora = peft.get_peft_model(model, peft.LoraConfig(task_type="CAUSAL_LM", target_modules=targets, **FOREIGN))
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in lora.named_parameters():
            if "lora_" in name:
                parameter.normal_(std=0.05)
    lora.save_pretrained(path)


def prompts(clients: Clients) -> list[dict[str, Any]]:
    """Test examples of the two tasks in turn, as chat text and as token ids: [{"text", "ids"}]."""

    def make(path: Path) -> None:
        _, tokenizer = load_backbone(BASE)
        tasks, found = load_tasks("builtin:orders"), []
        for i in range(PROMPTS):
            turns = tasks[TASKS[i % len(TASKS)]].test[i // len(TASKS)].messages[:-1]
            text = tokenizer.apply_chat_template(list(turns), tokenize=False, add_generation_prompt=True)
            found.append({"text": text, "ids": tokenizer(text, add_special_tokens=False)["input_ids"]})
        write_json_atomically(path, {"prompts": found})

    return read_json(once(clients.folder / "prompts.json", make))["prompts"]


def next_tokens(model: PreTrainedModel, asked: list[dict[str, Any]]) -> np.ndarray:
    """Log-probabilities of the token after each prompt: [prompts, vocabulary], float32."""
    with torch.no_grad():
        logits = [model(torch.tensor([prompt["ids"]]), logits_to_keep=1).logits[0, -1].float() for prompt in asked]
    return torch.stack(logits).log_softmax(-1).numpy()


def references(clients: Clients, folders: dict[str, Path], asked: list[dict[str, Any]]) -> dict[str, Path]:
    """Name -> file of what our merged model gives, in transformers and float32; "base" is the bare base model."""

    def made_by(load: Callable[[], PreTrainedModel]) -> Callable[[Path], None]:
        return lambda path: np.save(path, next_tokens(load().eval(), asked))

    files = {"base": once(clients.folder / "base.npy", made_by(lambda: load_backbone(BASE)[0]))}
    for name, folder in folders.items():
        load = lambda folder=folder: AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32)  # noqa: E731
        files[name] = once(folder / "next.npy", made_by(load))
    return files


def base_folder(clients: Clients) -> Path:
    """The base model as a folder that every client reads."""

    def write(path: Path) -> None:
        for part in load_backbone(BASE):
            part.save_pretrained(path)

    return once(clients.folder / "base", write)


def ask_llama(clients: Clients, folders: Mapping[str, Path], plan: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows of `clients_llama.py`: one for each adapter and prompt."""
    base = base_folder(clients)
    to_gguf = (clients.python, clients.converters / "convert_hf_to_gguf.py", base, "--outtype", "f32", "--outfile")
    gguf = once(clients.folder / "base.gguf", lambda path: clients.run(*to_gguf, path, log="convert-base"))
    adapters: dict[str, str | None] = {"base": None}
    for name, folder in folders.items():
        convert = (clients.python, clients.converters / "convert_lora_to_gguf.py", folder / "lora", "--base", base)
        make = partial(_convert, clients, (*convert, "--outtype", "f32", "--outfile"), f"convert-{folder.name}")
        adapters[name] = str(once(folder / "lora.gguf", make))
    write_json_atomically(clients.folder / "llama.json", plan | {"base": str(gguf), "adapters": adapters})
    script, rows = Path(__file__).with_name("clients_llama.py"), clients.folder / "llama.jsonl"
    clients.run(clients.python, script, clients.folder / "llama.json", rows, log="llama")
    return [json.loads(line) for line in rows.read_text().splitlines()]


def _convert(clients: Clients, command: tuple[str | Path, ...], log: str, path: Path) -> None:
    clients.run(*command, path, log=log)


def ask_peft(clients: Clients, folders: Mapping[str, Path], plan: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows of `clients_peft.py`: one for each adapter."""
    asked = plan | {
        "prompts": plan["prompts"][:PEFT_PROMPTS],
        "base": str(base_folder(clients)),
        "folders": {name: str(folder / "lora") for name, folder in folders.items()},
    }
    write_json_atomically(clients.folder / "peft.json", asked)
    script = Path(__file__).with_name("clients_peft.py")
    rows = once(
        clients.folder / "peft-rows.json",
        lambda path: clients.run(clients.python, script, clients.folder / "peft.json", path, log="peft"),
    )
    return json.loads(rows.read_text())


def ask_mergekit(clients: Clients, folders: Mapping[str, Path]) -> list[dict[str, Any]]:
    """One row for each adapter: what mergekit's `base+lora` and our merged model differ in."""
    rows = []
    for name, folder in folders.items():
        recipe = {
            "merge_method": "passthrough",
            "dtype": "float32",
            "models": [{"model": f"{base_folder(clients)}+{folder / 'lora'}"}],
        }
        asked = write_text_atomically(folder / "mergekit.yaml", yaml.safe_dump(recipe))
        command = (clients.environment / "bin" / "mergekit-yaml", asked)
        extra = ("--lora-merge-cache", str(folder / "mergekit-cache"), "--quiet")
        made = once(
            folder / "mergekit",
            lambda path, c=command, e=extra, f=folder: clients.run(*c, path, *e, log=f"mergekit-{f.name}"),
        )
        theirs, ours = tensors(made), tensors(folder / "model")
        both = theirs.keys() & ours.keys()
        rows.append(
            {
                "adapter": name,
                "tensors": len(both),
                "only_one_has": sorted(theirs.keys() ^ ours.keys()),
                "equal": sum(torch.equal(theirs[key], ours[key]) for key in both),
                "difference": max((theirs[key] - ours[key]).abs().max().item() for key in both),
            }
        )
    return rows


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    """The weights of a model's folder."""
    found: dict[str, torch.Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        found |= safetensors.torch.load_file(file)
    return found


def divergence(p: np.ndarray, q: np.ndarray) -> float:
    """KL(p || q) in nats of log-probabilities [prompts, vocabulary], mean over prompts."""
    return float((np.exp(p) * (p - q)).sum(-1).mean())


def summary(
    files: Mapping[str, Path],
    llama: list[dict[str, Any]],
    mergekit: list[dict[str, Any]],
    by_peft: list[dict[str, Any]],
) -> tuple[list[dict[str, Any]], list[str]]:
    """The tables, and what a client disagrees in."""
    ours = {name: np.load(file).astype(np.float64) for name, file in files.items()}
    faults = []
    next_rows: list[list[Any]] = []
    for name in files:
        rows = [row for row in llama if row["adapter"] == name]
        agreement = sum(row["ours"] == row["theirs"] for row in rows) / len(rows)
        kl, worst = (sum(row["kl"] for row in rows) / len(rows), max(row["difference"] for row in rows))
        nearest = min(divergence(ours[name], ours[other]) for other in files if other != name)
        changed = int((ours[name].argmax(-1) != ours["base"].argmax(-1)).sum())
        next_rows.append([name, len(rows), changed, f"{agreement:.1%}", kl, nearest, worst])
        if agreement < LEAST_AGREEMENT:
            faults.append(f"llama.cpp, {name}: {agreement:.1%} of next tokens are ours")
        if kl * LEAST_DISTANCE > nearest:
            faults.append(f"llama.cpp, {name}: KL {kl:.2g} does not tell it from another adapter, {nearest:.2g} away")
        if name != "base" and not changed:
            faults.append(f"{name}: changes no next token, so nothing is shown")
    for row in by_peft:
        if row["agreement"] < LEAST_AGREEMENT:
            faults.append(f"{row['client']}, {row['adapter']}: {row['agreement']:.1%} of next tokens are ours")
    for row in mergekit:
        if row["difference"] > LARGEST_DIFFERENCE or row["only_one_has"]:
            faults.append(
                f"mergekit, {row['adapter']}: {row['difference']:.2g} off, and {row['only_one_has']} in one only"
            )
    same = sum(row["same_tokens"] for row in llama)
    covered = min(row["covered"] for row in llama)
    kl_note = (
        "KL(ours || client's) in nats, mean over prompts: of llama.cpp given that the token is one of its 1,000 likeliest, which "
        f"cover {covered:.2%} or more of ours. To the nearest other: the least KL to our model with another adapter, or none, over the "
        "whole vocabulary: what a wrong one would cost. Largest difference: of any of these log-probabilities."
    )
    tables = [
        {
            "title": "llama.cpp: base and adapters as GGUF in float32, swapped from request to request, against our merged models",
            "columns": [
                "adapter",
                "prompts",
                "next token is not the base's",
                "next token is ours",
                "mean KL",
                "KL to the nearest other",
                "largest difference",
            ],
            "rows": next_rows,
            "note": f"{kl_note} Its tokenizer gives our tokens in {same} of {len(llama)} requests. Its key-value cache is in float16, as by default.",
        },
        {
            "title": "PEFT (all folders loaded, another adapter in each row of a batch) and transformers, against our merged models",
            "columns": ["client", "adapter", "prompts", "next token is ours", "mean KL", "largest difference"],
            "rows": [
                [
                    row["client"],
                    row["adapter"].strip("_"),
                    PEFT_PROMPTS,
                    f"{row['agreement']:.1%}",
                    row["kl"],
                    row["difference"],
                ]
                for row in by_peft
            ],
        },
        {
            "title": "mergekit: `base+lora` against our merged model, weight by weight, float32",
            "columns": ["adapter", "tensors", "equal bit for bit", "largest difference"],
            "rows": [[row["adapter"], row["tensors"], row["equal"], row["difference"]] for row in mergekit],
        },
    ]
    return tables, faults


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=Path, required=True, help="the environment that `make clients` makes")
    parser.add_argument("--output", type=Path, default=Path("runs/clients"), help="where everything is kept")
    parser.add_argument("--results", type=Path, default=RESULTS, help="where clients.json and clients.md go")
    given = parser.parse_args()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    torch.set_num_threads(1)
    clients = Clients(given.clients.absolute(), make_folder(given.output.absolute()))
    folders = shipped(clients)
    asked = prompts(clients)
    files = references(clients, folders, asked)
    plan = {"prompts": asked, "references": {name: str(file) for name, file in files.items()}}
    llama, mergekit, by_peft = (
        ask_llama(clients, folders, plan),
        ask_mergekit(clients, folders),
        ask_peft(clients, folders, plan),
    )
    tables, faults = summary(files, llama, mergekit, by_peft)
    record = {
        "benchmark": "clients",
        "command": "make clients",
        "machine": machine() | clients.versions(),
        "tables": tables,
    }
    for file in save(record, given.results, {}):
        print(file)
    print("\n".join(faults or ["All clients agree."]))
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
