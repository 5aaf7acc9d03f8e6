"""Rules between settings: each has a configuration that breaks it, and all breaches are listed at once."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tunesmith.config.draft import Draft
from tunesmith.config.load import load
from tunesmith.config.names import NameTable
from tunesmith.config.overrides import parse_overrides
from tunesmith.config.resolve import Resolved, resolve
from tunesmith.config.rules import RULES, find_problems
from tunesmith.errors import ConfigErrors

NAMES = NameTable()


def settings(*tokens: str) -> Resolved:
    """Resolved settings, before any rule."""
    return resolve(Draft("command line", (), names=NAMES), parse_overrides(["--model", "m", *tokens], NAMES))


BREACHES: dict[str, tuple[list[str], str]] = {
    "chosen_device_is_for_one_process": (["--gpu_id", "1", "--num_processes", "2"], "gpu_id chooses one device"),
    "machines_find_each_other": (["--nodes", "2"], "2 machines need node_rank and rendezvous"),
    "new_tokens_are_words": (["--new_tokens", '["a b", " c"]'], "' c' cannot be a new token"),
    "new_tokens_lie_on_every_device": (
        ["--new_tokens", '["<a>"]', "--strategy", "fsdp2"],
        "new tokens do not go with strategy",
    ),
    "one_way_to_hold_out": (["--dev_group_by", "prompt"], "how dev_split holds out rows, which is 0"),
    "names_hold_no_credentials": (
        ["--train_data", "s3://me:word@bucket/x"],
        "a URL may hold no credentials: s3://bucket/x",
    ),
    "one_quantization": (["--load_in_4bit", "--load_in_8bit"], "both on"),
    "quantized_weights_are_frozen": (["--no_use_lora", "--load_in_4bit"], "full fine-tuning"),
    "one_precision": (["--bf16", "--fp16"], "bf16 and fp16"),
    "early_stopping_needs_evaluation": (["--early_stopping_patience", "3"], "early stopping has no evaluation"),
    "best_model_needs_evaluation": (["--load_best_model_at_end"], "has no evaluation to choose by"),
    "best_model_is_saved": (
        ["--load_best_model_at_end", "--eval_data", "e.jsonl", "--eval_steps", "20", "--save_steps", "50"],
        "save_steps 50 is not a multiple of eval_steps 20",
    ),
    "metric_is_computed": (["--metric_for_best_model", "eval_accuracy"], "evaluation.generate is off"),
    "best_metric_at_every_evaluation": (
        ["--metric_for_best_model", "eval_accuracy", "--generate", "--generate_every", "2"],
        "is missing at evaluations without generation",
    ),
    "sample_has_a_size": (["--generate_seed", "3"], "nothing says how large it is"),
    "optimizer_reads_its_arguments": (
        ["--optim", "sgd", "--optim_args", "momentun=0.9"],
        "the optimizer sgd reads no 'momentun'",
    ),
    "optimizer_of_named_modules": (["--optim", "galore_adamw"], "which is not offered here"),
    "plateau_needs_evaluation": (["--lr_scheduler_type", "reduce_lr_on_plateau"], "has no evaluation to watch"),
    "template_date_is_a_day": (["--template_date", "2026-02-30"], "template_date 2026-02-30 is no day"),
    "warmup_fits": (["--max_steps", "10", "--warmup_steps", "20"], "longer than the training"),
    "one_order_of_rows": (["--group_by_prefix", "--batching", "packed"], "both decide which rows lie together"),
    "known_optimizer": (["--optim", "adamw_torhc"], "unknown optimizer"),
    "safe_output_dir": (["--output_dir", "."], "is no folder of its own"),
    "global_batch_divides": (["--global_batch_size", "10", "--batch_size", "4"], "is not a multiple"),
    "sample_questions_have_a_time": (["--gen_questions_file", "q.txt"], "nothing says when"),
    "streaming_reads_in_order": (["--streaming"], "streaming does not go with max_steps"),
    "ray_places_the_workers": (["--engine", "ray", "--nodes", "2"], "Ray places the workers"),
    "upload_has_a_name": (["--push_to_hub"], "has no repository"),
    "chat_loss_needs_turns": (["--format", "text", "--loss_on", "assistant"], "needs chat turns"),
    "labels_belong_to_classification": (["--labels", "yes", "no"], "the task is auto"),
    "labels_differ": (["--labels", "yes", "Yes", "--task", "classification"], "are not two or more different texts"),
    "schema_belongs_to_json": (["--json_schema", "s.json", "--task", "exact"], "the task is exact"),
    "schema_is_one": (["--json_schema", "no/such.json", "--task", "json"], "no/such.json: cannot read"),
    "one_task": (["--task_function", "own.py:score", "--task", "exact"], "both given"),
    "task_function_is_a_function": (["--task_function", "own.py"], "names no function of a Python file"),
    "generated_answers_are_scored": (["--generate", "--task", "none"], "task none scores nothing"),
}
"""Rule -> settings that break it, and words of the complaint; ``length_fits_positions`` needs a model on disk."""


@pytest.mark.parametrize("name", BREACHES)
def test_a_breach_is_found_by_its_rule_and_its_place_named(name: str) -> None:
    tokens, words = BREACHES[name]
    function = next(function for function in RULES if function.__name__ == name)
    problem = function(settings(*tokens))
    assert problem is not None
    assert words in problem.what
    assert all(path in settings().origins for path in problem.paths)
    found = [error for error in find_problems(settings(*tokens)) if words in error.what]
    assert [error.where for error in found] == ["command line"]
    assert found[0].remedy


@pytest.mark.parametrize("function", RULES, ids=lambda function: function.__name__)
def test_no_rule_complains_about_defaults(function) -> None:
    assert function(settings()) is None


def test_every_rule_has_a_breach_here() -> None:
    assert {function.__name__ for function in RULES} == {*BREACHES, "length_fits_positions"}


def test_a_length_beyond_the_positions_of_a_local_model(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"max_position_embeddings": 512}))
    rule = next(function for function in RULES if function.__name__ == "length_fits_positions")
    assert rule(settings("--model", str(tmp_path), "--max_length", "512")) is None
    problem = rule(settings("--model", str(tmp_path), "--max_length", "513"))
    assert problem is not None
    assert "beyond the model's 512 positions" in problem.what


@pytest.mark.parametrize(
    ("tokens", "breached"),
    [
        (["--load_best_model_at_end", "--eval_data", "e", "--eval_steps", "20", "--save_steps", "60"], False),
        (["--load_best_model_at_end", "--eval_data", "e", "--save_strategy", "epoch"], True),
        (["--early_stopping_patience", "3", "--eval_data", "e"], False),
        (["--early_stopping_patience", "3", "--eval_data", "e", "--eval_strategy", "no"], True),
        (["--early_stopping_patience", "3", "--dev_split", "0.1"], False),
        (["--metric_for_best_model", "eval_loss"], False),
    ],
)
def test_neighbouring_cases(tokens: list[str], breached: bool) -> None:
    assert bool(list(find_problems(settings(*tokens)))) == breached


def test_all_breaches_are_listed_at_once(tmp_path: Path) -> None:
    path = tmp_path / "run.py"
    adapter = "use_lora = False\nload_in_4bit = True\n"
    path.write_text('model_id = "m"\nearly_stopping_patience = 3\noptim = "adam"\n' + adapter)
    with pytest.raises(ConfigErrors) as caught:
        load(path, ["--bf16", "--fp16"])
    assert len(caught.value.lines()) == 4


MEETING = ["--nodes", "2", "--node_rank", "0", "--rendezvous", "10.0.0.1:29500"]


@pytest.mark.parametrize(
    ("tokens", "part"),
    [
        (["--nodes", "2", "--node_rank", "0"], "2 machines need rendezvous"),
        (["--nodes", "2", "--rendezvous", "host:29500"], "2 machines need node_rank"),
        ([*MEETING, "--node_rank", "2"], "node_rank 2 is not one of 2 machines"),
        ([*MEETING, "--rendezvous", "10.0.0.1"], "is not HOST:PORT"),
        ([*MEETING, "--rendezvous", "host:70000"], "is not HOST:PORT"),
        ([*MEETING, "--rendezvous", "host:0"], "is not HOST:PORT"),
        (["--rendezvous", "host:29500"], "nodes is 1"),
        (["--node_rank", "1"], "nodes is 1"),
        (["--device_map", "cpu", "--num_processes", "2"], "device_map chooses one device"),
    ],
)
def test_processes_and_machines(tokens: list[str], part: str) -> None:
    (problem,) = find_problems(settings(*tokens))
    assert part in problem.line()
    assert problem.where == "command line"


@pytest.mark.parametrize("rendezvous", ["10.0.0.1:29500", "node-1.cluster:1", "[fd00::1]:65535"])
def test_machines_that_can_meet(rendezvous: str) -> None:
    assert not list(find_problems(settings(*MEETING, "--rendezvous", rendezvous)))


@pytest.mark.parametrize("metric", ["loss", "eval_loss", "token_accuracy", "eval_token_accuracy"])
def test_figures_of_tokens_need_no_generated_answers(metric: str) -> None:
    names = ("metric_is_computed", "best_metric_at_every_evaluation")
    resolved = settings("--metric_for_best_model", metric, "--generate_every", "2")
    checked = [function(resolved) for function in RULES if function.__name__ in names]
    assert checked == [None, None]
