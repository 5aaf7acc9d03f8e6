"""What ``tunesmith doctor`` finds: on this machine, and on others that are put together from folders and variables."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tunesmith.cli.main import main
from tunesmith.model.device import Machine, driver
from tunesmith.model.quantize import nf4_error
from tunesmith.train import machine
from tunesmith.train.machine import GIB, Finding

SECRET = "hf_" + "x" * 34


def only(findings: Iterator[Finding], name: str | None = None) -> Finding:
    found = [each for each in findings if name in (None, each.name)]
    assert len(found) == 1, found
    return found[0]


def test_this_machine_can_train(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_TOKEN", SECRET)
    monkeypatch.setenv("WANDB_API_KEY", SECRET)
    assert main(["doctor", "--json"]) == 0
    shown = capsys.readouterr().out
    assert SECRET not in shown
    found = json.loads(shown)
    assert found["can_train"] is True
    by_name = {each["name"]: each for each in found["findings"]}
    assert {"python", "torch", "gpu", "bitsandbytes", "disk", "memory", "cache", "hub cache", "hub", "TMPDIR"} <= set(
        by_name
    )
    assert by_name["hub token"]["what"] == "present (HF_TOKEN)"
    assert "HF_HUB_OFFLINE" in by_name["hub"]["what"]  # as the tests run
    assert all(each["remedy"] for each in found["findings"] if each["status"] != "ok")


def test_lines_and_exit_code(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(machine, "ROOM", machine.ROOM | {"memory": (10**18, 10**18)})
    assert main(["doctor"]) == 4
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if line.startswith("problem ")] == [
        line for line in lines if line.split()[1] == "memory"
    ]
    assert all(line.split()[0] in ("ok", "note", "problem") for line in lines)


def test_a_check_that_fails_is_a_finding(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    findings = {each.name: each for each in machine.look(tmp_path / "absent")}
    assert (findings["disk"].status, "FileNotFoundError" in findings["disk"].what) == ("note", True)
    assert "TMPDIR" in findings  # and those after it are told


def test_ranges_and_tested_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    assert machine._against_range(Requirement("pydantic>=2")) is None
    for text, status in (("pydantic<2", "note"), ("no-such-package-of-ours>=1", "problem")):
        found = machine._against_range(Requirement(text))
        assert found is not None
        assert (found.status, found.remedy) == (status, f"pip install '{text}'")
    tested = machine.tested_versions()
    assert "torch" in tested
    assert all("=" not in version and " " not in version for version in tested.values())
    monkeypatch.setattr(machine, "tested_versions", lambda: tested | {"peft": "0.0.1"})
    assert "peft" in only(machine.libraries(), "tested").what
    monkeypatch.setattr(machine, "tested_versions", lambda: {"torch": f"{machine.version_of('torch')}".split("+")[0]})
    assert only(machine.libraries(), "tested").status == "ok"  # a build for another device is the same version


def test_pythons(monkeypatch: pytest.MonkeyPatch) -> None:
    assert only(machine.python()).status == "ok"
    monkeypatch.setattr(machine.platform, "python_version", lambda: "3.9.1")
    assert only(machine.python()).status == "problem"


@pytest.mark.parametrize(
    ("seen", "built", "driver", "mask", "status", "words"),
    [
        (
            Machine(2, True, (GIB, GIB), ("H100", "H100")),
            "CUDA 12.6",
            "550.1",
            None,
            "ok",
            "H100, 1.0 GiB, driver 550.1",
        ),
        (Machine(1, False, (GIB,), ("T4",)), "CUDA 12.6", "550.1", None, "ok", "without bfloat16"),
        (Machine(0, True, (GIB,), ("Apple mps",), mps=True), None, None, None, "ok", "Apple mps"),
        (Machine(), None, None, None, "note", "training is on the cpu"),
        (Machine(), None, "550.1", None, "note", "this torch is for the cpu"),
        (Machine(), "CUDA 12.6", "550.1", "", "note", "CUDA_VISIBLE_DEVICES= shows none"),
        (Machine(), "CUDA 12.6", "390.1", None, "note", "torch says it is old"),
    ],
)
def test_devices(
    monkeypatch: pytest.MonkeyPatch,
    seen: Machine,
    built: str | None,
    driver: str | None,
    mask: str | None,
    status: str,
    words: str,
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if mask is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", mask)
    found = list(machine._devices(seen, built, driver, "torch says it is old" if driver == "390.1" else None))
    assert len(found) == max(len(seen.names), 1)
    assert {each.status for each in found} == {status}
    assert words in found[0].what


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.129.03  Thu Oct 19 18:56:32 UTC 2023\n", "535.129.03"),
        ("NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  550.54.14  Release Build\n", "550.54.14"),
        ("something else\n", None),
    ],
)
def test_the_driver(tmp_path: Path, text: str, version: str | None) -> None:
    (tmp_path / "version").write_text(text)
    assert driver(tmp_path / "version") == version
    assert driver(tmp_path / "absent") is None


def test_four_bits_here() -> None:
    assert nf4_error("cpu") is None
    assert nf4_error("meta") is not None  # a device without numbers


def test_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_bytes(b"12345")
    (tmp_path / "link").symlink_to(tmp_path / "file")
    monkeypatch.setenv("TUNESMITH_CACHE", str(tmp_path / "not" / "yet"))
    assert only(machine.caches(), "cache").status == "ok"
    assert not (tmp_path / "not").exists()  # looking makes nothing
    monkeypatch.setenv("TUNESMITH_CACHE", str(tmp_path / "file" / "below"))
    assert only(machine.caches(), "cache").status == "problem"
    assert machine.size_of(tmp_path) == 5 + (tmp_path / "link").lstat().st_size
    monkeypatch.delenv("TUNESMITH_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", lambda: (_ for _ in ()).throw(RuntimeError("no home")))
    assert only(machine.caches(), "cache").status == "problem"


def test_temporary_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    assert only(machine.temporary_files()).status == "ok"
    monkeypatch.setenv("TMPDIR", str(tmp_path / "absent"))
    assert only(machine.temporary_files()).status == "note"
    monkeypatch.setattr(machine.tempfile, "tempdir", None)
    monkeypatch.setattr(machine.tempfile, "_candidate_tempdir_list", lambda: [str(tmp_path / "absent")])
    assert only(machine.temporary_files()).status == "problem"


def test_shared_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert list(machine.shared_memory(tmp_path / "absent")) == []
    monkeypatch.setattr(machine, "SHARED", 1)
    assert only(machine.shared_memory(tmp_path)).status == "ok"
    monkeypatch.setattr(machine, "SHARED", 10**18)
    assert "--shm-size" in (only(machine.shared_memory(tmp_path)).remedy or "")


def test_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with ThreadingHTTPServer(("127.0.0.1", 0), type("Refuses", (BaseHTTPRequestHandler,), {})) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_address[1]}")
        assert only(machine.hub()).status == "ok"  # whatever it says
        server.shutdown()
    assert only(machine.hub()).status == "note"
    with socket.create_server(("127.0.0.1", 0)) as silent:
        began = time.monotonic()
        trouble = machine.out_of_reach(f"http://127.0.0.1:{silent.getsockname()[1]}", 0.2)
        assert trouble is not None
        assert time.monotonic() - began < 60  # it ends, on a busy machine as well


def test_tokens_are_looked_for_and_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    assert [each.status for each in machine.tokens()] == ["note", "note"]
    (tmp_path / "token").write_text(SECRET)
    (tmp_path / "token").chmod(0)
    found = list(machine.tokens())
    assert (found[0].status, found[0].what) == ("ok", f"present ({tmp_path / 'token'})")
    assert not any(SECRET in f"{each}" for each in found)
