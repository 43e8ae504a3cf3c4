"""lensmith.embed: what is taken from a language model, in which order, and into which files."""

from __future__ import annotations

import gzip
import json
import math
import os
import subprocess
import sys
from datetime import datetime
from pathlib import Path
from typing import Any

import embed_models as tiny
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from tokenizers.normalizers import Lowercase

import lensmith as lm
from lensmith.embed import InvalidRow, embed, embed_candidates, embed_texts, gold_scores
from lensmith.embed._model import token_batches

torch.set_num_threads(1)
TEXTS = [
    "a",
    "the second text",
    "a text that is longer than the others, and goes on",
    "four",
    "x" * 60,
    "six six",
]


def alone(model: Any, ids: list[int]) -> tuple[torch.Tensor, ...]:
    """All hidden states of one text without padding, each [t, d]; the last one is after the final norm."""
    with torch.inference_mode():
        out = model(torch.tensor([ids]), output_hidden_states=True)
    return (*(states[0] for states in out.hidden_states[:-1]), out.last_hidden_state[0])


def ids_of(text: str) -> list[int]:
    return tiny.tokenizer()(text)["input_ids"]


def chosen(rows: Any, model: Any = None, **options: Any) -> torch.Tensor:
    """The chosen side in float32."""
    options = {"tokenizer": tiny.tokenizer(), "progress": False} | options
    return torch.from_numpy(embed(rows, tiny.llama() if model is None else model, **options).chosen.float32())


def vectors(texts: Any, model: Any = None, **options: Any) -> torch.Tensor:
    options = {"tokenizer": tiny.tokenizer(), "progress": False} | options
    return embed_texts(texts, tiny.llama() if model is None else model, **options)


def close(a: torch.Tensor, b: torch.Tensor, most: float = 1e-5) -> bool:
    return a.shape == b.shape and bool((a - b).abs().max() <= most)


def turns(*contents: str) -> list[dict[str, str]]:
    """A conversation in which user and assistant take turns."""
    return [
        {"role": "user" if i % 2 == 0 else "assistant", "content": text} for i, text in enumerate(contents)
    ]


def with_package() -> dict[str, str]:
    """The environment of a program that is to import what this one does."""
    return os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(lm.__file__).parents[1]), *sys.path])}


# Tokens


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("pad", [None, "</s>", "<pad>"])
@pytest.mark.parametrize("padding_side", ["left", "right"])
def test_last_is_the_last_real_token(side: str, pad: str | None, padding_side: str) -> None:
    """The template ends turns with the token that pads in two of three cases: the first of them is not the
    last.
    """
    model, tokenizer = tiny.llama(), tiny.tokenizer(pad=pad, side=side)
    talks = [turns("hello", text) for text in TEXTS]
    found = vectors(talks, model, tokenizer=tokenizer, padding_side=padding_side)
    for talk, vector in zip(talks, found, strict=True):
        ids = tokenizer.apply_chat_template(talk, return_dict=False)
        assert ids.count(tiny.EOS) == 2 and ids[-1] == tiny.EOS
        assert close(vector, alone(model, ids)[-1][-1])


@pytest.mark.parametrize("pooling", ["last", "mean", "first", "last+mean"])
@pytest.mark.parametrize("make", [tiny.llama, tiny.gpt2, tiny.bert, tiny.roberta, tiny.t5_encoder])
def test_results_do_not_depend_on_batches(make: Any, pooling: str) -> None:
    model = make()
    one_by_one = vectors(TEXTS, model, pooling=pooling, batch_tokens=1)
    for batch_tokens in (40, 130, 100_000):
        assert close(vectors(TEXTS, model, pooling=pooling, batch_tokens=batch_tokens), one_by_one)
    order = [3, 0, 5, 2, 1, 4]
    assert close(vectors([TEXTS[i] for i in order], model, pooling=pooling), one_by_one[order])


def test_left_padding_gives_learnt_positions_their_numbers() -> None:
    model = tiny.gpt2()
    assert close(vectors(TEXTS, model, padding_side="left"), vectors(TEXTS, model, batch_tokens=1))
    # The check can fail: without position numbers the same batch gives something else.
    ids = ids_of("ab")
    padded = {
        "input_ids": torch.tensor([[0, 0, 0, *ids]]),
        "attention_mask": torch.tensor([[0, 0, 0, 1, 1, 1]]),
    }
    with torch.inference_mode():
        wrong = model(**padded).last_hidden_state[0, -1]
    assert not close(wrong, alone(model, ids)[-1][-1], 1e-2)


def test_left_padding_is_refused_where_positions_are_counted_from_the_pad_token() -> None:
    with pytest.raises(ValueError, match="padding_side: expected 'right'"):
        vectors(TEXTS, tiny.roberta(), padding_side="left")


def test_a_pad_token_outside_the_vocabulary_is_not_used() -> None:
    tokenizer = tiny.tokenizer()
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    assert tokenizer.pad_token_id == 259, "one more than the model has"
    assert close(vectors(TEXTS, tokenizer=tokenizer), vectors(TEXTS))


def test_the_tokenizer_of_another_model_is_noticed() -> None:
    tokenizer = tiny.tokenizer()
    tokenizer.add_tokens(["second"])
    with pytest.raises(
        ValueError,
        match="row 1 of those embedded, text 0: expected tokens below 259, found 259: the tokenizer is",
    ):
        vectors(TEXTS, tokenizer=tokenizer)


@given(st.lists(st.integers(1, 50), max_size=40), st.integers(1, 200))
def test_batches_hold_every_text_once_within_the_budget(lengths: list[int], budget: int) -> None:
    batches = list(token_batches(lengths, budget))
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) == 1 or len(batch) * max(lengths[i] for i in batch) <= budget


def test_a_batch_that_does_not_fit_is_halved(monkeypatch: pytest.MonkeyPatch) -> None:
    from lensmith.embed._model import Embedder

    take, sizes, most = Embedder.take, [], 2

    def small(self: Embedder, inputs: dict[str, Any]) -> Any:
        sizes.append(len(inputs["input_ids"]))
        if sizes[-1] > most:
            raise torch.OutOfMemoryError("no memory")
        return take(self, inputs)

    expected = vectors(TEXTS)
    monkeypatch.setattr(Embedder, "take", small)
    assert close(vectors(TEXTS), expected)
    assert max(sizes) > most
    most = 0
    with pytest.raises(MemoryError, match="one text of 61 tokens does not fit"):
        vectors(TEXTS)


# Pooling and layers


def test_pooling_and_layers_are_concatenated_in_their_order() -> None:
    model = tiny.llama()
    found = vectors(TEXTS, model, pooling=("mean", "last", "cls"), layers=[-1, 2, 0])
    for text, vector in zip(TEXTS, found, strict=True):
        states = alone(model, ids_of(text))
        picked = [states[4], states[2], states[0]]
        parts = [*(s.mean(dim=0) for s in picked), *(s[-1] for s in picked), *(s[0] for s in picked)]
        assert close(vector, torch.cat(parts))


def test_the_last_layer_is_after_the_final_norm() -> None:
    model = tiny.llama()
    with torch.no_grad():
        model.norm.weight.mul_(3.0)
    found = vectors(TEXTS, model, layers=[-1, -2])
    last = found[:, :32]
    assert torch.allclose(last.pow(2).mean(dim=1).sqrt(), torch.tensor(3.0), atol=1e-2), (
        "root mean square is the weight"
    )
    assert close(vectors(TEXTS, model, layers=[4]), last)
    assert not torch.allclose(found[:, 32:].pow(2).mean(dim=1).sqrt(), torch.tensor(3.0), atol=1e-2)


def test_presets() -> None:
    model = tiny.llama()
    wide = vectors(TEXTS, model, pooling="last+mean", layers=[4, 3, 2, 1])
    assert close(vectors(TEXTS, model, pooling="wide"), wide)
    assert close(vectors(TEXTS, model, pooling="paper"), vectors(TEXTS, model))
    assert vectors(TEXTS, model, pooling="wide", layers=[-1]).shape == (6, 64)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pooling": "max"}, "pooling: expected 'last', 'mean'"),
        ({"pooling": ()}, "pooling: expected"),
        ({"layers": [-6]}, "layers: expected -5 to 4 for a model of 4 layers, found -6"),
        ({"layers": [5]}, "layers: expected -5 to 4"),
        ({"layers": "some"}, "layers: expected numbers"),
        ({"dtype": "int8"}, "dtype: expected f32, f16, bf16"),
        ({"max_length": 1}, "max_length: expected 2 to 512"),
        ({"max_length": 513}, "max_length: expected 2 to 512"),
        ({"truncation_side": "middle"}, "truncation_side: expected 'left' or 'right'"),
        ({"padding_side": "both"}, "padding_side: expected"),
        ({"batch_tokens": 0}, "batch_tokens: expected 1 or more"),
        ({"shard_rows": 0}, "shard_rows: expected 1 or more"),
        ({"template": "no fields"}, "template: expected None, 'chat', 'hh'"),
        ({"columns": {"txet": "a"}}, "columns: expected keys among"),
        ({"device": "cpu"}, "device: expected None beside a loaded model"),
        ({"revision": "main"}, "revision: expected None beside a loaded model"),
        ({"tokenizer": None}, "tokenizer: expected one beside a model"),
    ],
)
def test_wrong_arguments_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        vectors(TEXTS, **options)


def test_unknown_arguments_and_models_are_named() -> None:
    with pytest.raises(TypeError, match=r"embed_texts\(\) got an unexpected argument 'poling'"):
        vectors(TEXTS, poling="last")
    with pytest.raises(TypeError, match=r"gold_scores\(\) takes no pooling"):
        gold_scores([], tiny.reward_model(), pooling="mean")
    with pytest.raises(TypeError, match="model: expected a name, a path or a transformers model, found int"):
        embed_texts(TEXTS, 7)


def test_the_head_of_a_causal_model_is_left_out() -> None:
    from transformers import LlamaForCausalLM

    torch.manual_seed(3)
    causal = LlamaForCausalLM(tiny.config(attention_dropout=0.5)).train()
    causal.model.norm.eval()
    modes = [module.training for module in causal.modules()]
    assert torch.equal(vectors(TEXTS, causal), vectors(TEXTS, causal.model)), "nothing is dropped out"
    assert [module.training for module in causal.modules()] == modes, "the model is left in its modes"


def test_values_that_are_not_finite_are_named() -> None:
    model = tiny.llama()
    with torch.no_grad():
        model.embed_tokens.weight[ids_of("q")[-1]] = math.nan
    with pytest.raises(ValueError, match="row 1 of those embedded, text 1: expected finite values"):
        embed(
            [{"chosen": "a", "rejected": "b"}, {"chosen": "c", "rejected": "q"}],
            model,
            tokenizer=tiny.tokenizer(),
            progress=False,
        )
    model = tiny.llama()
    with torch.no_grad():
        model.norm.weight.mul_(1e6)
    with pytest.raises(ValueError, match="float16 ends at 65,504, try dtype='bf16'"):
        vectors(TEXTS, model, dtype="f16")


def test_normalize_scales_to_length_one() -> None:
    plain = vectors(TEXTS, pooling="wide")
    assert close(
        vectors(TEXTS, pooling="wide", normalize=True), plain / plain.norm(dim=1, keepdim=True), 1e-6
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_type_of_the_model_is_kept(dtype: torch.dtype, tmp_path: Path) -> None:
    model = tiny.llama().to(dtype)
    rows = tiny.plain_pairs()
    pairs = embed(rows, model, tokenizer=tiny.tokenizer(), out=tmp_path / "out", progress=False)
    assert pairs.dtype == str(dtype).removeprefix("torch.")
    stored = load_file(tmp_path / "out" / "pairs-00000.safetensors")
    assert stored["chosen"].dtype == dtype
    assert torch.equal(pairs.chosen.torch(), stored["chosen"])
    last = alone(model, ids_of(rows[2]["prompt"] + rows[2]["chosen"]))[-1][-1]
    assert close(stored["chosen"][2].float(), last.float(), 0.05)


def test_dtype_is_what_a_named_model_computes_in(tmp_path: Path) -> None:
    name = tiny.saved(tmp_path / "model")
    found = embed_texts(TEXTS, name, dtype="bf16", device="cpu", progress=False)
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, vectors(TEXTS, tiny.load(name, dtype=torch.bfloat16)))


# Length


def test_long_texts_lose_their_beginning_and_keep_their_first_token() -> None:
    model, text = tiny.llama(), "0123456789" * 3
    with pytest.warns(
        lm.LensmithWarning, match="1 of 2 texts were longer than 8 tokens and lost their beginning"
    ) as told:
        found = vectors(["short", text], model, max_length=8, pooling="mean")
    assert Path(told[0].filename).name == "test_embed.py", "the warning points to the caller"
    assert close(found[1], alone(model, [tiny.BOS, *ids_of(text)[-7:]])[-1].mean(dim=0))
    with pytest.warns(lm.LensmithWarning, match="lost their end"):
        found = vectors(["short", text], model, max_length=8, pooling="mean", truncation_side="right")
    assert close(found[1], alone(model, ids_of(text)[:8])[-1].mean(dim=0))


def test_the_length_of_the_model_is_the_limit() -> None:
    with pytest.warns(lm.LensmithWarning, match="1 of 1 texts were longer than 512 tokens"):
        vectors(["x" * 600])
    with pytest.warns(
        lm.LensmithWarning, match="longer than 127 tokens"
    ):  # 130 positions, of which the first is 3
        vectors(["x" * 600], tiny.roberta())


def test_cut_texts_of_shards_that_were_there_are_counted(tmp_path: Path) -> None:
    rows = [{"text": "x" * n} for n in (3, 30, 4, 31, 5)]
    for _ in range(2):
        with pytest.warns(lm.LensmithWarning, match="2 of 5 texts"):
            vectors(rows, max_length=20, shard_rows=2, out=tmp_path / "out")
        (tmp_path / "out" / "embeddings-00002.safetensors").unlink()


# Chat templates


def test_a_chat_template_brings_the_only_bos_token() -> None:
    model, tokenizer = tiny.llama(), tiny.tokenizer()
    text = tokenizer.apply_chat_template(turns("hi", "there"), tokenize=False)
    assert text.startswith("<s>")
    ids = ids_of(text)
    assert ids[:2] == [tiny.BOS, tiny.BOS], "the tokenizer adds one of its own"
    expected = alone(model, ids[1:])[-1].mean(dim=0)
    assert close(vectors([turns("hi", "there")], model, pooling="mean")[0], expected)
    assert close(vectors([text], model, pooling="mean")[0], expected), (
        "texts in which a template was applied before"
    )
    assert close(vectors(["hi"], model, pooling="first")[0], alone(model, [tiny.BOS])[-1][0])


def test_all_ways_to_write_a_conversation_give_the_same() -> None:
    prompt, answers = "Who are you?", ("A model.", "Nobody.")
    whole = [{"chosen": turns(prompt, answers[0]), "rejected": turns(prompt, answers[1])}]
    expected = chosen(whole)
    sides = {
        name: [{"role": "assistant", "content": a}]
        for name, a in zip(("chosen", "rejected"), answers, strict=True)
    }
    texts = dict(zip(("chosen", "rejected"), answers, strict=True))
    assert torch.equal(chosen([sides | {"prompt": turns(prompt)}]), expected)
    assert torch.equal(chosen([sides | {"prompt": prompt}]), expected)
    assert torch.equal(chosen([texts | {"prompt": turns(prompt)}]), expected)
    assert torch.equal(chosen([texts | {"prompt": prompt}], template="chat"), expected)
    assert torch.equal(chosen([texts | {"prompt": prompt}], template=tiny.CHAT), expected)
    # The prompt in a column of its own and in the conversation, as UltraFeedback has it.
    assert torch.equal(chosen([whole[0] | {"prompt": prompt}]), expected)
    assert torch.equal(chosen([whole[0] | {"prompt": turns(prompt)}]), expected)
    lists = {name: {"role": ["user", "assistant"], "content": [prompt, a]} for name, a in texts.items()}
    assert torch.equal(chosen([lists]), expected)
    nulls = {name: [m | {"tool_calls": None} for m in talk] for name, talk in whole[0].items()}
    assert torch.equal(chosen([nulls]), expected)


def test_plain_texts_are_joined_as_they_are() -> None:
    rows = [{"prompt": "Q: why? ", "chosen": "So.", "rejected": "No."}]
    assert torch.equal(chosen(rows), vectors(["Q: why? So."]))
    assert torch.equal(chosen(rows, template="<{prompt}|{response}> {x}"), vectors(["<Q: why? |So.> {x}"]))
    braces = [{"prompt": "{response}", "chosen": "{prompt}", "rejected": "r"}]
    assert torch.equal(chosen(braces, template="{prompt}-{response}"), vectors(["{response}-{prompt}"]))


def test_without_a_chat_template_messages_are_refused() -> None:
    plain = tiny.tokenizer(chat=None)
    with pytest.raises(ValueError, match=r"row 0: the tokenizer of .* has no chat template.*template="):
        vectors([turns("a", "b")], tokenizer=plain)
    expected = vectors([turns("a", "b")])
    assert torch.equal(vectors([turns("a", "b")], tokenizer=plain, template=tiny.CHAT), expected)


def test_templates_get_a_fixed_date() -> None:
    dated = "{{ strftime_now('%d %b %Y') }} {{ city }} {{ messages[-1]['content'] }}"
    assert (
        tiny.tokenizer()
        .apply_chat_template(turns("a", "b"), chat_template=dated, tokenize=False)
        .startswith(datetime.now().strftime("%d %b %Y"))
    ), "on its own the template asks for today's date"
    found = vectors([turns("a", "b")], template=dated, template_args={"city": "Bern"})
    tokenizer = tiny.tokenizer()
    ids = tokenizer("26 Jul 2024 Bern b", add_special_tokens=False)["input_ids"]
    assert close(found[0], alone(tiny.llama(), ids)[-1][-1])
    iso = vectors([turns("a", "b")], template="{{ strftime_now('%Y-%m-%d, %A %-d %B') }}")
    ids = tokenizer("2024-07-26, Friday 26 July", add_special_tokens=False)["input_ids"]
    assert close(iso[0], alone(tiny.llama(), ids)[-1][-1])


HH = "\n\nHuman: Hello\n\nAssistant: Hi.\n\nHuman: Who\nare you?\n\nAssistant:"


def test_hh_dialogues_become_turns() -> None:
    row = {"chosen": f"{HH} A model.", "rejected": f"{HH} Nobody."}
    talk = turns("Hello", "Hi.", "Who\nare you?", "A model.")
    assert torch.equal(chosen([row], template="hh"), vectors([talk]))
    split = {"prompt": HH, "chosen": " A model.", "rejected": " Nobody."}
    assert torch.equal(chosen([split], template="hh"), vectors([talk]))
    joined = "\n\nHuman: one\n\nHuman: two\n\nAssistant: three"
    assert torch.equal(vectors([joined], template="hh"), vectors([turns("one\n\ntwo", "three")]))
    assert torch.equal(chosen([row]), vectors([row["chosen"]])), (
        "without the template they are texts like others"
    )
    for wrong in ("no dialogue", "\n\nHuman: only a question", "before\n\nHuman: a\n\nAssistant: b"):
        with pytest.raises(InvalidRow, match=r"row 0: template 'hh': expected"):
            vectors([wrong], template="hh")
    with pytest.raises(
        InvalidRow, match="row 0: expected a response, found an empty last message of 'assistant'"
    ):
        vectors([HH + " "], template="hh")


# Groups


def test_groups_are_prompts() -> None:
    def groups(rows: Any, **options: Any) -> list[int] | None:
        found = embed(rows, tiny.llama(), tokenizer=tiny.tokenizer(), progress=False, **options).group
        return None if found is None else found.tolist()

    plain = groups(tiny.plain_pairs(4))
    assert plain is not None and plain[0] == plain[1] != plain[2] == plain[3]
    dialogues = [
        {"chosen": f"{HH} a", "rejected": f"{HH} b"},
        {"chosen": f"{HH} c", "rejected": f"{HH} a different one"},
        {"chosen": "\n\nHuman: x\n\nAssistant: c", "rejected": "\n\nHuman: x\n\nAssistant: d"},
    ]
    found = groups(dialogues)
    assert found is not None and found[0] == found[1] != found[2]
    assert groups(dialogues, template="hh") == found
    talks = [{"chosen": turns("p", a), "rejected": turns("p", b)} for a, b in ("xy", "zw")]
    found = groups([*talks, {"chosen": turns("q", "x"), "rejected": turns("q", "y")}])
    assert found is not None and found[0] == found[1] != found[2]
    apart = {"chosen": turns("one", "x"), "rejected": turns("other", "y")}
    found = groups([*talks, apart, {"chosen": "no turns", "rejected": "at all"}])
    assert found is not None and len(set(found)) == 3, "a pair without a common prompt is a group of its own"
    assert groups([{"chosen": "no turns", "rejected": "at all"}] * 2) is None
    numbered = [row | {"topic": i % 3} for i, row in enumerate(tiny.plain_pairs(5))]
    assert groups(numbered, group="topic") == [0, 1, 2, 0, 1]
    named = groups([row | {"topic": "ab"[i % 2]} for i, row in enumerate(tiny.plain_pairs(3))], group="topic")
    assert named is not None and named[0] == named[2] != named[1]
    assert groups(numbered, group=False) is None
    with pytest.raises(ValueError, match="row 0: group: expected a column 'theme'"):
        groups(numbered, group="theme")


def test_a_split_keeps_groups_whole(tmp_path: Path) -> None:
    rows = [{"prompt": f"p{i % 13}", "chosen": f"good {i}", "rejected": f"bad {i}"} for i in range(60)]
    pairs = embed(
        rows, tiny.llama(), tokenizer=tiny.tokenizer(), out=tmp_path / "out", shard_rows=16, progress=False
    )
    split = lm.split(pairs, seeds=20, validation=15)
    parts = [set(part.group.tolist()) for part in (split.seeds, split.validation, split.test)]
    assert sum(map(len, parts)) == len(set.union(*parts)) == 13


# Data


def test_all_kinds_of_data_give_the_same(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet
    from datasets import Dataset

    rows = [{"chosen": turns("q", f"a{i}"), "rejected": turns("q", f"b{i}"), "extra": i} for i in range(5)]
    lines = "\n".join(map(json.dumps, rows)) + "\n\n"
    (tmp_path / "rows.jsonl").write_text(lines)
    with gzip.open(tmp_path / "rows.jsonl.gz", "wt") as file:
        file.write(lines)
    table = pa.Table.from_pylist(rows)
    pyarrow.parquet.write_table(table, tmp_path / "rows.parquet", row_group_size=2)
    tiny_set = Dataset.from_list(rows)
    expected = chosen(rows)
    others = [
        tuple(rows),
        iter(rows),
        table,
        tiny_set,
        tiny_set.to_iterable_dataset(),
        tiny_set.with_format("torch"),
    ]
    for data in (*others, *(tmp_path / name for name in ("rows.jsonl", "rows.jsonl.gz", "rows.parquet"))):
        assert torch.equal(chosen(data), expected), type(data)
    assert torch.equal(chosen(str(tmp_path / "rows.jsonl")), expected)


def test_columns_can_be_called_otherwise() -> None:
    rows = [
        {"question": r["prompt"], "a": r["chosen"], "b": r["rejected"], "prompt": "no"}
        for r in tiny.plain_pairs()
    ]
    columns = {"prompt": "question", "chosen": "a", "rejected": "b"}
    assert torch.equal(chosen(rows, columns=columns), chosen(tiny.plain_pairs()))
    alone = [row["a"] for row in rows]
    assert torch.equal(chosen(rows, columns=columns | {"prompt": None}), vectors(alone))


def test_only_columns_that_are_needed_are_read(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet
    from datasets import Dataset

    rows = [GOOD | {"heavy": i, "topic": 1} for i in range(3)]
    read: list[Any] = []

    class Watched(Dataset):
        def _getitem(self, key: Any, **options: Any) -> Any:
            read.append(self.column_names)
            return super()._getitem(key, **options)

    watched = Watched(pa.Table.from_pylist(rows))
    assert torch.equal(chosen(watched), chosen([GOOD] * 3))
    assert read == [["chosen", "rejected"]] * 2
    read.clear()
    embed(watched, tiny.llama(), tokenizer=tiny.tokenizer(), group="topic", progress=False)
    assert read == [["chosen", "rejected", "topic"]] * 2
    pyarrow.parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    assert torch.equal(chosen(tmp_path / "rows.parquet"), chosen([GOOD] * 3))
    with pytest.raises(ValueError, match=r"row 0: expected a column 'better', found \['chosen', .*'heavy'"):
        chosen(tmp_path / "rows.parquet", columns={"chosen": "better"})


GOOD = {"chosen": "a", "rejected": "b"}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (GOOD | {"chosen": None}, "row 1: column 'chosen': expected text or messages, found None"),
        (GOOD | {"rejected": ""}, "row 1: rejected: expected a response, found an empty text"),
        (GOOD | {"rejected": " \n"}, "row 1: rejected: expected a response, found an empty text"),
        (GOOD | {"chosen": 7}, "row 1: chosen: expected text or a list of messages, found int"),
        (GOOD | {"chosen": []}, "row 1: chosen: expected text or messages, found an empty list"),
        (
            GOOD | {"chosen": ["hi"]},
            "row 1: chosen: message 0: expected {'role': ..., 'content': ...}, found str",
        ),
        (
            GOOD | {"chosen": [{"content": "x"}]},
            "row 1: chosen: message 0: expected .* found a dict with \\['content'\\]",
        ),
        (
            GOOD | {"chosen": [{"role": "user", "content": 3}]},
            "row 1: chosen: message 0: expected text as content",
        ),
        (
            GOOD | {"chosen": turns("a", " ")},
            "row 1: chosen: expected a response, found an empty last message",
        ),
        (
            GOOD | {"chosen": [{"role": "robot", "content": "x"}]},
            "row 1: chosen: the chat template refuses .*no such role",
        ),
        (
            GOOD | {"chosen": "\ud800"},
            "row 1: chosen: expected Unicode text, found .* half of a surrogate pair",
        ),
        (["a", "b"], "row 1: expected a row with columns \\(a dict\\), found list"),
    ],
)
def test_rows_that_cannot_be_embedded_are_named(row: Any, message: str) -> None:
    with pytest.raises(InvalidRow, match=message):
        chosen([GOOD, row])
    with pytest.warns(lm.LensmithWarning, match="1 of 3 rows were left out, the first: row 1: "):
        assert torch.equal(chosen([GOOD, row, GOOD], skip_invalid=True), chosen([GOOD, GOOD]))


def test_rows_of_files_are_named_with_their_line(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text('{"chosen": "a", "rejected": "b"}\n\n{"chosen": "a", "rejected": null}\n')
    with pytest.raises(
        InvalidRow, match=r"rows.jsonl, row 1 \(line 3\): column 'rejected': expected text or messages"
    ):
        chosen(file)
    file.write_text('{"chosen": "a", "rejected": "b"}\n{"chosen"\n')
    with pytest.raises(ValueError, match=r"rows.jsonl, row 1 \(line 2\): expected one JSON object a line"):
        chosen(file, skip_invalid=True)


def test_data_that_is_none_is_refused(tmp_path: Path) -> None:
    from datasets import Dataset, DatasetDict

    with pytest.raises(
        TypeError, match=r"found a DatasetDict with the keys \['train'\]: pass one of its values"
    ):
        chosen(DatasetDict(train=Dataset.from_list([GOOD])))
    with pytest.raises(TypeError, match="dataset: expected .* found int"):
        chosen(7)
    with pytest.raises(
        FileNotFoundError, match="found nothing there; for a data set of the Hugging Face hub"
    ):
        chosen("Anthropic/hh-rlhf")
    with pytest.raises(FileNotFoundError, match="found a folder there"):
        chosen(tmp_path)
    (tmp_path / "rows.csv").write_text("a,b\n")
    with pytest.raises(ValueError, match="rows.csv: expected .* found the suffix '.csv'"):
        chosen(tmp_path / "rows.csv")
    with pytest.raises(ValueError, match="the list: expected rows to embed, found none$"):
        chosen([])
    with pytest.raises(ValueError, match="found none: all 1 were left out, the first: row 0: "):
        chosen([GOOD | {"chosen": ""}], skip_invalid=True)
    with pytest.raises(
        ValueError, match=r"row 0: expected a column 'chosen', found \['better', 'rejected'\]"
    ):
        chosen([{"better": "a", "rejected": "b"}])
    with pytest.raises(ValueError, match="row 1: expected a column 'prompt'"):
        chosen([GOOD | {"prompt": "p"}, GOOD])


def test_a_prompt_that_would_stand_twice_is_refused() -> None:
    rows = [{"prompt": "Why? ", "chosen": f"Why? {a}", "rejected": f"Why? {b}"} for a, b in ("xy", "zw")]
    with pytest.raises(
        ValueError, match="every response begins with its own prompt.*columns={'prompt': None}"
    ):
        chosen(rows)
    found = embed(
        rows,
        tiny.llama(),
        tokenizer=tiny.tokenizer(),
        columns={"prompt": None},
        group="prompt",
        progress=False,
    )
    assert close(torch.from_numpy(found.chosen.float32()), vectors([row["chosen"] for row in rows]), 0)
    assert found.group is not None and found.group[0] == found.group[1]
    chosen([*rows, GOOD | {"prompt": "c"}])


def test_data_that_changes_meanwhile_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = sys.modules["lensmith.embed._run"]
    file = tmp_path / "rows.jsonl"
    load = module.load_model

    def changing(*arguments: Any, **options: Any) -> Any:
        file.write_text(changed)
        return load(*arguments, **options)

    monkeypatch.setattr(module, "load_model", changing)
    line = json.dumps(GOOD) + "\n"
    for changed, message in (
        (line.replace("a", "c") + line, "its rows changed"),
        (line * 3, "it got more rows"),
    ):
        file.write_text(line * 2)
        with pytest.raises(ValueError, match=message):
            chosen(file, shard_rows=2)


# Folders


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.name != ".embed.lock"}


def test_a_folder_holds_what_memory_would(tmp_path: Path) -> None:
    name, rows = tiny.saved(tmp_path / "model"), tiny.plain_pairs(8)
    options = {"device": "cpu", "progress": False}
    memory = embed(rows, name, **options)
    pairs = embed(rows, name, out=tmp_path / "out", shard_rows=3, **options)
    assert [p.name for p in sorted((tmp_path / "out").glob("*.safetensors"))] == [
        f"pairs-0000{i}.safetensors" for i in range(3)
    ]
    for side in ("chosen", "rejected"):
        assert close(
            torch.tensor(getattr(pairs, side).float32()), torch.tensor(getattr(memory, side).float32())
        )
    assert pairs.group.tolist() == memory.group.tolist()
    again = lm.PairSet.open(str(tmp_path / "out"))
    assert np.array_equal(again.chosen.float32(), pairs.chosen.float32())


def test_shards_hold_checksums_of_their_tensors(tmp_path: Path) -> None:
    from safetensors import safe_open
    from xxhash import xxh3_128_hexdigest

    embed(
        tiny.plain_pairs(),
        tiny.llama(),
        tokenizer=tiny.tokenizer(),
        out=tmp_path,
        shard_rows=4,
        progress=False,
    )
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert manifest["complete"] and manifest["pairs"] == 7
    for record in manifest["shards"]:
        path = tmp_path / record["file"]
        assert path.stat().st_size == record["bytes"]
        with safe_open(path, "pt") as shard:
            metadata = shard.metadata()
            for name in ("chosen", "rejected", "group"):
                digest = xxh3_128_hexdigest(shard.get_tensor(name).numpy().tobytes())
                assert digest == metadata[f"xxh3.{name}"] == record["tensors"][name]
        head = path.read_bytes()[:4096]
        assert xxh3_128_hexdigest(head.replace(metadata["xxh3"].encode(), b"0" * 32)) == metadata["xxh3"]


def test_killed_at_every_step_it_goes_on_to_the_same_bytes(tmp_path: Path) -> None:
    name = tiny.saved(tmp_path / "model")
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in tiny.plain_pairs(8)))
    embed(data, name, out=tmp_path / "whole", **tiny.SETTINGS)
    expected = files(tmp_path / "whole")
    # Seven files get their names: settings and manifest, three shards, settings and manifest again.
    steps = 14
    command = [sys.executable, tiny.__file__, str(steps), str(data), name, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, env=with_package(), check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [[-9, 0]] * steps
    for step in range(steps):
        assert files(tmp_path / str(step)) == expected, f"step {step}"
        killed = tmp_path / f"{step}-killed"
        shards = len(list(killed.glob("pairs-*.safetensors")))
        assert shards == min(3, max(0, (step - 3) // 2)), f"step {step}"
        if 3 <= step < 13 and shards:
            with pytest.raises(lm.LensmithError, match="interrupted"):
                lm.PairSet.open(str(killed))


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("pooling", {"pooling": "mean"}),
        ("layers", {"layers": [-2]}),
        ("normalize", {"normalize": True}),
        ("dtype", {"dtype": "bf16"}),
        ("max_length", {"max_length": 100}),
        ("truncation_side", {"truncation_side": "right"}),
        ("template", {"template": "chat"}),
        ("template", {"template_args": {"a": 1}}),
        ("tokenizer", {"tokenizer": "changed"}),
        ("shard_rows", {"shard_rows": 4}),
        ("rows", {"rows": 6}),
        ("dataset", {"rows": "changed"}),
        ("dataset", {"group": False}),
        ("weights", {"seed": 1}),
    ],
)
def test_other_settings_are_refused_and_named(name: str, change: dict[str, Any], tmp_path: Path) -> None:
    def run(rows: Any = 7, seed: int = 0, overwrite: bool = False, **options: Any) -> None:
        data = tiny.plain_pairs(7 if rows == "changed" else rows)
        if rows == "changed":
            data[6] = data[6] | {"chosen": "Another."}
        if options.get("tokenizer") == "changed":
            options["tokenizer"] = tiny.tokenizer()
            options["tokenizer"].backend_tokenizer.normalizer = Lowercase()
        options = {"tokenizer": tiny.tokenizer(), "shard_rows": 3, "progress": False} | options
        embed(data, tiny.llama(seed), out=tmp_path, overwrite=overwrite, **options)

    run()
    before = files(tmp_path)
    run(batch_tokens=100, padding_side="left")
    with pytest.raises(
        ValueError, match=f"{name} was .* when these embeddings were begun, and is .* now: use the same"
    ):
        run(**change)
    assert files(tmp_path) == before
    run(**change, overwrite=True)
    assert files(tmp_path)["embed.json"] != before["embed.json"]
    run(**change)


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    options = {"tokenizer": tiny.tokenizer(), "progress": False}
    (tmp_path / "mine.safetensors").write_bytes(b"mine")
    with pytest.raises(FileExistsError, match="found mine.safetensors and no embed.json"):
        embed([GOOD], tiny.llama(), out=tmp_path, overwrite=True, **options)
    with pytest.raises(FileExistsError, match="expected a folder or nothing, found a file"):
        embed([GOOD], tiny.llama(), out=tmp_path / "mine.safetensors", **options)
    (tmp_path / "mine.safetensors").unlink()
    (tmp_path / "embed.json").write_text("[]")
    with pytest.raises(
        ValueError, match=r"embed.json: expected the settings of embeddings, found something else"
    ):
        embed([GOOD], tiny.llama(), out=tmp_path, **options)


def test_one_process_at_a_time_writes(tmp_path: Path) -> None:
    import fcntl

    with open(tmp_path / ".embed.lock", "ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(BlockingIOError, match="another process is writing"):
            vectors(TEXTS, out=tmp_path)
    assert vectors(TEXTS, out=tmp_path).shape == (6, 32)


def test_a_damaged_shard_is_named(tmp_path: Path) -> None:
    first = vectors(TEXTS, out=tmp_path, shard_rows=2)
    shard = tmp_path / "embeddings-00001.safetensors"
    whole = shard.read_bytes()
    for damaged in (whole[:-1], whole[:100], b"", whole.replace(b'"embed":"', b'"embed":"0')):
        shard.write_bytes(damaged)
        with pytest.raises(
            ValueError, match=r"embeddings-00001.safetensors: .*: delete this file, and run again"
        ):
            vectors(TEXTS, out=tmp_path, shard_rows=2)
    shard.unlink()
    assert torch.equal(vectors(TEXTS, out=tmp_path, shard_rows=2), first)
    assert shard.read_bytes() == whole


# Candidates and gold scores


def sets(prompts: int = 5, per_prompt: int = 4) -> list[dict[str, Any]]:
    return [
        {
            "prompt": f"question {p}? ",
            "responses": [f"answer {p} {i}" + "!" * i for i in range(per_prompt)],
            "scores": [p + i / 10 for i in range(per_prompt)],
        }
        for p in range(prompts)
    ]


def test_candidates(tmp_path: Path) -> None:
    options = {"tokenizer": tiny.tokenizer(), "progress": False}
    rows = sets()
    found = embed_candidates(rows, tiny.llama(), **options)
    assert found.candidates.shape == (5, 4, 32)
    assert close(found.candidates[3, 2], vectors([rows[3]["prompt"] + rows[3]["responses"][2]])[0])
    assert np.array_equal(found.gold, np.array([row["scores"] for row in rows], np.float32))
    stored = embed_candidates(rows, tiny.llama(), out=tmp_path / "out", shard_rows=2, **options)
    assert close(stored.candidates, found.candidates) and np.array_equal(stored.gold, found.gold)
    shard = load_file(tmp_path / "out" / "candidates-00002.safetensors")
    assert shard["candidates"].shape == (1, 4, 32) and shard["gold"].shape == (1, 4)
    assert shard["gold"].dtype == torch.float32
    gold = np.arange(20.0).reshape(5, 4)
    assert np.array_equal(embed_candidates(rows, tiny.llama(), gold=gold, **options).gold, gold)
    bare = [{"responses": row["responses"]} for row in rows]
    assert embed_candidates(bare, tiny.llama(), **options).gold is None
    talks = [{"prompt": turns("q"), "responses": [turns("q", "a")[1:], turns("q", "b")]}]
    found = embed_candidates(talks, tiny.llama(), **options)
    assert close(found.candidates[0], vectors([turns("q", "a"), turns("q", "b")]))


def test_a_reward_model_takes_candidates() -> None:
    options = {"tokenizer": tiny.tokenizer(), "progress": False}
    pairs = embed(tiny.plain_pairs(24), tiny.llama(), **options)
    reward = lm.RewardModel.fit(pairs, epochs=1)
    curve = reward.best_of_n(*embed_candidates(sets(), tiny.llama(), **options))
    assert len(curve["best_of_n"]) == 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"responses": ["a", "b", "c"]}, "row 2: responses: expected 4, as in the first row, found 3"),
        ({"responses": "abcd"}, "row 2: responses: expected a list, found str"),
        ({"responses": ["a", "b", "", "d"]}, "row 2: response 2: expected a response, found an empty text"),
        ({"responses": None}, "row 2: column 'responses': expected a list of responses, found None"),
        ({"scores": [1.0, 2.0]}, "row 2: scores: expected a list of 4, one a response, found 2"),
        ({"scores": 3.0}, "row 2: scores: expected a list of 4, one a response, found float"),
        ({"scores": [1, 2, 3, math.nan]}, "row 2: scores: expected finite numbers, found nan at 3"),
        ({"scores": [1, None, 3, 4]}, "row 2: scores: expected finite numbers, found None at 1"),
        ({"scores": None}, "row 2: column 'scores': expected a list of scores, found None"),
    ],
)
def test_candidates_that_do_not_fit_are_named(change: dict[str, Any], message: str) -> None:
    rows = sets()
    rows[2] |= change
    with pytest.raises(InvalidRow, match=message):
        embed_candidates(rows, tiny.llama(), tokenizer=tiny.tokenizer(), progress=False)


def test_gold_scores_must_be_as_many_as_prompts() -> None:
    for rows in (4, 6):
        with pytest.raises(ValueError, match="gold: expected a row for"):
            embed_candidates(
                sets(), tiny.llama(), gold=np.zeros((rows, 4)), tokenizer=tiny.tokenizer(), progress=False
            )


def test_gold_of_rows_that_are_left_out_is_left_out() -> None:
    rows = sets()
    rows[1]["responses"][0] = ""
    gold = np.arange(20.0).reshape(5, 4)
    with pytest.warns(lm.LensmithWarning, match="1 of 5 rows were left out"):
        found = embed_candidates(
            rows, tiny.llama(), gold=gold, tokenizer=tiny.tokenizer(), skip_invalid=True, progress=False
        )
    assert np.array_equal(found.gold, gold[[0, 2, 3, 4]])


def test_gold_scores_are_those_of_texts_alone() -> None:
    """The pad token of the model ends every text here, which its own search for the last token takes for
    padding.
    """
    model, tokenizer = tiny.reward_model(), tiny.tokenizer(pad="</s>")
    rows = [{"prompt": turns(row["prompt"]), "responses": row["responses"]} for row in sets()]
    found = gold_scores(rows, model, tokenizer=tokenizer, progress=False)
    assert found.shape == (5, 4) and found.dtype == np.float32
    head = model.score
    for row, scores in zip(rows, found, strict=True):
        for response, score in zip(row["responses"], scores, strict=True):
            talk = [*row["prompt"], {"role": "assistant", "content": response}]
            ids = tokenizer.apply_chat_template(talk, return_dict=False)
            with torch.inference_mode():
                assert abs(head(alone(model.model, ids)[-1][-1]).item() - score) < 1e-5
    with pytest.raises(ValueError, match="expected a reward model with one label, found one with 3"):
        gold_scores(rows, tiny.reward_model(num_labels=3), tokenizer=tokenizer, progress=False)


def test_gold_scores_of_an_encoder() -> None:
    from transformers import BertForSequenceClassification

    torch.manual_seed(0)
    model = BertForSequenceClassification(
        tiny.bert().config.__class__(**tiny.bert().config.to_dict() | {"num_labels": 1})
    )
    model.eval()
    found = gold_scores(sets(2, 2), model, tokenizer=tiny.tokenizer(), progress=False)
    with torch.inference_mode():
        expected = model(torch.tensor([ids_of("question 1? answer 1 1!")])).logits.item()
    assert abs(found[1, 1] - expected) < 1e-5


# A trained model


def test_minilm_gives_its_own_mean() -> None:
    from transformers import AutoModel, AutoTokenizer

    folder = str(tiny.minilm())
    texts = [
        "A man is eating food.",
        "Yes.",
        "The girl carries a baby, and goes on for a while with it. " * 4,
        "Zebra!",
    ]
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
    batch = tokenizer(texts, padding=True, return_tensors="pt")
    with torch.inference_mode():
        states = model(**batch).last_hidden_state
    mask = batch["attention_mask"].unsqueeze(-1)
    expected = (states * mask).sum(1) / mask.sum(1)
    found = embed_texts(texts, folder, pooling="mean", device="cpu", progress=False)
    assert close(found, expected)
    unit = embed_texts(texts, folder, pooling="mean", normalize=True, device="cpu", progress=False)
    assert close(unit, torch.nn.functional.normalize(expected, dim=1))
    near = embed_texts(
        ["A man eats.", "Someone is eating.", "The stock market fell."], model, pooling="mean", normalize=True
    )
    assert near[0] @ near[1] > near[0] @ near[2] + 0.2, "it was trained"


@pytest.mark.parametrize("side", ["left", "right"])
def test_minilm_is_cut_as_its_tokenizer_cuts(side: str) -> None:
    from transformers import AutoTokenizer

    folder = str(tiny.minilm())
    text = " ".join(f"word{i}" for i in range(60))
    tokenizer = AutoTokenizer.from_pretrained(folder, truncation_side=side)
    kept = tokenizer(text, truncation=True, max_length=32)["input_ids"]
    model = tiny.load(folder)
    with pytest.warns(lm.LensmithWarning, match="longer than 32 tokens"):
        found = embed_texts(
            [text],
            model,
            pooling="mean",
            max_length=32,
            truncation_side=side,
            tokenizer=folder,
            progress=False,
        )
    assert close(found[0], alone(model, kept)[-1].mean(dim=0))


# The package


@pytest.mark.parametrize(
    "first", ["lensmith as lm", "lensmith.embed, lensmith as lm", "lensmith.embed.__main__"]
)
def test_lm_embed_is_the_function(first: str) -> None:
    """Its module has the same name, and importing it must not hide it. Nor does it load torch."""
    code = f"import {first}, lensmith as lm, sys; assert lm.embed is lm.embed"
    code += "; assert lm.embed is sys.modules['lensmith.embed'].embed; assert 'torch' not in sys.modules"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=with_package(), check=False
    )
    assert done.returncode == 0, done.stderr


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "xxhash", None)
    with pytest.raises(ImportError, match="writing a folder of shards needs xxhash: pip install xxhash"):
        vectors(TEXTS, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ImportError, match="needs transformers: pip install transformers"):
        embed_texts(TEXTS, "name")
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ImportError, match="needs torch: pip install torch"):
        embed_texts(TEXTS, "name")


# The command


def command(*words: str) -> int:
    from lensmith.embed.__main__ import main

    return main(words)


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = tiny.saved(tmp_path / "model")
    file = tmp_path / "rows.jsonl"
    rows = [
        {"better": r["chosen"], "worse": r["rejected"], "prompt": r["prompt"]} for r in tiny.plain_pairs()
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = str(tmp_path / "out")
    words = [str(file), "--model", name, "--out", out, "--device", "cpu", "--chosen-column", "better"]
    words += [
        "--rejected-column",
        "worse",
        "--layers",
        "-1,-3",
        "--dtype",
        "bf16",
        "--max-length",
        "12",
        "--shard-rows",
        "3",
    ]
    assert command(*words) == 0
    said = capsys.readouterr()
    assert said.out == f"{out}: 7 pairs, d = 64, BF16, in 3 shards\n"
    assert "warning: 14 of 14 texts were longer than 12 tokens" in said.err and "pairs:" in said.err
    pairs = lm.PairSet.open(out)
    assert (len(pairs), pairs.dim, pairs.dtype) == (7, 64, "bfloat16")
    assert command(*words, "--quiet") == 0
    assert "pairs:" not in capsys.readouterr().err
    assert command(*words, "--pooling", "mean") == 1
    assert f"error: {out}: pooling was ['last'] when" in capsys.readouterr().err
    assert command(*words, "--pooling", "mean", "--overwrite", "--no-prompt", "--no-group") == 0
    assert lm.PairSet.open(out).group is None


def test_command_for_candidates_and_texts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = tiny.saved(tmp_path / "model")
    file, out = tmp_path / "sets.jsonl", str(tmp_path / "out")
    file.write_text("".join(json.dumps(row | {"text": row["prompt"]}) + "\n" for row in sets()))
    words = [str(file), "--model", name, "--device", "cpu", "--quiet"]
    assert command(*words, "--candidates", "--out", out) == 0
    assert capsys.readouterr().out == f"{out}: 5 prompts, d = 32, F32, in 1 shards\n"
    template = tmp_path / "chat.jinja"
    template.write_text("{{ greeting }} {{ messages[0]['content'] }}")
    more = [
        "--template",
        str(template),
        "--template-arg",
        "greeting=hello",
        "--text-column",
        "prompt",
        "--no-prompt",
    ]
    file.write_text(json.dumps({"prompt": turns("a", "b")}) + "\n")
    assert command(*words, "--texts", "--out", out + "2", *more) == 0
    ids = tiny.tokenizer()("hello a", add_special_tokens=False)["input_ids"]
    found = load_file(Path(out + "2") / "embeddings-00000.safetensors")["embeddings"][0]
    assert close(found, alone(tiny.llama(), ids)[-1][-1])


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["rows.jsonl", "--model", "m"],
        ["rows.jsonl", "--model", "m", "--out", "o", "--pooling", "best"],
        ["rows.jsonl", "--model", "m", "--out", "o", "--layers", "first"],
        ["rows.jsonl", "--model", "m", "--out", "o", "--batch-tokens", "0"],
        ["rows.jsonl", "--model", "m", "--out", "o", "--texts", "--candidates"],
        ["rows.jsonl", "--model", "m", "--out", "o", "--texts", "--chosen-column", "a"],
        ["rows.jsonl", "--model", "m", "--out", "o", "--candidates", "--no-group"],
        ["rows.jsonl", "--model", "m", "--out", "o", "--no-prompt", "--prompt-column", "p"],
        ["rows.jsonl", "--model", "m", "--out", "o", "--no-group", "--group-column", "p"],
        ["rows.jsonl", "--model", "m", "--out", "o", "--template-arg", "a"],
    ],
)
def test_wrong_usage_ends_with_code_2(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        command(*words)
    assert ended.value.code == 2
    assert "error:" in capsys.readouterr().err


def test_help_has_examples(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        command("--help")
    assert ended.value.code == 0
    assert "python -m lensmith.embed train.jsonl --model" in capsys.readouterr().out


def test_a_missing_file_ends_with_code_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(str(tmp_path / "no.jsonl"), "--model", "m", "--out", str(tmp_path / "o")) == 1
    assert "error: " in capsys.readouterr().err
