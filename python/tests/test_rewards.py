"""Reward functions as TRL and OpenRLHF call them."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import logging
import pickle
import re
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import embed_models as made
import numpy as np
import pytest
import torch
import transformers
from conftest import ROOT, environment

import lensmith as lm
from lensmith.embed import embed_texts
from lensmith.export import RewardPipeline, to_sequence_classification
from lensmith.rewards import OpenRlhfReward, RewardFunction, Together, openrlhf_reward_func, reward_func

torch.set_num_threads(1)
ENGINE = lm.Engine("cpu", threads=1)
PROMPTS = ["Name a prime. ", "And a square? "]
COMPLETIONS = ["Seven, I would say.", "Nine"]


def turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


CHATS = [[turn("user", prompt)] for prompt in PROMPTS]
ANSWERS = [[turn("assistant", completion)] for completion in COMPLETIONS]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The folder of a tiny Llama with random weights."""
    return made.saved(tmp_path_factory.mktemp("base"), bos_token_id=made.BOS, eos_token_id=made.EOS)


def reward(heads: int = 3) -> lm.RewardModel:
    """A reward model of random weights."""
    draw = np.random.default_rng(0).normal
    shapes = {"0.weight": (heads * 32, 32), "0.bias": heads * 32, "2.weight": (heads, 32), "2.bias": heads}
    return lm.RewardModel.from_state_dict({k: np.float32(draw(size=n)) for k, n in shapes.items()})


def expected(base: str, texts: list[Any], heads: int = 3, **options: Any) -> tuple[np.ndarray, np.ndarray]:
    """Rewards and spreads by embed_texts and the reward model, which the functions must reproduce."""
    rows = embed_texts(texts, base, progress=False, **options)
    return reward(heads).spread(rows, engine=ENGINE)


# TRL


@pytest.mark.parametrize("conversational", [False, True])
def test_rewards_are_those_of_the_embeddings(base: str, conversational: bool) -> None:
    judge = reward_func(base, reward(), device="cpu")
    if conversational:
        found = judge(prompts=CHATS, completions=ANSWERS, completion_ids=[[1], [2]], trainer_state=None)
        want = expected(base, [p + c for p, c in zip(CHATS, ANSWERS, strict=True)])
    else:
        found = judge(prompts=PROMPTS, completions=COMPLETIONS, answer=["7", "9"])
        want = expected(base, [p + c for p, c in zip(PROMPTS, COMPLETIONS, strict=True)])
    assert all(type(value) is float for value in found)
    np.testing.assert_allclose(found, want[0], atol=1e-5)
    np.testing.assert_allclose(judge.last_spread, want[1], atol=1e-5)
    assert judge.__name__ == "lensmith"


def test_batches_do_not_change_rewards(base: str) -> None:
    texts = ["word " * n for n in (1, 30, 2, 60, 7)]
    one = reward_func(base, reward(), device="cpu", batch_tokens=1)
    many = reward_func(base, reward(), device="cpu", batch_tokens=100_000)
    prompts = ["Say it. "] * len(texts)
    np.testing.assert_allclose(one(prompts, texts), many(prompts, texts), atol=1e-5)


def test_long_texts_lose_their_beginning(base: str) -> None:
    judge = reward_func(base, reward(), device="cpu", max_length=20)
    found = judge(["x" * 100, "y" * 200], ["the same end of text"] * 2)
    assert found[0] == pytest.approx(found[1], abs=1e-5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", lm.LensmithWarning)
        want = expected(base, ["x" * 100 + "the same end of text"], max_length=20)
    assert found[0] == pytest.approx(float(want[0][0]), abs=1e-5)


def test_disagreement_of_the_heads_is_logged_and_subtracted(base: str) -> None:
    metrics: dict[str, list[float]] = {}
    extra: dict[str, list[float]] = {}
    logs = {
        "log_metric": lambda name, value: metrics.setdefault(name, []).append(value),
        "log_extra": lambda name, values: extra.setdefault(name, []).extend(values),
    }
    judge = reward_func(base, reward(), device="cpu", uncertainty_penalty=2.0, name="judge")
    found = judge(PROMPTS, COMPLETIONS, **logs)
    mean, deviation = expected(base, [p + c for p, c in zip(PROMPTS, COMPLETIONS, strict=True)])
    assert (deviation > 1e-3).all()
    np.testing.assert_allclose(found, mean - 2 * deviation, atol=1e-5)
    assert metrics == {"judge/spread": [pytest.approx(float(deviation.mean()), abs=1e-5)]}
    assert extra == {"judge_spread": pytest.approx(deviation.tolist(), abs=1e-5)}

    # One head has nothing to disagree with.
    metrics.clear()
    reward_func(base, reward(heads=1), device="cpu")(PROMPTS, COMPLETIONS, **logs)
    assert not metrics


def test_empty_completions_have_no_reward(base: str) -> None:
    judge = reward_func(base, reward(), device="cpu")
    found = judge(["a", "b", "c"], ["", "text", " \n"])
    assert found[0] is None
    assert found[2] is None
    assert found[1] == pytest.approx(float(expected(base, ["btext"])[0][0]), abs=1e-5)
    np.testing.assert_array_equal(np.isnan(judge.last_spread), [True, False, True])
    assert judge(CHATS, [[turn("assistant", "")], []]) == [None, None]
    assert reward_func(base, reward(), device="cpu", empty_reward=-1.5)(["a"], [""]) == [-1.5]


def test_models_are_loaded_once_and_late(tmp_path: Path, base: str, monkeypatch: pytest.MonkeyPatch) -> None:
    judge = reward_func(tmp_path / "later", device="cpu")
    RewardPipeline(base, reward(), device="cpu", pooling="mean").save_pretrained(tmp_path / "later")
    loads: list[str] = []
    load = transformers.AutoModel.from_pretrained
    monkeypatch.setattr(
        transformers.AutoModel, "from_pretrained", lambda name, **k: loads.append(name) or load(name, **k)
    )
    found = judge(PROMPTS, COMPLETIONS)
    assert judge(PROMPTS, COMPLETIONS) == found
    assert loads == [base]
    want = expected(base, [p + c for p, c in zip(PROMPTS, COMPLETIONS, strict=True)], pooling="mean")
    np.testing.assert_allclose(found, want[0], atol=1e-5)

    # A process that gets the function loads its own.
    other = pickle.loads(pickle.dumps(judge))
    assert isinstance(other, RewardFunction)
    assert other.__name__ == "lensmith"
    np.testing.assert_allclose(other(PROMPTS, COMPLETIONS), found, atol=1e-6)


def test_a_pipeline_may_be_given(base: str) -> None:
    pipeline = RewardPipeline(base, reward(), device="cpu", engine=ENGINE)
    judge = reward_func(pipeline, uncertainty_penalty=1.0)
    assert judge.pipeline is pipeline
    mean, deviation = pipeline.spread(["a b"])
    assert judge(["a "], ["b"]) == pytest.approx([float(mean[0] - deviation[0])], abs=1e-5)
    with pytest.raises(ValueError, match="expected a RewardPipeline alone"):
        reward_func(pipeline, device="cpu")


def test_arguments_are_checked(base: str) -> None:
    with pytest.raises(ValueError, match="uncertainty_penalty: expected 0 or more, found -1"):
        reward_func(base, reward(), uncertainty_penalty=-1)
    judge = reward_func(base, reward(), device="cpu")
    with pytest.raises(ValueError, match="prompts: expected 1, as of completions, found 2"):
        judge(["a", "b"], ["c"])


def trained(tmp_path: Path, rewards: Any, conversational: bool, algorithm: str = "GRPO") -> Any:
    """Two steps of GRPO or RLOO of a tiny Llama; gives the trainer."""
    import trl
    from datasets import Dataset

    config, trainer_of = getattr(trl, f"{algorithm}Config"), getattr(trl, f"{algorithm}Trainer")
    torch.manual_seed(0)
    policy = transformers.LlamaForCausalLM(made.config(bos_token_id=made.BOS, eos_token_id=made.EOS))
    prompts = CHATS if conversational else PROMPTS
    settings = config(
        output_dir=str(tmp_path / algorithm),
        per_device_train_batch_size=4,
        num_generations=4,
        max_completion_length=6,
        max_steps=2,
        logging_steps=1,
        report_to=[],
        use_cpu=True,
        bf16=False,
        save_strategy="no",
        disable_tqdm=True,
        gradient_checkpointing=False,
        temperature=1.0,
        beta=0.0,
    )
    trainer = trainer_of(
        model=policy,
        reward_funcs=rewards,
        args=settings,
        train_dataset=Dataset.from_list([{"prompt": prompt, "label": "x"} for prompt in prompts]),
        processing_class=made.tokenizer(pad="<pad>", side="left"),
    )
    trainer.train()
    return trainer


@pytest.mark.parametrize("algorithm", ["GRPO", "RLOO"])
@pytest.mark.parametrize("conversational", [False, True])
def test_trl_trains_with_it(tmp_path: Path, base: str, conversational: bool, algorithm: str) -> None:
    # 40 tokens are less than four completions of 6: they go through the language model in several batches.
    judge = reward_func(base, reward(), empty_reward=0.0, batch_tokens=40)
    seen: list[tuple[list[Any], list[Any], list[Any]]] = []
    call = RewardFunction.__call__

    class Watched(RewardFunction):
        def __call__(self, prompts: Any, completions: Any, **columns: Any) -> Any:
            assert columns["label"] == ["x"] * len(prompts)
            found = call(self, prompts, completions, **columns)
            seen.append((prompts, completions, found))
            return found

    watched = Watched(judge._judge, judge.empty_reward, judge.__name__)
    trainer = trained(tmp_path, watched, conversational, algorithm)
    logs = [entry for entry in trainer.state.log_history if "rewards/lensmith/mean" in entry]
    assert len(logs) == 2
    # Beside the policy.
    assert watched.pipeline.base_model.device == trainer.model.device
    for (prompts, completions, found), entry in zip(seen, logs, strict=True):
        assert len(found) == 4
        full = [i for i, c in enumerate(completions) if (c[0]["content"] if conversational else c).strip()]
        want = expected(base, [prompts[i] + completions[i] for i in full])
        np.testing.assert_allclose([found[i] for i in full], want[0], atol=1e-4)
        assert entry["rewards/lensmith/mean"] == pytest.approx(np.mean(found), abs=1e-4)
        assert entry["lensmith/spread"] == pytest.approx(float(want[1].mean()), abs=1e-4)
    # What the trainer made of the last rewards: each beside the mean of its three siblings, or of all four.
    last = np.array(seen[-1][2])
    baseline = (last.sum() - last) / 3 if algorithm == "RLOO" else np.full(4, last.mean())
    advantages = last - baseline
    if algorithm == "GRPO":
        advantages = advantages / (last.std(ddof=1) + 1e-4)
    np.testing.assert_allclose(list(trainer._logs["advantages"]), advantages, atol=1e-3)


def test_the_language_model_lies_where_the_trainer_has_its_policy(
    base: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import accelerate

    moved: list[Any] = []
    to = transformers.LlamaModel.to
    monkeypatch.setattr(transformers.LlamaModel, "to", lambda model, at: moved.append(at) or to(model, "cpu"))
    models = importlib.import_module("lensmith.embed._model")
    monkeypatch.setattr(models, "best_device", lambda: "the current GPU")
    monkeypatch.setattr(accelerate.state, "is_initialized", lambda: False)
    reward_func(base, reward())(PROMPTS, COMPLETIONS)
    monkeypatch.setattr(accelerate.state, "is_initialized", lambda: True)
    monkeypatch.setattr(accelerate, "PartialState", lambda: SimpleNamespace(device=torch.device("cuda:3")))
    reward_func(base, reward())(PROMPTS, COMPLETIONS)
    openrlhf_reward_func(base, reward())(["a"], ["p"], ["l"])
    reward_func(base, reward(), device="cuda:1")(PROMPTS, COMPLETIONS)
    assert moved == ["the current GPU", torch.device("cuda:3"), torch.device("cuda:3"), "cuda:1"]
    # A loaded one stays where it is.
    loaded = made.load(base)
    reward_func(loaded, reward())(PROMPTS, COMPLETIONS)
    assert len(moved) == 4


def test_trl_trains_with_an_exported_folder(tmp_path: Path, base: str) -> None:
    weight = np.random.default_rng(0).normal(size=(1, 32)).astype(np.float32)
    linear = lm.RewardModel.from_state_dict({"score.weight": weight, "score.bias": np.float32([2])})
    export = to_sequence_classification(linear, base, tmp_path / "reward")
    trainer = trained(tmp_path, str(tmp_path / "reward"), conversational=True)
    table = trainer._logs
    talk = [[*prompt, *answer] for prompt, answer in zip(table["prompt"], table["completion"], strict=True)]
    assert len(talk) == 4
    rows = embed_texts(talk, base, progress=False)
    found = np.array(table["rewards"]["reward"])
    np.testing.assert_allclose(found + export.constant, linear.score(rows, engine=ENGINE), atol=1e-4)


# OpenRLHF


def test_openrlhf_gets_what_it_asks_for(base: str) -> None:
    judge = openrlhf_reward_func(base, reward(), device="cpu")
    queries = ["<s>Name a prime. Seven</s>", "And a square? Nine</s>", "<s>And a cube? Eight"]
    found = judge(queries, PROMPTS, ["7", "9", "8"], images=None)
    mean, deviation = expected(base, ["Name a prime. Seven", "And a square? Nine", "And a cube? Eight"])
    assert found["rewards"].dtype == torch.float32
    np.testing.assert_allclose(found["rewards"], mean, atol=1e-5)
    np.testing.assert_allclose(found["scores"], 1 / (1 + np.exp(-mean)), atol=1e-5)
    np.testing.assert_allclose(found["extra_logs"]["reward_spread"], deviation, atol=1e-5)

    # What OpenRLHF makes of it, one text at a time.
    one = judge(queries[:1], PROMPTS[:1], ["7"])
    assert torch.tensor([one["rewards"]]).shape == (1,)
    assert one["extra_logs"]["reward_spread"].flatten()[0].item() == pytest.approx(
        float(deviation[0]), abs=1e-5
    )


def test_openrlhf_with_a_chat_template_is_judged_where_the_template_ends(base: str) -> None:
    """Templates of the ChatML kind end with a line break that no policy writes."""
    template = made.CHAT.replace("</s>", "</s>\n")
    tokenizer = made.tokenizer(chat=template)
    judge = openrlhf_reward_func(base, reward(), tokenizer, device="cpu", chat=True)
    talk = [[*prompt, *answer] for prompt, answer in zip(CHATS, ANSWERS, strict=True)]
    want = expected(base, talk, tokenizer=tokenizer)[0]
    start = [f"<s><|user|>{prompt}</s>\n<|assistant|>" for prompt in PROMPTS]
    for ending in ("</s>", "", "</s><pad><pad>"):
        queries = [s + completion + ending for s, completion in zip(start, COMPLETIONS, strict=True)]
        np.testing.assert_allclose(judge(queries, start, ["", ""])["rewards"], want, atol=1e-5)


def test_openrlhf_loads_it_from_a_file(tmp_path: Path, base: str) -> None:
    RewardPipeline(base, reward(), device="cpu").save_pretrained(tmp_path / "judge")
    (tmp_path / "reward.py").write_text(
        "from lensmith.rewards import openrlhf_reward_func\n"
        f"reward_func = openrlhf_reward_func({str(tmp_path / 'judge')!r}, device='cpu')\n"
    )
    spec = importlib.util.spec_from_file_location("reward_func", tmp_path / "reward.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert isinstance(module.reward_func, OpenRlhfReward)
    texts = [f"Text number {i}" for i in range(12)]

    async def all_at_once() -> list[Any]:
        calls = [asyncio.to_thread(module.reward_func, [text], ["p"], ["l"]) for text in texts]
        return await asyncio.gather(*calls)

    found = [answer["rewards"][0].item() for answer in asyncio.run(all_at_once())]
    np.testing.assert_allclose(found, expected(base, texts)[0], atol=1e-5)


def openrlhf(monkeypatch: pytest.MonkeyPatch) -> Any:
    """OpenRLHF's modules for rollouts and rewards; what they import beside is for GPUs, and stands aside."""
    spec = importlib.util.find_spec("openrlhf")
    assert spec is not None and spec.origin is not None, "tools/setup_python installs OpenRLHF"
    pads = SimpleNamespace(zero_pad_sequences=None)
    for name, stub in {
        "openrlhf.utils.logging_utils": SimpleNamespace(init_logger=logging.getLogger),
        "openrlhf.utils.utils": pads,
        "openrlhf.trainer.ray.vllm_engine": MagicMock(),
        "ray": MagicMock(),
        "vllm": MagicMock(),
    }.items():
        monkeypatch.setitem(sys.modules, name, stub)
    found = SimpleNamespace()
    for name in ("utils.agent", "trainer.ppo_utils.experience", "trainer.ppo_utils.samples_generator"):
        path = Path(spec.origin).parent.joinpath(*name.split(".")).with_suffix(".py")
        one = importlib.util.spec_from_file_location(f"openrlhf.{name}", path)
        assert one is not None and one.loader is not None
        module = importlib.util.module_from_spec(one)
        monkeypatch.setitem(sys.modules, one.name, module)
        one.loader.exec_module(module)
        setattr(found, name.rpartition(".")[2], module)
    return found


class Sampler:
    """Stands for vLLM, which needs a GPU: a tiny policy, asked as OpenRLHF asks vLLM's engine."""

    def __init__(self) -> None:
        self.policy = transformers.LlamaForCausalLM(made.config(bos_token_id=made.BOS, eos_token_id=made.EOS))

    async def generate(self, tokens: list[int], parameters: Any, multi_modal_data: Any) -> Any:
        assert multi_modal_data is None
        asked = torch.tensor([tokens])
        torch.manual_seed(sum(tokens))
        made_up = self.policy.generate(asked, do_sample=True, max_new_tokens=parameters.max_tokens, pad_token_id=2)
        written = made_up[0, len(tokens) :].tolist()
        reason = "stop" if written[-1] == made.EOS else "length"
        return SimpleNamespace(outputs=[SimpleNamespace(token_ids=written, finish_reason=reason, logprobs=None)])


@pytest.mark.parametrize("where", ["file", "url"])
def test_openrlhf_itself_gets_rewards(
    tmp_path: Path, base: str, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """OpenRLHF's own executor and its own experiences, by a file and by the server of examples/."""
    library = openrlhf(monkeypatch)
    RewardPipeline(base, reward(), device="cpu").save_pretrained(tmp_path / "judge")
    server = None
    if where == "file":
        target = str(tmp_path / "reward.py")
        Path(target).write_text(
            "from lensmith.rewards import openrlhf_reward_func\n"
            f"reward_func = openrlhf_reward_func({str(tmp_path / 'judge')!r}, chat=True, device='cpu')\n"
        )
    else:
        program = ROOT / "examples" / "openrlhf_server.py"
        options = [tmp_path / "judge", "--chat", "--device", "cpu", "--port", "0"]
        server = subprocess.Popen(
            [sys.executable, program, *map(str, options)], env=environment(), stdout=subprocess.PIPE, text=True
        )
        assert server.stdout is not None
        target = server.stdout.readline().strip()
    try:
        assert target.endswith((".py", "/get_reward")), target
        executor = library.agent.SingleTurnAgentExecutor([target])
        tokenizer, engine = made.tokenizer(), Sampler()
        prompts = [
            tokenizer.apply_chat_template([turn("user", f"Say {i}.")], tokenize=False) + "<|assistant|>"
            for i in range(10)
        ]
        parameters = SimpleNamespace(max_tokens=8, logprobs=None)

        async def rollouts() -> list[Any]:
            calls = [executor.execute(p, "label", parameters, 256, tokenizer, engine) for p in prompts]
            return await asyncio.gather(*calls)

        found = asyncio.run(rollouts())
        if server is not None:
            bad = urllib.request.Request(target, data=b'{"query": ["a"]}')
            with pytest.raises(urllib.error.HTTPError, match="400"):
                urllib.request.urlopen(bad)
    finally:
        if server is not None:
            server.terminate()
            server.wait(30)
    assert {one["truncated"] for one in found} <= {True, False}
    # The texts that OpenRLHF made of tokens, ended as the chat template ends them.
    texts = []
    for prompt, one in zip(prompts, found, strict=True):
        (start, stop) = one["action_ranges"][0]
        said = tokenizer.decode(one["observation_tokens"][start:stop], skip_special_tokens=False)
        texts.append((prompt + re.sub("(</s>|<s>|<pad>)*$", "", said) + "</s>", False))
    pipeline = RewardPipeline(base, reward(), device="cpu")
    mean, deviation = reward().spread(pipeline.embed_written(texts), engine=ENGINE)
    generator = object.__new__(library.samples_generator.SamplesGenerator)
    for one, want, spread in zip(found, mean, deviation, strict=True):
        experience = generator._process_response_into_experience(one, max_len=256)
        assert experience.rewards.item() == pytest.approx(float(want), abs=1e-4)
        assert experience.scores.item() == pytest.approx(1 / (1 + np.exp(-want)), abs=1e-4)
        assert experience.info["reward_spread"].item() == pytest.approx(float(spread), abs=1e-4)


def test_calls_of_many_threads_are_joined() -> None:
    started, go = threading.Event(), threading.Event()
    batches: list[list[str]] = []

    def work(texts: list[tuple[str, bool]]) -> tuple[np.ndarray, np.ndarray]:
        batches.append([text for text, _ in texts])
        started.set()
        assert go.wait(10)
        if any(text == "bad" for text, _ in texts):
            raise ValueError("bad text")
        sizes = np.array([len(text) for text, _ in texts], np.float32)
        return sizes, sizes / 2

    together = Together(work)
    results: dict[str, Any] = {}

    def call(*texts: str) -> None:
        try:
            results[texts[0]] = together([(text, True) for text in texts])[0].tolist()
        except ValueError as error:
            results[texts[0]] = str(error)

    threads = [threading.Thread(target=call, args=("first",))]
    threads[0].start()
    assert started.wait(10)
    threads += [threading.Thread(target=call, args=texts) for texts in (("a", "bb"), ("bad",), ("ccc",))]
    for thread in threads[1:]:
        thread.start()
    deadline = time.monotonic() + 10
    while len(together._waiting) < 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    go.set()
    for thread in threads:
        thread.join(10)
    assert results == {"first": [5.0], "a": [1.0, 2.0], "bad": "bad text", "ccc": [3.0]}
    assert batches[0] == ["first"]
    assert sorted(batches[1]) == ["a", "bad", "bb", "ccc"]
    # The batch with the bad text is tried call by call.
    assert sorted(map(sorted, batches[2:])) == [["a", "bb"], ["bad"], ["ccc"]]


# The page


def dialogues(rows: int) -> list[dict[str, str]]:
    """Preference pairs in HH-RLHF's form."""
    draw = np.random.default_rng(0).integers
    talk = [f"\n\nHuman: Say {draw(1000)}.\n\nAssistant:" for _ in range(rows)]
    return [{"chosen": t + f" It is {draw(100)}.", "rejected": t + f" No {draw(100)}!"} for t in talk]


def test_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every block of Python of docs/hugging-face.md, with small models and data in place of those there."""
    import datasets
    from test_hub import FakeHub

    sizes = {"bos_token_id": made.BOS, "eos_token_id": made.EOS, "max_position_embeddings": 4096}
    base = made.saved(tmp_path / "base", **sizes)
    torch.manual_seed(1)
    transformers.LlamaForCausalLM(made.config(**sizes)).save_pretrained(tmp_path / "policy")
    made.tokenizer(pad="<pad>").save_pretrained(tmp_path / "policy")
    prompts = [{"prompt": chat} for chat in CHATS]
    rows = {"Anthropic/hh-rlhf": dialogues(120), "trl-lib/ultrafeedback-prompt": prompts}
    load = datasets.load_dataset

    def load_dataset(name: str, **options: Any) -> Any:
        return load(name, **options) if name == "json" else datasets.Dataset.from_list(rows[name])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    sampled = [
        {"prompt": f"\n\nHuman: Say {i}.\n\nAssistant:", "responses": [f" It is {j}." for j in range(4)]}
        for i in range(8)
    ]
    (tmp_path / "sampled.jsonl").write_text("".join(json.dumps(row) + "\n" for row in sampled))
    hub = FakeHub(tmp_path / "hub")
    monkeypatch.setattr("huggingface_hub.HfApi", hub)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", hub.hf_hub_download)
    monkeypatch.chdir(tmp_path)

    page = ROOT / "docs" / "hugging-face.md"
    blocks = re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)
    assert len(blocks) == 11
    swaps = {
        "meta-llama/Llama-3.1-8B-Instruct": base,
        "meta-llama/Llama-3.2-1B-Instruct": str(tmp_path / "policy"),
        "max_steps=100": "max_steps=1, use_cpu=True, bf16=False, report_to=[], max_completion_length=4",
        "epochs=100": "epochs=3",
        "num_train_epochs=1": "max_steps=1, use_cpu=True, bf16=False, report_to=[]",
        "seeds=1000, validation=300": "seeds=80, validation=20",
    }
    text = "\n".join(blocks)
    for name, own in swaps.items():
        assert name in text
        text = text.replace(name, own)
    found: dict[str, Any] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exec(compile(text, str(page), "exec"), found)
    assert found["trainer"].state.global_step == 1
    assert found["tuned"].state.global_step == 1
    assert len(found["best"]) == 8
    assert len((tmp_path / "sft.jsonl").read_text().splitlines()) == 8
    assert found["pairs"].dtype == "bfloat16"
    answer = found["module"].reward_func([found["text"]], ["p"], ["l"])
    np.testing.assert_allclose(answer["rewards"], found["judge"]([found["talk"]]), atol=1e-3)
    assert (tmp_path / "hub" / "your-name" / "my-reward" / "model.safetensors").is_file()
