"""Parts of a run and of a sweep as Ray tasks.

A part that runs twice does no harm: its bytes follow from the recipe, a file gets its name when it is whole, and a lock
keeps two processes off one part. So whatever Ray starts again goes on where the lost task stopped.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import ray

from .. import _lensmith
from .._engine import core, text, whole
from .._lensmith import LensmithError
from ._nodes import Place, RecipeFile, Resources, everywhere, failure, on_this_node, ray_options

T = TypeVar("T")

#: Seconds that a task waits for another process that makes its part: a task on a node that Ray gave up may still be at
#: work, and a process that was killed holds its lock until the system has ended it.
_PATIENCE = 1800.0
#: How the program says so.
_BUSY = "another lensmith process is writing here"
#: Failures that an error tells; all of them have the same remedy.
_TOLD = 4
#: Runs the program, and ends with the process that started it, as a task does that Ray kills.
_PROGRAM = f"""
import ctypes, os, sys
ctypes.CDLL(None).prctl(1, {int(signal.SIGKILL)})
if os.getppid() != int(sys.argv.pop(1)):
    sys.exit(1)
from lensmith._program import main
sys.exit(main())
"""


def generate(
    recipe: str | os.PathLike[str],
    out: str | os.PathLike[str],
    num_parts: int,
    resources: Resources | None = None,
    *,
    output: str = "embeddings",
    dtype: str = "bf16",
    shard_rows: int | None = None,
    overwrite: bool = False,
    allow_outside: bool = False,
    precision: str = "f32",
    retries: int = 3,
) -> dict[str, Any]:
    """Makes the pairs of a recipe as a folder, a Ray task for each part: the bytes of one run on one machine.

    Killed at any moment, also with its driver, the same call goes on where it stopped.

    Args:
        recipe: A ``recipe.json`` or its folder, at a path or URL that every node has, as its seeds and its VAE.
        out: The folder, on a file system that all nodes share, or its URL in an object store.
        num_parts: Tasks; at most as many as there are shards.
        resources: Of a task, as in {"CPU": 4, "GPU": 1}; by default {"CPU": 1}.
        output: "embeddings" or "latents".
        dtype: How embeddings are stored: "bf16", "f16" or "f32".
        shard_rows: Pairs a shard; by default shards of about 256 MiB.
        overwrite: Whether to replace an output of other settings.
        allow_outside: Whether the recipe may name files that lie neither around it nor in the working folder.
        precision: "f32" or "bf16"; the latter's bits follow from the kind of device.
        retries: How often Ray starts a task again whose worker or node was lost; -1 is without end.

    Returns:
        What was joined, as ``lensmith merge-manifests --json`` says it, and ``resumed``, the pairs that an earlier call had
        made.

    Raises:
        LensmithError: Parts that failed, each with its node and its reason; the others are whole, and the same call makes
            what is missing.
    """
    num_parts, retries = whole(num_parts, "num_parts", 1), _retries(retries)
    text(output, "output", ("embeddings", "latents"))
    text(dtype, "dtype", ("bf16", "f16", "f32"))
    shard_rows = None if shard_rows is None else whole(shard_rows, "shard_rows", 1)
    options = ray_options(resources) | {"max_retries": retries}
    place = Place.of(resources, text(precision, "precision", ("f32", "bf16")))
    folder, source = everywhere(out), RecipeFile.read(recipe, allow_outside)
    stored = (output, dtype)
    make = ray.remote(_write_part)

    def part(index: int, overwrite: bool) -> Any:
        named = make.options(name=f"lensmith part {index}/{num_parts}", **options)
        return named.remote(place, source, folder, stored, shard_rows, (index, num_parts), overwrite)

    # What is replaced goes before the parts, each of which would remove the others.
    made = _all([part(0, True)]) if overwrite else []
    made += _all([part(index, False) for index in range(len(made), num_parts)])
    merge = ray.remote(_merge).options(name="lensmith merge-manifests", **options)
    merged: dict[str, Any] = _all([merge.remote(place, folder)])[0]
    return merged | {"resumed": sum(part["resumed"] for part in made)}


def _write_part(
    place: Place,
    source: RecipeFile,
    out: str,
    stored: tuple[str, str],
    shard_rows: int | None,
    part: tuple[int, int],
    overwrite: bool,
) -> dict[str, Any]:
    with on_this_node(f"part {part[0]}/{part[1]}"):
        place.require_version()
        source.require_same()
        with place.engine() as engine:

            def write() -> str:
                return _lensmith.write_recipe(
                    core(engine),
                    source.path,
                    source.allow_outside,
                    out,
                    stored,
                    shard_rows,
                    part,
                    overwrite,
                    None,
                )

            done: dict[str, Any] = json.loads(_when_free(write))
            return done


def _merge(place: Place, out: str) -> dict[str, Any]:
    with on_this_node("merge-manifests"):
        place.require_version()
        merged: dict[str, Any] = json.loads(_when_free(lambda: _lensmith.merge_manifests(out)))
        return merged


def sweep(
    arguments: Sequence[str],
    out: str | os.PathLike[str],
    num_parts: int,
    resources: Resources | None = None,
    *,
    retries: int = 3,
) -> dict[str, Any]:
    """Runs ``lensmith sweep`` with a Ray task for each part of its cells, and writes its results.

    Cells that share a VAE are computed by one task. Killed at any moment, also with its driver, the same call goes on with
    the cells that are missing. Cells have the bytes of a sweep on one machine.

    Args:
        arguments: The command line behind ``lensmith sweep``, without ``--out``, ``--part``, ``--device`` and ``--threads``;
            relative paths are those of this process's working folder, which every node has.
        out: The sweep folder, on a file system that all nodes share.
        num_parts: Tasks; parts beyond the number of VAEs and of arms without one have nothing to do.
        resources: Of a task, as in {"CPU": 4, "GPU": 1}; by default {"CPU": 1}.
        retries: How often Ray starts a task again whose worker or node was lost; -1 is without end.

    Returns:
        What ``lensmith sweep --json`` says.

    Raises:
        LensmithError: Parts that failed, each with its node and its reason.
    """
    if isinstance(arguments, str) or not all(isinstance(argument, str) for argument in arguments):
        raise TypeError(f"arguments: expected a list of strings, found {arguments!r}")
    num_parts, retries = whole(num_parts, "num_parts", 1), _retries(retries)
    options, place = ray_options(resources) | {"max_retries": retries}, Place.of(resources)
    folder, command = str(Path(out).absolute()), list(arguments)
    run = ray.remote(_sweep)
    _all(
        [
            run.options(name=f"lensmith sweep {i}/{num_parts}", **options).remote(
                place, os.getcwd(), [*command, "--part", f"{i}/{num_parts}", "--out", folder]
            )
            for i in range(num_parts if num_parts > 1 else 0)
        ]
    )
    results = run.options(name="lensmith sweep", **options).remote(
        place, os.getcwd(), [*command, "--out", folder]
    )
    found: dict[str, Any] = _all([results])[0]
    return found


def _sweep(place: Place, working_folder: str, arguments: list[str]) -> dict[str, Any]:
    part = arguments[arguments.index("--part") + 1] if "--part" in arguments else ""
    with on_this_node(f"sweep {part}".rstrip()):
        place.require_version()
        settings = ["--device", place.device, "--threads", str(place.threads), "--json", "--quiet"]
        command = [sys.executable, "-c", _PROGRAM, str(os.getpid()), "sweep", *arguments, *settings]

        def run() -> str:
            done = subprocess.run(command, cwd=working_folder, capture_output=True, text=True)
            if done.returncode == 0:
                return done.stdout
            if done.returncode < 0 or not done.stdout:
                raise failure("Failed", f"lensmith sweep ended with {done.returncode}: {done.stderr.strip()}")
            why = json.loads(done.stdout.splitlines()[-1])["error"]
            if why.endswith(_BUSY):
                raise failure("Busy", why)
            raise failure("InvalidArgument" if done.returncode == 2 else "Failed", why)

        found: dict[str, Any] = json.loads(_when_free(run))
        return found


def _when_free(work: Callable[[], T]) -> T:
    """`work`, which is tried again while another process is writing the same."""
    until = time.monotonic() + _PATIENCE
    while True:
        try:
            return work()
        except LensmithError as error:
            if error.kind != "Busy" or time.monotonic() > until:
                raise
        time.sleep(0.5)


def _retries(retries: int) -> int:
    return -1 if retries == -1 else whole(retries, "retries")


def _all(tasks: list[Any]) -> list[Any]:
    """What all tasks give. Every one may end, however others do, before an error tells which failed."""
    results, failures = [], []
    try:
        for task in tasks:
            try:
                results.append(ray.get(task))
            except LensmithError as error:
                failures.append((error.kind, str(getattr(error, "cause", error))))
            except ray.exceptions.RayError as error:
                failures.append(("Lost", str(error)))
    except BaseException:
        # Ctrl-C is for the tasks too.
        for task in tasks:
            ray.cancel(task)
        raise
    if not failures:
        return results
    lines = [message for _, message in failures[:_TOLD]]
    if len(failures) > _TOLD:
        lines.append(f"and {len(failures) - _TOLD} more")
    if results:
        count = f"{len(failures)} of {len(tasks)} parts"
        lines.append(f"{count} failed; the others are whole, and the same call makes what is missing")
    raise failure(failures[0][0], "\n".join(lines))
