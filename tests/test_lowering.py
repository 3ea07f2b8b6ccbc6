"""Every model's training step lowers for CUDA and for TPU, on any machine: no code asks where it is
traced. `jax.export` traces and lowers, and compiles nothing."""

import ast
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

import funprop as fp
from tests.cases import both, labels, normal

PLATFORMS = "cuda", "tpu"
TEXT, PICTURES = both(labels(4, 8, classes=32), labels(4, 8, classes=32)), normal(4, 8, 8, 1)
CLASSES = labels(4, classes=3)


def gpt(rewrite):
    model = fp.gpt(32, features=16, depth=2, heads=2, longest=8, rewrite=rewrite)
    return fp.language_model(model, 32)


def llama(rewrite):
    model = fp.llama(32, features=16, depth=2, heads=2, kv_heads=1, hidden=32, rewrite=rewrite)
    return fp.language_model(model, 32, tied=False)


def classifier(model):
    return fp.objective(model, fp.softmax_cross_entropy(), accuracy=fp.accuracy)


MODELS: dict[str, Any] = {
    "gpt": (gpt, TEXT),
    "llama": (llama, TEXT),
    "cnn": (lambda rewrite: classifier(rewrite(fp.cnn(3, widths=(8, 8)))), both(PICTURES, CLASSES)),
    "rnn": (
        lambda rewrite: classifier(rewrite(fp.rnn(3, fp.lstm(4), fp.gru(4)))),
        both(normal(4, 5, 2), CLASSES),
    ),
    "mlp": (lambda rewrite: classifier(rewrite(fp.mlp(8, 3))), both(normal(4, 5), CLASSES)),
    "autoencoder": (
        lambda rewrite: fp.objective(
            rewrite(fp.autoencoder((8, 8, 1), code=3, widths=(4,))), fp.mean_squared()
        ),
        both(PICTURES, PICTURES),
    ),
}
ADAM = optax.adam(1e-3)


def plain(grad_fn):
    return fp.step(grad_fn, ADAM)


def sharded(objective):
    """On a mesh of all devices: one here, eight in tests/eight_devices_lowered.py."""
    mesh = fp.make_mesh(data=jax.device_count())
    whole = fp.gathered(objective, mesh)
    return fp.shard(plain(fp.backprop(whole)), mesh, lambda name, leaf: P())


WAYS: dict[str, Any] = {
    "float32": lambda objective: plain(fp.backprop(objective)),
    "bfloat16": lambda objective: plain(fp.mixed_precision(fp.backprop(objective))),
    "remat": lambda objective: plain(fp.backprop(objective)),  # and of the model
    "microbatch": lambda objective: plain(fp.microbatch(fp.backprop(objective), 2)),
    "fused": lambda objective: fp.fused_step(objective, ADAM),
    "clipped": lambda objective: plain(fp.clip_per_example(objective, 1.0)),
    "sharded": sharded,
    "all": lambda objective: fp.ema(
        fp.loss_scale(
            plain(fp.microbatch(fp.mixed_precision(fp.clip_per_example(objective, 1.0)), 2))
        ),
        0.9,
    ),
}
# What covers each model and each way once, in the dtypes that choose another kernel; all: slow.
ONCE = {
    ("gpt", "bfloat16"),
    ("gpt", "clipped"),
    ("llama", "bfloat16"),
    ("llama", "fused"),
    ("cnn", "float32"),
    ("cnn", "clipped"),
    ("rnn", "microbatch"),
    ("mlp", "all"),
    ("mlp", "sharded"),
    ("autoencoder", "remat"),
}


ASK = "default_backend", "devices", "local_devices", "device_count", "local_device_count"
# A file of the program may be read by a later JAX but for these; no file is made here.
KERNELS = [
    jax.export.DisabledSafetyCheck.custom_call(f"__cudnn$fmhaSoftmax{which}")
    for which in ("", "Backward")
]
# Rooms that run programs, or judge what has run; and the door that lays devices out.
MAY_ASK = "train/", "verify/", "cli.py", "estimators.py", "sharding/rules.py"


def traced_step(model, way):
    """The jitted update, and specs of its arguments."""
    make, data = MODELS[model]
    objective = make(fp.remat if way == "remat" else lambda layer: layer)
    batch = data(np.random.default_rng(0))
    params = jax.eval_shape(objective.init, jax.random.key(0), batch)
    step = WAYS[way](objective)
    state = jax.eval_shape(lambda params: step.init(params, None), params)
    return jax.jit(step.update), (state, batch)


def exported(update, args, platform):
    """The program for a platform, as StableHLO."""
    made = jax.export.export(update, platforms=[platform], disabled_checks=KERNELS)(*args)
    assert made.platforms == (platform,)
    return made.mlir_module()


def asked(*_, **__):
    raise AssertionError("asked for what machine this is")


@pytest.mark.parametrize(
    ("model", "way"),
    [
        pytest.param(model, way, marks=[] if (model, way) in ONCE else [pytest.mark.slow])
        for model in MODELS
        for way in WAYS
    ],
)
def test_a_training_step_lowers_for_any_platform(model, way, monkeypatch, with_cudnn):
    """And while it is traced and lowered, nothing asks what there is. The fused kernel's version,
    which JAX asks for, is given."""
    with jax.numpy_dtype_promotion("standard"):  # optax's Adam mixes dtypes
        update, args = traced_step(model, way)
        for name in ASK:
            monkeypatch.setattr(jax, name, asked)
        texts = {platform: exported(update, args, platform) for platform in PLATFORMS}
    kernel = {platform for platform, text in texts.items() if "cudnn$fmha" in text}
    in_16_bits = model in ("gpt", "llama") and way in ("bfloat16", "all")
    assert kernel == ({"cuda"} if in_16_bits else set())


def test_no_code_asks_for_the_machine_but_what_runs_on_it():
    """`jax.default_backend()` and its like, by any name."""
    root = Path(fp.__file__).parent
    found = {
        f"{name}:{node.lineno}"
        for path in root.rglob("*.py")
        if not (name := path.relative_to(root).as_posix()).startswith(MAY_ASK)
        for node in ast.walk(ast.parse(path.read_text()))
        if (
            isinstance(node, ast.ImportFrom)
            and (node.module or "").startswith("jax")
            and {alias.name for alias in node.names} & {*ASK}
        )
        or (
            isinstance(node, ast.Attribute)
            and node.attr in (*ASK, "get_backend", "backends")
            and ast.unparse(node.value).startswith("jax")
        )
    }
    assert not found
