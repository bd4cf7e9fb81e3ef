"""Tokenizers of the families that people use, trained in a moment on a few words, without any files."""

from __future__ import annotations

from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import MBart50Tokenizer, PreTrainedTokenizerFast

WORDS = [
    "the film was good",
    "is it so? yes no maybe",
    "Answer: 42, (A) or (B)",
    "a b c d e f g h i j k l m",
    "der Fluß",
] * 9

FAMILIES = ("bytes", "llama-2", "metaspace-first", "metaspace-always", "unigram", "words")
SPECIAL = ["<pad>", "<s>", "</s>", "<unk>"]


def make_tokenizer(family: str, adds: str = "bos", offsets: bool = True) -> PreTrainedTokenizerFast:
    """A tokenizer of one of FAMILIES; `adds` is what it puts around a text by itself: "", "bos", "eos" or "bos eos".

    bytes              byte-level BPE (GPT-2, Llama-3)
    llama-2            BPE whose normaliser puts a space before every text (Llama-1/2, TinyLlama, Mistral-7B)
    metaspace-*        BPE behind a Metaspace, which puts a space before the first word or before every part (T5, Phi-3)
    unigram            Unigram behind a Metaspace (T5, mBART)
    words              WordPiece (BERT)
    """
    tokenizer, trainer = _parts(family)
    tokenizer.train_from_iterator(WORDS, trainer)
    ids = [(token, tokenizer.token_to_id(token)) for token in ("<s>", "</s>")]
    around = ("<s> " if "bos" in adds else "") + "$A" + (" </s>" if "eos" in adds else "")
    template = processors.TemplateProcessing(single=around, pair=around.replace("$A", "$A $B"), special_tokens=ids)
    bytewise = [processors.ByteLevel(trim_offsets=True)] if family == "bytes" else []
    tokenizer.post_processor = processors.Sequence([*bytewise, template])
    return (PreTrainedTokenizerFast if offsets else WithoutOffsets)(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        clean_up_tokenization_spaces=False,
    )


def make_mbart_tokenizer(cls: type[PreTrainedTokenizerFast] = MBart50Tokenizer) -> PreTrainedTokenizerFast:
    """English to Romanian: mBART-50 writes the language before a text, mBART (`MBartTokenizer`) after it."""
    pieces = ["▁the", "▁cat", "▁la", "▁pisica", "▁", *"abcdefghijklmnopqrstuvwxyz"]
    special = [(token, 0.0) for token in ("<s>", "<pad>", "</s>", "<unk>")]
    return cls(vocab=special + [(piece, -3.0) for piece in pieces], src_lang="en_XX", tgt_lang="ro_RO")


class WithoutOffsets(PreTrainedTokenizerFast):
    """One that cannot tell where in a text its tokens stand, as tokenizers that are written in Python."""

    is_fast = False

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        assert not kwargs.get("return_offsets_mapping")
        return super().__call__(*args, **kwargs)


def _parts(family: str) -> tuple[Tokenizer, trainers.Trainer]:
    alphabet = sorted({c for text in WORDS for c in text} - {" "})
    if family == "bytes":
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        bytewise = pre_tokenizers.ByteLevel.alphabet()
        return tokenizer, trainers.BpeTrainer(vocab_size=400, special_tokens=SPECIAL, initial_alphabet=bytewise)
    if family == "llama-2":
        tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True))
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        # The merges of such a tokenizer stay within words.
        tokenizer.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
        strip = decoders.Strip(" ", 1, 0)
        tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse(), strip])
        return tokenizer, trainers.BpeTrainer(
            vocab_size=200, special_tokens=SPECIAL, initial_alphabet=[*alphabet, "▁", "\n"]
        )
    if family.startswith("metaspace") or family == "unigram":
        model = models.Unigram() if family == "unigram" else models.BPE(unk_token="<unk>", fuse_unk=True)
        tokenizer = Tokenizer(model)
        scheme = "first" if family == "metaspace-first" else "always"
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
        tokenizer.decoder = decoders.Metaspace(prepend_scheme=scheme)
        start = [*alphabet, "▁", "\n"]
        if family == "unigram":
            return tokenizer, trainers.UnigramTrainer(
                vocab_size=120, special_tokens=SPECIAL, initial_alphabet=start, unk_token="<unk>"
            )
        return tokenizer, trainers.BpeTrainer(vocab_size=200, special_tokens=SPECIAL, initial_alphabet=start)
    tokenizer = Tokenizer(models.WordPiece(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    return tokenizer, trainers.WordPieceTrainer(vocab_size=200, special_tokens=SPECIAL, initial_alphabet=alphabet)


def make_masked_tokenizer(family: str, words: str, offsets: bool = True) -> PreTrainedTokenizerFast:
    """A tokenizer with a mask, each of `words` a token of its own: "bert" (WordPiece, lower case) or "roberta" (byte-level BPE, whose
    mask takes the space before it, and which has words with a space and words without)."""
    mask = AddedToken("<mask>", lstrip=family == "roberta", special=True)
    special = ["<pad>", "<s>", "</s>", "<unk>", mask]
    tokenizer: Tokenizer
    if family == "bert":
        letters = sorted({c for c in words.lower() if not c.isspace()} | set("abcdefghijklmnopqrstuvwxyz.?!,:()"))
        known = [*map(str, special[:-1]), "<mask>", *words.lower().split(), *letters, *(f"##{c}" for c in letters)]
        tokenizer = Tokenizer(models.WordPiece({w: i for i, w in enumerate(dict.fromkeys(known))}, unk_token="<unk>"))
        tokenizer.normalizer = normalizers.Lowercase()
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    else:
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=400, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
        )
        tokenizer.train_from_iterator([f"x {words}"] * 9, trainer)
    ids = [(token, tokenizer.token_to_id(token)) for token in ("<s>", "</s>")]
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> $B:1 </s>:1", special_tokens=ids
    )
    return (PreTrainedTokenizerFast if offsets else WithoutOffsets)(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        sep_token="</s>",
        cls_token="<s>",
        unk_token="<unk>",
        mask_token=mask,
        clean_up_tokenization_spaces=False,
    )
