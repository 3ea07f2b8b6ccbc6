"""What a quantity costs beside the gradient: against one gradient, and BackPACK likewise.

Target: at most 2.0 times the time of the gradient (forward and backward), on an MLP and a CNN, for
per-example norms, the diagonal of the Gauss-Newton matrix and K-FAC factors (both by one sampled
label). Each quantity *and* the gradient are computed in one jitted program, as BackPACK's
extensions do in one backward pass; A B A B in one process. With a Python that has
backpack-for-pytorch, its ratios are measured beside ours, in a process of its own in the same run.
Run: python -m tests.benchmarks.quantities [mlp|cnn] [/path/to/torch/python]
"""

import subprocess
import sys
from typing import Any

import jax
import jax.numpy as jnp

import funprop as fp
from tests.benchmarks.harness import header, ratio, temporary

PAIRS = 7
MODELS = {
    # 784-512-512-10, batch 256
    "mlp": (fp.mlp(512, 512, 10), (256, 784)),
    # 3 x 3 convolutions of 16, 32 and 32 channels on 28 x 28, batch 64
    "cnn": (
        fp.serial(
            fp.conv(16, (3, 3)),
            fp.relu(),
            fp.conv(32, (3, 3), stride=2),
            fp.relu(),
            fp.conv(32, (3, 3), stride=2),
            fp.relu(),
            fp.flatten(),
            fp.dense(10),
        ),
        (64, 28, 28, 1),
    ),
}
QUANTITIES = {
    "per-example norms": fp.per_example_norms,
    "per-example gradients": fp.per_example_gradients,
    "variance": fp.gradient_variance,
    "GGN diagonal, sampled": lambda o: sampled(fp.ggn_diagonal(o, samples=1)),
    "K-FAC factors, sampled": lambda o: sampled(fp.kfac_factors(o)),
    "GGN diagonal, exact": fp.ggn_diagonal,
}


def sampled(quantity: Any) -> Any:
    return lambda params, batch: quantity(params, batch, sample_key=jax.random.key(0))


def measure(name: str) -> None:
    """Print a row a quantity: the quantity with the gradient over the gradient, and the quantity
    alone over it."""
    model, shape = MODELS[name]
    objective = fp.objective(model, fp.softmax_cross_entropy())
    x = jax.random.normal(jax.random.key(1), shape)
    batch = x, jax.random.randint(jax.random.key(2), shape[:1], 0, 10)
    params = objective.init(jax.random.key(0), batch)
    backprop = fp.backprop(objective)
    gradient = jax.jit(lambda params, batch: backprop(params, batch).grads)
    base = temporary(gradient, params, batch)
    for what, make in QUANTITIES.items():
        quantity = make(objective)
        both = jax.jit(lambda p, b, q=quantity: (q(p, b), backprop(p, b).grads))
        alone = jax.jit(quantity)
        with_it, noise = ratio(
            lambda both=both: both(params, batch), lambda: gradient(params, batch), PAIRS
        )
        by_itself, _ = ratio(
            lambda alone=alone: alone(params, batch), lambda: gradient(params, batch), PAIRS
        )
        memory = temporary(both, params, batch) / base
        print(
            f"{name} {what:24} with the gradient {with_it.median:.2f} ({with_it.low:.2f} to "
            f"{with_it.high:.2f}; noise {noise.median:.2f}), alone {by_itself.median:.2f}, "
            f"temporary memory {memory:.1f} times",
            flush=True,
        )


TORCH = """
import sys, time, numpy as np, torch
from torch import nn
from backpack import backpack, extend, extensions as e
torch.manual_seed(0)
name, pairs = sys.argv[1], int(sys.argv[2])
if name == "mlp":
    net = nn.Sequential(nn.Linear(784, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(),
                        nn.Linear(512, 10))
    x = torch.randn(256, 784)
else:
    net = nn.Sequential(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(),
                        nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.ReLU(),
                        nn.Conv2d(32, 32, 3, stride=2, padding=1), nn.ReLU(), nn.Flatten(),
                        nn.Linear(32 * 49, 10))
    x = torch.randn(64, 1, 28, 28)
y = torch.randint(0, 10, (len(x),))
net, loss = extend(net), extend(nn.CrossEntropyLoss(reduction="sum"))
def run(*extensions):
    net.zero_grad()
    with backpack(*extensions):
        loss(net(x), y).backward()
def seconds(f):
    start = time.perf_counter(); f(); return time.perf_counter() - start
for what, make in {"per-example norms": e.BatchL2Grad, "per-example gradients": e.BatchGrad,
                   "variance": e.Variance, "GGN diagonal, sampled": e.DiagGGNMC,
                   "K-FAC factors, sampled": e.KFAC, "GGN diagonal, exact": e.DiagGGNExact}.items():
    f = lambda: run(make())
    seconds(f), seconds(run)
    theirs, ours = [seconds(run)], []
    for _ in range(pairs):
        ours.append(seconds(f)); theirs.append(seconds(run))
    r = 2 * np.array(ours) / (np.array(theirs[:-1]) + np.array(theirs[1:]))
    low, mid, high = np.percentile(r, [25, 50, 75])
    print(f"{name} {what:24} BackPACK {mid:.2f} ({low:.2f} to {high:.2f})", flush=True)
"""


def main() -> None:
    """Print all rows."""
    header()
    names = [name for name in sys.argv[1:] if name in MODELS] or list(MODELS)
    python = next((argument for argument in sys.argv[1:] if argument not in MODELS), None)
    for name in names:
        measure(name)
        if python is not None:
            subprocess.run([python, "-W", "ignore", "-c", TORCH, name, str(PAIRS)], check=True)


if __name__ == "__main__":
    jnp.zeros(())
    main()
