"""Draws the pictures of docs/watch.md: `python docs/flow_pictures.py`."""

from pathlib import Path

import jax
import optax
from sklearn.datasets import load_digits

import funprop as fp

IMAGES = Path(__file__).parent / "images"
NETWORKS = {
    "healthy": (fp.mlp(64, 64, 10), optax.adam(1e-3)),
    "dead": (fp.mlp(64, 64, 10), optax.sgd(3.0)),
    "vanishing": (fp.mlp(*[64] * 6, 10, activation=fp.sigmoid), optax.sgd(0.1)),
}


def main() -> None:
    pixels, digits = load_digits(return_X_y=True)
    data = (pixels / 16).astype("float32"), digits.astype("int32")
    for name, (model, optimizer) in NETWORKS.items():
        objective = fp.objective(model, fp.softmax_cross_entropy())
        train = fp.step(fp.backprop(objective), optimizer)
        state = train.init(objective.init(jax.random.key(0), data), None)
        seen = fp.watch(every=25)
        fp.fit(train, state, data, epochs=12, batch_size=64, progress=None, watch=seen)
        where = "dense*" if name == "vanishing" else None
        fp.gradient_flow(seen, IMAGES / f"flow-{name}.png", where=where, title=name)


if __name__ == "__main__":
    main()
