"""Start one run of a peer, and read what it measured."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from tests.benchmarks.peers.data import WORKS
from tests.benchmarks.peers.environments import ROOT
from tests.benchmarks.peers.listed import PEERS

MEASURE = Path(__file__).parent / "measure.py"
# What would change how a library compiles or how many cores it takes; every one as it comes.
UNSET = ("JAX_", "XLA_", "OMP_", "MKL_", "TORCH", "KERAS", "PYTHON")
# The compiled programs of an earlier run are no part of a time from process start.
FRESH = "TORCHINDUCTOR_FORCE_DISABLE_CACHES"


def run(
    peer: str,
    work: str,
    data: Path,
    python: Path,
    *,
    seed: int,
    timed: bool,
    core: int | None = None,
) -> Any:
    """What `measure.py` prints; times are from right before the process is started."""
    told = PEERS[peer]
    kept = {k: v for k, v in os.environ.items() if not k.startswith(UNSET)}
    env = {**kept, "JAX_PLATFORMS": "cpu", "KERAS_BACKEND": "jax", FRESH: "1"}
    if not timed or core is not None:  # threads that wait for each other are slow beside other work
        env |= {"OMP_NUM_THREADS": "1", "TORCHINDUCTOR_COMPILE_THREADS": "1"}
    if peer == "funprop":
        env["PYTHONPATH"] = str(ROOT)
    asked = {"file": str(told.path), "switch": told.switch, "work": work, "data": str(data)}
    epochs = WORKS[work].timed if timed else None
    asked |= {"seed": seed, "epochs": epochs, "evaluate": WORKS[work].at_once or not timed}
    pinned = [] if core is None else ["taskset", "-c", str(core)]
    asked["started"] = time.time()
    command = [*pinned, str(python), str(MEASURE), json.dumps(asked)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, cwd=MEASURE.parent)
    if done.returncode:
        sys.exit(f"{peer} failed at {work}:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])
