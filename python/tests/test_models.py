"""The VAE and the reward model: PyTorch's numbers, their parameters in and out, and what training tells."""

from __future__ import annotations

import copy
import json
import pickle

import numpy as np
import pytest
from conftest import DIM, ROOT, arrays_of

import lensmith as lm

torch = pytest.importorskip("torch")
safe_open = pytest.importorskip("safetensors").safe_open

pytestmark = pytest.mark.filterwarnings("ignore::lensmith.LensmithWarning")  # trained for a moment only

#: What F32 is held to, relative to the largest value of a tensor; the same bound as the engine's own tests have.
RTOL = 1e-5


def golden(name: str) -> dict[str, np.ndarray]:
    with safe_open(ROOT / "tests" / "golden" / f"{name}.safetensors", "np") as file:
        return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118


def close(found: np.ndarray, expected: np.ndarray) -> None:
    assert found.shape == expected.shape and found.dtype == np.float32
    assert np.abs(found - expected).max() <= RTOL * np.abs(expected).max()


def relu(x: np.ndarray) -> np.ndarray:
    return np.maximum(x, 0)


def layer(state: dict[str, np.ndarray], name: str, x: np.ndarray) -> np.ndarray:
    return x @ state[f"{name}.weight"].astype(np.float64).T + state[f"{name}.bias"].astype(np.float64)


# PyTorch's numbers.


@pytest.mark.parametrize("name", ["d40", "d33"])
def test_a_vae_computes_what_pytorch_computed(name, engine):
    file = golden(name)
    prefix = "vae.folded."
    vae = lm.Vae.from_state_dict(
        {key.removeprefix(prefix): rows for key, rows in file.items() if key.startswith(prefix)}
    )
    for i, side in enumerate(("chosen", "rejected")):
        mu, logvar = vae.encode(file[side], engine=engine)
        close(mu, file[f"encode.mu.{i}"])
        close(logvar, file[f"encode.logvar.{i}"])
    close(vae.decode(file["decode.z"], engine=engine), file["decode.plain"])


@pytest.mark.parametrize("name", ["d40", "d33"])
def test_a_reward_model_computes_what_pytorch_computed(name, engine):
    file = golden(name)
    prefix = "reward.folded."
    model = lm.RewardModel.from_state_dict(
        {key.removeprefix(prefix): rows for key, rows in file.items() if key.startswith(prefix)}
    )
    close(model.score(np.concatenate([file["chosen"], file["rejected"]]), engine=engine), file["score"])


@pytest.mark.parametrize("name", ["d40", "d33"])
def test_checkpoints_of_pytorch_load(name, engine):
    folder = ROOT / "tests" / "golden"
    vae, reward = (
        lm.Vae.load(folder / f"{name}_torch_vae.safetensors"),
        lm.RewardModel.load(folder / f"{name}_torch_reward.safetensors"),
    )
    assert vae.dim == reward.dim == golden(name)["chosen"].shape[1]
    assert len(vae.history) == 0 and reward.best_epoch is reward.steps is reward.capped is None


def test_a_vae_is_the_layers_that_its_state_names(vae, small, engine):
    state = vae.state_dict()
    assert {name: rows.shape for name, rows in state.items()} == {
        "encoder.0.weight": (16, DIM),
        "encoder.0.bias": (16,),
        "encoder.2.weight": (32, 16),
        "encoder.2.bias": (32,),
        "decoder.0.weight": (16, 16),
        "decoder.0.bias": (16,),
        "decoder.2.weight": (DIM, 16),
        "decoder.2.bias": (DIM,),
    }
    x = small.chosen.numpy().astype(np.float64)
    mu, logvar = vae.encode(small.chosen, engine=engine)
    both = layer(state, "encoder.2", relu(layer(state, "encoder.0", x)))
    close(mu, both[:, :16])
    close(logvar, both[:, 16:])
    close(
        vae.decode(mu, engine=engine),
        layer(state, "decoder.2", relu(layer(state, "decoder.0", mu.astype(np.float64)))),
    )


@pytest.mark.parametrize("heads", [1, 4])
def test_an_mlp_is_the_mean_of_its_heads(small, engine, heads):
    model = lm.RewardModel.fit(small, hidden=32, ensemble=heads, epochs=3, lr=1e-2, engine=engine)
    state = model.state_dict()
    assert {name: rows.shape for name, rows in state.items()} == {
        "0.weight": (heads * 32, DIM),
        "0.bias": (heads * 32,),
        "2.weight": (heads, 32),
        "2.bias": (heads,),
    }
    assert (model.dim, model.head, model.hidden, model.heads) == (DIM, "mlp", 32, heads)
    units = relu(layer(state, "0", small.chosen.numpy().astype(np.float64))).reshape(-1, heads, 32)
    rewards = np.einsum("nkh,kh->nk", units, state["2.weight"].astype(np.float64)) + state["2.bias"]
    close(model.score(small.chosen, engine=engine), rewards.mean(1))
    mean, deviation = model.spread(small.chosen, engine=engine)
    close(mean, rewards.mean(1))
    assert np.allclose(deviation, rewards.std(1), rtol=1e-3, atol=1e-6)


def test_a_linear_model_is_one_layer(small, engine):
    model = lm.RewardModel.fit(small, head="linear", epochs=3, lr=1e-2, engine=engine)
    state = model.state_dict()
    assert {name: rows.shape for name, rows in state.items()} == {
        "score.weight": (1, DIM),
        "score.bias": (1,),
    }
    assert (model.head, model.heads) == ("linear", 1) and repr(
        model
    ) == "RewardModel(dim=32, head='linear', heads=1)"
    close(
        model.score(small.chosen, engine=engine),
        layer(state, "score", small.chosen.numpy().astype(np.float64))[:, 0],
    )
    plain = lm.RewardModel.from_state_dict({"score.weight": state["score.weight"]})
    found = plain.score(small.chosen, engine=engine) + state["score.bias"]
    assert np.allclose(found, model.score(small.chosen, engine=engine), atol=1e-5)


# Parameters in and out.


@pytest.fixture(params=["vae", "reward", "ensemble", "linear"])
def model(request, small, engine, vae, reward):
    if request.param in ("vae", "reward"):
        return request.getfixturevalue(request.param)
    options = {"head": "linear"} if request.param == "linear" else {"ensemble": 3, "hidden": 32}
    return lm.RewardModel.fit(small, **options, epochs=2, seed=5, engine=engine)


def bits(model) -> dict[str, bytes]:
    return {name: rows.tobytes() for name, rows in model.state_dict().items()}


def test_parameters_come_back_with_the_same_bits(model, tmp_path):
    kind, state = type(model), model.state_dict()
    model.save(tmp_path / "model.safetensors")
    saved = {**{name: rows for name, rows in state.items()}}
    for again in (
        kind.from_state_dict(state),
        kind.from_state_dict({name: torch.from_numpy(rows.copy()) for name, rows in state.items()}),
        kind.from_state_dict(
            {name: torch.from_numpy(rows.copy()).double().requires_grad_() for name, rows in state.items()}
        ),
        kind.from_state_dict({name: rows.astype(np.float64) for name, rows in state.items()}),
        kind.from_state_dict({name: np.asfortranarray(rows) for name, rows in state.items()}),
        kind.from_state_dict(dict(reversed(saved.items()))),
        kind.load(tmp_path / "model.safetensors"),
        kind.load(str(tmp_path / "model.safetensors")),
        pickle.loads(pickle.dumps(model)),
        copy.deepcopy(model),
        kind.from_torch(model.to_torch()),
    ):
        assert type(again) is kind and bits(again) == bits(model) and repr(again) == repr(model)


def test_parameters_are_copies(model):
    before = bits(model)
    for rows in model.state_dict().values():
        rows[...] = 0
    assert bits(model) == before


def test_half_precision_parameters_are_widened(model):
    state = {name: torch.from_numpy(rows.copy()).bfloat16() for name, rows in model.state_dict().items()}
    again = type(model).from_state_dict(state).state_dict()
    assert all(np.array_equal(again[name], rows.float().numpy()) for name, rows in state.items())


def test_metadata_goes_with_a_model(model, tmp_path, program):
    training = json.loads(next(value for name, value in model.metadata.items() if name.endswith("training")))
    assert training["hidden"] == getattr(model, "hidden", 0) or model.head == "linear"
    assert training["objective"]["batch"] in (16, 128)
    model.metadata["note"] = "made by hand: ä, 漢字"
    try:
        model.save(tmp_path / "model.safetensors")
        again = type(model).load(tmp_path / "model.safetensors")
        assert again.metadata["note"] == "made by hand: ä, 漢字"
        for name in model.metadata:
            assert again.metadata[name] == model.metadata[name]
        again.save(tmp_path / "again.safetensors")
        assert (tmp_path / "again.safetensors").read_bytes() == (tmp_path / "model.safetensors").read_bytes()
        assert pickle.loads(pickle.dumps(model)).metadata == model.metadata
        assert program("inspect", tmp_path / "model.safetensors").stdout
    finally:
        del model.metadata["note"]
    other = type(model).from_state_dict(model.state_dict(), {"who": "me"})
    assert other.metadata["who"] == "me"


def test_empty_inputs_give_empty_outputs(vae, reward, engine):
    none = np.zeros((0, DIM), np.float32)
    assert reward.score(none, engine=engine).shape == (0,)
    assert [part.shape for part in reward.spread(none, engine=engine)] == [(0,), (0,)]
    assert [part.shape for part in vae.encode(none, engine=engine)] == [(0, 16), (0, 16)]
    assert vae.decode(np.zeros((0, 16), np.float32), engine=engine).shape == (0, DIM)


@pytest.mark.parametrize("kind", ["float32", "float16", "bfloat16"])
def test_inputs_of_any_dtype_are_widened(vae, reward, engine, kind):
    rows = torch.from_numpy(arrays_of(9)[0]).to(getattr(torch, kind))
    wide = rows.float()
    for a, b in zip(vae.encode(rows, engine=engine), vae.encode(wide, engine=engine), strict=True):
        assert a.dtype == np.float32 and np.allclose(a, b, atol=1e-5)
    assert np.allclose(reward.score(rows, engine=engine), reward.score(wide, engine=engine), atol=1e-5)


def test_outputs_may_be_written(vae, reward, small, engine):
    for made in (
        *vae.encode(small.chosen, engine=engine),
        reward.score(small.chosen, engine=engine),
        *vae.state_dict().values(),
    ):
        made[0] = 0
        assert made.flags.owndata or made.base is not None


# Training.


def test_a_vae_learns(hh, engine):
    split = lm.split(hh, 300, 100)
    vae = lm.Vae.fit(split.seeds, epochs=30, lr=1e-3, engine=engine)
    history = vae.history
    assert history["epoch"].tolist() == list(range(1, 31))
    assert (
        history["reconstruction"][-1] < 0.9 * history["reconstruction"][0]
        and history["total"][-1] < history["total"][0]
    )
    # The column is the term of the loss: minus the distance.
    objective = history["reconstruction"] + 0.01 * history["kl"] + 0.1 * history["divergence"]
    assert np.allclose(history["total"], objective, atol=1e-4)
    health = vae.health(split.validation, sigma2=0.04, engine=engine)
    figures = health.to_dict()
    assert figures["pairs"] == 300 and figures["latent"] == 16 and figures["sigma"] == pytest.approx(0.2)
    assert (
        0 < figures["explained_variance"] < 1
        and figures["held_out_explained_variance"] < figures["explained_variance"]
    )
    text = str(health)
    assert f"explained variance: {figures['explained_variance']:.4g}" in text
    assert all(f"warning: {warning}" in text for warning in health.warnings)
    lazy = lm.Vae.fit(split.seeds, epochs=1, engine=engine).health(engine=engine)
    assert any(
        "has not learnt" in warning for warning in lazy.warnings
    ) and "warning: the VAE has not learnt" in str(lazy)
    reloaded = lm.Vae.from_state_dict(vae.state_dict())
    assert (
        reloaded.health(split.validation, seeds=split.seeds, sigma2=0.04, engine=engine).to_dict()["w2"]
        == figures["w2"]
    )


def test_a_reward_model_learns(engine):
    train, test = (lm.PairSet(*arrays_of(400, seed=seed), engine=engine) for seed in (1, 2))
    model = lm.RewardModel.fit(train, test, epochs=40, lr=1e-3, patience=None, engine=engine)
    figures = model.evaluate(test, engine=engine)
    assert figures["accuracy"] > 0.8 and figures["pairs"] == 400
    history = model.history
    assert (
        history.columns == ["epoch", "step", "train_loss", "accuracy", "loss"]
        and len(history) == 40
        and model.steps == 160
    )
    best = int(history["loss"].argmin())
    assert (model.best_epoch, model.best_step) == (history["epoch"][best], history["step"][best])
    assert (
        figures["loss"] == pytest.approx(history["loss"][best], abs=1e-6)
        and figures["accuracy"] == history["accuracy"][best]
    )
    assert history["train_loss"][-1] < history["train_loss"][0]


def test_training_stops_early(engine):
    noise = np.random.default_rng(0).standard_normal((2, 60, DIM), dtype=np.float32)
    train, test = lm.PairSet(*noise, engine=engine), lm.PairSet(*-noise, engine=engine)
    model = lm.RewardModel.fit(train, test, hidden=16, epochs=50, lr=1e-2, patience=3, engine=engine)
    assert len(model.history) == model.best_epoch + 3 < 50 and model.capped is False
    longer = lm.RewardModel.fit(train, test, hidden=16, epochs=12, lr=1e-2, patience=None, engine=engine)
    assert len(longer.history) == 12 and longer.best_epoch == model.best_epoch


def test_steps_and_epochs_are_the_same_updates(small, synthetic, engine):
    for pairs, per_epoch in ((small, 4), (synthetic, 19)):
        epochs = lm.RewardModel.fit(pairs, hidden=16, batch_size=16, epochs=2, engine=engine)
        steps = lm.RewardModel.fit(pairs, hidden=16, batch_size=16, steps=2 * per_epoch, engine=engine)
        assert epochs.steps == steps.steps == 2 * per_epoch and bits(epochs) == bits(steps)
    every = lm.RewardModel.fit(
        small, small, hidden=16, batch_size=16, epochs=3, validate_every=3, patience=None, engine=engine
    )
    assert every.history["step"].tolist() == [3, 6, 9, 12]
    assert len(lm.RewardModel.fit(small, hidden=16, engine=engine).history) == 20, "as many epochs by default"


def test_every_setting_reaches_the_engine(small, engine):
    base = {"hidden": 16, "epochs": 2, "batch_size": 16, "engine": engine}
    plain = bits(lm.RewardModel.fit(small, **base))
    for setting in (
        {"lr": 1e-3},
        {"batch_size": 8},
        {"weight_decay": 1.0},
        {"input_noise": 0.5},
        {"across_prompts": 1.0},
        {"seed": 1},
        {"epochs": 3},
    ):
        assert bits(lm.RewardModel.fit(small, **{**base, **setting})) != plain, setting
    base = {"hidden": 16, "latent": 16, "epochs": 2, "batch_size": 16, "engine": engine}
    plain = bits(lm.Vae.fit(small, **base))
    for setting in (
        {"lr": 1e-3}, {"batch_size": 8}, {"beta": 1.0}, {"gamma": 1.0}, {"reconstruction": "sum"}, {"divergence": "w2-squared"}, {"seed": 1}, {"epochs": 3},
    ):  # fmt: skip
        assert bits(lm.Vae.fit(small, **{**base, **setting})) != plain, setting


def test_every_option_reaches_the_synthesis(vae, small, engine):
    base = {"fold": 5, "per_side": 4, "engine": engine}
    plain = lm.synthesize(vae, small, **base)
    assert (plain.options["fold"], plain.options["per_side"], plain.options["mode"]) == (5, 4, "plain")
    for option in (
        {"sigma2": 0.1}, {"oversample": 8}, {"likelihood": "prior"}, {"source": "mean"}, {"mode": "residual"}, {"seed": 1}, {"pairing": "match"},
    ):  # fmt: skip
        assert (
            lm.synthesize(vae, small, **{**base, **option})[60:].chosen.tobytes()
            != plain[60:].chosen.tobytes()
        ), option
    for fold, per_side, pairing, expected in (
        (4, None, "combine", 4),
        (None, 3, "combine", 16),
        (None, 3, "match", 4),
        (9, 2, "combine", 9),
    ):
        assert (
            len(lm.synthesize(vae, small, fold, per_side=per_side, pairing=pairing, engine=engine))
            == 60 * expected
        )
    still = lm.synthesize(
        vae, small, fold=2, pairing="match", sigma2=0.0, source="mean", likelihood="none", engine=engine
    )
    mu, _ = vae.encode(small.chosen, engine=engine)
    assert np.allclose(still[60:].chosen.numpy(), vae.decode(mu, engine=engine), atol=1e-5), (
        "no noise gives the reconstruction"
    )
