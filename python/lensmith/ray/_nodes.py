"""What tasks on any node share: resources, the recipe that the driver read, and errors that name the node."""

from __future__ import annotations

import hashlib
import json
import math
import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray

from .. import _lensmith
from .._engine import Engine
from .._lensmith import LensmithError, __version__

#: Most bytes of a recipe, nearly all of them its list of seed files.
_MOST_RECIPE = 64 << 20

#: Resources by name, as `ray.cluster_resources()` has them.
Resources = Mapping[str, float]


def failure(kind: str, message: str) -> LensmithError:
    """A LensmithError of a kind."""
    error = LensmithError(message)
    error.kind = kind
    return error


def everywhere(path: str | os.PathLike[str]) -> str:
    """A path as every node has it, from the root. A URL is the same everywhere."""
    name = os.fspath(path)
    return name if "://" in name else os.path.abspath(name)


def ray_options(resources: Resources | None) -> dict[str, Any]:
    """Resources in the words of `ray.remote`: {"CPU": 4, "disk": 1} is num_cpus=4, resources={"disk": 1}."""
    asked = {"CPU": 1.0} if resources is None else dict(resources)
    for name, amount in asked.items():
        if isinstance(amount, bool) or not isinstance(amount, int | float) or not 0 <= amount < math.inf:
            raise ValueError(f"resources: expected a number, 0 or more, for {name!r}, found {amount!r}")
    words = {"CPU": "num_cpus", "GPU": "num_gpus", "memory": "memory"}
    options = {word: asked.pop(name) for name, word in words.items() if name in asked}
    return options | ({"resources": asked} if asked else {})


@dataclass(frozen=True)
class Place:
    """How a task computes, and the lensmith that it must be."""

    device: str
    threads: int
    precision: str = "f32"
    version: str = __version__

    @classmethod
    def of(cls, resources: Resources | None, precision: str = "f32") -> Place:
        """The place that `resources` make: on the GPUs that Ray shows the task, and with a thread a CPU."""
        asked = {"CPU": 1.0} if resources is None else resources
        gpus = asked.get("GPU", 0)
        device = "cuda:all" if gpus > 1 else "cuda" if gpus else "cpu"
        return cls(device, max(1, int(asked.get("CPU", 1))), precision)

    def engine(self) -> Engine:
        """An engine of it."""
        return Engine(self.device, threads=self.threads, precision=self.precision)

    def require_version(self) -> None:
        """Raises LensmithError where another lensmith is installed than on the driver."""
        if __version__ != self.version:
            raise failure(
                "Mismatch",
                f"expected lensmith {self.version}, as on the driver, found {__version__} in "
                f"{Path(__file__).parents[1]}: install one version on every node",
            )


@contextmanager
def on_this_node(what: str) -> Iterator[None]:
    """Makes errors say what was at work and where: other nodes may have other files."""
    try:
        yield
    except (LensmithError, ImportError, OSError, TypeError, ValueError) as error:
        kind = getattr(error, "kind", "Io" if isinstance(error, OSError) else "InvalidArgument")
        node = ray.get_runtime_context().get_node_id()[:12]
        raise failure(kind, f"{what} on {socket.gethostname()}, node {node}: {error}") from None


@dataclass(frozen=True)
class RecipeFile:
    """A recipe as the driver read it."""

    path: str
    #: SHA-256 of the file.
    digest: str
    allow_outside: bool
    #: Pairs of the run.
    pairs: int
    #: Values of an embedding.
    dim: int

    @classmethod
    def read(cls, recipe: str | os.PathLike[str], allow_outside: bool) -> RecipeFile:
        """Reads a recipe, or that of a folder; its seeds and its VAE are left to the tasks."""
        if not isinstance(recipe, str | os.PathLike):
            raise TypeError(
                f"recipe: expected a path, found {type(recipe).__name__}: pairs in memory become a recipe by "
                'pairs.write(folder, output="recipe")'
            )
        path = everywhere(recipe)
        if os.path.isdir(path) or "://" in path and not path.endswith(".json"):
            path = os.path.join(path, "recipe.json")
        text = _lensmith.read_file(path, _MOST_RECIPE)
        try:
            found = json.loads(text)
            plan, dim = found["plan"], found["vae"]["size"]["dim"]
            pairs = int(plan["seeds"]) * int(plan["fold"])
            return cls(path, _digest(text), bool(allow_outside), pairs, int(dim))
        except (ValueError, KeyError, TypeError) as error:
            found = f"{type(error).__name__}, {error}"
            raise failure("Format", f"{path}: expected a recipe, found something else: {found}") from None

    def require_same(self) -> None:
        """Raises LensmithError unless this node has the file that the driver read."""
        found = _digest(_lensmith.read_file(self.path, _MOST_RECIPE))
        if found != self.digest:
            raise failure(
                "Mismatch",
                f"{self.path}: expected the recipe that the driver read (SHA-256 {self.digest[:16]}), found "
                f"another ({found[:16]})",
            )


def _digest(text: bytes) -> str:
    return hashlib.sha256(text).hexdigest()
