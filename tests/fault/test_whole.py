"""A model of which a part is missing, left over or damaged is refused by every verb, with the name of the part."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tiny_models import build, change, configure, without, write_tokenizer
from tunesmith.model.load import load_for_inference

UP = "model.layers.1.mlp.up_proj.weight"
EMBEDDING = "model.embed_tokens.weight"
INDEX = "model.safetensors.index.json"


def stored_as(dtype: torch.dtype, name: str = UP) -> Callable[[Path], None]:
    return lambda folder: change(folder, lambda tensors: tensors.update({name: tensors[name].to(dtype)}))


def with_value(value: float, dtype: torch.dtype = torch.float32) -> Callable[[Path], None]:
    def put(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        tensors = {name: tensor.to(dtype) for name, tensor in tensors.items()}
        tensors[UP][5, 7] = value
        return tensors

    return lambda folder: change(folder, put)


def write_header(folder: Path, edit: Callable[[dict[str, Any]], None]) -> None:
    """Change the header of the model's file and leave its data as they are."""
    path = folder / "model.safetensors"
    content = path.read_bytes()
    size = struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8 : 8 + size])
    edit(header)
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + content[8 + size :])


def cut_off(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


DAMAGES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "missing": (lambda f: change(f, without(UP)), UP),
    "renamed": (lambda f: change(f, lambda t: t.update({UP + "s": t.pop(UP)})), UP),
    "all renamed": (lambda f: change(f, lambda t: {f"x.{name}": tensor for name, tensor in t.items()}), "model.embed"),
    "left over": (lambda f: change(f, lambda t: t.update({"model.extra.weight": torch.ones(2)})), "model.extra.weight"),
    "twice under two names": (
        lambda f: change(f, lambda t: t.update({UP.removeprefix("model."): torch.zeros_like(t[UP])})),
        UP,
    ),
    "integers": (stored_as(torch.int32), f"{UP} is stored as I32"),
    "bytes": (stored_as(torch.uint8), f"{UP} is stored as U8"),
    "truth values": (stored_as(torch.bool), f"{UP} is stored as BOOL"),
    "eight bits": (stored_as(torch.float8_e4m3fn), f"{UP} is stored as F8_E4M3"),
    "empty": (lambda f: change(f, lambda t: t.update({UP: torch.zeros(0, 64)})), UP),
    "another shape": (lambda f: change(f, lambda t: t.update({UP: t[UP][:-1].clone()})), UP),
    "transposed": (lambda f: change(f, lambda t: t.update({UP: t[UP].T.contiguous()})), UP),
    "one layer more": (lambda f: configure(f, num_hidden_layers=3), "model.layers.2."),
    "one layer less": (lambda f: configure(f, num_hidden_layers=1), "model.layers.1."),
    "a wider model": (lambda f: configure(f, intermediate_size=256), "(128, 64) instead of (256, 64)"),
    "600 layers": (lambda f: configure(f, num_hidden_layers=600), "600 layers"),
    "100,000 layers": (lambda f: configure(f, num_hidden_layers=100_000), "100000"),
    "10^15 layers": (lambda f: configure(f, num_hidden_layers=10**15), str(10**15)),
    "layers in words": (lambda f: configure(f, num_hidden_layers="two"), "num_hidden_layers"),
    "negative layers": (lambda f: configure(f, num_hidden_layers=-1), ""),
    "no model type": (lambda f: configure(f, model_type="nothing"), "nothing"),
    "a list of settings": (lambda f: (f / "config.json").write_text("[]"), "config.json"),
    "settings cut off": (lambda f: (f / "config.json").write_text('{"model_type": '), "config.json"),
    "cut off": (cut_off, "model.safetensors"),
    "a header of another type": (
        lambda f: write_header(f, lambda header: header[UP].update(dtype="F64")),
        "model.safetensors",
    ),
    "no bytes": (lambda f: (f / "model.safetensors").write_bytes(b""), "model.safetensors"),
    "a folder": (
        lambda f: ((f / "model.safetensors").unlink(), (f / "model.safetensors").mkdir()),
        "holds no weights",
    ),
    "generation defaults cut off": (lambda f: (f / "generation_config.json").write_text("{"), "generation_config"),
    "generation defaults as a list": (lambda f: (f / "generation_config.json").write_text("[1]"), "generation_config"),
    "an end token in words": (
        lambda f: (f / "generation_config.json").write_text('{"eos_token_id": "</s>"}'),
        "generation_config",
    ),
    "an adapter besides": (lambda f: (f / "adapter_config.json").write_text("{}"), "adapter"),
    "weights by another name": (lambda f: configure(f, transformers_weights="../x.safetensors"), "../x.safetensors"),
    "another layout": (
        lambda f: (f / "shard-00000-model-00001-of-00001.safetensors").write_bytes(b""),
        "shard-00000-model-00001-of-00001.safetensors",
    ),
}  # fmt: skip


SOME = ["missing", "all renamed", "integers", "one layer more", "one layer less", "cut off", "an adapter besides"]
MANY = "600 layers"
"""A check goes on and counts the memory of them all, half a minute long; training ends there."""


@pytest.mark.parametrize(
    ("verb", "name"),
    [("check", name) for name in DAMAGES if name != MANY]
    + [("train", MANY)]
    + [(verb, name) for verb in ("train", "predict") for name in SOME],
)
def test_damaged_model_is_refused_with_the_name_of_the_part(verb: str, name: str, base: Path, call) -> None:
    damage, named = DAMAGES[name]
    damage(base)
    before = {path.name: path.read_bytes() for path in base.iterdir() if path.is_file()}
    code, errors = call(verb, base)
    assert code == 4, errors
    assert named in errors
    assert {path.name: path.read_bytes() for path in base.iterdir() if path.is_file()} == before


@pytest.mark.parametrize(
    ("value", "dtype"),
    [(float("nan"), torch.float32), (float("inf"), torch.bfloat16), (float("-inf"), torch.float16)],
)
def test_values_that_are_not_finite_are_refused_where_weights_are_read(value, dtype, base: Path, call) -> None:
    with_value(value, dtype)(base)
    code, errors = call("train", base)
    assert (code, UP in errors, "not finite" in errors) == (4, True, True)


@pytest.mark.parametrize("verb", ["check", "train", "predict", "evaluate"])
def test_whole_models_are_used(verb: str, whole: Path, call) -> None:
    for name in ("model", "shards"):
        assert call(verb, whole / name, *(["--overwrite_output_dir"] if verb == "train" else [])) == (0, "")


def test_names_that_the_library_turns_into_its_own_are_whole_and_used_bit_by_bit(base: Path, call) -> None:
    """It adds and removes the prefix of the model below the head by itself."""
    before = load_for_inference(base).model.state_dict()
    original = load_file(base / "model.safetensors")
    for names in (
        {name: name.removeprefix("model.") for name in original},
        {name: f"model.{name}" for name in original},
    ):
        save_file({names[name]: tensor for name, tensor in original.items()}, base / "model.safetensors")
        assert call("check", base) == (0, "")
        after = load_for_inference(base).model.state_dict()
        assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


def test_tied_head_may_be_missing_and_may_be_there(whole: Path, tmp_path: Path, call) -> None:
    for number, with_head in enumerate([False, True]):
        folder = tmp_path / f"tied{number}"
        build("llama").save_pretrained(folder)
        write_tokenizer(folder, bos_token="<s>", eos_token="</s>")
        if with_head:
            change(folder, lambda tensors: tensors.update({"lm_head.weight": tensors[EMBEDDING].clone()}))
        assert call("check", folder) == (0, "")
        change(folder, without(EMBEDDING, "lm_head.weight"))
        code, errors = call("check", folder)
        assert (code, EMBEDDING in errors) == (4, True)


# shards ---------------------------------------------------------------------------------------------------------------


def index_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / INDEX).read_text())


def left_out(folder: Path, index: dict[str, Any]) -> str:
    index["weight_map"].pop(UP)
    return UP


def shard_left_out(folder: Path, index: dict[str, Any]) -> str:
    shard = index["weight_map"][UP]
    index["weight_map"] = {name: file for name, file in index["weight_map"].items() if file != shard}
    return UP


def shard_gone(folder: Path, index: dict[str, Any]) -> str:
    (folder / index["weight_map"][UP]).unlink()
    return index["weight_map"][UP]


def in_another_shard(folder: Path, index: dict[str, Any]) -> str:
    index["weight_map"][UP] = next(file for file in index["weight_map"].values() if file != index["weight_map"][UP])
    return UP


def in_two_shards(folder: Path, index: dict[str, Any]) -> str:
    files = sorted(set(index["weight_map"].values()) - {index["weight_map"][UP]})
    extra = load_file(folder / index["weight_map"][UP])[UP]
    save_file(load_file(folder / files[0]) | {UP: extra + 1}, folder / files[0], metadata={"format": "pt"})
    return UP


def of_nothing(folder: Path, index: dict[str, Any]) -> str:
    index["weight_map"]["model.extra.weight"] = index["weight_map"][UP]
    return "model.extra.weight"


def as_list(folder: Path, index: dict[str, Any]) -> str:
    index["weight_map"] = list(index["weight_map"])
    return INDEX


@pytest.mark.parametrize(
    "damage", [left_out, shard_left_out, shard_gone, in_another_shard, in_two_shards, of_nothing, as_list]
)
def test_shards_and_their_index_must_agree(damage, whole: Path, tmp_path: Path, call) -> None:
    folder = Path(shutil.copytree(whole / "shards", tmp_path / "shards"))
    index = index_of(folder)
    named = damage(folder, index)
    (folder / INDEX).write_text(json.dumps(index))
    for verb in ("check", "train"):
        code, errors = call(verb, folder)
        assert code == 4, errors
        assert named in errors


# adapters, checkpoints and merged models ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("verb", "name"),
    [("predict", "missing"), ("evaluate", "all renamed"), *[("merge", name) for name in SOME if "adapter" not in name]],
)
def test_adapter_on_a_damaged_base_is_not_used(verb: str, name: str, base: Path, adapter: Path, call) -> None:
    damage, named = DAMAGES[name]
    damage(base)
    code, errors = call(verb, adapter)
    assert (code, named in errors) == (4, True), errors


def test_base_that_was_changed_in_a_middle_layer_is_another_base(base: Path, adapter: Path, call) -> None:
    assert call("predict", adapter) == (0, "")
    change(base, lambda tensors: tensors.update({UP: tensors[UP] + 1e-3}))
    for verb in ("predict", "evaluate", "merge"):
        code, errors = call(verb, adapter)
        assert (code, "another base" in errors) == (4, True), errors


@pytest.mark.parametrize("name", ["missing", "one layer more", "twice under two names", "cut off"])
def test_merged_model_is_looked_at_like_any_other(name: str, adapter: Path, tmp_path: Path, call) -> None:
    assert call("merge", adapter) == (0, "")
    damage, named = DAMAGES[name]
    damage(tmp_path / "merged")
    for verb in ("predict", "evaluate"):
        code, errors = call(verb, tmp_path / "merged")
        assert (code, named in errors) == (4, True), errors
