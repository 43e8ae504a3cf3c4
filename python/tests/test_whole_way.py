"""From texts to a reward model in a folder, in the lines that a new user would write."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
datasets = pytest.importorskip("datasets")
pytest.importorskip("transformers")

import embed_models as made  # noqa: E402

import lensmith as lm  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore::lensmith.LensmithWarning")


def test_from_texts_to_a_reward_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    model = made.saved(tmp_path / "model")
    dataset = datasets.Dataset.from_list(made.plain_pairs(240))

    emb = lm.embed(dataset, model=model, pooling="last", progress=False)
    assert emb.chosen.shape == emb.rejected.shape == (240, 32)
    split = lm.split(emb, seeds=100, validation=60, seed=0)
    assert (split.seeds.chosen.numpy() == emb.chosen.numpy()[split.indices["seeds"]]).all()
    told = []
    vae = lm.Vae.fit(split.seeds, callbacks=[told.append])
    assert len(told) == 100 and "held out explained variance" in str(vae.health(split.validation))

    pairs = lm.synthesize(vae, split.seeds, fold=8, seed=0)
    assert len(pairs) == 800 and pairs[123].chosen.shape == (32,) and len(pairs[10:20]) == 10
    assert sum(1 for _ in pairs) == 800
    loader = torch.utils.data.DataLoader(pairs.torch(batch_size=64), batch_size=None, num_workers=2)
    assert sum(len(chosen) for chosen, rejected in loader) == 800

    rm = lm.RewardModel.fit(pairs, validation=split.validation, ensemble=8)
    assert rm.history.columns == ["epoch", "step", "train_loss", "accuracy", "loss"] and len(rm.history)
    x = split.test.chosen.torch()
    with torch.no_grad():
        np.testing.assert_allclose(rm.to_torch()(x)[:, 0], rm.score(x), rtol=0, atol=1e-5)
    rm.save_pretrained("out")
    assert (lm.RewardModel.from_pretrained("out").score(x) == rm.score(x)).all()

    comparison = lm.compare(emb, arms=["none", "matched", "lens"], repeats=2, seeds=100, validation=60)
    assert comparison.paired()["arm"].tolist() == ["none", "lens"]
    assert pairs.to_hf_dataset().num_rows == pairs.write("synth/", dtype="f32")["pairs"] == 800
    assert lm.PairSet.open("synth/").chosen.tobytes() == pairs.to_pairs().chosen.tobytes()
