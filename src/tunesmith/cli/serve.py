"""``tunesmith serve``: a model over HTTP, as OpenAI's API has it, on an engine that is installed."""

from __future__ import annotations

import socket
from argparse import Namespace
from collections.abc import Sequence

from tunesmith.cli import environment
from tunesmith.cli.arguments import VerbParser, permissions_in
from tunesmith.cli.output import tell
from tunesmith.imports import lean_imports
from tunesmith.launch import serving
from tunesmith.launch.ports import listen


def run(argv: Sequence[str]) -> int:
    """Serve any model until a signal ends it."""
    parser = VerbParser(
        "serve", "Serve a model over HTTP, as OpenAI's chat API does, with vLLM or transformers.", takes_settings=False
    )
    parser.add_argument("model", help="run folder, checkpoint, adapter, model folder, hub name or nano-mistral")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (127.0.0.1: this machine only)")
    parser.add_argument("--port", type=int, default=8000, help="port to listen on (8000)")
    parser.add_argument(
        "--engine", choices=("auto", "transformers", "vllm"), default="auto", help="auto: vLLM where it is installed"
    )
    parser.add_argument("--base_model", help="another place of an adapter's base model")
    parser.add_permissions()
    options = parser.parse_all(argv)
    settings = [f"--{path}" for path, given in permissions_in(options).items() if given]
    settings += [f"--base_model={options.base_model}"] if options.base_model else []
    with listen(options.host, options.port) as listening:  # before anything heavy is loaded
        engine = serving.choose_engine(options.engine)
        environment.prepare()
        if engine == "transformers":
            return _serve_here(options.model, settings, listening)
    return _serve_by_vllm(options, settings)


def _serve_here(name: str, settings: Sequence[str], listening: socket.socket) -> int:
    from tunesmith.evaluate.answering import Answerer
    from tunesmith.evaluate.subject import find_subject
    from tunesmith.launch.chat_api import make_app

    answerer = Answerer(find_subject(name, settings))
    answerer.inference  # noqa: B018 - the first request need not wait for it
    model = serving.request_name(name)
    host, port = listening.getsockname()[:2]
    tell(f"{name}: http://{f'[{host}]' if ':' in host else host}:{port}/v1, model {model}, one answer at a time")
    return serving.answer_over_http(make_app(answerer, model), listening)


def _serve_by_vllm(options: Namespace, settings: Sequence[str]) -> int:
    with lean_imports():
        from tunesmith.evaluate.subject import find_subject

    subject = find_subject(options.model, settings)
    with serving.prepared(subject, serving.request_name(options.model)) as served:
        for loss in served.losses:
            tell(f"note: over HTTP, {loss}")
        tell(f"{options.model}: http://{options.host}:{options.port}/v1, model {served.folder.name}, on vLLM")
        return serving.run(serving.command(served, options.host, options.port), served.folder.parent)
