"""A reward model as a scikit-learn estimator: cross-validation and grid search over the method's settings.

Data are pairs of embeddings, ``X`` [n, 2, d]: ``X[i, 0]`` and ``X[i, 1]`` are two responses to one prompt,
and ``y[i]`` says which is preferred, 0 the first and 1 the second::

    from sklearn.model_selection import GridSearchCV
    from lensmith.sklearn import RewardEstimator

    X = np.stack([chosen, rejected], axis=1)             # without y, the first of every pair is preferred
    search = GridSearchCV(RewardEstimator(), {"augmentation": ["matched", "lens"], "gamma": [0.0, 0.1]}, cv=5)
    search.fit(X)
    rewards = search.best_estimator_.reward(candidates)  # [n, d] -> [n]

Compare ``augmentation="lens"`` with ``"matched"``, which takes as many optimiser steps on the original pairs
alone: against ``"none"`` a gain may come of the longer training.
"""

# Scikit-learn is not seen by the type checker.
# mypy: disallow-subclassing-any=False

from __future__ import annotations

from numbers import Integral
from typing import Any, Self

import numpy as np

try:
    import sklearn  # noqa: F401
except ImportError as error:
    raise ImportError("lensmith.sklearn needs scikit-learn: pip install scikit-learn") from error
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils import check_array, check_consistent_length, check_random_state, column_or_1d
from sklearn.utils.multiclass import check_classification_targets, type_of_target
from sklearn.utils.validation import check_is_fitted, validate_data

from ._models import RewardModel, Vae
from ._pairs import PairSet
from ._synthesis import synthesize

__all__ = ["RewardEstimator"]

_AUGMENTATIONS = ("lens", "matched", "none")


class RewardEstimator(ClassifierMixin, BaseEstimator):
    """Learns from pairs which response is preferred, by the Bradley-Terry model of a reward.

    As a classifier it tells which of two responses is preferred. ``X`` is [n, 2, d], or [n, 2 d] with the two
    embeddings of a pair side by side for tools that want a table, or, without ``y``, a
    :class:`lensmith.PairSet`. Labels may be any two; the smaller one means the first response.

    Args:
        augmentation: "lens" (original and synthetic pairs), "matched" (the original pairs, with as many
            steps), or "none".
        fold: Pairs per original pair with "lens"; passes over the pairs for each of "none" with "matched".
        mode: Of synthesis, "plain" or "residual".
        sigma2: Variance of the perturbation.
        gamma: Weight of the divergence in the VAE's loss.
        beta: Weight of its KL term.
        vae_hidden: Width of the VAE's hidden layers, a multiple of 16.
        latent: Dimension of its latent space, a multiple of 16.
        vae_epochs: Passes over the pairs that it trains for.
        vae_lr: Its learning rate.
        head: "mlp" or "linear".
        hidden: Width of an MLP's hidden layer, a multiple of 16; in an ensemble of 32.
        ensemble: Heads, whose mean is the reward.
        epochs: At most so many passes of the reward model.
        lr: Learning rate of the reward model.
        batch_size: Pairs per step, of both models.
        weight_decay: Of the reward model.
        input_noise: Standard deviation of noise on its standardised inputs.
        validation_fraction: Share of the pairs that early stopping goes by and nothing is trained on; 0 for
            none, and then all epochs are taken.
        patience: Epochs without a lower validation loss after which training stops.
        random_state: A whole number, a ``numpy.random.RandomState``, or None for numpy's global one.

    Attributes:
        reward_model_: The :class:`lensmith.RewardModel`.
        vae_: The :class:`lensmith.Vae`, with "lens"; else None.
        classes_: The two labels, [2].
        n_features_in_: Values of a pair, 2 d.
        n_iter_: Optimiser steps that the reward model took.
    """

    def __init__(
        self,
        *,
        augmentation: str = "lens",
        fold: int = 4,
        mode: str = "plain",
        sigma2: float = 0.01,
        gamma: float = 0.1,
        beta: float = 1e-2,
        vae_hidden: int = 64,
        latent: int = 16,
        vae_epochs: int = 100,
        vae_lr: float = 1e-4,
        head: str = "mlp",
        hidden: int = 256,
        ensemble: int = 1,
        epochs: int = 20,
        lr: float = 1e-4,
        batch_size: int = 128,
        weight_decay: float = 0.0,
        input_noise: float = 0.0,
        validation_fraction: float = 0.1,
        patience: int = 5,
        random_state: Any = 0,
    ) -> None:
        self.augmentation = augmentation
        self.fold = fold
        self.mode = mode
        self.sigma2 = sigma2
        self.gamma = gamma
        self.beta = beta
        self.vae_hidden = vae_hidden
        self.latent = latent
        self.vae_epochs = vae_epochs
        self.vae_lr = vae_lr
        self.head = head
        self.hidden = hidden
        self.ensemble = ensemble
        self.epochs = epochs
        self.lr = lr
        self.batch_size = batch_size
        self.weight_decay = weight_decay
        self.input_noise = input_noise
        self.validation_fraction = validation_fraction
        self.patience = patience
        self.random_state = random_state

    def fit(self, X: Any, y: Any = None, groups: Any = None) -> Self:
        """Trains on pairs.

        Args:
            X: [n, 2, d], [n, 2 d], or a ``PairSet``.
            y: [n], which response of each pair is preferred; None if it is the first of all.
            groups: [n], the prompt of each pair: pairs of one prompt are validated on together or trained on
                together. By default those of a ``PairSet`` that has them.

        Raises:
            ValueError: Data or settings that do not fit.
            LensmithError: Settings that the engine refuses.
        """
        if self.augmentation not in _AUGMENTATIONS:
            raise ValueError(
                f"augmentation: expected one of {', '.join(_AUGMENTATIONS)}, found {self.augmentation!r}"
            )
        if not 0 <= self.validation_fraction < 1:
            raise ValueError(
                f"validation_fraction: expected 0 or more and below 1, found {self.validation_fraction}"
            )
        if isinstance(X, PairSet) and groups is None:
            groups = X.group
        rows, y = self._validated(X, y, reset=True)
        second = self._second(y, len(rows), reset=True)
        dim = rows.shape[1] // 2
        sides = rows.reshape(len(rows), 2, dim)
        at = np.arange(len(rows))
        chosen, rejected = sides[at, second.astype(int)], sides[at, 1 - second.astype(int)]

        random = check_random_state(self.random_state)
        seed = (
            int(self.random_state)
            if isinstance(self.random_state, Integral)
            else int(random.randint(2**31 - 1))
        )
        held_out = self._held_out(len(rows), groups, random)
        # Rows are copied: the models keep nothing of X.
        seeds = PairSet(chosen[~held_out], rejected[~held_out])
        validation = PairSet(chosen[held_out], rejected[held_out]) if held_out.any() else None
        self._train(seeds, validation, seed)
        return self

    def _train(self, seeds: PairSet, validation: PairSet | None, seed: int) -> None:
        """Trains as the arms of :func:`lensmith.compare` are trained."""
        of_seeds = -(-len(seeds) // self.batch_size)
        options: dict[str, Any] = {
            name: getattr(self, name)
            for name in ("head", "hidden", "ensemble", "lr", "batch_size", "weight_decay", "input_noise")
        }
        options |= {"validation": validation, "validate_every": of_seeds, "seed": seed}
        patience = self.patience if validation is not None else None
        self.vae_ = None
        if self.augmentation == "lens":
            self.vae_ = Vae.fit(
                seeds,
                hidden=self.vae_hidden,
                latent=self.latent,
                epochs=self.vae_epochs,
                lr=self.vae_lr,
                batch_size=self.batch_size,
                beta=self.beta,
                gamma=self.gamma,
                seed=seed,
            )
            pairs = synthesize(self.vae_, seeds, self.fold, sigma2=self.sigma2, mode=self.mode, seed=seed)
            self.reward_model_ = RewardModel.fit(pairs, epochs=self.epochs, patience=patience, **options)
        elif self.augmentation == "matched":
            steps = self.epochs * -(-len(seeds) * self.fold // self.batch_size)
            patience = None if patience is None else patience * self.fold
            self.reward_model_ = RewardModel.fit(seeds, steps=steps, patience=patience, **options)
        else:
            self.reward_model_ = RewardModel.fit(seeds, epochs=self.epochs, patience=patience, **options)
        self.n_iter_ = self.reward_model_.steps

    def _held_out(self, n: int, groups: Any, random: np.random.RandomState) -> np.ndarray:
        """Which pairs are for validation: whole groups, and at least two pairs are left."""
        labels = np.arange(n) if groups is None else column_or_1d(groups)
        check_consistent_length(np.empty(n), labels)
        _, of_pair, sizes = np.unique(labels, return_inverse=True, return_counts=True)
        wanted = min(round(self.validation_fraction * n), n - 2)
        # Groups in random order, as long as they fit.
        order = random.permutation(len(sizes))
        fits = np.cumsum(sizes[order]) <= wanted
        held_out: np.ndarray = np.isin(of_pair, order[fits])
        return held_out

    def _validated(self, X: Any, y: Any = None, reset: bool = False) -> tuple[np.ndarray, Any]:
        """Pairs as float32 [n, 2 d], and the labels."""
        if isinstance(X, PairSet):
            if y is not None:
                raise ValueError(
                    "y: expected None with a PairSet, whose chosen responses are preferred, found labels"
                )
            X = np.hstack([X.chosen.float32(), X.rejected.float32()])
        elif getattr(X, "ndim", None) != 2:
            X = check_array(X, dtype=np.float32, allow_nd=True, input_name="X", estimator=self)
            if X.ndim == 3:
                if X.shape[1] != 2:
                    raise ValueError(f"X: expected pairs, [n, 2, d], found shape {list(X.shape)}")
                X = X.reshape(len(X), -1)
        checks: dict[str, Any] = {
            "dtype": np.float32,
            "order": "C",
            "reset": reset,
            "ensure_min_samples": 1 + reset,
        }
        if y is None:
            X = validate_data(self, X, **checks)
        else:
            X, y = validate_data(self, X, y, **checks)
        if reset and X.shape[1] % 2:
            raise ValueError(
                "X: expected pairs, [n, 2, d], or their two embeddings side by side, [n, 2 d], found "
                f"{X.shape[1]} columns"
            )
        return X, y

    def _second(self, y: Any, n: int, reset: bool = False) -> np.ndarray:
        """Whether the second response is preferred."""
        if y is None:
            if reset:
                self.classes_ = np.array([0, 1])
            return np.zeros(n, bool)
        y = column_or_1d(y, warn=True)
        if reset:
            check_classification_targets(y)
            found = type_of_target(y, input_name="y", raise_unknown=True)
            if found != "binary":
                raise ValueError(
                    f"Only binary classification is supported. The type of the target is {found}."
                )
            classes = np.unique(y)
            if len(classes) == 1:
                if classes.dtype.kind not in "biuf" or classes[0] not in (0, 1):
                    raise ValueError(
                        f"y: expected labels of two classes, or 0 and 1, found one class, {classes[0]!r}"
                    )
                classes = np.array([0, 1], classes.dtype)
            self.classes_ = classes
        unknown = np.setdiff1d(y, self.classes_)
        if unknown.size:
            raise ValueError(
                f"y: expected labels {self.classes_[0]!r} and {self.classes_[1]!r}, found {unknown[0]!r}"
            )
        second: np.ndarray = y == self.classes_[1]
        return second

    def reward(self, X: Any) -> np.ndarray:
        """Rewards float32 [n] of responses ``X`` [n, d]."""
        check_is_fitted(self)
        X = check_array(X, dtype=np.float32, order="C", input_name="X", estimator=self)
        rewards: np.ndarray = self.reward_model_.score(X)
        return rewards

    def decision_function(self, X: Any) -> np.ndarray:
        """The reward of the second response less that of the first, float64 [n], of pairs ``X``."""
        check_is_fitted(self)
        rows, _ = self._validated(X)
        rewards = self.reward_model_.score(rows.reshape(2 * len(rows), -1)).astype(np.float64).reshape(-1, 2)
        margins: np.ndarray = rewards[:, 1] - rewards[:, 0]
        return margins

    def predict_proba(self, X: Any) -> np.ndarray:
        """The probabilities of pairs ``X`` that the first and the second response is preferred, [n, 2]."""
        margins = self.decision_function(X)
        second = np.exp(-np.logaddexp(0, -margins))
        return np.column_stack([np.exp(-np.logaddexp(0, margins)), second])

    def predict(self, X: Any) -> np.ndarray:
        """The label of the preferred response of each pair; of single responses [n, d], their rewards."""
        check_is_fitted(self)
        if np.ndim(X) == 2 and np.shape(X)[1] == self.reward_model_.dim:
            return self.reward(X)
        labels: np.ndarray = self.classes_[(self.decision_function(X) > 0).astype(int)]
        return labels

    def score(self, X: Any, y: Any = None, sample_weight: Any = None) -> float:
        """Pair accuracy: the share of pairs whose preferred response has the strictly higher reward."""
        check_is_fitted(self)
        margins = self.decision_function(X)
        if isinstance(X, PairSet) and y is not None:
            raise ValueError(
                "y: expected None with a PairSet, whose chosen responses are preferred, found labels"
            )
        second = self._second(y, len(margins))
        check_consistent_length(margins, second, sample_weight)
        right = np.where(second, margins > 0, margins < 0)
        return float(np.average(right, weights=sample_weight))

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.three_d_array = True
        tags.target_tags.required = False
        tags.classifier_tags.multi_class = False
        return tags
