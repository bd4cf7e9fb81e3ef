"""Peak memory of merging adapters against what they take up on disk: `python -m mhr_benchmarks.merge_memory`."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from mhr.adapters.tensor_file import TensorWriter

WIDTH, RANK = 4096, 64

# Resident memory before the merge and its peak during it, in a process of its own. Writing 5 forgets the peak of the imports;
# getrusage would not do, as its peak is also that of the process that started this one.
PROGRAM = """
import json, re, sys, time
from mhr.merging import merge

def resident(which):
    return int(re.search(which + r":\\s+(\\d+) kB", open("/proc/self/status").read())[1]) * 1024

*inputs, output, method, space = sys.argv[1:]
with open("/proc/self/clear_refs", "w") as file:
    file.write("5")
before, start = resident("VmRSS"), time.perf_counter()
merge(inputs, method=method, space=space, to="peft-lora", output=output)
print(json.dumps({"before": before, "after": resident("VmHWM"), "seconds": time.perf_counter() - start}))
"""


def make_inputs(folder: Path, count: int, megabytes: int, width: int = WIDTH, rank: int = RANK) -> list[Path]:
    """PEFT folders of random LoRAs of about `megabytes` each, written layer by layer."""
    layers = max(1, round((megabytes << 20) / (2 * width * rank * 4)))
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": rank, "target_modules": ["q"]}
    paths = []
    for i in range(count):
        path = folder / f"input-{i}"
        path.mkdir()
        generator = torch.Generator().manual_seed(i)
        with TensorWriter(path / "adapter_model.safetensors") as file:
            for layer in range(layers):
                name = f"base_model.model.layers.{layer}.q"
                file.add(f"{name}.lora_A.weight", torch.randn(rank, width, generator=generator))
                file.add(f"{name}.lora_B.weight", torch.randn(width, rank, generator=generator))
        (path / "adapter_config.json").write_text(json.dumps(config))
        paths.append(path)
    return paths


def measure(inputs: list[Path], output: Path, method: str, space: str) -> dict[str, Any]:
    """Bytes that merging adds to a process that has imported everything, at its peak, and what the inputs take up. Linux only."""
    command = [sys.executable, "-c", PROGRAM, *map(str, inputs), str(output), method, space]
    measured = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    sizes = [(path / "adapter_model.safetensors").stat().st_size for path in inputs]
    return {
        "method": method,
        "space": space,
        "inputs": sum(sizes),
        "largest": max(sizes),
        "before": measured["before"],
        "added": measured["after"] - measured["before"],
        "seconds": measured["seconds"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=8)
    parser.add_argument("--megabytes", type=int, default=200, help="of each input")
    parser.add_argument("--method", default="uniform")
    parser.add_argument("--space", default="factor")
    parser.add_argument("--folder", type=Path, help="where the inputs are made; a temporary folder by default")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        folder = Path(name)
        inputs = make_inputs(folder, arguments.count, arguments.megabytes)
        found = measure(inputs, folder / "out", arguments.method, arguments.space)
        inputs_mb, before, added = (found[key] / 1e6 for key in ("inputs", "before", "added"))
        print(f"{arguments.method} in {arguments.space} space, {arguments.count} inputs, {inputs_mb:.0f} MB in all")
        print(
            f"the process before: {before:.0f} MB; added at the peak: {added:.0f} MB ({100 * added / inputs_mb:.1f}% of the inputs)"
        )
        print(f"{found['seconds']:.1f} s")


if __name__ == "__main__":
    main()
