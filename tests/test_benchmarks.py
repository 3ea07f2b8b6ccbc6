"""Of the benchmarks: that the guard sees what got worse, and that the accelerator's script runs."""

import json
import os
import subprocess
import sys

import pytest

from tests.benchmarks import guard

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
