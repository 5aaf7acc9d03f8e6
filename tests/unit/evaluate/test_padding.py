"""A padded prompt answers as it does alone, or does not share a batch."""

from __future__ import annotations

import pytest
import torch
from benchmarks.zoo.models import build

from tunesmith.evaluate.decoding import Decoding, Job
from tunesmith.evaluate.generate import _batches
from tunesmith.evaluate.padding import takes_padding

DECODING = Decoding(4, 4, stop_token_ids=[2], pad_token_id=3, bos_token_id=1)


@pytest.mark.parametrize(("name", "expected"), [("llama", True), ("mamba2", True), ("mixtral", True), ("rwkv", False)])
def test_what_padding_moves_is_found(name: str, expected: bool) -> None:
    numbers = torch.Generator().manual_seed(3)
    prompts = [torch.randint(4, 90, (length,), generator=numbers).tolist() for length in (7, 23)]
    with torch.no_grad():
        assert takes_padding(build(name).eval(), prompts, DECODING) is expected


def test_prompts_of_equal_length_alone_share_a_batch_without_padding() -> None:
    jobs = [Job(index, [5] * length, 4) for index, length in enumerate((3, 5, 3, 5, 4))]
    sizes = [[len(job.prompt) for job in batch] for batch in _batches(jobs, 4, padded=False)]
    assert sizes == [[5, 5], [4], [3, 3]]
    assert [len(batch) for batch in _batches(jobs, 4)] == [4, 1]
