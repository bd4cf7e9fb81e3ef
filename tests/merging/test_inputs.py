"""What may be merged with what: one bank's skills and tasks, whole banks, adapters of two kinds; and what may not."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from mhr import AdapterConfig, attach
from mhr.adapters import (
    BaseModel,
    LoraFactors,
    PlainAdapter,
    checkpoint_of,
    plain_checkpoint,
    read_adapter,
    write_adapter,
)
from mhr.adapters.tensor_file import TensorFile
from mhr.errors import CheckpointError, ConfigError, MergeError, TaskError
from mhr.merging import merge, merge_task, merge_uniform, read_report
from tests.merging.loras import SIZES, deltas, error, ia3, load, lora, same, save
from tests.models import randomise, tiny_model

TASKS = ["boolq", "rte", "wic"]


def bank(folder: Path, seed: int = 0, model_seed: int = 0, tasks: list[str] = TASKS, **settings) -> Path:
    model = tiny_model("t5", seed=model_seed)
    config = AdapterConfig(
        **{"method": "mhr", "n_heads": 4, "n_skills": 3, "rank": 2, "targets": ["q", "v"], **settings}
    )
    randomise(attach(model, config, tasks), seed=seed)
    return write_adapter(checkpoint_of(model, "tiny"), folder)


def average(*plains: PlainAdapter) -> torch.Tensor:
    """The updates of averaged factors."""
    n = len(plains)
    return torch.cat(
        [
            (
                f.scaling
                * (sum(p.layers[name].a.double() for p in plains) / n)
                @ (sum(p.layers[name].b.double() for p in plains) / n)
            ).flatten()
            for name, f in sorted(plains[0].layers.items())
        ]
    )


# ---- one bank --------------------------------------------------------------------------------------------------------


def test_a_bank_with_one_task_is_that_task_unless_asked_otherwise(tmp_path):
    """So that what `mhr adapt --mode z` learnt is what is shipped."""
    folder = bank(tmp_path / "bank", tasks=["rte"])
    checkpoint = read_adapter(folder)
    task = merge(folder, output=tmp_path / "task")
    assert same(load(task), merge_task(checkpoint, task="rte"))
    assert read_report(task).method == "task"
    assert read_adapter(task).tasks == ["rte"]
    assert same(load(merge(folder, method="uniform", output=tmp_path / "mu")), merge_uniform(checkpoint))
    many = bank(tmp_path / "many")
    assert same(load(merge(many, output=tmp_path / "many mu")), merge_uniform(read_adapter(many)))


def test_the_skills_of_a_bank_are_adapters_of_their_own(tmp_path):
    folder = bank(tmp_path / "bank")
    output = merge(folder, method="soup-uniform", output=tmp_path / "soup")
    exact = merge_uniform(read_adapter(folder))
    assert error(deltas(load(output)), deltas(exact)) < 1e-6
    assert [i["name"].partition(", ")[2] for i in read_report(output).inputs] == ["skill 0", "skill 1", "skill 2"]
    assert read_report(merge(folder, method="ties", output=tmp_path / "ties")).rank == [2]
    exact = sum(s.scaling * s.a @ s.b for s in skills(read_adapter(folder), "encoder.block.0.layer.0.SelfAttention.q"))
    found = load(merge(folder, space="delta", rank=6, output=tmp_path / "delta"))
    assert error(found.layers["encoder.block.0.layer.0.SelfAttention.q"].delta(), exact / 3) < 1e-5


def skills(checkpoint, layer: str) -> list[LoraFactors]:
    a, b = (checkpoint.tensors[f"layers.{layer}.{name}"] for name in ("bank_a", "bank_b"))
    return [LoraFactors(a[:, s].flatten(0, 1), torch.cat(list(b[:, s]), dim=-1), 1.0) for s in range(a.shape[1])]


def test_adapters_of_tasks_with_their_own_are_called_by_their_names(tmp_path):
    folder = bank(tmp_path / "bank", method="private", n_skills=None)
    output = merge(folder, method="ties", weights={"rte": 1, "boolq": 1, "wic": 2}, output=tmp_path / "out")
    report = read_report(output)
    assert [(i["task"], i["weight"]) for i in report.inputs] == [("boolq", 0.25), ("rte", 0.25), ("wic", 0.5)]


def test_mixtures_of_one_bank_for_several_tasks(tmp_path):
    folder = bank(tmp_path / "bank")
    checkpoint = read_adapter(folder)
    output = merge(folder, task=["rte", "wic"], output=tmp_path / "out")
    expected = average(merge_task(checkpoint, task="rte"), merge_task(checkpoint, task="wic"))
    assert error(deltas(load(output)), expected) < 1e-6


def test_banks_as_they_route_a_task(tmp_path):
    folders = [bank(tmp_path / "0", 0), bank(tmp_path / "1", 1)]
    one, two = (merge_task(read_adapter(folder), task="rte") for folder in folders)
    output = merge(folders, task="rte", output=tmp_path / "out")
    assert error(deltas(load(output)), average(one, two)) < 1e-6
    assert read_adapter(output).tasks == ["rte"]


def test_an_adapter_of_ours_beside_one_of_peft(tmp_path):
    (theirs,) = save(tmp_path, lora(1))
    ours = write_adapter(plain_checkpoint(lora(2)), tmp_path / "ours")
    assert error(deltas(load(merge([ours, theirs], output=tmp_path / "out"))), average(lora(1), lora(2))) < 1e-6


# ---- whole banks -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [None, "bfloat16"])
def test_a_soup_of_banks_is_a_bank(dtype, tmp_path):
    folders = [bank(tmp_path / f"{i}", i) for i in range(3)]
    output = merge(folders, method="soup-uniform", dtype=dtype, output=tmp_path / "out")
    found, given = read_adapter(output), [read_adapter(folder) for folder in folders]
    assert (found.config, found.tasks, found.layers) == (given[0].config, TASKS, given[0].layers)
    for name, tensor in found.tensors.items():
        expected = sum(g.tensors[name] for g in given) / 3
        assert tensor.dtype == (torch.bfloat16 if dtype and name.startswith("layers") else torch.float32)
        torch.testing.assert_close(tensor.float(), expected, rtol=1e-2 if dtype else 1e-5, atol=1e-2 if dtype else 1e-6)
    report = read_report(output)
    assert report.space == "bank"
    x, y = (torch.cat([t.flatten() for t in g.tensors.values()]) for g in given[:2])
    assert report.distance[0][1] == pytest.approx(float((x - y).norm()), rel=1e-5)
    again = merge(folders[::-1], method="soup-uniform", dtype=dtype, output=tmp_path / "again")
    assert (again / "mhr_adapter.safetensors").read_bytes() == (output / "mhr_adapter.safetensors").read_bytes()
    copies = merge([folders[0]] * 3, method="soup-uniform", output=tmp_path / "copies")
    assert (copies / "mhr_adapter.safetensors").exists()
    for name, tensor in read_adapter(copies).tensors.items():
        assert torch.equal(tensor, given[0].tensors[name])


def test_a_soup_of_one_task_can_leave_as_a_lora(tmp_path):
    folders = [bank(tmp_path / f"{i}", i, tasks=["rte"]) for i in range(2)]
    soup = merge(folders, method="soup-uniform", output=tmp_path / "soup")
    output = merge(folders, method="soup-uniform", to="peft-lora", output=tmp_path / "out")
    assert error(deltas(load(output)), deltas(merge_task(read_adapter(soup), task="rte"))) < 1e-6


@pytest.mark.parametrize(
    ("other", "settings", "line"),
    [
        ({"n_skills": 4}, {}, "has n_skills 3, .* 4: banks that are merged skill by skill have one layout"),
        ({"tasks": ["boolq", "rte"]}, {}, "do not have the same tasks"),
        ({"targets": ["q"]}, {}, "do not have the same layers"),
        ({"model_seed": 1}, {}, "belongs to base model 'tiny', .* and their weights differ"),
        ({}, {"space": "delta"}, "banks are merged skill by skill, in factor space"),
        ({}, {"weights": [1, 2]}, "'soup-uniform' takes no weights"),
        ({}, {"to": "peft-lora"}, "the merged bank routes 3 tasks, so it is no one adapter"),
        (
            {},
            {"method": "uniform"},
            "routes 3 tasks: name with --task the one that it is to stand for, such as 'boolq'",
        ),
    ],
)
def test_banks_that_do_not_fit(other, settings, line, tmp_path):
    folders = [bank(tmp_path / "one"), bank(tmp_path / "two", 1, **other)]
    with pytest.raises(MergeError, match=line) as caught:
        merge(folders, **{"method": "soup-uniform", **settings}, output=tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


# ---- bad input -------------------------------------------------------------------------------------------------------

HEAD = {"classifier": {"weight": torch.zeros(2, 4)}}
WIDE = {name: (i, o + 8) for name, (i, o) in SIZES.items()}
FEWER = {name: sizes for name, sizes in SIZES.items() if "v" not in name}


@pytest.mark.parametrize(
    ("other", "line"),
    [
        (
            lora(2, base=BaseModel("llama", "causal")),
            "belongs to base model 'tiny', .* to 'llama': .* or name the one model",
        ),
        (lora(2, sizes=FEWER), "does not adapt layer 'block.0.v', as .* does"),
        (lora(2, sizes=WIDE), r"layer 'block.0.q' has sizes \(24, 16\) in .* and \(24, 24\) in "),
        (
            lora(2, dtype=torch.bfloat16),
            "has dtype torch.float32 in .* and torch.bfloat16 in .*: expected the same: store",
        ),
        (lora(2, rank=2), "has rank 4 in .* and 2 in .*: expected the same, or --space delta"),
        (lora(2, modules=HEAD), "stores no modules, .* classifier.weight .2, 4.: expected the same modules"),
        (ia3(2), "is a LoRA, .* is an IA3: expected adapters of one kind"),
    ],
    ids=["base", "targets", "shapes", "dtypes", "ranks", "modules", "kinds"],
)
def test_adapters_that_do_not_fit_one_another(other, line, tmp_path):
    folders = save(tmp_path, lora(1), other)
    for order in (folders, folders[::-1]):
        with pytest.raises(MergeError) as caught:
            merge(order, output=tmp_path / "out")
        assert "\n" not in str(caught.value)
    with pytest.raises(MergeError, match=line):
        merge(folders, output=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_user_may_vouch_for_the_base_model(tmp_path):
    folders = save(tmp_path, lora(1), lora(2, base=BaseModel("moved/tiny", "causal")))
    found = load(merge(folders, base="here/tiny", output=tmp_path / "out"))
    assert found.base.name_or_path == "here/tiny"


@pytest.mark.parametrize(
    ("settings", "error_type", "line"),
    [
        ({"method": "weighted"}, MergeError, "'weighted' needs weights: give it with --weights"),
        ({"method": "weighted", "weights": [1, 2, 3]}, MergeError, "got 3 weights for 2 inputs: give one per input"),
        ({"method": "weighted", "weights": [0, 0]}, MergeError, "with one above 0"),
        ({"method": "weighted", "weights": [1, -1]}, MergeError, "at least 0"),
        ({"method": "weighted", "weights": {"a": 1}}, MergeError, "no weight is given for .*input-0"),
        ({"weights": [1, 2]}, MergeError, "'uniform' takes no weights"),
        ({"method": "ties", "drop": 0.5}, MergeError, "'ties' takes no drop"),
        ({"method": "dare", "density": 0.5}, MergeError, "'dare' takes no density"),
        ({"density": 0.5}, MergeError, "'uniform' takes no density"),
        ({"method": "ties", "density": 0.0}, ConfigError, "density is 0.0, expected a number above 0 and at most 1"),
        ({"method": "ties", "density": 1.5}, ConfigError, "density is 1.5"),
        ({"method": "dare", "drop": 1.0}, ConfigError, "drop is 1.0, expected a number of at least 0 and below 1"),
        ({"method": "tise"}, ConfigError, "unknown merge method 'tise': did you mean 'ties'"),
        ({"method": "task"}, MergeError, "'task' merges one bank, not 2 inputs"),
        ({"space": "product"}, ConfigError, "space is 'product', expected one of factor, delta"),
        ({"method": "mera", "space": "delta"}, MergeError, "'mera' does not work in space 'delta'"),
        ({"rank": 0, "space": "delta"}, ConfigError, "rank is 0, expected an integer of at least 1"),
        ({"rank": 2}, MergeError, "rank is 2, but factors are merged as they are: leave it out, or use --space delta"),
        ({"method": "fisher", "examples": 0}, ConfigError, "examples is 0"),
        ({"task": ["a", "b", "c"]}, MergeError, "got 3 tasks for 2 inputs"),
    ],
)
def test_settings_that_do_not_go_together(settings, error_type, line, tmp_path):
    folders = save(tmp_path, lora(1), lora(2))
    with pytest.raises(error_type, match=line) as caught:
        merge(folders, **settings, output=tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_weights_of_copies_that_cancel(tmp_path):
    folders = save(tmp_path, lora(1), lora(1))
    with pytest.raises(
        MergeError, match=r"weights are \[1, -1\], which cancel, for the inputs are copies of each other"
    ):
        merge(folders, method="task_arithmetic", weights=[1, -1], output=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_has_no_products_or_hidden_units(tmp_path):
    folders = save(tmp_path, ia3(1), ia3(2))
    with pytest.raises(MergeError, match="is no LoRA, so it has no products of factors: leave --space out"):
        merge(folders, space="delta", output=tmp_path / "out")
    with pytest.raises(MergeError, match="mera aligns hidden units of LoRAs and bottlenecks, of which an IA3 is none"):
        merge(folders, method="mera", output=tmp_path / "out")


@pytest.mark.parametrize("kind", ["LOHA", "ADALORA", "PREFIX_TUNING"])
def test_a_peft_folder_of_another_kind_is_named(kind, tmp_path):
    folders = save(tmp_path, lora(1), lora(2))
    config = folders[1] / "adapter_config.json"
    config.write_text(config.read_text().replace('"LORA"', f'"{kind}"'))
    with pytest.raises(CheckpointError, match=f"input-1 holds a PEFT adapter of kind {kind}: expected LORA or IA3"):
        merge(folders, output=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_nothing_is_left_where_reading_fails_half_way(tmp_path, monkeypatch):
    folders = save(tmp_path, lora(1), lora(2))
    read, calls = TensorFile.read, []

    def cut_short(self: TensorFile, names=None) -> dict[str, torch.Tensor]:
        calls.append(names)
        if len(calls) == 4:
            self.path.write_bytes(b"cut")
        return read(self, names)

    monkeypatch.setattr(TensorFile, "read", cut_short)
    with pytest.raises(CheckpointError, match="cannot read .*adapter_model.safetensors"):
        merge(folders, output=tmp_path / "out")
    assert len(calls) == 4
    assert sorted(p.name for p in tmp_path.iterdir()) == ["input-0", "input-1"]


def test_paths_that_hold_nothing_to_merge(tmp_path):
    with pytest.raises(MergeError, match="nothing to merge: name at least one"):
        merge([], output=tmp_path / "out")
    with pytest.raises(CheckpointError, match="there is no such folder"):
        merge([tmp_path / "nowhere"], output=tmp_path / "out")
    (folder,) = save(tmp_path, lora(1))
    unfinished = tmp_path / "seeds" / "42"
    shutil.copytree(folder, tmp_path / "seeds" / "13")
    unfinished.mkdir()
    (unfinished / "run.json").write_text("{}")
    with pytest.raises(CheckpointError, match="no adapter at .*seeds/42: its run is not done .status 'new'."):
        merge(tmp_path / "seeds", output=tmp_path / "out")
    (unfinished / "run.json").write_text('{"status": "done", "method": "full"}')
    (unfinished / "model").mkdir()
    with pytest.raises(
        CheckpointError, match="no adapter at .*seeds/42: its run trained all weights, and .*model is the"
    ):
        merge(tmp_path / "seeds", output=tmp_path / "out")
    with pytest.raises(TaskError, match="unknown task 'rt' of .*: did you mean 'rte'"):
        merge([bank(tmp_path / "a"), bank(tmp_path / "b")], task="rt", output=tmp_path / "out")


def test_modules_are_averaged_and_integers_must_agree(tmp_path):
    def with_head(seed: int, counter: int) -> PlainAdapter:
        state = {"weight": torch.full((2, 4), float(seed)), "steps": torch.tensor(counter)}
        return lora(seed, modules={"classifier": state})

    output = merge(save(tmp_path, with_head(1, 5), with_head(3, 5)), method="ties", output=tmp_path / "out")
    state = load(output).modules["classifier"]
    assert torch.equal(state["weight"], torch.full((2, 4), 2.0))
    assert int(state["steps"]) == 5
    with pytest.raises(MergeError, match="tensor 'classifier.steps' .* integers that differ"):
        merge(save(tmp_path, with_head(1, 5), with_head(3, 6)), output=tmp_path / "other")
    assert not (tmp_path / "other").exists()
