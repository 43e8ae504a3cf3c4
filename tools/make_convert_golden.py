"""Makes the golden files of tests/convert.rs with the libraries whose files they stand for.

    pip install numpy pyarrow pandas datasets safetensors
    python tools/make_convert_golden.py                   writes tests/golden/convert/
    python tools/make_convert_golden.py --check FOLDER    reads what `lensmith export` wrote

The values are a formula (`values` below), which the tests repeat: expected values need no files of their own. With
--check, FOLDER holds pairs.parquet, candidates.parquet and chosen.npy, made as it says in `check`; they are read with
pyarrow, pandas, datasets and numpy and compared with the shards, bit for bit.
"""

import argparse
import json
import shutil
import tempfile
from pathlib import Path

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.feather as feather
import pyarrow.ipc as ipc
import pyarrow.parquet as pq

ROOT = Path(__file__).resolve().parent.parent / "tests" / "golden" / "convert"
ROWS, DIM = 7, 5
PROMPTS, RESPONSES = 6, 4


def values(side, shape, dtype=np.float32):
    """Value number i of side 0 (chosen), 1 (rejected), 2 (responses) or 3 (rewards): exact in float16."""
    i = np.arange(np.prod(shape), dtype=np.int64)
    return (((i * 37 + side * 101) % 257 - 128) / 32).astype(dtype).reshape(shape)


def pairs(dtype=np.float32):
    return values(0, (ROWS, DIM), dtype), values(1, (ROWS, DIM), dtype)


def group():
    return np.arange(ROWS, dtype=np.int64) // 2 - 1


def fixed(array):
    """A [n, d] array as fixed-size lists."""
    return pa.FixedSizeListArray.from_arrays(pa.array(array.reshape(-1)), array.shape[1])


def save_numpy():
    chosen, rejected = pairs()
    np.save(ROOT / "chosen.npy", chosen)
    np.save(ROOT / "rejected.npy", rejected)
    np.save(ROOT / "chosen_f16.npy", chosen.astype(np.float16))
    np.save(ROOT / "chosen_f64_big_endian.npy", chosen.astype(">f8"))
    np.save(ROOT / "chosen_fortran.npy", np.asfortranarray(chosen))
    np.save(ROOT / "group_i32.npy", group().astype(np.int32))
    with open(ROOT / "chosen_v2.npy", "wb") as file:
        np.lib.format.write_array(file, chosen, version=(2, 0))
    np.savez(ROOT / "stored.npz", chosen=chosen, rejected=rejected, group=group())
    np.savez_compressed(ROOT / "deflated.npz", chosen=chosen, rejected=rejected, group=group())
    responses = values(2, (PROMPTS, RESPONSES, DIM))
    np.save(ROOT / "responses.npy", responses)
    np.save(ROOT / "rewards.npy", values(3, (PROMPTS, RESPONSES), np.float64))
    np.savez_compressed(ROOT / "responses.npz", embeddings=responses, rewards=values(3, (PROMPTS, RESPONSES)))


def save_tables():
    chosen, rejected = pairs()
    frame = pd.DataFrame({
        "prompt": [f"prompt {i}" for i in range(ROWS)],
        "good": list(chosen),
        "bad": list(rejected),
        "group": group(),
    })
    frame.to_parquet(ROOT / "pandas.parquet")
    lists = pd.DataFrame({"chosen": chosen.astype(float).tolist(), "rejected": rejected.astype(float).tolist()})
    lists.to_parquet(ROOT / "pandas_lists_f64.parquet", compression="zstd", row_group_size=3)
    half = [a.astype(np.float16) for a in (chosen, rejected)]
    table = pa.table({"chosen": fixed(half[0]), "rejected": fixed(half[1]), "group": group().astype(np.int16)})
    pq.write_table(table, ROOT / "pyarrow_f16.parquet", compression="gzip", row_group_size=4)
    table = pa.table({"id": [f"{i}" for i in range(ROWS)], "chosen": fixed(chosen), "rejected": fixed(rejected)})
    with ipc.new_file(ROOT / "file.arrow", table.schema) as writer:
        writer.write_table(table, max_chunksize=3)
    with ipc.new_stream(ROOT / "stream.arrow", table.schema) as writer:
        writer.write_table(table, max_chunksize=2)
    large = pa.table({
        "chosen": pa.array(list(chosen), pa.large_list(pa.float32())),
        "rejected": pa.array(list(rejected), pa.large_list(pa.float32())),
        "kind": pa.array(["a", "b"] * 3 + ["a"]).dictionary_encode(),
    })
    feather.write_feather(large, ROOT / "large_lists_lz4.feather", compression="lz4")
    # Offsets that do not start at 0.
    feather.write_feather(large.slice(2, 4), ROOT / "sliced_zstd.feather", compression="zstd")
    responses = values(2, (PROMPTS, RESPONSES, DIM))
    nested = pa.table({
        "embeddings": pa.array(responses.tolist(), pa.list_(pa.list_(pa.float32()))),
        "rewards": fixed(values(3, (PROMPTS, RESPONSES))),
    })
    pq.write_table(nested, ROOT / "responses.parquet")


def save_faulty():
    chosen, rejected = pairs()
    lists = chosen.tolist()
    null_row = lists[:3] + [None] + lists[4:]
    null_value = lists[:4] + [[1.0, None, 3.0, 4.0, 5.0]] + lists[5:]
    ragged = lists[:5] + [[1.0, 2.0]] + lists[6:]
    nan = [list(row) for row in lists]
    nan[6][2] = float("nan")
    huge = [list(row) for row in lists]
    huge[1][4] = 70000.0
    kind = pa.list_(pa.float32())
    columns = {"null_row": null_row, "null_value": null_value, "ragged": ragged, "nan": nan, "huge": huge}
    table = pa.table({
        **{name: pa.array(column, kind) for name, column in columns.items()},
        "text": [f"{i}" for i in range(ROWS)],
        "chosen": pa.array(lists, kind),
        "rejected": pa.array(rejected.tolist(), kind),
    })
    pq.write_table(table, ROOT / "faulty.parquet", row_group_size=4)
    with ipc.new_stream(ROOT / "faulty.arrow", table.schema) as writer:
        writer.write_table(table, max_chunksize=3)
    pq.write_table(table.slice(0, 0), ROOT / "empty.parquet")


def save_datasets():
    chosen, rejected = pairs()
    features = datasets.Features({
        "prompt": datasets.Value("string"),
        "chosen": datasets.List(datasets.Value("float32"), length=DIM),
        "rejected": datasets.List(datasets.Value("float32"), length=DIM),
        "group": datasets.Value("int64"),
    })
    data = datasets.Dataset.from_dict({
        "prompt": [f"prompt {i}" for i in range(ROWS)],
        "chosen": chosen.tolist(),
        "rejected": rejected.tolist(),
        "group": group().tolist(),
    }, features=features)
    save(data, "hf_fixed_f32", num_shards=2)
    half = datasets.List(datasets.Value("float16"))
    data = datasets.Dataset.from_dict({
        "chosen": list(chosen.astype(np.float16)),
        "rejected": list(rejected.astype(np.float16)),
    }, features=datasets.Features({"chosen": half, "rejected": half}))
    save(datasets.DatasetDict({"train": data, "test": data.select(range(2, 4))}), "hf_dict_list_f16")


def save(data, name, **how):
    """save_to_disk, without what differs from run to run."""
    data.save_to_disk(str(ROOT / name), **how)
    for state in (ROOT / name).rglob("state.json"):
        content = json.loads(state.read_text())
        content["_fingerprint"] = "0" * 16
        state.write_text(json.dumps(content, indent=2) + "\n")


def check(folder):
    """Compares files in `folder` with the golden values. They are made by

    lensmith import tests/golden/convert/stored.npz --out $F/p
    lensmith export $F/p --out $F/pairs.parquet
    lensmith export $F/p --columns chosen --out $F/chosen.npy
    lensmith import tests/golden/convert/responses.npz --best-of-n --embeddings embeddings --rewards rewards --out $F/c
    lensmith export $F/c --compression snappy --out $F/candidates.parquet
    """
    chosen, rejected = pairs()
    same = np.testing.assert_array_equal

    table = pq.read_table(folder / "pairs.parquet")
    table.validate(full=True)
    assert pa.types.is_fixed_size_list(table.schema.field("chosen").type), table.schema
    for name, expected in (("chosen", chosen), ("rejected", rejected)):
        column = table[name].combine_chunks()
        same(column.flatten().to_numpy().reshape(-1, column.type.list_size), expected)
    same(table["group"].to_numpy(), group())

    frame = pd.read_parquet(folder / "pairs.parquet")
    same(np.stack(frame["chosen"]), chosen)
    same(np.stack(frame["rejected"]), rejected)
    same(frame["group"], group())

    with tempfile.TemporaryDirectory() as cache:
        data = datasets.load_dataset("parquet", data_files=str(folder / "pairs.parquet"), cache_dir=cache, split="train")
        print("datasets:", data.features)
        data = data.with_format("numpy")
        same(data[:]["chosen"], chosen)
        same(data[:]["rejected"], rejected)
        data.save_to_disk(str(Path(cache) / "saved"))
        same(datasets.load_from_disk(str(Path(cache) / "saved")).with_format("numpy")[:]["chosen"], chosen)

    same(np.load(folder / "chosen.npy"), chosen)
    table = pq.read_table(folder / "candidates.parquet")
    same(np.array(table["candidates"].to_pylist(), np.float32), values(2, (PROMPTS, RESPONSES, DIM)))
    same(np.array(table["gold"].to_pylist(), np.float32), values(3, (PROMPTS, RESPONSES)))
    print("pyarrow, pandas, datasets and numpy read the exported values")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--check", type=Path, metavar="FOLDER")
    arguments = parser.parse_args()
    if arguments.check:
        return check(arguments.check)
    shutil.rmtree(ROOT, ignore_errors=True)
    ROOT.mkdir(parents=True)
    save_numpy()
    save_tables()
    save_faulty()
    save_datasets()
    for path in sorted(ROOT.rglob("*")):
        if path.is_file():
            print(f"{path.stat().st_size:7} {path.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
