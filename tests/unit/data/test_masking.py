from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tunesmith.data.encoding import Encoder
from tunesmith.data.masking import (
    IGNORE_INDEX,
    Example,
    TooLongError,
    encode,
    fit,
    is_weightless,
    make_example,
    start_after,
)
from tunesmith.data.rendered import Rendered, Span
from tunesmith.errors import DataError, ModelError


def rendered(*pieces: tuple[str, str], **more: Any) -> Rendered:
    text, spans = "", []
    for piece, role in pieces:
        spans.append(Span(len(text), len(text) + len(piece), role))
        text += piece
    return Rendered(text, tuple(spans), **{"ends": True, **more})


def example(item: Rendered, tokenizer: Any, loss_on: Any = "completion", add_bos: bool | None = None) -> Example:
    encoder = Encoder(tokenizer, add_bos)
    return make_example(item, encode([item], encoder)[0], encoder, "f:1", loss_on)


def trained(made: Example) -> list[int]:
    return [label for label in made.labels if label != IGNORE_INDEX]


def test_labels_are_the_completions_ids_and_the_end_token(tokenizer: Any) -> None:
    made = example(rendered(("Say a word:", "context"), (" hello", "assistant")), tokenizer)
    assert made.input_ids[: made.num_prompt_tokens] == tokenizer("Say a word:").input_ids
    assert made.labels[: made.num_prompt_tokens] == [IGNORE_INDEX] * made.num_prompt_tokens
    assert made.labels[made.num_prompt_tokens :] == made.input_ids[made.num_prompt_tokens :]
    assert trained(made)[-1] == tokenizer.eos_token_id
    assert tokenizer.decode(trained(made)[:-1]).strip() == "hello"


def test_a_border_inside_a_word_is_encoded_in_parts(tokenizer: Any) -> None:
    """Encoded together, a tokenizer would merge over these borders; the prompt stays what inference feeds."""
    for prompt, completion in (("premise ", "a"), ("un", "believable"), ("a\n\n", "b"), ("x ", " y")):
        made = example(rendered((prompt, "context"), (completion, "assistant")), tokenizer)
        assert made.input_ids[: made.num_prompt_tokens] == tokenizer(prompt).input_ids
        ids = made.input_ids[1:-1] if made.input_ids[0] == tokenizer.bos_token_id else made.input_ids[:-1]
        assert tokenizer.decode(ids) == prompt + completion


def test_begin_token_follows_the_setting_then_the_text_then_the_tokenizer(
    mistral_tokenizer: Any, gpt2_tokenizer: Any
) -> None:
    expected = {
        ("mistral", None, None): 1, ("mistral", None, True): 1, ("mistral", None, False): 0,
        ("mistral", True, False): 0, ("mistral", False, None): 0, ("mistral", False, True): 0,
        ("gpt2", None, None): 0, ("gpt2", None, True): 1, ("gpt2", True, None): 1, ("gpt2", False, True): 0,
    }  # fmt: skip
    tokenizers = {"mistral": mistral_tokenizer, "gpt2": gpt2_tokenizer}
    for (name, add_bos, begins), number in expected.items():
        item = rendered(("q", "context"), (" a", "assistant"), begins=begins)
        made = example(item, tokenizers[name], add_bos=add_bos)
        assert made.input_ids[:1].count(tokenizers[name].bos_token_id) == number, (name, add_bos, begins)
        assert tokenizers[name].bos_token_id not in made.input_ids[1:-1]


def test_a_tokenizer_without_end_or_begin_token_is_refused(real_data: Any) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(real_data / "model_stories260k" / "hf")
    tokenizer.bos_token = None
    with pytest.raises(ModelError, match="no begin token"):
        Encoder(tokenizer, add_bos=True)
    assert Encoder(tokenizer, add_bos="if_known").begin(None) == []
    tokenizer.eos_token = None
    with pytest.raises(ModelError, match=r"model\.eos_token"):
        Encoder(tokenizer)


CHAT = [("U: q A:", "context"), (" a b", "assistant"), (" U: r A:", "context"), (" c d", "assistant")]


@pytest.mark.parametrize(
    ("loss_on", "text"),
    [
        ("completion", " a b c d"),
        ("assistant", " a b c d"),
        ("last_assistant", " c d"),
        ("all", "U: q A: a b U: r A: c d"),
    ],
)
def test_loss_on(mistral_tokenizer: Any, loss_on: str, text: str) -> None:
    made = example(rendered(*CHAT), mistral_tokenizer, loss_on)
    assert mistral_tokenizer.decode(trained(made)[:-1]) == text.removeprefix(" ")
    assert made.num_prompt_tokens == len(mistral_tokenizer("U: q A: a b U: r A:").input_ids)
    assert made.num_head_tokens == len(mistral_tokenizer("U: q A:").input_ids)


def test_the_prompt_of_a_long_conversation_ends_before_its_last_answer(mistral_tokenizer: Any) -> None:
    made = example(rendered(*CHAT, (" U: s A:", "context"), (" e", "assistant")), mistral_tokenizer)
    prompt = mistral_tokenizer("U: q A: a b U: r A: c d U: s A:").input_ids
    assert made.input_ids[: made.num_prompt_tokens] == prompt
    assert made.num_head_tokens == len(mistral_tokenizer("U: q A:").input_ids)
    assert made.full_length == len(made.input_ids) == len(made.labels)


def test_weights_of_spans_lie_on_their_tokens(mistral_tokenizer: Any) -> None:
    item = rendered(*CHAT)
    spans = [replace(span, weight=weight) for span, weight in zip(item.spans, (3.0, 0.5, 1.0, 2.0), strict=True)]
    made = example(replace(item, spans=tuple(spans)), mistral_tokenizer)
    assert made.weights is not None
    assert len(made.weights) == len(made.labels)
    ends = [len(mistral_tokenizer(text).input_ids) for text in ("U: q A:", "U: q A: a b", "U: q A: a b U: r A:")]
    for at, (label, weight) in enumerate(zip(made.labels, made.weights, strict=True)):
        first, last = ends[0] <= at < ends[1], at >= ends[2]
        assert weight == (0.5 if first else 2.0 if last else 1.0)  # a weight without loss weighs nothing
        assert (label != IGNORE_INDEX) == (first or last)
    assert example(item, mistral_tokenizer).weights is None
    spans[1] = replace(spans[1], weight=0.0)  # an answer that weighs nothing has no label either
    made = example(replace(item, spans=tuple(spans)), mistral_tokenizer)
    assert [at for at, label in enumerate(made.labels) if label != IGNORE_INDEX] == [*range(ends[2], len(made.labels))]


def test_a_row_teaches_nothing_on_purpose_where_every_answer_weighs_nothing() -> None:
    item = rendered(*CHAT)

    def weighing(*weights: float) -> Rendered:
        spans = [replace(span, weight=weight) for span, weight in zip(item.spans, weights, strict=True)]
        return replace(item, spans=tuple(spans))

    assert is_weightless(weighing(1, 0, 1, 0), "assistant")
    assert not is_weightless(weighing(1, 0, 1, 1), "assistant")
    assert is_weightless(weighing(1, 1, 1, 0), "last_assistant")
    assert not is_weightless(weighing(1, 0, 1, 0), "all")
    assert not is_weightless(rendered(("q", "context")), "assistant")


def test_the_first_token_has_no_loss_and_one_must_have(gpt2_tokenizer: Any) -> None:
    made = example(rendered(("", "context"), ("hello world", "assistant")), gpt2_tokenizer, "all")
    assert made.labels == [IGNORE_INDEX, *made.input_ids[1:]]
    with pytest.raises(DataError, match="not one token"):
        example(rendered(("", "context"), ("", "assistant")), gpt2_tokenizer)


def test_loss_starts_after_the_last_match(mistral_tokenizer: Any) -> None:
    encoder = Encoder(mistral_tokenizer)
    item = rendered(("q ->", "context"), (" think A: -> 5", "assistant"))
    later = start_after(item, "->", encoder, "f:1")
    made = example(later, mistral_tokenizer)
    assert mistral_tokenizer.decode(trained(made)[:-1]) == "5"
    assert made.num_prompt_tokens == len(mistral_tokenizer("q ->").input_ids)
    assert start_after(item, "q", encoder, "f:1") == item
    with pytest.raises(DataError, match=r"token ids \[\d+") as caught:
        start_after(item, "<|assistant|>", encoder, "f:9")
    assert caught.value.where == "f:9"


def test_loss_does_not_start_after_a_match_in_content_that_is_kept_as_text(mistral_tokenizer: Any) -> None:
    encoder = Encoder(mistral_tokenizer)
    marker = "[/INST]"
    plain = rendered(("[INST] q", "context"), (marker, "context"), (f" say {marker} now", "assistant"))
    at = plain.text.rindex(marker)
    assert start_after(plain, marker, encoder, "f:1").spans[-1].start == at + len(marker)
    for start, end in ((at, at + len(marker)), (at + len(marker) - 1, at + len(marker)), (at, at + 1)):
        guarded = replace(plain, protected=((start, end),))
        assert start_after(guarded, marker, encoder, "f:1").spans == plain.spans
    beside = replace(plain, protected=((at - 1, at), (at + len(marker), at + len(marker) + 1)))
    assert start_after(beside, marker, encoder, "f:1").spans[-1].start == at + len(marker)
    only = rendered(("q", "context"), (f" a {marker}", "assistant"), protected=((4, 4 + len(marker)),))
    with pytest.raises(DataError, match="does not occur in the rendered text"):
        start_after(only, marker, encoder, "f:1")


def test_a_begin_token_that_comes_twice_is_refused(mistral_tokenizer: Any, gpt2_tokenizer: Any) -> None:
    item = rendered(("<s>q", "context"), (" a", "assistant"))
    with pytest.raises(DataError, match=r"f:1: begins with the begin token <s> twice"):
        example(item, mistral_tokenizer)
    once = example(item, mistral_tokenizer, add_bos=False)
    assert once.input_ids.count(mistral_tokenizer.bos_token_id) == 1
    # Where one token begins and ends a text, two in a row may be an end and a beginning.
    both = rendered(("<|endoftext|>q", "context"), (" a", "assistant"))
    made = example(both, gpt2_tokenizer, add_bos=True)
    assert made.input_ids[:2] == [gpt2_tokenizer.eos_token_id] * 2


def test_content_that_spells_special_tokens_stays_text(tokenizer: Any) -> None:
    eos = tokenizer.eos_token
    content = f"a{eos}b {eos}"
    at = [(1, 1 + len(eos)), (len(content) - len(eos), len(content))]
    item = Rendered(f"Q:{content}", (Span(0, 2, "context"), Span(2, 2 + len(content), "assistant")),
                    tuple((start + 2, end + 2) for start, end in at), None, True)  # fmt: skip
    made = example(item, tokenizer)
    assert made.input_ids.count(tokenizer.eos_token_id) == 1
    assert tokenizer.decode(trained(made)[:-1], skip_special_tokens=False) == content


def long_example(num_prompt: int = 6, num_completion: int = 5) -> Example:
    prompt = [1, *range(100, 100 + num_prompt - 1)]
    completion = [*range(200, 200 + num_completion - 1), 2]
    length = num_prompt + num_completion
    return Example(prompt + completion, [IGNORE_INDEX] * num_prompt + completion, "f:1", num_prompt, num_prompt, length)


@pytest.fixture
def encoder(stories_tokenizer: Any) -> Encoder:
    return Encoder(stories_tokenizer)


def test_short_enough_is_left_alone(encoder: Encoder) -> None:
    whole = long_example()
    for policy in ("error", "drop", "truncate_prompt", "truncate_completion"):
        assert fit(whole, 11, policy, encoder) is whole


def test_too_long_is_an_error_or_dropped(encoder: Encoder) -> None:
    with pytest.raises(TooLongError, match="11 tokens, max_length is 10") as caught:
        fit(long_example(), 10, "error", encoder)
    assert caught.value.needed == 11
    assert fit(long_example(), 10, "drop", encoder) is None


def test_the_prompts_head_is_cut_behind_the_begin_token(encoder: Encoder) -> None:
    for max_length in range(6, 11):
        made = fit(long_example(), max_length, "truncate_prompt", encoder)
        assert made is not None
        assert len(made.input_ids) == len(made.labels) == max_length
        assert made.input_ids == [1, *long_example().input_ids[12 - max_length :]]
        assert trained(made) == trained(long_example())
        assert made.num_prompt_tokens == made.num_head_tokens == max_length - 5
        assert (made.cut, made.full_length) == ("truncate_prompt", 11)
    with pytest.raises(TooLongError, match="6 tokens remain") as caught:
        fit(long_example(), 5, "truncate_prompt", encoder)
    assert caught.value.needed == 6


def test_the_completions_tail_is_cut_before_the_end_token(encoder: Encoder) -> None:
    for max_length in range(8, 11):
        made = fit(long_example(), max_length, "truncate_completion", encoder)
        assert made is not None
        assert made.input_ids == [*long_example().input_ids[: max_length - 1], 2]
        assert made.labels == [*long_example().labels[: max_length - 1], 2]
        assert made.cut == "truncate_completion"
    for max_length in (1, 6, 7):
        with pytest.raises(TooLongError, match="the prompt alone has 6 tokens") as caught:
            fit(long_example(), max_length, "truncate_completion", encoder)
        assert caught.value.needed == 8


def test_a_prompt_without_begin_token_is_cut_from_its_first(encoder: Encoder) -> None:
    whole = long_example()
    made = fit(replace(whole, input_ids=[50, *whole.input_ids[1:]]), 9, "truncate_prompt", encoder)
    assert made is not None
    assert made.input_ids == whole.input_ids[2:]


def test_a_prompt_alone_is_no_example_where_it_has_loss_too(encoder: Encoder) -> None:
    whole = long_example()
    made = replace(whole, labels=[IGNORE_INDEX, *whole.input_ids[1:]])
    with pytest.raises(TooLongError, match="the prompt alone has 6 tokens"):
        fit(made, 7, "truncate_completion", encoder)
    assert fit(made, 8, "truncate_completion", encoder) is not None


def test_weights_stay_with_their_tokens_where_a_row_is_cut(encoder: Encoder) -> None:
    whole = replace(long_example(), weights=[float(number) for number in range(11)])
    made = fit(whole, 8, "truncate_prompt", encoder)
    assert made is not None
    assert made.weights == [0.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0]


def test_an_added_end_token_weighs_what_the_answer_before_it_weighs(encoder: Encoder) -> None:
    ids = [1, 100, 101, 200, 2, 102, 103, 201, 202, 203, 2]
    labels = [IGNORE_INDEX] * 3 + [200, 2] + [IGNORE_INDEX] * 2 + [201, 202, 203, 2]
    weights = [1.0] * 3 + [0.5, 0.5] + [1.0] * 2 + [3.0] * 4
    whole = Example(ids, labels, "f:1", 7, 3, 11, weights=weights)
    made = fit(whole, 10, "truncate_completion", encoder)
    assert made is not None
    assert (made.input_ids[-1], made.labels[-1]) == (2, 2)
    assert made.weights == [1.0] * 3 + [0.5, 0.5] + [1.0] * 2 + [3.0] * 3
    first = fit(whole, 6, "truncate_completion", encoder)
    assert first is not None
    assert (first.input_ids, first.weights) == (ids[:5], weights[:5])


def test_a_cut_inside_a_later_question_ends_with_the_answer_before(encoder: Encoder) -> None:
    ids = [1, 100, 101, 200, 2, 102, 103, 201, 2]
    labels = [IGNORE_INDEX] * 3 + [200, 2] + [IGNORE_INDEX] * 2 + [201, 2]
    whole = Example(ids, labels, "f:1", 7, 3, 9)
    made = fit(whole, 7, "truncate_completion", encoder)
    assert made is not None
    assert made.input_ids == [1, 100, 101, 200, 2]
    assert made.labels == [IGNORE_INDEX] * 3 + [200, 2]
    with pytest.raises(TooLongError):
        fit(whole, 6, "truncate_prompt", encoder)


def test_raising_max_length_never_removes_a_trained_token(encoder: Encoder) -> None:
    for policy in ("truncate_prompt", "truncate_completion"):
        numbers = [fit(long_example(), length, policy, encoder).num_trained_tokens for length in range(8, 14)]  # type: ignore[union-attr, arg-type]
        assert numbers == sorted(numbers)
