"""Generating answers in a run of several processes.

Where every process holds the whole model, each answers its share of the prompts. Where the weights are spread, one
process cannot generate alone, so all of them answer the same prompts together.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from accelerate.utils import gather_object

from tunesmith.evaluate.decoding import Decoding
from tunesmith.evaluate.generate import Generation, generate
from tunesmith.train.processes import num_processes, rank


def generate_share(
    model: Any, tokenizer: Any, prompts: Sequence[Sequence[int]], decoding: Decoding, *, names: Sequence[str]
) -> list[Generation]:
    """As ``evaluate.generate.generate``, with the prompts divided among the processes; all of them must call this.

    Every process gets all answers. Greedy answers only are independent of the prompts beside them, so sampled ones are
    not divided.
    """
    if num_processes() == 1 or decoding.temperature > 0:
        return generate(model, tokenizer, prompts, decoding, names=names)
    own_share = slice(rank(), None, num_processes())
    own = generate(model, tokenizer, prompts[own_share], decoding, names=names[own_share])
    answers: list[Generation | None] = [None] * len(prompts)
    for first, share in enumerate(gather_object([own])):
        answers[first :: num_processes()] = share
    return [answer for answer in answers if answer is not None]
