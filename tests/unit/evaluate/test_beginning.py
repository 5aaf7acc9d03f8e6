"""What all prompts begin with is computed once and kept once, and changes no answer."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import torch
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from transformers import (
    CONFIG_MAPPING,
    AutoModelForMultimodalLM,
    AutoTokenizer,
    DynamicCache,
    MambaConfig,
    MambaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
)

from plain_generation import KINDS, counted, load, plain_greedy, with_beginning
from tunesmith.evaluate import beginning, side_by_side
from tunesmith.evaluate import generate as generating
from tunesmith.evaluate.beginning import Prefix, attend_behind, kept_once, shared_prefix
from tunesmith.evaluate.company import Company, company
from tunesmith.evaluate.decoding import Decoding
from tunesmith.evaluate.generate import generate
from tunesmith.model.device import here
from tunesmith.model.internals import attentions_of
from tunesmith.model.load import load_base
from tunesmith.model.precision import choose_precision
from vision_models import VISION

ASKED = [(2, 5), (2, 1), (1, 7), (2, 1)]
"""Passes of the proof: two rows behind copies, and the same one behind the other before their last tokens."""


def sliding_window_model() -> Any:
    torch.manual_seed(7)
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    return MistralForCausalLM(MistralConfig(**sizes, vocab_size=96, num_key_value_heads=2, sliding_window=12)).eval()


@contextlib.contextmanager
def copies(_model: Any, prefix: Prefix) -> Iterator[Prefix]:
    """In the place of ``kept_once``: every row has its own."""
    yield prefix


@pytest.mark.parametrize("kind", [*KINDS, "adapter", "window", "eager"])
def test_a_shared_beginning_is_computed_once_and_changes_no_answer(models_folder: Path, kind: str) -> None:
    model, tokenizer = load(models_folder / (kind if kind in KINDS else "llama"))
    if kind == "adapter":
        torch.manual_seed(0)
        model = get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False))
    if kind == "window":
        model = sliding_window_model()
    if kind == "eager":
        model.set_attn_implementation("eager")
    model.eval()
    # rows that are padded by less and by more than the beginning is long, and one that has a single token of its own
    prompts = with_beginning(20, 3, 30, 1, 9, 2, 17)
    stops = [tokenizer.eos_token_id, plain_greedy(model, prompts[1], [], 12)[0][6]]
    expected = [plain_greedy(model, prompt, stops, 12) for prompt in prompts]
    decoding = Decoding(max_new_tokens=12, batch_size=6, stop_token_ids=stops, pad_token_id=tokenizer.pad_token_id)
    assert company(model, prompts, decoding) is Company.ANY
    base = model.get_base_model() if kind == "adapter" else model
    attention, sizes = base.config._attn_implementation, counted(base.base_model)
    answers = generate(model, tokenizer, prompts, decoding)
    assert [(answer.token_ids, answer.stopped) for answer in answers] == expected
    assert len({stopped for _, stopped in expected}) == 2
    assert base.config._attn_implementation == attention
    if kind in ("window", "eager"):
        assert sizes[:2] == [(1, 20), (6, 30)]
    else:
        assert sizes[0] == (1, 20)
        assert sizes[1:5] == ASKED
        assert sizes[5:7] == [(1, 2 + 29 + 0 + 8 + 1 + 16), (6, 1)], "the last token of each prompt, and no padding"


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("shared", [0, 18])
def test_others_take_the_places_of_rows_that_have_ended(models_folder: Path, shared: int, attention: str) -> None:
    model, tokenizer = load(models_folder / "mistral")
    model.eval().set_attn_implementation(attention)
    prompts = with_beginning(max(shared, 1), *range(3, 27, 2))
    free = [plain_greedy(model, prompt, [], 16)[0] for prompt in prompts]
    # a token that ends some answers early and others not
    stop = max(range(96), key=lambda token: 0.5 - abs(0.5 - sum(token in answer[:12] for answer in free) / len(free)))
    expected = [plain_greedy(model, prompt, [stop], 16) for prompt in prompts]
    decoding = Decoding(max_new_tokens=16, batch_size=4, stop_token_ids=[stop])
    company(model, prompts, decoding)
    sizes = counted(model.base_model)
    told: list[int] = []
    answers = generate(model, tokenizer, prompts, decoding, on_progress=lambda done, _: told.append(done))
    assert [(answer.token_ids, answer.stopped) for answer in answers] == expected
    assert told == sorted(set(told)), "progress is told whenever answers have ended"
    passes = [len(ids) + stopped for ids, stopped in expected]
    asked = (3 if shared else 2) if attention == "sdpa" else bool(shared)  # passes for the beginning and the proof
    begun = [at for at, (_, tokens) in enumerate(sizes) if tokens > 1][asked:]
    if attention == "sdpa":
        assert {sizes[at][0] for at in begun} == {1}, "one behind the other"
        assert sum(sizes[at][1] for at in begun) == sum(len(prompt) - shared - 1 for prompt in prompts)
    else:
        assert sum(sizes[at][0] for at in begun) == len(prompts)
    assert sizes[begun[1] - 1][0] >= 3, "prompts come in while others are under way"
    assert sum(rows for rows, tokens in sizes if tokens == 1) < 1.5 * sum(passes)


@hypothesis.settings(max_examples=25)
@hypothesis.given(st.data())
def test_answers_are_those_of_copies(models_folder: Path, data: st.DataObject) -> None:
    """Whatever the lengths, the rows and the way in which tokens are chosen."""
    model, tokenizer = load(models_folder / data.draw(st.sampled_from(["llama", "mistral"])))
    shared = data.draw(st.sampled_from([1, 17]))
    prompts = with_beginning(shared, *data.draw(st.lists(st.integers(1, 20), min_size=4, max_size=12)))
    decoding = Decoding(
        max_new_tokens=data.draw(st.integers(1, 12)),
        batch_size=data.draw(st.integers(4, 9)),
        temperature=data.draw(st.sampled_from([0.0, 1.0])),
        stop_token_ids=data.draw(st.lists(st.integers(4, 90), min_size=1, max_size=12, unique=True)),
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(beginning, "READ_AT_ONCE", data.draw(st.sampled_from([5, 30, 4096])))
        kept = generate(model, tokenizer, prompts, decoding)
        patch.setattr(generating, "kept_once", copies)
        assert generate(model, tokenizer, prompts, decoding) == kept


def test_prompts_are_read_so_many_tokens_at_once_and_no_further_than_the_last_keys(
    models_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, tokenizer = load(models_folder / "mistral")
    model.eval()
    monkeypatch.setattr(beginning, "READ_AT_ONCE", 12)
    prompts = with_beginning(1, 15, 9, 5, 3, 1)
    decoding = Decoding(max_new_tokens=1, batch_size=8, stop_token_ids=[95])
    generate(model, tokenizer, prompts, decoding)  # both proofs are made
    passes = {name: counted(layer.mlp) for name, layer in zip(("first", "last"), model.model.layers, strict=True)}
    generate(model, tokenizer, prompts, decoding)
    read = [size for size in passes["first"][1:] if size[0] == 1]  # behind the one that asks what the layers keep
    assert read == [(1, 15, 64), (1, 9, 64), (1, 5 + 3 + 1, 64)]
    assert passes["last"] == [size for size in passes["first"] if size not in read]


def test_rows_keep_their_own_columns_alone(models_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer = load(models_folder / "mistral")
    kept: list[int] = []
    advance = side_by_side.Rows.advance

    def noted(rows: side_by_side.Rows, **settings: Any) -> None:
        advance(rows, **settings)
        kept.extend(layer.keys.shape[2] for layer in rows._layers)

    monkeypatch.setattr(side_by_side.Rows, "advance", noted)
    generate(model, tokenizer, with_beginning(40, 3, 5, 4, 1), Decoding(max_new_tokens=4, stop_token_ids=[95]))
    assert kept
    assert max(kept) <= 5 + 4


def forgetful(module: Any, query: Any, key: torch.Tensor, *rest: Any, **more: Any) -> Any:
    """As of a layer that makes new keys before it attends to them."""
    return attend_behind(module, query, key.clone(), *rest, **more)


def wrong(name: str) -> Any:
    """What is too large by a tenth."""
    right = getattr(beginning, name)
    return lambda *asked: right(*asked) * 1.1


@pytest.mark.parametrize("name", ["attend_behind", "_attend_with_one_token", "_attend_in_one_row"])
def test_a_model_that_would_answer_otherwise_keeps_copies(
    models_folder: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, tokenizer = load(models_folder / "mistral")
    model.eval()
    prompts = with_beginning(20, 3, 9, 1, 9)
    monkeypatch.setattr(beginning, name, forgetful if name == "attend_behind" else wrong(name))
    prefix = shared_prefix(model, prompts)
    with torch.no_grad(), kept_once(model, prefix) as common:
        assert not common.once
    answers = generate(model, tokenizer, prompts, Decoding(max_new_tokens=6, batch_size=4, stop_token_ids=[95]))
    assert [answer.token_ids for answer in answers] == [plain_greedy(model, prompt, [95], 6)[0] for prompt in prompts]


def test_the_attention_comes_back_after_an_error(models_folder: Path) -> None:
    model, _ = load(models_folder / "mistral")
    model.eval()
    with torch.no_grad():
        prefix = shared_prefix(model, with_beginning(20, 3, 9))
        with kept_once(model, prefix) as common:
            assert common.once
            assert model.config._attn_implementation == beginning.BEHIND
        with pytest.raises(KeyboardInterrupt), kept_once(model, prefix):
            raise KeyboardInterrupt
    assert model.config._attn_implementation == "sdpa"


def test_the_attention_of_every_part_comes_back() -> None:
    """Of a model that reads images, whose parts need not have the same."""
    torch.manual_seed(7)
    model = AutoModelForMultimodalLM.from_config(CONFIG_MAPPING["mistral3"](**VISION["mistral3"])).eval()
    model.set_attn_implementation({"": "sdpa", "text_config": "sdpa", "vision_config": "eager"})
    before = attentions_of(model)
    with torch.no_grad(), kept_once(model, shared_prefix(model, with_beginning(20, 3, 9))) as common:
        assert common.once
        assert attentions_of(model)["text_config"][""] == beginning.BEHIND
    assert attentions_of(model) == before
    assert before["vision_config"][""] == "eager"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_logits_are_those_of_copies_in_either_precision(models_folder: Path, dtype: torch.dtype) -> None:
    model, _ = load(models_folder / "mistral")
    model.eval().to(dtype)
    with torch.no_grad():
        prefix = shared_prefix(model, with_beginning(40, 3, 9))
        with kept_once(model, prefix) as common:
            assert common.once
            once, copied = (beginning._logits(model, each) for each in (common, prefix))
            elsewhere = beginning._logits(model, _not_filled(common))
    spread = copied.std()
    assert (once - copied).abs().max() / spread < (1e-5 if dtype == torch.float32 else 0.1)
    assert (elsewhere - copied).abs().max() / spread < (1e-5 if dtype == torch.float32 else 0.1)


def _not_filled(common: Prefix) -> Any:
    """As on other devices, where several tokens of each row pass through the padded batch."""

    class Elsewhere(Prefix):
        def begin(self, model: Any, cache: DynamicCache, prompts: Any) -> bool:
            cache.layers = [beginning._Behind(keys, values) for keys, values in self.layers]
            return False

    return Elsewhere(common.tokens, common.layers, once=True)


def test_scores_that_are_altered_go_through_sdpa(models_folder: Path) -> None:
    """A bias of positions, say, which the product with the beginning does not know."""
    model, _ = load(models_folder / "mistral")
    layer = model.model.layers[0].self_attn
    torch.manual_seed(0)
    query, key, value = (torch.randn(3, heads, 1, 8) for heads in (4, 2, 2))
    first = tuple(torch.randn(1, 2, 5, 8) for _ in range(2))
    bias = torch.randn(1, 4, 1, 6)
    setattr(key, beginning._ATTRIBUTE, first)
    found, _ = attend_behind(layer, query, key, value, None, scaling=0.3, position_bias=bias)
    keys, values = (
        torch.cat([whole.expand(3, -1, -1, -1), own], 2) for whole, own in zip(first, (key, value), strict=True)
    )
    scores = query @ keys.repeat_interleave(2, 1).transpose(2, 3) * 0.3 + bias
    expected = (scores.softmax(-1) @ values.repeat_interleave(2, 1)).transpose(1, 2)
    assert torch.allclose(found, expected, atol=1e-6)
    alone = key[:1].clone()
    setattr(alone, beginning._ATTRIBUTE, first)
    with pytest.raises(ValueError, match="alters scores"):
        attend_behind(layer, query[:1], alone, value[:1], None, segment_lengths=[1], position_bias=bias)


@hypothesis.settings(max_examples=40)
@hypothesis.given(st.integers(1, 5), st.integers(1, 3), st.integers(1, 3), st.integers(1, 40), st.data())
def test_attention_behind_a_beginning_is_that_over_both(
    rows: int, groups: int, each: int, length: int, data: st.DataObject
) -> None:
    behind = data.draw(st.lists(st.integers(0, 9), min_size=rows, max_size=rows).filter(any))
    torch.manual_seed(0)
    first = tuple(torch.randn(1, groups, length, 8, dtype=torch.float64) for _ in range(2))
    query = torch.randn(1, groups * each, sum(behind), 8, dtype=torch.float64)
    key, value = (torch.randn(1, groups, sum(behind), 8, dtype=torch.float64) for _ in range(2))
    found = beginning._attend_in_one_row(query, key, value, first, behind, None)[0].split(behind)
    parts = (whole[0].split(behind, dim=1) for whole in (query, key, value))
    for part, own, *pair in zip(found, *parts, strict=True):
        keys, values = (torch.cat([whole[0], rest], 1) for whole, rest in zip(first, pair, strict=True))
        hidden = torch.ones(own.shape[1], keys.shape[1], dtype=torch.bool).triu(length + 1)
        scores = own @ keys.repeat_interleave(each, 0).transpose(1, 2) * 8**-0.5
        weights = scores.masked_fill(hidden, float("-inf")).softmax(-1)
        assert torch.allclose(part, (weights @ values.repeat_interleave(each, 0)).transpose(0, 1))
        if own.shape[1]:  # its last token, by itself
            asked = (own[None, :, -1:], pair[0][None], pair[1][None], first, None, None)
            assert torch.allclose(beginning._attend_with_one_token(*asked)[0, 0], part[-1])


def test_a_recurrent_model_answers_without_a_shared_beginning(models_folder: Path) -> None:
    _, tokenizer = load(models_folder / "llama")
    torch.manual_seed(7)
    model = MambaForCausalLM(MambaConfig(vocab_size=96, hidden_size=32, num_hidden_layers=2, state_size=4)).eval()
    prompts = with_beginning(20, 5, 5, 5)  # of one length, since a recurrent model reads padding too
    assert shared_prefix(model, prompts) is None
    answers = generate(model, tokenizer, prompts, Decoding(max_new_tokens=6, batch_size=3, stop_token_ids=[95]))
    assert [answer.token_ids for answer in answers] == [plain_greedy(model, p, [95], 6)[0] for p in prompts]


def test_a_short_or_missing_beginning_is_not_shared(models_folder: Path) -> None:
    model, _ = load(models_folder / "llama")
    assert shared_prefix(model, with_beginning(15, 4, 4)) is None
    assert shared_prefix(model, with_beginning(30, 4)) is None
    assert shared_prefix(model, with_beginning(16, 4, 5)).length == 16
    assert shared_prefix(model, with_beginning(24, 4, 0)).length == 23  # the shorter prompt keeps a token of its own


def test_four_bit_weights_answer_alike_with_a_shared_beginning(settings: Any) -> None:
    resolved = settings("mistral", load_in_4bit=True, bf16=False, fp16=False)
    model = load_base(resolved, choose_precision(resolved, here(resolved)), here(resolved)).eval()
    tokenizer = AutoTokenizer.from_pretrained(resolved.config.model.model_name_or_path)
    prompts = with_beginning(20, 3, 12, 1, 9)
    answers = generate(model, tokenizer, prompts, Decoding(max_new_tokens=10, batch_size=4, stop_token_ids=[95]))
    assert [(answer.token_ids, answer.stopped) for answer in answers] == [
        plain_greedy(model, prompt, [95], 10) for prompt in prompts
    ]
