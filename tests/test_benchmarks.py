"""Of the benchmarks: that the guard sees what got worse, that the accelerator's script runs, that
peers do the same work."""

import json
import os
import subprocess
import sys

import jax
import pytest

from tests.benchmarks import guard
from tests.benchmarks.peers import data, judge, measure, table
from tests.benchmarks.peers.listed import PEERS

BEFORE = {"time": 0.5, "flops": 1.0, "bytes": 0.3}


@pytest.mark.parametrize(
    ("found", "worse"),
    [
        (guard.Measured(0.5, 1.0, 0.3, 0.02), 0),
        (guard.Measured(0.57, 1.14, 0.34, 0.02), 0),  # within 15%
        (guard.Measured(0.62, 1.0, 0.3, 0.02), 1),
        (guard.Measured(0.62, 1.0, 0.3, 0.2), 0),  # and the noise of the run
        (guard.Measured(0.4, 1.2, 0.4, 0.2), 2),  # what does not vary has no noise
        (guard.Measured(0.4, None, None, 0.0), 0),
    ],
)
def test_the_guard_tells_what_is_worse(found, worse):
    assert len(guard.judged("gpt", found, BEFORE)) == worse


def test_every_case_of_the_guard_is_recorded():
    assert set(json.loads(guard.RECORD.read_text())["cases"]) == set(guard.CASES)


@pytest.mark.slow
def test_all_of_the_accelerator_runs_in_small(tmp_path):
    run = [sys.executable, "-m", "tests.benchmarks.accelerator", "--tiny", "--out", str(tmp_path)]
    done = subprocess.run(run, capture_output=True, text=True, env=os.environ | {"XLA_FLAGS": ""})
    assert done.returncode == 0, done.stdout[-2000:]
    found = json.loads((tmp_path / "accelerator.json").read_text())["parts"]
    assert found["verified"]["result"]["wrong"] == {}
    assert "## language_model" in (tmp_path / "accelerator.md").read_text()


def test_funprop_and_plain_jax_do_the_same_work(tmp_path, capsys):
    file, runs = str(data.written("digits", tmp_path, tiny=True)), []
    for peer, seed in [(peer, seed) for peer in ("plain_jax", "funprop") for seed in range(3)]:
        asked = {"file": str(PEERS[peer].path), "switch": "", "work": "digits", "data": file}
        # As plain JAX is written.
        with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
            measure.main(asked | {"seed": seed, "epochs": None, "evaluate": seed > 0, "started": 0})
        told = json.loads(capsys.readouterr().out)
        about = {"peer": peer, "work": "digits", "round": 0, "seed": seed, "examples": 32 * 4}
        runs.append(told | about | {"timed": seed == 0})
    assert judge.wrong("digits", runs) == []
    row = table.text("digits", table.rows("digits", runs)).splitlines()[-1]
    assert row.startswith("| funprop |") and f"| {PEERS['funprop'].lines('digits')} |" in row
    off = [run | {"losses": [run["losses"][-1] + 1]} for run in runs if run["peer"] == "funprop"]
    assert len(judge.wrong("digits", runs[:3] + off)) == 2  # each is far from the other
    more = [run | {"params": run["params"] + 1} for run in runs[3:]]
    assert len(judge.wrong("digits", runs[:3] + more)) == 1


@pytest.mark.slow
@pytest.mark.parametrize("work", data.WORKS)
def test_the_runner_of_peers_runs_in_small(work, tmp_path):
    run = [sys.executable, "-m", "tests.benchmarks.peers", "--tiny", "--out", str(tmp_path)]
    run += ["--python", sys.executable, "--work", work, "--rounds", "1", "--seeds", "2"]
    run += ["--only", "plain_jax", "jax_scan", "funprop"]
    done = subprocess.run(run, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "| funprop |" in done.stdout and "All did the same work" in done.stdout
