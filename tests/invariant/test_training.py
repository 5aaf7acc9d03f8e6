"""Invariants of training, each on a real small model: what must not change when only the mechanics change."""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path

import pytest
import torch

from helpers import logged, resolved_from, run_training, story_rows, tensors
from tunesmith.model import head

LORA = {"use_lora": True, "lora_r": 4, "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj"]}
FULL = {"use_lora": False}


def curve(folder: Path) -> list[tuple[float, ...]]:
    return logged(folder, "step", "loss", "grad_norm")


def assert_same_curve(one: Path, other: Path, rel: float) -> None:
    left, right = curve(one), curve(other)
    assert len(left) == len(right) > 0
    for a, b in zip(left, right, strict=True):
        assert a == pytest.approx(b, rel=rel)


UNEQUAL = story_rows(16)
"""Rows with unequal token counts, so that a mean of means would show."""
CLIPPED = {"max_steps": 4, "max_grad_norm": 0.5, "optim": "sgd", "learning_rate": 1e-2}


@pytest.fixture(scope="module", params=[FULL, LORA], ids=["full", "lora"])
def large_batch(request, stories_model, tmp_path_factory):
    """A run with all rows of a step in one batch, and the settings of what is trained."""
    folder = tmp_path_factory.mktemp("large")
    run_training(folder, stories_model, UNEQUAL, per_device_train_batch_size=8, **CLIPPED, **request.param)
    return folder / "run", request.param


@pytest.mark.parametrize(("batch", "accumulation"), [(4, 2), (2, 4), (1, 8)])
def test_accumulation_times_batch_is_one_large_batch(tmp_path, stories_model, large_batch, batch, accumulation):
    """N1."""
    large, kind = large_batch
    sizes = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": accumulation}
    run_training(tmp_path, stories_model, UNEQUAL, **sizes, **CLIPPED, **kind)
    assert_same_curve(large, tmp_path / "run", rel=1e-5)
    one, many = tensors(large), tensors(tmp_path / "run")
    for name, tensor in one.items():
        assert (tensor - many[name]).norm() <= 1e-6 * tensor.norm() + 1e-9, name


def test_accumulated_loss_is_the_token_mean_of_the_whole_step(tmp_path, stories_model):
    """The logged loss of step 1 equals an independent cross-entropy over all labelled tokens of the step (N22)."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    rows = story_rows(6)
    run_training(
        tmp_path, stories_model, rows, per_device_train_batch_size=2, gradient_accumulation_steps=3, max_steps=1, **FULL
    )
    model = AutoModelForCausalLM.from_pretrained(stories_model, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(stories_model)
    total, count = 0.0, 0
    for row in rows:
        prompt = [tokenizer.bos_token_id, *tokenizer(row["prompt"], add_special_tokens=False).input_ids]
        whole = [
            tokenizer.bos_token_id,
            *tokenizer(row["prompt"] + row["completion"], add_special_tokens=False).input_ids,
        ]
        assert whole[: len(prompt)] == prompt
        whole.append(tokenizer.eos_token_id)
        with torch.no_grad():
            log_probs = model(torch.tensor([whole])).logits[0].double().log_softmax(-1)
        for position in range(len(prompt), len(whole)):
            total -= log_probs[position - 1, whole[position]].item()
            count += 1
    assert logged(tmp_path / "run", "loss")[0][0] == pytest.approx(total / count, rel=1e-5)


def test_prompt_tokens_get_no_gradient(stories_model, stories_tokenizer):
    """N5: the loss has no gradient with respect to logits that predict prompt tokens or padding."""
    from transformers import AutoModelForCausalLM

    from tunesmith.config.schema import DataSection
    from tunesmith.data.batching import BatchRows
    from tunesmith.data.collate import Collator
    from tunesmith.data.examples import ExampleBuilder
    from tunesmith.data.row import Row
    from tunesmith.evaluate.loss import token_losses

    rows = [Row(row, "test", line) for line, row in enumerate(story_rows(4), start=1)]
    builder = ExampleBuilder(stories_tokenizer, DataSection())
    examples = [builder.example(row) for row in rows]
    batch = Collator("padded", stories_tokenizer.eos_token_id)(BatchRows(examples, "padded", 256))
    batch.pop("origins")
    labels = batch.pop("labels")
    model = AutoModelForCausalLM.from_pretrained(stories_model, dtype=torch.float32)
    kept: list[torch.Tensor] = []

    def keep(module, arguments, output):
        output.retain_grad()
        kept.append(output)

    model.lm_head.register_forward_hook(keep)
    token_losses(model, batch, labels, chosen_positions=False).nll.sum().backward()
    gradient = kept[0].grad.abs().sum(-1)
    for row, example in enumerate(examples):
        trained = range(example.num_prompt_tokens - 1, len(example.input_ids) - 1)
        assert all(gradient[row, position] > 0 for position in trained)
        silent = [position for position in range(gradient.shape[1]) if position not in trained]
        assert gradient[row, silent].abs().max() == 0


def test_chosen_positions_change_no_loss(stories_model, stories_tokenizer):
    """Logits only where labels are: the same losses and the same gradients."""
    from transformers import AutoModelForCausalLM

    from tunesmith.evaluate.loss import token_losses

    model = AutoModelForCausalLM.from_pretrained(stories_model, dtype=torch.float32)
    generator = torch.Generator().manual_seed(1)
    input_ids = torch.randint(3, 500, (3, 40), generator=generator)
    labels = input_ids.masked_fill(torch.rand(3, 40, generator=generator) < 0.6, -100)
    labels[:, :10] = -100
    results = []
    for chosen in (False, True):
        model.zero_grad()
        losses = token_losses(model, {"input_ids": input_ids}, labels, chosen_positions=chosen)
        losses.nll.sum().backward()
        results.append((losses.nll.sum().item(), int(losses.labelled.sum()), model.lm_head.weight.grad.clone()))
    assert results[0][0] == pytest.approx(results[1][0], rel=1e-6)
    assert results[0][1] == results[1][1] == int((labels[:, 1:] != -100).sum())
    assert torch.allclose(results[0][2], results[1][2], rtol=1e-5, atol=1e-6)


ONE_STEP = {"max_steps": 3, "per_device_train_batch_size": 6, **LORA}


@pytest.fixture(scope="module")
def padded(stories_model, tmp_path_factory):
    """A run whose steps are each one padded batch of all rows."""
    folder = tmp_path_factory.mktemp("padded")
    run_training(folder, stories_model, story_rows(6), **ONE_STEP)
    return folder / "run"


@pytest.mark.parametrize("batching", ["length_grouped", "packed", "unpadded"])
def test_layouts_give_the_loss_of_padded_batches(tmp_path, stories_model, padded, batching):
    """All rows in one step, so that every layout holds the same examples (N10)."""
    run_training(tmp_path, stories_model, story_rows(6), batching=batching, **ONE_STEP)
    assert_same_curve(padded, tmp_path / "run", rel=2e-5)


def test_padding_changes_nothing(stories_model):
    """N8: more padding, another pad token, another order of rows: the same loss."""
    from transformers import AutoModelForCausalLM

    from tunesmith.data.collate import Collator
    from tunesmith.evaluate.loss import token_losses

    model = AutoModelForCausalLM.from_pretrained(stories_model, dtype=torch.float32).eval()
    generator = torch.Generator().manual_seed(2)
    features = []
    for length in (9, 23, 14):
        ids = torch.randint(3, 500, (length,), generator=generator).tolist()
        features.append({"input_ids": ids, "labels": [-100] * 5 + ids[5:], "origins": [str(length)]})
    totals = []
    for pad, multiple, order in [(2, None, [0, 1, 2]), (0, 64, [0, 1, 2]), (2, None, [2, 0, 1])]:
        batch = Collator("padded", pad, multiple)([features[index] for index in order])
        batch.pop("origins")
        labels = batch.pop("labels")
        totals.append(token_losses(model, batch, labels, chosen_positions=True).nll.sum().item())
    assert totals[0] == pytest.approx(totals[1], rel=1e-6)
    assert totals[0] == pytest.approx(totals[2], rel=1e-6)


@pytest.mark.parametrize("kind", [FULL, LORA, LORA | {"load_in_8bit": True}], ids=["full", "lora", "int8"])
def test_gradient_checkpointing_changes_nothing(tmp_path, stories_model, kind, monkeypatch):
    """N9: dropout on, so that the recomputed pass must draw the same random numbers. Layers that are not recomputed
    would leave out positions of the last MLP, which is exact but not to the last bit on every processor."""
    rows = story_rows(6)
    common = {"max_steps": 3, **kind} | ({"lora_dropout": 0.1} if kind.get("use_lora") else {})
    with monkeypatch.context() as patched:
        patched.setattr(head, "recomputes", lambda model: True)
        run_training(tmp_path / "off", stories_model, rows, **common)
    run_training(tmp_path / "on", stories_model, rows, gradient_checkpointing=True, **common)
    assert curve(tmp_path / "off/run") == curve(tmp_path / "on/run")


def test_same_run_twice_gives_the_same_bytes(tmp_path, stories_model):
    """N4: weights and log, bit for bit."""
    rows = story_rows(10)
    for name in ("first", "second"):
        run_training(tmp_path / name, stories_model, rows, max_steps=5, **LORA | {"lora_dropout": 0.1})
    first, second = (tmp_path / name / "run" for name in ("first", "second"))
    assert curve(first) == curve(second)
    names = ["adapter_model.safetensors", "tokenizer.json", "ledger.json"]
    for name in names[:2]:
        hashes = [hashlib.sha256((folder / name).read_bytes()).hexdigest() for folder in (first, second)]
        assert hashes[0] == hashes[1], name


@pytest.mark.parametrize("at", [2, 3, 4])
def test_a_resumed_run_equals_the_uninterrupted_one(tmp_path, stories_model, at):
    """N3: mid-epoch, at the epoch's end and after it; weights, log and learning rate, bit for bit."""
    rows = story_rows(6)
    common = {"num_train_epochs": 2.0, "save_strategy": "steps", "save_steps": 1, **LORA, "lora_dropout": 0.1,
              "lr_scheduler_type": "cosine"}  # fmt: skip
    run_training(tmp_path / "whole", stories_model, rows, **common)
    whole = tmp_path / "whole/run"
    assert len(curve(whole)) == 6
    before = (curve(whole), logged(whole, "learning_rate"), tensors(whole))
    for step in range(at + 1, 7):
        (whole / f"checkpoint-{step}" / "manifest.json").unlink()  # as if the run had been killed while writing these
    run_training(tmp_path / "whole", stories_model, rows, resume_from_checkpoint="latest", **common)
    assert curve(whole) == before[0]
    assert logged(whole, "learning_rate") == before[1]
    for name, tensor in tensors(whole).items():
        assert torch.equal(tensor, before[2][name]), name


def test_evaluating_changes_nothing(tmp_path, stories_model):
    """N20: evaluation and generation at every step leave the run bit-equal to one without."""
    rows, held = story_rows(8), story_rows(3, seed=9)
    common = {"max_steps": 4, **LORA, "lora_dropout": 0.1}
    run_training(tmp_path / "without", stories_model, rows, **common)
    run_training(
        tmp_path / "with", stories_model, rows, eval_rows=held, eval_steps=1, generate=True, max_new_tokens=4,
        task="exact", **common,
    )  # fmt: skip
    assert len(logged(tmp_path / "with/run", "eval_loss", "eval_exact_match")) == 4
    assert curve(tmp_path / "without/run") == curve(tmp_path / "with/run")
    one, other = tensors(tmp_path / "without/run"), tensors(tmp_path / "with/run")
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_evaluation_loss_is_over_tokens_not_batches(tmp_path, stories_model):
    """The logged evaluation loss does not depend on the evaluation batch size."""
    held = story_rows(7, seed=9)
    for size in (1, 3, 7):
        run_training(
            tmp_path / str(size), stories_model, story_rows(2), eval_rows=held, eval_steps=1, max_steps=1,
            per_device_eval_batch_size=size, **LORA,
        )  # fmt: skip
    losses = [logged(tmp_path / str(size) / "run", "eval_loss")[0][0] for size in (1, 3, 7)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6) == pytest.approx(losses[2], rel=1e-6)


def test_learning_rate_follows_its_closed_form(tmp_path, stories_model):
    """N19: warmup from 0, peak, linear to 0."""
    run_training(
        tmp_path, stories_model, story_rows(4), max_steps=10, warmup_ratio=0.25, learning_rate=1e-3, **LORA
    )  # fmt: skip
    warmup = math.ceil(0.25 * 10)
    expected = [1e-3 * min(step / warmup, (10 - step) / (10 - warmup)) for step in range(1, 11)]
    rates = [rate for (rate,) in logged(tmp_path / "run", "learning_rate")]
    # the rate logged after step t is the one that step t + 1 will use, but for the very last
    assert rates == pytest.approx(expected, abs=1e-9) or rates == pytest.approx([0, *expected[:-1]], abs=1e-9)


def test_every_row_is_seen_once_an_epoch(tmp_path, stories_model):
    """N18: steps follow the formula, and tokens add up over an epoch."""
    rows = story_rows(7)
    result = run_training(
        tmp_path, stories_model, rows, num_train_epochs=2.0, gradient_accumulation_steps=2, optim="sgd", **LORA
    )
    record = json.loads((tmp_path / "run/run.json").read_text())
    assert result.steps == record["plan"]["total_steps"] == 2 * math.ceil(math.ceil(7 / 2) / 2)


def test_four_rows_are_learnt_by_heart_and_generation_stops(tmp_path, stories_model):
    """N23: the guard over masks, begin and end tokens, template and generation at once."""
    from tunesmith.evaluate.run import evaluate_run

    rows = [
        {"prompt": f"{name} likes", "completion": f" the {thing}."}
        for name, thing in [("Lily", "ball"), ("Tom", "dog"), ("Ben", "cake"), ("Mia", "tree")]
    ]
    run_training(
        tmp_path, stories_model, rows, max_steps=120, per_device_train_batch_size=4, learning_rate=5e-3, use_lora=False,
        logging_steps=20,
    )  # fmt: skip
    assert logged(tmp_path / "run", "loss")[-1][0] < 0.05
    result = evaluate_run(tmp_path / "run", data=str(tmp_path / "train.jsonl"), settings=["--max_new_tokens", "16"])
    assert [row["output"].strip() for row in result.predictions] == [row["completion"].strip() for row in rows]
    assert all(row["stopped"] for row in result.predictions)


def test_the_trainer_knows_that_the_loss_is_scaled(stories_model, tmp_path):
    """The flag behind the accumulation fault of 2024 stays on, also over a quantized base (document 2, section 8)."""
    from tunesmith.model.device import here
    from tunesmith.model.load import load_model
    from tunesmith.model.precision import choose_precision

    resolved = resolved_from(
        model_name_or_path=str(stories_model), train_data="x.jsonl", load_in_4bit=True, gradient_checkpointing=True
    )
    model = load_model(resolved, choose_precision(resolved, here(resolved)), here(resolved))
    import inspect

    parameters = inspect.signature(model.get_base_model().forward).parameters.values()
    assert any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters)
