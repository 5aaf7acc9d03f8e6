"""Merged models answer as what was trained, whichever way they are folded; what differs is measured and refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from helpers import run_training, story_rows
from merges import compared, random_questions, run_folder
from tunesmith.config.resolve import Resolved
from tunesmith.errors import ModelError, NumericsError, StorageError
from tunesmith.evaluate.prompts import questions_for
from tunesmith.export import merge as merging
from tunesmith.export import proof
from tunesmith.export.merge import merge, write_merged
from tunesmith.model import adapter_file
from tunesmith.model.adapters import base_of, load_adapter_strictly
from tunesmith.model.load import load_for_inference, load_from_spec, model_spec
from tunesmith.model.quantize import dequantized, quantized_layers, use_dequantized_weights

Settings = Callable[..., Resolved]


def merged_by_peft(run: Path, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Every weight of PEFT's own merge, of the base in memory as a whole."""
    how = model_spec(run, device_map="cpu")
    quantized = how.resolved.config.quantization.load_in_4bit or how.resolved.config.quantization.load_in_8bit
    base = AutoModelForCausalLM.from_pretrained(how.base_folder(), dtype=how.weight_dtype).float()
    if quantized:
        for name, layer in quantized_layers(base_of(load_from_spec(how).model)):
            base.get_parameter(f"{name.replace('.base_layer', '')}.weight").data = dequantized(layer).float()
    merged = load_adapter_strictly(base, run, how.base_folder(), how.checksum).merge_and_unload()
    return {name: tensor.to(dtype) for name, tensor in merged.state_dict().items()}


WAYS: list[dict[str, Any]] = [
    {},
    {"use_rslora": True},
    {"use_dora": True},
    {"init_lora_weights": "pissa"},
    {"bf16": True},
    {"target_modules": "all-linear", "modules_to_save": ["lm_head"]},
    {"target_modules": ["q_proj", "embed_tokens"]},
    {"target_modules": ["q_proj", "embed_tokens"], "use_dora": True},
    {"kind": "llama"},
    {"kind": "llama", "modules_to_save": ["lm_head"]},
    {"kind": "llama", "target_modules": ["q_proj", "embed_tokens"]},
    {"kind": "gpt2", "target_modules": ["c_attn", "c_proj"], "bias": "all"},
    {"kind": "gpt2", "target_modules": ["c_attn", "c_proj"], "use_dora": True},
    {"kind": "gpt2", "target_modules": ["c_attn", "c_proj"], "load_in_4bit": True},
    {"load_in_4bit": True},
    {"load_in_4bit": True, "bf16": True},
    {"load_in_4bit": True, "use_dora": True},
    {"load_in_4bit": True, "bnb_4bit_quant_type": "fp4"},
    {"load_in_8bit": True},
]


@pytest.mark.parametrize("values", WAYS, ids=str)
def test_every_way_is_proven_and_is_what_peft_merges(
    values: dict[str, Any], settings: Settings, tmp_path: Path
) -> None:
    run = run_folder(settings, tmp_path / "run", **values)
    use, noise, ledger = compared(run, tmp_path / "work", random_questions())
    limit = 1e-5 if not values.get("load_in_8bit") and not values.get("bf16") else 0.05
    assert use.mean_logprob_difference <= limit
    assert proof.problems_of(use, proof.allowed(noise, "float32")) == []
    assert ledger.folded >= 2
    assert ledger.largest_error <= 0.501
    by_peft = merged_by_peft(run, torch.float32)
    found = AutoModelForCausalLM.from_pretrained(tmp_path / "work" / "merged").state_dict()
    assert set(found) == set(by_peft)
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, by_peft[name], rtol=2e-6, atol=1e-7, msg=name)


@pytest.mark.parametrize(
    "values", [{}, {"load_in_4bit": True}, {"kind": "llama", "modules_to_save": ["lm_head"]}], ids=str
)
def test_shards_have_an_index_and_one_type(values: dict[str, Any], settings: Settings, tmp_path: Path) -> None:
    run = run_folder(settings, tmp_path / "run", **values)
    folder = tmp_path / "merged"
    merge(run, folder, questions=None, max_shard_size="60KB")
    names = {path.name for path in folder.iterdir()}
    assert len([name for name in names if name.endswith(".safetensors")]) >= 3
    assert {"model.safetensors.index.json", "config.json", "generation_config.json"} <= names
    merged = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
    assert {parameter.dtype for parameter in merged.parameters()} == {torch.bfloat16}
    by_peft = merged_by_peft(run, torch.bfloat16)
    assert all(torch.equal(tensor, by_peft[name]) for name, tensor in merged.state_dict().items())


def test_base_whose_files_name_tensors_otherwise_keeps_their_names(
    settings: Settings, models_folder: Path, tmp_path: Path
) -> None:
    base = tmp_path / "base"
    AutoModelForCausalLM.from_pretrained(models_folder / "gpt2").transformer.save_pretrained(
        base
    )  # as GPT-2 was published
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (base / name).write_bytes((models_folder / "gpt2" / name).read_bytes())
    run = run_folder(settings, tmp_path / "run", model_name_or_path=str(base), target_modules=["c_attn"])
    use, _, ledger = compared(run, tmp_path / "work", random_questions())
    assert use.mean_logprob_difference <= 1e-5
    assert ledger.folded == 2
    assert set(load_file(tmp_path / "work" / "merged" / "model.safetensors")) == set(
        load_file(base / "model.safetensors")
    )


def test_original_base_is_folded_into_as_it_was_published(
    settings: Settings, stories_model: Path, tmp_path: Path
) -> None:
    run = run_folder(settings, tmp_path / "run", model_name_or_path=str(stories_model), load_in_4bit=True)
    questions = random_questions(512)
    trained, _, _ = compared(run, tmp_path / "trained", questions)
    original, _, _ = compared(run, tmp_path / "original", questions, base="original")
    assert max(trained.mean_logprob_difference, original.mean_logprob_difference) <= 1e-5
    found, kept = (
        load_file(tmp_path / "original" / "merged" / "model.safetensors"),
        load_file(stories_model / "model.safetensors"),
    )
    same = [name for name, tensor in kept.items() if torch.equal(found[name], tensor.float())]
    assert len(same) == len(kept) - 20  # four projections of each of five layers


TRAINED: dict[str, dict[str, Any]] = {
    "lora": {},
    "rslora": {"use_rslora": True},
    "dora": {"use_dora": True},
    "nf4": {"load_in_4bit": True},
    "int8": {"load_in_8bit": True},
}


@pytest.fixture(scope="module")
def real_runs(stories_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A short training of the small real model, for each kind of adapter and base; held-out rows are set aside."""
    home = tmp_path_factory.mktemp("real")
    runs = {}
    for name, values in TRAINED.items():
        result = run_training(
            home / name,
            stories_model,
            story_rows(40),
            eval_rows=story_rows(20, seed=9),
            eval_strategy="no",
            allow_leak=True,
            max_steps=10,
            learning_rate=2e-3,
            **values,
        )
        runs[name] = result.folder
    return runs


@pytest.mark.parametrize("kind", TRAINED)
def test_merge_of_a_real_trained_model_agrees(kind: str, real_runs: dict[str, Path], tmp_path: Path) -> None:
    """The proof, and logits in float64 arithmetic, where float32's rounding of logits of 20 does not hide anything."""
    run = real_runs[kind]
    questions = questions_for(run)
    assert questions.kind == "held-out rows of the run"
    use, noise, _ = compared(run, tmp_path / "work", questions)
    assert proof.problems_of(use, proof.allowed(noise, "float32")) == []
    assert use.num_answers == 16
    if kind == "int8":  # its layers round their inputs as well, which no plain weight can do
        assert noise.mean_logprob_difference > 1e-4
    else:
        assert use.mean_logprob_difference <= 1e-5
        assert use.changed_answers == 0
    trained = load_for_inference(run).model
    use_dequantized_weights(trained, torch.float64)
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "work" / "merged").double()
    with torch.no_grad():
        apart = [
            (trained(torch.tensor([prompt])).logits - merged(torch.tensor([prompt])).logits).abs().max().item()
            for prompt in questions.prompts
        ]
    # what is left is the rounding of merged weights to float32: over ways and last digits of the training, means of
    # 3.5e-6 to 6.7e-6 and single prompts of up to 1.23e-5 were measured: ten units in the last place of a logit
    assert sum(apart) / len(apart) <= 1e-5
    assert max(apart) <= 2e-5


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_rounded_merge_is_judged_by_the_models_own_noise(
    dtype: str, real_runs: dict[str, Path], tmp_path: Path
) -> None:
    use, noise, _ = compared(real_runs["nf4"], tmp_path / "work", questions_for(real_runs["nf4"]), dtype=dtype)
    assert proof.problems_of(use, proof.allowed(noise, dtype)) == []
    assert noise.mean_logprob_difference > 1e-4
    assert use.mean_logprob_difference < 2 * noise.mean_logprob_difference


def test_proof_is_made_by_a_new_process_and_lies_beside_the_model(real_runs: dict[str, Path], tmp_path: Path) -> None:
    merged = merge(real_runs["nf4"], tmp_path / "merged", questions=questions_for(real_runs["nf4"]))
    written = json.loads((tmp_path / "merged" / "proof.json").read_text())
    assert written == merged.proof
    assert written["verdict"] == "proven"
    assert written["tensors"]["folded"] >= 4
    assert written["sha256"] == proof.sha256_of_weights(tmp_path / "merged")
    assert written["prompts"]["sources"][0] == "eval.jsonl:1"
    assert written["use"]["num_answers"] == written["noise"]["num_answers"] == 16
    assert {"torch", "transformers", "tunesmith"} <= set(written["versions"])
    config = json.loads((tmp_path / "merged" / "config.json").read_text())
    assert "quantization_config" not in config
    assert (config["dtype"], config["use_cache"]) == ("bfloat16", True)
    names = {path.name for path in merged.path.iterdir()}
    assert {"model.safetensors", "config.json", "tokenizer.json", "generation_config.json", "README.md"} <= names
    assert not any(name.startswith(("adapter_", ".")) for name in names)
    assert not list(tmp_path.glob(".merged*"))


def test_merged_model_that_is_another_is_not_kept(
    real_runs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forgetful(how, stage, **order):
        """A merge that forgets the adapter."""
        ledger = write_merged(how, stage, **order)
        original = Path(how.resolved.config.model.model_name_or_path)
        save_file(load_file(original / "model.safetensors"), stage / "model.safetensors", {"format": "pt"})
        return ledger

    monkeypatch.setattr(merging, "write_merged", forgetful)
    with pytest.raises(NumericsError, match="not what was trained") as caught:
        merge(real_runs["lora"], tmp_path / "merged", questions=questions_for(real_runs["lora"]), dtype="float32")
    assert caught.value.exit_code == 5
    assert list(tmp_path.iterdir()) == []


def test_merged_model_that_cannot_be_opened_is_not_kept(settings: Settings, tmp_path: Path, monkeypatch) -> None:
    def broken(how, stage, **order):
        why = write_merged(how, stage, **order)
        (stage / "config.json").write_text("{}")
        return why

    run = run_folder(settings, tmp_path / "run")
    monkeypatch.setattr(merging, "write_merged", broken)
    with pytest.raises(StorageError, match="new process"):
        merge(run, tmp_path / "merged", questions=random_questions())
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def change_a_value(run: Path) -> None:
    path = run / "adapter_model.safetensors"
    tensors = load_file(path)
    tensors[min(tensors)].view(-1)[0] += 1e-3
    save_file(tensors, path, metadata={"format": "pt"})


def change_a_value_and_keep_the_marks(run: Path) -> None:
    content = bytearray((run / "adapter_model.safetensors").read_bytes())
    content[-1] ^= 1
    (run / "adapter_model.safetensors").write_bytes(content)


def change_alpha(run: Path) -> None:
    config = json.loads((run / "adapter_config.json").read_text())
    (run / "adapter_config.json").write_text(json.dumps(config | {"lora_alpha": config["lora_alpha"] * 2}))


def change_the_rank(run: Path) -> None:
    config = json.loads((run / "adapter_config.json").read_text())
    (run / "adapter_config.json").write_text(json.dumps(config | {"r": config["r"] * 2}))


def lose_a_tensor(run: Path) -> None:
    tensors = load_file(run / "adapter_model.safetensors")
    tensors.pop(min(tensors))
    save_file(tensors, run / "adapter_model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("tamper", "message"),
    [
        (change_a_value, "checksums differ"),
        (change_a_value_and_keep_the_marks, "checksums differ"),
        (change_alpha, "checksums differ"),
        (change_the_rank, "wants rank 32"),
        (lose_a_tensor, "1 missing"),
    ],
)
def test_tampered_adapter_of_a_run_is_not_merged(
    tamper: Callable[[Path], None], message: str, real_runs: dict[str, Path], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    run.mkdir()
    for path in real_runs["lora"].iterdir():
        if path.is_file():
            (run / path.name).write_bytes(path.read_bytes())
    tamper(run)
    with pytest.raises(ModelError, match=message):
        merge(run, tmp_path / "merged", questions=None)
    with pytest.raises(ModelError, match=message):
        load_for_inference(run)
    assert not (tmp_path / "merged").exists()


def test_checksum_is_in_the_file_and_in_the_record(real_runs: dict[str, Path]) -> None:
    run = real_runs["lora"]
    file = adapter_file.read_adapter(run)
    recorded = json.loads((run / "run.json").read_text())["adapter"]
    assert recorded == {"folder": ".", "checksum": file.checksum}
    config = json.loads((run / "adapter_config.json").read_text())
    assert adapter_file.checksum(file.tensors, config) == file.checksum
    assert (
        adapter_file.checksum(file.tensors, config | {"peft_version": "9", "base_model_name_or_path": "x"})
        == file.checksum
    )


def test_refusals(settings: Settings, tmp_path: Path, models_folder: Path) -> None:
    with pytest.raises(ModelError, match="no adapter"):
        merge(models_folder / "llama", tmp_path / "merged", questions=None)
    run = run_folder(settings, tmp_path / "run")
    with pytest.raises(StorageError, match="there already"):
        merge(run, run, questions=None)
