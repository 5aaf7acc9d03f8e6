"""Tokens that a model did not know: rows of their own, tied where rows are tied, the same after saving and merging."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AutoPeftModelForCausalLM, LoraConfig, PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from helpers import run_training, tensors
from tunesmith.config.resolve import Resolved
from tunesmith.errors import ModelError
from tunesmith.evaluate.prompts import questions_for
from tunesmith.export import proof
from tunesmith.export.asked import ask
from tunesmith.export.merge import merge, write_merged
from tunesmith.export.save import save_model
from tunesmith.model.device import here
from tunesmith.model.load import load_for_inference, load_model, model_spec
from tunesmith.model.new_tokens import new_token_ids, rows_wanted, trained_rows
from tunesmith.model.precision import choose_precision
from tunesmith.model.tokenizer import load_tokenizer

Settings = Callable[..., Resolved]
TOKENS = ["<note>", "<more>"]


@pytest.mark.parametrize(
    ("kind", "more"),
    [
        ("mistral", {}),
        ("llama", {}),
        ("gpt2", {"target_modules": ["c_attn"]}),
        ("mistral", {"modules_to_save": ["lm_head"]}),
        ("mistral", {"load_in_4bit": True}),
        ("llama", {"bf16": True}),
    ],
    ids=["own head", "tied head", "gpt2", "head trained whole", "4 bits", "bf16"],
)
def test_rows_are_trained_saved_and_merged(kind: str, more: dict[str, Any], settings: Settings, tmp_path: Path) -> None:
    resolved = settings(kind, new_tokens=TOKENS, **more)
    precision = choose_precision(resolved, here(resolved))
    tokenizer = load_tokenizer(resolved.config.model, resolved.config.data)
    ids = new_token_ids(tokenizer, resolved.config.data)
    torch.manual_seed(0)
    model = load_model(resolved, precision, here(resolved), new_tokens=ids)
    base: Any = model.get_base_model()
    assert base.config.vocab_size == base.get_input_embeddings().weight.shape[0] >= max(ids) + 1
    moved = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert any("trainable_tokens_delta" in name for name in moved)
    for _, parameter in model.named_parameters():
        if parameter.requires_grad:
            parameter.data += 0.05 * torch.randn_like(parameter)
    run = tmp_path / "run"
    save_model(model, tokenizer, run, resolved.config.model)
    (run / "run.json").write_text(json.dumps({"settings": resolved.values(), "origins": resolved.origins}))
    assert max(tensor.shape[0] for name, tensor in tensors(run).items() if "tokens_delta" in name) == len(ids)

    again = load_for_inference(run, device_map="cpu").model
    text = torch.tensor([[5, *ids, 7, ids[0]]])
    with torch.no_grad(), precision.autocast("cpu"):
        torch.testing.assert_close(again(text).logits, model.eval()(text).logits, rtol=0, atol=1e-6)

    questions = proof.Questions([[5, ids[0], 9], [ids[1], 6, 8]], ["a", "b"], "with new tokens", [2], max_new_tokens=4)
    work = tmp_path / "work"
    (work / "merged").mkdir(parents=True)
    how = model_spec(run, device_map="cpu")
    asked = ask(how, "trained", "float32", questions, work)
    write_merged(how, work / "merged", dtype="float32", base="trained", max_shard_size="2GB", held=asked.held)
    use = proof.difference(asked.reading, proof.read_merged(work / "merged", work))
    assert not proof.problems_of(use, proof.allowed(asked.noise, "float32"))
    plain = AutoModelForCausalLM.from_pretrained(work / "merged")
    assert plain.config.tie_word_embeddings is base.config.tie_word_embeddings
    tied = plain.get_output_embeddings().weight is plain.get_input_embeddings().weight
    assert tied is bool(base.config.tie_word_embeddings), "tied weights stay tied"
    read = AutoTokenizer.from_pretrained(work / "merged")
    assert read("<note>x", add_special_tokens=False).input_ids[0] == ids[0]


@pytest.mark.parametrize("kind", ["mistral", "llama"])
def test_peft_alone_loads_an_adapter_with_new_tokens(kind: str, settings: Settings, tmp_path: Path) -> None:
    """As docs/how_to/rows.md says: AutoPeftModel makes room by itself, a PeftModel needs it made."""
    resolved = settings(kind, new_tokens=TOKENS)
    tokenizer = load_tokenizer(resolved.config.model, resolved.config.data)
    ids = new_token_ids(tokenizer, resolved.config.data)
    precision = choose_precision(resolved, here(resolved))
    model = load_model(resolved, precision, here(resolved), new_tokens=ids)
    for _, parameter in model.named_parameters():
        if parameter.requires_grad:
            parameter.data += 0.05 * torch.randn_like(parameter)
    save_model(model, tokenizer, tmp_path, resolved.config.model)
    text = torch.tensor([[5, *ids, 7]])
    base = AutoModelForCausalLM.from_pretrained(resolved.config.model.model_name_or_path)
    base.resize_token_embeddings(len(AutoTokenizer.from_pretrained(tmp_path)))
    with torch.no_grad():
        expected = model.eval()(text).logits
        for other in (AutoPeftModelForCausalLM.from_pretrained(tmp_path), PeftModel.from_pretrained(base, tmp_path)):
            found = other.eval()(text).logits
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_tokens_that_are_special_are_kept_out_of_content(settings: Settings) -> None:
    resolved = settings("mistral", new_special_tokens=["<|turn|>"], new_tokens=["<a>"])
    tokenizer = load_tokenizer(resolved.config.model, resolved.config.data)
    assert "<|turn|>" in tokenizer.all_special_tokens or any(
        token.content == "<|turn|>" and token.special for token in tokenizer.added_tokens_decoder.values()
    )
    assert len(new_token_ids(tokenizer, resolved.config.data)) == 2
    again = load_tokenizer(resolved.config.model, settings("mistral", new_tokens=["<unk>"]).config.data)
    assert len(again) == len(tokenizer) - 2, "a token that is there is not added"


def test_an_adapter_cannot_ask_for_rows_that_it_does_not_bring() -> None:
    config = LoraConfig(trainable_token_indices={"embed_tokens": [10, 11]})
    assert rows_wanted(config, 10) == 12
    assert rows_wanted(config, 100) == 100
    for ids in ([10**12], [10, 12], [12, 13]):
        with pytest.raises(ModelError, match="the base ends before token 10"):
            rows_wanted(LoraConfig(trainable_token_indices=ids), 10)


def test_nano_mistral_learns_to_say_a_new_token(tmp_path: Path) -> None:
    rows = [
        {"prompt": f"Is {number} even? ", "completion": "<yes>" if number % 2 == 0 else "<no>"} for number in range(8)
    ]
    run_training(
        tmp_path, "nano-mistral", rows, new_tokens=["<yes>", "<no>"], max_steps=30, learning_rate=1e-2, lora_r=8,
        per_device_train_batch_size=8, logging_steps=30, batching="packed",
    )  # fmt: skip
    run = tmp_path / "run"
    trained = load_for_inference(run, device_map="cpu")
    merge(run, tmp_path / "merged", questions=questions_for(run), dtype="float32")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "merged")
    said = set()
    for row in rows:
        ids = tokenizer(row["prompt"], return_tensors="pt").input_ids
        answers = [
            model.generate(input_ids=ids, max_new_tokens=3, do_sample=False)[0, ids.shape[1] :].tolist()
            for model in (trained.model, plain)
        ]
        assert answers[0] == answers[1], "adapter and merged model give the same answers"
        said |= set(tokenizer.convert_ids_to_tokens(answers[0]))
    assert said & {"<yes>", "<no>"}, "rows of embedding and head are trained"


@pytest.mark.parametrize(("kind", "whole", "words"), [
    ("mistral", None, "embed_tokens, lm_head would not be trained whole"),
    ("mistral", ["embed_tokens"], "lm_head would not be trained whole"),
    ("llama", ["embed_tokens"], "embedding and head are one"),
    ("mistral", ["embed_tokens", "lm_head"], None),
])  # fmt: skip
def test_weights_in_pieces_take_whole_layers_alone(
    kind: str, whole: list[str] | None, words: str | None, settings: Settings
) -> None:
    """PEFT cannot train single rows of a layer that lies on several devices."""
    resolved = settings(kind, use_lora=False)
    base: Any = load_model(resolved, choose_precision(resolved, here(resolved)), here(resolved))
    config = LoraConfig(modules_to_save=whole)
    if words is None:
        trained_rows(base, config, [5], spread=True)
        assert config.trainable_token_indices is None
    else:
        with pytest.raises(ModelError) as caught:
            trained_rows(base, config, [5], spread=True)
        assert all(word in str(caught.value).replace("model.", "") for word in words.split(", "))
