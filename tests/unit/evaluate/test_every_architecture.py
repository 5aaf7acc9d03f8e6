"""Answers of every architecture side by side, on a tiny model of each: those of the definition."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from benchmarks.zoo.cells import that_ends_some
from benchmarks.zoo.models import BY_NAME, build

from plain_generation import Words, plain_greedy, prompts_of_lengths
from tunesmith.evaluate import generate as generating
from tunesmith.evaluate.decoding import Decoding
from tunesmith.evaluate.generate import generate

LENGTHS = (9, 4, 7, 12, 7)
"""Of prompts: four begin side by side, and one comes in while others are under way."""
TOKENS = 3


@pytest.mark.parametrize("name", sorted(BY_NAME))
def test_answers_do_not_depend_on_who_is_beside(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the architecture's own code keeps of the rows of a call."""
    torch.manual_seed(1)
    model = build(name).eval()
    prompts = prompts_of_lengths(*LENGTHS)
    free = [plain_greedy(model, prompt, [], TOKENS)[0] for prompt in prompts]
    stops = [*that_ends_some(free), 95]
    expected = [answer[: next(at for at, token in enumerate([*answer, 95]) if token in stops)] for answer in free]
    assert max(map(len, expected)) == TOKENS, "what is kept of the rows is read"
    decoding = Decoding(TOKENS, 4, stop_token_ids=stops)
    assert [answer.token_ids for answer in generate(model, Words(), prompts, decoding)] == expected
    monkeypatch.setattr(generating, "kept_once", lambda _, shared: nullcontext(shared))  # padded, as on other devices
    assert [answer.token_ids for answer in generate(model, Words(), prompts, decoding)] == expected
