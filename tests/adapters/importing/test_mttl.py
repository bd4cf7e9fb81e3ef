"""Checkpoints in the layout of microsoft/mttl: their formula is stated again in float64 and compared with the imported bank."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mhr.adapters import load_checkpoint, read_adapter
from mhr.adapters.importing import import_run
from mhr.adapters.importing.source import SAVE_AS_SAFETENSORS, ForeignPath
from mhr.errors import CheckpointError, TaskError
from mhr.loading import Loading
from tests.adapters.importing.conftest import said
from tests.models import random_batch, tiny_model

IDS = [2, 0, 2, 1]
NAMES = ["task-2", "task-0", "task-2", "task-1"]
TASKS, SKILLS, RANK, ALPHA = 3, 5, 2, 3.0
WIDE = Loading(dtype="float64")
LAYERS = [
    name for name, m in tiny_model("t5").named_modules() if isinstance(m, nn.Linear) and name[-2:] in (".q", ".v", "wo")
]
BLOCKS = {
    "finegrained": lambda layer: layer,
    "layerwise": lambda layer: ".".join(layer.split(".")[:5]),
    "blockwise": lambda layer: ".".join(layer.split(".")[:3]),
    "coderwise": lambda layer: layer.split(".")[0],
    "coarsegrained": lambda layer: "",
}


def drawn(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def checkpoint(base: str, heads: int = 4, tasks: int = TASKS, **said_: Any) -> dict[str, Any]:
    """A checkpoint of their MHR or Poly with random tensors. said_: hyper_parameters over those of the recipe."""
    generator = torch.Generator().manual_seed(5)
    hyper = {
        "model": base,
        "model_family": "encdec",
        "model_modifier": "poly",
        "n_skills": SKILLS,
        "n_splits": heads,
        "n_tasks": tasks,
        "lora_rank": RANK,
        "lora_alpha": ALPHA,
        "router_granularity": "finegrained",
        "trainable_param_names": ".*lora_[ab].*|.*module_logits.*",
        "max_input_length": 77,
        "max_output_length": 11,
    } | said_
    modules = dict(tiny_model("t5").named_modules())
    state: dict[str, Tensor] = {}
    seen = set()
    for layer in LAYERS:
        n_in, n_out = modules[layer].in_features, modules[layer].out_features
        skills = tasks if hyper["model_modifier"] == "skilled" else SKILLS
        state[f"model.{layer}.lora_a"] = drawn(generator, heads, skills, n_in // heads, RANK) * 0.3
        state[f"model.{layer}.lora_b"] = drawn(generator, heads, skills, RANK, n_out // heads) * 0.3
        group = BLOCKS[hyper["router_granularity"]](layer)
        if group not in seen and hyper["model_modifier"] == "poly":
            seen.add(group)
            state[f"model.{layer}.selector.module_logits"] = drawn(generator, tasks, heads * skills)
    return {"state_dict": state, "hyper_parameters": hyper, "global_step": 1234, "epoch": 2, "optimizer_states": []}


def restated(made: dict[str, Any], ids: list[int]) -> Tensor:
    """Logits of the tiny T5 with their formula on every adapted layer, example by example, in float64."""
    state, hyper = made["state_dict"], made["hyper_parameters"]
    model = tiny_model("t5").double()
    tables: dict[str, Tensor] = {}
    for layer in LAYERS:
        own = state.get(f"model.{layer}.selector.module_logits")
        if own is not None:
            tables[BLOCKS[hyper["router_granularity"]](layer)] = own

    def weights(layer: str, task: int) -> Tensor:
        heads = hyper["n_splits"]
        if hyper["model_modifier"] == "skilled":
            return torch.eye(TASKS, dtype=torch.float64)[task].expand(heads, -1)
        if not tables:
            return torch.full((heads, SKILLS), 1 / SKILLS, dtype=torch.float64)
        p = torch.sigmoid(tables[BLOCKS[hyper["router_granularity"]](layer)][task].view(heads, SKILLS))
        if hyper.get("module_logits_straight_through"):
            p = torch.round(p)
        return p / (p.sum(-1, keepdim=True) + 1e-12)

    def hook(layer: str):
        a, b = (state[f"model.{layer}.{part}"].double() for part in ("lora_a", "lora_b"))

        def add(module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
            rows = []
            for x, y, task in zip(inputs[0], output, ids, strict=True):
                w = weights(layer, task)
                mixed_a = torch.cat([sum(w[q, s] * a[q, s] for s in range(w.shape[1])) for q in range(w.shape[0])])
                mixed_b = torch.cat([sum(w[q, s] * b[q, s] for s in range(w.shape[1])) for q in range(w.shape[0])], 1)
                rows.append(y + (hyper["lora_alpha"] / hyper["lora_rank"]) * (x @ mixed_a) @ mixed_b)
            return torch.stack(rows)

        return add

    for layer in LAYERS:
        model.get_submodule(layer).register_forward_hook(hook(layer))
    with torch.no_grad():
        return model(**random_batch(model)).logits


def imported(made: dict[str, Any], tmp_path: Path, name: str = "finish.ckpt") -> tuple[Any, nn.Module]:
    torch.save(made, tmp_path / name)
    run = import_run(tmp_path / name, output=tmp_path / "run", loading=WIDE)
    return run, load_checkpoint(run.adapter, loading=WIDE)[0]


def compare(made: dict[str, Any], tmp_path: Path) -> tuple[Any, nn.Module]:
    run, model = imported(made, tmp_path)
    expected = restated(made, IDS)
    with torch.no_grad():
        found = model(**random_batch(model), task_ids=NAMES).logits
        bare = tiny_model("t5").double()(**random_batch(model)).logits
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    assert (expected - bare).abs().max() > 0.01
    return run, model


@pytest.mark.parametrize("granularity", BLOCKS)
@pytest.mark.parametrize("heads", [1, 4])
def test_poly_and_mhr(heads, granularity, bases, tmp_path):
    made = checkpoint(bases["t5"], heads, router_granularity=granularity, module_logits_relaxed_bernoulli=True)
    run, model = compare(made, tmp_path)
    assert model.mhr.config.noise == "per_example"
    assert len(model.mhr.groups) == len({BLOCKS[granularity](layer) for layer in LAYERS})
    assert run.info["steps"] == 1234
    data = run.config().data
    assert (data.max_input_length, data.max_target_length) == (77, 11)


def test_the_average_of_mhr_mu(bases, tmp_path):
    made = checkpoint(bases["t5"], switch_to_avg_modules=True)
    made["state_dict"] = {key: t for key, t in made["state_dict"].items() if "selector" not in key}
    _, model = compare(made, tmp_path)
    assert not model.mhr.router_parameters()


def test_private(bases, tmp_path):
    _, model = compare(checkpoint(bases["t5"], heads=1, model_modifier="skilled"), tmp_path)
    assert model.mhr.config.routing.skill_per_task
    assert model.mhr.tasks == ["task-0", "task-1", "task-2"]


def test_straight_through(bases, tmp_path):
    made = checkpoint(bases["t5"], module_logits_straight_through=True)
    for key, tensor in made["state_dict"].items():
        if "logits" in key:
            tensor.view(TASKS, 4, SKILLS)[..., 0].abs_()  # one skill of each head stays on
    compare(made, tmp_path)


@pytest.mark.parametrize("value", [0.0, -1.0])
def test_straight_through_where_rounding_differs_is_refused(value, bases, tmp_path):
    made = checkpoint(bases["t5"], module_logits_straight_through=True)
    for key, tensor in made["state_dict"].items():
        if "logits" in key:
            tensor.view(TASKS, 4, SKILLS)[..., 0].abs_()
            tensor.view(TASKS, 4, SKILLS)[1, 2] = value
    torch.save(made, tmp_path / "x.ckpt")
    expected = {0.0: "is 0, which mttl rounds down", -1.0: "head 2 of task 1 .* has no skill on"}[value]
    with pytest.raises(CheckpointError, match=expected):
        import_run(tmp_path / "x.ckpt", output=tmp_path / "run")
    assert said(tmp_path) == ["x.ckpt"]


def test_one_lora_and_one_ia3_for_all_tasks(bases, tmp_path):
    made = checkpoint(bases["t5"], heads=1)
    state = {key: tensor for key, tensor in made["state_dict"].items() if "logits" not in key}
    one = {key: tensor[0, 0] for key, tensor in state.items()}
    lora = {**made, "state_dict": one, "hyper_parameters": made["hyper_parameters"] | {"model_modifier": "lora"}}
    _, model = imported(lora, tmp_path)
    again = {**made, "state_dict": {k: t[None, None].expand(1, SKILLS, -1, -1) for k, t in one.items()}}
    batch = random_batch(model)
    with torch.no_grad():
        torch.testing.assert_close(model(**batch).logits, restated(again, IDS), rtol=1e-10, atol=1e-10)

    vectors = {
        f"model.{layer}.multi_lora_b": torch.full((32,), 1.5) for layer in LAYERS if layer.endswith((".q", ".v"))
    }
    ia3 = {**made, "state_dict": vectors, "hyper_parameters": made["hyper_parameters"] | {"model_modifier": "ia3"}}
    (tmp_path / "ia3").mkdir()
    _, model = imported(ia3, tmp_path / "ia3")
    scaled = tiny_model("t5").double()
    for layer in LAYERS:
        if layer.endswith((".q", ".v")):
            scaled.get_submodule(layer).weight.data *= 1.5
    with torch.no_grad():
        torch.testing.assert_close(model(**batch).logits, scaled(**batch).logits, rtol=1e-10, atol=1e-10)


def test_files_of_older_versions(bases, tmp_path):
    made = checkpoint(bases["t5"], router_granularity="coderwise")
    hyper = made["hyper_parameters"]
    hyper["poly_granularity"] = hyper.pop("router_granularity")
    hyper["poly_selector"], hyper["model_modifier"] = "poly", "poly_lora"
    _, model = imported(made, tmp_path, "global_step100.pt")
    hyper["router_granularity"] = "coderwise"
    hyper["model_modifier"] = "poly"
    with torch.no_grad():
        found = model(**random_batch(model), task_ids=NAMES).logits
    torch.testing.assert_close(found, restated(made, IDS), rtol=1e-10, atol=1e-10)


def test_names_of_tasks(bases, tmp_path):
    names = tmp_path / "names.txt"
    names.write_text("glue/rte\nsuper glue/copa \n\nxsum\n")
    torch.save(checkpoint(bases["t5"]), tmp_path / "x.ckpt")
    run = import_run(tmp_path / "x.ckpt", output=tmp_path / "run", task_names=str(names))
    assert run.info["tasks"] == read_adapter(run.adapter).tasks == ["glue/rte", "super glue/copa", "xsum"]
    names.write_text("a\nb\n")
    with pytest.raises(TaskError, match=r"2 task names are given, but .* has 3 tasks"):
        import_run(tmp_path / "x.ckpt", output=tmp_path / "other", task_names=str(names))
    names.write_text("a\nb\nb\n")
    with pytest.raises(TaskError, match="'b' is given twice"):
        import_run(tmp_path / "x.ckpt", output=tmp_path / "other", task_names=str(names))
    assert not (tmp_path / "other").exists()


class Touch:
    """Makes a file when it is unpickled, if that is allowed to happen."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return Path.touch, (self.path,)


def test_a_pickled_object_is_refused_and_not_made(bases, tmp_path):
    made = checkpoint(bases["t5"])
    torch.save({**made, "callbacks": Touch(tmp_path / "executed")}, tmp_path / "x.ckpt")
    with pytest.raises(CheckpointError) as refused:
        import_run(tmp_path / "x.ckpt", output=tmp_path / "run")
    assert said(tmp_path) == ["x.ckpt"]
    line = str(refused.value)
    assert "\n" not in line
    assert "besides tensors" in line
    assert "python -c" in line
    assert "x.safetensors" in line


def test_the_command_that_saves_it_as_safetensors(bases, tmp_path):
    made = checkpoint(bases["t5"])
    made["callbacks"] = {"when": Path("somewhere")}
    torch.save(made, tmp_path / "x.ckpt")
    with pytest.raises(CheckpointError, match="besides tensors"):
        import_run(tmp_path / "x.ckpt", output=tmp_path / "run")
    command = [sys.executable, "-c", SAVE_AS_SAFETENSORS, tmp_path / "x.ckpt", tmp_path / "x.safetensors"]
    subprocess.run(list(map(str, command)), check=True)
    run = import_run(tmp_path / "x.safetensors", output=tmp_path / "run", loading=WIDE)
    model, _ = load_checkpoint(run.adapter, loading=WIDE)
    with torch.no_grad():
        found = model(**random_batch(model), task_ids=NAMES).logits
    torch.testing.assert_close(found, restated(made, IDS), rtol=1e-10, atol=1e-10)
    assert run.info["steps"] == 1234


REFUSED = {
    "average correction": ({"poly_average_correction": True}, "poly_average_correction"),
    "shared skill": ({"poly_use_shared_skill": True}, "poly_use_shared_skill"),
    "l2 norm": ({"module_logits_l2_norm": True}, "module_logits_l2_norm"),
    "dropout of logits": ({"module_logits_dropout": 0.1}, "module_logits_dropout"),
    "warm-up": ({"lora_warmup": True}, "lora_warmup and was trained for 1234 steps"),
    "layer norms": ({"model_modifier": "ln"}, "model_modifier 'ln'"),
    "another selector": ({"router_selector": "cluster"}, "router_selector 'cluster'"),
    "another granularity": ({"router_granularity": "odd"}, "router_granularity 'odd'"),
    "another rank": ({"lora_rank": 3}, "hyper_parameters .* do not give it"),
    "other heads": ({"n_splits": 2}, "hyper_parameters .* do not give it"),
    "private heads": ({"router_selector": "private"}, "mttl mixes up the heads"),
}


@pytest.mark.parametrize(("change", "expected"), REFUSED.values(), ids=REFUSED)
def test_what_is_not_taken_is_refused_by_name(change, expected, bases, tmp_path):
    made = checkpoint(bases["t5"])
    made["hyper_parameters"] |= change
    torch.save(made, tmp_path / "x.ckpt")
    with pytest.raises(CheckpointError, match=expected):
        import_run(tmp_path / "x.ckpt", output=tmp_path / "run")
    assert said(tmp_path) == ["x.ckpt"]


def test_what_is_incomplete_or_more_than_an_adapter(bases, tmp_path):
    def refused(made: Any, expected: str) -> None:
        torch.save(made, tmp_path / "x.ckpt")
        with pytest.raises(CheckpointError, match=expected):
            import_run(tmp_path / "x.ckpt", output=tmp_path / "run")
        assert said(tmp_path) == ["x.ckpt"]

    made = checkpoint(bases["t5"])
    state = made["state_dict"]
    refused(
        {**made, "state_dict": state | {"model.shared.weight": torch.zeros(2)}},
        "'model.shared.weight', which is no part",
    )
    refused({**made, "state_dict": {}}, "holds no adapter")
    refused({**made, "hyper_parameters": {}}, "has no hyper_parameters")
    first = f"model.{LAYERS[0]}"
    refused(
        {**made, "state_dict": {k: t for k, t in state.items() if k != f"{first}.lora_b"}},
        "has lora_a, expected lora_a, lora_b",
    )
    lacking = {k: t for k, t in state.items() if k != f"{first}.selector.module_logits"}
    refused({**made, "state_dict": lacking}, "no selector for layer")
    refused({**made, "state_dict": {k: t for k, t in state.items() if "logits" not in k}}, "holds no routing")
    refused([1, 2], "holds a list, expected a dictionary")
    refused({"weights": torch.zeros(2)}, "is none of what is imported")


def test_a_truncated_file_and_no_file(bases, tmp_path):
    torch.save(checkpoint(bases["t5"]), tmp_path / "x.ckpt")
    whole = (tmp_path / "x.ckpt").read_bytes()
    for part in (whole[: len(whole) // 2], whole[:100], b"", b"some text\n" * 9):
        (tmp_path / "x.ckpt").write_bytes(part)
        with pytest.raises(CheckpointError, match=r"cannot read .*truncated"):
            import_run(tmp_path / "x.ckpt", output=tmp_path / "run")
    with pytest.raises(CheckpointError, match="there is no such file or folder"):
        import_run(tmp_path / "y.ckpt", output=tmp_path / "run")
    assert said(tmp_path) == ["x.ckpt"]


@pytest.mark.parametrize("archive", [True, False])
def test_a_file_that_is_truncated_anywhere(archive, tmp_path):
    made = {
        "state_dict": {f"model.{i}.lora_a": torch.zeros(2, 3) for i in range(3)},
        "hyper_parameters": {"n_skills": 2},
    }
    path = tmp_path / "x.ckpt"
    torch.save(made, path, _use_new_zipfile_serialization=archive)
    assert ForeignPath(path).held["hyper_parameters"] == {"n_skills": 2}
    whole = path.read_bytes()
    for end in range(0, len(whole) - 1, 29):
        path.write_bytes(whole[:end])
        # The name of a class that is allowed may be halved.
        with pytest.raises(CheckpointError, match=r"x\.ckpt(: it is truncated| holds \S+ besides)") as refused:
            ForeignPath(path).held  # noqa: B018
        assert "\n" not in str(refused.value)


def test_a_base_model_without_its_layers(bases, tmp_path):
    torch.save(checkpoint(bases["t5"]), tmp_path / "x.ckpt")
    with pytest.raises(CheckpointError, match=r"does not have as a Linear \(\d+ of its \d+ layers are missing\)"):
        import_run(tmp_path / "x.ckpt", base=bases["llama"], kind="causal", output=tmp_path / "run")
    assert said(tmp_path) == ["x.ckpt"]
