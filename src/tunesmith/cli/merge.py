"""``tunesmith merge``: an adapter folded into its base, as one plain model."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict

from tunesmith.cli import environment
from tunesmith.cli.arguments import VerbParser


def run(argv: Sequence[str]) -> int:
    """Merge the adapter of a run into the base that it was trained on, or into the original one."""
    parser = VerbParser("merge", "Fold an adapter into its base and save one plain model.", takes_settings=False)
    parser.add_argument("run", help="run folder, or adapter folder")
    parser.add_argument("output", help="new folder for the merged model")
    parser.add_argument("--dtype", choices=("bfloat16", "float16", "float32"), default="bfloat16", help="number format")
    parser.add_argument(
        "--base",
        choices=("trained", "original"),
        default="trained",
        help="trained: the base as it was multiplied with (dequantized); original: the published weights",
    )
    parser.add_argument("--base_model", help="another place of the base model")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    options = parser.parse_all(argv)
    environment.prepare()
    from tunesmith.export.merge import merge

    merged = merge(options.run, options.output, dtype=options.dtype, base=options.base, base_model=options.base_model)
    if options.json:
        print(json.dumps(asdict(merged) | {"path": str(merged.path)}, indent=2))
    else:
        print(merged.path)
    return 0
