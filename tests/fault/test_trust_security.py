"""Nobody is let in: files of strangers run no code, names lead nowhere, secrets stay, and nothing steers a terminal.

Rows C10 to C13, T8 to T10 and S1 to S5 of the design's battery, by number; what else stands here is of the same kind.
"""

from __future__ import annotations

import ast
import io
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

import tunesmith
from helpers import write_rows
from tiny_models import build, configure, write_tokenizer
from tunesmith import notices, secrets
from tunesmith.cli import environment, output
from tunesmith.cli.main import main
from tunesmith.config.convert import convert
from tunesmith.config.names import leaf_paths
from tunesmith.config.permissions import COMMAND_LINE_ONLY, PERMISSIONS
from tunesmith.config.resolve import from_values, schema_defaults
from tunesmith.data.preview import PreviewRow, Token
from tunesmith.errors import ConfigError, UnsafeError
from tunesmith.export.card import Records, clean, render
from tunesmith.export.inference import SETTINGS, settings_of
from tunesmith.report.folder import read_json, write_json
from tunesmith.report.preview import page
from tunesmith.train.checkpoint import MANIFEST, Batches, commit
from tunesmith.train.pickles import check_pickles
from tunesmith.visible import as_json, visible

SOURCES = sorted(Path(tunesmith.__file__).parent.rglob("*.py"))
EVIL = "a\x1b]0;owned\x07\x1b[2J\x9b31m\x7f\u202eb\r"
"""Sets a title, clears the screen, in both widths of escape; deletes, reverses, and returns to the line's start."""
ROWS = [{"prompt": f"what is {number} ", "completion": f"it is {number}"} for number in range(4)]
SENTINELS = {
    "HF_TOKEN": "hf_sentinelOfTheHub00000000000000000",
    "WANDB_API_KEY": "5e471e1000000000000000000000000000005e47",
    "AWS_ACCESS_KEY_ID": "AKIASENTINEL00000000",
    "AWS_SECRET_ACCESS_KEY": "sentinel/of+the/cloud00000000000000000",
    "AWS_SESSION_TOKEN": "sentinel-of-a-session-00000000",
}
JOBS = {
    "slurm": [],
    "kubernetes": ["--image=ours", "--volume=claim"],
    "skypilot": ["--image=ours", "--gpu_type=none"],
}
IN_THE_FILE = "sentinel-of-the-env-file-0000000"


@cache
def calls() -> list[tuple[Path, str, ast.Call]]:
    """Every call in the sources: the file, the text of what is called, and the call."""
    nodes = ((file, node) for file in SOURCES for node in ast.walk(ast.parse(file.read_text())))
    return [(file, ast.unparse(node.func), node) for file, node in nodes if isinstance(node, ast.Call)]


@pytest.fixture
def said(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Call tunesmith; returns exit code, standard output and standard error."""

    def run(*arguments: object) -> tuple[int, str, str]:
        code = main([str(argument) for argument in arguments])
        return code, *capsys.readouterr()

    return run


# permissions ----------------------------------------------------------------------------------------------------------


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


# configurations that are code -----------------------------------------------------------------------------------------


@pytest.fixture
def python(tmp_path: Path, said) -> Callable[..., tuple[int, str, str]]:
    def run(text: str, folder: Path = tmp_path, *settings: str) -> tuple[int, str, str]:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "own.py").write_text(f"model_id = 'nano-mistral'\n{text}")
        return said("config", folder / "own.py", "--written", *settings)

    return run


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


def test_C10_a_file_sees_no_secret(python, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in SENTINELS.items():
        monkeypatch.setenv(name, value)
    code, out, _ = python("import os\nrun_name = '-'.join(sorted(os.environ))\nexperiment = os.environ.get('HF_TOKEN')")
    assert (code, "HF_TOKEN" in out, "PATH" in out) == (0, False, True)
    code, _, errors = python("import os\nrun_name = os.environ['HF_TOKEN']")
    assert (code, "own.py:3" in errors, "no secret" in errors) == (2, True, True), errors
    code, _, errors = python("import os\nraise RuntimeError(dict(os.environ))")
    assert (code, any(value in errors for value in SENTINELS.values())) == (2, False)


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


# names from data ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["../x", "/tmp/x", "a/../../x", "~/x", "..", "a\\..\\..\\x", "a\nb", "a\x1b[2J", "c:x"]
)
def test_the_finished_model_stays_in_its_run_folder(name: str, tmp_path: Path, said) -> None:
    code, _, errors = said("config", "--model_name_or_path=m", f"--final_subdir={name}")
    assert (code, "final_subdir" in errors) == (2, True), errors
    with pytest.raises(ConfigError, match="final_subdir"):
        from_values({"model.model_name_or_path": "m", "training.final_subdir": name})
    from_values({"model.model_name_or_path": "m", "training.final_subdir": "final/model.1"})


def test_a_record_does_not_say_that_everything_is_the_runs_own(tmp_path: Path) -> None:
    from tunesmith.report.belongings import belonging

    (tmp_path / "thesis.txt").touch()
    for name in ("*", "../*", "thesis*", 5):
        settings = {"training.final_subdir": name}
        write_json(tmp_path / "run.json", {"status": "x", "settings": settings, "settings_fingerprint": "x"})
        assert belonging(tmp_path) == ["run.json"]


def test_a_manifest_names_no_file_outside(tmp_path: Path) -> None:
    from tunesmith.train import checkpoint

    folder = tmp_path / "checkpoint-1"
    folder.mkdir()
    os.mkfifo(tmp_path / "pipe")
    commit(folder, Batches(1, 1, 1))
    manifest = read_json(folder / MANIFEST)
    manifest.pop(checkpoint.SEAL)
    for name in ("../pipe", str(tmp_path / "pipe"), "/etc/passwd"):
        manifest["files"] = {name: "0"}
        write_json(folder / MANIFEST, manifest | {checkpoint.SEAL: checkpoint._seal(manifest)})
        assert "outside" in str(checkpoint.problem(folder))


@pytest.fixture
def letter(tmp_path: Path) -> Path:
    """A file of this machine that no stranger should read."""
    file = tmp_path / "letter.txt"
    file.write_text("meet me at noon")
    return file


def test_what_lies_beside_a_model_is_text_and_never_the_name_of_a_file(letter: Path, tmp_path: Path) -> None:
    content = {
        "version": 1, "how_to_use": "", "format": "prompt_completion", "columns": {},
        "prompt": {"kind": "text", "query": "{prompt}", "before": "", "after": "", "begin_token_ids": [],
                   "cut_after": None},
        "special_in_content": "split", "stop_token_ids": [2], "stop_tokens": ["</s>"], "generation": {},
        "max_length": 9, "settings": {"data.instruction": str(letter), "data.template": None},
    }  # fmt: skip
    write_json(tmp_path / "inference.json", content)
    from tunesmith.data.template_files import read_instruction

    assert read_instruction(settings_of(tmp_path)["data.instruction"]) == str(letter)


def test_no_record_has_a_file_read_into_the_prompt(letter: Path, base: Path, tmp_path: Path, said) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", ROWS)
    for name in ("instruction", "template"):
        settings = schema_defaults() | {
            "model.model_name_or_path": str(base), "adapter.use_lora": False, f"data.{name}": str(letter),
        }  # fmt: skip
        write_json(base / "run.json", {"settings": settings, "settings_fingerprint": "x"})
        code, out, errors = said("predict", base, rows, "-", "--max_new_tokens=1")
        assert (code, "letter.txt" in errors, "noon" in out + errors) == (7, True, False), errors


# what is shown --------------------------------------------------------------------------------------------------------


def unsafe_in(text: str) -> set[str]:
    """Characters of a text that steer, hide or reorder; the library's progress bar is none of ours."""
    return {one for one in text.replace("\rLoading weights", "") if one != "\n" and not one.isprintable()}


def test_S5_one_place_prints(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    allowed = {"output.py", "notices.py", "torchrun.py"}  # the latter two escape as well, and know no cli
    others = [
        f"{file.name}:{call.lineno}"
        for file, name, call in calls()
        if name in ("print", "sys.stdout.write", "sys.stderr.write") and file.name not in allowed
    ]
    assert not others
    for show in (output.say, output.say_json, output.say_piece, output.tell):
        show(EVIL)
        assert not unsafe_in("".join(capsys.readouterr()))
    monkeypatch.setattr(notices, "_listener", notices._to_stderr)
    notices.clear()
    notices.notify(EVIL)
    assert not unsafe_in(capsys.readouterr().err)


def test_S5_json_for_programs_holds_the_same_data() -> None:
    value = {EVIL: [EVIL, "漢é 🙂", "\U000e0001"]}
    assert not unsafe_in(as_json(value))
    assert json.loads(as_json(value, 2)) == value
    assert "漢é 🙂" in as_json(value)


def test_S5_files_keep_what_terminals_do_not_get(monkeypatch: pytest.MonkeyPatch) -> None:
    for terminal in (True, False):
        stream = io.StringIO()
        stream.isatty = lambda terminal=terminal: terminal  # type: ignore[method-assign]
        monkeypatch.setattr("sys.stdout", stream)
        output.say_file(EVIL)
        assert bool(unsafe_in(stream.getvalue())) is not terminal


def test_S5_names_of_files_columns_models_and_values(base: Path, tmp_path: Path, said) -> None:
    evil = EVIL.replace("\r", "")
    folder = tmp_path / evil
    folder.mkdir()
    rows = write_rows(folder / "rows.jsonl", [{**row, evil: evil} for row in ROWS])
    model = [f"--model_name_or_path={base}", f"--train_data={rows}", f"--output_dir={tmp_path}/run"]
    for words in (
        ["config", *model, f"--run_name={evil}"], ["config", *model, f"--{evil}=1"], ["check", *model],
        ["config", *model, f"--run_name={evil}", "--json"], ["preview", *model], ["preview", *model, "--json"],
        ["predict", base, rows, "-", "--max_new_tokens=1"], ["predict", tmp_path / evil, rows, "-"],
        ["config", folder / "absent.py"], [evil], ["config", f"--model_name_or_path={evil}", f"--seed={evil}"],
        ["evaluate", base, f"--data={rows}", "--task=exact", "--max_new_tokens=1"],
    ):  # fmt: skip
        _, out, errors = said(*words)
        assert not unsafe_in(out + errors), words
        assert out + errors


def test_S4_pages_and_cards_hold_no_markup_of_others() -> None:
    evil = "<script>alert(1)</script>\n# a heading\n[link](javascript:x)../../x"
    row = PreviewRow(evil, [Token(1, evil, True, False, False, 1.0)], None)
    html = page(evil, evil, [evil], [row])
    assert "<script>alert" not in html
    assert "\n# a heading" not in clean(evil)
    run = {
        "settings": {"model.model_name_or_path": evil, "data.format": evil}, "origins": {"data.format": "x"},
        "command": evil, "result": {"metrics": {evil: 1.0}}, "finished": evil, "versions": {evil: evil},
        "model": {}, "data": {}, "plan": {},
    }  # fmt: skip
    card = render(Records(run, {}, {"task": evil, "num_examples": 1, evil: 0.5}, {}), "full")
    body = re.sub(r"```.*?```", "", card.split("---\n", 2)[2], flags=re.DOTALL)  # markup means nothing in code
    assert not re.search(r"(?<!\\)<script", body)
    assert "\n# a heading" not in body


@pytest.mark.parametrize("engine", JOBS)
def test_S4_names_in_job_files_are_quoted(engine: str, tmp_path: Path, said) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", ROWS)
    evil = "a'; touch ran; '\n#SBATCH --x\n$(touch ran)"
    (tmp_path / "own.json").write_text(json.dumps({"model_name_or_path": "nano-mistral", "train_data": rows}))
    for setting in (f"--run_name={evil}", f"--output_dir={tmp_path}/{evil}", f"--name={evil}"):
        code, out, errors = said("launch", tmp_path / "own.json", f"--on={engine}", *JOBS[engine], setting)
        assert (code == 0 and "\n#SBATCH --x" not in out and "\n$(touch" not in out) or code == 2, (out, errors)


# secrets --------------------------------------------------------------------------------------------------------------


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


def test_the_threat_model_names_tests_that_are_there() -> None:
    root = Path(__file__).resolve().parents[2]
    named = re.findall(r"`(?:(tests/[\w/]+\.py)::)?(test_\w+)`", (root / "SECURITY.md").read_text())
    assert len(named) > 25
    for file, test in named:
        assert f"def {test}(" in (root / file if file else Path(__file__)).read_text(), test
