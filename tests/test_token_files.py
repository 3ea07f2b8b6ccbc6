"""Files of tokens: what `prepare` writes is what `Tokens` reads, and whatever else a file holds is
refused in one sentence that names it."""

import json
import os
import pickle
import sys
from pathlib import Path

import numpy as np
import pytest

import funprop as fp
from funprop.train.data.prepare import PIECE, prepare
from tests.test_bad_input import raises

TOKENS = np.arange(1000, dtype=np.uint16)


def written(folder, name, content, **told):
    file = folder / name
    if isinstance(content, bytes):
        file.write_bytes(content)
    else:
        np.save(file, content)
    if told:
        (folder / f"{name}.json").write_text(json.dumps(told))
    return file


@pytest.mark.parametrize("dtype", ["<u2", ">i8", "uint8", "<u4"])
def test_every_token_is_a_target_once(dtype, tmp_path):
    tokens = (np.arange(1000) % 251).astype(dtype)
    npy, raw = tmp_path / "a.npy", tmp_path / "a.bin"
    np.save(npy, tokens)
    narrow = tokens.astype("<u4" if tokens.itemsize > 4 else dtype)
    raw.write_bytes(narrow.tobytes())
    for windows in (fp.Tokens(npy, 7), fp.Tokens(raw, 7, dtype=narrow.dtype)):
        inputs, targets = (np.concatenate(part) for part in zip(*windows, strict=True))
        assert inputs.dtype == targets.dtype == np.int32
        np.testing.assert_array_equal(inputs, tokens[: len(inputs)])
        np.testing.assert_array_equal(targets, tokens[1 : 1 + len(targets)])
        assert len(tokens) - 7 <= 1 + len(targets) <= len(tokens) and windows.tokens == 1000
        again = pickle.loads(pickle.dumps(windows))  # for other processes
        np.testing.assert_array_equal(again[-1], windows[len(windows) - 1])


def test_a_file_that_is_none_of_tokens(tmp_path):
    short, words = TOKENS.tobytes(), np.array(["a", "b"])
    cases = [
        ("a.npy", short, {}, "is no .npy file"),
        (
            "b.npy",
            np.array([None, {}], object),
            {},
            "must hold integers in one dimension, holds ob",
        ),
        ("c.npy", TOKENS.astype(float), {}, "must hold integers in one dimension, holds float64"),
        (
            "d.npy",
            TOKENS.reshape(2, -1),
            {},
            "must hold integers in one dimension, holds uint16 in",
        ),
        ("e.npy", words, {}, "must hold integers in one dimension, holds <U1 in 1"),
        ("f.npy", TOKENS[:3], {}, "a window of 4 tokens and its targets need 5, the file has 3"),
        ("a.txt", short, {}, "path must end in .npy or .bin, got"),
        ("a.bin", short, {}, "dtype must be given for"),
        ("b.bin", short[:-1], {"dtype": "uint16", "tokens": 1000}, "has 1999 bytes, which are no"),
        ("c.bin", short, {"dtype": "uint16", "tokens": 999}, "must have 999 tokens as"),
        ("d.bin", short, {"dtype": "int16", "tokens": 1000}, "dtype must be one of uint8, uint16"),
        (
            "e.bin",
            short,
            {"dtype": "uint16", "tokens": True},
            "tokens must be an integer, got True",
        ),
        ("f.bin", b"", {"dtype": "uint16", "tokens": 0}, "need 5, the file has 0"),
    ]
    for name, content, told, sentence in cases:
        file = written(tmp_path, name, content, **told)
        with pytest.raises(ValueError) as refused:
            fp.Tokens(file, 4)
        message = str(refused.value)
        assert sentence in message and name in message and "\n" not in message, message
    with pytest.raises(ValueError, match="must be a file"):
        fp.Tokens(tmp_path, 4)
    os.mkfifo(tmp_path / "pipe.bin")
    with pytest.raises(ValueError, match="must be a file"):
        fp.Tokens(tmp_path / "pipe.bin", 4)
    with pytest.raises(FileNotFoundError, match=r"none\.bin"):
        fp.Tokens(tmp_path / "none.bin", 4)


def test_a_token_out_of_range_is_told_where_it_is_met(tmp_path):
    negative = TOKENS.astype(np.int16)
    negative[500] = -3
    for tokens, options, told in [
        (TOKENS, {"vocabulary": 900}, "tokens must be from 0 to 899, got 900 at 900"),
        (negative, {}, "tokens must be from 0 to 2147483647, got -3 at 500"),
        (TOKENS.astype(np.uint32) + 2**31 - 100, {}, "2147483647, got 2147483648 at 100"),
    ]:
        file = written(tmp_path, "a.npy", tokens)
        windows = fp.Tokens(file, 10, **options)
        with pytest.raises(ValueError) as refused:
            list(windows)
        assert told in str(refused.value) and str(file) in str(refused.value)


def test_a_file_that_is_cut_while_it_is_read(tmp_path):
    """Were it mapped, the process would be killed."""
    file = written(tmp_path, "a.npy", TOKENS)
    windows = fp.Tokens(file, 10)
    os.truncate(file, 1000)
    raises(ValueError, f"{file} has become shorter since it was opened", lambda: list(windows))


def mutated(rng, good):
    """Bytes of a file, in some way wrong."""
    raw = bytearray(good)
    way = rng.integers(6)
    if way == 0:
        del raw[rng.integers(len(raw)) :]
    elif way == 1:
        for _ in range(rng.integers(1, 20)):
            raw[rng.integers(min(len(raw), 128))] = rng.integers(256)
    elif way == 2:
        raw[rng.integers(len(raw)) :] = rng.bytes(rng.integers(200))
    elif way == 3:
        place = rng.integers(min(len(raw), 128))
        words = b"()", b"'", b"-1", b"9" * 30, b"[" * 50, b"|O", b"__import__('os')._exit(9)", b"\0"
        raw[place : place + rng.integers(9)] = words[rng.integers(len(words))]
    elif way == 4:
        return rng.bytes(rng.integers(300))
    else:
        raw += rng.bytes(rng.integers(1, 9))
    return bytes(raw)


def fuzz(folder, n, seed=0):
    """How many of `n` files that are in some way wrong were refused; none may do anything else."""
    rng, refused = np.random.default_rng(seed), 0
    json_of = {"dtype": "uint16", "tokens": 1000, "vocabulary": 1000, "tokenizer": "bytes"}
    npy, raw = folder / "a.npy", folder / "a.bin"
    np.save(npy, TOKENS)
    good = {npy: npy.read_bytes(), raw: TOKENS.tobytes()}
    told = json.dumps(json_of).encode()
    for _ in range(n):
        file = (npy, raw)[rng.integers(2)]
        sidecar = rng.integers(2) and file is raw
        file.write_bytes(good[file] if sidecar else mutated(rng, good[file]))
        (folder / "a.bin.json").write_bytes(mutated(rng, told) if sidecar else told)
        try:
            for window in fp.Tokens(file, 100):
                assert window[0].min() >= 0
        except ValueError as error:
            refused += 1
            assert file.name in str(error) and "\n" not in str(error) and len(str(error)) < 400
    return refused


def test_fuzzed_files_are_read_or_refused(tmp_path):
    assert fuzz(tmp_path, 500) > 200


@pytest.mark.slow
def test_10_000_fuzzed_files(tmp_path):
    assert fuzz(tmp_path, 10_000, 1) > 5000


# ---------------------------------------------------------------------------------------- prepare


def texts(folder, n, lines):
    for i in range(n):
        (folder / f"{i}.txt").write_text(f"{i}: ä line of téxt\n" * lines)
    return sorted(folder.glob("*.txt"))


def test_bytes_are_the_text_itself(tmp_path):
    files = texts(tmp_path, 3, 10_000)  # more than a piece
    said = prepare(files, tmp_path / "a.bin")
    whole = b"".join(file.read_bytes() for file in files)
    assert (tmp_path / "a.bin").read_bytes() == whole and f"{len(whole):,} tokens" in said
    windows = fp.Tokens(tmp_path / "a.bin", 64)
    assert (windows.vocabulary, windows.tokenizer, windows.tokens) == (256, "bytes", len(whole))


@pytest.mark.parametrize("n", [1, 3, 40])
def test_what_is_held_out_is_not_trained_on(n, tmp_path):
    files = texts(tmp_path, n, 500)
    prepare(files, tmp_path / "a.bin", held_out=0.1)
    train, unseen = ((tmp_path / f"a{end}.bin").read_bytes() for end in ("", "-held-out"))
    whole = b"".join(file.read_bytes() for file in files)
    assert len(train) + len(unseen) == len(whole) and 0.08 < len(unseen) / len(whole) < 0.12
    lines = sorted([*train.splitlines(), *unseen.splitlines()])
    assert lines == sorted(whole.splitlines())  # none is cut


@pytest.mark.parametrize("share", [0.0, 0.25])
def test_a_tokenizers_tokens_are_those_of_the_whole_text(share, tmp_path):
    tokenizers = pytest.importorskip("tokenizers")
    made = tokenizers.Tokenizer(tokenizers.models.BPE())
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=400, special_tokens=["<end>"], initial_alphabet=alphabet, show_progress=False
    )
    (file,) = texts(tmp_path, 1, 10_000)
    unbroken = tmp_path / "unbroken.txt"  # without a line's end, of characters of up to 4 bytes
    unbroken.write_text("é€𐍈 " * 30_000)
    made.train([str(file), str(unbroken)], trainer)
    made.save(str(tmp_path / "tokenizer.json"))
    options = {"tokenizer": tmp_path / "tokenizer.json", "end_of_text": "<end>"}
    prepare([file, unbroken], tmp_path / "a.bin", held_out=share, **options)
    places = ["a.bin", "a-held-out.bin"] if share else ["a.bin"]
    got = [np.fromfile(tmp_path / place, "<u2") for place in places]
    end = made.token_to_id("<end>")
    each = [[*made.encode(path.read_text()).ids, end] for path in (file, unbroken)]
    assert sum((part == end).sum() for part in got) == 2
    if not share:
        lines = np.asarray(each[0])  # at a line's end it is cut with no trace
        np.testing.assert_array_equal(got[0][: len(lines)], lines)
    assert sum(map(len, got)) == pytest.approx(sum(map(len, each)), rel=1e-3)
    assert fp.Tokens(tmp_path / "a.bin", 8).vocabulary == made.get_vocab_size()


def test_prepare_refuses(tmp_path):
    file, out = tmp_path / "a.txt", tmp_path / "a.bin"
    file.write_bytes(b"text\n" * 9)
    (tmp_path / "none.txt").write_bytes(b"")
    for files, options, sentence in [
        ([], {}, "files must be at least one, got none"),
        ([file], {"out": file}, f"out must end in .bin, got {file}"),
        ([file], {"end_of_text": "a"}, "end_of_text needs a tokenizer, which has such a token"),
        ([tmp_path], {}, f"{tmp_path} cannot be read: Is a directory"),
        ([tmp_path / "none.txt"], {}, f"{out} would have no tokens"),
        ([file], {"held_out": 1}, "held_out must be at least 0 and below 1, got 1"),
    ]:
        call = {"out": out} | options
        raises(ValueError, sentence, lambda files=files, call=call: prepare(files, **call))
    assert not out.exists() and not Path(f"{out}.json").exists()
    out.write_bytes(b"before")
    raises(ValueError, f"out must not be one of the files, got {out}", lambda: prepare([out], out))
    assert out.read_bytes() == b"before"


def test_without_the_library_it_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    (tmp_path / "a.txt").write_text("a" * PIECE)
    told = "a tokenizer needs tokenizers: pip install 'funprop[tokens]'"
    options = {"tokenizer": tmp_path / "a.txt"}
    raises(
        ModuleNotFoundError,
        told,
        lambda: prepare([tmp_path / "a.txt"], tmp_path / "a.bin", **options),
    )
