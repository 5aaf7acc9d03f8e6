"""Answers of every architecture side by side, on a tiny model of each: those of the definition."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from benchmarks.zoo.models import BY_NAME, build

from plain_generation import plain_greedy, prompts_of_lengths
from tunesmith.evaluate import generate as generating
from tunesmith.evaluate.decoding import Decoding
from tunesmith.evaluate.generate import generate

LENGTHS = (9, 4, 7, 12, 7)
"""Of prompts: four begin side by side, and one comes in while others are under way."""
TOKENS = 3


class Words:
    pad_token_id, bos_token_id, eos_token_id = 3, 1, 2

    def decode(self, token_ids: list[int], **_: Any) -> str:
        return " ".join(map(str, token_ids))


@pytest.mark.parametrize("name", sorted(BY_NAME))
def test_answers_do_not_depend_on_who_is_beside(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the architecture's own code keeps of the rows of a call."""
    torch.manual_seed(1)
    model = build(name).eval()
    prompts = prompts_of_lengths(*LENGTHS)
    free = [plain_greedy(model, prompt, [], TOKENS)[0] for prompt in prompts]
    stop = free[1][0]  # ends one answer at least at once
    expected = [answer[: answer.index(stop)] if stop in answer else answer for answer in free]
    decoding = Decoding(TOKENS, 4, stop_token_ids=[stop])
    assert [answer.token_ids for answer in generate(model, Words(), prompts, decoding)] == expected
    monkeypatch.setattr(generating, "kept_once", lambda _, shared: nullcontext(shared))  # padded, as on other devices
    assert [answer.token_ids for answer in generate(model, Words(), prompts, decoding)] == expected
