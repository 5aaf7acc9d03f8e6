"""Processed retrieval rows from a question, its passages and its answers: the prompt, and an answer with reasons.

Rows of the embedded world, SQuAD, HotpotQA, PubMedQA, ALCE and processed files are understood. Every source column is
kept. It writes no files and prints nothing.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tunesmith.data.rag import PASSAGES_COLUMN, SPANS_COLUMN
from tunesmith.data.row import Problems, Row
from tunesmith.data.rows import read_rows
from tunesmith.errors import ConfigError, DataError

PROMPT = "{context}\n\nQuestion: {question}\nAnswer:"
"""The prompt when no prompt file is given."""

QUOTE = ("##begin_quote##", "##end_quote##")
"""Marks around a sentence that is copied from a passage, as in RAFT (Zhang et al. 2024)."""


@dataclass(frozen=True, slots=True)
class Question:
    """One question with its passages, whatever file it came from."""

    query: str
    answers: list[str]
    positives: list[str]
    """Passages that answer it."""
    negatives: list[str]
    """Passages that came with it and do not."""
    reason: str | None
    """Why the answer is right, in words, where the source says so."""
    values: dict[str, Any]
    """The source's columns."""
    where: str


@dataclass(frozen=True, slots=True)
class PreparedRag:
    """Processed rows in the order of their sources, and how many of which kind there are."""

    rows: list[dict[str, Any]]
    counts: dict[str, int] = field(default_factory=dict)


def prepare_rag(
    files: str | Sequence[str],
    *,
    prompt: str = PROMPT,
    num_passages: int = 5,
    distractor_share: float | None = None,
    without_positive: float = 0.0,
    chain_of_thought: bool = False,
    seed: int = 42,
) -> PreparedRag:
    """Processed rows: the source's columns and ``prompt``, ``passages``, ``query``, ``answers``, ``positive_passages``.

    Args:
        files: source files.
        prompt: text with ``{question}`` and, unless the rows go without passages, ``{context}``.
        num_passages: passages in a prompt, at most; 0 for none.
        distractor_share: share of them that does not answer the question; None takes all positives and fills up with
            distractors. Distractors come from the row, then from other rows.
        without_positive: share of rows with distractors alone (RAFT trains on some, so that the model also learns the
            answers themselves).
        chain_of_thought: add ``generated_answer``: a reason that quotes the passage by its number, then the answer.
        seed: decides the order of passages and every choice.

    Raises:
        ConfigError: the prompt lacks a placeholder, or a share is not between 0 and 1.
        DataError: a row has no question, no answer, or no passage where one is asked for.
    """
    parts = parse_prompt(prompt, needs_context=num_passages > 0)
    for name, share in (("distractor_share", distractor_share or 0.0), ("without_positive", without_positive)):
        if not 0 <= share <= 1:
            raise ConfigError(f"{name} {share} is not between 0 and 1")
    questions = read_questions(files)
    pool = sorted({text for question in questions for text in question.positives})
    counts = dict.fromkeys(
        ("rows", "passages", "distractors", "from_other_rows", "without_positive", "fewer_passages"), 0
    )
    if chain_of_thought:
        counts |= {"quoted": 0, "without_quote": 0}
    rows = []
    for index, question in enumerate(questions):
        rng = random.Random(f"prepare rag {seed} {index}")
        alone = rng.random() < without_positive
        chosen, borrowed = choose_passages(question, pool, num_passages, distractor_share, alone, rng)
        if num_passages and not chosen:
            raise DataError("no passage for this question", where=question.where, remedy="set num_passages 0")
        counts["rows"] += 1
        counts["passages"] += len(chosen)
        counts["distractors"] += sum(text not in question.positives for text in chosen)
        counts["from_other_rows"] += borrowed
        counts["without_positive"] += alone
        counts["fewer_passages"] += len(chosen) < num_passages
        row = _row(question, chosen, parts)
        if chain_of_thought:
            reason, quoted = explain(question, chosen)
            row["generated_answer"] = f"##Reason: {reason}\n<ANSWER>: {question.answers[0]}"
            counts["quoted" if quoted else "without_quote"] += 1
        rows.append(row)
    return PreparedRag(rows, counts)


def parse_prompt(prompt: str, *, needs_context: bool) -> list[str]:
    """Literal parts and placeholders of a prompt file; other braces are literal text.

    Raises:
        ConfigError: ``{question}`` or ``{context}`` does not stand there exactly as often as it is needed.
    """
    parts = re.split(r"(\{question\}|\{context\})", prompt)
    if parts.count("{question}") != 1:
        raise ConfigError("a prompt file holds {question} once", remedy="put {question} where the question goes")
    if parts.count("{context}") != int(needs_context):
        what = "once" if needs_context else "only when there are passages"
        raise ConfigError(
            f"a prompt file holds {{context}} {what}", remedy="or set num_passages 0 for rows without passages"
        )
    return parts


def choose_passages(
    question: Question, pool: Sequence[str], number: int, share: float | None, alone: bool, rng: random.Random
) -> tuple[list[str], int]:
    """The passages of one prompt in their order, and how many were borrowed from other rows."""
    wanted = 0 if alone else number
    if share is not None and not alone:
        wanted = number - round(number * share)
    kept = sorted(rng.sample(range(len(question.positives)), min(wanted, len(question.positives))))
    chosen = [question.positives[index] for index in kept]
    missing = number - len(chosen)
    own = rng.sample(question.negatives, min(missing, len(question.negatives)))
    borrowed: list[str] = []
    known = {*question.positives, *question.negatives}
    while len(borrowed) < missing - len(own):
        candidates = [text for text in rng.sample(pool, min(len(pool), 64)) if text not in known]
        if not candidates:
            break
        borrowed.append(candidates[0])
        known.add(candidates[0])
    chosen += own + borrowed
    rng.shuffle(chosen)
    return chosen, len(borrowed)


def explain(question: Question, passages: Sequence[str]) -> tuple[str, bool]:
    """A reason for the first answer that names a passage of the prompt by its number, and whether it quotes one."""
    answer = re.compile(rf"(?<!\w){re.escape(question.answers[0])}(?!\w)", re.IGNORECASE)
    for number, passage in enumerate(passages, start=1):
        if passage not in question.positives:
            continue
        sentences = _sentences(passage)
        told = [sentence for sentence in sentences if answer.search(sentence)]
        if told:
            words = set(re.findall(r"\w+", question.query.casefold()))
            best = max(told, key=lambda sentence: len(words & set(re.findall(r"\w+", sentence.casefold()))))
            quote = f"Passage [{number}] says {QUOTE[0]}{best}{QUOTE[1]}"
            return (f"{question.reason} {quote}" if question.reason else quote), True
    numbers = [f"[{number}]" for number, passage in enumerate(passages, start=1) if passage in question.positives]
    cited = f"This follows from {' and '.join(numbers)}." if numbers else "None of the passages says it."
    return (f"{question.reason} {cited}" if question.reason else cited), False


def _sentences(text: str) -> list[str]:
    return [sentence.strip() for sentence in re.split(r"(?<=[.!?])\s+|\n+", text) if sentence.strip()]


def _row(question: Question, passages: list[str], parts: list[str]) -> dict[str, Any]:
    """A processed row; the places of its passages are kept, so that they alone are cut when a row is too long."""
    prompt = ""
    spans: list[list[int]] = []
    for part in parts:
        if part == "{question}":
            prompt += question.query
        elif part != "{context}":
            prompt += part
        else:
            for number, passage in enumerate(passages, start=1):
                prompt += f"\n[{number}] " if number > 1 else f"[{number}] "
                spans.append([len(prompt), len(prompt) + len(passage)])
                prompt += passage
    made = {"query": question.query, "answers": question.answers, "positive_passages": question.positives}
    return {**made, **question.values, PASSAGES_COLUMN: passages, SPANS_COLUMN: spans, "prompt": prompt}


# Reading


def read_questions(files: str | Sequence[str]) -> list[Question]:
    """The questions of all files.

    Raises:
        DataError: a file cannot be read, or rows lack what they need; up to 20 are listed.
    """
    questions: list[Question] = []
    problems = Problems()
    for name in [files] if isinstance(files, str) else files:
        for row in _source_rows(name):
            try:
                questions.append(_question(row))
            except DataError as problem:
                problems.add(problem)
    problems.stop()
    return questions


def _source_rows(name: str) -> Iterator[Row]:
    """The rows of a file; the objects of SQuAD, PubMedQA and ALCE are taken apart."""
    document = _json_object(name)
    if document is None:
        yield from read_rows(name)
        return
    if isinstance(document.get("data"), list) and all("paragraphs" in article for article in document["data"]):
        rows = list(_squad(document["data"]))
    elif isinstance(document.get("demos"), list):
        rows = document["demos"]
    elif document and all(isinstance(value, dict) for value in document.values()):
        rows = [{"id": key, **value} for key, value in document.items()]
    else:
        raise DataError(
            "this JSON object is no known collection of questions", where=name, remedy="give a list of rows"
        )
    yield from (Row(values, name, number) for number, values in enumerate(rows, start=1))


def _json_object(name: str) -> dict[str, Any] | None:
    """The object that a ``.json`` file holds; None when it holds something else."""
    path = Path(name)
    if path.suffix != ".json" or not path.is_file():
        return None
    try:
        text = path.read_text(encoding="utf-8-sig")
        document = json.loads(text) if text.lstrip().startswith("{") else None
    except (OSError, ValueError):
        return None  # JSON lines, or broken; reading it as rows says what is wrong
    return document if isinstance(document, dict) else None


def _squad(articles: list[Any]) -> Iterator[dict[str, Any]]:
    for article in articles:
        contexts = [paragraph["context"] for paragraph in article["paragraphs"]]
        for paragraph in article["paragraphs"]:
            others = [text for text in contexts if text != paragraph["context"]]
            for asked in paragraph["qas"]:
                answers = list(dict.fromkeys(answer["text"] for answer in asked.get("answers", [])))
                yield {
                    "id": asked.get("id"),
                    "title": article.get("title", ""),
                    "query": asked["question"],
                    "answers": answers,
                    "positive_passages": [paragraph["context"]],
                    "negative_passages": others,
                }


def _question(row: Row) -> Question:
    values = row.values
    query = _first(values, "query", "question", "QUESTION")
    if not isinstance(query, str) or not query.strip():
        raise DataError("no question", where=row.where, remedy='expected a text in "query" or "question"')
    answers = _texts(_first(values, "answers", "answer", "final_decision"))
    if not answers:
        raise DataError(
            "no answer", where=row.where, remedy='expected a text or a list of texts in "answers" or "answer"'
        )
    context = values.get("context")
    if isinstance(context, dict) and "sentences" in context:
        positives, negatives = _hotpot_passages(values, context)
    else:
        held = _first(values, "positive_passages", "docs", "CONTEXTS", "contexts", "passages", "context")
        positives, negatives = _texts(held), _texts(values.get("negative_passages"))
    reason = values.get("LONG_ANSWER")
    return Question(
        query, answers, positives, negatives, reason if isinstance(reason, str) else None, values, row.where
    )


def _hotpot_passages(values: dict[str, Any], context: dict[str, Any]) -> tuple[list[str], list[str]]:
    supporting = set((values.get("supporting_facts") or {}).get("title", []))
    positives: list[str] = []
    negatives: list[str] = []
    for title, sentences in zip(context["title"], context["sentences"], strict=True):
        text = f"{title}: {''.join(sentences).strip()}"
        (positives if title in supporting else negatives).append(text)
    return positives, negatives


def _first(values: dict[str, Any], *names: str) -> Any:
    return next((values[name] for name in names if values.get(name) not in (None, "", [])), None)


def _texts(value: Any) -> list[str]:
    """Texts of a list, of one text, or of objects with ``title`` and ``text``, without empty ones."""
    texts = []
    for item in value if isinstance(value, list) else [value]:
        if isinstance(item, dict):
            title, text = str(item.get("title") or "").strip(), str(item.get("text") or "").strip()
            item = f"{title}: {text}" if title else text
        if isinstance(item, (str, int, float)) and not isinstance(item, bool) and str(item).strip():
            texts.append(str(item).strip())
    return texts
