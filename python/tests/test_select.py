"""Rejection sampling: which responses are taken, the same lines as the program writes, and TRL trains on them."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import embed_models as made
import numpy as np
import pytest
import torch
from conftest import ROOT, Run, environment

import lensmith as lm
from lensmith.embed._folder import digest_of
from lensmith.embed._rows import said_in

torch.set_num_threads(1)
EACH = 4
#: Said by a policy of bytes: line separators, quotes, a letter of two bytes, and one beyond the basic plane.
ODD = 'a\u2028b\x85c "\u00e4" \U0001f600\x01'


def texts(rows: int = 12) -> list[dict[str, Any]]:
    """Prompts with responses of growing length."""
    return [
        {
            "prompt": f"Question {i}? ",
            "responses": [f"Answer {i} {j}" + " and more" * (i * j % 5) + ODD * (j == 2) for j in range(EACH)],
            "tokens": [j + 1 for j in range(EACH)],
        }
        for i in range(rows)
    ]


def turn(role: str, content: str) -> dict[str, Any]:
    return {"role": role, "content": content, "name": None}


def talks() -> list[dict[str, Any]]:
    """The same as conversations; the responses repeat their prompt."""
    return [
        {
            "prompt": [turn("user", row["prompt"])],
            "responses": [[turn("user", row["prompt"]), turn("assistant", r)] for r in row["responses"]],
        }
        for row in texts()
    ]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    return made.saved(tmp_path_factory.mktemp("base"), bos_token_id=made.BOS, eos_token_id=made.EOS)


@pytest.fixture(scope="module")
def ensemble() -> lm.RewardModel:
    """Three heads of random weights."""
    draw = np.random.default_rng(0).normal
    shapes = {"0.weight": (96, 32), "0.bias": 96, "2.weight": (3, 32), "2.bias": 3}
    return lm.RewardModel.from_state_dict({k: np.float32(draw(size=n)) for k, n in shapes.items()})


@pytest.fixture(scope="module")
def folder(base: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sets in shards of five prompts."""
    out = tmp_path_factory.mktemp("sets") / "sets"
    lm.embed_candidates(texts(), base, out=out, shard_rows=5, device="cpu", progress=False)
    return out


def as_lines(rows: list[dict[str, Any]], path: Path) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


LIMITS: list[dict[str, Any]] = [
    {},
    {"form": "dpo", "min_margin": 0.2},
    {"form": "messages", "uncertainty_penalty": 1.5},
    {"min_reward": -0.5, "max_length": 60, "min_length": 11},
    {"form": "dpo", "columns": {"lengths": "tokens"}, "max_length": 3},
]


@pytest.mark.parametrize("limits", LIMITS, ids=str)
def test_lines_are_those_of_the_program(
    tmp_path: Path, folder: Path, ensemble: lm.RewardModel, engine: lm.Engine, program: Run, limits: dict[str, Any]
) -> None:
    source = as_lines(texts(), tmp_path / "texts.jsonl")
    ensemble.save(tmp_path / "reward.safetensors")
    columns = limits.get("columns", {})
    flags = [f"--{k.replace('_', '-')}={v}" for k, v in limits.items() if k != "columns"]
    flags += [f"--{k}={v}" for k, v in columns.items()]
    model = tmp_path / "reward.safetensors"
    places = ["--texts", source, "--select", tmp_path / "program.jsonl"]
    said = json.loads(program("best-of-n", folder, "--model", model, *places, *flags, "--json").stdout)
    found = lm.select(source, folder, ensemble, out=tmp_path / "python.jsonl", engine=engine, **limits)
    lines = (tmp_path / "python.jsonl").read_bytes()
    assert lines == (tmp_path / "program.jsonl").read_bytes()
    assert found.rows == [json.loads(line) for line in lines.split(b"\n")[:-1]]
    assert 0 < len(found) <= found.prompts == 12
    assert len(found) + sum(found.left_out.values()) == 12
    summary = {key: said["select"][key] for key in ("prompts", "left_out", "reward", "random")}
    assert summary == {key: getattr(found, key) for key in summary}


def test_rewards_are_those_of_the_model(folder: Path, ensemble: lm.RewardModel, engine: lm.Engine, base: str) -> None:
    # What is in the folder: made again in other batches it would be rounded otherwise.
    sets = lm.embed_candidates(texts(), base, out=folder, shard_rows=5, device="cpu", progress=False)
    mean, deviation = (x.reshape(-1, EACH) for x in ensemble.spread(sets.candidates.flatten(0, 1), engine=engine))
    found = lm.select(texts(), folder, ensemble, engine=engine)
    best = mean.argmax(1)
    assert [row["candidate"] for row in found] == best.tolist()
    for i, row in enumerate(found):
        assert row["completion"] == texts()[i]["responses"][best[i]]
        assert np.float32(row["reward"]) == mean[i, best[i]]
        assert np.float32(row["uncertainty"]) == deviation[i, best[i]]
    assert found.random == pytest.approx(float(mean.mean()), abs=1e-6)
    assert found.reward == pytest.approx(float(mean.max(1).mean()), abs=1e-6)
    # What is in memory gives the same, as a BestOfN and as an array.
    for candidates in (sets, sets.candidates, sets.candidates.numpy()):
        assert lm.select(texts(), candidates, ensemble, engine=engine) == found
    most = np.quantile(deviation, 0.3)
    sure = lm.select(texts(), sets, ensemble, max_uncertainty=float(most), engine=engine)
    within = np.where(deviation <= np.float32(most), mean, -np.inf)
    want = {i: int(row.argmax()) for i, row in enumerate(within) if np.isfinite(row).any()}
    assert {row["row"]: row["candidate"] for row in sure} == want != dict(enumerate(best.tolist()))
    careful = lm.select(texts(), sets, ensemble, uncertainty_penalty=2.0, engine=engine)
    assert [row["candidate"] for row in careful] == (mean - 2 * deviation).argmax(1).tolist()


def test_any_data_set_of_text(tmp_path: Path, folder: Path, ensemble: lm.RewardModel, engine: lm.Engine) -> None:
    import datasets
    import pyarrow as pa
    import pyarrow.parquet as pq

    want = lm.select(texts(), folder, ensemble, engine=engine)
    table = pa.Table.from_pylist(texts())
    pq.write_table(table, tmp_path / "texts.parquet")
    sources: list[Any] = [table, datasets.Dataset.from_list(texts()), tmp_path / "texts.parquet"]
    for source in [*sources, as_lines(texts(), tmp_path / "t.jsonl"), iter(texts())]:
        assert lm.select(source, folder, ensemble, engine=engine) == want
    renamed = [{"question": row["prompt"], "samples": tuple(row["responses"])} for row in texts()]
    columns = {"prompt": "question", "responses": "samples"}
    assert lm.select(renamed, folder, ensemble, columns=columns, engine=engine) == want
    short = lm.select(texts(), folder, ensemble, length=lambda text: len(text.split()), max_length=3, engine=engine)
    assert all(len(row["completion"].split()) <= 3 for row in short)
    assert len(short) == 12


def test_conversations_come_without_their_prompt(
    tmp_path: Path, base: str, ensemble: lm.RewardModel, engine: lm.Engine
) -> None:
    import datasets

    out = tmp_path / "sets"
    lm.embed_candidates(talks(), base, out=out, device="cpu", progress=False)
    sft = lm.select(talks(), out, ensemble, engine=engine)
    # Arrow fills in fields, and datasets may turn lists of messages into dictionaries of lists.
    assert lm.select(datasets.Dataset.from_list(talks()), out, ensemble, engine=engine) == sft
    for i, row in enumerate(sft):
        assert row["prompt"] == [{"role": "user", "content": texts()[i]["prompt"]}]
        said = texts()[i]["responses"][row["candidate"]]
        assert row["completion"] == [{"role": "assistant", "content": said}]
    whole = lm.select(talks(), out, ensemble, form="messages", engine=engine)
    assert [row["messages"] for row in whole] == [row["prompt"] + row["completion"] for row in sft]
    alone = lm.select(talks(), out, ensemble, columns={"prompt": None}, engine=engine)
    assert [row["messages"] for row in alone] == [row["messages"] for row in whole]
    pairs = lm.select(talks(), out, ensemble, form="dpo", engine=engine)
    assert all(row["chosen"] != row["rejected"] and row["reward_chosen"] > row["reward_rejected"] for row in pairs)


def test_texts_that_were_not_embedded_are_refused_or_left_out(
    tmp_path: Path, base: str, ensemble: lm.RewardModel, engine: lm.Engine
) -> None:
    rows = texts()
    rows[4]["responses"][1] = "  "
    rows[9]["responses"] = rows[9]["responses"][:3]
    rows.insert(2, {"prompt": "p", "responses": None, "tokens": []})
    out = tmp_path / "sets"
    lm.embed_candidates(rows, base, skip_invalid=True, out=out, device="cpu", progress=False)
    found = lm.select(rows, out, ensemble, engine=engine)
    # Rows 2, 5 and 10 have no embeddings.
    assert [row["row"] for row in found] == [i for i in range(13) if i not in (2, 5, 10)]
    for row in found:
        assert row["completion"] == rows[row["row"]]["responses"][row["candidate"]]
    kept = [rows[i] for i in range(13) if i not in (2, 5, 10)]
    assert [r["completion"] for r in lm.select(kept, out, ensemble, engine=engine)] == [
        r["completion"] for r in found
    ]
    kept[6]["responses"].reverse()
    with pytest.raises(lm.LensmithError, match=r"dataset, row 6: responses: expected those that were embedded"):
        lm.select(kept, out, ensemble, engine=engine)


def test_digests_are_over_texts_alone() -> None:
    # tests/cli/select.rs and src/data/responses.rs take the same.
    import xxhash

    want = xxhash.xxh3_64(b"\x02" + bytes(7) + "\u00e4".encode() + b"\x01" + bytes(7) + b"b").hexdigest()
    assert digest_of(["\u00e4", "b"]) == want
    message = {"role": "r", "content": "c", "name": None, "tool_calls": [{"b": 1, "a": ["x", {"z": "y"}]}]}
    assert list(said_in(message)) == ["c", "r", "x", "y"]
    assert list(said_in("text")) == ["text"]


def test_bad_rows_are_named(folder: Path, ensemble: lm.RewardModel, engine: lm.Engine, tmp_path: Path) -> None:
    array = np.random.default_rng(0).standard_normal((12, EACH, 32), dtype=np.float32)

    def says(change: Any, message: str, error: type[Exception] = lm.LensmithError, **options: Any) -> None:
        rows = texts()
        change(rows)
        with pytest.raises(error, match=message):
            lm.select(rows, array, ensemble, engine=engine, out=tmp_path / "out.jsonl", **options)
        assert not list(tmp_path.iterdir())

    says(lambda rows: rows.pop(), r"dataset: rows: expected 12, one for each prompt of the sets, found 11")
    says(
        lambda rows: rows[3]["responses"].pop(),
        r"dataset, row 3: number of `responses`: expected 4, as in the sets, found 3",
    )
    says(lambda rows: rows[5].update(responses="a"), r"row 5: `responses`: expected a list of responses, found a text")
    says(lambda rows: rows[5].update(responses=None), r"row 5: `responses`: expected a list of responses, found none")
    says(
        lambda rows: rows[5]["responses"].__setitem__(2, 7),
        r"row 5: `responses`, response 2: expected a text or messages, found a number",
    )
    says(lambda rows: rows[5].update(prompt=None), r"row 5: `prompt`: expected a text or messages, found none")
    says(lambda rows: rows.__setitem__(5, "text"), r"row 5: expected a row with columns", ValueError)
    says(
        lambda rows: rows[5]["responses"].__setitem__(0, {"role": "user", "content": object()}),
        r"row 5: `responses`, response 0|row 5: expected text or messages",
        Exception,
    )
    says(
        lambda rows: rows[6]["tokens"].pop(),
        r"row 6: `lengths`: expected a list of 4 lengths, one a response, found a list of 3",
        columns={"lengths": "tokens"},
    )
    says(lambda _: None, r"columns: expected keys among", ValueError, columns={"answers": "a"})
    says(lambda _: None, r"12 \(12 by reward\): 0, at least 1 needed", min_reward=1e6)
    says(lambda _: None, r'form: expected "sft", "messages" or "dpo", found "ppo"', ValueError, form="ppo")
    says(lambda _: None, r"min_reward: expected a finite number", ValueError, min_reward=float("nan"))
    says(lambda _: None, r"min_margin: expected a finite number, 0 or more, found -1", min_margin=-1)
    says(lambda _: None, r"max_length: expected 5 or more", min_length=5, max_length=4)
    says(
        lambda rows: [r.update(responses=[r["prompt"] + x for x in r["responses"]]) for r in rows],
        r"prompt: expected none, or responses without their prompt",
    )
    with pytest.raises(ValueError, match=r"candidates: expected 3 dimensions"):
        lm.select(texts(), array[0], ensemble, engine=engine)
    with pytest.raises(lm.LensmithError, match="rows: expected 11"):
        lm.select(texts(), array[:11], ensemble, engine=engine)
    one = lm.RewardModel.from_state_dict({"score.weight": np.ones((1, 32), np.float32), "score.bias": np.float32([0])})
    with pytest.raises(lm.LensmithError, match=r"max_uncertainty: expected none, or an ensemble"):
        lm.select(texts(), array, one, max_uncertainty=1.0, engine=engine)
    assert "uncertainty" not in lm.select(texts(), array, one, engine=engine).rows[0]
    source = as_lines(texts(), tmp_path / "texts.jsonl")
    with pytest.raises(ValueError, match="expected another file than the data set"):
        lm.select(source, folder, ensemble, out=source, engine=engine)


def trained(rows: list[dict[str, Any]], base: str, trainer: str, out: Path) -> Any:
    """One step of TRL's trainer on rows."""
    import trl
    from datasets import Dataset
    from transformers import LlamaForCausalLM

    torch.manual_seed(0)
    policy = LlamaForCausalLM(made.config(bos_token_id=made.BOS, eos_token_id=made.EOS))
    policy.save_pretrained(out / "policy")
    settings = getattr(trl, f"{trainer}Config")(
        output_dir=str(out / "trained"),
        max_steps=1,
        per_device_train_batch_size=2,
        report_to=[],
        use_cpu=True,
        bf16=False,
        save_strategy="no",
        disable_tqdm=True,
        gradient_checkpointing=False,
    )
    made_of = getattr(trl, f"{trainer}Trainer")(
        model=str(out / "policy"),
        args=settings,
        train_dataset=Dataset.from_list(rows),
        processing_class=made.tokenizer(pad="<pad>"),
    )
    made_of.train()
    return made_of


@pytest.mark.parametrize("conversational", [False, True])
@pytest.mark.parametrize(("form", "trainer"), [("sft", "SFT"), ("messages", "SFT"), ("dpo", "DPO")])
def test_trl_trains_on_it(
    tmp_path: Path, base: str, ensemble: lm.RewardModel, form: str, trainer: str, conversational: bool
) -> None:
    rows = talks() if conversational else texts()
    sets = lm.embed_candidates(rows, base, device="cpu", progress=False)
    chosen = lm.select(rows, sets, ensemble, form=form)
    trainer_after = trained(chosen.rows, base, trainer, tmp_path)
    assert trainer_after.state.global_step == 1
    assert np.isfinite(trainer_after.state.log_history[-1]["train_loss"])
    # What the loss is on.
    item, row = trainer_after.train_dataset[0], chosen.rows[0]
    said = made.tokenizer()
    if form == "sft":
        learnt = said.decode([token for token in item["labels"] if token >= 0], skip_special_tokens=True)
        want = row["completion"][0]["content"] if conversational else row["completion"]
        assert learnt.removeprefix("<|assistant|>") == want
    elif form == "dpo" and not conversational:
        for side in ("chosen", "rejected"):
            assert said.decode(item[f"{side}_ids"], skip_special_tokens=True) == row[side]


def test_the_example_runs(tmp_path: Path) -> None:
    """examples/rejection_sampling.py from preferences to a policy, offline."""
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, ROOT / "examples" / "rejection_sampling.py", "--out", tmp_path / "out"],
        env=environment(HF_HUB_OFFLINE="1", LENSMITH_DEVICE="cpu", CUDA_VISIBLE_DEVICES=""),
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    seconds = time.monotonic() - started
    print(f"{seconds:.0f} s")
    out = tmp_path / "out"
    rows = [json.loads(line) for line in (out / "sampled.jsonl").read_text().split("\n")[:-1]]
    for form, fields in (("sft", ("completion",)), ("dpo", ("chosen", "rejected"))):
        lines = (out / f"{form}.jsonl").read_text().split("\n")[:-1]
        assert len(lines) >= 10
        for row in map(json.loads, lines):
            asked = rows[row["row"]]
            assert row["prompt"] == asked["prompt"]
            assert all(row[field] in asked["responses"] for field in fields)
    assert (out / "sft" / "model.safetensors").is_file()
    assert f"fine-tuned: {out / 'sft'}" in done.stdout
