"""Tables in and out: Arrow, pandas, Polars, datasets; recipes; the default engine; warnings of a training."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import datasets
import lensmith as lm
import numpy as np
import polars
import pyarrow as pa
import pyarrow.parquet
import pytest


@pytest.fixture
def pairs(small: lm.PairSet) -> lm.PairSet:
    return small


def same(a: lm.PairSet, b: lm.PairSet) -> bool:
    sides = ("chosen", "rejected")
    return all((getattr(a, side).float32() == getattr(b, side).float32()).all() for side in sides)


def test_pairs_go_through_arrow_and_come_back(pairs: lm.PairSet, tmp_path: Path) -> None:
    table = pa.table(pairs)
    assert table.schema.field("chosen").type == pa.list_(pa.float32(), pairs.dim)
    assert same(lm.PairSet.from_arrow(table), pairs)
    pyarrow.parquet.write_table(table, tmp_path / "pairs.parquet", row_group_size=7)
    assert same(lm.PairSet.from_arrow(pyarrow.parquet.read_table(tmp_path / "pairs.parquet")), pairs)
    assert same(lm.PairSet.from_arrow(pairs.to_hf_dataset()), pairs)
    frame = polars.DataFrame(pairs)
    assert frame.shape[0] == len(pairs) and same(lm.PairSet.from_arrow(frame.to_arrow()), pairs)
    lists = datasets.Dataset.from_dict({"a": pairs.chosen.numpy().tolist(), "b": pairs.rejected.numpy().tolist()})
    assert same(lm.PairSet.from_arrow(lists, chosen="a", rejected="b"), pairs)


def test_arrow_shares_memory(pairs: lm.PairSet) -> None:
    table = pa.table(pairs)
    address = table["chosen"].chunk(0).flatten().buffers()[1].address
    assert address == pairs.chosen.numpy().ctypes.data
    back = lm.PairSet.from_arrow(table)
    assert back.chosen.numpy().ctypes.data == address


def test_groups_come_along() -> None:
    rows = np.random.default_rng(0).standard_normal((6, 4), dtype=np.float32)
    pairs = lm.PairSet(rows, -rows, group=[1, 1, 2, 2, 3, 3])
    back = lm.PairSet.from_arrow(pa.table(pairs))
    assert back.group is not None and back.group.tolist() == [1, 1, 2, 2, 3, 3]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"chosen": [[1.0]], "other": [[1.0]]}, "expected a column 'rejected', found chosen, other"),
        ({"chosen": [[1.0], None], "rejected": [[1.0], [1.0]]}, "chosen: expected no nulls, found 1"),
        ({"chosen": [[1.0, None]], "rejected": [[1.0, 1.0]]}, "chosen: expected no nulls in its lists, found 1"),
        ({"chosen": [[1.0], [1.0, 2.0]], "rejected": [[1.0], [1.0]]}, "lists of one length, found lengths 1 to 2"),
        ({"chosen": [1.0], "rejected": [[1.0]]}, "chosen: expected lists of numbers, found double"),
    ],
)
def test_columns_that_are_no_pairs(columns: dict[str, list[object]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        lm.PairSet.from_arrow(pa.table(columns))


def test_synthetic_pairs_are_a_table(vae: lm.Vae, pairs: lm.PairSet) -> None:
    synthetic = lm.synthesize(vae, pairs, fold=3)
    table = pa.table(synthetic)
    assert table.num_rows == len(synthetic)
    assert (lm.PairSet.from_arrow(table).chosen.numpy() == synthetic[:].chosen.numpy()).all()
    with pytest.raises(TypeError, match="Arrow has no bfloat16"):
        pa.table(lm.synthesize(vae, pairs, dtype="bfloat16")[:4])


def test_tables_of_figures(vae: lm.Vae) -> None:
    history = vae.history
    assert history.to_pandas()["total"].tolist() == history["total"].tolist()
    assert polars.DataFrame(history)["epoch"].to_list() == list(range(1, len(history) + 1))
    assert json.dumps(list(history.rows())) and "total" in str(history) and "<table>" in history._repr_html_()
    with pytest.raises(KeyError, match="no column 'nothing'; columns: epoch"):
        history["nothing"]
    with pytest.raises(ValueError, match="expected one length"):
        lm.Table({"a": [1], "b": [1, 2]})


@pytest.mark.parametrize("output", ["embeddings", "latents", "recipe"])
def test_a_recipe_has_its_pairs_again(output: str, vae: lm.Vae, pairs: lm.PairSet, tmp_path: Path) -> None:
    synthetic = lm.synthesize(vae, pairs, fold=5, mode="residual", seed=3)
    synthetic.write(tmp_path / "out", output=output)
    for path in (tmp_path / "out", tmp_path / "out" / "recipe.json"):
        again = lm.SyntheticPairs.open(path)
        assert len(again) == len(synthetic)
        numbers = [0, 7, len(again) - 1]
        assert (again.take(numbers).chosen.numpy() == synthetic[numbers].chosen.numpy()).all()
    # A folder that was moved has its inputs with it.
    (tmp_path / "out").rename(tmp_path / "moved")
    assert len(lm.SyntheticPairs.open(tmp_path / "moved")) == len(synthetic)
    vae.save(tmp_path / "moved" / "inputs" / "vae.safetensors")
    seeds = tmp_path / "moved" / "inputs" / "seeds.safetensors"
    pairs[: len(pairs) - 1].save(seeds)
    with pytest.raises(lm.LensmithError, match="seed pairs differs"):
        lm.SyntheticPairs.open(tmp_path / "moved")
    with pytest.raises(lm.LensmithError, match="nothing: No such file"):
        lm.SyntheticPairs.open(tmp_path / "nothing")


def test_the_default_engine_can_be_chosen(pairs: lm.PairSet, monkeypatch: pytest.MonkeyPatch) -> None:
    before = lm.default_engine()
    try:
        engine = lm.Engine("cpu", threads=1)
        lm.set_default_engine(engine)
        assert lm.default_engine() is engine
        lm.set_default_engine(None)
        monkeypatch.setenv("LENSMITH_DEVICE", "reference")
        assert lm.default_engine().device == "reference"
        with pytest.raises(TypeError, match=r"expected a lensmith\.Engine"):
            lm.set_default_engine("cpu")  # type: ignore[arg-type]
    finally:
        lm.set_default_engine(before)


def test_models_outlive_their_engine(pairs: lm.PairSet) -> None:
    with lm.Engine("cpu", threads=1) as engine, warnings.catch_warnings():
        warnings.simplefilter("ignore", lm.LensmithWarning)
        vae = lm.Vae.fit(pairs, epochs=1, engine=engine)
        mu, _ = vae.encode(pairs.chosen)
    again, _ = vae.encode(pairs.chosen)
    assert (mu == again).all()


def test_a_vae_that_has_not_learnt_warns(pairs: lm.PairSet) -> None:
    with pytest.warns(lm.LensmithWarning) as found:
        vae = lm.Vae.fit(pairs, epochs=1, lr=1e-6)
    assert sorted(str(warning.message) for warning in found) == sorted(vae.health().warnings)
    assert found[0].filename == __file__
