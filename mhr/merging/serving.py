"""What serves a folder of adapters, one for each task: the commands of other programs, and lines of Python."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

from mhr.adapters.base_name import is_local
from mhr.adapters.index import AdapterIndex
from mhr.adapters.peft import HEAD_FOLDER
from mhr.adapters.peft_modules import CLASSES
from mhr.adapters.peft_readers import MOST_RANK, vllm_rank
from mhr.backbones import is_builtin, is_gguf
from mhr.files import INDEX_FILE
from mhr.merging.methods import PEFT_FORM

TOGETHER = 8
"""Adapters in one batch of a server, where there are so many."""

BASE_FOLDER = "base"
"""Folder that a base model is written to, where a program needs it in one."""


def serving_lines(index: AdapterIndex, folder: str | Path) -> dict[str, list[str]]:
    """Who serves the adapters in `folder` -> lines to paste, each adapter under the name of its folder.

    vLLM, SGLang and llama.cpp only where they take the adapters: LoRAs of a decoder, without modules_to_save, for vLLM of a rank that
    it has kernels for. A base model that other programs do not know by its name is saved into the folder BASE_FOLDER first.
    """
    folder = Path(folder)
    if index.form != PEFT_FORM:
        task = next(iter(index.tasks))
        return {
            "mhr": [f"mhr predict {shlex.quote(str(folder))} --task {shlex.quote(task)} TEXT"],
            "Python": [f"mhr.load({str(folder / index.tasks[task]['folder'])!r}).predict([TEXT])"],
        }
    found: dict[str, list[str]] = {}
    base = index.base
    if is_builtin(base) or is_gguf(base):
        save = (
            "from mhr.backbones import load_backbone; "
            f"[part.save_pretrained({json.dumps(BASE_FOLDER)}) for part in load_backbone({json.dumps(base)})]"
        )
        found["The base model, for all of these"] = [f"python -c {shlex.quote(save)}"]
        base = BASE_FOLDER
    if index.kind == "lora" and index.base_kind == "causal" and not index.modules:
        found |= _servers(index, folder, base)
    return found | {"PEFT": _peft(index, folder, base)}


def _servers(index: AdapterIndex, folder: Path, base: str) -> dict[str, list[str]]:
    places = {name: str(folder / name) for name in index.folders}
    together = min(TOGETHER, len(places))
    revision = f" --revision {shlex.quote(index.revision)}" if index.revision else ""
    model = shlex.quote(base)
    found = {}
    if (index.rank or 0) <= MOST_RANK:
        found["vLLM"] = [
            f"vllm serve {model}{revision} --enable-lora --max-lora-rank {vllm_rank(index.rank or 1)} --max-loras {together} "
            f"--max-cpu-loras {len(places)} --lora-modules {_pairs(places, 'name', 'path')}"
        ]
    found["SGLang"] = [
        f"python -m sglang.launch_server --model-path {model}{revision} --enable-lora --max-loras-per-batch {together} "
        f"--lora-paths {_pairs(places, 'lora_name', 'lora_path')}"
    ]
    fetched = []
    if not (base == BASE_FOLDER or is_local(base)):  # its converters read folders
        fetched, model = [f"hf download {model}{revision} --local-dir {BASE_FOLDER}"], BASE_FOLDER
    into = shlex.quote(str(folder))
    files = shlex.quote(",".join(f"{place}.gguf" for place in places.values()))
    found["llama.cpp: its converters, then the server; in a request an adapter's id is its place in --lora, from 0"] = [
        *fetched,
        f"python convert_hf_to_gguf.py {model} --outfile base.gguf",
        f'for lora in {into}/*/; do python convert_lora_to_gguf.py --base {model} --outfile "${{lora%/}}.gguf" "$lora"; done',
        f"llama-server -m base.gguf --lora-init-without-apply --lora {files}",
    ]
    return found


def _peft(index: AdapterIndex, folder: Path, base: str) -> list[str]:
    """Lines of Python that load the adapters: all on one base model, save where each has a head of its own."""
    kind = CLASSES[index.base_kind].__name__ if index.base_kind in CLASSES else "AutoModel"
    revision = f", revision={index.revision!r}" if index.revision else ""
    names = [entry["folder"] for entry in index.tasks.values()]
    first = names[0]
    lines = ["from peft import PeftModel"]
    if (folder / first / HEAD_FOLDER).is_dir():
        head = str(folder / first / HEAD_FOLDER)
        return [
            *lines,
            f"from transformers import AutoConfig, {kind}",
            f"base = {kind}.from_pretrained({base!r}, config=AutoConfig.from_pretrained({head!r}){revision})  # one for each task",
            f"model = PeftModel.from_pretrained(base, {str(folder / first)!r})",
        ]
    lines += [
        f"from transformers import {kind}",
        "import json",
        f"tasks = json.load(open({str(folder / INDEX_FILE)!r}, encoding='utf-8'))['tasks']",
        f"base = {kind}.from_pretrained({base!r}{revision})",
        f"model = PeftModel.from_pretrained(base, {str(folder / first)!r}, adapter_name={first!r})",
        f"for name in [task['folder'] for task in tasks.values()][1:]: model.load_adapter({str(folder)!r} + '/' + name, adapter_name=name)",
    ]
    if index.kind == "lora" and not index.modules:
        call = "model.generate" if index.base_kind in ("causal", "seq2seq") else "model"
        rows = ", ".join(map(repr, names[:2])) + (", ..." if len(names) > 2 else "")
        return [*lines, f"{call}(**batch, adapter_names=[{rows}])  # the adapter of each row: tasks mixed in one batch"]
    return [*lines, f"model.set_adapter({names[-1]!r})"]


def _pairs(places: dict[str, str], name: str, path: str) -> str:
    """Adapters as servers take them: name=path, or JSON where a path would be misread in that."""
    return " ".join(
        shlex.quote(json.dumps({name: key, path: place}) if set("=,") & set(place) else f"{key}={place}")
        for key, place in places.items()
    )
