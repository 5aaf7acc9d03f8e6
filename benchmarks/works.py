"""The work of the comparison ``training``: rows with a prompt and a completion, real where real data is at hand."""

from __future__ import annotations

import csv
import json
import os
import random
from collections.abc import Callable
from pathlib import Path

from benchmarks.prepare import WORDS

Row = dict[str, str]
SYSTEM = (
    "You are a careful tutor of arithmetic. Read the whole question first and note every quantity with its unit. Think "
    "step by step, one calculation on each line, and write each calculation out before you give its result. Never skip "
    "a step because it looks easy, and never use a number that the question does not give or that you have not worked "
    "out before. When quantities have different units, bring them to the same unit first. When the question asks for a "
    "difference, a share or a rate, say so before you compute it. Check the result against the question: it must tell "
    "what was asked, in the unit that was asked for. Write the final answer alone on the last line, after four hash "
    "signs and a space, as a plain number without a unit."
)


def data_folder() -> Path:
    """The folder of real data, from TUNESMITH_DATA.

    Raises:
        SystemExit: it is not set.
    """
    folder = os.environ.get("TUNESMITH_DATA")
    if not folder:
        raise SystemExit("set TUNESMITH_DATA to the folder of the real data, or ask for --work synthetic")
    return Path(folder)


def nli() -> list[Row]:
    """e-SNLI in the NLI recipe's template; three hypotheses of a premise follow each other."""
    from tunesmith.data.nli import nli_prompt

    with (data_folder() / "nli_esnli" / "esnli_dev.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    labels = {"entailment": 0, "neutral": 1, "contradiction": 2}
    return [
        {
            "prompt": f"<s>[INST] {nli_prompt(row['premise'], row['hypothesis'])} [/INST]",
            "completion": json.dumps(
                {"thought_process": " ".join((row["explanation_1"], row["explanation_2"])),
                 "predicted_label": labels[row["label"]]}
            ),
        }
        for row in rows
    ]  # fmt: skip


def reasoning() -> list[Row]:
    """GSM8K behind one system prompt that all rows share."""
    lines = (data_folder() / "reason_gsm8k" / "train.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines[:2000]]
    return [
        {"prompt": f"<s>[INST] {SYSTEM}\n\n{row['question']} [/INST]", "completion": " " + row["answer"]}
        for row in rows
    ]


def rag() -> list[Row]:
    """PubMedQA: an abstract's parts, the question, and the long answer."""
    text = (data_folder() / "rag_pubmedqa" / "pqal_train500.json").read_text(encoding="utf-8")
    return [
        {
            "prompt": "<s>[INST] Answer from the documents.\n\n"
            + "\n".join(row["CONTEXTS"])
            + f"\n\nQuestion: {row['QUESTION']} [/INST]",
            "completion": " " + row["LONG_ANSWER"],
        }
        for row in json.loads(text).values()
    ]


def questions() -> list[Row]:
    """SQuAD's questions on a paragraph, which stands before each; about five of a paragraph follow each other."""
    text = (data_folder() / "rag_xquad_en" / "xquad.en.part1.json").read_text(encoding="utf-8")
    paragraphs = [part for article in json.loads(text)["data"] for part in article["paragraphs"]]
    return [
        {
            "prompt": "<s>[INST] Answer from the document.\n\n"
            + f"{part['context']}\n\nQuestion: {asked['question']} [/INST]",
            "completion": " " + asked["answers"][0]["text"],
        }
        for part in paragraphs
        for asked in part["qas"]
    ]


def long() -> list[Row]:
    """PubMedQA with the documents of three more questions before its own: about 1,500 tokens a row."""
    text = (data_folder() / "rag_pubmedqa" / "pqal_train500.json").read_text(encoding="utf-8")
    rows = list(json.loads(text).values())
    found = []
    for at, row in enumerate(rows):
        documents = [rows[(at + other) % len(rows)]["CONTEXTS"] for other in (7, 13, 29)] + [row["CONTEXTS"]]
        read = "\n\n".join("\n".join(parts) for parts in documents)
        prompt = f"<s>[INST] Answer from the documents.\n\n{read}\n\nQuestion: {row['QUESTION']} [/INST]"
        found.append({"prompt": prompt, "completion": " " + row["LONG_ANSWER"]})
    return found


def synthetic() -> list[Row]:
    """Words at random behind a beginning that all rows share; needs no data."""
    generator = random.Random(0)

    def some(least: int, most: int) -> str:
        return " ".join(generator.choices(WORDS, k=generator.randint(least, most)))

    system = some(20, 20)
    return [{"prompt": f"{system} {number} {some(3, 20)}", "completion": " " + some(3, 12)} for number in range(60)]


WORKS: dict[str, Callable[[], list[Row]]] = {
    "nli": nli, "reasoning": reasoning, "rag": rag, "long": long, "questions": questions,
    "synthetic": synthetic,
}  # fmt: skip
