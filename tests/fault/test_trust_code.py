"""Files of strangers run no code: permissions, pickles, Python configurations and names of targets.

Rows C10 to C12, T9 and T10 of the list of trust, by number; what else stands here is of the same kind.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from fault_helpers import ROWS, calls
from helpers import write_rows
from tiny_models import build, configure, write_tokenizer
from tunesmith.cli.main import main
from tunesmith.config.convert import convert
from tunesmith.config.names import leaf_paths
from tunesmith.config.permissions import COMMAND_LINE_ONLY, PERMISSIONS
from tunesmith.config.resolve import from_values, schema_defaults
from tunesmith.errors import UnsafeError
from tunesmith.export.inference import SETTINGS
from tunesmith.report.folder import write_json
from tunesmith.train.checkpoint import Batches, commit
from tunesmith.train.pickles import check_pickles


@pytest.mark.parametrize("path", PERMISSIONS)
def test_no_record_carries_a_permission(path: str) -> None:
    value = "own.py:score" if path == "evaluation.task_function" else True
    record = schema_defaults() | {"model.model_name_or_path": "m", path: value}
    origins = dict.fromkeys(leaf_paths(), "command line")
    assert from_values(record, origins).values()[path] == schema_defaults()[path]
    assert from_values(record, origins, permissions={path: value}).values()[path] == value
    assert path not in SETTINGS  # what lies beside a model


def test_what_lets_code_run_is_marked() -> None:
    assert set(PERMISSIONS) == {"model.trust_remote_code", "model.allow_remote_code", "evaluation.task_function"}


@pytest.mark.parametrize("dialect", ["python", "json", "yaml", "hydra"])
@pytest.mark.parametrize("path", COMMAND_LINE_ONLY)
def test_no_file_gives_what_the_command_line_alone_may(path: str, dialect: str, tmp_path: Path, said) -> None:
    resolved = from_values({"model.model_name_or_path": "m"})
    file = tmp_path / f"own{'.py' if dialect == 'python' else '.json' if dialect == 'json' else '.yaml'}"
    text = convert(resolved, dialect, "a test")
    value = "own.py:score" if path == "evaluation.task_function" else True
    if dialect == "json":
        text = json.dumps(json.loads(text) | {path: value})
    elif dialect == "python":
        text += f"\n{path.rpartition('.')[2]} = {value!r}\n"
    else:
        text += f"\n{path}: {json.dumps(value)}\n"
    file.write_text(text)
    code, _, errors = said("config", file, "--dialect", dialect)
    assert (code, path.rpartition(".")[2] in errors) in {(7, True), (2, True)}, errors
    assert said("config", file, "--dialect", dialect)[1] == ""


@pytest.fixture
def stranger(tmp_path: Path) -> Path:
    """A downloaded run folder whose record allows its model's own code, which leaves a file when it runs."""
    folder = tmp_path / "downloaded"
    build("mistral").save_pretrained(folder)
    write_tokenizer(folder, bos_token="<s>", eos_token="</s>")
    (folder / "modeling_mine.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\n")
    auto = {"AutoConfig": "modeling_mine.Config", "AutoModelForCausalLM": "modeling_mine.Model"}
    configure(folder, model_type="mine", architectures=["Model"], auto_map=auto)
    settings = schema_defaults() | {
        "model.model_name_or_path": str(folder), "model.trust_remote_code": True, "model.allow_remote_code": True,
        "adapter.use_lora": False,
    }  # fmt: skip
    origins = dict.fromkeys(settings, "command line")
    write_json(folder / "run.json", {"settings": settings, "origins": origins, "settings_fingerprint": "x"})
    return folder


def test_T9_a_record_gives_itself_no_leave_to_run_code(stranger: Path, tmp_path: Path, said) -> None:
    rows, answers = write_rows(tmp_path / "rows.jsonl", ROWS), tmp_path / "answers.jsonl"
    verbs = {
        "predict": ["predict", stranger, rows, answers],
        "evaluate": ["evaluate", stranger, f"--data={rows}", "--task=exact"],
        "chat": ["chat", stranger],
        "train": ["train", f"--model_name_or_path={stranger}", f"--train_data={rows}", f"--output_dir={tmp_path}/run"],
    }
    for verb, words in verbs.items():
        code, _, errors = said(*words)
        assert (code, "modeling_mine.py" in errors) == (7, True), (verb, errors)
    assert not (tmp_path / "ran").exists()
    assert said("predict", stranger, rows, answers, "--allow_remote_code")[0] == 7
    assert not (tmp_path / "ran").exists()
    said("predict", stranger, rows, answers, "--trust_remote_code", "--allow_remote_code")
    assert (tmp_path / "ran").exists()  # two words on this command line are a permission


def test_T9_every_model_is_opened_with_a_word_on_its_code() -> None:
    """Without one the library asks on the terminal, and a 'y' runs it."""
    silent = [
        f"{file.name}:{call.lineno}"
        for file, name, call in calls()
        if re.fullmatch(r"Auto(Model\w*|Config|Tokenizer)\.from_(pretrained|config)", name)
        if not any(keyword.arg in (None, "trust_remote_code") for keyword in call.keywords)
    ]
    assert not silent


def test_T10_pickles_in_a_checkpoint_are_refused_before_they_are_opened(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(tmp_path / "ran"),)

    folder = tmp_path / "checkpoint-1"
    folder.mkdir()
    generator = torch.Generator()
    torch.save({"state": {0: {"exp_avg": torch.zeros(2)}}}, folder / "optimizer.pt")
    torch.save({"cpu": generator.get_state(), "numpy": ("MT19937", [1])}, folder / "rng_state.pth")
    check_pickles(folder)
    for name in ("training_args.bin", "pytorch_model.bin", "adapter_model.bin", "extra/deep.pkl", "x.PT"):
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        torch.save(Evil(), path)
        with pytest.raises(UnsafeError, match=path.name):
            check_pickles(folder)
        path.unlink()
    for name in ("optimizer.pt", "rng_state_3.pth", "scheduler.pt", "optimizer.bin",
                 "global_step1/mp_rank_00_model_states.pt"):  # fmt: skip
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        torch.save(Evil(), path)
        with pytest.raises(UnsafeError, match=r"posix\.mkdir"):
            check_pickles(folder)
        path.write_bytes(b"cos\nsystem\n(S'true'\ntR.")  # a plain pickle, which torch would open as well
        with pytest.raises(UnsafeError, match=path.name):
            check_pickles(folder)
        path.unlink()
    assert not (tmp_path / "ran").exists()


def test_T10_a_checkpoint_with_a_pickle_is_not_continued(tmp_path: Path, said) -> None:
    folder = tmp_path / "theirs" / "checkpoint-1"
    folder.mkdir(parents=True)
    (folder / "training_args.bin").write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    commit(folder, Batches(1, 1, 1))
    rows = write_rows(tmp_path / "rows.jsonl", ROWS)
    code, _, errors = said(
        "train", "--model_name_or_path=nano-mistral", f"--train_data={rows}", f"--output_dir={tmp_path}/run",
        f"--resume_from_checkpoint={folder}",
    )  # fmt: skip
    assert (code, "training_args.bin" in errors) == (7, True), errors


def test_C10_forks_end_with_the_file(python) -> None:
    """One stays in the group, one leaves it, one leaves it twice."""
    code, _, errors = python(
        "import os, sys, time\n"
        "def stay():\n"
        "    os.execvp(sys.executable, [sys.executable, '-c', 'import time; time.sleep(600)', 'stray-of-a-test'])\n"
        "if not os.fork(): stay()\n"
        "if not os.fork():\n    os.setsid()\n    stay()\n"
        "if not os.fork():\n    os.setsid()\n    if os.fork(): os._exit(0)\n    os.setsid()\n    stay()\n"
        "time.sleep(0.5)\n"
    )
    assert code == 0, errors
    left = [one.info["cmdline"] for one in psutil.process_iter(["cmdline"]) if "stray-of-a-test" in str(one.info)]
    assert not left


def test_C10_limits_of_the_child(python) -> None:
    code, out, errors = python(
        "import resource as r\n"
        "run_name = '/'.join(str(r.getrlimit(x)[0] > 0) for x in "
        "(r.RLIMIT_NPROC, r.RLIMIT_DATA, r.RLIMIT_FSIZE, r.RLIMIT_CPU))\n"
    )
    assert (code, "True/True/True/True" in out) == (0, True), errors


def test_C11_no_python_file_of_a_model_a_run_or_a_download_is_run(python, tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    for name, mark in (
        ("model", "model.safetensors"), ("adapter", "adapter_config.json"), ("run/checkpoint-3", "trainer_state.json"),
        ("models--a--b/snapshots/0", "x"), ("download", ".cache/huggingface/download/x"),
    ):  # fmt: skip
        folder = tmp_path / name
        (folder / mark).parent.mkdir(parents=True)
        (folder / mark).touch()
        for place in (folder, folder / "configs"):
            code, _, errors = python(f"open({str(ran)!r}, 'w')", place)
            assert (code, "own.py" in errors) == (7, True), (name, errors)
    (tmp_path / "link.py").symlink_to(tmp_path / "model" / "own.py")
    assert main(["config", str(tmp_path / "link.py")]) == 7
    assert not ran.exists()


def test_C11_a_trusted_file_imports_nothing_from_such_a_folder(python, tmp_path: Path, monkeypatch) -> None:
    theirs = tmp_path / "model"
    theirs.mkdir()
    (theirs / "model.safetensors").touch()
    (theirs / "helper_of_theirs.py").write_text("run_name = 'theirs'")
    monkeypatch.chdir(theirs)
    code, _, errors = python("from helper_of_theirs import *", tmp_path / "mine")
    assert (code, "helper_of_theirs" in errors) == (2, True), errors


TARGETS = ["os.system", "posix.system", "logging.os.system", "builtins.open", "torch.load", "pandas.read_pickle"]


@pytest.mark.parametrize("target", TARGETS)
def test_C12_targets_are_names_of_a_table_and_are_never_imported(target: str, tmp_path: Path, said) -> None:
    (tmp_path / "c.yaml").write_text(f"model:\n  _target_: {target}\n  model_name_or_path: m\ntrain: {{}}\n")
    code, _, errors = said("config", tmp_path / "c.yaml", "--dialect=hydra")
    assert (code, target in errors) == (7, True), errors


def test_the_threat_model_names_tests_that_are_there() -> None:
    root = Path(__file__).resolve().parents[2]
    named = re.findall(r"`(?:(tests/[\w/]+\.py)::)?(test_\w+)`", (root / "SECURITY.md").read_text())
    assert len(named) > 25
    here = "".join(path.read_text() for path in Path(__file__).parent.glob("test_*.py"))
    for file, test in named:
        assert f"def {test}(" in ((root / file).read_text() if file else here), test
