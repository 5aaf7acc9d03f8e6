"""Models and tokenizers that cannot be trusted, by the numbers of the design's battery (section 2.4, T1 to T16)."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from helpers import story_rows, write_rows
from tiny_models import build, change, configure, write_tokenizer
from tunesmith.config.schema import ModelSection
from tunesmith.errors import StorageError
from tunesmith.export.save import save_model

WEIGHTS = "adapter_model.safetensors"
CHAT = [
    {"messages": [{"role": "user", "content": f"is {n} one"}, {"role": "assistant", "content": f"it is {n}"}]}
    for n in range(4)
]
TURNS = "{% for m in messages %}{{ m.role }} {{ m.content }}{% if m.role == 'assistant' %}</s>{% endif %}{% endfor %}"
ASKS = "{% if add_generation_prompt %}assistant {% endif %}"


@pytest.fixture
def chat(base: Path, tmp_path: Path, call):
    """Check a run on conversations under a chat template; returns the exit code and the errors."""

    def run(template: str, *settings: str) -> tuple[int, str]:
        (tmp_path / "own.jinja").write_text(template)
        rows = write_rows(tmp_path / "chat.jsonl", CHAT)
        return call("check", base, f"--train_data={rows}", f"--template={tmp_path / 'own.jinja'}", *settings)

    return run


def test_T1_no_pad_token_resizes_nothing_and_hides_no_end_token(base: Path, tmp_path: Path, call) -> None:
    before = len(AutoTokenizer.from_pretrained(base))
    assert AutoTokenizer.from_pretrained(base).pad_token is None
    assert call("train", base, "--no_cache") == (0, "")
    saved = AutoTokenizer.from_pretrained(tmp_path / "run")
    assert len(saved) == before
    assert saved.eos_token == "</s>"
    notices = json.loads((tmp_path / "run" / "run.json").read_text())["notices"]
    assert any("no padding token" in notice for notice in notices)


def test_T2_no_end_token_is_an_error_unless_one_is_named(base: Path, call) -> None:
    write_tokenizer(base, bos_token="<s>")
    code, errors = call("check", base)
    assert (code, "eos_token" in errors) == (4, True), errors
    assert call("check", base, "--eos_token=</s>") == (0, "")


def test_T3_template_of_the_tokenizer_is_asked_for_and_there_is_none(base: Path, tmp_path: Path, call) -> None:
    rows = write_rows(tmp_path / "chat.jsonl", CHAT)
    code, errors = call("check", base, f"--train_data={rows}", "--template=chat")
    assert (code, "template" in errors) == (4, True), errors


def test_T4_template_that_changes_the_prompt_is_refused(chat) -> None:
    code, errors = chat("{{ messages | length }}" + TURNS + ASKS)
    assert (code, "another prompt" in errors) == (4, True), errors


def test_T5_answer_that_nothing_ends_is_refused(chat, tmp_path: Path) -> None:
    """The last answer of a row is ended by us; one within the conversation cannot be."""
    silent = TURNS.replace("</s>", " ") + ASKS
    assert chat(silent) == (0, "")
    twice = write_rows(tmp_path / "twice.jsonl", [{"messages": row["messages"] * 2} for row in CHAT])
    code, errors = chat(silent, f"--train_data={twice}", "--loss_on=assistant")
    assert (code, "end token" in errors) == (4, True), errors


def test_T6_begin_token_written_twice_is_refused(chat) -> None:
    code, errors = chat("{{ bos_token }}{{ bos_token }}" + TURNS + ASKS)
    assert (code, "begin token" in errors) == (4, True), errors


def test_T7_tokenizer_with_more_tokens_than_the_model_has_rows(base: Path, call) -> None:
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.add_tokens([f"<extra{number}>" for number in range(9)])
    tokenizer.save_pretrained(base)
    for verb in ("check", "train"):
        code, errors = call(verb, base)
        assert (code, "embedding rows" in errors) == (4, True), errors


@pytest.mark.parametrize(
    "evil", ["{{ 'a' * 10**10 }}", "{{ ''.__class__.__mro__ }}", "{% for i in range(10**9) %}{% endfor %}"]
)
def test_T8_malicious_template_is_stopped(evil: str, chat) -> None:
    code, errors = chat(evil + TURNS + ASKS)
    assert code in (3, 4, 7), errors
    assert "template" in errors


def test_T9_code_of_the_model_does_not_run(base: Path, tmp_path: Path, call) -> None:
    (base / "modeling_mine.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    configure(base, model_type="mine", auto_map={
        "AutoConfig": "modeling_mine.Config", "AutoModelForCausalLM": "modeling_mine.Model",
    })  # fmt: skip
    for verb in ("check", "train", "predict"):
        code, errors = call(verb, base)
        assert (code, "modeling_mine.py" in errors) == (7, True), errors
    assert not (tmp_path / "ran").exists()


def test_T10_pickled_weights_are_refused_by_name(base: Path, call) -> None:
    (base / "model.safetensors").rename(base / "pytorch_model.bin")
    for verb in ("check", "train", "predict"):
        code, errors = call(verb, base)
        assert (code, "pytorch_model.bin" in errors) == (7, True), errors


def nothing(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {}


def one_missing(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in tensors.items() if name != min(tensors)}


def renamed(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {f"x.{name}": tensor for name, tensor in tensors.items()}


@pytest.mark.parametrize("marked", [True, False], ids=["ours", "foreign"])
@pytest.mark.parametrize("damage", [nothing, one_missing, renamed])
def test_T11_adapter_that_is_empty_incomplete_or_renamed(damage: Any, marked: bool, adapter: Path, call) -> None:
    with safe_open(adapter / WEIGHTS, framework="pt") as file:
        marks = file.metadata() if marked else {"format": "pt"}
    save_file(damage(load_file(adapter / WEIGHTS)), adapter / WEIGHTS, metadata=marks)
    for verb in ("predict", "merge"):
        code, errors = call(verb, adapter)
        assert (code, "missing" in errors) == (4, True), errors


def test_T12_adapter_on_another_base_of_the_same_shape(base: Path, adapter: Path, call) -> None:
    change(base, lambda tensors: {name: tensor * 1.001 for name, tensor in tensors.items()})
    for verb in ("predict", "merge"):
        code, errors = call(verb, adapter)
        assert (code, "another base" in errors) == (4, True), errors


def test_T13_target_module_that_matches_nothing(base: Path, call) -> None:
    for verb in ("check", "train"):
        code, errors = call(verb, base, "--target_modules=q_proj,qq_proj")
        assert (code, "qq_proj" in errors) == (4, True), errors


def test_T14_saved_weights_without_values_are_not_kept(base: Path, tmp_path: Path) -> None:
    model = build("mistral")
    state = {name: tensor[:0] if "up_proj" in name else tensor for name, tensor in model.state_dict().items()}
    tokenizer = AutoTokenizer.from_pretrained(base)
    with pytest.raises(StorageError, match="up_proj") as caught:
        save_model(model, tokenizer, tmp_path / "saved", ModelSection(model_name_or_path=str(base)), state_dict=state)
    assert caught.value.exit_code == 6
    assert not list((tmp_path / "saved").glob("*.safetensors"))


@pytest.mark.parametrize("outside", ["../model.safetensors", "/etc/passwd", "..", ""])
def test_T15_index_that_names_files_outside_of_the_folder(outside: str, whole: Path, tmp_path: Path, call) -> None:
    folder = Path(shutil.copytree(whole / "shards", tmp_path / "shards"))
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    name = max(index["weight_map"])
    index["weight_map"][name] = outside
    path.write_text(json.dumps(index))
    for verb in ("check", "train", "predict"):
        code, errors = call(verb, folder)
        assert (code, "outside of the folder" in errors, name in errors) == (4, True, True), errors


def test_T16_every_adapter_weight_gets_a_gradient_with_checkpointing(base: Path, tmp_path: Path, call) -> None:
    """In one process; that ddp agrees with one process under checkpointing is shown by tests/invariant."""
    rows = write_rows(
        tmp_path / "stories.jsonl", [{"prompt": r["prompt"][:20], "completion": "yes"} for r in story_rows(4)]
    )
    assert call("train", base, f"--train_data={rows}", "--gradient_checkpointing", "--learning_rate=0.1") == (0, "")
    tensors = load_file(tmp_path / "run" / WEIGHTS)
    assert all(tensor.abs().sum() > 0 for name, tensor in tensors.items() if "lora_B" in name)


MACHINE = {"fp16": "--fp16", "attn_implementation": "--attn_implementation=flash_attention_2",
           "gpu_id": "--gpu_id=0", "device_map": "--device_map=cuda:0",
           "tf32": "--tf32"}  # fmt: skip


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine can do all of it")
@pytest.mark.parametrize("name", MACHINE)
def test_C16_what_this_machine_cannot_do_is_refused_and_not_replaced(name: str, base: Path, call: Any) -> None:
    """A device without bfloat16 is among the tests of ``model/device.py``."""
    for verb in ("check", "train"):
        code, said = call(verb, base, MACHINE[name])
        assert code in (2, 4), said
        assert len(said.splitlines()) == 1
        assert name in said or MACHINE[name].partition("=")[2] in said


@pytest.mark.parametrize(
    ("setting", "code", "named"),
    [
        (f"model_name_or_path={'a' * 5000}", 2, "longer than a path can be"),
        (f"tokenizer_name_or_path={'a/' * 3000}", 2, "longer than a path can be"),
        (f"template={'a' * 300}", 2, "longer than a path can be"),
        (f"resume_from_checkpoint=x/{'a' * 300}", 2, "longer than a path can be"),
        ('lr_scheduler_kwargs={"foo": 1}', 2, "foo"),
        ('lr_scheduler_kwargs={"num_cycles": "x"}', 2, "cosine"),
        ("lora_r=65536", 4, "rank 65536"),
        ("dtype=float8", 2, "dtype"),
        ("bnb_4bit_compute_dtype=int8", 2, "bnb_4bit_compute_dtype"),
        ("layers_to_transform=7", 4, "layers_to_transform"),
    ],
    ids=lambda value: str(value)[:25],
)
def test_C3_values_that_only_the_model_can_refuse(setting: str, code: int, named: str, base: Path, call) -> None:
    more = ["--lr_scheduler_type=cosine"] if "num_cycles" in setting else []
    for verb in ("check", "train"):
        found, said = call(verb, base, f"--{setting}", *more)
        assert (found, named in said, len(said.splitlines())) == (code, True, 1), said
