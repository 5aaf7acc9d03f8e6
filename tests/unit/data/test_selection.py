from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tunesmith import notices
from tunesmith.config.schema import DataSection
from tunesmith.data.examples import ExampleBuilder
from tunesmith.data.nli import nli_text
from tunesmith.data.row import Row
from tunesmith.data.selection import held_out, hold_out, leaks, load_rows, mix, refuse_leaks, shuffled
from tunesmith.errors import ConfigError, DataError

ROWS = [Row({"prompt": f"q{line}", "completion": "a"}, "train.jsonl", line) for line in range(1, 21)]


def test_holding_out_is_seeded_and_loses_nothing() -> None:
    train, held = hold_out(ROWS, 0.25, seed=3)
    assert len(held) == 5
    assert sorted([*train, *held], key=lambda row: row.line) == ROWS
    assert hold_out(ROWS, 0.25, seed=3) == (train, held)
    assert hold_out(ROWS, 0.25, seed=4) != (train, held)
    assert [row.line for row in held] == sorted(row.line for row in held)
    assert len(hold_out(ROWS, 0.001, seed=3)[1]) == 1
    with pytest.raises(DataError, match="leaves none to train on"):
        hold_out(ROWS[:1], 0.5, seed=3)


@pytest.mark.parametrize("share", [0.01, 0.1, 0.3, 0.9])
@pytest.mark.parametrize("seed", range(3))
def test_rows_of_one_prompt_stay_on_one_side(share: float, seed: int) -> None:
    asked = [f"q {number % 7}" for number in range(40)]
    pairs = [Row({"prompt": text.replace(" ", "  "), "completion": str(i)}, "f", i) for i, text in enumerate(asked)]
    chats = [
        Row({"messages": [{"role": "user", "content": text}, {"role": "assistant", "content": str(i)}]}, "f", i)
        for i, text in enumerate(asked)
    ]
    for rows in (pairs, chats):
        data = DataSection(dev_split=share, dev_group_by="prompt", shuffle_seed=seed)
        train, held = held_out(rows, data)
        assert sorted(row.line for row in [*train, *held]) == list(range(40))
        assert held, "at least one group"
        assert train
        sides = [{asked[row.line] for row in side} for side in (train, held)]
        assert not sides[0] & sides[1]
        assert len(held) <= max(6, round(share * 40)), "from below, or one group"
        assert held_out(rows, data) == (train, held)


@pytest.mark.parametrize("share", [0.1, 0.25, 0.5])
def test_labels_keep_their_proportions(share: float) -> None:
    labels = ["a"] * 60 + ["b"] * 30 + ["c"] * 9 + ["alone"]
    rows = [Row({"text": "t", "label": label}, "f", line) for line, label in enumerate(labels)]
    train, held = held_out(rows, DataSection(dev_split=share, dev_stratify_by="label"))
    counted = Counter(row.values["label"] for row in held)
    assert all(abs(counted[label] - share * number) <= 1 for label, number in Counter(labels).items())
    assert counted["alone"] == 0
    assert sorted(row.line for row in [*train, *held]) == list(range(100))


def test_a_column_that_no_row_has_cannot_group() -> None:
    with pytest.raises(DataError, match=r"no column 'promt'.*did you mean 'prompt'"):
        held_out(ROWS, DataSection(dev_split=0.1, dev_group_by="promt"))
    with pytest.raises(DataError, match="of one group"):
        held_out(ROWS, DataSection(dev_split=0.1, dev_group_by="completion"))
    with pytest.raises(DataError, match="leaves a label without"):
        held_out(ROWS, DataSection(dev_split=0.1, dev_stratify_by="prompt"))


def test_shuffling_is_seeded() -> None:
    assert shuffled(ROWS, 1) == shuffled(ROWS, 1) != ROWS
    assert sorted(shuffled(ROWS, 1), key=lambda row: row.line) == ROWS


def test_load_rows_shuffles_limits_and_holds_out(tmp_path: Path) -> None:
    path = tmp_path / "train.jsonl"
    path.write_text("".join(f'{{"prompt": "q{n}", "completion": "a"}}\n' for n in range(20)))
    train, held = load_rows(DataSection(train_data=str(path), limit=10, dev_split=0.2, shuffle_seed=7, eval_limit=1))
    assert (len(train), len(held)) == (8, 1)
    assert load_rows(DataSection(train_data=str(path)))[1] == []
    whole, evaluated = load_rows(DataSection(train_data=str(path), eval_data=str(path), eval_limit=3))
    assert (len(whole), [row.line for row in evaluated]) == (20, [1, 2, 3])
    with pytest.raises(DataError, match="train_data"):
        load_rows(DataSection())


def test_leaks_are_found_across_spelling_and_format(mistral_tokenizer: Any) -> None:
    builder = ExampleBuilder(mistral_tokenizer, DataSection())
    train = [
        Row({"text": nli_text("A cafe\u0301  man.", "H one", "t", 0)}, "train.jsonl", 91),
        Row({"text": nli_text("Other.", "H", "t", 0)}, "train.jsonl", 92),
    ]
    held = [
        Row({"premise": "Unseen.", "hypothesis": "H"}, "eval.jsonl", 3),
        Row({"premise": "A café man.", "hypothesis": "H\none"}, "eval.jsonl", 4),
    ]
    assert leaks(train, held, builder) == [("eval.jsonl:4", "train.jsonl:91")]
    assert leaks(train, held[:1], builder) == []


def test_leaks_of_texts_without_marker(stories_tokenizer: Any) -> None:
    builder = ExampleBuilder(stories_tokenizer, DataSection(loss_on="all"))
    rows = [Row({"text": text}, "t", line) for line, text in enumerate(("once upon", "a time"), 1)]
    assert leaks(rows, rows[1:], builder) == [("t:2", "t:2")]


def test_leaks_are_refused_unless_allowed() -> None:
    found = [(f"e:{line}", f"t:{line}") for line in range(1, 9)]
    with pytest.raises(DataError, match=r"8 evaluation prompts .* e:1 = t:1, .* and 3 more; .*allow_leak"):
        refuse_leaks(found, allow=False)
    notices.clear()
    refuse_leaks(found, allow=True)
    assert any("allow_leak is set" in text for text in notices.collected())
    refuse_leaks([], allow=False)


def sources(*sizes: int) -> list[list[Row]]:
    return [[Row({"prompt": f"{number}-{line}"}, f"s{number}", line) for line in range(1, size + 1)]
            for number, size in enumerate(sizes)]  # fmt: skip


def test_mixing_keeps_its_shares_and_repeats_no_row_until_the_first_source_is_used_up() -> None:
    mixed = mix(sources(2000, 1000, 1000), [1, 2, 1], seed=7, until_all=False)
    assert len({row.where for row in mixed}) == len(mixed)
    counts = Counter(row.source for row in mixed)
    assert counts["s1"] == 1000
    assert 400 < counts["s0"] < 600
    assert 400 < counts["s2"] < 600
    first_half = Counter(row.source for row in mixed[: len(mixed) // 2])
    assert 430 < first_half["s1"] < 570
    assert mixed == mix(sources(2000, 1000, 1000), [1, 2, 1], seed=7, until_all=False)
    assert mixed != mix(sources(2000, 1000, 1000), [1, 2, 1], seed=8, until_all=False)
    assert [row.line for row in mixed if row.source == "s1"] != sorted(range(1, 1001))


def test_mixing_until_all_are_used_repeats_small_sources_evenly() -> None:
    mixed = mix(sources(40, 5), [1, 1], seed=1, until_all=True)
    times = Counter(row.where for row in mixed)
    assert {times[f"s0:{line}"] for line in range(1, 41)} <= {1, 2}
    small = [times[f"s1:{line}"] for line in range(1, 6)]
    assert min(small) > 3
    assert max(small) - min(small) <= 1
    assert min(times.values()) == 1
    whole = mix(sources(6, 6), [1, 1], seed=3, until_all=True)
    assert {row.where for row in whole} == {f"s{n}:{line}" for n in (0, 1) for line in range(1, 7)}


def test_mixing_refuses_what_cannot_be_mixed() -> None:
    with pytest.raises(ConfigError, match="1 numbers for 2 entries"):
        mix(sources(3, 3), [1], seed=0, until_all=False)
    with pytest.raises(DataError, match="no rows to mix"):
        mix(sources(3, 0), [1, 1], seed=0, until_all=False)
    with pytest.raises(DataError, match="about 30030 draws from 31 rows"):
        mix(sources(1, 30), [1000, 1], seed=0, until_all=True)


def test_rows_held_out_are_never_drawn_again(tmp_path: Path) -> None:
    names = []
    for name, size in (("a", 30), ("b", 10)):
        path = tmp_path / f"{name}.jsonl"
        path.write_text("".join(json.dumps({"prompt": f"{name}{n}", "completion": "x"}) + "\n" for n in range(size)))
        names.append(str(path))
    data = DataSection(
        train_data=names, mix_weights=[1.0, 1.0], mix_stop="all_exhausted", dev_split=0.2, shuffle_seed=5, limit=70
    )
    train, held = load_rows(data)
    assert len(held) == 8
    assert 30 < len(train) <= 70
    assert not {row.where for row in train} & {row.where for row in held}
    assert len({row.where for row in train} | {row.where for row in held}) <= 40
    assert load_rows(data) == (train, held)
