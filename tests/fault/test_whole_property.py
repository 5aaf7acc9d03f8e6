"""Whatever is done to a part of a model: it is refused by name, or what is used is what the files hold, bit by bit."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from tunesmith.errors import TunesmithError
from tunesmith.model.headers import weight_files
from tunesmith.model.load import load_for_inference

EXAMPLES = int(os.environ.get("TUNESMITH_DAMAGES", "12"))
"""Of each way to damage a model."""
INDEX = "model.safetensors.index.json"
DTYPES = [
    torch.float64, torch.float16, torch.bfloat16, torch.int8, torch.uint8, torch.int16, torch.int32, torch.int64,
    torch.bool, torch.float8_e4m3fn, torch.float8_e5m2,
]  # fmt: skip
Draw = Callable[[Any], Any]


def tensor_gone(draw: Draw, tensors: dict[str, torch.Tensor], name: str) -> str:
    tensors.pop(name)
    return name


def tensor_renamed(draw: Draw, tensors: dict[str, torch.Tensor], name: str) -> str:
    place = draw(st.integers(0, len(name)))
    tensors[name[:place] + draw(st.sampled_from([".", "x", "0", "layers.", "model.", "lm_head."])) + name[place:]] = (
        tensors.pop(name)
    )
    return name


def tensor_of_another_type(draw: Draw, tensors: dict[str, torch.Tensor], name: str) -> str:
    tensors[name] = tensors[name].to(draw(st.sampled_from(DTYPES)))
    return name


def tensor_of_another_shape(draw: Draw, tensors: dict[str, torch.Tensor], name: str) -> str:
    ways = [
        lambda t: t[:0], lambda t: t[1:], lambda t: t.unsqueeze(0), lambda t: t.flatten(), lambda t: t.t(),
        lambda t: torch.cat([t, t]), lambda t: t[0],
    ]  # fmt: skip
    tensors[name] = draw(st.sampled_from(ways))(tensors[name]).clone().contiguous()
    return name


def value_changed(draw: Draw, tensors: dict[str, torch.Tensor], name: str) -> str:
    position = draw(st.integers(0, tensors[name].numel() - 1))
    tensors[name].view(-1)[position] = draw(st.floats(width=32))
    return name


def tensor_besides(draw: Draw, tensors: dict[str, torch.Tensor], name: str) -> str:
    extra = draw(st.sampled_from(["x", f"{name}.x", name.removeprefix("model."), name.replace("1", "2")]))
    tensors.setdefault(extra, tensors[name].clone() + 1)
    return extra


def bytes_changed(draw: Draw, folder: Path) -> str:
    path = draw(st.sampled_from(sorted(folder.glob("*.safetensors"))))
    content = bytearray(path.read_bytes())
    header = 8 + int.from_bytes(content[:8], "little")
    position = draw(st.one_of(st.integers(0, header - 1), st.integers(header, len(content) - 1)))
    content[position] ^= draw(st.integers(1, 255))
    path.write_bytes(content)
    return ""  # a letter of a name may be hit, and then names of other tensors are in the message, too


def cut_off(draw: Draw, folder: Path) -> str:
    path = draw(st.sampled_from(sorted(folder.glob("*.safetensors"))))
    path.write_bytes(path.read_bytes()[: draw(st.integers(0, path.stat().st_size - 1))])
    return path.name


def index_changed(draw: Draw, folder: Path) -> str:
    if not (folder / INDEX).is_file():
        return ""
    content = json.loads((folder / INDEX).read_text())
    name = draw(st.sampled_from(sorted(content["weight_map"])))
    elsewhere = ["", ".", "..", "../x.safetensors", "/etc/passwd", 3, None, ["a"], "model\0", "config.json", INDEX]
    files = sorted(set(content["weight_map"].values()))
    value = draw(st.sampled_from([*elsewhere, *files, "gone"]))
    if value == "gone":
        content["weight_map"].pop(name)
    else:
        content["weight_map"][name] = value
    (folder / INDEX).write_text(json.dumps(content))
    return name


def configuration_changed(draw: Draw, folder: Path) -> str:
    content = json.loads((folder / "config.json").read_text())
    numbers = [key for key, value in content.items() if isinstance(value, int) and not isinstance(value, bool)]
    content[draw(st.sampled_from(sorted(numbers)))] += draw(st.sampled_from([-1, 1, 10**6, 10**12]))
    (folder / "config.json").write_text(json.dumps(content))
    return ""


OF_TENSORS = [
    tensor_gone, tensor_renamed, tensor_of_another_type, tensor_of_another_shape, value_changed, tensor_besides,
]  # fmt: skip
OF_FILES = [bytes_changed, cut_off, index_changed, configuration_changed]


def damage(draw: Draw, folder: Path, way: Callable[..., str]) -> str:
    """Damage a model; returns the name of what was hit, where it must be in the message."""
    if way in OF_FILES:
        return way(draw, folder)
    path = draw(st.sampled_from(sorted(folder.glob("*.safetensors"))))
    tensors = load_file(path)
    named = way(draw, tensors, draw(st.sampled_from(sorted(tensors))))
    save_file(tensors, path, metadata={"format": "pt"})
    return named


def used(folder: Path) -> None:
    """Load the model; what it computes with is what its files hold, each tensor of them once."""
    state = load_for_inference(folder).model.state_dict()
    held = {name: tensor for file in weight_files(folder) for name, tensor in load_file(file).items()}
    for name, tensor in state.items():
        stored = held.pop(name) if name in held else held.pop(name.removeprefix("model."), None)
        stored = held.pop(f"model.{name}") if stored is None else stored
        assert torch.equal(tensor, stored.to(tensor.dtype)), name
    assert not held


def refusal_of(folder: Path) -> TunesmithError | None:
    """Why the model is not used; None where it is."""
    try:
        used(folder)
    except TunesmithError as error:
        return error
    return None


@pytest.mark.parametrize("way", [*OF_TENSORS, *OF_FILES])
def test_damaged_part_is_named_or_the_model_is_what_its_files_hold(way: Callable[..., str], whole: Path) -> None:
    @settings(max_examples=EXAMPLES)
    @given(data=st.data())
    def holds(data: st.DataObject) -> None:
        with tempfile.TemporaryDirectory() as place:
            origin = whole / data.draw(st.sampled_from(["model", "shards"]))
            folder = Path(shutil.copytree(origin, Path(place) / "damaged"))
            named = damage(data.draw, folder, way)
            refusal = refusal_of(folder)
            assert refusal is None or (refusal.exit_code in (4, 6, 7) and named in refusal.line()), refusal

    holds()
