"""lensmith on a Ray cluster: parts, sweeps and pipelines of Ray Data, whose nodes share a file system.

Folders
-------
:func:`generate` makes the pairs of a recipe as a folder, a Ray task for each part, and :func:`sweep` the cells of a sweep.
Ray places the tasks, and starts those again whose worker or node was lost; a task goes on where the lost one stopped. The
bytes are those of one run on one machine, however often a task ran::

    from lensmith.ray import generate

    generate("recipe/", "/shared/synth", num_parts=400, resources={"CPU": 8})

Data sets
---------
:func:`read_pairs` is a data set of Ray Data whose blocks are made where they are read, :func:`embed` and :func:`score` add
embeddings and rewards by a pool of actors, and :func:`write_pairs` writes a folder of lensmith::

    from lensmith.ray import read_pairs, score, write_pairs

    pairs = score(read_pairs("recipe/", indices=True), "reward.safetensors")
    write_pairs(pairs.filter(expr="chosen_reward > rejected_reward"), "/shared/kept", order="pair")

*What nodes need.* The same version of lensmith, and the recipe with its seeds and its VAE at the same paths. Each task
looks, and its error says what was missing on which node.

*Resources* are named as in ``ray.cluster_resources()``: ``{"CPU": 4, "GPU": 1}``. With a GPU a task's engine computes on
it; the engine has a thread for each CPU.

*Progress* is Ray's own: tasks have names in its state API and its dashboard, and data sets have its bars.
"""

from __future__ import annotations

try:
    import ray  # noqa: F401
    import ray.data  # noqa: F401
except ImportError as error:
    raise ImportError("lensmith.ray needs ray[data]: pip install 'lensmith[ray]'") from error

from ._actors import embed, score
from ._read import RecipeDatasource, read_pairs
from ._tasks import generate, sweep
from ._write import PairsDatasink, write_pairs

__all__ = [
    "PairsDatasink",
    "RecipeDatasource",
    "embed",
    "generate",
    "read_pairs",
    "score",
    "sweep",
    "write_pairs",
]
