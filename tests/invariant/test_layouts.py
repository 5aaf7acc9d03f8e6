"""Layouts of batches on real small models: what an example learns must not depend on what lies beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from helpers import logged, resolved_from, run_training, story_rows, tensors
from tunesmith.data.batching import BatchRows, LengthGroupedSampler
from tunesmith.data.collate import Collator
from tunesmith.data.masking import IGNORE_INDEX, Example
from tunesmith.errors import ModelError
from tunesmith.evaluate.loss import token_losses
from tunesmith.model.device import here
from tunesmith.model.precision import Precision, choose_precision
from tunesmith.model.segments import SEGMENTED, keep_examples_apart

FLOAT32 = Precision("float32", "test")
LENGTHS = (9, 23, 14, 2, 31, 5)
LORA = {"use_lora": True, "lora_r": 4, "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj"]}


def examples(vocabulary: int, seed: int = 1) -> list[Example]:
    generator = torch.Generator().manual_seed(seed)
    made = []
    for index, length in enumerate(LENGTHS):
        ids = torch.randint(3, vocabulary, (length,), generator=generator).tolist()
        made.append(Example(ids, [IGNORE_INDEX, *ids[1:]], f"t:{index}", 1, 1, length))
    return made


def batch(made: list[Example], layout: str, boundaries: str = "positions") -> tuple[dict[str, Any], torch.Tensor]:
    collated = Collator(layout, 0, boundaries=boundaries)(BatchRows(made, layout, 40))
    collated.pop("origins")
    return collated, collated.pop("labels")


def losses_by_example(model: torch.nn.Module, layout: str, boundaries: str) -> dict[str, torch.Tensor]:
    """Per-token losses of every example under its origin."""
    made = examples(90)
    rows = BatchRows(made, layout, 40)
    inputs, labels = batch(made, layout, boundaries)
    nll = token_losses(model, inputs, labels, chosen_positions=False).nll
    found: dict[str, torch.Tensor] = {}
    at = 0
    for index, row in enumerate(rows):
        for origin, length in zip(row["origins"], row["lengths"], strict=True):
            start, line = (at, 0) if inputs["input_ids"].shape[0] == 1 else (0, index)
            found[origin] = nll[line, start : start + length - 1]
            at += length
    return found


def build(kind: str, **settings: Any) -> torch.nn.Module:
    """A model with random weights: grouped keys and values, sliding windows, norms of queries, absolute positions."""
    import transformers as t

    torch.manual_seed(0)
    sizes: dict[str, Any] = {
        "vocab_size": 96, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128,
    }  # fmt: skip
    small = {"vocab_size": 96, "num_hidden_layers": 2, "hidden_size": 64, "num_attention_heads": 4}
    models = {
        "llama": lambda: t.LlamaForCausalLM(t.LlamaConfig(**sizes)),
        "mistral": lambda: t.MistralForCausalLM(t.MistralConfig(**sizes, **settings)),
        "qwen3": lambda: t.Qwen3ForCausalLM(t.Qwen3Config(**sizes, head_dim=16)),
        "gemma3": lambda: t.Gemma3ForCausalLM(t.Gemma3TextConfig(**sizes, head_dim=16, sliding_window=8)),
        "gpt2": lambda: t.GPT2LMHeadModel(
            t.GPT2Config(vocab_size=96, n_embd=64, n_layer=2, n_head=4, n_positions=128, bos_token_id=1, eos_token_id=2)
        ),
        "falcon": lambda: t.FalconForCausalLM(t.FalconConfig(**small)),
        "bloom": lambda: t.BloomForCausalLM(t.BloomConfig(vocab_size=96, hidden_size=64, n_layer=2, n_head=4)),
        "mamba": lambda: t.MambaForCausalLM(t.MambaConfig(vocab_size=96, hidden_size=64, num_hidden_layers=2)),
    }
    return models[kind]().eval()


KINDS = [("llama", {}), ("mistral", {"sliding_window": None}), ("mistral", {"sliding_window": 8}), ("qwen3", {}),
         ("gemma3", {}), ("gpt2", {})]  # fmt: skip


@pytest.mark.parametrize(("kind", "settings"), KINDS, ids=[f"{kind}{len(more)}" for kind, more in KINDS])
def test_every_layout_gives_the_same_loss_for_every_token(kind, settings):
    model = build(kind, **settings)
    expected = losses_by_example(model, "padded", "positions")
    dense = losses_by_example(model, "packed", "positions")  # the mask that transformers derives from positions
    boundaries = keep_examples_apart(model, FLOAT32)
    assert boundaries == "lengths"
    assert model.config._attn_implementation == SEGMENTED
    assert len(expected) == len(LENGTHS)
    for layout in ("length_grouped", "packed", "unpadded", "padded"):
        found = losses_by_example(model, layout, boundaries)
        assert found.keys() == expected.keys()
        for origin, losses in expected.items():
            assert (found[origin] - losses).abs().max() <= 1e-5, (layout, origin)
    for origin, losses in expected.items():
        assert (dense[origin] - losses).abs().max() <= 1e-5, origin


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("kind", ["llama", "mistral", "gpt2"])
def test_gradients_of_unpadded_rows_are_those_of_padded_ones(kind, checkpointing):
    model = build(kind, **({"sliding_window": 8} if kind == "mistral" else {})).train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    gradients = []
    for layout in ("padded", "unpadded", "packed"):
        boundaries = "positions" if layout == "padded" else keep_examples_apart(model, FLOAT32)
        if checkpointing and layout != "padded":
            model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
        model.zero_grad()
        inputs, labels = batch(examples(90), layout, boundaries)
        token_losses(model, inputs, labels, chosen_positions=True).nll.sum().backward()
        gradients.append({name: parameter.grad.clone() for name, parameter in model.named_parameters()})
    padded, *others = gradients
    assert len(padded) > 10
    for other in others:
        for name, gradient in padded.items():
            assert (other[name] - gradient).norm() <= 1e-6 * gradient.norm(), name


@pytest.mark.parametrize("layout", ["packed", "unpadded"])
def test_editing_one_example_changes_no_logit_of_another(layout):
    model = build("llama")
    boundaries = keep_examples_apart(model, FLOAT32)
    made = examples(90)
    inputs, _labels = batch(made, layout, boundaries)
    lengths = inputs["segment_lengths"]
    with torch.no_grad():
        before = model(**inputs, use_cache=False).logits[0].split(lengths)
        for edited in range(len(lengths)):
            start = sum(lengths[:edited])
            changed = inputs["input_ids"].clone()
            changed[0, start : start + lengths[edited]] += 1
            after = model(**inputs | {"input_ids": changed}, use_cache=False).logits[0].split(lengths)
            for index, (one, other) in enumerate(zip(before, after, strict=True)):
                assert torch.equal(one, other) == (index != edited)


def test_no_mask_over_the_whole_row_is_made(monkeypatch):
    """The largest tensor of a pass over a long row of short examples stays far below tokens x tokens."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Largest(TorchDispatchMode):
        num_bytes = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            result = function(*args, **(kwargs or {}))
            for tensor in result if isinstance(result, (tuple, list)) else (result,):
                if isinstance(tensor, torch.Tensor):
                    self.num_bytes = max(self.num_bytes, tensor.numel())
            return result

    model = build("llama")
    boundaries = keep_examples_apart(model, FLOAT32)
    features = [{"input_ids": [5] * 16, "labels": [5] * 16} for _ in range(64)]
    sizes = {}
    for told in (boundaries, "positions"):
        if told == "positions":
            model.set_attn_implementation("sdpa")
        collated = Collator("unpadded", 0, boundaries=told)(features)
        collated.pop("origins"), collated.pop("labels")
        with torch.no_grad(), Largest() as largest:
            model(**collated, use_cache=False, logits_to_keep=1)
        sizes[told] = largest.num_bytes
    assert sizes["positions"] >= 1024 * 1024
    assert sizes["lengths"] <= 1024 * 128


@pytest.mark.parametrize("kind", ["bloom", "mamba"])
def test_a_model_that_cannot_keep_examples_apart_is_refused(kind):
    """Bloom takes no positions, and Mamba's state runs through the row."""
    with pytest.raises(ModelError, match=r"row.*padded or length_grouped"):
        keep_examples_apart(build(kind), FLOAT32)


def test_attention_without_a_way_for_lengths_stays_dense_and_is_said():
    from tunesmith import notices

    notices.clear()
    model = build("llama")
    model.set_attn_implementation("eager")
    assert keep_examples_apart(model, FLOAT32) == "positions"
    assert any("dense mask" in text for text in notices.collected())


def test_a_row_of_several_examples_without_their_lengths_is_refused():
    model = build("llama")
    keep_examples_apart(model, FLOAT32)
    inputs, _labels = batch(examples(90), "unpadded", "positions")
    with pytest.raises(ModelError, match="where the examples"):
        model(**inputs, use_cache=False)


@pytest.mark.parametrize("bits", ["load_in_4bit", "load_in_8bit"])
def test_quantized_bases_with_adapters_keep_examples_apart(stories_model, bits):
    from tunesmith.model.load import load_model

    resolved = resolved_from(
        model_name_or_path=str(stories_model), train_data="x.jsonl", batching="unpadded", gradient_checkpointing=True,
        lora_dropout=0.0, **{bits: True}, **LORA,
    )  # fmt: skip
    precision = choose_precision(resolved, here(resolved))
    model = load_model(resolved, precision, here(resolved))
    assert keep_examples_apart(model, precision) == "lengths"
    results = []
    for layout in ("padded", "unpadded"):
        torch.manual_seed(0)
        inputs, labels = batch(examples(500), layout, "lengths")
        with precision.autocast("cpu"):
            losses = token_losses(model, inputs, labels, chosen_positions=True)
        losses.nll.sum().backward()
        results.append(losses.nll.sum().item())
    assert results[0] == pytest.approx(results[1], rel=2e-2 if bits == "load_in_8bit" else 5e-3)


def steps(folder: Path) -> list[tuple[float, ...]]:
    return logged(folder, "step", "loss", "grad_norm")


def test_unpadded_steps_hold_the_examples_of_padded_ones(tmp_path, stories_model):
    """Several steps an epoch, so that another order of rows would show in every loss."""
    common = {"num_train_epochs": 2.0, "per_device_train_batch_size": 3, "gradient_accumulation_steps": 2, **LORA}
    for layout in ("padded", "unpadded"):
        run_training(tmp_path / layout, stories_model, story_rows(14), batching=layout, **common)
    padded, unpadded = steps(tmp_path / "padded/run"), steps(tmp_path / "unpadded/run")
    assert len(padded) == 6
    for one, other in zip(padded, unpadded, strict=True):
        assert one == pytest.approx(other, rel=5e-5)
    one, other = tensors(tmp_path / "padded/run"), tensors(tmp_path / "unpadded/run")
    assert all((one[name] - other[name]).norm() <= 1e-3 * one[name].norm() for name in one)


@pytest.mark.parametrize("layout", ["length_grouped", "packed", "unpadded"])
def test_continuing_in_the_middle_of_an_epoch_is_exact(tmp_path, stories_model, layout):
    common = {"num_train_epochs": 2.0, "save_strategy": "steps", "save_steps": 1, "batching": layout, "max_length": 128,
              **LORA, "lora_dropout": 0.1}  # fmt: skip
    rows = story_rows(12)
    run_training(tmp_path, stories_model, rows, **common)
    whole = tmp_path / "run"
    before, weights = steps(whole), tensors(whole)
    at = len(before) // 2 + 1  # inside the second epoch, whose order differs from the first one's
    for step in range(at + 1, len(before) + 1):
        (whole / f"checkpoint-{step}" / "manifest.json").unlink()
    run_training(tmp_path, stories_model, rows, resume_from_checkpoint="latest", **common)
    assert steps(whole) == before
    assert all(torch.equal(tensor, weights[name]) for name, tensor in tensors(whole).items())


def test_grouped_rows_come_once_an_epoch_in_another_order_each():
    sampler = LengthGroupedSampler(list(range(1, 102)), 4, seed=3)
    orders = []
    for epoch in range(3):
        sampler.set_epoch(epoch)
        orders.append(list(sampler))
        assert sorted(orders[-1]) == list(range(101))
    assert orders[0] != orders[1] != orders[2]
    sampler.set_epoch(0)
    assert list(sampler) == orders[0]


# Streaming


@pytest.mark.parametrize("layout", ["padded", "unpadded"])
def test_a_stream_is_the_rows_in_their_order(tmp_path, stories_model, layout):
    """Step k trains on rows 2k and 2k + 1, counted around; the ledger counts one pass."""
    import json

    from transformers import AutoModelForCausalLM, AutoTokenizer

    from tunesmith.config.schema import DataSection
    from tunesmith.data.examples import ExampleBuilder
    from tunesmith.data.rows import read_rows

    run_training(
        tmp_path, stories_model, story_rows(10), streaming=True, eval_rows=story_rows(2, seed=9), max_steps=7,
        batching=layout, learning_rate=1e-30, **LORA,
    )  # fmt: skip
    builder = ExampleBuilder(AutoTokenizer.from_pretrained(stories_model), DataSection())
    made = [builder.example(row) for row in read_rows(str(tmp_path / "train.jsonl"))]
    model = AutoModelForCausalLM.from_pretrained(stories_model, dtype=torch.float32)
    expected = []
    for step in range(7):
        two = [made[(2 * step + index) % 10] for index in range(2)]
        inputs, labels = batch(two, "padded")
        losses = token_losses(model, inputs, labels, chosen_positions=True)
        expected.append((losses.nll.sum() / losses.labelled.sum()).item())
    assert [loss for (loss,) in logged(tmp_path / "run", "loss")] == pytest.approx(expected, rel=1e-5)
    ledger = json.loads((tmp_path / "run/ledger.json").read_text())["training"]["total"]
    assert (ledger["read"], ledger["kept"]) == (10, 10)


@pytest.mark.parametrize(
    "more", [{}, {"shuffle_seed": 3, "shuffle_buffer": 4, "batching": "packed", "max_length": 150}]
)
def test_a_stream_continues_where_it_was(tmp_path, stories_model, more):
    rows = story_rows(9)
    common = {"max_steps": 6, "save_strategy": "steps", "save_steps": 1, "streaming": True, **LORA, "lora_dropout": 0.1}
    common |= more
    run_training(tmp_path, stories_model, rows, **common)
    whole = tmp_path / "run"
    before, weights = steps(whole), tensors(whole)
    for step in (5, 6):
        (whole / f"checkpoint-{step}" / "manifest.json").unlink()
    run_training(tmp_path, stories_model, rows, resume_from_checkpoint="latest", **common)
    assert steps(whole) == before
    assert all(torch.equal(tensor, weights[name]) for name, tensor in tensors(whole).items())


def test_a_stream_stops_at_a_leak_and_at_a_bad_row(tmp_path, stories_model):
    from tunesmith.errors import DataError

    rows = story_rows(8)
    common = {"max_steps": 4, "streaming": True, **LORA}
    with pytest.raises(DataError, match=r"eval.jsonl:1 = .*train.jsonl:6"):
        run_training(tmp_path / "leak", stories_model, rows, eval_rows=[rows[5]], **common)
    bad = [*rows[:4], {"prompt": "x", "completion": ""}]
    with pytest.raises(DataError, match=r"train.jsonl:5.*empty"):
        run_training(tmp_path / "bad", stories_model, bad, **common)


@pytest.mark.parametrize(
    "settings",
    [{}, *({"max_steps": 3, **more} for more in ({"dev_split": 0.5}, {"batching": "length_grouped"}))],
)
def test_what_streaming_cannot_do_is_said_before_anything_is_read(settings):
    from tunesmith.errors import ConfigError

    with pytest.raises(ConfigError, match="streaming does not go with"):
        resolved_from(model_name_or_path="x", train_data="x.jsonl", streaming=True, **settings)
