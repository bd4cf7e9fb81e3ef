"""One adapter for each task of a bank: folders that hold what single merges do, and an index that a merge goes on from."""

from __future__ import annotations

import errno
import json
import shutil
from pathlib import Path
from typing import Any

import huggingface_hub
import peft
import pytest
import torch
from huggingface_hub.utils import filter_repo_objects

from mhr import AdapterConfig, attach
from mhr.adapters import collapse, push, read_adapter, save_adapter
from mhr.adapters.index import folders_for, read_index
from mhr.errors import CheckpointError, ConfigError, MergeError, MhrError
from mhr.files import INDEX_FILE
from mhr.merging import REPORT_FILE, each_task, merge, merge_each_task, serving_lines
from mhr.methods import ROUTING_METHODS
from tests.adapters.test_push import WRITTEN, Client
from tests.merging.loras import deltas, error, load, same
from tests.models import random_batch, tiny_model

TASKS = ["rte", "boolq", "wic"]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "llama"
    tiny_model("llama").save_pretrained(folder)
    return folder


def bank(base: Path, folder: Path, tasks: list[str] = TASKS, **config: Any) -> Path:
    """A bank on a tiny Llama with values of its own everywhere."""
    model = tiny_model("llama")
    attach(model, AdapterConfig(**{"n_heads": 4, "n_skills": 3, "rank": 2, "alpha": 3.0} | config), tasks)
    generator = torch.Generator().manual_seed(7)
    for p in model.parameters():
        if p.requires_grad:
            p.data.add_(0.2 * torch.randn(p.shape, generator=generator))
    return save_adapter(model, folder, base=str(base))


@pytest.fixture(scope="module")
def source(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return bank(base, tmp_path_factory.mktemp("banks") / "mhr")


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_the_index_names_the_commit_of_a_base_from_the_hub(base, tmp_path, monkeypatch):
    commit = "0123456789abcdef0123456789abcdef01234567"
    cached = tmp_path / "hub" / "models--owner--tiny"
    shutil.copytree(base, cached / "snapshots" / commit)
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text(commit)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    source = bank(Path("owner/tiny"), tmp_path / "bank")
    for to in ("mhr", "peft-lora"):
        index = merge_each_task(source, to=to, output=tmp_path / to, progress=False)
        assert (index.base, index.revision, index.commit) == ("owner/tiny", None, commit)
    assert read_index(tmp_path / "mhr").commit == commit
    assert merge_each_task(bank(base, tmp_path / "local"), output=tmp_path / "out", progress=False).commit is None


@pytest.mark.parametrize("to", ["mhr", "peft-lora"])
@pytest.mark.parametrize("method", [name for name, row in ROUTING_METHODS.items() if row.needs_tasks])
def test_each_folder_holds_what_a_single_merge_writes(base, tmp_path, to, method):
    source = bank(base, tmp_path / "bank", method=method, n_heads=None, n_skills=None)
    averaged = ROUTING_METHODS[method].convex
    index = merge_each_task(source, to=to, with_average=averaged, output=tmp_path / "all", progress=False)
    assert list(index.tasks) == TASKS
    assert len({json.dumps(entry) for entry in index.tasks.values()}) == 3
    for task in TASKS:
        one = merge(source, method="task", task=task, to=to, output=tmp_path / "one" / task, progress=False)
        assert files_of(tmp_path / "all" / index.tasks[task]["folder"]) == files_of(one)
    if averaged:
        mean = merge(source, method="uniform", to=to, output=tmp_path / "one" / "average", progress=False)
        assert files_of(tmp_path / "all" / "average") == files_of(mean)
    else:
        kept = ROUTING_METHODS[method].skills_are
        with pytest.raises(MergeError, match=f"whose skills are {kept}, .*: leave --with-average out"):
            merge_each_task(source, to=to, with_average=True, output=tmp_path / "mean", progress=False)
        assert not (tmp_path / "mean").exists()
    generated = (
        averaged or ROUTING_METHODS[method].transforms
    )  # from something that no task was given; others have learnt their own
    alike = ROUTING_METHODS[method].contexts and generated
    assert same(load(tmp_path / "all" / "rte"), load(tmp_path / "all" / "wic")) == alike


def test_the_index_says_what_the_folders_hold(source, base, tmp_path):
    index = merge_each_task(source, to="peft-lora", rank_multiple=8, output=tmp_path / "all", progress=False)
    stored = json.loads((tmp_path / "all" / INDEX_FILE).read_text())
    assert (stored["format"], stored["status"], stored["form"]) == ("mhr-index", "done", "peft-lora")
    assert (stored["base"], stored["base_kind"], stored["kind"]) == (str(base), "causal", "lora")
    assert stored["tasks"] == index.tasks == read_index(tmp_path / "all").tasks
    for task in TASKS:
        config = json.loads((tmp_path / "all" / task / "adapter_config.json").read_text())
        assert stored["tasks"][task] == {"folder": task, "category": "", "rank": 8, "alpha": config["lora_alpha"]}
    assert stored["average"] == {}
    assert sorted(path.name for path in (tmp_path / "all").iterdir()) == sorted([*TASKS, INDEX_FILE])


def test_a_dtype_for_what_is_written(source, tmp_path):
    merge_each_task(source, dtype="bfloat16", output=tmp_path / "all", progress=False)
    one = merge(source, method="task", task="wic", dtype="bfloat16", output=tmp_path / "one", progress=False)
    assert files_of(tmp_path / "all" / "wic") == files_of(one)


def test_a_bank_from_peft_has_a_folder_for_each_task_too(base, tmp_path):
    source = bank(base, tmp_path / "bank", method="poly", n_heads=None)
    poly = merge(source, to="peft-poly", output=tmp_path / "poly", progress=False)
    found = merge_each_task(poly, to="peft-lora", output=tmp_path / "all", progress=False)
    ours = merge_each_task(source, to="peft-lora", output=tmp_path / "ours", progress=False)
    assert len(found.folders) == len(ours.folders) == 3
    for one, other in zip(found.folders, ours.folders, strict=True):
        theirs, own = load(tmp_path / "all" / one), load(tmp_path / "ours" / other)
        assert error(deltas(theirs), deltas(own)) < 1e-6


# ---- going on --------------------------------------------------------------------------------------------------------


class Stop(Exception):
    pass


def stopped(monkeypatch: pytest.MonkeyPatch, fault: BaseException, after: int) -> None:
    """Let writing fail in the middle of a folder, once `after` of them stand."""
    write, calls = each_task.finish_folder, iter(range(100))

    def failing(*arguments: Any) -> Any:
        if next(calls) == after:
            raise fault
        return write(*arguments)

    monkeypatch.setattr(each_task, "finish_folder", failing)


@pytest.mark.parametrize("fault", [KeyboardInterrupt(), OSError(errno.ENOSPC, "No space left on device"), Stop()])
def test_an_interruption_leaves_whole_folders_and_the_same_call_goes_on(source, tmp_path, monkeypatch, fault):
    output, whole = tmp_path / "all", tmp_path / "whole"
    merge_each_task(source, to="peft-lora", with_average=True, output=whole, progress=False)
    with monkeypatch.context() as patch:
        stopped(patch, fault, after=2)
        expected = {OSError: MhrError, KeyboardInterrupt: KeyboardInterrupt, Stop: Stop}[type(fault)]
        with pytest.raises(expected) as raised:
            merge_each_task(source, to="peft-lora", with_average=True, output=output, progress=False)
    if expected is KeyboardInterrupt:
        assert f"2 of 4 folders are written in {output}" in str(raised.value)
    if expected is MhrError:
        assert "No space left" in str(raised.value)
    assert read_index(output).status == "running"
    assert sorted(path.name for path in output.iterdir()) == ["boolq", INDEX_FILE, "rte"]
    (output / ".wic.0123abcd.tmp").mkdir()  # as a kill leaves it
    kept = {task: (output / task).stat().st_ino for task in ("rte", "boolq")}
    index = merge_each_task(source, to="peft-lora", with_average=True, output=output, progress=False)
    assert {task: (output / task).stat().st_ino for task in kept} == kept
    assert index == read_index(whole) == read_index(output)
    assert files_of(output) == files_of(whole)
    with monkeypatch.context() as patch:
        stopped(patch, AssertionError("written twice"), after=0)
        merge_each_task(source, to="peft-lora", with_average=True, output=output, progress=False)


def test_a_first_folder_that_cannot_be_written_leaves_nothing(source, tmp_path, monkeypatch):
    stopped(monkeypatch, OSError(errno.ENOSPC, "No space left on device"), after=0)
    with pytest.raises(MhrError, match="No space left"):
        merge_each_task(source, output=tmp_path / "all", progress=False)
    assert not (tmp_path / "all").exists()


def test_a_folder_that_was_deleted_is_written_again(source, tmp_path, monkeypatch):
    merge_each_task(source, output=tmp_path / "all", progress=False)
    before = files_of(tmp_path / "all")
    shutil.rmtree(tmp_path / "all" / "boolq")
    with monkeypatch.context() as patch:
        stopped(patch, Stop(), after=0)
        with pytest.raises(Stop):
            merge_each_task(source, output=tmp_path / "all", progress=False)
    assert read_index(tmp_path / "all").status == "running"
    merge_each_task(source, output=tmp_path / "all", progress=False)
    assert files_of(tmp_path / "all") == before


def test_an_output_that_holds_anything_else_is_refused_and_stays(source, base, tmp_path):
    output = tmp_path / "all"
    merge_each_task(source, output=output, progress=False)
    before = files_of(output)
    other = bank(base, tmp_path / "other", ["rte", "boolq", "copa"])
    for path, settings, said in (
        (source, {"to": "peft-lora"}, "to 'mhr', not 'peft-lora'"),
        (source, {"with_average": True}, "with_average False, not True"),
        (other, {}, f"of {source.name}, which is another bank"),
    ):
        with pytest.raises(MhrError, match="another merge") as raised:
            merge_each_task(path, output=output, progress=False, **settings)
        assert said in str(raised.value)
    assert files_of(output) == before
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / INDEX_FILE).write_text('{"format": "of another program"}')
    for overwrite, said in ((False, "not empty"), (True, "no output of mhr")):
        with pytest.raises(MhrError, match=said):
            merge_each_task(source, output=tmp_path / "mine", overwrite=overwrite, progress=False)
    merge_each_task(other, to="peft-lora", output=output, overwrite=True, progress=False)
    assert sorted(path.name for path in output.iterdir()) == ["boolq", "copa", INDEX_FILE, "rte"]
    merge(source, output=output, overwrite=True, progress=False)
    assert not (output / INDEX_FILE).exists()


# ---- names of folders ------------------------------------------------------------------------------------------------


def test_tasks_of_any_name_get_folders_of_their_own_inside_the_output(base, tmp_path):
    tasks = [
        "RTE",
        "rte",
        "caf\u00e9",
        "cafe\u0301",
        "a/b",
        "a%2Fb",
        "..",
        "x" * 300,
        "x" * 301,
        "average",
        "index.json",
        "lora",
        "v1.5",
    ]
    folders = folders_for(tasks, "average")
    assert len({name.casefold() for name in folders.values()} - {"average", INDEX_FILE}) == len(tasks)
    for name in folders.values():
        assert not set(name) & set("./\\=,")
        assert name not in "lora_"
        assert len(f".{name}.01234567.tmp".encode()) < 255
    assert folders_for(["rte"])["rte"] == "rte"
    assert folders == folders_for(tasks[::-1], "average")  # whatever their order
    source = bank(base, tmp_path / "bank", tasks, n_skills=2)
    index = merge_each_task(source, with_average=True, output=tmp_path / "all", progress=False)
    assert sorted(path.name for path in (tmp_path / "all").iterdir()) == sorted(
        [*folders.values(), "average", INDEX_FILE]
    )
    assert [read_adapter(tmp_path / "all" / index.tasks[task]["folder"]).tasks for task in tasks] == [
        [task] for task in tasks
    ]
    assert [path.name for path in tmp_path.iterdir()] in (["bank", "all"], ["all", "bank"])


# ---- what is refused -------------------------------------------------------------------------------------------------


def test_what_has_no_adapter_for_each_task_is_refused_by_name(source, base, tmp_path):
    drawn = bank(base, tmp_path / "adamix", method="adamix", n_heads=None)
    lora = merge(source, method="task", task="rte", to="peft-lora", output=tmp_path / "seeds" / "1", progress=False)
    merge(source, method="task", task="wic", to="peft-lora", output=tmp_path / "seeds" / "2", progress=False)
    bottleneck = bank(base, tmp_path / "bottleneck", adapter="bottleneck")
    for path, settings, kind, said in (
        (drawn, {}, MergeError, "method 'adamix', which does the same for all of its 3 tasks"),
        (lora, {}, MergeError, "is one PEFT adapter without tasks"),
        (tmp_path / "seeds", {}, MergeError, f"holds 2 adapters, but --each-task takes one bank: name one of them, as in {lora}"),
        (bottleneck, {"to": "peft-lora"}, CheckpointError, "PEFT has no bottleneck adapters"),
        (source, {"to": "model"}, ConfigError, "expected mhr or peft-lora"),
        (source, {"limit": 3}, MergeError, "--limit is given, but nothing is scored"),
        (tmp_path / "absent", {}, CheckpointError, "there is no such folder"),
    ):  # fmt: skip
        with pytest.raises(kind, match=said.replace("(", r"\(")):
            merge_each_task(path, output=tmp_path / "out", progress=False, **settings)
        assert not (tmp_path / "out").exists()


def test_a_bank_of_one_task_is_one_folder(base, tmp_path):
    for method in ("mhr", "adamix"):
        source = bank(base, tmp_path / method, ["rte"], method=method, n_heads=None)
        index = merge_each_task(source, output=tmp_path / f"{method}-all", progress=False)
        assert index.folders == ["rte"]


# ---- what serves them ------------------------------------------------------------------------------------------------


def test_the_lines_for_peft_load_every_task_and_mix_them_in_a_batch(source, base, tmp_path):
    index = merge_each_task(source, to="peft-lora", with_average=True, output=tmp_path / "all", progress=False)
    *lines, last = serving_lines(index, tmp_path / "all")["PEFT"]
    names: dict[str, Any] = {}
    exec("\n".join(lines), names)
    model = names["model"].eval()
    assert isinstance(model, peft.PeftModel)
    assert set(model.peft_config) == set(TASKS)
    assert last.startswith("model.generate(**batch, adapter_names=['rte', 'boolq', ...])")
    batch = random_batch(tiny_model("llama"), batch=3)
    batch.pop("labels")
    bank_model = tiny_model("llama")
    from mhr.adapters import load_adapter

    load_adapter(source, bank_model)
    with torch.no_grad():
        found = model(**batch, adapter_names=["wic", "rte", "boolq"]).logits
        expected = bank_model(**batch, task_ids=["wic", "rte", "boolq"]).logits
        plain = tiny_model("llama")(**batch).logits
    assert (found - expected).norm() < 1e-5 * expected.norm() < (expected - plain).norm()


@pytest.mark.parametrize(("rank", "largest"), [(2, 8), (8, 8), (9, 16), (130, 256), (300, 320), (512, 512)])
def test_vllm_gets_a_rank_that_it_takes(source, tmp_path, rank, largest):
    index = merge_each_task(source, to="peft-lora", output=tmp_path / "all", progress=False)
    for entry in index.tasks.values():
        entry["rank"] = rank
    (line,) = serving_lines(index, "loras")["vLLM"]
    words = line.split()
    assert words[words.index("--max-lora-rank") + 1] == str(largest)
    assert words[words.index("--lora-modules") + 1 :] == [f"{task}=loras/{task}" for task in TASKS]
    assert words[words.index("--max-cpu-loras") + 1] == "3"


def test_lines_are_for_what_takes_the_adapters(source, base, tmp_path):
    index = merge_each_task(source, to="peft-lora", output=tmp_path / "all", progress=False)
    assert [name.split(":")[0] for name in serving_lines(index, "d")] == [
        "vLLM",
        "SGLang",
        "llama.cpp",
        "PEFT",
    ]
    (sglang,) = serving_lines(index, "d")["SGLang"]
    assert sglang.endswith("--lora-paths rte=d/rte boolq=d/boolq wic=d/wic")
    (line,) = serving_lines(index, "a=b c")["vLLM"]
    assert """'{"name": "rte", "path": "a=b c/rte"}'""" in line  # which name=path would be misread in
    index.base, index.revision = "owner/model", "v2"
    (line,) = serving_lines(index, "d")["vLLM"]
    assert line.startswith("vllm serve owner/model --revision v2 --enable-lora")
    index.base = "builtin:smollm2-135m"
    assert next(iter(serving_lines(index, "d").values()))[0].startswith(
        "python -c 'from mhr.backbones import load_backbone"
    )
    for change in ({"kind": "ia3"}, {"base_kind": "seq2seq"}, {"modules": ["lm_head"]}):
        others = read_index(tmp_path / "all")
        vars(others).update(change)
        assert list(serving_lines(others, "d")) == ["PEFT"], change
    for entry in index.tasks.values():
        entry["rank"] = 513
    assert "vLLM" not in serving_lines(index, "d")
    ours = merge_each_task(source, output=tmp_path / "ours", progress=False)
    assert serving_lines(ours, "d") == {
        "mhr": ["mhr predict d --task rte TEXT"],
        "Python": ["mhr.load('d/rte').predict([TEXT])"],
    }


def test_all_of_it_is_pushed_at_once_without_reports(source, tmp_path, monkeypatch):
    hub = Client()
    monkeypatch.setattr(push, "HfApi", hub)
    monkeypatch.setattr(push, "get_token", lambda: "hf_secret")
    monkeypatch.setattr(push.constants, "HF_HUB_OFFLINE", False)
    merge_each_task(source, to="peft-lora", push="me/loras", output=tmp_path / "all", progress=False)
    (_, made), (_, sent) = hub.calls
    assert (made["repo_id"], made["private"]) == ("me/loras", True)
    files = [str(path.relative_to(tmp_path / "all")) for path in (tmp_path / "all").rglob("*") if path.is_file()]
    kept = set(filter_repo_objects(files, ignore_patterns=sent["ignore_patterns"]))
    assert kept == {INDEX_FILE} | {f"{task}/{name}" for task in TASKS for name in WRITTEN if name != REPORT_FILE}
    assert str(tmp_path.parent) not in (tmp_path / "all" / INDEX_FILE).read_text().replace(
        read_index(tmp_path / "all").base, ""
    )
    with pytest.raises(ConfigError, match="push is 'loras'"):
        merge_each_task(source, to="peft-lora", push="loras", output=tmp_path / "none", progress=False)
    assert not (tmp_path / "none").exists()


# ---- what reads them -------------------------------------------------------------------------------------------------


def test_a_folder_of_adapters_is_an_input_without_its_average(source, tmp_path):
    merge_each_task(source, to="peft-lora", with_average=True, output=tmp_path / "all", progress=False)
    found = merge(tmp_path / "all", method="uniform", space="delta", output=tmp_path / "merged", progress=False)
    inputs = json.loads((found / "merge_report.json").read_text())["inputs"]
    assert [Path(one["name"]).name for one in inputs] == TASKS


def test_the_average_is_that_of_the_skills(source, tmp_path):
    merge_each_task(source, with_average=True, output=tmp_path / "all", progress=False)
    assert same(load(tmp_path / "all" / "average"), collapse(read_adapter(source), None))
