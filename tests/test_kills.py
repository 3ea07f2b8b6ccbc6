"""A run that is killed, wherever it is, loses nothing: the same command again comes to the very
bits of a run that was never stopped, and every checkpoint that is listed is whole."""

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from funprop.train.runs.files import HISTORY, PARAMS, read_history, read_settings
from tests.conftest import cache

ROOT = Path(__file__).parent.parent
CLOCKS = {"seconds", "examples_per_second"}
# A function, and from which call of it on nothing happens any more.
POINTS = [
    ("funprop.train.checkpoints.written.write", (0, 1, 4)),  # in an update
    ("funprop.train.checkpoints.saving.write_description", (0, 1, 5)),  # in the background
    ("orbax.checkpoint.AsyncCheckpointer.wait_until_finished", (0, 3)),
    ("os.rename", (0, 1, 2, 3, 6, 9)),  # as checkpoints are named, and as they are taken away
    ("os.replace", (0, 1, 2, 3, 5, 8)),  # files of the run, descriptions
    ("os.unlink", (0, 1, 5, 20)),  # in garbage collection
    ("os.rmdir", (0, 1, 3)),
    ("os.fsync", (0, 2, 3, 7)),
    ("os.link", (0, 2, 5)),
    ("os.mkdir", (2, 5, 8)),
    ("os.write", (0, 1, 2, 3)),  # the history
    ("funprop.train.runs.recorded.write_history", (0,)),
    ("funprop.train.runs.files.write_history", (0,)),
    ("funprop.train.runs.files.save_reached", (0,)),
    ("funprop.train.runs.files.write_settings", (0,)),
]


class Runs:
    """Runs in processes that are forked, each in a moment."""

    def __init__(self, place):
        env = os.environ | {"JAX_COMPILATION_CACHE_DIR": str(cache), "OMP_NUM_THREADS": "1"}
        self.place, self.n, self.kills = place, 0, 0
        self.server = subprocess.Popen(
            [sys.executable, "-m", "tests.killed"],
            cwd=ROOT,
            env=env,
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert self.server.stdout.readline() == "ready\n"
        self.want = self.files(self.whole(self.new()))
        self.longest = self.whole(self.new(), told=True)["seconds"]

    def new(self):
        self.n += 1
        return self.place / f"run{self.n}"

    def ask(self, folder, **order):
        print(json.dumps({"folder": str(folder), **order}), file=self.server.stdin, flush=True)
        return json.loads(self.server.stdout.readline())

    def whole(self, folder, told=False, **order):
        """The run, to its end, without an exception and without a word."""
        answer = self.ask(folder, **order)
        assert answer["code"] == 0 and answer["said"] == "begun\n", answer
        return answer if told else folder

    def files(self, folder):
        rows = [{k: v for k, v in r.items() if k not in CLOCKS} for r in read_history(folder)]
        assert len((folder / HISTORY).read_text().splitlines()) == len(rows) == 4
        assert read_settings(folder)["finished"]
        return rows, (folder / PARAMS).read_bytes()

    def killed(self, folder, **order):
        """Whether it was, and did not end before."""
        answer = self.ask(folder, **order)
        assert answer["code"] in (0, -signal.SIGKILL) and answer["said"] == "begun\n", answer
        self.kills += answer["code"] != 0
        return answer["code"] != 0

    def killed_at(self, draw, kills):
        """Runs killed at random, again and again, until each has ended by itself."""
        folder, until = self.new(), self.kills + kills
        while self.kills < until:
            if not self.killed(folder, after=draw.uniform(0, self.longest)):
                assert self.files(folder) == self.want
                folder = self.new()
        assert self.files(self.whole(folder)) == self.want

    def killed_in(self, point, calls):
        for k in calls:
            folder = self.new()
            assert self.killed(folder, at=[point, k]), f"{point} is not called {k + 1} times"
            assert self.files(self.whole(folder)) == self.want


@pytest.fixture(scope="module")
def runs():
    with tempfile.TemporaryDirectory() as place:
        made = Runs(Path(place))
        with made.server:
            yield made
        print(f"{made.kills} kills")


@pytest.mark.parametrize(
    ("point", "calls"), [POINTS[1], pytest.param(*POINTS[3], marks=pytest.mark.slow)]
)
def test_killed_at_some_points(point, calls, runs):
    runs.killed_in(point, calls[:1])


@pytest.mark.slow
def test_killed_at_random(runs):
    runs.killed_at(random.Random(0), 3)


@pytest.mark.slow
def test_killed_on_eight_devices_it_goes_on_with_two_and_one(runs):
    """In order, any number of devices comes to the same bits."""
    want = runs.files(runs.whole(runs.new(), devices=2, ordered=16))
    folder, at = runs.new(), ["funprop.train.checkpoints.saving.write_description", 1]
    assert runs.killed(folder, devices=8, ordered=16, at=at)
    assert runs.killed(folder, devices=2, ordered=16, at=at)
    assert runs.files(runs.whole(folder, devices=1, ordered=16)) == want


@pytest.mark.slow
@pytest.mark.parametrize(("point", "calls"), POINTS)
def test_killed_at_points(point, calls, runs):
    runs.killed_in(point, calls)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 11))
def test_killed_at_random_often(seed, runs):
    runs.killed_at(random.Random(seed), 20)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_end_a_run_that_goes_on_to_the_same_bits(number, runs):
    draw, stopped, tries = random.Random(number), 0, 0
    while not stopped and tries < 5:  # whether a signal falls into training is chance
        folder, tries = runs.new(), tries + 1
        for _ in range(8):
            order = {"after": draw.uniform(0, runs.longest / 2), "signal": number}
            answer = runs.ask(folder, **order)
            if answer["code"] == 128 + number:
                assert answer["said"] == "begun\n"
                stopped += 1
            else:  # before training it ends as any process does
                assert answer["code"] in (0, 1, -number)
        assert runs.files(runs.whole(folder)) == runs.want
    assert stopped


def command(out, *words):
    words = ["-m", "funprop", "train", "iris", "--out", str(out), *words]
    return subprocess.Popen(
        [sys.executable, *words],
        cwd=ROOT,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("epochs", "words"),  # so many that a signal comes in between
    [(3000, ()), (200, ("--processes", "2", "--ordered", "4"))],
)
def test_the_command_is_killed_or_ended(epochs, words, tmp_path):
    """By SIGKILL it loses what the newest checkpoint has not; by the others nothing."""

    def ended(name, number=None, after=0):
        out = tmp_path / name
        with command(out, "--epochs", str(epochs), *words) as run:
            if number is not None:
                while "epoch" not in (line := run.stdout.readline()):
                    assert line
                for _ in range(after):
                    run.stdout.readline()
                os.kill(run.pid, number)
            said, _ = run.communicate(timeout=300)
        return run.returncode, said, out

    code, said, want = ended("want")
    assert code == 0, said
    for number in (signal.SIGKILL, signal.SIGTERM, signal.SIGINT):
        code, said, out = ended(f"run{number}", number, after=number % 4)
        if number == signal.SIGKILL:
            assert code == -number
        else:
            assert code == 128 + number
            (told,) = [line for line in said.splitlines() if line.endswith(" goes on")]
            assert told.endswith(f"; the same command with --out {out} goes on")
        code, said, out = ended(f"run{number}")
        assert code == 0 and "Traceback" not in said, said
        assert (out / PARAMS).read_bytes() == (want / PARAMS).read_bytes()
        rows = [
            [{k: v for k, v in row.items() if k not in CLOCKS} for row in read_history(folder)]
            for folder in (out, want)
        ]
        assert rows[0] == rows[1] and len(rows[0]) == epochs
