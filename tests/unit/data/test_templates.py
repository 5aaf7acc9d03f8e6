from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tunesmith import assets, notices
from tunesmith.config.schema import DataSection
from tunesmith.data.conversation import Conversation, Message
from tunesmith.data.examples import ExampleBuilder
from tunesmith.data.formats import FORMATS, FormatOptions
from tunesmith.data.ledger import Ledger
from tunesmith.data.masking import IGNORE_INDEX
from tunesmith.data.nli import nli_text
from tunesmith.data.rendered import Rendered
from tunesmith.data.row import Row
from tunesmith.data.templates import choose_renderer
from tunesmith.errors import ConfigError, DataError, ModelError

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content | trim + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def render(tokenizer: Any, format_name: str, values: dict[str, Any], **settings: Any) -> Rendered:
    data = DataSection(**settings)
    conversation = FORMATS[format_name](Row(values, "f", 1), FormatOptions(bos_token=tokenizer.bos_token))
    return choose_renderer(tokenizer, data, format_name)(conversation, "f:1")


def said(rendered: Rendered) -> list[tuple[str, str]]:
    return [(span.role, rendered.text[span.start : span.end]) for span in rendered.spans]


def chat(*turns: str) -> dict[str, Any]:
    roles = ["user", "assistant"]
    return {"messages": [{"role": roles[index % 2], "content": turn} for index, turn in enumerate(turns)]}


@pytest.fixture
def chatml(tmp_path: Path) -> str:
    path = tmp_path / "chatml.jinja"
    path.write_text(CHATML)
    return str(path)


@pytest.fixture
def chatml_tokenizer(real_data: Path) -> Any:
    """Stories' tokenizer with ChatML's tokens added."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(real_data / "model_stories260k" / "hf")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    return tokenizer


def test_prompt_and_completion_are_literal(gpt2_tokenizer: Any) -> None:
    rendered = render(gpt2_tokenizer, "prompt_completion", {"prompt": "q ", "completion": " a"})
    assert said(rendered) == [("context", "q "), ("assistant", " a")]
    assert rendered.ends
    assert rendered.begins is None


def test_nli_is_the_documents_text_without_its_markers(mistral_tokenizer: Any, gpt2_tokenizer: Any) -> None:
    values = {"premise": "P", "hypothesis": "H", "thought_process": "t", "predicted_label": 0}
    whole = nli_text("P", "H", "t", 0)
    for tokenizer, begins in ((mistral_tokenizer, True), (gpt2_tokenizer, None)):
        rendered = render(tokenizer, "nli", values)
        assert f"<s>{rendered.text}</s>" == whole
        assert said(rendered)[1][1] == ' {"thought_process": "t", "predicted_label": 0} '
        assert rendered.begins is begins
        assert rendered.ends


def test_the_tokenizers_chat_template_is_taken_for_chats(mistral_tokenizer: Any) -> None:
    rendered = render(mistral_tokenizer, "messages", chat("q", "a", "r", "b"))
    expected = [("context", "<s>[INST]q[/INST]"), ("assistant", "a</s>"), ("context", "[INST]r[/INST]")]
    assert said(rendered) == [*expected, ("assistant", "b</s>")]
    assert not rendered.ends
    assert rendered.begins is False
    forced = render(mistral_tokenizer, "prompt_completion", {"prompt": "q", "completion": "a"}, template="chat")
    assert forced.text == "<s>[INST]q[/INST]a</s>"


def test_layout_after_the_end_token_is_not_the_assistants(chatml_tokenizer: Any, chatml: str) -> None:
    rendered = render(chatml_tokenizer, "messages", chat("q", " a ", "r", "b"), template=chatml)
    assert [text for role, text in said(rendered) if role == "assistant"] == ["a<|im_end|>", "b<|im_end|>"]
    assert rendered.text.endswith("b<|im_end|>")
    assert not rendered.ends


def test_only_the_last_turn_is_the_assistants_when_asked(mistral_tokenizer: Any) -> None:
    rendered = render(mistral_tokenizer, "messages", chat("q", "a", "r", "b"), loss_on="last_assistant")
    assert said(rendered)[-1] == ("assistant", "b</s>")
    assert len(rendered.spans) == 2


def test_a_plain_template_is_said(stories_tokenizer: Any) -> None:
    notices.clear()
    rendered = render(stories_tokenizer, "question_answer", {"question": "q", "answer": "a"})
    assert rendered.text == "### User:\nq\n\n### Assistant:\na</s>"
    assert any("no chat template" in text for text in notices.collected())
    with pytest.raises(ModelError, match="no chat template"):
        render(stories_tokenizer, "question_answer", {"question": "q", "answer": "a"}, template="chat")


WRITES = (
    "{% for m in messages %}{{ m.role }}: {{ m.content#HOW# }}"
    "{% if m.role == 'assistant' %}#END#{% endif %}\n{% endfor %}"
)
ASKS = "{% if add_generation_prompt %}assistant: {% endif %}"


def _with_template(tokenizer: Any, folder: Path, how: str = "", end: str = "{{ eos_token }}") -> Any:
    path = folder / "own.jinja"
    path.write_text(WRITES.replace("#HOW#", how).replace("#END#", end) + ASKS)
    return choose_renderer(tokenizer, DataSection(train_data=["x"], template=str(path)), "messages")


def test_an_end_token_that_a_template_writes_twice_is_refused(stories_tokenizer: Any, tmp_path: Path) -> None:
    for end in ("{{ eos_token }}{{ eos_token }}", "{{ eos_token }}\n</s>"):
        with pytest.raises(ModelError, match="writes the end token </s> twice"):
            _with_template(stories_tokenizer, tmp_path, end=end)


def test_what_a_template_leaves_out_is_said(stories_tokenizer: Any, tmp_path: Path) -> None:
    notices.clear()
    _with_template(stories_tokenizer, tmp_path)
    said = " ".join(notices.collected())
    assert "trims" not in said
    assert "writes no begin token, although the tokenizer begins texts with <s>" in said
    _with_template(stories_tokenizer, tmp_path, how=" | trim")
    assert "trims answers" in " ".join(notices.collected())


def test_a_template_that_rewrites_earlier_turns_is_refused(stories_tokenizer: Any, tmp_path: Path) -> None:
    path = tmp_path / "counting.jinja"
    path.write_text("{{ messages | length }}{% for m in messages %}:{{ m.content }}{% endfor %}")
    with pytest.raises(ModelError, match="would see another prompt"):
        render(stories_tokenizer, "messages", chat("q", "a"), template=str(path))


def test_a_template_that_refuses_the_system_message_says_what_to_do(mistral_tokenizer: Any) -> None:
    with pytest.raises(DataError, match="instruction_in_prompt"):
        render(mistral_tokenizer, "messages", chat("q", "a"), instruction="Be brief.")
    rendered = render(
        mistral_tokenizer, "messages", chat("q", "a"), instruction="Be brief.", instruction_in_prompt=True
    )
    assert rendered.text == "<s>[INST]Be brief.\n\nq[/INST]a</s>"


def test_the_sandbox_holds(stories_tokenizer: Any, tmp_path: Path) -> None:
    path = tmp_path / "evil.jinja"
    path.write_text("{{ ''.__class__.__mro__[1].__subclasses__() }}{{ messages[0].content }}")
    with pytest.raises(DataError, match="refuses"):
        render(stories_tokenizer, "messages", chat("q", "a"), template=str(path))


STRING_TEMPLATES = [
    ("{query}\nAnswer: {output}", "q\nAnswer:", " a", True),
    ("<s>[INST] {query} [/INST]{output}</s>", "[INST] q [/INST]", "a", True),
    ("{query}{output}", "q", "a", True),
    ('{"q": {query}, "a": {output}}', '{"q": q, "a":', " a}", True),
    ("S: {instruction} Q: {query}\n{output} <end>", "S: i Q: q\n", "a <end>", True),
]


@pytest.mark.parametrize(("template", "prompt", "completion", "ends"), STRING_TEMPLATES)
def test_string_templates(
    stories_tokenizer: Any, tmp_path: Path, template: str, prompt: str, completion: str, ends: bool
) -> None:
    path = tmp_path / "t.txt"
    path.write_text(template + "\n")
    instruction = "i" if "{instruction}" in template else None
    values = {"prompt": "q", "completion": "a"}
    rendered = render(stories_tokenizer, "rag", values, template=str(path), instruction=instruction)
    assert said(rendered) == [("context", prompt), ("assistant", completion)]
    assert rendered.ends is ends
    assert rendered.begins is (True if template.startswith("<s>") else None)


def test_a_string_template_without_a_place_for_the_instruction_puts_it_first(
    stories_tokenizer: Any, tmp_path: Path
) -> None:
    path = tmp_path / "t.txt"
    path.write_text("{query} -> {output}")
    rendered = render(
        stories_tokenizer, "question_answer", {"question": "q", "answer": "a"}, template=str(path), instruction="i"
    )
    assert rendered.text == "i\n\nq -> a"
    with pytest.raises(DataError, match="one question and one answer"):
        render(stories_tokenizer, "messages", chat("q", "a", "r", "b"), template=str(path))


def test_missing_files_are_refused(stories_tokenizer: Any) -> None:
    for settings in ({"template": "no.jinja"}, {"template": "no.txt"}, {"instruction": "no.txt"}):
        with pytest.raises(ConfigError):
            choose_renderer(stories_tokenizer, DataSection(**settings), "rag")
    with pytest.raises(ConfigError, match="bring their own template"):
        choose_renderer(stories_tokenizer, DataSection(template="chat"), "text")
    with pytest.raises(ConfigError, match="no place for an instruction"):
        choose_renderer(stories_tokenizer, DataSection(instruction="Be brief."), "text")


def test_prompts_are_what_training_starts_with(chatml_tokenizer: Any, chatml: str, mistral_tokenizer: Any) -> None:
    turns = tuple(Message("user" if index % 2 == 0 else "assistant", f"</s>{index}") for index in range(4))
    whole = Conversation(turns)
    for tokenizer, template in ((chatml_tokenizer, chatml), (mistral_tokenizer, None)):
        renderer = choose_renderer(tokenizer, DataSection(template=template), "messages")
        prompt, trained = renderer(whole.without_answer(), "f:1"), renderer(whole, "f:1")
        assert trained.text.startswith(prompt.text)
        assert prompt.spans == trained.spans[:-1]
        assert prompt.protected == trained.protected[: len(prompt.protected)]


# Templates that ship with tunesmith


NAMED = {
    "chatml": "<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\na<|im_end|>",
    "plain": "### User:\nq\n\n### Assistant:\na</s>",
    "mistral-instruct": "<s>[INST] q [/INST] a</s>",
    "llama-3": "<s><|start_header_id|>user<|end_header_id|>\n\nq<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\na<|eot_id|>",
    "gemma": "<s><start_of_turn>user\nq<end_of_turn>\n<start_of_turn>model\na<end_of_turn>",
    "phi-3": "<|user|>\nq<|end|>\n<|assistant|>\na<|end|>",
    "zephyr": "<|user|>\nq</s>\n<|assistant|>\na</s>",
    "alpaca": "### Instruction:\nq\n\n### Response:\na",
    "question-answer": "Question: q\nAnswer: a",
}


@pytest.mark.parametrize("name", NAMED)
def test_named_templates(real_data: Path, name: str) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(real_data / "model_stories260k" / "hf")
    ends = ["<|im_end|>", "<|eot_id|>", "<end_of_turn>", "<|end|>"]
    tokenizer.add_special_tokens({"additional_special_tokens": ends})
    rendered = render(tokenizer, "question_answer", {"question": "q", "answer": "a"}, template=name)
    assert rendered.text == NAMED[name]
    assert said(rendered)[-1][1].startswith((" a", "a"))
    assert rendered.ends == (name in ("alpaca", "question-answer"))


def test_every_named_template_is_tested_and_in_the_settings() -> None:
    assert assets.template_names() == sorted(NAMED)
    described = str(DataSection.model_fields["template"].description)
    assert all(f"``{name}``" in described for name in NAMED)


def test_a_named_template_ends_with_the_tokenizers_end_token_where_its_own_is_unknown(stories_tokenizer: Any) -> None:
    notices.clear()
    rendered = render(stories_tokenizer, "messages", chat("q", "a", "r", "b"), template="chatml")
    assert [text for role, text in said(rendered) if role == "assistant"] == ["a</s>", "b</s>"]
    assert any("has no <|im_end|>" in text for text in notices.collected())


def test_an_unknown_template_names_those_there_are(stories_tokenizer: Any) -> None:
    with pytest.raises(ConfigError, match="chatml, gemma"):
        render(stories_tokenizer, "messages", chat("q", "a"), template="chatlm")


def test_switches_reach_the_template(stories_tokenizer: Any, tmp_path: Path) -> None:
    path = tmp_path / "switch.jinja"
    path.write_text("{% for m in messages %}{{ m.content }}{{ tone }}{{ eos_token }}{% endfor %}")
    rendered = render(
        stories_tokenizer, "messages", chat("q", "a"), template=str(path), chat_template_kwargs={"tone": "!"}
    )
    assert rendered.text == "q!</s>a!</s>"


# Which turns carry loss


TURNS = [
    {"role": "user", "content": "q"},
    {"role": "assistant", "content": "a"},
    {"role": "user", "content": "r"},
    {"role": "assistant", "content": "b"},
]
SPLIT_ROW = {"prompt": TURNS[:3], "completion": TURNS[3:]}


@pytest.mark.parametrize(
    ("loss_on", "whole", "split"),
    [
        ("completion", ["▁a", "</s>", "▁b", "</s>"], ["▁b", "</s>"]),
        ("assistant", ["▁a", "</s>", "▁b", "</s>"], ["▁a", "</s>", "▁b", "</s>"]),
        ("last_assistant", ["▁b", "</s>"], ["▁b", "</s>"]),
    ],
)
def test_turns_with_loss(mistral_tokenizer: Any, loss_on: Any, whole: list[str], split: list[str]) -> None:
    shapes: list[tuple[Any, dict[str, Any], list[str]]] = [
        ("messages", {"messages": TURNS}, whole),
        ("prompt_completion", SPLIT_ROW, split),
    ]
    for name, values, expected in shapes:
        builder = ExampleBuilder(mistral_tokenizer, DataSection(format=name, loss_on=loss_on))
        example = builder.example(Row(values, "f", 1))
        assert example is not None
        trained = [label for label in example.labels if label != IGNORE_INDEX]
        assert mistral_tokenizer.convert_ids_to_tokens(trained) == expected
        assert mistral_tokenizer.decode(example.input_ids) == "<s>[INST] q[/INST] a</s>[INST] r[/INST] b</s>"
        assert mistral_tokenizer.decode(builder.prompt(Row(values, "f", 1)).input_ids).endswith("r[/INST]")


def test_all_trains_everything_but_the_first_token(mistral_tokenizer: Any) -> None:
    example = ExampleBuilder(mistral_tokenizer, DataSection(loss_on="all")).example(Row({"messages": TURNS}, "f", 1))
    assert example is not None
    assert example.labels == [IGNORE_INDEX, *example.input_ids[1:]]


def test_weights_of_turns_and_rows(mistral_tokenizer: Any) -> None:
    turns = [TURNS[0], TURNS[1] | {"weight": 0.5}, *TURNS[2:]]
    builder = ExampleBuilder(mistral_tokenizer, DataSection())
    example = builder.example(Row({"messages": turns, "weight": "4"}, "f", 1))
    plain = builder.example(Row({"messages": TURNS}, "f", 1))
    assert example is not None
    assert plain is not None
    assert (example.input_ids, example.labels) == (plain.input_ids, plain.labels)
    assert plain.weights is None
    assert example.weights is not None
    trained = [weight for weight, label in zip(example.weights, example.labels, strict=True) if label != IGNORE_INDEX]
    assert trained == [2.0, 2.0, 4.0, 4.0]
    silent = builder.example(Row({"messages": [TURNS[0], TURNS[1] | {"weight": 0}, *TURNS[2:]]}, "f", 1))
    assert silent is not None
    assert mistral_tokenizer.decode([label for label in silent.labels if label != IGNORE_INDEX]) == "b</s>"
    ledger = Ledger()
    assert builder.example(Row({"messages": TURNS, "weight": 0}, "f", 3), ledger) is None
    assert ledger.account("f").dropped == {"weight_0": ["f:3"]}
    whole = ExampleBuilder(mistral_tokenizer, DataSection(loss_on="all")).example(
        Row({"messages": TURNS, "weight": 3}, "f", 1)
    )
    assert whole is not None
    assert whole.weights is not None
    assert set(whole.weights[1:]) == {3.0}


def test_a_column_of_weights_can_be_left_alone(stories_tokenizer: Any) -> None:
    row = Row({"prompt": "a", "completion": "b", "weight": "heavy"}, "f", 1)
    with pytest.raises(DataError, match="row_weights: false"):
        ExampleBuilder(stories_tokenizer, DataSection()).example(row)
    made = ExampleBuilder(stories_tokenizer, DataSection(row_weights=False)).example(row)
    assert made is not None
    assert made.weights is None


@pytest.mark.parametrize("policy", ["truncate_prompt", "truncate_completion"])
def test_weights_are_cut_with_their_tokens(stories_tokenizer: Any, policy: Any) -> None:
    row = Row(
        {"prompt": "Once upon a time there was a dog. " * 3, "completion": " It ran far away." * 3, "weight": 2}, "f", 1
    )
    whole = ExampleBuilder(stories_tokenizer, DataSection()).example(row)
    assert whole is not None
    limit = whole.full_length - (10 if policy == "truncate_prompt" else 5)
    cut = ExampleBuilder(stories_tokenizer, DataSection(max_length=limit, too_long=policy)).example(row)
    assert cut is not None
    assert cut.weights is not None
    assert len(cut.weights) == len(cut.labels) == len(cut.input_ids) == limit
    weighted = {label != IGNORE_INDEX for label, weight in zip(cut.labels, cut.weights, strict=True) if weight == 2.0}
    assert weighted == {True}
    assert cut.weights.count(2.0) == cut.num_trained_tokens


# Special tokens in content


def test_content_that_spells_a_special_token(mistral_tokenizer: Any) -> None:
    row = Row(
        {"messages": [{"role": "user", "content": "say </s> now"}, {"role": "assistant", "content": "a"}]}, "f", 1
    )
    literal = Row({"prompt": "say </s> now", "completion": "a"}, "f", 1)
    for given in (row, literal):
        counts = {}
        for policy in ("split", "allow"):
            example = ExampleBuilder(mistral_tokenizer, DataSection(special_in_content=policy)).example(given)
            assert example is not None
            counts[policy] = example.input_ids.count(2)
        assert counts == {"split": 1, "allow": 2}
        with pytest.raises(DataError, match=r"f:1: the content of turn 0 \(user\) spells the special token </s>"):
            ExampleBuilder(mistral_tokenizer, DataSection(special_in_content="error")).example(given)
    text = Row({"text": "<s>[INST] q [/INST] a </s>"}, "f", 1)
    assert ExampleBuilder(mistral_tokenizer, DataSection(special_in_content="error")).example(text) is not None
