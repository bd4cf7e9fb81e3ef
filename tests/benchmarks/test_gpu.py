"""The GPU benchmark, tried on the CPU: what it counts, what it writes and when, and that nothing that fails takes the rest along."""

from __future__ import annotations

import ctypes
import json
import sys
import types
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from mhr_benchmarks import gpu, gpu_adapter, gpu_layer, gpu_steps, gpu_timer
from mhr_benchmarks.gpu_tables import _targets, tables
from mhr_benchmarks.gpu_timer import Timer, kernel_name
from mhr_benchmarks.train import AGREEMENT

SHAPE = (16, 32, 4, 2)


@pytest.fixture
def timer() -> Timer:
    return Timer("cpu", 1)


def record(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "gpu.json").read_text())


def test_the_floor_counts_factors_their_gradients_and_what_forward_keeps() -> None:
    n, d, rank, tasks = SHAPE
    activations, factors, kept = n * d * 2, 2 * tasks * d * rank * 2, n * rank * 4
    moved = gpu_adapter.Adapter("cpu", *SHAPE).bytes_moved()
    assert moved["forward"] == 3 * activations + factors + kept
    assert moved["backward"] == 4 * activations + factors + kept + 2 * factors  # gradients in float32


def test_rows_of_short_segments_take_turns() -> None:
    case = gpu_adapter.Adapter("cpu", 24, 32, 4, 2, 6)
    assert case.rows.tolist() == [0, 1, 0, 1, 0, 1]
    assert case.bytes_moved()["forward"] == 3 * 24 * 32 * 2 + 2 * 2 * 32 * 4 * 2 + 24 * 4 * 4
    assert max(case.errors().values()) < gpu_adapter.AGREEMENT


def test_layers_in_one_call_count_x_once(timer: Timer) -> None:
    n, d, rank, tasks = SHAPE
    activation, factors, kept = n * d * 2, 3 * 2 * tasks * d * rank * 2, n * 3 * rank * 4
    moved = gpu_layer.Together("cpu", *SHAPE).bytes_moved()
    assert moved["forward"] == 7 * activation + factors + kept
    assert moved["train"] - moved["forward"] == 6 * activation + factors + kept + 2 * factors
    row = gpu_layer.together(timer, 10.0, *SHAPE)
    assert row["agrees"]
    assert row["errors"]["apart"] <= gpu_adapter.AGREEMENT
    record = {"steps": [], "shapes": [], "kernels": [], "ops": [], "failed": [], "together": [row]}
    (table,) = tables(record)
    assert [len(cells) for cells in table["rows"]] == [len(table["columns"])] * 2


def test_where_ours_is_off_the_times_stand_beside_it(timer: Timer, monkeypatch: pytest.MonkeyPatch) -> None:
    forward = gpu_adapter.Adapter.forward

    def off(case: gpu_adapter.Adapter, y: torch.Tensor) -> torch.Tensor:
        z = forward(case, y)
        y.mul_(1.1)
        return z

    assert gpu_adapter.adapter(timer, 10.0, *SHAPE)["agrees"]
    monkeypatch.setattr(gpu_adapter.Adapter, "forward", off)
    row = gpu_adapter.adapter(timer, 10.0, *SHAPE)
    assert not row["agrees"]
    assert row["forward"]["us"] > 0
    layer = {"forward": {}, "train": {}, "errors": {}, "agrees": True}
    made = tables({"steps": [], "shapes": [{"adapter": row, "layer": layer}], "kernels": [], "ops": [], "failed": []})
    (cells,) = made[0]["rows"]
    assert cells[-1] == "OFF"


def test_a_peer_that_fails_leaves_the_others_their_times(timer: Timer, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(case: gpu_layer.Layer) -> Any:
        raise RuntimeError("no kernel image\nis available")

    monkeypatch.setattr(gpu_layer.Layer, "peft_poly", refuse)
    row = gpu_layer.layer(timer, *SHAPE)
    assert row["failed"] == {"peft_poly": "RuntimeError: no kernel image"}
    assert set(row["train"]) == set(row["forward"]) == {"linear", "ours", "peft_lora", "eager", "compile"}
    assert row["errors"]["ours"] <= gpu_adapter.AGREEMENT


def test_what_cannot_be_captured_is_timed_without_a_graph_and_says_why(
    timer: Timer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> Any:
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(timer, "captured", refuse)
    case = gpu_adapter.Adapter("cpu", *SHAPE)
    found = gpu_timer.Compared(timer, {"ours": lambda: case.backward(case.dx)}).row("ours")
    kernels = timer.kernels(lambda: case.backward(case.dx))
    assert set(kernels) == {"mhr::routed_adapter_backward_dy", "mhr::routed_adapter_backward_x"}
    assert all(kernel["us"] > 0 and kernel["launches"] == 1 for kernel in kernels.values())
    assert found["us"] > 0
    assert found["not_captured"] == "RuntimeError: operation not permitted when stream is capturing"


def test_a_clock_that_drifts_is_in_no_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    """Peers take turns, every other round backwards, and what is told is the median of the differences within a round."""
    us = {"linear": 100.0, "ours": 101.0, "theirs": 110.0}
    now, slowness, calls = 0.0, 1.0, []

    def run(name: str) -> None:
        nonlocal now, slowness
        slowness *= 1.001  # of ten calls in a row: as much as ours is over the linear
        now += us[name] * slowness / 1e6
        calls.append(name)

    monkeypatch.setattr(gpu_timer.time, "perf_counter", lambda: now)
    compared = gpu_timer.Compared(Timer("cpu", 10), {name: partial(run, name) for name in us})
    assert calls[-6:] == ["linear", "ours", "theirs", "theirs", "ours", "linear"]
    assert compared.over("ours", "linear")["over_us"] == pytest.approx(1, rel=0.2)
    assert compared.over("theirs", "linear")["over_us"] == pytest.approx(10, rel=0.2)


def test_what_has_no_graph_is_compared_by_the_kernels_of_both(timer: Timer, monkeypatch: pytest.MonkeyPatch) -> None:
    def captured(function: Any) -> Any:
        if function() == "theirs":
            raise RuntimeError("reads back")
        return function

    us = {"linear": 100.0, "ours": 110.0, "theirs": 170.0}
    monkeypatch.setattr(timer, "captured", captured)
    monkeypatch.setattr(timer, "kernels", lambda function: {"one": {"us": us[function()] / 2, "launches": 2}})
    monkeypatch.setattr(
        timer, "device_rounds", lambda of: {name: [us[name] / 1e5] for name in of}
    )  # gaps: ten times as long
    found = gpu_timer.Compared(timer, {name: lambda name=name: name for name in us})
    assert found.over("theirs", "linear")["over_us"] == pytest.approx(70)
    assert found.over("ours", "linear")["over_us"] == pytest.approx(100)
    assert found.row("theirs")["us"] == pytest.approx(170)
    assert found.row("linear")["us"] == pytest.approx(1000)
    assert found.row("theirs")["not_captured"] == "RuntimeError: reads back"


def test_all_that_is_compared_takes_turns(timer: Timer, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[set[str]] = []
    rounds = Timer.device_rounds

    def noted(timer: Timer, functions: Any) -> Any:
        seen.append(set(functions))
        return rounds(timer, functions)

    monkeypatch.setattr(Timer, "device_rounds", noted)
    gpu_layer.layer(timer, *SHAPE)
    layers = {"linear", "ours", "peft_poly", "peft_lora", "eager", "compile"}
    assert seen == [layers, layers]
    seen.clear()
    gpu_layer.together(timer, 10.0, *SHAPE)
    assert seen == [{"frozen", "together", "apart"}] * 2
    seen.clear()
    gpu_adapter.adapter(timer, 10.0, *SHAPE)
    assert seen == [{"ours", "cublas"}] * 2
    seen.clear()
    gpu_layer.averaging(timer, 10.0, 3, 100)
    assert seen == [{"ours", "eager"}]


def test_vllm_is_called_with_a_token_map_and_transposed_factors(timer: Timer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against stand-ins of its interface, which compute what its kernels do."""

    class Meta:
        @staticmethod
        def make(max_loras: int, max_num_tokens: int, device: torch.device) -> Meta:
            return Meta()

        def prepare_tensors(self, mapping: torch.Tensor) -> None:
            self.mapping = mapping

        def meta_args(self, tokens: int, specialize_active_lora: bool) -> tuple[torch.Tensor, ...]:
            return (self.mapping[:tokens], *[torch.zeros(1)] * 6)

    def shrink(x: torch.Tensor, a: list[torch.Tensor], out: torch.Tensor, *rest: Any) -> None:
        mapping, scaling = rest[0], rest[-1]
        assert len(rest) == 8
        out[0] = scaling * torch.einsum("ni,nri->nr", x.float(), a[0][mapping].float())

    def expand(
        z: torch.Tensor, b: list[torch.Tensor], y: torch.Tensor, *rest: Any, offset_start: int, add_inputs: bool
    ):  # type: ignore[no-untyped-def]
        assert len(rest) == 7
        assert add_inputs
        y += torch.einsum("nr,nor->no", z[0], b[0][rest[0]].float()).to(y.dtype)

    ops = types.ModuleType("vllm.lora.ops.triton_ops")
    ops.LoRAKernelMeta, ops.lora_shrink, ops.lora_expand = Meta, shrink, expand  # type: ignore[attr-defined]
    for name in ("vllm", "vllm.lora", "vllm.lora.ops"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, ops.__name__, ops)
    monkeypatch.setattr(gpu_adapter.importlib.util, "find_spec", lambda name: ops)
    found = gpu_adapter.adapter(timer, 10.0, *SHAPE)["forward"]["vllm"]
    assert found["us"] > 0
    assert found["error"] < gpu_adapter.AGREEMENT


def test_lorafusion_is_given_a_row_for_each_block_of_tokens(timer: Timer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against a stand-in of its kernel, which reads what the pointers point to."""
    block = 4

    def read(pointer: torch.Tensor, *shape: int) -> torch.Tensor:
        n_bytes = 2 * torch.Size(shape).numel()
        raw = (ctypes.c_char * n_bytes).from_address(int(pointer))
        return torch.frombuffer(bytearray(raw), dtype=torch.bfloat16).view(shape).float()

    def kernel(x: torch.Tensor, w: torch.Tensor, **given: Any) -> torch.Tensor:
        out = torch.nn.functional.linear(x, w, given["bias"])
        table = given["block_to_lookup_table"]
        assert len(table) == len(given["s_ptrs_list"]) == len(given["b_ptrs_list"]) == len(x) // block
        for i, (rank, valid, first) in enumerate(table.tolist()):
            assert given["total_r"] == rank <= given["max_r"]
            begin = (i - first) * block
            z = read(given["s_ptrs_list"][i], begin + valid, rank)[begin:]
            b = read(given["b_ptrs_list"][i], w.shape[0], rank)
            out[i * block : i * block + valid] += (given["block_to_alpha"][i] * z @ b.T).to(out.dtype)
        return out

    config = types.ModuleType("lorafusion.ops.triton_ops.config")
    config.get_lora_kernel_config = lambda name: types.SimpleNamespace(block_size_m=block)  # type: ignore[attr-defined]
    fused = types.ModuleType("lorafusion.ops.triton_ops.fused_multi_lora_xw_sb")
    fused.fused_multi_lora_xw_sb = kernel  # type: ignore[attr-defined]
    for name in ("lorafusion", "lorafusion.ops", "lorafusion.ops.triton_ops"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    for module in (config, fused):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    case = gpu_layer.Layer("cpu", *SHAPE)
    forward, leaves = case.lorafusion()
    assert leaves == []
    with torch.no_grad():
        assert case.error(forward) < gpu_adapter.AGREEMENT
    monkeypatch.setattr(config, "get_lora_kernel_config", lambda name: types.SimpleNamespace(block_size_m=128))
    with pytest.raises(ValueError, match="segments of 8 tokens are no multiple of its blocks of 128"):
        case.lorafusion()


def test_kernels_are_named_without_their_arguments() -> None:
    name = "void mhr::cuda::shrink_kernel<__nv_bfloat16, 16, (mhr::cuda::Load)1>(mhr::cuda::ShrinkArgs<__nv_bfloat16>)"
    assert kernel_name(name) == "shrink_kernel<bf16, 16, (Load)1>"
    assert kernel_name("Memset (Device)") == "Memset "


def test_parts_of_one_run_add_to_its_files_and_another_run_begins_new_ones(tmp_path: Path) -> None:
    for run, rows in (("one", [1]), ("one", [1, 2]), ("two", [2])):
        results = gpu.Results(tmp_path, run, {"cpu": "any"})
        results.attempt("a row", lambda value=rows[-1]: {"what": value, "errors": {"ours": 0.0}}, "ops")
        assert [row["what"] for row in record(tmp_path)["ops"]] == rows
    results.attempt("another", lambda: {}[0], "ops")
    assert record(tmp_path)["failed"] == [{"what": "another", "error": "KeyError: 0"}]
    assert len(record(tmp_path)["ops"]) == 1


def test_the_first_shape_is_that_of_the_targets_and_time_cuts_off_the_rest(
    tmp_path: Path, timer: Timer, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = gpu.grid((gpu.TOKENS, gpu.WIDTHS, gpu.RANKS, gpu.TASKS))[0]
    assert first == gpu.COMPILED == (8192, 4096, 16, 8)
    seen: list[tuple[int, ...]] = []
    monkeypatch.setattr(gpu, "one_shape", lambda timer, bandwidth, *shape: seen.append(shape) or {})
    monkeypatch.setattr(gpu, "tables", lambda record: [])
    results = gpu.Results(tmp_path, "one", {})
    gpu.measure_shapes(results, timer, 10.0, quick=False, end=0.0)
    assert len(seen) == 1
    assert len(record(tmp_path)["together"]) == len(record(tmp_path)["short"]) == 1
    assert [row["what"].partition(",")[0] for row in record(tmp_path)["ops"]] == ["mix", "weighted_average"]


def test_the_agreement_of_a_step_fits_its_depth() -> None:
    assert gpu_steps.agreement(gpu_steps.T5_LARGE) == 6 * AGREEMENT
    assert gpu_steps.agreement(next(iter(gpu_steps.TINY.values()))) == AGREEMENT


def test_a_step_that_disagrees_keeps_its_times(timer: Timer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_steps, "agreement", lambda setting: 0.0)
    *_, row = gpu_steps.steps(timer, "Llama, tiny", gpu_steps.TINY["Llama, tiny"])
    assert not row["failed"]
    assert not row["agrees"]
    assert max(row["errors"].values()) < 1e-5
    peers = {"frozen", "ours", "peft_poly", "peft_lora", "eager", "ours_with_noise"}
    assert set(row["ms"]) == peers
    assert all(set(ms) == {"called", "graph"} for peer, ms in row["ms"].items() if peer != "peft_poly")
    made = tables({"steps": [row], "shapes": [], "kernels": [], "ops": [], "failed": []})
    assert [cells[-1] for cells in made[1]["rows"] if cells[1] == "ours"] == ["OFF"]


def test_targets_are_judged_by_the_worst_case() -> None:
    def shape(n: int, floor: float, poly: float) -> dict[str, Any]:
        adapter = {"N": n, "d": 64, "r": 4, "T": 8, "forward": {"of_floor": floor}, "backward": {"of_floor": 1.1}}
        return {"adapter": adapter, "layer": {"forward": {"ours": {"of_peft_poly": poly}}, "train": {}}}

    steps = [{"what": "T5", "ms": {"ours": {"called": 9.0, "graph": 4.0}, "peft_lora": {"called": 10.0, "graph": 3.2}}}]
    found = _targets({"shapes": [shape(2048, 9.0, 0.2), shape(8192, 1.3, 0.3)], "steps": steps})
    assert [row[1:] for row in found["rows"]] == [
        [1.15, "1 of 2", 1.1, 1.3, "forward at 8192, 64, 4, 8"],
        [0.25, "1 of 2", 0.2, 0.3, "forward at 8192, 64, 4, 8"],
        [1.0, "1 of 2", 0.9, 1.25, "T5, graph"],
    ]


def test_without_cuda_kernels_nothing_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gpu, "native_ops", lambda: {"routed_adapter_forward": ("cpu",)})
    assert gpu.main(["--output", str(tmp_path / "out")]) == 2
    assert "no native CUDA kernel" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
