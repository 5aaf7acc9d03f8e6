"""``server.py SOCKET SESSION``: imports what commands import, then forks for each one that a client asks for.

It ends when the process SESSION does. One thread alone: a fork takes no lock along that another thread holds.
"""

from __future__ import annotations

import atexit
import ctypes
import importlib
import json
import os
import runpy
import selectors
import signal
import socket
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

MODULES = (
    "tunesmith.cli.main",
    "tunesmith.cli.train",
    "tunesmith.train.run",
    "tunesmith.launch.torchrun",
    "trl",
    "peft.tuners.lora",
    "bitsandbytes",
    "deepspeed",
    "transformers.models.llama.modeling_llama",
    "transformers.models.mistral.modeling_mistral",
    "accelerate.commands.launch",
    "torch.distributed.run",
    "matplotlib.backends.backend_agg",
    "matplotlib.figure",
)
SECONDS = 2
"""How often it looks whether its session is still there."""


class Command(Exception):
    """What the forked process is to run; raised to leave the server's loop, which must not go on in it."""

    def __init__(self, message: dict[str, Any], streams: list[int]) -> None:
        super().__init__()
        self.message, self.streams = message, streams


class Server:
    def __init__(self, address: str, session: int, constants: dict[str, str], quiet: dict[str, str]) -> None:
        self._session, self._constants, self._quiet = session, constants, quiet
        self._selector = selectors.DefaultSelector()
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(address + ".new")
        self._listener.listen(64)
        self._selector.register(self._listener, selectors.EVENT_READ, self._accept)
        os.rename(address + ".new", address)

    def serve(self) -> None:
        while Path(f"/proc/{self._session}").exists():
            for key, _ in self._selector.select(timeout=SECONDS):
                key.data()

    def _accept(self) -> None:
        client, _ = self._listener.accept()
        with suppress(OSError, ValueError):  # a client that died while it asked
            message, streams = receive(client)
            alike = self._quiet | message["constants"] == self._constants
            if not alike or len(os.listdir("/proc/self/task")) > 1:
                print("left to the real Python:", message["arguments"], message["constants"], flush=True)
                client.sendall(b"other\n")
                close(streams)
                client.close()
                return
            child = os.fork()
            if not child:
                self._leave()
                client.close()
                raise Command(message, streams)
            close(streams)
            client.sendall(f"{child}\n".encode())
            self._watch(client, child)

    def _leave(self) -> None:
        """Close, in a forked process, what belongs to the server."""
        for key in list(self._selector.get_map().values()):
            os.close(key.fd)
            if isinstance(key.fileobj, socket.socket):
                key.fileobj.detach()
        self._selector.close()

    def _watch(self, client: socket.socket, child: int) -> None:
        """Tell the client when its process has ended, and end the process when the client is gone."""
        ended = os.pidfd_open(child)

        def tell() -> None:
            _, status = os.waitpid(child, 0)
            self._selector.unregister(ended)
            os.close(ended)
            with suppress(KeyError):
                self._selector.unregister(client)
            with suppress(OSError):
                client.sendall(f"{os.waitstatus_to_exitcode(status)}\n".encode())
            client.close()

        def kill() -> None:
            self._selector.unregister(client)
            os.kill(child, signal.SIGKILL)

        self._selector.register(ended, selectors.EVENT_READ, tell)
        self._selector.register(client, selectors.EVENT_READ, kill)


def receive(client: socket.socket) -> tuple[dict[str, Any], list[int]]:
    """A client's JSON line and its three streams."""
    first, streams, _, _ = socket.recv_fds(client, 1, 3)
    line = first
    while not line.endswith(b"\n"):
        part = client.recv(1 << 16)
        if not part:
            close(streams)
            raise ValueError(line)
        line += part
    return json.loads(line), streams


def close(streams: list[int]) -> None:
    for stream in streams:
        os.close(stream)


def enter_network(process: int) -> None:
    """Enter the network namespace of a process, where it is another one than ours."""
    theirs = f"/proc/{process}/ns/net"
    if os.readlink(theirs) == os.readlink("/proc/self/ns/net"):
        return
    namespace = os.open(theirs, os.O_RDONLY)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(namespace, 0):
        raise OSError(ctypes.get_errno(), "setns")
    os.close(namespace)


def become(message: dict[str, Any], streams: list[int]) -> None:
    """Make this forked process what the command's own would be."""
    os.setsid()
    enter_network(message["process"])
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    os.environ.clear()
    os.environ.update(message["environment"])
    if "TUNESMITH_AGENT" in os.environ:  # our launcher's ranks end with their parent, which is the server here
        os.environ["TUNESMITH_AGENT"] = str(os.getppid())
    os.chdir(message["folder"])
    unbuffered = message["arguments"][:1] == ["-u"]
    sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stdout = open(1, "w", encoding="utf-8", closefd=False, buffering=1 if os.isatty(1) or unbuffered else -1)  # noqa: SIM115
    sys.stderr = open(2, "w", encoding="utf-8", errors="backslashreplace", closefd=False, buffering=1)  # noqa: SIM115
    sys.__stdin__, sys.__stdout__, sys.__stderr__ = sys.stdin, sys.stdout, sys.stderr
    sys.path[:0] = [place for place in os.environ.get("PYTHONPATH", "").split(os.pathsep) if place]
    sys.executable = message["python"]
    sys.orig_argv = [message["python"], *message["arguments"]]
    import numpy as np

    np.random.seed()


def run(arguments: list[str]) -> object:
    """What the interpreter does with a command line; returns what the command gave to ``sys.exit``."""
    words = arguments[1:] if arguments[:1] == ["-u"] else arguments
    try:
        if words[0] == "-m":
            sys.argv = words[1:]
            sys.path.insert(0, os.getcwd())
            runpy.run_module(words[1], run_name="__main__", alter_sys=True)
        else:
            sys.argv = words
            sys.path.insert(0, str(Path(words[0]).resolve().parent))
            runpy.run_path(words[0], run_name="__main__")
    except SystemExit as end:
        return end.code
    return None


def leave(said: object) -> None:
    """End as the interpreter does, but for taking the libraries' objects apart one by one, which takes seconds."""
    if said is not None and not isinstance(said, int):
        print(said, file=sys.stderr)
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(said & 0xFF if isinstance(said, int) else int(said is not None))


def main() -> None:
    sys.path.pop(0)  # this folder; a command puts its own there
    client = runpy.run_path(str(Path(__file__).with_name("client.py")), run_name="client")
    before = client["constants"](os.environ)
    os.environ["JE_ARROW_MALLOC_CONF"] = "background_thread:false"  # pyarrow's allocator would start a thread
    from tunesmith.cli.environment import prepare
    from tunesmith.train import garbage

    prepare()  # libraries are as quiet as a command wants them while it imports them
    constants = client["constants"](os.environ)
    for module in MODULES:
        importlib.import_module(module)
    garbage.freeze()  # a command's search for garbage would copy every page that it shares with the server
    try:
        quiet = {name: value for name, value in constants.items() if name not in before}
        Server(sys.argv[1], int(sys.argv[2]), constants, quiet).serve()
    except Command as command:
        message, streams = command.message, command.streams
    else:
        return
    become(message, streams)
    leave(run(message["arguments"]))


if __name__ == "__main__":
    main()
