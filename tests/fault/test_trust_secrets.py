"""Secrets stay where they are: in no setting, no file that is written, no word that is said (C13, S1 to S3)."""

from __future__ import annotations

import io
import json
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from fault_helpers import JOBS, ROWS, SENTINELS
from helpers import write_rows
from tunesmith import notices, secrets
from tunesmith.cli import environment
from tunesmith.cli.main import main
from tunesmith.errors import ConfigError, UnsafeError
from tunesmith.report.folder import read_json
from tunesmith.visible import visible

IN_THE_FILE = "sentinel-of-the-env-file-0000000"


def test_C10_a_file_sees_no_secret(python, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in SENTINELS.items():
        monkeypatch.setenv(name, value)
    code, out, _ = python("import os\nrun_name = '-'.join(sorted(os.environ))\nexperiment = os.environ.get('HF_TOKEN')")
    assert (code, "HF_TOKEN" in out, "PATH" in out) == (0, False, True)
    code, _, errors = python("import os\nrun_name = os.environ['HF_TOKEN']")
    assert (code, "own.py:3" in errors, "no secret" in errors) == (2, True, True), errors
    code, _, errors = python("import os\nraise RuntimeError(dict(os.environ))")
    assert (code, any(value in errors for value in SENTINELS.values())) == (2, False)


def test_C13_no_source_puts_a_secret_into_a_setting(tmp_path: Path, said, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", SENTINELS["HF_TOKEN"])
    base = "model:\n  model_name_or_path: m\ntrain:\n  run_name: "
    for text in ("${oc.env:HF_TOKEN}", "x${oc.env:HF_TOKEN,none}", SENTINELS["HF_TOKEN"]):
        (tmp_path / "c.yaml").write_text(base + text + "\n")
        code, out, errors = said("config", tmp_path / "c.yaml", "--dialect=hydra")
        assert (code, "HF_TOKEN" in errors, SENTINELS["HF_TOKEN"] in out + errors) == (7, True, False), errors
    for setting in ("output_dir=$HF_TOKEN", "output_dir=a/${HF_TOKEN}", f"run_name=a-{SENTINELS['HF_TOKEN']}",
                    f'columns={{"a": "{SENTINELS["HF_TOKEN"]}"}}'):  # fmt: skip
        code, out, errors = said("config", "--model_name_or_path=m", f"--{setting}")
        assert (code, "HF_TOKEN" in errors, SENTINELS["HF_TOKEN"] in out + errors) == (7, True, False), errors


def test_S2_an_env_file_is_parsed_and_never_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HF_TOKEN", "WANDB_API_KEY", "OTHER"):
        monkeypatch.setenv(name, "x")
        monkeypatch.delenv(name)
    real = tmp_path / "real.env"
    real.write_bytes(
        f'export HF_TOKEN="{IN_THE_FILE}"\r\nWANDB_API_KEY=$(touch {tmp_path}/ran)\r\nOTHER=1\r\n'.encode()
    )
    real.chmod(0o644)
    (tmp_path / ".env").symlink_to(real)
    notices.clear()
    environment.read_env_file(tmp_path / ".env")
    assert os.environ["HF_TOKEN"] == IN_THE_FILE
    assert os.environ["WANDB_API_KEY"] == f"$(touch {tmp_path}/ran)"
    assert "OTHER" not in os.environ
    assert not (tmp_path / "ran").exists()
    assert any("chmod 600" in text for text in notices.collected())
    real.chmod(0o600)
    notices.clear()
    environment.read_env_file(tmp_path / ".env")
    environment.read_env_file(tmp_path / "missing")
    assert not notices.collected()


def test_S2_an_env_file_that_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_TOKEN", raising=False)
    path = tmp_path / ".env"
    for content in (b"HF_TOKEN=\xe9\xff\n", b"HF_TOKEN=a\0b\n", b"x" * 2_000_000, b'HF_TOKEN="a\nb"\n'):
        path.write_bytes(content)
        with pytest.raises(ConfigError, match=r"\.env: "):
            environment.read_env_file(path)
    path.write_bytes(b"OTHER=\xe9\xff\n\0\nTHIRD\n")
    environment.read_env_file(path)
    path.unlink()
    os.mkfifo(path)
    environment.read_env_file(path)
    assert "HF_TOKEN" not in os.environ


def test_S1_texts_lose_the_values_of_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_TOKEN", "abcdefgh")
    monkeypatch.setenv("LONGER_API_KEY", "abcdefghijkl")
    monkeypatch.setenv("SHORT_KEY", "abc")
    monkeypatch.setenv("KEYBOARD", "abcdefgh-layout")
    assert secrets.redacted("abc abcdefghijkl abcdefgh") == "abc <LONGER_API_KEY> <SOME_TOKEN>"
    assert secrets.redacted_values({"abcdefgh": ["abcdefgh", 1]}) == {"<SOME_TOKEN>": ["<SOME_TOKEN>", 1]}
    assert str(UnsafeError("abcdefgh")) == "<SOME_TOKEN>"
    for dump in (str(dict(os.environ)), str(os.environ), " ".join(f"{name}={os.environ[name]}" for name in os.environ)):
        assert "<environment>" in secrets.redacted(dump)
        assert os.environ["PATH"] not in secrets.redacted(dump)


HIDDEN = {
    "HTTPS_PROXY": ("http://me:pa55%2Fword99@proxy:3128", "pa55%2Fword99", "pa55/word99"),
    "DATABASE_URL": ("postgres://user:of-the-database@host/rows", "of-the-database"),
    "PGPASSWORD": ("of-the-server-1",), "SSHPASS": ("of-the-shell-1",), "MYSQL_PWD": ("of-the-tables-1",),
    "GITHUB_PAT": ("of-the-forge-1",), "HFTOKEN": ("of-the-hub-0001",), "SMTP_PASS": ("of-the-post-01",),
    "AZURE_STORAGE_CONNECTION_STRING": ("AccountName=mine;AccountKey=0000000",), "NPM_AUTH": ("of-the-shelf-1",),
    "ANYTHING": ("xoxb-123456789012345678901234",), "ELSE": ("eyJhbGciOiJIUzI1.eyJzdWIiOiIxMjM0.SflKxwRJSMeKKF2QT4",),
    "AWS_SECRET_ACCESS_KEY": ("sen/ti+nel/of-the-cloud", "sen%2Fti%2Bnel%2Fof-the-cloud"),
    "DEPLOY_KEY": ("-----BEGIN KEY-----\nb3BlbnNzaC1rZXktdjEAAAA\n-----END KEY-----", "b3BlbnNzaC1rZXktdjEAAAA",
                   "-----BEGIN KEY----- b3BlbnNzaC1rZXktdjEAAAA -----END KEY-----"),
}  # fmt: skip
"""Variables that hold a secret, each with its value and with what of it texts may hold."""


@pytest.mark.parametrize("name", HIDDEN)
def test_S1_secrets_of_other_names_and_spellings(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    value, *parts = HIDDEN[name]
    monkeypatch.setenv(name, value)
    for spelled in (value, *parts, json.dumps(value), repr(value)):
        text = secrets.redacted(f"a {spelled} b")
        assert f"<{name}>" in text
        assert not [part for part in parts or [value] if part in text]
    assert secrets.secret_in(f"x {value} y") == name


@pytest.mark.parametrize("name", ["PWD", "OLDPWD", "TOKENIZERS_PARALLELISM", "KEYBOARD", "COMPASS", "BYPASS", "AUTHOR"])
def test_S1_names_that_only_sound_like_it(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "plain-words-of-mine")
    assert secrets.redacted("plain-words-of-mine") == "plain-words-of-mine"


@pytest.fixture(scope="module")
def project(whole: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Everything that a project leaves under a home full of secrets: a run with W&B offline, its evaluation, a merge,
    job files, a run that fails and an evaluation that fails; and all that was said meanwhile (said.txt)."""
    home = tmp_path_factory.mktemp("home")
    folder = home / "project"
    shutil.copytree(whole / "model", folder / "base")
    write_rows(folder / "rows.jsonl", ROWS)
    job = {"model_name_or_path": "base", "train_data": "rows.jsonl", "output_dir": "job"}
    (folder / "job.json").write_text(json.dumps(job))
    (folder / ".env").write_text(f"HF_TOKEN={IN_THE_FILE}\n")
    (folder / ".env").chmod(0o600)
    (folder / "own.py").write_text(
        "import os\ndef score(output, row, reference):\n"
        "    if os.path.exists('failed/run.json'): raise RuntimeError(str(dict(os.environ)))\n    return True\n"
    )
    said = io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in SENTINELS.items():
            patch.setenv(name, value)
        patch.setenv("HOME", str(home))
        patch.setenv("WANDB_MODE", "offline")
        patch.chdir(folder)
        patch.setattr("sys.stdout", said)
        patch.setattr("sys.stderr", said)
        codes = list(_everything())
        import wandb

        wandb.teardown()
    (folder / "said.txt").write_text(said.getvalue())
    assert codes == [0, 0, 0, 0, 0, 0, 3, 3], said.getvalue()
    return folder


def _everything() -> Iterator[int]:
    training = [
        "--model_name_or_path=base", "--train_data=rows.jsonl", "--eval_data=rows.jsonl", "--max_length=64",
        "--max_steps=1", "--lora_r=2", "--max_new_tokens=2", "--task=exact",
        "--allow_leak",
    ]  # fmt: skip
    yield main(["train", *training, "--output_dir=run", "--use_wandb", "--save_steps=1"])
    yield main(["evaluate", "run"])
    yield main(["merge", "run", "merged", "--no_proof"])
    for engine, needed in JOBS.items():
        yield main(["launch", "job.json", f"--on={engine}", *needed])
    function = ["--task=auto", "--task_function=own.py:score"]
    yield main(["train", *training, *function, "--output_dir=failed", "--generate", "--eval_strategy=steps", "--debug"])
    yield main(["evaluate", "run", *function, "--debug"])


def test_S1_no_secret_in_any_byte_that_is_left_or_said(project: Path) -> None:
    files = [path for path in project.rglob("*") if path.is_file() and path.name != ".env"]
    names = {path.name for path in files}
    assert {"run.json", "metrics.jsonl", "README.md", "said.txt", "contract.json"} <= names
    assert any(name.endswith(".wandb") for name in names)
    for path in files:
        content = path.read_bytes()
        for name, value in {**SENTINELS, ".env": IN_THE_FILE}.items():
            assert value.encode() not in content, (path, name)
    said = (project / "said.txt").read_text()
    assert "Traceback" in said
    for text in (said, read_json(project / "failed" / "run.json")["error"]):
        assert "RuntimeError: {<environment>}" in text
        assert os.environ["PATH"] not in text


def test_S1_no_secret_among_the_arguments_of_a_process(project: Path) -> None:
    lines = " ".join(str(one.info["cmdline"]) for one in psutil.process_iter(["cmdline"]))
    assert not [name for name, value in SENTINELS.items() if value in lines]


def test_S3_no_home_folder_where_a_relative_path_does(project: Path) -> None:
    home = str(project.parent)
    for name in ("run/run.json", "run/README.md", "run/adapter_config.json", "run/inference.json", "run/ledger.json",
                 "run/checkpoint-1/contract.json", "run/checkpoint-1/adapter_config.json", "merged/config.json",
                 "merged/README.md", "failed/run.json"):  # fmt: skip
        assert home not in (project / name).read_text(), name


def test_time_of_a_text_without_secrets() -> None:
    """Every error and notice is looked through, which must cost nothing."""
    begin = time.process_time()
    for _ in range(1000):
        secrets.redacted("x" * 200)
        visible("x" * 200)
    assert time.process_time() - begin < 2
