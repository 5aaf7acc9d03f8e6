"""``client.py FOLDER SESSION PYTHON ARGUMENT...``: has the server run a command, and behaves as that command does.

Signals go on to the process that runs it, its end is this one's end, and it does not outlive this one.
"""

import array
import fcntl
import json
import os
import signal
import socket
import sys
import time
from contextlib import suppress

SERVER = os.path.join(os.path.dirname(os.path.abspath(__file__)), "server.py")
READ_AT_IMPORT = (
    "BNB_", "DS_", "HF_", "HOME", "LD_", "MALLOC_", "MKL_", "MPL", "OMP_", "PYTHON",
    "TOKENIZERS_", "TORCHDYNAMO", "TRANSFORMERS_", "TRL_", "USE_", "XDG_",
)  # fmt: skip
"""Beginnings of variables that Python or a library reads before the command has its say."""
OWN = ("PYTHON_EXEC", "PYTHONPATH", "PYTHONBREAKPOINT", "HF_TOKEN")
"""Variables among them that are read when they are needed, or that the server follows; Ray sets one in its driver."""


def constants(environment):
    """The part of an environment in which the server must be like the command."""
    return {name: value for name, value in environment.items() if name.startswith(READ_AT_IMPORT) and name not in OWN}


def runnable(arguments):
    """Whether a command line is one that the server takes: a module or a script, unbuffered or not."""
    words = arguments[1:] if arguments[:1] == ["-u"] else arguments
    return bool(words) and ((words[0] == "-m" and len(words) > 1) or not words[0].startswith("-"))


def start(folder, command):
    """The server's process, in the session's own environment and not in that of the first command."""
    import subprocess

    with open(os.path.join(folder, "environment")) as file:
        environment = json.load(file)
    with open(os.path.join(folder, "log"), "w") as log:
        streams = {"stdin": subprocess.DEVNULL, "stdout": log, "stderr": log}
        return subprocess.Popen(command, **streams, start_new_session=True, cwd="/", env=environment)


def connect(folder, session, python):
    """A connection to the server of this session, which is started when there is none; None where it does not come."""
    address = os.path.join(folder, "socket")
    with open(os.path.join(folder, "lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not os.path.exists(address):
            started = start(folder, [python, SERVER, address, session])
            while not os.path.exists(address):
                if started.poll() is not None:
                    return None
                time.sleep(0.02)
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(address)
    return connection


def send(connection, message):
    """One JSON line, with our three streams beside its first byte."""
    line = json.dumps(message).encode() + b"\n"
    streams = array.array("i", [0, 1, 2])
    connection.sendmsg([line[:1]], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, streams)])
    connection.sendall(line[1:])


def pass_on(child, number):
    with suppress(ProcessLookupError):  # its end is on its way to us
        os.kill(child, number)


def main():
    folder, session, python, *arguments = sys.argv[1:]
    connection = connect(folder, session, python) if runnable(arguments) else None
    if connection is None:
        os.execv(python, [python, *arguments])  # noqa: S606
    handled = [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP, signal.SIGQUIT]
    early = []
    for number in handled:
        signal.signal(number, lambda number, _: early.append(number))
    message = {
        "arguments": arguments, "folder": os.getcwd(), "environment": dict(os.environ),
        "python": os.path.join(folder, "python"),
        "constants": constants(os.environ), "process": os.getpid(),
    }  # fmt: skip
    send(connection, message)
    answers = connection.makefile()
    answer = answers.readline().strip()
    if answer == "other":
        os.execv(python, [python, *arguments])  # noqa: S606
    child = int(answer)
    for number in handled:
        signal.signal(number, lambda number, _: pass_on(child, number))
    for number in early:
        pass_on(child, number)
    status = int(answers.readline() or 255)
    if status < 0:
        if -status != signal.SIGKILL:
            signal.signal(-status, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    os._exit(status)


if __name__ == "__main__":
    main()
