"""A run folder whose files are damaged, or are not what they should be: what comes of it is right,
or an error says what is damaged; never is it silently wrong, and nothing crashes or is executed."""

import json
import os
import random
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import jax
import pytest

from funprop.train.checkpoints import Checkpoints
from funprop.train.checkpoints.folder import LOCK
from funprop.train.interrupts import Stopped
from funprop.train.runs.files import (
    CHECKPOINTS,
    HISTORY,
    PARAMS,
    SETTINGS,
    read_history,
    read_settings,
)
from funprop.train.runs.folder import run_folder
from tests import killed

ROOT = Path(__file__).parent.parent
CLOCKS = {"seconds", "examples_per_second"}


def result(folder):
    rows = [{k: v for k, v in r.items() if k not in CLOCKS} for r in read_history(folder)]
    return rows, (folder / PARAMS).read_bytes(), read_settings(folder)["stopped"]


def trained(folder, **options):
    with jax.numpy_dtype_promotion("standard"):
        killed.trained(folder, **options)
    return result(folder)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A run that is finished, one that was interrupted, and what they come to."""
    place = tmp_path_factory.mktemp("runs")
    want = trained(place / "finished")
    with pytest.raises(Stopped):
        trained(place / "stopped", interrupted=True)
    assert not read_settings(place / "stopped")["finished"]
    copy = shutil.copytree(place / "stopped", place / "copy")
    assert trained(copy) == want  # and without damage it goes on to the same bits
    return place / "finished", place / "stopped", want


def files_of(folder):
    return sorted(file for file in folder.rglob("*") if file.is_file())


def damaged(folder, draw):
    """Damage one file, or exchange two; what was done."""
    files = files_of(folder)
    file, other = draw.sample(files, 2)
    if draw.random() < 0.5:  # those of the newest checkpoint, that is read, are most of them
        file = draw.choice([f for f in files if "checkpoints" not in f.parts])
    how, whole = draw.choice(["flip", "cut", "delete", "swap", "empty"]), file.read_bytes()
    if how == "flip" and whole:
        i = draw.randrange(len(whole))
        whole = whole[:i] + bytes([whole[i] ^ 1 << draw.randrange(8)]) + whole[i + 1 :]
        file.write_bytes(whole)
    elif how == "cut" and whole:
        file.write_bytes(whole[: draw.randrange(len(whole))])
    elif how == "delete":
        file.unlink()
    elif how == "swap":
        file.write_bytes(other.read_bytes())
        other.write_bytes(whole)
    else:
        file.write_bytes(b"")
    return f"{how} {file.relative_to(folder)}, {other.relative_to(folder)}"


@pytest.mark.parametrize(
    ("seed", "n"), [(0, 10), *(pytest.param(i, 125, marks=pytest.mark.slow) for i in range(1, 9))]
)
def test_damage_is_never_silent(seed, n, folders, tmp_path):
    *kinds, want = folders
    draw, recovered, hopeless = random.Random(seed), 0, 0
    for i in range(n):
        folder = shutil.copytree(kinds[i % 2], tmp_path / "run")
        what = damaged(folder, draw)
        kept = [c.problem for c in Checkpoints(folder / CHECKPOINTS).all(check=True)]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                assert trained(folder, strict=False) == want, what
                recovered += 1
            except ValueError as error:
                assert "is whole: " in str(error) and all(kept), (what, error)
                hopeless += 1
        shutil.rmtree(folder)
    print(f"{n} damages, 0 silent, {recovered} recovered, {hopeless} without a whole checkpoint")
    assert recovered + hopeless == n and hopeless < n / 4


def test_two_descriptions_exchanged_are_none(folders, tmp_path):
    """Each is sealed, but as what it is."""
    folder = shutil.copytree(folders[1], tmp_path / "run")
    settings, newest = folder / SETTINGS, max(folder.rglob("checkpoint.json"))
    text = settings.read_bytes()
    settings.write_bytes(newest.read_bytes())
    newest.write_bytes(text)
    assert read_settings(folder) is None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert trained(folder, strict=False) == folders[2]


def test_all_damaged_is_said(folders, tmp_path):
    folder = shutil.copytree(folders[1], tmp_path / "run")
    for file in folder.rglob("checkpoint.json"):
        file.write_text("{}")
    with warnings.catch_warnings(record=True), pytest.raises(ValueError) as raised:
        warnings.simplefilter("always")
        trained(folder, strict=False)
    message = str(raised.value)
    assert "checkpoint.json is not what was written" in message and len(message) < 400


def test_a_finished_run_without_checkpoints_is_not_replaced(folders, tmp_path):
    folder = shutil.copytree(folders[0], tmp_path / "run")
    shutil.rmtree(folder / CHECKPOINTS)
    fewer, more = (killed.SETTINGS | {"epochs": killed.EPOCHS + by} for by in (-1, 1))
    with pytest.raises(ValueError, match="has no checkpoints to go on from to more epochs"):
        run_folder("small", folder, more).__enter__()
    for override in (False, True):
        with (
            pytest.raises(ValueError, match=rf"^epochs must be at least {killed.EPOCHS}, as many"),
            run_folder("small", folder, fewer, override=override),
        ):
            pass
    assert result(folder) == folders[2]


def test_one_run_at_a_time(folders, tmp_path):
    folder = shutil.copytree(folders[1], tmp_path / "run")
    with (
        run_folder("small", folder, killed.SETTINGS),
        pytest.raises(ValueError, match=r"^.*run is in use: another process writes to it$"),
    ):
        trained(folder)
    assert trained(folder) == folders[2]


READ_ONLY = """
import os, sys
from pathlib import Path
from funprop.train.runs.folder import run_folder

os.setuid(65534)
try:
    with run_folder("small", Path(sys.argv[1]), {}):
        print("computed")
except ValueError as error:
    print(error)
"""


@pytest.mark.skipif(not hasattr(os, "setuid") or os.geteuid() != 0, reason="wants another user")
@pytest.mark.parametrize("inner", [".", "run"])
def test_a_folder_that_is_read_only_is_told_before_anything_is_computed(inner, folders):
    import tempfile

    with tempfile.TemporaryDirectory(dir="/tmp") as place:
        Path(place).chmod(0o755)
        folder = Path(place) / inner
        if inner == ".":
            for file in files_of(folders[1]):
                to = folder / file.relative_to(folders[1])
                to.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(file, to)
        words = [sys.executable, "-c", READ_ONLY, str(folder)]
        ran = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert ran.stdout.endswith("cannot be written: Permission denied\n"), (ran.stdout, ran.stderr)
    assert len(ran.stdout.splitlines()) == 1


@pytest.mark.parametrize(
    ("seconds", "n"), [(60, 100), pytest.param(900, 10_000, marks=pytest.mark.slow)]
)
def test_files_that_are_made_up_crash_nothing(seconds, n, folders, tmp_path):
    """In a process of its own, that ends with a traceback if one of them takes ten seconds."""
    shutil.copytree(folders[0], tmp_path / "run")
    (tmp_path / "run" / LOCK).unlink()
    words = [sys.executable, "-m", "tests.fuzzed", str(tmp_path / "run"), str(n)]
    ran = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=seconds * 2)
    assert ran.returncode == 0, ran.stderr[-3000:]
    counts = json.loads(ran.stdout)
    print(counts)
    assert sum(counts.values()) >= n and counts.get("wrong", 0) == 0
    assert {HISTORY, SETTINGS} <= {file.name for file in (tmp_path / "run").iterdir()}
