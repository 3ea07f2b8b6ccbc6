"""Where an update's time on a GPU goes: its kernels, longest first, with what they compute.

Run on a machine with a GPU: python -m tests.benchmarks.kernels [--batch 8] [--out FOLDER]

Beside the table, the compiled programs are written into the folder, to look an operation up.
"""

import argparse
import collections
import re
import tempfile
from pathlib import Path
from typing import Any

import jax

import funprop as fp
from tests.benchmarks import gpt2
from tests.benchmarks.harness import header

UPDATES = 5


def kernels(state: Any, update: Any, batch: Any) -> dict[str, tuple[float, int]]:
    """Milliseconds an update, and calls an update, of every operation of the compiled program."""
    for _ in range(2):
        state, out = update(state, batch)
    jax.block_until_ready(out)
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            for _ in range(UPDATES):
                state, out = update(state, batch)
            jax.block_until_ready((state, out))
        (path,) = Path(folder).rglob("*.xplane.pb")
        data = jax.profiler.ProfileData.from_file(str(path))
        found: dict[str, list[float]] = collections.defaultdict(list)
        for plane in data.planes:
            if not plane.name.startswith("/device:"):
                continue
            for line in plane.lines:
                if not line.name.startswith("Stream"):
                    continue
                for event in line.events:
                    stats = dict(event.stats)
                    name = stats.get("hlo_op") or stats.get("name") or event.name
                    found[str(name)].append(event.duration_ns / 1e6)
    if not found:
        print("no kernels in", [(p.name, [line.name for line in p.lines]) for p in data.planes])
    return {name: (sum(ms) / UPDATES, round(len(ms) / UPDATES)) for name, ms in found.items()}


def told(text: str, name: str) -> str:
    """What an operation computes: its shape, and the function of JAX that it comes from."""
    line = re.search(rf"^\s*(?:ROOT )?%?{re.escape(name)} = (.*)$", text, re.MULTILINE)
    if line is None:
        return ""
    shape = line[1].partition("{")[0][:40]
    source = re.search(r'op_name="([^"]*)"', line[1])
    return f"{shape:40} {source[1][-90:] if source else ''}"


def main() -> None:
    """Print the table of each form."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--longest", type=int, default=25, help="rows of each table")
    parser.add_argument("--out", type=Path, default=Path("kernels"))
    parser.add_argument("--tiny", action="store_true")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    header()
    sizes, vocabulary = (gpt2.TINY, 512) if given.tiny else (gpt2.SMALL, gpt2.VOCABULARY)
    forms = {
        "by_hand": lambda: gpt2.by_hand(sizes, vocabulary, lambda block: block),
        "by_hand_remat": lambda: gpt2.by_hand(sizes, vocabulary, fp.remat),
        "jax_grad": lambda: gpt2.by_jax(sizes, vocabulary, False),
        "jax_grad_checkpoint": lambda: gpt2.by_jax(sizes, vocabulary, True),
    }
    batch = gpt2.random(given.batch, sizes["longest"], vocabulary)
    for form, build in forms.items():
        state, update = build()
        text = update.lower(state, batch).compile().as_text() or ""
        (given.out / f"{form}.txt").write_text(text)
        found = kernels(state, update, batch)
        del state
        total = sum(ms for ms, _ in found.values())
        print(f"\n{form}: {total:.2f} ms an update on the device")
        rows = sorted(found.items(), key=lambda row: -row[1][0])
        for name, (ms, calls) in rows[: given.longest]:
            print(f"{ms:8.3f} ms {calls:5} calls  {name:40} {told(text, name)}", flush=True)


if __name__ == "__main__":
    main()
