"""funprop, as its README writes it."""

import jax
import optax

import funprop as fp


def train(objective, predict, optimizer, data, seed, report):
    step = fp.step(fp.backprop(objective), optimizer)
    state = step.init(objective.init(jax.random.key(seed), (data.x, data.y)), jax.random.key(seed))
    result = fp.fit(
        step,
        state,
        (data.x, data.y),
        epochs=len(data.order),
        batch_size=data.order.shape[-1],
        seed=seed,
        callbacks=[lambda row, state: report(row["loss"], lambda x: predict(state.params, x))],
        progress=None,
    )
    return sum(leaf.size for leaf in jax.tree.leaves(result.state.params))


def classifier(model, data, seed, report):
    objective = fp.objective(model, fp.softmax_cross_entropy())
    predict = jax.jit(lambda params, x: model.forward(params, x)[0])
    return train(objective, predict, optax.adam(1e-3), data, seed, report)


def mlp(data, seed, report):
    return classifier(fp.mlp(*data.widths.tolist()), data, seed, report)


digits = large = mlp


def cnn(data, seed, report):
    model = fp.serial(
        fp.conv(32, 3),
        fp.relu(),
        fp.conv(64, 3),
        fp.relu(),
        fp.max_pool(2),
        fp.flatten(),
        fp.dense(10),
    )
    return classifier(model, data, seed, report)


def gpt(data, seed, report):
    model = fp.gpt(256, features=128, depth=4, heads=4, longest=data.x.shape[1])
    predict = jax.jit(lambda params, x: model.forward(params, x)[0] @ params.embedding.table.T)
    optimizer = optax.adamw(1e-3, weight_decay=0.1)
    return train(fp.language_model(model, 256), predict, optimizer, data, seed, report)
