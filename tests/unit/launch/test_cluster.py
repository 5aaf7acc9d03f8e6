"""Job files: accepted by the engines' own schemas, complete, and as SLURM would run them."""

from __future__ import annotations

import itertools
import subprocess
import sys
from pathlib import Path

import kubernetes_validate
import pytest
import yaml

from tunesmith.cli.main import main
from tunesmith.config.load import load, read
from tunesmith.config.resolve import resolve
from tunesmith.launch.cluster import ENGINES, job_name

PROJECT = Path(__file__).resolve().parents[3]
CONFIGS = sorted([
    *(PROJECT / "recipes/nli_cot/train/configs").glob("*.py"),
    PROJECT / "recipes/reasoning/training/configs/default.json",
    PROJECT / "recipes/sft/default_train_config.yaml",
    PROJECT / "recipes/sft/lora_train_config.yaml",
])  # fmt: skip
ENOUGH = {
    "slurm": ["--time", "12:00:00", "--partition", "gpu"],
    "kubernetes": ["--image", "registry.example/tunesmith:1", "--volume", "team"],
    "skypilot": ["--image", "registry.example/tunesmith:1", "--gpu_type", "H100"],
}


@pytest.fixture
def printed(capsys):
    """``printed(engine, *arguments)``: the job file of the small NLI configuration."""

    def make(engine: str, *arguments: str, file: Path = CONFIGS[0]) -> str:
        assert main(["launch", str(file), "--on", engine, *ENOUGH[engine], *arguments]) == 0
        return capsys.readouterr().out

    return make


@pytest.mark.parametrize("nodes", [1, 2])
def test_kubernetes_files_are_valid_for_every_shipped_configuration(printed, nodes):
    number = 0
    for file in CONFIGS:
        text = printed("kubernetes", "--nodes", str(nodes), "--num_processes", "4", "--time", "1-00:00:00", file=file)
        documents = list(yaml.safe_load_all(text))
        assert [document["kind"] for document in documents] == ["ConfigMap", *["Service"] * (nodes - 1), "Job"]
        for document in documents:
            kubernetes_validate.validate(document, "1.30", strict=True)
            number += 1
    assert number == len(CONFIGS) * (nodes + 1) >= 11 * (nodes + 1)


def test_the_machines_of_a_kubernetes_job_find_each_other(printed):
    _config, service, job = yaml.safe_load_all(printed("kubernetes", "--nodes", "2", "--name", "My run!"))
    pod = job["spec"]["template"]["spec"]
    command = pod["containers"][0]["command"]
    meeting = command[command.index("--rendezvous") + 1]
    # an indexed Job's first pod is NAME-0, and its subdomain is that of the service which selects the Job's pods
    assert meeting == f"{job['metadata']['name']}-0.{service['metadata']['name']}:29500" == "my-run-0.my-run:29500"
    assert pod["subdomain"] == service["metadata"]["name"]
    assert service["spec"]["selector"]["job-name"] == job["metadata"]["name"]
    assert job["spec"]["completions"] == job["spec"]["parallelism"] == 2
    assert command[command.index("--node_rank") + 1] == "$(JOB_COMPLETION_INDEX)"
    assert pod["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == 1


@pytest.mark.parametrize("engine", ["kubernetes", "skypilot"])
def test_the_configuration_inside_a_job_says_the_same(printed, tmp_path, engine):
    settings = ["--learning_rate", "1e-4", "--no_wandb", "--run_name", "a 'run': #1 $HOME"]
    text = printed(engine, *settings)
    if engine == "kubernetes":
        inside = next(yaml.safe_load_all(text))["data"]["run.yaml"]
    else:
        shell = yaml.safe_load(text)["run"]
        inside = shell.split("<<'CONFIGURATION'\n")[1].split("CONFIGURATION\n")[0]
    file = tmp_path / "run.yaml"
    file.write_text(inside)
    assert resolve(read(file)).values() == load(CONFIGS[0], settings).values()


def test_a_skypilot_file_says_how_the_machines_meet(printed):
    task = yaml.safe_load(printed("skypilot", "--nodes", "2", "--num_processes", "8", "--volume", "s3://runs"))
    assert task["num_nodes"] == 2
    assert task["resources"]["accelerators"] == "H100:8"
    assert task["file_mounts"]["/outputs"]["source"] == "s3://runs"
    checked = subprocess.run(["bash", "-n"], input=task["run"], text=True, capture_output=True, check=False)
    assert checked.returncode == 0, checked.stderr
    for variable in ("SKYPILOT_NUM_NODES", "SKYPILOT_NODE_RANK", "SKYPILOT_NODE_IPS"):
        assert variable in task["run"]


def test_slurm_options_and_shell(printed):
    text = printed("slurm", "--nodes", "2", "--num_processes", "4", "--gpu_type", "h100", "--account", "me")
    options = dict(line[10:].partition("=")[::2] for line in text.splitlines() if line.startswith("#SBATCH --"))
    assert options["nodes"] == "2"
    assert options["ntasks-per-node"] == "4"
    assert options["gres"] == "gpu:h100:4"
    assert options["account"] == "me"
    # sbatch reads its options up to the first command
    assert text.index("#SBATCH --requeue") < text.index("set -euo pipefail")
    shellcheck = Path(sys.executable).with_name("shellcheck")  # from the test extra
    found = subprocess.run([shellcheck, "-"], input=text, capture_output=True, text=True, check=False)
    assert found.stdout == ""


def test_no_gpus(printed):
    assert "gres" not in printed("slurm", "--gpu_type", "none")
    assert "nvidia" not in printed("kubernetes", "--gpu_type", "none")
    assert "accelerators" not in printed("skypilot", "--gpu_type", "none")


def test_a_run_goes_on_where_it_was_unless_the_configuration_says_otherwise(printed):
    for engine in ENGINES:
        assert "--resume_from_checkpoint" in printed(engine).replace("\n            - ", " ")
        again = printed(engine, "--resume_from_checkpoint", "models/checkpoint-5")
        assert "latest" not in again.replace("newest", "")


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (["--on", "kubernetes"], "--image"),
        (["--on", "kubernetes", "--image", "x"], "--volume"),
        (["--on", "skypilot", "--image", "x"], "--gpu_type"),
        (["--on", "slurm", "--image", "x"], "has no meaning for slurm"),
        (["--on", "slurm", "--time", "soon"], "no duration"),
        (["--on", "slurm", "--nodes", "0"], "--nodes 0"),
        (["--on", "pbs"], "invalid choice"),
        (["--on", "slurm", "--learning_rat", "1"], "did you mean 'learning_rate'"),
    ],
)
def test_what_a_cluster_cannot_use_is_refused(capsys, arguments, what):
    assert main(["launch", str(CONFIGS[0]), *arguments]) == 2
    assert what in capsys.readouterr().err


def test_files_are_written_once_and_hold_no_secret(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HF_TOKEN", "hf_sentinel")
    for engine, again in itertools.product(ENGINES, (False, True)):
        target = tmp_path / engine
        code = main(["launch", str(CONFIGS[0]), "--on", engine, *ENOUGH[engine], "--output", str(target)])
        assert code == (2 if again else 0)
        assert "hf_sentinel" not in target.read_text()
    assert "nothing was submitted" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "name"), [("models/My Run_2", "models-my-run-2"), ("../7b", "run-7b"), ("-", "run"), ("x" * 90, "x" * 40)]
)
def test_names_that_every_engine_accepts(text, name):
    assert job_name(text) == name
