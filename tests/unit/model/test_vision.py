"""Checkpoints that read images are loaded, saved and merged as a whole; a run on text trains their language alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForMultimodalLM

from helpers import run_training, tensors
from tiny_models import VOCABULARY
from tunesmith.config.draft import DEFAULT
from tunesmith.config.resolve import Resolved, from_values
from tunesmith.errors import DataError
from tunesmith.export import proof
from tunesmith.export.asked import ask
from tunesmith.export.merge import merge, write_merged
from tunesmith.export.save import save_model
from tunesmith.model.device import here
from tunesmith.model.internals import opener_of
from tunesmith.model.load import load_for_inference, load_model, model_spec
from tunesmith.model.parts import beside_language, is_inside
from tunesmith.model.precision import choose_precision
from tunesmith.model.tokenizer import load_tokenizer
from vision_models import VISION, add_multi_token_prediction, write_vision_model

ROWS = [{"prompt": "ab", "completion": "cd"}, {"prompt": "abc", "completion": "d"}]


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    home = tmp_path_factory.mktemp("vision")
    for kind in VISION:
        write_vision_model(kind, home / kind)
    return {kind: home / kind for kind in VISION}


def settings_for(base: Path, **values: Any) -> Resolved:
    full = {"model.model_name_or_path": str(base)} | values
    return from_values(full, dict.fromkeys(full, DEFAULT))


def made(base: Path, **values: Any) -> tuple[Any, Resolved]:
    resolved = settings_for(base, **values)
    precision = choose_precision(resolved, here(resolved))
    torch.manual_seed(0)
    return load_model(resolved, precision, here(resolved)), resolved


@pytest.mark.parametrize("kind", VISION)
def test_language_is_adapted_and_the_whole_is_merged(kind: str, bases: dict[str, Path], tmp_path: Path) -> None:
    model, resolved = made(bases[kind])
    whole = model.get_base_model()
    assert type(whole).__name__ == json.loads((bases[kind] / "config.json").read_text())["architectures"][0]
    parts = beside_language(whole)
    assert any("vis" in part for part in parts)
    trained = [name.removeprefix("base_model.model.") for name, one in model.named_parameters() if one.requires_grad]
    assert trained
    assert not [name for name in trained if is_inside(name, parts)]
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    run = tmp_path / "run"
    save_model(model, load_tokenizer(resolved.config.model), run, resolved.config.model)
    (run / "run.json").write_text(json.dumps({"settings": resolved.values(), "origins": resolved.origins}))
    how = model_spec(run, device_map="cpu")
    texts = [
        torch.randint(4, VOCABULARY - 8, (8,), generator=torch.Generator().manual_seed(n)).tolist() for n in (1, 2)
    ]
    (tmp_path / "merged").mkdir()
    asked = ask(how, "trained", "float32", proof.Questions(texts, ["a", "b"], "random", [2], 2), tmp_path)
    write_merged(how, tmp_path / "merged", dtype="float32", base="trained", max_shard_size="2GB")
    use = proof.difference(asked.reading, proof.read_merged(tmp_path / "merged", tmp_path))
    assert use.mean_logprob_difference < 1e-5
    before, after = tensors(bases[kind]), tensors(tmp_path / "merged")
    assert before.keys() == after.keys()
    changed = [name for name in before if not torch.equal(before[name], after[name])]
    assert len(changed) == len([name for name in trained if "lora_B" in name])
    assert not [name for name in changed if "vis" in name]
    assert (tmp_path / "merged" / "preprocessor_config.json").is_file()
    opened, info = AutoModelForMultimodalLM.from_pretrained(tmp_path / "merged", output_loading_info=True)
    assert type(opened) is type(whole)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]


@pytest.mark.parametrize("kind", ["gemma3", "qwen3_5"])
def test_whole_model_trained_on_text_keeps_what_reads_images(kind: str, bases: dict[str, Path], tmp_path: Path) -> None:
    rows = ROWS * 2
    run_training(tmp_path, bases[kind], rows, use_lora=False, max_steps=1, max_length=32, batching="padded")
    before, after = tensors(bases[kind]), tensors(tmp_path / "run")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before if "visual" in name or "vision" in name)
    assert any(not torch.equal(before[name], after[name]) for name in before)
    assert type(load_for_inference(tmp_path / "run").model).__name__.endswith("ForConditionalGeneration")


def test_text_checkpoint_of_a_family_with_images_stays_a_text_model(bases: dict[str, Path]) -> None:
    config = AutoConfig.from_pretrained(bases["qwen3_5"])
    assert opener_of(config) is AutoModelForMultimodalLM
    config.architectures = ["Qwen3_5ForCausalLM"]
    assert opener_of(config).__name__ == "AutoModelForCausalLM"
    assert opener_of(config.get_text_config()).__name__ == "AutoModelForCausalLM"


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "ab", "completion": "cd", "image": "a.png"},
        {"prompt": "ab", "completion": "cd", "images": ["a.png"]},
        {"messages": [{"role": "user", "content": [{"type": "image", "image": "a.png"}]},
                      {"role": "assistant", "content": "cd"}]},
    ],
    ids=["column", "columns", "part"],
)  # fmt: skip
def test_rows_with_images_are_refused(row: dict[str, Any], bases: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"only text is trained; remove") as caught:
        run_training(tmp_path, bases["gemma3"], [row], max_steps=1, max_length=32)
    assert caught.value.exit_code == 3


def test_multi_token_prediction_is_carried_through_saves_and_merges(bases: dict[str, Path], tmp_path: Path) -> None:
    base = tmp_path / "base"
    write_vision_model("qwen3_5", base)
    extra = add_multi_token_prediction(base)
    model, resolved = made(base, **{"adapter.use_lora": False})
    tokenizer = load_tokenizer(resolved.config.model)
    for size in (None, "20KB"):
        whole = tmp_path / f"whole-{size}"
        save_model(model, tokenizer, whole, resolved.config.model, max_shard_size=size)
        assert tensors(whole).keys() == tensors(base).keys()
        assert all(torch.equal(tensors(whole)[name], tensor) for name, tensor in extra.items())
        again, _ = made(whole, **{"adapter.use_lora": False})
        assert all(torch.equal(a, b) for a, b in zip(again.parameters(), model.parameters(), strict=True))
    adapted, resolved = made(base)
    save_model(adapted, tokenizer, tmp_path / "run", resolved.config.model)
    (tmp_path / "run" / "run.json").write_text(json.dumps({"settings": resolved.values(), "origins": resolved.origins}))
    merge(tmp_path / "run", tmp_path / "merged", questions=None)
    assert all(torch.equal(tensors(tmp_path / "merged")[name], tensor) for name, tensor in extra.items())
