"""scikit-learn's MLPClassifier, one call of partial_fit an epoch."""

import numpy as np
from sklearn.neural_network import MLPClassifier


def mlp(data, seed, report):
    *hidden, classes = data.widths.tolist()
    model = MLPClassifier(
        hidden,
        batch_size=data.order.shape[-1],
        learning_rate_init=1e-3,
        alpha=0.0,
        random_state=seed,
    )
    for _ in data.order:
        model.partial_fit(data.x, data.y, classes=np.arange(classes))
        report(model.loss_, model.predict_log_proba)
    return sum(part.size for part in [*model.coefs_, *model.intercepts_])


digits = large = mlp
