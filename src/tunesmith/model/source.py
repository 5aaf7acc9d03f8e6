"""Where a model's files are, and whether they may be opened.

It loads no weights; a name is resolved, and folders are looked at, before anything heavy happens.
"""

from __future__ import annotations

import os
import re
import threading
from pathlib import Path
from typing import Any, Literal

from tunesmith import assets
from tunesmith.config.files import parse_json, read_bytes
from tunesmith.config.schema import ModelSection
from tunesmith.errors import ModelError, UnsafeError, did_you_mean
from tunesmith.model.headers import SINGLE, few, weight_files
from tunesmith.notices import notify

ADAPTER_CONFIG = "adapter_config.json"
HUB_DEADLINE = 8.0
"""Seconds after which the hub counts as out of reach."""

MAX_CONFIG_BYTES = 2**26
"""Of a file of settings beside a model; a tokenizer's list of added tokens may be long."""
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
_FETCHED = (
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "model.safetensors.index.json",
    "model-*-of-*.safetensors",
)
"""What is fetched of a hub model; some publishers keep their weights a second time under other names."""
_COMMIT = re.compile(r"[0-9a-f]{40}")
MOST_LAYERS = 1_000
"""More layers than any model has; the library takes time and memory for each as soon as it reads a configuration."""
MOST_LABELS = 1_000_000
"""Likewise: a configuration names each label when it is read."""
_LAYER_COUNTS = ("num_hidden_layers", "num_layers", "n_layer", "n_layers", "num_decoder_layers")


def locate(name: str, revision: str | None = None, *, kind: Literal["model", "tokenizer"] = "model") -> str:
    """The place to load ``name`` from: a folder of this machine, or a hub name that was just seen to answer.

    A local folder comes first, then the model inside the package, then the hub. Where the hub is out of reach, a
    complete copy in the local cache is taken, which is said.

    Args:
        name: local folder, ``nano-mistral``, or a hub name.
        revision: branch, tag or commit of a hub model.
        kind: what must be there; weights of a model have to be safetensors.

    Raises:
        ModelError: nothing is there, or the hub does not answer within ``HUB_DEADLINE`` seconds.
        UnsafeError: the weights are pickle files.
    """
    folder = Path(os.path.expanduser(name))
    embedded = assets.embedded_model(name)
    if os.path.isdir(folder) and embedded is None:  # a Path would raise at a name that is too long
        _check_counts(folder)
        if kind == "model":
            check_model_folder(folder)
        return str(folder)
    if embedded is not None:
        if not (embedded / "config.json").is_file():
            raise ModelError(f"the embedded model {name} is not in this installation", remedy="reinstall tunesmith")
        return str(embedded)
    if os.path.exists(folder):
        raise ModelError("is a file, not a model folder", where=name, remedy="name the folder that holds it")
    if _looks_like_path(name):
        raise ModelError("no such model folder", where=name, remedy=_nearest(folder))
    return _locate_on_hub(name, revision, kind)


def check_there(name: str, revision: str | None = None) -> None:
    """``locate`` a model in advance: the hub is not asked for what lies in the local cache.

    Raises:
        ModelError, UnsafeError: as ``locate`` does.
    """
    of_hub = not os.path.exists(os.path.expanduser(name)) and not assets.embedded_model(name)
    if not (of_hub and not _looks_like_path(name) and _cached_folder(name, revision) is not None):
        locate(name, revision)


def check_model_folder(folder: Path) -> None:
    """Refuse a folder that holds no model, an adapter alone or besides, or weights that are pickles.

    Raises:
        ModelError: configuration or weights are missing, or a shard lies outside of the folder.
        UnsafeError: the weights are pickle files only.
    """
    if not (folder / "config.json").is_file():
        if (folder / ADAPTER_CONFIG).is_file():
            raise ModelError(
                "holds an adapter, not a model", where=str(folder), remedy="name the base model the adapter belongs to"
            )
        raise ModelError("has no config.json, so it is no model folder", where=str(folder))
    check_one_kind(folder)
    weights = weight_files(folder)
    if not weights:
        pickles = sorted(path.name for pattern in _PICKLES for path in folder.glob(pattern))
        if pickles:
            raise _pickled(str(folder), pickles)
        others = sorted(path.name for path in folder.glob("*.safetensors"))
        what = f" under a name that the library opens, only {few(others)}" if others else f" ({SINGLE})"
        raise ModelError(f"holds no weights{what}", where=str(folder))
    missing = [path.name for path in weights if not path.is_file()]
    if missing:
        raise ModelError(f"shards are missing: {', '.join(missing)}", where=str(folder))


def local_folder(located: str, revision: str | None = None) -> Path:
    """The folder with the files of a located model; those of a hub model must have been fetched before.

    Raises:
        ModelError: the hub model is not in the local cache.
    """
    if Path(located).is_dir():
        return Path(located)
    cached = _cached_folder(located, revision)
    if cached is None:
        raise ModelError("is not in the local cache", where=located, remedy="load the model once with the hub in reach")
    return cached


def check_one_kind(folder: Path) -> None:
    """Refuse a folder that holds a model and an adapter: the library would put the one on the other by itself.

    Raises:
        ModelError: both are there.
    """
    if all((folder / name).is_file() for name in (ADAPTER_CONFIG, "config.json")) and weight_files(folder):
        raise ModelError(
            "holds a model and an adapter, and which one is meant cannot be told",
            where=str(folder),
            remedy="keep adapter_config.json in a folder of its own",
        )


def fetched(located: str, revision: str | None = None) -> Path:
    """The folder with the files of a located model; those of a hub model are fetched where they are not here yet.

    Raises:
        ModelError: the hub does not give them.
    """
    if Path(located).is_dir():
        return Path(located)
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(located, revision=revision, allow_patterns=list(_FETCHED)))
    except Exception as error:  # the library raises many kinds here, and all mean the same to the user
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ModelError(f"the model cannot be fetched ({reason[:300]})", where=located) from error


def read_json(located: str, file_name: str, revision: str | None = None) -> dict[str, Any]:
    """A JSON file of a located model or tokenizer; empty where there is none.

    Raises:
        ModelError: the file is not valid JSON, or no object.
    """
    path: Path | None = Path(located) / file_name
    if not Path(located).is_dir():
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import EntryNotFoundError

        try:
            path = Path(hf_hub_download(located, file_name, revision=revision))
        except EntryNotFoundError:
            path = None
    if path is None or not path.is_file():
        return {}
    try:
        content = parse_json(read_bytes(path, MAX_CONFIG_BYTES).decode("utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"not valid JSON ({error})", where=str(path)) from error
    if not isinstance(content, dict):
        raise ModelError(f"holds a {type(content).__name__}, not an object of settings", where=str(path))
    return content


def may_run_code(section: ModelSection, located: str) -> bool:
    """Whether code that comes with the model may run: asked for, and permitted, and not needless.

    A model that asks for its own code, but whose architecture the library knows, is loaded with the library's code,
    which is said.

    Raises:
        UnsafeError: the model needs its own code and nobody permitted that, or it is not pinned to a commit.
    """
    config = read_json(located, "config.json", section.revision)
    code = _code_files(config) | _code_files(read_json(located, "tokenizer_config.json", section.revision))
    asked = section.trust_remote_code
    allowed = asked and section.allow_remote_code
    if not code:
        if asked and not allowed:
            why = "is not honoured without --allow_remote_code; the model needs no code of its own"
            notify(f"{section.model_name_or_path}: trust_remote_code {why}")
        return False
    if allowed:
        if not Path(located).is_dir() and not _COMMIT.fullmatch(section.revision or ""):
            raise UnsafeError(
                "code from the hub runs only from a fixed commit",
                where=located,
                remedy="give revision as the 40 hexadecimal digits of a commit whose code you have read",
            )
        notify(f"{section.model_name_or_path}: its own code runs ({', '.join(sorted(code))}), as permitted")
        return True
    if _known_architecture(config):
        what = "trust_remote_code is not honoured without --allow_remote_code" if asked else "it brings its own code"
        notify(
            f"{section.model_name_or_path}: {what}; the library knows this architecture and loads it with its own code"
        )
        return False
    raise UnsafeError(
        f"the model needs code of its own ({', '.join(sorted(code))})",
        where=section.model_name_or_path,
        remedy="read that code; if you trust it, give --trust_remote_code and --allow_remote_code",
    )


def loading_keywords(section: ModelSection, located: str) -> dict[str, Any]:
    """What every loading call of the library is told about a located model: revision, and whether code may run.

    Raises:
        UnsafeError: see ``may_run_code``.
    """
    revision = {"revision": section.revision} if section.revision and not Path(located).is_dir() else {}
    return {"trust_remote_code": may_run_code(section, located)} | revision


def _check_counts(folder: Path) -> None:
    config = read_json(str(folder), "config.json")
    for part in (config, *(value for value in config.values() if isinstance(value, dict))):
        for name, most in [*((name, MOST_LAYERS) for name in _LAYER_COUNTS), ("num_labels", MOST_LABELS)]:
            value = part.get(name)
            if isinstance(value, int | float) and value > most:
                raise ModelError(
                    f"{name} {value} is more than any model has",
                    where=str(folder / "config.json"),
                    remedy="use the config.json that belongs to the weights",
                )


def _code_files(config: dict[str, Any]) -> set[str]:
    entries = config.get("auto_map")
    names: set[str] = set()
    for value in entries.values() if isinstance(entries, dict) else [entries]:
        for entry in value if isinstance(value, list) else [value]:
            if isinstance(entry, str):
                names.add(entry.split("--")[-1].rpartition(".")[0] + ".py")
    return names


def _known_architecture(config: dict[str, Any]) -> bool:
    from transformers import CONFIG_MAPPING

    return config.get("model_type") in CONFIG_MAPPING or not config


def _looks_like_path(name: str) -> bool:
    return name.startswith((".", "/", "~")) or name.count("/") > 1 or (os.sep == "\\" and "\\" in name)


def _nearest(folder: Path) -> str:
    parent = folder.absolute().parent
    if not os.path.isdir(parent):
        return f"there is no folder {parent} either"
    folders = [path.name for path in parent.iterdir() if path.is_dir()]
    return did_you_mean(folder.name, folders, "check the path", folder=folder.parent)


def _pickled(where: str, files: list[str]) -> UnsafeError:
    return UnsafeError(
        f"its weights are pickle files ({', '.join(files[:3])}), which can run code when they are opened",
        where=where,
        remedy="use a copy of the model in safetensors",
    )


def _locate_on_hub(name: str, revision: str | None, kind: str) -> str:
    from huggingface_hub import is_offline_mode
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise ModelError(
            "is neither a folder nor a possible hub name", where=name, remedy=_nearest(Path(name))
        ) from error
    trouble = "HF_HUB_OFFLINE is set" if is_offline_mode() else _ask_hub(name, revision, kind)
    if trouble is None:
        return name
    cached = _cached_folder(name, revision)
    if cached is not None:
        _check_counts(cached)
        if kind == "model":
            check_model_folder(cached)
        notify(f"{name}: the hub was not asked ({trouble}); the copy in the local cache is used")
        return str(cached)
    hint = did_you_mean(name, assets.EMBEDDED_MODELS, "")
    fetch = "give a local folder, or fetch the model once with the network up and HF_HUB_OFFLINE unset"
    raise ModelError(
        f"no folder of that name, not in the local cache, and the hub is out of reach ({trouble})",
        where=name,
        remedy=f"{hint} Otherwise {fetch}" if hint else fetch,
    )


def _ask_hub(name: str, revision: str | None, kind: str) -> str | None:
    """None when the hub has the model; a reason when it does not answer in time.

    Raises:
        ModelError: the hub answers that there is no such model, or that access is not granted.
        UnsafeError: it has pickled weights only.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    answer: list[Any] = []

    def ask() -> None:
        try:
            answer.append(HfApi().model_info(name, revision=revision, timeout=HUB_DEADLINE / 2))
        except Exception as error:  # every failure is judged below, in the thread that can raise it
            answer.append(error)

    # A name look-up cannot be given a time limit, so the question is asked beside the main thread.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(HUB_DEADLINE)
    if not answer:
        return f"no answer within {HUB_DEADLINE:g} s"
    found = answer[0]
    if isinstance(found, GatedRepoError):
        raise ModelError("access is not granted", where=name, remedy="accept its licence on the hub and set HF_TOKEN")
    if isinstance(found, RevisionNotFoundError):
        raise ModelError(f"has no revision {revision!r}", where=name)
    if isinstance(found, RepositoryNotFoundError):
        raise ModelError(
            "no such folder, and no such model on the hub",
            where=name,
            remedy="check the name; a private one needs HF_TOKEN",
        )
    if isinstance(found, Exception):
        return f"{type(found).__name__}: {str(found).splitlines()[0] if str(found) else 'no detail'}"
    files = [sibling.rfilename for sibling in found.siblings or []]
    if kind == "model" and not any(file.endswith(".safetensors") for file in files):
        pickles = [file for file in files if any(Path(file).match(pattern) for pattern in _PICKLES)]
        if pickles:
            raise _pickled(name, pickles)
        raise ModelError("has no weights (*.safetensors) on the hub", where=name)
    return None


def _cached_folder(name: str, revision: str | None) -> Path | None:
    from huggingface_hub import try_to_load_from_cache

    for file_name in ("config.json", "tokenizer_config.json"):
        path = try_to_load_from_cache(name, file_name, revision=revision)
        if isinstance(path, str):
            return Path(path).parent
    return None
