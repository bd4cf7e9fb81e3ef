"""A training step of a T5 or a Llama: ours against PEFT's Poly, PEFT's LoRA, eager torch and the frozen model.

A step is the routing of the batch, forward, backward to the embeddings, and AdamW over what trains; the frozen model's is
forward and backward alone. PEFT's Poly draws relaxed Bernoulli noise for every example in training and cannot do without it;
ours is timed both without noise (the T0 recipe) and with the same noise.
"""

from __future__ import annotations

import copy
import random
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

import mhr

from .measure import interleave, machine, median_difference, quiet_machine, require_peft, rms_error

if TYPE_CHECKING:  # what measures kernels does without the package
    from transformers import PreTrainedModel

WIDTHS = (128, 256, 512)
RANK, HEADS, SKILLS, TASKS = 4, 8, 8, 64
BATCH, INPUT, TARGET, DISTINCT, VOCABULARY = 8, 128, 32, 4, 1024
TARGETS = {"t5": ["q", "k", "v", "o"], "llama": ["q_proj", "k_proj", "v_proj", "o_proj"]}
# Largest RMS error against float64 with which ours is timed: loss, logits and every gradient, in float32.
AGREEMENT = 1e-4

Step = Callable[[], Any]


@dataclass(frozen=True)
class Setting:
    """A T5 of `blocks` and `blocks` blocks, or a Llama of `blocks`, and its batch."""

    width: int
    blocks: int
    attention_heads: int
    vocabulary: int
    batch: int
    input: int
    target: int
    device: str = "cpu"
    architecture: str = "t5"


def small(width: int) -> Setting:
    """What a core trains in a second."""
    return Setting(width, 4, 8, VOCABULARY, BATCH, INPUT, TARGET)


def backbone(setting: Setting) -> PreTrainedModel:
    """A random model whose backward pass goes down to the embeddings, as below an adapter it must."""
    from transformers import LlamaConfig, LlamaForCausalLM, T5Config, T5ForConditionalGeneration

    torch.manual_seed(0)
    width, heads = setting.width, setting.attention_heads
    with torch.device(setting.device):
        if setting.architecture == "llama":
            model = LlamaForCausalLM(
                LlamaConfig(
                    vocab_size=setting.vocabulary,
                    hidden_size=width,
                    intermediate_size=4 * width,
                    num_hidden_layers=setting.blocks,
                    num_attention_heads=heads,
                    num_key_value_heads=max(heads // 4, 1),
                )
            )
        else:
            model = T5ForConditionalGeneration(
                T5Config(
                    vocab_size=setting.vocabulary,
                    d_model=width,
                    d_kv=width // heads,
                    num_heads=heads,
                    d_ff=4 * width,
                    num_layers=setting.blocks,
                    dropout_rate=0.0,
                    decoder_start_token_id=0,
                )
            )
    model.requires_grad_(False)
    model.enable_input_require_grads()
    return model


class EagerLinear(nn.Module):
    """The formula of RoutedLinear in plain torch operations, with its parameters; routing is set before each call."""

    routing: tuple[Tensor, Tensor]
    """Distinct tasks of the batch, and the position of each example's among them."""

    def __init__(self, base: nn.Linear, bank_a: Tensor, bank_b: Tensor, logits: Tensor):
        super().__init__()
        self.base = base
        self.bank_a, self.bank_b, self.logits = (nn.Parameter(t.clone()) for t in (bank_a, bank_b, logits))

    def forward(self, x: Tensor) -> Tensor:
        tasks, rows = self.routing
        p = torch.sigmoid(self.logits[tasks])
        w = p / (p.sum(-1, keepdim=True) + 1e-12)
        A = torch.einsum("uhs,hsdr->uhdr", w, self.bank_a).reshape(len(tasks), -1, RANK)
        B = torch.einsum("uhs,hsrd->urhd", w, self.bank_b).reshape(len(tasks), RANK, -1)
        return self.base(x) + torch.bmm(torch.bmm(x, A[rows]), B[rows]) / RANK


class Peers:
    """The same T5 in every implementation; those that route hold the same banks and logits."""

    def __init__(self, setting: Setting):
        from peft import LoraConfig, PolyConfig, get_peft_model

        base = backbone(setting)
        targets = TARGETS[setting.architecture]
        self.device = setting.device
        self.names = [f"task{i}" for i in range(TASKS)]
        batch, vocabulary = setting.batch, setting.vocabulary
        inputs = {
            "input_ids": torch.randint(3, vocabulary, (batch, setting.input)),
            "attention_mask": torch.ones(batch, setting.input, dtype=torch.long),
            "labels": torch.randint(3, vocabulary, (batch, setting.target)),
        }
        self.inputs = {name: tensor.to(setting.device) for name, tensor in inputs.items()}
        draw = random.Random(0)
        self.ids = [draw.choice(range(0, TASKS, TASKS // DISTINCT)) for _ in range(batch)]
        self.ids[:DISTINCT] = range(0, TASKS, TASKS // DISTINCT)

        def routed(noise: str) -> PreTrainedModel:
            model = copy.deepcopy(base)
            config = mhr.AdapterConfig(
                n_heads=HEADS, n_skills=SKILLS, rank=RANK, targets=targets, noise=noise, init="peft"
            )
            bank = mhr.attach(model, config, self.names)
            with torch.no_grad():
                for layer in bank.layers.values():
                    nn.init.normal_(layer.bank_b, std=setting.width**-0.5)
                    nn.init.normal_(layer.router.logits)
            return model

        self.models: dict[str, nn.Module] = {"frozen": copy.deepcopy(base), "ours": routed("off")}
        self.models["ours_with_noise"] = routed("per_example")
        self.models["peft_lora"] = get_peft_model(
            copy.deepcopy(base), LoraConfig(r=RANK, lora_alpha=1, target_modules=targets, init_lora_weights=False)
        )
        poly = PolyConfig(r=RANK, n_tasks=TASKS, n_skills=SKILLS, n_splits=HEADS, target_modules=targets)
        self.models["peft_poly"] = get_peft_model(copy.deepcopy(base), poly).base_model
        self.models["eager"] = copy.deepcopy(base)
        self._share_weights()
        for model in self.models.values():
            model.to(setting.device).train()

    def _share_weights(self) -> None:
        """Copy our banks and logits into PEFT's Poly and the eager model."""
        with torch.no_grad():
            for name, layer in self.models["ours"].mhr.layers.items():
                peft = self.models["peft_poly"].get_submodule(f"model.{name}")
                peft.poly_lora_A["default"].copy_(layer.bank_a)
                peft.poly_lora_B["default"].copy_(layer.bank_b)
                peft.poly_router["default"].module_logits.copy_(layer.router.logits.flatten(1))
                eager = self.models["eager"]
                parent, _, child = name.rpartition(".")
                linear = EagerLinear(eager.get_submodule(name), layer.bank_a, layer.bank_b, layer.router.logits)
                setattr(eager.get_submodule(parent), child, linear)

    def routing(self, name: str, model: nn.Module) -> Any:
        """What the implementation makes of the tasks of a batch, before its forward pass."""
        if name == "peft_poly":
            return torch.tensor(self.ids, device=self.device)
        if name.startswith("ours"):
            return model.mhr.for_batch([self.names[i] for i in self.ids])
        if name == "eager":
            tasks, rows = torch.unique(torch.tensor(self.ids), return_inverse=True)
            return tasks.to(self.device), rows.to(self.device)
        return None

    def forward(self, name: str, model: nn.Module | None = None, routing: Any = None) -> Any:
        """One forward pass, with all that an implementation does for the routing of a batch, unless that is given."""
        model = model or self.models[name]
        if routing is None:
            routing = self.routing(name, model)
        if name == "eager":
            EagerLinear.routing = routing
        elif routing is not None:
            return model(**self.inputs, task_ids=routing)
        return model(**self.inputs)

    def trained(self, name: str) -> list[nn.Parameter]:
        return [p for p in self.models[name].parameters() if p.requires_grad]

    def step(self, name: str, prepared: bool = False) -> Step:
        """One whole training step; prepared: all but making the routing of the batch on the host, as a graph can hold it."""
        trained = self.trained(name)
        on_gpu = self.device != "cpu"
        optimizer = torch.optim.AdamW(trained, lr=1e-6, fused=True, capturable=on_gpu) if trained else None
        routing = self.routing(name, self.models[name]) if prepared else None

        def run() -> None:
            self.forward(name, routing=routing).loss.backward()
            if optimizer is not None:
                optimizer.step()
                optimizer.zero_grad()

        return run

    def _values(self, name: str, model: nn.Module) -> dict[str, list[Tensor]]:
        """Loss, logits and the gradients of A, B and Z, layer by layer."""
        model.eval()
        out = self.forward(name, model)
        found: dict[str, list[Tensor]] = {"loss": [out.loss.detach()], "logits": [out.logits.detach()]}
        trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
        for (n, p), gradient in zip(
            trained.items(), torch.autograd.grad(out.loss, list(trained.values())), strict=True
        ):
            kind = "A" if "bank_a" in n or "lora_A" in n else "B" if "bank_b" in n or "lora_B" in n else "Z"
            found.setdefault(kind, []).append(gradient.reshape(p.shape[0], -1))
        model.train()
        return found

    def errors(self) -> dict[str, dict[str, float]]:
        """Largest RMS errors of each implementation against eager in float64: loss, logits, gradients of A, B, Z."""
        truth = self._values("eager", copy.deepcopy(self.models["eager"]).double())
        errors = {}
        for name in ("ours", "peft_poly", "eager"):
            found = self._values(name, self.models[name])
            errors[name] = {
                what: max(rms_error(a, b) for a, b in zip(found[what], values, strict=True))
                for what, values in truth.items()
            }
        return errors


def measure(width: int, budget: float, least: int, limit: float = float("inf")) -> dict[str, Any]:
    """Errors and times of one width; no time where ours is off."""
    peers = Peers(small(width))
    errors = peers.errors()
    result: dict[str, Any] = {
        "width": width,
        "layers": len(peers.models["ours"].mhr.layers),
        "errors": errors,
        "agrees": max(errors["ours"].values()) <= AGREEMENT,
        "trained": {name: sum(p.numel() for p in peers.trained(name)) for name in peers.models},
    }
    if not result["agrees"]:
        return result
    times = interleave({name: peers.step(name) for name in peers.models}, budget, least=least, limit=limit)
    frozen = statistics.median(times["frozen"])
    over = {name: median_difference(times[name], times["frozen"]) for name in times if name != "frozen"}
    result["repetitions"] = len(times["frozen"])
    result["ms"] = {name: statistics.median(values) * 1e3 for name, values in times.items()}
    result["overhead_ms"] = {name: value * 1e3 for name, value in over.items()}
    result["of_frozen"] = {name: 1 + value / frozen for name, value in over.items()}
    result["of_lora"] = over["ours"] / over["peft_lora"]
    result["of_poly"] = over["ours"] / over["peft_poly"]
    return result


def run(quick: bool = False, widths: Sequence[int] | None = None) -> dict[str, Any]:
    """Measures a step at each width; returns the machine, every result, and tables for people. Raises ConfigError without PEFT."""
    require_peft()
    budget, least, limit = (10.0, 7, 40.0) if quick else (60.0, 30, float("inf"))
    chosen = widths or (WIDTHS[:2] if quick else WIDTHS)
    with quiet_machine():
        results = [measure(width, budget, least, limit) for width in chosen]
        host = machine()
    return {
        "benchmark": "train",
        "quick": quick,
        "machine": host,
        "results": results,
        "tables": [_table(results), _errors(results)],
    }


def _table(results: list[dict[str, Any]]) -> dict[str, Any]:
    peers = {
        "ours": "MHR",
        "ours_with_noise": "MHR, noise",
        "peft_lora": "PEFT LoRA",
        "eager": "eager MHR",
        "peft_poly": "PEFT Poly",
    }
    rows = []
    for r in results:
        if not r["agrees"]:
            rows.append([r["width"], *["ours is off"] * (len(peers) + 3)])
            continue
        rows.append([r["width"], r["ms"]["frozen"], *(r["of_frozen"][p] for p in peers), r["of_lora"], r["of_poly"]])
    settled = [r for r in results if r["agrees"]]
    return {
        "title": "A training step of T5, as a multiple of the frozen model's",
        "columns": ["d", "frozen, ms", *peers.values(), "overhead of LoRA's", "overhead of Poly's"],
        "rows": rows,
        "note": (
            f"{BATCH} examples of {DISTINCT} tasks, {INPUT} tokens in and {TARGET} out, rank {RANK}, {HEADS} heads, "
            f"{SKILLS} skills, {TASKS} tasks, q, k, v and o of 4 + 4 blocks, float32, one thread. "
            f"Repetitions: {min((r['repetitions'] for r in settled), default=0)} or more."
        ),
    }


def _errors(results: list[dict[str, Any]]) -> dict[str, Any]:
    names = {"ours": "MHR", "eager": "eager MHR", "peft_poly": "PEFT Poly"}
    whats = {"loss": "loss", "logits": "logits", "A": "dA", "B": "dB", "Z": "dZ"}
    return {
        "title": "Largest RMS error against float64, all widths",
        "columns": ["", *whats.values()],
        "rows": [
            [title, *(f"{max(r['errors'][name][what] for r in results):.1e}" for what in whats)]
            for name, title in names.items()
        ],
        "note": "Times are withheld where ours is off; PEFT and eager torch are timed whatever their errors.",
    }
