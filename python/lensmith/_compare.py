"""Reward models of different augmentations, compared on the same data."""

from __future__ import annotations

import inspect
import json
import warnings
from collections.abc import Callable, Sequence
from typing import Any

from . import _lensmith
from ._engine import Callback, Engine, LensmithWarning, Progress, core, settings, whole
from ._models import RewardModel, Vae, reward_settings, vae_settings
from ._pairs import PairSet, split
from ._synthesis import synthesis_options
from ._table import Table


class Comparison:
    """What :func:`compare` found."""

    def __init__(self, repeats: list[dict[str, Any]]) -> None:
        #: One entry a split, as in ``repeats`` of the program's run.json: health of the VAE, figures and curves of each arm.
        self.repeats = repeats

    @property
    def arms(self) -> list[str]:
        """Names of the arms."""
        return [arm["arm"] for arm in self.repeats[0]["arms"]]

    @property
    def results(self) -> Table:
        """A row for each split and arm: accuracy and loss on the test pairs, training pairs, steps."""
        columns = ["repeat", "seed", "arm", "accuracy", "loss", "pairs", "steps", "best_epoch", "capped", "seconds"]
        rows = []
        for i, repeat in enumerate(self.repeats):
            for arm in repeat["arms"]:
                rows.append({**arm, "repeat": i, "seed": repeat["seed"], **_held_out(arm)})
        return Table.of_rows(rows, columns)

    def paired(self, baseline: str | None = None, figure: str = "accuracy") -> Table:
        """Differences of each arm to the baseline on the same splits, with standard errors and p of the paired t test.

        Args:
            baseline: By default "matched" where there is such an arm, else the first one.
            figure: "accuracy" (higher is better) or "loss" (lower is better).

        Raises:
            ValueError: No such arm or figure.
        """
        results = self.results
        if figure not in ("accuracy", "loss"):
            raise ValueError(f'figure: expected "accuracy" or "loss", found {figure!r}')
        baseline = baseline or ("matched" if "matched" in self.arms else self.arms[0])
        if baseline not in self.arms:
            raise ValueError(f"baseline: expected one of {', '.join(self.arms)}, found {baseline!r}")
        by_arm = {arm: results[figure][results["arm"] == arm].tolist() for arm in self.arms}
        rows = []
        for arm in self.arms:
            if arm != baseline:
                found, p = _lensmith.paired(by_arm[arm], by_arm[baseline])
                paired = json.loads(found)
                rows.append({"arm": arm, "difference": paired["mean"], **paired, "p": p})
        return Table.of_rows(rows, ["arm", "difference", "standard_error", "p", "splits", "wins"])

    def _repr_html_(self) -> str:
        parts = [self.results._repr_html_()]
        if len(self.arms) > 1 and len(self.repeats) > 1:
            parts.append(f"<p>Paired differences of accuracy:</p>{self.paired()._repr_html_()}")
        return "".join(parts)

    def __repr__(self) -> str:
        return f"Comparison of {', '.join(self.arms)} over {len(self.repeats)} splits\n{self.results}"


def _held_out(arm: dict[str, Any]) -> dict[str, float]:
    return {name: arm["test"][name] for name in ("accuracy", "loss")}


def compare(
    pairs: PairSet,
    arms: Sequence[str] = ("none", "matched", "lens"),
    repeats: int = 3,
    *,
    seeds: int = 1000,
    validation: int = 300,
    fold: int = 4,
    seed: int = 0,
    noise_scales: Sequence[float] = (0.3, 0.6, 1.0),
    vae: dict[str, Any] | None = None,
    synthesis: dict[str, Any] | None = None,
    reward: dict[str, Any] | None = None,
    callbacks: Sequence[Callback] = (),
    progress: bool = False,
    engine: Engine | None = None,
) -> Comparison:
    """Trains a reward model for each arm on random splits of the same pairs: what ``lensmith run --repeats`` does.

    Args:
        pairs: More than ``seeds + validation`` pairs; the rest of each split is the test set.
        arms: What reward models are trained on: "none", "matched", "direct", "gaussian", "mixup", "lens" (or "plain"),
            "residual", "no-divergence" or "margin", each with any of "+noise", "+across", "+ensemble" behind it.
        repeats: Splits.
        seeds: Seed pairs of each split.
        validation: Pairs for early stopping of each split.
        fold: Pairs per seed, the original among them.
        seed: Of the first split; the next ones count up.
        noise_scales: Standard deviations of the input noise that arms with "+noise" choose from.
        vae: Settings of :meth:`Vae.fit`.
        synthesis: Further options of :func:`synthesize`, such as {"sigma2": 0.1}.
        reward: Settings of :meth:`RewardModel.fit`.
        callbacks: Functions that get {"repeat", "step"} before each training.
        progress: Whether to show a progress bar (tqdm).
        engine: The device.

    Raises:
        LensmithError: Too few pairs, an unknown arm, or settings out of range.
    """
    repeats, seed = whole(repeats, "repeats", 1), whole(seed, "seed")
    if isinstance(arms, str) or not arms or not all(isinstance(arm, str) for arm in arms):
        raise TypeError(f"arms: expected a list of names, found {arms!r}")
    told = Progress(callbacks, progress, repeats * (len(arms) + 1), "training")
    found = []
    try:
        for repeat in range(repeats):
            parts = split(pairs, seeds, validation, seed + repeat)

            def on_step(step: str, repeat: int = repeat) -> None:
                done = repeat * (len(arms) + 1) + (["vae", *arms].index(step) if step in arms else 0)
                told.show({"repeat": repeat, "step": step}, done, {})

            made = {"fold": fold, **(synthesis or {})}
            settings = _method(vae or {}, made, reward or {}, seed + repeat, list(noise_scales))
            sides = [parts.seeds._core, parts.validation._core, parts.test._core]
            text = _lensmith.compare_split(core(engine), sides, list(arms), settings, on_step if told.wanted else None)
            figures = json.loads(text)
            for name, arm in zip(arms, figures["arms"], strict=True):
                # As the caller calls it: "lens" is the engine's "plain".
                arm["arm"] = name
            found.append(figures)
    finally:
        told.close()
    comparison = Comparison(found)
    capped = sorted({arm["arm"] for one in found for arm in one["arms"] if arm["capped"]})
    if capped:
        text = f"{', '.join(capped)}: the last evaluation was the best; more epochs may change the comparison"
        warnings.warn(text, LensmithWarning, stacklevel=2)
    return comparison


def _method(
    vae: dict[str, Any], synthesis: dict[str, Any], reward: dict[str, Any], seed: int, noise_scales: list[float]
) -> str:
    """Settings of the whole method, in the words of the fit functions, as the engine reads them."""

    def take(given: dict[str, Any], what: str, defaults: dict[str, Any]) -> dict[str, Any]:
        unknown = sorted(set(given) - set(defaults))
        if unknown:
            raise TypeError(f"{what}: expected any of {', '.join(defaults)}, found {', '.join(unknown)}")
        return {**defaults, **given}

    of_vae = take(vae, "vae", _defaults(Vae.fit))
    of_reward = take(reward, "reward", {**_defaults(RewardModel.fit), "epochs": 20})
    updates = {"epochs": of_reward.pop("epochs")}
    method = settings(
        vae=vae_settings(**of_vae, seed=seed),
        synthesis=json.loads(synthesis_options(**{**synthesis, "seed": seed})),
        reward=reward_settings(**of_reward, updates=updates, seed=seed),
    )
    additions = {"noise": noise_scales, "across_prompts": 0.5, "ensemble": 8, "ensemble_hidden": 64}
    return json.dumps({**json.loads(method), "additions": additions})


def _defaults(fit: Callable[..., Any]) -> dict[str, Any]:
    """The settings that a model is fitted with, and their defaults; a comparison has a seed and a length for all."""
    others = ("seed", "steps", "callbacks", "progress", "engine")
    parameters = inspect.signature(fit).parameters.values()
    return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY and p.name not in others}
