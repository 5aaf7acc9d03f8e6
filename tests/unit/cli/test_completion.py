"""Completion scripts: what bash completes with the real one, and that names are those of verbs and schema."""

from __future__ import annotations

import subprocess

import pytest

from tunesmith.cli.completion import SHELLS, script, settings, words_of
from tunesmith.cli.main import VERBS, main
from tunesmith.config.names import leaf_paths

LINES: dict[str, tuple[str, set[str], set[str]]] = {
    "a verb": ("tunesmith tr", {"train"}, {"sweep"}),
    "a setting": ("tunesmith train --learning_", {"--learning_rate"}, {"--lora_r"}),
    "a switch off": ("tunesmith train a.yaml --no_use_l", {"--no_use_lora"}, set()),
    "an option": ("tunesmith merge --max_sh", {"--max_shard_size"}, set()),
    "no setting where none is read": ("tunesmith merge --learning_", set(), {"--learning_rate"}),
    "values": ("tunesmith train --save_strategy = e", {"epoch"}, {"steps"}),
    "values after a space": ("tunesmith train --save_strategy s", {"steps"}, {"epoch"}),
    "a path": ("tunesmith train training.learning_r", {"training.learning_rate="}, {"training.seed="}),
    "values of a path": ("tunesmith train training.save_strategy =", {"steps", "epoch"}, set()),
    "a file": ("tunesmith train my", {"my file.yaml"}, set()),
    "a file of an option": ("tunesmith train --train_data my", {"my file.yaml"}, set()),
    "an action": ("tunesmith data pre", {"prepare"}, {"make"}),
    "an option of an action": ("tunesmith runs remove --y", {"--yes"}, set()),
    "an unknown verb": ("tunesmith nonsense --x", set(), {"--learning_rate"}),
}


@pytest.fixture(scope="module")
def completed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, set[str]]:
    """What bash completes in each of ``LINES``, all of them asked in one shell."""
    folder = tmp_path_factory.mktemp("completion")
    (folder / "my file.yaml").touch()
    (folder / "script").write_text(script("bash"))
    program = ["set -u", "source ./script", "compopt() { :; }"]
    for line, _, _ in LINES.values():
        words = " ".join(f"'{word}'" for word in line.split())
        program += [f"COMP_WORDS=({words}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1)); _tunesmith"]
        program += ["printf '%s\\n' \"${COMPREPLY[@]}\"", "echo ---"]
    done = subprocess.run(["bash", "-c", "\n".join(program)], cwd=folder, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    answers = done.stdout.split("---\n")[:-1]
    return {name: set(answer.splitlines()) - {""} for name, answer in zip(LINES, answers, strict=True)}


@pytest.mark.parametrize("name", LINES)
def test_what_bash_completes(completed: dict[str, set[str]], name: str) -> None:
    _, wanted, unwanted = LINES[name]
    assert wanted <= completed[name]
    assert not unwanted & completed[name]


@pytest.mark.parametrize("shell", SHELLS)
def test_every_name_is_in_it(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", shell]) == 0
    text = capsys.readouterr().out
    assert "@" not in text.replace('"$@"', "").replace("[@]", "")
    assert all(verb in text for verb in VERBS)
    assert all(name in text for name in settings())
    assert len(settings()) == len(leaf_paths())  # no two settings share their short name
    assert text.isascii()


def test_an_unknown_shell(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", "tcsh"]) == 2
    assert "bash" in capsys.readouterr().err


def test_words_of_a_verb() -> None:
    assert {"make", "prepare", "download", "cache"} == set(words_of("data").actions)
    assert set(words_of("runs").actions) == {"list", "compare", "remove"}
    assert "--dialect" in words_of("train").options
    assert "--list" not in words_of("train").options
    assert "--list" in words_of("config").options
    assert [verb for verb in VERBS if words_of(verb).takes_settings][:3] == ["config", "preview", "check"]
