"""All that wants measuring on an accelerator, in ten minutes, with nothing to install but JAX.

Every layer of the table of cases verified on the device in float32 and bfloat16; attention by
cuDNN; digits; GPT-2 small against plain JAX and PyTorch; the composed step, the head and attention,
each against plain JAX. Writes `accelerator.json` and `accelerator.md`, a page for docs/benchmarks,
into a folder. A part that fails is told and does not stop the others; the exit status says so.

Run: python -m tests.benchmarks.accelerator [--out FOLDER] [--peak 989] [--only PART ...] [--tiny]

`--tiny` runs all of it in small on whatever there is, to see that it works.
"""

import argparse
import contextlib
import io
import json
import multiprocessing
import os
import sys
import time
import traceback
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # or torch would find nothing free

import jax
import jax.numpy as jnp
import optax

import funprop as fp
from tests.benchmarks import composed_step, digits_accuracy, gpt2, parts
from tests.benchmarks.harness import header
from tests.cases import ALL, build

SOME = 12  # of the cases are verified with --tiny


def verified(given: argparse.Namespace) -> Any:
    """Which layers are right on this device, and what is said of the others."""
    cases = ALL[:: len(ALL) // SOME] if given.tiny else ALL
    cases = [case.id for case in cases if case.id != "reshape-integers"]  # it has no cotangent
    asked = [(name, dtype) for name in cases for dtype in ("float32", "bfloat16")]
    wrong, right = {}, 0
    # Most of the time is XLA's, compiling on one core of the host.
    workers = max(1, (os.cpu_count() or 2) - 2)
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        started = {pool.submit(_report, one): " ".join(one) for one in asked}
        for done in as_completed(started):
            if done.result():
                wrong[started[done]] = done.result()
                print(f"wrong: {started[done]}\n{done.result()}", flush=True)
            right += not done.result()
            if not (right + len(wrong)) % 20:
                print(f"{right + len(wrong)} of {len(asked)}", flush=True)
    print(f"{right} right, {len(wrong)} wrong")
    return {"right": right, "wrong": wrong}


def _report(of: tuple[str, str]) -> str:
    """What is said of a case that is not right; nothing of one that is."""
    name, dtype = of
    case = next(case for case in ALL if case.id == name)
    params, x, key = build(case, jnp.dtype(dtype))
    try:
        report = fp.verify(case.layer, params, x, key=key)
    except Exception as error:  # told, and the others go on
        return f"{type(error).__name__}: {str(error)[:500]}"
    jax.clear_caches()
    return "" if report.ok else str(report)


def fused_attention(given: argparse.Namespace) -> Any:
    """CuDNN's kernel, where it is to be had, against blocks of queries in float32."""
    shape = (2, 64, 3 * 4 * 16) if given.tiny else (4, 1024, 3 * 12 * 64)
    heads = 4 if given.tiny else 12
    x = jax.random.normal(jax.random.key(0), shape).astype(jnp.bfloat16)

    def both(layer: fp.Layer, x: Any) -> Any:
        y, kept = layer.forward((), x)
        return y, layer.backward((), kept, y)[1]

    found = {}
    for how in ({"causal": True}, {"causal": False}, {"causal": True, "window": 33}):
        by_kernel = jax.jit(lambda x, how=how: both(fp.attention(heads, **how), x))
        blocks = fp.attention(heads, **how, method="blocks")
        want = jax.jit(lambda x, blocks=blocks: both(blocks, x))(x.astype(jnp.float32))
        far = [
            float(jnp.abs(a.astype(jnp.float32) - b).max() / jnp.abs(b).max())
            for a, b in zip(by_kernel(x), want, strict=True)
        ]
        kernel = "fmha" in (by_kernel.lower(x).compile().as_text() or "")
        found[str(how)] = {"kernel": kernel, "y": far[0], "dx": far[1]}
        print(f"{how}: {'cuDNN' if kernel else 'blocks'}, y {far[0]:.1e}, dx {far[1]:.1e} off")
        assert max(far) < 0.02, far
    return found


def digits(given: argparse.Namespace) -> Any:
    """Test accuracy of the digits job."""
    seeds = 1 if given.tiny else 3
    scores = [digits_accuracy.accuracy(seed) for seed in range(seeds)]
    print(", ".join(f"{score:.2%}" for score in scores))
    assert min(scores) > 0.96, scores
    return scores


def language_model(given: argparse.Namespace) -> Any:
    """The table of GPT-2 small."""
    rows = []
    print(f"{'':30} tokens/s  of peak  memory, GiB")
    sizes = (2, 3) if given.tiny else (8, 12)
    for row in gpt2.table(*sizes, given.peak, given.tiny, fits=False):
        print(
            f"{row.name:30} {row.tokens_per_second:8,.0f}  {row.share_of_peak:7.1%}  "
            f"{row.gib:11.2f}"
        )
        rows.append(row._asdict())
    return rows


def composed(given: argparse.Namespace) -> Any:
    """Transforms and wrappers against one function."""
    if given.tiny:
        batch = jnp.ones((32, 8)), jnp.zeros(32, jnp.int32)
        whole = fp.objective(fp.mlp(8, 4), fp.softmax_cross_entropy())
        composed_step.compare("MLP 8-8-4, batch 32", whole, batch, pairs=3)
    else:
        composed_step.main()


def head(given: argparse.Namespace) -> Any:
    """Unembedding and cross-entropy against optax's on whole logits."""
    sizes = [(16, 64, 96)] if given.tiny else [(256, 8192, 50304), (768, 8192, 50304)]
    for features, tokens, classes in sizes:
        parts.head(features, tokens, classes)


def attention(given: argparse.Namespace) -> Any:
    """Attention against `jax.nn.dot_product_attention` in float32."""
    sizes = [(1, 64, 2, 8)] if given.tiny else [(8, 1024, 12, 64), (1, 4096, 4, 64)]
    for batch, places, heads, features in sizes:
        parts.attend(batch, places, heads, features, 3 if given.tiny else 11)


PARTS: dict[str, Callable[[argparse.Namespace], Any]] = {
    part.__name__: part
    for part in (
        language_model,
        head,
        attention,
        fused_attention,
        composed,
        digits,
        verified,
    )
}


def main(arguments: list[str] | None = None) -> int:
    """Run all parts; the number of those that failed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("accelerator"))
    parser.add_argument("--peak", type=float, default=989.0, help="TFLOP/s in bfloat16")
    parser.add_argument("--only", nargs="*", choices=PARTS, default=list(PARTS))
    parser.add_argument("--tiny", action="store_true")
    given = parser.parse_args(arguments)
    given.out.mkdir(parents=True, exist_ok=True)
    found: dict[str, Any] = {}
    page = io.StringIO()
    with contextlib.redirect_stdout(_Both(page)):
        print("# On an accelerator\n\n```")
        header()
        print("```")
        for name in given.only:
            print(f"\n## {name}\n\n{PARTS[name].__doc__}\n\n```", flush=True)
            start = time.perf_counter()
            try:
                found[name] = {"result": PARTS[name](given)}
            except Exception as error:
                found[name] = {"failed": repr(error)}
                traceback.print_exc()
                print(f"FAILED: {type(error).__name__}: {str(error)[:300]}")
            found[name]["seconds"] = round(time.perf_counter() - start, 1)
            print(f"```\n\n{found[name]['seconds']:.0f} s", flush=True)
            found[name]["printed"] = page.getvalue().rpartition(f"## {name}")[2]
            # What there is so far: a machine that is taken away leaves that.
            _write(given.out, found, page.getvalue())
    failed = [name for name, part in found.items() if "failed" in part]
    print("failed: " + ", ".join(failed) if failed else "all ran")
    return len(failed)


def _write(folder: Path, found: dict[str, Any], page: str) -> None:
    device = jax.devices()[0]
    about = {"device": device.device_kind, "platform": device.platform}
    about |= {"jax": jax.__version__, "optax": optax.__version__, "funprop": fp.__version__}
    text = json.dumps({"about": about, "parts": found}, indent=1)
    (folder / "accelerator.json").write_text(text)
    (folder / "accelerator.md").write_text(page)


class _Both(io.TextIOBase):
    """Writes to the terminal and into the page."""

    def __init__(self, page: io.StringIO) -> None:
        self._outs = [sys.stdout, page]

    def write(self, text: str) -> int:
        for out in self._outs:
            out.write(text)
        return len(text)

    def flush(self) -> None:
        for out in self._outs:
            out.flush()


if __name__ == "__main__":
    raise SystemExit(main())
