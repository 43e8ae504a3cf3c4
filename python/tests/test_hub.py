"""Folders and repositories of models: bits, records, model cards, errors."""

from __future__ import annotations

import importlib
import inspect
import json
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import hub_server
import numpy as np
import pytest
import yaml

import lensmith as lm
from lensmith import hub

EMBEDDING = {"model": "someone/language-model", "pooling": ["last"], "layers": [-1], "dim": 16}


def pairs(rows: int = 200, dim: int = 16, seed: int = 0) -> lm.PairSet:
    made = np.random.default_rng(seed)
    chosen, rejected = made.normal(size=(2, rows, dim)).astype(np.float32)
    return lm.PairSet(chosen + 0.4, rejected)


def reward(epochs: int = 3, validation: bool = True, **options: Any) -> lm.RewardModel:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", lm.LensmithWarning)
        held_out = pairs(60, seed=1) if validation else None
        return lm.RewardModel.fit(pairs(), held_out, epochs=epochs, engine=ENGINE, **options)


ENGINE = lm.Engine("cpu", threads=1)
MODELS = {
    "mlp": lambda: reward(hidden=32),
    "ensemble": lambda: reward(hidden=32, ensemble=3),
    "linear": lambda: reward(head="linear"),
    "linear ensemble": lambda: reward(head="linear", ensemble=4),
    "vae": lambda: lm.Vae.fit(pairs(), hidden=32, epochs=2, engine=ENGINE),
}


@pytest.mark.parametrize("name", MODELS)
def test_a_folder_gives_the_same_bits_and_record(tmp_path: Path, name: str) -> None:
    model = MODELS[name]()
    assert model.save_pretrained(tmp_path / "one") is None
    found = type(model).from_pretrained(tmp_path / "one")
    for key, value in model.state_dict().items():
        assert found.state_dict()[key].tobytes() == value.tobytes(), key
    assert found.history.to_dict() == model.history.to_dict()
    assert len(found.history) > 0
    for end in ("best_epoch", "best_step", "steps", "capped"):
        assert getattr(found, end, None) == getattr(model, end, None)

    found.save_pretrained(tmp_path / "two")
    for file in ("model.safetensors", "config.json"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes(), file
    assert sorted(p.name for p in (tmp_path / "two").iterdir()) == [
        "README.md",
        "config.json",
        "model.safetensors",
    ]


def test_the_checkpoint_is_one_that_load_reads(tmp_path: Path) -> None:
    model = reward(hidden=32)
    model.save_pretrained(tmp_path)
    loaded = lm.RewardModel.load(tmp_path / "model.safetensors")
    x = np.ones((3, 16), np.float32)
    assert loaded.score(x).tobytes() == model.score(x).tobytes()
    assert loaded.metadata["lensmith.version"] == lm.__version__
    assert json.loads(loaded.metadata["lensmith.end"])["steps"] == model.steps
    # A file, and a checkpoint without any record.
    plain = lm.RewardModel.from_state_dict(model.state_dict())
    plain.save(tmp_path / "plain.safetensors")
    assert lm.RewardModel.from_pretrained(tmp_path / "plain.safetensors").best_step is None


def test_the_configuration_says_what_is_known(tmp_path: Path) -> None:
    synthetic = lm.synthesize(MODELS["vae"](), pairs(), fold=4, seed=7, engine=ENGINE)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", lm.LensmithWarning)
        model = lm.RewardModel.fit(synthetic, pairs(60), head="linear", ensemble=2, epochs=2, lr=3e-4, seed=5)
    test = model.evaluate(pairs(80, seed=2))
    model.save_pretrained(tmp_path, embedding=EMBEDDING, figures={"test pairs": test})
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["kind"] == "reward model"
    assert config["lensmith_version"] == lm.__version__
    assert config["size"] == {"dim": 16, "head": "linear", "hidden": 1, "heads": 2}
    assert config["training"]["objective"]["adam"]["lr"] == 3e-4
    assert config["training"]["objective"]["seed"] == 5
    assert config["synthesis"]["fold"] == 4
    assert config["synthesis"]["seed"] == 7
    assert config["embedding"] == EMBEDDING
    assert config["end"]["steps"] == model.steps
    assert config["figures"]["test pairs"]["accuracy"] == test["accuracy"]

    # All of it stays when the model is loaded and saved again, and figures add up.
    again = lm.RewardModel.from_pretrained(tmp_path)
    again.save_pretrained(tmp_path / "again", figures={"other": {"accuracy": 0.5}})
    second = json.loads((tmp_path / "again" / "config.json").read_text())
    assert second["figures"].pop("other") == {"accuracy": 0.5}
    assert second == config


def card_of(folder: Path) -> tuple[dict[str, Any], str]:
    text = (folder / "README.md").read_text()
    _, head, body = text.split("---\n", 2)
    return yaml.safe_load(head), body


def test_the_card_of_a_reward_model(tmp_path: Path) -> None:
    model = reward(hidden=32, ensemble=2, epochs=12)
    figures = {"test pairs": model.evaluate(pairs(80, seed=2))}
    model.save_pretrained(tmp_path / "mine", embedding=EMBEDDING, figures=figures, card={"license": "mit"})
    head, body = card_of(tmp_path / "mine")
    assert head == {
        "library_name": "lensmith",
        "tags": ["lensmith", "reward-model", "preference", "embeddings"],
        "base_model": "someone/language-model",
        "license": "mit",
    }
    assert "# mine\n" in body
    assert "The mean of 2 heads, each of one hidden layer of 32 units" in body
    assert 'lm.RewardModel.from_pretrained("mine")' in body
    row = next(row for row in model.history.rows() if row["step"] == model.best_step)
    assert f"| pair accuracy | {row['accuracy']:.4g} |" in body
    assert f"| loss | {row['loss']:.4g} |" in body
    assert f"| accuracy | {figures['test pairs']['accuracy']:.4g} |" in body
    assert "accuracy, 95 % interval" in body
    assert "the last 8 of 12 points" in body
    assert "No figures on test pairs" not in body
    assert ("Training ended too early" in body) is bool(model.capped)


def test_a_card_says_nothing_that_is_not_known(tmp_path: Path) -> None:
    bare = lm.RewardModel.from_state_dict(reward(hidden=32).state_dict())
    bare.save_pretrained(tmp_path)
    head, body = card_of(tmp_path)
    assert "base_model" not in head
    assert "license" not in head
    for section in ("## Training", "## Figures", "Learning curve", "None", "nan"):
        assert section not in body
    assert "Which language model that was is not recorded here" in body
    assert "No figures on test pairs are recorded here" in body


@pytest.mark.parametrize(("epochs", "capped"), [(1, True), (300, False)])
def test_a_card_warns_of_training_that_was_capped(tmp_path: Path, epochs: int, capped: bool) -> None:
    model = reward(head="linear", epochs=epochs, lr=0.05, patience=5)
    assert model.capped is capped
    model.save_pretrained(tmp_path)
    assert ("**Training ended too early:**" in card_of(tmp_path)[1]) is capped


def test_without_validation_pairs_a_card_has_no_accuracy(tmp_path: Path) -> None:
    reward(validation=False).save_pretrained(tmp_path / "mine")
    body = card_of(tmp_path / "mine")[1]
    assert "Learning curve" in body
    assert "accuracy" not in body
    assert "validation" not in body


def test_the_card_of_a_vae_has_its_health(tmp_path: Path) -> None:
    model = MODELS["vae"]()
    health = model.health(pairs(50, seed=3), engine=ENGINE)
    model.save_pretrained(tmp_path, figures={"health": health})
    head, body = card_of(tmp_path)
    assert head["tags"][1] == "vae"
    assert f"| explained variance | {health.to_dict()['explained_variance']:.4g} |" in body
    assert health.warnings
    assert all(f"- warning: {warning}" in body for warning in health.warnings)
    assert "| gamma | 0.1 |" in body


def test_the_card_of_a_checkpoint_of_the_program(tmp_path: Path) -> None:
    """Its record stands under other names, of which each is there or not."""
    metadata = {
        "lensmith.version": "0.0.9",
        "lensmith.training": json.dumps({"updates": {"epochs": 7}, "objective": {"seed": 3}}),
        "lensmith.data": json.dumps({"sources": [{"file": "a", "rows": 1200}, {"file": "b", "rows": 34}]}),
        "lensmith.result": json.dumps(
            {"arm": "matched", "pairs": 1234, "test": {"pairs": 50, "accuracy": 0.6}}
        ),
    }
    model = lm.RewardModel.from_state_dict(reward(hidden=32).state_dict(), metadata)
    model.save_pretrained(tmp_path)
    body = card_of(tmp_path)[1]
    for row in ("training pairs | 1,234", "epochs | 7", "seed | 3", "arm | matched", "accuracy | 0.6"):
        assert f"| {row} |" in body
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["lensmith_version"] == "0.0.9"
    assert config["result"]["arm"] == "matched"


def test_a_card_of_someone_else_is_left_alone(tmp_path: Path) -> None:
    model = reward(hidden=32)
    model.save_pretrained(tmp_path, card={"license": "mit"})
    model.save_pretrained(tmp_path, card={"license": "apache-2.0"})
    assert card_of(tmp_path)[0]["license"] == "apache-2.0"
    (tmp_path / "README.md").write_text("mine")
    model.save_pretrained(tmp_path)
    assert (tmp_path / "README.md").read_text() == "mine"


def test_yaml_is_read_back_as_it_was() -> None:
    fields = {
        "tags": ["rlhf", "lensmith"],
        "license": "no",
        "base_model": "a/b: c",
        "version": 1.5,
        "datasets": ["x/y", "- z", "true"],
        "inference": False,
    }
    text = hub.yaml_head({"library_name": "lensmith", "tags": ["lensmith", "vae"]}, fields)
    found = yaml.safe_load(text.removeprefix("---\n").removesuffix("---"))
    assert found == {"library_name": "lensmith", **fields, "tags": ["lensmith", "vae", "rlhf"]}


def test_the_record_of_an_embedding(tmp_path: Path) -> None:
    settings = {**EMBEDDING, "kind": "pairs", "rows": 7, "shard_rows": 2048, "dataset": "0f"}
    (tmp_path / "embed.json").write_text(json.dumps({"format": 1, "settings": settings}))
    assert hub.embedding_record(tmp_path) == EMBEDDING
    assert hub.embedding_record(tmp_path / "embed.json") == EMBEDDING
    assert hub.embedding_record(EMBEDDING) == EMBEDDING
    with pytest.raises(ValueError, match=r"expected an entry 'model' with a name, found \['pooling'\]"):
        hub.embedding_record({"pooling": ["last"]})
    with pytest.raises(FileNotFoundError, match=r"found no .*nowhere"):
        hub.embedding_record(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="expected one of 16 values, found one of 8"):
        reward(hidden=32).save_pretrained(tmp_path / "out", embedding={**EMBEDDING, "dim": 8})
    assert not (tmp_path / "out").exists()
    # A folder of this machine is no name of the Hub.
    assert hub.base_model({"model": "/models/mine"}) is None
    assert hub.base_model({"model": str(tmp_path)}) is None


def test_errors_say_what_was_expected(tmp_path: Path) -> None:
    reward(hidden=32).save_pretrained(tmp_path / "reward")
    MODELS["vae"]().save_pretrained(tmp_path / "vae")
    with pytest.raises(
        ValueError, match=r"expected a VAE, found a reward model: load it with lensmith.RewardModel"
    ):
        lm.Vae.from_pretrained(tmp_path / "reward")
    with pytest.raises(ValueError, match=r"expected a reward model, found a VAE: load it with lensmith.Vae"):
        lm.RewardModel.from_pretrained(str(tmp_path / "vae"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"expected a file model.safetensors, found nothing"):
        lm.Vae.from_pretrained(tmp_path / "empty")
    (tmp_path / "empty" / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(FileNotFoundError, match=r"model.safetensors, found pytorch_model.bin"):
        lm.Vae.from_pretrained(tmp_path / "empty")
    with pytest.raises(FileNotFoundError, match=r"found no folder .*nowhere/here"):
        lm.Vae.from_pretrained(tmp_path / "nowhere" / "here")
    (tmp_path / "empty" / "model.safetensors").write_bytes(b"no checkpoint")
    with pytest.raises(lm.LensmithError, match=r"model.safetensors"):
        lm.Vae.from_pretrained(tmp_path / "empty")
    with pytest.raises(TypeError, match="'private' needs push_to_hub=True"):
        reward(hidden=32).save_pretrained(tmp_path / "reward", private=True)
    with pytest.raises(TypeError, match="found object"):
        reward(hidden=32).save_pretrained(tmp_path / "reward", figures={"x": object()})


class FakeHub:
    """The calls that are made of the Hub, and its repositories as folders."""

    def __init__(self, root: Path) -> None:
        self.root, self.calls, self.tokens = root, [], []

    def __call__(self, token: Any = None) -> FakeHub:
        self.tokens.append(token)
        return self

    def create_repo(self, *, repo_id: str, private: Any, exist_ok: bool) -> Any:
        assert exist_ok
        self.calls.append(("create_repo", repo_id, private))
        found = repo_id if "/" in repo_id else f"me/{repo_id}"
        (self.root / found).mkdir(parents=True, exist_ok=True)
        return SimpleNamespace(repo_id=found)

    def create_branch(self, *, repo_id: str, branch: str, exist_ok: bool) -> None:
        assert exist_ok
        self.calls.append(("create_branch", repo_id, branch))

    def file_exists(self, repo_id: str, filename: str, *, revision: Any = None) -> bool:
        return (self.root / repo_id / filename).is_file()

    def hf_hub_download(self, repo_id: str, filename: str, **options: Any) -> str:
        from huggingface_hub.errors import EntryNotFoundError

        self.calls.append(("download", repo_id, filename, options))
        if not (self.root / repo_id / filename).is_file():
            raise EntryNotFoundError(filename)
        return str(self.root / repo_id / filename)

    def upload_folder(self, *, repo_id: str, folder_path: Path, **options: Any) -> str:
        self.calls.append(("upload", repo_id, sorted(p.name for p in folder_path.iterdir()), options))
        for file in folder_path.iterdir():
            (self.root / repo_id / file.name).write_bytes(file.read_bytes())
        return f"https://huggingface.co/{repo_id}/commit/1"


@pytest.fixture
def fake_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeHub:
    made = FakeHub(tmp_path / "hub")
    module = importlib.import_module("huggingface_hub")
    monkeypatch.setattr(module, "HfApi", made)
    monkeypatch.setattr(module, "hf_hub_download", made.hf_hub_download)
    return made


def test_push_and_pull(tmp_path: Path, fake_hub: FakeHub) -> None:
    model = reward(head="linear")
    commit = model.push_to_hub(
        "mine", embedding=EMBEDDING, private=True, token="secret", branch="v1", commit_message="first"
    )
    assert commit == "https://huggingface.co/me/mine/commit/1"
    assert fake_hub.tokens == ["secret"]
    assert fake_hub.calls[0] == ("create_repo", "mine", True)
    assert fake_hub.calls[1] == ("create_branch", "me/mine", "v1")
    what, where, files, options = fake_hub.calls[2]
    assert (what, where) == ("upload", "me/mine")
    assert files == ["README.md", "config.json", "model.safetensors"]
    assert options["revision"] == "v1"
    assert options["commit_message"] == "first"
    assert options["repo_type"] == "model"
    assert card_of(tmp_path / "hub" / "me" / "mine")[0]["base_model"] == "someone/language-model"

    found = lm.RewardModel.from_pretrained("me/mine", revision="v1", token="secret", cache_dir=tmp_path)
    assert found.state_dict()["score.weight"].tobytes() == model.state_dict()["score.weight"].tobytes()
    options = fake_hub.calls[-1][3]
    assert (options["revision"], options["token"], options["cache_dir"]) == ("v1", "secret", tmp_path)


def test_a_card_that_was_edited_on_the_hub_stays(tmp_path: Path, fake_hub: FakeHub) -> None:
    model = reward(head="linear")
    model.push_to_hub("me/mine", card={"license": "mit"})
    card = tmp_path / "hub" / "me" / "mine" / "README.md"
    model.push_to_hub("me/mine", card={"license": "apache-2.0"})
    assert "license: apache-2.0" in card.read_text()
    card.write_text("edited")
    model.push_to_hub("me/mine")
    assert card.read_text() == "edited"


def test_saving_can_push(tmp_path: Path, fake_hub: FakeHub) -> None:
    model = MODELS["vae"]()
    commit = model.save_pretrained(tmp_path / "my-vae", push_to_hub=True, create_pr=True)
    assert commit == "https://huggingface.co/me/my-vae/commit/1"
    assert fake_hub.calls[-1][3]["create_pr"] is True
    assert lm.Vae.from_pretrained("me/my-vae").latent == model.latent


OVER_HTTP = """
import sys
import numpy as np, lensmith as lm
model = lm.RewardModel.load(sys.argv[1])
print(model.push_to_hub("me/mine", embedding={"model": "someone/language-model"}, token="hf_secret", private=True))
found = lm.RewardModel.from_pretrained("me/mine", cache_dir=sys.argv[2])
assert (found.state_dict()["0.weight"] == model.state_dict()["0.weight"]).all()
try:
    lm.Vae.from_pretrained("me/mine", cache_dir=sys.argv[2])
except ValueError as error:
    print(error)
"""


def test_huggingface_hub_itself_takes_and_gives_it(tmp_path: Path, run_python: Any) -> None:
    """What FakeHub stands for in the other tests, over HTTP."""
    model = reward(hidden=32)
    model.save(tmp_path / "model.safetensors")
    with hub_server.running() as server:
        places = {"HF_ENDPOINT": server.address, "HF_HOME": str(tmp_path / "home"), "NO_PROXY": "127.0.0.1"}
        off = {"HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
        done = run_python(OVER_HTTP, tmp_path / "model.safetensors", tmp_path / "cache", **places, **off)
    commit, refused = done.stdout.splitlines()
    assert commit == f"{server.address}/me/mine/commit/{hub_server.COMMIT}"
    assert "expected a VAE, found a reward model" in refused
    assert sorted(server.files) == ["README.md", "config.json", "model.safetensors"]
    assert b"base_model: someone/language-model" in server.files["README.md"]
    assert all(request.endswith(" Bearer hf_secret") for request in server.requests)


def test_arguments_are_those_of_modelhubmixin() -> None:
    mixin = pytest.importorskip("huggingface_hub").ModelHubMixin
    ours = {"config": "embedding", "model_card_kwargs": "card", "pretrained_model_name_or_path": "name_or_folder"}
    for name in ("push_to_hub", "from_pretrained"):
        theirs = inspect.signature(getattr(mixin, name)).parameters.values()
        own = inspect.signature(getattr(lm.RewardModel, name)).parameters
        for parameter in theirs:
            if parameter.kind is not parameter.VAR_KEYWORD:
                assert ours.get(parameter.name, parameter.name) in {*own, "self"}, parameter.name


def test_a_repository_without_a_model_is_named(fake_hub: FakeHub) -> None:
    with pytest.raises(FileNotFoundError, match=r"me/other at v2: .* file model.safetensors, found none"):
        lm.RewardModel.from_pretrained("me/other", revision="v2")


def test_folders_need_no_other_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = reward(head="linear")
    for name in [name for name in sys.modules if name.split(".")[0] == "huggingface_hub"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    model.save_pretrained(tmp_path)
    assert lm.RewardModel.from_pretrained(tmp_path).dim == 16
    with pytest.raises(ImportError, match="pip install huggingface_hub"):
        lm.RewardModel.from_pretrained("someone/reward")
    with pytest.raises(ImportError, match="pip install huggingface_hub"):
        model.push_to_hub("someone/reward")
