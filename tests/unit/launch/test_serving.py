"""``serve``: the official client gets over HTTP what ``predict`` writes; vLLM's command is built."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
import uvicorn

from helpers import run_training
from tunesmith.cli.main import main
from tunesmith.data.row import Row
from tunesmith.errors import ModelError
from tunesmith.evaluate.answering import Answerer
from tunesmith.evaluate.manner import Manner
from tunesmith.evaluate.subject import find_subject
from tunesmith.launch import serving
from tunesmith.launch.chat_api import StopCutter
from tunesmith.launch.chat_request import Refused, read_request
from tunesmith.launch.ports import listen

MESSAGES = [{"role": "user", "content": "Where is the dog?"}]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter of a chat with a system message and a template of its own."""
    rows = [{"messages": [*MESSAGES, {"role": "assistant", "content": "In the park."}]}] * 2
    result = run_training(
        tmp_path_factory.mktemp("serve"),
        "nano-mistral",
        rows,
        max_steps=2,
        learning_rate=5e-3,
        template="chatml",
        instruction="Answer kindly.",
        max_new_tokens=12,
        max_duplicates=1.0,
    )
    return Path(result.folder)


@pytest.fixture(scope="module")
def client(run: Path) -> Iterator[openai.OpenAI]:
    """The official client of a server in a thread of this process."""
    from tunesmith.launch.chat_api import make_app

    server = uvicorn.Server(uvicorn.Config(make_app(Answerer(find_subject(run)), "run"), log_level="warning"))
    with listen("127.0.0.1", 0) as listening:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
        thread.start()
        address = f"http://127.0.0.1:{listening.getsockname()[1]}/v1"
        with openai.OpenAI(base_url=address, api_key="none", max_retries=0) as made:
            yield made
        server.should_exit = True
        thread.join(timeout=30)


def _ask(client: openai.OpenAI, **fields: Any) -> Any:
    return client.chat.completions.create(**({"model": "run", "messages": MESSAGES} | fields))


def test_the_client_gets_what_predict_writes(client: openai.OpenAI, run: Path) -> None:
    other = [{"role": "system", "content": "No."}, *MESSAGES]
    rows = [Row({"messages": messages}, "test", 1) for messages in (MESSAGES, other)]
    expected = [answer.text for answer in Answerer(find_subject(run)).answer(rows)]
    served = [_ask(client, messages=messages) for messages in (MESSAGES, other)]
    assert [answer.choices[0].message.content for answer in served] == [text.removeprefix(" ") for text in expected]
    assert expected[0].strip()
    assert served[0].usage.total_tokens == served[0].usage.prompt_tokens + served[0].usage.completion_tokens
    assert served[0].choices[0].finish_reason in ("stop", "length")
    parts = [{"role": "user", "content": [{"type": "text", "text": MESSAGES[0]["content"]}]}]
    assert _ask(client, messages=parts).choices[0].message.content == served[0].choices[0].message.content
    assert _ask(client, max_tokens=1).choices[0].finish_reason == "length"


def test_a_stream_is_the_same_answer_in_pieces(client: openai.OpenAI) -> None:
    whole = _ask(client).choices[0].message.content
    chunks = list(_ask(client, stream=True, stream_options={"include_usage": True}))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == whole
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-2].choices[0].finish_reason in ("stop", "length")
    assert chunks[-1].usage.completion_tokens > 0


def test_stop_texts_are_cut_also_across_pieces(client: openai.OpenAI) -> None:
    whole = _ask(client).choices[0].message.content
    middle = len(whole) // 2
    stop = whole[middle : middle + 3]
    expected = whole[: whole.index(stop)]
    answer = _ask(client, stop=[stop, "never written"])
    assert (answer.choices[0].message.content, answer.choices[0].finish_reason) == (expected, "stop")
    streamed = [chunk.choices[0].delta.content or "" for chunk in _ask(client, stop=stop, stream=True)]
    assert "".join(streamed) == expected


@pytest.mark.parametrize("pieces", [["a sto", "p b"], ["a", " s", "t", "op"], ["a stop b"], ["a st", "art"]])
def test_no_part_of_a_stop_text_is_given_out(pieces: list[str]) -> None:
    cutter = StopCutter(["stop", "toll"])
    given = "".join([*(cutter.add(piece) for piece in pieces if not cutter.ended)])
    assert cutter.ended == ("stop" in "".join(pieces))
    assert given + ("" if cutter.ended else cutter.rest()) == "".join(pieces).partition("stop")[0]


def test_the_model_is_listed(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["run"]
    assert client.models.retrieve("run").owned_by == "tunesmith"


@pytest.mark.parametrize(
    ("fields", "kind", "param", "told"),
    [
        ({"model": "other"}, openai.NotFoundError, "model", "there is no model 'other' here, only 'run'"),
        ({"n": 2}, openai.BadRequestError, "n", "n = 2 is not supported"),
        ({"tools": [{"type": "function"}]}, openai.BadRequestError, "tools", "not supported"),
        ({"logprobs": True}, openai.BadRequestError, "logprobs", "not supported"),
        ({"presence_penalty": 0.5}, openai.BadRequestError, "presence_penalty", "not supported"),
        ({"extra_body": {"best_of": 3}}, openai.BadRequestError, "best_of", "not supported"),
        ({"temperature": -1}, openai.BadRequestError, "temperature", "greater than or equal to 0"),
        ({"temperature": "hot"}, openai.BadRequestError, "temperature", "valid number"),
        ({"max_tokens": 0}, openai.BadRequestError, "max_tokens", "greater than or equal to 1"),
        ({"stop": [""]}, openai.BadRequestError, "stop", "at least 1 character"),
        ({"messages": []}, openai.BadRequestError, "messages", "at least 1 item"),
        ({"messages": [{"role": "user"}]}, openai.BadRequestError, "messages[0].content", "content is a text"),
        ({"messages": [{"role": "nobody", "content": "x"}]}, openai.BadRequestError, "messages", "nobody"),
        ({"messages": [{"role": "user", "content": "x " * 9000}]}, openai.BadRequestError, "messages", "tokens"),
        ({"messages": [{"role": "no"}, {}], "stream": True}, openai.BadRequestError, "messages[0].content", "a text"),
    ],
)  # fmt: skip
def test_what_is_not_done_is_refused_by_name(
    client: openai.OpenAI, fields: dict[str, Any], kind: type[openai.APIStatusError], param: str, told: str
) -> None:
    with pytest.raises(kind, match=re.escape(told)) as caught:
        _ask(client, **fields)
    assert caught.value.param == param
    assert caught.value.type == "invalid_request_error"
    assert set(caught.value.body) == {"message", "type", "param", "code"}


def test_what_asks_for_nothing_is_no_reason_to_refuse(client: openai.OpenAI) -> None:
    neutral = {"n": 1, "presence_penalty": 0.0, "logprobs": False, "user": "me", "response_format": {"type": "text"}}
    assert _ask(client, **neutral, max_tokens=1).choices[0].message.role == "assistant"


def test_other_addresses_and_broken_bodies_are_refused_in_the_same_shape(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        client.embeddings.create(model="run", input="x")
    assert "/v1/chat/completions" in caught.value.message
    with pytest.raises(openai.BadRequestError, match="not valid JSON"):
        client.post("/chat/completions", cast_to=object, content=b"{", options={"headers": {}})


def test_the_verb_serves_until_a_signal_ends_it(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with listen("127.0.0.1", 0) as probe:
        port = probe.getsockname()[1]
    found: list[str] = []

    def use() -> None:
        deadline = time.monotonic() + 120
        with openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none") as client:
            while not found and time.monotonic() < deadline:
                with contextlib.suppress(openai.APIConnectionError):
                    found.extend(model.id for model in client.models.list())
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=use)
    before = signal.getsignal(signal.SIGTERM)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # where the server has not begun, the tests go on
    try:
        thread.start()
        assert main(["serve", str(run), "--port", str(port), "--engine", "transformers"]) == 143
    finally:
        thread.join()
        signal.signal(signal.SIGTERM, before)
    assert found == ["run"]
    assert f"http://127.0.0.1:{port}/v1, model run" in capsys.readouterr().err


def test_a_port_that_is_taken_is_told_before_anything_is_loaded(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(serving, "choose_engine", lambda wanted: pytest.fail("too late"))
    with listen("127.0.0.1", 0) as taken:
        assert main(["serve", "nano-mistral", "--port", str(taken.getsockname()[1])]) == 2
    assert "give another --port" in capsys.readouterr().err
    assert main(["serve", "nano-mistral", "--port", "70000"]) == 2
    assert main(["serve", "nano-mistral", "--host", "no.such.host.invalid"]) == 2
    assert "cannot listen at no.such.host.invalid:8000" in capsys.readouterr().err


def test_questions_of_several_columns_come_as_json() -> None:
    asked = {"role": "user", "content": '{"a": "1", "b": "2"}'}
    request = read_request(json.dumps({"model": "m", "messages": [asked]}).encode())
    assert request.row(Manner("nli", ("a", "b"), keeps=False)) == {"a": "1", "b": "2"}
    assert request.row(Manner("prompt_completion", ("prompt",), keeps=False)) == {"prompt": '{"a": "1", "b": "2"}'}
    with pytest.raises(Refused, match="this model is asked a and c"):
        request.row(Manner("nli", ("a", "c"), keeps=False))
    two = read_request(json.dumps({"model": "m", "messages": MESSAGES * 2}).encode())
    with pytest.raises(Refused, match="one question at a time"):
        two.row(Manner("prompt_completion", ("prompt",), keeps=False))


def test_the_folder_of_an_adapter_is_whole_and_decodes_as_the_contract_says(run: Path) -> None:
    subject = find_subject(run)
    with serving.prepared(subject, "name") as served:
        home = served.folder.parent
        defaults = json.loads((served.folder / "generation_config.json").read_text())
        assert defaults["max_new_tokens"] == 12
        assert defaults["do_sample"] is False
        assert defaults["eos_token_id"] == [2]
        assert "Answer kindly." in (served.folder / "chat_template.jinja").read_text()
        assert list(served.folder.glob("*.safetensors"))
        assert not (served.folder / "adapter_config.json").exists()
        assert any("special token" in loss for loss in served.losses)
        vllm = serving.command(served, "127.0.0.1", 8000)
        assert vllm[:3] == ["vllm", "serve", str(served.folder)]
        assert " ".join(vllm[3:]) == "--served-model-name name --host 127.0.0.1 --port 8000 --dtype float32"
    assert not home.exists()


def test_an_engine_that_is_not_there_is_named_with_its_extra(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(serving, "_installed", lambda name: name not in ("vllm", "uvicorn"))
    with pytest.raises(ModelError, match=r"uvicorn.*tunesmith\[serve\]"):
        serving.choose_engine("auto")
    assert main(["serve", "nano-mistral", "--engine", "vllm", "--port", "0"]) == 4
    assert "tunesmith[vllm]" in capsys.readouterr().err
    monkeypatch.setattr(serving, "_installed", lambda name: True)
    assert serving.choose_engine("auto") == "vllm"


@pytest.mark.parametrize(
    ("name", "request_name"), [("mistralai/Mistral-7B@main", "mistralai-Mistral-7B-main"), ("..", None), ("/", "model")]
)
def test_names_in_requests_are_safe(name: str, request_name: str | None) -> None:
    made = serving.request_name(name)
    assert made == request_name or request_name is None
    assert "/" not in made
    assert "@" not in made
