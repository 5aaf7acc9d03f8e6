"""``batching: auto``: what the architecture promises and what the model itself proves."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as t

from helpers import logged, run_training
from tiny_models import build
from tunesmith import notices
from tunesmith.errors import ModelError
from tunesmith.model.internals import attention_of
from tunesmith.model.layout import expected_layout, settle_layout
from tunesmith.model.precision import Precision

CPU = torch.device("cpu")
ROWS = [{"prompt": f"{index} " + "ab " * (1 + index % 3), "completion": "cd" * (1 + index % 2)} for index in range(8)]
FLOAT32 = Precision("float32", "test")


def built(kind: str) -> Any:
    """A small model; besides those of ``tiny_models``, architectures in whose rows examples cannot be kept apart."""
    sizes = {"vocab_size": 96, "hidden_size": 64, "bos_token_id": 1, "eos_token_id": 2}
    if kind == "falcon":
        return t.FalconForCausalLM(t.FalconConfig(**sizes, num_hidden_layers=2, num_attention_heads=4))
    if kind == "gpt_neo":
        kinds = [[["global", "local"], 1]]
        return t.GPTNeoForCausalLM(t.GPTNeoConfig(**sizes, num_layers=2, num_heads=4, attention_types=kinds))
    if kind == "mamba":
        return t.MambaForCausalLM(t.MambaConfig(**sizes, num_hidden_layers=2))
    return build(kind)


@pytest.mark.parametrize("kind", ["llama", "mistral", "gpt2"])
def test_what_the_architecture_promises_is_what_the_model_does(kind: str, settings: Callable[..., Any]) -> None:
    expected = expected_layout(settings(kind))
    settled = settle_layout("auto", built(kind), FLOAT32, CPU)
    assert (expected.batching, expected.reason) == (settled.batching, settled.reason)
    assert settled.boundaries == "lengths"


@pytest.mark.parametrize(
    ("kind", "reason"), [("falcon", "takes no other"), ("mamba", "takes no positions"), ("gpt_neo", "attention")]
)
def test_where_several_examples_in_a_row_do_not_pay_batches_are_padded(
    kind: str, reason: str, clean_notices: None
) -> None:
    model = built(kind)
    before = attention_of(model)
    settled = settle_layout("auto", model, FLOAT32, CPU)
    assert settled.batching == "padded"
    assert reason in settled.reason
    assert attention_of(model) == before
    assert any(reason in text and "padded" in text for text in notices.collected())


@pytest.mark.parametrize(("kind", "wanted", "told"), [("gpt2", "auto", 1), ("gpt2", "padded", 0), ("llama", "auto", 0)])
def test_a_model_with_dropout_of_its_own_is_told(kind: str, wanted: str, told: int, clean_notices: None) -> None:
    settle_layout(wanted, built(kind), FLOAT32, CPU)
    assert sum("drops out by itself (up to 0.1)" in text for text in notices.collected()) == told


def test_check_tells_of_a_models_own_dropout(settings: Callable[..., Any], clean_notices: None) -> None:
    expected_layout(settings("gpt2"))
    assert sum("drops out by itself (up to 0.1)" in text for text in notices.collected()) == 1


def test_a_model_that_fails_the_proof_is_padded_with_its_own_attention(
    clean_notices: None,
) -> None:
    """The architecture promises, and the model does not keep it: a layer mixes neighbouring tokens."""
    model = built("llama")
    model.model.layers[0].mlp.register_forward_hook(lambda _module, _inputs, output: output + output.roll(1, dims=1))
    settled = settle_layout("auto", model, FLOAT32, CPU)
    assert settled.batching == "padded"
    assert "see each other" in settled.reason
    assert attention_of(model) == "sdpa"
    with pytest.raises(ModelError, match="see each other"):
        settle_layout("unpadded", model, FLOAT32, CPU)


def test_eager_attention_that_was_written_is_kept(settings: Callable[..., Any]) -> None:
    model = built("llama")
    model.set_attn_implementation("eager")
    assert expected_layout(settings(attn_implementation="eager")).batching == "padded"
    assert settle_layout("auto", model, FLOAT32, CPU).batching == "padded"


def test_a_run_by_default_has_the_losses_of_a_padded_one_and_says_its_layout(
    tmp_path: Path, models_folder: Path, clean_notices: None
) -> None:
    common: dict[str, Any] = {"max_steps": 3, "use_lora": False, "max_length": 64}
    rows = ROWS
    found = {}
    for name, more in (("auto", {}), ("padded", {"batching": "padded"})):
        run_training(tmp_path / name, models_folder / "mistral", rows, **common, **more)
        found[name] = logged(tmp_path / name / "run", "step", "loss", "grad_norm")
        record = json.loads((tmp_path / name / "run/run.json").read_text())
        assert record["layout"]["batching"] == ("prefix_tree" if name == "auto" else "padded")
        assert record["layout"]["reason"]
    for one, other in zip(found["auto"], found["padded"], strict=True):
        assert one == pytest.approx(other, rel=1e-5)


def test_layouts_that_are_the_same_may_continue_each_other(tmp_path: Path, models_folder: Path) -> None:
    """``auto`` that came to a tree is ``prefix_tree``; padded rows need leave, also of older checkpoints."""
    from tunesmith.errors import ConfigError

    common: dict[str, Any] = {"use_lora": False, "save_strategy": "steps", "save_steps": 1, "max_length": 64}
    rows = ROWS
    run_training(tmp_path, models_folder / "mistral", rows, max_steps=1, **common)
    checkpoint = str(tmp_path / "run/checkpoint-1")
    with pytest.raises(ConfigError, match="layout: prefix_tree -> padded"):
        run_training(
            tmp_path, models_folder / "mistral", rows, max_steps=2, batching="padded",
            resume_from_checkpoint=checkpoint, **common,
        )  # fmt: skip
    run_training(
        tmp_path, models_folder / "mistral", rows, max_steps=2, batching="prefix_tree",
        resume_from_checkpoint=checkpoint, **common,
    )  # fmt: skip


def test_terms_from_before_the_layout_was_a_fact_are_read(tmp_path: Path) -> None:
    from tunesmith.train.contract import written_terms

    terms = {"settings": {"training.batching": "packed"}, "facts": {}, "versions": {}}
    (tmp_path / "contract.json").write_text(json.dumps(terms))
    assert written_terms(tmp_path) == {"settings": {}, "facts": {"layout": "packed"}, "versions": {}}
