"""GPT-2 small on one GPU, bfloat16, sequences of 1,024 random tokens: by hand, by JAX, by PyTorch.

Tokens a second, share of the chip's peak, memory, and the largest batch that fits, of one AdamW
update: funprop's hand-written backward; `jax.value_and_grad` and optax on the same params; and,
where torch with CUDA is installed, PyTorch with `torch.compile`, fused AdamW and its own attention.
Run on a machine with a GPU: python -m tests.benchmarks.gpt2 [--batch 8] [--peak 989]

It wants one NVIDIA GPU with 24 GiB or more and `pip install jax[cuda12]`, for the third row torch
too. `--tiny` runs a small model on whatever there is, to see that the script works.
"""

import argparse
import functools
import importlib
import os
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # or torch would find nothing free

import jax
import jax.numpy as jnp
import optax

import funprop as fp
from tests.benchmarks.harness import header
from tests.benchmarks.language_models import plain_loss, transformer_block

VOCABULARY = 50304  # GPT-2's 50,257, filled up to a multiple of 128
SMALL: dict[str, Any] = {"features": 768, "depth": 12, "heads": 12, "longest": 1024}
TINY: dict[str, Any] = {"features": 64, "depth": 2, "heads": 2, "longest": 64}
RATE = 3e-4


def by_hand(sizes: dict[str, Any], vocabulary: int, rewrite: Any) -> tuple[Any, Any]:
    """`(state, update)`: funprop's step."""
    whole = fp.language_model(fp.gpt(vocabulary, rewrite=rewrite, **sizes), vocabulary)
    tokens = jnp.zeros((1, 8), jnp.int32)
    # All in bfloat16, the head too, as the others have it: a head in float32 beside it would take
    # its four products of 50k classes in float32.
    train = fp.step(fp.mixed_precision(fp.backprop(whole)), optax.adamw(RATE))
    return train.init(whole.init(jax.random.key(0), (tokens, tokens)), None), train.update


def by_jax(sizes: dict[str, Any], vocabulary: int, checkpoint: bool) -> tuple[Any, Any]:
    """`(state, update)`: plain JAX and optax, cuDNN's attention where it is to be had."""
    whole = fp.language_model(fp.gpt(vocabulary, **sizes), vocabulary)
    tokens = jnp.zeros((1, 8), jnp.int32)
    params = whole.init(jax.random.key(0), (tokens, tokens))
    kernel = "cudnn" if jax.default_backend() == "gpu" else None
    one = functools.partial(transformer_block, sizes["heads"], implementation=kernel)
    loss = plain_loss(jax.checkpoint(one) if checkpoint else one, True)
    optimizer = optax.adamw(RATE)

    @functools.partial(jax.jit, donate_argnums=0)
    def update(state: Any, batch: Any) -> Any:
        params, opt_state = state

        def mean(params: Any) -> Any:
            narrow = jax.tree.map(lambda p: p.astype(jnp.bfloat16), params)
            return loss(narrow, batch).astype(jnp.float32) / batch[0].size

        value, grads = jax.value_and_grad(mean)(params)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return (optax.apply_updates(params, updates), opt_state), value

    return (params, optimizer.init(params)), update


def measured(state: Any, update: Any, batch: Any, updates: int) -> tuple[float, int]:
    """Seconds an update, the median; and bytes of the compiled program."""
    memory = update.lower(state, batch).compile().memory_analysis()
    held = memory.argument_size_in_bytes + memory.temp_size_in_bytes
    held += memory.output_size_in_bytes - memory.alias_size_in_bytes
    seconds = []
    for _ in range(updates + 2):
        start = time.perf_counter()
        state, out = update(state, batch)
        jax.block_until_ready(out)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[2:]), held


def by_torch(
    sizes: dict[str, Any], vocabulary: int, batch: int, updates: int
) -> tuple[float, int] | None:
    """`(seconds, bytes)` of PyTorch; `None` where there is no torch with CUDA."""
    try:
        torch: Any = importlib.import_module("torch")
    except ModuleNotFoundError:
        return None
    if not torch.cuda.is_available():
        return None
    nn: Any = torch.nn
    functional: Any = nn.functional
    d, time_, heads = sizes["features"], sizes["longest"], sizes["heads"]

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.n1, self.n2 = nn.LayerNorm(d), nn.LayerNorm(d)
            self.qkv, self.out = nn.Linear(d, 3 * d), nn.Linear(d, d)
            self.up, self.down = nn.Linear(d, 4 * d), nn.Linear(4 * d, d)

        def forward(self, x: Any) -> Any:
            q, k, v = self.qkv(self.n1(x)).view(*x.shape[:2], 3 * heads, -1).chunk(3, 2)
            y = functional.scaled_dot_product_attention(
                *(part.transpose(1, 2) for part in (q, k, v)), is_causal=True
            )
            x = x + self.out(y.transpose(1, 2).reshape(x.shape))
            return x + self.down(functional.gelu(self.up(self.n2(x)), approximate="tanh"))

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.places = nn.Embedding(vocabulary, d), nn.Embedding(time_, d)
            self.blocks = nn.ModuleList(Block() for _ in range(sizes["depth"]))
            self.last = nn.LayerNorm(d)

        def forward(self, tokens: Any, labels: Any) -> Any:
            x = self.table(tokens) + self.places.weight
            for block in self.blocks:
                x = block(x)
            logits = self.last(x) @ self.table.weight.T
            return functional.cross_entropy(logits.flatten(0, 1).float(), labels.flatten())

    model = Model().cuda()
    run = torch.compile(model)
    optimizer = torch.optim.AdamW(model.parameters(), RATE, fused=True)
    tokens, labels = torch.randint(0, vocabulary, (2, batch, time_), device="cuda")
    torch.cuda.reset_peak_memory_stats()
    seconds = []
    for _ in range(updates + 3):
        torch.cuda.synchronize()
        start = time.perf_counter()
        with torch.autocast("cuda", torch.bfloat16):
            loss = run(tokens, labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[3:]), torch.cuda.max_memory_allocated()


def largest(build: Callable[[], Any], time_: int, vocabulary: int) -> int:
    """The largest power of two of sequences that fits."""
    batch = 1
    while batch < 1024:
        try:
            state, update = build()
            measured(state, update, random(2 * batch, time_, vocabulary), 1)
        except jax.errors.JaxRuntimeError:  # out of memory
            break
        batch *= 2
    return batch


def random(batch: int, time_: int, vocabulary: int) -> Any:
    """Random tokens, and those after them."""
    text = jax.random.randint(jax.random.key(1), (batch, time_ + 1), 0, vocabulary)
    return text[:, :-1], text[:, 1:]


class Row(NamedTuple):
    """What was measured of one form."""

    name: str
    tokens_per_second: float
    share_of_peak: float
    gib: float
    largest_batch: int | None


def table(batch: int, updates: int, peak: float, tiny: bool, fits: bool = True) -> Iterator[Row]:
    """The rows, as they are measured; `peak` in TFLOP/s; with `fits`, the largest batch too."""
    sizes, vocabulary = (TINY, 512) if tiny else (SMALL, VOCABULARY)
    time_ = sizes["longest"]
    forms = {
        "by hand": lambda: by_hand(sizes, vocabulary, lambda block: block),
        "by hand, blocks again": lambda: by_hand(sizes, vocabulary, fp.remat),
        "jax.grad + optax": lambda: by_jax(sizes, vocabulary, False),
        "jax.grad + optax, checkpoint": lambda: by_jax(sizes, vocabulary, True),
    }
    matrices = 12 * sizes["features"] ** 2 * sizes["depth"] + vocabulary * sizes["features"]
    attention = sizes["depth"] * sizes["features"] * time_  # causal: half of the scores
    flops = 6 * (matrices + attention)  # a token, forward and backward

    def row(name: str, seconds: float, held: int, fits: int | None) -> Row:
        rate = batch * time_ / seconds
        return Row(name, rate, rate * flops / peak / 1e12, held / 2**30, fits)

    for name, build in forms.items():
        state, update = build()
        seconds, held = measured(state, update, random(batch, time_, vocabulary), updates)
        del state
        most = largest(build, time_, vocabulary) if fits and not tiny else None
        yield row(name, seconds, held, most)
    found = None if tiny else by_torch(sizes, vocabulary, batch, updates)
    if found:
        yield row("torch.compile, fused AdamW", *found, None)


def main() -> None:
    """Print the table; or, without a GPU, what it would need."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--updates", type=int, default=20)
    parser.add_argument("--peak", type=float, default=989.0, help="TFLOP/s in bf16; H100: 989")
    parser.add_argument("--tiny", action="store_true")
    given = parser.parse_args()
    if jax.default_backend() != "gpu" and not given.tiny:
        print((__doc__ or "").strip())
        raise SystemExit("no GPU here: this needs one (or --tiny)")
    header()
    print(f"{'':30} tokens/s  of peak  memory, GiB  largest batch")
    for row in table(given.batch, given.updates, given.peak, given.tiny):
        print(
            f"{row.name:30} {row.tokens_per_second:8,.0f}  {row.share_of_peak:7.1%}  "
            f"{row.gib:11.2f}  {row.largest_batch or '-':>13}",
            flush=True,
        )


if __name__ == "__main__":
    main()
