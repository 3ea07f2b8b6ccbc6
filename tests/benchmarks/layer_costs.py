"""Every layer's hand-written backward beside autodiff of its forward: time and what is kept.

And the same of whole networks, by activation: there a layer's neighbours have to be paid, too.

Targets: time at most that of autodiff, residual bytes at most those of autodiff. Run:
python -m tests.benchmarks.layer_costs [layers] [networks]
"""

import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

import funprop as fp
from tests.benchmarks.harness import header, ratio, temporary

ROWS = jax.ShapeDtypeStruct((1024, 256), jnp.float32)
WIDE = jax.ShapeDtypeStruct((1024, 1024), jnp.float32)
IMAGES = jax.ShapeDtypeStruct((16, 32, 32, 32), jnp.float32)
TEXT = jax.ShapeDtypeStruct((4, 256, 256), jnp.float32)
TOKENS = jax.ShapeDtypeStruct((4, 256), jnp.int32)

LAYERS = {
    "dense 256 to 256": (fp.dense(256), ROWS),
    "relu": (fp.relu(), WIDE),
    "leaky_relu": (fp.leaky_relu(), WIDE),
    "elu": (fp.elu(), WIDE),
    "gelu": (fp.gelu(), WIDE),
    "gelu_tanh": (fp.gelu_tanh(), WIDE),
    "silu": (fp.silu(), WIDE),
    "tanh": (fp.tanh(), WIDE),
    "sigmoid": (fp.sigmoid(), WIDE),
    "softplus": (fp.softplus(), WIDE),
    "softmax": (fp.softmax(), WIDE),
    "log_softmax": (fp.log_softmax(), WIDE),
    "gated silu": (fp.gated(fp.silu()), WIDE),
    "layer_norm": (fp.layer_norm(), ROWS),
    "rms_norm": (fp.rms_norm(), ROWS),
    "group_norm": (fp.group_norm(8), IMAGES),
    "batch_norm": (fp.batch_norm(), IMAGES),
    "conv 3x3": (fp.conv(32, (3, 3)), IMAGES),
    "conv 3x3, stride 2": (fp.conv(32, (3, 3), stride=2), IMAGES),
    "conv 3x3, 4 groups": (fp.conv(32, (3, 3), groups=4), IMAGES),
    "conv 3x3, depthwise": (fp.conv(32, (3, 3), groups=32), IMAGES),
    "conv_transpose 2x2, stride 2": (fp.conv_transpose(32, (2, 2), stride=2), IMAGES),
    "max_pool 2": (fp.max_pool((2, 2)), IMAGES),
    "average_pool 2": (fp.average_pool((2, 2)), IMAGES),
    "global_average_pool": (fp.global_average_pool(), IMAGES),
    "upsample nearest": (fp.upsample(2), IMAGES),
    "embedding": (fp.embedding(8192, 256), TOKENS),
    "learned_positions": (fp.learned_positions(256), TEXT),
    "self_attention, 8 heads": (fp.self_attention(256, 8), TEXT),
    "lstm": (fp.lstm(256), TEXT),
    "gru": (fp.gru(256), TEXT),
}


Make = Callable[[], fp.Layer]


def mlp(activation: Make) -> fp.Layer:
    """Three networks of 1,024 hidden features, one after the other."""
    blocks = (part for _ in range(3) for part in (fp.dense(1024), activation(), fp.dense(256)))
    return fp.serial(*blocks, fp.dense(10))


def gated_mlp(activation: Make) -> fp.Layer:
    """The same with gates."""
    return mlp(lambda: fp.serial(fp.dense(2048), fp.gated(activation())))


def cnn(activation: Make) -> fp.Layer:
    """Two convolutions."""
    parts = fp.conv(32, (3, 3)), activation(), fp.conv(32, (3, 3)), activation()
    return fp.serial(*parts, fp.global_average_pool(), fp.dense(10))


def normalised_cnn(activation: Make) -> fp.Layer:
    """Each with batch normalisation."""
    return cnn(lambda: fp.serial(fp.batch_norm(), activation()))


NETWORKS = {
    mlp: (ROWS, (fp.relu, fp.silu, fp.gelu, fp.gelu_tanh)),
    gated_mlp: (ROWS, (fp.silu, fp.gelu)),
    cnn: (IMAGES, (fp.relu, fp.silu, fp.gelu)),
    normalised_cnn: (IMAGES, (fp.relu, fp.silu)),
}


def of_layers() -> None:
    """Print a row a layer, and which miss."""
    print(f"{'':30} time    residual bytes: ours, autodiff's")
    missed = []
    for name, (layer, spec) in LAYERS.items():
        keys = jax.random.split(jax.random.key(0), 2)
        x = (
            jax.random.normal(keys[0], spec.shape)
            if jnp.issubdtype(spec.dtype, jnp.floating)
            else jax.random.randint(keys[0], spec.shape, 0, 8192)
        )
        found = fp.cost(layer, layer.init(keys[1], x), x)
        kept = found.hand_written.residual_bytes, found.autodiff.residual_bytes
        print(f"{name:30} {found.time_ratio:5.2f} {kept[0]:>18,} {kept[1]:>12,}", flush=True)
        if found.time_ratio > 1.05 or kept[0] > kept[1]:
            missed.append(name)
    print(f"beyond 1.05 or the bytes of autodiff: {', '.join(missed) or 'none'}")


def of_networks() -> None:
    """Print a row a network: loss and gradients of a batch, ours over those of autodiff."""
    print(f"{'':30} time   noise   temporary MiB: ours, autodiff's")
    for network, (spec, activations) in NETWORKS.items():
        for activation in activations:
            whole = fp.objective(network(activation), fp.softmax_cross_entropy())
            batch = jax.random.normal(jax.random.key(0), spec.shape), jnp.zeros(spec.shape[0], int)
            params, key = whole.init(jax.random.key(1), batch), jax.random.key(2)
            forms = [jax.jit(f) for f in (fp.backprop(whole), fp.backprop(fp.autodiff(whole)))]

            def run(i: int, forms: Any = forms, args: Any = (params, batch, key)) -> Any:
                return forms[i](*args)

            found, noise = ratio(lambda: run(0), lambda: run(1), 40)
            mib = [temporary(f, params, batch, key) / 2**20 for f in forms]
            name = f"{network.__name__}, {activation.__name__}".replace("_", " ")
            print(f"{name:30} {found.median:.2f}   {noise.median:.2f}   {mib[0]:.1f}, {mib[1]:.1f}")


def main(*names: str) -> None:
    """Print both tables, or those named."""
    header()
    if "layers" in names or not names:
        of_layers()
    if "networks" in names or not names:
        of_networks()


if __name__ == "__main__":
    main(*sys.argv[1:])
