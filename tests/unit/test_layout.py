"""The layout of the sources: no import circle, no long file or function, no function with a crowd of parameters."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import tunesmith

ROOT = Path(tunesmith.__file__).parent
MAX_FILE_LINES = 450
MAX_FUNCTION_LINES = 60
MAX_PARAMETERS = 8

Function = ast.FunctionDef | ast.AsyncFunctionDef
Graph = dict[str, set[str]]


def sources() -> dict[str, Path]:
    """Dotted name of every module, with its file."""
    found = {}
    for path in sorted(ROOT.rglob("*.py")):
        parts = ("tunesmith", *path.relative_to(ROOT).with_suffix("").parts)
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


SOURCES = sources()
NAMES = sorted(SOURCES)


@cache
def tree_of(name: str) -> ast.Module:
    return ast.parse(SOURCES[name].read_text(encoding="utf-8"))


def imported(tree: ast.AST, modules: set[str]) -> set[str]:
    """The modules that a module imports anywhere, inside functions too, but not for type checkers alone."""
    found: set[str] = set()
    for node in running(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                found.add(whole if whole in modules else node.module)
    return found & modules


def running(tree: ast.AST) -> Iterator[ast.AST]:
    """Every node but those under ``if TYPE_CHECKING``."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            for other in node.orelse:
                yield from running(ast.Module([other], []))
            continue
        yield node
        yield from running(node)


def circles(graph: Graph) -> list[list[str]]:
    """One circle for every module that is on one, each circle once, written as a way back to its first module."""
    found: dict[frozenset[str], list[str]] = {}
    for start in sorted(graph):
        ways = [[start]]
        seen: set[str] = set()
        while ways:
            way = ways.pop(0)
            for after in sorted(graph[way[-1]]):
                if after == start:
                    found.setdefault(frozenset(way), [*way, start])
                    ways = []
                    break
                if after not in seen:
                    seen.add(after)
                    ways.append([*way, after])
    return list(found.values())


def functions(tree: ast.AST, prefix: str = "") -> Iterator[tuple[str, Function]]:
    """Qualified name and node of every function and method, nested ones too."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield prefix + node.name, node
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            yield from functions(node, f"{prefix}{node.name}.")
        elif not isinstance(node, ast.expr):
            yield from functions(node, prefix)


def parameters(function: Function) -> list[str]:
    """Names of the parameters that a caller gives: ``self`` and ``cls`` are not among them."""
    given = function.args
    names = [argument.arg for argument in (*given.posonlyargs, *given.args, *given.kwonlyargs)]
    return names[1:] if names[:1] in (["self"], ["cls"]) else names


def is_public(qualified: str) -> bool:
    return not any(part.startswith("_") for part in qualified.split(".") if part not in ("__init__", "__call__"))


def test_no_module_imports_itself_by_way_of_others() -> None:
    modules = set(SOURCES)
    graph = {name: imported(tree_of(name), modules) - {name} for name in NAMES}
    assert sum(map(len, graph.values())) > 300
    assert [" -> ".join(circle) for circle in circles(graph)] == []


def test_a_circle_is_found_even_through_an_import_inside_a_function() -> None:
    trees = {
        "a": "from b import x\nif TYPE_CHECKING:\n    import d",
        "b": "def f():\n    import c",
        "c": "class K:\n    def m(self):\n        from a import y",
        "d": "import a",
    }
    graph = {name: imported(ast.parse(text), set(trees)) for name, text in trees.items()}
    assert circles(graph) == [["a", "b", "c", "a"]]


def all_functions() -> list[tuple[str, Function]]:
    """Name with module, and node, of every function of every module."""
    return [(f"{name}.{one}", node) for name in NAMES for one, node in functions(tree_of(name))]


def test_no_file_is_long() -> None:
    lengths = {name: len(path.read_text(encoding="utf-8").splitlines()) for name, path in SOURCES.items()}
    assert {name: lines for name, lines in lengths.items() if lines > MAX_FILE_LINES} == {}


def test_functions_are_short() -> None:
    lengths = {name: node.end_lineno - node.lineno + 1 for name, node in all_functions() if node.end_lineno is not None}
    assert len(lengths) > 2000
    assert {name: lines for name, lines in lengths.items() if lines > MAX_FUNCTION_LINES} == {}


def test_public_functions_have_few_parameters() -> None:
    numbers = {name: len(parameters(node)) for name, node in all_functions() if is_public(name)}
    assert len(numbers) > 1000
    assert {name: number for name, number in numbers.items() if number > MAX_PARAMETERS} == {}
