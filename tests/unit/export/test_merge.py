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
from tunesmith.config.resolve import Resolved
from tunesmith.errors import ModelError, NumericsError, StorageError
from tunesmith.evaluate.prompts import questions_for
from tunesmith.export import merge as merging
from tunesmith.export import proof
from tunesmith.export.merge import ask, merge, write_merged
from tunesmith.export.save import save_model
from tunesmith.model import adapters
from tunesmith.model.device import here
from tunesmith.model.load import load_for_inference, load_model, model_spec
from tunesmith.model.precision import choose_precision
from tunesmith.model.quantize import use_dequantized_weights
from tunesmith.model.tokenizer import load_tokenizer

Settings = Callable[..., Resolved]


def random_questions(vocabulary: int = 96) -> proof.Questions:
    generator = torch.Generator().manual_seed(5)
    prompts = [torch.randint(4, vocabulary - 6, (40,), generator=generator).tolist() for _ in range(25)]
    return proof.Questions(prompts, [str(number) for number in range(25)], "random tokens", [2], max_new_tokens=4)


def run_folder(settings: Settings, folder: Path, **values: Any) -> Path:
    """A run whose adapter moved as far as a short training moves it."""
    resolved = settings(**values)
    precision = choose_precision(resolved, here(resolved))
    torch.manual_seed(0)
    model = load_model(resolved, precision, here(resolved))
    for name, parameter in model.named_parameters():
        if "lora_B" in name and parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.02)
        elif parameter.requires_grad and "lora_" not in name:
            parameter.data += 0.01 * torch.randn_like(parameter)
    save_model(model, load_tokenizer(resolved.config.model), folder, resolved.config.model)
    record = {"settings": resolved.values(), "origins": resolved.origins}
    (folder / "run.json").write_text(json.dumps(record))
    return folder


def compared(run: Path, folder: Path, questions: proof.Questions, dtype: Any = "float32", base: Any = "trained"):
    """The comparison of a merge without a new process, which costs seconds; and why the base was in memory."""
    folder.mkdir()
    how = model_spec(run, device_map="cpu")
    ask(how, base, questions, folder)
    merged = folder / "merged"
    merged.mkdir()
    why = write_merged(how, merged, dtype=dtype, base=base, max_shard_size="2GB")
    return proof.compare(merged, folder), why


WAYS: list[tuple[dict[str, Any], str | None]] = [
    ({}, None),
    ({"use_rslora": True}, None),
    ({"use_dora": True}, None),
    ({"init_lora_weights": "pissa"}, None),
    ({"bf16": True}, None),
    ({"target_modules": "all-linear", "modules_to_save": ["lm_head"]}, None),
    ({"target_modules": ["q_proj", "embed_tokens"]}, None),
    ({"kind": "llama"}, None),
    ({"kind": "llama", "modules_to_save": ["lm_head"]}, "tied"),
    ({"kind": "gpt2", "target_modules": ["c_attn", "c_proj"], "bias": "all"}, None),
    ({"kind": "gpt2", "target_modules": ["c_attn", "c_proj"], "load_in_4bit": True}, None),
    ({"load_in_4bit": True}, None),
    ({"load_in_4bit": True, "bf16": True}, None),
    ({"load_in_4bit": True, "use_dora": True}, None),
    ({"load_in_4bit": True, "bnb_4bit_quant_type": "fp4"}, None),
    ({"load_in_8bit": True}, None),
]


@pytest.mark.parametrize(("values", "in_memory"), WAYS, ids=str)
def test_float32_merge_equals_what_was_trained(
    values: dict[str, Any], in_memory: str | None, settings: Settings, tmp_path: Path
) -> None:
    run = run_folder(settings, tmp_path / "run", **values)
    comparison, why = compared(run, tmp_path / "work", random_questions())
    assert why is None if in_memory is None else in_memory in str(why)
    assert proof.problems_of(comparison, "float32") == []
    assert comparison["weights"]["num_positions"] >= 25 * 41
    assert comparison["weights"]["max_difference"] <= 1e-5
    assert comparison["weights"]["argmax_agreement"] >= 0.999


@pytest.mark.parametrize(("values", "in_memory"), WAYS, ids=str)
def test_shard_by_shard_writes_the_bytes_of_the_merge_in_memory(
    values: dict[str, Any], in_memory: str | None, settings: Settings, tmp_path: Path
) -> None:
    how = model_spec(run_folder(settings, tmp_path / "run", **values), device_map="cpu")
    folders = [tmp_path / "shards", tmp_path / "memory"]
    for folder in folders:
        folder.mkdir()
        write_merged(
            how, folder, dtype="bfloat16", base="trained", max_shard_size="60KB", in_memory=folder.name == "memory"
        )
    names = [sorted(path.name for path in folder.iterdir()) for folder in folders]
    assert names[0] == names[1]
    assert len([name for name in names[0] if name.endswith(".safetensors")]) >= 3
    assert {"model.safetensors.index.json", "config.json", "generation_config.json"} <= set(names[0])
    for name in names[0]:
        assert (folders[0] / name).read_bytes() == (folders[1] / name).read_bytes(), name
    merged = AutoModelForCausalLM.from_pretrained(folders[0], dtype="auto")
    assert {parameter.dtype for parameter in merged.parameters()} == {torch.bfloat16}


def test_base_whose_files_name_tensors_otherwise_is_merged_in_memory_aloud(
    settings: Settings, models_folder: Path, tmp_path: Path
) -> None:
    base = tmp_path / "base"
    AutoModelForCausalLM.from_pretrained(models_folder / "gpt2").transformer.save_pretrained(
        base
    )  # as GPT-2 was published
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (base / name).write_bytes((models_folder / "gpt2" / name).read_bytes())
    run = run_folder(settings, tmp_path / "run", model_name_or_path=str(base), target_modules=["c_attn"])
    comparison, why = compared(run, tmp_path / "work", random_questions())
    assert "otherwise" in str(why)
    assert proof.problems_of(comparison, "float32") == []


def test_original_base_is_told_from_the_trained_one(settings: Settings, stories_model: Path, tmp_path: Path) -> None:
    run = run_folder(settings, tmp_path / "run", model_name_or_path=str(stories_model), load_in_4bit=True)
    questions = random_questions(512)
    trained, _ = compared(run, tmp_path / "trained", questions)
    original, _ = compared(run, tmp_path / "original", questions, base="original")
    assert proof.problems_of(trained, "float32") == proof.problems_of(original, "float32") == []
    assert trained["use"]["argmax_agreement"] >= 0.999
    assert original["use"]["argmax_agreement"] < 0.95


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
    """The merge proof, and in float64 arithmetic, where float32's rounding of logits of 20 does not hide anything."""
    run = real_runs[kind]
    questions = questions_for(run)
    assert questions.kind == "held-out rows of the run"
    comparison, why = compared(run, tmp_path / "work", questions)
    assert why is None
    assert proof.problems_of(comparison, "float32") == []
    assert comparison["weights"]["argmax_agreement"] >= 0.999
    assert comparison["weights"]["relative_difference"] <= 1e-5
    assert comparison["generation"]["prompts"] == 16
    if kind == "int8":  # its layers round their inputs as well, which no plain weight can do
        assert comparison["use"]["max_difference"] > 1e-3
        assert comparison["use"]["argmax_agreement"] >= 0.95
    else:
        assert comparison["use"]["argmax_agreement"] >= 0.999
        assert comparison["generation"]["same_text"] == 16
    trained = load_for_inference(run).model
    use_dequantized_weights(trained, torch.float64)
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "work" / "merged").double()
    tally = proof.Tally()
    with torch.no_grad():
        for prompt in questions.prompts:
            ids = torch.tensor([prompt])
            tally.add(trained(ids).logits[0], merged(ids).logits[0])
    # what is left is the rounding of merged weights to float32; DoRA rounds a product of two factors (1.01e-5 measured)
    assert tally.drift().max_difference <= (2e-5 if kind == "dora" else 1e-5)
    assert tally.drift().argmax_agreement == 1


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_rounded_merge_is_within_its_tolerance_and_says_how_far(
    dtype: str, real_runs: dict[str, Path], tmp_path: Path
) -> None:
    comparison, _ = compared(real_runs["nf4"], tmp_path / "work", questions_for(real_runs["nf4"]), dtype=dtype)
    assert proof.problems_of(comparison, dtype) == []
    assert proof.problems_of(comparison, "float32") != []


def test_proof_is_made_by_a_new_process_and_lies_beside_the_model(real_runs: dict[str, Path], tmp_path: Path) -> None:
    merged = merge(real_runs["nf4"], tmp_path / "merged", questions=questions_for(real_runs["nf4"]))
    written = json.loads((tmp_path / "merged" / "proof.json").read_text())
    assert written == merged.proof
    assert written["verdict"] == "within tolerance"
    assert written["folded"] == "shard by shard"
    assert written["sha256"] == proof.sha256_of_weights(tmp_path / "merged")
    assert written["prompts"]["sources"][0] == "eval.jsonl:1"
    assert written["generation"]["prompts"] == 16
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
        why = write_merged(how, stage, **order)
        original = Path(how.resolved.config.model.model_name_or_path)
        save_file(load_file(original / "model.safetensors"), stage / "model.safetensors", {"format": "pt"})
        return why

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
    file = adapters.read_adapter(run)
    recorded = json.loads((run / "run.json").read_text())["adapter"]
    assert recorded == {"folder": ".", "checksum": file.checksum}
    config = json.loads((run / "adapter_config.json").read_text())
    assert adapters.checksum(file.tensors, config) == file.checksum
    assert (
        adapters.checksum(file.tensors, config | {"peft_version": "9", "base_model_name_or_path": "x"}) == file.checksum
    )


def test_refusals(settings: Settings, tmp_path: Path, models_folder: Path) -> None:
    with pytest.raises(ModelError, match="no adapter"):
        merge(models_folder / "llama", tmp_path / "merged", questions=None)
    run = run_folder(settings, tmp_path / "run")
    with pytest.raises(StorageError, match="there already"):
        merge(run, run, questions=None)
