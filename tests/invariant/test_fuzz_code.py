"""Python configuration files and chat templates of any kind: only errors of ours come out (see ``test_fuzz.py``).

Both run in child processes, so an example costs more than one of the readers; ``make fuzz`` runs them as well.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from tunesmith import notices
from tunesmith.config.load import load
from tunesmith.config.names import NameTable
from tunesmith.config.schema import DataSection
from tunesmith.data import sandbox
from tunesmith.data.examples import ExampleBuilder
from tunesmith.data.row import Row
from tunesmith.errors import TunesmithError

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "10"))
fuzzed = hypothesis.settings(max_examples=EXAMPLES, deadline=None)


@contextlib.contextmanager
def only_our_errors() -> Iterator[None]:
    notices.clear()
    with contextlib.suppress(TunesmithError):
        yield


# Python files ---------------------------------------------------------------------------------------------------------

NAMES = [*NameTable().names(), "model_id", "num_epochs", "_own", "é", "x.y", "class", "x[0]", "*a, b"]
VALUES = [
    "1", "-1", "1e-4", "float('nan')", "float('inf')", "10**5000", "10**400", "True", "None", "'a'", "'\\0'",
    "'\\ud800'",
    "'a' * 10**7", "b'\\xff'", "[]", "{}", "{1: 2}", "{'a': {'b': [1]}}", "(1, 2)", "{1}", "object()", "lambda: 1",
    "...", "1j", "range(3)", "int", "print('said')", "[[[[[[]]]]]]", "undefined", "1 / 0", "open('/nowhere')", "f'{1}'",
    "type('T', (int,), {})(3)", "type('S', (str,), {})('s')", "type('D', (dict,), {})(a=1)", "iter([1])", "'\\x1b[31m'",
]  # fmt: skip
STATEMENTS = [
    "import os", "import json as training", "from math import *", "from nowhere import *", "from . import own",
    "raise SystemExit(0)", "raise KeyboardInterrupt", "raise Exception('\\ud800')", "raise BaseException",
    "assert False", "exit()", "del __name__", "globals().clear()", "__name__ = 3", "__builtins__ = {}",
    "import sys; sys.stdout = None", "import sys; sys.stderr.write('\\x1b[31m')", "import sys; sys.exit([1])",
    "import json; json.dump = None", "import os; os.close(1)", "import os; os.close(2)", "import os; os._exit(3)",
    "import os; os.kill(os.getpid(), 11)", "import sys; sys.setrecursionlimit(10)", "def f(): return f()\nf()",
    "class training: learning_rate = 1", "for seed in range(3): pass", "if (seed := 5): pass", "with open('/x'): pass",
    "def broken(:", "\tx = 1", "  x = 1", "x = (", "'''", "\x00", "\ufeff", "# coding: utf-16", "# coding: nowhere",
    "return 1", "yield 1", "await x", "nonlocal x", "import threading; threading.Thread(target=input).start()",
]  # fmt: skip
assignments = st.tuples(st.sampled_from(NAMES), st.sampled_from([" = ", ": int = ", " += "]), st.sampled_from(VALUES))
statements = st.one_of(
    assignments.map("".join), st.sampled_from(STATEMENTS), st.text("()[]{}:=,'\"\\\n #ab1", max_size=8)
)
programs = st.lists(statements, max_size=6).map("\n".join)


@fuzzed
@hypothesis.given(program=programs)
def test_python_files(program: str, tmp_path: Path) -> None:
    file = tmp_path / "own.py"
    file.write_bytes(b"model_id = 'nano-mistral'\n" + program.encode("utf-8", "surrogatepass"))
    with only_our_errors():
        load(file, dialect="python")


# chat templates -------------------------------------------------------------------------------------------------------

EXPRESSIONS = [
    "m.content", "m['role']", "messages", "messages[0]", "messages[9]", "messages[-1].content", "bos_token",
    "eos_token",
    "tools", "documents", "add_generation_prompt", "loop.index", "loop.nothing", "'a' * 10**10", "10**10**10",
    "range(10**9)", "range(3) | list", "m | tojson", "m | tojson(indent=2)", "messages | length", "'\\ud800'", "'\\0'",
    "strftime_now('%Y')", "strftime_now(3)", "raise_exception('no')", "raise_exception(3)", "namespace(a=1).a",
    "undefined",
    "undefined.more", "''.__class__", "m.content.format", "'{0.__class__}'.format(m)", "'%s' % m", "m.content | upper",
    "messages | map(attribute='content') | join", "cycler('a').next()", "lipsum()", "self", "self.block()", "caller()",
    "1 / 0", "[] | first", "'%c' % 55296", "'x' | center(10**9)", "dict(a=m)", "joiner()()", "m.content[::-1]", "nan",
    "messages.append(1)", "m.update(role='x')", "'a' | replace('', 'b' * 10**6)", "(m.content * 10**6) | wordwrap(1)",
]  # fmt: skip
TAGS = [
    "for m in messages", "endfor", "if add_generation_prompt", "if m.role == 'user'", "else", "elif", "endif",
    "set x = m", "set x", "endset", "generation", "endgeneration", "macro f(a)", "endmacro", "call f(1)", "endcall",
    "include 'x'", "import 'x' as x", "extends 'x'", "block b", "endblock", "raw", "endraw", "filter upper",
    "endfilter", "break", "continue", "with a = 1", "endwith", "autoescape true", "for a, b in m.items()", "nothing",
    "for i in range(10**9)", "set ns = namespace(a=1)", "set ns.a = m", "set m.role = 1", "for m in messages recursive",
]  # fmt: skip
pieces = st.one_of(
    st.sampled_from(EXPRESSIONS).map("{{{{ {} }}}}".format),
    st.sampled_from(TAGS).map("{{% {} %}}".format),
    st.sampled_from(["<s>", "</s>", "\ud800", "\0", "{{", "}}", "{%", "%}", "{#", "#}", "{{-", "-%}", "\r\n", "user "]),
    st.text(max_size=4),
)
WORKING = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}</s>{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
templates = st.one_of(
    st.lists(pieces, max_size=8).map("".join),
    st.tuples(st.integers(0, len(WORKING)), pieces).map(lambda cut: WORKING[: cut[0]] + cut[1] + WORKING[cut[0] :]),
    st.lists(pieces, max_size=3).map(lambda inner: WORKING.replace("</s>", "".join(inner) + "</s>")),
)
TURNS = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
ROW = {"messages": TURNS * 2}


@pytest.fixture(scope="module")
def characters() -> PreTrainedTokenizerFast:
    """A tokenizer of single characters with a begin and an end token."""
    names = ["<unk>", "<s>", "</s>", *[chr(code) for code in range(32, 122)]]
    backend = Tokenizer(models.WordLevel({name: index for index, name in enumerate(names)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", bos_token="<s>", eos_token="</s>")


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "MAX_SECONDS", 1.0)


@fuzzed
@hypothesis.given(source=templates, loss_on=st.sampled_from(["completion", "last_assistant", "all"]))
def test_chat_templates(source: str, loss_on: Any, tmp_path: Path, characters: Any, impatient: None) -> None:
    file = tmp_path / "own.jinja"
    file.write_bytes(source.encode("utf-8", "surrogatepass"))
    with only_our_errors():
        builder = ExampleBuilder(characters, DataSection(format="messages", template=str(file), loss_on=loss_on))
        builder.example(Row(ROW, "own.jsonl", 1))
        builder.prompt(Row(ROW, "own.jsonl", 1))
