"""Right steps as people write them in other libraries, each as its own pages show it.

`RIGHT` maps a name to (the module that it needs, what makes the case).
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax

import funprop as fp

ADAM = optax.adam(1e-2)
X = np.asarray(jax.random.normal(jax.random.key(3), (8, 4)))
Y = np.arange(8, dtype=np.int32) % 2


def batch():
    return {"x": X, "y": Y}


def loss_of(logits, y):
    return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()


def linen():
    """Flax linen: a TrainState, dropout, statistics of a BatchNorm."""
    from flax import linen as nn
    from flax.training import train_state

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x, train):
            x = nn.BatchNorm(use_running_average=not train, momentum=0.9)(nn.Dense(8)(x))
            x = nn.Dropout(0.25, deterministic=not train)(nn.relu(x))
            return nn.Dense(2)(x)

    class State(train_state.TrainState):
        batch_stats: dict

    net = Net()
    made = net.init(jax.random.key(0), X, train=False)
    state = State.create(
        apply_fn=net.apply, params=made["params"], tx=ADAM, batch_stats=made["batch_stats"]
    )

    @jax.jit
    def update(state, batch, key):
        def loss_fn(params):
            logits, new = state.apply_fn(
                {"params": params, "batch_stats": state.batch_stats},
                batch["x"],
                train=True,
                rngs={"dropout": key},
                mutable=["batch_stats"],
            )
            return loss_of(logits, batch["y"]), new

        (loss, new), grads = jax.value_and_grad(loss_fn, has_aux=True)(state.params)
        state = state.apply_gradients(grads=grads)
        return state.replace(batch_stats=new["batch_stats"]), {"loss": loss}

    def loss_fn(params, batch, key):
        variables = {"params": params, "batch_stats": made["batch_stats"]}
        logits, _ = net.apply(
            variables, batch["x"], train=True, rngs={"dropout": key}, mutable=["batch_stats"]
        )
        return loss_of(logits, batch["y"])

    said = {"key": jax.random.key(1), "loss_fn": loss_fn, "optimizer": ADAM}
    return update, state, batch(), said


def nnx():
    """Flax nnx: modules split into a graph and a state, updated in place and split again."""
    from flax import nnx

    class Net(nnx.Module):
        def __init__(self, rngs):
            self.one, self.two = nnx.Linear(4, 8, rngs=rngs), nnx.Linear(8, 2, rngs=rngs)
            self.dropout = nnx.Dropout(0.25, rngs=rngs)

        def __call__(self, x):
            return self.two(self.dropout(nnx.relu(self.one(x))))

    model = Net(nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, ADAM, wrt=nnx.Param)
    metrics = nnx.MultiMetric(loss=nnx.metrics.Average("loss"))
    graph, state = nnx.split((model, optimizer, metrics))

    @jax.jit
    def update(state, batch):
        model, optimizer, metrics = nnx.merge(graph, state)
        loss_fn = lambda model: loss_of(model(batch["x"]), batch["y"])
        loss, grads = nnx.value_and_grad(loss_fn)(model)
        metrics.update(loss=loss)
        optimizer.update(model, grads)
        return nnx.state((model, optimizer, metrics)), {"loss": loss}

    return update, state, batch(), {"params": lambda state: nnx.filter_state(state[0], nnx.Param)}


def equinox():
    """Equinox: `filter_jit`, a model with functions among its leaves, dropout by a key."""
    import equinox as eqx

    class Net(eqx.Module):
        mlp: eqx.nn.MLP
        dropout: eqx.nn.Dropout

        def __call__(self, x, key):
            return self.mlp(self.dropout(x, key=key))

    model = Net(eqx.nn.MLP(4, 2, 8, 1, key=jax.random.key(0)), eqx.nn.Dropout(0.25))
    opt_state = ADAM.init(eqx.filter(model, eqx.is_inexact_array))

    def loss_fn(model, batch, key):
        keys = jax.random.split(key, len(batch["x"]))
        return loss_of(jax.vmap(model)(batch["x"], keys), batch["y"])

    @eqx.filter_jit(donate="all-except-first")
    def make_step(batch, model, opt_state, key):
        loss, grads = eqx.filter_value_and_grad(loss_fn)(model, batch, key)
        updates, opt_state = ADAM.update(grads, opt_state, eqx.filter(model, eqx.is_inexact_array))
        return eqx.apply_updates(model, updates), opt_state, loss

    def update(state, batch, key):
        model, opt_state, loss = make_step(batch, *state, key)
        return (model, opt_state), {"loss": loss}

    said = {"key": jax.random.key(1), "loss_fn": loss_fn, "optimizer": ADAM}
    return update, (model, opt_state), batch(), said


def keras():
    """Keras 3: the stateless API of models, losses and optimizers, as its guide to JAX has it;
    wants `KERAS_BACKEND=jax`."""
    import keras  # pyright: ignore[reportMissingImports]

    keras.utils.set_random_seed(0)
    layers = keras.layers
    model = keras.Sequential(
        [layers.Input((4,)), layers.Dense(8, "relu"), layers.BatchNormalization(), layers.Dropout(0.25), layers.Dense(2)]
    )  # fmt: skip
    optimizer = keras.optimizers.Adam(1e-2)
    optimizer.build(model.trainable_variables)
    loss_fn = keras.losses.SparseCategoricalCrossentropy(from_logits=True)

    def compute_loss(trainable, other, x, y):
        predicted, other = model.stateless_call(trainable, other, x, training=True)
        return loss_fn(y, predicted), other

    @jax.jit
    def train_step(state, batch):
        trainable, other, optimizer_variables = state
        grad_fn = jax.value_and_grad(compute_loss, has_aux=True)
        (loss, other), grads = grad_fn(trainable, other, batch["x"], batch["y"])
        trainable, optimizer_variables = optimizer.stateless_apply(
            optimizer_variables, grads, trainable
        )
        return (trainable, other, optimizer_variables), {"loss": loss}

    state = (
        [v.value for v in model.trainable_variables],
        [v.value for v in model.non_trainable_variables],
        [v.value for v in optimizer.variables],
    )
    return train_step, state, batch(), {}


def ours(rewrite=lambda step: step, transform=lambda grad_fn: grad_fn, dropout=False, **said):
    """The step of funprop, with transforms of its gradient and wrappers around it."""
    parts = [fp.dense(8), fp.relu(), *([fp.dropout(0.25)] if dropout else []), fp.dense(2)]
    objective = fp.objective(fp.serial(*parts), fp.softmax_cross_entropy())
    train = rewrite(fp.step(transform(fp.backprop(objective)), ADAM))
    given = (X, Y)
    params = objective.init(jax.random.key(0), given)

    def loss_fn(params, batch, key=None):
        (total, weight), _ = objective.forward(params, batch, key)
        return total / weight

    said = {"loss_fn": loss_fn, "optimizer": ADAM, **said}
    key = jax.random.key(1) if dropout else None
    return train.update, train.init(params, key), given, said


def cut_by_us():
    cut = lambda n: ours(transform=lambda grad_fn: fp.microbatch(grad_fn, n), dropout=True)
    update, state, given, said = cut(2)
    return update, state, given, {**said, "microbatches": lambda n: cut(n)[0]}


def averaged_by_us():
    wrap = lambda step: fp.skip_nonfinite(fp.ema(step, lambda n: n / (n + 1)))
    return ours(wrap, guarded=True, average=lambda state: state.average)


def scaled_by_us():
    narrow = lambda grad_fn: fp.mixed_precision(grad_fn, jnp.bfloat16)
    return ours(fp.loss_scale, narrow, guarded=True)


RIGHT = {
    "linen": ("flax", linen),
    "nnx": ("flax", nnx),
    "equinox": ("equinox", equinox),
    "keras": ("keras", keras),
    "funprop, cut": ("funprop", cut_by_us),
    "funprop, averaged": ("funprop", averaged_by_us),
    "funprop, scaled": ("funprop", scaled_by_us),
}
