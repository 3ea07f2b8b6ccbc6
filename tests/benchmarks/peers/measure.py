"""One run of one peer, in a process and an environment of its own. Imports NumPy alone.

The peer's file has a function for each work, `work(data, seed, report)`, which trains, calls
`report(loss, predict)` after each epoch and returns how many params it trained.
"""

import importlib.util
import json
import resource
import sys
import time
from types import SimpleNamespace

import numpy as np


def judged(outputs, truth):
    """Accuracy and mean cross-entropy of logits, or of any scores up to a constant a row."""
    outputs = np.asarray(outputs, np.float64).reshape(-1, np.shape(outputs)[-1])
    truth = truth.reshape(-1)
    top = outputs.max(-1, keepdims=True)
    logs = outputs - top - np.log(np.exp(outputs - top).sum(-1, keepdims=True))
    right = (outputs.argmax(-1) == truth).mean()
    return {"accuracy": float(right), "loss": float(-logs[np.arange(len(truth)), truth].mean())}


def main(asked):
    """Times run from `asked["started"]`, which the runner takes right before this process is."""
    spec = importlib.util.spec_from_file_location("peer", asked["file"])
    peer = importlib.util.module_from_spec(spec)
    data = SimpleNamespace(**np.load(asked["data"]))
    # Of batches; where the library's own loop makes one, its numbers are ignored.
    data.order = data.order[asked["seed"], : asked["epochs"]]
    spec.loader.exec_module(peer)
    if asked["switch"]:
        setattr(peer, asked["switch"], True)
    losses, seconds, cpu, held_out, peaks = [], [], [], [], []

    def clocks():
        # The second of all threads, and of compilers that were started: a busy machine disturbs
        # it less.
        started = resource.getrusage(resource.RUSAGE_CHILDREN)
        cpu = time.process_time() + started.ru_utime + started.ru_stime
        return np.array([time.time() - asked["started"], cpu])

    spent = np.zeros(2)

    def report(loss, predict):
        losses.append(float(loss))
        peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
        now = clocks()
        seconds.append((now - spent)[0])
        cpu.append((now - spent)[1])
        if asked["evaluate"]:  # beside the clock; where a library works ahead, in no timed run
            held_out.append(judged(predict(data.test_x), data.test_y))
            spent[:] += clocks() - now

    params = getattr(peer, asked["work"])(data, asked["seed"], report)
    told = {"params": int(params), "losses": losses, "seconds": seconds, "held_out": held_out}
    print(json.dumps({**told, "cpu": cpu, "peak_bytes": peaks[0]}))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
