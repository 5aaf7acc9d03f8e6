"""``tunesmith serve``: a model over HTTP, as OpenAI's API has it, on an engine that is installed."""

from __future__ import annotations

from collections.abc import Sequence

from tunesmith.cli import environment
from tunesmith.cli.arguments import VerbParser, permissions_in
from tunesmith.cli.output import tell


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
    environment.prepare()
    from tunesmith.evaluate.subject import find_subject
    from tunesmith.launch import serving

    engine = serving.choose_engine(options.engine)
    settings = [f"--{path}" for path, given in permissions_in(options).items() if given]
    settings += [f"--base_model={options.base_model}"] if options.base_model else []
    subject = find_subject(options.model, settings)
    with serving.prepared(subject, serving.request_name(options.model)) as served:
        for loss in served.losses:
            tell(f"note: over HTTP, {loss}")
        if engine == "transformers":
            tell(f"note: a request without max_tokens may get up to {serving.LEAST_NEW_TOKENS} tokens or more")
        tell(f"{options.model}: http://{options.host}:{options.port}/v1, model {served.folder.name}, on {engine}")
        return serving.run(serving.command(engine, served, options.host, options.port), served.folder.parent)
