"""Tiny random generators of many architectures: attention of several kinds, state spaces, hybrids of both, experts, no cache."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from transformers import PreTrainedModel

IDS: dict[str, Any] = {"vocab_size": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
TEXT: dict[str, Any] = {
    **IDS,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}
STATES: dict[str, Any] = {**IDS, "hidden_size": 32, "num_hidden_layers": 2}
MAMBA2: dict[str, Any] = {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_n_groups": 1}
LINEAR: dict[str, Any] = {
    "head_dim": 8,
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "layer_types": ["linear_attention", "full_attention"],
}
EXPERTS: dict[str, Any] = {
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 16,
}
VISION: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "image_size": 28,
    "patch_size": 14,
}

ARCHITECTURES: dict[str, dict[str, Any]] = {
    # Keys and values in a cache.
    "LlamaForCausalLM": TEXT,
    "MistralForCausalLM": {**TEXT, "sliding_window": 6},
    "Qwen2ForCausalLM": TEXT,
    "Qwen3ForCausalLM": {**TEXT, "head_dim": 8},
    "Gemma2ForCausalLM": {**TEXT, "head_dim": 8, "sliding_window": 6},
    "Phi3ForCausalLM": TEXT,
    "MixtralForCausalLM": {**TEXT, "num_local_experts": 2},
    "GPT2LMHeadModel": {**IDS, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128},
    "OPTForCausalLM": {
        **IDS,
        "hidden_size": 32,
        "ffn_dim": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "word_embed_proj_dim": 32,
        "max_position_embeddings": 128,
    },
    "BloomForCausalLM": {**STATES, "n_head": 4},
    "FalconForCausalLM": {**STATES, "num_attention_heads": 4, "alibi": True, "new_decoder_architecture": False},
    "GPTNeoXForCausalLM": TEXT,
    "MptForCausalLM": {**IDS, "d_model": 32, "n_heads": 4, "n_layers": 2, "max_seq_len": 128},
    "Gemma3ForConditionalGeneration": {
        "text_config": {**TEXT, "head_dim": 8, "sliding_window": 6},
        "vision_config": VISION,
        "mm_tokens_per_image": 4,
    },
    "LlavaForConditionalGeneration": {
        "text_config": {**TEXT, "model_type": "llama"},
        "vision_config": {**VISION, "model_type": "clip_vision_model"},
        "image_token_index": 5,
    },
    # States of a recurrence or a convolution, alone and beside attention.
    "MambaForCausalLM": STATES,
    "FalconMambaForCausalLM": STATES,
    "Mamba2ForCausalLM": {**STATES, "num_heads": 8, "head_dim": 8, "state_size": 8, "n_groups": 1},
    "RecurrentGemmaForCausalLM": {
        **STATES,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "lru_width": 32,
        "attention_window_size": 16,
    },
    "RwkvForCausalLM": {**STATES, "context_length": 128, "attention_hidden_size": 32},
    "JambaForCausalLM": {
        **TEXT,
        "num_hidden_layers": 4,
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "expert_layer_period": 2,
        "expert_layer_offset": 1,
        "num_experts": 2,
        "use_mamba_kernels": False,
    },
    "BambaForCausalLM": {**TEXT, **MAMBA2, "attn_layer_indices": [1]},
    "FalconH1ForCausalLM": {**TEXT, **MAMBA2, "mamba_d_ssm": 64},
    "Zamba2ForCausalLM": {
        **TEXT,
        "num_hidden_layers": 3,
        "mamba_d_state": 8,
        "n_mamba_heads": 8,
        "mamba_headdim": 8,
        "mamba_ngroups": 1,
        "num_key_value_heads": 4,
        "layers_block_type": ["mamba", "hybrid", "mamba"],
        "num_mem_blocks": 1,
        "use_shared_attention_adapter": False,
        "adapter_rank": 4,
    },
    "GraniteMoeHybridForCausalLM": {
        **TEXT,
        **MAMBA2,
        "layer_types": ["mamba", "attention"],
        "num_local_experts": 2,
        "num_experts_per_tok": 1,
        "shared_intermediate_size": 32,
    },
    "Lfm2ForCausalLM": {**TEXT, "layer_types": ["conv", "full_attention"]},
    "Qwen3NextForCausalLM": {**TEXT, **LINEAR, **EXPERTS},
    "MiniMaxForCausalLM": {
        **TEXT,
        "head_dim": 8,
        "num_local_experts": 2,
        "layer_types": ["linear_attention", "full_attention"],
        "block_size": 8,
    },
    # Encoder-decoders.
    "T5ForConditionalGeneration": {
        **IDS, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4, "decoder_start_token_id": 0
    },
    "BartForConditionalGeneration": {
        **IDS,
        "d_model": 32,
        "encoder_layers": 2,
        "decoder_layers": 2,
        "encoder_attention_heads": 4,
        "decoder_attention_heads": 4,
        "encoder_ffn_dim": 64,
        "decoder_ffn_dim": 64,
        "max_position_embeddings": 128,
        "decoder_start_token_id": 2,
        "forced_eos_token_id": None,
    },
    "SwitchTransformersForConditionalGeneration": {
        **IDS,
        "d_model": 32,
        "d_kv": 8,
        "d_ff": 64,
        "num_layers": 2,
        "num_decoder_layers": 2,
        "num_heads": 4,
        "num_experts": 2,
        "num_sparse_encoder_layers": 1,
        "num_sparse_decoder_layers": 1,
        "decoder_start_token_id": 0,
    },
    "ProphetNetForConditionalGeneration": {
        **IDS,
        "hidden_size": 32,
        "num_encoder_layers": 2,
        "num_decoder_layers": 2,
        "num_encoder_attention_heads": 4,
        "num_decoder_attention_heads": 4,
        "encoder_ffn_dim": 64,
        "decoder_ffn_dim": 64,
        "max_position_embeddings": 128,
        "decoder_start_token_id": 1,
    },
}  # fmt: skip


def tiny_generator(name: str, seed: int = 0) -> PreTrainedModel:
    """A tiny random model of the architecture of that name, in float32 and evaluation mode, the same for the same seed.

    Its weights are spread wider than at a usual start, so that what a model reads shows in what it says.
    """
    kind = getattr(transformers, name)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = kind(kind.config_class(**ARCHITECTURES[name])).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim == 2:
                    parameter.mul_(3)
    return model
