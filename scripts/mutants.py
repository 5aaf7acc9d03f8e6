"""Change one thing at a time in a module and see whether its tests notice: ``python scripts/mutants.py [MODULE ...]``.

A mutant that no test notices fails the command, unless docs/decisions/mutants.md lists it with the reason. Tests are
collected once; each mutant is tried in a forked copy of this process, so that it costs what its tests cost.
"""

from __future__ import annotations

import argparse
import ast
import copy
import importlib
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FunctionType, ModuleType

import pytest

ROOT = Path(__file__).parent.parent
LISTED = ROOT / "docs" / "decisions" / "mutants.md"
UNIT = "tests/unit"
TRAINS = "test_random_numbers_of_a_process_that_is_left_none"
TESTS = {
    "config/overrides": [f"{UNIT}/config/test_overrides.py"],
    "config/resolve": [f"{UNIT}/config/{name}.py" for name in ("test_resolve", "test_convert", "test_flat_json")],
    "data/batching": [f"{UNIT}/data/test_batching.py"],
    "data/collate": [f"{UNIT}/data/test_collate.py"],
    "data/masking": [f"{UNIT}/data/test_masking.py", f"{UNIT}/data/test_examples.py"],
    "evaluate/answers": [f"{UNIT}/evaluate/test_answers.py"],
    "evaluate/loss": [f"{UNIT}/evaluate/test_loss.py", f"{UNIT}/evaluate/test_loss_devices.py"],
    "train/checkpoint": [f"{UNIT}/train/test_checkpoint.py"],
    "train/start": [f"{UNIT}/train/test_start.py", "--deselect", f"{UNIT}/train/test_start.py::{TRAINS}"],
}
"""The files of tests that have to notice a change in a module."""
LIMIT = 60
"""Seconds after which a mutant counts as noticed: it does not end."""

COMPARISONS: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In,
}  # fmt: skip
OPERATORS: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.FloorDiv, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult,
    ast.Mod: ast.Mult, ast.BitOr: ast.BitAnd, ast.BitAnd: ast.BitOr,
}  # fmt: skip
NAMES = {
    "min": "max", "max": "min", "any": "all", "all": "any", "sorted": "list", "reversed": "list",
    "startswith": "endswith", "endswith": "startswith", "removeprefix": "removesuffix", "lower": "upper",
    "partition": "rpartition", "rpartition": "partition", "search": "match", "fullmatch": "match",
    "strip": "lstrip", "lstrip": "rstrip", "rstrip": "lstrip", "rglob": "glob", "bisect_left": "bisect_right",
}  # fmt: skip


@dataclass(frozen=True)
class Mutant:
    """One change: where it is, how it reads, and the source with it."""

    name: str
    source: str


def replacements(node: ast.AST) -> Iterator[ast.AST]:
    """What may stand in the place of a node, each different from it in one thing."""
    if isinstance(node, ast.Compare):
        for at, operator in enumerate(node.ops):
            if type(operator) in COMPARISONS:
                yield _with(node, lambda new, at=at, op=operator: new.ops.__setitem__(at, COMPARISONS[type(op)]()))
    elif isinstance(node, ast.BoolOp):
        yield _with(node, lambda new: setattr(new, "op", ast.Or() if isinstance(new.op, ast.And) else ast.And()))
    elif isinstance(node, (ast.BinOp, ast.AugAssign)) and type(node.op) in OPERATORS:
        yield _with(node, lambda new: setattr(new, "op", OPERATORS[type(new.op)]()))
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.Not, ast.USub)):
        yield node.operand
    elif isinstance(node, ast.IfExp):
        yield _with(node, lambda new: (setattr(new, "body", node.orelse), setattr(new, "orelse", node.body)))
    elif isinstance(node, (ast.If, ast.While)):
        yield _with(node, lambda new: setattr(new, "test", ast.UnaryOp(ast.Not(), new.test)))
    elif isinstance(node, ast.Constant):
        yield from _constants(node.value)
    elif isinstance(node, ast.Return) and node.value is not None and ast.unparse(node.value) != "None":
        yield ast.Return(None)
    elif isinstance(node, (ast.Continue, ast.Break)):
        yield ast.Break() if isinstance(node, ast.Continue) else ast.Continue()
    elif isinstance(node, ast.Expr) and isinstance(node.value, (ast.Call, ast.Await)):
        yield ast.Pass()
    elif isinstance(node, ast.Call) and not _is_message(node, "keywords"):
        yield from _calls(node)


def _constants(value: object) -> Iterator[ast.AST]:
    if isinstance(value, bool):
        yield ast.Constant(not value)
    elif isinstance(value, (int, float)):
        yield ast.Constant(value + 1)
    elif isinstance(value, str) and " " not in value:  # words for people have spaces
        yield ast.Constant(f"{value}#")


def _calls(node: ast.Call) -> Iterator[ast.AST]:
    for at in [at for at, keyword in enumerate(node.keywords) if not _is_guard(node, keyword)]:
        yield _with(node, lambda new, at=at: new.keywords.pop(at))
    if isinstance(node.func, ast.Name) and node.func.id in NAMES:
        yield _with(node, lambda new: setattr(new.func, "id", NAMES[new.func.id]))
    elif isinstance(node.func, ast.Attribute) and node.func.attr in NAMES:
        yield _with(node, lambda new: setattr(new.func, "attr", NAMES[new.func.attr]))


def _with(node: ast.AST, change: Callable[..., object]) -> ast.AST:
    new = copy.copy(node)
    for name, value in ast.iter_fields(node):
        setattr(new, name, copy.copy(value))
    change(new)
    return new


def places(tree: ast.Module) -> Iterator[tuple[ast.AST, str, int | None, ast.AST, str]]:
    """Every place that may be changed: its parent, field, index, the node, and the function that it is in.

    Left out: annotations, decorators, docstrings, and the words of messages, which tests should not repeat.
    """

    def walk(node: ast.AST, inside: str) -> Iterator[tuple[ast.AST, str, int | None, ast.AST, str]]:
        for field, value in ast.iter_fields(node):
            if field in ("annotation", "returns", "decorator_list", "type_params", "bases") or _is_message(node, field):
                continue
            for at, child in enumerate(value) if isinstance(value, list) else [(None, value)]:
                if not isinstance(child, ast.AST) or _is_text(child) or _is_guard(node, child):
                    continue
                named = isinstance(child, (ast.FunctionDef, ast.ClassDef))
                name = f"{inside}.{child.name}".lstrip(".") if named else inside
                yield node, field, at, child, name
                yield from walk(child, name)

    return walk(tree, "")


def _is_text(node: ast.AST) -> bool:
    docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    types = isinstance(node, ast.Subscript) and isinstance(node.value, ast.Name) and node.value.id == "Literal"
    return docstring or types or isinstance(node, (ast.Import, ast.ImportFrom, ast.JoinedStr))


def _is_guard(node: ast.AST, child: ast.AST) -> bool:
    """Whether it is ``strict`` of ``zip``, which changes no result but stops at a mistake in the code itself."""
    called = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
    return called == "zip" and isinstance(child, ast.keyword) and child.arg == "strict"


def _is_message(node: ast.AST, field: str) -> bool:
    """Whether a field of a node holds what an error or a notice says."""
    if not isinstance(node, ast.Call) or field not in ("args", "keywords"):
        return False
    called = ast.unparse(node.func)
    return called.endswith(("Error", "Errors", "notify", "overload")) or called == "super().__init__"


def mutants(source: str) -> list[Mutant]:
    """All mutants of a module, in the order of its lines."""
    tree = ast.parse(source)
    found: list[Mutant] = []
    names: Counter[str] = Counter()
    for parent, field, at, node, inside in list(places(tree)):
        for new in replacements(node):
            name = f"{inside or 'module'}: {_short(node)} -> {_short(new)}"
            names[name] += 1
            _put(parent, field, at, new)
            found.append(Mutant(name + (f" ({names[name]})" if names[name] > 1 else ""), ast.unparse(tree)))
            _put(parent, field, at, node)
    return found


def _put(parent: ast.AST, field: str, at: int | None, node: ast.AST) -> None:
    if at is None:
        setattr(parent, field, ast.fix_missing_locations(node))
    else:
        getattr(parent, field)[at] = ast.fix_missing_locations(node)


def _short(node: ast.AST) -> str:
    first = ast.unparse(node).splitlines()[0]
    return first if len(first) <= 90 else f"{first[:87]}..."


def put_in_place(module: ModuleType, source: str) -> None:
    """Give the functions of a loaded module the code of another source, so that whoever imported them runs it."""
    namespace: dict[str, object] = {"__name__": module.__name__, "__file__": module.__file__}
    exec(compile(source, "mutant", "exec"), namespace)
    for name, new in namespace.items():
        old = vars(module).get(name)
        defined = isinstance(new, (type, FunctionType))
        if name.startswith("__") or isinstance(new, ModuleType) or (defined and new.__module__ != module.__name__):
            continue  # imported from elsewhere
        if isinstance(new, type):
            for attribute, member in vars(new).items():
                _replace_code(vars(old).get(attribute), member)
        elif not _replace_code(old, new):
            vars(module)[name] = new


def _replace_code(old: object, new: object) -> bool:
    for part in ("fget", "__func__", "__wrapped__"):
        if hasattr(new, part):
            return _replace_code(getattr(old, part), getattr(new, part))
    if not isinstance(new, FunctionType) or not isinstance(old, FunctionType):
        return False
    old.__code__, old.__defaults__, old.__kwdefaults__ = new.__code__, new.__defaults__, new.__kwdefaults__
    return True


class Trial:
    """A plug-in of pytest that runs the collected tests once as they are, and once for each mutant."""

    def __init__(self, module: str, most: int, seconds: float) -> None:
        self.module, self.most, self.seconds = module, most, seconds
        self.success = False

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        """In the place of the usual loop."""
        if session.testsfailed or not session.items:
            print(f"{self.module}: its tests cannot be collected")
        elif not self.pass_all(session):
            print(f"{self.module}: its tests fail without any change")
        else:
            self.success = self.try_all(session)
        return True

    def pass_all(self, session: pytest.Session) -> bool:
        """Whether every test passes; what they share stays set up for the next time."""
        items = session.items
        for item, following in zip(items, [*items[1:], items[0]], strict=True):
            item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
            if session.testsfailed:
                return False
        return True

    def try_all(self, session: pytest.Session) -> bool:
        """Whether each mutant that was tried is noticed or listed."""
        module = importlib.import_module("tunesmith." + self.module.replace("/", "."))
        whole = mutants(Path(str(module.__file__)).read_text(encoding="utf-8"))
        chosen = random.Random(0).sample(whole, min(self.most, len(whole)))  # in no order, so that time cuts no end off
        began, accepted, counts, left = time.monotonic(), listed(), Counter[str](), 0
        for mutant in chosen:
            if time.monotonic() - began > self.seconds:
                break
            if (self.module, mutant.name) in accepted:
                counts["listed"] += 1
            elif self.noticed(session, module, mutant):
                counts["noticed"] += 1
            else:
                left += 1
                print(f"- `{mutant.name.replace('`', chr(39) * 2)}`: ", flush=True)
        print(
            f"| `{self.module}.py` | {len(whole)} | {sum(counts.values()) + left} | {counts['noticed']} | "
            f"{counts['listed']} | {left} | {time.monotonic() - began:.0f} s",
            flush=True,
        )
        return not left

    def noticed(self, session: pytest.Session, module: ModuleType, mutant: Mutant) -> bool:
        """Whether a test fails with a mutant; in a copy of this process, which ends with it."""
        child = os.fork()
        if child == 0:
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, 1), os.dup2(null, 2)
            passed = False
            try:
                put_in_place(module, mutant.source)
                passed = self.pass_all(session)
            finally:
                os._exit(0 if passed else 1)
        end = time.monotonic() + LIMIT
        while not (ended := os.waitpid(child, os.WNOHANG))[0]:
            time.sleep(0.01)
            if time.monotonic() > end:
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
                return True
        return os.waitstatus_to_exitcode(ended[1]) != 0


def listed() -> set[tuple[str, str]]:
    """The mutants (module, name) that docs/decisions/mutants.md accepts."""
    text = LISTED.read_text(encoding="utf-8") if LISTED.is_file() else ""
    accepted, module = set(), ""
    for line in text.splitlines():
        if heading := re.match(r"### `(.+)\.py`", line):
            module = heading[1]
        elif entry := re.match(r"- `(.+?)`: ", line):
            accepted.add((module, entry[1].replace("''", "`")))
    return accepted


def try_module(module: str, most: int, seconds: float) -> bool:
    """Try the mutants of a module, print those which nothing notices, and a row of the table."""
    trial = Trial(module, most, seconds)
    options = ["-qq", "-n0", "--no-summary", "-p", "no:cacheprovider", "-s", "-m", "not slow"]
    pytest.main([*options, *TESTS[module]], plugins=[trial])
    return trial.success


def main() -> int:
    """Try the modules named, or all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("modules", nargs="*", help=f"of {', '.join(TESTS)}; all without any")
    parser.add_argument("--most", type=int, default=10_000, help="mutants of a module, drawn at random")
    parser.add_argument("--seconds", type=float, default=1e9, help="time for a module, after which the rest is left")
    asked = parser.parse_args()
    os.chdir(ROOT)
    os.environ |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    if not asked.modules:  # a process each, so that no module meets what another one's tests left behind
        command = [sys.executable, __file__, f"--most={asked.most}", f"--seconds={asked.seconds}"]
        return max(subprocess.run([*command, module], check=False).returncode for module in TESTS)
    results = [try_module(module, asked.most, asked.seconds) for module in asked.modules]
    return 0 if all(results) else 1


if __name__ == "__main__":
    sys.exit(main())
