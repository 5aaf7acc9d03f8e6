"""Where models come from, and which ones are refused before anything is opened."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants

from tunesmith import assets, notices
from tunesmith.config.resolve import Resolved
from tunesmith.errors import ModelError, UnsafeError
from tunesmith.model import source

UNREACHABLE = "http://127.0.0.1:9"


def test_local_folder_is_taken_as_it_is(models_folder: Path) -> None:
    assert source.locate(str(models_folder / "llama")) == str(models_folder / "llama")


def test_embedded_model_is_the_folder_in_the_package() -> None:
    folder = assets.embedded_model("nano-mistral")
    assert folder is not None
    if not (folder / "config.json").is_file():
        with pytest.raises(ModelError, match="not in this installation"):
            source.locate("nano-mistral")
    else:
        assert source.locate("nano-mistral") == str(folder)


def test_missing_path_is_refused_with_the_nearest_name_and_nobody_is_asked(
    models_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[object] = []
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(source, "_ask_hub", lambda *arguments: asked.append(arguments))
    with pytest.raises(ModelError, match=r"did you mean .*mistral") as caught:
        source.locate(str(models_folder / "mistrl"))
    assert caught.value.exit_code == 4
    assert asked == []


@pytest.mark.parametrize("name", ["not a name!", "-x/y"])
def test_impossible_hub_name_is_refused(name: str) -> None:
    with pytest.raises(ModelError, match="neither a folder nor"):
        source.locate(name)


def test_file_instead_of_folder(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(ModelError, match="is a file"):
        source.locate(str(tmp_path / "model.safetensors"))


@pytest.mark.parametrize("offline", [True, False])
def test_hub_out_of_reach_names_repository_and_switch(
    offline: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
    monkeypatch.setattr(constants, "ENDPOINT", UNREACHABLE)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ModelError, match="HF_HUB_OFFLINE") as caught:
        source.locate("some-one/some-model")
    assert caught.value.exit_code == 4
    assert "some-one/some-model" in caught.value.line()


def test_hub_that_never_answers_is_given_up(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import socket

    assert source.HUB_DEADLINE <= 10
    monkeypatch.setattr(source, "HUB_DEADLINE", 0.4)
    with socket.socket() as server:  # accepts connections and stays silent
        server.bind(("127.0.0.1", 0))
        server.listen()
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.getsockname()[1]}")
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
        with pytest.raises(ModelError, match=r"out of reach \((no answer within 0\.4 s|\w*Timeout)"):
            source.locate("some-one/some-model")


def test_copy_in_the_cache_is_used_when_offline(
    models_folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, clean_notices: None
) -> None:
    commit = "0123456789" * 4
    snapshot = tmp_path / "models--some-one--tiny" / "snapshots" / commit
    shutil.copytree(models_folder / "llama", snapshot)
    (tmp_path / "models--some-one--tiny" / "refs").mkdir()
    (tmp_path / "models--some-one--tiny" / "refs" / "main").write_text(commit)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.file_download.constants.HF_HUB_CACHE", str(tmp_path))
    assert source.locate("some-one/tiny") == str(snapshot)
    assert any("local cache is used" in text for text in notices.collected())


def test_pickled_weights_are_refused(models_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(models_folder / "llama", tmp_path / "m")
    (tmp_path / "m" / "model.safetensors").unlink()
    torch.save({}, tmp_path / "m" / "pytorch_model.bin")
    with pytest.raises(UnsafeError, match=r"pytorch_model\.bin") as caught:
        source.locate(str(tmp_path / "m"))
    assert caught.value.exit_code == 7


def test_folder_without_weights_or_with_an_adapter_alone(models_folder: Path, tmp_path: Path) -> None:
    shutil.copy(models_folder / "llama" / "config.json", tmp_path)
    with pytest.raises(ModelError, match="no weights"):
        source.locate(str(tmp_path))
    (tmp_path / "config.json").rename(tmp_path / "adapter_config.json")
    with pytest.raises(ModelError, match="an adapter, not a model"):
        source.locate(str(tmp_path))


@pytest.mark.parametrize("name", ["../outside.safetensors", "/etc/passwd", "a/../../b.safetensors"])
def test_shard_outside_of_the_folder_is_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"w": name}}))
    with pytest.raises(ModelError, match="outside of the folder"):
        source.locate(str(tmp_path))


def test_missing_shard_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    index = {"weight_map": {"w": "model-00001-of-00001.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelError, match="model-00001-of-00001"):
        source.locate(str(tmp_path))


def with_code(models_folder: Path, folder: Path, model_type: str) -> Path:
    shutil.copytree(models_folder / "llama", folder)
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": model_type, "auto_map": {"AutoModelForCausalLM": "modeling_own.OwnModel"}}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("asked", [True, False])
def test_known_architecture_runs_without_its_own_code(
    asked: bool, models_folder: Path, tmp_path: Path, settings: Callable[..., Resolved], clean_notices: None
) -> None:
    folder = with_code(models_folder, tmp_path / "m", "llama")
    section = settings(model_name_or_path=str(folder), trust_remote_code=asked).config.model
    assert source.may_run_code(section, str(folder)) is False
    assert len(notices.collected()) == 1


def test_own_code_needs_both_words(models_folder: Path, tmp_path: Path, settings: Callable[..., Resolved]) -> None:
    folder = with_code(models_folder, tmp_path / "m", "their_own")
    refused = 0
    for asked, allowed in ((False, False), (True, False), (False, True)):
        values = {"trust_remote_code": asked, "allow_remote_code": allowed}
        section = settings(model_name_or_path=str(folder), **values).config.model
        with pytest.raises(UnsafeError, match=r"modeling_own\.py"):
            source.may_run_code(section, str(folder))
        refused += 1
    assert refused == 3
    section = settings(model_name_or_path=str(folder), trust_remote_code=True, allow_remote_code=True).config.model
    assert source.may_run_code(section, str(folder)) is True
