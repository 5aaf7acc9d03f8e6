"""Kills runs at random times, starts them again, and compares what is left with a run that nobody disturbed.

    python scripts/soak.py                      50 kills, spread over all kinds of runs
    python scripts/soak.py --hours 2            as many as fit into two hours
    python scripts/soak.py --kinds lora --kills 5
    python scripts/soak.py --hours 2 --log soak.jsonl --piece 15
                                                two hours in pieces of 15 minutes: each call does one more

A killed run is started again by the same command (``--resume auto``). What must be equal to the bit: final weights, the
newest checkpoint with its optimizer, schedule and random states, the account of rows, and the log of metrics but for
the figures that measure time. Exit code 1 where anything differs; the folders are then kept.

With ``--log`` every round is added to a file as it ends, and the next call goes on behind the last one: the time of all
its rounds counts, so a soak may be ended and continued like the runs that it kills.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

COMMON: dict[str, Any] = {
    "max_steps": 12, "save_strategy": "steps", "save_steps": 2, "save_total_limit": 2, "eval_steps": 4,
    "logging_steps": 1, "per_device_train_batch_size": 2, "max_length": 128, "learning_rate": 1e-3, "lora_r": 4,
    "lora_dropout": 0.1, "resume": "auto",
}  # fmt: skip
KINDS: dict[str, dict[str, Any]] = {
    "lora": {"save_steps": 3, "logging_steps": 2, "load_best_model_at_end": False},
    "qlora": {"load_in_4bit": True},
    "full": {"use_lora": False, "learning_rate": 1e-4},
    "packed": {"batching": "packed"},
    "streaming": {"streaming": True, "shuffle_seed": 1},
    "ddp": {"num_processes": 2, "save_steps": 3},
}
"""Kind of run -> its settings on top of ``COMMON``."""
STARTING = 0.2
"""Share of the kills that may come while a run still starts; the others come once its first step follows."""
KILLS_OF_A_RUN = 4
"""Kills after which a run is left alone until its end."""
TIMED = ("run.json", "README.md", "report.html", "curves.png", "manifest.json", "trainer_state.json")
"""Ends of files in which times, dates and the folder's name stand."""
_TIMES = ("seconds", "runtime", "per_second", "tokens_per", "eta", "time", "memory")
"""Parts of the names of metrics that no two runs have alike."""


@dataclass(slots=True)
class Findings:
    """What happened to the runs of one kind."""

    kills: int = 0
    runs: int = 0
    at_steps: list[int] = field(default_factory=list)
    before_first_checkpoint: int = 0
    in_a_save: int = 0
    after_last_step: int = 0
    seconds: float = 0.0
    differences: list[str] = field(default_factory=list)


class Started:
    """A run in a process of its own, made by forking where one process is enough: nothing is imported twice."""

    def __init__(self, settings: dict[str, Any], log: Path) -> None:
        words = ["train", *(f"--{name}={value}" for name, value in settings.items())]
        self.log, self.born = log, time.time_ns()
        if settings.get("num_processes", 1) > 1:
            with log.open("ab") as stream:
                command = [sys.executable, "-m", "tunesmith", *words]
                process = subprocess.Popen(command, stdout=stream, stderr=stream, start_new_session=True)
            self.pid = process.pid
        else:
            self.pid = os.fork()
            if self.pid == 0:
                _be_the_run(words, log)
        self.code: int | None = None

    def wait(self, seconds: float) -> int | None:
        """Its exit code, if it ends within that time."""
        deadline = time.monotonic() + seconds
        while self.code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.code = os.waitstatus_to_exitcode(status)
            elif time.monotonic() > deadline:
                return None
            else:
                time.sleep(0.001)
        return self.code

    def begun(self, run: Path) -> None:
        """Wait until its first step follows, or it has ended."""
        while self.wait(0.01) is None:
            if (run / "run.json").is_file() and (run / "run.json").stat().st_mtime_ns > self.born:
                return

    def kill(self) -> None:
        """SIGKILL for it and all that it started."""
        import psutil

        family = [psutil.Process(self.pid), *psutil.Process(self.pid).children(recursive=True)]
        for process in family:
            try:
                process.send_signal(signal.SIGKILL)
            except psutil.NoSuchProcess:
                continue
        self.wait(60)
        psutil.wait_procs(family[1:], timeout=60)


def _be_the_run(words: list[str], log: Path) -> None:
    """What the forked child does; it never returns."""
    code = 1
    try:
        os.setsid()
        number = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(number, 1)
        os.dup2(number, 2)
        from tunesmith.cli.main import main

        code = main(words)
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code)


def soak(
    kind: str, home: Path, model: str, kills: int, generator: random.Random, going: Callable[[], bool]
) -> Findings:
    """Kill runs of one kind.

    Args:
        home: where the runs lie.
        kills: how many.
        generator: decides when.
        going: whether there is time left.
    """
    found = Findings()
    home.mkdir(parents=True)
    settings = {"model_name_or_path": model, **rows_in(home), **COMMON, **KINDS[kind]}
    whole = home / "whole"
    one = Started(settings | {"output_dir": whole}, home / "whole.log")
    one.begun(whole)
    started = time.monotonic()
    code = one.wait(3600)
    if code != 0:
        found.differences.append(f"the undisturbed run ended with {code}: {(home / 'whole.log').read_text()[-500:]}")
        return found
    seconds = time.monotonic() - started
    while found.kills < kills and going() and not found.differences:
        run = home / f"run-{found.runs}"
        disturb(
            settings | {"output_dir": run}, run, seconds, min(KILLS_OF_A_RUN, kills - found.kills), generator, found
        )
        found.runs += 1
        if not found.differences:
            found.differences += differences(run, whole)
        if not found.differences:
            shutil.rmtree(run)
    return found


def disturb(
    settings: dict[str, Any], run: Path, seconds: float, kills: int, generator: random.Random, found: Findings
) -> None:
    """Start a run, kill it, and start it again, until it has been killed often enough; then let it end."""
    log = run.with_suffix(".log")
    for _ in range(kills):
        one = Started(settings, log)
        if generator.random() >= STARTING:
            one.begun(run)
        one.wait(generator.uniform(0, seconds))
        if one.code is not None:
            break  # what is left of a continued run is shorter than a whole one
        note(run, settings["max_steps"], found)
        one.kill()
        found.kills += 1
    else:
        one = Started(settings, log)
    code = one.wait(3600)
    if code != 0:
        found.differences.append(f"{run.name} ended with {code}: {log.read_text()[-2000:]}")


def note(run: Path, last: int, found: Findings) -> None:
    """Remember where a run is when the kill comes."""
    lines = (run / "metrics.jsonl").read_text().splitlines() if (run / "metrics.jsonl").is_file() else []
    step = max((json.loads(line)["step"] for line in lines[:-1] if line), default=0)
    folders = list(run.glob("checkpoint-*"))
    found.at_steps.append(step)
    found.before_first_checkpoint += not any((folder / "manifest.json").is_file() for folder in folders)
    found.in_a_save += any(not (folder / "manifest.json").is_file() for folder in folders) or (run / ".saving").exists()
    found.after_last_step += step >= last - 1


def differences(run: Path, whole: Path) -> list[str]:
    """What is not as in the undisturbed run."""
    wrong = [f"{name}: only one of the two has it" for name in sorted(names(run) ^ names(whole))]
    for name in sorted(names(run) & names(whole)):
        left, right = run / name, whole / name
        if name == "metrics.jsonl":
            same = list(metrics(left)) == list(metrics(right))
        elif name.endswith(TIMED):
            continue
        else:
            same = left.read_bytes() == right.read_bytes()
        if not same:
            wrong.append(f"{name} differs")
    if json.loads((run / "run.json").read_text())["status"] != "finished":
        wrong.append("run.json does not say finished")
    return [f"{run.name}: {text}" for text in wrong]


def names(run: Path) -> set[str]:
    """Files of a run; logs of processes grow with every start."""
    found = {path.relative_to(run).as_posix() for path in run.rglob("*") if path.is_file()}
    return {name for name in found if not name.startswith("logs/")}


def metrics(path: Path) -> Iterator[dict[str, Any]]:
    """The lines of a log without the figures that measure time."""
    for line in path.read_text(encoding="utf-8").splitlines():
        entry = json.loads(line)
        yield {name: value for name, value in entry.items() if not any(part in name for part in _TIMES)}


def rows_in(home: Path) -> dict[str, str]:
    """Training and evaluation rows of unequal lengths, as settings."""
    generator = random.Random(0)
    things = ["ball", "dog", "cake", "tree", "toy car", "red boat"]
    paths = {}
    for name, number in (("train_data", 20), ("eval_data", 4)):
        paths[name] = str(home / f"{name}.jsonl")
        rows = [
            {"prompt": f"{name} {index}: " + "it was a sunny day. " * generator.randrange(4),
             "completion": f" I saw a {generator.choice(things)}." * generator.randrange(1, 4)}
            for index in range(number)
        ]  # fmt: skip
        Path(paths[name]).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return paths


def rounds(options: argparse.Namespace, home: Path) -> list[tuple[str, Findings]]:
    """All kinds in turn; with a time, again and again. Those of earlier calls, which the log names, come first."""
    done = read_log(options.log)
    earlier = sum(found.seconds for _, found in done)
    left = max(0.0, options.hours * 3600 - earlier) if options.hours else float("inf")
    end = time.monotonic() + min(left, options.piece * 60 or float("inf"))
    share, rest = divmod(options.kills, len(options.kinds))
    for number in itertools.count(len(done)):
        lap, place = divmod(number, len(options.kinds))
        kind = options.kinds[place]
        if time.monotonic() >= end or (lap and not options.hours) or any(found.differences for _, found in done):
            return done
        kills = KILLS_OF_A_RUN if options.hours else share + (place < rest)
        if kills:
            began = time.monotonic()
            generator = random.Random(f"{options.seed} {kind} {lap}")
            folder = home / f"{kind}-{lap}"
            found = soak(kind, folder, options.model, kills, generator, lambda: time.monotonic() < end)
            found.seconds = round(time.monotonic() - began, 1)
            done.append((kind, found))
            write_log(options.log, kind, found)
            tell(kind, found, options.quiet)
            if not found.differences:
                shutil.rmtree(folder)
    raise AssertionError


def read_log(path: Path | None) -> list[tuple[str, Findings]]:
    """The rounds that a log holds; none where there is no log yet."""
    lines = path.read_text(encoding="utf-8").splitlines() if path is not None and path.is_file() else []
    return [(entry.pop("kind"), Findings(**entry)) for entry in map(json.loads, lines)]


def write_log(path: Path | None, kind: str, found: Findings) -> None:
    """Add a round to the log."""
    if path is not None:
        with path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps({"kind": kind, **asdict(found)}) + "\n")


def totals(options: argparse.Namespace, done: list[tuple[str, Findings]]) -> dict[str, Findings]:
    """What was found for each kind of run."""
    total = {kind: Findings() for kind in [*options.kinds, *(kind for kind, _ in done)]}
    for kind, found in done:
        for name in Findings.__dataclass_fields__:
            setattr(total[kind], name, getattr(total[kind], name) + getattr(found, name))
    return total


def import_everything(home: Path, model: str) -> None:
    """Train for a step in this process: what is imported on the way, the forked runs need not import again."""
    from tunesmith.cli.main import main

    home.mkdir()
    settings = {"model_name_or_path": model, **rows_in(home), **COMMON, "max_steps": 1, "output_dir": home / "run"}
    with (home / "log").open("w") as log, redirect_stdout(log), redirect_stderr(log):
        main(["train", *(f"--{name}={value}" for name, value in settings.items())])
    shutil.rmtree(home)


def tell(kind: str, found: Findings, quiet: bool) -> None:
    """One line of a round."""
    if not quiet:
        print(
            f"{kind:<10} {found.kills:>3} kills, {found.runs:>2} runs, {found.in_a_save:>2} in a save, "
            f"{found.before_first_checkpoint:>2} before the first checkpoint, {len(found.differences)} differences",
            flush=True,
        )
        for text in found.differences:
            print(f"  {text}", flush=True)


def main() -> int:
    """Parse, soak, report."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--kills", type=int, default=50, help="how many, over all kinds (50)")
    parser.add_argument("--hours", type=float, default=float(os.environ.get("SOAK_HOURS") or 0), help="time to fill")
    parser.add_argument("--piece", type=float, default=0, help="minutes of those hours that this call takes at most")
    parser.add_argument("--log", type=Path, default=os.environ.get("SOAK_LOG") or None, help="rounds, one line each")
    parser.add_argument("--kinds", nargs="+", choices=list(KINDS), default=list(KINDS))
    parser.add_argument("--model", default="nano-mistral")
    parser.add_argument("--seed", default="0", help="decides when kills come")
    parser.add_argument("--json", dest="quiet", action="store_true", help="print the findings as JSON alone")
    options = parser.parse_args()
    home = Path(tempfile.mkdtemp(prefix="tunesmith-soak-"))
    os.environ["TUNESMITH_CACHE"] = str(home / "cache")
    import_everything(home / "first", options.model)
    total = totals(options, rounds(options, home))
    failed = any(found.differences for found in total.values())
    if not failed:
        shutil.rmtree(home)
    if options.quiet:
        print(json.dumps({kind: asdict(found) for kind, found in total.items()}))
    else:
        kills = sum(found.kills for found in total.values())
        print(
            f"{kills} kills in {sum(found.seconds for found in total.values()) / 60:.0f} minutes: "
            + (f"something differs; see {home}" if failed else "every run ended as if there was none")
        )
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
