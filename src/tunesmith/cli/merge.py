"""``tunesmith merge``: an adapter folded into its base, as one plain model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tunesmith.cli import early, environment
from tunesmith.cli.arguments import VerbParser, permissions_in
from tunesmith.cli.output import say, say_json, tell
from tunesmith.errors import ModelError
from tunesmith.imports import lean_imports
from tunesmith.model.source import ADAPTER_CONFIG
from tunesmith.report.folder import check_new
from tunesmith.report.record import RECORD


def run(argv: Sequence[str]) -> int:
    """Merge the adapter of a run into the base that it was trained on, or into the original one, and prove it."""
    parser = VerbParser("merge", "Fold an adapter into its base and save one plain model.", takes_settings=False)
    parser.add_argument("run", help="run folder, or adapter folder")
    parser.add_argument("output", help="new folder for the merged model")
    parser.add_argument("--dtype", choices=("bfloat16", "float16", "float32"), default="bfloat16", help="dtype")
    parser.add_argument(
        "--base",
        choices=("trained", "original"),
        default="trained",
        help="trained: the base as it was multiplied with (dequantized); original: the published weights",
    )
    parser.add_argument("--base_model", help="another place of the base model")
    parser.add_argument("--max_shard_size", default="2GB", help="largest weights file, and so the memory it takes")
    parser.add_argument("--data", help="rows for the proof; the run's evaluation rows when left out")
    parser.add_argument("--no_proof", action="store_true", help="do not compare the merged model with the run's")
    parser.add_argument(
        "--gguf",
        metavar="TYPE",
        help="also write OUTPUT/model-TYPE.gguf by llama.cpp's converter (f32, f16, bf16, q8_0 ...)",
    )
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    parser.add_permissions()
    options = parser.parse_all(argv)
    _check_adapter(Path(options.run))
    check_new(Path(options.output))
    early.check_data(options.data)
    environment.prepare()
    from tunesmith.export import gguf
    from tunesmith.report.belongings import check_finished

    check_finished(Path(options.run))
    if options.gguf:
        gguf.find_converter()  # before anything heavy happens
    with lean_imports():
        from tunesmith.evaluate.prompts import questions_for
        from tunesmith.export.merge import merge
    permissions = permissions_in(options)
    merged = merge(
        options.run,
        options.output,
        questions=None
        if options.no_proof
        else questions_for(options.run, data=options.data, base_model=options.base_model, permissions=permissions),
        dtype=options.dtype,
        base=options.base,
        base_model=options.base_model,
        max_shard_size=options.max_shard_size,
        permissions=permissions,
    )
    if options.gguf:
        gguf.convert(merged.path, merged.path / f"model-{options.gguf}.gguf", options.gguf)
    if options.json:
        say_json(asdict(merged) | {"path": str(merged.path)})
        return 0
    if merged.proof is not None:
        for line in describe(merged.proof):
            tell(line)
    say(str(merged.path))
    return 0


def _check_adapter(folder: Path) -> None:
    """Say of a folder without an adapter what it is, before anything is loaded.

    Raises:
        ModelError: there is no folder, nothing to merge, or it is merged already.
    """
    early.check_source_folder(str(folder))
    if (folder / ADAPTER_CONFIG).is_file():
        return
    whole = any(folder.glob("*.safetensors"))
    inner = sorted(
        path.parent for path in folder.glob(f"*/{ADAPTER_CONFIG}") if not path.parent.name.startswith("checkpoint")
    )
    if whole and inner:
        raise ModelError(
            "is merged already: training left the merged model here",
            where=str(folder),
            remedy=f"use it as it is; its adapter alone lies in {inner[0]}",
        )
    if whole:
        raise ModelError("is a whole model, with no adapter to merge", where=str(folder), remedy="use it as it is")
    if inner:
        raise ModelError("holds its adapter in a folder of its own", where=str(folder), remedy=f"merge {inner[0]}")
    if not (folder / RECORD).is_file():  # a run that has not finished says so itself
        raise ModelError(
            "holds no adapter", where=str(folder), remedy=f"name a run, or the folder with {ADAPTER_CONFIG}"
        )


def describe(proof: dict[str, Any]) -> list[str]:
    """A proof in a few lines."""
    tensors, use, noise = proof["tensors"], proof["use"], proof["noise"]
    carried = f", {tensors['carried']} carried along" if tensors["carried"] else ""
    return [
        f"tensors   {tensors['folded']} are base + update (off by {tensors['largest_error']:.3g} units in the last "
        f"place at most), {tensors['kept']} are the base's{carried}",
        f"use       log-probabilities differ by {use['mean_logprob_difference']:.2g} on average over "
        f"{use['num_positions']:,} tokens ({noise['mean_logprob_difference']:.2g} is the model's own noise)",
        f"answers   {use['changed_answers']:.0%} of {use['num_answers']} greedy answers changed "
        f"({noise['changed_answers']:.0%} by noise alone)",
    ]
