"""Merges that look at data: the greedy soup, Fisher information, and scores before and after."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import ByT5Tokenizer

from mhr import AdapterConfig, attach
from mhr.adapters import (
    AdapterCheckpoint,
    BaseModel,
    LoraFactors,
    PlainAdapter,
    attach_plain,
    checkpoint_of,
    load_checkpoint,
    load_peft,
    plain_checkpoint,
    save_adapter,
)
from mhr.backbones import load_backbone
from mhr.data import load_tasks
from mhr.data.skills import draw_examples
from mhr.errors import CheckpointError, ConfigError, DataError, MergeError, TaskError
from mhr.evaluation import evaluate
from mhr.merging import combine_mera_activations, combine_search, combine_soup_greedy, merge, merge_uniform, read_report
from mhr.merging.fisher import diagonal_fisher
from mhr.merging.judge import Judge
from mhr.merging.mera import activation_gains
from mhr.runs.config import dump_config, load_config
from mhr.runs.run import RunFolder
from mhr.runs.settings import RunConfig
from tests.merging.loras import Named, deltas, error, load, same, save
from tests.merging.test_mera import shuffled
from tests.models import randomise, tiny_model

BASE = "builtin:t5-tiny"
TASK = "rev-last"
DATA = {"tasks": "builtin:skills", "dev_tasks": [TASK], "limit": 6, "progress": False}


def adapter(seed: int, size: float = 0.05) -> PlainAdapter:
    """A random LoRA on the built-in model."""
    model, _ = load_backbone(BASE)
    attach(model, AdapterConfig(method="shared", rank=2, targets=["q", "v"]), [TASK])
    generator = torch.Generator().manual_seed(seed)
    for p in model.mhr.adapter_parameters():
        p.data = size * torch.randn(p.shape, generator=generator)
    return merge_uniform(checkpoint_of(model, BASE))


# ---- greedy soup -----------------------------------------------------------------------------------------------------


def greedy(scores: dict[frozenset[int], float], n: int) -> tuple[list[float], list[dict]]:
    sources = [Named(f"digest {i}") for i in range(n)]
    for i, source in enumerate(sources):
        source.name = str(i)

    def score(weights: list[float]) -> float:
        used = {w for w in weights if w > 0}
        assert len(used) == 1
        assert sum(weights) == pytest.approx(1)
        return scores[frozenset(i for i, w in enumerate(weights) if w > 0)]

    found = combine_soup_greedy(sources, [1 / n] * n, score=score)
    return found.weights, found.notes["steps"]


def test_a_checkpoint_stays_only_where_it_improves_the_average() -> None:
    alone = {frozenset({0}): 0.5, frozenset({1}): 0.8, frozenset({2}): 0.7, frozenset({3}): 0.6}
    tries = {frozenset({1, 2}): 0.8, frozenset({1, 3}): 0.9, frozenset({1, 3, 0}): 0.95}
    weights, steps = greedy(alone | tries, 4)
    assert weights == pytest.approx([1 / 3, 1 / 3, 0, 1 / 3])
    assert [(step["input"], step["kept"]) for step in steps] == [("1", True), ("2", False), ("3", True), ("0", True)]
    assert [step["with it"] for step in steps] == [0.8, 0.8, 0.9, 0.95]


def test_the_best_stays_alone_where_nothing_improves() -> None:
    weights, _ = greedy({frozenset({0}): 0.1, frozenset({1}): 0.2, frozenset({0, 1}): 0.15}, 2)
    assert weights == [0.0, 1.0]


def upper(folder: Path) -> str:
    """A collection of one task that the built-in backbone knows, with 8 training and 8 test examples."""
    rows = [
        {"task": "upper", "input": e.input, "targets": list(e.targets), "split": "train" if i < 8 else "test"}
        for i, e in zip(range(16), draw_examples(("upper",)), strict=False)
    ]
    (folder / "upper.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(folder / "upper.jsonl")


@pytest.mark.parametrize("to", ["mhr", "peft-lora", "model"])
def test_what_is_scored_is_what_was_written(tmp_path, monkeypatch, to):
    rounded: list[bool] = []

    def evaluate_one(loaded, *arguments, **settings):
        weights = loaded.model.parameters() if loaded.bank is None else loaded.bank.tensors().values()
        rounded.append(all(torch.equal(w, w.bfloat16().to(w.dtype)) for w in weights))
        return evaluate(loaded, *arguments, **settings)

    monkeypatch.setattr("mhr.merging.judge.evaluate", evaluate_one)
    merge(
        save(tmp_path, adapter(1)),
        to=to,
        dtype="bfloat16",
        evaluate=True,
        tasks=upper(tmp_path),
        limit=2,
        progress=False,
        output=tmp_path / "out",
    )
    assert rounded == [False, True]


def test_a_greedy_soup_of_adapters(tmp_path):
    """Zeros do nothing to the backbone, which knows this task, and loud noise ruins it: only the first may stay."""
    quiet, noise = adapter(1, size=0.0), adapter(2, size=3.0)
    folders = save(tmp_path, noise, quiet)
    output = merge(
        folders,
        method="soup-greedy",
        evaluate=True,
        tasks=upper(tmp_path),
        progress=False,
        output=tmp_path / "out",
    )
    assert same(load(output), load_peft(folders[1]))
    report = read_report(output)
    assert [i["weight"] for i in report.inputs] == [0.0, 1.0]
    assert [step["input"] for step in report.notes["steps"]] == [str(folders[1]), str(folders[0])]
    assert report.scores.keys() == {str(folders[0]), str(folders[1]), "merged"}
    assert report.scores["merged"] == report.scores[str(folders[1])]
    assert report.scores["merged"]["mean"] > report.scores[str(folders[0])]["mean"]
    assert report.scores["merged"]["tasks"].keys() == {"upper"}


# ---- search ----------------------------------------------------------------------------------------------------------


def test_the_weights_of_the_highest_score_are_taken() -> None:
    truth = torch.tensor([0.1, 0.6, 0.3])
    tries: list[list[float]] = []

    def score(weights: list[float]) -> float:
        assert sum(weights) == pytest.approx(1)
        assert min(weights) >= 0
        tries.append(weights)
        return -float((torch.tensor(weights) - truth).square().sum())

    sources = [Named(f"digest {i}") for i in range(3)]
    found = combine_search(sources, [0.5, 0.25, 0.25], score=score, tries=60, seed=1)
    assert tries[0] == [0.5, 0.25, 0.25]
    assert found.weights == pytest.approx(truth.tolist(), abs=0.05)
    assert found.notes["dev score"] == score(found.weights) > found.notes["of the start"]
    assert found.notes["tries"] == 60
    assert combine_search(sources[:1], [1.0], score=score, tries=60, seed=1).weights == [1.0]


def test_what_is_searched_is_the_merged_adapter(tmp_path, monkeypatch):
    """Here the smallest one scores highest, which is that of zeros. The order of inputs changes nothing."""

    def smallness(judge: Judge, checkpoint: AdapterCheckpoint) -> float:
        return -sum(float(t.square().sum()) for name, t in checkpoint.tensors.items() if name.startswith("layers."))

    monkeypatch.setattr(Judge, "dev_score", smallness)
    folders = save(tmp_path, adapter(2, size=3.0), adapter(1, size=0.0))
    reports = [
        read_report(merge(order, method="search", tries=20, seed=2, **DATA, output=tmp_path / f"out-{i}"))
        for i, order in enumerate((folders, folders[::-1]))
    ]
    noise, quiet = (i["weight"] for i in reports[0].inputs)
    assert noise < 0.2 < 0.8 < quiet
    assert reports[0].notes["dev score"] > reports[0].notes["of the start"]
    assert [i["weight"] for i in reports[1].inputs] == [quiet, noise]
    assert reports[0].settings == {"tries": 20, "seed": 2}
    assert same(load(tmp_path / "out-0"), load(tmp_path / "out-1"))


# ---- Fisher ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def judge() -> Judge:
    return Judge(BaseModel(BASE, "seq2seq"), "x", [], [], tasks="builtin:skills", names=[TASK], progress=False)


def test_fisher_is_the_mean_square_of_the_gradients(judge):
    plain = adapter(3)
    examples = judge.collection[TASK].train[:3]
    found = diagonal_fisher(judge, plain, examples)
    balanced = {n: LoraFactors(f.a * f.scaling**0.5, f.b * f.scaling**0.5, 2.0) for n, f in plain.layers.items()}
    squares: dict[str, torch.Tensor] = {}
    with judge.wearing(plain_checkpoint(PlainAdapter(balanced, plain.base))) as loaded:
        for example in examples:
            loaded.model.zero_grad()
            text = loaded.tokenizer(example.input, text_target=example.targets[0], return_tensors="pt")
            out = loaded.model(**text, task_ids=loaded.bank.tasks)
            (out.loss * text["labels"].numel()).backward()  # the sum over tokens
            for name, layer in loaded.bank.layers.items():
                for key, p in (("a", layer.bank_a), ("b", layer.bank_b)):
                    squares[f"{name}.{key}"] = squares.get(f"{name}.{key}", 0) + p.grad[0, 0] ** 2
    norm = sum(float(s.double().square().sum()) for s in squares.values()) ** 0.5
    assert found.keys() == squares.keys()
    for name, square in squares.items():
        torch.testing.assert_close(found[name], square / norm, rtol=1e-3, atol=1e-7)
    assert sum(float(f.double().square().sum()) for f in found.values()) == pytest.approx(1, rel=1e-5)


def test_what_an_adapter_depends_on_weighs_more(tmp_path, judge):
    one, two = adapter(4), adapter(5)
    output = merge(
        save(tmp_path, one, two), method="fisher", examples=4, weights=[1, 3], **DATA, output=tmp_path / "out"
    )
    found = load(output)
    fishers = [diagonal_fisher(judge, plain, judge.collection[TASK].train[:4]) for plain in (one, two)]
    apart = 0.0
    for name, factors in found.layers.items():
        f, g = 0.25 * fishers[0][f"{name}.a"], 0.75 * fishers[1][f"{name}.a"]
        x, y = one.layers[name].a, two.layers[name].a
        plain = 0.25 * x + 0.75 * y
        expected = torch.where(f + g > 0, (f * x + g * y) / (f + g), plain)
        torch.testing.assert_close(factors.a, expected, rtol=1e-4, atol=1e-5)
        apart += float((factors.a - plain).norm())
    assert apart > 0.1
    assert read_report(output).notes == {"examples per task": 4}


def test_the_order_of_inputs_changes_no_fisher_merge(tmp_path):
    folders = save(tmp_path, adapter(4), adapter(5))
    found = [
        merge(order, method="fisher", examples=2, **DATA, output=tmp_path / f"{i}")
        for i, order in enumerate((folders, folders[::-1]))
    ]
    assert same(load(found[0]), load(found[1]))
    assert same(load(merge(folders[:1], method="fisher", **DATA, output=tmp_path / "one")), load_peft(folders[0]))


def test_fisher_information_that_is_0_everywhere(tmp_path):
    """With A = 0 and B = 0 no gradient reaches either."""
    folders = save(tmp_path, adapter(4), adapter(5, size=0.0))
    with pytest.raises(MergeError, match="Fisher information of .*input-1 is 0 everywhere on 2 examples"):
        merge(folders, method="fisher", examples=2, **DATA, output=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_ranks_that_differ_by_layer_and_a_head(tmp_path, judge):
    plain = adapter(6)
    first = next(iter(plain.layers))
    f = plain.layers[first]
    wide = LoraFactors(torch.cat([f.a, f.a], 1), torch.cat([f.b, f.b], 0), 3.0)
    found = diagonal_fisher(
        judge, PlainAdapter({**plain.layers, first: wide}, plain.base), judge.collection[TASK].train[:1]
    )
    assert found[f"{first}.a"].shape == wide.a.shape
    assert {t.shape for name, t in found.items() if name.endswith(".b") and first not in name} == {f.b.shape}


@pytest.mark.parametrize("kind", ["lora", "ia3", "film", "bottleneck", "prompt", "prefix", "gated"])
def test_every_kind_of_adapter_has_fisher_information_in_the_shapes_of_its_tensors(kind, judge):
    model, _ = load_backbone(BASE)
    tokens = {"virtual_tokens": 3} if kind in ("prompt", "prefix", "gated") else {}
    attach(model, AdapterConfig(method="shared", adapter=kind, rank=2, **tokens), [TASK])
    randomise(model.mhr, size=0.05)
    plain = merge_uniform(checkpoint_of(model, BASE))
    found = diagonal_fisher(judge, plain, judge.collection[TASK].train[:2])
    own = {f"{name}.{key}": t for name, layer in plain.layers.items() for key, t in layer.tensors().items()}
    assert {name: found[name].shape for name in own} == {name: t.shape for name, t in own.items()}
    assert all(found[name].any() for name in own if name.endswith("gate"))


def test_a_head_that_was_trained_whole_has_fisher_information_too(tmp_path):
    """An encoder that ranks choices: the head is merged by its own information."""
    tiny_model("bert", vocab_size=384).save_pretrained(tmp_path / "base")
    ByT5Tokenizer().save_pretrained(tmp_path / "base")
    rows = [
        {"task": "t", "input": f"is it {i}?", "targets": ["yes"], "choices": ["yes", "no"], "split": split}
        for i in range(4)
        for split in ("train", "test")
    ]
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    folders = []
    for seed in (1, 2):
        model, _ = load_backbone(str(tmp_path / "base"), "encoder")
        randomise(attach(model, AdapterConfig(method="shared", rank=2, targets=["query"]), ["t"]), seed)
        torch.nn.init.normal_(model.classifier.weight, generator=torch.Generator().manual_seed(seed))
        folders.append(save_adapter(model, tmp_path / f"{seed}", base=str(tmp_path / "base")))
    settings = {"tasks": str(tmp_path / "t.jsonl"), "progress": False}
    found = load(merge(folders, method="fisher", **settings, evaluate=True, output=tmp_path / "out"))
    plains = [load(folder) for folder in folders]
    one, two, merged = (p.modules["classifier"]["weight"] for p in (*plains, found))
    low, high = torch.minimum(one, two), torch.maximum(one, two)
    assert ((merged >= low - 1e-5) & (merged <= high + 1e-5)).all()
    assert (merged - (one + two) / 2).norm() > 0.05 * (one - two).norm()
    assert read_report(tmp_path / "out").scores["merged"]["tasks"].keys() == {"t"}


# ---- alignment by activations ------------------------------------------------------------------------------------------


def test_gains_are_products_of_activations_over_tokens(judge):
    plains = [adapter(7), adapter(8)]
    examples = judge.collection[TASK].train[:2]
    found = activation_gains(judge, plains, 1, examples)
    model, tokenizer = load_backbone(BASE)
    attach_plain(model, plains[1])
    inputs: dict[str, list[torch.Tensor]] = {name: [] for name in plains[0].layers}
    for name, layer in model.mhr.layers.items():
        layer.register_forward_hook(
            lambda _, args, out, name=name: inputs[name].append(args[0].flatten(0, -2).double())
        )
    for example in examples:
        text = tokenizer(example.input, text_target=example.targets[0], return_tensors="pt")
        with torch.no_grad():
            model(**text)
    assert found.keys() == inputs.keys()
    for name, gains in found.items():
        x = torch.cat(inputs[name])
        hidden = [x @ (p.layers[name].a.double() * p.layers[name].scaling ** 0.5) for p in plains]
        for k in (0, 1):
            torch.testing.assert_close(gains[k], hidden[1].T @ hidden[k], rtol=1e-4, atol=1e-6)


def test_units_that_do_the_same_are_found_by_what_they_do(tmp_path):
    plain = adapter(9)
    folders = save(tmp_path, plain, shuffled(plain, 1), shuffled(plain, 2))
    output = merge(folders, method="mera-activations", examples=2, **DATA, output=tmp_path / "out")
    assert error(deltas(load(output)), deltas(plain)) < 1e-5
    assert read_report(output).notes["examples"] == 2
    assert error(deltas(load(merge(folders, output=tmp_path / "uniform"))), deltas(plain)) > 0.1
    one = merge(folders[:1], method="mera-activations", **DATA, output=tmp_path / "one")
    assert same(load(one), load_peft(folders[0]))


def test_bottlenecks_are_aligned_by_activations_and_leave_no_hook(judge):
    model, _ = load_backbone(BASE)
    attach(model, AdapterConfig(method="shared", adapter="bottleneck", rank=5, targets=["wo"]), [TASK])
    randomise(model.mhr, 1)
    plain = merge_uniform(checkpoint_of(model, BASE))
    order = torch.tensor([3, 0, 4, 1, 2])
    moved = {
        n: f.with_tensors({"a": f.a[:, order], "b": f.b[order], "bias_a": f.bias_a[order]})
        for n, f in plain.layers.items()
    }
    combination = combine_mera_activations(
        [plain, PlainAdapter(moved, plain.base)], [0.6, 0.4], judge=judge, examples=1
    )
    for name, layer in plain.layers.items():
        back = combination.align(name, [layer, moved[name]])[1]
        for key, tensor in layer.tensors().items():
            assert torch.equal(back.tensors()[key], tensor), key
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in judge._parts[0].modules())


# ---- what is scored on -----------------------------------------------------------------------------------------------


def test_examples_that_a_run_adapted_on_are_no_dev_examples(tmp_path):
    train = load_tasks("builtin:skills")[TASK].train

    def judge(shots: int) -> Judge:
        run = RunFolder(tmp_path, {"tasks": [TASK], "shots": [e.id for e in train[:shots]]})
        (tmp_path / "config.yaml").write_text(dump_config(RunConfig()))
        return Judge(BaseModel(BASE, "seq2seq"), "x", [run], [TASK], tasks="builtin:skills")

    dev = judge(5)._dev[TASK].train
    assert [e.id for e in dev] == [e.id for e in train[5:]]
    with pytest.raises(DataError, match="no training example that no input adapted on"):
        _ = judge(len(train))._dev


def test_an_adapted_run_brings_its_own_task(tmp_path):
    """Written as `mhr adapt` writes it: the collection, the task and the shots come from run.json and config.yaml."""
    model, _ = load_backbone(BASE)
    attach(model, AdapterConfig(n_heads=2, n_skills=2, rank=2), [TASK])
    folders = []
    for seed in ("13", "42"):
        folder = tmp_path / TASK / seed
        save_adapter(model, folder / "adapter", base=BASE)
        (folder / "run.json").write_text(json.dumps({"status": "done", "kind": "adapt", "tasks": [TASK], "shots": []}))
        (folder / "config.yaml").write_text(dump_config(load_config(n_heads=2, n_skills=2, rank=2)))
        folders.append(folder)
        for p in model.mhr.adapter_parameters():
            p.data.add_(0.01)
    output = merge(
        tmp_path / TASK, method="soup-uniform", evaluate=True, limit=4, progress=False, output=tmp_path / "out"
    )
    report = read_report(output)
    assert report.space == "bank"
    assert report.scores["merged"]["tasks"].keys() == {TASK}
    merged, _ = load_checkpoint(output)
    assert merged.mhr.config.n_skills == 2
    ours, other = (load_checkpoint(f / "adapter")[0].mhr.tensors() for f in folders)
    for name, tensor in merged.mhr.tensors().items():
        torch.testing.assert_close(tensor, (ours[name] + other[name]) / 2)


def test_what_cannot_be_scored(tmp_path):
    folders = save(tmp_path, adapter(1), adapter(2))
    for settings, error_type, line in (
        ({"method": "soup-greedy"}, ConfigError, "no task collection is given"),
        ({"method": "mera-activations"}, ConfigError, "no task collection is given"),
        (
            {"method": "mera", "examples": 3},
            MergeError,
            "'mera' takes no examples: .* choose fisher or mera-activations",
        ),
        ({"method": "fisher"}, ConfigError, "no task collection is given"),
        ({"method": "search"}, ConfigError, "no task collection is given"),
        ({"method": "search", **DATA, "tries": 0}, ConfigError, "tries is 0, expected an integer of at least 1"),
        ({"method": "uniform", "tries": 3}, MergeError, "'uniform' takes no tries: leave it out, or choose search"),
        ({"evaluate": True}, ConfigError, "no task collection is given"),
        ({"method": "fisher", **DATA, "dev_tasks": ["rev-lst"]}, TaskError, "unknown task 'rev-lst'"),
        ({"tasks": "builtin:skills"}, MergeError, "--tasks is given, but nothing is scored: add --evaluate"),
        ({"dev_tasks": [TASK]}, MergeError, "--dev-task is given, but nothing is scored"),
        ({"batch_size": 4}, MergeError, "--batch-size is given, but nothing is scored"),
        ({"split": "test"}, MergeError, "--split is given, but nothing is scored"),
        ({"method": "soup-greedy", **DATA, "split": "dev"}, ConfigError, "split is 'dev', expected one of train, test"),
    ):
        with pytest.raises(error_type, match=line):
            merge(folders, **settings, output=tmp_path / "out")
        assert not (tmp_path / "out").exists()


def test_a_base_model_that_is_not_told(tmp_path):
    plain = adapter(1)
    folders = save(tmp_path, PlainAdapter(plain.layers, BaseModel("")))
    with pytest.raises(CheckpointError, match="does not say which base model it belongs to: name that with --model"):
        merge(folders, evaluate=True, **DATA, output=tmp_path / "out")
    output: Path = merge(folders, evaluate=True, **DATA, base=BASE, output=tmp_path / "out")
    assert read_report(output).scores["merged"]["mean"] >= 0
