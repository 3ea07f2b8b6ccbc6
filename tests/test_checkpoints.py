"""Checkpoints: all that is saved comes back, bit for bit, or is refused in one short sentence."""

import dataclasses
import itertools
import json
import os
import shutil
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import pytest

import funprop as fp
from funprop.train.checkpoints import Checkpoints, description, saving, written
from funprop.train.checkpoints.digests import digests
from tests import killed

LONGEST = 400  # characters of a message
FLOAT8 = ("float8_e3m4", "float8_e4m3", "float8_e4m3fn", "float8_e5m2", "float8_e8m0fnu")
NARROW = ("int2", "uint2", "int4", "uint4", "float4_e2m1fn", *FLOAT8, "bfloat16")
WIDE = ("float64", "int64", "uint64", "complex128")
DTYPES = ("bool", "int8", "uint8", "int16", "uint16", "int32", "uint32", "float16", "float32")


def of_dtype(name):
    dtype = np.dtype(getattr(ml_dtypes, name, name))
    return np.arange(6).reshape(2, 3).astype(np.int32).astype(dtype)


@pytest.fixture
def every():
    """An array of every dtype."""
    return {name: of_dtype(name) for name in (*DTYPES, "complex64", *NARROW, *WIDE)}


def state_of(update):
    return {"w": np.full((3, 2), update, "f4"), "b": np.arange(3, dtype="f4") + update}


LIKE = state_of(0)


@pytest.fixture
def saved(tmp_path):
    """A folder with checkpoints of updates 1, 2 and 3."""
    with Checkpoints(tmp_path / "kept") as checkpoints:
        for update in (1, 2, 3):
            checkpoints.save(state_of(update), update, {"of": update})
    return checkpoints.folder


def restored(folder, like=LIKE, **options):
    """What is restored, and what was said of it."""
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        found = Checkpoints(folder, **options).restore(like)
    return found, [str(warning.message) for warning in told]


def same(found, want):
    assert jax.tree.structure(found) == jax.tree.structure(want)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(want), strict=True):
        assert type(one) is type(other)
        if hasattr(one, "dtype") and jnp.issubdtype(one.dtype, jax.dtypes.prng_key):
            assert one.dtype == other.dtype
            one, other = jax.random.key_data(one), jax.random.key_data(other)
        one, other = np.asarray(one), np.asarray(other)
        assert one.dtype == other.dtype and one.shape == other.shape
        assert one.tobytes() == other.tobytes()


# ------------------------------------------------------------------------------------ what is kept


def flipped(array):
    copy = array.copy()
    copy.reshape(-1).view("u1")[-copy.dtype.itemsize] ^= 1
    return copy


def test_a_digest_tells_one_bit_of_any_dtype(every):
    found = digests(every)
    other = digests({name: flipped(array) for name, array in every.items()})
    assert not [name for name in every if found[name] == other[name]]
    turned = digests({name: np.ascontiguousarray(a[::-1]) for name, a in every.items()})
    assert not [name for name in every if found[name] == turned[name]]
    on_device = digests({n: jnp.asarray(a) for n, a in every.items() if n not in WIDE})
    assert all(found[name] == digest for name, digest in on_device.items())


def test_every_kind_of_leaf_comes_back(every, tmp_path):
    state = {
        "numpy": every,
        "jax": {name: jnp.asarray(a) for name, a in every.items() if name not in WIDE},
        "keys": [jax.random.key(1), jax.random.split(jax.random.key(2, impl="rbg"), 3)],
        "numbers": (3, 2.5, True, 1 + 2j, np.float32(7), np.int64(2**40)),
        "empty": (np.zeros((0, 3)), jnp.zeros((2, 0)), None, {}),
        "scalar": jnp.float32(-0.0),
        "a/b": jnp.array([np.nan, np.inf]),
    }
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(state, 7, {"of": "all"})
    (found,) = Checkpoints(tmp_path).all(check=True)
    assert (found.update, found.problem, found.notes) == (7, "", {"of": "all"})
    same(Checkpoints(tmp_path).restore(state).state, state)


def test_the_order_of_bytes_is_no_matter(tmp_path):
    state = {"w": np.arange(3, dtype=">i4"), "v": np.arange(3, dtype=">f8")}
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(state, 1)
    found = checkpoints.restore(state).state
    for name, array in state.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array)


def test_wide_numbers_are_not_made_narrower_in_silence(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save({"w": np.full(2, 1 / 3)}, 1)
    like = {"w": jax.ShapeDtypeStruct((2,), np.float64)}
    with pytest.raises(ValueError, match=r"w is float64\[2\], which JAX has with jax_enable_x64"):
        checkpoints.restore(like)
    with jax.enable_x64(True):
        assert checkpoints.restore(like).state["w"].tolist() == [1 / 3, 1 / 3]


def test_nothing_of_numbers_comes_back(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save({"none": np.zeros((0, 3))}, 1)
    assert Checkpoints(tmp_path).restore({"none": np.zeros((0, 3))}).update == 1


def test_a_state_may_be_donated_at_once(tmp_path):
    use_up = jax.jit(lambda tree: jax.tree.map(lambda leaf: leaf * -1.0, tree), donate_argnums=0)
    jax.block_until_ready(use_up({"w": jnp.zeros(2**20)}))
    with Checkpoints(tmp_path, keep=9) as checkpoints:
        state = {"w": jnp.arange(2.0**20)}
        for update in range(1, 6):
            want = np.array(state["w"])  # a copy
            checkpoints.save(state, update)
            state = use_up(state)
            for _ in range(4):
                state = use_up(state)
            found = checkpoints.restore({"w": want}).state["w"]
            np.testing.assert_array_equal(found, want)


# ---------------------------------------------------------------------------------- what is refused


def pairs(key):
    many = {f"block{i}": {"w": jnp.zeros(2)} for i in range(300)}
    yield {"w": 1.0, **many}, {"w": 1.0, "v": 2.0, **many}, "it has no v"
    yield {"w": 1.0, "v": 2.0}, {"w": 1.0}, "it has v, which the state has not"
    params = {"blocks": [{"w": jnp.zeros((2, 3))}]}
    wide = {"blocks": [{"w": jnp.zeros((2, 4))}]}
    at = "at blocks/0/w expected float32[2,4], got float32[2,3]"
    yield params, wide, at
    half = {"blocks": [{"w": jnp.zeros((2, 3), jnp.bfloat16)}]}
    yield params, half, "at blocks/0/w expected bfloat16[2,3], got float32[2,3]"
    yield {"key": key}, {"key": jax.random.key_data(key)}, "expected numbers, got a key of"
    yield {"key": key}, {"key": jax.random.key(1, impl="rbg")}, "at key expected uint32[4], got"


def test_another_state_is_refused_in_a_sentence(tmp_path):
    for i, (state, like, sentence) in enumerate(pairs(jax.random.key(1))):
        folder = tmp_path / str(i)
        with Checkpoints(folder) as checkpoints:
            checkpoints.save(state, 1)
        with pytest.raises(ValueError) as raised:
            Checkpoints(folder).restore(like)
        message = str(raised.value)
        assert sentence in message and len(message) <= LONGEST and "\n" not in message


def test_what_no_checkpoint_holds_is_refused(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        for leaf in ("words", object(), np.array(["a"]), np.datetime64("2020")):
            with pytest.raises(TypeError, match=r"holds arrays and numbers, got .* at a/leaf"):
                checkpoints.save({"a": {"leaf": leaf}}, 1)
        checkpoints.save(LIKE, 1)
    assert [found.update for found in Checkpoints(tmp_path).all()] == [1]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"update": -1}, "update must be at least 0, got -1"),
        ({"update": 2.0}, "update must be an integer, got 2.0"),
        ({"update": True}, "update must be an integer, got True"),
        ({"update": 2, "notes": {"a": {1}}}, "notes must be what JSON has"),
        ({"update": 2, "notes": [1]}, "notes must be a dict"),
        ({"update": 2, "value": "good"}, "value must be a number, got 'good'"),
    ],
)
def test_what_cannot_be_saved_is_no_matter_of_the_disk(arguments, sentence, tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(LIKE, 1)
        with pytest.raises((TypeError, ValueError), match=sentence):
            checkpoints.save(LIKE, **arguments)
    assert [file.name for file in tmp_path.glob("[!.]*")] == ["0000000001"]


def test_numbers_of_numpy_are_numbers_and_notes_are_those_of_the_call(tmp_path):
    notes = {"epoch": 1}
    with warnings.catch_warnings(), Checkpoints(tmp_path, metric="loss") as checkpoints:
        warnings.simplefilter("error")
        checkpoints.save(LIKE, np.int64(7), notes, np.float32(0.5))
        notes["epoch"] = 2  # before it is on the disk, maybe
    (found,) = checkpoints.all()
    assert (found.update, found.notes, found.value) == (7, {"epoch": 1}, 0.5)


@pytest.mark.parametrize("update", ["x", 1.5, -1])
def test_an_update_that_is_none_is_never_due(update, tmp_path):
    with pytest.raises((TypeError, ValueError), match=r"^update must be "):
        Checkpoints(tmp_path, updates=2).due(update)


def test_a_state_that_is_not_there_is_refused_by_its_leaf(tmp_path):
    with Checkpoints(tmp_path) as checkpoints, warnings.catch_warnings():
        warnings.simplefilter("error")
        save = jax.jit(lambda x: checkpoints.save({"a": {"w": x}}, 1))
        with pytest.raises(TypeError, match=r"^save must be called outside of jit, .* at a/w\n"):
            save(jnp.ones(3))
        gone = jnp.ones(3)
        jax.jit(lambda x: x + 1, donate_argnums=0)(gone)
        with pytest.raises(ValueError, match=r"^state must be as .*, a/w was donated to another$"):
            checkpoints.save({"a": {"w": gone}}, 1)
    assert not Checkpoints(tmp_path).all()


def test_a_save_beside_a_newer_one_is_told_once(saved):
    with Checkpoints(saved) as checkpoints:
        found = checkpoints.restore(LIKE, update=1)
        with pytest.warns(UserWarning, match="newer checkpoint, of update 3: .* of update 2;"):
            checkpoints.save(found.state, 2)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            for update in (2, 3, 4):
                checkpoints.save(state_of(update), update)


def rewritten(checkpoint, **changes):
    """Describe it otherwise, as somebody would who writes the format."""
    whole = json.loads((checkpoint / description.FILE).read_text())
    del whole["sha256"]
    whole |= changes
    whole["sha256"] = description._digest(whole)
    (checkpoint / description.FILE).write_text(json.dumps(whole))


def test_a_newer_format_is_refused(saved):
    rewritten(saved / "0000000003", format=2, leaves=7)
    with pytest.raises(ValueError, match="has format 2, which a newer version of funprop writes"):
        Checkpoints(saved).restore(LIKE)
    assert [bool(c.problem) for c in Checkpoints(saved).all()] == [False, False, True]


def test_files_are_compared_before_they_are_read(saved, monkeypatch):
    """No reader of arrays is given what is damaged; what it says itself is told by its leaf."""
    for file in sorted((saved / "0000000003" / "arrays").rglob("*")):
        if file.is_file() and file.stat().st_size:
            whole = file.read_bytes()
            file.write_bytes(whole[:-1])
            with monkeypatch.context() as patched:
                read = written._read_arrays
                patched.setattr(written, "_read_arrays", None)
                with pytest.warns(UserWarning, match="passed over"), pytest.raises(TypeError):
                    Checkpoints(saved).restore(LIKE)  # comes to the second, to read it
                patched.setattr(written, "_read_arrays", read)
            file.write_bytes(whole)
    leaves = json.loads((saved / "0000000003" / description.FILE).read_text())["leaves"]
    leaves["b"]["digest"] = leaves["w"]["digest"]
    rewritten(saved / "0000000003", leaves=leaves)
    found, told = restored(saved)
    assert found.update == 2 and told[0].endswith("b is not what was written")


# ----------------------------------------------------------------------------- which are kept there


def test_what_is_no_checkpoint_is_passed_over_and_never_removed(saved):
    (saved / "0000000009").mkdir()
    (saved / "0000000009" / "mine.txt").write_text("precious")
    (saved / "7").mkdir()  # no name of ours
    (saved / "0000000008").write_text("a file")
    (saved / "0000000003" / description.FILE).unlink()  # half of one
    (saved / "0000000002").rename(saved / "0000000005")  # another's
    (saved / ".saving-0000000004").mkdir()
    shutil.copytree(saved / "0000000001", saved / ".going-0000000000")
    found, told = restored(saved)
    assert found.update == 1 and found.notes == {"of": 1} and len(told) == 3
    assert all("damaged and passed over" in line and len(line) < LONGEST for line in told)
    with Checkpoints(saved, keep=2) as checkpoints, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        checkpoints.restore(LIKE)
        for update in (3, 8, 9):
            checkpoints.save(state_of(update), update)
    names = {entry.name for entry in saved.iterdir() if entry.name != ".lock"}
    assert names == {"7", "0000000008", "0000000009", "0000000008.other-1", "0000000009.other-1"}
    assert (saved / "0000000009.other-1" / "mine.txt").read_text() == "precious"
    found, told = restored(saved)
    assert found.update == 9 and not told
    same(found.state, state_of(9))


def test_the_newest_and_the_best_are_kept(tmp_path):
    def opened(**options):
        return Checkpoints(tmp_path, keep=2, metric="loss", **options)

    with opened() as checkpoints:
        for update, value in enumerate([3.0, 1.0, 2.0, float("nan"), 4.0], 1):
            assert checkpoints.better(value) == (update in (1, 2))
            checkpoints.save(state_of(update), update, value=value)
    assert [c.update for c in Checkpoints(tmp_path).all()] == [2, 4, 5]
    with opened() as checkpoints:  # in another process it knows them too
        checkpoints.save(state_of(6), 6, value=1.5)
        checkpoints.save(state_of(7), 7)
    assert [c.update for c in Checkpoints(tmp_path).all()] == [2, 6, 7]
    assert opened().restore_best(LIKE).update == 2
    assert opened(best=max).restore_best(LIKE).update == 6


@pytest.mark.parametrize("best", [min, max])
def test_the_best_is_of_one_metric_and_never_nan(best, tmp_path):
    def opened(metric):
        return Checkpoints(tmp_path, keep=2, metric=metric, best=best)

    with opened("loss") as checkpoints:
        checkpoints.save(state_of(1), 1, value=2.5)
    with opened("accuracy") as checkpoints:
        assert checkpoints.restore_best(LIKE) is None
        checkpoints.save(state_of(2), 2, value=float("nan"))
        assert checkpoints.restore_best(LIKE) is None
        checkpoints.save(state_of(3), 3, value=1.5)
        checkpoints.save(state_of(4), 4, value=1.5 if best is min else float("nan"))
        checkpoints.save(state_of(5), 5)
        assert checkpoints.restore_best(LIKE).update == 3
    assert opened("accuracy").restore_best(LIKE).update == 3


def test_a_metric_that_the_history_has_not_is_told(tmp_path):
    want = r"^checkpoints want the metric 'held_out/loss', got epoch, update, loss, off, seconds"
    with pytest.raises(ValueError, match=want):
        with_metrics(1, tmp_path, "off", metric="held_out/loss")


# -------------------------------------------------------------------------------- saves that fail


def saves(checkpoints, updates):
    """What is said as states of some updates are saved, the last of them in the end."""
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        for update in updates[:-1]:
            checkpoints.save(state_of(update), update)
        checkpoints.finish(state_of(updates[-1]), updates[-1])
    return [str(warning.message) for warning in told]


def failing(name, module, k, error):
    """A function that fails from its `k`-th call on, until it is mended."""
    real, calls = getattr(module, name), []

    def called(*args, **kwargs):
        calls.append(1)
        if len(calls) == k:
            raise error
        return real(*args, **kwargs)

    return called


@pytest.mark.parametrize(
    ("module", "name"),
    [(written, "write"), (saving, "write_description"), (saving.places, "commit")],
)
def test_a_save_that_fails_is_told_and_tried_again(module, name, tmp_path, monkeypatch, capfd):
    problem = OSError(28, "No space left on device")
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(state_of(1), 1)
        with monkeypatch.context() as patched:
            checkpoints.all()  # waits
            patched.setattr(module, name, failing(name, module, 1, problem))
            told = saves(checkpoints, [2, 3])
    assert told == [
        f"the checkpoint of update 2 could not be written to {tmp_path}: No space left on device; "
        "training goes on, and it is tried again"
    ]
    assert [c.update for c in Checkpoints(tmp_path).all(check=True)] == [1, 3]
    assert capfd.readouterr() == ("", "")


FULL = """
import resource, signal, sys, warnings
import numpy as np
from funprop.train.checkpoints import Checkpoints

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
draw = np.random.default_rng(0)
with Checkpoints(sys.argv[1], keep=9) as checkpoints:
    checkpoints.save({"w": draw.normal(size=50_000)}, 1)
    checkpoints.all()
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
    checkpoints.save({"w": draw.normal(size=50_000)}, 2)
    checkpoints.all()
    print(checkpoints.finish({"w": draw.normal(size=50_000)}, 3), file=sys.stderr)
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
    checkpoints.save({"w": draw.normal(size=50_000)}, 4)
print([c.update for c in Checkpoints(sys.argv[1]).all(check=True)], file=sys.stderr)
"""


def test_a_disk_that_is_full(tmp_path):
    """Files cannot grow any more: tensorstore's own error is one sentence, and nothing else is
    printed; what was there stays, and later ones are written."""
    ran = subprocess.run(
        [sys.executable, "-W", "always", "-c", FULL, str(tmp_path)],
        env=os.environ | {"JAX_ENABLE_COMPILATION_CACHE": "false"},  # its files cannot grow either
        cwd=killed_root(),
        capture_output=True,
        text=True,
        timeout=120,
    )
    lines = [line for line in ran.stderr.splitlines() if not line.startswith("  ")]
    told = [line.partition("Warning: ")[2] for line in lines if "Warning: " in line]
    assert ran.returncode == 0 and ran.stdout == "", ran.stderr
    assert lines[-2:] == ["False", "[1, 4]"] and len(lines) == len(told) + 2
    assert all("File too large; training goes on" in line for line in told[:-1])
    assert len(told) == 5 and "the last checkpoint, of update 3, could not be saved" in told[-1]
    assert all(len(line) < LONGEST for line in told), told


def killed_root():
    return Path(killed.__file__).parent.parent


def test_a_folder_that_is_removed_is_made_again(tmp_path):
    folder = tmp_path / "run" / "kept"
    with Checkpoints(folder) as checkpoints:
        checkpoints.save(state_of(1), 1)
        checkpoints.all()
        shutil.rmtree(tmp_path / "run")
        told = saves(checkpoints, [2, 3])
        with pytest.raises(ValueError, match="in use"):
            Checkpoints(folder).save(state_of(4), 4)
    assert told == [] and [c.update for c in Checkpoints(folder).all(check=True)] == [2, 3]


@pytest.mark.parametrize("gone", ["a file in its place", "mkdir", "rename"])
def test_a_folder_whose_permission_is_lost_and_given_back(gone, tmp_path, monkeypatch):
    """Root may write anywhere, so the system's refusal is played by what refuses even root."""
    folder, aside = tmp_path / "kept", tmp_path / "aside"
    refused = PermissionError(13, "Permission denied")

    def refuses(*args, **kwargs):
        raise refused

    with Checkpoints(folder, keep=9) as checkpoints:
        checkpoints.save(state_of(1), 1)
        checkpoints.all()
        with monkeypatch.context() as patched:
            if gone == "a file in its place":
                folder.rename(aside)
                folder.touch()
            else:
                patched.setattr(Path, gone, refuses)
            with warnings.catch_warnings(record=True) as told:
                warnings.simplefilter("always")
                checkpoints.save(state_of(2), 2)  # and raises nothing: training goes on
                checkpoints._settle()
        if aside.exists():
            folder.unlink()
            aside.rename(folder)
        checkpoints.save(state_of(3), 3)
    why = "File exists" if "file" in gone else "Permission denied"
    (line,) = [str(warning.message) for warning in told]
    assert line.startswith(f"the checkpoint of update 2 could not be written to {folder}: {why}; ")
    assert [c.update for c in Checkpoints(folder).all(check=True)] == [1, 3]


def test_a_folder_that_cannot_be_written_to_is_told_before_training(tmp_path):
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(ValueError, match="file/kept cannot be written to: Not a directory"):
        small(1, tmp_path / "file" / "kept")


@pytest.mark.parametrize("jump", [-3600, 86_400])
def test_clocks_that_jump_do_no_damage(jump, tmp_path, monkeypatch):
    """Orbax gives up a save in which a day passes: that is told, and it is tried again."""
    want, real, calls = small(2), time.time, itertools.count()
    monkeypatch.setattr(time, "time", lambda: real() + jump * (next(calls) > 60))
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        same(small(2, Checkpoints(tmp_path, updates=2)).state, want.state)
    assert all("training goes on" in str(warning.message) for warning in told)
    assert next(calls) > 60 and not (told and jump < 0)
    found = Checkpoints(tmp_path).all(check=True)
    assert found[-1].update == 6 and not any(c.problem for c in found)


HOLD = """
import sys, time
from funprop.train.checkpoints.folder import locked
from pathlib import Path

lock = locked(Path(sys.argv[1]))
print("held", flush=True)
time.sleep(100)
"""


def test_one_process_at_a_time(tmp_path):
    words = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, cwd=killed_root()) as holder:
        assert holder.stdout.readline() == b"held\n"
        start = time.perf_counter()
        with pytest.raises(ValueError, match=r"^.* is in use: another process writes to it$"):
            small(1, tmp_path)
        assert time.perf_counter() - start < 5
        holder.kill()
    small(1, tmp_path)


def with_metrics(epochs, folder, *metrics, keep=None, **options):
    """A run with these metrics; then of its checkpoints only that of update `keep` is left."""
    objective = fp.objective(fp.dense(1), fp.mean_squared(), **dict.fromkeys(metrics, off))
    train = fp.step(fp.backprop(objective), optax.sgd(0.1))
    data = X, Y[:, None]
    state = train.init(objective.init(jax.random.key(0), data), None)
    checkpoints = Checkpoints(folder, updates=1, keep=99, **options)
    sizes = {"epochs": epochs, "batch_size": 8}
    fit = fp.fit(train, state, data, **sizes, checkpoints=checkpoints, progress=None)
    for place in folder.glob("[0-9]*"):
        if keep is not None and int(place.name) != keep:
            shutil.rmtree(place)
    return fit.history


def off(outputs, targets):
    return fp.Sum(jnp.abs(outputs - targets).sum(), jnp.float32(len(targets)))


@pytest.mark.parametrize("now", [(), ("other",), ("off", "other")])
def test_an_epoch_that_is_begun_goes_on_with_its_metrics_alone(now, tmp_path):
    with_metrics(1, tmp_path, "off", keep=2)
    with pytest.raises(ValueError, match=r"^metrics must be as in the run that .* holds"):
        with_metrics(1, tmp_path, *now)
    assert [set(row) >= set(now) for row in with_metrics(1, tmp_path, *now, override=True)] == [
        True
    ]
    with_metrics(2, tmp_path, "off")  # between epochs there may be others


def test_a_setting_that_is_nan_is_as_it_was(tmp_path):
    settings = {"clip": [float("nan"), 1.0]}
    with_metrics(1, tmp_path, settings=settings)
    assert len(with_metrics(2, tmp_path, settings=settings)) == 2


@pytest.mark.parametrize("notes", [{}, {"settings": 3}, {"settings": {}}])
def test_checkpoints_of_a_loop_are_not_taken_for_those_of_fit(notes, tmp_path):
    step, params = of_line(PLAIN)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(step.init(params, jax.random.key(1)), 1, notes)
    with pytest.raises(ValueError, match="holds checkpoints that fit did not write"):
        small(1, tmp_path)


# ------------------------------------------------------------------------------------- any step


class Own(NamedTuple):
    params: Any
    n: Any
    extra: Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Extra:
    seen: Any
    table: dict[str, Any]


def own():
    """A step of a user's own, with a state of a NamedTuple and a dataclass."""

    def init(params, key):
        return Own(params, jnp.int32(0), Extra(key, {"sums": jax.tree.map(jnp.zeros_like, params)}))

    def update(state, batch):
        x, y = batch
        grads = jax.grad(lambda p: ((x @ p["w"] - y) ** 2).sum())(state.params)
        params = jax.tree.map(lambda p, g: p - 0.01 * g, state.params, grads)
        sums = jax.tree.map(jnp.add, state.extra.table["sums"], grads)
        loss = fp.Sum(((x @ state.params["w"] - y) ** 2).sum(), jnp.float32(len(y)))
        extra = Extra(jax.random.fold_in(state.extra.seen, state.n), {"sums": sums})
        return Own(params, state.n + 1, extra), {"loss": loss}

    return fp.Step(init, jax.jit(update)), {"w": jnp.ones(4)}


X = np.random.default_rng(0).normal(size=(22, 4)).astype(np.float32)
Y = X.sum(1)
LINE = fp.objective(fp.serial(fp.dense(1), fp.dropout(0.1), fp.reshape()), fp.mean_squared())


def of_line(made):
    return made, LINE.init(jax.random.key(0), (X, Y))


def plain():
    return fp.step(fp.backprop(LINE), optax.adam(0.1))


def flax():
    linen = pytest.importorskip("flax.linen")
    model = linen.Dense(1)

    def loss(params, batch):
        x, y = batch
        return ((model.apply(params, x)[:, 0] - y) ** 2).sum(), len(y)

    return fp.step(fp.from_loss(loss), optax.adamw(0.1)), model.init(jax.random.key(0), X)


def equinox():
    eqx = pytest.importorskip("equinox")
    params, static = eqx.partition(eqx.nn.Linear(4, 1, key=jax.random.key(0)), eqx.is_array)

    def loss(params, batch):
        x, y = batch
        return ((jax.vmap(eqx.combine(params, static))(x)[:, 0] - y) ** 2).sum(), len(y)

    return fp.step(fp.from_loss(loss), optax.sgd(0.1, momentum=0.9)), params


def sharded():
    mesh = fp.make_mesh(data=1)
    return of_line(fp.shard(plain(), mesh, fp.fsdp_rules(mesh)))


STEPS = {
    "step": lambda: of_line(plain()),
    "ema and skip_nonfinite": lambda: of_line(fp.skip_nonfinite(fp.ema(plain(), 0.9))),
    "loss_scale": lambda: of_line(fp.loss_scale(plain())),
    "fused_step": lambda: of_line(fp.fused_step(LINE, optax.adam(0.1))),
    "shard": sharded,
    "flax": flax,
    "equinox": equinox,
    "own": own,
}


def small(epochs, checkpoints=None, made=None):
    step, params = made or of_line(PLAIN)
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        state = step.init(params, jax.random.key(1))
        return fp.fit(
            step,
            state,
            (X, Y),
            epochs=epochs,
            batch_size=8,
            progress=None,
            checkpoints=checkpoints,
        )


PLAIN = plain()


@pytest.mark.parametrize("name", STEPS)
def test_any_step_goes_on_to_the_same_bits(name, tmp_path):
    """It is stopped in the middle of an epoch; then in the end of one."""
    made = STEPS[name]()
    want = small(3, made=made)
    with Checkpoints(tmp_path, updates=2, keep=9) as checkpoints:
        small(2, checkpoints, made)
    for update in (5, 6):
        shutil.rmtree(tmp_path / f"{update:010d}", ignore_errors=True)
    assert max(c.update for c in Checkpoints(tmp_path).all()) == 4
    found = small(3, tmp_path, made)
    same(found.state, want.state)
    clocks = {"seconds": 0, "examples_per_second": 0}
    assert [r | clocks for r in found.history] == [r | clocks for r in want.history]
