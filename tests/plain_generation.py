"""Generation as it is defined, without batch, padding or cache; and prompts for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

KINDS = ("llama", "mistral", "gpt2")


class Words:
    """A tokenizer, as far as generation needs one, of models that have none."""

    pad_token_id, bos_token_id, eos_token_id = 3, 1, 2

    def decode(self, token_ids: list[int], **_: Any) -> str:
        return " ".join(map(str, token_ids))


def load(folder: Path) -> tuple[Any, Any]:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32), AutoTokenizer.from_pretrained(folder)


def prompts_of_lengths(*lengths: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(3)
    return [[1, *torch.randint(4, 90, (length - 1,), generator=generator).tolist()] for length in lengths]


def plain_greedy(model: Any, prompt: list[int], stops: list[int], max_new_tokens: int) -> tuple[list[int], bool]:
    """Greedy decoding without batch, padding or cache: the definition."""
    ids = list(prompt)
    for _ in range(max_new_tokens):
        with torch.no_grad():
            token = int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax())
        if token in stops:
            return ids[len(prompt) :], True
        ids.append(token)
    return ids[len(prompt) :], False


def with_beginning(length: int, *lengths: int) -> list[list[int]]:
    """Prompts of these lengths after ``length`` tokens that they share."""
    beginning, *rest = prompts_of_lengths(length, *(number + 1 for number in lengths))
    return [beginning + prompt[1:] for prompt in rest]


def counted(model: Any) -> list[tuple[int, int]]:
    """The sizes [rows, tokens] of what the model is given from now on."""
    sizes: list[tuple[int, int]] = []
    model.register_forward_pre_hook(
        lambda _, first, named: sizes.append(tuple((first or [named["input_ids"]])[0].shape)), with_kwargs=True
    )
    return sizes
