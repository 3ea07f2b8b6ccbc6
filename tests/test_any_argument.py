"""Whatever is given for an argument of a public function is taken, or refused in one short sentence
that names the argument. A row an argument; a new public name must have one, or say why not."""

import inspect
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import funprop as fp

KEY = jax.random.key(0)
X = np.ones((4, 3), np.float32)
MODEL = fp.serial(fp.dense(3), fp.tanh(), fp.dense(3))
PARAMS = MODEL.init(KEY, X)
OBJECTIVE = fp.objective(MODEL, fp.mean_squared())
GRAD_FN, SGD, MESH = fp.backprop(OBJECTIVE), optax.sgd(0.1), fp.make_mesh(data=1)
STEP = fp.step(GRAD_FN, SGD)
DEEP, PIPE = fp.objective(fp.repeat(fp.dense(3), 2), fp.mean_squared()), fp.make_mesh(pipe=1)
DEEP_PARAMS = DEEP.init(KEY, (X, X))
RULES = fp.data_parallel_rules()
HUGE, PROMPT = 10**30, np.ones((1, 2), int)  # no machine has so much memory
BATCH_NORM = fp.batch_norm()
NORM_PARAMS = BATCH_NORM.init(KEY, X)
LM = fp.gpt(5, features=4, depth=1, heads=2)
LM_PARAMS = jax.tree.map(
    lambda leaf: jnp.zeros(leaf.shape, leaf.dtype),
    jax.eval_shape(LM.init, KEY, np.zeros((1, 1), np.int32)),
)
HEAD = fp.unembedding(LM_PARAMS)


class Odd:
    """What nothing is made of."""

    def __repr__(self):
        return "odd\n" * 100


ODD = {
    "none": None,
    "zero": 0,
    "minus one": -1,
    "huge": HUGE,
    "half": 1.5,
    "nan": float("nan"),
    "inf": float("inf"),
    "true": True,
    "a word": "a",
    "no word": "",
    "a long word": "a" * 500,
    "bytes": b"a",
    "no tuple": (),
    "a list": [],
    "lists": [[1.0, 2.0], [3.0]],
    "a long list": [0.0] * 1000,
    "a dict": {},
    "mixed": ("a", 1),
    "numpy's number": np.float32(1),
    "an array": jnp.ones(2),
    "words": np.array(["a", "b"]),
    "objects": np.array([None, {}], object),
    "complex": np.ones((4, 3), complex),
    "a spec": jax.ShapeDtypeStruct((4, 3), jnp.float32),
    "a key": KEY,
    "keys": jax.random.split(KEY, 2),
    "a function": abs,
    "a maker": fp.dense,
    "a class": dict,
    "a layer": fp.relu(),
    "params": PARAMS,
    "odd": Odd(),
}


def layers(*names):
    return {name: {"layer": getattr(fp, name)} for name in names}


PATTERN = "pattern|copies"
# By public name, what its message names (a regular expression), and a call with the argument.
ROWS = {
    # ------------------------------------------------------------------ layers, losses, combinators
    **{name: {"features": getattr(fp, name)} for name in ("dense", "lstm", "gru", "mlp")},
    **{name: {"axis": getattr(fp, name)} for name in ("softmax", "log_softmax", "concatenate")},
    **{name: {"eps": getattr(fp, name)} for name in ("layer_norm", "rms_norm", "batch_norm")},
    **{name: {"window": getattr(fp, name)} for name in ("max_pool", "average_pool")},
    "conv": {"features": lambda o: fp.conv(o, 3), "kernel": lambda o: fp.conv(3, o)},
    "conv_transpose": {"features": lambda o: fp.conv_transpose(o, 3)},
    "upsample": {"factor": fp.upsample},
    "embedding": {
        "rows": lambda o: fp.embedding(o, 3),
        "features": lambda o: fp.embedding(3, o),
    },
    "learned_positions": {"longest": fp.learned_positions},
    "group_norm": {"groups": fp.group_norm},
    "attention": {"heads": fp.attention},
    "dropout": {"rate": fp.dropout},
    "leaky_relu": {"slope": fp.leaky_relu},
    "elu": {"alpha": fp.elu},
    "reshape": {"shape": fp.reshape},
    "gated": {"activation": fp.gated},
    "huber": {"delta": fp.huber},
    "softmax_cross_entropy": {"smoothing": fp.softmax_cross_entropy},
    "linear_cross_entropy": {"classes": fp.linear_cross_entropy},
    "linear_predictions": {
        "params": lambda o: fp.linear_predictions(o, X),
    },
    "with_lengths": {"layer": fp.with_lengths},
    **layers("residual", "parallel"),
    "serial": {"layer": lambda o: fp.serial(fp.relu(), o)},
    "repeat": {"layer": lambda o: fp.repeat(o, 2), "n": lambda o: fp.repeat(MODEL, o)},
    "reversible": {
        "layer": lambda o: fp.reversible(o, MODEL),
        "copies": lambda o: fp.reversible(MODEL, MODEL, o),
    },
    "direct_feedback": {"layer": lambda o: fp.direct_feedback(MODEL, o)},
    "lif": {
        "decay": fp.lif,
        "threshold": lambda o: fp.lif(0.5, o),
        "surrogate": lambda o: fp.lif(surrogate=o),
        "steepness": lambda o: fp.lif(steepness=o),
    },
    "reparam": {
        "layer": lambda o: fp.reparam(o, lambda p: p),
        "expand": lambda o: fp.reparam(MODEL, o),
        "initial": lambda o: fp.reparam(MODEL, lambda p: p, initial=o),
        "shrink": lambda o: fp.reparam(MODEL, lambda p: p, shrink=o),
    },
    "named": {"name": lambda o: fp.named(o, MODEL), "layer": lambda o: fp.named("a", o)},
    "map_layers": {
        "model": lambda o: fp.map_layers(lambda layer: layer, o),
        "function": lambda o: callable(o) or fp.map_layers(o, MODEL),
        "what function gives": lambda o: fp.map_layers(lambda layer: o, MODEL),
    },
    "layer": {
        "forward": lambda o: fp.layer(forward=o, backward=lambda *a: a),
        "backward": lambda o: fp.layer(forward=lambda p, x: (x, ()), backward=o),
        "init": lambda o: fp.layer(forward=lambda p, x: x, backward=lambda *a: a, init=o),
        "name": lambda o: fp.layer(forward=lambda p, x: x, backward=lambda *a: a, name=o),
    },
    "from_function": {
        "init": lambda o: fp.from_function(o, lambda p, x: x),
        "apply": lambda o: fp.from_function(lambda key, x: (), o),
        "name": lambda o: fp.from_function(lambda key, x: (), lambda p, x: x, o),
    },
    "as_function": {"layer": fp.as_function},
    "backward_inputs": {"layer": fp.backward_inputs},
    "backward_params": {"layer": fp.backward_params},
    # ------------------------------------------------------------------------------------- models
    "gpt": {"vocabulary|rows": fp.gpt, "depth|n": lambda o: fp.gpt(5, depth=o)},
    "llama": {"vocabulary|rows": fp.llama},
    "language_model": {
        "model": lambda o: fp.language_model(o, 5),
        "classes|vocabulary": lambda o: fp.language_model(LM, o),
    },
    "unembedding": {"params": fp.unembedding},
    "rnn": {"classes": lambda o: fp.rnn(o, fp.lstm(2)), "layer": lambda o: fp.rnn(2, o)},
    "generate": {
        "model": lambda o: fp.generate(o, LM_PARAMS, HEAD, PROMPT, 1),
        "head": lambda o: fp.generate(LM, LM_PARAMS, o, PROMPT, 1),
        "prompt": lambda o: fp.generate(LM, LM_PARAMS, HEAD, o, 1),
        "length": lambda o: o is HUGE or fp.generate(LM, LM_PARAMS, HEAD, PROMPT, o),
    },
    # ----------------------------------------------------------------------------------- rewrites
    **layers("offload"),
    "autodiff": {"layer": fp.autodiff, "policy": lambda o: fp.autodiff(MODEL, o)},
    "remat": {"layer": fp.remat, PATTERN: lambda o: fp.remat(MODEL, o)},
    "keep_products": {"block": fp.keep_products},
    "cast": {
        "layer": lambda o: fp.cast(o, jnp.bfloat16),
        "compute_dtype": lambda o: fp.cast(MODEL, o),
        "param_dtype": lambda o: fp.cast(MODEL, jnp.bfloat16, param_dtype=o),
    },
    "freeze": {
        "model|pattern": lambda o: fp.freeze(o, "dense_0"),
        PATTERN: lambda o: fp.freeze(MODEL, o),
    },
    "frozen": {
        "model|pattern": lambda o: fp.frozen(o, "dense_0", PARAMS),
        PATTERN: lambda o: fp.frozen(MODEL, o, PARAMS),
        "params": lambda o: fp.frozen(MODEL, "dense_0", o),
    },
    **{
        name: {
            "model": getattr(fp, name),
            PATTERN: lambda o, name=name: o is None or getattr(fp, name)(MODEL, o),
        }
        for name in ("feedback_alignment", "sign_symmetric")
    },
    "quantised": {
        "model": lambda o: fp.quantised(o, "int8"),
        "to": lambda o: fp.quantised(MODEL, o),
        PATTERN: lambda o: o is None or fp.quantised(MODEL, "int8", o),
        "inputs": lambda o: fp.quantised(MODEL, "int8", inputs=o),
    },
    "low_rank": {
        "model|pattern": lambda o: fp.low_rank(o, "dense_0", 1),
        PATTERN: lambda o: fp.low_rank(MODEL, o, 1),
        "rank": lambda o: fp.low_rank(MODEL, "dense_0", o),
        "scale": lambda o: fp.low_rank(MODEL, "dense_0", 1, scale=o),
        "pattern": lambda o: fp.low_rank(MODEL, "dense_0", 1, train=o),
    },
    "adapted": {
        "model|pattern": lambda o: fp.adapted(o, "dense_0", 1, PARAMS, KEY),
        PATTERN: lambda o: fp.adapted(MODEL, o, 1, PARAMS, KEY),
        "rank": lambda o: o is HUGE or fp.adapted(MODEL, "dense_0", o, PARAMS, KEY),
        "params": lambda o: fp.adapted(MODEL, "dense_0", 1, o, KEY),
        "key": lambda o: fp.adapted(MODEL, "dense_0", 1, PARAMS, o),
    },
    "tap": {
        "model": lambda o: fp.tap(o, forward=jnp.sum),
        PATTERN: lambda o: fp.tap(MODEL, o, forward=jnp.sum),
        "forward": lambda o: fp.tap(MODEL, forward=o),
        "backward": lambda o: fp.tap(MODEL, backward=o),
    },
    "fused_update": {
        "layer": lambda o: fp.fused_update(o, SGD),
        "optimizer": lambda o: fp.fused_update(MODEL, o),
    },
    "gathered": {
        "model": lambda o: fp.gathered(o, MESH),
        "mesh": lambda o: fp.gathered(MODEL, o),
        "rule": lambda o: fp.gathered(MODEL, MESH, o),
    },
    # ------------------------------------------------------------------------ gradients and steps
    "objective": {
        "model": lambda o: fp.objective(o, fp.mean_squared()),
        "loss": lambda o: fp.objective(MODEL, o),
        "error": lambda o: fp.objective(MODEL, fp.mean_squared(), error=o),
    },
    "backprop": {
        "objective": fp.backprop,
        "batch|inputs|targets|model": lambda o: GRAD_FN(PARAMS, o),
        "inputs|batch/0|x must|params": lambda o: GRAD_FN(PARAMS, (o, X)),
        "targets|batch/1": lambda o: GRAD_FN(PARAMS, (X, o)),
        "targets|weights|batch/2": lambda o: GRAD_FN(PARAMS, (X, X, o)),
        "params": lambda o: GRAD_FN(o, (X, X)),
        "key": lambda o: GRAD_FN(PARAMS, (X, X), o),
        "dloss": lambda o: GRAD_FN(PARAMS, (X, X), None, o),
    },
    "from_loss": {
        "loss_fn": fp.from_loss,
        "loss_fn must return": lambda o: fp.from_loss(lambda p, batch: o)(1.0, X),
    },
    "measure": {"grad_fn": fp.measure},
    "microbatch": {
        "grad_fn": lambda o: fp.microbatch(o, 2),
        "n must": lambda o: fp.microbatch(GRAD_FN, o),
        "batch|inputs|targets": lambda o: fp.microbatch(GRAD_FN, 2)(PARAMS, o),
    },
    "gradient_statistics": {"n must": lambda o: fp.gradient_statistics(GRAD_FN, o)},
    "clip_per_example": {
        "objective|grad_fn": lambda o: fp.clip_per_example(o, 1.0),
        "norm": lambda o: fp.clip_per_example(OBJECTIVE, o),
        "noise": lambda o: fp.clip_per_example(OBJECTIVE, 1.0, noise=o),
        "batch|inputs|targets": lambda o: fp.clip_per_example(OBJECTIVE, 1.0)(PARAMS, o),
    },
    # --------------------------------------------------------------------------------- quantities
    **{
        name: {
            "objective": getattr(fp, name),
            "params": lambda o, name=name: getattr(fp, name)(OBJECTIVE)(o, (X, X)),
            "batch|inputs|targets": lambda o, name=name: getattr(fp, name)(OBJECTIVE)(PARAMS, o),
            "key": lambda o, name=name: getattr(fp, name)(OBJECTIVE)(PARAMS, (X, X), o),
        }
        for name in (
            *("per_example_gradients", "per_example_norms", "per_example_dot_products"),
            *("gradient_variance", "noise_scale"),
        )
    },
    "ggn_diagonal": {
        "objective": fp.ggn_diagonal,
        "samples": lambda o: fp.ggn_diagonal(OBJECTIVE, samples=o),
        "params": lambda o: fp.ggn_diagonal(OBJECTIVE)(o, (X, X)),
        "key": lambda o: fp.ggn_diagonal(OBJECTIVE, samples=1)(PARAMS, (X, X), sample_key=o),
    },
    "kfac_factors": {
        "objective": fp.kfac_factors,
        "samples": lambda o: fp.kfac_factors(OBJECTIVE, samples=o),
        "sharing": lambda o: fp.kfac_factors(OBJECTIVE, sharing=o),
    },
    "kfac": {
        "objective": lambda o: fp.kfac(o, 0.1),
        "learning_rate": lambda o: fp.kfac(OBJECTIVE, o),
        "damping": lambda o: fp.kfac(OBJECTIVE, 0.1, damping=o),
        "momentum": lambda o: fp.kfac(OBJECTIVE, 0.1, momentum=o),
        "decay": lambda o: fp.kfac(OBJECTIVE, 0.1, decay=o),
        "kl_clip": lambda o: fp.kfac(OBJECTIVE, 0.1, kl_clip=o),
        "every": lambda o: fp.kfac(OBJECTIVE, 0.1, every=o),
        "inverse_every": lambda o: fp.kfac(OBJECTIVE, 0.1, inverse_every=o),
        "sharing": lambda o: fp.kfac(OBJECTIVE, 0.1, sharing=o),
        "seed": lambda o: fp.kfac(OBJECTIVE, 0.1, seed=o),
    },
    **{
        name: {
            "objective": getattr(fp, name),
            PATTERN: lambda o, name=name: getattr(fp, name)(OBJECTIVE, o)(PARAMS, PARAMS, (X, X)),
            "params": lambda o, name=name: getattr(fp, name)(OBJECTIVE)(o, PARAMS, (X, X)),
            "vector": lambda o, name=name: getattr(fp, name)(OBJECTIVE)(PARAMS, o, (X, X)),
            "batch|inputs|targets": lambda o, name=name: getattr(fp, name)(OBJECTIVE)(
                PARAMS, PARAMS, o
            ),
        }
        for name in ("hessian_vector_product", "ggn_vector_product")
    },
    **{
        name: {
            "product": lambda o, name=name: callable(o) or getattr(fp, name)(o, X, KEY),
            "key": lambda o, name=name: getattr(fp, name)(lambda v: v, X, o, samples=1),
            "samples": lambda o, name=name: (
                o is HUGE or getattr(fp, name)(lambda v: v, X, KEY, samples=o)
            ),
        }
        for name in ("hutchinson_trace", "hutchinson_diagonal")
    },
    "laplace": {
        "objective": lambda o: fp.laplace(o, PARAMS, [(X, X)]),
        "structure": lambda o: fp.laplace(OBJECTIVE, PARAMS, [(X, X)], structure=o),
        "prior_precision": lambda o: fp.laplace(OBJECTIVE, PARAMS, [(X, X)], prior_precision=o),
        "scale": lambda o: fp.laplace(OBJECTIVE, PARAMS, [(X, X)], scale=o),
        "batch|inputs|targets": lambda o: fp.laplace(OBJECTIVE, PARAMS, o),
    },
    "mixed_precision": {
        "compute_dtype": lambda o: fp.mixed_precision(GRAD_FN, o),
        PATTERN: lambda o: fp.mixed_precision(GRAD_FN, keep=o),
        "batch|inputs|targets": lambda o: fp.mixed_precision(GRAD_FN)(PARAMS, o),
        "params": lambda o: fp.mixed_precision(GRAD_FN)(o, (X, X)),
    },
    "ordered": {
        "parts": lambda o: fp.ordered(GRAD_FN, o),
        "mesh": lambda o: fp.ordered(GRAD_FN, 1, o),
        "axis": lambda o: fp.ordered(GRAD_FN, 1, MESH, o),
        "batch|inputs|targets": lambda o: fp.ordered(GRAD_FN, 1)(PARAMS, o),
    },
    "data_parallel": {
        "mesh": lambda o: fp.data_parallel(GRAD_FN, o),
        "axis": lambda o: fp.data_parallel(GRAD_FN, MESH, o),
        "key|batch": lambda o: fp.data_parallel(GRAD_FN, MESH)(PARAMS, (X, X[:3]), o),
    },
    **{
        make.__name__: {
            "stages": lambda o, make=make: o is HUGE or make(o, 1),
            "microbatches": lambda o, make=make: o is HUGE or make(1, o),
        }
        for make in (fp.gpipe, fp.one_f_one_b, fp.zero_bubble)
    },
    "pipeline": {
        "objective": lambda o: fp.pipeline(o, PIPE, fp.gpipe(1, 1)),
        "mesh": lambda o: fp.pipeline(DEEP, o, fp.gpipe(1, 1)),
        "schedule": lambda o: fp.pipeline(DEEP, PIPE, o),
        "axis": lambda o: fp.pipeline(DEEP, PIPE, fp.gpipe(1, 1), o),
        "batch|inputs|targets": lambda o: fp.pipeline(DEEP, PIPE, fp.gpipe(1, 1))(DEEP_PARAMS, o),
        "key": lambda o: jax.eval_shape(
            lambda params: fp.pipeline(DEEP, PIPE, fp.gpipe(1, 1))(params, (X, X), o), DEEP_PARAMS
        ),
        "params": lambda o: fp.pipeline(DEEP, PIPE, fp.gpipe(1, 1))(o, (X, X)),
    },
    "schedule_picture": {"schedules": fp.schedule_picture},
    "step": {
        "grad_fn": lambda o: fp.step(o, SGD),
        "optimizer": lambda o: fp.step(GRAD_FN, o),
        "key": lambda o: STEP.init(PARAMS, o),
        "params": lambda o: STEP.init(o, None),
        "state": lambda o: STEP.update(o, (X, X)),
    },
    "fused_step": {
        "objective": lambda o: fp.fused_step(o, SGD),
        "optimizer": lambda o: fp.fused_step(OBJECTIVE, o),
        "params": lambda o: fp.fused_step(OBJECTIVE, SGD).init(o, None),
    },
    "ema": {"step": lambda o: fp.ema(o, 0.5), "decay": lambda o: fp.ema(STEP, o)},
    "skip_nonfinite": {"step": fp.skip_nonfinite, "n must": lambda o: fp.skip_nonfinite(STEP, o)},
    "loss_scale": {
        "step": fp.loss_scale,
        "initial": lambda o: fp.loss_scale(STEP, o),
        "every": lambda o: fp.loss_scale(STEP, every=o),
    },
    "scan": {"step": fp.scan},
    # ------------------------------------------------------------------------------------ devices
    "make_mesh": {"data|axes|a mesh": lambda o: fp.make_mesh(data=o)},
    "shard": {
        "step": lambda o: fp.shard(o, MESH, RULES),
        "mesh": lambda o: fp.shard(STEP, o, RULES),
        "rules": lambda o: fp.shard(STEP, MESH, o),
    },
    "shardings": {
        "params": lambda o: fp.shardings(o, MESH, RULES),
        "mesh": lambda o: fp.shardings(PARAMS, o, RULES),
        "rule|param": lambda o: callable(o) or fp.shardings(PARAMS, MESH, o),
    },
    "describe_sharding": {
        "tree": fp.describe_sharding,
        "mesh": lambda o: fp.describe_sharding(PARAMS, o),
    },
    "fsdp_rules": {"mesh": fp.fsdp_rules, "axis": lambda o: fp.fsdp_rules(MESH, o)},
    "tensor_parallel_rules": {"axis": fp.tensor_parallel_rules},
    # ------------------------------------------------------------------------------------- params
    "where": {PATTERN: lambda o: fp.where(o, PARAMS), "must match": lambda o: fp.where("w", o)},
    "by_name": {"params": fp.by_name},
    "roles": {"params": fp.roles},
    "decayed": {"params": fp.decayed},
    "trained": {"params": fp.trained},
    "untap": {"params": fp.untap},
    "recorded": {"residuals": fp.recorded},
    "param_table": {"params": fp.param_table},
    "calibrate": {
        "model": lambda o: fp.calibrate(o, NORM_PARAMS, [X]),
        "params": lambda o: fp.calibrate(BATCH_NORM, o, [X]),
        "batch|x must": lambda o: fp.calibrate(BATCH_NORM, NORM_PARAMS, o),
    },
    "derive": {
        "layer|objective|params": lambda o: fp.derive(o, PARAMS, (X, X)),
        "params": lambda o: fp.derive(OBJECTIVE, o, (X, X)),
        "x|batch|inputs|targets": lambda o: fp.derive(OBJECTIVE, PARAMS, o),
        "key": lambda o: fp.derive(OBJECTIVE, PARAMS, (X, X), key=o),
    },
    "explain": {
        "objective": lambda o: fp.explain(o, PARAMS, (X, X)),
        "params": lambda o: fp.explain(OBJECTIVE, o, (X, X)),
        "batch|inputs|targets": lambda o: fp.explain(OBJECTIVE, PARAMS, o),
        "key": lambda o: fp.explain(OBJECTIVE, PARAMS, (X, X), key=o),
        "optimizer": lambda o: fp.explain(OBJECTIVE, PARAMS, (X, X), optimizer=o),
    },
    "first_nonfinite": {
        "objective": lambda o: fp.first_nonfinite(o, PARAMS, (X, X)),
        "params": lambda o: fp.first_nonfinite(OBJECTIVE, o, (X, X)),
        "batch|inputs|targets": lambda o: fp.first_nonfinite(OBJECTIVE, PARAMS, o),
        "key": lambda o: fp.first_nonfinite(OBJECTIVE, PARAMS, (X, X), o),
    },
    "within": {
        "objective|x must be an array": lambda o: fp.within(o, (X, X), 10**9),
        "batch|inputs|targets": lambda o: fp.within(OBJECTIVE, o, 10**9),
        "bytes": lambda o: fp.within(OBJECTIVE, (X, X), o),
        "optimizer": lambda o: fp.within(OBJECTIVE, (X, X), 10**9, optimizer=o),
    },
    "watch": {
        "every": lambda o: fp.watch(every=o),
        "examples": lambda o: fp.watch(examples=o),
    },
    "gradient_flow": {"seen|at least one look": fp.gradient_flow},
    "find_nonfinite": {
        "grad_fn": lambda o: fp.find_nonfinite(o, PARAMS, (X, X)),
        "params": lambda o: fp.find_nonfinite(GRAD_FN, o, (X, X)),
        "batch|inputs|targets": lambda o: fp.find_nonfinite(GRAD_FN, PARAMS, o),
        "key": lambda o: fp.find_nonfinite(GRAD_FN, PARAMS, (X, X), o),
        "dloss": lambda o: fp.find_nonfinite(GRAD_FN, PARAMS, (X, X), None, o),
    },
    "find_nonfinite_update": {
        "step": lambda o: fp.find_nonfinite_update(o, STEP.init(PARAMS, None), (X, X)),
        "state": lambda o: fp.find_nonfinite_update(STEP, o, (X, X)),
    },
    "summary": {"model": lambda o: fp.summary(o, X), "x": lambda o: fp.summary(MODEL, o)},
    # ----------------------------------------------------------------------------------- training
    "at_least": {"metric": lambda o: fp.at_least(o, 1.0), "target": lambda o: fp.at_least("a", o)},
    "at_most": {"metric": lambda o: fp.at_most(o, 1.0), "target": lambda o: fp.at_most("a", o)},
    "patience": {"metric": lambda o: fp.patience(o, 1), "epochs": lambda o: fp.patience("a", o)},
    "fit": {
        "data|inputs": lambda o: fp.fit(
            STEP, STEP.init(PARAMS, None), o, epochs=0, batch_size=4, progress=None
        ),
        "checkpoints|epochs|path": lambda o: fp.fit(
            STEP, STEP.init(PARAMS, None), (X, X), epochs=0, batch_size=4, checkpoints=o
        ),
    },
    "Checkpoints": {
        "folder": fp.Checkpoints,
        "seconds": lambda o: fp.Checkpoints("no", seconds=o),
        "updates": lambda o: fp.Checkpoints("no", updates=o),
        "keep": lambda o: fp.Checkpoints("no", keep=o),
        "metric": lambda o: fp.Checkpoints("no", metric=o),
        "best": lambda o: fp.Checkpoints("no", best=o),
        "settings": lambda o: fp.Checkpoints("no", settings=o),
    },
    # --------------------------------------------------------------------------------------- verify
    "verify": {"what is verified|args|a layer|x": lambda o: fp.verify(o, X)},
    "taylor_test": {"what is verified|args": lambda o: fp.taylor_test(o, PARAMS, X)},
}
# No arguments, or arguments for which anything else stands.
BARE = (
    *("add", "flatten", "gelu", "gelu_tanh", "global_average_pool", "global_max_pool", "last_step"),
    *("relu", "sigmoid", "silu", "softplus", "tanh", "binary_cross_entropy", "mean_absolute"),
    *("mean_squared", "data_parallel_rules"),
)
WHY_NOT = {
    **dict.fromkeys(
        BARE, "a maker that needs no argument; what it makes: test_numbers, test_losses"
    ),
    **dict.fromkeys(("accuracy", "binary_accuracy", "absolute_error"), "in test_losses"),
    **dict.fromkeys(("autoencoder", "cnn", "self_attention", "feed_forward", "swiglu"), "sizes"),
    **dict.fromkeys(("save", "load"), "files: test_params_file"),
    **dict.fromkeys(("cost", "verify_rules", "verify_second_order"), "test_verify_bad_input"),
    **{"from_pair": "test_verify_pairs", "verify_step": "test_verify_step"},
    **dict.fromkeys(("from_pretrained", "to_pretrained", "merged"), "test_pretrained"),
    **dict.fromkeys(("population", "population_table", "member"), "test_population"),
    "callbacks": "a module: test_callbacks",
}


def test_every_public_function_has_a_row():
    public = {name for name in fp.__all__ if not inspect.isclass(getattr(fp, name))}
    assert public - set(ROWS) == set(WHY_NOT)


@pytest.mark.parametrize(
    ("name", "argument"), [(name, argument) for name, row in ROWS.items() for argument in row]
)
def test_taken_or_refused_in_one_sentence(name, argument):
    call = ROWS[name][argument]
    for kind, odd in ODD.items():
        try:
            call(odd)
        except (ValueError, TypeError) as error:
            told = str(error)
            assert type(error) in (ValueError, TypeError), (kind, error)
            assert len(told) < 250 and "\n" not in told, (kind, told)
            assert re.search(argument, told), (kind, told)


@pytest.mark.parametrize("name", ["verify", "explain", "first_nonfinite", "save"])
def test_numbers_that_are_traced_are_refused_in_one_sentence(name, tmp_path):
    objective = fp.objective(fp.mlp(3, 2), fp.softmax_cross_entropy())
    batch = jnp.ones((2, 3)), jnp.zeros(2, jnp.int32)
    params = objective.init(jax.random.key(0), batch)

    def run(params):
        if name == "save":
            fp.save(tmp_path / "params", params)
        else:
            getattr(fp, name)(objective, params, batch)

    told = r"dense_0/w must hold known numbers, got a traced array; call it outside jit"
    with pytest.raises(TypeError, match=told):
        jax.jit(run)(params)
