"""For every row: one begin token, one trained end token, silent prompts, prompts as prefixes, no forged tokens."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from tunesmith.config.schema import DataSection
from tunesmith.data.examples import ExampleBuilder
from tunesmith.data.formats import FORMATS
from tunesmith.data.ledger import Ledger
from tunesmith.data.masking import IGNORE_INDEX, Example
from tunesmith.data.row import Row
from tunesmith.errors import DataError

SPECIAL_TEXTS = ["<s>", "</s>", "[INST]", "[/INST]", "<unk>", "<|endoftext|>", "<|im_end|>", "<|im_start|>"]
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)

# U+2581 is how two of the tokenizers write a space, so it cannot come back out of them.
characters = st.characters(codec="utf-8", exclude_categories=["Cs"], exclude_characters="\0\u2581")
pieces = st.one_of(
    st.text(characters, max_size=12),
    st.sampled_from([*SPECIAL_TEXTS, " ", "  ", "\n", "\n\n", "premise ", "a", " a", "é", "😀", "</", "s>"]),
)
texts = st.lists(pieces, max_size=6).map("".join)
answers = texts.filter(lambda text: text.strip() != "")

many = settings(
    max_examples=int(os.environ.get("TUNESMITH_EXAMPLES", "60")),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@pytest.fixture(scope="module")
def builders(
    mistral_tokenizer: Any, gpt2_tokenizer: Any, stories_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, ExampleBuilder]:
    """Every way to render on every kind of tokenizer, one of them with pad = end token."""
    from transformers import AutoTokenizer

    folder = tmp_path_factory.mktemp("templates")
    (folder / "chatml.jinja").write_text(CHATML)
    (folder / "pair.txt").write_text("Q: {query}\nA: {output}")
    stories = AutoTokenizer.from_pretrained(stories_model)
    stories.pad_token = stories.eos_token
    chatml = AutoTokenizer.from_pretrained(stories_model)
    chatml.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    ways: dict[str, tuple[Any, dict[str, Any]]] = {
        "mistral literal": (mistral_tokenizer, {}),
        "gpt2 literal": (gpt2_tokenizer, {}),
        "gpt2 literal with begin token": (gpt2_tokenizer, {"add_bos": True}),
        "stories literal": (stories, {}),
        "mistral chat": (mistral_tokenizer, {"template": "chat"}),
        "stories chatml": (chatml, {"template": str(folder / "chatml.jinja")}),
        "gpt2 plain chat": (gpt2_tokenizer, {"format": "question_answer"}),
        "mistral string": (mistral_tokenizer, {"template": str(folder / "pair.txt")}),
        "stories string": (stories, {"template": str(folder / "pair.txt")}),
    }
    return {
        name: ExampleBuilder(tokenizer, DataSection(max_length=100_000, **given))
        for name, (tokenizer, given) in ways.items()
    }


def pair(prompt: str, completion: str) -> Row:
    return Row({"prompt": prompt, "completion": completion, "question": prompt, "answer": completion}, "f", 1)


def stop_id(name: str, builder: ExampleBuilder) -> int:
    if "chatml" in name:
        return int(builder.tokenizer.convert_tokens_to_ids("<|im_end|>"))
    return builder.encoder.eos_token_id


def special_ids(builder: ExampleBuilder) -> set[int]:
    return {number for number, token in builder.tokenizer.added_tokens_decoder.items() if token.special}


def without_unknown(builder: ExampleBuilder, ids: list[int]) -> list[int]:
    unknown = builder.tokenizer.unk_token_id
    return ids if unknown == builder.encoder.eos_token_id else [number for number in ids if number != unknown]


@many
@given(prompt=texts, completion=answers)
def test_one_begin_token_one_trained_end_token_and_silent_prompts(
    builders: dict[str, ExampleBuilder], prompt: str, completion: str
) -> None:
    assert len(builders) == 9
    for name, builder in builders.items():
        example = builder.example(pair(prompt, completion))
        assert example is not None
        stop = stop_id(name, builder)
        trained = [label for label in example.labels if label != IGNORE_INDEX]
        assert trained.count(stop) == 1, name
        assert example.labels[-1] == stop == example.input_ids[-1], name
        begin = builder.encoder.bos_token_id
        expected = 0 if name in ("gpt2 literal", "gpt2 plain chat") else 1
        assert example.input_ids[:-1].count(begin) == (0 if "chatml" in name else expected), name
        assert expected == 0 or "chatml" in name or example.input_ids[0] == begin, name
        start = example.num_prompt_tokens
        assert example.labels[:start] == [IGNORE_INDEX] * start, name
        assert example.labels[max(start, 1) :] == example.input_ids[max(start, 1) :], name


@many
@given(prompt=texts, completion=answers)
def test_inference_feeds_what_training_starts_with(
    builders: dict[str, ExampleBuilder], prompt: str, completion: str
) -> None:
    for name, builder in builders.items():
        row = pair(prompt, completion)
        example = builder.example(row)
        assert example is not None
        fed = builder.prompt(row).input_ids
        assert example.input_ids[: example.num_prompt_tokens] == fed, name
        unanswered = Row({"prompt": prompt, "question": prompt}, "f", 1)
        assert builder.prompt(unanswered).input_ids == fed, name


@many
@given(prompt=texts, completion=answers)
def test_labels_decode_to_the_completion(builders: dict[str, ExampleBuilder], prompt: str, completion: str) -> None:
    for name, builder in builders.items():
        decode = builder.tokenizer.decode
        example = builder.example(pair(prompt, completion))
        assert example is not None
        ids = example.input_ids[:-1]
        ids = ids[1:] if ids[:1] == [builder.encoder.bos_token_id] else ids
        trained = example.num_prompt_tokens - (len(example.input_ids) - 1 - len(ids))
        before, whole = decode(ids[:trained]), decode(ids)
        if "\ufffd" in before + whole and "\ufffd" not in prompt + completion:
            continue  # an emoji's bytes on both sides of the border have no text of their own
        said = whole[len(before) :]
        # A string template brings its own space; at the start of a text, and after a special token, these tokenizers
        # write one in front of the first word.
        given_space = name in ("mistral chat", "mistral string", "stories string") or trained == 0
        assert whole.startswith(before), name
        assert said == completion or (given_space and said == " " + completion), name


@many
@given(prompt=texts, completion=answers)
def test_content_never_becomes_a_control_token(
    builders: dict[str, ExampleBuilder], prompt: str, completion: str
) -> None:
    for name, builder in builders.items():
        controls = special_ids(builder)
        example = builder.example(pair(prompt, completion))
        plain = builder.example(pair("q", "a"))
        assert example is not None
        assert plain is not None
        found = [number for number in without_unknown(builder, example.input_ids) if number in controls]
        assert found == [number for number in plain.input_ids if number in controls], name


@many
@given(turns=st.lists(answers, min_size=2, max_size=6).filter(lambda turns: len(turns) % 2 == 0))
def test_every_turn_of_a_chat(builders: dict[str, ExampleBuilder], turns: list[str]) -> None:
    messages = [{"role": ("user", "assistant")[index % 2], "content": turn} for index, turn in enumerate(turns)]
    for name in ("mistral chat", "stories chatml", "gpt2 plain chat"):
        base = builders[name]
        data = base.data.model_copy(update={"format": "messages"})
        builder = ExampleBuilder(base.tokenizer, data)
        example = builder.example(Row({"messages": messages}, "f", 1))
        assert example is not None
        stop = stop_id(name, builder)
        trained = [label for label in example.labels if label != IGNORE_INDEX]
        assert trained.count(stop) == len(turns) // 2, name
        for index in range(1, len(turns), 2):
            fed = builder.prompt(Row({"messages": messages[:index]}, "f", 1)).input_ids
            assert example.input_ids[: len(fed)] == fed, name
            assert example.labels[len(fed)] == example.input_ids[len(fed)], name
        last = ExampleBuilder(base.tokenizer, data.model_copy(update={"loss_on": "last_assistant"}))
        only = last.example(Row({"messages": messages}, "f", 1))
        assert only is not None
        assert [label for label in only.labels if label != IGNORE_INDEX].count(stop) == 1, name


@many
@given(prompt=texts, completion=answers, limit=st.integers(1, 40))
def test_shortening_keeps_its_promise(
    builders: dict[str, ExampleBuilder], prompt: str, completion: str, limit: int
) -> None:
    for name in ("mistral literal", "gpt2 literal", "stories chatml"):
        base = builders[name]
        row = pair(prompt, completion)
        whole = base.example(row)
        assert whole is not None
        assume(len(whole.input_ids) > limit)
        for policy in ("truncate_prompt", "truncate_completion", "drop"):
            data = base.data.model_copy(update={"max_length": limit, "too_long": policy})
            builder, ledger = ExampleBuilder(base.tokenizer, data), Ledger()
            if policy != "drop" and limit < smallest(whole, policy, base, completion):
                with pytest.raises(DataError, match="max_length"):
                    builder.example(row, ledger)
                continue
            example = builder.example(row, ledger)
            account = ledger.account("f")
            assert (account.read, account.kept) == (1, int(example is not None))
            if example is None:
                assert account.dropped == {"too_long": ["f:1"]}
                continue
            assert account.cut == {policy: ["f:1"]}
            check_cut(whole, example, policy, limit, stop_id(name, builder))


def smallest(whole: Example, policy: str, builder: ExampleBuilder, completion: str) -> int:
    """The least limit under which a policy can keep its promise."""
    if policy == "truncate_completion":
        return whole.num_prompt_tokens + 2
    if builder.data.template is not None:  # the headers of a chat stay
        bare = builder.example(pair("", completion))
        assert bare is not None
        return len(bare.input_ids)
    begins = whole.input_ids[0] in (1, 50256) and whole.num_prompt_tokens > 0
    return len(whole.input_ids) - whole.num_prompt_tokens + int(begins)


def check_cut(whole: Example, cut: Example, policy: str, limit: int, stop: int) -> None:
    assert 1 < len(cut.input_ids) == len(cut.labels) <= limit
    assert cut.input_ids[-1] == cut.labels[-1] == stop
    if policy == "truncate_prompt":
        start = whole.num_prompt_tokens
        kept = cut.input_ids[cut.num_prompt_tokens :]
        assert kept == whole.input_ids[start:]
    else:
        assert cut.input_ids[:-1] == whole.input_ids[: len(cut.input_ids) - 1]
        assert cut.num_prompt_tokens == whole.num_prompt_tokens


@many
@given(premise=texts, hypothesis=texts, thought=texts, label=st.integers(0, 1))
def test_nli_rows(builders: dict[str, ExampleBuilder], premise: str, hypothesis: str, thought: str, label: int) -> None:
    values = {"premise": premise, "hypothesis": hypothesis, "thought_process": thought, "predicted_label": label}
    for name in ("mistral literal", "stories literal", "mistral chat"):
        builder = builders[name]
        example = builder.example(Row(values, "nli", 1))
        assert example is not None
        assert example.input_ids.count(builder.encoder.eos_token_id) == 1
        assert example.input_ids.count(builder.encoder.bos_token_id) == 1
        bare = builder.prompt(Row({"premise": premise, "hypothesis": hypothesis}, "csv", 1))
        assert example.input_ids[: example.num_prompt_tokens] == bare.input_ids


def test_every_format_is_reachable() -> None:
    assert len(FORMATS) == 9
