"""A tokenizer that needs no files: words of a fixed vocabulary."""

from __future__ import annotations

from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast


def make_word_tokenizer() -> PreTrainedTokenizerFast:
    """One token a word of the form w<number>; texts begin with <s> (1), pairs are joined by <sep> (3)."""
    vocabulary = {"<pad>": 0, "<s>": 1, "</s>": 2, "<sep>": 3, "<unk>": 4, **{f"w{i}": 5 + i for i in range(20)}}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <sep> $B:1 <sep>:1", special_tokens=[("<s>", 1), ("<sep>", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
