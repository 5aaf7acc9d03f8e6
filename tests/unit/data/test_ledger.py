"""The ledger against an independent recount, its limits, and what it says."""

from __future__ import annotations

import json
import math
import random
from collections import Counter
from typing import Any

import pytest

from tunesmith import notices
from tunesmith.config.schema import DataSection
from tunesmith.data.examples import ExampleBuilder, build_examples
from tunesmith.data.ledger import Ledger, SourceAccount, histogram, percentiles
from tunesmith.data.masking import IGNORE_INDEX
from tunesmith.data.nli import nli_text
from tunesmith.data.row import Row
from tunesmith.errors import DataError


def many_rows(number: int, seed: int) -> list[Row]:
    """Rows of two sources: long ones, empty ones, weightless ones, equal ones, some with a further column."""
    generator = random.Random(seed)
    rows = []
    for line in range(1, number + 1):
        values: dict[str, Any] = {
            "prompt": f"{generator.randrange(6)} " + "word " * generator.randrange(1, 30),
            "completion": generator.choice([" yes", " no", " it is so", "", " word" * 20]),
        }
        if generator.random() < 0.1:
            values["weight"] = 0
        if generator.random() < 0.2:
            values["note"] = "x"
        rows.append(Row(values, generator.choice(["a.jsonl", "b.jsonl"]), line))
    return rows


@pytest.mark.parametrize("policy", ["drop", "truncate_prompt", "truncate_completion"])
@pytest.mark.parametrize("duplicates", ["report", "drop"])
def test_counts_equal_an_independent_recount(stories_tokenizer: Any, policy: Any, duplicates: Any) -> None:
    rows = many_rows(300, seed=3)
    limits: dict[str, Any] = {"max_dropped": 1.0, "max_duplicates": 1.0}
    settings = {"empty_completion": "drop", "duplicates": duplicates, **limits}
    unlimited = ExampleBuilder(
        stories_tokenizer, DataSection(max_length=10_000, **{**settings, "duplicates": "report"})
    )
    whole = {row.where: unlimited.example(row) for row in rows}
    # truncate_completion needs room for every prompt; here the longest rows are long by their completion
    longest_prompt = max(example.num_prompt_tokens for example in whole.values() if example)
    limit = longest_prompt + 2 if policy == "truncate_completion" else 60
    if policy == "truncate_prompt":
        limit = max(len(example.input_ids) - example.num_prompt_tokens + 1 for example in whole.values() if example)
    ledger = Ledger()
    builder = ExampleBuilder(stories_tokenizer, DataSection(max_length=limit, too_long=policy, **settings))
    examples = build_examples(rows, builder, ledger)
    kept = {example.origin: example for example in examples}
    assert len(kept) == len(examples)
    seen: dict[tuple[Any, ...], str] = {}
    total_cut = 0
    for source in ("a.jsonl", "b.jsonl"):
        own = [row for row in rows if row.source == source]
        account = ledger.to_dict()["sources"][source]
        empty = [row.where for row in own if not row.values["completion"].strip()]
        weightless = [row.where for row in own if row.values.get("weight") == 0 and row.where not in empty]
        rest = [row for row in own if row.where not in empty + weightless]
        longer = [row.where for row in rest if len(whole[row.where].input_ids) > limit]  # type: ignore[union-attr]
        assert account["read"] == len(own)
        assert account["dropped"].get("empty_completion", []) == empty
        assert account["dropped"].get("weight_0", []) == weightless
        assert account["dropped"].get("too_long", []) == (longer if policy == "drop" else [])
        assert account["unused_columns"] == {"note": sum("note" in row.values for row in own)}
        mine = [kept[row.where] for row in rest if row.where in kept]
        assert account["kept"] == len(mine)
        assert account["tokens"] == sum(len(example.input_ids) for example in mine)
        trained = sum(label != IGNORE_INDEX for example in mine for label in example.labels)
        assert account["trained_tokens"] == trained
        assert account["trained_share"] == trained / account["tokens"]
        if policy != "drop" and duplicates == "report":
            assert account["cut"] == {policy: longer}
            assert account["end_beyond_limit"] == longer
            total_cut += len(longer)
            lengths = [len(whole[row.where].input_ids) for row in rest]  # type: ignore[union-attr]
            assert account["longest"] == max(lengths)
            assert account["lengths"]["counts"] == {str(key): value for key, value in sorted(Counter(lengths).items())}
    assert policy == "drop" or duplicates == "drop" or total_cut > 0
    equal = []
    for row in rows:
        if row.where in kept:
            example = kept[row.where]
            key = (*example.input_ids, "|", *example.labels)
            first = seen.setdefault(key, row.where)
            if first != row.where:
                equal.append((row.where, first))
    found = [tuple(pair) for account in ledger.to_dict()["sources"].values() for pair in account["duplicates"]]
    if duplicates == "report":
        assert sorted(found) == sorted(equal)
        assert len(found) > 5
    else:
        assert equal == []
        assert sorted(row for row, _ in found) == sorted(
            row for account in ledger.sources.values() for row in account.dropped["duplicate"]
        )
    total = ledger.to_dict()["total"]
    assert total["read"] == 300 == total["kept"] + sum(total["dropped"].values())
    assert total["duplicates"] == len(found)


def test_the_ledger_comes_back_from_its_own_data(stories_tokenizer: Any) -> None:
    ledger = Ledger()
    settings = DataSection(empty_completion="drop", max_dropped=1.0, max_length=10_000)
    build_examples(many_rows(80, seed=5), ExampleBuilder(stories_tokenizer, settings), ledger)
    ledger.leaks = [("e.jsonl:1", "a.jsonl:2")]
    values = json.loads(json.dumps(ledger.to_dict()))
    assert values == ledger.to_dict()
    again = Ledger.from_dict(values)
    assert again.to_dict() == values
    assert again.table() == ledger.table()


def test_percentiles_and_histogram() -> None:
    lengths = Counter({1: 1, 16: 1, 17: 1, 32: 1, 33: 1, 100: 5})
    flat = sorted(lengths.elements())
    for percent, found in percentiles(lengths, range(1, 101)).items():
        assert found == flat[math.ceil(percent * len(flat) / 100) - 1]
    assert histogram(lengths) == {"1-16": 2, "17-32": 2, "33-64": 1, "65-128": 5}
    assert histogram(Counter({40: 2, 300: 1})) == {"33-64": 2, "65-128": 0, "129-256": 0, "257-512": 1}
    assert histogram(Counter()) == {} == percentiles(Counter(), (50,))


LIMITS = [
    ({"dropped": {"too_long": ["f:1", "f:2"]}}, {"max_dropped": 0.1}, "max_dropped", "f:1, f:2"),
    ({"cut": {"truncate_prompt": ["f:7"]}}, {"max_cut": 0.05}, "max_cut", "f:7"),
    ({"duplicates": [("f:2", "f:1")] * 6}, {}, "max_duplicates", "f:2 = f:1"),
    ({"trained_tokens": 1}, {"min_trained_share": 0.01}, "min_trained_share", "1 of 1000 tokens"),
]


@pytest.mark.parametrize(("given", "settings", "name", "words"), LIMITS)
def test_limits_refuse_a_run_in_one_line_with_a_remedy_that_works(
    given: dict[str, Any], settings: dict[str, Any], name: str, words: str
) -> None:
    ledger = Ledger()
    ledger.sources["f"] = SourceAccount(**{"read": 10, "kept": 10, "tokens": 1000, "trained_tokens": 500} | given)
    with pytest.raises(DataError, match=name) as caught:
        ledger.refuse(DataSection(**settings))
    (line,) = caught.value.lines()
    assert words in line
    asked = float(line.rsplit(f"{name}: ", 1)[1])
    ledger.refuse(DataSection(**settings | {name: asked}))


def test_defaults_let_an_ordinary_run_pass() -> None:
    ledger = Ledger()
    ledger.sources["f"] = SourceAccount(
        read=100, kept=80, dropped={"too_long": ["f:1"] * 20}, tokens=100_000, trained_tokens=60
    )
    ledger.refuse(DataSection())


def test_what_stands_out_is_said(stories_tokenizer: Any) -> None:
    notices.clear()
    rows = [Row({"text": nli_text(f"P{n}", "H", "t", 1)} | ({"extra": 1} if n == 4 else {}), "n.jsonl", n)
            for n in range(1, 6)]  # fmt: skip
    rows.append(Row(dict(rows[0].values), "n.jsonl", 6))
    ledger = Ledger()
    build_examples(rows, ExampleBuilder(stories_tokenizer, DataSection()), ledger)
    said = "\n".join(notices.collected())
    assert "n.jsonl:1: this and all 5 other labelled rows have the label 1" in said
    assert "'extra' stands in 1 of 6 rows" in said
    assert "n.jsonl:6 = n.jsonl:1" in said
    table = ledger.table()
    assert table[0].split() == ["source", "read", "kept", "cut", "dropped", "tokens", "trained", "median", "longest"]
    assert table[1].split()[:3] == ["n.jsonl", "6", "6"]
    assert any(line == "labels: 1: 6" for line in table)
    assert any("n.jsonl:6 = n.jsonl:1" in line for line in table)
    assert any(line.endswith("#" * 40) for line in table)


def test_both_labels_are_no_news(stories_tokenizer: Any) -> None:
    notices.clear()
    rows = [Row({"text": nli_text("P", f"H{n}", "t", n % 2)}, "n.jsonl", n) for n in range(4)]
    ledger = Ledger()
    build_examples(rows, ExampleBuilder(stories_tokenizer, DataSection()), ledger)
    assert ledger.to_dict()["total"]["labels"] == {"0": 2, "1": 2}
    assert not any("label" in text for text in notices.collected())


def test_a_row_drawn_again_is_no_duplicate(stories_tokenizer: Any) -> None:
    row = Row({"prompt": "q", "completion": " a"}, "f", 1)
    ledger = Ledger()
    builder = ExampleBuilder(stories_tokenizer, DataSection(duplicates="drop"))
    assert len(build_examples([row, Row(row.values, "f", 1)], builder, ledger)) == 2
    assert ledger.to_dict()["total"]["repeated"] == 1
    assert ledger.to_dict()["total"]["duplicates"] == 0
