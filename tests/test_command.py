"""What the command cannot do it says in one short sentence, and leaves everything as it was."""

import inspect
import json
import re
import sys

import jax
import numpy as np
import pytest

from funprop import cli, cli_help
from funprop.train.checkpoints import Checkpoints
from funprop.train.runs import show
from funprop.train.runs.files import read_history, write_history, write_settings

SETTINGS = {"data": "iris", "model": "mlp", "epochs": 2, "nonfinite": "stop"}
SETTINGS |= {"optimizer": "adam", "learning_rate": 1e-2, "batch_size": 16, "seed": 0}
SETTINGS |= {"backward": "manual", "ordered": None}

# The words, and what must be in the sentence.
REFUSED = {
    "train mnist": "unknown data set 'mnist'",
    "train iris --learning-rate -1": "learning_rate must be positive",
    "train iris --learning-rate nan": "learning_rate must be positive",
    "train iris --learning-rate inf": "learning_rate must be positive",
    "train iris --seed -1": "seed must be from 0",
    "train iris --seed 99999999999": "seed must be from 0",
    "train iris --epochs 0": "epochs must be",
    "train iris --epochs -3": "epochs must be",
    "train iris --batch-size 0": "batch_size must be from 1",
    "train iris --batch-size 100000": "batch_size must be from 1 to 120",
    "train iris --model bert": "unknown model 'bert'",
    "train digits-denoise --model mlp": "unknown model 'mlp'",
    "train iris --processes 0": "processes must be at least 1",
    "train iris --processes 1 --distributed": "a scheduler decides",
    "train iris --processes 1 --ordered 7": "multiple of 7 parts",
    "train iris --ordered 0": "parts must be",
    "train iris --out file": "file exists already, and is no folder",
    "train iris --out file/run": "cannot be written: Not a directory",
    "train iris --out other": "other exists already, and holds no run",
    "train iris --out link": "link",
    "train iris --out run --learning-rate 0.5": "learning_rate 0.01 (now 0.5)",
    "train iris --out run --seed 3 --epochs 9": "seed 0 (now 3)",
    "train digits --out run": "data iris (now digits)",
    "train stdlib --optimizer sgd": "trained on by adamw",
    "train stdlib --model mlp": "unknown model 'mlp'",
    "train stdlib --epochs 0": "must be at least 1",
    "train nothing.bin": "nothing.bin",
    "train tokens.bin": "tokens-held-out.bin is missing",
    "train other/none.npy": "none.npy",
    "train empty.npy": "held-out",
    "train iris --sweep rate=1..2:3": "sweep must be over a number of adam, learning_rate, b1",
    "train iris --sweep learning-rate=1..2": "sweep must be learning-rate=LOW..HIGH:COUNT or",
    "train iris --sweep learning-rate=0,1": "of numbers above 0, got 'learning-rate=0,1'",
    "train iris --sweep learning-rate=2..1:3": "with LOW below HIGH, got",
    "train iris --sweep learning-rate=0..1:3": "with LOW above 0, as values lie at equal ratios",
    "train iris --sweep learning-rate=1..2:1": "with a COUNT of 2 or more, got",
    "train iris --sweep learning-rate=a,1": "of finite numbers, got",
    "train iris --sweep b1=0.5,1": "of numbers below 1, got",
    "train iris --optimizer adamw --sweep weight-decay=-1,0": "of numbers that are at least 0",
    "train iris --sweep b1=0.5,0.9 --seeds 0": "seeds must be at least 1, got 0",
    "train iris --sweep b1=0..0.9:99 --seeds 99": "sweep must be of at most 4,096 runs, got 9,801",
    "train iris --sweep b1=0.5,0.9 --sweep b1=0,0.1": "sweep must name each number once",
    "train iris --seeds 2 --ordered 2": "a sweep is of one process",
    "train stdlib --seeds 2": "sweep must be over data with targets",
    "show nowhere": "there is no run nowhere",
    "show file": "file exists already, and is no folder",
    "show other": "other exists already, and holds no run",
    "show empty": "empty holds no run",
    "runs nowhere": "there is no folder nowhere",
    "runs file": "there is no folder file",
    "explain nowhere": "there is no run nowhere, nor a data set: there are digits",
    "explain run --update 17": "update must be from 1 to 16",
    "explain iris --update 2": "update must be 1, as iris is a data set",
    "debug nowhere": "there is no run nowhere",
    "debug run": "--update must say which",
    "debug run --update 0": "update must be from 1 to 16",
    "debug run --update 17": "update must be from 1 to 16",
    "debug broken": "run.json of broken is damaged",
    "prepare nothing.txt --out t.bin": "nothing.txt",
    "prepare file --out t.txt": "out must end in .bin",
    "prepare file --out nowhere/t.bin": "nowhere/t.bin: No such file or directory",
    "prepare file --out t.bin --held-out 1.5": "held_out must be at least 0 and below 1",
    "prepare file --out t.bin --held-out nan": "held_out must be",
    "prepare file --out t.bin --tokenizer file": "file",
    "prepare zero --out t.bin": "no tokens",
    "prepare other --out t.bin": "other",
    "verify nothing": "nothing",
    "verify no.module:thing": "no.module",
    "verify funprop:nothing": "nothing",
}


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with a run, what looks like one, and other things."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("text\n")
    (tmp_path / "zero").touch()
    (tmp_path / "link").symlink_to("nowhere")
    for name in ("other", "empty", "run", "broken"):
        (tmp_path / name).mkdir()
    (tmp_path / "other" / "letter.txt").touch()
    (tmp_path / "tokens.bin").write_bytes(bytes(1000))
    np.save(tmp_path / "empty.npy", np.zeros(0, np.uint8))
    write_settings(tmp_path / "run", SETTINGS)
    (tmp_path / "broken" / "run.json").write_text('{"data": "iris"')
    return tmp_path


def files(folder):
    found = {file for file in folder.rglob("*") if file.name != ".lock"}
    return {file: file.is_file() and file.read_bytes() for file in found}


def ran(words, monkeypatch):
    """What the command ends with."""
    monkeypatch.setattr(sys, "argv", ["funprop", *words.split()])
    with pytest.raises(SystemExit) as ended, jax.numpy_dtype_promotion("standard"):  # for optax
        cli.main()
    return ended.value.code


@pytest.mark.parametrize("words", REFUSED)
def test_refused_in_one_sentence(words, here, monkeypatch, capsys):
    before = files(here)
    code = ran(words, monkeypatch)
    assert isinstance(code, str) and code.startswith("error: ") and REFUSED[words] in code
    assert len(code) <= 400 and "\n" not in code
    assert files(here) == before
    assert not capsys.readouterr().err


def test_what_was_not_foreseen_is_a_sentence_too(here, monkeypatch):
    def fails(_):
        raise KeyError("params")

    monkeypatch.setattr(show, "show", fails)
    assert ran("show run", monkeypatch) == "error: KeyError: 'params' (--debug shows where)"
    with pytest.raises(KeyError):
        monkeypatch.setattr(sys, "argv", ["funprop", "show", "run", "--debug"])
        cli.main()


def test_the_help_is_a_line_a_command(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    assert ran("--help", monkeypatch) == 0
    said = capsys.readouterr().out
    assert ran("", monkeypatch) == 2 and capsys.readouterr().out == said
    commands = {name for names in cli_help.GROUPS.values() for name in names}
    lines = [line.split()[0] for line in said.splitlines() if re.match("  [a-z]+    ", line)]
    assert {*lines} == commands == cli_help.EXAMPLES.keys() - {""} and len(lines) == len(commands)
    assert "--debug" in said and "\nExamples\n  funprop train digits\n" in said


@pytest.mark.parametrize("columns", [80, 120])
@pytest.mark.parametrize("command", sorted(cli_help.EXAMPLES.keys() - {""}))
def test_the_help_of_a_command_tells_all_it_takes(command, columns, monkeypatch, capsys):
    """Each option once, in a group, with a text; and its examples are commands."""
    monkeypatch.setenv("COLUMNS", str(columns))
    given = {}
    helped = cli_help.helped
    monkeypatch.setattr(cli, "helped", lambda *of: given.update(of[1]) or helped(*of))
    assert ran(f"{command} --help", monkeypatch) == 0
    said = capsys.readouterr().out
    assert max(map(len, said.splitlines())) <= columns and "Other options" not in said
    listed = re.findall(r"^  (--[a-z0-9-]+)", said, re.M)
    takes = inspect.signature(given[command]).parameters.values()
    options = [item.name for item in takes if "Positional" not in str(item.annotation)]
    assert sorted(listed) == sorted(f"--{name.replace('_', '-')}" for name in options)
    assert not re.search(r"^  --\S+( \S+)?\n  --", said, re.M)
    for line in cli_help.EXAMPLES[command]:
        assert {word for word in line.split() if word[:2] == "--"} <= {*listed}
        assert line.startswith(f"funprop {command}") and line in said


@pytest.mark.parametrize("shell", cli_help.SHELLS)
def test_completion_knows_commands_and_options(shell, monkeypatch, capsys):
    assert not ran(f"--print-completion {shell}", monkeypatch)
    said = capsys.readouterr().out
    assert {"finetune", "learning-rate", "target"} <= {*re.findall(r"[a-z][a-z-]+", said)}


def test_runs_and_one_of_them_are_shown(here, monkeypatch, capsys):
    run = here / "run"
    rows = [
        {"epoch": 1.0, "loss": 2.0, "held_out/loss": 2.5, "seconds": 1.0},
        {"epoch": 2.0, "loss": 1.0, "held_out/loss": float("nan"), "seconds": 2.0},
    ]
    write_history(run, rows)
    with Checkpoints(run / "checkpoints") as checkpoints:
        for update in (8, 16):
            checkpoints.save({"w": np.arange(8.0)}, update, {"epoch": update // 8, "done": 0})
    damaged = next((run / "checkpoints" / f"{16:010d}").rglob("d/*"))
    damaged.write_bytes(damaged.read_bytes()[:-3])
    with (run / "history.jsonl").open("a") as file:
        file.write('{"epoch": 3.0, "lo')  # killed meanwhile
    assert ran("show run", monkeypatch) == 0
    said = capsys.readouterr().out
    assert "run: stopped: killed, can go on" in said and "learning_rate 0.01" in said
    lines = said.splitlines()
    (loss,) = (line.split() for line in lines if line.startswith("loss"))
    assert loss == ["loss", "█▁", "2", "1", "1", "2"]
    whole, broken = (line for line in lines if line.startswith("update"))
    assert "update 8 " in whole and whole.endswith("whole") and "damaged: " in broken
    write_settings(run, SETTINGS | {"stopped": "all 2 epochs done"}, finished=True)
    assert ran("runs .", monkeypatch) == 0
    said = capsys.readouterr().out
    assert "finished: all 2 epochs done" in said and "2/2" in said and "loss nan" in said
    assert [row["epoch"] for row in read_history(run)] == [1.0, 2.0]
    assert json.loads((run / "run.json").read_text())["finished"]
