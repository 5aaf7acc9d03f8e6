"""Engines besides sorted batches: transformers' continuous batching, where a finished answer makes room for the next
prompt at once, and vLLM. Both are asked for by name (``generation_engine``) and decode greedily.
"""

from __future__ import annotations

import importlib.util
import math
import tempfile
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from transformers import ContinuousBatchingConfig, PreTrainedModel

from tunesmith.errors import ModelError
from tunesmith.evaluate.decoding import Decoding, Job, device_of, keeps_plain_cache
from tunesmith.model.adapters import base_of
from tunesmith.model.internals import attention_of
from tunesmith.program import named

PAGE = 32
"""Tokens of a page of the cache on CPUs, where the library's own choice would claim most of the memory."""


def check_engine(engine: str, temperature: float) -> None:
    """Refuse an engine that cannot run here, before a model is loaded.

    Raises:
        ModelError: the engine is not installed, or cannot decode in the way that is asked for.
    """
    if engine == "vllm" and importlib.util.find_spec("vllm") is None:
        raise ModelError(
            "generation_engine is vllm, which is not installed",
            remedy='install it (pip install "tunesmith[vllm]") or set generation_engine transformers',
        )
    if engine in ("continuous", "vllm") and temperature > 0:
        raise ModelError(
            f"with generation_engine {engine} a sampled answer would depend on what is generated beside it",
            remedy="set temperature 0, or generation_engine transformers",
        )


def continuous(
    model: PreTrainedModel, jobs: Sequence[Job], decoding: Decoding
) -> Iterator[list[tuple[int, list[int]]]]:
    """Place and new token ids of every job, one by one in the order in which they end.

    Raises:
        ModelError: the model is not made for continuous batching, or the engine has failed.
    """
    base: Any = base_of(model)
    device = device_of(model)
    attention = attention_of(base)
    if not keeps_plain_cache(model) or attention not in ("sdpa", "flash_attention_2"):
        raise ModelError(
            f"{type(base).__name__} with {attention} attention has no continuous batching",
            remedy="set generation_engine transformers",
        )
    if torch.is_autocast_enabled(device.type):
        raise ModelError(
            "continuous batching computes in the format of the weights, and this model in another (mixed precision)",
            remedy="set generation_engine transformers",
        )
    if not jobs:
        return
    longest = max(len(job.prompt) + job.budget for job in jobs)
    # The attention that the model was trained and is evaluated with stays; on CUDA the library knows its memory.
    settings = ContinuousBatchingConfig(auto_switch_to_flash=False, max_requests_per_batch=decoding.rows)
    if device.type == "cpu":
        settings.page_size = PAGE
        settings.num_blocks = decoding.rows * (math.ceil(longest / PAGE) + 1)
        settings.max_batch_tokens = max(longest, decoding.rows)
    with base.continuous_batching_context_manager(
        generation_config=decoding.config(max(job.budget for job in jobs)), continuous_batching_config=settings
    ) as manager:
        for job in jobs:
            manager.add_request(list(job.prompt), request_id=str(job.index), max_new_tokens=job.budget)
        waiting = {job.index for job in jobs}
        while waiting:
            result = manager.get_result(timeout=1)
            if result is None and manager.is_running():
                continue
            if result is None or result.error is not None:
                reason = "its thread has ended" if result is None else result.error
                raise ModelError(
                    f"continuous batching has failed ({reason})", remedy="set generation_engine transformers"
                )
            waiting.remove(int(result.request_id))
            yield [(int(result.request_id), result.generated_tokens)]


def vllm(model: PreTrainedModel, jobs: Sequence[Job], decoding: Decoding) -> Iterator[list[tuple[int, list[int]]]]:
    """Place and new token ids of every job, all at once, from vLLM.

    vLLM opens a folder, so the weights are written to a temporary one: what answers is what is in memory. Meanwhile
    the model leaves its device to vLLM.

    Raises:
        ModelError: the model has an adapter or is quantized.
    """
    if not jobs:
        return
    if base_of(model) is not model or getattr(model, "is_quantized", False):
        raise ModelError(
            "vLLM is given whole weights, and this model has an adapter or is quantized",
            remedy=named(
                "merge it (`tunesmith merge RUN NEW`) and evaluate NEW, or set generation_engine transformers"
            ),
        )
    from vllm import LLM, SamplingParams

    dtype = str(model.dtype).removeprefix("torch.")
    device = device_of(model)
    module: torch.nn.Module = model
    params = [
        SamplingParams(
            temperature=0.0, max_tokens=job.budget, stop_token_ids=decoding.stops, ignore_eos=True, detokenize=False
        )
        for job in jobs
    ]
    with tempfile.TemporaryDirectory(prefix="tunesmith-vllm-") as folder:
        model.save_pretrained(folder)
        module.to("cpu")
        torch.cuda.empty_cache()
        # "vllm": sampling defaults in the folder's generation_config.json are not used
        engine = LLM(model=folder, dtype=dtype, skip_tokenizer_init=True, generation_config="vllm", seed=decoding.seed)
        prompts = [{"prompt_token_ids": list(job.prompt)} for job in jobs]
        outputs = engine.generate(prompts, params, use_tqdm=False)
        del engine
    module.to(device)
    finished = []
    for job, output in zip(jobs, outputs, strict=True):
        answer = output.outputs[0]
        end = decoding.stops[:1] if answer.finish_reason == "stop" else []  # whether or not it is among the tokens
        finished.append((job.index, [*answer.token_ids, *end]))
    yield finished
