"""Random arrays, settings, keys, files and threads: each call works as documented, or raises a clean exception.

Some seconds by default; `--hypothesis-profile long` looks for ten minutes.
"""

from __future__ import annotations

import math
import shutil
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import DIM, arrays_of
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as some

import lensmith as lm
from lensmith import _lensmith

torch = pytest.importorskip("torch")

pytestmark = [
    pytest.mark.filterwarnings("ignore::lensmith.LensmithWarning"),
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]
#: How much longer than by default.
LONG = max(1, settings().max_examples // 100)
CLEAN = (TypeError, ValueError, IndexError, lm.LensmithError)


def fuzz(examples: int) -> Callable[[Any], Any]:
    checks = [
        HealthCheck.too_slow,
        HealthCheck.function_scoped_fixture,
        HealthCheck.filter_too_much,
        HealthCheck.data_too_large,
    ]
    return settings(max_examples=examples * LONG, deadline=None, suppress_health_check=checks)


def clean(run: Callable[[], Any], *more: type[BaseException]) -> Any:
    """What `run` gives, or None where it raises an exception that a user can act on."""
    try:
        return run()
    except (*CLEAN, *more) as error:
        assert not isinstance(error, lm.LensmithError) or error.kind != "Panic", error
        jargon = "line 1 column" in str(error) and "safetensors" not in str(error)
        assert len(str(error)) > 10 and not jargon, f"{type(error).__name__}: {error}"
        return None


# Arrays.

NUMBERS = some.sampled_from(
    ["f4", "f2", "f8", "i4", "i8", "u1", "?", "c8", ">f4", ">f2", "O", "U3", "S2", "M8[s]", "V4", "g"]
)
FINE = some.sampled_from(["f4", "f2"])
TORCH = some.sampled_from(
    ["float32", "float16", "bfloat16", "float64", "int32", "bool", "complex64", "float8_e5m2"]
)
VALUES = some.sampled_from([0.0, 1.0, -2.5, 1e-40, 6e4, 1e30, math.nan, math.inf, -math.inf])


@some.composite
def shapes(draw) -> tuple[int, ...]:
    usual = some.tuples(some.integers(0, 9), some.sampled_from([1, 2, 16, 31, DIM, DIM, DIM, 64]))
    return draw(some.one_of(usual, usual, some.lists(some.integers(0, 5), max_size=4).map(tuple)))


@some.composite
def layouts(draw, rows):
    """The same or other rows behind other strides."""
    for change in draw(
        some.lists(some.sampled_from(["T", "step", "back", "part", "broadcast", "expand"]), max_size=2)
    ):
        if not rows.ndim:
            return rows
        if change == "T":
            rows = rows.T if isinstance(rows, np.ndarray) else rows.permute(*reversed(range(rows.ndim)))
        elif change == "step":
            rows = rows[:: draw(some.integers(1, 3))]
        elif change == "back" and isinstance(rows, np.ndarray):
            rows = rows[::-1]
        elif change == "part":
            rows = rows[..., draw(some.integers(0, 3)) :]
        elif change == "broadcast" and len(rows):
            rows = (
                np.broadcast_to(rows[0], rows.shape)
                if isinstance(rows, np.ndarray)
                else rows[:1].expand(rows.shape)
            )
        elif change == "expand":
            rows = rows[None]
    return rows


class Producer:
    """DLPack in the ways of several libraries."""

    def __init__(self, rows, device: Any, version: bool) -> None:
        self.rows, self.device, self.version = rows, device, version

    def __dlpack_device__(self) -> Any:
        return self.rows.__dlpack_device__() if self.device is None else self.device

    def __dlpack__(self, *, stream=None, max_version=None, dl_device=None, copy=None) -> Any:
        return self.rows.__dlpack__(max_version=max_version if self.version else None)


@some.composite
def anything(draw, fine: bool = False):
    """An array of some library, or something else."""
    shape = draw(shapes())
    fill = draw(VALUES) if draw(some.integers(0, 3)) == 0 else 0.5
    kind = draw(some.sampled_from(["numpy", "numpy", "torch", "torch", "dlpack", "buffer", "list", "other"]))
    if kind in ("torch", "dlpack"):
        rows = torch.zeros(shape, dtype=torch.float32)
        if rows.numel():
            rows.view(-1)[draw(some.integers(0, rows.numel() - 1))] = fill
        rows = draw(layouts(rows.to(getattr(torch, draw(TORCH)))))
        if kind == "torch":
            return rows.requires_grad_() if rows.is_floating_point() and draw(some.booleans()) else rows
        return Producer(
            rows,
            draw(some.sampled_from([None, None, None, (2, 0), (99, 0), "cpu", (1,)])),
            draw(some.booleans()),
        )
    code = draw(some.one_of(FINE, NUMBERS))
    rows = np.zeros(shape, code)
    if rows.size and rows.dtype.kind == "f":
        rows.reshape(-1)[draw(some.integers(0, rows.size - 1))] = fill
    rows = draw(layouts(rows))
    if kind == "numpy":
        rows = rows.copy() if not rows.flags.writeable else rows
        rows.flags.writeable = draw(some.booleans())
        return rows
    if kind == "buffer":
        return clean(lambda: memoryview(rows))
    return (
        rows.tolist()
        if kind == "list"
        else draw(some.sampled_from([None, 3, 1.5, "rows", b"1234", object(), np.float32(1), {}, [[]]]))
    )


def expected(rows: Any) -> np.ndarray | None:
    """The rows as float32, where they can be used as they are."""
    if isinstance(rows, memoryview | np.ndarray):
        array = np.asarray(rows)
        fine = array.dtype in (np.float32, np.float16) and array.dtype.isnative
        return (
            array.astype(np.float32)
            if fine and array.flags.c_contiguous and array.ndim == 2 and array.shape[1]
            else None
        )
    if isinstance(rows, Producer):
        usual = rows.device is None and not rows.rows.requires_grad
        return expected(rows.rows) if usual else None
    if isinstance(rows, torch.Tensor):
        fine = rows.dtype in (torch.float32, torch.float16, torch.bfloat16)
        return (
            rows.detach().float().numpy()
            if fine and rows.is_contiguous() and rows.ndim == 2 and rows.shape[1]
            else None
        )
    return None


@fuzz(400)
@given(rows=anything())
def test_any_array_is_taken_or_refused(rows):
    # An array without dimensions has no buffer with a shape.
    made = clean(lambda: lm.Embeddings(rows), *([BufferError] if np.ndim(rows) == 0 else []))
    want = expected(rows)
    # Strides of a single row or column mean nothing to torch, which leaves any there.
    free = isinstance(want, np.ndarray) and 1 in want.shape and made is None
    assert (made is not None) == (want is not None) or free, (made, rows)
    if made is not None:
        assert made.shape == want.shape and np.array_equal(made.float32(), want, equal_nan=True)
        assert np.array_equal(made.torch().float().numpy(), made.float32(), equal_nan=True)
        if made.dtype != "bfloat16":
            assert np.asarray(made).tobytes() == made.tobytes() == memoryview(made).tobytes()
        if isinstance(rows, np.ndarray) and rows.size:
            assert np.shares_memory(rows, made.numpy())


@fuzz(250)
@given(data=some.data())
def test_any_two_arrays_are_pairs_or_refused(data, engine, vae, reward):
    chosen = data.draw(anything())
    rejected = chosen if data.draw(some.booleans()) else data.draw(anything())
    group = data.draw(
        some.one_of(
            some.none(),
            some.none(),
            some.lists(some.one_of(some.integers(-3, 3), some.floats(), some.text(max_size=2)), max_size=9),
        )
    )
    more = [BufferError] if 0 in (np.ndim(chosen), np.ndim(rejected)) else []
    pairs = clean(lambda: lm.PairSet(chosen, rejected, group=group, engine=engine), *more)
    if pairs is not None:
        sides = expected(chosen), expected(rejected)
        assert all(np.isfinite(side).all() for side in sides) and len(pairs) == len(sides[0]) > 0
        assert np.array_equal(pairs.rejected.float32(), sides[1]) and (
            group is None or pairs.group.tolist() == group
        )
    for use in (vae.encode, vae.decode, reward.score, reward.spread):
        made = clean(lambda use=use: use(chosen, engine=engine), *more)
        assert made is None or len(made if use == reward.score or use == vae.decode else made[0]) == len(
            expected(chosen)
        )


@fuzz(100)
@given(
    data=some.binary(max_size=64),
    columns=some.one_of(some.integers(0, 9), some.integers(0, 2**32)),
    kind=some.sampled_from(["float32", "float16", "bfloat16", "f32", "torch.bfloat16", "float64", ""]),
)
def test_bytes_are_rows_or_refused(data, columns, kind):
    made = clean(lambda: lm.Embeddings.from_bytes(data, columns, kind))
    if made is not None:
        assert made.tobytes() == data and made.shape[1] == columns and made.nbytes == len(data)


@fuzz(100)
@given(
    stream=some.one_of(some.none(), some.integers(-2, 3), some.just("x")),
    version=some.one_of(
        some.none(), some.tuples(some.integers(0, 3), some.integers(0, 9)), some.just((-1, 0)), some.just(1)
    ),
    device=some.one_of(some.none(), some.tuples(some.integers(0, 15), some.integers(-1, 2))),
    copied=some.one_of(some.none(), some.booleans()),
    writable=some.booleans(),
)
def test_capsules_are_made_or_refused(stream, version, device, copied, writable):
    rows = np.arange(64, dtype=np.float32).reshape(2, DIM)
    shown = lm.Embeddings.from_bytes(rows.tobytes(), DIM, "float32") if writable else lm.Embeddings(rows)
    run = lambda: shown.__dlpack__(stream=stream, max_version=version, dl_device=device, copy=copied)  # noqa: E731
    capsule = clean(run, BufferError, OverflowError)
    if capsule is not None:
        assert torch.equal(torch.utils.dlpack.from_dlpack(capsule), torch.from_numpy(rows))


KEYS = some.one_of(
    some.integers(-12, 12),
    some.slices(10),
    some.lists(some.integers(-11, 11), max_size=5),
    some.tuples(some.integers(-11, 11), some.integers(-40, 40)),
    some.tuples(some.slices(10), some.slices(DIM)),
    some.lists(some.booleans(), min_size=8, max_size=12).map(np.array),
    some.sampled_from([None, ..., "a", 1.5, (), [], True, 2**70]),
)


@fuzz(150)
@given(key=KEYS)
def test_keys_select_what_numpy_selects(key):
    rows = arrays_of(10)[0]
    shown = lm.Embeddings(rows)
    try:
        want = rows[key]
    except Exception as error:  # noqa: BLE001
        with pytest.raises(type(error)):
            shown[key]
    else:
        assert np.array_equal(shown[key], want)


@fuzz(150)
@given(key=KEYS)
def test_keys_of_pairs_select_rows_or_are_refused(key, engine):
    chosen, rejected = arrays_of(10)
    pairs = lm.PairSet(chosen, rejected, group=np.arange(10), engine=engine)
    picked = clean(lambda: pairs[key])
    if picked is not None:
        rows = np.arange(10)[list(key) if isinstance(key, tuple) else key]
        assert picked.group.tolist() == rows.tolist() and np.array_equal(
            picked.rejected.numpy(), rejected[rows]
        )


# Settings.

ODD = some.one_of(
    some.none(),
    some.booleans(),
    some.text(max_size=4),
    some.floats(),
    some.sampled_from(
        [
            -1,
            2**64,
            -(2**70),
            10**400,
            np.float32(0.5),
            np.int64(3),
            np.nan,
            np.array([1]),
            torch.tensor(2),
            [],
            {},
            1j,
        ]
    ),
)


def mostly(strategy):
    return some.one_of(strategy, strategy, strategy, ODD)


SIZES = some.sampled_from([0, 1, 15, 16, 32, 48, 2**40, 2**63])
POSITIVE = some.one_of(some.floats(0, 2), some.sampled_from([0.0, -1.0, 1e-300, 1e300, 5]))
FEW = some.integers(0, 3)
VAE = {
    "hidden": SIZES,
    "latent": SIZES,
    "epochs": FEW,
    "lr": POSITIVE,
    "batch_size": some.sampled_from([0, 1, 2, 7, 1000, 2**62]),
    "beta": POSITIVE,
    "gamma": POSITIVE,
    "reconstruction": some.sampled_from(["mean", "sum", "max"]),
    "divergence": some.sampled_from(["w2", "w2-squared", "kl"]),
    "seed": some.integers(0, 2**64),
}
REWARD = {
    "head": some.sampled_from(["mlp", "linear", "tree"]),
    "hidden": SIZES,
    "ensemble": some.sampled_from([0, 1, 2, 3, 2**40]),
    "epochs": some.one_of(some.none(), FEW),
    "steps": some.one_of(some.none(), some.integers(0, 9)),
    "lr": POSITIVE,
    "batch_size": some.sampled_from([0, 1, 2, 7, 1000, 2**62]),
    "patience": some.one_of(some.none(), FEW, some.just(2**63)),
    "validate_every": some.one_of(some.none(), FEW, some.just(2**63)),
    "weight_decay": POSITIVE,
    "input_noise": POSITIVE,
    "across_prompts": POSITIVE,
    "seed": some.integers(0, 2**64),
}
SYNTHESIS = {
    "fold": some.one_of(some.none(), some.integers(0, 12), some.just(70000)),
    "per_side": some.one_of(some.none(), some.integers(0, 4), some.just(257)),
    "pairing": some.sampled_from(["combine", "match", "mix"]),
    "sigma2": POSITIVE,
    "oversample": some.sampled_from([0, 1, 3, 64, 65]),
    "likelihood": some.sampled_from(["posterior", "prior", "none", "best"]),
    "source": some.sampled_from(["sample", "mean", "mode"]),
    "mode": some.sampled_from(["plain", "residual", "both"]),
    "seed": some.integers(0, 2**64),
}


@some.composite
def settings_of(draw, table):
    """Settings that are usual but for a few."""
    names = draw(some.lists(some.sampled_from(sorted(table)), max_size=3, unique=True))
    return {name: draw(mostly(table[name])) for name in names}


@fuzz(150)
@given(given_settings=settings_of(VAE))
def test_any_settings_train_a_vae_or_are_refused(given_settings, small, engine):
    model = clean(
        lambda: lm.Vae.fit(
            small[:9], **{"hidden": 16, "latent": 16, "epochs": 1, **given_settings}, engine=engine
        )
    )
    if model is not None:
        assert len(model.history) == int(given_settings.get("epochs", 1))
        assert all(np.isfinite(rows).all() for rows in model.state_dict().values())


@fuzz(150)
@given(given_settings=settings_of(REWARD), validated=some.booleans(), made=some.booleans())
def test_any_settings_train_a_reward_model_or_are_refused(
    given_settings, validated, made, small, synthetic, engine
):
    base = {
        "hidden": 16,
        **({} if "epochs" in given_settings or given_settings.get("steps") is not None else {"epochs": 1}),
    }
    pairs = synthetic if made else small[:20]
    # Twenty epochs, where none are asked for, are enough for a few pairs only.
    assume(not (made and given_settings.get("epochs", 1) is None and given_settings.get("steps") is None))
    model = clean(
        lambda: lm.RewardModel.fit(
            pairs, small[20:40] if validated else None, **{**base, **given_settings}, engine=engine
        )
    )
    if model is not None:
        assert model.steps > 0 and len(model.history) > 0 and 1 <= model.best_step <= model.steps
        assert all(np.isfinite(rows).all() for rows in model.state_dict().values())


@fuzz(60)
@given(
    device=some.one_of(some.sampled_from(["cpu", "reference", "auto", "cuda:1", "tpu", ""]), ODD),
    threads=some.one_of(some.integers(-2, 4), some.just(2000), ODD),
    precision=some.one_of(some.sampled_from(["f32", "bf16", "f64"]), ODD),
)
def test_any_engine_opens_or_is_refused(device, threads, precision):
    engine = clean(lambda: lm.Engine(device, threads, precision))
    if engine is not None:
        with engine:
            assert engine.device and engine.arithmetic and repr(engine)


# Pairs in any way.


@fuzz(60)
@given(
    data=some.data(),
    options=settings_of(SYNTHESIS),
    kind=some.sampled_from(["float32", "float16", "bfloat16", "float64"]),
)
def test_pairs_of_any_plan_are_the_same_in_every_way(data, options, kind, vae, small, engine):
    pairs = clean(lambda: lm.synthesize(vae, small[:9], **options, dtype=kind, engine=engine))
    assume(pairs is not None and len(pairs) <= 3000)
    n = len(pairs)
    batch = clean(lambda: pairs[:])
    if batch is None:
        # What the dtype cannot hold is refused in every way.
        assert clean(lambda: pairs.take(range(n))) is None
        return
    size = DIM * (4 if kind == "float32" else 2)
    both = batch.chosen.tobytes(), batch.rejected.tobytes()
    whole = [tuple(side[i * size : (i + 1) * size] for side in both) for i in range(n)]

    def bits(made) -> list[tuple[bytes, bytes]]:
        sides = made.chosen.tobytes(), made.rejected.tobytes()
        return [tuple(side[i * size : (i + 1) * size] for side in sides) for i in range(len(made))]

    def look(way: int, numbers: list[int], key: slice, step: int) -> bool:
        if way == 0:
            return bits(pairs.take(numbers)) == [whole[j] for j in numbers]
        if way == 1:
            rows = whole[key]
            made = clean(lambda: pairs[key])
            return (made is None) == (not rows) and (made is None or bits(made) == rows)
        return [row for made in pairs.batches(step, numbers[0]) for row in bits(made)] == whole[numbers[0] :]

    ways = some.tuples(
        some.integers(0, 2),
        some.lists(some.integers(0, n - 1), min_size=1, max_size=30),
        some.slices(n),
        some.integers(1, n + 9),
    )
    calls = data.draw(some.lists(ways, min_size=1, max_size=8))
    if data.draw(some.booleans()):
        with ThreadPoolExecutor(len(calls)) as pool:
            assert all(pool.map(lambda call: look(*call), calls))
    else:
        assert all(look(*call) for call in calls)


@fuzz(40)
@given(
    n=some.integers(1, 60),
    seeds=some.integers(0, 60),
    validation=some.integers(0, 60),
    seed=some.integers(0, 2**64 - 1),
    prompts=some.one_of(some.none(), some.integers(1, 60)),
)
def test_any_split_is_a_partition_or_refused(n, seeds, validation, seed, prompts, engine):
    chosen, rejected = arrays_of(n)
    group = None if prompts is None else np.random.default_rng(seed).integers(0, prompts, n)
    pairs = lm.PairSet(chosen, rejected, group=group, engine=engine)
    split = clean(lambda: lm.split(pairs, seeds, validation, seed))
    if split is not None:
        rows = split.indices
        assert sorted(np.concatenate(list(rows.values())).tolist()) == list(range(n))
        assert len(rows["seeds"]) >= seeds and len(rows["validation"]) >= validation and len(rows["test"]) > 0
        if group is None:
            assert (len(rows["seeds"]), len(rows["validation"])) == (seeds, validation)
        else:
            owners = [set(group[part].tolist()) for part in rows.values()]
            assert sum(map(len, owners)) == len(set(group.tolist()))


@fuzz(80)
@given(
    n=some.one_of(some.integers(0, 50), some.integers(0, 2**64 - 1)),
    seed=some.integers(0, 2**64 - 1),
    start=some.integers(0, 60),
    count=some.integers(-3, 60),
)
def test_any_part_of_an_order_is_a_part_of_it(n, seed, start, count):
    part = clean(lambda: _lensmith.permutation(n, seed, 1, start, start + count), OverflowError)
    if part is not None:
        assert (
            len(part) == count
            and len(set(part.tolist())) == count
            and all(number < n for number in part.tolist())
        )
        if n <= 50:
            assert np.array_equal(_lensmith.permutation(n, seed, 1, 0, n)[start : start + count], part)


# Files and folders.


@pytest.fixture(scope="module")
def files(tmp_path_factory, small, vae, reward) -> dict[Any, bytes]:
    folder = tmp_path_factory.mktemp("files")
    for thing, name in ((small[:6], "pairs"), (vae, "vae"), (reward, "reward")):
        thing.save(folder / name)
    return {
        kind: (folder / name).read_bytes()
        for kind, name in ((lm.PairSet, "pairs"), (lm.Vae, "vae"), (lm.RewardModel, "reward"))
    }


@fuzz(150)
@given(data=some.data(), kind=some.sampled_from([lm.PairSet, lm.Vae, lm.RewardModel]))
def test_damaged_files_are_read_or_refused(data, kind, files):
    raw = bytearray(files[kind])
    header = 8 + int.from_bytes(raw[:8], "little")
    for _ in range(data.draw(some.integers(1, 4))):
        at = data.draw(some.one_of(some.integers(0, header), some.integers(0, len(raw) - 1)))
        raw[at] = data.draw(some.integers(0, 255))
    raw = raw[: data.draw(some.one_of(some.just(len(raw)), some.integers(0, len(raw))))]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "file.safetensors"
        path.write_bytes(raw)
        made = clean(lambda: (lm.PairSet.open if kind is lm.PairSet else kind.load)(path))
        if made is not None:
            values = [made.chosen.float32()] if kind is lm.PairSet else made.state_dict().values()
            assert all(np.isfinite(rows).all() for rows in values)


@fuzz(100)
@given(data=some.data(), kind=some.sampled_from(["vae", "reward"]))
def test_any_state_is_a_model_or_refused(data, kind, vae, reward):
    model = vae if kind == "vae" else reward
    state: dict[str, Any] = dict(model.state_dict())
    for name in data.draw(some.lists(some.sampled_from(sorted(state)), max_size=2)):
        change = data.draw(some.sampled_from(["missing", "odd", "shape", "value", "torch", "float64"]))
        rows = state.get(name)
        if change == "missing":
            state.pop(name, None)
        elif change == "odd":
            state[name] = data.draw(ODD)
        elif change == "shape" and isinstance(rows, np.ndarray):
            state[name] = data.draw(
                some.sampled_from([rows[:-1], rows.T, rows[None], rows.reshape(-1), rows[:0]])
            )
        elif change == "value" and isinstance(rows, np.ndarray) and rows.size:
            state[name] = rows.copy()
            state[name].reshape(-1)[0] = data.draw(VALUES)
        elif change == "torch" and isinstance(rows, np.ndarray):
            state[name] = torch.tensor(rows).bfloat16()
        elif isinstance(rows, np.ndarray):
            state[name] = rows.astype(np.float64)
    again = clean(lambda: type(model).from_state_dict(state))
    if again is not None:
        assert {
            name: rows.shape for name, rows in again.state_dict().items()
        }.keys() == model.state_dict().keys()
        assert np.isfinite(np.concatenate([rows.ravel() for rows in again.state_dict().values()])).all()


@fuzz(20)
@given(
    output=mostly(some.sampled_from(["embeddings", "latents", "recipe"])),
    dtype=mostly(some.sampled_from(["f32", "f16", "bf16", "float32"])),
    rows=some.one_of(some.none(), some.integers(0, 200), ODD),
    part=some.one_of(some.just((0, 1)), some.tuples(some.integers(0, 3), some.integers(0, 4)), ODD),
)
def test_any_output_is_written_or_refused(output, dtype, rows, part, synthetic):
    folder = Path(tempfile.mkdtemp())
    try:
        run = lambda: synthetic.write(folder / "out", output=output, dtype=dtype, shard_rows=rows, part=part)  # noqa: E731
        done = clean(run)
        if done is not None and output == "embeddings" and part == (0, 1):
            pairs = lm.PairSet.open(folder / "out")
            kind = {"f32": "float32", "f16": "float16", "bf16": "bfloat16"}.get(dtype, dtype)
            assert len(pairs) == done["pairs"] == 300 and pairs.dtype == kind
            assert run()["resumed"] == 300
    finally:
        shutil.rmtree(folder)
