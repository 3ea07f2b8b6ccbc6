"""A network on data of one's own: verified, trained, saved, and asked.

The same from the command line, with a report and a picture: `funprop train examples.own_data:task`.
"""

import numpy as np

import funprop as fp

rng = np.random.default_rng(0)
x = rng.normal(size=(1000, 4)).astype("float32")  # yours: any arrays
y = (x[:, 0] * x[:, 1] > 0).astype("int32")

model = fp.mlp(32, 32, 2)
task = fp.Task(
    train=(x[:800], y[:800]),
    test=(x[800:], y[800:]),
    model=model,
    loss=fp.softmax_cross_entropy(),
    learning_rate=1e-2,
)

if __name__ == "__main__":
    from funprop.estimators import Classifier

    network = Classifier(model=model, learning_rate=1e-2, epochs=30, random_state=0)
    network.fit(*task.train)
    print(f"held-out accuracy {network.score(*task.test):.1%}")
    print(network.predict_proba(x[-3:]).round(3))
