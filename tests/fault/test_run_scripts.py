"""The reproductions of run faults: each by its number, here or in the test that the table names."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from helpers import write_rows
from tunesmith import notices
from tunesmith.cli.main import main
from tunesmith.report.belongings import is_finished

TESTS = Path(__file__).parents[1]
ELSEWHERE = {
    "f01": "fault/test_trust_folders.py::test_F14_a_run_that_is_replaced_leaves_nothing",
    "f02": "fault/test_trust_kills.py::test_a_finished_run_that_is_resumed_does_nothing",
    "f03": "fault/test_trust_resume.py::test_F15_D26_changed_settings_and_data_are_refused_and_nothing_is_touched",
    "f04": "fault/test_trust_resume.py::test_a_checkpoint_of_pissa_holds_what_was_trained_and_goes_on_exactly",
    "f05": "fault/test_trust_folders.py::test_home_and_variables_mean_the_same_in_every_source",
    "f06": "fault/test_trust_signals.py::test_F7_a_signal_during_the_steps",
    "f08": "unit/train/test_optimization.py::test_check_refuses_what_training_would",
    "f12": "fault/test_trust_networks.py::test_f12_the_environment_of_wandb_counts_and_a_resumed_run_is_the_same_run",
}
"""Reproduction -> the test that shows the right behaviour, where it is not one of this file."""
ROWS = [{"prompt": f"what is {number} ", "completion": f"it is {number}"} for number in range(4)]

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Call:
    """``call(verb, *arguments)``: the exit code, and what was said on standard output and as errors."""

    def run(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        said = capsys.readouterr()
        return code, said.out, "\n".join(line for line in said.err.splitlines() if line.startswith("error:"))

    return run


def test_every_reproduction_has_a_test(real_data: Path) -> None:
    scripts = {path.name[:3] for path in (real_data.parent / "faults" / "runs").glob("f??_*.sh")}
    scripts = scripts or {f"f{number:02}" for number in range(1, 14)}  # the data may lie there without the scripts
    here = set(re.findall(r"def test_(f\d\d)_", Path(__file__).read_text(encoding="utf-8")))
    assert scripts == here | set(ELSEWHERE)
    for place in ELSEWHERE.values():
        file, _, name = place.partition("::")
        assert f"def {name}(" in (TESTS / file).read_text(encoding="utf-8")


def test_f07_an_embedding_can_carry_an_adapter(call: Call, whole: Path, tmp_path: Path) -> None:
    code, _, errors = call(
        "train", f"--model_name_or_path={whole}/model", f"--train_data={whole}/rows.jsonl",
        f"--output_dir={tmp_path}/run", "--max_steps=1", "--max_length=64", "--save_strategy=no",
        "--target_modules", "embed_tokens", "q_proj",
    )  # fmt: skip
    assert (code, errors) == (0, "")
    names = {name for name in _names(tmp_path / "run") if "embed_tokens" in name}
    assert any("lora_embedding_A" in name for name in names)


def _names(folder: Path) -> list[str]:
    from safetensors import safe_open

    with safe_open(folder / "adapter_model.safetensors", "pt") as file:
        return list(file.keys())


def test_f10_a_user_without_a_home(call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a container that is started with any number for a user."""

    def unknown(*_: object) -> None:
        raise KeyError("uid not found")

    for name in ("HOME", "USER", "LOGNAME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pwd.getpwuid", unknown)
    rows = write_rows(tmp_path / "rows.jsonl", ROWS)
    code, _, errors = call("config", "--model=nano-mistral", f"--train_data={rows}")
    assert (code, errors) == (0, "")
    monkeypatch.delenv("TUNESMITH_CACHE")
    monkeypatch.chdir(tmp_path)
    notices.clear()
    code, _, errors = call("preview", "--model=nano-mistral", f"--train_data={rows}", "--num=1")
    assert code == 0, errors
    assert any("tokenised data is not kept" in said for said in notices.collected())


@pytest.fixture(scope="module")
def started(whole: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a base, rows and a run that was started in it, by relative names."""
    folder = tmp_path_factory.mktemp("started") / "a"
    shutil.copytree(whole / "model", folder / "base")
    write_rows(folder / "rows.jsonl", ROWS)
    with pytest.MonkeyPatch.context() as inside:
        inside.chdir(folder)
        arguments = [
            "--model_name_or_path=./base", "--train_data=rows.jsonl", "--eval_data=rows.jsonl", "--allow_leak",
            "--eval_strategy=no", "--output_dir=run", "--max_steps=1", "--max_length=64", "--save_strategy=no",
        ]  # fmt: skip
        assert main(["train", *arguments]) == 0
    return folder


@pytest.fixture
def moved(started: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it, seen from another folder."""
    monkeypatch.chdir(tmp_path)
    return Path(shutil.copytree(started, tmp_path / "a"))


def verbs(run: Path, where: Path) -> list[list[object]]:
    """A command for each verb that loads a run; the answers go below ``where``."""
    rows, few = run.parent / "rows.jsonl", "--max_new_tokens=2"
    return [
        ["evaluate", run, "--task=exact", few],
        ["predict", run, rows, where / "answers.jsonl", "--overwrite", few],
        ["merge", run, where / "merged", "--no_proof"],
    ]


def test_f11_a_run_is_used_from_any_folder(call: Call, moved: Path, tmp_path: Path) -> None:
    """What its record names relatively is found where the run was started, also when all of it moved together."""
    assert not is_absolute_anywhere(moved / "run")
    together = tmp_path / "elsewhere" / "b"
    together.parent.mkdir()
    moved.rename(together)
    for command in verbs(Path("elsewhere") / "b" / "run", tmp_path):
        code, _, errors = call(*command)
        assert (code, errors) == (0, ""), command


def is_absolute_anywhere(run: Path) -> bool:
    """Whether a path of the machine stands among a run's recorded settings."""
    settings = json.loads((run / "run.json").read_text())["settings"]
    return any(isinstance(value, str) and value.startswith("/") for value in settings.values())


def test_f11_a_base_that_moved_is_named(call: Call, moved: Path, tmp_path: Path, whole: Path) -> None:
    (moved / "base").rename(tmp_path / "new place")
    for command in verbs(moved / "run", tmp_path):
        code, _, errors = call(*command)
        assert code == 4, command
        assert len(errors.splitlines()) == 1
        assert "its base model ./base cannot be found" in errors
        assert "--base_model PATH says where it is now" in errors
        code, _, errors = call(*command, "--base_model", tmp_path / "new place")
        assert (code, errors) == (0, ""), command
    code, _, errors = call("evaluate", moved / "run", "--task=exact", "--baseline", "--base_model=new place")
    assert (code, errors) == (0, "")
    shutil.copytree(whole / "shards", tmp_path / "other")
    config = json.loads((tmp_path / "other" / "config.json").read_text())
    (tmp_path / "other" / "config.json").write_text(json.dumps(config | {"rope_theta": 5.0, "rms_norm_eps": 1e-3}))
    code, _, errors = call("evaluate", moved / "run", "--task=exact", "--base_model=other")
    assert code == 4
    assert "another base" in errors


def test_f11_serve_chat_and_push_take_the_place_of_the_base(
    moved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: Call
) -> None:
    from tunesmith.evaluate.subject import find_subject
    from tunesmith.launch import serving

    (moved / "base").rename(tmp_path / "new")
    asked, apps = [], []
    monkeypatch.setattr(serving, "answer_over_http", lambda app, listening: apps.append(app) or 0)
    monkeypatch.setattr(serving, "run", lambda command, folder: asked.append(list(folder.glob("run/*"))) or 0)
    serve = ("serve", moved / "run", "--port=0")
    for engine in ("transformers", "vllm"):
        monkeypatch.setattr(serving, "choose_engine", lambda _, engine=engine: engine)
        code, _, errors = call(*serve)
        assert (code, "--base_model PATH" in errors) == (4, True)
        assert call(*serve, "--base_model=new")[0] == 0
    assert len(apps) == 1
    assert any(path.name == "model.safetensors" for path in asked[0])
    monkeypatch.setattr("sys.stdin", (tmp_path / "a" / "rows.jsonl").open())
    assert call("chat", moved / "run", "--base_model=new", "--max_new_tokens=2")[0] == 0
    assert find_subject(moved / "run", ["--base_model=new"]).base == "new"
    assert call("push", moved / "run", "me/adapter", "--base_model=owner/base", "--dry_run")[0] == 0
    from tunesmith.export.hub import uploads

    files = {file.path: file.content for file in uploads(moved / "run", base_model="owner/base")}
    assert json.loads(str(files["adapter_config.json"]))["base_model_name_or_path"] == "owner/base"
    assert "base_model: owner/base" in str(files["README.md"])


# ---- what is not finished, or holds two models


@pytest.mark.parametrize("status", ["running", "failed", "interrupted"])
def test_an_unfinished_run_is_not_used_without_a_word(status: str, call: Call, moved: Path, tmp_path: Path) -> None:
    run = moved / "run"
    facts = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(facts | {"status": status}))
    commands = [
        *verbs(run, tmp_path),
        ["chat", run],
        ["serve", run, "--engine=transformers", "--port=0"],
        ["push", run, "me/it"],
    ]
    for command in commands:
        code, _, errors = call(*command)
        assert code == 6, command
        assert "the run there is not finished" in errors
        assert "it has no complete checkpoint" in errors
    folder = run / "checkpoint-1"
    folder.mkdir()
    for file in [*run.glob("*.json*"), *run.glob("*.safetensors")]:
        if file.name not in ("run.json", "metrics.jsonl", "ledger.json"):
            shutil.copy(file, folder)
    code, _, errors = call("evaluate", folder, "--task=exact", "--max_new_tokens=2")
    assert code == 6
    assert "this checkpoint was not written to its end" in errors
    (folder / "manifest.json").write_text('{"step": 1, "files": {}}')
    assert f"name a checkpoint: {folder}" in call("push", run, "me/it")[2]
    assert call("evaluate", folder, "--task=exact", "--max_new_tokens=2")[0] == 0
    assert not is_finished(run)


def test_a_folder_with_two_kinds_of_model_is_not_used_without_a_word(call: Call, moved: Path, tmp_path: Path) -> None:
    run = moved / "run"
    for name in ("config.json", "model.safetensors"):
        shutil.copy(moved / "base" / name, run)
    for command in [*verbs(run, tmp_path), ["chat", run], ["push", run, "me/it"]]:
        code, _, errors = call(*command)
        assert code == 4, command
        assert "holds a model and an adapter" in errors


# ---- the command line


def test_f13_lists_and_two_names_of_one_setting(call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))

    def config(*arguments: object) -> tuple[int, dict[str, str], str]:
        code, out, errors = call("config", *arguments)
        pairs = [line.partition("=") for line in out.splitlines() if "=" in line]
        return code, {name.strip(): " ".join(value.split()) for name, _, value in pairs}, errors

    base = ["--model=nano-mistral", "--train_data=x.jsonl"]
    for numbers in (["0", "1"], ["0,1"], ["[0, 1]"]):
        code, shown, errors = config(*base, "--layers_to_transform", *numbers)
        assert (code, errors) == (0, "")
        assert shown["layers_to_transform"].startswith("0, 1")
    for name in ("d=1/a.jsonl", "d=2/b.jsonl"):
        Path(name).parent.mkdir()
        write_rows(Path(name), ROWS)
    code, shown, errors = config(
        "--model=nano-mistral", "--train_data", "d=1/a.jsonl", "d=2/b.jsonl", "--mix_weights", "1", "2"
    )
    assert (code, errors) == (0, "")
    assert shown["train_data"].startswith("d=1/a.jsonl, d=2/b.jsonl")
    assert shown["mix_weights"].startswith("1, 2")
    assert config(*base, "--report_to", "wandb,tensorboard")[1]["report_to"].startswith("wandb, tensorboard")
    settings = {"model_name": "nano-mistral", "train_data": "x.jsonl", "output_dir": "${HOME}/runs"}
    for more, problem in (
        ({"lr": 1e-3, "learning_rate": 1e-5}, "lr = 0.001 (c.json:1) and learning_rate = 1e-05 are two names"),
        ({"batch_size": 2, "micro_batch_size": 16}, "two names of one setting"),
        ({"lr": 1e-5, "learning_rate": 1e-5}, ""),
    ):
        Path("c.json").write_text(json.dumps(settings | more))
        code, shown, errors = config("c.json")
        assert (code, problem in errors) == ((2, True) if problem else (0, True))
    assert shown["output_dir"].startswith(str(tmp_path / "home" / "runs"))
    for value, meant in ((True, "latest"), (False, "-")):
        Path("d.json").write_text(json.dumps(settings | {"resume_from_checkpoint": value}))
        assert config("d.json")[1]["resume_from_checkpoint"].startswith(meant)


# ---- transformers 4


def test_f09_a_saved_folder_says_what_transformers_4_reads(call: Call, base: Path, tmp_path: Path) -> None:
    """Under the names of both versions; in version 5 it opens as it was."""
    from transformers import AutoConfig, AutoTokenizer

    written = json.loads((base / "config.json").read_text())
    del written["rope_parameters"]
    scaling = {"rope_type": "linear", "factor": 2.0}
    for scaled in ({}, {"rope_scaling": scaling}):  # as published models have it
        (base / "config.json").write_text(json.dumps(written | {"rope_theta": 500000.0} | scaled))
        run = tmp_path / f"run{len(scaled)}"
        code, _, errors = call(
            "train", f"--model_name_or_path={base}", f"--train_data={write_rows(tmp_path / 'r.jsonl', ROWS)}",
            f"--output_dir={run}", "--max_steps=1", "--max_length=64", "--save_strategy=no", "--no_use_lora",
        )  # fmt: skip
        assert (code, errors) == (0, "")
        saved = json.loads((run / "config.json").read_text())
        assert saved["rope_theta"] == 500000.0
        assert saved["rope_scaling"] == (scaling if scaled else None)
        assert AutoConfig.from_pretrained(run).rope_parameters == AutoConfig.from_pretrained(base).rope_parameters
    tokenizer = json.loads((run / "tokenizer_config.json").read_text())
    assert tokenizer["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert not {"backend", "is_local", "local_files_only", "extra_special_tokens"} & tokenizer.keys()
    ours, theirs = AutoTokenizer.from_pretrained(run), AutoTokenizer.from_pretrained(base)
    assert ours.special_tokens_map == theirs.special_tokens_map | {"pad_token": ours.pad_token}
    assert ours("what is 1 </s>").input_ids == theirs("what is 1 </s>").input_ids
