"""Expert soups in the layout of microsoft/AdaMix: their formula is stated again and compared with the imported bank."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    PreTrainedModel,
    RobertaConfig,
    RobertaForSequenceClassification,
)

from mhr.adapters import load_checkpoint
from mhr.adapters.importing import import_run
from mhr.errors import CheckpointError
from mhr.evaluation.loading import load_model
from mhr.loading import Loading
from tests.adapters.importing.conftest import said
from tests.tokenizers import make_word_tokenizer

WIDE = Loading(dtype="float64")
WIDTH, RANK, COPIES = 32, 3, 4
KINDS = {
    "bert": (BertConfig, BertForSequenceClassification),
    "roberta": (RobertaConfig, RobertaForSequenceClassification),
}


def encoder(name: str, labels: int) -> PreTrainedModel:
    config, kind = KINDS[name]
    torch.manual_seed(0)
    settings = config(
        vocab_size=64, hidden_size=WIDTH, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48, num_labels=labels,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, pad_token_id=0, max_position_embeddings=40,
    )  # fmt: skip
    return kind(settings).double().eval()


@pytest.fixture
def base(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A folder with the base model, without a trained head."""
    folder = tmp_path / "base"
    encoder(request.param, 2).save_pretrained(folder)
    make_word_tokenizer().save_pretrained(folder)
    return str(folder)


def soup(name: str, labels: int, up: int = 1, down: int = COPIES) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(7)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64) * 0.4

    state = {}
    for block in range(2):
        soup_of = f"{name}.encoder.layer.{block}.output.ExpertSoup"
        for side, count, sizes in (("A", down, (RANK, WIDTH)), ("B", up, (WIDTH, RANK))):
            state[f"{soup_of}.MoA_{side}.expert_score_weight"] = torch.zeros(count)
            for s in range(count):
                state[f"{soup_of}.MoA_{side}.deepspeed_experts.{s}.weight"] = drawn(*sizes)
                state[f"{soup_of}.MoA_{side}.deepspeed_experts.{s}.bias"] = drawn(sizes[0])
    head = encoder(name, labels).classifier.state_dict()
    return state | {f"classifier.{key}": drawn(*tensor.shape) for key, tensor in head.items()}


def restated(name: str, state: dict[str, Tensor], labels: int, **batch: Tensor) -> Tensor:
    model: Any = encoder(name, labels)
    model.classifier.load_state_dict(
        {key.removeprefix("classifier."): tensor for key, tensor in state.items() if key.startswith("classifier.")}
    )

    def hook(block: int) -> Any:
        def mean(side: str, part: str) -> Tensor:
            found = [
                t
                for key, t in state.items()
                if f".{block}.output.ExpertSoup.MoA_{side}.deep" in key and key.endswith(part)
            ]
            return torch.stack(found).mean(0)

        def add(module: nn.Module, inputs: Any, h: Tensor) -> Tensor:
            hidden = nn.functional.gelu(nn.functional.linear(h, mean("A", "weight"), mean("A", "bias")))
            return h + nn.functional.linear(hidden, mean("B", "weight"), mean("B", "bias"))

        return add

    for block, layer in enumerate(getattr(model, name).encoder.layer):
        layer.output.dense.register_forward_hook(hook(block))
    with torch.no_grad():
        return model(**batch).logits


BATCH = {"input_ids": torch.randint(5, 60, (3, 9), generator=torch.Generator().manual_seed(1))}
LABELS = {"mnli": ["entailment", "neutral", "contradiction"], "rte": ["entailment", "not_entailment"], "stsb": []}


@pytest.mark.parametrize(("up", "down"), [(1, COPIES), (COPIES, COPIES), (COPIES, 1), (1, 1)])
@pytest.mark.parametrize(
    ("base", "task"), [("bert", "rte"), ("roberta", "mnli"), ("roberta", "stsb")], indirect=["base"]
)
def test_a_soup_is_the_average_of_its_copies(base, task, up, down, request, tmp_path):
    name = request.node.callspec.params["base"]
    labels = len(LABELS[task]) or 1
    state = soup(name, labels, up, down)
    torch.save(state, tmp_path / f"pytorch_model_{task}_expert_soup.bin")
    run = import_run(
        tmp_path / f"pytorch_model_{task}_expert_soup.bin", base=base, output=tmp_path / "run", loading=WIDE
    )
    model, _ = load_checkpoint(run.adapter, loading=WIDE)
    with torch.no_grad():
        found = model(**BATCH, task_ids=[task] * 3).logits
    torch.testing.assert_close(found, restated(name, state, labels, **BATCH), rtol=1e-10, atol=1e-10)
    config = model.mhr.config
    assert (config.n_skills, config.rank) == (max(up, down), RANK)
    assert config.share == {(1, COPIES): "up", (COPIES, 1): "down"}.get((up, down), "none")
    heads = load_model(run.path).heads
    assert heads is not None
    assert list(heads.heads[0].labels) == LABELS[task]
    assert (run.info["tasks"], list(heads.tasks)) == ([task], [task])
    assert run.config().adapter.n_skills == max(up, down)


@pytest.mark.parametrize("base", ["roberta"], indirect=True)
def test_a_soup_that_is_incomplete_or_more(base, tmp_path):
    state = soup("roberta", 3)
    first = "roberta.encoder.layer.0.output.ExpertSoup"

    def refused(state: dict[str, Any], expected: str, name: str = "pytorch_model_mnli_expert_soup.bin") -> None:
        torch.save(state, tmp_path / name)
        with pytest.raises(CheckpointError, match=expected):
            import_run(tmp_path / name, base=base, output=tmp_path / "run")
        (tmp_path / name).unlink()
        assert said(tmp_path) == ["base"]

    refused({k: t for k, t in state.items() if "MoA_B" not in k}, "lacks copies of projection B")
    refused({k: t for k, t in state.items() if "experts.2.bias" not in k}, "lacks copies of projection A")
    refused({k: t for k, t in state.items() if "classifier" not in k}, "no classification head")
    refused(
        state | {"roberta.pooler.dense.weight": torch.zeros(2)}, r"'roberta\.pooler\.dense\.weight', which is no part"
    )
    refused(state | {f"{first}.MoA_A.expert_score_weight": torch.arange(4.0)}, "weighs its copies")
    refused(state | {f"{first}.MoA_A.deepspeed_experts.1.weight": torch.zeros(2, WIDTH)}, "copies of several sizes")
    refused(state | {f"{first}.MoA_A.deepspeed_experts.4.weight": torch.zeros(RANK, WIDTH)}, "lacks copies")
    refused(state, "not called after a task of GLUE", "soup.bin")
    refused(soup("roberta", 2), "has a head of 2 outputs, but mnli has 3")


@pytest.mark.parametrize("base", ["roberta"], indirect=True)
def test_a_soup_on_another_base(base, tmp_path):
    torch.save(soup("bert", 2), tmp_path / "pytorch_model_rte_expert_soup.bin")
    with pytest.raises(CheckpointError, match="does not have as a Linear"):
        import_run(tmp_path / "pytorch_model_rte_expert_soup.bin", base=base, output=tmp_path / "run")
