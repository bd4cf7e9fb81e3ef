"""Tiny random models, built from their configuration without any network: two blocks, 32 features, 64 tokens."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    RobertaConfig,
    RobertaForMaskedLM,
    T5Config,
    T5ForConditionalGeneration,
)

from mhr import AdapterBank

VOCABULARY = 64
WIDTH = 32
PAD, EOS = 0, 1

ENCODER_DECODERS = ("t5", "bart")
DECODERS = ("llama", "gpt2")
ENCODERS = ("bert", "bert-encoder")
MASKED = ("bert-masked", "roberta-masked")
GENERATORS = ENCODER_DECODERS + DECODERS
MODELS = GENERATORS + ENCODERS


def tiny_model(name: str, seed: int = 0, **config: Any) -> PreTrainedModel:
    """A tiny random model in float32, in evaluation mode, without dropout: the same for the same seed.

    `name` is one of MODELS: "t5" (gated, as the lm-adapt ones), "bart", "llama", "gpt2", "bert" (one-logit sequence
    classification), "bert-encoder", or of MASKED, which have a masked-LM head. `config` overrides settings of the architecture.
    """
    ids: dict[str, Any] = {"vocab_size": VOCABULARY, "pad_token_id": PAD, "eos_token_id": EOS}
    width: dict[str, Any] = {"hidden_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": 4}
    bert: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "pad_token_id": PAD,
        **width,
        "intermediate_size": 64,
        "max_position_embeddings": 64,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    }
    settings: dict[str, tuple[type[PreTrainedModel], type, dict[str, Any]]] = {
        "t5": (
            T5ForConditionalGeneration,
            T5Config,
            {
                **ids,
                "d_model": WIDTH,
                "d_kv": 8,
                "num_heads": 4,
                "d_ff": 64,
                "num_layers": 2,
                "dropout_rate": 0.0,
                "feed_forward_proj": "gated-gelu",
                "tie_word_embeddings": False,
                "decoder_start_token_id": PAD,
            },
        ),
        "bart": (
            BartForConditionalGeneration,
            BartConfig,
            {
                **ids,
                "d_model": WIDTH,
                "encoder_layers": 2,
                "decoder_layers": 2,
                "encoder_attention_heads": 4,
                "decoder_attention_heads": 4,
                "encoder_ffn_dim": 64,
                "decoder_ffn_dim": 64,
                "max_position_embeddings": 64,
                "dropout": 0.0,
                "bos_token_id": 2,
                "decoder_start_token_id": EOS,
                "forced_eos_token_id": None,
            },
        ),
        "llama": (
            LlamaForCausalLM,
            LlamaConfig,
            {**ids, **width, "bos_token_id": 2, "intermediate_size": 64, "num_key_value_heads": 2},
        ),
        "gpt2": (
            GPT2LMHeadModel,
            GPT2Config,
            {
                **ids,
                "bos_token_id": 2,
                "n_embd": WIDTH,
                "n_layer": 2,
                "n_head": 4,
                "n_positions": 64,
                "resid_pdrop": 0.0,
                "embd_pdrop": 0.0,
                "attn_pdrop": 0.0,
            },
        ),
        "bert": (BertForSequenceClassification, BertConfig, {**bert, "num_labels": 1}),
        "bert-encoder": (BertModel, BertConfig, bert),
        "bert-masked": (BertForMaskedLM, BertConfig, bert),
        "roberta-masked": (RobertaForMaskedLM, RobertaConfig, bert),
    }
    kind, config_class, defaults = settings[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return kind(config_class(**{**defaults, **config})).eval()


def random_batch(
    model: PreTrainedModel, batch: int = 4, length: int = 7, target: int = 5, seed: int = 0
) -> dict[str, Tensor]:
    """Inputs for `model(**batch)` with labels where the model takes them; the second row is padded by two.

    input_ids, attention_mask [batch, length]; labels [batch, target] of an encoder-decoder, [batch, length] of a
    decoder (-100 at padding), [batch] floats of the one-logit classifier. Decoders are padded on the left, as generation
    asks, other models on the right.
    """
    generator = torch.Generator().manual_seed(seed)

    def tokens(columns: int) -> Tensor:
        return torch.randint(3, VOCABULARY, (batch, columns), generator=generator)

    ids, mask = tokens(length), torch.ones(batch, length, dtype=torch.long)
    if batch > 1 and length > 2:
        padded = slice(0, 2) if isinstance(model, (LlamaForCausalLM, GPT2LMHeadModel)) else slice(-2, None)
        mask[1, padded] = 0
        ids[1, padded] = PAD
    inputs = {"input_ids": ids, "attention_mask": mask}
    if model.config.is_encoder_decoder:
        inputs["labels"] = tokens(target)
    elif isinstance(model, BertForSequenceClassification):
        inputs["labels"] = torch.rand(batch, generator=generator).to(model.dtype)
    elif not isinstance(model, BertModel):
        inputs["labels"] = ids.masked_fill(mask == 0, -100)
    return {name: tensor.to(model.device) for name, tensor in inputs.items()}


def randomise(bank: AdapterBank, seed: int = 0, size: float = 0.3) -> None:
    """Give the skills and the routing logits of a bank normal values, as after training: B starts at 0, Z next to it.

    The skills get the spread `size`, around 0 (LoRA) or 1 (IA3); the logits the spread 1. Skills that a task takes a sum of get less, so
    that the sum has that spread.
    """
    if not bank.config.routing.convex:
        size *= next(iter(bank.groups.values())).n_skills ** -0.5
    generator = torch.Generator().manual_seed(seed)

    def normal(p: Tensor) -> Tensor:
        return torch.randn(p.shape, generator=generator, dtype=torch.float64).to(p)

    with torch.no_grad():
        for p in bank.adapter_parameters():
            p.copy_(size * normal(p) + (1.0 if bank.config.adapter == "ia3" else 0.0))
        for p in bank.router_parameters():
            p.copy_(normal(p))
    if bank.contexts is not None:  # which were given none yet
        bank.contexts.look()
