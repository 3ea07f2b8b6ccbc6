"""Reads thousands of files that are made up: tests/test_run_folder.py.

    python -m tests.fuzzed RUN N

Checkpoints, among them such as were sealed again by whoever changed them, files of params, and the
history and settings of a run. Prints how often what came of it.
"""

import collections
import faulthandler
import json
import random
import resource
import sys
import warnings
from pathlib import Path

import jax
import numpy as np

import funprop as fp
from funprop.train.checkpoints import description
from funprop.train.named import bits
from funprop.train.runs import files as runs
from tests import killed

SECONDS = 10  # for one file; then the process ends, and says where it was
ROOM = 16 * 2**30  # bytes of addresses: a size that a file makes up is not allocated


def mutated(whole, draw):
    """Some of the ways in which a file can be another one."""
    changed = bytearray(whole)
    for _ in range(draw.choice([1, 1, 2, 8])):
        at = draw.randrange(len(changed) + 1)
        how = draw.randrange(7)
        some = bytes(draw.randrange(256) for _ in range(draw.choice([1, 2, 4, 8, 64])))
        if how == 0 and at < len(changed):
            changed[at] ^= 1 << draw.randrange(8)
        elif how == 1:
            changed[at : at + len(some)] = some
        elif how == 2:
            changed[at:at] = some
        elif how == 3:
            del changed[at : at + draw.choice([1, 7, 100, 10_000])]
        elif how == 4:
            other = draw.randrange(len(changed) + 1)
            changed[at:at] = changed[other : other + 50]
        elif how == 5:
            changed[at : at + 8] = draw.choice([b"\xff" * 8, bytes(8), b"[" * 5000, b"9" * 5000])
        else:  # a number for a number
            digits = [i for i, byte in enumerate(changed) if chr(byte).isdigit()]
            if digits:
                changed[draw.choice(digits)] = ord(draw.choice("0123456789-e."))
    return bytes(changed)


def sealed(checkpoint):
    """As somebody does who knows the format: all files' digests are those of what is there."""
    whole = json.loads((checkpoint / description.FILE).read_bytes())
    found = description._described(checkpoint)[0]
    (checkpoint / description.FILE).unlink()
    description.write_description(checkpoint, found)
    assert whole["files"]


def same(found, want):
    leaves = zip(jax.tree.leaves(found), jax.tree.leaves(want), strict=True)
    return all(np.asarray(bits(a)).tobytes() == np.asarray(bits(b)).tobytes() for a, b in leaves)


def main():
    folder, n = Path(sys.argv[1]), int(sys.argv[2])
    faulthandler.enable()
    resource.setrlimit(resource.RLIMIT_AS, (ROOM, ROOM))
    draw, counts = random.Random(n), collections.Counter()
    objective, training, _ = killed.step()
    with jax.numpy_dtype_promotion("standard"):
        params = objective.init(jax.random.key(0), killed.data())
        like = training.init(params, jax.random.key(1))
    kept = fp.Checkpoints(folder / runs.CHECKPOINTS)
    states = {c.update: kept.restore(like, c.update).state for c in kept.all()}
    newest = folder / runs.CHECKPOINTS / f"{max(states):010d}"
    arrays = sorted(f for f in newest.rglob("*") if f.is_file() and f.name != description.FILE)
    whole_params = fp.load(folder / runs.PARAMS, params)
    warnings.simplefilter("ignore")

    def checkpoint(file, seal):
        before = (newest / description.FILE).read_bytes()
        try:
            if seal:
                sealed(newest)
            found = fp.Checkpoints(newest.parent).restore(like)
            right = found.update in states and same(found.state, states[found.update])
            return "right" if right and found.update == max(states) else (right and "older")
        finally:
            (newest / description.FILE).write_bytes(before)

    def read(file):
        if file.name == runs.PARAMS:
            return same(fp.load(file, params), whole_params) and "right"
        rows, found = runs.read_history(folder), runs.read_settings(folder)
        assert all(isinstance(row, dict) for row in rows)
        return (file.name == runs.HISTORY and "rows") or ("right" if found else "refused")

    for i in range(n):
        kind = i % 5
        file = {
            0: newest / description.FILE,
            1: draw.choice(arrays),
            2: draw.choice(arrays),
            3: folder / runs.PARAMS,
            4: folder / draw.choice([runs.HISTORY, runs.SETTINGS]),
        }[kind]
        whole = file.read_bytes()
        file.write_bytes(mutated(whole, draw))
        faulthandler.dump_traceback_later(SECONDS, exit=True)
        try:
            came = checkpoint(file, seal=kind == 2) if kind < 3 else read(file)
        except ValueError as error:
            assert len(str(error)) < 600, error
            came = "refused"
        faulthandler.cancel_dump_traceback_later()
        file.write_bytes(whole)
        counts[came or "wrong"] += 1
        if not came:
            print(f"wrong: {file}", file=sys.stderr)
    print(json.dumps(counts))


if __name__ == "__main__":
    main()
