"""The verifier from outside: the pytest plugin, the command, the assertion."""

import json
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import funprop as fp
from funprop.testing import assert_gradients
from funprop.verify.judging.laws import WAYS
from funprop.verify.report import Check, Example, Report
from funprop.verify.stories.case import KINDS
from funprop.verify.written import github_lines

ROOT = Path(__file__).parent.parent

pytestmark = pytest.mark.usefixtures("any_ranks")

MODULE = """
import jax, jax.numpy as jnp, funprop as fp

def forward(x):
    return x * x

def rule(factor):
    function = jax.custom_vjp(forward)
    function.defvjp(lambda x: (x * x, x), lambda x, dy: (factor * x * dy,))
    return function

def example():
    return (jnp.arange(1.0, 5.0),)

right, wrong = (rule(2), example), (rule(1), example)
model = (jax.jit(lambda x: rule(1)(jnp.sin(x)).sum()), example)
gradient = (lambda p, b: p * b, lambda: (jnp.ones(3), jnp.ones(3)), lambda p, b: (p * b).sum())
nothing = 3
"""


def run(*words, cwd, env=None):
    return subprocess.run(
        [sys.executable, *words], capture_output=True, text=True, cwd=cwd, timeout=300, env=env
    )


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "mine.py").write_text(MODULE)
    return tmp_path


def verify(folder, *words, env=None):
    return run("-m", "funprop.cli", "verify", *words, cwd=folder, env=env)


def test_the_command_ends_with_zero_where_all_is_right(folder):
    done = verify(folder, "mine:right")
    assert done.returncode == 0, done.stderr
    assert "1 gradient right" in done.stdout


def test_the_command_ends_with_one_where_something_is_wrong(folder):
    done = verify(folder, "mine:wrong")
    assert done.returncode == 1
    assert "1/2 times what it should be" in done.stdout
    done = verify(folder, "mine:gradient")
    assert done.returncode == 1
    done = verify(folder, "mine:model", "--rules")
    assert done.returncode == 1
    assert "forward/x" in done.stdout


@pytest.mark.parametrize(
    ("place", "sentence"),
    [
        ("mine", "object must be package.module:object, got 'mine'"),
        ("nowhere:x", "nowhere:x: No module named 'nowhere'"),
        ("mine:absent", "mine:absent: mine has no absent"),
        ("mine:nothing", "mine:nothing must be (target, example) or (target, example, reference)"),
    ],
)
def test_the_command_refuses_in_one_sentence(folder, place, sentence):
    done = verify(folder, place)
    assert (done.returncode, done.stderr.strip()) == (1, f"error: {sentence}")


TESTS = """
import jax.numpy as jnp, pytest, funprop as fp
from mine import right, wrong

def test_right(gradients):
    assert gradients(right[0], jnp.ones(3)).ok
    gradients(fp.tanh(), (), jnp.ones(3))

def test_wrong(gradients):
    gradients(wrong[0], jnp.ones(3))

def test_none():
    pass
"""


@pytest.mark.parametrize("workers", ["0", pytest.param("2", marks=pytest.mark.slow)])
def test_the_plugin(folder, workers):
    (folder / "test_mine.py").write_text(textwrap.dedent(TESTS))
    done = run("-m", "pytest", "-q", f"-n{workers}", "-p", "no:cacheprovider", cwd=folder)
    assert "1 failed, 2 passed" in done.stdout, done.stdout
    assert "AssertionError: 1 gradient is wrong" in done.stdout
    assert "gradient of    error  allowed" in done.stdout
    assert "--gradients-seed" in done.stdout
    assert "funprop: 2 of 3 backward passes right, 2 gradients verified" in done.stdout


def test_the_plugin_imports_no_jax_where_no_test_asks_for_it(folder):
    (folder / "test_none.py").write_text(
        "import sys\ndef test_none():\n    assert 'jax' not in sys.modules\n"
    )
    done = run("-m", "pytest", "-q", "-p", "no:cacheprovider", "test_none.py", cwd=folder)
    assert done.returncode == 0, done.stdout
    assert "funprop" not in done.stdout


def test_the_assertion_gives_the_report():
    assert assert_gradients(fp.gelu(), (), jnp.linspace(-1, 1, 5)).ok


def test_a_table_in_a_terminal_is_coloured(monkeypatch):
    report = fp.verify(fp.relu(), (), jnp.ones((2, 3)))
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert "\x1b[" in str(report)
    assert "\x1b[" not in report.plain()


def test_the_report_as_json_and_as_lines_for_github(folder):
    env = os.environ | {"GITHUB_ACTIONS": "true"}
    done = verify(folder, "mine:wrong", "--rules", "--json", env=env)
    found = json.loads(done.stdout)
    (check,) = found["checks"]
    assert not found["ok"] and check["story"] == "factor" and len(check["worst"]) == 1
    assert check["help"] == "docs/stories.md#factor" and found["jax"] == jax.__version__
    file, line = check["source"].split(":")
    start = f"::error file={file},line={line},title=gradient of {check['path']} is wrong::wrong"
    assert any(line.startswith(start) for line in done.stderr.splitlines()), done.stderr


def test_json_holds_what_is_not_finite_and_what_is_no_number():
    example = Example("x", {"x": np.float32([1, np.inf])}, (np.ones(2),), np.nan, jnp.zeros(()))
    report = Report((Check("f", "f/x", np.inf, 0.0, (0, 1), "a, b: c\nd"),), ("note",), (example,))
    found = json.loads(report.to_json())
    assert found["checks"][0]["error"] == "inf" and found["checks"][0]["worst"] == [0, 1]
    assert found["examples"][0]["inputs"] == {"x": [1.0, "inf"]}
    assert github_lines(report) == ["::error title=gradient of f/x is wrong::a, b: c%0Ad"]


def test_every_story_is_told_of_on_its_page():
    told = (ROOT / "docs" / "stories.md").read_text()
    known = set(re.findall(r"^## (.+)$", told, re.MULTILINE))
    laws = {f"{what} under {name}" for what in ("differs", "fails") for name in WAYS}
    assert known == {*KINDS, *laws, "structure", "other output"}
