"""Texts are encoded in parts only where that gives the ids which encoding the whole would give."""

from __future__ import annotations

import random
from typing import Any

import pytest
from tests.unit.data.test_masking import rendered
from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE, Unigram

from tunesmith.data.borders import begins_after_tokens, merges_locally
from tunesmith.data.encoding import Encoder
from tunesmith.data.masking import encode

LETTERS = ["▁", "a", "b", "c", "1", "\n", "é"]
BYTES = [f"<0x{number:02X}>" for number in range(256)]
MERGES = [("a", "b"), ("▁", "a"), ("ab", "c"), ("▁a", "b"), ("b", "c"), ("1", "1"), ("\n", "\n"), ("c", "▁"), ("▁", "▁")]


def merging(**more: Any) -> Tokenizer:
    """A small tokenizer of pairs with tokens for bytes, an end token and an added word."""
    words = ["<unk>", *BYTES, *LETTERS, *("".join(pair) for pair in MERGES)]
    vocab = {word: number for number, word in enumerate(dict.fromkeys(words))}
    made = Tokenizer(BPE(vocab, MERGES, unk_token="<unk>", **{"byte_fallback": True, "fuse_unk": True, **more}))
    made.normalizer = normalizers.Replace(" ", "▁")
    made.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    made.add_special_tokens([AddedToken("</s>", normalized=False)])
    made.add_tokens([AddedToken("abba", normalized=False)])
    return made


def prepending() -> Tokenizer:
    made = merging()
    made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    return made


def by_words(scheme: str, split: bool) -> Tokenizer:
    made = merging()
    made.normalizer = None
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=split)
    return made


LOCAL = {
    "replace": merging, "prepend": prepending,
    **{f"metaspace {scheme} {split}": (lambda scheme=scheme, split=split: by_words(scheme, split))
       for scheme in ("first", "always", "never") for split in (True, False)},
}  # fmt: skip


def changed(**parts: Any) -> Tokenizer:
    made = merging()
    for name, part in parts.items():
        setattr(made, name, part)
    return made


def adding(**flags: bool) -> Tokenizer:
    made = merging()
    made.add_tokens([AddedToken("cab", **{"normalized": False, **flags})])
    return made


def spelled(**settings: str) -> Tokenizer:
    made = merging()
    for name, value in settings.items():
        setattr(made.model, name, value)
    return made


OTHERS = {
    "digits in groups": lambda: changed(pre_tokenizer=pre_tokenizers.Digits(individual_digits=False)),
    "bytes": lambda: changed(pre_tokenizer=pre_tokenizers.ByteLevel()),
    "normalized over neighbours": lambda: changed(normalizer=normalizers.NFC()),
    "several characters replaced": lambda: changed(normalizer=normalizers.Replace("ab", "c")),
    "dropout": lambda: merging(dropout=0.5),
    "whole words": lambda: merging(ignore_merges=True),
    "unknown ones fused": lambda: merging(byte_fallback=False),
    "prefix of pieces": lambda: spelled(continuing_subword_prefix="##"),
    "suffix of words": lambda: spelled(end_of_word_suffix="</w>"),
    "takes what is left of it": lambda: adding(lstrip=True),
    "takes what is right of it": lambda: adding(rstrip=True),
    "whole words only": lambda: adding(single_word=True),
    "found behind the normalizer": lambda: adding(normalized=True),
    "no pairs": lambda: Tokenizer(Unigram([("<unk>", 0.0), ("a", -1.0)], unk_id=0)),
}


def as_transformers(backend: Tokenizer) -> Any:
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>", unk_token="<unk>")


def texts(number: int, seed: int, spans: int = 4) -> list[Any]:
    """Rows of spans of random characters, spaces and special tokens among them, and empty spans."""
    pick = random.Random(seed)
    words = [" ", "  ", "a", "b", "ab", "abc", "c", "1", "11", "\n", "\n\n", "é", "e\u0301", "猫", "▁", "</s>", "abba", "cab"]
    return [
        rendered(*(("".join(pick.choices(words, k=pick.randint(0, 5))), "context") for _ in range(spans - 1)),
                 ("".join(pick.choices(words, k=pick.randint(1, 5))), "assistant"))
        for _ in range(number)
    ]  # fmt: skip


def whole(tokenizer: Any) -> Encoder:
    """An encoder that never takes parts, as for a tokenizer of which nothing is known."""
    made = Encoder(tokenizer)
    made.continues = lambda before: False  # type: ignore[method-assign]
    return made


@pytest.mark.parametrize("name", LOCAL)
def test_parts_give_the_ids_of_the_whole(name: str) -> None:
    backend = LOCAL[name]()
    assert merges_locally(backend)
    tokenizer, rows = as_transformers(backend), texts(1500, seed=3)
    assert encode(rows, Encoder(tokenizer)) == encode(rows, whole(tokenizer))


def test_parts_give_the_ids_of_the_whole_of_real_tokenizers(mistral_tokenizer: Any, stories_tokenizer: Any) -> None:
    for tokenizer in (mistral_tokenizer, stories_tokenizer):
        assert Encoder(tokenizer).continues("a")
        rows = texts(1500, seed=5)
        assert encode(rows, Encoder(tokenizer)) == encode(rows, whole(tokenizer))


@pytest.mark.parametrize("name", OTHERS)
def test_a_tokenizer_that_looks_beyond_a_character_encodes_the_whole(name: str) -> None:
    assert not merges_locally(OTHERS[name]())


def test_grouped_digits_would_go_wrong_in_parts(gpt2_tokenizer: Any) -> None:
    """What the rule is for: here the parts have other ids than the whole, though it has a border there."""
    backend = changed(pre_tokenizer=pre_tokenizers.Split(Regex(r".{1,3}"), "isolated"))
    assert not merges_locally(backend) and not Encoder(gpt2_tokenizer).continues("a")
    item = rendered(("1", "context"), ("c111", "assistant"))
    tokenizer = as_transformers(backend)
    careless = Encoder(tokenizer)
    careless.continues = bool  # type: ignore[method-assign, assignment]
    assert encode([item], Encoder(tokenizer)) != encode([item], careless)


def test_text_behind_a_token_may_begin_again() -> None:
    assert {name for name in LOCAL if begins_after_tokens(LOCAL[name]())} == {
        "prepend", "metaspace always True", "metaspace always False",
    }  # fmt: skip
