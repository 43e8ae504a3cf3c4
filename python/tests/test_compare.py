"""Comparisons are the program's runs; tables show figures to people and to libraries."""

from __future__ import annotations

import json

import numpy as np
import pytest
from conftest import HH

import lensmith as lm

pytestmark = pytest.mark.filterwarnings("ignore::lensmith.LensmithWarning")

ARMS = ["none", "matched", "lens", "residual", "gaussian", "no-divergence", "none+noise", "matched+ensemble"]
VAE = {"hidden": 16, "epochs": 4, "lr": 1e-3}
REWARD = {"hidden": 16, "epochs": 3, "lr": 1e-3}


@pytest.fixture(scope="module")
def comparison(hh, engine) -> lm.Comparison:
    settings = {"seeds": 100, "validation": 60, "seed": 5, "vae": VAE, "reward": REWARD}
    return lm.compare(hh, ARMS, repeats=2, synthesis={"mode": "plain"}, fold=3, engine=engine, **settings)


@pytest.fixture(scope="module")
def run(tmp_path_factory, program) -> dict:
    """run.json of the same run."""
    out = tmp_path_factory.mktemp("run") / "out"
    flags = ["--seeds", 100, "--validation-pairs", 60, "--seed", 5, "--repeats", 2, "--fold", 3]
    flags += [
        "--hidden",
        16,
        "--vae-epochs",
        4,
        "--vae-lr",
        1e-3,
        "--reward-hidden",
        16,
        "--epochs",
        3,
        "--lr",
        1e-3,
    ]
    program(
        "run", HH, *flags, "--arms", ",".join("plain" if arm == "lens" else arm for arm in ARMS), "--out", out
    )
    return json.loads((out / "run.json").read_text())


def without_seconds(value):
    """Figures but those of time and place, with the engine's name of LENS."""
    if isinstance(value, dict):
        return {
            name: without_seconds(part)
            for name, part in value.items()
            if name not in ("seconds", "speed", "folder", "files", "models")
        }
    if isinstance(value, list):
        return [without_seconds(part) for part in value]
    return "plain" if value == "lens" else value


def test_a_comparison_is_the_run_of_the_program(comparison, run):
    assert len(comparison.repeats) == len(run["repeats"]) == 2
    for ours, theirs in zip(
        without_seconds(comparison.repeats), without_seconds(run["repeats"]), strict=True
    ):
        assert ours["pairs"] == theirs["pairs"] and ours["seed"] == theirs["seed"]
        assert ours["health"] == theirs["health"] and ours["vae_history"] == theirs["vae_history"]
        assert [arm["arm"] for arm in ours["arms"]] == [arm["arm"] for arm in theirs["arms"]]
        for mine, other in zip(ours["arms"], theirs["arms"], strict=True):
            for name in ("accuracy", "loss"):
                assert mine["test"][name] == other["test"][name], (mine["arm"], name)
            for name in set(mine) & set(other):
                assert mine[name] == other[name], (mine["arm"], name)


def test_results_are_a_row_for_each_split_and_arm(comparison):
    results = comparison.results
    assert comparison.arms == ARMS
    assert (
        len(results) == 16
        and results["arm"].tolist() == ARMS * 2
        and results["repeat"].tolist() == [0] * 8 + [1] * 8
    )
    assert results["seed"].tolist() == [5] * 8 + [6] * 8
    assert ((results["accuracy"] > 0.3) & (results["accuracy"] < 0.8)).all() and (results["loss"] > 0).all()
    seeds = comparison.repeats[0]["pairs"]["seeds"]
    assert results["pairs"].tolist()[:3] == [seeds, seeds, 3 * seeds] and 100 <= seeds < 110
    assert "lens" in repr(comparison) and "accuracy" in repr(comparison)


def test_paired_differences_are_those_of_the_run(comparison, run):
    paired = comparison.paired()
    assert paired.columns == ["arm", "difference", "standard_error", "p", "splits", "wins"]
    assert (
        paired["arm"].tolist() == [arm for arm in ARMS if arm != "matched"]
        and paired["splits"].tolist() == [2] * 7
    )
    accuracy = {arm: comparison.results["accuracy"][comparison.results["arm"] == arm] for arm in ARMS}
    for row in paired.rows():
        differences = accuracy[row["arm"]] - accuracy["matched"]
        assert row["difference"] == pytest.approx(differences.mean())
        assert row["standard_error"] == pytest.approx(differences.std(ddof=1) / np.sqrt(2))
        assert row["wins"] == (differences > 0).sum()
    for measure in ("accuracy", "loss"):
        said = {
            at["arm"]: at["difference"]
            for at in run["comparisons"]
            if at["measure"] == measure and at["against"] == "matched"
        }
        assert said.keys() == {"plain" if arm == "lens" else arm for arm in ARMS} - {"matched"}
        for row in comparison.paired(figure=measure).rows():
            assert (
                said["plain" if row["arm"] == "lens" else row["arm"]].items()
                <= {**row, "mean": row["difference"]}.items()
            )
    assert comparison.paired("none", figure="loss")["arm"].tolist() == ARMS[1:]
    assert comparison.paired("lens")["arm"].tolist() == [arm for arm in ARMS if arm != "lens"]


def test_p_is_that_of_the_paired_t_test():
    stats = pytest.importorskip("scipy.stats")
    rng = np.random.default_rng(0)
    ours, base = rng.random(7), rng.random(7)
    arms = lambda i: [
        {"arm": arm, "test": {"accuracy": rows[i], "loss": 1.0}}
        for arm, rows in (("none", base), ("lens", ours))
    ]  # noqa: E731
    comparison = lm.Comparison([{"seed": i, "arms": arms(i)} for i in range(7)])
    assert comparison.paired("none")["p"][0] == pytest.approx(stats.ttest_rel(ours, base).pvalue, rel=1e-9)


def test_callbacks_are_told_of_every_step(hh, engine):
    seen: list[dict] = []
    settings = {
        "seeds": 50,
        "validation": 30,
        "vae": {"hidden": 16, "epochs": 1},
        "reward": {"hidden": 16, "epochs": 1},
    }
    first = lm.compare(hh, ["none", "lens"], repeats=2, callbacks=[seen.append], engine=engine, **settings)
    assert [at["repeat"] for at in seen] == [0, 0, 0, 1, 1, 1]
    assert [at["step"] for at in seen] in (["vae", "none", "plain"] * 2, ["vae", "none", "lens"] * 2)
    again = lm.compare(hh, ["none", "lens"], repeats=2, engine=engine, **settings)
    assert without_seconds(again.repeats) == without_seconds(first.repeats)


def test_parts_of_a_comparison_do_the_same_by_hand(hh, engine, comparison):
    parts = lm.split(hh, 100, 60, seed=5)
    vae = lm.Vae.fit(parts.seeds, **VAE, seed=5, engine=engine)
    assert vae.history["total"].tolist() == [at["total"] for at in comparison.repeats[0]["vae_history"]]
    arm = comparison.repeats[0]["arms"][ARMS.index("none")]
    model = lm.RewardModel.fit(parts.seeds, parts.validation, **REWARD, seed=5, engine=engine)
    figures = model.evaluate(parts.test, engine=engine)
    assert (figures["accuracy"], figures["loss"]) == (arm["test"]["accuracy"], arm["test"]["loss"])


# Tables.


@pytest.fixture
def table() -> lm.Table:
    return lm.Table(
        {"epoch": [1, 2], "loss": [0.5, None], "name": ["a", "<b>"], "row": np.array([7, 8], np.int32)}
    )


def test_a_table_has_columns_and_rows(table):
    assert table.columns == ["epoch", "loss", "name", "row"] and len(table) == 2
    assert (
        table["epoch"].dtype == np.int64 and table["loss"].dtype == np.float64 and np.isnan(table["loss"][1])
    )
    assert list(table.rows())[0] == {"epoch": 1, "loss": 0.5, "name": "a", "row": 7}
    assert table.to_dict()["row"] == [7, 8] and json.dumps(table.to_dict()["epoch"]) == "[1, 2]"
    assert len(lm.Table({})) == 0 and list(lm.Table({}).rows()) == []
    assert (
        len(lm.Table.of_rows([], ["a", "b"])) == 0 and lm.Table.of_rows([{"a": 1}], ["a", "b"])["b"].tolist()
    )
    with pytest.raises(KeyError, match="no column 'steps'; columns: epoch, loss, name, row"):
        table["steps"]
    with pytest.raises(ValueError, match="columns: expected one length, found"):
        lm.Table({"a": [1], "b": [1, 2]})


def test_a_table_reads_as_text_and_html(table):
    assert str(table).splitlines() == [
        "epoch  loss  name  row",
        "    1   0.5     a    7",
        "    2   nan   <b>    8",
    ]
    assert repr(table).startswith("Table of 2 rows\n")
    page = table._repr_html_()
    assert "<th>epoch</th>" in page and "<td>&lt;b&gt;</td>" in page and page.count("<tr>") == 3
    assert str(lm.Table({"n": range(100)})).splitlines()[-1] == "... 40 more rows"
    assert str(lm.Table({})) == "" and str(lm.Table({"a": []})) == "a"


def test_libraries_read_tables(table):
    pandas, pyarrow, polars = (pytest.importorskip(name) for name in ("pandas", "pyarrow", "polars"))
    assert (
        table.to_pandas()["row"].tolist() == [7, 8]
        and list(pandas.DataFrame(table.to_dict())) == table.columns
    )
    arrow = pyarrow.table(table)
    assert arrow.column_names == table.columns and arrow["name"].to_pylist() == ["a", "<b>"]
    assert polars.DataFrame(table)["epoch"].to_list() == [1, 2]
    assert table.to_pandas()["loss"].isna().tolist() == [False, True]


def test_columns_that_hold_no_pairs(engine):
    pyarrow = pytest.importorskip("pyarrow")
    good = [[1.0, 2.0]] * 3
    for chosen, kind, part in (
        (None, ValueError, "table: expected a column 'chosen', found rejected"),
        ([[1.0, 2.0], None, [1.0, 2.0]], ValueError, "chosen: expected no nulls, found 1"),
        ([[1.0, None]] * 3, ValueError, "chosen: expected no nulls in its lists, found 3"),
        (
            [[1.0, 2.0], [1.0], [1.0, 2.0]],
            ValueError,
            "chosen: expected lists of one length, found lengths 1 to 2",
        ),
        ([1.0, 2.0, 3.0], ValueError, "chosen: expected lists of numbers, found double"),
        (["a", "b", "c"], ValueError, "chosen: expected lists of numbers, found string"),
        ([[1, 2]] * 3, TypeError, "chosen: expected float32, float16 or bfloat16, found integers"),
        ([["a", "b"]] * 3, TypeError, "chosen: expected float32, float16 or bfloat16, found"),
        ([[1.0, 2.0, 3.0]] * 3, ValueError, "rejected: expected shape"),
    ):
        columns = {"rejected": good} if chosen is None else {"chosen": chosen, "rejected": good}
        with pytest.raises(kind, match=part):
            lm.PairSet.from_arrow(pyarrow.table(columns), engine=engine)
    with pytest.raises(ValueError, match="expected one or more rows, found none"):
        lm.PairSet.from_arrow(pyarrow.table({"chosen": good, "rejected": good}).slice(0, 0), engine=engine)
    lists = lm.PairSet.from_arrow(
        pyarrow.table({"a": good, "b": good}), chosen="a", rejected="b", engine=engine
    )
    assert lists.dtype == "float32" and lists.chosen.numpy().tolist() == good


@pytest.mark.parametrize("kind", ["float32", "float16"])
def test_arrow_reads_pairs(vae, arrays, engine, kind):
    pyarrow = pytest.importorskip("pyarrow")
    datasets = pytest.importorskip("datasets")
    sides = [side.astype(kind) for side in arrays]
    pairs = lm.PairSet(*sides, group=np.arange(60), engine=engine)
    synthetic = lm.synthesize(vae, pairs, fold=4, dtype=kind, engine=engine)
    made = synthetic[:]
    for source, rows in ((pairs, pairs), (synthetic, made), (made, made)):
        table = pyarrow.table(source)
        assert table.column_names == ["chosen", "rejected", *(["group"] if source is pairs else [])]
        for name in ("chosen", "rejected"):
            column = table[name].combine_chunks()
            assert (
                str(column.type)
                == f"fixed_size_list<item: {'float' if kind == 'float32' else 'halffloat'}>[32]"
                or column.type.list_size == 32
            )
            values = column.flatten().to_numpy(zero_copy_only=False).reshape(-1, 32)
            assert np.array_equal(values, getattr(rows, name).numpy())
    held = pyarrow.table(pairs)["chosen"].chunk(0).flatten().buffers()[1]
    assert held.address == sides[0].ctypes.data, "over the same memory"
    dataset = pairs.to_hf_dataset()
    assert (
        isinstance(dataset, datasets.Dataset)
        and dataset.column_names == ["chosen", "rejected", "group"]
        and len(dataset) == 60
    )
    assert np.array_equal(np.array(dataset[3]["chosen"], np.float32), sides[0][3].astype(np.float32))
    assert len(synthetic.to_hf_dataset()) == 240
    for again in (
        lm.PairSet.from_arrow(pyarrow.table(pairs), engine=engine),
        lm.PairSet.from_arrow(dataset, engine=engine),
    ):
        assert (
            again.dtype == kind
            and again.chosen.tobytes() == pairs.chosen.tobytes()
            and again.rejected.tobytes() == pairs.rejected.tobytes()
        )
        assert again.group.tolist() == list(range(60))
    shared = lm.PairSet.from_arrow(pyarrow.table(pairs), chosen="rejected", rejected="chosen", engine=engine)
    assert shared.chosen.numpy().ctypes.data == sides[1].ctypes.data, "and back"
    sliced = lm.PairSet.from_arrow(pyarrow.table(pairs).slice(5, 20), engine=engine)
    assert sliced.chosen.tobytes() == pairs[5:25].chosen.tobytes() and sliced.group.tolist() == list(
        range(5, 25)
    )
    chunks = pyarrow.concat_tables([pyarrow.table(pairs)] * 2)
    assert lm.PairSet.from_arrow(chunks, engine=engine).chosen.tobytes() == pairs.chosen.tobytes() * 2
    with pytest.raises(TypeError, match="Arrow has no bfloat16: make the pairs as float32 or float16"):
        pyarrow.table(lm.synthesize(vae, pairs, dtype="bfloat16", engine=engine))
