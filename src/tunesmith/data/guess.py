"""What a table of somebody's own holds: which columns are asked and answered, and in which format that is read.

A guess looks at names and values of columns and says why. It reads no file, needs no tokenizer and decides no training
setting: those are ``train/proposal.py``'s.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from tunesmith.data.formats import CHAT_COLUMNS, detect
from tunesmith.data.row import Row, value_of
from tunesmith.data.strict_json import parse_json
from tunesmith.data.tokenized import TOKENIZED
from tunesmith.data.turns import ROLES, from_json_text
from tunesmith.errors import ConfigError, DataError, did_you_mean

ANSWERS = (
    "completion", "response", "answer", "output", "label", "target", "category", "class", "sentiment", "intent",
    "topic", "department", "reply", "solution", "summary", "translation", "expected", "gold", "chosen", "result", "tag",
    "highlights", "assistant", "bot", "y",
)  # fmt: skip
"""Names of columns that are answered, the likeliest first."""
QUESTIONS = (
    "prompt", "question", "instruction", "query", "premise", "text", "input", "sentence", "message", "review",
    "comment", "utterance", "request", "title", "subject", "content", "body", "document", "article", "post", "tweet",
    "description", "source", "problem", "sms", "email", "sentence1", "question1", "text1", "user", "human", "x",
)  # fmt: skip
"""Names of columns that are asked, the likeliest first."""
ASKED = ("prompt", "question", "instruction", "query")
"""Names of columns that want an answer: such a text is not learnt by itself."""
SECONDS: dict[str, tuple[str, ...]] = {
    "instruction": ("input", "context"),
    "question": ("context", "passage", "document", "text"),
    "premise": ("hypothesis",),
    "sentence1": ("sentence2",),
    "question1": ("question2",),
    "text1": ("text2",),
    "title": ("body", "text", "content", "description", "abstract"),
    "subject": ("body", "text", "content", "message"),
}
"""Names of columns that belong to another one's question."""
PASSED_OVER = frozenset({"id", "idx", "index", "uuid", "guid", "url", "date", "time", "timestamp", "split", "weight"})
"""Words of names that are neither asked nor answered."""
SPEAKERS = {
    "bot": "assistant", "ai": "assistant", "agent": "assistant", "chatbot": "assistant", "response": "assistant",
    "customer": "user", "client": "user", "prompter": "user", "person": "user", "question": "user",
}  # fmt: skip
"""Names of roles that rows have besides those that are read anyway."""
MARKERS = (
    "[/INST]", "<|im_start|>assistant\n", "<|start_header_id|>assistant<|end_header_id|>\n\n",
    "<start_of_turn>model\n", "<|assistant|>\n", "### Response:\n", "### Response:", "### Answer:", "### Assistant:",
    "Assistant:", "Answer:",
)  # fmt: skip
"""What stands before the answer in rows of one text."""
FEW_LABELS = 20
LONGEST_LABEL = 40


@dataclass(frozen=True, slots=True)
class Column:
    """A column as its values are.

    Attributes:
        name: its name in the file.
        kind: ``text``, ``number``, ``chat`` (a list of messages, or JSON of one), ``other`` or ``empty``.
        distinct: how many different values it has.
        mean_length: characters of its texts.
    """

    name: str
    kind: str
    distinct: int
    mean_length: float

    @property
    def words(self) -> tuple[str, ...]:
        """The words of its name, in lower case: ``labelText`` and ``label_text`` have two."""
        parted = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", self.name)
        return tuple(re.findall(r"[a-z]+[0-9]*|[0-9]+", parted.lower()))


@dataclass(frozen=True, slots=True)
class Shape:
    """How rows are read, in the settings' own words, and why.

    Attributes:
        format: ``data.format``.
        columns: ``data.columns``; empty where the file's names are the format's.
        why: what the guess rests on, for people.
        answer: the column that is answered; None where a row is one text or one chat.
        roles: ``data.roles``.
        loss_on: ``data.loss_on``.
        completion_start: ``data.completion_start``.
    """

    format: str
    columns: dict[str, str]
    why: str
    answer: str | None = None
    roles: dict[str, str] = field(default_factory=dict)
    loss_on: str = "completion"
    completion_start: str | None = None


def guess_shape(rows: Sequence[Row], prompt: str | None = None, answer: str | None = None) -> Shape:
    """How ``rows`` are best read.

    Args:
        rows: at least one.
        prompt: the column that is asked, where somebody says it.
        answer: the column that is answered, where somebody says it.

    Raises:
        ConfigError: there is no such column, or both are the same one.
        DataError: nothing tells which columns are asked and answered; it names all of them and the flags.
    """
    columns = columns_of(rows)
    by_name = {column.name: column for column in columns}
    for flag, name in (("--prompt", prompt), ("--answer", answer)):
        if name is not None and name not in by_name:
            remedy = did_you_mean(name, list(by_name), f"there are {', '.join(by_name)}")
            raise ConfigError(f"no row has the column {name!r}", where=flag, remedy=remedy)
    if prompt is not None and prompt == answer:
        raise ConfigError(f"{prompt!r} cannot be both question and answer", where="--answer")
    if prompt is None and answer is None and (whole := _whole_rows(rows, columns)):
        return whole
    if prompt is not None and answer is None and by_name[prompt].kind == "chat":
        return _chat(rows, by_name[prompt])
    asked, answered = _pair_of(columns, prompt, answer)
    if asked is not None and answered is not None:
        return _pair(rows, columns, by_name[asked], by_name[answered], second=prompt is None)
    only = [column for column in columns if column.kind != "empty" and not _passed_over(column)]
    if len(only) == 1 and only[0].kind == "text" and only[0].name not in ASKED and prompt is None and answer is None:
        return _text(rows, only[0])
    raise DataError(
        f"nothing tells which column is the question and which the answer; there are {', '.join(by_name)}",
        where=rows[0].source,
        remedy="name them: --prompt COLUMN --answer COLUMN; a text alone in its rows is learnt whole",
    )


def columns_of(rows: Iterable[Row]) -> list[Column]:
    """Every column of the rows, in the order in which they occur."""
    values: dict[str, list[Any]] = {}
    for row in rows:
        for name, value in row.values.items():
            values.setdefault(name, []).append(value)
    return [_column(name, found) for name, found in values.items()]


def proposed_pair(columns: Sequence[Column]) -> tuple[str | None, str | None]:
    """The columns that are likely to be asked and answered; None for one that nothing points at."""
    return _pair_of(columns, None, None)


def _column(name: str, values: Sequence[Any]) -> Column:
    filled = [value for value in values if value not in (None, "")]
    distinct = len({json.dumps(value, sort_keys=True, default=str) for value in filled})
    texts = [value for value in filled if isinstance(value, str)]
    length = sum(map(len, texts)) / len(texts) if texts else 0.0
    if not filled:
        kind = "empty"
    elif all(map(_is_chat, filled)):
        kind = "chat"
    elif len(texts) == len(filled):
        kind = "number" if all(map(_is_number, texts)) else "text"
    else:
        kind = "number" if all(isinstance(value, (int, float)) for value in filled) else "other"
    return Column(name, kind, distinct, length)


def _is_number(text: str) -> bool:
    return re.fullmatch(r"\s*[-+]?\d+(\.\d+)?\s*", text) is not None


def _is_chat(value: Any) -> bool:
    """Whether this is a list of messages, or a text that holds one."""
    if isinstance(value, str):
        if not value.lstrip().startswith("["):
            return False
        try:
            value = parse_json(value)
        except (DataError, ValueError, RecursionError):
            return False
    turns = value if isinstance(value, list) else []
    return bool(turns) and all(isinstance(turn, dict) and {"role", "from"} & turn.keys() for turn in turns)


# rows as a whole ------------------------------------------------------------------------------------------------------


def _whole_rows(rows: Sequence[Row], columns: Sequence[Column]) -> Shape | None:
    """The shape of rows that are tokens, a recipe's or chats."""
    names = {column.name for column in columns}
    with_answer = {"thought_process", "predicted_label"} <= names
    try:
        known = detect(rows[0])
    except DataError:
        known = ""
    if known in (TOKENIZED, "rag") or (known == "nli" and with_answer):
        return Shape(known, {}, f"the columns are those of the format {known}")
    chats = [column for column in columns if column.kind == "chat"]
    both = {column.name for column in chats}
    answer = next((name for name in ("completion", "response") if name in both), None)
    if "prompt" in both and answer:
        return Shape("prompt_completion", {}, f"{answer!r} goes on with the chat in 'prompt'")
    order = ("messages", "conversations", "chosen")
    chats.sort(key=lambda column: order.index(column.name) if column.name in order else len(order))
    return _chat(rows, chats[0]) if chats else None


def _chat(rows: Sequence[Row], column: Column) -> Shape:
    name = column.name
    format_name = "sharegpt" if name == "conversations" else "messages"
    columns = {} if name in ("messages", "conversations") else {"messages": name}
    said = {
        str(turn.get("from", turn.get("role")))
        for row in rows
        if row.values.get(name) not in (None, "")
        for turn in from_json_text(row, row.values[name], name)
    }
    strange = {role: _role(role) for role in sorted(said - ROLES.keys())}
    roles = {role: meant for role, meant in strange.items() if meant is not None}
    return Shape(format_name, columns, f"every row of {name!r} is a list of messages", roles=roles)


def _role(name: str) -> str | None:
    """The role that a name of none of them stands for: another case of one, or a usual word."""
    known = ROLES.get(name.lower(), SPEAKERS.get(name.lower()))
    return known if known in ("system", "user", "assistant", "tool") else None


def _text(rows: Sequence[Row], column: Column) -> Shape:
    """Rows of one text: with a marker before the answer, or learnt whole."""
    texts = [text for row in rows if isinstance(text := row.values.get(column.name), str)]
    columns = {} if column.name == "text" else {"text": column.name}
    for marker in MARKERS:
        if texts and all(marker in text for text in texts):
            why = f"every text has {marker!r} before its answer"
            return Shape("text", columns, why, completion_start=marker)
    return Shape("text", columns, f"{column.name!r} is the only text, and is learnt whole", loss_on="all")


# questions and answers ------------------------------------------------------------------------------------------------


def _pair_of(columns: Sequence[Column], prompt: str | None, answer: str | None) -> tuple[str | None, str | None]:
    meant = [column for column in columns if not _passed_over(column)]
    usable = [column for column in meant if column.kind != "empty"]
    if answer is None:
        answer = _named(usable, ANSWERS, prompt, ("text", "number", "other")) or _named(
            meant, ANSWERS, prompt, ("empty",)
        )
    if prompt is None:
        prompt = _named(usable, QUESTIONS, answer, ("text",))
    left = [column for column in usable if column.name not in (prompt, answer)]
    if prompt is not None and answer is None and len(left) == 1:
        answer = left[0].name
    if answer is not None and prompt is None:
        texts = [column.name for column in left if column.kind == "text"]
        prompt = texts[0] if len(texts) == 1 else None
    if prompt is None and answer is None and len(left) == 2:
        few, many = sorted(left, key=lambda column: column.distinct)
        if few.distinct <= FEW_LABELS and few.distinct * 3 <= many.distinct and many.kind == "text":
            return many.name, few.name
    return prompt, answer


def _named(columns: Sequence[Column], names: Sequence[str], other: str | None, kinds: Sequence[str]) -> str | None:
    """The column with the likeliest of ``names``, as its whole name or a word of it; a text is preferred to a number
    that stands for it (``label`` beside ``label_text``)."""
    found: list[tuple[int, int, Column]] = []
    for column in columns:
        if column.name == other or column.kind not in kinds:
            continue
        places = [names.index(word) for word in column.words if word in names]
        if places:
            found.append((len(column.words) > 1, min(places), column))
    if not found:
        return None
    best = min(found, key=lambda item: item[:2])[2]
    spelled = [c for _, _, c in found if c.kind == "text" and c.distinct == best.distinct and best.words[0] in c.words]
    return spelled[0].name if best.kind == "number" and spelled else best.name


def _passed_over(column: Column) -> bool:
    return bool(PASSED_OVER & set(column.words)) and column.words[-1] in PASSED_OVER


def _pair(rows: Sequence[Row], columns: Sequence[Column], asked: Column, answered: Column, *, second: bool) -> Shape:
    """A question and its answer; with ``second``, a further column may belong to the question."""
    if asked.kind == answered.kind == "chat":
        names = {"prompt": asked.name, "completion": answered.name}
        return Shape("prompt_completion", _renamed(names), f"{answered.name!r} goes on with the chat in {asked.name!r}")
    more = _second(columns, asked, answered) if second else None
    read = {asked.name, answered.name, more and more.name, "weight", *CHAT_COLUMNS}
    left = ", ".join(column.name for column in columns if column.name not in read and column.kind != "empty")
    why = f"{asked.name!r} is asked, {answered.name!r} is answered{left and f'; not read: {left}'}"
    if more is not None:
        names = {"instruction": asked.name, "input": more.name, "output": answered.name}
        why = f"{more.name!r} follows {why}"
        return Shape("alpaca", _renamed(names), why, answered.name)
    if {asked.name, answered.name} <= {"prompt", "completion", "response"} and _says_where(rows, asked, answered):
        return Shape("prompt_completion", {}, f"{why}; the texts say themselves where the answer begins", answered.name)
    return Shape("question_answer", _renamed({"question": asked.name, "answer": answered.name}), why, answered.name)


def _second(columns: Sequence[Column], asked: Column, answered: Column) -> Column | None:
    """The column that belongs to the question as well."""
    wanted = SECONDS.get("".join(asked.words), ())
    found = [column for column in columns if column.kind == "text" and column.name != answered.name]
    return next((column for word in wanted for column in found if "".join(column.words) == word), None)


def _says_where(rows: Sequence[Row], asked: Column, answered: Column) -> bool:
    """Whether prompt and completion, one behind the other, show where the answer begins."""
    pairs = [(row.values.get(asked.name), row.values.get(answered.name)) for row in rows]
    return all(
        isinstance(prompt, str)
        and isinstance(completion, str)
        and (prompt.rstrip(" ").endswith((":", "\n", ">", "]", "=")) or completion.startswith("\n"))
        for prompt, completion in pairs
    )


def _renamed(names: dict[str, str]) -> dict[str, str]:
    return {expected: given for expected, given in names.items() if expected != given}


def label_values(rows: Sequence[Row], answer: str) -> list[str] | None:
    """The answers where they are the labels of a few classes, sorted; None where they are texts of their own.

    Raises:
        DataError: a row has no answer.
    """
    values = [value_of(row, answer) for row in rows]
    texts = [value if isinstance(value, str) else json.dumps(value, ensure_ascii=False) for value in values]
    labels = sorted({text.strip() for text in texts} - {""})
    short = all(len(label) <= LONGEST_LABEL and "\n" not in label for label in labels)
    return labels if short and 2 <= len(labels) <= FEW_LABELS and len(labels) * 3 <= len(rows) else None
