"""The estimators are scikit-learn's in all that they promise."""

import pickle

import jax
import numpy as np
import optax
import pytest
from sklearn.base import clone
from sklearn.datasets import load_diabetes, load_iris
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import check_estimator

import funprop as fp
from funprop.estimators import Classifier, Regressor


@pytest.fixture(autouse=True)
def standard_promotion():
    with jax.numpy_dtype_promotion("standard"):  # optax itself promotes
        yield


@pytest.mark.slow
@pytest.mark.parametrize("kind", [Classifier, Regressor])
def test_all_checks_of_scikit_learn_pass(kind, recwarn):
    results = check_estimator(kind(random_state=0), on_fail=None, on_skip=None)
    missed = {r["check_name"]: r["exception"] for r in results if r["status"] != "passed"}
    assert set(missed) <= {"check_array_api_input"}, missed  # which SCIPY_ARRAY_API=1 asks for
    assert len(results) > 50


def test_in_a_pipeline_and_a_search():
    x, y = load_iris(return_X_y=True)
    names = np.array(["setosa", "versicolor", "virginica"])[y]
    whole = make_pipeline(StandardScaler(), Classifier(hidden=(16,), epochs=40, random_state=0))
    grid = {"classifier__learning_rate": [1e-5, 1e-2]}
    search = GridSearchCV(whole, grid, cv=2).fit(x, names)
    assert search.best_params_ == {"classifier__learning_rate": 1e-2} and search.best_score_ > 0.9
    shares = search.predict_proba(x)
    assert (search.classes_[shares.argmax(1)] == search.predict(x)).all()
    again = pickle.loads(pickle.dumps(search))
    assert (again.predict_proba(x) == shares).all()
    scores = cross_val_score(clone(whole), x, names, cv=2)
    assert scores.shape == (2,)


def test_a_model_and_an_optimizer_of_ones_own():
    x, y = load_diabetes(return_X_y=True)
    two = np.outer(y, [1, -1])
    model = fp.serial(fp.dense(8), fp.tanh(), fp.dense(2))
    options = {"model": model, "optimizer": optax.adamw(1e-2), "epochs": 20, "random_state": 0}
    trained = Regressor(**options).fit(x, two)
    assert trained.predict(x).shape == (442, 2) and trained.score(x, two) > 0.4
    assert len(trained.history_) == trained.n_iter_ == 20
    np.testing.assert_array_equal(clone(trained).fit(x, two).predict(x), trained.predict(x))


def two_columns():
    return fp.serial(fp.dense(4), fp.tanh(), fp.dense(2))


def test_a_model_that_a_function_makes_is_pickled():
    x, y = load_iris(return_X_y=True)
    trained = Classifier(model=two_columns, epochs=2, random_state=0).fit(x, y > 0)
    again = pickle.loads(pickle.dumps(trained))
    assert (again.predict_proba(x) == trained.predict_proba(x)).all()


@pytest.mark.parametrize("kind", [Classifier, Regressor])
def test_a_weight_is_so_many_examples_alike(kind):
    x, y = load_iris(return_X_y=True)
    weights = np.arange(150) % 4
    options = {"epochs": 5, "batch_size": 1000, "random_state": 0}
    weighed = kind(**options).fit(x, y, sample_weight=weights / 8)
    repeated = kind(**options).fit(x.repeat(weights, 0), y.repeat(weights))
    for fitted in (weighed, repeated):
        assert jax.tree.leaves(fitted.params_)[0].dtype == np.float64
    np.testing.assert_allclose(weighed.predict(x), repeated.predict(x), rtol=1e-12)
    single = kind(**options).fit(x.astype(np.float32), y)
    assert jax.tree.leaves(single.params_)[0].dtype == np.float32


def test_what_cannot_be_is_refused():
    x = np.arange(8.0).reshape(4, 2)
    with pytest.raises(ValueError, match="y must have two classes at least, got 1 class: a"):
        Classifier().fit(x, ["a"] * 4)
    with pytest.raises(ValueError, match="unknown optimizer 'lion', there are adam, adamw, sgd"):
        Classifier(optimizer="lion").fit(x, [0, 1, 0, 1])
    with pytest.raises(ValueError, match="epochs must be at least 1"):
        Regressor(epochs=0).fit(x, [0.0, 1, 0, 1])
    with pytest.raises(ValueError, match="learning_rate must be above 0, got -1"):
        Regressor(learning_rate=-1).fit(x, [0.0, 1, 0, 1])
    with pytest.raises(TypeError, match=r"hidden must be widths of layers, as \(64,\) is, got 8"):
        Regressor(hidden=8).fit(x, [0.0, 1, 0, 1])
    with pytest.raises(ValueError, match=r"outputs of shape \(4, 3\), got \(4, 2\)"):
        Classifier(model=two_columns()).fit(x, [0, 1, 2, 1])
    with pytest.raises(ValueError, match=r"went wrong, the loss is .*: diverged: lower learning_"):
        Regressor(optimizer="sgd", learning_rate=1e30).fit(x, [0.0, 1, 0, 1])
    with pytest.raises(ValueError, match=r"[Ss]ample.weight"):
        Regressor().fit(x, [0.0, 1, 0, 1], sample_weight=np.zeros(4))
