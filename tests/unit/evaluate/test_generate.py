"""Generation: batched equals one by one, stops where it should, and leaves everything as it was."""

from __future__ import annotations

import contextlib
import random
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import hypothesis
import numpy as np
import pytest
import torch
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from transformers import (
    CONFIG_MAPPING,
    AutoModelForCausalLM,
    AutoModelForMultimodalLM,
    AutoTokenizer,
    GenerationConfig,
)

from plain_generation import KINDS, counted, load, plain_greedy, prompts_of_lengths, with_beginning
from tunesmith import notices
from tunesmith.errors import DataError, ModelError
from tunesmith.evaluate import generate as generating
from tunesmith.evaluate.company import company
from tunesmith.evaluate.decoding import Decoding
from tunesmith.evaluate.generate import default_stop_token_ids, generate
from vision_models import VISION


@pytest.mark.parametrize("kind", KINDS)
def test_batched_answers_equal_those_one_by_one(models_folder: Path, kind: str) -> None:
    model, tokenizer = load(models_folder / kind)
    model.eval()
    prompts = prompts_of_lengths(3, 17, 1, 9, 30, 9, 2)
    frequent = plain_greedy(model, prompts[0], [], 12)[0][5]
    stops = [tokenizer.eos_token_id, frequent]
    expected = [plain_greedy(model, prompt, stops, 12) for prompt in prompts]
    for batch_size in (1, 3, 16):
        answers = generate(
            model, tokenizer, prompts, Decoding(max_new_tokens=12, batch_size=batch_size, stop_token_ids=stops)
        )
        assert [(answer.token_ids, answer.stopped) for answer in answers] == expected
    assert {stopped for _, stopped in expected} >= {True}


def test_story_model_writes_the_same_stories_side_by_side(stories: tuple[Any, Any]) -> None:
    model, tokenizer = stories
    openings = [
        "",
        "Once upon a time, there was a cat",
        "Tom",
        "Lily and her mom went to the big park. They",
        "One day",
    ]
    prompts = [[1, *tokenizer.encode(opening, add_special_tokens=False)] for opening in openings]
    alone = [generate(model, tokenizer, [prompt], Decoding(max_new_tokens=40, batch_size=1))[0] for prompt in prompts]
    assert generate(model, tokenizer, prompts, Decoding(max_new_tokens=40, batch_size=5)) == alone
    assert alone[0].text.startswith("Once upon a time, there was a little girl named Lily")
    assert not alone[0].stopped
    assert len(alone[0].token_ids) == 40
    for prompt, answer in zip(prompts, alone, strict=True):
        assert answer.token_ids == plain_greedy(model, prompt, [2], 40)[0]


def test_the_models_own_sampling_settings_are_not_used(models_folder: Path) -> None:
    model, tokenizer = load(models_folder / "mistral")
    prompts = prompts_of_lengths(5, 8)
    plain = generate(model, tokenizer, prompts, Decoding(max_new_tokens=20, batch_size=2))
    own = GenerationConfig(do_sample=True, temperature=3.0, repetition_penalty=4.0, no_repeat_ngram_size=1, top_k=3)
    model.generation_config = own
    assert generate(model, tokenizer, prompts, Decoding(max_new_tokens=20, batch_size=2)) == plain
    assert model.generation_config is own


def test_stop_tokens_are_the_tokenizers_and_the_models(models_folder: Path) -> None:
    model, tokenizer = load(models_folder / "mistral")
    prompt = prompts_of_lengths(6)
    free = generate(model, tokenizer, prompt, Decoding(max_new_tokens=10, batch_size=1))[0]
    assert not free.stopped
    model.generation_config.eos_token_id = [2, free.token_ids[4]]
    assert default_stop_token_ids(model, tokenizer) == [2, free.token_ids[4]]
    stopped = generate(model, tokenizer, prompt, Decoding(max_new_tokens=10, batch_size=1))[0]
    assert stopped.stopped
    assert stopped.token_ids == free.token_ids[: free.token_ids.index(free.token_ids[4])]
    assert stopped.text == tokenizer.decode(stopped.token_ids, skip_special_tokens=True)


def test_without_any_stop_token_it_is_an_error(models_folder: Path) -> None:
    model, tokenizer = load(models_folder / "mistral")
    model.generation_config.eos_token_id = None
    tokenizer.eos_token = None
    with pytest.raises(ModelError, match="no end token"):
        generate(model, tokenizer, [[1]], Decoding(max_new_tokens=4, batch_size=1))


def test_progress_counts_every_prompt_once(models_folder: Path) -> None:
    model, tokenizer = load(models_folder / "llama")
    told: list[tuple[int, int]] = []
    generate(
        model,
        tokenizer,
        prompts_of_lengths(3, 4, 5, 6, 7),
        Decoding(max_new_tokens=2, batch_size=2),
        on_progress=lambda done, total: told.append((done, total)),
    )
    assert told == [(2, 5), (4, 5), (5, 5)]


def test_sampling_depends_on_the_seed_alone(models_folder: Path) -> None:
    model, tokenizer = load(models_folder / "llama")

    def sample(seed: int, **more: float) -> list[list[int]]:
        answers = generate(
            model,
            tokenizer,
            prompts_of_lengths(4, 9),
            Decoding(max_new_tokens=20, batch_size=2, temperature=1.0, seed=seed, **more),
        )
        return [answer.token_ids for answer in answers]

    first = sample(0)
    torch.rand(7)
    assert sample(0) == first
    assert sample(1) != first
    greedy = generate(model, tokenizer, prompts_of_lengths(4, 9), Decoding(max_new_tokens=20, batch_size=2))
    assert sample(5, top_p=1e-6) == [answer.token_ids for answer in greedy]


@pytest.mark.parametrize("adapter", [False, True])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_generating_changes_nothing(models_folder: Path, adapter: bool, temperature: float) -> None:
    model, tokenizer = load(models_folder / "mistral")
    if adapter:
        model = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"], lora_dropout=0.5))
        model.enable_input_require_grads()
    base = model.get_base_model() if adapter else model
    base.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
    base.config.use_cache = False
    model.train()
    base.model.norm.eval()
    modes = [module.training for module in model.modules()]
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    own = base.generation_config
    config = base.config.to_dict()
    attributes = set(vars(model)) | set(vars(base))
    torch.manual_seed(11)
    random.seed(11)
    np.random.seed(11)
    states = (torch.get_rng_state().clone(), random.getstate(), np.random.get_state()[1].copy())

    first = generate(
        model, tokenizer, prompts_of_lengths(4, 9), Decoding(max_new_tokens=6, batch_size=2, temperature=temperature)
    )

    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert np.array_equal(np.random.get_state()[1], states[2])
    assert [module.training for module in model.modules()] == modes
    assert len(set(modes)) == 2
    assert base.is_activation_checkpointing
    assert base.generation_config is own
    assert base.config.to_dict() == config
    assert set(vars(model)) | set(vars(base)) == attributes
    after = model.state_dict()
    assert after.keys() == weights.keys()
    assert all(torch.equal(after[name], tensor) for name, tensor in weights.items())
    model.eval()
    base.activation_checkpointing_disable()
    again = generate(
        model, tokenizer, prompts_of_lengths(4, 9), Decoding(max_new_tokens=6, batch_size=2, temperature=temperature)
    )
    assert again == first  # neither dropout nor checkpointing had a part in it


def test_modes_and_random_numbers_are_restored_after_an_error(models_folder: Path) -> None:
    model, tokenizer = load(models_folder / "mistral")
    model.train()
    state = torch.get_rng_state().clone()
    with pytest.raises(RuntimeError, match="broken"):
        generate(model, tokenizer, [[1, 5]], Decoding(max_new_tokens=2, batch_size=1), on_progress=_break)
    assert model.training
    assert torch.equal(torch.get_rng_state(), state)


def _break(done: int, total: int) -> None:
    raise RuntimeError("broken")


def test_answers_end_where_the_positions_end(models_folder: Path, clean_notices: None) -> None:
    model, tokenizer = load(models_folder / "gpt2")
    prompts = prompts_of_lengths(10, 60, 63, 60, 40, 62)
    answers = generate(model, tokenizer, prompts, Decoding(max_new_tokens=20, batch_size=6, stop_token_ids=[95]))
    assert [len(answer.token_ids) for answer in answers] == [20, 4, 1, 4, 20, 2]
    assert len(notices.collected()) == 1
    assert "4 of 6 answers" in notices.collected()[0]
    for batch_size in (1, 3, 4):
        decoding = Decoding(max_new_tokens=20, batch_size=batch_size, stop_token_ids=[95])
        assert generate(model, tokenizer, prompts, decoding) == answers


@pytest.mark.parametrize("length", [64, 65])
def test_a_prompt_without_room_for_an_answer_is_named(models_folder: Path, length: int) -> None:
    model, tokenizer = load(models_folder / "llama")
    with pytest.raises(DataError, match=rf"rows\.jsonl:7.*{length} tokens.*64 positions"):
        generate(
            model,
            tokenizer,
            prompts_of_lengths(3, length),
            Decoding(max_new_tokens=2, batch_size=2),
            names=["rows.jsonl:6", "rows.jsonl:7"],
        )
    with pytest.raises(DataError, match="prompt 2: the prompt is empty"):
        generate(model, tokenizer, [[1], []], Decoding(max_new_tokens=2, batch_size=2))


def test_nothing_is_printed(models_folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    model, tokenizer = load(models_folder / "llama")
    capfd.readouterr()
    generate(model, tokenizer, prompts_of_lengths(3, 5), Decoding(max_new_tokens=3, batch_size=2))
    generate(
        model, tokenizer, prompts_of_lengths(3, 5), Decoding(max_new_tokens=3, batch_size=2, temperature=0.7, top_p=0.9)
    )
    assert capfd.readouterr() == ("", "")


def test_rows_that_have_ended_are_let_go(models_folder: Path) -> None:
    model, tokenizer = load(models_folder / "mistral")
    model.eval()
    prompts = prompts_of_lengths(*range(3, 11))
    free = [plain_greedy(model, prompt, [], 30)[0] for prompt in prompts]
    stops = max(([token] for token in range(96)), key=lambda stop: sum(stop[0] in answer[:10] for answer in free))
    expected = [plain_greedy(model, prompt, stops, 30) for prompt in prompts]
    decoding = Decoding(max_new_tokens=30, batch_size=8, stop_token_ids=stops)
    company(model, prompts, decoding)  # the proof generates as well, once for a model
    sizes = counted(model)
    answers = generate(model, tokenizer, prompts, decoding)
    assert [(answer.token_ids, answer.stopped) for answer in answers] == expected
    sizes = sizes[sizes.index((1, sum(map(len, prompts)) - len(prompts))) + 1 :]  # behind that over all prompts
    passes = [len(ids) + stopped for ids, stopped in expected]  # that each answer takes
    assert len(sizes) == max(passes)
    for number, (rows, _) in enumerate(sizes):
        going = sum(needed > number for needed in passes)
        assert going <= rows < 2 * going
    assert sizes[-1][0] < 8


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("kind", sorted(VISION))
def test_rows_come_and_go_in_models_that_read_images(
    models_folder: Path, kind: str, padded: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some keep something of every row in attributes of their own, beside the cache."""
    if padded:  # as on other devices
        monkeypatch.setattr(generating, "kept_once", lambda model, shared: contextlib.nullcontext(shared))
    torch.manual_seed(7)
    model = AutoModelForMultimodalLM.from_config(CONFIG_MAPPING[kind](**VISION[kind])).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(8 if weight.dim() > 1 else 1)  # or they would all say the same
    prompts = prompts_of_lengths(14, 12, 11, 9, 9, 8, 7, 5, 5, 4)
    free = [plain_greedy(model, prompt, [], 8)[0] for prompt in prompts]
    stops = sorted({answer[place % 6] for place, answer in enumerate(free)})
    expected = [plain_greedy(model, prompt, stops, 8) for prompt in prompts]
    assert len({len(ids) for ids, _ in expected}) > 1, "they end one after the other"
    decoding = Decoding(max_new_tokens=8, batch_size=4, stop_token_ids=stops, pad_token_id=3)
    answers = generate(model, AutoTokenizer.from_pretrained(models_folder / "llama"), prompts, decoding)
    assert [(answer.token_ids, answer.stopped) for answer in answers] == expected


def test_shorter_prompts_are_more_side_by_side(models_folder: Path) -> None:
    model, tokenizer = load(models_folder / "llama")
    prompts = prompts_of_lengths(40, 40, *[4] * 30)
    for batch_size, most in ((4, 16), (3, 3), (1, 1)):
        decoding = Decoding(max_new_tokens=4, batch_size=batch_size, stop_token_ids=[95])
        company(model.eval(), prompts, decoding)
        sizes = counted(model)
        generate(model, tokenizer, prompts, decoding)
        assert max(rows for rows, _ in sizes) == most


def test_of_a_beginning_that_is_kept_once_own_tokens_alone_count(models_folder: Path) -> None:
    model, tokenizer = load(models_folder / "llama")
    prompts = with_beginning(36, *[4] * 30)
    decoding = Decoding(max_new_tokens=4, batch_size=4, stop_token_ids=[95])
    for attention, most in (("sdpa", 16), ("eager", 4)):
        model.eval().set_attn_implementation(attention)
        sizes = counted(model)
        generate(model, tokenizer, prompts, decoding)
        assert max(rows for rows, _ in sizes) == most


@hypothesis.given(data=st.data())
@hypothesis.settings(max_examples=15)
def test_neither_order_nor_batch_size_changes_an_answer(models_folder: Path, data: st.DataObject) -> None:
    model, tokenizer = load(models_folder / "llama")
    temperature = data.draw(st.sampled_from([0.0, 1.0]))
    beginning = data.draw(st.sampled_from([0, 18]))
    prompts = with_beginning(max(beginning, 1), *data.draw(st.lists(st.integers(1, 20), min_size=2, max_size=7)))
    common = {"max_new_tokens": 8, "stop_token_ids": list(range(4, 12)), "temperature": temperature, "seed": 3}
    answers = generate(model, tokenizer, prompts, Decoding(batch_size=1, **common))
    assert generate(model, tokenizer, prompts, Decoding(batch_size=data.draw(st.integers(2, 8)), **common)) == answers
    if temperature == 0:
        order = data.draw(st.permutations(range(len(prompts))))
        shuffled = generate(model, tokenizer, [prompts[place] for place in order], Decoding(batch_size=3, **common))
        assert shuffled == [answers[place] for place in order]


def test_sampled_tokens_follow_the_models_probabilities(models_folder: Path) -> None:
    model, tokenizer = load(models_folder / "llama")
    model.eval()
    prompt = prompts_of_lengths(5)[0]
    with torch.no_grad():
        logits = model(torch.tensor([prompt])).logits[0, -1] / 0.3
    probabilities = logits.softmax(-1)
    number = 3000
    answers = generate(
        model,
        tokenizer,
        [prompt] * number,
        Decoding(max_new_tokens=1, batch_size=500, temperature=0.3, stop_token_ids=[95]),
    )
    tokens = torch.tensor([answer.token_ids[0] if answer.token_ids else 95 for answer in answers])
    shares = torch.bincount(tokens, minlength=96) / number
    allowed = 5 * (probabilities * (1 - probabilities) / number).sqrt() + 1e-9
    assert ((shares - probabilities).abs() <= allowed + 1 / number).all()
    few = Decoding(max_new_tokens=1, batch_size=300, temperature=0.3, top_p=0.2, stop_token_ids=[95])
    nucleus = generate(model, tokenizer, [prompt] * 300, few)
    ranked = probabilities.sort(descending=True)
    kept = ranked.indices[: int((ranked.values.cumsum(0) < 0.2).sum()) + 1].tolist()
    assert {answer.token_ids[0] for answer in nucleus} == set(kept)


def test_continuous_batching_gives_the_same_answers(models_folder: Path) -> None:
    model, tokenizer = load(models_folder / "mistral")
    prompts = prompts_of_lengths(5, 17, 30, 9, 60)
    stops = [plain_greedy(model.eval(), prompts[0], [], 8)[0][4]]
    common = {"max_new_tokens": 8, "batch_size": 2, "stop_token_ids": stops}
    told: list[int] = []
    answers = generate(
        model,
        tokenizer,
        prompts,
        Decoding(engine="continuous", **common),
        on_progress=lambda done, _: told.append(done),
    )
    assert answers == generate(model, tokenizer, prompts, Decoding(**common))
    assert told == [1, 2, 3, 4, 5]
    assert model.config._attn_implementation == "sdpa"


def test_an_engine_that_cannot_run_is_refused(models_folder: Path) -> None:
    model, tokenizer = load(models_folder / "llama")

    def run(**settings: Any) -> None:
        generate(model, tokenizer, [[1, 5]], Decoding(max_new_tokens=2, batch_size=1, **settings))

    with pytest.raises(ModelError, match="temperature 0"):
        run(engine="continuous", temperature=1.0)
    with pytest.raises(ModelError, match=r"not installed; install it \(pip install .tunesmith\[vllm\]"):
        run(engine="vllm")
    with torch.autocast("cpu", dtype=torch.bfloat16), pytest.raises(ModelError, match="mixed precision"):
        run(engine="continuous")
    model.set_attn_implementation("eager")
    with pytest.raises(ModelError, match="eager attention has no continuous batching"):
        run(engine="continuous")


class StandIn:
    """vLLM's interface as far as it is used, with transformers behind it: vLLM itself needs a GPU."""

    def __init__(self, model: str, dtype: str, **settings: Any) -> None:
        assert settings == {"skip_tokenizer_init": True, "generation_config": "vllm", "seed": 0}
        self.model = AutoModelForCausalLM.from_pretrained(model, dtype=dtype).eval()

    def generate(self, prompts: list[dict[str, Any]], params: list[Any], use_tqdm: bool) -> list[Any]:
        outputs = []
        for prompt, wanted in zip(prompts, params, strict=True):
            assert (wanted.temperature, wanted.ignore_eos, wanted.detokenize, use_tqdm) == (0.0, True, False, False)
            ids, stopped = plain_greedy(
                self.model, prompt["prompt_token_ids"], wanted.stop_token_ids, wanted.max_tokens
            )
            answer = SimpleNamespace(token_ids=tuple(ids), finish_reason="stop" if stopped else "length")
            outputs.append(SimpleNamespace(outputs=[answer]))
        return outputs


def test_vllm_is_asked_for_the_same_answers(models_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("vllm")
    module.__spec__ = ModuleSpec("vllm", None)
    module.LLM, module.SamplingParams = StandIn, SimpleNamespace  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "vllm", module)
    model, tokenizer = load(models_folder / "llama")
    with torch.no_grad():
        model.model.layers[0].mlp.down_proj.weight.mul_(3)  # trained since it was loaded
    prompts = prompts_of_lengths(5, 17, 60, 9)
    stops = [plain_greedy(model.eval(), prompts[0], [], 8)[0][4]]
    common = {"max_new_tokens": 8, "batch_size": 2, "stop_token_ids": stops}
    expected = generate(model, tokenizer, prompts, Decoding(**common))
    assert {answer.stopped for answer in expected} == {True, False}
    assert generate(model, tokenizer, prompts, Decoding(engine="vllm", **common)) == expected
    model = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"]))
    with pytest.raises(ModelError, match="tunesmith merge"):
        generate(model, tokenizer, prompts, Decoding(engine="vllm", **common))


def test_when_memory_ends_the_setting_is_named(models_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer = load(models_folder / "llama")

    def exhausted(**_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(model, "generate", exhausted)
    with pytest.raises(ModelError, match=r"does not hold 7 prompts.*lower generation_batch_size"):
        generate(model, tokenizer, [[1, 5]], Decoding(max_new_tokens=2, batch_size=7))
