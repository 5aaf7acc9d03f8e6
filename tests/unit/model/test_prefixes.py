"""Shared beginnings computed once: the gradients of padded batches, and a proof that finds what is wrong."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import transformers as t

from tunesmith.data.collate import Collator
from tunesmith.data.masking import IGNORE_INDEX
from tunesmith.errors import ModelError
from tunesmith.evaluate.loss import token_losses
from tunesmith.model import prefixes
from tunesmith.model.layout import settle_layout
from tunesmith.model.precision import Precision
from tunesmith.model.prefixes import chain_masks, is_square, prove_prefixes
from tunesmith.model.segments import keep_examples_apart

CPU = torch.device("cpu")
FLOAT32 = Precision("float32", "test")
SIZES: dict[str, Any] = {
    "vocab_size": 96, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 128, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
OLD: dict[str, Any] = {"vocab_size": 96, "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 128}
MODELS: dict[str, Callable[[], Any]] = {
    "llama": lambda: t.LlamaForCausalLM(t.LlamaConfig(**SIZES)),
    "windows": lambda: t.MistralForCausalLM(t.MistralConfig(**SIZES, sliding_window=9)),
    "both": lambda: t.Gemma3ForCausalLM(t.Gemma3TextConfig(**SIZES, head_dim=16, sliding_window=9)),
    "gpt2": lambda: t.GPT2LMHeadModel(t.GPT2Config(**OLD, attn_pdrop=0.0, embd_pdrop=0.0, resid_pdrop=0.0)),
}


def built(kind: str) -> Any:
    torch.manual_seed(0)
    return MODELS[kind]()


def features(seed: int = 1) -> list[dict[str, Any]]:
    """Rows of a tree of three levels, one row that shares nothing, and one whose every token is trained."""
    generator = torch.Generator().manual_seed(seed)

    def some(number: int) -> list[int]:
        return torch.randint(3, 96, (number,), generator=generator).tolist()

    system, premise = some(26), some(25)
    prompts = [system + premise + some(4), system + premise + some(1), system + some(9), some(7), []]
    rows = []
    for prompt, answer in zip(prompts, (some(5), some(3), some(8), some(4), some(20)), strict=True):
        ids, weight = prompt + answer, 0.5 + len(rows)
        labels = [IGNORE_INDEX] * len(prompt) + answer
        rows.append({"input_ids": ids, "labels": labels, "weights": [weight] * len(ids), "origins": []})
    rows[4]["input_ids"][:26] = system[:20]
    return rows


def gradients(model: Any, layout: Any, rows: list[dict[str, Any]]) -> tuple[float, dict[str, torch.Tensor]]:
    batch = Collator(layout, 0, boundaries="lengths")(rows)
    batch.pop("origins")
    labels, weights = batch.pop("labels"), batch.pop("weights", None)
    model.zero_grad()
    nll = token_losses(model, batch, labels, weights, chosen_positions=True).nll.sum()
    nll.backward()
    return nll.item(), {name: one.grad.clone() for name, one in model.named_parameters() if one.grad is not None}


def assert_same(model: Any, rows: list[dict[str, Any]]) -> None:
    assert settle_layout("auto", model, FLOAT32, CPU).batching == "prefix_tree"
    batch = Collator("prefix_tree", 0, boundaries="lengths")(rows)
    assert batch["segment_parents"].count(-1) < len(rows)
    assert batch["input_ids"].numel() < sum(len(row["input_ids"]) for row in rows)
    loss, padded = gradients(model, "padded", rows)
    other_loss, shared = gradients(model, "prefix_tree", rows)
    assert other_loss == pytest.approx(loss, rel=1e-6)
    assert padded.keys() == shared.keys()
    for name, gradient in padded.items():
        assert (shared[name] - gradient).norm() <= 1e-5 * gradient.norm(), name


@pytest.fixture
def mask_nothing(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Causal attention whose queries are led by zeros counts as the cheaper one, however few tokens there are."""
    monkeypatch.setattr(prefixes, "SQUARE_FROM", 0)
    monkeypatch.setattr(prefixes, "SQUARE_COST", 0.0)
    chain_masks.cache_clear()
    yield
    chain_masks.cache_clear()


@pytest.mark.usefixtures("mask_nothing")
@pytest.mark.parametrize("kind", MODELS)
def test_queries_led_by_zeros_give_the_gradients_of_the_padded_batch(kind: str) -> None:
    """But for windows, which always take a mask."""
    assert chain_masks((3, 2, 2), (-1, 0, 1), None, torch.float32, CPU) == (None, None, None)
    assert chain_masks((3, 2, 2), (-1, 0, 1), 4, torch.float32, CPU)[1] is not None
    assert_same(built(kind), features())


def test_long_segments_behind_short_ones_take_no_mask() -> None:
    assert not is_square(12, 500)  # too short for the kernel to leave anything out
    assert is_square(12, 1500)
    assert is_square(300, 900)
    assert not is_square(900, 300)


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_are_those_of_the_padded_batch(kind: str, checkpointing: bool) -> None:
    model = built(kind)
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    for seed in (1, 2):
        assert_same(model, features(seed))


def test_gradients_of_an_adapter_are_those_of_the_padded_batch() -> None:
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=4, target_modules=["q_proj", "v_proj", "down_proj"], init_lora_weights=False)
    assert_same(get_peft_model(built("llama"), config), features())


def test_rows_alike_up_to_their_answers_share_all_but_the_last_prompt_token() -> None:
    rows = features()[:1]
    rows.append({**rows[0], "input_ids": [*rows[0]["input_ids"][:-1], 3], "labels": [*rows[0]["labels"][:-1], 3]})
    batch = Collator("prefix_tree", 0, boundaries="lengths")(rows)
    assert batch["segment_lengths"] == [54, 6, 6]
    assert_same(built("llama"), rows)


def test_a_siblings_tokens_change_nothing() -> None:
    model = built("llama")
    settle_layout("prefix_tree", model, FLOAT32, CPU)
    batch = Collator("prefix_tree", 0, boundaries="lengths")(features())
    batch = {name: value for name, value in batch.items() if name not in ("origins", "labels", "weights")}
    lengths, parents = batch["segment_lengths"], batch["segment_parents"]

    def follows(one: int, other: int) -> bool:
        return one == other or (parents[one] != -1 and follows(parents[one], other))

    with torch.no_grad():
        before = model(**batch, use_cache=False).logits[0].split(lengths)
        for edited in range(len(lengths)):
            changed = batch["input_ids"].clone()
            at = sum(lengths[:edited])
            changed[0, at] = (changed[0, at] + 1) % 96
            after = model(**batch | {"input_ids": changed}, use_cache=False).logits[0].split(lengths)
            for index, (one, other) in enumerate(zip(before, after, strict=True)):
                assert torch.equal(one, other) != follows(index, edited)


@pytest.mark.parametrize(("shift", "complaint"), [(24, "another one's tokens"), (-12, "another one's tokens")])
def test_a_layer_that_mixes_segments_is_refused(shift: int, complaint: str) -> None:
    """The mixing is seen only in rows of segments, so that examples end to end still pass."""
    model = built("llama")
    keep_examples_apart(model, FLOAT32)
    prove_prefixes(model, FLOAT32)
    model.model.layers[0].mlp.register_forward_hook(
        lambda _module, _inputs, output: output + output.roll(shift, dims=1) if output.shape[1] == 48 else output
    )
    with pytest.raises(ModelError, match=complaint):
        prove_prefixes(model, FLOAT32)
    with pytest.raises(ModelError, match=complaint):
        settle_layout("prefix_tree", model, FLOAT32, CPU)
    assert settle_layout("auto", model, FLOAT32, CPU).batching == "unpadded"


def test_a_row_that_does_not_see_all_of_its_beginning_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = built("llama")
    keep_examples_apart(model, FLOAT32)
    monkeypatch.setattr(prefixes, "chain_of", lambda parents, index: iter([index]))
    monkeypatch.setattr(prefixes, "_reach_alone", lambda *_: torch.ones(36, dtype=torch.bool))
    chain_masks.cache_clear()
    with pytest.raises(ModelError, match="whole beginning"):
        prove_prefixes(model, FLOAT32)
    chain_masks.cache_clear()


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: t.MambaForCausalLM(t.MambaConfig(vocab_size=96, hidden_size=32, num_hidden_layers=2)), "positions"),
        (
            lambda: t.Lfm2ForCausalLM(
                t.Lfm2Config(**SIZES, layer_types=["conv", "full_attention", "conv"], block_multiple_of=16)
            ),
            "its layers are conv",
        ),
    ],
)
def test_layers_with_a_state_are_refused_with_the_reason(make: Callable[[], Any], reason: str) -> None:
    with pytest.raises(ModelError, match=rf"cannot be computed once.*{reason}"):
        settle_layout("prefix_tree", make(), FLOAT32, CPU)


def test_masks_say_what_a_token_sees() -> None:
    first, second, third = chain_masks((3, 2, 2), (-1, 0, 1), 4, torch.float32, CPU)
    assert first is None
    assert second is not None
    assert third is not None
    assert second.eq(0).int().tolist() == [[1, 1, 1, 1, 0], [0, 1, 1, 1, 1]]
    assert third.eq(0).int().tolist() == [[0, 0, 1, 1, 1, 1, 0], [0, 0, 0, 1, 1, 1, 1]]
