"""What of this machine and this installation a run needs, looked at piece by piece: each finding with its remedy.

Nothing is changed but for empty files that are removed at once. Secrets are looked for, and never read. A check that
fails itself is a finding, so that the others are still told.
"""

from __future__ import annotations

import os
import platform
import shutil
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import InvalidVersion, Version

from tunesmith.config.places import VARIABLE, cache_folder
from tunesmith.errors import StorageError
from tunesmith.installed import version_of
from tunesmith.model.device import MASK, Machine, built_for, driver, seen
from tunesmith.report.record import LIBRARIES

PROBE_SECONDS = 2.0
"""How long the hub has to answer."""
GIB = 2**30
ROOM = {"disk": (GIB // 4, 10 * GIB), "memory": (GIB, 8 * GIB)}
"""Bytes with less of which nothing can be trained, and those with less of which only small models can."""
SHARED = GIB
"""Bytes of shared memory that processes need between them: containers begin with 64 MB."""
CONSTRAINTS = "constraints.txt"

Status = Literal["ok", "note", "problem"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        name: what was looked at.
        status: ``problem`` where nothing can be trained like this, ``note`` where something is missing or odd.
        what: what was found, in words.
        remedy: what to do about it; None where nothing has to be done.
    """

    name: str
    status: Status
    what: str
    remedy: str | None = None


def look(folder: Path) -> Iterator[Finding]:
    """Every finding about this machine, one after the other.

    Args:
        folder: where runs are going to lie, for the space on its disk.
    """
    checks: dict[str, Callable[[], Iterator[Finding]]] = {
        "python": python,
        "libraries": libraries,
        "torch": torch_and_gpus,
        "bitsandbytes": bitsandbytes,
        "flash-attn": flash_attention,
        "deepspeed": deepspeed,
        "disk": lambda: disk(folder),
        "memory": memory,
        "cache": caches,
        "hub": hub,
        "tokens": tokens,
        "TMPDIR": temporary_files,
        "shared memory": shared_memory,
    }
    for name, check in checks.items():
        try:
            yield from check()
        except Exception as error:  # what a broken installation raises is not foreseen
            yield Finding(name, "note", f"cannot be looked at ({type(error).__name__}: {error})", "repair this first")


# versions -------------------------------------------------------------------------------------------------------------


def python() -> Iterator[Finding]:
    """Whether this Python is one that tunesmith runs on."""
    wanted = SpecifierSet(metadata.metadata("tunesmith")["Requires-Python"])
    version = platform.python_version()
    if wanted.contains(version, prereleases=True):
        yield Finding("python", "ok", f"{version} on {platform.system()} {platform.machine()}")
    else:
        yield Finding("python", "problem", f"{version}, and {wanted} is needed", "make an environment with another one")


def libraries() -> Iterator[Finding]:
    """Whether the libraries are there, in the range that is asked for, and as they were tested."""
    wanted = [Requirement(text) for text in metadata.requires("tunesmith") or ()]
    needed = [each for each in wanted if each.marker is None or each.marker.evaluate({"extra": ""})]
    wrong = [finding for each in needed if (finding := _against_range(each)) is not None]
    yield from wrong
    if not wrong:
        yield Finding("libraries", "ok", f"{len(needed)} are there, each in its range")
    tested = tested_versions()
    other = [f"{name} {found} (tested: {tested[name]})" for name in LIBRARIES if (found := _other(name, tested))]
    if other:
        remedy = f"if something breaks: pip install -c {CONSTRAINTS} tunesmith"
        yield Finding("tested", "note", f"not the versions that were tested: {', '.join(other)}", remedy)
    elif tested:
        yield Finding("tested", "ok", f"{len(LIBRARIES)} libraries in the versions that were tested")


def _against_range(wanted: Requirement) -> Finding | None:
    """What is wrong with a library that is needed; None where it is there and in its range."""
    version = version_of(wanted.name)
    remedy = f"pip install '{wanted.name}{wanted.specifier}'"
    if version is None:
        return Finding(wanted.name, "problem", "is not installed", remedy)
    if not wanted.specifier.contains(version, prereleases=True):
        return Finding(wanted.name, "note", f"{version} is outside of {wanted.specifier}", remedy)
    return None


def tested_versions() -> dict[str, str]:
    """Package -> the version that the tests ran with; empty where the list did not come along."""
    package = Path(__file__).parents[1]
    for folder in (package, package.parents[1]):  # inside the installed package, or in the checkout
        if (folder / CONSTRAINTS).is_file():
            lines = (folder / CONSTRAINTS).read_text(encoding="utf-8").splitlines()
            pairs = (line.partition("==") for line in lines if "==" in line and not line.startswith("#"))
            return {name.strip(): version.split(";")[0].strip() for name, _, version in pairs}
    return {}


def _other(name: str, tested: dict[str, str]) -> str | None:
    """The installed version where it is another than the tested one; builds for other devices are the same version."""
    version = version_of(name)
    if version is None or name not in tested:
        return None
    try:
        return version if Version(version).public != Version(tested[name]).public else None
    except InvalidVersion:
        return version


def _optional(name: str, purpose: str) -> tuple[str | None, Finding | None]:
    """The version of a package that need not be there, and a finding where it is absent or out of its range."""
    version = version_of(name)
    if version is None:
        return None, Finding(
            name, "note", f"is not installed; only {purpose} needs it", f"pip install 'tunesmith[{name}]'"
        )
    ranges = [Requirement(text) for text in metadata.requires("tunesmith") or ()]
    return version, next((wrong for each in ranges if each.name == name and (wrong := _against_range(each))), None)


# what computes --------------------------------------------------------------------------------------------------------


def torch_and_gpus() -> Iterator[Finding]:
    """Whether torch starts, what it was built for, and which devices it sees."""
    try:
        built = built_for()
    except Exception as error:  # a missing library, an operator that does not fit, a half installation
        yield Finding("torch", "problem", f"does not start ({error})", "install it again: https://pytorch.org")
        return
    yield Finding("torch", "ok", f"{version_of('torch')}, built for {built or 'the cpu alone'}")
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        machine = seen()
    yield from _devices(machine, built, driver(), str(said[0].message).split("\n")[0] if said else None)


def _devices(machine: Machine, built: str | None, driver: str | None, warned: str | None) -> Iterator[Finding]:
    """What is to be said of devices.

    Args:
        machine: what torch sees.
        built: what torch was built for, see ``built_for``.
        driver: version of NVIDIA's driver.
        warned: what torch said while it looked.
    """
    kinds = "" if machine.bf16 else "; without bfloat16"
    for name, size in zip(machine.names, machine.memory, strict=True):
        yield Finding("gpu", "ok", f"{name}, {size / GIB:.1f} GiB{kinds}{f', driver {driver}' if driver else ''}")
    if machine.names:
        return
    mask = os.environ.get(MASK)
    if mask is not None and driver is not None:
        yield Finding("gpu", "note", f"{MASK}={mask} shows none", f"unset {MASK} to train on them")
    elif driver is not None and built is None:
        yield Finding(
            "gpu", "note", f"driver {driver} is there, and this torch is for the cpu", "install torch for CUDA"
        )
    elif driver is not None:
        why = warned or "torch sees no device"
        remedy = "see what nvidia-smi says; a driver that is too old for this torch has to be renewed"
        yield Finding("gpu", "note", f"driver {driver} is there, and {why}", remedy)
    else:
        yield Finding("gpu", "note", "none: training is on the cpu, which suits tiny models", "use a machine with one")


def bitsandbytes() -> Iterator[Finding]:
    """Whether 4 bits work here: a small tensor there and back, on the device that a run would take."""
    version = version_of("bitsandbytes")
    if version is None:
        return  # said among the libraries
    from tunesmith.model.quantize import nf4_error

    place = "cuda" if seen(count_only=True).count else "cpu"
    trouble = nf4_error(place)
    if trouble is None:
        yield Finding("bitsandbytes", "ok", f"{version}, NF4 works on {place}")
    else:
        remedy = "train without load_in_4bit and load_in_8bit, or install the bitsandbytes for this torch"
        yield Finding("bitsandbytes", "note", f"{version}, and NF4 does not work on {place} ({trouble})", remedy)


def flash_attention() -> Iterator[Finding]:
    """Whether FlashAttention 2 is there and starts; without a CUDA device nobody misses it."""
    if not seen(count_only=True).count:
        yield Finding("flash-attn", "ok", "not needed: it works on CUDA devices alone")
        return
    version, wrong = _optional("flash-attn", "attn_implementation flash_attention_2 (sdpa is taken otherwise)")
    if wrong is not None:
        yield wrong
        return
    try:
        import flash_attn  # noqa: F401 - whether it starts
    except Exception as error:  # compiled for another torch, as a rule
        yield Finding("flash-attn", "note", f"{version} does not start ({error})", "compile it for this torch")
        return
    yield Finding("flash-attn", "ok", f"{version}")


def deepspeed() -> Iterator[Finding]:
    """Whether DeepSpeed is there; it is not started, which takes long."""
    version, wrong = _optional("deepspeed", "the strategies zero1, zero2 and zero3")
    yield wrong or Finding("deepspeed", "ok", f"{version}")


# room -----------------------------------------------------------------------------------------------------------------


def disk(folder: Path) -> Iterator[Finding]:
    """Free space where runs lie."""
    free = shutil.disk_usage(folder).free
    yield Finding("disk", *_judged("disk", free, f"{free / GIB:,.1f} GiB free in {folder.absolute()}", "free some"))


def memory() -> Iterator[Finding]:
    """Main memory that is to be had, within the limit of a container."""
    from tunesmith.model.memory.gpus import host_memory

    free = host_memory()
    yield Finding("memory", *_judged("memory", free, f"{free / GIB:,.1f} GiB to be had", "end other programs"))


def _judged(kind: str, free: int, what: str, remedy: str) -> tuple[Status, str, str | None]:
    least, plenty = ROOM[kind]
    if free >= plenty:
        return "ok", what, None
    if free >= least:
        return "note", f"{what}: small models only", remedy
    return "problem", f"{what}: too little for any model", remedy


def shared_memory(place: Path = Path("/dev/shm")) -> Iterator[Finding]:  # noqa: S108 - looked at, and nothing written
    """Size of shared memory, through which processes and data loaders hand on what they have."""
    if not place.is_dir():
        return
    size = shutil.disk_usage(place).total
    what = f"{size / GIB:,.1f} GiB" if size >= SHARED else f"{size / 2**20:,.0f} MiB"
    if size >= SHARED:
        yield Finding("shared memory", "ok", what)
    else:
        remedy = "start the container with --shm-size=8g, or --ipc=host"
        yield Finding("shared memory", "note", f"{what}: too little for several processes", remedy)


# folders --------------------------------------------------------------------------------------------------------------


def caches() -> Iterator[Finding]:
    """The folders of prepared data and of downloaded models: where they are, their sizes, whether they take more."""
    from huggingface_hub import constants

    try:
        ours = cache_folder()
    except StorageError:  # a user without a home
        yield Finding("cache", "problem", "this user has no home folder", f"set {VARIABLE} to a folder")
    else:
        yield _folder("cache", ours, f"set {VARIABLE} to a folder that can be written", "problem")
    hub_cache = Path(constants.HF_HUB_CACHE)
    yield _folder("hub cache", hub_cache, "set HF_HOME to a folder that can be written, to download anything", "note")


def _folder(name: str, folder: Path, remedy: str, otherwise: Status) -> Finding:
    trouble = unwritable(folder)
    if trouble is not None:
        return Finding(name, otherwise, f"{folder} cannot be written ({trouble})", remedy)
    return Finding(name, "ok", f"{folder}, {size_of(folder) / GIB:,.2f} GiB kept")


def unwritable(folder: Path) -> str | None:
    """Why nothing can be written into a folder, or into the nearest one above it that is there; None where it can."""
    while not os.path.lexists(folder) and folder != folder.parent:
        folder = folder.parent
    try:
        with tempfile.TemporaryFile(dir=folder):
            return None
    except OSError as error:
        return error.strerror or str(error)


def size_of(folder: Path) -> int:
    """Bytes of the files below a folder; links are not followed, and what cannot be read is left out."""
    total = 0
    for path, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.lstat(os.path.join(path, name)).st_size
            except OSError:
                continue
    return total


def temporary_files() -> Iterator[Finding]:
    """Whether there is a folder for temporary files, and whether it is the one that was asked for."""
    asked = os.environ.get("TMPDIR")
    trouble = unwritable(Path(asked)) if asked and os.path.isdir(asked) else "no such folder" if asked else None
    if asked and trouble is None:
        yield Finding("TMPDIR", "ok", f"{asked} can be written")
        return
    try:
        taken = tempfile.gettempdir()
    except FileNotFoundError:
        yield Finding("TMPDIR", "problem", "no folder for temporary files can be written", "set TMPDIR to one that can")
        return
    if trouble is None:
        yield Finding("TMPDIR", "ok", f"not set; {taken} can be written")
    else:
        remedy = "set TMPDIR to a folder that can be written"
        yield Finding("TMPDIR", "note", f"{asked} cannot be written ({trouble}); {taken} is taken", remedy)


# the network ----------------------------------------------------------------------------------------------------------


def hub() -> Iterator[Finding]:
    """Whether the hub answers; it is not asked where the environment forbids it."""
    from huggingface_hub import constants, is_offline_mode

    if is_offline_mode():
        yield Finding(
            "hub", "note", "HF_HUB_OFFLINE is set: only what is in the cache can be loaded", "unset it to download"
        )
        return
    trouble = out_of_reach(constants.ENDPOINT, PROBE_SECONDS)
    if trouble is None:
        yield Finding("hub", "ok", f"{constants.ENDPOINT} answers")
    else:
        remedy = "check network and proxy, or set HF_HUB_OFFLINE=1 to go without"
        yield Finding("hub", "note", f"{constants.ENDPOINT} is out of reach ({trouble})", remedy)


def out_of_reach(address: str, seconds: float) -> str | None:
    """Why a server does not answer in time, looking its name up included; None where it does, whatever it says."""
    answers: list[str | None] = []

    def ask() -> None:
        from huggingface_hub import get_session

        try:
            get_session().head(address, timeout=seconds)
            answers.append(None)
        except Exception as error:  # whatever the HTTP library says of a connection that did not come about
            answers.append(type(error).__name__)

    asking = threading.Thread(target=ask, daemon=True)  # a name server may take longer than any limit of the library
    asking.start()
    asking.join(seconds)
    return answers[0] if answers else f"no answer within {seconds:g} s"


def tokens() -> Iterator[Finding]:
    """Which tokens are there: that of the hub, from its variables or its file, and that of W&B."""
    from huggingface_hub import constants

    variables = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")
    for_hub = next((name for name in variables if os.environ.get(name)), None)
    if for_hub is None and _has_content(Path(constants.HF_TOKEN_PATH)):
        for_hub = f"{constants.HF_TOKEN_PATH}"
    if for_hub:
        yield Finding("hub token", "ok", f"present ({for_hub})")
    else:
        yield Finding(
            "hub token", "note", "absent; private and gated models need it", "set HF_TOKEN, or: hf auth login"
        )
    if os.environ.get("WANDB_API_KEY"):
        yield Finding("wandb key", "ok", "present (WANDB_API_KEY)")
    else:
        yield Finding("wandb key", "note", "WANDB_API_KEY is not set; only report_to wandb needs it", "wandb login")


def _has_content(path: Path) -> bool:
    try:
        return path.stat().st_size > 0
    except OSError:
        return False
