"""A prompt is answered in company as it is alone, or has none."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from benchmarks.zoo.models import build

from plain_generation import Words, plain_greedy
from tunesmith import notices
from tunesmith.evaluate.company import Company, company
from tunesmith.evaluate.decoding import Decoding, Job
from tunesmith.evaluate.generate import _batches, generate

DECODING = Decoding(4, 4, stop_token_ids=[2], pad_token_id=3, bos_token_id=1)
ANY, EQUAL_LENGTH, NONE = Company


def prompts_of(*lengths: int) -> list[list[int]]:
    numbers = torch.Generator().manual_seed(3)
    return [torch.randint(4, 90, (length,), generator=numbers).tolist() for length in lengths]


@pytest.mark.parametrize("lengths", [(7, 23), (9, 9), (1, 1)])
@pytest.mark.parametrize(("name", "expected"), [("llama", ANY), ("mamba2", ANY), ("mixtral", ANY), ("rwkv", NONE)])
def test_what_company_moves_is_found(name: str, expected: Company, lengths: tuple[int, int]) -> None:
    with torch.no_grad():
        assert company(build(name).eval(), prompts_of(*lengths), DECODING) is expected


def test_what_padding_alone_moves_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """As of a model that takes every token for a real one."""
    model = build("llama").eval()
    forward = model.forward

    @functools.wraps(forward)
    def blind(*rows: Any, attention_mask: Any = None, position_ids: Any = None, **more: Any) -> Any:
        return forward(*rows, **more)

    monkeypatch.setattr(model, "forward", blind)
    with torch.no_grad():
        assert company(model, prompts_of(7, 23), DECODING) is EQUAL_LENGTH
        assert company(build("llama").eval(), prompts_of(7, 23), DECODING) is ANY


def test_a_model_that_mixes_up_rows_answers_one_by_one(clean_notices: None) -> None:
    """RWKV in transformers 5.23 does, from the second token on, whatever the lengths."""
    model = build("rwkv").eval()
    prompts = prompts_of(9, 9, 9, 5, 5)
    answers = generate(model, Words(), prompts, Decoding(6, 4, stop_token_ids=[2]))
    assert [answer.token_ids for answer in answers] == [plain_greedy(model, prompt, [2], 6)[0] for prompt in prompts]
    told = "RwkvForCausalLM answers otherwise beside others: prompts are generated one by one"
    assert notices.collected() == [told]


def test_prompts_of_equal_length_alone_share_a_batch_without_padding() -> None:
    jobs = [Job(index, [5] * length, 4) for index, length in enumerate((3, 5, 3, 5, 4))]
    sizes = [[len(job.prompt) for job in batch] for batch in _batches(jobs, 4, padded=False)]
    assert sizes == [[5, 5], [4], [3, 3]]
    assert [len(batch) for batch in _batches(jobs, 4)] == [4, 1]
