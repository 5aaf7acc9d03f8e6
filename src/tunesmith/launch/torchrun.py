"""Starts a run as several processes, on this machine or together with others, and watches them.

torch's elastic agent does the work, in this process: it starts the ranks, ends all of them when one fails, starts all
of them again as often as ``max_restarts`` allows, and meets the agents of other machines. What is added here is what
people see: a log for each rank, rank 0 on the terminal, and one line that names the rank that failed.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
from torch.distributed.elastic.multiprocessing import SignalException
from torch.distributed.elastic.multiprocessing.api import LogsDest, LogsSpecs
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from torch.distributed.elastic.rendezvous import RendezvousError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from tunesmith.config.resolve import Resolved
from tunesmith.errors import Interrupted, ModelError, TunesmithError
from tunesmith.launch.processes import AGENT
from tunesmith.report.record import now
from tunesmith.train.processes import Processes
from tunesmith.train.setup import set_up
from tunesmith.train.signals import HANDLED, going_on
from tunesmith.visible import visible

LOG = "TUNESMITH_LOG"
"""Variable that holds the path of a rank's log."""
STOPPED = frozenset(128 + number for number in HANDLED)
"""Exit codes of a rank that a signal stopped."""
FINAL = frozenset({2, 3, 4, 5, 7})
"""Exit codes after which nothing is started again: settings, data, model, numbers and permissions stay the same."""
MEETING_SECONDS = 600
"""How long a machine waits for the others."""


@contextmanager
def passed_on() -> Iterator[None]:
    """Meanwhile a first signal goes on to the ranks, which stop in their own time; a second one ends them at once.

    torch's agent would give them 30 seconds, which a large step and its checkpoint may exceed. Beside the main thread,
    which alone is given signals, nothing happens.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    passed: list[int] = []

    def handle(number: int, frame: Any) -> None:
        ranks = psutil.Process().children()
        if passed or not ranks:
            raise SignalException(f"got signal {number}", signal.Signals(number))
        passed.append(number)
        for rank in ranks:
            with suppress(psutil.NoSuchProcess):
                rank.send_signal(number)

    before = {number: signal.signal(number, handle) for number in HANDLED}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class RankError(TunesmithError):
    """The failure of one rank: its own words, its name, and where its log is."""

    def __init__(self, name: str, said: Sequence[str], log: Path, exit_code: int) -> None:
        self._lines = [f"{name}: {line}" for line in said]
        self._lines[-1] += f"; its log is {log}"
        self.exit_code = exit_code
        super().__init__(" | ".join(self._lines))

    def lines(self) -> list[str]:
        return self._lines


def launch(resolved: Resolved, program: Sequence[str], num_processes: int) -> None:
    """Run ``program`` (what follows ``python``) as the ranks of this machine, to the end of the run.

    Raises:
        ConfigError: the run folder holds another run; nothing was started.
        StorageError: it cannot be written; nothing was started.
        RankError: a rank failed, and no restart is left or would help; the exit code is the rank's.
        Interrupted: a signal reached this process, which passed it on to every rank, or one of the ranks.
        ModelError: the machines did not meet.
    """
    section, folder = resolved.config.launch, Path(resolved.config.training.output_dir)
    set_up(resolved, Processes(num_processes, section.nodes), only=["folder"])
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // num_processes)))
    # Each start gets a store of its own, on a port that rank 0 chooses: nothing of an earlier start is found in it, and
    # machines that have restarted a different number of times meet.
    os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
    # The shell joins both streams in the log and then becomes the rank; torch takes the words for templates.
    words = ["-c", f'exec "$@" >>"${LOG}" 2>&1', "sh", sys.executable, *program]
    with RankLogs(folder.absolute() / "logs", section.nodes * num_processes) as logs, _quiet(), passed_on():
        config = LaunchConfig(
            min_nodes=section.nodes,
            max_nodes=section.nodes,
            nproc_per_node=num_processes,
            logs_specs=logs,
            run_id="tunesmith",
            rdzv_backend="c10d",
            max_restarts=section.max_restarts,
            signals_to_handle="SIGHUP,SIGQUIT",  # the others are passed on
            **_meeting(resolved),
        )
        try:
            elastic_launch(config, "/bin/sh")(*(word.replace("$", "$$") for word in words))
        except ChildFailedError as error:
            raise _failure(error.failures, logs) from None
        except SignalException as error:
            raise Interrupted(
                f"{error.sigval.name}: all processes were stopped at once",
                signal_number=error.sigval,
                remedy=f"go on with: {going_on(['python', *program])}",
            ) from None
        except RendezvousError as error:
            raise ModelError(
                f"the {section.nodes} machines did not meet at {section.rendezvous}: {error}",
                remedy="start the same command on each machine, and let all of them reach that port of machine 0",
            ) from error


class RankLogs(LogsSpecs):
    """Where the agent sends what its ranks write: to ``rank-N.log`` in a folder, behind what is there already.

    Rank 0 is shown on standard error as well, when it runs here, except for its errors: those are left to RankError.
    """

    def __init__(self, folder: Path, num_ranks: int) -> None:
        super().__init__(log_dir=str(folder))
        self.num_ranks = num_ranks
        self._folder = folder
        self._ends = tempfile.TemporaryDirectory(prefix="tunesmith-")  # what ranks say about their ends
        self._over = threading.Event()
        self._shown: threading.Thread | None = None

    def __enter__(self) -> RankLogs:
        self._folder.mkdir(parents=True, exist_ok=True)
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        if self._shown is not None:
            self._shown.join()
        self._ends.cleanup()

    @property
    def root_log_dir(self) -> str:
        return str(self._folder)

    def log(self, rank: int) -> Path:
        """The log of a rank."""
        return self._folder / f"rank-{rank}.log"

    def reify(self, envs: dict[int, dict[str, str]]) -> LogsDest:
        """Prepare a start of the ranks, whose variables are given by their number on this machine.

        Raises:
            RankError: the start before ended with an error that would come again, so this one is not made.
            Interrupted: it was stopped.
        """
        self._check_ends({int(env["RANK"]): int(env["TORCHELASTIC_RESTART_COUNT"]) - 1 for env in envs.values()})
        ends: dict[int, str] = {}
        for local, env in envs.items():
            rank, restart = int(env["RANK"]), int(env["TORCHELASTIC_RESTART_COUNT"])
            log, host = self.log(rank), socket.gethostname()
            with log.open("a", encoding="utf-8") as stream:
                stream.write(f"--- rank {rank} of {self.num_ranks} on {host}, start {restart + 1}, {now()} ---\n")
                end_of_header = stream.tell()
            if rank == 0 and self._shown is None:
                self._shown = threading.Thread(target=_show, args=(log, end_of_header, self._over), daemon=True)
                self._shown.start()
            ends[local] = str(self._end(rank, restart))
            env |= {LOG: str(log), AGENT: str(os.getpid()), "TORCHELASTIC_ERROR_FILE": ends[local]}
        streams = dict.fromkeys(envs, "")  # the rank's own shell opens its log
        return LogsDest(stdouts=streams, stderrs=streams, error_files=ends)

    def _end(self, rank: int, restart: int) -> Path:
        return Path(self._ends.name, f"{rank}-{restart}")

    def _check_ends(self, starts: Mapping[int, int]) -> None:
        """Refuse to start again after an end that would come again. A rank that was stopped while another one died was
        stopped by torch's agent, so only a stop of all counts."""
        ends = {rank: _read_end(self._end(rank, restart)) for rank, restart in starts.items()}
        stopped = all(end.get("exit_code") in STOPPED for end in ends.values())
        for rank, end in ends.items():
            if stopped or end.get("exit_code") in FINAL:
                raise _ended(f"rank {rank} of {self.num_ranks}", end["message"], self.log(rank), end["exit_code"])


def _read_end(file: Path) -> dict[str, Any]:
    """What a rank said at its end; nothing where it said nothing, or could not say it to the end."""
    try:
        return dict(json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return {}


def _ended(name: str, message: str, log: Path, exit_code: int) -> TunesmithError:
    """What a rank said at its end; a signal concerns the run and no rank of it."""
    if exit_code in STOPPED:
        return Interrupted(message, signal_number=exit_code - 128)
    return RankError(name, message.splitlines(), log, exit_code)


def _show(log: Path, start: int, over: threading.Event) -> None:
    """Copy what is written to a log to standard error until it is over, line by line and without its errors."""
    with log.open(encoding="utf-8", errors="replace") as stream:
        stream.seek(start)
        line = ""
        while True:
            last_look = over.is_set()
            line += stream.readline()
            if line.endswith("\n"):
                if not line.startswith("error: "):
                    print(visible(line), end="", file=sys.stderr, flush=True)
                line = ""
            elif last_look:
                return
            else:
                over.wait(0.1)


def _failure(failures: Mapping[int, ProcessFailure], logs: RankLogs) -> TunesmithError:
    """The failure that explains the others; of equal ones, the one that the agent saw first."""
    rank = min(failures, key=lambda number: _weight(failures[number].exitcode))
    failure = failures[rank]
    if -failure.exitcode in HANDLED:
        return Interrupted(
            f"{failure.signal_name()}: all processes were stopped before the first step",
            signal_number=-failure.exitcode,
            remedy="nothing was trained yet; the same command starts again",
        )
    if failure.exitcode < 0:
        memory = ", as the system does when memory runs out" if failure.exitcode == -signal.SIGKILL else ""
        said = [f"was killed by {failure.signal_name()}{memory}"]
    elif Path(failure.error_file).is_file():
        message = failure.error_file_data["message"]
        return _ended(f"rank {rank} of {logs.num_ranks}", message, logs.log(rank), failure.exitcode)
    else:
        said = [f"ended with exit code {failure.exitcode}"]
    exit_code = failure.exitcode if failure.exitcode > 0 else 128 - failure.exitcode
    return RankError(f"rank {rank} of {logs.num_ranks}", said, logs.log(rank), exit_code)


def _weight(exit_code: int) -> int:
    """How little a rank's end says: least an error of ours, then a violent death, a stop, another error (often that of
    a rank that lost its peer), and a signal that nobody was there yet to handle (often the agent's own)."""
    if 2 <= exit_code <= 7:
        return 0
    if exit_code < 0:
        return 4 if -exit_code in HANDLED else 1
    return 2 if exit_code in STOPPED else 3


def _meeting(resolved: Resolved) -> dict[str, Any]:
    """Where the agents meet, in the words of LaunchConfig.

    Machine 0 keeps the list of those who came. Ranks follow the order of the machines' names: machine 0 is named by its
    address, where rank 0 is reached, and the names of the others sort behind every address.
    """
    section = resolved.config.launch
    if section.nodes == 1:
        return {"rdzv_endpoint": "127.0.0.1:0", "local_addr": "127.0.0.1"}
    host, _, port = str(section.rendezvous).rpartition(":")
    address, ours = _route(host.strip("[]"), int(port))
    interface = _interface(ours)
    if interface is not None:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)
    is_host = section.node_rank == 0
    return {
        "rdzv_endpoint": section.rendezvous,
        "rdzv_configs": {"is_host": is_host, "read_timeout": MEETING_SECONDS, "join_timeout": MEETING_SECONDS},
        "local_addr": address if is_host else f"machine-{section.node_rank:06}",
    }


def _route(host: str, port: int) -> tuple[str, str]:
    """Address of a host, and ours on the way there; nothing is sent.

    Raises:
        ModelError: the host is not known, or there is no way to it.
    """
    try:
        family, kind, _, _, target = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind) as probe:
            probe.connect(target)
            return str(target[0]), str(probe.getsockname()[0])
    except OSError as error:
        raise ModelError(f"cannot reach the rendezvous host {host}: {error.strerror or error}") from error


def _interface(address: str) -> str | None:
    """The network interface that has an address: gloo would guess one by the name of the host."""
    for name, addresses in psutil.net_if_addrs().items():
        if any(entry.address == address for entry in addresses):
            return str(name)
    return None


@contextmanager
def _quiet() -> Iterator[None]:
    """torch's agent logs each process that it ends; who failed is said in one line instead."""
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)
