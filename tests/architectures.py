"""Tiny random models of every text architecture that the installed transformers library has."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers import CONFIG_MAPPING, PretrainedConfig, PreTrainedModel
from transformers.models.auto import modeling_auto as auto

MAPPINGS: dict[str, dict[str, Any]] = {
    "causal": auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    "seq2seq": auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
    "classifier": auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
}

# Value -> settings that take it, whichever of them a configuration has.
SIZES: list[tuple[Any, str]] = [
    (
        64,
        "vocab_size src_vocab_size tgt_vocab_size encoder_vocab_size decoder_vocab_size entity_vocab_size n_positions n_ctx "
        "max_position_embeddings max_encoder_position_embeddings max_decoder_position_embeddings max_source_positions "
        "max_target_positions max_seq_len context_length seq_length intermediate_size d_ff ffn_dim d_inner inner_dim n_inner "
        "encoder_ffn_dim decoder_ffn_dim ffn_hidden_size hidden_dim moe_intermediate_size shared_expert_intermediate_size "
        "shared_intermediate_size expert_ffn_hidden_size intermediate_size_mlp dense_intermediate_size expert_hidden_size",
    ),
    (
        32,
        "hidden_size d_model n_embd dim embed_dim embedding_size emb_dim word_embed_proj_dim encoder_hidden_size "
        "hidden_size_per_layer_input lru_width attention_hidden_size",
    ),
    (16, "q_lora_rank kv_lora_rank time_step_rank mamba_d_state mamba_dt_rank index_topk"),
    (
        8,
        "head_dim d_kv qk_nope_head_dim qk_rope_head_dim v_head_dim state_size kv_channels global_head_dim "
        "linear_key_head_dim linear_value_head_dim index_head_dim swa_head_dim",
    ),
    (
        4,
        "num_attention_heads n_head n_heads num_heads encoder_attention_heads decoder_attention_heads num_experts "
        "num_encoder_attention_heads num_decoder_attention_heads n_routed_experts num_local_experts moe_num_experts "
        "num_cross_attention_heads num_self_attention_heads linear_num_value_heads linear_num_key_heads",
    ),
    (
        2,
        "num_hidden_layers num_layers n_layer n_layers encoder_layers decoder_layers num_encoder_layers num_decoder_layers "
        "num_blocks num_hidden_groups num_key_value_heads num_kv_heads num_experts_per_tok moe_k moe_topk top_k_experts "
        "bos_token_id decoder_start_token_id",
    ),
    (1, "n_group topk_group n_shared_experts first_k_dense_replace num_shared_experts eos_token_id"),
    (0, "pad_token_id"),
    (
        0.0,
        "dropout hidden_dropout_prob attention_probs_dropout_prob attention_dropout resid_pdrop embd_pdrop attn_pdrop "
        "dropout_rate activation_dropout hidden_dropout embedding_dropout layerdrop encoder_layerdrop decoder_layerdrop "
        "classifier_dropout summary_last_dropout summary_first_dropout router_jitter_noise embed_dropout",
    ),
]

LATENT = {"num_key_value_heads": 4}  # attention through low-rank keys and values has a key head for each query head
HYBRID = {"layer_types": ["linear_attention", "full_attention"]}
MAMBA = {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_n_groups": 1}

OWN: dict[str, dict[str, Any]] = {
    **dict.fromkeys(
        ["axk1", "axk2", "deepseek_v2", "deepseek_v3", "deepseek_v32", "glm4_moe_lite", "glm_moe_dsa", "longcat_flash", "minicpm3", "youtu", "esmc"],
        LATENT,
    ),
    **dict.fromkeys(["qwen3_next", "qwen3_5_text", "qwen3_5_moe_text"], HYBRID),
    "bamba": {**MAMBA, "attn_layer_indices": [1]},
    "granitemoehybrid": {**MAMBA, "layer_types": ["mamba", "attention"]},
    "codegen": {"rotary_dim": 4},
    "gptj": {"rotary_dim": 4},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "mamba2": {"num_heads": 8, "n_groups": 1, "expand": 2},
    "reformer": {"axial_pos_embds_dim": (16, 16), "axial_pos_shape": (8, 8), "attn_layers": ["local", "lsh"], "hash_seed": 0},
    "xmod": {"languages": ("en_XX",), "default_language": "en_XX"},
    "zaya": {"num_experts_per_tok": 1},
    **dict.fromkeys(["lfm3", "recurrent_gemma"], {"num_hidden_layers": 4}),
    "t5": {"decoder_start_token_id": 0},
    "led": {"attention_window": 8},
    "longformer": {"attention_window": 8},
    "mobilebert": {"intra_bottleneck_size": 32, "embedding_size": 32, "true_hidden_size": 32},
    "deberta": {"relative_attention": True, "pos_att_type": ["c2p", "p2c"]},
    "deberta-v2": {
        "relative_attention": True, "pos_att_type": ["c2p", "p2c"], "share_att_key": True, "position_buckets": 8,
    },
    "switch_transformers": {"encoder_sparse_step": 1, "decoder_sparse_step": 1, "num_sparse_encoder_layers": 1},
    "nllb-moe": {"encoder_sparse_step": 2, "decoder_sparse_step": 2},
    "layoutlmv3": {"coordinate_size": 4, "shape_size": 8, "visual_embed": False},
}  # fmt: skip

LARGEST = 20_000_000  # parameters

MODALITIES = ("vision_config", "audio_config", "speech_config", "encoder", "text_encoder", "audio_encoder")

UNBUILT: dict[str, str] = {
    **dict.fromkeys(["gemma4_assistant", "gemma4_unified_assistant"], "drafts on another model's hidden states"),
    **dict.fromkeys(
        ["dbrx", "emu3", "dots3_note_text", "gemma3n_text", "zamba", "zamba2"], "its settings depend on each other"
    ),
    **dict.fromkeys(["blt", "perceiver", "falcon_h1", "nemotron_h"], "its inner sizes stay large"),
    **dict.fromkeys(["fuyu", "granite_speech", "granite_speech_plus", "vibevoice_asr"], "it is no text model"),
    **dict.fromkeys(["lilt", "layoutlmv2"], "it reads the places of words on a page"),
    **dict.fromkeys(["bailing_hybrid", "kimi_linear", "qwen4_exp_text"], "it has attention only among many layers"),
    "squeezebert": "its blocks are convolutions, without a Linear",
    "ibert": "its Linear layers work on integers and return their scale",
    "cohere_compass_text": "its configuration fails without layer types",
    "lfm2_moe": "its configuration fails without layer types",
    "mistral4": "its rotary dimensions do not shrink",
    "xlstm": "its state does not fit heads this small",
}


def configuration(model_type: str) -> PretrainedConfig:
    """A tiny configuration. Raises whatever the architecture raises for one that it cannot have."""
    config_class = CONFIG_MAPPING[model_type]
    known = vars(config_class())
    sizes = {name: value for value, names in SIZES for name in names.split() if name in known}
    if known.get("layer_types") is not None:
        sizes["layer_types"] = None  # made again for fewer layers
    return config_class(**{**sizes, **OWN.get(model_type, {})})


def architectures() -> list[tuple[str, str]]:
    """(kind, model type) of every text architecture that can be built tiny."""
    return [
        (kind, name)
        for kind, mapping in MAPPINGS.items()
        for name in mapping
        if name not in UNBUILT and not any(part in vars(CONFIG_MAPPING[name]()) for part in MODALITIES)
    ]


def build(kind: str, model_type: str, seed: int = 0) -> PreTrainedModel:
    """A tiny random model in float32, in evaluation mode."""
    config = configuration(model_type)
    if kind == "causal" and hasattr(config, "is_decoder"):
        config.is_decoder = True
    if kind == "classifier":
        config.num_labels = 1
    name = MAPPINGS[kind][model_type]
    model_class = getattr(transformers, name if isinstance(name, str) else name[0])
    with torch.device("meta"):
        size = sum(p.numel() for p in model_class(config).parameters())
    if size > LARGEST:
        raise ValueError(f"{model_type} is not tiny: {size} parameters")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return model_class(config).eval()


def inputs_for(kind: str, batch: int, length: int, seed: int = 0) -> dict[str, Tensor]:
    """Tokens without padding, each row ended by the end token."""
    ids = torch.randint(5, 60, (batch, length), generator=torch.Generator().manual_seed(seed))
    ids[:, -1] = 1
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    return {**inputs, "decoder_input_ids": ids[:, :-1].flip(1)} if kind == "seq2seq" else inputs


def called_linears(model: PreTrainedModel, inputs: dict[str, Tensor]) -> list[str]:
    """Names of the Linear layers in the model's blocks that a call of the model calls."""
    called: list[str] = []
    hooks = [
        module.register_forward_pre_hook(lambda *_, name=name: called.append(name))
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"
    ]
    with torch.no_grad():
        model(**inputs)
    for hook in hooks:
        hook.remove()
    return [name for name in dict.fromkeys(called) if any(part.isdigit() for part in name.split("."))]
