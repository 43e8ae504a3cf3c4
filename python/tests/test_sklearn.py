"""lensmith.sklearn: scikit-learn's own checks, its tools over the estimator, and the engine's figures."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

pytest.importorskip("sklearn")

from sklearn.base import clone
from sklearn.ensemble import BaggingClassifier
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV, GroupKFold, cross_val_score, cross_validate
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer
from sklearn.utils.estimator_checks import parametrize_with_checks
from sklearn.utils.validation import validate_data

import lensmith as lm
from lensmith.sklearn import RewardEstimator

pytestmark = pytest.mark.filterwarnings("ignore::lensmith.LensmithWarning")

DIM = 16
QUICK = {"hidden": 16, "vae_hidden": 16, "epochs": 8, "vae_epochs": 3, "lr": 1e-2, "batch_size": 32}


@pytest.fixture(scope="module")
def data() -> tuple[np.ndarray, np.ndarray]:
    """160 pairs [n, 2, d] and which is preferred, by a linear reward and some noise."""
    rng = np.random.default_rng(0)
    X = rng.standard_normal((160, 2, DIM), dtype=np.float32)
    direction = rng.standard_normal(DIM)
    margins = (X[:, 1] - X[:, 0]) @ direction + 0.5 * rng.standard_normal(160)
    return X, (margins > 0).astype(int)


# scikit-learn's checks.

#: Checks whose data have an odd number of columns, which no pair of embeddings has; OnRows passes them.
_ODD = [
    "check_classifier_data_not_an_array",
    "check_dict_unchanged",
    "check_dont_overwrite_parameters",
    "check_estimators_dtypes",
    "check_estimators_nan_inf",
    "check_estimators_pickle",
    "check_f_contiguous_array_estimator",
    "check_fit2d_1feature",
    "check_fit2d_predict1d",
    "check_fit_score_takes_y",
    "check_methods_sample_order_invariance",
    "check_methods_subset_invariance",
    "check_pipeline_consistency",
    "check_supervised_y_2d",
]
_EXPECTED = {
    **dict.fromkeys(_ODD, "an odd number of columns is no pair of embeddings"),
    "check_classifiers_one_label": "one label is allowed: it says where preferred responses stand",
}


class OnRows(RewardEstimator):
    """Takes rows that are no pairs: a row and its negative are the two responses."""

    def _validated(self, X, y=None, reset=False):
        checks = {"dtype": np.float32, "reset": reset, "ensure_min_samples": 1 + reset}
        if y is None:
            X = validate_data(self, X, **checks)
        else:
            X, y = validate_data(self, X, y, **checks)
        return np.hstack([-X, X]), y

    def predict(self, X):
        margins = self.decision_function(X)
        return self.classes_[(margins > 0).astype(int)]


@parametrize_with_checks([RewardEstimator(**QUICK)], expected_failed_checks=lambda estimator: _EXPECTED)
def test_scikit_learns_checks(estimator, check):
    check(estimator)


@parametrize_with_checks([OnRows(**QUICK)])
def test_scikit_learns_checks_on_rows(estimator, check):
    check(estimator)


# What it computes.


def close(a, b) -> None:
    assert np.isfinite(a).all() and np.allclose(a, b, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("augmentation", ["none", "matched", "lens"])
def test_it_is_the_engines_training(data, augmentation):
    """Step for step what the functions of the package do with the same pairs."""
    X, y = data
    estimator = RewardEstimator(augmentation=augmentation, validation_fraction=0, fold=3, **QUICK).fit(X, y)
    at = np.arange(len(X))
    seeds = lm.PairSet(X[at, y], X[at, 1 - y])
    options = {"hidden": 16, "lr": 1e-2, "batch_size": 32, "patience": None}
    if augmentation == "lens":
        vae = lm.Vae.fit(seeds, hidden=16, epochs=3, batch_size=32)
        model = lm.RewardModel.fit(lm.synthesize(vae, seeds, fold=3), epochs=8, **options)
        x = np.ascontiguousarray(X[:, 0])
        close(estimator.vae_.encode(x)[0], vae.encode(x)[0])
        assert estimator.n_iter_ == 8 * 15
    elif augmentation == "matched":
        model = lm.RewardModel.fit(seeds, steps=8 * 15, **options)
        assert estimator.vae_ is None and estimator.n_iter_ == 8 * 15
    else:
        model = lm.RewardModel.fit(seeds, epochs=8, **options)
        assert estimator.vae_ is None and estimator.n_iter_ == 8 * 5
    close(estimator.reward(X[:, 0]), model.score(np.ascontiguousarray(X[:, 0])))
    assert estimator.score(X, y) == pytest.approx(model.evaluate(seeds)["accuracy"])
    assert estimator.score(X, y) > 0.9


def test_its_answers_agree(data):
    X, y = data
    estimator = RewardEstimator(**QUICK).fit(X[:100], y[:100])
    held_out, labels = X[100:], y[100:]
    margins = estimator.reward(held_out[:, 1]).astype(float) - estimator.reward(held_out[:, 0])
    assert np.array_equal(estimator.decision_function(held_out), margins)
    assert np.array_equal(estimator.predict(held_out), (margins > 0).astype(int))
    assert np.array_equal(estimator.predict(held_out[:, 0]), estimator.reward(held_out[:, 0]))
    probabilities = estimator.predict_proba(held_out)
    close(probabilities.sum(axis=1), 1)
    close(probabilities[:, 1], 1 / (1 + np.exp(-margins)))
    right = estimator.predict(held_out) == labels
    assert estimator.score(held_out, labels) == right.mean() > 0.7
    weights = np.arange(60.0)
    assert estimator.score(held_out, labels, sample_weight=weights) == pytest.approx(
        np.average(right, weights=weights)
    )
    same = np.stack([X[:10, 0]] * 2, axis=1)
    assert estimator.score(same) == estimator.score(same, np.ones(10)) == 0, "a tie is not right either way"


def test_pairs_may_come_as_they_are(data):
    """[n, 2, d], [n, 2 d], a table, lists, other dtypes and a PairSet are the same pairs."""
    pd = pytest.importorskip("pandas")
    X, y = data
    at = np.arange(len(X))
    ordered = np.stack([X[at, y], X[at, 1 - y]], axis=1)
    first = RewardEstimator(**QUICK).fit(X, y)
    rewards = first.reward(X[:, 0])
    table = pd.DataFrame(X.reshape(len(X), -1), columns=[f"{side}{i}" for side in "ab" for i in range(DIM)])
    others = {
        "flat": RewardEstimator(**QUICK).fit(X.reshape(len(X), -1), y),
        "table": RewardEstimator(**QUICK).fit(table, pd.Series(y)),
        "lists": RewardEstimator(**QUICK).fit(X.tolist(), y.tolist()),
        "float64": RewardEstimator(**QUICK).fit(X.astype(np.float64), y),
        "ordered": RewardEstimator(**QUICK).fit(ordered),
        "zeros": RewardEstimator(**QUICK).fit(ordered, np.zeros(len(X), int)),
        "ones": RewardEstimator(**QUICK).fit(ordered[:, ::-1], np.ones(len(X), int)),
        "PairSet": RewardEstimator(**QUICK).fit(lm.PairSet(X[at, y], X[at, 1 - y])),
    }
    for name, other in others.items():
        assert np.array_equal(other.reward(X[:, 0]), rewards), name
        assert other.n_features_in_ == 2 * DIM and other.reward_model_.dim == DIM
        assert other.classes_.tolist() == [0, 1]
    assert np.array_equal(others["table"].predict(table), first.predict(X))
    assert others["table"].feature_names_in_[0] == "a0"
    pairs = lm.PairSet(X[at, y], X[at, 1 - y])
    assert first.score(pairs) == first.score(X, y) == first.score(ordered)
    for labels in (np.array(["no", "yes"])[y], np.array([-1, 1])[y], y.astype(bool)):
        other = RewardEstimator(**QUICK).fit(X, labels)
        assert np.array_equal(other.reward(X[:, 0]), rewards)
        assert (other.predict(X) == labels).mean() == other.score(X, labels) == first.score(X, y)


def test_groups_stay_whole(data):
    X, y = data
    groups = np.repeat(np.arange(20), 8)
    estimator = RewardEstimator(validation_fraction=0.2, **QUICK)
    held_out = estimator._held_out(160, groups, np.random.RandomState(0))
    assert held_out.sum() == 32
    assert all(held_out[groups == group].all() or not held_out[groups == group].any() for group in range(20))
    assert estimator._held_out(160, None, np.random.RandomState(0)).sum() == 32
    assert estimator._held_out(2, None, np.random.RandomState(0)).sum() == 0
    given = estimator.fit(X, y, groups=groups).reward(X[:, 0])
    assert not np.array_equal(given, clone(estimator).fit(X, y).reward(X[:, 0]))
    at = np.arange(len(X))
    pairs = lm.PairSet(X[at, y], X[at, 1 - y], group=groups)
    assert np.array_equal(given, clone(estimator).fit(pairs).reward(X[:, 0]))
    with pytest.raises(ValueError, match="inconsistent numbers of samples"):
        estimator.fit(X, y, groups=groups[:-1])


def test_random_states(data):
    X, y = data

    def rewards(state):
        return RewardEstimator(random_state=state, **QUICK).fit(X, y).reward(X[:, 0])

    assert np.array_equal(rewards(3), rewards(3)) and not np.array_equal(rewards(3), rewards(4))
    assert np.array_equal(rewards(np.random.RandomState(3)), rewards(np.random.RandomState(3)))
    state = np.random.RandomState(3)
    assert not np.array_equal(rewards(state), rewards(state))
    np.random.seed(5)
    first = rewards(None)
    np.random.seed(5)
    assert np.array_equal(rewards(None), first)


def test_early_stopping_keeps_the_best(data):
    X, y = data
    estimator = RewardEstimator(**{**QUICK, "epochs": 400, "patience": 2}).fit(X, y)
    assert estimator.n_iter_ < 400 * 4 * 5
    assert estimator.reward_model_.best_step < estimator.n_iter_


# scikit-learn's tools.


def test_clone_and_parameters(data):
    X, y = data
    estimator = RewardEstimator(fold=3, **QUICK).fit(X, y)
    fresh = clone(estimator)
    assert fresh.get_params() == estimator.get_params() and not hasattr(fresh, "reward_model_")
    assert fresh.set_params(fold=5, head="linear").fold == 5
    with pytest.raises(ValueError, match="Invalid parameter 'folds'"):
        fresh.set_params(folds=5)
    assert fresh.fit(X, y).reward_model_.head == "linear"
    again = pickle.loads(pickle.dumps(estimator))
    assert np.array_equal(again.predict_proba(X), estimator.predict_proba(X))
    assert repr(RewardEstimator(fold=8)) == "RewardEstimator(fold=8)"


def test_grid_search_over_the_method(data):
    X, y = data
    grid = [
        {"augmentation": ["none", "matched"]},
        {"augmentation": ["lens"], "gamma": [0.0, 0.1], "fold": [2, 4], "mode": ["plain", "residual"]},
    ]
    search = GridSearchCV(RewardEstimator(**QUICK), grid, cv=3, error_score="raise").fit(X, y)
    results = search.cv_results_
    assert len(results["params"]) == 10 and np.isfinite(results["mean_test_score"]).all()
    assert len(set(results["mean_test_score"])) > 1
    assert search.best_score_ > 0.8
    assert search.best_estimator_.score(X, y) == search.score(X, y) > 0.8
    without = GridSearchCV(RewardEstimator(augmentation="none", **QUICK), {"head": ["mlp", "linear"]}, cv=3)
    at = np.arange(len(X))
    assert without.fit(np.stack([X[at, y], X[at, 1 - y]], axis=1)).best_score_ > 0.8


def test_cross_validation_and_scorers(data):
    X, y = data
    found = cross_validate(
        RewardEstimator(**QUICK),
        X,
        y,
        cv=3,
        scoring=["accuracy", "roc_auc", "neg_log_loss"],
        error_score="raise",
    )
    assert found["test_accuracy"].mean() > 0.8 and found["test_roc_auc"].mean() > 0.85
    assert found["test_neg_log_loss"].mean() > -0.6
    groups = np.repeat(np.arange(20), 8)
    assert cross_val_score(RewardEstimator(**QUICK), X, y, groups=groups, cv=GroupKFold(3)).mean() > 0.8


def test_pipelines_and_ensembles(data):
    X, y = data
    half = make_pipeline(FunctionTransformer(lambda X: X[..., :8]), RewardEstimator(**QUICK)).fit(X, y)
    assert half[-1].reward_model_.dim == 8 and half.predict(X).shape == (160,)
    flat = X.reshape(len(X), -1)
    bag = BaggingClassifier(RewardEstimator(augmentation="none", **QUICK), 3, random_state=0).fit(flat, y)
    assert bag.score(flat, y) > 0.85


def test_what_it_refuses(data):
    X, y = data
    flat = X.reshape(len(X), -1)
    three = np.repeat([0, 1, 2, 0], 40)
    for settings, arguments, said in (
        (
            {"augmentation": "mixup"},
            (X, y),
            "augmentation: expected one of lens, matched, none, found 'mixup'",
        ),
        (
            {"validation_fraction": 1.0},
            (X, y),
            "validation_fraction: expected 0 or more and below 1, found 1.0",
        ),
        ({}, (np.zeros((10, 3, 4)), None), r"X: expected pairs, \[n, 2, d\], found shape \[10, 3, 4\]"),
        ({}, (flat[:, :-1], y), "side by side, .* found 31 columns"),
        ({}, (X, three), "Only binary classification is supported. The type of the target is multiclass"),
        ({}, (X, y + 0.25 * np.arange(160)), "Unknown label type"),
        ({}, (X, np.full(160, "left")), "found one class"),
        ({}, (X, y[:-1]), "inconsistent numbers of samples"),
        ({}, (X[:1], y[:1]), "minimum of 2 is required"),
        ({}, (np.where(np.arange(160)[:, None, None] == 7, np.nan, X), y), "NaN"),
        ({}, (lm.PairSet(X[:, 0].copy(), X[:, 1].copy()), y), "y: expected None with a PairSet"),
    ):
        with pytest.raises(ValueError, match=said):
            RewardEstimator(**{**QUICK, **settings}).fit(*arguments)
    with pytest.raises(lm.LensmithError, match="multiple of 16"):
        RewardEstimator(**{**QUICK, "hidden": 20}).fit(X, y)
    with pytest.raises(NotFittedError):
        RewardEstimator().reward(X[:, 0])
    estimator = RewardEstimator(**QUICK).fit(X, y)
    with pytest.raises(ValueError, match="X has 30 features, but RewardEstimator is expecting 32 features"):
        estimator.predict(X[..., :15])
    with pytest.raises(ValueError, match="y: expected labels"):
        estimator.score(X, y + 1)
    with pytest.raises(ValueError, match="y: expected None with a PairSet"):
        estimator.score(lm.PairSet(X[:, 0].copy(), X[:, 1].copy()), y)
