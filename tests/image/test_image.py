"""The image really builds and trains; job files pass SkyPilot's own schema. Long: `make test-image` runs these.

They need podman and debootstrap (Debian's packages), root, and the package registries, no container registry.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tunesmith.cli.main import main

pytestmark = [pytest.mark.image, pytest.mark.timeout(3600)]

PROJECT = Path(__file__).resolve().parents[2]
BASE = "localhost/tunesmith-test-base"
IMAGE = "localhost/tunesmith-test"
CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")
PIP_SETTINGS = ("/etc/xdg/pip", "/root/.config/pip")

TRAIN = f"""FROM {IMAGE}
RUN id -u && apt-get --version > /dev/null && pip --version
RUN tunesmith data make nli data/finetune --num_train 40 --num_heldout 8
RUN OMP_NUM_THREADS=1 python train/train_sft.py --config train/configs/minimal_test.py \\
    --model_id nano-mistral --max_steps 10 --output_dir /models/minimal \\
 && test -f /models/minimal/adapter_model.safetensors
"""


def command(*words: str, **options: object) -> str:
    """Run a command and return what it printed; its own words are the failure's."""
    done = subprocess.run(words, capture_output=True, text=True, check=False, **options)  # type: ignore[call-overload]
    assert done.returncode == 0, f"{' '.join(words)}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
    return str(done.stdout)


def podman_build(*arguments: str) -> str:
    """Build as on any machine, with this one's network, certificates and pip settings."""
    mounts = [f"{path}:{path}:ro" for path in (*PIP_SETTINGS, *_local_registries()) if Path(path).exists()]
    settings = ["--env", "PIP_CERT=/host-certificates.crt", "--volume", f"{CERTIFICATES}:/host-certificates.crt:ro"]
    volumes = [word for mount in mounts for word in ("--volume", mount)]
    return command("podman", "build", "--isolation", "chroot", "--network", "host", *settings, *volumes, *arguments)


def _local_registries() -> set[str]:
    """Folders that pip's settings name as places of packages."""
    text = command(sys.executable, "-m", "pip", "config", "list")
    words = text.replace("'", " ").replace("file://", "").replace("\\n", " ").split()
    folders = (Path(word) for word in words if word.startswith("/"))
    return {str(Path(*folder.parts[:3])) for folder in folders if folder.is_dir() and not folder.is_relative_to("/etc")}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    if os.getuid() != 0 or not shutil.which("podman") or not shutil.which("debootstrap"):
        pytest.skip("needs root, podman and debootstrap")
    folder = tmp_path_factory.mktemp("base")
    command("debootstrap", "--variant=minbase", "bookworm", str(folder / "root"))
    command("tar", "-C", str(folder / "root"), "-cf", str(folder / "root.tar"), ".")
    command("podman", "import", str(folder / "root.tar"), BASE)
    shutil.rmtree(folder)
    return BASE


def test_the_image_builds_and_trains_inside(base, tmp_path):
    podman_build("--build-arg", f"BASE_IMAGE={base}", "--build-arg", "TORCH_INDEX=", "-t", IMAGE, str(PROJECT))
    (tmp_path / "Containerfile").write_text(TRAIN)
    printed = podman_build("--no-cache", "-f", str(tmp_path / "Containerfile"), str(tmp_path))
    assert "\n10001\n" in printed  # the image's user is not root
    size = int(command("podman", "image", "inspect", "--format", "{{.Size}}", IMAGE))
    assert size < 6e9


def test_skypilot_accepts_the_files(tmp_path, capsys):
    environment = tmp_path / "environment"
    command(sys.executable, "-m", "venv", str(environment))
    command(str(environment / "bin/pip"), "install", "--quiet", "skypilot")
    number = 0
    for nodes, volume in ((1, []), (2, ["--volume", "s3://runs"])):
        file = str(PROJECT / "recipes/nli_cot/train/configs/ablation2.py")
        words = ["--on", "skypilot", "--image", "registry.example/tunesmith:1", "--gpu_type", "H100"]
        assert main(["launch", file, *words, "--nodes", str(nodes), *volume]) == 0
        task = tmp_path / f"task-{number}.yaml"
        task.write_text(capsys.readouterr().out)
        assert yaml.safe_load(task.read_text())["num_nodes"] == nodes
        check = (
            "import sys, yaml; from sky.utils import common_utils, schemas; "
            "common_utils.validate_schema(yaml.safe_load(open(sys.argv[1])), schemas.get_task_schema(), 'task: ')"
        )
        command(str(environment / "bin/python"), "-c", check, str(task), env=os.environ | {"HOME": str(tmp_path)})
        number += 1
    assert number == 2
