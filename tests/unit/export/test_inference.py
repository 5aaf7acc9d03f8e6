"""inference.json: a program that knows nothing of tunesmith gets, token for token, what tunesmith gets."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from helpers import run_training, write_rows
from tunesmith import assets
from tunesmith.cli.main import main
from tunesmith.data.nli import nli_text
from tunesmith.data.rows import read_rows
from tunesmith.errors import ModelError
from tunesmith.evaluate.answering import Answerer
from tunesmith.evaluate.subject import find_subject
from tunesmith.export import served
from tunesmith.export.inference import INFERENCE, Contract, read, settings_of
from tunesmith.export.merge import merge

PLAIN = """
import json, sys
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

def prompt_ids(contract, tokenizer, row):
    prompt = contract["prompt"]
    row = row | {name: row[given] for name, given in contract["columns"].items() if given in row}
    if prompt["kind"] == "text":
        query = prompt["query"].format(**row)
        if prompt["cut_after"]:
            query = query[: query.rindex(prompt["cut_after"]) + len(prompt["cut_after"])]
            query = query.removeprefix(tokenizer.bos_token)
        text = prompt["before"] + query + prompt["after"]
        return prompt["begin_token_ids"] + tokenizer(text, add_special_tokens=False).input_ids
    messages = row["messages"] if prompt["query"] is None else [
        {"role": "user", "content": prompt["query"].format(**row)}
    ]
    if prompt["system"] is not None and messages[0]["role"] != "system":
        messages = [{"role": "system", "content": prompt["system"]}] + messages
    return tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, return_dict=False, **prompt["chat_template_kwargs"]
    )

for folder, rows in zip(sys.argv[1::2], sys.argv[2::2]):
    contract = json.load(open(folder + "/inference.json"))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    answers = []
    for line in open(rows):
        ids = prompt_ids(contract, tokenizer, json.loads(line))
        output = model.generate(input_ids=torch.tensor([ids]), **contract["generation"])
        answers.append(output[0, len(ids):].tolist())
    print(json.dumps(answers))
"""
NUMBER = 3
"""Rows that each model answers."""
NLI = [
    ("A dog runs in the park.", "An animal is outside."),
    ("Two men sleep.", 'A man says "no" {now}.'),
    ("The driver\nhelps a woman.", "Nobody helps."),
]


@dataclass(frozen=True)
class Case:
    """A trained and merged model, and the rows it is asked."""

    run: Path
    merged: Path
    rows: Path


def _nli_rows() -> list[dict[str, Any]]:
    return [
        {"premise": premise, "hypothesis": hypothesis, "thought_process": "It is so.", "predicted_label": index % 2}
        for index, (premise, hypothesis) in enumerate(NLI)
    ]


def _chats() -> list[dict[str, Any]]:
    first = [{"role": "user", "content": "Where is the dog?"}, {"role": "assistant", "content": "In the park."}]
    rows = [[*first, {"role": "user", "content": said}] for said in ("Who runs?", "And the man?")]
    rows.append([{"role": "system", "content": "Say no."}, {"role": "user", "content": "Is it so?"}])
    return [{"messages": [*turns, {"role": "assistant", "content": "A dog."}]} for turns in rows]


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Case]:
    """Models of the four kinds of prompt, trained on a base whose own defaults sample and punish repetitions.

    Every file that the configurations name is gone afterwards.
    """
    home = tmp_path_factory.mktemp("inference")
    base = home / "base"
    shutil.copytree(assets.embedded_model("nano-mistral"), base)
    own = json.loads((base / "generation_config.json").read_text())
    own |= {"do_sample": True, "temperature": 2.0, "repetition_penalty": 1.7}
    (base / "generation_config.json").write_text(json.dumps(own))
    files = home / "files"
    files.mkdir()
    (files / "system.txt").write_text("Answer in few words.\n")
    (files / "template.txt").write_text("<s>{instruction}\nQ: {query}\nA: {output}</s>\n")
    texts = [nli_text(premise, hypothesis, "It is so.", index % 2) for index, (premise, hypothesis) in enumerate(NLI)]
    kinds: dict[str, tuple[list[dict[str, Any]], dict[str, Any]]] = {
        "nli by chat template": (_nli_rows(), {"template": "chat"}),
        "text template": (
            [{"q": f"Who sees {word}?", "a": "A dog."} for word in ("the man", "it", "<s>")],
            {
                "template": str(files / "template.txt"),
                "instruction": str(files / "system.txt"),
                "columns": {"question": "q", "answer": "a"},
            },
        ),
        "messages with system": (_chats(), {"template": "chatml", "instruction": str(files / "system.txt")}),
        "text rows": ([{"text": text} for text in texts], {}),
    }
    made = {}
    for number, (name, (rows, settings)) in enumerate(kinds.items()):
        folder = home / str(number)
        result = run_training(
            folder,
            base,
            rows,
            max_steps=2,
            learning_rate=5e-3,
            max_new_tokens=24,
            special_in_content="split",
            save_strategy="steps",
            save_steps=2,
            **settings,
        )
        merge(result.model_folder, folder / "merged", dtype="float32", questions=None)
        asked = rows if name != "text template" else [{"q": row["q"].replace("<s>", "all")} for row in rows]
        made[name] = Case(result.folder, folder / "merged", Path(write_rows(folder / "asked.jsonl", asked)))
    shutil.rmtree(files)
    return made


@pytest.fixture(scope="module")
def plain(cases: dict[str, Case]) -> dict[str, list[list[int]]]:
    """What transformers alone generates, in one fresh process that imports nothing of tunesmith."""
    arguments = [str(path) for case in cases.values() for path in (case.merged, case.rows)]
    done = subprocess.run([sys.executable, "-I", "-c", PLAIN, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return dict(zip(cases, map(json.loads, done.stdout.splitlines()), strict=True))


def test_plain_transformers_says_what_predict_says(
    cases: dict[str, Case], plain: dict[str, list[list[int]]], tmp_path: Path
) -> None:
    checked = 0
    for number, (name, case) in enumerate(cases.items()):
        output = tmp_path / f"{number}.jsonl"
        assert main(["predict", str(case.merged), str(case.rows), str(output)]) == 0
        predicted = [json.loads(line) for line in output.read_text().splitlines()]
        answers = Answerer(find_subject(case.merged)).answer(read_rows(str(case.rows)))
        contract = read(case.merged)
        for ids, row, answer in zip(plain[name], predicted, answers, strict=True):
            assert row["output"] == answer.text, name
            assert row["stopped"] == answer.stopped, name
            assert ids == answer.token_ids + [ids[-1]] * answer.stopped, name
            assert (ids[-1] in contract.stop_token_ids) == answer.stopped, name
            assert ids, name
            checked += 1
    assert checked == len(cases) * NUMBER == 12


def test_the_run_answers_like_its_merged_model(cases: dict[str, Case]) -> None:
    case = cases["text template"]
    rows = read_rows(str(case.rows))
    run, merged = (Answerer(find_subject(folder)).answer(rows) for folder in (case.run, case.merged))
    assert [answer.token_ids for answer in run] == [answer.token_ids for answer in merged]


def test_every_saved_model_has_its_contract_without_paths(cases: dict[str, Case]) -> None:
    folders = [folder for case in cases.values() for folder in (case.run, case.run / "checkpoint-2", case.merged)]
    for folder in folders:
        assert settings_of(folder) == settings_of(folder.parent / "run" if folder.name != "run" else folder) or (
            folder.name == "checkpoint-2"
        )
        text = (folder / INFERENCE).read_text()
        assert str(folder.parents[1]) not in text
        assert "system.txt" not in text
    assert len(folders) == 12
    case = cases["text template"]
    assert settings_of(case.run)["data.template"] == "<s>{instruction}\nQ: {query}\nA: {output}"
    assert settings_of(case.run / "checkpoint-2") == settings_of(case.run) == settings_of(case.merged)


def test_stop_tokens_go_into_the_generation_defaults_and_the_rest_of_these_stays(cases: dict[str, Case]) -> None:
    merged = cases["messages with system"].merged
    defaults = json.loads((merged / "generation_config.json").read_text())
    contract = read(merged)
    assert defaults["eos_token_id"] == contract.stop_token_ids
    assert (defaults["repetition_penalty"], defaults["do_sample"]) == (1.7, True)
    assert contract.generation["repetition_penalty"] is None
    assert contract.generation["do_sample"] is False


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"version": 2}, "version 2"),
        ({"surprise": 1}, "surprise"),
        ({"settings": {"training.output_dir": "x"}}, "training.output_dir"),
        ({"settings": {"data.template": "/etc/passwd"}}, "data.template"),
        ({"stop_token_ids": ["2"]}, "stop_token_ids"),
    ],
)
def test_a_contract_that_is_not_understood_is_refused(
    cases: dict[str, Case], tmp_path: Path, change: dict[str, Any], says: str
) -> None:
    contract = json.loads((cases["text rows"].merged / INFERENCE).read_text())
    (tmp_path / INFERENCE).write_text(json.dumps(contract | change))
    with pytest.raises(ModelError, match=says) as refused:
        read(tmp_path)
    assert INFERENCE in refused.value.line()


def test_engines_make_the_same_prompt_of_a_request(cases: dict[str, Case]) -> None:
    """What is served: the chat template alone, without inference.json."""
    checked = 0
    for name, case in cases.items():
        answerer = Answerer(find_subject(case.merged))
        contract = answerer.contract
        assert isinstance(contract, Contract)
        rows = read_rows(str(case.rows))
        builder = answerer.builder(rows[0])
        template = served.served_template(contract.prompt, answerer.tokenizer)
        for row in rows:
            messages = row.values.get("messages", [])[:-1]
            if contract.prompt.query is not None:
                named = row.values | {key: row.values[given] for key, given in contract.columns.items() if given == "q"}
                question = contract.prompt.query.format(**named)
                cut = contract.prompt.cut_after if contract.prompt.kind == "text" else None
                messages = [
                    {"role": "user", "content": question[: question.rindex(cut) + len(cut)] if cut else question}
                ]
            ids = answerer.tokenizer.apply_chat_template(
                messages, chat_template=template, add_generation_prompt=True, return_dict=False
            )
            assert ids == builder.prompt(row).input_ids, name
            checked += 1
    assert checked == 12
