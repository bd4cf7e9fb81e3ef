"""The merge command: from runs and adapters to a folder that stands on its own, with a report beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from mhr.adapters.base_name import is_local, name_as_given
from mhr.adapters.find import run_of
from mhr.adapters.fold import fold_into
from mhr.adapters.model_card import write_card
from mhr.adapters.open import needs_task, read_bank
from mhr.adapters.peft_export import PeftFolder, PeftWriter
from mhr.adapters.peft_modules import check_opens
from mhr.adapters.peft_poly import write_poly
from mhr.adapters.plain import PlainAdapter
from mhr.adapters.push import check_push, push_folder
from mhr.adapters.write import write_bank, write_plain
from mhr.backbones import can_dequantise, load_backbone
from mhr.errors import ConfigError, MergeError, nearest
from mhr.evaluation import EvaluationResult
from mhr.files import prepare_output, writing_folder
from mhr.loading import Loading
from mhr.locks import one_writer
from mhr.merging.methods import PEFT_FORM, POLY_FORM, MergeConfig, own_settings
from mhr.merging.origin import origin_of
from mhr.merging.plan import MergePlan, Order, make_plan
from mhr.merging.report import REPORT_FILE, MergeReport
from mhr.ops.checks import accumulator
from mhr.setting import check_setting


@one_writer
def merge(
    inputs: str | Path | Sequence[str | Path],
    *,
    method: str | None = None,
    task: str | Sequence[str] | None = None,
    weights: Mapping[str, float] | Sequence[float] | None = None,
    space: str | None = None,
    rank: int | None = None,
    rank_energy: float | None = None,
    evaluate: bool = False,
    tasks: str | None = None,
    dev_tasks: Sequence[str] | None = None,
    split: str = "train",
    limit: int | None = None,
    batch_size: int | None = None,
    progress: bool = True,
    to: str = "mhr",
    output: str | Path,
    overwrite: bool = False,
    dtype: str | None = None,
    rank_multiple: int | None = None,
    patterns: bool = False,
    push: str | None = None,
    public: bool = False,
    base: str | None = None,
    kind: str | None = None,
    loading: Loading | None = None,
    on_bad_row: str | None = None,
    **settings: Any,
) -> Path:
    """Merge adapters into one and write it to the folder `output`, which it returns; see `read_report`.

    inputs    run folders, adapter checkpoints, PEFT folders, or folders of these. A single bank with one of `merge_methods`
              becomes one plain adapter, exactly; with another method its skills are merged. Soups of banks stay banks
    method    name of a merge method; None: `task` for one bank with one task, otherwise `uniform`
    task      what each input stands for, one for all or one each: the mixture that is taken of a bank, the task that Fisher
              information is estimated on. Several for a single bank merge its mixtures for these tasks
    weights   one for each input in their order, or by name of input or task; within one bank, of its tasks or skills
    space     one of SPACES; None takes the method's own. rank: of the factors that products get, None: the largest one; rank_energy: the least
              of each layer that keeps this share of the squared Frobenius norm, up to `rank`
    evaluate  score every input, and the merged adapter, on the test examples; in the report
    tasks, dev_tasks, split, limit, batch_size, on_bad_row    what is scored on, see `Judge`
    to        one of FORMS
    dtype     of the tensors written, one of STORED_DTYPES; None keeps the adapter's, or with to="model" the base model's
    rank_multiple, patterns    of a PEFT folder, see `mhr.adapters.PeftWriter`
    push      OWNER/NAME on the hub that a PEFT folder is uploaded to, once it is written; a new repository is private unless `public`
    base      path or hub id of the base model; None takes the one that the adapters name. kind: of a base whose adapters do
              not tell it; loading: see `load_backbone`
    settings  those of the method, such as density=0.3 of "ties", see `mhr.merging.methods`

    Inputs are read layer by layer, so that they need not fit into memory together. Everything is checked before anything is
    written, and the folder appears whole. Raises ConfigError for settings that are unknown or out of range, MergeError for settings
    and inputs that do not go together, CheckpointError for what cannot be read, MhrError for an output folder that cannot be used.
    """
    named = [task] if isinstance(task, str) else None if task is None else list(task)
    dev_tasks = None if dev_tasks is None else list(dev_tasks)
    own = {"rank_multiple": rank_multiple, "patterns": patterns, "push": push, "public": public}
    MergeConfig(method, named, weights, space, rank, rank_energy, to, dtype, evaluate, dev_tasks, split, **own)  # type: ignore[arg-type]
    if push is not None:
        check_push(push)
    known = own_settings()
    settings = {name: value for name, value in settings.items() if value is not None}
    for name, value in settings.items():
        if name not in known:
            raise ConfigError(f"no merge method has a setting {name!r}: {nearest(name, sorted(known))}")
        check_setting(name, value, *known[name][:2])
    paths = [inputs] if isinstance(inputs, (str, Path)) else list(inputs)
    output = prepare_output(output, overwrite, [*paths, base, tasks])
    order = Order(
        paths=paths,
        method=method,
        tasks=named or [],
        weights=weights,
        space=space,
        rank=rank,
        rank_energy=rank_energy,
        settings=settings,
        base=base,
        kind=kind,
        whole=to == POLY_FORM,
        judging={
            "evaluate": evaluate,
            "tasks": tasks,
            "names": dev_tasks,
            "split": split,
            "limit": limit,
            "batch_size": batch_size,
            "on_bad_row": on_bad_row,
            "loading": loading,
            "progress": progress,
        },
    )
    with torch.no_grad():
        plan = make_plan(order)
    prepare_output(output, overwrite, [plan.result.base.name_or_path])
    plan.report.to, plan.report.dtype = to, dtype
    if plan.bank is not None and needs_task(plan.bank) and to not in ("mhr", POLY_FORM):
        raise MergeError(
            f"the merged bank routes {len(plan.bank.tasks)} tasks, so it is no one adapter: write it with --to mhr, and "
            "merge that for a task"
        )
    heads = plan.result.heads
    if to != "mhr" and heads is not None and len(heads.heads) > 1:
        raise MergeError(
            f"the merged adapter has heads for {len(heads.tasks)} tasks ({', '.join(map(repr, list(heads.tasks)[:3]))}), and --to {to} "
            "is for one of them: name it with --method task --task NAME, or write it with --to mhr"
        )
    if to == "mhr":
        check_opens(plan.result, plan.result.base)
    writer = None
    if to == PEFT_FORM:
        writer = peft_writer(plan, base, loading, rank_multiple, patterns)
        writer.check(plan.result)
    scores = {}
    if evaluate and plan.judge is not None:
        scores = {name: told_scores(plan.judge.evaluate(load())) for name, load in plan.before.items()}
    whole = _folded(plan.result, dtype, _as_trained(paths, loading)) if to == "model" else None
    stored = None if dtype is None else getattr(torch, dtype)
    plain = plan.result if stored is None else plan.result.cast(stored)
    written = None
    with writing_folder(output) as folder:
        if whole is not None:
            for part in whole:
                part.save_pretrained(folder)
        elif writer is not None:
            written = writer.write(plain, folder)
        else:
            written = _write_adapter(plan, plain, folder, to, stored, base, loading)
        after = None
        if evaluate and plan.judge is not None:
            judge = plan.judge  # of what was written, so with its rounding
            after = judge.evaluate(read_bank(folder)) if whole is None else judge.evaluate_model(*whole)
            scores["merged"] = told_scores(after)
            plan.report.scores = scores
        finish_folder(plan, plain, folder, written, push or output.name, after)
    if push is not None:
        push_folder(output, push, public=public, without=[REPORT_FILE])
    return output


def finish_folder(
    plan: MergePlan,
    plain: PlainAdapter,
    folder: Path,
    written: PeftFolder | None,
    name: str,
    scored: EvaluationResult | None = None,
) -> MergeReport:
    """Write the report of a merge into its folder, and the card of a PEFT folder that was `written` of `plain` there.

    name: what the card calls the folder, see `origin_of`; scored: what the adapter scored.
    """
    report = plan.finish()
    if written is not None:
        report.remarks = written.remarks
        report.rank = [written.rank] if written.rank is not None and not written.patterns else report.rank
        write_card(written, plain, origin_of(report, plan.runs, name, scored))
    report.write(folder)
    return report


def peft_writer(
    plan: MergePlan, base: str | None, loading: Loading | None, rank_multiple: int | None, patterns: bool
) -> PeftWriter:
    """What writes the result as a PEFT folder that names its base model as the user did."""
    name, revision = _named(plan, base, loading)
    return PeftWriter(base=name, revision=revision, rank_multiple=rank_multiple, patterns=patterns)


def _named(plan: MergePlan, base: str | None, loading: Loading | None) -> tuple[str, str | None]:
    """The name of the base model in what PEFT reads, as the user gave it, and its revision on the hub."""
    name = name_as_given(plan.result.base, plan.runs, base)
    return name, None if is_local(name) else plan.result.base.loading(loading).revision


def _write_adapter(
    plan: MergePlan,
    plain: PlainAdapter,
    folder: Path,
    to: str,
    dtype: torch.dtype | None,
    base: str | None,
    loading: Loading | None,
) -> PeftFolder | None:
    """Write an adapter of ours, or a bank as a PEFT Poly folder."""
    if to == POLY_FORM:
        assert plan.bank is not None
        return write_poly(plan.bank, folder, dtype, *_named(plan, base, loading))
    if plan.bank is not None:
        write_bank(plan.bank, folder, dtype)
    else:
        write_plain(plain, folder, plan.task)
    return None


def told_scores(result: EvaluationResult) -> dict[str, Any]:
    """What a report says of an evaluation."""
    return {"mean": result.mean["score"], "tasks": {name: found["score"] for name, found in result.tasks.items()}}


def _as_trained(paths: Sequence[str | Path], loading: Loading | None) -> Loading:
    """How the base model is loaded that an adapter is folded into: where it was quantised in training, so again, out of the dtype that
    it was quantised from, unless it is said."""
    configs = [run.config() for run in (run_of(Path(path)) for path in paths) if run is not None]
    loading = loading or Loading()
    if loading.quantize or not configs or not configs[0].quantize:
        return loading
    return replace(loading, quantize=configs[0].quantize, dtype=loading.dtype or configs[0].dtype)


def _folded(
    plain: PlainAdapter, dtype: str | None, loading: Loading
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The base model with an adapter folded into it, and its tokenizer.

    Each layer is computed in float32 at least and rounded once, to the base's own dtype where none is named. A quantised base is
    dequantised first, to the weights that it computes with, which the adapter was trained beside.
    """
    loading = plain.base.loading(loading)
    held = loading.dtype or "float32"
    loading = replace(loading, dtype="auto" if dtype is None else str(accumulator(getattr(torch, dtype)))[6:])
    name, kind = plain.base.where(None, plain.name), plain.base.kind or None
    model, tokenizer = load_backbone(name, kind, loading)
    own = None
    # One that transformers cannot dequantise is refused by `fold_into`, which names the layer.
    if can_dequantise(model):
        own = model.dtype
        model = load_backbone(name, kind, replace(loading, dtype=held))[0].dequantize(dtype=torch.float32).float()
    fold_into(model, plain)
    stored = own if dtype is None else getattr(torch, dtype)
    return model if stored is None else model.to(stored), tokenizer
