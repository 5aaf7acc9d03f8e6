"""How much main memory two processes take together while they load one model, for each strategy.

A model of random weights is made for it, with few words and many weights. Each strategy loads it as training does, in
two processes on the cpu, and ends where training would begin. Looked at every few milliseconds: the proportional set
size (memory that both share counts once), less what it was before. It trains nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

STRATEGIES = ("ddp", "zero3", "fsdp2")
WIDTH, WORDS = 1024, 256
INTERVAL = 0.02
BEFORE, LOADED = "before", "loaded"


def compare(millions: int, dtype: str, strategies: tuple[str, ...], write: Callable[[str], None]) -> dict[str, Any]:
    """Peak memory of both processes in copies of the model, by strategy.

    Args:
        millions: parameters of the model.
        dtype: that of its file; it is loaded in float32, as full fine-tuning does.
        strategies: those to look at.
        write: told of each result.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        parameters = make_model(folder / "model", millions, dtype)
        rows = [{"prompt": f"w{number}", "completion": " w1 w2"} for number in range(8)]
        (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        result: dict[str, Any] = {"parameters": parameters, "dtype": dtype}
        for strategy in strategies:
            peaks = measure(folder, strategy)
            result[strategy] = {kind: peak / (4 * parameters) for kind, peak in peaks.items()}
            write(f"  {strategy}: {result[strategy]['all']:.2f} copies")
    return result


def table(result: dict[str, Any]) -> list[str]:
    """The figures of ``compare`` as lines."""
    lines = [f"{'':8}{'all pages':>12}{'without files':>16}   copies of the model at the peak, two processes"]
    for strategy in STRATEGIES:
        if strategy in result:
            lines.append(f"{strategy:8}{result[strategy]['all']:>12.2f}{result[strategy]['own']:>16.2f}")
    return [*lines, f"{result['parameters']:,} parameters, file in {result['dtype']}, loaded in float32"]


def make_model(folder: Path, millions: int, dtype: str) -> int:
    """A model of random weights with a tokenizer of few words; returns its number of parameters."""
    import torch
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    words = {f"w{number}": number for number in range(WORDS - 1)} | {"</s>": WORDS - 1}
    tokenizer = Tokenizer(WordLevel(words, unk_token="w0"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    layers = -(-millions * 10**6 // (4 * WIDTH**2 + 3 * WIDTH * 4 * WIDTH))
    config = LlamaConfig(
        vocab_size=WORDS, hidden_size=WIDTH, intermediate_size=4 * WIDTH, num_hidden_layers=layers,
        num_attention_heads=8, num_key_value_heads=8, tie_word_embeddings=False, eos_token_id=WORDS - 1,
    )  # fmt: skip
    torch.manual_seed(0)
    config.dtype = dtype
    model = LlamaForCausalLM._from_config(config, dtype=getattr(torch, dtype))
    model.save_pretrained(folder)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>").save_pretrained(folder)
    return int(model.num_parameters())


def measure(folder: Path, strategy: str) -> dict[str, int]:
    """Bytes at the peak of loading in two processes, over what they held before: of all pages, and without those of
    mapped files, which the system takes back when it needs them."""
    marks = folder / strategy
    marks.mkdir()
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    environment = os.environ | {
        "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1", "TUNESMITH_CACHE": str(marks),
    }  # fmt: skip
    log = (marks / "log").open("w+")
    process = subprocess.Popen(
        [*command, "-m", "benchmarks.load", str(folder), strategy], env=environment, stdout=log, stderr=log
    )
    base: dict[str, int] = {}
    peak: dict[str, int] = {}
    while process.poll() is None:
        time.sleep(INTERVAL)
        if len(list(marks.glob(f"{BEFORE}-*"))) < 2 or len(list(marks.glob(f"{LOADED}-*"))) == 2:
            continue
        held = _held([int(path.name.partition("-")[2]) for path in marks.glob(f"{BEFORE}-*")])
        base = base or held
        peak = {kind: max(peak.get(kind, 0), held[kind] - base[kind]) for kind in held}
        if not (marks / "go").exists():
            (marks / "go").touch()
    if process.returncode:
        log.seek(0)
        raise SystemExit(f"{strategy} failed:\n{log.read()[-3000:]}")
    return peak


def _held(processes: list[int]) -> dict[str, int]:
    found = {"all": 0, "own": 0}
    for process in processes:
        try:
            lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()[1:]
        except OSError:  # it is over
            continue
        sizes = {name: int(value.split()[0]) * 1024 for name, value in (line.split(":") for line in lines)}
        found["all"] += sizes["Pss"]
        found["own"] += sizes["Pss"] - sizes["Pss_File"]
    return found


# In the processes of a trial


def _load(folder: Path, strategy: str) -> None:
    """Begin to train, say when loading begins and ends, and go no further."""
    from tunesmith.config.resolve import from_values
    from tunesmith.train import fsdp, run

    marks = folder / strategy
    load_model, hand_out = run.load_model, fsdp.hand_out

    def marked_load(*args: Any, **keywords: Any) -> Any:
        (marks / f"{BEFORE}-{os.getpid()}").touch()
        while not (marks / "go").exists():
            time.sleep(INTERVAL)
        model = load_model(*args, **keywords)
        return model if strategy == "fsdp2" else _end()

    def marked_hand_out(*args: Any, **keywords: Any) -> Any:
        hand_out(*args, **keywords)
        _end()

    def _end() -> None:
        import torch.distributed

        torch.distributed.barrier()
        time.sleep(5 * INTERVAL)
        (marks / f"{LOADED}-{os.getpid()}").touch()
        while len(list(marks.glob(f"{LOADED}-*"))) < 2:
            time.sleep(INTERVAL)
        os._exit(0)

    run.load_model, fsdp.hand_out = marked_load, marked_hand_out
    values = {
        "model.model_name_or_path": str(folder / "model"), "data.train_data": str(folder / "rows.jsonl"),
        "training.output_dir": str(marks / "run"), "training.max_steps": 1, "adapter.use_lora": False,
        "launch.strategy": strategy,
    }  # fmt: skip
    run.train(from_values(values), command=["benchmark"])


def main() -> None:
    """One process of a trial, for ``measure``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("strategy", choices=STRATEGIES)
    options = parser.parse_args()
    _load(options.folder, options.strategy)


if __name__ == "__main__":
    main()
