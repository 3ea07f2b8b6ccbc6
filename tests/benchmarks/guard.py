"""So that what was won stays won: ratios against an expert's plain JAX in the same process, held
against those recorded beside this file.

Time of `fit` on digits, of one update of an MLP, a GPT, a CNN and an LSTM, and of `verify` of three
rules against JAX's `check_grads`; and of each update the FLOPs and temporary bytes of its compiled
program, which do not vary. A case fails when its ratio is worse than the recorded one by more than
15% and the noise of this run (what the expert's time over itself strays from one). It is measured
up to three times before it fails: other work on the machine can only make it look worse. It takes
two minutes. What is recorded is the median of five measurements: what comes most often, not what
came by luck.

Run: python -m tests.benchmarks.guard [--record] [CASE ...]
"""

import argparse
import datetime
import functools
import json
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.test_util import check_grads

import funprop as fp
from funprop.train.runs.tasks import task
from tests.benchmarks import conv_rnn_updates, language_models, models, step_speed
from tests.benchmarks.harness import Pair, paired, ratio

RECORD = Path(__file__).with_name("guard.json")
MAY_LOSE, TRIES, RECORDED_OF = 0.15, 3, 5


class Measured(NamedTuple):
    """Ratios of ours to the expert's, and how far the expert's time over itself is from one."""

    time: float
    flops: float | None
    bytes: float | None
    noise: float


def times(
    ours: Callable[[], Any], theirs: Callable[[], Any], pairs: int, calls: int = 1
) -> Measured:
    """Of two calls."""
    time_, noise = ratio(ours, theirs, pairs, calls)
    return Measured(time_.median, None, None, max(abs(noise.low - 1), abs(noise.high - 1)))


def updates(of: Pair, pairs: int, calls: int) -> Measured:
    """Of one update."""
    flops = [program.cost_analysis()["flops"] for program in of.compiled]
    held = [program.memory_analysis().temp_size_in_bytes for program in of.compiled]
    found = times(of.ours, of.theirs, pairs, calls)
    return found._replace(flops=flops[0] / flops[1], bytes=held[0] / held[1])


def mlp() -> Measured:
    """784-256-256-10, batch 128."""
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.standard_normal((128, 784)), jnp.float32)
    y = jnp.asarray(rng.integers(0, 10, 128), jnp.int32)
    return updates(step_speed.mlp((256, 256, 10), x, y), 41, 5)


def gpt() -> Measured:
    """2 blocks, d 128, T 128, batch 4, vocabulary 2k, AdamW."""
    batch = language_models.tokens(4, 128, 2048)
    model = fp.gpt(2048, features=128, depth=2, heads=4, longest=128)
    whole, optimizer = fp.language_model(model, 2048), optax.adamw(1e-3)
    train = fp.step(fp.backprop(whole), optimizer)
    params = whole.init(jax.random.key(0), batch)
    block = functools.partial(language_models.transformer_block, 4)
    total = language_models.plain_loss(block, True)
    update = models.expert_step(optimizer, lambda p, batch: total(p, batch) / batch[0].size)
    theirs = jax.tree.map(jnp.copy, params), optimizer.init(params)
    return updates(paired((train.update, train.init(params, None)), (update, theirs), batch), 31, 1)


def cnn() -> Measured:
    """28 x 28, convolutions to 32 and 64, batch 16."""
    made = conv_rnn_updates
    return updates(made.pair(made.cnn(), made.expert_cnn, (16, 28, 28, 1)), 31, 1)


def lstm() -> Measured:
    """64 steps of 32, 128 features, batch 64."""
    made = conv_rnn_updates
    return updates(made.pair(made.classifier(), made.expert_classifier, (64, 64, 32)), 31, 1)


def fit() -> Measured:
    """10 epochs of digits against the expert's loop over batches in NumPy."""
    run_fit, expert_loop = step_speed.digits(epochs=10)
    data = task("digits").train
    return times(run_fit, lambda: expert_loop(data, lambda rows: rows), 11)


def verify() -> Measured:
    """Three rules, against `check_grads` of the same forward passes; programs are compiled anew."""
    x = jax.random.normal(jax.random.key(0), (4, 8))
    rules = fp.dense(6), fp.gelu(), fp.layer_norm()
    params = [rule.init(jax.random.key(1), x) for rule in rules]

    def ours() -> Any:
        jax.clear_caches()
        for rule, p in zip(rules, params, strict=True):
            fp.verify(rule, p, x).raise_if_wrong()

    def theirs() -> Any:
        jax.clear_caches()
        for rule, p in zip(rules, params, strict=True):
            check_grads(lambda p, x, rule=rule: rule.forward(p, x)[0], (p, x), order=1, rtol=0.1)

    return times(ours, theirs, 3)


CASES: dict[str, Callable[[], Measured]] = {
    case.__name__: case for case in (fit, mlp, gpt, cnn, lstm, verify)
}


def typical(case: Callable[[], Measured], runs: int) -> Measured:
    """That of so many measurements whose time is their median."""
    return sorted((case() for _ in range(runs)), key=lambda found: found.time)[runs // 2]


def judged(name: str, found: Measured, recorded: dict[str, Any]) -> list[str]:
    """What is worse than it was."""
    limit = recorded["time"] * (1 + MAY_LOSE) + recorded["time"] * found.noise
    worse = [] if found.time <= limit else [f"time {found.time:.3f}, at most {limit:.3f}"]
    for what in ("flops", "bytes"):
        now, before = getattr(found, what), recorded[what]
        if now is not None and now > before * (1 + MAY_LOSE):
            worse.append(f"{what} {now:.3f}, {before:.3f} before")
    return worse


def about() -> dict[str, str]:
    """What this was measured on."""
    return {
        "date": str(datetime.date.today()),
        "machine": f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores",
        "python": platform.python_version(),
        "jax": jax.__version__,
        "optax": optax.__version__,
    }


def main(arguments: list[str] | None = None) -> int:
    """Measure, and record or judge; the number of cases that fail."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("--record", action="store_true")
    parser.add_argument("cases", nargs="*", default=[], metavar="CASE", help=", ".join(CASES))
    given = parser.parse_args(arguments)
    recorded = json.loads(RECORD.read_text()) if RECORD.exists() else {"cases": {}}
    print(", ".join(about().values()))
    jax.config.update("jax_enable_compilation_cache", False)  # what `verify` makes
    failed = 0
    for name in given.cases or CASES:
        start = time.perf_counter()
        found = typical(CASES[name], RECORDED_OF if given.record else 1)
        worse: list[str] = []
        if given.record:
            kept = {k: v and round(v, 4) for k, v in found._asdict().items() if k != "noise"}
            recorded["cases"][name] = kept
        else:
            worse = judged(name, found, recorded["cases"][name])
            for _ in range(TRIES - 1):
                if worse:
                    found = CASES[name]()
                    worse = judged(name, found, recorded["cases"][name])
        parts = [
            f"{what} {value:.3f}" for what, value in found._asdict().items() if value is not None
        ]
        says = f"WORSE: {'; '.join(worse)}" if worse else "recorded" if given.record else "held"
        print(
            f"{name:7} {', '.join(parts):60} {says}  {time.perf_counter() - start:.0f} s",
            flush=True,
        )
        failed += bool(worse)
        jax.clear_caches()
    if given.record:
        RECORD.write_text(json.dumps(about() | {"cases": recorded["cases"]}, indent=1) + "\n")
    return failed


if __name__ == "__main__":
    raise SystemExit(main())
