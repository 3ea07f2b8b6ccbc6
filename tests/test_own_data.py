"""People's own data: what is found in it, what is learnt of it, and what is said later."""

import datetime
import json
import subprocess
import sys
import zipfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

import funprop as fp
from funprop.train.runs import corpus, images, job, sources
from funprop.train.runs.debug import debug
from funprop.train.runs.files import read_settings
from funprop.train.runs.predict import predict
from funprop.train.runs.tables import task_of
from funprop.train.tables import encoding, reading, splits
from funprop.train.tables.several import loss_of_each

ROOT = Path(__file__).parent.parent
N = 120


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """An empty folder; and optax promotes dtypes."""
    monkeypatch.chdir(tmp_path)
    with jax.numpy_dtype_promotion("standard"):
        yield tmp_path


def people(n=N):
    """A table with a column of each kind, the target of each kind, and things that go missing."""
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(
        {
            "id": np.arange(n) + 1000,
            "age": rng.integers(18, 80, n).astype(float),
            "city": rng.choice(["Lima", "Oslo", "Rome"], n),
            "member": rng.random(n) < 0.5,
            "since": pd.date_range("2024-01-01", periods=n),
            "note": [f"text {i}" for i in range(n)],
            "planet": "earth",
            "empty": np.nan,
        }
    )
    frame["price"] = 3 * frame["age"] + 40 * (frame["city"] == "Rome") + rng.normal(size=n)
    frame["tier"] = np.where(frame["age"] > 40, "gold", "tin")
    frame["stars"] = rng.integers(1, 6, n)
    frame.loc[:4, "age"] = np.nan
    frame.loc[5:9, "city"] = None
    return frame


def of(frame, *target, seed=0, **options):
    return task_of(
        pa.Table.from_pandas(frame), "people.csv", {"target": [*target], **options}, seed
    )


# ------------------------------------------------------------------------------------ what is found


def test_columns_and_targets_are_found_and_said():
    task = of(people().drop(columns=["tier", "stars"]), "price")
    said = "\n".join(task.notes)
    for name, why in (
        ("id", "every row differs"),
        ("note", "every row differs"),
        ("planet", "every row is the same"),
        ("empty", "it is empty"),
    ):
        assert f"{name!r} left out: {why}" in said
    assert "target 'price': a number" in said and task.classes == ()
    # 2 numbers (one with a column of where it is missing), 4 categories, 5 parts of a date.
    assert task.train[0].shape == (96, 3 + 4 + 5)
    assert "4 columns (2 numbers, 1 category, 1 date) as 12 inputs" in task.title


@pytest.mark.parametrize(
    ("values", "aim", "classes"),
    [
        (["b", "a"] * 20, None, ("a", "b")),
        ([True, False] * 20, None, ("false", "true")),
        ([10, 9, 2] * 20, None, ("2", "9", "10")),
        ([0.0, 1.0] * 20, None, ("0", "1")),
        ([0.5, 1.0] * 20, None, ()),
        ([1.0, 2.0, 3.0] * 20, None, ()),
        ([1.0, 2.0, 3.0] * 20, "classification", ("1", "2", "3")),
        ([10, 9, 2] * 20, "regression", ()),
        ([*range(30)], "regression", ()),
        ([*range(0, 90, 3)] * 2, None, ()),
    ],
)
def test_what_a_target_is(values, aim, classes):
    frame = pd.DataFrame({"x": np.random.default_rng(0).normal(size=len(values)), "y": values})
    task = of(frame, "y", task=aim)
    assert task.classes == classes
    labels = np.concatenate([task.train[1], task.test[1]])
    assert labels.dtype == (np.int32 if classes else np.float32)
    if not classes:
        _, mean, deviation = task.unit
        assert set(np.round(labels * deviation + mean, 3)) == set(values)


def test_nothing_is_learnt_from_what_is_held_out():
    frame, held_out = people(), splits.at_random(None, N)[1]
    task = of(frame, "price")
    frame.loc[held_out, "age"] = 1e6
    frame.loc[held_out, "city"] = "Atlantis"
    frame.loc[held_out, "price"] *= 7
    other = of(frame, "price")
    for one, two in zip(task.train, other.train, strict=True):
        np.testing.assert_array_equal(one, two)
    assert not np.array_equal(task.test[0], other.test[0])
    assert task.unit == other.unit and abs(float(other.test[0].max())) <= encoding.FARTHEST


def test_rows_are_held_out_as_asked():
    frame = people()
    for column, last in (("since", 24), ("stars", None)):
        task = of(frame, "price", time=column)
        n = len(task.test[0])
        assert n == last or last is None
    dates = frame["since"].iloc[-24:]
    assert {*splits.by_time(frame["since"].astype("int64").to_numpy(), "since")[1]} == {
        *dates.index
    }
    groups = frame["stars"].astype(str).to_numpy()
    train, test = splits.by_group(groups, "stars")
    assert not {*groups[train]} & {*groups[test]} and len(train) + len(test) == N
    rare = np.array([0] * 97 + [1] * 3)
    for seed in range(20):
        train, test = splits.at_random(rare, 100, seed=seed)
        assert (rare[test] == 1).sum() == 1 and len(test) == 20
        assert np.array_equal(np.sort(np.concatenate([train, test])), np.arange(100))


def test_classes_count_alike_however_rare():
    task = of(people(), "tier", class_weights="balanced")
    _, labels, weights = task.train
    sums = np.bincount(labels, weights)
    assert sums[0] == pytest.approx(sums[1]) and weights.mean() == pytest.approx(1, rel=1e-6)
    assert len(task.test) == 2


def test_a_loss_of_several_targets_is_right():
    both = loss_of_each([fp.mean_squared(), fp.softmax_cross_entropy()])
    keys = jax.random.split(jax.random.key(0), 3)
    numbers, logits, target = (
        jax.random.normal(key, s) for key, s in zip(keys, [(4,), (4, 3), (4,)], strict=True)
    )
    labels, weights = jnp.array([0, 2, 1, 1]), jnp.array([1.0, 0.0, 2.0, 0.5])
    fp.verify(both, (), ((numbers, logits), (target, labels), weights)).raise_if_wrong()


# ------------------------------------------------------------ trained, and later, elsewhere, used


def trained(data, out="run", **options):
    words = {"epochs": 2} | {k: options.pop(k) for k in ("epochs", "model") if k in options}
    return job.train(str(data), options=options, out=Path(out), **words)


@pytest.fixture
def quick(monkeypatch):
    """Without the check of gradients, which other tests make."""
    monkeypatch.setattr(job, "verify_task", lambda *_: None)


def test_a_table_is_trained_on_and_predicted_of(quick, here, capsys):
    frame = people().drop(columns=["stars", "price"])
    frame.to_csv("people.csv", index=False)
    run = trained("people.csv", target=["tier"], epochs=40)
    said = capsys.readouterr().out
    assert "target 'tier': 2 classes (gold, tin)" in said and "Confusion matrix" in said
    task = sources.task_of("people.csv", {"target": ["tier"]})
    held_out = splits.at_random((frame["tier"] == "tin").to_numpy(int), N)[1]
    accuracy = float(said.split("Test accuracy ")[1].split("%")[0]) / 100
    # Without the target, in another order, with a column more and a category that is new.
    other = frame.drop(columns="tier").iloc[::-1].assign(more=1)
    other.loc[other.index[0], "city"] = "Atlantis"
    other.loc[other.index[:3], ["age", "since"]] = None
    other.to_parquet("other.parquet")
    line = predict(run, Path("other.parquet"), Path("said.csv"))
    assert "'city': 'Atlantis' in 1 rows, which training had not" in line
    assert "'since' is missing in 3 rows, and never was in training" in line and "'age'" not in line
    other.iloc[:3] = frame.drop(columns="tier").iloc[::-1].assign(more=1).iloc[:3]
    other.to_parquet("other.parquet")
    predict(run, Path("other.parquet"), Path("said.csv"))
    found = pd.read_csv("said.csv").iloc[::-1].reset_index(drop=True)
    assert (found["prediction"] == frame["tier"])[held_out].mean() == pytest.approx(accuracy)
    shares = found[["probability_gold", "probability_tin"]].to_numpy()
    np.testing.assert_allclose(shares.sum(1), 1, rtol=1e-12)
    assert len(task.test[0]) == len(held_out)
    with zipfile.ZipFile(run / "encoder.skops") as parts:  # no pickle: JSON, and NumPy's arrays
        assert all(name.endswith((".json", ".npy")) for name in parts.namelist())
    assert trained("people.csv", target=["tier"], epochs=40) == run
    assert "is finished" in capsys.readouterr().out


def test_several_targets_and_a_run_that_goes_on(quick, capsys):
    people().to_parquet("people.parquet")
    options = {"target": ["price", "tier", "stars"], "time": "since"}
    trained("people.parquet", **options)
    run = trained("people.parquet", epochs=3, **options)
    assert (run / "report.png").read_bytes()[:4] == b"\x89PNG"
    said = capsys.readouterr().out
    assert "Test: price off by" in said and "Test accuracy of tier" in said
    assert read_settings(run)["target"] == options["target"]
    predict(run, Path("people.parquet"), Path("said.tsv"))
    found = pd.read_csv("said.tsv", sep="\t")
    assert set(found["prediction_stars"]) <= {1, 2, 3, 4, 5}
    assert found["prediction_price"].between(-500, 800).all()
    assert "probability_tier_gold" in found and len(found) == N


OWN = """
import numpy as np, funprop as fp
x = np.random.default_rng(0).normal(size=(50, 3)).astype("float32")
y = (x[:, 0] > 0).astype("int32")
def task():
    return fp.Task(
        train=(x[10:], y[10:], np.ones(40)), test=(x[:10], y[:10]),
        model=fp.dense(2), loss=fp.softmax_cross_entropy(),
    )
"""


@pytest.mark.slow  # with its gradients verified
def test_a_task_of_ones_own_has_what_known_ones_have(here, monkeypatch, capsys):
    (here / "my_own_task.py").write_text(OWN)
    run = trained("my_own_task:task", epochs=3)
    said = capsys.readouterr().out
    assert "task: 40 examples to train on, 10 held out" in said and "WRONG" not in said
    assert "is the derivative of its forward pass" in said and "Confusion matrix" in said
    assert "update 2 of" in debug(run, 2)
    x = sys.modules["my_own_task"].x
    np.savez("x.npz", x)
    predict(run, Path("x.npz"), Path("said.csv"))
    assert list(pd.read_csv("said.csv")) == ["prediction", "probability_0", "probability_1"]
    predict(run, Path("x.npz"), Path("said.npy"))
    assert np.load("said.npy").shape == (50, 2)


@pytest.mark.slow
def test_a_fresh_process_needs_the_folder_alone(quick, here):
    people().drop(columns=["stars", "tier"]).to_csv("people.csv.gz", index=False)
    run = trained("people.csv.gz", target=["price"], epochs=60)
    (here / "elsewhere").mkdir()
    moved = run.rename(here / "elsewhere" / "model")
    people().drop(columns=["stars", "tier", "price"]).to_csv("elsewhere/new.csv", index=False)
    (here / "people.csv.gz").unlink()
    words = [sys.executable, "-m", "funprop", "predict", str(moved), "new.csv", "--out", "o.csv"]
    environment = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"}
    ran = subprocess.run(
        words, cwd=here / "elsewhere", env=environment, capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout == "120 rows written to o.csv: prediction\n"
    said, truth = pd.read_csv("elsewhere/o.csv")["prediction"], people()["price"]
    assert np.corrcoef(said, truth)[0, 1] > 0.9


@pytest.mark.parametrize("damage", ["encoder.skops", "inputs.json", "params.safetensors"])
def test_damage_is_told_and_nothing_is_written(damage, quick, here):
    people().drop(columns=["stars", "price"]).to_csv("people.csv", index=False)
    run = trained("people.csv", target=["tier"], epochs=1)
    (run / damage).write_bytes((run / damage).read_bytes()[:-9])
    with pytest.raises(ValueError, match=f"{damage} is damaged: it is not what was written"):
        predict(run, Path("people.csv"), Path("said.csv"))
    assert not Path("said.csv").exists()


def test_no_type_is_trusted_but_those_of_scikit_learn(here):
    import skops.io

    class_of_others = fp.Sum(1, 2)
    Path("others.skops").write_bytes(
        skops.io.dumps({"a": class_of_others, "b": json.JSONEncoder()})
    )
    with pytest.raises(ValueError, match="holds types that are not trusted: "):
        encoding.load(Path("others.skops"))
    Path("others.skops").write_bytes(skops.io.dumps([1, 2]))
    with pytest.raises(ValueError, match="holds no ColumnTransformer, but a list"):
        encoding.load(Path("others.skops"))


# --------------------------------------------------------------------------------- images and text


def picture(place, colour, size=(9, 13)):
    place.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(place)


def test_images_by_class(quick, here, capsys):
    for i in range(10):
        picture(here / "pets" / "cat" / f"{i}.png", (200 + i, 20, 20))
        picture(here / "pets" / "dog" / "more" / f"{i}.jpg", (20, 20 + i, 200))
    (here / "pets" / "newt").mkdir()
    picture(here / "pets" / "loose.png", (0, 0, 0))
    run = trained("pets", model="mlp", epochs=10, image_size=8)
    said = capsys.readouterr().out
    assert "'newt' left out: it has no images" in said and "1 images left out" in said
    (here / "pets" / "loose.png").unlink()
    assert "2 classes: cat 10, dog 10" in said and "8 x 8 pixels, in colour" in said
    assert "Test accuracy 100.00%" in said
    predict(run, here / "pets", Path("said.csv"))
    found = pd.read_csv("said.csv")
    assert [name.split("/")[0] for name in found["file"]] == list(found["prediction"])
    line = predict(run, here / "pets" / "cat" / "1.png", Path("one.parquet"))
    assert line.startswith("1 rows")
    assert [*pd.read_parquet("one.parquet")["prediction"]] == ["cat"]


def test_images_of_any_mode_are_read(here):
    grey = np.linspace(0, 255, 64).reshape(8, 8)
    Image.fromarray(grey.astype(np.uint8)).save("8.png")
    Image.fromarray((grey * 257).astype(np.uint16)).save("16.png")
    both = np.stack([grey, np.where(grey < 128, 0, 255)], -1).astype(np.uint8)
    Image.fromarray(both).save("la.png")
    Image.fromarray(grey.astype(np.uint8)).convert("P").save("p.gif")
    Image.fromarray((grey / 255).astype(np.float32)).save("one.tif")
    Image.fromarray((grey / 255 * (2**31 - 1)).astype(np.int32)).save("32.tif")
    Image.fromarray((grey * (200 / 255)).astype(np.uint16)).save("dark.png")
    names = ("8.png", "16.png", "la.png", "p.gif", "one.tif", "32.tif", "dark.png")
    eight, sixteen, clear, palette, *wide, dark = images.read([Path(name) for name in names], 8, 1)
    np.testing.assert_allclose(eight[..., 0], np.floor(grey) / 255, atol=1e-6)
    np.testing.assert_allclose(sixteen, eight, atol=1 / 255)
    np.testing.assert_allclose(palette, eight, atol=1 / 255)
    np.testing.assert_allclose(wide, [eight, eight], atol=1 / 255)
    assert not dark.any()  # of 16 bits: at most 200 of 65,535
    assert (clear[:4] == 1).all()  # what is transparent is white


def test_text_in_files(here):
    (here / "book").mkdir()
    for i in range(3):
        (here / "book" / f"{i}.txt").write_text(f"{i} naïve text, again and again; " * 100)
    found = corpus.text_files(here / "book", 4)
    x, y = found.batch(0, 0)
    assert x.shape == y.shape == (4, corpus.TIME) and np.array_equal(x[:, 1:], y[:, :-1])
    train, test = found.same
    assert len(test) == pytest.approx((len(train) + len(test)) / 20, rel=0.02)
    assert sources.kind_of("book") == "text" and sources.name_of("book/0.txt") == "0"
    for i in range(3):
        (here / "book" / f"{i}.txt").rename(here / "book" / f"{i}.TXT")
    assert sources.kind_of("book") == sources.kind_of("book/0.TXT") == "text"
    assert np.array_equal(corpus.text_files(here / "book", 4).same[0], train)


# ---------------------------------------------------------------------------------------- bad input

FILES = {
    "empty.csv": b"",
    "names.csv": b"a,b\n",
    "short.csv": b"a,b\n1,2\n3\n",
    "long.csv": b"a,b\n1,2\n3,4,5\n",
    "twice.csv": b"a,a\n1,2\n3,4\n",
    "binary.csv": b"a,b\n\x00\x01,2\n",
    "latin.csv": "a,b\nnaïve,2\nnaïf,3\n".encode("latin-1"),
    "no.parquet": b"PAR0",
    "no.csv.gz": b"not compressed",
    "wide.csv": "a,b\n1,2\n".encode("utf-16"),
    "latin_names.csv": "naïve,b\n1,2\n".encode("latin-1"),
    "line.csv": b"a,b",
    "huge.csv": b"a,b\n" + b"".join(b"%d,%de300\n" % (i % 7, i) for i in range(40)),
    "infinite.csv": b"a,b\n" + b"inf,y\n-inf,n\n" * 9,
    "parts.csv": b"d,d: days,b\n" + b"2024-01-02,1,y\n2024-01-03,2,n\n" * 9,
    "folder.csv/inside": b"",
    "one.csv": b"a,b\n1,x\n2,x\n3,x\n",
    "none.csv": b"a,b\n1,\n2,\n3,\n",
    "ids.csv": b"a,b\n" + b"".join(b"%d,%d\n" % (i * i % 7, i) for i in range(40)),
    "words.csv": b"a,b\n" + b"".join(b"%d,name%d\n" % (i * i % 7, i) for i in range(40)),
    "good.csv": b"a,b,c\n"
    + b"".join(b"%d,%s,%d\n" % (i % 7, b"yn"[i % 2 :][:1], i % 5) for i in range(40)),
    "dates.csv": b"a,b\n" + b"".join(b"%d,2024-01-%02d\n" % (i % 3, i % 28 + 1) for i in range(40)),
    "only.csv": b"b\n" + b"y\nn\n" * 20,
    "text.txt": "é".encode("latin-1") * 5000,
    "short.txt": b"too short",
    "pets/cat/1.png": b"no image",
    "pets/dog/1.png": b"no image",
    "lone/cat/1.png": b"no image",
    "folder/letter.doc": b"",
    "letter.doc": b"a letter",
    **{f"pair/{name}/1.pgm": b"P5 1 1 255 a" for name in ("cat", "dog")},
    "two.csv": b"a,b\n1,y\n2,n\n",
    "broken_task.py": b"value = 3\ndef task():\n    return 4\n",
}
TARGET = {"target": ["b"]}
REFUSED = [
    ("nowhere.csv", TARGET, "there is no file nowhere.csv"),
    ("empty.csv", TARGET, "empty.csv is empty"),
    ("names.csv", TARGET, "has no rows below its names: a, b"),
    ("short.csv", TARGET, "Expected 2 columns, got 1"),
    ("long.csv", TARGET, "Expected 2 columns, got 3"),
    ("twice.csv", TARGET, "columns of different names, got 'a' twice"),
    ("binary.csv", TARGET, "is no text: it has a byte 0x00"),
    ("latin.csv", TARGET, "latin.csv is no text in UTF-8: column 'a'"),
    ("latin_names.csv", TARGET, "is no text in UTF-8: its first line, 'na.ve,b'"),
    ("wide.csv", TARGET, "wide.csv is text in UTF-16, and must be in UTF-8"),
    ("line.csv", TARGET, "has no rows below its names: a, b"),
    ("huge.csv", TARGET, "target 'b' must be finite numbers, got 3.9"),
    ("infinite.csv", TARGET, "no column to learn from: 'a' left out: it holds no finite number"),
    ("parts.csv", TARGET, "column 'd: days' has the name of a part of column 'd': rename it"),
    ("folder.csv", TARGET, "folder.csv is a folder, and must be a file with a table"),
    ("good.csv", TARGET | {"time": "b"}, "'b' is named twice: it is a target, the time or the gr"),
    ("dates.csv", {"target": ["a"], "group": "a"}, "'a' is named twice"),
    ("good.csv", {"target": ["c"], "time": "b"}, "'b' must hold dates or numbers, got 'y'"),
    ("no.parquet", TARGET, "no.parquet is no table"),
    ("no.csv.gz", TARGET, "no.csv.gz is no table"),
    ("good.csv", {}, "--target must name a column of good.csv: a, b, c"),
    ("good.csv", {"target": ["d"]}, "good.csv has no column 'd', there are a, b, c"),
    ("good.csv", {"target": ["b", "b"]}, "column 'b' is named twice"),
    ("good.csv", TARGET | {"time": "when"}, "no column 'when'"),
    ("good.csv", TARGET | {"time": "a", "group": "c"}, "by time or by group, got both"),
    ("good.csv", TARGET | {"held_out": 1.5}, "held_out must be above 0 and below 1"),
    ("good.csv", TARGET | {"task": "regression"}, "must be numbers for a regression, got text"),
    ("good.csv", {"target": ["a", "b"], "class_weights": "balanced"}, "for one target"),
    ("good.csv", TARGET | {"image_size": 8}, "--image-size is not for good.csv"),
    ("one.csv", TARGET, "target 'b' has one value alone, 'x': there is nothing to learn"),
    ("none.csv", TARGET, "target 'b' has no value: there is nothing to learn"),
    ("ids.csv", TARGET, "target 'b' looks like an id: 40 different values in 40 rows; --task regr"),
    ("words.csv", TARGET, "target 'b' looks like an id: 40 different values in 40 rows$"),
    ("dates.csv", TARGET, "target 'b' must be classes or numbers, got date32"),
    ("only.csv", TARGET, "there is no column to learn from: only targets"),
    ("pets", {}, "pets/cat/1.png is no image that can be read"),
    ("pets", {"image_size": 2}, "image_size must be at least 8"),
    ("pets", TARGET, "--target is not for pets"),
    ("lone", {}, "lone must have folders of images for two classes, has 1"),
    ("folder", {}, "neither folders of images, one for each class, nor .txt files"),
    ("pair", {}, "must be a class of two examples or more, to hold one out"),
    ("two.csv", TARGET, "must be a class of two examples or more, to hold one out"),
    ("letter.doc", {}, "letter.doc is no table, text or tokens: its name ends as none of these"),
    ("broken_task:task", {}, "broken_task:task must be a funprop.Task, or make one, got int"),
    ("broken_task:gone", {}, "broken_task has no gone"),
    ("no_such_module:task", {}, "No module named 'no_such_module'"),
    ("broken_task:task", TARGET, "--target is not for broken_task:task"),
    ("iris", TARGET, "--target is not for iris"),
    ("photo.bmp", {}, "there is no file or folder photo.bmp that can be learnt from"),
]


@pytest.fixture
def files(here):
    for name, content in FILES.items():
        (here / name).parent.mkdir(parents=True, exist_ok=True)
        (here / name).write_bytes(content)
    return here


@pytest.mark.parametrize(("data", "options", "words"), REFUSED)
def test_refused_in_one_sentence_with_nothing_written(data, options, words, files):
    with pytest.raises((ValueError, FileNotFoundError), match=words) as raised:
        job.train(data, options=options, out=Path("run"))
    assert "\n" not in str(raised.value) and len(str(raised.value)) < 300
    assert not Path("run").exists()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"a,b\n1,2\n", "column 'c' is missing"),
        (b"a,c\nlots,2\n", "column 'a' must hold numbers, got 'lots' in row 1"),
        (b"", "is empty"),
        (b"a,c\n1\n", "Expected 2 columns, got 1"),
    ],
)
def test_what_cannot_be_predicted_is_told(content, words, quick, files):
    run = trained("good.csv", target=["b"], epochs=1, task="classification", held_out=0.3)
    Path("new.csv").write_bytes(content)
    with pytest.raises(ValueError, match=words):
        predict(run, Path("new.csv"), Path("said.csv"))
    with pytest.raises(ValueError, match=r"out must end in \.csv"):
        predict(run, Path("good.csv"), Path("said.xls"))
    with pytest.raises(ValueError, match=r"out must be another file than good\.csv"):
        predict(run, Path("good.csv"), Path("good.csv"))
    assert not Path("said.csv").exists()


@pytest.mark.parametrize(
    ("name", "words"),
    [("text.txt", "no text in UTF-8: byte 0xe9 at 0"), ("short.txt", "must have more text")],
)
def test_text_that_is_none(name, words, files):
    with pytest.raises(ValueError, match=words):
        corpus.text_files(Path(name), 4)


@pytest.mark.parametrize(
    ("change", "kind", "words"),
    [
        ({"loss": None}, TypeError, "loss must be a layer, got None"),
        ({"model": None}, ValueError, "must have one of model and models"),
        ({"models": {"a": fp.dense(1)}}, ValueError, "must have one of model and models"),
        ({"train": np.zeros((3, 2))}, TypeError, r"train must be \(inputs, targets\)"),
        ({"test": (np.zeros((3, 1)), np.zeros(3))}, ValueError, "must have inputs alike"),
        ({"model": lambda: 3}, TypeError, "model must be a layer, or make one"),
    ],
)
def test_a_task_that_cannot_be(change, kind, words):
    data = np.zeros((3, 2)), np.zeros((3, 1))
    whole = {"train": data, "test": data, "model": fp.dense(1), "loss": fp.mean_squared()}
    with pytest.raises(kind, match=words):
        fp.Task(**(whole | change)).built("dense")


def test_tables_of_any_separator_are_one(here):
    rows = [("a", "b", "c"), ("1", "x; y", "2024-01-02"), ("", "z, é", "2024-02-01")]
    for name, separator in (("t.csv", ","), ("s.csv", ";"), ("t.tsv", "\t")):
        text = "\n".join(separator.join(f'"{cell}"' for cell in row) for row in rows)
        (here / name).write_bytes(b"\xef\xbb\xbf" + text.encode())
    tables = [reading.read(here / name) for name in ("t.csv", "s.csv", "t.tsv")]
    assert tables[0].equals(tables[1]) and tables[0].equals(tables[2])
    assert [str(field.type) for field in tables[0].schema] == ["int64", "string", "date32[day]"]


def date(*parts):
    return datetime.datetime(*parts)


@pytest.mark.parametrize(
    ("separator", "cells", "values"),
    [
        (",", [1, "?", "-", "None", "missing", "#DIV/0!", " ", "<NA>", 2], [1, *[None] * 7, 2]),
        (",", ["True", "none", "FALSE"], [True, None, False]),
        (",", [" a ", "None", "?", " "], ["a", "None", None, None]),
        (";", ["1,5", "-", "1.234,25"], [1.5, None, 1234.25]),
        (";", ["1,234", "2"], [1.234, 2.0]),
        (";", ["1,234.5", "2"], [1234.5, 2.0]),
        (",", ["1,234", "2"], [1234.0, 2.0]),
        ("\t", ["0,125", "1 000"], [0.125, 1000.0]),
        (",", ["$1,234.50", "-$5"], [1234.5, -5.0]),
        (",", ["12 %", "5%"], [12.0, 5.0]),
        (",", ["5%", "5"], ["5%", "5"]),
        (",", ["$5", "€5"], ["$5", "€5"]),
        (",", ["1,2,3", "4"], ["1,2,3", "4"]),
        (",", ["31.01.2025 10:30", "None"], [date(2025, 1, 31, 10, 30), None]),
        (",", ["31.01.25", "01.02.98"], [date(2025, 1, 31), date(1998, 2, 1)]),
        (",", ["2025.01.31", "2025/02/01"], [date(2025, 1, 31), date(2025, 2, 1)]),
        (",", ["01/02/2025", "03/04/2025"], ["01/02/2025", "03/04/2025"]),
    ],
)
def test_numbers_and_dates_as_people_write_them(separator, cells, values, here):
    for end in ("\n", "\r\n", "\r"):
        lines = ['"a, in m"; y ;;', *(f'"{cell}";x;;' for cell in cells)]  # names that are blank
        (here / "t.csv").write_text(end.join(lines).replace(";", separator), newline="")
        table = reading.read(here / "t.csv")
        assert table.column_names == ["a, in m", "y"]
        assert table["a, in m"].to_pylist() == values


def test_what_only_looks_like_numbers_or_dates_is_said():
    frame = people().drop(columns=["stars", "tier"])
    frame["size"] = np.where(np.arange(N) == 7, "TBD", (np.arange(N) % 9).astype(str))
    frame["seen"] = [f"01/{i % 28 + 1:02d}/2025" for i in range(N)]
    said = "\n".join(of(frame, "price").notes)
    assert "'size' is taken for categories: 'TBD' is no number" in said
    assert "'01/01/2025' could be two dates: write them as 2026-01-31" in said
    assert "numbers: age, member\ncategories: city, size, seen\ndates: since" in said


def test_times_of_the_day_come_round():
    frame = people().drop(columns=["stars", "tier"])
    frame["at"] = [datetime.time(i % 24, 30) for i in range(N)]
    inputs = of(frame[["at", "price"]], "price").train[0]
    assert inputs.shape[1] == 2 and len(np.unique(inputs.round(4), axis=0)) == 24


def test_what_parquet_adds_is_no_column_and_no_number(here):
    frame = people().drop(columns=["stars", "tier"]).sample(N - 20, random_state=0)
    frame.to_parquet("index.parquet")
    assert not [n for n in reading.read(here / "index.parquet").column_names if "index" in n]
    pq.write_table(pa.table({"x": pa.array([1.0, np.nan] * 9)}), "nan.parquet")
    assert reading.read(here / "nan.parquet")["x"].null_count == 9


def test_text_of_any_type_is_text(monkeypatch):
    kinds = pa.string(), pa.large_string(), pa.string_view()
    table = pa.table({str(kind): pa.array(["a", "b"], kind) for kind in kinds})
    monkeypatch.setattr(pq, "read_table", lambda _: table)  # not every version writes them all
    found = reading.read(Path("any.parquet")).take([1])
    assert found.to_pylist() == [dict.fromkeys(map(str, kinds), "b")]


@pytest.mark.slow
def test_the_page_and_the_readme_run():
    for page in ("README.md", "docs/your-data.md"):
        blocks = (ROOT / page).read_text().split("```python\n")[1:]
        blocks = [block.split("```")[0] for block in blocks]
        for block in blocks if "docs" in page else blocks[:1]:
            exec(block, {"__name__": "page"})
