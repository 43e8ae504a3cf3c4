"""Reward models beside their language models: as sequence classification, and in a pipeline."""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path
from typing import Any

import embed_models as made
import numpy as np
import pytest
import torch
import transformers
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import lensmith as lm
from lensmith.embed import embed, embed_texts
from lensmith.export import RewardPipeline, linear_head, to_sequence_classification

torch.set_num_threads(1)
ENGINE = lm.Engine("cpu", threads=1)
TEXTS = ["a", "A longer text, of several words.", "Ends with a mark</s>", "Pad <pad> within.", "Line\nbreak"]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The folder of a tiny Llama with random weights."""
    return made.saved(tmp_path_factory.mktemp("base"), bos_token_id=made.BOS, eos_token_id=made.EOS)


def reward(head: str = "linear", ensemble: int = 1, dim: int = 32, seed: int = 0) -> lm.RewardModel:
    """A reward model of random weights and a constant that shows."""
    draw = np.random.default_rng(seed).normal
    if head == "linear":
        state = {"score.weight": draw(size=(ensemble, dim)), "score.bias": 3 + draw(size=ensemble)}
    else:
        state = {
            "0.weight": draw(size=(ensemble * 32, dim)),
            "0.bias": draw(size=ensemble * 32),
            "2.weight": draw(size=(ensemble, 32)),
            "2.bias": draw(size=ensemble),
        }
    return lm.RewardModel.from_state_dict({k: v.astype(np.float32) for k, v in state.items()})


def embeddings(model: Any, texts: list[Any] = TEXTS, tokenizer: Any = None, **options: Any) -> torch.Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return embed_texts(texts, model, tokenizer=tokenizer or made.tokenizer(), progress=False, **options)


def rewards_of(folder: Path, texts: list[str] = TEXTS, side: str | None = None, **load: Any) -> np.ndarray:
    """What transformers makes of a folder, with nothing of lensmith."""
    model = AutoModelForSequenceClassification.from_pretrained(folder, **load)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    sides = {} if side is None else {"padding_side": side}
    batch = tokenizer(texts, return_tensors="pt", padding=True, **sides)
    with torch.inference_mode():
        return model(**batch).logits[:, 0].float().numpy()


# Sequence classification


@pytest.mark.parametrize("ensemble", [1, 4])
@pytest.mark.parametrize("loaded", [False, True])
def test_rewards_differ_from_score_by_one_constant(
    tmp_path: Path, base: str, ensemble: int, loaded: bool
) -> None:
    model = reward(ensemble=ensemble)
    source = made.load(base) if loaded else base
    export = model.to_sequence_classification(source, tmp_path, tokenizer=base if loaded else None)
    expected = model.score(embeddings(base), engine=ENGINE)
    assert export.constant == pytest.approx(model.state_dict()["score.bias"].mean(), abs=1e-6)
    for side in ("right", "left"):
        found = rewards_of(tmp_path, side=side)
        np.testing.assert_allclose(found + export.constant, expected, atol=1e-5)
    alone = np.concatenate([rewards_of(tmp_path, [text]) for text in TEXTS])
    np.testing.assert_allclose(alone + export.constant, expected, atol=1e-5)
    assert export.heads == ensemble
    assert f"+ {export.constant:.6g}" in str(export)


def test_the_folder_says_what_it_is(tmp_path: Path, base: str) -> None:
    model = reward(ensemble=2)
    export = to_sequence_classification(model, base, tmp_path, card={"license": "mit"})
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["architectures"] == ["LlamaForSequenceClassification"]
    assert config["id2label"] == {"0": "reward"}
    assert config["problem_type"] == "regression"
    assert config["value_head_prefix"] == "score"
    assert config["pad_token_id"] == export.pad_token_id
    assert config["lensmith"]["constant"] == export.constant
    assert config["lensmith"]["heads"] == 2
    card = (tmp_path / "README.md").read_text()
    assert f"is this reward plus {export.constant:.9g}" in card
    assert "library_name: transformers\n" in card
    assert "pipeline_tag: text-classification\n" in card
    assert "license: mit\n" in card
    assert f"`{export.pad_token}`, the pad token" in card
    assert base not in card


def test_the_pipeline_of_transformers_gives_rewards_and_no_probabilities(tmp_path: Path, base: str) -> None:
    model = reward()
    export = to_sequence_classification(model, base, tmp_path)
    judge = transformers.pipeline("text-classification", model=str(tmp_path), device="cpu")
    found = [answer["score"] for answer in judge(TEXTS, batch_size=3)]
    expected = model.score(embeddings(base), engine=ENGINE)
    np.testing.assert_allclose(np.array(found) + export.constant, expected, atol=1e-5)
    assert judge("a")[0]["label"] == "reward"


def test_a_text_that_ends_with_the_end_of_text_is_judged_there(tmp_path: Path, base: str) -> None:
    """With the end of text for a pad token, transformers would read the reward one token too early."""
    model = reward()
    export = to_sequence_classification(model, base, tmp_path)
    assert (export.pad_token, export.pad_token_id) == ("<pad>", made.PAD)
    texts = ["two ends</s></s>", "none"]
    expected = model.score(embeddings(base, texts), engine=ENGINE) - export.constant
    np.testing.assert_allclose(rewards_of(tmp_path, texts), expected, atol=1e-5)

    wrong = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    wrong.config.pad_token_id = made.EOS
    batch = AutoTokenizer.from_pretrained(tmp_path)(texts[:1], return_tensors="pt")
    with torch.inference_mode():
        assert abs(float(wrong(**batch).logits[0, 0]) - expected[0]) > 1e-3


def test_which_pad_token_is_chosen(tmp_path: Path, base: str) -> None:
    model = reward()
    eos = made.tokenizer(pad="</s>")
    assert to_sequence_classification(model, base, tmp_path / "eos", tokenizer=eos).pad_token == "<pad>"
    assert eos.pad_token == "</s>"

    kept = made.tokenizer()
    kept.add_special_tokens({"pad_token": "<unused>"})
    found = to_sequence_classification(model, base, tmp_path / "kept", tokenizer=kept)
    assert (found.pad_token, found.pad_token_id) == ("<unused>", 259)
    assert (
        len(AutoModelForSequenceClassification.from_pretrained(tmp_path / "kept").model.embed_tokens.weight)
        == 260
    )

    asked = to_sequence_classification(model, base, tmp_path / "asked", pad_token="<mine>")
    assert (asked.pad_token, asked.pad_token_id) == ("<mine>", 259)
    expected = model.score(embeddings(base), engine=ENGINE) - asked.constant
    np.testing.assert_allclose(rewards_of(tmp_path / "asked"), expected, atol=1e-5)
    for token in ("</s>", "<s>"):
        with pytest.raises(ValueError, match=f"expected a token that no text ends with.*{token}"):
            to_sequence_classification(model, base, tmp_path / "no", pad_token=token)
    # A token of the chat template ends texts as well.
    chat = made.tokenizer(chat="{% for m in messages %}{{ m['content'] }}<pad>{% endfor %}", pad="<pad>")
    found = to_sequence_classification(model, base, tmp_path / "chat", tokenizer=chat)
    assert found.pad_token == "<|pad|>"


def test_a_loaded_model_is_not_changed(tmp_path: Path, base: str) -> None:
    source = made.load(base).train()
    before = {name: value.clone() for name, value in source.state_dict().items()}
    config = source.config.to_json_string()
    for pad in ("<new>", "<pad>"):
        to_sequence_classification(reward(), source, tmp_path / pad, tokenizer=base, pad_token=pad)
    assert source.config.to_json_string() == config
    assert all(module.training for module in source.modules())
    assert list(source.state_dict()) == list(before)
    assert all(torch.equal(value, before[name]) for name, value in source.state_dict().items())


def test_a_causal_model_and_shards(tmp_path: Path) -> None:
    torch.manual_seed(0)
    source = transformers.LlamaForCausalLM(made.config()).eval()
    source.save_pretrained(tmp_path / "base")
    made.tokenizer().save_pretrained(tmp_path / "base")
    model = reward()
    for name, given in (("name", str(tmp_path / "base")), ("loaded", source)):
        export = to_sequence_classification(
            model, given, tmp_path / name, tokenizer=made.tokenizer(), max_shard_size="40KB"
        )
        assert len(list((tmp_path / name).glob("*.safetensors"))) > 1
        expected = model.score(embeddings(source), engine=ENGINE) - export.constant
        np.testing.assert_allclose(rewards_of(tmp_path / name), expected, atol=1e-5)


def test_models_of_other_kinds(tmp_path: Path) -> None:
    model = reward()
    gpt2 = made.gpt2()
    export = to_sequence_classification(model, gpt2, tmp_path / "gpt2", tokenizer=made.tokenizer())
    expected = model.score(embeddings(gpt2), engine=ENGINE) - export.constant
    np.testing.assert_allclose(rewards_of(tmp_path / "gpt2"), expected, atol=1e-5)
    with pytest.raises(ValueError, match=r"a linear layer `score`.*found BertForSequenceClassification"):
        to_sequence_classification(model, made.bert(), tmp_path / "bert", tokenizer=made.tokenizer())


def test_bf16(tmp_path: Path) -> None:
    """The head stays float32 in the folder; what is lost is lost where the folder is loaded in BF16."""
    torch.manual_seed(0)
    source = transformers.LlamaModel(made.config(dtype="bfloat16")).to(torch.bfloat16).eval()
    source.save_pretrained(tmp_path / "base")
    made.tokenizer().save_pretrained(tmp_path / "base")
    model = reward()
    export = to_sequence_classification(model, str(tmp_path / "base"), tmp_path / "out")
    assert export.dtype == "bfloat16"
    weight, constant = linear_head(model)
    stored = lm.RewardModel.load(tmp_path / "out" / "model.safetensors").state_dict()["score.weight"]
    assert stored.tobytes() == weight.tobytes()

    # In float32 nothing of the head is lost.
    single = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out", dtype=torch.float32)
    assert single.score.weight.detach().numpy().tobytes() == weight.tobytes()
    inner = made.load(str(tmp_path / "base"))
    expected = model.score(embeddings(inner), engine=ENGINE) - constant
    np.testing.assert_allclose(rewards_of(tmp_path / "out", dtype=torch.float32), expected, atol=1e-5)

    # By default the head becomes BF16, and so do rewards.
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    assert loaded.score.weight.dtype == torch.bfloat16
    half = rewards_of(tmp_path / "out")
    full = model.score(embeddings(str(tmp_path / "base")), engine=ENGINE) - constant
    np.testing.assert_allclose(half, full, atol=float(np.abs(weight).sum()) / 64)
    assert not np.allclose(half, full, atol=1e-5)
    np.testing.assert_array_equal(half, torch.tensor(half).bfloat16().float().numpy())


@pytest.mark.parametrize("constant", [0.01, 100.0])
def test_what_bf16_loses_is_measured(tmp_path: Path, base: str, constant: float) -> None:
    """A large constant in all rewards takes the bits of their differences."""
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(2, 500, 32)).astype(np.float32)
    rows[..., 0] = 1
    weight = rng.normal(size=(1, 32)).astype(np.float32)
    weight[0, 0] = constant
    model = lm.RewardModel.from_state_dict({"score.weight": weight, "score.bias": np.float32([-constant])})
    pairs = lm.PairSet(*rows)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        export = to_sequence_classification(model, base, tmp_path, pairs=pairs)
    said = [w for w in told if issubclass(w.category, lm.LensmithWarning)]

    exact = model.score(rows[0], engine=ENGINE) - model.score(rows[1], engine=ENGINE)
    low, head = (torch.tensor(rows).bfloat16(), torch.tensor(weight).bfloat16())
    chosen, rejected = (torch.nn.functional.linear(side, head)[:, 0] for side in low)
    expected = float((np.sign(exact) != np.sign((chosen - rejected).float().numpy())).mean())
    assert export.bf16_changed == pytest.approx(expected, abs=0.005)
    if constant == 100:
        assert export.bf16_step == 0.5
        assert export.bf16_changed > 0.02
        assert len(said) == 1
        assert "dtype=torch.float32" in str(said[0].message)
    else:
        assert export.bf16_step < 1e-4
        assert export.bf16_changed < 0.01
        assert not said


def test_mlp_heads_are_refused(tmp_path: Path, base: str) -> None:
    with pytest.raises(ValueError, match=r"expected linear heads, found MLPs.*RewardPipeline"):
        reward("mlp").to_sequence_classification(base, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_cannot_be_exported_is_refused(tmp_path: Path, base: str) -> None:
    out = tmp_path / "out"
    with pytest.raises(ValueError, match=r"expected hidden states of 48 values.*found 32"):
        to_sequence_classification(reward(dim=48), base, out)
    for key, value in (("pooling", ["mean"]), ("layers", [2]), ("normalize", True)):
        record = {"model": "x", key: value}
        model = lm.RewardModel.from_state_dict(
            reward().state_dict(), {"lensmith.embedding": json.dumps(record)}
        )
        with pytest.raises(ValueError, match=f"expected embeddings with {key}.*RewardPipeline"):
            to_sequence_classification(model, base, out)
    for layers in ([-1], [4]):
        record = {"model": "x", "pooling": ["last"], "layers": layers, "normalize": False}
        model = lm.RewardModel.from_state_dict(
            reward().state_dict(), {"lensmith.embedding": json.dumps(record)}
        )
        to_sequence_classification(model, base, tmp_path / "fine")
    with pytest.raises(ValueError, match="expected one beside a model"):
        to_sequence_classification(reward(), made.llama(), out)
    with pytest.raises(ValueError, match="dtype: expected None beside a loaded model"):
        to_sequence_classification(reward(), made.llama(), out, tokenizer=base, dtype="bf16")
    with pytest.raises(ValueError, match=r"revision: expected None beside a loaded model"):
        to_sequence_classification(reward(), made.llama(), out, tokenizer=base, revision="main")
    adapted = made.llama()
    adapted.get_base_model = lambda: adapted
    with pytest.raises(ValueError, match=r"without adapters.*merge_and_unload\(\)"):
        to_sequence_classification(reward(), adapted, out, tokenizer=base)
    quantised = made.llama()
    quantised.config.quantization_config = {"quant_method": "bitsandbytes"}
    with pytest.raises(ValueError, match="weights that are not quantised"):
        to_sequence_classification(reward(), quantised, out, tokenizer=base)
    with pytest.raises(ValueError, match="pairs: expected embeddings of 32 values, found 8"):
        pairs = lm.PairSet(np.ones((4, 8), np.float32), np.zeros((4, 8), np.float32))
        to_sequence_classification(reward(), base, out, pairs=pairs)
    assert not out.exists()


def test_a_class_that_judges_otherwise_is_refused(
    tmp_path: Path, base: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind = transformers.LlamaForSequenceClassification
    own = kind.forward

    def first_token(self: Any, **inputs: Any) -> Any:
        out = own(self, **inputs)
        out.logits = self.score(self.model(**inputs).last_hidden_state)[:, 0]
        return out

    monkeypatch.setattr(kind, "forward", first_token)
    with pytest.raises(ValueError, match="expected a class that judges the last token"):
        to_sequence_classification(reward(), base, tmp_path / "out")


def test_openrlhf_finds_the_head(tmp_path: Path, base: str) -> None:
    """OpenRLHF builds its own class around `AutoModel`'s: the language model under its prefix, a linear layer
    without bias under `value_head_prefix`, and the last token by the attention mask.
    """
    model = reward(ensemble=2)
    export = to_sequence_classification(model, base, tmp_path)
    config = transformers.AutoConfig.from_pretrained(tmp_path)
    inner = transformers.AutoModel._model_mapping[type(config)]
    prefix = getattr(config, "value_head_prefix", "other")

    class Judge(inner.__base__):
        def __init__(self, config: Any) -> None:
            super().__init__(config)
            setattr(self, self.base_model_prefix, inner(config))
            setattr(self, prefix, torch.nn.Linear(config.hidden_size, 1, bias=False))
            self.post_init()

    judge, report = Judge.from_pretrained(tmp_path, config=config, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    batch = tokenizer(TEXTS, return_tensors="pt", padding=True, padding_side="left")
    mask = batch["attention_mask"]
    places = (mask.cumsum(-1) - 1).masked_fill(mask == 0, 1)
    with torch.inference_mode():
        states = judge.model(batch["input_ids"], attention_mask=mask, position_ids=places).last_hidden_state
        found = getattr(judge, prefix)(states)[:, -1, 0].numpy()
    expected = model.score(embeddings(base), engine=ENGINE) - export.constant
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_a_reward_model_of_transformers_comes_back(tmp_path: Path, base: str) -> None:
    """The exported head is a checkpoint of lensmith as well."""
    model = reward()
    export = to_sequence_classification(model, base, tmp_path)
    found = lm.RewardModel.from_pretrained(tmp_path)
    rows = embeddings(base)
    np.testing.assert_allclose(found.score(rows) + export.constant, model.score(rows), atol=1e-5)


@pytest.mark.parametrize("missing", ["torch", "transformers"])
def test_what_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: str) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(ImportError, match=f"pip install {missing}"):
        to_sequence_classification(reward(), "x/y", tmp_path / "out")
    with pytest.raises(ImportError, match=f"pip install {missing}"):
        RewardPipeline("x/y", reward())


# The pipeline


@pytest.mark.parametrize("head", ["mlp", "linear"])
def test_a_pipeline_scores_what_embed_embeds(base: str, head: str) -> None:
    model = reward(head, ensemble=3)
    judge = RewardPipeline(base, model, device="cpu", engine=ENGINE)
    rows = embeddings(base)
    np.testing.assert_allclose(judge(TEXTS), model.score(rows), atol=1e-5)
    mean, deviation = judge.spread(TEXTS)
    np.testing.assert_allclose(mean, model.score(rows), atol=1e-5)
    np.testing.assert_allclose(deviation, model.spread(rows)[1], atol=1e-5)
    assert (deviation > 1e-3).all()
    assert judge(TEXTS).dtype == np.float32
    assert judge([]).shape == (0,)


def test_a_pipeline_takes_prompts_and_conversations(base: str) -> None:
    model = reward("mlp")
    judge = RewardPipeline(base, model, device="cpu", engine=ENGINE)
    user, assistant = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}
    chat = model.score(embeddings(base, ["<s><|user|>Hi</s><|assistant|>Hello</s>"]))
    for found in (
        judge([user, assistant]),
        judge([[user, assistant]]),
        judge([[assistant]], [[user]]),
        judge(["Hello"], [[user]]),
    ):
        np.testing.assert_allclose(found, chat, atol=1e-5)
    np.testing.assert_allclose(judge(["b"], ["a "]), judge("a b"), atol=1e-6)
    with pytest.raises(ValueError, match="prompts: expected 2, one for each response, found 1"):
        judge(["a", "b"], ["c"])
    with pytest.raises(ValueError, match="response 1: expected a response, found an empty text"):
        judge(["a", " "])


def test_a_pipeline_of_other_embeddings(base: str) -> None:
    model = reward("mlp", dim=128)
    options = {"pooling": "last+mean", "layers": [-1, 2]}
    judge = RewardPipeline(base, model, device="cpu", engine=ENGINE, **options)
    np.testing.assert_allclose(judge(TEXTS), model.score(embeddings(base, **options)), atol=1e-5)
    with pytest.raises(ValueError, match=r"expected embeddings of 128 values.*found 32"):
        RewardPipeline(base, model, device="cpu")


@pytest.mark.parametrize("own", [False, True])
def test_a_pipeline_comes_back_from_a_folder(tmp_path: Path, base: str, own: bool) -> None:
    model = reward("mlp", ensemble=2, dim=64)
    chat = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    options: dict[str, Any] = {"pooling": "last+first", "max_length": 40, "template": chat}
    tokenizer = made.tokenizer(chat=None) if own else None
    one = RewardPipeline(base, model, tokenizer, device="cpu", engine=ENGINE, **options)
    one.save_pretrained(tmp_path / "judge", figures={"test pairs": {"accuracy": 0.75}})
    names = {p.name for p in (tmp_path / "judge").iterdir()}
    assert names == {"README.md", "config.json", "model.safetensors"} | ({"tokenizer"} if own else set())

    other = RewardPipeline.from_pretrained(tmp_path / "judge", device="cpu", engine=ENGINE)
    talk = [{"role": "user", "content": "Hi " * 30}, {"role": "assistant", "content": "Hello"}]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        np.testing.assert_array_equal(one(talk), other(talk))
    assert other.settings == one.settings
    assert other.tokenizer.chat_template == (None if own else made.CHAT)
    config = json.loads((tmp_path / "judge" / "config.json").read_text())
    assert config["embedding"]["pooling"] == ["last", "first"]
    assert config["figures"]["test pairs"]["accuracy"] == 0.75
    # It is a folder of a reward model, too.
    assert lm.RewardModel.from_pretrained(tmp_path / "judge").heads == 2

    moved = RewardPipeline.from_pretrained(
        tmp_path / "judge", base_model=made.load(base), tokenizer=base, engine=ENGINE
    )
    np.testing.assert_allclose(moved(talk), one(talk), atol=1e-5)


def test_a_record_of_embed_is_enough_for_a_pipeline(tmp_path: Path, base: str) -> None:
    embed(made.plain_pairs(), base, out=tmp_path / "pairs", pooling="mean", device="cpu", progress=False)
    model = reward("mlp")
    model.save_pretrained(tmp_path / "judge", embedding=tmp_path / "pairs")
    judge = RewardPipeline.from_pretrained(tmp_path / "judge", device="cpu", engine=ENGINE)
    np.testing.assert_allclose(judge(TEXTS), model.score(embeddings(base, pooling="mean")), atol=1e-5)

    # Other options than those recorded are told.
    with pytest.warns(lm.LensmithWarning, match=r"other embeddings: pooling: \['mean'\], here \['last'\]"):
        RewardPipeline.from_pretrained(tmp_path / "judge", device="cpu", pooling="last")
    other = made.llama(seed=1)
    with pytest.warns(lm.LensmithWarning, match="trained on other embeddings: weights"):
        RewardPipeline.from_pretrained(tmp_path / "judge", base_model=other, tokenizer=base)


def test_what_a_pipeline_needs_is_said(tmp_path: Path, base: str) -> None:
    reward("mlp").save_pretrained(tmp_path / "bare")
    with pytest.raises(ValueError, match="expected a reward model that says which language model"):
        RewardPipeline.from_pretrained(tmp_path / "bare")
    judge = RewardPipeline(made.llama(), str(tmp_path / "bare"), made.tokenizer(), engine=ENGINE)
    with pytest.raises(ValueError, match="expected one that was loaded from a name or path"):
        judge.save_pretrained(tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_pipeline_goes_to_the_hub(tmp_path: Path, base: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from test_hub import FakeHub

    hub = FakeHub(tmp_path)
    monkeypatch.setattr("huggingface_hub.HfApi", hub)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", hub.hf_hub_download)
    judge = RewardPipeline(base, reward("mlp"), device="cpu", engine=ENGINE)
    assert judge.push_to_hub("me/judge", private=True).endswith("me/judge/commit/1")
    found = RewardPipeline.from_pretrained("me/judge", device="cpu", engine=ENGINE)
    np.testing.assert_array_equal(found(TEXTS), judge(TEXTS))
