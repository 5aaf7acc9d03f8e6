"""What a chat template from outside may not do, and how soon it is stopped."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from tunesmith.config.schema import DataSection
from tunesmith.data import sandbox
from tunesmith.data.jinja_engine import MAX_RENDERED_CHARACTERS
from tunesmith.data.templates import choose_renderer
from tunesmith.errors import ModelError

TURNS = [{"role": "user", "content": "hé"}, {"role": "assistant", "content": "b"}]

EVIL = {
    "ten gigabytes": ("{{ 'a' * 10**10 }}", "bytes of memory"),
    "a long loop": ("{% for i in range(10**9) %}{% endfor %}", "MAX_RANGE"),
    "doubling": (
        "{% set n = namespace(x='a') %}{% for i in range(60) %}{% set n.x = n.x ~ n.x %}{% endfor %}",
        "bytes of memory",
    ),
    "a wide number": ("{{ '%9999999999d' % 1 }}", "bytes of memory"),
    "much text": ("{{ 'a' * (17 * 2**20) }}", f"more than {MAX_RENDERED_CHARACTERS} characters"),
    "classes": ("{{ ''.__class__.__mro__ }}", "unsafe"),
    "globals": ("{{ cycler.__init__.__globals__ }}", "unsafe"),
    "changing messages": ("{{ messages.append(1) }}", "unsafe"),
    "hidden names": ("{% set n = namespace(__class__=1) %}", "underscore"),
    "an exception": ("{{ raise_exception('no system message') }}", "no system message"),
}


def render(source: str, *, ours: bool = False) -> list[str]:
    return sandbox.render(source, {"eos_token": "</s>"}, TURNS, [], [(2, False), (1, True)], ours=ours)


def request(
    source: str, *cuts: tuple[int, bool], ours: bool = False, turns: Any = TURNS, **switches: Any
) -> sandbox.Request:
    return sandbox.Request(sandbox.Frame(source, {}, ours, None), switches, turns, [], cuts)


@pytest.mark.parametrize("name", EVIL)
def test_a_template_that_asks_for_too_much_is_stopped(name: str) -> None:
    source, words = EVIL[name]
    with pytest.raises(sandbox.TemplateRefusal, match=words):
        render(source)
    assert render("{{ messages[0].content }}") == ["hé", "hé"]


def test_a_template_that_does_not_end_is_stopped_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    assert sandbox.MAX_SECONDS <= 10
    monkeypatch.setattr(sandbox, "MAX_SECONDS", 1.5)
    loops = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
    with pytest.raises(sandbox.TemplateRefusal, match=r"longer than 1\.5 s"):
        render(loops)
    assert render("{{ eos_token }}") == ["</s>", "</s>"]


def test_the_child_sees_no_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_sentinel")
    child = sandbox.Child()
    try:
        assert child.render_all([request("{{ 1 + 1 }}", (1, False))]) == [("2", [])]
        assert child._process is not None
        environment = Path(f"/proc/{child._process.pid}/environ")
        if environment.exists():
            assert b"sentinel" not in environment.read_bytes()
    finally:
        child.stop()


def test_ours_and_others_render_alike() -> None:
    source = (
        "{%- for m in messages %}\n    {{ m.content | tojson }}{% generation %}[{{ m.role }}]{% endgeneration %}\n"
        "{% if loop.last %}{% break %}{% endif %}{% endfor %}{{ add_generation_prompt }}{{ strftime_now('%Y') }}"
    )
    assert render(source) == render(source, ours=True)
    assert '"hé"' in render(source)[0]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
def test_a_forked_process_gets_a_child_of_its_own() -> None:
    assert render("{{ messages | length }}") == ["2", "1"]
    options, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        text = "".join(render("{{ messages[0].content }}!"))
        os.write(writing, text.encode())
        sandbox._child().stop()
        os._exit(0)
    os.waitpid(pid, 0)
    assert os.read(options, 100).decode() == "hé!hé!"
    assert render("{{ messages | length }}") == ["2", "1"]


def test_an_evil_template_of_a_tokenizer_is_a_model_error_before_any_row(
    stories_tokenizer: Any, tmp_path: Path
) -> None:
    path = tmp_path / "evil.jinja"
    path.write_text("{{ 'a' * 10**10 }}{{ messages[0].content }}")
    with pytest.raises(ModelError, match="bytes of memory"):
        choose_renderer(stories_tokenizer, DataSection(template=str(path)), "messages")


@pytest.mark.parametrize("ours", [True, False])
def test_texts_are_told_by_where_they_differ(ours: bool) -> None:
    source = (
        "{% for m in messages %}[{{ m.content }}{{ '!' if loop.last else '|' }}{% endfor %}{{ '?' if not messages }}"
    )
    cuts = [(2, False), (1, False), (2, True), (0, False)]
    whole, others = sandbox.render_shared(request(source, *cuts, ours=ours))
    assert (whole, others) == ("[hé|[b!", [(3, "!"), (7, ""), (0, "?")])
    assert sandbox.render(source, {}, TURNS, [], cuts, ours=ours) == ["[hé|[b!", "[hé!", "[hé|[b!", "?"]


def test_what_is_handed_over_grows_with_the_turns_and_not_with_their_square() -> None:
    """400 turns of 6,000 characters have 480 MB of texts up to each answer, and 2.4 MB of text."""
    turns = [{"role": "user", "content": f"{number} " + "word " * 1200} for number in range(400)]
    source = "{% for m in messages %}<{{ m.content }}>{% endfor %}"
    cuts = [(400, False), *((number, False) for number in range(1, 400))]
    whole, others = sandbox.render_shared(request(source, *cuts, turns=turns))
    assert len(whole) == sum(len(turn["content"]) + 2 for turn in turns)
    assert {rest for _, rest in others} == {""}
    assert [same for same, _ in others][:2] == [len(turns[0]["content"]) + 2, 2 * len(turns[0]["content"]) + 4]


def test_many_conversations_are_rendered_as_each_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where some are refused, are many, are long, or come with more templates than are kept."""
    plain, picky = "{{ n }}{{ messages[0].content }}", "{{ n if n % 3 else raise_exception('not ' ~ n) }}"
    asked = [request(plain + "{#" + str(n % 20) + "#}", (1, False), ours=n % 5 == 0, n=n) for n in range(90)]
    asked += [request(picky, (1, False), ours=n % 2 == 0, n=n) for n in range(9)]
    asked += [request("{{ messages[0].content * n }}", (1, False), n=n * 10**6) for n in range(4)]
    asked += [request(plain, (1, False), turns=[{"role": "user", "content": "x" * 10**6}], n=n) for n in range(3)]
    alone = [sandbox.render_all([one])[0] for one in asked]
    assert list(map(repr, sandbox.render_all(asked))) == list(map(repr, alone))
    assert sum(isinstance(found, sandbox.TemplateRefusal) for found in alone) == 3
    questions = 0

    class Counting(sandbox.Child):
        def _ask(self, *arguments: Any) -> Any:
            nonlocal questions
            questions += 1
            return super()._ask(*arguments)

    monkeypatch.setattr(sandbox, "_the_child", Counting())
    short = [request(plain, (1, False), n=n) for n in range(96)]
    assert [text for text, _ in sandbox.render_all(short)] == [f"{n}hé" for n in range(96)]  # type: ignore[misc]
    sandbox._child().stop()
    assert questions <= 6


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("{% for i in range(n) %}{% for j in range(99999) %}{% endfor %}{% endfor %}ok", r"longer than 1\.5 s"),
        ("{{ 'a' * (10**10 if n else 1) }}", "bytes of memory"),
    ],
)
def test_of_many_conversations_the_one_that_asks_for_too_much_is_named(
    monkeypatch: pytest.MonkeyPatch, source: str, words: str
) -> None:
    if "longer" in words:
        monkeypatch.setattr(sandbox, "MAX_SECONDS", 1.5)
    found = sandbox.render_all([request(source, (1, False), n=99999 if n == 5 else 0) for n in range(9)])
    assert [number for number, one in enumerate(found) if isinstance(one, sandbox.TemplateRefusal)] == [5]
    with pytest.raises(sandbox.TemplateRefusal, match=words):
        raise found[5]  # type: ignore[misc]
