"""How good `funprop train TABLE` is without a setting, against scikit-learn's own: the held-out
score over several splits, of all tables that scikit-learn bundles and a larger one that it makes.

    python -m tests.benchmarks.tables [--splits 10] [--sets iris wine ...]

Accuracy in percent, R^2 times 100 for numbers. All see the same rows; scikit-learn's network is
tuned on the training part by a search, ours is as it comes.
"""

import argparse
import json
import time
import warnings

import jax
import numpy as np
import pyarrow as pa
from sklearn import datasets
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
from sklearn.model_selection import GridSearchCV
from sklearn.neural_network import MLPClassifier, MLPRegressor

from funprop.train.fit import fit
from funprop.train.runs import job
from funprop.train.runs.tables import task_of
from funprop.train.runs.told import confusion

LOADED = ("iris", "wine", "breast_cancer", "digits", "diabetes")
MADE = ("friedman1, 20,000 rows", "classification, 20,000 rows")
GRID = {"alpha": [1e-4, 1e-1, 1.0], "hidden_layer_sizes": [(64,), (64, 32)]}


def numbers_of(name):
    """Inputs and target."""
    if name == MADE[0]:
        return datasets.make_friedman1(20_000, noise=1.0, random_state=0)
    if name == MADE[1]:
        return datasets.make_classification(
            20_000, 30, n_informative=12, n_classes=5, random_state=0
        )
    loaded = getattr(datasets, f"load_{name}")()
    return loaded.data, loaded.target


def as_table(x, y):
    columns = {f"x{i}": column for i, column in enumerate(np.asarray(x, float).T)}
    return pa.table({**columns, "y": y})


def score(task, outputs):
    if task.classes:
        counts = confusion(task, outputs)
        return 100 * float(np.trace(counts) / counts.sum())
    truth = task.test[1]
    return 100 * (1 - float(((outputs - truth) ** 2).mean() / truth.var()))


def ours(task, seed):
    settings = {"model": "mlp", "optimizer": task.optimizer, "learning_rate": task.learning_rate}
    settings |= {"epochs": task.epochs, "batch_size": task.batch_size, "seed": seed}
    settings |= {"backward": "manual", "ordered": None, "nonfinite": "stop"}
    task, network, whole = job._model(task, settings)
    work = job._work(task, whole, settings, all_devices=False)
    result = fit(work.step, work.state, work.data, progress=None, **work.options)
    return score(task, np.asarray(network.forward(result.state.params, task.test[0])[0]))


def theirs(model, task):
    x, y = task.train
    found = model.fit(x, y)
    return 100 * found.score(*task.test)


def measured(name, splits, tuned):
    x, y = numbers_of(name)
    scores = {"funprop": [], "HistGradientBoosting": [], "MLP, tuned": []}
    for seed in range(splits):
        task = task_of(as_table(x, y), name, {"target": ["y"]}, seed=seed)
        boosted = HistGradientBoostingClassifier if task.classes else HistGradientBoostingRegressor
        network = MLPClassifier if task.classes else MLPRegressor
        scores["funprop"].append(ours(task, seed))
        scores["HistGradientBoosting"].append(theirs(boosted(random_state=seed), task))
        if tuned:
            options = {"early_stopping": len(x) > 5000, "max_iter": 300, "random_state": seed}
            search = GridSearchCV(network(**options), GRID, cv=3)
            scores["MLP, tuned"].append(theirs(search, task))
    return {by: found for by, found in scores.items() if found}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--splits", type=int, default=10)
    parser.add_argument("--sets", nargs="+", default=[*LOADED, *MADE])
    parser.add_argument("--no-search", action="store_true")
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    print("| table | " + " | ".join(["funprop", "HistGradientBoosting", "MLP, tuned"]) + " |")
    print("|---|---|---|---|")
    found = {}
    for name in given.sets:
        splits, begun = given.splits if name in LOADED else min(3, given.splits), time.time()
        found[name] = measured(name, splits, not given.no_search)
        cells = [
            f"{np.mean(v):.2f} ± {np.std(v) / max(1, len(v) - 1) ** 0.5:.2f}"
            for v in found[name].values()
        ]
        print(f"| {name} | " + " | ".join(cells) + " |", f"<!-- {time.time() - begun:.0f} s -->")
        jax.clear_caches()
    print(json.dumps(found, default=float))


if __name__ == "__main__":
    main()
