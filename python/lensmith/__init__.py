"""lensmith: latent-space synthesis of preference pairs for reward models (LENS; Tao, Du and Li, NeurIPS 2025).

A small VAE learns the space of the embeddings that a language model gives chosen and rejected responses. Gaussian noise
in its latent space makes new pairs, a likelihood filter keeps the plausible ones, and a small reward model trains on
originals and synthetic pairs. No text is generated::

    import lensmith as lm

    pairs = lm.PairSet.open("pairs.safetensors")             # or lm.PairSet(chosen, rejected)
    split = lm.split(pairs, seeds=1000, validation=300)
    vae = lm.Vae.fit(split.seeds)
    synthetic = lm.synthesize(vae, split.seeds, fold=8)      # nothing is made before it is asked for
    reward = lm.RewardModel.fit(synthetic, validation=split.validation)
    print(reward.evaluate(split.test)["accuracy"])
"""

from __future__ import annotations

from ._compare import Comparison, compare
from ._engine import Engine, LensmithWarning, default_engine, set_default_engine
from ._lensmith import DeviceArray, Embeddings, LensmithError, __version__
from ._models import Health, RewardModel, Vae
from ._pairs import PairSet, Split, split
from ._select import Selection, select
from ._synthesis import Pair, PairBatch, SyntheticPairs, synthesize
from ._table import Table
from .embed import embed, embed_candidates, embed_texts, gold_scores

__all__ = [
    "Comparison",
    "DeviceArray",
    "Embeddings",
    "Engine",
    "Health",
    "LensmithError",
    "LensmithWarning",
    "Pair",
    "PairBatch",
    "PairSet",
    "RewardModel",
    "Selection",
    "Split",
    "SyntheticPairs",
    "Table",
    "Vae",
    "__version__",
    "compare",
    "default_engine",
    "embed",
    "embed_candidates",
    "embed_texts",
    "gold_scores",
    "select",
    "set_default_engine",
    "split",
    "synthesize",
]

