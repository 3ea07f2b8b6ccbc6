"""The main job, whole: what it prints and what it writes."""

import importlib.util
import io
import json
import os
import re
import runpy
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest

import funprop as fp
from funprop.train import progress
from funprop.train.output import lasting_output
from funprop.train.runs import files as runs
from funprop.train.runs import in_folder, job, plots, sweep
from funprop.train.runs.debug import debug
from funprop.train.runs.folder import run_folder
from funprop.train.runs.tasks import iris, task

ROOT = Path(__file__).parent.parent
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))


@pytest.fixture(autouse=True)
def standard_promotion():
    with jax.numpy_dtype_promotion("standard"):  # optax itself promotes
        yield


@pytest.mark.slow  # the same on iris is quick
def test_digits(tmp_path, capsys):
    out = job.train("digits", epochs=15, out=tmp_path / "run")
    printed = capsys.readouterr().out
    assert "is the derivative of its forward pass, to rounding" in printed
    assert "WRONG" not in printed
    accuracy = float(printed.split("Test accuracy ")[1].split("%")[0])
    assert accuracy >= 96
    assert "Confusion matrix" in printed
    files = {"history.jsonl", "params.safetensors", "report.png", "run.json"}
    assert {file.name for file in out.iterdir()} == files | {"checkpoints", ".lock"}
    history = [json.loads(line) for line in (out / "history.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in history] == list(range(1, 16))
    assert history[-1]["held_out/accuracy"] * 100 == pytest.approx(accuracy, abs=0.01)
    assert (out / "report.png").read_bytes()[:4] == b"\x89PNG"
    chosen = task("digits")
    model = chosen.models["mlp"]()
    like = jax.eval_shape(model.init, jax.random.key(0), chosen.test[0])
    params = fp.load(out / "params.safetensors", like)
    said = np.asarray(model.forward(params, chosen.test[0])[0]).argmax(1)
    assert (said == chosen.test[1]).mean() * 100 == pytest.approx(accuracy, abs=0.01)


@pytest.mark.slow
@pytest.mark.parametrize(("model", "epochs", "least"), [("cnn", 8, 98), ("rnn", 15, 93)])
def test_digits_by_other_models(model, epochs, least, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(job, "verify_task", lambda *_: None)  # tests of the models verify them
    job.train("digits", model=model, epochs=epochs, out=tmp_path / "run")
    assert float(capsys.readouterr().out.split("Test accuracy ")[1].split("%")[0]) >= least


@pytest.mark.slow
def test_noise_is_taken_off(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(job, "verify_task", lambda *_: None)
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


@pytest.mark.slow
def test_a_sweep_chooses_the_best_and_keeps_it(tmp_path, capsys):
    """Each member is what the same numbers and seed come to alone."""
    words = {"sweep": ("learning-rate=1e-6,0.01,1e30",), "seeds": 2, "seed": 5, "epochs": 12}
    folder = sweep.train("iris", **words, out=tmp_path / "run")
    sweep.train("iris", **words, out=tmp_path / "all", keep="all")
    said = capsys.readouterr().out
    settings = json.loads((folder / "run.json").read_text())
    best = settings["best"]
    assert best["learning_rate"] == 0.01 and best["seed"] == best["member"] + 3
    assert "the 2 seeds of its numbers, together" in said and "all 4 that did not" in said
    lines = (folder / "members.csv").read_text().splitlines()
    assert len(lines) == 7 and lines[3].startswith("2,0.01,5,")
    assert {"report.png", "sweep.png", "history.jsonl"} <= {file.name for file in folder.iterdir()}
    whole = fp.objective(fp.mlp(16, 3), fp.softmax_cross_entropy())
    like = jax.eval_shape(whole.init, jax.random.key(0), iris().train)
    kept = fp.load(folder / "params.safetensors", like)
    every = jax.tree.map(lambda s: jax.ShapeDtypeStruct((6, *s.shape), s.dtype), like)
    all_of_them = fp.load(tmp_path / "all" / "params.safetensors", every)
    jax.tree.map(
        lambda one, many: np.testing.assert_array_equal(one, many[best["member"]]),
        *(kept, all_of_them),
    )


@pytest.mark.slow
def test_a_wrong_backward_stops_the_job(tmp_path, monkeypatch, capsys):
    def wrong():
        good = fp.relu()
        return fp.layer(
            forward=good.forward,
            backward=lambda p, kept, dy: ((), 1.01 * good.backward(p, kept, dy)[1]),
            name="relu",
        )

    chosen = task("iris")
    broken = replace(chosen, models={"mlp": lambda: fp.serial(fp.dense(8), wrong(), fp.dense(3))})
    monkeypatch.setattr(job, "task_of", lambda *_: broken)
    words = "nothing is trained, as a backward pass is wrong: relu, all of them, chained"
    with pytest.raises(ValueError, match=words):
        job.train("iris", out=tmp_path / "run")
    said = capsys.readouterr().out
    assert (
        said.count("relu/dx: wrong: 1.01 times what it should be") == said.count("should be:") == 1
    )
    assert list(tmp_path.iterdir()) == []


def quick(monkeypatch, model=lambda: fp.mlp(4, 3)):
    """The iris job, small, without its check of the gradients, which other tests make."""
    chosen = replace(task("iris"), models={"mlp": model}, epochs=2)
    monkeypatch.setattr(job, "task_of", lambda *_: chosen)
    monkeypatch.setattr(job, "verify_task", lambda *_: None)


def test_a_folder_that_cannot_be_written_is_refused_before_training(tmp_path, monkeypatch):
    quick(monkeypatch)
    monkeypatch.setattr(in_folder, "fit", None)  # is not reached
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("nowhere")
    for out, words in (
        ("file", r"file exists already"),
        ("link", r"link exists already"),
        ("file/run", r"file/run cannot be written: Not a directory"),
        ("above/" + "n" * 256, r"cannot be written: File name too long"),
    ):
        with pytest.raises(ValueError, match=words):
            job.train("iris", out=tmp_path / out)
    full = shutil.disk_usage(tmp_path)._replace(free=9)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: full)
    with pytest.raises(ValueError, match=r"must have room for [0-9,]+ bytes, 9 are free"):
        job.train("iris", out=tmp_path / "run")
    assert {file.name for file in tmp_path.iterdir()} == {"file", "link"}


def test_runs_of_one_second_have_folders_of_their_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(time, "strftime", lambda _: "now")
    for name in ("iris-now", "iris-now-2", "iris-now-3"):
        with run_folder("iris", None, {"seed": 0}) as (folder, finished):
            assert folder == Path("runs") / name and not finished
            assert not json.loads((folder / "run.json").read_text())["finished"]
            (folder / "results").touch()


def test_a_diverged_run_is_written_and_raises(tmp_path, monkeypatch):
    quick(monkeypatch, lambda: fp.dense(3))
    out = tmp_path / ("n" * 250)
    sentence = r"^update \d: the (loss|gradient) .*First bad: .*dense.*nothing of it was applied"
    with pytest.raises(FloatingPointError, match=sentence):
        job.train("iris", optimizer="sgd", learning_rate=3e38, batch_size=120, epochs=5, out=out)

    def no_json(name):
        raise AssertionError(name)

    lines = (out / "history.jsonl").read_text().splitlines()
    history = [json.loads(line, parse_constant=no_json) for line in lines]
    assert history[-1]["loss"] is None
    run = json.loads((out / "run.json").read_text(), parse_constant=no_json)
    assert run["final"]["loss"] is None and "First bad" in run["stopped"]
    assert f"update {run['nonfinite_update']} of" in debug(out)
    assert (out / "report.png").exists() and (out / "params.safetensors").exists()


def test_what_has_been_trained_is_written_elsewhere_where_the_folder_is_gone(tmp_path, monkeypatch):
    quick(monkeypatch)
    real = in_folder.fit

    def fit(*args, **kwargs):
        result = real(*args, **kwargs)
        shutil.rmtree(tmp_path / "run")
        (tmp_path / "run").touch()
        return result

    monkeypatch.setattr(in_folder, "fit", fit)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with pytest.raises(OSError, match=r"directory.*; what was reached is in .*funprop-"):
        job.train("iris", out=tmp_path / "run")
    (rescued,) = (entry for entry in tmp_path.iterdir() if entry.is_dir())
    assert {file.name for file in rescued.iterdir()} == {
        *("history.jsonl", "params.safetensors", "report.png", "run.json")
    }


@pytest.mark.parametrize("missing", ["matplotlib", "safetensors"])
def test_what_is_missing_is_said_before_training(missing, tmp_path, monkeypatch):
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == missing else real(name)
    )
    with pytest.raises(ModuleNotFoundError, match=f"needs {missing}: pip install"):
        job.train("iris", out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("losses", "labels"),
    [
        ([1.0, 0.01, 0.0001], {"1e-4", "0.001"}),
        ([0.9, 0.8, 0.7], {"0.8"}),
        ([np.nan], set()),
        ([3e4, 3e9, np.inf], {"1e5", "1e9"}),
    ],
)
def test_the_numbers_beside_a_curve_are_inside_the_picture(losses, labels, tmp_path, monkeypatch):
    from matplotlib.figure import Figure

    figures = []
    real = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda f, *a, **k: (figures.append(f), real(f, *a, **k)))
    history = [
        {"epoch": i + 1.0, "loss": loss, "held_out/loss": loss} for i, loss in enumerate(losses)
    ]
    plots.curve(tmp_path / "curve.png", history, "loss", "title")
    (axes,) = figures[0].axes
    low, high = axes.get_ylim()
    shown = [text for text in axes.get_yticklabels() if low <= text.get_position()[1] <= high]
    assert labels <= {text.get_text() for text in shown}
    assert all(text.get_window_extent().x0 >= 0 for text in shown)


def test_the_live_line_ends_on_the_last_epoch(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    means = {"loss": 0.5, "accuracy": 0.75}
    with progress.live() as display:
        for turn in (1, 2):
            display.update(turn, 2, 100, means)
            held_out = {"held_out/loss": 0.625 + turn, "held_out/accuracy": turn / 4}
            row = {"epoch": turn, **means, **held_out, "seconds": 1.0, "examples_per_second": 2.0}
            display.epoch(row, 2)
        display.end("all 2 epochs done")
    assert "epoch 2/2 loss 0.500/2.625 accuracy 0.750/0.500" in capsys.readouterr().out


def command(*words, cache="", through='exec "$@"', **options):
    environment = os.environ | ({"XDG_CACHE_HOME": cache} if cache else {})
    environment |= options.pop("env", {})
    for name in ("JAX_COMPILATION_CACHE_DIR",) if cache else ():
        environment.pop(name, None)
    return subprocess.run(
        ["sh", "-c", through, "sh", sys.executable, "-m", "funprop.cli", *words],
        **{"capture_output": True, "text": True, "env": environment, "cwd": ROOT, **options},
    )


def test_the_command_line(tmp_path):
    cache = tmp_path / "cache"
    out = str(tmp_path / "run")
    done = command("train", "iris", "--epochs", "5", "--out", out, cache=str(cache))
    assert done.returncode == 0, done.stderr
    assert "Written to" in done.stdout and "Compiling took" in done.stdout
    assert list((cache / "funprop" / "jax").iterdir())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (
            "mnist",
            "unknown data set 'mnist', there are digits, digits-denoise, iris, breast-cancer, "
            "diabetes, stdlib",
        ),
        ("iris --learning-rate -1", "learning_rate must be positive and finite, got -1.0"),
        ("iris --seed -1", "seed must be from 0 to 2**32 - 1, got -1"),
        ("iris --out /dev/null", "the run folder /dev/null exists already, and is no folder"),
        ("iris --out /dev/null/x", "the run folder /dev/null/x cannot be written: Not a directory"),
    ],
)
def test_the_command_refuses_in_one_sentence(words, sentence):
    wrong = command("train", *words.split())
    assert (wrong.returncode, wrong.stdout, wrong.stderr) == (1, "", f"error: {sentence}\n")


@pytest.mark.slow
def test_the_command_says_its_version():
    done = command("--version")
    assert (done.returncode, done.stdout.split(",")[0]) == (0, f"funprop {fp.__version__}")


@pytest.mark.slow
def test_a_diverged_run_ends_with_one(tmp_path):
    words = ("train", "iris", "--learning-rate", "1e30", "--out", str(tmp_path / "run"))
    done = command(*words)
    assert done.returncode == 1
    assert re.match(r"error: update \d+: the (loss|gradient) ", done.stderr)
    assert done.stderr.count("\n") == 1


@pytest.mark.slow
@pytest.mark.parametrize("output", ["a reader that has seen enough", "a full disk", "closed"])
def test_a_run_outlives_its_output(output, tmp_path):
    words = ("train", "iris", "--epochs", "3", "--out", str(tmp_path / "run"))
    if output == "a full disk":
        with Path("/dev/full").open("w") as full:
            done = command(*words, capture_output=False, stdout=full, stderr=subprocess.PIPE)
        said = "error: standard output: No space left on device\n"
        assert (done.returncode, done.stderr) == (1, said)
    elif output == "closed":
        assert command(*words, capture_output=False, through='exec "$@" >&-').returncode == 0
    else:
        reading, writing = os.pipe()
        os.close(reading)
        done = command(*words, capture_output=False, stdout=writing, stderr=subprocess.PIPE)
        os.close(writing)
        assert (done.returncode, done.stderr) == (0, "")
    assert json.loads((tmp_path / "run" / "run.json").read_text())["finished"]


def test_output_outlives_its_encoding(monkeypatch, tmp_path):
    bytes_written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(bytes_written, encoding="ascii"))
    lasting_output()
    print("def naïve() -> '\ufffd':", flush=True)
    assert bytes_written.getvalue() == b"def na?ve() -> '?':\n"
    runs.write_text(tmp_path / "samples.txt", "naïve\n")
    assert (tmp_path / "samples.txt").read_bytes() == "naïve\n".encode()


def interrupted(*words, after, through='exec "$@"', **options):
    """What the command says and ends with, when Ctrl-C comes some seconds after a line that begins
    so; started by a shell that does this."""
    with subprocess.Popen(
        ["sh", "-c", through, "sh", sys.executable, "-m", "funprop", *words],
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=ROOT,
        **options,
    ) as run:
        begins, seconds = after
        while begins and not run.stdout.readline().startswith(begins):
            assert run.poll() is None
        time.sleep(seconds)
        run.send_signal(signal.SIGINT)
        said, error = run.communicate(timeout=100)
    return run.returncode, said, error


@pytest.mark.slow
@pytest.mark.parametrize("after", [("", 0.4), ("", 0.8), ("", 1.6), ("layer", 0.1)])
def test_ctrl_c_before_training_is_one_line(after, tmp_path):
    words = ("train", "digits", "--out", str(tmp_path / "run"))
    code, _, error = interrupted(*words, after=after)
    assert (code, error) == (130, "interrupted\n")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_an_ignored_ctrl_c_stays_ignored(tmp_path):
    words = ("train", "iris", "--epochs", "400", "--out", str(tmp_path / "run"))
    ignore = 'trap "" INT; exec "$@"'  # as nohup does for SIGHUP
    code, said, error = interrupted(*words, after=("epoch", 0.1), through=ignore)
    assert code == 0 and "stopped: all 400 epochs done" in said, error


LONG = ("checkpoints", "flax_and_equinox", "gradient_through_training", "own_layer")
LONG += ("swap_the_backward",)


@pytest.mark.parametrize(
    "example",
    [
        pytest.param(example, marks=[pytest.mark.slow] if example.stem in LONG else [])
        for example in EXAMPLES
        if example.stem != "lora"  # it wants a model and a text: tests/test_pretrained.py
    ],
    ids=lambda file: file.stem,
)
def test_examples(example, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [str(example)])
    runpy.run_path(str(example), run_name="__main__")
    assert capsys.readouterr().out


def test_four_stages_is_short():
    assert len((ROOT / "examples" / "four_stages.py").read_text().splitlines()) < 60


def test_the_readme_tells_what_ci_runs():
    """The test command of the README is the one in `.ci/run`, word for word."""
    readme, ci = (ROOT / name for name in ("README.md", ".ci/run"))
    (line,) = [line for line in ci.read_text().splitlines() if line.endswith("-m pytest")]
    assert line in readme.read_text()
