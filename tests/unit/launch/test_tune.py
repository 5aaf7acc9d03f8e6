"""A sweep on Ray Tune: the trials run on the cluster, and nothing of Ray's is left in the sweep's folder."""

from __future__ import annotations

import json

import pytest

from helpers import story_rows, write_rows
from tunesmith.cli.main import main


def test_a_search_on_a_cluster(ray_cluster, tmp_path, stories_model, capsys):
    from ray import tune

    fits = []
    fit = tune.Tuner.fit
    arguments = [
        f"--model_name_or_path={stories_model}",
        f"--train_data={write_rows(tmp_path / 'train.jsonl', story_rows(8))}",
        *("--max_steps", "2", "--max_length", "256", "--save_strategy", "no"),
        *("--param", "learning_rate=1e-5..1e-2:log", "--trials", "2", "--seed", "5", "--metric", "loss"),
        *("--engine", "ray", "--output", str(tmp_path / "sweep"), "--json"),
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tune.Tuner, "fit", lambda self: fits.append(fit(self)))
        assert main(["sweep", *arguments]) == 0
    assert len(fits[0]) == 2
    assert not fits[0].errors
    printed = capsys.readouterr()
    comparison = json.loads(printed.out)
    assert len(printed.err.splitlines()) == 3
    values = [trial["value"] for trial in comparison["trials"]]
    assert values == sorted(values)
    rates = [float(trial["settings"]["learning_rate"]) for trial in comparison["trials"]]
    assert rates[0] > rates[1]
    left = sorted(path.name for path in (tmp_path / "sweep").iterdir())
    assert left == [
        "comparison.json", "comparison.md", "sweep.json",
        "trial-0001", "trial-0001.log", "trial-0002", "trial-0002.log",
    ]  # fmt: skip
