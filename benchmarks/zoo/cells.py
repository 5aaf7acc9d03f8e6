"""What is run on each model of the zoo: one cell of the table each, through tunesmith's own front door.

A cell is ``ok``, with a figure where there is one; a refusal, which is one line of an error of ours; or a crash, which
is anything else and of which there must be none.
"""

from __future__ import annotations

import json
import random
import shutil
import traceback
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.zoo import apart
from benchmarks.zoo.models import import_classes, write

CELLS = ("padded", "unpadded", "packed", "4-bit", "full", "merge", "generation", "reload")
"""Columns of the table, in the order in which they are run."""
AFTER_PADDED = ("merge", "generation", "reload")
"""Cells that go on with the run of the first."""
STEPS = 2


@dataclass(frozen=True, slots=True)
class Cell:
    """What came of one run.

    Attributes:
        state: ``ok``, ``refused`` or ``crash``.
        said: a figure, or the error's line.
        seconds: of a core, imports left out.
        trace: where a crash comes from.
    """

    state: str
    said: str = ""
    seconds: float = 0.0
    trace: str = ""


def rows(number: int = 8, seed: int = 0) -> list[dict[str, str]]:
    """Prompts and completions of unequal lengths in the characters of the zoo's tokenizer."""
    draw = random.Random(seed)
    letters = "abcdefghij "
    return [
        {
            "prompt": "".join(draw.choices(letters, k=draw.randrange(4, 24))) + "?",
            "completion": " " + "".join(draw.choices(letters, k=draw.randrange(3, 12))),
        }
        for _ in range(number)
    ]


def run_kind(name: str, home: Path, cells: tuple[str, ...] = CELLS) -> dict[str, Any]:
    """Run the cells of one architecture, each in a process of its own.

    Args:
        name: its ``model_type``.
        home: folder in which everything is written, and removed afterwards.
        cells: those to run.

    Returns:
        ``cells`` by name, ``coverage``, ``losses`` by run, and ``silent``: adapters that training did not move.
    """
    folder = home / name
    model = folder / "model"
    found: dict[str, Any] = {"cells": {}, "coverage": None, "losses": {}, "silent": None}
    actions: dict[str, Callable[[], str]] = {
        "padded": lambda: _train(folder, model, "padded", found, batching="padded"),
        "unpadded": lambda: _train(folder, model, "unpadded", found, batching="unpadded"),
        "packed": lambda: _train(folder, model, "packed", found, batching="packed"),
        "4-bit": lambda: _train(folder, model, "4-bit", found, load_in_4bit=True),
        "full": lambda: _full(folder, model, found),
        "merge": lambda: _merge(folder),
        "generation": lambda: _generation(folder),
        "reload": lambda: _reload(folder, model),
    }
    import_classes(name)
    built = _apart(lambda: str(write(name, model)), {})
    for cell in cells:
        if built.state != "ok":
            found["cells"][cell] = Cell(built.state, f"cannot be built: {built.said}", trace=built.trace)
        elif cell in AFTER_PADDED and not (folder / "padded" / "adapter_config.json").is_file():
            continue
        else:
            found["cells"][cell] = _apart(actions[cell], found)
    shutil.rmtree(folder, ignore_errors=True)
    found["cells"] = {cell: replace(one, said=one.said.replace(f"{home}/", "")) for cell, one in found["cells"].items()}
    return found


def _apart(action: Callable[[], str], found: dict[str, Any]) -> Cell:
    """One cell in a process of its own; what it adds to ``found`` is added here."""
    try:
        told, seconds = apart.call(partial(_attempt, action, found))
    except apart.Ended as error:
        return Cell("crash", str(error))
    apart.learn(told["modules"])
    found |= {name: value for name, value in told["found"].items() if name in found}
    return Cell(**told["cell"], seconds=round(seconds, 1))


def _attempt(action: Callable[[], str], found: dict[str, Any]) -> dict[str, Any]:
    from tunesmith.errors import TunesmithError

    try:
        cell = {"state": "ok", "said": action()}
    except TunesmithError as error:
        cell = {"state": "refused", "said": error.line()}
    except Exception as error:  # what a user would meet as a traceback
        said = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        cell = {"state": "crash", "said": said, "trace": traceback.format_exc()}
    kept = {name: value for name, value in found.items() if name != "cells"}
    return {"cell": cell, "found": kept, "modules": apart.imported()}


def _train(folder: Path, model: Path, run: str, found: dict[str, Any], **settings: Any) -> str:
    from tunesmith.config.draft import COMMAND_LINE, Draft, Setting
    from tunesmith.config.names import NameTable
    from tunesmith.config.resolve import resolve
    from tunesmith.config.rules import check
    from tunesmith.train.run import train

    data = folder / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows()), encoding="utf-8")
    values = {
        "model_name_or_path": str(model), "train_data": str(data), "output_dir": str(folder / run),
        "target_modules": "all-linear", "lora_r": 4, "lora_dropout": 0.0, "max_steps": STEPS, "logging_steps": 1,
        "save_strategy": "no", "per_device_train_batch_size": 4, "learning_rate": 1e-2, "max_length": 64,
        "cache": False,
    }  # fmt: skip
    names = NameTable()
    written = tuple(
        Setting(name, value, COMMAND_LINE, names.find(name, "zoo")) for name, value in (values | settings).items()
    )
    resolved = resolve(Draft("zoo", written))
    check(resolved)
    train(resolved, command=["zoo"])
    lines = (folder / run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    losses = [entry["loss"] for entry in map(json.loads, lines) if "loss" in entry]
    found["losses"][run] = losses
    if run == "padded":
        found["coverage"] = json.loads((folder / run / "run.json").read_text(encoding="utf-8"))["coverage"]
        found["silent"] = unmoved(folder / run)
    expected = found["losses"].get("padded")
    if run == "unpadded" and expected and abs(losses[0] - expected[0]) > 1e-3:
        raise AssertionError(f"its first loss is {losses[0]:.4f}, and that of padded rows {expected[0]:.4f}")
    return f"{losses[0]:.3f}"


def unmoved(run: Path) -> list[str]:
    """Names of the adapters of a run that are what they were before it: those that no gradient has reached."""
    from tunesmith.model.adapter_file import read_adapter

    tensors = read_adapter(run).tensors
    return [name for name, tensor in tensors.items() if ".lora_B." in f"{name}." and not tensor.any()]


def _full(folder: Path, model: Path, found: dict[str, Any]) -> str:
    said = _train(folder, model, "full", found, use_lora=False, learning_rate=1e-4)
    own = json.loads((model / "config.json").read_text(encoding="utf-8"))
    saved = json.loads((folder / "full" / "config.json").read_text(encoding="utf-8"))
    for name in ("output_router_logits", "router_aux_loss_coef", "use_cache"):
        if own.get(name) != saved.get(name):
            raise AssertionError(f"{name} is saved as {saved.get(name)}, and the base has {own.get(name)}")
    return said


def _merge(folder: Path) -> str:
    from tunesmith.evaluate.prompts import questions_for
    from tunesmith.export import proof
    from tunesmith.export.merge import merge

    reader: Any = proof
    reader.read_in_a_new_process = proof.read_merged  # this process is one that has not trained
    merge(folder / "padded", folder / "merged", dtype="float32", questions=questions_for(folder / "padded"))
    return "proven"


def _generation(folder: Path) -> str:
    """Answers of the run, which end one after the other so that others take their places, against plain ``generate`` of
    the same model, one by one: with and without a beginning in common, read without padding and with it."""
    import contextlib

    from transformers import AutoTokenizer

    import tunesmith.evaluate.generate as generating
    from tunesmith.evaluate.decoding import Decoding
    from tunesmith.model.load import load_for_inference

    model = load_for_inference(folder / "padded").model
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    own = [tokenizer(row["prompt"])["input_ids"] for row in rows(10, seed=1)]
    beginning = tokenizer(rows(1, seed=2)[0]["prompt"])["input_ids"][:20]
    put_once = generating.kept_once
    for prompts in (own, [beginning + prompt for prompt in own]):
        free = [_plain(model, prompt) for prompt in prompts]
        stops = [2, *that_ends_some(free)]
        expected = [answer[: next(at for at, token in enumerate([*answer, 2]) if token in stops)] for answer in free]
        for way in (put_once, lambda _, shared: contextlib.nullcontext(shared)):
            generating.kept_once = way
            answers = generating.generate(model, tokenizer, prompts, Decoding(6, 4, stop_token_ids=stops))
            if [answer.token_ids for answer in answers] != expected:
                raise AssertionError(f"{[answer.token_ids for answer in answers]} are not the library's {expected}")
    return f"4 x {len(own)} equal"


def that_ends_some(answers: list[list[int]]) -> list[int]:
    """The token that as near as can be half of the answers have, if there is one that some have not."""
    having = {token: sum(token in answer for answer in answers) for answer in answers for token in answer}
    some = [token for token, number in having.items() if number < len(answers)]
    return sorted(some, key=lambda token: abs(2 * having[token] - len(answers)))[:1]


def _plain(model: Any, prompt: list[int]) -> list[int]:
    """The library's own answer of 6 tokens, or fewer where it ends."""
    import torch

    ids = torch.tensor([prompt])
    found = model.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=6, do_sample=False, eos_token_id=2,
        pad_token_id=3,
    )  # fmt: skip
    answer: list[int] = found[0, len(prompt) :].tolist()
    return answer


def _reload(folder: Path, model: Path) -> str:
    """The adapter in plain PEFT, against ours: the same logits."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    from tunesmith.errors import ModelError
    from tunesmith.model.adapter_file import read_adapter
    from tunesmith.model.internals import names_that_peft_loses
    from tunesmith.model.load import load_for_inference

    ids = torch.arange(4, 28)[None]
    ours = load_for_inference(folder / "padded").model
    base = AutoModelForCausalLM.from_pretrained(model)
    plain = PeftModel.from_pretrained(base, str(folder / "padded")).eval()
    with torch.no_grad():
        without = AutoModelForCausalLM.from_pretrained(model).eval()(input_ids=ids).logits
        first, second = ours(input_ids=ids).logits, plain(input_ids=ids).logits
    distance, learned = float((first - second).abs().max()), float((first - without).abs().max())
    if distance > 1e-4 * max(1.0, float(first.abs().max())) or learned == 0:
        lost = names_that_peft_loses(plain, read_adapter(folder / "padded").tensors)
        if lost:
            raise ModelError(f"plain PEFT loses {len(lost)} tensors of this adapter, as it does of its own")
        raise AssertionError(f"plain PEFT differs by {distance:.2g} (the adapter by {learned:.2g})")
    return f"{distance:.0e}"
