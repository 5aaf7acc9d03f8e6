"""The words of the NLI chain-of-thought task: one instruction turn with premise and hypothesis, one JSON answer.

The data preparation, the formats and the tests take the wording from here. Nothing here tokenises or reads files.
"""

from __future__ import annotations

import json

NLI_INSTRUCTION = (
    "Use chain of thought reasoning to determine if the hypothesis is entailed by the premise. Provide your reasoning "
    'and the final label (0 or 1) in JSON format: {"thought_process": "...", "predicted_label": ...}'
)
NLI_TEMPLATE = "<s>[INST] {query} [/INST] {output} </s>"
"""The one-turn instruction template of the fine-tuning files."""


def nli_prompt(premise: str, hypothesis: str) -> str:
    """The user's words, without template."""
    return f"Premise: {premise}\nHypothesis: {hypothesis}\n\n{NLI_INSTRUCTION}"


def nli_answer(thought_process: str, predicted_label: int) -> str:
    """The assistant's words, without template: one JSON object."""
    return json.dumps({"thought_process": thought_process, "predicted_label": predicted_label}, ensure_ascii=False)


def nli_text(premise: str, hypothesis: str, thought_process: str, predicted_label: int) -> str:
    """The whole ``text`` of a fine-tuning row."""
    before, after = NLI_TEMPLATE.split("{query}")
    middle, end = after.split("{output}")
    answer = nli_answer(thought_process, predicted_label)
    return f"{before}{nli_prompt(premise, hypothesis)}{middle}{answer}{end}"
