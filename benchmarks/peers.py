"""Peers that need other versions of the libraries than we do: each has an environment of its own.

``python -m benchmarks --install NAME`` makes one; then NAME is a side of the comparison ``training``.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

ENVIRONMENTS = Path(__file__).with_name("environments")
PEERS: dict[str, tuple[str, ...]] = {
    "LLaMA-Factory": ("torch==2.13.0", "llamafactory==0.9.5"),
    "Axolotl": ("torch==2.13.0", "axolotl==0.19.0"),
}
"""Side -> what is installed for it, in this order: torch comes first, as the build that is nearest."""
INSTALLED = "installed.txt"
"""In an environment: what was installed there, written when all of it was."""
UNUSED = ("torchvision", "torchaudio")
"""What is taken off again: text needs none of it, and with another build of torch than its own it ends every import."""


def python_of(name: str) -> str:
    """The interpreter that runs a side: ours, or that of a peer's environment.

    Raises:
        SystemExit: the environment is not there, with the command that makes it.
    """
    if name not in PEERS:
        return sys.executable
    if name not in installed():
        raise SystemExit(f"{name} is not installed; python -m benchmarks --install {name} does it")
    return str(_folder(name) / "bin" / "python")


def installed() -> list[str]:
    """The peers that can take part here, in the versions that are named above."""
    whole = {name: _folder(name) / INSTALLED for name in PEERS}
    return [name for name, file in whole.items() if file.exists() and file.read_text() == _said(name)]


def versions(sides: Iterable[str]) -> str:
    """A sentence on the peers among the sides; nothing where there is none."""
    found = [PEERS[side][-1].replace("==", " ") for side in sides if side in PEERS]
    return f" {', '.join(found)}: with libraries of their own versions." if found else ""


def make(name: str, write: Callable[[str], None]) -> None:
    """Make the environment of a peer.

    Raises:
        SystemExit: something could not be installed.
    """
    python = _folder(name) / "bin" / "python"
    subprocess.run([sys.executable, "-m", "venv", str(_folder(name))], check=True)
    for wanted in PEERS[name]:
        write(f"{name}: {wanted}")
        ended = subprocess.run([python, "-m", "pip", "install", "--quiet", wanted], check=False)
        if ended.returncode:
            raise SystemExit(f"{wanted} could not be installed for {name}")
    subprocess.run([python, "-m", "pip", "uninstall", "--quiet", "--yes", *UNUSED], check=False)
    (_folder(name) / INSTALLED).write_text(_said(name))


def _said(name: str) -> str:
    return "\n".join(PEERS[name]) + "\n"


def _folder(name: str) -> Path:
    return ENVIRONMENTS / name.lower()
