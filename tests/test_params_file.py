"""Params in a file: what is written comes back, bit by bit, or is refused in one sentence."""

import json
import os
import signal
import struct
import subprocess
import sys
import time
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import funprop as fp
from tests.test_bad_input import raises

KEY = jax.random.key(0)
TREE = {
    "half": jnp.arange(6, dtype=jnp.bfloat16).reshape(2, 3),
    "other half": [jnp.float16(0.1), jnp.zeros((0, 3))],
    "turned": np.arange(6, dtype=np.float32).reshape(2, 3).T,
    "swapped": np.array([1.0, 2.0], ">f4"),
    "keys": jax.random.split(KEY, (2, 2)),
    "rest": (np.int8(-3), np.bool_(True), jnp.array([1j], jnp.complex64), None),
}
PAIR = {"a": {"w": jnp.ones((2, 3)), "b": jnp.arange(3.0)}, "b": jnp.zeros((2, 3))}


def bits(leaf):
    key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    array = np.asarray(jax.random.key_data(leaf) if key else leaf)
    return key, array.dtype.name, array.shape, array.astype(array.dtype.newbyteorder("=")).tobytes()


@pytest.mark.parametrize("tree", [TREE, jnp.ones(2), ()], ids=["many", "alone", "none"])
def test_all_comes_back(tree, tmp_path):
    file = tmp_path / ("n" * 250)
    fp.save(file, tree)
    fp.save(str(file), tree)  # over the other
    specs = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), tree)
    for like in (tree, specs):
        again = fp.load(file, like)
        assert jax.tree.map(bits, again) == jax.tree.map(bits, tree)
    assert [found.name for found in tmp_path.iterdir()] == [file.name]


def test_the_names_are_those_that_people_write(tmp_path):
    from safetensors.numpy import load_file

    model = fp.serial(fp.dense(2), fp.relu(), fp.dense(1))
    params = model.init(KEY, jnp.ones((1, 3)))
    fp.save(tmp_path / "params", params)
    paths = jax.tree_util.tree_flatten_with_path(params)[0]
    stored = load_file(tmp_path / "params")
    assert {jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in paths} == {
        *stored
    }


def test_a_training_state_comes_back(tmp_path):
    import optax

    model = fp.objective(fp.dense(1), fp.mean_squared())
    data = jnp.ones((4, 2)), jnp.ones((4, 1))
    train = fp.step(fp.backprop(model), optax.sgd(0.1, momentum=0.9))
    state = train.init(model.init(KEY, data), KEY)
    fp.save(tmp_path / "state", state)
    again = fp.load(tmp_path / "state", state)
    assert jax.tree.map(bits, again) == jax.tree.map(bits, state)


def test_params_of_another_model(tmp_path):
    file = tmp_path / "params"
    fp.save(file, PAIR)
    other = f"params in {file} are of another model: "
    wider = {**PAIR, "b": jnp.zeros((2, 4))}
    halved = {**PAIR, "b": jnp.zeros((2, 3), jnp.bfloat16)}
    for sentence, like in (
        ("the file has no c", {**PAIR, "c": jnp.ones(1)}),
        ("like has no a/b", {"a": {"w": PAIR["a"]["w"]}, "b": PAIR["b"]}),
        ("at b expected float32[2,4], got float32[2,3]", wider),
        ("at b expected bfloat16[2,3], got float32[2,3]", halved),
    ):
        raises(ValueError, other + sentence, lambda like=like: fp.load(file, like))
    fp.save(file, {"w": np.ones(2)})
    sentence = "at w is float64, which JAX has only with jax_enable_x64"
    spec = {"w": jax.ShapeDtypeStruct((2,), np.float64)}
    raises(ValueError, sentence, lambda: fp.load(file, spec))


def test_numpys_numbers_come_back_as_they_were(tmp_path):
    tree = [np.array([0.1, 1e300]), np.array([2**40]), np.float64(0.1), np.int8(3), jnp.ones(1)]
    fp.save(tmp_path / "params", tree)
    again = fp.load(tmp_path / "params", tree)
    assert [type(leaf) for leaf in again] == [type(leaf) for leaf in tree]
    assert jax.tree.map(bits, again) == jax.tree.map(bits, tree)


def test_a_key_comes_back_as_a_key_of_its_kind_or_not_at_all(tmp_path):
    file = tmp_path / "params"
    made = {name: jax.random.key(0, impl=name) for name in ("threefry2x32", "rbg", "unsafe_rbg")}
    tried = {f"a key of {name}": key for name, key in made.items()}
    tried["numbers"] = jax.random.PRNGKey(0)  # of the old style: it is no more than bits
    for is_, key in tried.items():
        fp.save(file, {"k": key})
        assert fp.load(file, {"k": key})["k"].dtype == key.dtype
        for wanted, like in tried.items():
            if wanted != is_ and ("rbg" in wanted) == ("rbg" in is_):  # of as many bits
                told = f"params in {file} are of another model: at k expected {wanted}, got {is_}"
                raises(ValueError, told, lambda like=like: fp.load(file, {"k": like}))


def test_what_cannot_be_saved(tmp_path):
    file = tmp_path / "params"
    fp.save(file, PAIR)
    before = file.read_bytes()
    gone = jnp.ones(2)
    gone.delete()
    one = jnp.ones(1)
    for kind, sentence, tree in (
        (
            ValueError,
            "params must have a name for each leaf, got two leaves at a/b",
            {"a": {"b": one}, "a/b": one},
        ),
        (
            ValueError,
            "params: a leaf cannot be named '__metadata__' in a file",
            {"__metadata__": one},
        ),
        (ValueError, "params: w was donated to an update and is gone", {"w": gone}),
        (TypeError, "params: at w expected an array, got float", {"w": 1.0}),
        (
            TypeError,
            "params: at w expected an array, got MaskedArray",
            {"w": np.ma.masked_array([1.0], [True])},
        ),
        (
            TypeError,
            "params: at w is int4, which safetensors does not have",
            {"w": jnp.ones(2, jnp.int4)},
        ),
        (TypeError, "params: at params expected an array, got Layer", fp.dense(2)),
        (
            TypeError,
            "params/w must hold known numbers, got a specification; call it outside jit",
            {"w": jax.ShapeDtypeStruct((2,), jnp.float32)},
        ),
    ):
        raises(kind, sentence, lambda tree=tree: fp.save(file, tree))
    raises(TypeError, "path must be a path, got dict", lambda: fp.save(cast(Any, PAIR), file))
    raises(TypeError, "path must be a path, got dict", lambda: fp.load(cast(Any, PAIR), file))
    with pytest.raises(FileNotFoundError, match=r"No such file or directory: '.*/no/params'"):
        fp.save(tmp_path / "no" / "params", PAIR)
    with pytest.raises(FileNotFoundError, match=r"No such file or directory: '.*/absent'"):
        fp.load(tmp_path / "absent", PAIR)
    assert file.read_bytes() == before
    assert list(tmp_path.iterdir()) == [file]


def test_nan_and_infinity_are_warned_of(tmp_path):
    params = {"w": jnp.array([1, jnp.nan], jnp.bfloat16)}
    with pytest.warns(UserWarning, match=r"^params: w holds NaN or infinity$"):
        fp.save(tmp_path / "params", params)
    with pytest.warns(UserWarning, match=r"/params: w holds NaN or infinity$"):
        fp.load(tmp_path / "params", params)


def parts(content):
    (n,) = struct.unpack("<Q", content[:8])
    return json.loads(content[8 : 8 + n]), content[8 + n :]


def joined(header, data):
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def damaged(good):
    """Damages of all sorts: cut, bits turned, parts exchanged, digests missing, foreign, huge."""
    rng = np.random.default_rng(0)
    yield from (good[:n] for n in range(0, len(good), 7))
    yield good + b"\0"
    for _ in range(300):
        content = bytearray(good)
        for place in rng.integers(0, len(good), rng.integers(1, 4)):
            content[place] ^= 1 << rng.integers(8)
        if content != good:
            yield bytes(content)
    header, data = parts(good)
    first, second = "a/w", "b"  # of one shape
    yield joined({**header, first: header[second], second: header[first]}, data)
    yield joined({**header, "__metadata__": {}}, data)
    yield joined({**header, "__metadata__": {"sha256": "[" * 100_000}}, data)
    huge = {"dtype": "F32", "shape": [2**29], "data_offsets": [0, 2**31]}
    yield joined({**header, first: huge}, data)
    yield struct.pack("<Q", 2**63) + b"{}"
    yield b"PK\x03\x04 a zip file, as NumPy's is"
    yield rng.bytes(100)


def test_damage_is_found(tmp_path):
    file = tmp_path / "params"
    fp.save(file, PAIR)
    good = file.read_bytes()
    for content in damaged(good):
        file.write_bytes(content)
        try:
            again = fp.load(file, PAIR)
        except ValueError as error:
            assert str(file) in str(error) and "\n" not in str(error) and len(str(error)) < 250
        else:  # what is beside names, shapes, values and digests
            assert jax.tree.map(bits, again) == jax.tree.map(bits, PAIR)


def test_a_huge_file_is_not_read(tmp_path):
    file = tmp_path / "params"
    header = {"w": {"dtype": "F32", "shape": [2**34], "data_offsets": [0, 2**36]}}
    with file.open("wb") as sparse:
        sparse.write(joined({**header, "__metadata__": {"sha256": json.dumps({"w": ""})}}, b""))
        sparse.truncate(sparse.tell() + 2**36)
    with pytest.raises(ValueError, match=r"at w expected float32\[2\], got float32\[17179869184\]"):
        fp.load(file, {"w": jnp.ones(2)})


def test_a_failed_write_leaves_what_was_there(tmp_path, monkeypatch):
    file = tmp_path / "params"
    fp.save(file, PAIR)
    before = file.read_bytes()
    for failing in ("fsync", "replace"):
        with monkeypatch.context() as patch:

            def full(*_):
                raise OSError(28, "No space left on device")

            patch.setattr(os, failing, full)
            with pytest.raises(OSError, match=rf"^\[Errno 28\] No space .*: '{file}'$"):
                fp.save(file, {"w": jnp.ones(3)})
        assert file.read_bytes() == before
        assert list(tmp_path.iterdir()) == [file]


WRITER = """
import sys, jax.numpy as jnp, funprop as fp
params = {"w": jnp.ones((1_000, 1_000))}
while True:
    fp.save(sys.argv[1], params)
    print("written", flush=True)
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "O_TMPFILE"), reason="Linux has files without a name")
def test_a_killed_write_leaves_a_whole_file_or_none(tmp_path):
    for turn in range(5):
        file = tmp_path / str(turn) / "params"
        file.parent.mkdir()
        words = [sys.executable, "-c", WRITER, file]
        with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as writer:
            writer.stdout.readline()
            time.sleep(0.003 * turn)
            writer.send_signal(signal.SIGKILL)
        assert list(file.parent.iterdir()) == [file]
        assert fp.load(file, {"w": jnp.ones((1_000, 1_000))})["w"].all()


def test_safetensors_missing_is_said(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors", None)
    for function in (lambda: fp.save(tmp_path / "x", PAIR), lambda: fp.load(tmp_path / "x", PAIR)):
        raises(
            ModuleNotFoundError,
            "files of params need safetensors: pip install 'funprop[train]'",
            function,
        )
