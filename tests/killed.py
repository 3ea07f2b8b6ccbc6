"""A small run of `fit` with many checkpoints, in processes that tests kill: tests/test_kills.py.

`python -m tests.killed` imports all that a run needs, but does not start JAX; then it forks a
process for every line that it reads, which saves each of them ten seconds, and answers with a line.
"""

import functools
import json
import os
import pkgutil
import signal
import sys
import time
import traceback
import warnings
from pathlib import Path

import jax
import numpy as np
import optax
import orbax.checkpoint  # noqa: F401  # so that the processes need not

import funprop as fp
from funprop.train.arrays import spread
from funprop.train.interrupts import CODES, Stopped
from funprop.train.progress import silent
from funprop.train.runs import files as runs
from funprop.train.runs import recorded
from funprop.train.runs.folder import checkpoints_of, run_folder

EPOCHS, BATCH, EXAMPLES = 4, 8, 44  # six updates an epoch, the last of them short
SETTINGS = {"data": "small", "epochs": EPOCHS, "batch_size": BATCH, "seed": 0}


@functools.cache
def step(ordered=None):
    """One of Adam, with dropout, so that a lost key would tell; `ordered` into so many parts
    it is over all devices."""
    model = fp.serial(fp.dense(8), fp.relu(), fp.dropout(0.2), fp.dense(3))
    objective = fp.objective(model, fp.softmax_cross_entropy())
    grad_fn, mesh = spread(fp.backprop(objective), ordered or BATCH, ordered is not None, ordered)
    return objective, fp.step(grad_fn, optax.adam(1e-2)), mesh


def data():
    draw = np.random.default_rng(0)
    x = draw.normal(size=(EXAMPLES, 4)).astype(np.float32)
    return x, draw.integers(0, 3, EXAMPLES).astype(np.int32)


class Interrupting(recorded.recorded):
    """Ctrl-C in the midst of epoch 3."""

    def update(self, epoch, epochs, examples, means):
        super().update(epoch, epochs, examples, means)
        if 2 < epoch < 3:
            signal.raise_signal(signal.SIGINT)


def trained(folder, interrupted=False, strict=True, ordered=None):
    """As `funprop train` does it: the folder is gone on with, and its files are written."""
    objective, training, mesh = step(ordered)
    display = Interrupting if interrupted else recorded.recorded
    with run_folder("small", folder, SETTINGS) as (used, finished):
        if finished:
            return
        if strict:
            found = fp.Checkpoints(used / runs.CHECKPOINTS).all(check=True)
            assert not [c for c in found if c.problem], found
        checkpoints = checkpoints_of(used, SETTINGS, False)
        checkpoints.updates, checkpoints.keep = 3, 2
        params = objective.init(jax.random.key(0), data())
        result = fp.fit(
            training,
            training.init(params, jax.random.key(1)),
            data(),
            epochs=EPOCHS,
            batch_size=ordered or BATCH,
            progress=lambda: display(silent, used),
            checkpoints=checkpoints,
            mesh=mesh,
        )
        runs.save_reached(used, jax.device_get(result.state.params))
        runs.write_history(used, result.history)
        runs.write_text(used / "report.png", "as it were")
        settings = SETTINGS | {"stopped": result.stopped, "final": result.history[-1]}
        runs.write_settings(used, settings, result.stopped not in CODES)
        if result.stopped in CODES:
            raise Stopped(result.stopped)


def at_call(where, k):
    """From the `k`-th call of a function on, nothing: the process is killed as it comes to it."""
    where, _, name = where.rpartition(".")
    module = pkgutil.resolve_name(where)  # or a class
    function, calls = getattr(module, name), iter(range(k))

    def called(*args, **kwargs):
        if module is os and name == "write" and args[0] <= 2:  # what is said counts for nothing
            return function(*args, **kwargs)
        if next(calls, None) is None:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*args, **kwargs)

    setattr(module, name, called)


def child(order, told):
    os.dup2(told, 1)
    os.dup2(told, 2)
    sys.stdout, sys.stderr = (os.fdopen(i, "w", buffering=1) for i in (1, 2))
    code = 1
    try:
        warnings.simplefilter("error")
        if order.get("at"):
            at_call(*order["at"])
        print("begun")
        jax.config.update("jax_num_cpu_devices", order.get("devices", 1))
        trained(Path(order["folder"]), ordered=order.get("ordered"))
        code = 0
    except SystemExit as ended:
        code = ended.code
    except BaseException:
        traceback.print_exc()
    os._exit(code)


def served(order):
    """Fork a process, send it a signal after some seconds, and say how it ended."""
    read, told = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(read)
        child(order, told)
    os.close(told)
    said = b""
    while b"begun\n" not in said and (some := os.read(read, 4096)):
        said += some
    start = time.perf_counter()
    if order.get("after") is not None:
        time.sleep(order["after"])
        os.kill(pid, order.get("signal", signal.SIGKILL))
    while some := os.read(read, 4096):
        said += some
    _, status = os.waitpid(pid, 0)
    seconds = time.perf_counter() - start
    code = os.waitstatus_to_exitcode(status)
    return {"code": code, "said": said.decode(errors="replace"), "seconds": seconds}


def main():
    answers = os.fdopen(os.dup(1), "w")
    print("ready", file=answers, flush=True)
    for line in sys.stdin:
        print(json.dumps(served(json.loads(line))), file=answers, flush=True)


if __name__ == "__main__":
    main()
