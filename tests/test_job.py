"""The main job, whole: what it prints and what it writes."""

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

import funprop as fp
from funprop.train import job
from funprop.train.runs import load_params, new_folder
from funprop.train.tasks import task

ROOT = Path(__file__).parent.parent
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))


@pytest.fixture(autouse=True)
def standard_promotion():
    with jax.numpy_dtype_promotion("standard"):  # optax itself promotes
        yield


def test_digits(tmp_path, capsys):
    out = job.train("digits", epochs=15, out=tmp_path / "run")
    printed = capsys.readouterr().out
    assert "is the derivative of its forward pass, to rounding" in printed
    assert "WRONG" not in printed
    accuracy = float(printed.split("Test accuracy ")[1].split("%")[0])
    assert accuracy >= 96
    assert "Confusion matrix" in printed
    assert {file.name for file in out.iterdir()} == {
        *("history.jsonl", "params.npz", "report.png", "run.json")
    }
    history = [json.loads(line) for line in (out / "history.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in history] == list(range(1, 16))
    assert history[-1]["held_out/accuracy"] * 100 == pytest.approx(accuracy, abs=0.01)
    assert (out / "report.png").read_bytes()[:4] == b"\x89PNG"
    chosen = task("digits")
    model = chosen.models["mlp"]()
    params = load_params(out / "params.npz", model, chosen.test[0])
    said = np.asarray(model.forward(params, chosen.test[0])[0]).argmax(1)
    assert (said == chosen.test[1]).mean() * 100 == pytest.approx(accuracy, abs=0.01)


@pytest.mark.slow
@pytest.mark.parametrize(("model", "epochs", "least"), [("cnn", 8, 98), ("rnn", 15, 93)])
def test_digits_by_other_models(model, epochs, least, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(job, "_verify", lambda *_: None)  # tests of the models verify them
    job.train("digits", model=model, epochs=epochs, out=tmp_path / "run")
    assert float(capsys.readouterr().out.split("Test accuracy ")[1].split("%")[0]) >= least


@pytest.mark.slow
def test_noise_is_taken_off(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(job, "_verify", lambda *_: None)
    out = job.train("digits-denoise", epochs=5, out=tmp_path / "run")
    after, before = capsys.readouterr().out.split("pixels off by ")[1].splitlines()[0].split(", ")
    assert float(before.split()[0]) == pytest.approx(0.3, abs=0.01)
    assert float(after.split()[0]) < 0.15  # the best linear filter reaches 0.152
    assert (out / "report.png").read_bytes()[:4] == b"\x89PNG"


def test_noise_never_mixes_pictures():
    """There are as many copies as were asked for, and none of what is held out."""
    chosen = task("digits-denoise")
    train, test = (
        {picture.tobytes() for picture in part[1]} for part in (chosen.train, chosen.test)
    )
    assert len(chosen.train[0]) == 8 * len(task("digits").train[0])
    assert not train & test


NO_CACHE = {"JAX_COMPILATION_CACHE_DIR": ""}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "backward"),
    [
        ("iris", "manual"),
        ("diabetes", "autodiff"),
        ("breast-cancer", "manual"),
        ("diabetes", "manual"),
    ],
)
def test_other_sets(name, backward, tmp_path, capsys):
    job.train(name, backward=backward, out=tmp_path / "run")
    printed = capsys.readouterr().out
    if name == "diabetes":
        assert float(printed.split("R^2 ")[1].split()[0]) > 0.25
    else:
        assert float(printed.split("Test accuracy ")[1].split("%")[0]) > 90


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "momentum"])
def test_other_optimizers(optimizer, tmp_path, capsys):
    job.train("iris", optimizer=optimizer, out=tmp_path / "run")
    assert float(capsys.readouterr().out.split("Test accuracy ")[1].split("%")[0]) > 85


def test_a_wrong_backward_stops_the_job(tmp_path, monkeypatch):
    def wrong():
        good = fp.relu()
        return fp.layer(
            forward=good.forward,
            backward=lambda p, kept, dy: ((), 1.01 * good.backward(p, kept, dy)[1]),
            name="relu",
        )

    chosen = task("iris")
    broken = chosen._replace(models={"mlp": lambda: fp.serial(fp.dense(8), wrong(), fp.dense(3))})
    monkeypatch.setattr(job, "task", lambda name: broken)
    with pytest.raises(AssertionError, match=r"relu/dx .*wrong: 1.01 times"):
        job.train("iris", out=tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_is_written_whole_or_not_at_all(tmp_path):
    with pytest.raises(RuntimeError), new_folder(tmp_path / "run") as draft:
        (draft / "half").write_text("")
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def command(*words, cache=""):
    environment = os.environ | ({"XDG_CACHE_HOME": cache} if cache else NO_CACHE)
    return subprocess.run(
        [sys.executable, "-m", "funprop.cli", *words],
        capture_output=True,
        text=True,
        env=environment,
    )


def test_the_command_line(tmp_path):
    cache = tmp_path / "cache"
    out = str(tmp_path / "run")
    done = command("train", "iris", "--epochs", "5", "--out", out, cache=str(cache))
    assert done.returncode == 0, done.stderr
    assert "Written to" in done.stdout and "Compiling took" in done.stdout
    assert list((cache / "funprop" / "jax").iterdir())
    wrong = command("train", "mnist")
    assert wrong.returncode != 0
    assert wrong.stderr.strip() == (
        "error: unknown data set 'mnist', there are digits, digits-denoise, iris, breast-cancer, "
        "diabetes"
    )
    negative = command("train", "iris", "--learning-rate", "-1")
    assert negative.stderr.strip() == "error: learning_rate must be positive and finite, got -1.0"


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda file: file.stem)
def test_examples(example, capsys):
    runpy.run_path(str(example), run_name="__main__")
    assert capsys.readouterr().out


def test_four_stages_is_short():
    assert len((ROOT / "examples" / "four_stages.py").read_text().splitlines()) < 60


def test_the_readme_tells_what_ci_runs():
    """The test command of the README is the one in `.ci/run`, word for word."""
    readme, ci = (ROOT / name for name in ("README.md", ".ci/run"))
    (line,) = [line for line in ci.read_text().splitlines() if line.endswith("-m pytest")]
    assert line in readme.read_text()
