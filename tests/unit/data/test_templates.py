from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tunesmith import notices
from tunesmith.config.schema import DataSection
from tunesmith.data.conversation import Conversation, Message
from tunesmith.data.formats import FORMATS, Reading
from tunesmith.data.nli import nli_text
from tunesmith.data.rows import Row
from tunesmith.data.templates import (
    Guard,
    Rendered,
    choose_renderer,
    parse_string_template,
    read_instruction,
    special_pattern,
)
from tunesmith.errors import ConfigError, DataError, ModelError

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content | trim + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def render(tokenizer: Any, format_name: str, values: dict[str, Any], **settings: Any) -> Rendered:
    data = DataSection(**settings)
    conversation = FORMATS[format_name](Row(values, "f", 1), Reading(bos_token=tokenizer.bos_token))
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
    notices.forget()
    rendered = render(stories_tokenizer, "question_answer", {"question": "q", "answer": "a"})
    assert rendered.text == "### User:\nq\n\n### Assistant:\na</s>"
    assert any("no chat template" in text for text in notices.said())
    with pytest.raises(ModelError, match="no chat template"):
        render(stories_tokenizer, "question_answer", {"question": "q", "answer": "a"}, template="chat")


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


@pytest.mark.parametrize("template", ["", "{query}", "{output} {query}", "{query} {output} {output}"])
def test_broken_string_templates_are_refused(template: str) -> None:
    with pytest.raises(ConfigError, match=r"needs \{query\}"):
        parse_string_template(template, "t.txt")


def test_missing_files_are_refused(stories_tokenizer: Any) -> None:
    for settings in ({"template": "no.jinja"}, {"template": "no.txt"}, {"instruction": "no.txt"}):
        with pytest.raises(ConfigError):
            choose_renderer(stories_tokenizer, DataSection(**settings), "rag")
    with pytest.raises(ConfigError, match="bring their own template"):
        choose_renderer(stories_tokenizer, DataSection(template="chat"), "text")
    with pytest.raises(ConfigError, match="no place for an instruction"):
        choose_renderer(stories_tokenizer, DataSection(instruction="Be brief."), "text")


def test_an_instruction_is_a_file_or_a_text(tmp_path: Path) -> None:
    path = tmp_path / "qa.txt"
    path.write_text("Answer briefly.\n")
    assert read_instruction(str(path)) == "Answer briefly."
    assert read_instruction("Answer the question. See a.txt") == "Answer the question. See a.txt"
    assert read_instruction(" ") is None


def test_special_tokens_in_content_come_back_in_their_places(mistral_tokenizer: Any) -> None:
    content = "x</s>\ue000[INST] y"
    guard = Guard(special_pattern(mistral_tokenizer), (Message("user", content),))
    hidden = guard.messages[0].content
    assert "</s>" not in hidden
    assert "[INST]" not in hidden
    rendered = guard.rendered([("<s>", "context", 1.0), (hidden, "assistant", 1.0)], begins=False)
    assert rendered.text == "<s>" + content
    assert [rendered.text[start:end] for start, end in rendered.protected] == ["</s>", "[INST]"]
    assert rendered.spans[1].end == len(rendered.text)


def test_prompts_are_what_training_starts_with(chatml_tokenizer: Any, chatml: str, mistral_tokenizer: Any) -> None:
    turns = tuple(Message("user" if index % 2 == 0 else "assistant", f"</s>{index}") for index in range(4))
    whole = Conversation(turns)
    for tokenizer, template in ((chatml_tokenizer, chatml), (mistral_tokenizer, None)):
        renderer = choose_renderer(tokenizer, DataSection(template=template), "messages")
        prompt, trained = renderer(whole.without_answer(), "f:1"), renderer(whole, "f:1")
        assert trained.text.startswith(prompt.text)
        assert prompt.spans == trained.spans[:-1]
        assert prompt.protected == trained.protected[: len(prompt.protected)]
