"""Ways in which people write settings: helpers of a file, variables, several names, lists, all mistakes at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tunesmith import notices
from tunesmith.config.load import load
from tunesmith.config.resolve import Resolved
from tunesmith.errors import ConfigError, ConfigErrors, UnsafeError

MODEL = {"python": "model_id = 'm'\n", "json": "", "yaml": "model: {path: m}\n", "hydra": ""}
SUFFIX = {"python": "py", "json": "json", "yaml": "yaml", "hydra": "yaml"}


def resolved(folder: Path, dialect: str, text: str, *overrides: str) -> Resolved:
    notices.clear()
    path = folder / f"config.{SUFFIX[dialect]}"
    path.write_text(text)
    return load(path, overrides, dialect=dialect)


def with_line(dialect: str, name: str, value: str) -> str:
    """A file of the dialect with one training setting."""
    python = {"null": "None"}.get(value, value)
    return {
        "python": f"model_id = 'm'\n{name} = {python}\n",
        "json": f'{{"{name}": {value}}}',
        "yaml": f"model: {{path: m}}\ntraining:\n  {name}: {value}\n",
        "hydra": f"model:\n  model_name_or_path: m\ntrain:\n  {name}: {value}\n",
    }[dialect]


@pytest.mark.parametrize("dialect", SUFFIX)
@pytest.mark.parametrize("value", ["null", "0", "0.0"])
def test_no_clipping_is_written_in_three_ways(tmp_path: Path, dialect: str, value: str) -> None:
    assert resolved(tmp_path, dialect, with_line(dialect, "max_grad_norm", value)).config.training.max_grad_norm == 0
    given = resolved(tmp_path, dialect, with_line(dialect, "seed", "1"), "--max_grad_norm", "None")
    assert given.config.training.max_grad_norm == 0


@pytest.mark.parametrize("dialect", SUFFIX)
def test_true_resumes_from_the_newest_checkpoint(tmp_path: Path, dialect: str) -> None:
    for value, expected in (("true", "latest"), ("false", None), ('"runs/checkpoint-5"', "runs/checkpoint-5")):
        text = with_line(
            dialect, "resume_from_checkpoint", value.title() if dialect == "python" and value[0] != '"' else value
        )
        assert resolved(tmp_path, dialect, text).config.training.resume_from_checkpoint == expected


def test_without_evaluation_rows_document_3_trains_on_and_says_so(tmp_path: Path) -> None:
    text = '{"early_stopping_patience": 5, "load_best_model_at_end": true}'
    training = resolved(tmp_path, "json", text).config.training
    assert (training.early_stopping_patience, training.load_best_model_at_end) == (None, False)
    assert sum("no evaluation rows" in said for said in notices.collected()) == 2
    with_rows = resolved(tmp_path, "json", text, "--eval_file", "e.json").config.training
    assert (with_rows.early_stopping_patience, with_rows.load_best_model_at_end) == (5, True)


SPELLINGS_OF_A_VARIABLE = ["${RATE_OF_TEST}", "${oc.env:RATE_OF_TEST}", "${oc.env:NOT_SET_IN_TEST,3e-4}"]


@pytest.mark.parametrize(
    ("dialect", "spelled"),
    [
        (dialect, spelled)
        for dialect in SUFFIX
        for spelled in SPELLINGS_OF_A_VARIABLE
        if dialect != "hydra" or "oc.env" in spelled  # in Hydra's files ${NAME} is another key
    ],
)
def test_variables_stand_for_numbers_and_texts(
    tmp_path: Path, dialect: str, spelled: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RATE_OF_TEST", "3e-4")
    text = with_line(dialect, "learning_rate", f'"{spelled}"')
    assert resolved(tmp_path, dialect, text).config.training.learning_rate == 3e-4
    text = with_line(dialect, "run_name", f'"at {spelled}"')
    assert resolved(tmp_path, dialect, text).config.tracking.run_name in ("at 3e-4", "at 0.0003")


@pytest.mark.parametrize("dialect", SUFFIX)
@pytest.mark.parametrize("name", ["HF_TOKEN", "my_api_key", "DB_PASSWORD", "CLIENT_SECRET", "X_CREDENTIALS"])
def test_a_variable_that_may_be_a_secret_is_not_read(
    tmp_path: Path, dialect: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, "swordfish")
    with pytest.raises(UnsafeError) as caught:
        resolved(tmp_path, dialect, with_line(dialect, "run_name", f'"${{oc.env:{name}}}"'))
    assert "swordfish" not in caught.value.line()
    with pytest.raises(UnsafeError):
        resolved(tmp_path, dialect, with_line(dialect, "seed", "1"), f"--output_dir=/x/${name}")


def test_a_url_with_a_password_in_a_variable_is_a_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROWS_OF_TEST", "https://me:swordfish@host/rows.jsonl")
    with pytest.raises(UnsafeError):
        resolved(tmp_path, "json", '{"train_file": "${ROWS_OF_TEST}"}')


def test_what_stays_as_it_is_written(tmp_path: Path) -> None:
    text = r'{"completion_start": "${x}", "run_name": "\\${x}", "template": "a ${x} {query} {output}"}'
    values = resolved(tmp_path, "json", text).config
    assert values.data.completion_start == "${x}"
    assert values.tracking.run_name == "\\${x}"
    assert values.data.template == "a ${x} {query} {output}"


@pytest.mark.parametrize("dialect", SUFFIX)
def test_two_names_of_one_setting_in_a_file_are_an_error(tmp_path: Path, dialect: str) -> None:
    both = {
        "python": "model_id = 'm'\nlr = 1e-4\nlearning_rate = 2e-4\n",
        "json": '{"lr": 1e-4, "learning_rate": 2e-4}',
        "yaml": "model: {path: m}\ntraining: {lr: 1e-4, learning_rate: 2e-4}\n",
        "hydra": "model: {model_name_or_path: m}\ntrain: {lr: 1e-4, learning_rate: 2e-4}\n",
    }
    with pytest.raises(ConfigError, match=r"lr = 0.0001 .* and .*learning_rate = 0.0002 are two names of one"):
        resolved(tmp_path, dialect, both[dialect])


def test_parts_of_one_setting_may_each_be_said(tmp_path: Path) -> None:
    text = "model: {path: m}\ndataset: {question_column: q, answer_column: a}\n"
    text += "training: {use_packing: false, group_by_length: true}\n"
    found = resolved(tmp_path, "yaml", text).config
    assert found.data.columns == {"question": "q", "answer": "a"}
    assert found.training.batching == "length_grouped"
    with pytest.raises(ConfigError, match="two names of one setting"):
        resolved(tmp_path, "yaml", text.replace("false", "true"))


def test_a_later_file_may_use_another_name(tmp_path: Path) -> None:
    (tmp_path / "base_of_test.py").write_text("model_id = 'm'\nnum_epochs = 3\n")
    text = "from base_of_test import *\nnum_train_epochs = 1\n"
    assert resolved(tmp_path, "python", text).config.training.num_train_epochs == 1


FOUR_MISTAKES = {
    "python": "learning_rat = 1\nseed = 'x'\nlora_r = 0\nload_in_4bit = load_in_8bit = True\nmodel_id = 'm'\n",
    "json": '{"learning_rat": 1, "seed": "x", "lora_r": 0, "load_in_4bit": true, "load_in_8bit": true}',
    "yaml": "model: {path: m, load_in_4bit: true, load_in_8bit: true, use_lora: true, lora_config: {r: 0}}\n"
    "training: {learning_rat: 1, seed: x}\n",
    "hydra": "model: {model_name_or_path: m, load_in_4bit: true, load_in_8bit: true, lora: {r: 0}}\n"
    "train: {learning_rat: 1, seed: x}\n",
}


@pytest.mark.parametrize("dialect", SUFFIX)
def test_all_mistakes_are_told_at_once(tmp_path: Path, dialect: str) -> None:
    with pytest.raises(ConfigErrors) as caught:
        resolved(tmp_path, dialect, FOUR_MISTAKES[dialect])
    told = caught.value.lines()
    assert len(told) == 4, told
    for words in ("learning_rat", "seed", "greater than 0", "both on"):
        assert sum(words in line for line in told) == 1


def test_a_missing_model_is_not_told_beside_its_misspelling(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        resolved(tmp_path, "yaml", "model: {model_name_or_pth: m}\n")
    assert len(caught.value.lines()) == 1


@pytest.mark.parametrize(
    ("tokens", "path", "expected"),
    [
        (["--mix_weights", "1", "2.5"], "data.mix_weights", [1.0, 2.5]),
        (["--mix_weights", "1,2.5"], "data.mix_weights", [1.0, 2.5]),
        (["data.mix_weights=[1, 2.5]"], "data.mix_weights", [1.0, 2.5]),
        (["--mix_weights", "3"], "data.mix_weights", [3.0]),
        (["--layers_to_transform", "0", "1"], "adapter.layers_to_transform", [0, 1]),
        (
            ["--columns", "prompt=message,completion=category"],
            "data.columns",
            {"prompt": "message", "completion": "category"},
        ),
        (
            ["--columns.prompt", "message", "--columns.completion=a b"],
            "data.columns",
            {"prompt": "message", "completion": "a b"},
        ),
        (["lr_scheduler_kwargs.min_lr=1e-6"], "training.lr_scheduler_kwargs", {"min_lr": 1e-6}),
        (["--chat_template_kwargs.enable_thinking", "false"], "data.chat_template_kwargs", {"enable_thinking": False}),
    ],
)
def test_lists_and_mappings_on_a_command_line(tmp_path: Path, tokens: list[str], path: str, expected: Any) -> None:
    found = resolved(tmp_path, "python", "model_id = 'm'\ntrain_data = ['a', 'b']\n", *tokens).values()[path]
    assert found == expected


def test_flat_json_takes_groups(tmp_path: Path) -> None:
    text = '{"training": {"seed": 3}, "lora_config": {"r": 4, "lora_alpha": 8}, '
    text += '"quantization_config": {"load_in_4bit": false}}'
    found = resolved(tmp_path, "json", text).config
    assert (found.training.seed, found.adapter.lora_r, found.adapter.lora_alpha) == (3, 4, 8)
    assert not found.quantization.load_in_4bit


def test_hydras_own_refusals_suggest(tmp_path: Path) -> None:
    from tunesmith.config.readers.hydra_compose import compose

    (tmp_path / "training.yaml").write_text("model: {model_name_or_path: m}\ntrain: {seed: 1}\n")
    for override, advice in (
        ("train.sed=1", "did you mean 'train.seed'"),
        ("trian.seed=1", "train.seed"),
        ("train.learning_rate=1", "write +train.learning_rate=..."),
    ):
        with pytest.raises(ConfigError) as caught:
            compose(tmp_path, "training", [override])
        assert advice in caught.value.line()


def test_keywords_of_trainingconfig_suggest() -> None:
    from tunesmith.entrypoints.reasoning import TrainingConfig

    with pytest.raises(ConfigErrors) as caught:
        TrainingConfig(learning_rat=1, max_steps=3)  # type: ignore[call-arg]
    first, second = caught.value.lines()
    assert "did you mean 'learning_rate'" in first
    assert "ModelTrainer(config, max_steps=...)" in second


@pytest.mark.parametrize("dialect", SUFFIX)
@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("torch_compile", "true", "packed"),
        ("label_smoothing_factor", "0.1", "neftune_noise_alpha"),
        ("use_liger_kernel", "true", "trained positions"),
        ("auto_find_batch_size", "true", "tunesmith check"),
        ("dataloader_drop_last", "true", "every row"),
        ("save_only_model", "true", "continued exactly"),
        ("optim_target_modules", '["q_proj"]', "paged_adamw_8bit"),
        ("adapter_name_or_path", '"x"', "tunesmith merge"),
    ],
)
def test_names_of_other_programs_are_answered(tmp_path: Path, dialect: str, name: str, value: str, words: str) -> None:
    written = value.title() if dialect == "python" and value == "true" else value
    with pytest.raises(ConfigError) as caught:
        resolved(tmp_path, dialect, with_line(dialect, name, written))
    (line,) = caught.value.lines()
    assert name in line
    assert words in line
    assert ":" in str(caught.value.where)
    off = {"python": "None"}.get(dialect, "null")
    resolved(tmp_path, dialect, with_line(dialect, name, off))
    resolved(tmp_path, dialect, with_line(dialect, "seed", "1"), f"--{name}=none")


@pytest.mark.parametrize(
    ("tokens", "path", "expected"),
    [
        (["--target_modules", "q_proj,v_proj"], "adapter.target_modules", ["q_proj", "v_proj"]),
        (["--target_modules", "q_proj"], "adapter.target_modules", ["q_proj"]),
        (["--target_modules", r".*layers\.[0-3].*q_proj"], "adapter.target_modules", r".*layers\.[0-3].*q_proj"),
        (["--target_modules", "all-linear"], "adapter.target_modules", "all-linear"),
        (["--rank_pattern", "q_proj=4,v_proj=8"], "adapter.rank_pattern", {"q_proj": 4, "v_proj": 8}),
        (["--alpha_pattern.layers.0.q_proj", "4"], "adapter.alpha_pattern", {"layers.0.q_proj": 4.0}),
        (["--optim", "sgd", "--optim_args", "momentum=0.9,nesterov=true"], "training.optim_args",
         {"momentum": 0.9, "nesterov": True}),
        (["--train_on_inputs", "true"], "data.loss_on", "all"),
        (["--train_on_inputs", "false"], "data.loss_on", "completion"),
        (["--assistant_only_loss"], "data.loss_on", "assistant"),
        (["--completion_only_loss", "none"], "data.loss_on", "completion"),
        (["--ddp_timeout", "7200"], "launch.ddp_timeout", 7200),
    ],
)  # fmt: skip
def test_common_settings_under_their_common_names(tmp_path: Path, tokens: list[str], path: str, expected: Any) -> None:
    assert resolved(tmp_path, "python", "model_id = 'm'\n", *tokens).values()[path] == expected


def test_report_to_all_is_what_is_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tunesmith.config.names.is_importable", lambda name: name == "tensorboard")
    found = resolved(tmp_path, "json", '{"report_to": "all"}').config.tracking.report_to
    assert found == ["tensorboard"]


def test_the_best_needs_an_evaluation(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="save_strategy best has no evaluation"):
        resolved(tmp_path, "python", "model_id = 'm'\nsave_strategy = 'best'\n")


def test_a_share_in_place_of_steps_is_told_what_to_write(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"a share of the run.*tunesmith check"):
        resolved(tmp_path, "python", "model_id = 'm'\nsave_steps = 0.1\n")
