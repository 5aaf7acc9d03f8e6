"""A base that is large for the cpu: the run's model is asked layer by layer or in its bits, once for all prompts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from merges import compared, random_questions, run_folder
from tunesmith.config.resolve import Resolved
from tunesmith.errors import NumericsError
from tunesmith.export import asked, proof, shards
from tunesmith.export.layered import from_files
from tunesmith.export.merge import merge
from tunesmith.model.load import model_spec

Settings = Callable[..., Resolved]


@pytest.fixture
def everything_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asked, "LARGE", 0)
    monkeypatch.setattr(proof, "read_in_a_new_process", proof.read_merged)  # the same work, without a new process


WAYS: dict[str, dict[str, Any]] = {
    "float32": {},
    "tied": {"kind": "llama", "target_modules": ["q_proj", "embed_tokens"]},
    "head": {"modules_to_save": ["lm_head"]},
    "columns": {"kind": "gpt2", "target_modules": ["c_attn", "c_proj"], "bias": "all"},
    "bfloat16": {"bf16": True},
    "nf4": {"load_in_4bit": True},
    "nf4 in bfloat16": {"load_in_4bit": True, "bf16": True},
    "int8": {"load_in_8bit": True},
}


@pytest.mark.parametrize(
    ("way", "dtype"), [(way, "float32") for way in WAYS] + [("float32", "bfloat16"), ("nf4", "bfloat16")]
)
def test_right_merge_of_a_large_model_is_proven_as_that_of_a_small_one(
    way: str, dtype: Any, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = run_folder(settings, tmp_path / "run", **WAYS[way])
    questions = random_questions().for_large_models()
    small = asked.ask(model_spec(run, device_map="cpu"), "trained", dtype, questions, tmp_path)
    monkeypatch.setattr(asked, "LARGE", 0)
    use, noise, ledger = compared(run, tmp_path / "work", random_questions(), dtype)
    assert proof.problems_of(use, proof.allowed(noise, dtype)) == []
    assert (use.num_answers, use.num_positions) == (4, sum(map(len, small.reading.logprobs)))
    assert ledger.largest_error <= 0.501
    if dtype == "float32" and not WAYS[way].keys() & {"bf16", "load_in_8bit"}:
        assert use.mean_logprob_difference <= 1e-5
        large = asked.ask(model_spec(run, device_map="cpu"), "trained", dtype, questions, tmp_path / "work")
        assert large.reading.answers == small.reading.answers
        assert proof.difference(large.reading, small.reading).largest_logprob_difference <= 1e-4


def test_weights_of_a_layer_are_there_while_it_works_alone(models_folder: Path) -> None:
    folder = models_folder / "llama"
    model: Any = from_files(folder, AutoConfig.from_pretrained(folder))
    layers = list(model.model.layers)
    seen = []
    for layer in layers:
        layer.register_forward_hook(
            lambda *_: seen.append([one.mlp.up_proj.weight.is_meta for one in layers]), prepend=True
        )
    ids = torch.arange(4, 20)[None]
    with torch.no_grad():
        logits = [model(input_ids=ids, use_cache=False).logits for _ in range(2)]
        plain = AutoModelForCausalLM.from_pretrained(folder)(input_ids=ids).logits
    assert seen == [[False, True], [True, False]] * 2
    assert all(parameter.is_meta for layer in layers for parameter in layer.parameters())
    torch.testing.assert_close(logits[0], plain)
    assert torch.equal(logits[0], logits[1])


@pytest.mark.parametrize("way", ["float32", "nf4"])
@pytest.mark.usefixtures("everything_is_large")
def test_wrong_merge_of_a_large_model_is_refused(
    way: str, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = run_folder(settings, tmp_path / "run", **WAYS[way])
    right = shards.fold

    def spoilt(*arguments: Any, **keywords: Any) -> shards.Fold:
        fold = right(*arguments, **keywords)
        for layer in fold._sites.values():
            layer.scaling["default"] *= 2
        return fold

    monkeypatch.setattr(shards, "fold", spoilt)
    with pytest.raises(NumericsError, match="base \\+ update"):
        merge(run, tmp_path / "merged", questions=random_questions())
    monkeypatch.setattr(shards, "merged_is_expected", lambda *given: 0.5)  # what use alone would tell
    with pytest.raises(NumericsError, match="log-probabilities differ"):
        merge(run, tmp_path / "merged", questions=random_questions(), dtype="float32")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
