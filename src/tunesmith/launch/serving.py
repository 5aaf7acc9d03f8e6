"""An OpenAI-compatible endpoint on an engine that is there: the one that answers everywhere else here, or vLLM.

The former serves in this process (``chat_api``). vLLM runs in one of its own; this one waits for it, hands signals on
and cleans up after it.
"""

from __future__ import annotations

import importlib.util
import re
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tunesmith.config.permissions import permissions_of
from tunesmith.errors import ModelError
from tunesmith.evaluate.subject import Subject

Engine = Literal["transformers", "vllm"]
NEEDED: dict[Engine, tuple[str, ...]] = {"transformers": ("starlette", "uvicorn"), "vllm": ("vllm",)}
EXTRA: dict[Engine, str] = {"transformers": "serve", "vllm": "vllm"}
CLOSING_SECONDS = 3
"""How long an answer under way may go on after a signal."""
SIGNALS = (signal.SIGTERM, signal.SIGINT)


@dataclass(frozen=True, slots=True)
class Served:
    """A model in a form that an engine loads.

    Attributes:
        folder: its folder; its name is the model's name in requests.
        dtype: dtype to compute in, as training did.
        losses: what of the model's contract an engine cannot keep, in words.
    """

    folder: Path
    dtype: str
    losses: list[str]


def choose_engine(wanted: Literal["auto", "transformers", "vllm"]) -> Engine:
    """The engine asked for; ``auto`` takes vLLM where it is installed.

    Raises:
        ModelError: it is not installed.
    """
    engine: Engine = ("vllm" if _installed("vllm") else "transformers") if wanted == "auto" else wanted
    missing = [name for name in NEEDED[engine] if not _installed(name)]
    if missing:
        raise ModelError(
            f"{engine} needs {', '.join(missing)} to serve",
            remedy=f"install it: pip install 'tunesmith[{EXTRA[engine]}]'",
        )
    return engine


@contextmanager
def prepared(subject: Subject, name: str) -> Iterator[Served]:
    """The model ready for an engine, in a temporary folder; an adapter is merged into its base for that.

    Raises:
        ModelError: the model is not there, or cannot be served.
    """
    from tunesmith.export.inference import read
    from tunesmith.export.merge import merge
    from tunesmith.export.served import make_served_folder
    from tunesmith.model import source
    from tunesmith.model.load import model_spec

    permissions = permissions_of(subject.resolved.values())
    how = model_spec(subject.folder, base=subject.base, permissions=permissions)
    dtype = how.precision.dtype
    with tempfile.TemporaryDirectory(prefix="tunesmith-serve-") as home:
        if how.is_adapter:
            whole = Path(home) / "merged"
            merge(how.folder, whole, dtype=dtype, questions=None, base_model=subject.base, permissions=permissions)
        else:
            section = how.resolved.config.model
            whole = source.local_folder(source.locate(section.model_name_or_path, section.revision), section.revision)
        target = Path(home) / name
        losses = make_served_folder(whole, target, read(whole))
        yield Served(target, dtype, losses)


def command(served: Served, host: str, port: int) -> list[str]:
    """The command line that starts vLLM, from the folder above the model's."""
    name = served.folder.name
    where = ["--host", host, "--port", str(port), "--dtype", served.dtype]
    return ["vllm", "serve", str(served.folder), "--served-model-name", name, *where]


def answer_over_http(app: Any, listening: socket.socket) -> int:
    """Serve an application on a socket until a signal ends it; 128 + the signal's number."""
    import uvicorn

    received: list[int] = []
    # uvicorn lets answers under way end, and then raises the signals that it has received once more
    before = {number: signal.signal(number, lambda number, _frame: received.append(number)) for number in SIGNALS}
    try:
        settings = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=CLOSING_SECONDS)
        uvicorn.Server(settings).run(sockets=[listening])
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return 128 + received[0] if received else 0


def request_name(text: str) -> str:
    """The name of a model in requests: the last part of what the user calls it, without what a server would read
    otherwise (``@`` separates a revision there)."""
    return re.sub(r"[^\w.-]+", "-", Path(text).absolute().name if Path(text).exists() else text).strip("-.") or "model"


def run(arguments: Sequence[str], folder: Path) -> int:
    """Run the engine until it ends or a signal ends it; its exit code, or 128 + the signal's number."""
    process = subprocess.Popen(arguments, cwd=folder)
    received: list[int] = []

    def hand_on(number: int, _frame: object) -> None:
        received.append(number)
        process.send_signal(signal.SIGTERM)

    before = {number: signal.signal(number, hand_on) for number in SIGNALS}
    try:
        code = process.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return 128 + received[0] if received else code


def _installed(name: str) -> bool:
    return importlib.util.find_spec(name) is not None
