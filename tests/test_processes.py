"""One run by many processes: the bits of one, and an end for all where one ends badly."""

import contextlib
import itertools
import json
import os
import re
import resource
import signal
import socket
import subprocess
import sys
import time
import warnings
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import optax
import pytest

import funprop as fp
from funprop.train import processes
from funprop.train.arrays import spread
from funprop.train.checkpoints import Checkpoints
from funprop.train.launching import launch
from funprop.train.loop import Loop
from funprop.train.runs import in_folder, job
from funprop.train.runs.files import read_history
from funprop.train.runs.folder import checkpoints_of
from funprop.train.runs.tasks import task
from tests.test_data_parallel import digest

ROOT = Path(__file__).parent.parent
SLOW = pytest.mark.slow
AT_ONCE = 15  # seconds in which all must have ended


def train(out, **options):
    """The main job without its check of the gradients, which other tests make."""
    job.verify_task = lambda *_: None
    job.train("iris", epochs=3, out=out, **options)


@pytest.mark.slow  # those that end together, below, are quick
def test_two_processes_give_the_bits_of_one(tmp_path, capfd, monkeypatch):
    launch(2, train, tmp_path / "two", ordered=4)
    printed = capfd.readouterr().out
    assert len(re.findall("iris: 120 examples", printed)) == 1  # process 0 alone prints
    monkeypatch.setattr(job, "verify_task", job.verify_task)  # for `train` to replace
    with jax.numpy_dtype_promotion("standard"):  # optax itself promotes
        train(tmp_path / "one", ordered=4)
    one, two = ((tmp_path / name / "params.safetensors").read_bytes() for name in ("one", "two"))
    assert one == two
    written = {"history.jsonl", "params.safetensors", "report.png", "run.json", "checkpoints"}
    assert {f.name for f in (tmp_path / "two").iterdir() if f.name != ".lock"} == written


def unequal():
    data = np.zeros(3), np.ones(2)
    processes.check_same(data, {"rate": 1})
    assert processes.anywhere(jax.process_index() == 1)
    assert processes.of_first(jax.process_index() + 7) == 7
    assert processes.largest(jax.process_index() + 7) == 8
    loop = SimpleNamespace(mesh=True)  # of a signal that one alone has heard
    heard = Loop._signalled(loop, lambda: "terminated" if jax.process_index() == 1 else "")
    assert heard == "terminated"
    data[1][0] = jax.process_index()
    processes.check_same(data, {"rate": 1})


def test_unequal_data_are_refused():
    with pytest.raises(ValueError, match=r"^process 1 has other data than process 0$"):
        launch(2, unequal)


def killed():
    if jax.process_index() == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    processes.anywhere(True)  # waits for the other
    time.sleep(1000)


def test_all_end_where_one_is_killed():
    start = time.perf_counter()
    with pytest.raises(ChildProcessError, match=r"^process 1 of 2 ended with code -9$"):
        launch(2, killed)
    assert time.perf_counter() - start < AT_ONCE


def test_sizes_that_do_not_divide_are_refused():
    grad_fn = fp.backprop(fp.objective(fp.dense(1), fp.mean_squared()))
    with pytest.raises(ValueError, match="batch_size must be a multiple of 3 parts, got 16"):
        spread(grad_fn, 16, True, 3)


def command(*words, **options):
    words = [sys.executable, "-m", "funprop.cli", "train", *words]
    return subprocess.Popen(
        words, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, cwd=ROOT, **options
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        pytest.param(
            ("mnist", "--processes", "2"), "error: unknown data set 'mnist', there are", marks=SLOW
        ),
        (("iris", "--processes", "0"), "error: processes must be at least 1, got 0"),
    ],
)
def test_a_wrong_argument_is_one_sentence(words, message):
    with command(*words) as run:
        said, _ = run.communicate()
    (error,) = [line for line in said.splitlines() if not line.startswith("[Gloo]")]
    assert error.startswith(message)


@SLOW
@pytest.mark.parametrize("send", [os.kill, os.killpg])  # to the launcher alone; as a terminal does
def test_ctrl_c_ends_all_with_what_has_been_reached(send, tmp_path):
    words = ("digits", "--epochs", "100000", "--processes", "2", "--out", str(tmp_path / "run"))
    with command(*words, start_new_session=True) as run:
        while not run.stdout.readline().startswith("epoch"):
            assert run.poll() is None
        send(run.pid, signal.SIGINT)
        said, _ = run.communicate(timeout=60)  # ends when nobody holds the pipe any more
    assert "goes on" in said and run.returncode == 130
    assert (tmp_path / "run" / "params.safetensors").exists()


def importing(run):
    time.sleep(0.5)


def starting_processes(run):
    children = Path(f"/proc/{run.pid}/task/{run.pid}/children")
    while len(children.read_text().split()) < 3:  # theirs, and that of `multiprocessing`
        assert run.poll() is None


def said(words):
    def wait(run):
        while not run.stdout.readline().startswith(words):
            assert run.poll() is None

    return wait


STAGES = {
    "import": importing,
    "processes": starting_processes,
    "connected": said("[Gloo]"),
    "data": said("handwritten digits"),
    "verify": said("The model"),
}


@SLOW
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="asks Linux")
@pytest.mark.parametrize("stage", STAGES)
def test_ctrl_c_before_training_ends_all_in_one_line(stage, tmp_path):
    words = ("digits", "--processes", "2", "--out", str(tmp_path / "run"))
    with command(*words) as run:
        STAGES[stage](run)
        run.send_signal(signal.SIGINT)
        printed, _ = run.communicate(timeout=60)
    assert run.returncode == 130
    assert printed.splitlines()[-1] == "interrupted" and "Traceback" not in printed
    assert list(tmp_path.iterdir()) == []


def listening():
    """The addresses at which this process waits for others."""
    own = set()
    for file in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            own.add(str(file.readlink()))
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/self/net/{table}").read_text().splitlines()[1:]:
            words = line.split()
            if words[3] == "0A" and f"socket:[{words[9]}]" in own:
                yield words[1].partition(":")[0]


def heard_here_only():
    processes.anywhere(True)
    addresses = {address[-8:] for address in listening()}  # an IPv4 one ends an IPv6 one
    if processes.first() and addresses & {"00000000"}:
        raise ValueError(f"listens everywhere: {addresses}")


@pytest.mark.skipif(not Path("/proc/self/net/tcp").exists(), reason="asks Linux")
def test_the_coordinator_of_own_processes_listens_on_loopback():
    launch(2, heard_here_only)


@SLOW
def test_no_process_stays_when_the_launcher_is_killed(tmp_path):
    words = ("digits", "--epochs", "100000", "--processes", "2", "--out", str(tmp_path / "run"))
    with command(*words) as run:
        while not run.stdout.readline().startswith("epoch"):
            assert run.poll() is None
        run.kill()
        run.communicate(timeout=AT_ONCE)  # ends when nobody holds the pipe any more


def raised():
    if jax.process_index() == 1:
        raise ArithmeticError("this process is wrong")
    processes.anywhere(True)
    time.sleep(1000)


def test_all_end_where_one_raises(capfd):
    with pytest.raises(ChildProcessError, match=r"^process 1 of 2 ended with code 1$"):
        launch(2, raised)
    assert "ArithmeticError: this process is wrong" in capfd.readouterr().err


LONE = """
from funprop.train import processes
def function():
    import tests.test_processes
    tests.test_processes.{}()
processes.joined(function, '127.0.0.1:{}', 2, {})
"""


@SLOW
@pytest.mark.parametrize(("way", "code"), [("killed", -signal.SIGKILL), ("raised", 1)])
def test_without_a_launcher_the_heartbeat_ends_the_others(way, code):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    survivor, other = (
        subprocess.Popen(
            [sys.executable, "-c", LONE.format(way, port, i)],
            cwd=ROOT,
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in range(2)
    )
    with survivor, other:
        assert other.wait(60) == code
        start = time.perf_counter()
        _, said = survivor.communicate(timeout=60)
        assert time.perf_counter() - start < AT_ONCE
        assert survivor.returncode
        assert "unhealthy (stopped sending heartbeats):\n1\n" in said  # says which


class Counted:
    """A source that knows how often it was asked."""

    def __init__(self, *leaves):
        self.leaves, self.asked = leaves, 0

    def __len__(self):
        return len(self.leaves[0])

    def __getitem__(self, i):
        self.asked += 1
        return tuple(leaf[i] for leaf in self.leaves)


def bits(out):
    """Write what training comes to, on all devices of all processes."""
    chosen = task("digits")
    text = np.random.default_rng(0).integers(0, 64, (160, 33)).astype(np.int32)
    pictures = tuple(part[:640] for part in chosen.train)
    gpt = fp.language_model(fp.gpt(64, features=32, depth=2, heads=2, longest=32, rate=0.1), 64)
    mlp, records, found = fp.objective(chosen.models["mlp"](), chosen.loss), Counted(*pictures), []
    for whole, like, data in (
        (mlp, pictures, pictures),
        (mlp, pictures, records),
        (gpt, (text[:, :-1], text[:, 1:]), (text[:, :-1], text[:, 1:])),
    ):
        grad_fn, mesh = spread(fp.backprop(whole), 32, True, 8)
        training = fp.step(grad_fn, optax.adam(1e-3))
        state = training.init(whole.init(jax.random.key(0), like), jax.random.key(1))
        result = fp.fit(training, state, data, epochs=2, batch_size=32, progress=None, mesh=mesh)
        found.append(digest((result.state.params, result.history[-1]["loss"])))
    assert records.asked <= 2 * 640 // jax.process_count() + 33  # those of its own devices
    if processes.first():
        out.write_text(" ".join([str(jax.device_count()), str(jax.process_count()), *found]))


@SLOW
def test_one_digest_on_any_number_of_devices_and_processes(tmp_path, monkeypatch):
    found = {}
    for devices in (1, 2, 4, 8):
        for n in (1, 2, 4):
            if n > devices:
                continue
            flag = f"--xla_force_host_platform_device_count={devices // n}"
            monkeypatch.setenv("XLA_FLAGS", flag)
            launch(n, bits, tmp_path / "bits")
            *counts, mlp, records, gpt = (tmp_path / "bits").read_text().split()
            assert counts == [str(devices), str(n)]
            found[devices, n] = mlp, records, gpt
    assert len(found) == 9 and len(set(found.values())) == 1, found


# ------------------------------------------------------------------------------ going on


def written_with_one_full_disk(folder):
    """The files of process 1 alone cannot grow while that of update 2 is written."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    jax.config.update("jax_enable_compilation_cache", False)  # its files cannot grow either
    me, draw = jax.process_index(), np.random.default_rng(0)
    numbers = draw.normal(size=(2, 40_000)).astype(np.float32)
    split = jax.NamedSharding(fp.make_mesh(data=2), jax.P("data"))
    state = {"w": jax.make_array_from_callback(numbers.shape, split, lambda at: numbers[at])}
    said = []
    with Checkpoints(folder) as checkpoints, warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        for update in (1, 2, 3):
            room = 20_000 if (update, me) == (2, 1) else resource.RLIM_INFINITY
            resource.setrlimit(resource.RLIMIT_FSIZE, (room, resource.RLIM_INFINITY))
            start = time.perf_counter()
            checkpoints.save(state, update)
            checkpoints.all()
            said.append(time.perf_counter() - start < AT_ONCE)
            processes.anywhere(True)
    said += [str(warning.message) for warning in told]
    (folder / f"said-{me}.json").write_text(json.dumps(said))


@SLOW
def test_a_save_that_fails_in_one_process_is_told_in_all_and_tried_again(tmp_path, capfd):
    launch(2, written_with_one_full_disk, tmp_path)
    told = f"the checkpoint of update 2 could not be written to {tmp_path}: {{}}File too large; "
    told += "training goes on, and it is tried again"
    for i, who in enumerate(("process 1: ", "")):
        said = json.loads((tmp_path / f"said-{i}.json").read_text())
        assert said == [True, True, True, told.format(who)]
    assert [c.update for c in Checkpoints(tmp_path).all(check=True)] == [1, 3]
    assert "Traceback" not in capfd.readouterr().err


def train_until(out, k):
    """Process 1 is killed in its `k`-th device call; without `k` it comes to the end."""
    calls, finish = itertools.count(1), Loop._finish

    def finished(self, *args):
        if k is not None and jax.process_index() == 1 and next(calls) == k:
            os.kill(os.getpid(), signal.SIGKILL)
        self.at_once = 3  # many calls
        return finish(self, *args)

    Loop._finish = finished
    in_folder.checkpoints_of = often
    train(out, ordered=4)


def often(*args):
    checkpoints = checkpoints_of(*args)
    checkpoints.updates = 3
    return checkpoints


@SLOW
def test_one_of_two_is_killed_and_any_number_go_on(tmp_path, monkeypatch):
    """Two go on, and are killed again; one process ends it, to the same bits."""
    launch(2, train_until, tmp_path / "whole", None)
    for k in (6, 4):
        start = time.perf_counter()
        with pytest.raises(ChildProcessError, match=r"^process 1 of 2 ended with code -9$"):
            launch(2, train_until, tmp_path / "run", k)
        assert time.perf_counter() - start < 60 + AT_ONCE  # it starts and compiles, too
        found = Checkpoints(tmp_path / "run" / "checkpoints").all(check=True)
        assert found and not any(c.problem for c in found)
    monkeypatch.setattr(job, "verify_task", job.verify_task)  # for `train` to replace
    monkeypatch.setattr(in_folder, "checkpoints_of", often)
    with jax.numpy_dtype_promotion("standard"):
        train(tmp_path / "run", ordered=4)
    one, two = ((tmp_path / name / "params.safetensors").read_bytes() for name in ("whole", "run"))
    assert one == two
    clocks = {"seconds": 0, "examples_per_second": 0}
    rows = [read_history(tmp_path / name) for name in ("whole", "run")]
    assert [r | clocks for r in rows[0]] == [r | clocks for r in rows[1]] and len(rows[0]) == 3
