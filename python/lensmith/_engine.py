"""The engine: a device with the whole method on it."""

from __future__ import annotations

import json
import math
import operator
import os
import threading
import warnings
from collections.abc import Callable, Iterable, Sequence
from types import TracebackType
from typing import Any

from . import _lensmith
from ._optional import require


class LensmithWarning(UserWarning):
    """Something that is allowed and probably not wanted, such as a VAE that has not learnt."""


class Engine:
    """An opened device.

    Functions that compute take ``engine=``; without it they use :func:`default_engine`. An engine may be used from
    several threads. After a fork (workers of a data loader, ``multiprocessing``) a CPU engine goes on in the new
    process with threads of its own; a GPU does not.

    Args:
        device: "auto" (a GPU where there is one), "cpu", "cuda", "cuda:N", "cuda:all" or "reference"; by default what
            the environment variable LENSMITH_DEVICE says, else "auto".
        threads: Threads of the host; 0 is one per core.
        precision: "f32", or "bf16" for products of BF16 values with F32 sums.

    Raises:
        LensmithError: The device cannot be used; the message says why.
    """

    def __init__(self, device: str | None = None, threads: int = 0, precision: str = "f32") -> None:
        device = os.environ.get("LENSMITH_DEVICE") or "auto" if device is None else device
        self._closed = False
        self._core = _lensmith.Engine(text(device, "device"), whole(threads, "threads"), text(precision, "precision"))

    @property
    def device(self) -> str:
        """The device's name, such as "cpu" or "cuda:0"."""
        return str(self.devices[0]["name"])

    @property
    def detail(self) -> str:
        """Hardware and instruction set in words."""
        return str(self.devices[0]["detail"])

    @property
    def threads(self) -> int:
        """Threads of the host at work."""
        return int(self.devices[0]["threads"])

    @property
    def devices(self) -> list[dict[str, Any]]:
        """Name, detail and threads of each device."""
        devices: list[dict[str, Any]] = json.loads(self._core.devices())
        return devices

    @property
    def arithmetic(self) -> str:
        """The arithmetic that bits of results depend on: "f32", "bf16", "bf16-dot" or "bf16-amx"."""
        return self._core.arithmetic()

    def close(self) -> None:
        """Ends the engine; using it afterwards raises LensmithError."""
        self._closed = True
        self._core.close()

    def __enter__(self) -> Engine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        device, threads, precision = self._core.asked()
        return f"Engine(device={device!r}, threads={threads}, precision={precision!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        return Engine, self._core.asked()


_default: Engine | None = None
_lock = threading.Lock()


def default_engine() -> Engine:
    """The engine that functions use without ``engine=``; opened at first use."""
    global _default
    with _lock:
        if _default is None:
            _default = Engine()
        return _default


def set_default_engine(engine: Engine | None) -> None:
    """Makes an engine the one that functions use without ``engine=``; None opens another at the next use."""
    global _default
    if engine is not None and not isinstance(engine, Engine):
        raise TypeError(f"engine: expected a lensmith.Engine, found {type(engine).__name__}")
    with _lock:
        _default = engine


def still_open(engine: Engine | None) -> Engine | None:
    """An engine that something was made with, unless it has been closed since."""
    return None if engine is None or engine._closed else engine


def core(engine: Engine | None) -> _lensmith.Engine:
    """The compiled engine behind an argument ``engine=``."""
    if engine is not None and not isinstance(engine, Engine):
        raise TypeError(f"engine: expected a lensmith.Engine, found {type(engine).__name__}")
    return (engine or default_engine())._core


#: Settings that are whole numbers, and the least of each; the engine says what else it wants of them.
_WHOLE = {
    "batch": 1,
    "ensemble": 1,
    "epochs": 1,
    "fold": 2,
    "hidden": 0,
    "latent": 0,
    "max_length": 0,
    "min_length": 0,
    "oversample": 1,
    "patience": 1,
    "per_side": 1,
    "seed": 0,
    "steps": 1,
    "validate_every": 1,
}
#: Settings of settings.
_GROUPS = {"adam", "objective", "reward", "synthesis", "updates", "vae"}
#: Settings that may be None.
_OPTIONAL = {
    "fold",
    "max_length",
    "max_uncertainty",
    "min_margin",
    "min_reward",
    "patience",
    "per_side",
    "validate_every",
}
#: Settings that are one of a few words.
_WORDS = {
    "divergence": ("w2", "w2-squared"),
    "form": ("sft", "messages", "dpo"),
    "head": ("mlp", "linear"),
    "likelihood": ("posterior", "prior", "none"),
    "mode": ("plain", "residual"),
    "pairing": ("combine", "match"),
    "reconstruction": ("mean", "sum"),
    "source": ("sample", "mean"),
}


def settings(**values: Any) -> str:
    """Settings as the engine reads them.

    Raises:
        TypeError: A value of another type than the setting's.
        ValueError: A number that is not finite, or a word that the setting does not have.
    """
    return json.dumps({name: _setting(name, value) for name, value in values.items()})


def _setting(name: str, value: Any) -> Any:
    if name in _GROUPS:
        return {key: _setting(key, part) for key, part in value.items()}
    if value is None and name in _OPTIONAL:
        return None
    if name in _WORDS:
        return text(value, name, _WORDS[name])
    name, least = ("batch_size" if name == "batch" else name), _WHOLE.get(name)
    return _number(value, name) if least is None else whole(value, name, least)


def whole(value: Any, name: str, least: int = 0, most: int = 2**64 - 1) -> int:
    """A whole number in a range, of Python, numpy or torch."""
    try:
        number = operator.index(value)
    except TypeError:
        number = None
    if number is None or isinstance(value, bool):
        raise TypeError(f"{name}: expected a whole number, found {value!r}")
    if number < least:
        raise ValueError(f"{name}: expected {least} or more, found {number}")
    if number > most:
        raise ValueError(f"{name}: expected at most {most}, found {number}")
    return number


def _number(value: Any, name: str) -> float:
    """A finite number."""
    try:
        number = None if isinstance(value, str | bytes | bool) else float(value)
    except (TypeError, ValueError):
        number = None
    except OverflowError:
        number = math.inf
    if number is None:
        raise TypeError(f"{name}: expected a number, found {value!r}")
    if not math.isfinite(number):
        raise ValueError(f"{name}: expected a finite number, found {number}")
    return number


def text(value: Any, name: str, words: Sequence[str] = ()) -> str:
    """A string, one of `words` where there are some."""
    expected = ", ".join(f'"{word}"' for word in words[:-1]) + f' or "{words[-1]}"' if words else "a string"
    if not isinstance(value, str):
        raise TypeError(f"{name}: expected {expected}, found {value!r}")
    if words and value not in words:
        raise ValueError(f'{name}: expected {expected}, found "{value}"')
    return value


def require_kind(value: Any, kind: type, name: str) -> None:
    """Raises TypeError unless `value` is of the package's class `kind`."""
    if not isinstance(value, kind):
        raise TypeError(f"{name}: expected a {kind.__name__}, found {type(value).__name__}")


def warn(text: str) -> None:
    """Warns the caller of the package's function that calls this."""
    warnings.warn(text, LensmithWarning, stacklevel=3)


Callback = Callable[[dict[str, Any]], None]


class Progress:
    """Callbacks and a progress bar for one piece of work."""

    def __init__(self, callbacks: Sequence[Callback], progress: bool, total: int | None, unit: str) -> None:
        if callable(callbacks) or not isinstance(callbacks, Iterable):
            raise TypeError(f"callbacks: expected a list of functions, found {callbacks!r}")
        for callback in callbacks:
            if not callable(callback):
                raise TypeError(f"callbacks: expected functions of one dictionary, found {callback!r}")
        self.callbacks = list(callbacks)
        self.failed = False
        self.bar = require("tqdm.auto", "progress=True").tqdm(total=total, unit=unit) if progress else None

    @property
    def wanted(self) -> bool:
        """Whether anybody listens."""
        return bool(self.callbacks) or self.bar is not None

    def show(self, figures: dict[str, Any], step: int, shown: dict[str, float]) -> None:
        """Tells everybody of a step, and nobody of anything once a callback has raised."""
        if self.failed:
            return
        try:
            for callback in self.callbacks:
                callback(figures)
        except BaseException:
            self.failed = True
            raise
        if self.bar is not None:
            self.bar.set_postfix({name: f"{value:.4g}" for name, value in shown.items()}, refresh=False)
            self.bar.update(step - self.bar.n)

    def close(self) -> None:
        """Ends the bar."""
        if self.bar is not None:
            self.bar.close()
