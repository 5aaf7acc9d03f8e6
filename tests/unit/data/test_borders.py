"""Texts are encoded in parts only where that gives the ids which encoding the whole would give."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest
from tests.unit.data.test_masking import rendered
from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE, Unigram

from tunesmith.data.borders import begins_after_tokens, merges_locally
from tunesmith.data.encoding import Encoder
from tunesmith.data.masking import encode
from tunesmith.data.rendered import Rendered

LETTERS = ["▁", "a", "b", "c", "1", "\n", "é"]
BYTES = [f"<0x{number:02X}>" for number in range(256)]
MERGES = [
    ("a", "b"), ("▁", "a"), ("ab", "c"), ("▁a", "b"), ("b", "c"), ("1", "1"), ("\n", "\n"), ("c", "▁"), ("▁", "▁"),
]  # fmt: skip


def merging(**more: Any) -> Tokenizer:
    """A small tokenizer of pairs with tokens for bytes, an end token and an added word."""
    words = ["<unk>", *BYTES, *LETTERS, *("".join(pair) for pair in MERGES)]
    vocab = {word: number for number, word in enumerate(dict.fromkeys(words))}
    made = Tokenizer(BPE(vocab, MERGES, unk_token="<unk>", **{"byte_fallback": True, "fuse_unk": True, **more}))
    made.normalizer = normalizers.Replace(" ", "▁")
    made.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    made.add_special_tokens([AddedToken("</s>", normalized=False)])
    made.add_tokens([AddedToken("1a1", normalized=False), AddedToken("11", normalized=False)])
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


def overlapping() -> Tokenizer:
    made = merging()
    made.add_special_tokens([AddedToken("s>c", normalized=False)])
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
    "tokens that overlap": overlapping,
    "no pairs": lambda: Tokenizer(Unigram([("<unk>", 0.0), ("a", -1.0)], unk_id=0)),
}


def as_transformers(backend: Tokenizer) -> Any:
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>", unk_token="<unk>")


def texts(number: int, seed: int, spans: int = 4) -> list[Rendered]:
    """Rows of spans of random characters, spaces and special tokens, some of them protected, and empty spans."""
    pick = random.Random(seed)
    words = [
        " ", "  ", "a", "b", "ab", "abc", "c", "1", "11", "\n", "\n\n", "é", "e\u0301", "猫", "▁", "<", "</s>", "1a1",
    ]  # fmt: skip
    made = []
    for _ in range(number):
        said = ["".join(pick.choices(words, k=pick.randint(0, 5))) for _ in range(spans - 1)]
        item = rendered(*((text, "context") for text in said), (pick.choice(words) + pick.choice(words), "assistant"))
        cuts = sorted(pick.sample(range(len(item.text) + 1), 2))
        protected = [(0, len(item.text)), (cuts[0], cuts[1]), None, None][pick.randrange(4)]
        made.append(replace(item, protected=(protected,) if protected else ()))
    return made


def whole(tokenizer: Any) -> Encoder:
    """An encoder that never takes parts, as for a tokenizer of which nothing is known."""
    made = Encoder(tokenizer)
    made.continues = lambda before, guarded=False: False  # type: ignore[method-assign]
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
    assert not merges_locally(backend)
    assert not Encoder(gpt2_tokenizer).continues("a")
    item = rendered(("1", "context"), ("cbabab", "assistant"))
    tokenizer = as_transformers(backend)
    careless = Encoder(tokenizer)
    careless.continues = lambda before, guarded=False: bool(before)  # type: ignore[method-assign, assignment]
    assert encode([item], Encoder(tokenizer)) != encode([item], careless)


def test_text_behind_a_token_may_begin_again() -> None:
    assert {name for name in LOCAL if begins_after_tokens(LOCAL[name]())} == {
        "prepend", "metaspace always True", "metaspace always False",
    }  # fmt: skip
