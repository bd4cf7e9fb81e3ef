"""The model card of a PEFT folder: README.md with metadata as the hub reads them, by huggingface_hub."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from mhr import __version__
from mhr.adapters.base_name import is_local
from mhr.adapters.peft import HEAD_FOLDER
from mhr.adapters.peft_export import PeftFolder
from mhr.adapters.peft_modules import CLASSES
from mhr.adapters.peft_readers import MOST_RANK, vllm_rank
from mhr.adapters.plain import PlainAdapter
from mhr.backbones import is_builtin, is_gguf
from mhr.config import VIRTUAL
from mhr.data.chat_format import OWN, PLAIN, ChatFormat, is_file, is_text, packaged_chat_templates, packaged_text
from mhr.errors import MhrError
from mhr.files import write_text_atomically
from mhr.methods import ROUTING_METHODS, title_of
from mhr.runs.run import RunFolder

CARD_FILE = "README.md"
TEMPLATE_FILE = "chat_template.jinja"
"""In a PEFT folder, the chat template that it was trained with, where that is not the tokenizer's own."""

PIPELINES = {"causal": "text-generation", "encoder": "text-classification", "masked": "fill-mask"}
"""Kind of model -> the hub's name for what it does; the hub has taken back its own for encoder-decoders."""

TITLES = {"lora": "LoRA", "ia3": "IA3", "prompt": "prompt", "prefix": "prefix", "bank": "Poly bank"}


@dataclass(frozen=True)
class Paper:
    id: str
    title: str
    bibtex: str


ROUTED = Paper(
    "2211.03831",
    "Multi-Head Adapter Routing for Cross-Task Generalization",
    """@inproceedings{caccia2023multihead,
  title = {Multi-Head Adapter Routing for Cross-Task Generalization},
  author = {Caccia, Lucas and Ponti, Edoardo and Su, Zhan and Pereira, Matheus and Le Roux, Nicolas and Sordoni, Alessandro},
  booktitle = {Advances in Neural Information Processing Systems},
  year = {2023}
}""",
)
DRAWN = Paper(
    "2205.12410",
    "AdaMix: Mixture-of-Adaptations for Parameter-efficient Model Tuning",
    """@inproceedings{wang2022adamix,
  title = {{AdaMix}: Mixture-of-Adaptations for Parameter-efficient Model Tuning},
  author = {Wang, Yaqing and Agarwal, Sahaj and Mukherjee, Subhabrata and Liu, Xiaodong and Gao, Jing and Awadallah, Ahmed Hassan and Gao, Jianfeng},
  booktitle = {Proceedings of EMNLP},
  year = {2022}
}""",
)


@dataclass(frozen=True)
class Origin:
    """How an adapter came about, as far as that is known.

    tasks       that it is for
    how         how it was made of what was trained, in words: "the mixture of one bank for the task"
    runs        that trained it
    scores      task -> "score" in [0, 1] (correlations in [-1, 1]), its "metric" and "n", the number of examples
    collection  what it was scored on, and of which split
    name        what the folder is called where it is read: its own name, or OWNER/NAME on the hub
    cites       whether a method of this library made it, whose paper is to be cited
    """

    tasks: Sequence[str] = ()
    how: str = ""
    runs: Sequence[RunFolder] = ()
    scores: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    collection: str = ""
    split: str = ""
    name: str = ""
    cites: bool = True


def write_card(written: PeftFolder, plain: PlainAdapter, origin: Origin) -> Path:
    """Write README.md into a PEFT folder that was written of an adapter, and where it was trained with a chat template that its
    tokenizer does not have, that too. Returns the path of the card; no value of the adapter is read.

    Metadata: library_name, base_model (a hub id only), tags, pipeline_tag, and model-index where there are scores. Raises MhrError where
    the folder cannot be written.
    """
    folder = written.path
    name = origin.name or folder.name
    tasks = [_inline(task) for task in origin.tasks]
    title = f"{TITLES[written.kind]} for {tasks[0] if len(tasks) == 1 else 'several tasks' if tasks else 'one task'}"
    chat = origin.runs[0].config().data.chat if origin.runs and plain.base.kind == "causal" else None
    template = _template_text(chat)
    if template is not None:
        write_text_atomically(folder / TEMPLATE_FILE, template)
    data = ModelCardData(
        base_model=None if is_local(written.base) or is_builtin(written.base) else written.base or None,
        library_name="peft",
        pipeline_tag=PIPELINES.get(plain.base.kind),
        tags=["mhr", written.kind],
        model_name=title if origin.scores else None,
        eval_results=[_result(task, found, origin, plain.base.kind) for task, found in origin.scores.items()] or None,
    )
    source = resources.files("mhr.adapters").joinpath("model_card.jinja").read_text("utf-8")
    environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined)
    body = environment.from_string(source).render(
        title=title,
        opening=_opening(written, tasks),
        base=_code(written.base) if written.base else "not recorded",
        revision=written.revision and _code(written.revision),
        adapter=_adapter(written, plain),
        origin=list(_origin(origin)),
        code=_loading(written, plain, name),
        prompts=_prompts(chat, template),
        settings=_settings(origin.runs[0]) if len(origin.runs) == 1 else {},
        scores=[_row(task, found) for task, found in origin.scores.items()],
        collection=_code(name_for_others(origin.collection)),
        split=origin.split,
        remarks=[_inline(remark) for remark in written.remarks],
        papers=_papers(origin.runs) if origin.cites else [],
    )
    card = ModelCard(f"---\n{data.to_yaml()}\n---\n\n{body}")
    return write_text_atomically(folder / CARD_FILE, str(card))


def _opening(written: PeftFolder, tasks: Sequence[str]) -> str:
    whose = (
        f"trained for {', '.join(tasks[:20])}{f' and {len(tasks) - 20} more' if len(tasks) > 20 else ''}, "
        if tasks
        else ""
    )
    return f"A {TITLES[written.kind]} in the format of PEFT, {whose}written by mhr {__version__}."


def _adapter(written: PeftFolder, plain: PlainAdapter) -> str:
    dtypes = sorted({str(shape.dtype).removeprefix("torch.") for shape in plain.shapes.values()})
    size = f"{len(plain.shapes)} layers, {' and '.join(dtypes)}"
    if written.kind in VIRTUAL:
        (shape,) = plain.shapes.values()
        return f"{TITLES[written.kind]} of {shape.rank} virtual tokens, {str(shape.dtype).removeprefix('torch.')}"
    if written.rank is None:
        return f"{TITLES[written.kind]}, {size}"
    if written.alpha is None:
        return f"{TITLES[written.kind]}, rank {written.rank}, {size}"
    if written.patterns:
        return f"LoRA, ranks and alphas by layer (rank_pattern, alpha_pattern), {size}"
    one = f"LoRA, rank {written.rank} and alpha {written.alpha:g} in all layers, {size}"
    fits = plain.base.kind == "causal" and not plain.modules and written.rank <= MOST_RANK
    return f"{one}; vLLM takes it with `--max-lora-rank {vllm_rank(written.rank)}`" if fits else one


def _origin(origin: Origin) -> list[str]:
    found = []
    for run in origin.runs[:1]:
        method = title_of(str(run.info.get("method")), run.info.get("mode"))
        found.append(f"Trained as: {method}" + (f", {len(origin.runs)} runs" if len(origin.runs) > 1 else ""))
    if origin.how:
        found.append(f"Made of it as: {_inline(origin.how)}" if origin.runs else f"Made as: {_inline(origin.how)}")
    data = list(dict.fromkeys(name_for_others(run.config().tasks) for run in origin.runs))
    if data:
        found.append(f"Data: {', '.join(map(_code, data))}")
    return found


def _settings(run: RunFolder) -> dict[str, Any]:
    """The settings of a training that most depends on, with their values."""
    config = run.config()
    train, adapter = config.train, config.adapter
    found: dict[str, Any] = {}
    if adapter is not None:
        found |= {"heads": adapter.n_heads, "skills": adapter.n_skills}
        size = {"rank": adapter.rank, "alpha": adapter.alpha, "targets": adapter.targets}
        found |= {"virtual tokens": adapter.prepended} if adapter.prepended else size
    found |= {"optimizer": train.optimizer, "learning rate": train.lr, "routing's learning rate": train.router_lr}
    found |= {"weight decay": train.weight_decay, "optimizer steps": run.info.get("steps", train.steps)}
    found["batch"] = run.info.get("global_batch", train.batch_size * train.accumulation)
    found |= {"seed": train.seed, "dtype of the base model": config.dtype}
    if run.info.get("shots"):
        found["training examples"] = len(run.info["shots"])
    versions = run.info.get("versions") or {}
    found["versions"] = ", ".join(f"{name} {version}" for name, version in versions.items())
    return {name: _inline(str(value)) for name, value in found.items() if value not in (None, "", [])}


def _loading(written: PeftFolder, plain: PlainAdapter, name: str) -> str:
    base, automatic = written.base, getattr(CLASSES.get(plain.base.kind), "__name__", None)
    revision = f", revision={written.revision!r}" if written.revision else ""
    if plain.heads is not None:
        return (
            "from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer, pipeline\n\n"
            f"config = AutoConfig.from_pretrained({name!r}, subfolder={HEAD_FOLDER!r})  # the labels\n"
            f"model = AutoModelForSequenceClassification.from_pretrained({name!r}, config=config, ignore_mismatched_sizes=True)\n"
            f"tokenizer = AutoTokenizer.from_pretrained({base!r}{revision})\n"
            'answer = pipeline("text-classification", model=model, tokenizer=tokenizer)'
        )
    ours = is_builtin(base) or is_gguf(base)
    if ours and written.kind not in VIRTUAL:
        return (
            f"import mhr\n\nmodel = mhr.load({name!r}).model  # a folder on disk: mhr knows the base model by its name"
        )
    if automatic is None or not base or ours:
        return f"from peft import PeftModel\n\nmodel = PeftModel.from_pretrained(base, {name!r})  # on the model that it was trained on"
    one = ", num_labels=1" if plain.base.kind == "encoder" else ""  # it ranks
    return (
        f"from peft import PeftModel\nfrom transformers import {automatic}, AutoTokenizer\n\n"
        f"base = {automatic}.from_pretrained({base!r}{revision}{one})\n"
        f"model = PeftModel.from_pretrained(base, {name!r})\n"
        f"tokenizer = AutoTokenizer.from_pretrained({base!r}{revision})"
    )


def _prompts(chat: ChatFormat | None, template: str | None) -> str:
    """How rows became text in training, so that they do when the adapter is asked."""
    if chat is None:
        return ""
    system = f" The system turn, where a row had none: {_code(chat.system)}." if chat.system else ""
    if chat.template is None:
        return f"Conversations were written by the chat template of the base model's tokenizer, other rows as plain text.{system}"
    if chat.template == PLAIN:
        return "Every row was plain text, without a chat template: the answer follows the prompt."
    if template is not None:
        return f"Every row was written by the chat template in `{TEMPLATE_FILE}`, beside this file.{system}"
    which = "" if chat.template == OWN else f" named {_code(chat.template)}"
    return f"Every row was written by the chat template{which} of the base model's tokenizer.{system}"


def _template_text(chat: ChatFormat | None) -> str | None:
    """A chat template that the tokenizer does not bring: a packaged one, Jinja of the user's own, or a file if it is still there."""
    name = None if chat is None else chat.template
    if name is None or is_text(name):
        return name
    if name in packaged_chat_templates():
        return packaged_text(name)
    if chat is not None and is_file(name):
        try:
            return chat.with_text().template
        except MhrError:
            return None
    return None


def _papers(runs: Sequence[RunFolder]) -> list[Paper]:
    adapters = [run.config().adapter for run in runs]
    methods = {ROUTING_METHODS[adapter.method] for adapter in adapters if adapter is not None}
    drawn, routed = any(row.drawn for row in methods), any(not row.drawn for row in methods)
    return [*([DRAWN] if drawn else []), *([ROUTED] if routed or not drawn else [])]


def _result(task: str, found: Mapping[str, Any], origin: Origin, kind: str) -> EvalResult:
    return EvalResult(
        task_type=PIPELINES.get(kind, "text-generation"),
        dataset_type=re.sub(r"[^\w.-]+", "-", task).strip("-.") or "task",
        dataset_name=task,
        dataset_split=origin.split or None,
        metric_type=str(found["metric"]),
        metric_value=round(float(found["score"]), 6),
    )


def _row(task: str, found: Mapping[str, Any]) -> dict[str, str]:
    row = {
        "task": _inline(task),
        "metric": str(found["metric"]),
        "score": f"{100 * found['score']:.1f}",
        "n": str(found["n"]),
    }
    return {name: text.replace("|", "\\|") for name, text in row.items()}


def name_for_others(name: str) -> str:
    """What others are told of a task collection or a folder: of a path its last part alone, for the others tell of somebody's machine."""
    path = Path(name)
    return path.name if path.is_absolute() or path.exists() or name.startswith((".", "~")) else name


def _inline(text: str) -> str:
    """Text of a user as one line of Markdown that begins nothing but a line."""
    return re.sub(r"([\\`*_<>\[\]])", r"\\\1", " ".join(text.split()))


def _code(text: str) -> str:
    """Text of a user as code in a line."""
    line = " ".join(text.split())
    return f"`` {line} ``" if "`" in line else f"`{line}`"
