"""`funprop finetune`: adapters beside a tiny GPT-2 of transformers, and what is refused."""

import json
import shutil
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

import funprop as fp
from funprop import cli
from funprop.train.runs import finetune as tuning
from funprop.train.runs.adapters import tuned_by

DATA = Path(__file__).parent / "data" / "pretrained"
LINES = "".join(f"def f{i}(x):\n    return x + {i}\n\n" for i in range(120))


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(DATA / "gpt2", tmp_path / "gpt2")
    shutil.copytree(DATA / "llama", tmp_path / "bare")  # without a tokenizer
    (tmp_path / "text.txt").write_text(LINES)
    (tmp_path / "short.txt").write_text("def\n")
    (tmp_path / "binary").write_bytes(b"\xff\xfe" * 500)
    np.arange(100, dtype=np.uint16).tofile(tmp_path / "tokens.bin")
    return tmp_path


def run(monkeypatch, words):
    monkeypatch.setattr(sys, "argv", ["funprop", *words.split()])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return ended.value.code


REFUSED = {
    "nowhere text.txt": "there is no folder nowhere",
    "bare text.txt": "tokenizer.json",
    "gpt2 nothing.txt": "nothing.txt",
    "gpt2 short.txt": "what is held out of short.txt would have no tokens",
    "gpt2 binary": "must be text in UTF-8",
    "gpt2 tokens.bin": "tokens-held-out.bin is missing",
    "gpt2 text.txt --low-rank 0": "rank must be at least 1, got 0",
    "gpt2 text.txt --where */nothing": "nothing",
    "gpt2 text.txt --where */norm": "params to be adapted must be those of a dense layer",
    "gpt2 text.txt --length 33": "length must be at most 32, the model's positions, got 33",
    "gpt2 text.txt --epochs 0": "epochs must be at least 1, got 0",
    "gpt2 text.txt --batch-size 0": "batch_size must be at least 1, got 0",
    "gpt2 text.txt --batch-size 9999": "batch_size must be from 1 to",
    "gpt2 text.txt --held-out 1": "held_out must be above 0 and below 1",
    "gpt2 text.txt --learning-rate 0": "learning_rate must be positive",
    "gpt2 text.txt --seed -1": "seed must be from 0",
    "gpt2 text.txt --out text.txt": "text.txt exists already, and is no folder",
}


@pytest.mark.parametrize("words", REFUSED)
def test_what_cannot_be_is_said_in_one_sentence_and_nothing_is_written(words, here, monkeypatch):
    before = sorted(here.rglob("*"))
    said = str(run(monkeypatch, f"finetune {words}"))
    assert REFUSED[words] in said and len(said.splitlines()) == 1
    assert sorted(here.rglob("*")) == before


@pytest.fixture
def promotion():
    with jax.numpy_dtype_promotion("standard"):  # optax's schedules mix dtypes
        yield


@pytest.mark.slow
@pytest.mark.usefixtures("promotion")
def test_a_run_ends_in_a_folder_that_has_learned_and_says_so(here, monkeypatch, capsys):
    words = "finetune gpt2 text.txt --low-rank 2 --epochs 4 --learning-rate 0.05 --out run"
    assert run(monkeypatch, f"{words} --prompt def") == 0
    said = capsys.readouterr().out
    assert "blocks/attention/qkv/down" in said and "WRONG" not in said
    assert "192 params in adapters of rank 2 at */qkv are trained, 5,872 stay as they are" in said
    assert said.count("    | def") >= 4
    rows = [json.loads(line) for line in Path("run/history.jsonl").read_text().splitlines()]
    assert rows[-1]["held_out/loss"] < rows[0]["held_out/loss"]

    # The adapters alone are in the file of params; merged in, they are the model's weights.
    settings = json.loads(Path("run/run.json").read_text())
    tuned = tuned_by(settings)
    params = tuned.params
    stored = fp.load("run/params.safetensors", jax.eval_shape(fp.trained, params))
    again, before = fp.from_pretrained("run/model"), fp.from_pretrained("gpt2")
    up = jax.tree.leaves(stored)
    added = up[0] @ up[1]
    got, was = (loaded.params.blocks.attention.qkv.w for loaded in (again, before))
    np.testing.assert_allclose(got, was + added, atol=1e-6)
    assert abs(added).max() > 0.01 and again.tokenizer.encode("a").ids
    assert (again.params.embedding.table == before.params.embedding.table).all()

    # The same command finds it done; more epochs go on from there.
    assert run(monkeypatch, f"{words} --prompt def") == 0
    assert "run is finished" in capsys.readouterr().out
    assert run(monkeypatch, f"{words} --prompt def".replace("epochs 4", "epochs 5")) == 0
    assert "going on after round 4" in capsys.readouterr().out
    assert "run is finished" not in capsys.readouterr().out
    work = tuning.work_of(settings)  # what `funprop debug` repeats
    assert work.prepared().feed.updates == work.options["updates"]
