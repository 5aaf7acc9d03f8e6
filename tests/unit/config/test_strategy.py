"""Which strategy is in force: settings, DeepSpeed files, accelerate's files and its launcher; contradictions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from helpers import resolved_from
from tunesmith import assets
from tunesmith.config.strategy import STRATEGIES, Strategy, chosen, named
from tunesmith.errors import ConfigError

FSDP2 = {"distributed_type": "FSDP", "fsdp_config": {"fsdp_version": 2, "fsdp_reshard_after_forward": False}}
ZERO3 = {"distributed_type": "DEEPSPEED", "deepspeed_config": {"zero_stage": 3, "gradient_accumulation_steps": 4}}
FSDP2_LAUNCHED = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_RESHARD_AFTER_FORWARD": "false",
                  "FSDP_OFFLOAD_PARAMS": "false", "FSDP_FORWARD_PREFETCH": "false"}  # fmt: skip


def of(environment: dict[str, str] | None = None, **settings: Any) -> Strategy:
    return chosen(resolved_from(model_name_or_path="m", **settings), environment or {})


def written(folder: Path, content: Any) -> str:
    path = folder / "file"
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content), encoding="utf-8")
    return str(path)


def test_nobody_said_anything() -> None:
    assert of() == Strategy("ddp", "default")


def test_every_strategy_by_its_name() -> None:
    found = [of(strategy=name) for name in STRATEGIES]
    assert [strategy.name for strategy in found] == list(STRATEGIES)
    assert [strategy.uses_deepspeed for strategy in found] == [False, False, True, True, True]
    assert [strategy.shards_parameters for strategy in found] == [False, True, False, False, True]


def test_configurations_that_come_with_tunesmith(tmp_path: Path) -> None:
    assert assets.deepspeed_names() == ["zero1", "zero2", "zero3", "zero3-offload-cpu", "zero3-offload-nvme"]
    for name in assets.deepspeed_names():
        strategy = of(deepspeed=name, nvme_path=str(tmp_path))
        assert strategy.name == name[:5]
        offloads = [strategy.offloads("optimizer"), strategy.offloads("param")]
        assert offloads == ["offload" in name] * 2
    with pytest.raises(ConfigError, match="nvme_path"):
        of(deepspeed="zero3-offload-nvme")
    zero = of(deepspeed="zero3-offload-nvme", nvme_path=str(tmp_path)).deepspeed["zero_optimization"]
    assert zero["offload_param"]["nvme_path"] == zero["offload_optimizer"]["nvme_path"] == str(tmp_path)


def test_deepspeed_files_of_every_stage(tmp_path: Path) -> None:
    for stage in (0, 1, 2, 3):
        path = written(tmp_path, json.dumps({"zero_optimization": {"stage": stage}}))
        assert of(deepspeed=path).name == f"zero{stage}"
    with pytest.raises(ConfigError, match="stage is 4"):
        of(deepspeed=written(tmp_path, '{"zero_optimization": {"stage": 4}}'))


def test_a_name_and_a_file_that_agree_give_the_file(tmp_path: Path) -> None:
    path = written(tmp_path, json.dumps({"zero_optimization": {"stage": 2, "overlap_comm": False}}))
    assert of(strategy="zero2", deepspeed=path) == of(deepspeed=path)


@pytest.mark.parametrize(
    ("settings", "content"),
    [
        ({"strategy": "ddp"}, FSDP2),
        ({"strategy": "fsdp2"}, ZERO3),
        ({"deepspeed": "zero2"}, ZERO3),
        ({"strategy": "zero3"}, {"distributed_type": "MULTI_CPU"}),
    ],
)
def test_contradictions_name_both_places(settings: dict[str, Any], content: dict[str, Any], tmp_path: Path) -> None:
    path = written(tmp_path, content)
    with pytest.raises(ConfigError) as caught:
        of(**settings, accelerate_config=path)
    assert path in caught.value.line()
    assert next(iter(settings.values())) in caught.value.line()


def test_accelerate_files(tmp_path: Path) -> None:
    assert of(accelerate_config=written(tmp_path, {"distributed_type": "NO"})) == of()
    assert of(accelerate_config=written(tmp_path, {"distributed_type": "MULTI_GPU"})).name == "ddp"
    fsdp = of(accelerate_config=written(tmp_path, FSDP2))
    assert (fsdp.name, fsdp.fsdp["reshard_after_forward"]) == ("fsdp2", False)
    zero = of(accelerate_config=written(tmp_path, ZERO3))
    assert (zero.name, zero.deepspeed["gradient_accumulation_steps"]) == ("zero3", 4)
    file = tmp_path / "ds.json"
    file.write_text('{"zero_optimization": {"stage": 1}}', encoding="utf-8")
    named_file = {"distributed_type": "DEEPSPEED", "deepspeed_config": {"deepspeed_config_file": str(file)}}
    assert of(accelerate_config=written(tmp_path, named_file)).name == "zero1"


@pytest.mark.parametrize(
    ("content", "part"),
    [
        ("a: [", "not valid YAML"),
        ("a: 1", "distributed_type is missing"),
        ({"distributed_type": "MEGATRON_LM"}, "MEGATRON_LM"),
        ({"distributed_type": "FSDP", "fsdp_config": {"fsdp_version": 1}}, "version"),
        ({"distributed_type": "FSDP"}, "version"),
    ],
)
def test_accelerate_files_that_cannot_be_used(content: Any, part: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=part):
        of(accelerate_config=written(tmp_path, content))
    with pytest.raises(ConfigError, match="cannot read"):
        of(accelerate_config=str(tmp_path / "absent"))


def test_what_the_launcher_says_is_noticed() -> None:
    fsdp = of(FSDP2_LAUNCHED)
    assert (fsdp.name, fsdp.fsdp["reshard_after_forward"]) == ("fsdp2", False)
    assert (fsdp.offloads("param"), "forward_prefetch" in fsdp.fsdp) == (False, False)
    assert of(FSDP2_LAUNCHED | {"FSDP_OFFLOAD_PARAMS": "true"}).offloads("param")
    assert "accelerate launch" in fsdp.origin
    zero = of({"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "3",
               "ACCELERATE_DEEPSPEED_OFFLOAD_PARAM_DEVICE": "cpu", "ACCELERATE_GRADIENT_CLIPPING": "0.5"})  # fmt: skip
    assert (zero.name, zero.offloads("param"), zero.offloads("optimizer")) == ("zero3", True, False)
    assert zero.deepspeed["gradient_clipping"] == 0.5
    for settings in ({"strategy": "zero2"}, {"deepspeed": "zero3"}):
        with pytest.raises(ConfigError, match="accelerate launch"):
            of(FSDP2_LAUNCHED, **settings)


def test_file_and_launcher_that_agree(tmp_path: Path) -> None:
    """``accelerate launch --config_file F`` of a run that names F itself says everything twice."""
    launched = {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "3",
                "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "4"}  # fmt: skip
    assert of(launched, accelerate_config=written(tmp_path, ZERO3)).name == "zero3"
    with pytest.raises(ConfigError, match="another DeepSpeed configuration"):
        of(launched | {"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "2"}, accelerate_config=written(tmp_path, ZERO3))


def test_fsdp2_cannot_spread_eight_bits() -> None:
    with pytest.raises(ConfigError, match="load_in_4bit"):
        of(strategy="fsdp2", load_in_8bit=True)
    for strategy in ("ddp", "zero1", "zero2", "zero3"):
        assert of(strategy=strategy, load_in_8bit=True).name == strategy
    assert of(strategy="fsdp2", load_in_4bit=True).name == "fsdp2"


@pytest.mark.parametrize(
    ("strategy", "optim"),
    [
        *(
            ("fsdp2", optim)
            for optim in ("adafactor", "paged_adamw_8bit", "adamw_bnb_8bit", "lion_32bit", "rmsprop_bnb")
        ),
        *((strategy, "adafactor") for strategy in ("zero1", "zero2", "zero3")),
    ],
)
def test_optimizers_that_cannot_work_on_spread_weights(strategy: str, optim: str) -> None:
    with pytest.raises(ConfigError, match="adamw_torch"):
        of(strategy=strategy, optim=optim)
    assert of(strategy=strategy, optim="adamw_torch").name == strategy
    assert of(strategy="ddp", optim=optim).name == "ddp"


def test_unknown_names() -> None:
    with pytest.raises(ConfigError, match="known are ddp, fsdp2, zero1"):
        named("fsdp1")
