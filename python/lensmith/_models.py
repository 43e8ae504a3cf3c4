"""The VAE and the reward model."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self, cast

import numpy as np

from . import _lensmith
from ._engine import Callback, Engine, Progress, core, require_kind, settings, still_open, warn
from ._lensmith import DeviceArray, Embeddings
from ._pairs import PairSet
from ._synthesis import SyntheticPairs, synthesis_options
from ._table import Table
from .hub import HubMixin

State = Mapping[str, Any]


class _Model(HubMixin):
    """What both models share: their parameters, and files of them."""

    _core: Any
    _layouts: ClassVar[tuple[tuple[str, ...], ...]]
    _compiled: ClassVar[Any]
    #: The device that the model was trained on, which it computes on by default while it is open.
    _engine: Engine | None = None
    #: What the file says of the model, such as its training settings as JSON under "lensmith.training".
    metadata: dict[str, str]

    @classmethod
    def _of(cls, compiled: Any) -> Self:
        model = cls.__new__(cls)
        model._core, model.metadata = compiled, dict(compiled.metadata)
        model._start()
        return model

    def _start(self) -> None:
        """Sets what a model has that was not trained here."""

    @property
    def dim(self) -> int:
        """Values of an embedding, d."""
        return int(self._core.size[0])

    def state_dict(self) -> dict[str, np.ndarray]:
        """Parameters under their names in PyTorch, float32; for raw embeddings."""
        layers = self._core.layers()
        names = next(layout for layout in self._layouts if len(layout) == len(layers))
        state = {}
        for name, (weight, bias, outputs, inputs) in zip(names, layers, strict=True):
            state[f"{name}.weight"] = np.frombuffer(weight, np.float32).reshape(outputs, inputs)
            state[f"{name}.bias"] = np.frombuffer(bias, np.float32)
        return state

    @classmethod
    def from_state_dict(cls, state: State, metadata: Mapping[str, str] | None = None) -> Self:
        """A model of parameters that are named and shaped as :meth:`state_dict` has them: numpy arrays or torch tensors.

        Raises:
            ValueError: Parameters that are missing, not finite, or of sizes that do not fit.
        """
        if not isinstance(state, Mapping):
            raise TypeError(f"state: expected arrays under their names, found {type(state).__name__}")
        layouts = [layout for layout in cls._layouts if f"{layout[0]}.weight" in state]
        names = layouts[0] if layouts else cls._layouts[0]
        layers = []
        for name in names:
            weight = _parameter(state, f"{name}.weight", 2)
            bias = np.zeros(len(weight), np.float32)
            if f"{name}.bias" in state or name != "score":
                bias = _parameter(state, f"{name}.bias", 1)
            layers.append((weight, bias.reshape(1, -1)))
        return cls._of(cls._compiled.of_layers(layers, dict(metadata or {})))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes a checkpoint: a PyTorch state dict in safetensors, which the program reads too."""
        self._core.save(os.fspath(path), {k: v for k, v in self.metadata.items() if k != "lensmith.kind"})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Reads a checkpoint, of this package, the program, or plain PyTorch.

        Raises:
            LensmithError: Not a checkpoint of such a model.
        """
        return cls._of(cls._compiled.load(os.fspath(path)))

    def to_torch(self) -> Any:
        """The model as a ``torch.nn.Module`` for raw embeddings, with the state dict of the checkpoint."""
        from .torch import to_module

        return to_module(cast("Vae | RewardModel", self))

    @classmethod
    def from_torch(cls, module: Any) -> Self:
        """A model of a module as :meth:`to_torch` makes it, or of the same ``torch.nn.Sequential``."""
        from .torch import from_module

        model = from_module(module)
        if not isinstance(model, cls):
            raise TypeError(f"module: expected a {cls.__name__}, found the layers of a {type(model).__name__}")
        return model

    def __reduce__(self) -> tuple[Any, ...]:
        return _unpickle, (type(self), self.state_dict(), self.metadata)


def _unpickle(kind: type[_Model], state: State, metadata: Mapping[str, str]) -> _Model:
    return kind.from_state_dict(state, metadata)


def _parameter(state: State, name: str, dimensions: int) -> np.ndarray:
    if name not in state:
        raise ValueError(f"state: no {name}; found {', '.join(sorted(state)) or 'nothing'}")
    array = _numbers(state[name], name)
    if array.ndim != dimensions:
        raise ValueError(f"{name}: expected {dimensions} dimensions, found shape {list(array.shape)}")
    return array


def _numbers(value: Any, name: str) -> np.ndarray:
    """A contiguous float32 array."""
    if hasattr(value, "detach"):
        value = value.detach().float().cpu().numpy()
    try:
        return np.asarray(value, np.float32, order="C")
    except (TypeError, ValueError, OverflowError):
        raise TypeError(f"{name}: expected an array of numbers, found {value!r}") from None


@dataclass(frozen=True, repr=False)
class Health:
    """Whether a VAE has learnt, and whether its latent space is one to perturb in; ``str()`` is a readable page."""

    #: All figures, as ``lensmith train-vae --json`` has them under "health".
    figures: dict[str, Any]

    @property
    def warnings(self) -> list[str]:
        """What is wrong with it, in sentences; none if all is well."""
        return [str(warning) for warning in self.figures.get("warnings", [])]

    def to_dict(self) -> dict[str, Any]:
        """All figures."""
        return self.figures

    def __str__(self) -> str:
        lines = []
        for name, value in self.figures.items():
            if isinstance(value, int | float) and not isinstance(value, bool):
                lines.append(f"{name.replace('_', ' ')}: {value:.4g}")
        return "\n".join([*lines, *(f"warning: {warning}" for warning in self.warnings)])

    __repr__ = __str__


class Vae(_Model):
    """A variational auto-encoder of embeddings (Tao, Du and Li 2025, section 4); made by :meth:`fit` or :meth:`load`.

    It takes raw embeddings: the standardisation is a part of its first and last layers.
    """

    _layouts = (("encoder.0", "encoder.2", "decoder.0", "decoder.2"),)
    _compiled = _lensmith.Vae

    def _start(self) -> None:
        self._seeds: PairSet | None = None
        #: The losses of each epoch: columns epoch, total, reconstruction, kl and divergence. Empty for a loaded model.
        self.history = _losses([])

    @classmethod
    def fit(
        cls,
        pairs: PairSet,
        *,
        hidden: int = 64,
        latent: int = 16,
        epochs: int = 100,
        lr: float = 1e-4,
        batch_size: int = 128,
        beta: float = 1e-2,
        gamma: float = 0.1,
        reconstruction: str = "mean",
        divergence: str = "w2",
        seed: int = 0,
        callbacks: Sequence[Callback] = (),
        progress: bool = False,
        engine: Engine | None = None,
    ) -> Vae:
        """Trains on seed pairs; the defaults are the paper's, and give the model of ``lensmith train-vae``.

        Args:
            pairs: Two or more seed pairs.
            hidden: Width of the hidden layers, a multiple of 16.
            latent: Dimension of the latent space, a multiple of 16.
            epochs: Passes over the pairs.
            lr: Learning rate of Adam.
            batch_size: Pairs per step.
            beta: Weight of the KL term.
            gamma: Weight of the divergence between the posteriors of a pair.
            reconstruction: Reduction of the squared error over dimensions, "mean" or "sum".
            divergence: "w2" (the 2-Wasserstein distance) or "w2-squared".
            seed: Of initialisation, order and noise.
            callbacks: Functions that get {"epoch", "total", "reconstruction", "kl", "divergence"} after every epoch; an
                exception in one ends the training and is raised.
            progress: Whether to show a progress bar (tqdm).
            engine: The device.

        Raises:
            TypeError: A setting of another type.
            ValueError: A setting that is negative, not finite, or a word that it does not have.
            LensmithError: Settings out of the engine's range, or a loss that is no longer finite.
        """
        require_kind(pairs, PairSet, "pairs")
        engine = engine or still_open(pairs._engine)
        options = settings(
            **vae_settings(
                hidden=hidden,
                latent=latent,
                epochs=epochs,
                lr=lr,
                batch_size=batch_size,
                beta=beta,
                gamma=gamma,
                reconstruction=reconstruction,
                divergence=divergence,
                seed=seed,
            )
        )
        told = Progress(callbacks, progress, epochs, "epoch")

        def on_epoch(epoch: int, loss: str) -> None:
            figures = {"epoch": epoch, **json.loads(loss)}
            told.show(figures, epoch, {"loss": figures["total"]})

        try:
            made, history = _lensmith.Vae.fit(core(engine), pairs._core, options, on_epoch if told.wanted else None)
        finally:
            told.close()
        vae = cls._of(made)
        vae._engine, vae._seeds, vae.history = engine, pairs, _losses(json.loads(history))
        for warning in vae.health().warnings:
            warn(warning)
        return vae

    @property
    def hidden(self) -> int:
        """Width of the hidden layers."""
        return int(self._core.size[1])

    @property
    def latent(self) -> int:
        """Dimension of the latent space."""
        return int(self._core.size[2])

    def health(
        self,
        validation: PairSet | None = None,
        *,
        seeds: PairSet | None = None,
        engine: Engine | None = None,
        **synthesis: Any,
    ) -> Health:
        """Figures that tell whether the model has learnt, collapsed, or was still improving.

        Args:
            validation: Held-out pairs to look at as well.
            seeds: The pairs that it was trained on; known after :meth:`fit`.
            engine: The device.
            **synthesis: Options of :func:`synthesize`, such as ``sigma2``, that samples are made with.

        Raises:
            ValueError: A model that was loaded, without ``seeds``.
        """
        seeds = self._seeds if seeds is None else seeds
        if seeds is None:
            raise ValueError("seeds: expected the pairs that the model was trained on, since it was loaded; found none")
        require_kind(seeds, PairSet, "seeds")
        if validation is not None:
            require_kind(validation, PairSet, "validation")
        losses = [{k: v for k, v in row.items() if k != "epoch"} for row in self.history.rows()]
        held_out = None if validation is None else validation._core
        options = synthesis_options(**synthesis)
        found = self._core.health(core(engine or still_open(self._engine)), seeds._core, held_out, options, json.dumps(losses))
        return Health(json.loads(found))

    def encode(self, x: Any, *, engine: Engine | None = None) -> tuple[Any, Any]:
        """Means and logarithms of the variances of the posteriors of embeddings ``x`` [n, d]; float32 [n, latent] each.

        They are numpy arrays; of an array on the engine's GPU (DLPack or ``__cuda_array_interface__``, read where it lies)
        both stay there, as :class:`DeviceArray`.
        """
        mu, logvar = self._core.encode(core(engine or still_open(self._engine)), _matrix(x))
        return _given(mu), _given(logvar)

    def decode(self, z: Any, *, engine: Engine | None = None) -> Any:
        """Embeddings float32 [n, d] of latents ``z`` [n, latent], float32: a numpy array, or a :class:`DeviceArray` of latents
        on the engine's GPU."""
        return _given(self._core.decode(core(engine or still_open(self._engine)), _matrix(z)))

    def __repr__(self) -> str:
        return f"Vae(dim={self.dim}, hidden={self.hidden}, latent={self.latent})"


class RewardModel(_Model):
    """A reward model on embeddings: an MLP or a linear head, or the mean of several; made by :meth:`fit` or :meth:`load`.

    It takes raw embeddings: the standardisation is a part of its first layer.
    """

    _layouts = (("0", "2"), ("score",))
    _compiled = _lensmith.RewardModel

    def _start(self) -> None:
        #: The learning curve: columns epoch, step, train_loss, accuracy and loss (of the validation pairs).
        self.history = _curve([])
        #: The epoch that the model kept lies in, and the steps behind it; all steps taken; whether the last evaluation that
        #: was allowed was the best. None for a model that was loaded.
        self.best_epoch: int | None = None
        self.best_step: int | None = None
        self.steps: int | None = None
        self.capped: bool | None = None

    @classmethod
    def fit(
        cls,
        pairs: PairSet | SyntheticPairs,
        validation: PairSet | None = None,
        *,
        head: str = "mlp",
        hidden: int = 256,
        ensemble: int = 1,
        epochs: int | None = None,
        steps: int | None = None,
        lr: float = 1e-4,
        batch_size: int = 128,
        patience: int | None = 5,
        validate_every: int | None = None,
        weight_decay: float = 0.0,
        input_noise: float = 0.0,
        across_prompts: float = 0.0,
        seed: int = 0,
        callbacks: Sequence[Callback] = (),
        progress: bool = False,
        engine: Engine | None = None,
    ) -> RewardModel:
        """Trains on pairs by the Bradley-Terry loss; on synthetic pairs without making them.

        Args:
            pairs: Real pairs, or :func:`synthesize`'s: those are trained on as latents, which costs a fraction. Of a folder of
                synthetic pairs the embeddings are standardised by its originals, as the program does it.
            validation: Pairs for early stopping; of the models that are evaluated, the one of the lowest loss is kept.
            head: "mlp" or "linear".
            hidden: Width of an MLP's hidden layer, a multiple of 16; in an ensemble of 32.
            ensemble: Heads that are trained at once; the reward is their mean.
            epochs: At most so many passes over the pairs, 20 by default.
            steps: At most so many optimiser steps, instead of epochs.
            lr: Learning rate of Adam.
            batch_size: Pairs per step.
            patience: Epochs without a lower validation loss after which training stops; None trains to the end.
            validate_every: Steps between evaluations; by default an epoch.
            weight_decay: Decoupled weight decay (AdamW).
            input_noise: Standard deviation of noise on the standardised embeddings of every step.
            across_prompts: Share of the pairs whose rejected response is another pair's, drawn in every epoch.
            seed: Of initialisation, order and noise.
            callbacks: Functions that get {"epoch", "step", "train_loss", "accuracy", "loss"} at every evaluation; an exception
                in one ends the training and is raised.
            progress: Whether to show a progress bar (tqdm).
            engine: The device; by default that of the pairs, or the default one.

        Raises:
            TypeError: A setting of another type.
            ValueError: A setting that is negative, not finite, or a word that it does not have.
            LensmithError: Settings out of the engine's range, or a loss that is no longer finite.
        """
        if epochs is not None and steps is not None:
            raise ValueError(f"epochs, steps: expected one of them, found {epochs} and {steps}")
        if not isinstance(pairs, SyntheticPairs):
            require_kind(pairs, PairSet, "pairs")
        engine = engine or still_open(pairs._engine)
        if validation is not None:
            require_kind(validation, PairSet, "validation")
        epochs = 20 if epochs is None and steps is None else epochs
        updates = {"epochs": epochs} if steps is None else {"steps": steps}
        options = settings(
            **reward_settings(
                updates=updates,
                head=head,
                hidden=hidden,
                ensemble=ensemble,
                lr=lr,
                batch_size=batch_size,
                patience=patience,
                validate_every=validate_every,
                weight_decay=weight_decay,
                input_noise=input_noise,
                across_prompts=across_prompts,
                seed=seed,
            )
        )
        told = Progress(callbacks, progress, epochs if steps is None else steps, "epoch" if steps is None else "step")

        def on_point(text: str) -> None:
            point = _point(json.loads(text))
            loss = point["train_loss"] if point["loss"] is None else point["loss"]
            told.show(point, point["epoch" if steps is None else "step"], {"loss": loss})

        held_out = None if validation is None else validation._core
        listener = on_point if told.wanted else None
        try:
            made, end = _lensmith.RewardModel.fit(core(engine), pairs._core, held_out, options, listener)
        finally:
            told.close()
        model, found = cls._of(made), json.loads(end)
        model._engine = engine
        model.history = _curve(found["history"])
        model.best_epoch, model.best_step = found["best_epoch"], found["best_step"]
        model.steps, model.capped = found["steps"], found["capped"]
        if model.capped:
            warn("the last evaluation was the best: with more epochs or steps the reward model may become better")
        return model

    @property
    def head(self) -> str:
        """ "mlp" or "linear"."""
        return str(self._core.size[1])

    @property
    def hidden(self) -> int:
        """Width of an MLP's hidden layer, of each head."""
        return int(self._core.size[2])

    @property
    def heads(self) -> int:
        """Heads, whose mean is the reward."""
        return int(self._core.size[3])

    def score(self, x: Any, *, engine: Engine | None = None) -> Any:
        """Rewards float32 [n] of embeddings ``x`` [n, d]: a numpy array.

        An array on the engine's GPU (DLPack or ``__cuda_array_interface__``) is read where it lies, and its rewards stay
        there, as a :class:`DeviceArray`.
        """
        rewards = self._core.score(core(engine or still_open(self._engine)), _matrix(x))
        return rewards if isinstance(rewards, DeviceArray) else np.frombuffer(rewards, np.float32)

    __call__ = score

    def spread(self, x: Any, *, engine: Engine | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Rewards of embeddings ``x`` [n, d] and their standard deviations over the heads; float32 [n] each."""
        mean, deviation = self._core.spread(core(engine or still_open(self._engine)), _matrix(x))
        return np.frombuffer(mean, np.float32), np.frombuffer(deviation, np.float32)

    def evaluate(self, pairs: PairSet, *, engine: Engine | None = None) -> dict[str, Any]:
        """Accuracy, loss, calibration and margins on pairs with intervals, as ``lensmith eval --json`` gives them."""
        require_kind(pairs, PairSet, "pairs")
        figures: dict[str, Any] = json.loads(self._core.evaluate(core(engine or still_open(self._engine)), pairs._core))
        return figures

    def best_of_n(self, candidates: Any, gold: Any, *, engine: Engine | None = None) -> dict[str, Any]:
        """What choosing the best of N candidates by this model gains in gold scores, and how their orders agree.

        Args:
            candidates: Embeddings [prompts, N, d].
            gold: Gold scores [prompts, N].

        Returns:
            "best_of_n" (gold score of the choice and of the true best, and KL, for every N) and "rank" (Spearman).
        """
        shape: Any = getattr(candidates, "shape", ())
        if len(shape) != 3 or 0 in shape:
            raise ValueError(f"candidates: expected 3 dimensions [prompts, N, d], found shape {list(shape)}")
        scores = _numbers(gold, "gold")
        if scores.shape != tuple(shape[:2]):
            raise ValueError(f"gold: expected shape {list(shape[:2])}, found {list(scores.shape)}")
        if not np.isfinite(scores).all():
            prompt, candidate = np.argwhere(~np.isfinite(scores))[0]
            found = scores[prompt, candidate]
            raise ValueError(f"gold, prompt {prompt}, candidate {candidate}: expected a finite value, found {found}")
        rows = candidates.reshape(shape[0] * shape[1], shape[2])
        found = self._core.best_of_n(core(engine or still_open(self._engine)), rows, scores.ravel().tolist(), int(shape[1]))
        result: dict[str, Any] = json.loads(found)
        return result

    def to_sequence_classification(self, base_model: Any, out: str | os.PathLike[str], **options: Any) -> Any:
        """Writes a linear head as a whole ``AutoModelForSequenceClassification`` folder; see :mod:`lensmith.export`."""
        from .export import to_sequence_classification

        return to_sequence_classification(self, base_model, out, **options)

    def __repr__(self) -> str:
        width = f", hidden={self.hidden}" if self.head == "mlp" else ""
        return f"RewardModel(dim={self.dim}, head={self.head!r}{width}, heads={self.heads})"


def vae_settings(
    *,
    hidden: int,
    latent: int,
    epochs: int,
    lr: float,
    batch_size: int,
    beta: float,
    gamma: float,
    reconstruction: str,
    divergence: str,
    seed: int,
) -> dict[str, Any]:
    """The arguments of :meth:`Vae.fit` as the engine arranges them."""
    return {
        "hidden": hidden,
        "latent": latent,
        "epochs": epochs,
        "objective": {
            "reconstruction": reconstruction,
            "beta": beta,
            "gamma": gamma,
            "divergence": divergence,
            "batch": batch_size,
            "adam": _adam(lr, 0.0),
            "seed": seed,
        },
    }


def reward_settings(
    *,
    updates: Mapping[str, int | None],
    head: str,
    hidden: int,
    ensemble: int,
    lr: float,
    batch_size: int,
    patience: int | None,
    validate_every: int | None,
    weight_decay: float,
    input_noise: float,
    across_prompts: float,
    seed: int,
) -> dict[str, Any]:
    """The arguments of :meth:`RewardModel.fit` as the engine arranges them; `updates` are epochs or steps."""
    return {
        "head": head,
        "hidden": hidden,
        "ensemble": ensemble,
        "updates": updates,
        "patience": patience,
        "validate_every": validate_every,
        "across_prompts": across_prompts,
        "objective": {
            "batch": batch_size,
            "adam": _adam(lr, weight_decay),
            "input_noise": input_noise,
            "seed": seed,
        },
    }


def _adam(lr: float, weight_decay: float) -> dict[str, float]:
    return {"lr": lr, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "weight_decay": weight_decay}


def _matrix(x: Any) -> Any:
    """What the engine takes as rows."""
    if hasattr(x, "requires_grad") and x.requires_grad:
        return x.detach()
    return x


def _given(made: Embeddings | DeviceArray) -> Any:
    """What was made, on the host as a numpy array."""
    return made if isinstance(made, DeviceArray) else made.numpy()


def _losses(history: list[dict[str, Any]]) -> Table:
    rows = [{"epoch": i + 1, **loss} for i, loss in enumerate(history)]
    return Table.of_rows(rows, ["epoch", "total", "reconstruction", "kl", "divergence"])


def _point(point: dict[str, Any]) -> dict[str, Any]:
    held_out = point.get("validation") or {}
    return {
        "epoch": point["epoch"],
        "step": point["step"],
        "train_loss": point["train_loss"],
        "accuracy": held_out.get("accuracy"),
        "loss": held_out.get("loss"),
    }


def _curve(history: list[dict[str, Any]]) -> Table:
    return Table.of_rows([_point(point) for point in history], ["epoch", "step", "train_loss", "accuracy", "loss"])
