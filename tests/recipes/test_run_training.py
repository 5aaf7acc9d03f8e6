"""run_training.sh: the command line it builds, and a run through a stand-in engine that executes it natively."""

from __future__ import annotations

import itertools
import json
import os
import shlex
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[2]
SCRIPT = PROJECT / "recipes" / "nli_cot" / "run_training.sh"
IMAGE = "mistral-nli-ft"

ENGINE = """#!{python}
# A container engine that answers, logs its command lines, and runs a container's command on the host.
import json, os, subprocess, sys
arguments = sys.argv[1:]
with open({log!r}, "a") as log:
    log.write(json.dumps(arguments) + "\\n")
if arguments == ["--version"]:
    print({version!r})
if arguments[:1] == ["info"]:
    sys.exit({info})
if arguments[:2] == ["image", "inspect"]:
    sys.exit({missing})
if arguments[:1] == ["run"]:
    rest, folders, workdir = arguments[1:], {{}}, "/"
    takes_value = ("--user", "--workdir", "--volume", "--env", "--gpus", "--device")
    while rest[0].startswith("--"):
        name = rest.pop(0)
        value = rest.pop(0) if name in takes_value else None
        if name == "--volume":
            host, inside = value.removesuffix(":ro").split(":")
            folders[inside] = host
        if name == "--workdir":
            workdir = value
    assert rest.pop(0) == {image!r}
    command = [{python!r} if word == "python" else word for word in rest]
    os.chdir(folders["/app"] + workdir.removeprefix("/app"))
    sys.exit(subprocess.run(command).returncode)
"""


class Host:
    """A machine with an engine on its PATH: runs the script and tells what the engine was asked."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.log = folder / "log"
        self.bin = folder / "bin"
        self.bin.mkdir()
        for name in ("bash", "dirname", "timeout", "id", "mkdir", "grep", "env"):
            (self.bin / name).symlink_to(shutil.which(name) or "/missing")
        self.environment = {
            "PATH": str(self.bin),
            "HOME": str(folder),
            "DATA_DIR": str(folder / "data"),
            "MODELS_DIR": str(folder / "models"),
            "HF_CACHE_DIR": str(folder / "cache"),
            "PYTHON": sys.executable,
        }

    def install(self, name: str = "docker", *, answers: bool = True, has_image: bool = True, version: str = "") -> None:
        self._executable(
            name,
            ENGINE.format(
                python=sys.executable,
                log=str(self.log),
                version=version or f"{name} 1",
                info=0 if answers else 1,
                missing=0 if has_image else 1,
                image=IMAGE,
            ),
        )

    def install_gpus(self) -> None:
        self._executable("nvidia-smi", "#!/bin/sh\necho 'GPU 0: a GPU'\n")

    def _executable(self, name: str, text: str) -> None:
        path = self.bin / name
        path.write_text(text)
        path.chmod(path.stat().st_mode | stat.S_IXUSR)

    def run(self, *arguments: str, check: bool = True, script: Path = SCRIPT) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(script), *arguments],
            env=self.environment,
            cwd=self.folder,
            capture_output=True,
            text=True,
            check=check,
            stdin=subprocess.DEVNULL,
        )

    def dry(self, *arguments: str, script: Path = SCRIPT) -> list[str]:
        """The words of the last command that the script would run."""
        return shlex.split(self.run(*arguments, "--dry-run", script=script).stdout.splitlines()[-1])

    def asked(self) -> list[list[str]]:
        return [json.loads(line) for line in self.log.read_text().splitlines()] if self.log.exists() else []


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


@pytest.fixture
def docker(host: Host) -> Host:
    host.install()
    return host


@pytest.fixture
def project_copy(tmp_path: Path) -> Path:
    """The script in a project of its own, where files may be put beside it."""
    folder = tmp_path / "project" / "recipes" / "nli_cot"
    folder.mkdir(parents=True)
    return Path(shutil.copy(SCRIPT, folder / "run_training.sh"))


def values_of(words: list[str], option: str) -> list[str]:
    return [words[index + 1] for index, word in enumerate(words) if word == option]


def program_of(words: list[str]) -> list[str]:
    return words[words.index(IMAGE) + 1 :]


def test_the_container_command(docker: Host) -> None:
    words = docker.dry("--config", "train/configs/ablation2.py", "--batch_size", "4", "--no_wandb")
    assert words[:2] == ["docker", "run"]
    assert program_of(words) == [
        "python", "train/train_sft.py", "--config", "train/configs/ablation2.py", "--batch_size", "4", "--no_wandb",
    ]  # fmt: skip
    mounts = dict(reversed(mount.split(":")) for mount in values_of(words, "--volume"))
    assert mounts["/app"] == str(PROJECT)
    assert mounts["/data"] == mounts["/app/recipes/nli_cot/data"] == str(docker.folder / "data")
    assert mounts["/models"] == mounts["/app/recipes/nli_cot/models"] == str(docker.folder / "models")
    assert mounts["/hf_cache"] == str(docker.folder / "cache")
    assert values_of(words, "--workdir") == ["/app/recipes/nli_cot"]
    assert values_of(words, "--user") == [f"{os.getuid()}:{os.getgid()}"]
    assert "HF_HOME=/hf_cache" in values_of(words, "--env")
    assert "--rm" in words


def test_folders_of_the_recipe_are_not_mounted_twice(docker: Host, project_copy: Path) -> None:
    for name in ("DATA_DIR", "MODELS_DIR"):
        del docker.environment[name]
    words = docker.dry(script=project_copy)
    assert len(values_of(words, "--volume")) == 4


@pytest.mark.parametrize(
    ("arguments", "value"),
    [
        (["--gpu", "1"], '"device=1"'),
        (["--gpu=1"], '"device=1"'),
        (["--gpus", "0,1"], '"device=0,1"'),
        (["--all-gpus"], "all"),
        (["--all_gpus"], "all"),
    ],
)
@pytest.mark.parametrize("place", [0, 1, 2])
def test_gpus_anywhere_among_the_arguments(docker: Host, arguments: list[str], value: str, place: int) -> None:
    others = [["--config", "train/configs/ablation2.py"], ["--seed", "3"]]
    others.insert(place, arguments)
    words = docker.dry(*itertools.chain(*others))
    assert values_of(words, "--gpus") == [value]
    assert program_of(words)[2:] == ["--config", "train/configs/ablation2.py", "--seed", "3"]


def test_without_a_choice_every_gpu_is_used_where_there_are_some(docker: Host) -> None:
    done = docker.run("--dry-run")
    assert "--gpus" not in done.stdout
    assert "no GPU found" in done.stderr
    docker.install_gpus()
    assert values_of(docker.dry(), "--gpus") == ["all"]


def test_podman(host: Host) -> None:
    host.install("podman", version="podman version 5.0.0")
    words = host.dry("--gpus", "0,2", "--seed", "1")
    assert words[:2] == ["podman", "run"]
    assert "--userns=keep-id" in words
    assert values_of(words, "--device") == ["nvidia.com/gpu=0", "nvidia.com/gpu=2"]
    assert program_of(words)[2:] == ["--seed", "1"]


def test_docker_that_does_not_answer_gives_way_to_podman(host: Host) -> None:
    host.install("docker", answers=False)
    host.install("podman")
    assert host.dry()[0] == "podman"


def test_the_image_is_built_when_it_is_missing(host: Host) -> None:
    host.install(has_image=False)
    lines = host.run("--dry-run").stdout.splitlines()
    assert shlex.split(lines[0]) == ["docker", "build", "-t", IMAGE, str(PROJECT)]
    assert len(lines) == 2


def test_the_image_is_not_built_when_it_is_there(docker: Host) -> None:
    assert len(docker.run("--dry-run").stdout.splitlines()) == 1


@pytest.mark.parametrize("place", ["recipe", "project"])
def test_the_env_file_is_found_in_the_working_folder_and_never_read_here(docker, project_copy, place) -> None:
    folder = project_copy.parent if place == "recipe" else project_copy.parents[2]
    (folder / ".env").write_text("HF_TOKEN=hf_secret\n")
    done = docker.run("--dry-run", script=project_copy)
    words = shlex.split(done.stdout)
    mounted = [mount for mount in values_of(words, "--volume") if mount.endswith(".env:ro")]
    # that of the recipe lies in the mounted project already
    assert mounted == ([] if place == "recipe" else [f"{folder / '.env'}:/app/recipes/nli_cot/.env:ro"])
    assert "hf_secret" not in done.stdout + done.stderr


def test_secrets_of_the_environment_go_by_name(docker: Host) -> None:
    docker.environment["HF_TOKEN"] = "hf_secret"
    done = docker.run("--dry-run")
    assert "HF_TOKEN" in values_of(shlex.split(done.stdout), "--env")
    assert "hf_secret" not in done.stdout + done.stderr
    assert ".env:ro" not in done.stdout


def test_spaces_and_quotes_reach_the_program_unharmed(docker: Host) -> None:
    odd = ["--wandb_name", 'a run\'s "name" $HOME *', "--output_dir", "my models/run 1"]
    assert program_of(docker.dry(*odd))[2:] == odd


def test_native_for_a_user_without_a_home(host: Host) -> None:
    for name in ("HOME", "HF_CACHE_DIR"):
        del host.environment[name]
    assert host.dry("--native") == [sys.executable, "train/train_sft.py"]


def test_native_on_request(docker: Host) -> None:
    words = docker.dry("--native", "--config", "train/configs/demo.py")
    assert words == [sys.executable, "train/train_sft.py", "--config", "train/configs/demo.py"]
    assert docker.asked() == []


@pytest.mark.parametrize("installed", [True, False])
def test_native_when_no_engine_answers_and_it_says_so(host: Host, installed: bool) -> None:
    if installed:
        host.install(answers=False)
    done = host.run("--seed", "1", "--dry-run")
    assert shlex.split(done.stdout) == [sys.executable, "train/train_sft.py", "--seed", "1"]
    assert "no container engine answers" in done.stderr
    assert "natively" in done.stderr


def test_native_gpus(host: Host) -> None:
    assert host.dry("--native", "--gpus", "0,1")[:2] == ["env", "CUDA_VISIBLE_DEVICES=0,1"]
    assert host.dry("--native", "--all-gpus")[0] == sys.executable


@pytest.mark.parametrize("arguments", [["--gpu"], ["--gpu", "one"], ["--gpus", "0;reboot"]])
def test_a_wrong_gpu_is_refused(host: Host, arguments: list[str]) -> None:
    done = host.run(*arguments, check=False)
    assert done.returncode == 2
    assert "error:" in done.stderr


def test_a_dry_run_makes_nothing(docker: Host) -> None:
    docker.dry()
    assert not (docker.folder / "data").exists()
    assert all(arguments[0] != "run" for arguments in docker.asked())


@pytest.mark.parametrize("native", [True, False])
def test_the_exit_code_and_the_words_are_the_programs_own(docker: Host, native: bool) -> None:
    arguments = ["--config", "train/configs/ablation2.py", "--learning_rat", "1"]
    done = docker.run(*(["--native"] if native else []), *arguments, check=False)
    assert done.returncode == 2
    assert "unknown setting 'learning_rat'; did you mean 'learning_rate'" in done.stderr


def test_the_programs_own_help_through_the_container(docker: Host) -> None:
    done = docker.run("--", "--help")
    assert "--strict_config" in done.stdout
    assert (docker.folder / "models").is_dir()


def test_shellcheck_has_nothing_to_say() -> None:
    shellcheck = Path(sys.executable).with_name("shellcheck")  # from the test extra
    done = subprocess.run([shellcheck, str(SCRIPT)], capture_output=True, text=True, check=False)
    assert done.stdout == ""
