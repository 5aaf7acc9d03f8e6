"""Where a run computes, for machines that are not here: settings, mask, ranks and devices in a table."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from tunesmith import notices
from tunesmith.config.resolve import Resolved
from tunesmith.config.strategy import named
from tunesmith.errors import ModelError
from tunesmith.model.attention import choose_attention
from tunesmith.model.device import CPU, MASK, NARROWED, Machine, check_count, choose, narrow, on_one, seen
from tunesmith.model.precision import choose_precision, possible_here

Settings = Callable[..., Resolved]
GIB = 2**30
APPLE = Machine(0, True, (16 * GIB,), ("Apple mps",), mps=True)
OLD_APPLE = replace(APPLE, bf16=False)


def gpus(count: int, *, bf16: bool = True, gib: tuple[int, ...] = ()) -> Machine:
    sizes = gib or (80,) * count
    return Machine(count, bf16, tuple(size * GIB for size in sizes), tuple(f"GPU {size}" for size in sizes))


def ranks(local_rank: int, world_size: int) -> dict[str, str]:
    return {"LOCAL_RANK": str(local_rank), "WORLD_SIZE": str(world_size)}


@dataclass(frozen=True)
class Row:
    """One line of the table: what is written and seen, and where the run then computes; ``refused`` instead of that."""

    says: str
    machine: Machine
    device: str = ""
    device_map: Any = None
    wrote: dict[str, Any] = field(default_factory=dict)
    default: dict[str, Any] = field(default_factory=dict)
    environ: dict[str, str] = field(default_factory=dict)
    strategy: str = "ddp"
    visible: str | None = None
    spread: bool = False
    dtype: str = ""
    refused: str = ""


FOUR = {"load_in_4bit": True}
ROWS = (
    # nobody chose
    Row("no accelerator", Machine(), "cpu", None, dtype="float32"),
    Row("one GPU", gpus(1), "cuda:0", {"": 0}, dtype="bfloat16"),
    Row("one GPU without bfloat16", gpus(1, bf16=False), "cuda:0", {"": 0}, dtype="float16"),
    Row("one process over four GPUs", gpus(4), "cuda:0", "auto", spread=True, dtype="bfloat16"),
    Row("the same in 4 bits", gpus(4), "cuda:0", "auto", FOUR, spread=True),
    Row("a mask does not change what torch counts", gpus(2), "cuda:0", "auto", environ={MASK: "2,3"}, spread=True),
    Row("an empty mask", Machine(), "cpu", None, environ={MASK: ""}),
    # one process of several
    Row("rank 0 of 2", gpus(2), "cuda:0", {"": 0}, environ=ranks(0, 2)),
    Row("rank 1 of 2", gpus(2), "cuda:1", {"": 1}, environ=ranks(1, 2), dtype="bfloat16"),
    Row("rank 1 of 2 in 4 bits", gpus(2), "cuda:1", {"": 1}, FOUR, environ=ranks(1, 2)),
    Row("a launcher with one process", gpus(4), "cuda:0", {"": 0}, environ=ranks(0, 1)),
    Row("a launcher that sets -1 for none", gpus(1), "cuda:0", {"": 0}, environ={"LOCAL_RANK": "-1"}),
    Row("each rank is shown its own GPU", gpus(1), "cuda:0", {"": 0}, environ={MASK: "3"} | ranks(3, 4)),
    Row("rank 1 of 2 without GPUs", Machine(), "cpu", None, environ=ranks(1, 2)),
    Row("more ranks than GPUs", gpus(2), environ=ranks(2, 3), refused="process 2 of this machine has no device"),
    Row("ranks on Apple's device", APPLE, "cpu", {"": "cpu"}, environ=ranks(1, 2), dtype="float32"),
    # who spreads weights places them
    Row("zero3", gpus(2), "cuda:1", None, environ=ranks(1, 2), strategy="zero3"),
    Row("fsdp2 in 4 bits", gpus(2), "cuda:1", {"": 1}, FOUR, environ=ranks(1, 2), strategy="fsdp2"),
    Row("zero2 in one process", gpus(2), "cuda:0", None, strategy="zero2"),
    Row("fsdp2 without GPUs", Machine(), "cpu", None, environ=ranks(1, 2), strategy="fsdp2"),
    Row("zero2 on a later GPU", gpus(2), wrote={"device_map": "cuda:1"}, strategy="zero2", refused="takes the first"),
    Row("zero2 on the cpu beside GPUs", gpus(2), wrote={"device_map": "cpu"}, strategy="zero2", refused="device_map"),
    # device_map
    Row("cuda:0 of four", gpus(4), "cuda:0", {"": 0}, {"device_map": "cuda:0"}, visible="0"),
    Row("cuda of four", gpus(4), "cuda:0", {"": 0}, {"device_map": "cuda"}, visible="0"),
    Row("cuda:1 of four", gpus(4), "cuda:1", {"": 1}, {"device_map": "cuda:1"}, visible="1", dtype="bfloat16"),
    Row("cuda:1 in 4 bits", gpus(4), "cuda:1", {"": 1}, {"device_map": "cuda:1"} | FOUR, visible="1"),
    Row("cuda:1 of a mask", gpus(2), "cuda:1", {"": 1}, {"device_map": "cuda:1"}, environ={MASK: "5,7"}, visible="7"),
    Row("cuda:1, the others are hidden", gpus(1), "cuda:0", {"": 0}, {"device_map": "cuda:1"},
        environ={MASK: "7", NARROWED: "1:7"}),
    Row("cuda:0, the only one", gpus(1), "cuda:0", {"": 0}, {"device_map": "cuda:0"}),
    Row("cuda:0 without GPUs", Machine(), wrote={"device_map": "cuda:0"}, refused="cuda:0 was asked for"),
    Row("cuda:4 of four", gpus(4), wrote={"device_map": "cuda:4"}, refused="visible CUDA devices is 4"),
    Row("cuda:1 for each of two ranks", gpus(2), wrote={"device_map": "cuda:1"}, environ=ranks(1, 2),
        refused="a device of its own"),
    Row("cpu beside GPUs", gpus(2), "cpu", {"": "cpu"}, {"device_map": "cpu"}, visible="", dtype="float32"),
    Row("cpu beside GPUs in 4 bits", gpus(2), "cpu", {"": "cpu"}, {"device_map": "cpu"} | FOUR, visible=""),
    Row("cpu without GPUs", Machine(), "cpu", None, {"device_map": "cpu"}, dtype="float32"),
    Row("cpu for every rank", gpus(2), "cpu", {"": "cpu"}, {"device_map": "cpu"}, environ=ranks(1, 2)),
    Row("nowhere", gpus(1), wrote={"device_map": "nowhere"}, refused="names no device"),
    Row("a kind that is not served", gpus(1), wrote={"device_map": "xpu:0"}, refused="names no device"),
    # gpu_id counts within the mask
    Row("gpu_id 1 of two", gpus(2), "cuda:1", {"": 1}, {"gpu_id": 1}, visible="1"),
    Row("gpu_id 0 of 2,3", gpus(2), "cuda:0", {"": 0}, {"gpu_id": 0}, environ={MASK: "2,3"}, visible="2"),
    Row("gpu_id 1 of 2,3", gpus(2), "cuda:1", {"": 1}, {"gpu_id": 1}, environ={MASK: "2,3"}, visible="3"),
    Row("gpu_id 3 of 2,3", gpus(2), wrote={"gpu_id": 3}, environ={MASK: "2,3"}, refused="gpu_id 3 was asked for"),
    Row("gpu_id 1 of UUIDs", gpus(2), "cuda:1", {"": 1}, {"gpu_id": 1}, environ={MASK: "GPU-8f, GPU-a1"},
        visible="GPU-a1"),
    Row("gpu_id 1 of MIG instances", gpus(2), "cuda:1", {"": 1}, {"gpu_id": 1}, environ={MASK: "MIG-0a,MIG-1b"},
        visible="MIG-1b"),
    Row("gpu_id 1, the others are hidden", gpus(1), "cuda:0", {"": 0}, {"gpu_id": 1},
        environ={MASK: "3", NARROWED: "1:3"}, dtype="bfloat16"),
    Row("gpu_id 1, another was left", gpus(1), wrote={"gpu_id": 1}, environ={MASK: "3", NARROWED: "0:3"},
        refused="gpu_id 1 was asked for"),
    Row("gpu_id 1 without GPUs", Machine(), wrote={"gpu_id": 1}, refused="gpu_id 1 was asked for"),
    Row("gpu_id 0 beside an Apple", APPLE, wrote={"gpu_id": 0}, refused="gpu_id 0 was asked for"),
    Row("gpu_id 1 for each of two ranks", gpus(2), wrote={"gpu_id": 1}, environ=ranks(0, 2),
        refused="a device of its own"),
    Row("gpu_id 1 and the first of what it leaves", gpus(2), "cuda:1", {"": 1},
        {"gpu_id": 1, "device_map": "cuda:0"}, visible="1"),
    Row("gpu_id 1 and cpu", gpus(2), wrote={"gpu_id": 1, "device_map": "cpu"}, refused="leave one of them out"),
    Row("gpu_id 1 and cuda:2", gpus(4), wrote={"gpu_id": 1, "device_map": "cuda:2"}, refused="leave one of them out"),
    # a default gives way
    Row("gpu_id 1 by default", gpus(2), "cuda:1", {"": 1}, default={"gpu_id": 1}),
    Row("gpu_id 1 by default, one GPU", gpus(1), "cuda:0", {"": 0}, default={"gpu_id": 1}),
    Row("gpu_id 1 by default, no GPU", Machine(), "cpu", None, default={"gpu_id": 1}),
    Row("gpu_id 0 by default, Apple", APPLE, "mps", {"": "mps"}, default={"gpu_id": 0}),
    Row("gpu_id 1 by default, ranks", gpus(2), "cuda:0", {"": 0}, default={"gpu_id": 1}, environ=ranks(0, 2)),
    # Apple
    Row("Apple's device", APPLE, "mps", {"": "mps"}, dtype="float32"),
    Row("mps is asked for", APPLE, "mps", {"": "mps"}, {"device_map": "mps"}),
    Row("bf16 on Apple's device", APPLE, "mps", {"": "mps"}, {"bf16": True}, dtype="bfloat16"),
    Row("cpu beside an Apple", APPLE, "cpu", {"": "cpu"}, {"device_map": "cpu"} | FOUR, dtype="float32"),
    Row("4 bits on Apple's device", APPLE, wrote=FOUR, refused="load_in_4bit needs bitsandbytes"),
    Row("8 bits on Apple's device", APPLE, wrote={"load_in_8bit": True}, refused="load_in_8bit needs bitsandbytes"),
    Row("mps without an Apple", gpus(1), wrote={"device_map": "mps"}, refused="is not there"),
    Row("mps for each of two ranks", APPLE, wrote={"device_map": "mps"}, environ=ranks(0, 2), refused="cannot share"),
)  # fmt: skip


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.says)
def test_table(row: Row, settings: Settings) -> None:
    resolved = settings(**row.default, **row.wrote, written=tuple(row.wrote))
    strategy = named(row.strategy)
    before = dict(row.environ)
    if row.refused:
        with pytest.raises(ModelError, match=row.refused) as caught:
            choose(resolved, row.machine, row.environ, strategy)
        assert caught.value.exit_code == 4
        assert caught.value.where in ("config.py:3", None)
        assert caught.value.remedy
        return
    device = choose(resolved, row.machine, row.environ, strategy)
    assert (str(device), device.device_map) == (row.device, row.device_map)
    assert (device.visible, device.spread) == (row.visible, row.spread)
    assert device.use_cpu == (device.kind == "cpu")
    assert device.reason
    if row.dtype:
        assert choose_precision(resolved, device).dtype == row.dtype
    assert row.environ == before


# hidden devices -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrote", "mask", "left"),
    [
        ({}, None, None),
        ({}, "2,3", "2,3"),
        ({"gpu_id": 1}, None, "1"),
        ({"gpu_id": 1}, "2,3", "3"),
        ({"gpu_id": 0}, "2,3", "2"),
        ({"gpu_id": 5}, "2,3", "2,3"),  # choose refuses it
        ({"gpu_id": 1}, "", ""),
        ({"gpu_id": 1}, "GPU-8f,GPU-a1", "GPU-a1"),
        ({"gpu_id": 0}, "MIG-0a", "MIG-0a"),
        ({"device_map": "cuda:1"}, "2,3", "3"),
        ({"device_map": "cpu"}, "2,3", ""),
        ({"device_map": "mps"}, "2,3", "2,3"),
        ({"device_map": "nowhere"}, "2,3", "2,3"),
        ({"device_map": "cpu", "gpu_id": 1}, "2,3", "2,3"),
    ],
)
def test_what_is_left_visible(wrote: dict[str, Any], mask: str | None, left: str | None, settings: Settings) -> None:
    resolved = settings(**wrote, written=tuple(wrote))
    environ = {} if mask is None else {MASK: mask}
    narrow(resolved, environ)
    assert environ.get(MASK) == left
    again = dict(environ)
    narrow(resolved, again)  # in a process that the first one started
    assert again == environ


def test_a_chosen_device_is_the_first_of_those_left_visible(settings: Settings) -> None:
    for wrote in ({"gpu_id": 1}, {"device_map": "cuda:1"}):
        resolved = settings(**wrote, written=tuple(wrote))
        for mask in ({}, {MASK: "2,3"}, {MASK: "GPU-8f,GPU-a1"}):
            environ = dict(mask)
            narrow(resolved, environ)
            device = choose(resolved, gpus(1), environ)
            assert (device.device_map, device.visible) == ({"": 0}, None)


@pytest.mark.parametrize(("processes", "devices", "refused"), [(2, 1, True), (2, 2, False), (4, 0, False)])
def test_each_process_needs_a_device(processes: int, devices: int, refused: bool) -> None:
    if not refused:
        check_count(processes, gpus(devices))
        return
    with pytest.raises(ModelError, match="2 processes take a device each, and the number of visible CUDA devices is 1"):
        check_count(processes, gpus(devices))


def test_ranks_of_a_launcher_keep_their_mask(settings: Settings) -> None:
    environ = {MASK: "2,3"} | ranks(0, 1)
    narrow(settings(gpu_id=1, written=("gpu_id",)), environ)
    assert environ[MASK] == "2,3"


# what else follows from the device ------------------------------------------------------------------------------------


def test_a_default_that_gives_way_is_named(settings: Settings) -> None:
    for machine in (Machine(), gpus(1), gpus(2)):
        assert "gpu_id 7 is only a default" in choose(settings(gpu_id=7), machine, {}).reason


def test_memory_is_that_of_the_device_or_of_all_that_share_the_model(settings: Settings) -> None:
    machine = gpus(2, gib=(24, 80))
    one = choose(settings(gpu_id=1, written=("gpu_id",)), machine, {})
    assert (one.name, one.memory) == ("GPU 80", 80 * GIB)
    both = choose(settings(), machine, {})
    assert (both.name, both.memory) == ("2 x GPU 24", 104 * GIB)
    assert choose(settings(), Machine(), {}).memory is None
    assert choose(settings(), APPLE, {}).memory == 16 * GIB


@pytest.mark.parametrize(
    ("sizes", "gib", "device_map"),
    [((24, 24), 10, {"": 0}), ((24, 80), 40, {"": 1}), ((24, 24), 40, "auto"), ((24, 24), 19.3, "auto")],
)
def test_a_model_that_answers_is_spread_only_where_one_device_is_too_small(
    sizes: tuple[int, ...], gib: float, device_map: Any, settings: Settings
) -> None:
    machine = gpus(2, gib=sizes)
    device = on_one(choose(settings(), machine, {}), machine, int(gib * GIB))
    assert device.device_map == device_map
    assert device.spread == (device_map == "auto")
    chosen = choose(settings(gpu_id=1, written=("gpu_id",)), machine, {})
    assert on_one(chosen, machine, GIB) is chosen


@pytest.mark.parametrize("machine", [Machine(), APPLE])
def test_float16_needs_cuda(machine: Machine, settings: Settings, clean_notices: None) -> None:
    wrote = settings(fp16=True, written=("fp16",))
    with pytest.raises(ModelError, match="needs a CUDA device"):
        choose_precision(wrote, choose(wrote, machine, {}))
    by_default = settings(fp16=True)
    assert choose_precision(by_default, choose(by_default, machine, {})).dtype == "float32"
    assert "float32" in notices.collected()[-1]


@pytest.mark.parametrize(("machine", "instead"), [(gpus(1, bf16=False), "float16"), (OLD_APPLE, "float32")])
def test_bfloat16_that_a_device_lacks(machine: Machine, instead: str, settings: Settings, clean_notices: None) -> None:
    wrote = settings(bf16=True, written=("bf16",))
    with pytest.raises(ModelError, match="has no bfloat16"):
        choose_precision(wrote, choose(wrote, machine, {}))
    by_default = settings(bf16=True)
    device = choose(by_default, machine, {})
    trained = choose_precision(by_default, choose(by_default, gpus(1), {}))
    assert choose_precision(by_default, device).dtype == instead
    assert possible_here(trained, device).dtype == "float32"
    assert possible_here(trained, CPU) is trained
    assert len(notices.collected()) == 2


def test_flash_attention_needs_cuda(settings: Settings, clean_notices: None) -> None:
    resolved = settings(attn_implementation="flash_attention_2", written=("attn_implementation",))
    for machine in (Machine(), APPLE):
        device = choose(resolved, machine, {})
        with pytest.raises(ModelError, match="needs a CUDA device"):
            choose_attention(resolved, choose_precision(resolved, device), device)


# the only place -------------------------------------------------------------------------------------------------------

SOURCE = Path(__file__).resolve().parents[3] / "src" / "tunesmith"
MODULES = ("torch.cuda", "torch.mps", "torch.backends.mps", "torch.xpu", "torch.accelerator")
NO_QUERIES = frozenset(
    {
        "Event",
        "OutOfMemoryError",
        "current_stream",
        "empty_cache",
        "set_device",
        "get_rng_state",
        "set_rng_state",
        "manual_seed_all",
        "max_memory_allocated",
    }
)
"""What may be done to devices elsewhere: it asks for nothing that a decision could rest on."""


def queries(tree: ast.AST) -> Iterator[str]:
    """What a module takes from torch's modules of devices, but for ``NO_QUERIES``."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            owner, _, name = ast.unparse(node).rpartition(".")
            if owner in MODULES and name not in NO_QUERIES:
                yield f"{owner}.{name}"
        elif isinstance(node, ast.ImportFrom) and node.module in MODULES:
            yield from (f"{node.module}.{alias.name}" for alias in node.names if alias.name not in NO_QUERIES)
        elif isinstance(node, ast.ImportFrom) and node.module in ("torch", "torch.backends"):
            yield from (f"{node.module}.{a.name}" for a in node.names if f"{node.module}.{a.name}" in MODULES)
        elif isinstance(node, ast.Import):
            yield from (f"{a.name} as {a.asname}" for a in node.names if a.asname and a.name in MODULES)


def test_one_file_asks_torch_for_devices() -> None:
    asking = {str(path.relative_to(SOURCE)) for path in SOURCE.rglob("*.py") if [*queries(ast.parse(path.read_text()))]}
    assert asking == {"model/device.py"}


def test_what_counts_as_asking() -> None:
    for text in (
        "torch.cuda.is_available()", "torch.cuda.mem_get_info(0)", "from torch.cuda import device_count",
        "from torch import cuda", "import torch.cuda as c", "torch.backends.mps.is_available()",
        "torch.accelerator.current_accelerator()", "torch.cuda.is_bf16_supported",
    ):  # fmt: skip
        assert [*queries(ast.parse(text))], text
    for text in ("torch.cuda.empty_cache()", "torch.OutOfMemoryError", "import torch", "torch.autocast('cuda')"):
        assert not [*queries(ast.parse(text))], text


def test_what_is_seen_here_is_plain_data() -> None:
    machine = seen()
    assert len(machine.memory) == len(machine.names) == machine.count + machine.mps
    assert seen(count_only=True) == Machine(machine.count)
