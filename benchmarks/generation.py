"""Answers to 128 prompts of mixed length: evaluation's own generation against ``model.generate`` prompt by prompt, and
against transformers' continuous batching.

Same model, same prompts, greedy, one thread; all answers must be the same before speed is compared. Loading is not part
of the time.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.prepare import WORDS

OURS, ONE_BY_ONE, CONTINUOUS = "tunesmith", "one by one", "continuous"
MAX_NEW_TOKENS = 48


def compare(
    folder: str | Path, number: int, shared: int, rounds: int, engines: bool, write: Callable[[str], None]
) -> dict[str, Any]:
    """Wall and processor seconds of every side, medians of ``rounds`` in turn.

    Args:
        folder: the model.
        number: prompts, of 5 to about 60 tokens each.
        shared: tokens of a system prompt before each of them.
        engines: also time continuous batching.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from tunesmith.evaluate.decoding import Decoding
    from tunesmith.evaluate.generate import generate

    torch.set_num_threads(1)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    prompts = prompts_of(tokenizer, number, shared)
    stops = [tokenizer.eos_token_id]

    def ours(engine: str) -> list[list[int]]:
        answers = generate(
            model,
            tokenizer,
            prompts,
            Decoding(max_new_tokens=MAX_NEW_TOKENS, stop_token_ids=stops, engine=engine),
        )
        return [answer.token_ids for answer in answers]

    def one_by_one() -> list[list[int]]:
        answers = []
        for prompt in prompts:
            ids = torch.tensor([prompt])
            output = model.generate(
                ids, attention_mask=torch.ones_like(ids), max_new_tokens=MAX_NEW_TOKENS, do_sample=False,
                eos_token_id=stops, pad_token_id=stops[0],
            )  # fmt: skip
            answers.append([token for token in output[0, len(prompt) :].tolist() if token not in stops])
        return answers

    sides = {OURS: lambda: ours("transformers"), ONE_BY_ONE: one_by_one}
    if engines:
        sides[CONTINUOUS] = lambda: ours("continuous")
    wall: dict[str, list[float]] = {name: [] for name in sides}
    processor: dict[str, list[float]] = {name: [] for name in sides}
    answers: dict[str, list[list[int]]] = {}
    for count in range(rounds):
        for name in list(sides) if count % 2 == 0 else list(sides)[::-1]:
            started, cpu_started = time.perf_counter(), time.process_time()
            answers[name] = sides[name]()
            processor[name].append(time.process_time() - cpu_started)
            wall[name].append(time.perf_counter() - started)
            write(f"  {name}: {wall[name][-1]:.2f} s, {processor[name][-1]:.2f} CPU-s")
        different = [name for name in sides if answers[name] != answers[ONE_BY_ONE]]
        if different:
            raise SystemExit(f"not the answers of one by one: {different}")
    return {
        "model": Path(folder).name,
        "prompts": len(prompts),
        "prompt_tokens": sum(map(len, prompts)),
        "new_tokens": sum(map(len, answers[OURS])),
        "shared": shared,
        "seconds": {name: statistics.median(values) for name, values in wall.items()},
        "cpu_seconds": {name: statistics.median(values) for name, values in processor.items()},
    }


def prompts_of(tokenizer: Any, number: int, shared: int) -> list[list[int]]:
    """Prompts of 3 to 40 words, after ``shared`` tokens that all of them begin with."""
    generator = random.Random(0)
    beginning = tokenizer.encode(" ".join(generator.choices(WORDS, k=shared)))[:shared]
    texts = [" ".join(generator.choices(WORDS, k=generator.randint(3, 40))) for _ in range(number)]
    return [beginning + tokenizer.encode(text, add_special_tokens=not shared) for text in texts]


def table(result: dict[str, Any]) -> list[str]:
    """The figures of ``compare`` as lines of Markdown."""
    shared = f", {result['shared']} of each shared" if result["shared"] else ""
    lines = [
        f"| {result['prompts']} prompts of {result['prompt_tokens']:,} tokens{shared}; "
        f"{result['new_tokens']:,} new tokens | s | CPU-s | new tokens a CPU-s | against one by one |",
        "|---|---|---|---|---|",
    ]
    for name, seconds in result["seconds"].items():
        cpu = result["cpu_seconds"][name]
        ratio = result["cpu_seconds"][ONE_BY_ONE] / cpu
        lines.append(f"| {name} | {seconds:.2f} | {cpu:.2f} | {result['new_tokens'] / cpu:,.0f} | {ratio:.2f}x |")
    return lines


def how(result: dict[str, Any], rounds: int) -> str:
    """What the figures are, in words."""
    return (
        f"{result['model']} in float32, greedy, {MAX_NEW_TOKENS} new tokens at most; the same answers of all sides, "
        f"medians of {rounds} turns each, loading not counted. One by one is `model.generate` prompt after prompt, "
        "continuous transformers' continuous batching."
    )
