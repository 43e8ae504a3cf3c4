"""The engine: a device with the whole method on it."""

from __future__ import annotations

import json
import math
import threading
import warnings
from collections.abc import Callable, Sequence
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
        device: "auto" (a GPU where there is one), "cpu", "cuda", "cuda:N", "cuda:all" or "reference".
        threads: Threads of the host; 0 is one per core.
        precision: "f32", or "bf16" for products of BF16 values with F32 sums.

    Raises:
        LensmithError: The device cannot be used; the message says why.
    """

    def __init__(self, device: str = "auto", threads: int = 0, precision: str = "f32") -> None:
        self._core = _lensmith.Engine(device, threads, precision)

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


def core(engine: Engine | None) -> _lensmith.Engine:
    """The compiled engine behind an argument ``engine=``."""
    if engine is not None and not isinstance(engine, Engine):
        raise TypeError(f"engine: expected a lensmith.Engine, found {type(engine).__name__}")
    return (engine or default_engine())._core


def settings(**values: Any) -> str:
    """Settings as the engine reads them."""
    for name, value in values.items():
        for key, number in value.items() if isinstance(value, dict) else [(name, value)]:
            if isinstance(number, float) and not math.isfinite(number):
                raise ValueError(f"{key}: expected a finite number, found {number}")
    return json.dumps(values)


def warn(text: str) -> None:
    """Warns the caller of the package's function that calls this."""
    warnings.warn(text, LensmithWarning, stacklevel=3)


Callback = Callable[[dict[str, Any]], None]


class Progress:
    """Callbacks and a progress bar for one piece of work."""

    def __init__(self, callbacks: Sequence[Callback], progress: bool, total: int | None, unit: str) -> None:
        for callback in callbacks:
            if not callable(callback):
                raise TypeError(f"callbacks: expected functions of one dictionary, found {callback!r}")
        self.callbacks = list(callbacks)
        self.bar = require("tqdm.auto", "progress=True").tqdm(total=total, unit=unit) if progress else None

    @property
    def wanted(self) -> bool:
        """Whether anybody listens."""
        return bool(self.callbacks) or self.bar is not None

    def show(self, figures: dict[str, Any], step: int, shown: dict[str, float]) -> None:
        """Tells everybody of a step."""
        for callback in self.callbacks:
            callback(figures)
        if self.bar is not None:
            self.bar.set_postfix({name: f"{value:.4g}" for name, value in shown.items()}, refresh=False)
            self.bar.update(step - self.bar.n)

    def close(self) -> None:
        """Ends the bar."""
        if self.bar is not None:
            self.bar.close()
