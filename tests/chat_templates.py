"""Chat templates in the manner of those that people use, and a small tokenizer with their special tokens."""

from __future__ import annotations

from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

CHATML = """{% for m in messages %}<|im_start|>{{ m['role'] }}
{{ m['content'] }}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""

LLAMA3 = """{{ bos_token }}{% for m in messages %}<|start|>{{ m['role'] }}<|end|>

{{ m['content'] | trim }}<|eot|>{% endfor %}{% if add_generation_prompt %}<|start|>assistant<|end|>

{% endif %}"""

GEMMA = """{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}\
{% for m in messages %}<|start|>{{ 'model' if m['role'] == 'assistant' else m['role'] }}
{{ m['content'] | trim }}<|eot|>
{% endfor %}{% if add_generation_prompt %}<|start|>model
{% endif %}"""

REWRITES = """{% set ns = namespace(last=0) %}{% for m in messages %}{% if m['role'] == 'user' %}{% set ns.last = loop.index0 %}\
{% endif %}{% endfor %}{% for m in messages %}<|im_start|>{{ m['role'] }}
{% if m['role'] == 'assistant' %}{% set said = m['content'].split('</think>') %}{% if loop.index0 > ns.last %}<think>
{{ said[0].replace('<think>', '') if said | length > 1 else '' }}
</think>

{% endif %}{{ said[-1] | trim }}{% else %}{{ m['content'] }}{% endif %}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""
"""As Qwen3's: the last answer gets its reasoning, or an empty one; those before the last question lose theirs."""

OPENS = CHATML.replace("assistant\n{% endif %}", "assistant\n<think>\n{% endif %}")
"""As DeepSeek-R1's: what is to follow begins with a reasoning, what is given does not."""

INST = """{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}[INST] {{ m['content'] }} [/INST]{% else %} \
{{ m['content'] }} {{ eos_token }}{% endif %}{% endfor %}"""
"""As Llama-2's: nothing is written for an answer that is to follow."""

BARE = """{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}
{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"""
"""Without a special token, and with a space before the answer."""

TOOLS = CHATML.replace(
    "{{ m['content'] }}", "{{ m['content'] }}{% for c in m.tool_calls or [] %}<call>{{ c['name'] }}</call>{% endfor %}"
)

DEFINED = "{% if tools %}<|im_start|>system\n{{ tools | tojson }}<|im_end|>\n{% endif %}" + CHATML
"""With the definitions of tools before the turns."""

DATED = "Today: {{ strftime_now('%d %B %Y') }}\n" + CHATML
"""With the date of the day, as SmolLM3's and gpt-oss'."""

TEMPLATES = {"chatml": CHATML, "llama3": LLAMA3, "gemma": GEMMA, "inst": INST, "bare": BARE, "opens": OPENS}

MARKUP = ("<|im_start|>", "<|im_end|>", "<|start|>", "<|end|>", "<|eot|>")


def make_chat_tokenizer(template: str | None = CHATML, *, offsets: bool = True) -> PreTrainedTokenizerFast:
    """Byte-level BPE with the MARKUP as special tokens; texts alone begin with <s>, as a template writes it where it does."""
    from tests.text_tokenizers import SPECIAL, WORDS, WithoutOffsets

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    from tokenizers import decoders, processors

    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=[*SPECIAL, *MARKUP], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator(WORDS, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    made = (PreTrainedTokenizerFast if offsets else WithoutOffsets)(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
    made.chat_template = template
    return made
