"""What cannot be used is refused in words: what was expected, what was found, and what to do."""

from __future__ import annotations

import math
import pickle
import re
import shutil
import warnings

import numpy as np
import pytest
from conftest import DIM, arrays_of

import lensmith as lm
from lensmith import _lensmith

torch = pytest.importorskip("torch")
save_file = pytest.importorskip("safetensors.numpy").save_file

pytestmark = pytest.mark.filterwarnings("ignore::lensmith.LensmithWarning")  # trained for a moment only

GOOD = arrays_of(10)[0]
OTHER = arrays_of(10)[1]
TENSOR = torch.from_numpy(GOOD.copy())


def says(*parts: str) -> str:
    """A pattern of parts that follow one another."""
    return "(?s)" + ".*".join(re.escape(part) for part in parts)


@pytest.fixture
def refused():
    """Wants LensmithError of a kind."""

    class Refused:
        def __call__(self, kind: str, *parts: str):
            return Check(kind, parts)

    class Check:
        def __init__(self, kind, parts):
            self.kind, self.raised = kind, pytest.raises(lm.LensmithError, match=says(*parts))

        def __enter__(self):
            self.found = self.raised.__enter__()
            return self.found

        def __exit__(self, *error):
            done = self.raised.__exit__(*error)
            assert self.found.value.kind == self.kind
            return done

    return Refused()


# Arrays.

CONVERTS = "expected float32, float16 or bfloat16, found"
TO_FLOAT = ".astype(numpy.float32) or .float() converts"
STRIDES = (
    "expected rows one after the other (C-contiguous), found strides",
    "numpy.ascontiguousarray or .contiguous()",
)
AN_ARRAY = ("expected an array [n, d] of float32, float16 or bfloat16", "found")


def misaligned() -> np.ndarray:
    return np.frombuffer(bytearray(GOOD.nbytes + 1), np.uint8)[1:].view(np.float32).reshape(GOOD.shape)


BAD_ARRAYS = {
    "float64": (GOOD.astype(np.float64), TypeError, (CONVERTS, "float64", TO_FLOAT)),
    "longdouble": (GOOD.astype(np.longdouble), TypeError, (CONVERTS, "longdouble")),
    "int32": (GOOD.astype(np.int32), TypeError, (CONVERTS, "integers", TO_FLOAT)),
    "int64": (GOOD.astype(np.int64), TypeError, (CONVERTS, "integers")),
    "uint8": (GOOD.astype(np.uint8), TypeError, (CONVERTS, "unsigned integers")),
    "bool": (GOOD > 0, TypeError, (CONVERTS, "bool")),
    "object": (GOOD.astype(object), TypeError, (CONVERTS, "object")),
    "complex": (GOOD.astype(np.complex64), TypeError, (CONVERTS,)),
    "strings": (GOOD.astype(str), TypeError, (CONVERTS,)),
    "byte strings": (GOOD.astype("S8"), TypeError, (CONVERTS,)),
    "big endian": (GOOD.astype(">f4"), TypeError, (CONVERTS, ">f")),
    "records": (np.zeros((10, DIM), [("a", "f4")]), TypeError, (CONVERTS,)),
    "torch float64": (TENSOR.double(), TypeError, (CONVERTS, "torch.float64", TO_FLOAT)),
    "torch int64": (TENSOR.long(), TypeError, (CONVERTS, "torch.int64")),
    "torch bool": (TENSOR > 0, TypeError, (CONVERTS, "torch.bool")),
    "torch float8": (TENSOR.to(torch.float8_e4m3fn), TypeError, (CONVERTS, "torch.float8_e4m3fn")),
    "torch complex": (TENSOR.to(torch.complex64), TypeError, (CONVERTS, "torch.complex64")),
    "1-D": (GOOD[0], ValueError, ("expected 2 dimensions [n, d], found shape [32]",)),
    "3-D": (GOOD[None], ValueError, ("expected 2 dimensions [n, d], found shape [1, 10, 32]",)),
    "torch 1-D": (TENSOR[0], ValueError, ("expected 2 dimensions [n, d], found shape [32]",)),
    "torch 0-D": (TENSOR[0, 0], ValueError, ("expected 2 dimensions [n, d], found shape []",)),
    "torch 3-D": (TENSOR[None], ValueError, ("expected 2 dimensions [n, d], found shape [1, 10, 32]",)),
    "Fortran": (np.asfortranarray(GOOD), ValueError, STRIDES),
    "every second row": (GOOD[::2], ValueError, STRIDES),
    "every second column": (GOOD[:, ::2], ValueError, STRIDES),
    "some columns": (GOOD[:, :16], ValueError, STRIDES),
    "backwards": (GOOD[::-1], ValueError, STRIDES),
    "broadcast": (np.broadcast_to(GOOD[0], GOOD.shape), ValueError, STRIDES),
    "torch transposed": (TENSOR.T, ValueError, STRIDES),
    "torch every second row": (TENSOR[::2], ValueError, STRIDES),
    "torch expanded": (TENSOR[:1].expand(10, DIM), ValueError, STRIDES),
    "misaligned": (
        misaligned(),
        ValueError,
        ("expected an address that is a multiple of 4; a copy has one",),
    ),
    "no columns": (
        np.zeros((10, 0), np.float32),
        ValueError,
        ("expected one or more columns, found shape [10, 0]",),
    ),
    "torch no columns": (
        torch.zeros(10, 0),
        ValueError,
        ("expected one or more columns, found shape [10, 0]",),
    ),
    "lists": (GOOD.tolist(), TypeError, (*AN_ARRAY, "list")),
    "None": (None, TypeError, (*AN_ARRAY, "NoneType")),
    "number": (3.5, TypeError, (*AN_ARRAY, "float")),
    "text": ("chosen", TypeError, (*AN_ARRAY, "str")),
    "generator": ((row for row in GOOD), TypeError, (*AN_ARRAY, "generator")),
    "bytes": (b"1234" * DIM, TypeError, (CONVERTS, "bytes")),
}


@pytest.mark.parametrize("name", BAD_ARRAYS)
def test_arrays_that_cannot_be_used(name, engine, vae, reward):
    rows, kind, parts = BAD_ARRAYS[name]
    uses = {
        "chosen": lambda: lm.PairSet(rows, OTHER, engine=engine),
        "rejected": lambda: lm.PairSet(OTHER, rows, engine=engine),
        "array": lambda: lm.Embeddings(rows),
        "x": lambda: vae.encode(rows, engine=engine),
        "z": lambda: vae.decode(rows, engine=engine),
    }
    for what, use in uses.items():
        with pytest.raises(kind, match=says(f"{what}: ", *parts)):
            use()
    for use in (reward.score, reward.spread, reward):
        with pytest.raises(kind, match=says("x: ", *parts)):
            use(rows, engine=engine)


def test_tensors_that_track_gradients_are_read_as_they_are(vae, reward, engine):
    tracked = TENSOR.clone().requires_grad_()
    assert np.array_equal(reward.score(tracked, engine=engine), reward.score(GOOD, engine=engine))
    assert np.array_equal(vae.encode(tracked, engine=engine)[0], vae.encode(GOOD, engine=engine)[0])


class Elsewhere:
    """An array on another device."""

    dtype = "float32"

    def __init__(self, kind: int, name: str) -> None:
        self.kind, self.device = kind, name

    def __dlpack_device__(self):
        return (self.kind, 0)

    def __dlpack__(self, **_):
        raise AssertionError("what lies elsewhere is not asked for")


@pytest.mark.parametrize(
    ("kind", "name"), [(2, "cuda:0"), (8, "mps:0"), (10, "rocm:0"), (13, "managed"), (14, "xpu:0")]
)
def test_arrays_on_other_devices_name_the_device(kind, name):
    with pytest.raises(
        ValueError, match=says("chosen: expected an array in host memory, found one on", name, ".cpu()")
    ):
        lm.PairSet(Elsewhere(kind, name), OTHER)


def test_a_producer_that_fails_is_heard():
    class Broken(Elsewhere):
        def __dlpack__(self, **_):
            raise ValueError("this array was donated")

    with pytest.raises(ValueError, match="this array was donated"):
        lm.PairSet(Broken(1, "cpu"), OTHER)
    with pytest.raises(ValueError, match="neither dltensor nor dltensor_versioned"):
        lm.PairSet(type("Odd", (Elsewhere,), {"__dlpack__": lambda self, **_: 3})(1, "cpu"), OTHER)


@pytest.mark.parametrize(("value", "word"), [(math.nan, "NaN"), (math.inf, "inf"), (-math.inf, "-inf")])
@pytest.mark.parametrize("kind", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("side", ["chosen", "rejected"])
def test_values_that_are_not_finite_are_found(value, word, kind, side, refused, engine):
    sides = {
        name: torch.from_numpy(rows.copy()).to(getattr(torch, kind))
        for name, rows in (("chosen", GOOD), ("rejected", OTHER))
    }
    for row, column in ((0, 0), (3, 7), (9, 31)):
        bad = sides[side].clone()
        bad[row, column] = value
        with refused(
            "NonFinite", f"{side}, row {row}, column {column}: expected a finite value, found {word}"
        ):
            lm.PairSet(**{**sides, side: bad}, engine=engine)


def test_sides_that_do_not_fit(engine):
    for bad in (OTHER[:5], np.ascontiguousarray(OTHER[:, :16]), np.concatenate([OTHER, OTHER])):
        shape = list(bad.shape)
        with pytest.raises(
            ValueError, match=says("rejected: expected shape [10, 32], that of chosen, found", str(shape))
        ):
            lm.PairSet(GOOD, bad, engine=engine)
    with pytest.raises(ValueError, match="rejected: expected float32, the dtype of chosen, found float16"):
        lm.PairSet(GOOD, OTHER.astype(np.float16), engine=engine)
    with pytest.raises(ValueError, match="rejected: expected float16, the dtype of chosen, found bfloat16"):
        lm.PairSet(TENSOR.half(), TENSOR.bfloat16(), engine=engine)
    none = np.zeros((0, DIM), np.float32)
    with pytest.raises(ValueError, match="chosen: expected one or more rows, found none"):
        lm.PairSet(none, none, engine=engine)


@pytest.mark.parametrize(
    ("group", "kind", "parts"),
    [
        ([1, 2, 3], ValueError, ("expected 10 numbers, one a pair, found 3",)),
        ([], ValueError, ("expected 10 numbers, one a pair, found 0",)),
        ([0.5] * 10, TypeError, ("expected whole numbers [n], found float64 of shape [10]",)),
        (["a"] * 10, TypeError, ("expected whole numbers [n], found <U1 of shape [10]",)),
        ([None] * 10, TypeError, ("expected whole numbers [n], found object",)),
        ([[1], [1, 2]], TypeError, ("expected whole numbers [n], found list",)),
        (np.zeros((10, 1), int), TypeError, ("expected whole numbers [n], found int64 of shape [10, 1]",)),
        (np.ones(10, bool), TypeError, ("expected whole numbers [n], found bool of shape [10]",)),
        (torch.zeros(10), TypeError, ("expected whole numbers [n], found float32 of shape [10]",)),
        ([2**63] * 10, ValueError, ("expected numbers below 2^63, found 9223372036854775808",)),
        ([2**64] * 10, TypeError, ("expected whole numbers [n], found object",)),
        ("prompts", TypeError, ("expected whole numbers [n], found",)),
        (3, TypeError, ("expected whole numbers [n], found int64 of shape []",)),
    ],
)
def test_groups_that_cannot_be_used(group, kind, parts, engine):
    with pytest.raises(kind, match=says("group: ", *parts)):
        lm.PairSet(GOOD, OTHER, group=group, engine=engine)


# Rows and pairs that are not there.


@pytest.mark.parametrize(
    ("rows", "kind", "parts"),
    [
        (0, TypeError, ("expected a slice or several numbers; pairs[i:i + 1] is one pair",)),
        (True, TypeError, ("expected a slice or several numbers",)),
        ([60], IndexError, ("expected numbers below 60, found 60",)),
        ([0, -61], IndexError, ("expected numbers below 60, found -61",)),
        ([2**63], ValueError, ("expected numbers below 2^63, found 9223372036854775808",)),
        (np.ones(59, bool), IndexError, ("expected a mask of 60 values, found shape [59]",)),
        (np.ones((60, 1), bool), IndexError, ("expected a mask of 60 values, found shape [60, 1]",)),
        (np.zeros(60, bool), ValueError, ("expected one or more, found none",)),
        ([], ValueError, ("expected one or more, found none",)),
        (slice(5, 5), ValueError, ("expected one or more, found slice(5, 5, None) of 60",)),
        (slice(7, 3), ValueError, ("expected one or more, found",)),
        (slice(3, 7, -1), ValueError, ("expected one or more, found none",)),
        ([1.0], TypeError, ("expected whole numbers [n], found float64 of shape [1]",)),
        (["a"], TypeError, ("expected whole numbers [n], found <U1",)),
        ([[1]], TypeError, ("expected whole numbers [n], found int64 of shape [1, 1]",)),
        (None, TypeError, ("expected whole numbers [n], found object",)),
    ],
)
def test_rows_that_are_not_there(small, rows, kind, parts):
    with pytest.raises(kind, match=says("rows: ", *parts)):
        small[rows]


@pytest.mark.parametrize(
    ("number", "kind", "parts"),
    [
        (300, IndexError, ("expected a number below 300, found 300",)),
        (-301, IndexError, ("expected a number below 300, found -301",)),
        (2**63, IndexError, ("expected a number below 300",)),
        (-(2**80), IndexError, ("expected a number below 300",)),
        (slice(5, 5), ValueError, ("expected one or more, found slice(5, 5, None) of 300",)),
        (slice(300, None), ValueError, ("expected one or more, found",)),
        (slice(9, 3), ValueError, ("expected one or more, found",)),
        (1.0, TypeError, ("expected a whole number or a slice, found float",)),
        ("a", TypeError, ("expected a whole number or a slice, found str",)),
        (None, TypeError, ("expected a whole number or a slice, found NoneType",)),
        ((1, 2), TypeError, ("expected a whole number or a slice, found tuple",)),
    ],
)
def test_pairs_that_are_not_there(synthetic, number, kind, parts):
    with pytest.raises(kind, match=says("pairs: ", *parts)):
        synthetic[number]


def test_several_pairs_that_are_not_there(synthetic):
    for numbers in ([300], [5, -301], range(300, 301), torch.tensor([300])):
        with pytest.raises(IndexError, match="indices: expected numbers from 0 to 299, found -?30[01]"):
            synthetic[numbers]
    with pytest.raises(IndexError, match="pairs: expected a mask of 300 values"):
        synthetic[np.ones(3, bool)]
    with pytest.raises(TypeError, match="pairs: expected whole numbers"):
        synthetic[torch.zeros(3)]


def test_more_pairs_than_memory_holds(engine):
    # 10.6 million pairs of 3 TB.
    seeds = lm.PairSet(*arrays_of(160, dim=36_000), engine=engine)
    vae = lm.Vae.fit(seeds, hidden=16, epochs=1, engine=engine)
    pairs = lm.synthesize(vae, seeds, fold=66_000, engine=engine)
    for all_of_them in (pairs.to_pairs, lambda: pairs[:], pairs.to_hf_dataset):
        with pytest.raises(lm.LensmithError, match=r"pairs: expected a size that fits .* free, found 10560000, which"):
            all_of_them()
    assert len(pairs[-2:]) == 2


@pytest.mark.parametrize(
    ("numbers", "kind", "parts"),
    [
        ([300], IndexError, ("expected numbers from 0 to 299, found 300",)),
        ([5, -1], IndexError, ("expected numbers from 0 to 299, found -1",)),
        ([2**63], IndexError, ("expected numbers from 0 to 299, found 9223372036854775808",)),
        ([], ValueError, ("expected one or more numbers, found none",)),
        (np.array([], np.int64), ValueError, ("expected one or more numbers, found none",)),
        ([1.0], TypeError, ("expected whole numbers [b], found float64 of shape [1]",)),
        ([math.nan], TypeError, ("expected whole numbers [b], found float64",)),
        ([True], TypeError, ("expected whole numbers [b], found bool",)),
        (["a"], TypeError, ("expected whole numbers [b], found <U1",)),
        ([[1]], TypeError, ("expected whole numbers [b], found int64 of shape [1, 1]",)),
        ([2**64], TypeError, ("expected whole numbers [b], found object",)),
        (3, TypeError, ("expected whole numbers [b], found int64 of shape []",)),
        (slice(3), TypeError, ("expected whole numbers [b], found object",)),
        ({1, 2}, TypeError, ("expected whole numbers [b], found object",)),
        (None, TypeError, ("expected whole numbers [b], found object",)),
    ],
)
def test_numbers_that_are_not_there(synthetic, numbers, kind, parts):
    with pytest.raises(kind, match=says("indices: ", *parts)):
        synthetic.take(numbers)


@pytest.mark.parametrize("name", ["size", "start"])
@pytest.mark.parametrize(
    ("value", "kind", "found"),
    [
        (-1, ValueError, "expected"),
        (2**64, ValueError, "expected at most 18446744073709551615"),
        (1.5, TypeError, "expected a whole number, found 1.5"),
        ("a", TypeError, "expected a whole number, found 'a'"),
        (None, TypeError, "expected a whole number, found None"),
        (True, TypeError, "expected a whole number, found True"),
    ],
)
def test_batches_that_cannot_be(synthetic, name, value, kind, found):
    with pytest.raises(kind, match=says(f"{name}: ", found)):
        synthetic.batches(**{"size": 5, name: value})
    with pytest.raises(ValueError, match="size: expected 1 or more, found 0"):
        synthetic.batches(0)
    assert list(synthetic.batches(5, start=300)) == []


def test_permutations_that_cannot_be():
    with pytest.raises(
        ValueError, match=says("start and stop: expected 0 <= start <= stop <= 10, found 5 and 11")
    ):
        _lensmith.permutation(10, 0, 0, 5, 11)
    with pytest.raises(ValueError, match="found 5 and 4"):
        _lensmith.permutation(10, 0, 0, 5, 4)


# Settings.

WHOLE = "expected a whole number, found"
NUMBER = "expected a number, found"
FINITE = "expected a finite number, found"

#: Values that no setting takes.
NEVER = [(math.nan, "nan"), (math.inf, "inf"), ("x", "x"), ([1], "[1]"), (1j, "1j")]


def whole_number(*refused_by_engine: tuple[int, str], none: bool = False) -> list:
    cases = [(value, (TypeError, ValueError), found) for value, found in NEVER]
    cases += [
        (1.5, TypeError, f"{WHOLE} 1.5"),
        (True, TypeError, f"{WHOLE} True"),
        (-1, ValueError, "or more, found -1"),
    ]
    cases += [(2**64, ValueError, "expected at most"), (np.float32(2), TypeError, WHOLE)]
    cases += [] if none else [(None, TypeError, f"{WHOLE} None")]
    return cases + [(value, (ValueError, lm.LensmithError), found) for value, found in refused_by_engine]


def number(*refused_by_engine: tuple[float, str]) -> list:
    cases = [(value, (TypeError, ValueError), found) for value, found in NEVER]
    cases += [
        (None, TypeError, f"{NUMBER} None"),
        (True, TypeError, f"{NUMBER} True"),
        (-math.inf, ValueError, FINITE),
    ]
    cases += [(10**400, ValueError, FINITE), (b"1", TypeError, NUMBER)]
    return cases + [(value, lm.LensmithError, found) for value, found in refused_by_engine]


def word(*words: str) -> list:
    expected = ", ".join(f'"{word}"' for word in words[:-1]) + f' or "{words[-1]}"'
    cases = [
        (value, TypeError, f"expected {expected}, found")
        for value in (None, 3, math.nan, True, [words[0]], b"mlp")
    ]
    return [
        *cases,
        ("other", ValueError, f'expected {expected}, found "other"'),
        ("", ValueError, 'found ""'),
    ]


MULTIPLE = [
    (0, "expected a multiple of 16"),
    (15, "expected a multiple of 16"),
    (2**40, "expected a multiple of 16"),
]
VAE_SETTINGS = {
    "hidden": whole_number(*MULTIPLE),
    "latent": whole_number(*MULTIPLE),
    "epochs": whole_number((0, "expected 1 or more, found 0")),
    "lr": number(
        (0.0, "expected a finite number above 0"), (-1e-3, "expected a finite number above 0, found -0.001")
    ),
    "batch_size": whole_number((0, "expected 1 or more, found 0")),
    "beta": number((-1.0, "expected a finite number, 0 or more, found -1")),
    "gamma": number((-1.0, "expected a finite number, 0 or more, found -1")),
    "reconstruction": word("mean", "sum"),
    "divergence": word("w2", "w2-squared"),
    "seed": whole_number(),
}
REWARD_SETTINGS = {
    "head": word("mlp", "linear"),
    "hidden": whole_number(*MULTIPLE[:2]),
    "ensemble": whole_number((0, "expected 1 or more, found 0"), (2**40, "heads, found 1099511627776")),
    "epochs": whole_number((0, "expected 1 or more, found 0"), none=True),
    "steps": whole_number((0, "expected 1 or more, found 0"), none=True),
    "lr": number(
        (0.0, "expected a finite number above 0"), (-1e-3, "expected a finite number above 0, found -0.001")
    ),
    "batch_size": whole_number((0, "expected 1 or more, found 0")),
    "patience": whole_number((0, "expected 1 or more, found 0"), none=True),
    "validate_every": whole_number((0, "expected 1 or more, found 0"), none=True),
    "weight_decay": number(
        (-1.0, "expected 0 or more, and below 1 / the learning rate"), (1e6, "below 1 / the learning rate")
    ),
    "input_noise": number((-1.0, "expected a finite number, 0 or more, found -1")),
    "across_prompts": number(
        (-0.1, "expected a share from 0 to 1"), (1.1, "expected a share from 0 to 1, found 1.1")
    ),
    "seed": whole_number(),
}
SYNTHESIS_SETTINGS = {
    "fold": whole_number(
        (0, "expected 2 or more, found 0"),
        (1, "expected 2 or more, found 1"),
        (2**20, "expected 2 to"),
        none=True,
    ),
    "per_side": whole_number(
        (0, "expected 1 or more, found 0"), (257, "expected 1 to 256, found 257"), none=True
    ),
    "pairing": word("combine", "match"),
    "sigma2": number((-1.0, "expected a finite number, 0 or more, found -1")),
    "oversample": whole_number((0, "expected 1 or more, found 0"), (65, "expected 1 to 64, found 65")),
    "likelihood": word("posterior", "prior", "none"),
    "source": word("sample", "mean"),
    "mode": word("plain", "residual"),
    "seed": whole_number(),
}


def refuses(run, name: str, cases: list) -> None:
    for value, kind, found in cases:
        with pytest.raises(kind, match=says(name if kind is not lm.LensmithError else "", found)):
            run(value)


@pytest.mark.parametrize("name", VAE_SETTINGS)
def test_settings_of_a_vae_out_of_range(name, small, engine):
    base = {"hidden": 16, "latent": 16, "epochs": 1, "engine": engine}
    refuses(lambda value: lm.Vae.fit(small, **{**base, name: value}), name, VAE_SETTINGS[name])


@pytest.mark.parametrize("name", REWARD_SETTINGS)
def test_settings_of_a_reward_model_out_of_range(name, small, engine):
    base = {"hidden": 16, "engine": engine, **({"epochs": 1} if name != "steps" else {})}
    refuses(lambda value: lm.RewardModel.fit(small, **{**base, name: value}), name, REWARD_SETTINGS[name])


@pytest.mark.parametrize("name", SYNTHESIS_SETTINGS)
def test_settings_of_a_synthesis_out_of_range(name, vae, small, engine):
    per_side = {"per_side": 8} if name == "fold" else {}
    run = lambda value: lm.synthesize(vae, small, **{"engine": engine, **per_side, name: value})  # noqa: E731
    refuses(run, "" if name == "fold" else name, SYNTHESIS_SETTINGS[name])
    refuses(
        lambda value: vae.health(engine=engine, **{**per_side, name: value}), "", SYNTHESIS_SETTINGS[name][:3]
    )


@pytest.mark.parametrize("name", ["vae", "reward", "synthesis"])
def test_settings_of_a_comparison_are_looked_at_in_the_same_way(name, small, engine):
    run = lambda **given: lm.compare(
        small, arms=["lens"], repeats=1, seeds=20, validation=10, engine=engine, **{name: given}
    )  # noqa: E731
    table = {"vae": VAE_SETTINGS, "reward": REWARD_SETTINGS, "synthesis": SYNTHESIS_SETTINGS}[name]
    for setting, cases in table.items():
        if setting not in ("seed", "steps"):
            for value, kind, found in cases[:2] + cases[-1:]:
                with pytest.raises(kind, match=says(found)):
                    run(**{setting: value})
    with pytest.raises(TypeError, match="unknown"):
        run(unknown=3)


@pytest.mark.parametrize(
    ("given", "kind", "parts"),
    [
        ({"arms": ["other"]}, lm.LensmithError, ("arms: expected none, matched, direct", "found other")),
        ({"arms": "none"}, TypeError, ("arms: expected a list of names, found 'none'",)),
        ({"arms": []}, TypeError, ("arms: expected a list of names, found []",)),
        ({"arms": [3]}, TypeError, ("arms: expected a list of names, found [3]",)),
        ({"repeats": 0}, ValueError, ("repeats: expected 1 or more, found 0",)),
        ({"repeats": 1.5}, TypeError, ("repeats: expected a whole number, found 1.5",)),
        ({"seed": -1}, ValueError, ("seed: expected 0 or more, found -1",)),
        ({"seeds": 0}, ValueError, ("seeds: expected 1 or more, found 0",)),
        ({"seeds": 1000}, lm.LensmithError, ("pairs to cut into 1000 seeds", "60, at least 1011 needed")),
        ({"callbacks": [3]}, TypeError, ("callbacks: expected functions of one dictionary, found 3",)),
    ],
)
def test_comparisons_that_cannot_be(small, engine, given, kind, parts):
    with pytest.raises(kind, match=says(*parts)):
        lm.compare(small, **{"seeds": 20, "validation": 10, "engine": engine, **given})
    with pytest.raises(TypeError, match="pairs: expected a PairSet, found ndarray"):
        lm.compare(GOOD)


def test_figures_that_a_comparison_does_not_have():
    one = {
        "seed": 0,
        "arms": [{"arm": arm, "test": {"accuracy": 0.5, "loss": 0.7}} for arm in ("none", "plain")],
    }
    comparison = lm.Comparison([one, one])
    with pytest.raises(ValueError, match='figure: expected "accuracy" or "loss", found \'speed\''):
        comparison.paired(figure="speed")
    with pytest.raises(ValueError, match="baseline: expected one of none, plain, found 'mixup'"):
        comparison.paired("mixup")


@pytest.mark.parametrize(
    ("given", "kind", "parts"),
    [
        ({"seeds": 0}, ValueError, ("seeds: expected 1 or more, found 0",)),
        ({"seeds": -1}, ValueError, ("seeds: expected 1 or more, found -1",)),
        ({"seeds": 2.0}, TypeError, ("seeds: expected a whole number, found 2.0",)),
        (
            {"seeds": 50},
            lm.LensmithError,
            ("pairs to cut into 50 seeds, 10 validation pairs and a test set: 60, at least 61",),
        ),
        ({"seeds": 2**63, "validation": 2**63}, lm.LensmithError, ("60, at least",)),
        ({"validation": 0}, ValueError, ("validation: expected 1 or more, found 0",)),
        ({"validation": math.nan}, TypeError, ("validation: expected a whole number, found nan",)),
        ({"seed": -1}, ValueError, ("seed: expected 0 or more, found -1",)),
        ({"seed": "a"}, TypeError, ("seed: expected a whole number, found 'a'",)),
    ],
)
def test_splits_that_cannot_be(small, given, kind, parts):
    with pytest.raises(kind, match=says(*parts)):
        lm.split(small, **{"seeds": 20, "validation": 10, **given})
    with pytest.raises(TypeError, match="pairs: expected a PairSet, found ndarray"):
        lm.split(GOOD)


@pytest.mark.parametrize(
    ("arguments", "kind", "parts"),
    [
        (
            ("gpu",),
            lm.LensmithError,
            ("device: expected auto, cpu, cuda, cuda:N, cuda:all or reference, found gpu",),
        ),
        (("cuda:99",), lm.LensmithError, ("device cuda:99: ",)),
        ((3,), TypeError, ("device: expected a string, found 3",)),
        (("cpu", -1), ValueError, ("threads: expected 0 or more, found -1",)),
        (("cpu", 10**6), lm.LensmithError, ("threads: expected 0 to 1024, found 1000000",)),
        (("cpu", 2**64), ValueError, ("threads: expected at most",)),
        (("cpu", "2"), TypeError, ("threads: expected a whole number, found '2'",)),
        (("cpu", 1.5), TypeError, ("threads: expected a whole number, found 1.5",)),
        (("cpu", 1, "f64"), lm.LensmithError, ("precision: expected f32 or bf16, found f64",)),
        (("cpu", 1, 16), TypeError, ("precision: expected a string, found 16",)),
    ],
)
def test_engines_that_cannot_be(arguments, kind, parts):
    with pytest.raises(kind, match=says(*parts)):
        lm.Engine(*arguments)


def test_numbers_of_numpy_and_torch_are_numbers(small, engine):
    plain = lm.Vae.fit(small, hidden=16, latent=16, epochs=2, lr=0.5, seed=7, engine=engine)
    same = lm.Vae.fit(
        small,
        hidden=np.int64(16),
        latent=np.uint8(16),
        epochs=torch.tensor(2),
        lr=np.float32(0.5),
        seed=np.array(7),
        engine=engine,
    )
    assert plain._core.equals(same._core)


# Things of the wrong kind.


def test_things_of_the_wrong_kind_are_named(small, vae, reward, synthetic, engine):
    fit, reward_fit = lm.Vae.fit, lm.RewardModel.fit
    for run, name, expected, found in (
        (lambda: fit(GOOD), "pairs", "PairSet", "ndarray"),
        (lambda: fit(synthetic), "pairs", "PairSet", "SyntheticPairs"),
        (lambda: reward_fit(GOOD), "pairs", "PairSet", "ndarray"),
        (lambda: reward_fit(small, OTHER), "validation", "PairSet", "ndarray"),
        (lambda: reward_fit(small, synthetic), "validation", "PairSet", "SyntheticPairs"),
        (lambda: reward.evaluate(GOOD), "pairs", "PairSet", "ndarray"),
        (lambda: vae.health(GOOD), "validation", "PairSet", "ndarray"),
        (lambda: vae.health(seeds=GOOD), "seeds", "PairSet", "ndarray"),
        (lambda: lm.synthesize(vae, GOOD), "seeds", "PairSet", "ndarray"),
        (lambda: lm.synthesize(reward, small), "vae", "Vae", "RewardModel"),
        (lambda: lm.synthesize(None, small), "vae", "Vae", "NoneType"),
    ):
        with pytest.raises(TypeError, match=f"{name}: expected a {expected}, found {found}"):
            run()
    for run in (
        lambda: lm.PairSet(GOOD, OTHER, engine="cpu"),
        lambda: fit(small, engine="cpu"),
        lambda: lm.synthesize(vae, small, engine=3),
        lambda: reward.score(GOOD, engine=engine._core),
    ):
        with pytest.raises(TypeError, match="engine: expected a lensmith.Engine, found"):
            run()
    for callbacks in (None, 3, print):
        with pytest.raises(TypeError, match="callbacks: expected a list of functions, found"):
            fit(small, callbacks=callbacks)
    with pytest.raises(TypeError, match="callbacks: expected functions of one dictionary, found 'x'"):
        fit(small, callbacks="x")
    with pytest.raises(TypeError, match="dtype: expected a string, found None"):
        lm.synthesize(vae, small, dtype=None)
    with pytest.raises(ValueError, match="dtype: expected float32, float16 or bfloat16, found float64"):
        lm.synthesize(vae, small, dtype="float64")
    with pytest.raises(ValueError, match="epochs, steps: expected one of them, found 3 and 4"):
        reward_fit(small, epochs=3, steps=4)


def test_sizes_that_do_not_fit(small, vae, reward, engine, refused):
    wide = lm.PairSet(*arrays_of(5, dim=64), engine=engine)
    with pytest.raises(
        ValueError, match="seeds: expected embeddings of 32 values, those of the VAE, found 64"
    ):
        lm.synthesize(vae, wide, engine=engine)
    for run in (
        lambda: vae.encode(wide.chosen, engine=engine),
        lambda: vae.health(wide, engine=engine),
        lambda: vae.health(seeds=wide, engine=engine),
    ):
        with refused("Shape", "embedding dimension for the VAE: expected 32, found 64"):
            run()
    with refused("Shape", "columns of the latents: expected 16, found 32"):
        vae.decode(GOOD, engine=engine)
    for run in (
        lambda: reward.score(wide.chosen, engine=engine),
        lambda: reward.spread(wide.chosen, engine=engine),
        lambda: reward.evaluate(wide, engine=engine),
        lambda: reward.best_of_n(np.zeros((2, 3, 64), np.float32), np.zeros((2, 3)), engine=engine),
        lambda: lm.RewardModel.fit(small, wide, hidden=16, epochs=1, engine=engine),
    ):
        with refused("Shape", "embedding dimension for the reward model: expected 32, found 64"):
            run()
    with refused("TooFew", "seed pairs for VAE training: 1, at least 2 needed"):
        lm.Vae.fit(small[:1], hidden=16, latent=16, engine=engine)
    with pytest.raises(ValueError, match="seeds: expected the pairs that the model was trained on"):
        lm.Vae.from_state_dict(vae.state_dict()).health(engine=engine)


def test_training_that_diverges_says_so(small, engine, refused):
    with refused("Diverged", "VAE training diverged in epoch", "usually helps"):
        lm.Vae.fit(small, hidden=16, latent=16, beta=1e30, engine=engine)


@pytest.mark.parametrize(
    ("candidates", "gold", "kind", "parts"),
    [
        (
            np.zeros((2, 3, DIM), np.float32),
            np.zeros((2, 4)),
            ValueError,
            ("gold: expected shape [2, 3], found [2, 4]",),
        ),
        (
            np.zeros((6, DIM), np.float32),
            np.zeros((2, 3)),
            ValueError,
            ("candidates: expected 3 dimensions [prompts, N, d]",),
        ),
        (np.zeros((2, 3, DIM)), np.zeros((2, 3)), TypeError, ("candidates: ", CONVERTS, "float64")),
        ([[[1.0]]], [[1.0]], ValueError, ("candidates: expected 3 dimensions",)),
        (
            np.zeros((2, 3, DIM), np.float32),
            "x",
            TypeError,
            ("gold: expected an array of numbers, found 'x'",),
        ),
        (
            np.zeros((2, 3, DIM), np.float32),
            [[1, 2, 3], [4, math.nan, 6]],
            ValueError,
            ("gold, prompt 1, candidate 1: expected a finite value, found nan",),
        ),
        (
            np.zeros((2, 0, DIM), np.float32),
            np.zeros((2, 0)),
            ValueError,
            ("candidates: expected 3 dimensions", "found shape [2, 0, 32]"),
        ),
        (
            np.zeros((0, 3, DIM), np.float32),
            np.zeros((0, 3)),
            ValueError,
            ("candidates: expected 3 dimensions",),
        ),
    ],
)
def test_candidates_that_cannot_be_used(reward, engine, candidates, gold, kind, parts):
    with pytest.raises(kind, match=says(*parts)):
        reward.best_of_n(candidates, gold, engine=engine)


def test_values_that_a_dtype_cannot_hold(vae, engine, refused):
    large = lm.PairSet(GOOD * 1e10, OTHER * 1e10, engine=engine)
    with pytest.raises(
        lm.LensmithError, match="expected a finite value that F16 can hold.*another dtype may hold it"
    ):
        lm.synthesize(vae, large, dtype="float16", engine=engine)[0:3]


# Closed engines.


def test_a_closed_engine_says_so(small, vae, reward, tmp_path, refused):
    engine = lm.Engine("cpu", threads=1)
    pairs = lm.PairSet(GOOD, OTHER, engine=engine)
    synthetic = lm.synthesize(vae, pairs, engine=engine)
    synthetic.take([3]), synthetic[3]
    engine.close()
    engine.close()
    for run in (
        lambda: engine.device,
        lambda: engine.threads,
        lambda: engine.arithmetic,
        lambda: lm.PairSet(GOOD, OTHER, engine=engine),
        lambda: pairs[[1, 2]].chosen,
        lambda: pairs.save(tmp_path / "pairs.safetensors"),
        lambda: lm.Vae.fit(small, engine=engine),
        lambda: vae.encode(GOOD, engine=engine),
        lambda: reward.score(GOOD, engine=engine),
        lambda: reward.evaluate(small, engine=engine),
        lambda: synthetic[3],
        lambda: synthetic.take([3]),
        lambda: next(synthetic.batches(8)),
        lambda: synthetic.write(tmp_path / "out"),
        lambda: lm.compare(small, seeds=20, validation=10, repeats=1, engine=engine),
    ):
        with refused("Closed", "the engine is closed: open another, lensmith.Engine()"):
            run()
    assert np.array_equal(pairs.chosen.numpy(), GOOD) and len(synthetic) == 40
    assert repr(engine) == "Engine(device='cpu', threads=1, precision='f32')"
    with lm.Engine("cpu", threads=1) as other:
        assert np.array_equal(synthetic.with_engine(other)[0].chosen, GOOD[0])


def test_a_closed_engine_pickles_as_an_open_one():
    engine = lm.Engine("cpu", threads=1)
    engine.close()
    with pickle.loads(pickle.dumps(engine)) as again:
        assert (again.device, again.threads) == ("cpu", 1)


# Files.


@pytest.fixture(scope="module")
def files(tmp_path_factory, small, vae, reward):
    """Files that are not what they should be, by name."""
    folder = tmp_path_factory.mktemp("files")
    bad = GOOD.copy()
    bad[2, 3] = np.nan
    (folder / "text").write_text("hello world")
    (folder / "none").write_bytes(b"")
    (folder / "folder").mkdir()
    save_file({"a": GOOD, "b": OTHER}, folder / "names.safetensors")
    save_file({"chosen": GOOD, "rejected": OTHER[:3]}, folder / "shapes.safetensors")
    save_file(
        {"chosen": GOOD.astype(np.float64), "rejected": OTHER.astype(np.float64)},
        folder / "float64.safetensors",
    )
    save_file({"chosen": GOOD, "rejected": bad}, folder / "nan.safetensors")
    save_file({"chosen": GOOD[0], "rejected": OTHER[0]}, folder / "axes.safetensors")
    save_file({"chosen": GOOD, "rejected": OTHER, "group": GOOD[:, 0].copy()}, folder / "group.safetensors")
    save_file({"chosen": GOOD, "rejected": OTHER, "group": np.arange(3)}, folder / "few.safetensors")
    small.save(folder / "pairs.safetensors")
    (folder / "cut.safetensors").write_bytes((folder / "pairs.safetensors").read_bytes()[:3000])
    vae.save(folder / "vae.safetensors")
    reward.save(folder / "reward.safetensors")
    return folder


@pytest.mark.parametrize(
    ("name", "kind", "parts"),
    [
        ("missing.safetensors", "Io", ("cannot open", "missing.safetensors: No such file or directory")),
        ("text", "Format", ("text: not a usable safetensors file",)),
        ("none", "Format", ("none: not a usable safetensors file: the file is empty",)),
        ("folder", "TooFew", ("folder: *.safetensors files in this folder: 0, at least 1 needed",)),
        ("*.nothing", "TooFew", ("*.nothing: files that match this pattern: 0, at least 1 needed",)),
        (
            "names.safetensors",
            "MissingTensor",
            ("names.safetensors: no tensor named `chosen`; found: `a`, `b`",),
        ),
        (
            "shapes.safetensors",
            "Shape",
            ("tensor `rejected`: expected [10, 32] as in `chosen`, found [3, 32]",),
        ),
        ("float64.safetensors", "WrongDtype", ("tensor `chosen` has dtype F64, expected F32, F16 or BF16",)),
        (
            "nan.safetensors",
            "NonFinite",
            ("nan.safetensors: tensor `rejected`, row 2, column 3: NaN is not finite",),
        ),
        ("axes.safetensors", "Shape", ("axes of tensor `chosen`: expected 2, found 1 ([32])",)),
        ("group.safetensors", "WrongDtype", ("tensor `group` has dtype F32, expected I64",)),
        ("few.safetensors", "Shape", ("length of tensor `group`: expected 10, found 3",)),
        ("cut.safetensors", "Format", ("cut.safetensors: not a usable safetensors file: truncated",)),
    ],
)
def test_files_that_hold_no_pairs(files, name, kind, parts, refused):
    with refused(kind, *parts):
        lm.PairSet.open(files / name)


def test_values_are_looked_at_when_they_are_wanted(files, refused, engine):
    pairs = lm.PairSet.open(files / "nan.safetensors", check=False, engine=engine)
    assert len(pairs) == 10 and np.isnan(pairs.rejected.numpy()[2, 3])
    with pytest.raises(lm.LensmithError, match="NaN"):
        lm.Vae.fit(pairs, hidden=16, latent=16, epochs=1, engine=engine)


def test_names_that_a_file_does_not_have(files, refused):
    with refused("MissingTensor", "no tensor named `zz`; found: `a`, `b`"):
        lm.PairSet.open(files / "names.safetensors", chosen="a", rejected="zz")
    with refused("MissingTensor", "no tensor named `zz`; found: `chosen`, `rejected`, `group`"):
        lm.PairSet.open(files / "pairs.safetensors", group="zz")
    with refused("Shape", "times it is given as a source: expected 1, found 2"):
        lm.PairSet.open(files / "pairs.safetensors", files / "pairs.safetensors")
    with pytest.raises(ValueError, match="paths: expected one or more files, found none"):
        lm.PairSet.open()
    for path in (3, None, ["pairs.safetensors"]):
        with pytest.raises(TypeError, match="expected str, bytes or os.PathLike object"):
            lm.PairSet.open(path)


@pytest.mark.parametrize("model", [lm.Vae, lm.RewardModel])
def test_files_that_hold_no_model(files, model, refused):
    own, other = ("VAE", "reward model") if model is lm.Vae else ("reward model", "VAE")
    tensor = "encoder.0.weight" if model is lm.Vae else "0.weight"
    for name, kind, *parts in (
        ("missing", "Io", "cannot open", "missing: No such file or directory"),
        ("text", "Format", "text: not a usable safetensors file"),
        ("folder", "Format", "folder: not a usable safetensors file: it is a folder"),
        ("cut.safetensors", "Format", "truncated"),
        ("names.safetensors", "MissingTensor", f"no tensor named `{tensor}`; found: `a`, `b`"),
        ("pairs.safetensors", "WrongCheckpoint", f"expected a {own} checkpoint, found preference shard"),
        (
            f"{'reward' if model is lm.Vae else 'vae'}.safetensors",
            "WrongCheckpoint",
            f"expected a {own} checkpoint, found {other}",
        ),
    ):
        with refused(kind, *parts):
            model.load(files / name)


def test_places_that_cannot_be_written(files, small, vae, reward, synthetic, refused):
    for thing in (small, vae, reward):
        with refused("Io", "cannot create", "No such file or directory"):
            thing.save(files / "no" / "such" / "folder")
        with refused("Io", "cannot create", "Is a directory"):
            thing.save(files / "folder")
        with pytest.raises(TypeError, match="expected str, bytes or os.PathLike object, not int"):
            thing.save(3)
    with refused("Io", "text/recipe.json", "Not a directory"):
        synthetic.write(files / "text")
    assert (files / "text").read_text() == "hello world"


# Parameters.


@pytest.mark.parametrize(
    ("name", "value", "kind", "parts"),
    [
        ("encoder.0.bias", None, ValueError, ("state: no encoder.0.bias; found decoder.0.bias, ",)),
        ("encoder.0.weight", None, ValueError, ("state: no encoder.0.weight; found ",)),
        (
            "encoder.0.weight",
            np.zeros(16),
            ValueError,
            ("encoder.0.weight: expected 2 dimensions, found shape [16]",),
        ),
        (
            "encoder.0.bias",
            np.zeros((1, 16)),
            ValueError,
            ("encoder.0.bias: expected 1 dimensions, found shape [1, 16]",),
        ),
        ("encoder.0.bias", np.zeros(15), ValueError, ("encoder.0.bias: expected 16 values, found 15",)),
        (
            "encoder.0.bias",
            np.full(16, np.nan),
            ValueError,
            ("encoder.0.bias: expected finite values, found NaN",),
        ),
        (
            "decoder.2.weight",
            np.full((DIM, 16), 1e300),
            ValueError,
            ("decoder.2.weight: expected finite values, found inf",),
        ),
        (
            "encoder.0.bias",
            np.array(["a"] * 16),
            TypeError,
            ("encoder.0.bias: expected an array of numbers, found",),
        ),
        ("encoder.0.bias", {}, TypeError, ("encoder.0.bias: expected an array of numbers, found {}",)),
        (
            "encoder.2.weight",
            np.zeros((32, 32)),
            lm.LensmithError,
            ("encoder.2 inputs: expected 16, found 32",),
        ),
        ("encoder.0.weight", np.zeros((16, 31)), lm.LensmithError, ("expected 31, found 32",)),
    ],
)
def test_parameters_that_do_not_fit(vae, name, value, kind, parts):
    state = {key: rows.copy() for key, rows in vae.state_dict().items()}
    if value is None:
        del state[name]
    else:
        state[name] = value
    with warnings.catch_warnings(), pytest.raises(kind, match=says(*parts)):
        warnings.simplefilter("ignore", RuntimeWarning)
        lm.Vae.from_state_dict(state)


def test_states_of_other_models(vae, reward, refused):
    with pytest.raises(ValueError, match=r"state: no 0\.weight; found decoder\.0\.bias"):
        lm.RewardModel.from_state_dict(vae.state_dict())
    with pytest.raises(ValueError, match=r"state: no encoder\.0\.weight; found nothing"):
        lm.Vae.from_state_dict({})
    for state in (None, [1], "weights"):
        with pytest.raises(TypeError, match="state: expected arrays under their names, found"):
            lm.Vae.from_state_dict(state)
    with refused("Shape", "reward model, inputs of layer 2", "of the units of each head"):
        lm.RewardModel.from_state_dict(
            {
                **reward.state_dict(),
                "2.weight": np.zeros((2, 16), np.float32),
                "2.bias": np.zeros(2, np.float32),
            }
        )
    sizes = {"encoder.0": (15, DIM), "encoder.2": (32, 15), "decoder.0": (15, 16), "decoder.2": (DIM, 15)}
    odd = {f"{layer}.weight": np.zeros(size) for layer, size in sizes.items()}
    odd |= {f"{layer}.bias": np.zeros(size[0]) for layer, size in sizes.items()}
    with refused("InvalidArgument", "hidden: expected a multiple of 16 from 16", "found 15"):
        lm.Vae.from_state_dict(odd)


# Folders.


@pytest.mark.parametrize(
    ("given", "kind", "parts"),
    [
        (
            {"output": "other"},
            ValueError,
            ('output: expected "embeddings", "latents" or "recipe", found "other"',),
        ),
        ({"output": 3}, TypeError, ('output: expected "embeddings", "latents" or "recipe", found 3',)),
        ({"dtype": "f64"}, ValueError, ("dtype: expected float32, float16 or bfloat16, found f64",)),
        ({"dtype": None}, TypeError, ("dtype: expected a string, found None",)),
        ({"shard_rows": 0}, ValueError, ("shard_rows: expected 1 or more, found 0",)),
        ({"shard_rows": 1.5}, TypeError, ("shard_rows: expected a whole number, found 1.5",)),
        (
            {"part": (1, 1)},
            ValueError,
            ("part: expected (index, count) with index below count, found (1, 1)",),
        ),
        ({"part": (-1, 2)}, ValueError, ("part: expected 0 or more, found -1",)),
        (
            {"part": (0, 0)},
            ValueError,
            ("part: expected (index, count) with index below count, found (0, 0)",),
        ),
        ({"part": 3}, TypeError, ("part: expected (index, count), found 3",)),
        ({"part": (0, 1, 2)}, TypeError, ("part: expected (index, count), found (0, 1, 2)",)),
        ({"callbacks": [3]}, TypeError, ("callbacks: expected functions of one dictionary, found 3",)),
    ],
)
def test_outputs_that_cannot_be(synthetic, tmp_path, given, kind, parts):
    with pytest.raises(kind, match=says(*parts)):
        synthetic.write(tmp_path / "out", **given)


def test_a_folder_of_another_output_is_left_alone(synthetic, vae, small, engine, tmp_path, refused, program):
    folder = tmp_path / "out"
    synthetic.write(folder, dtype="f32")
    before = {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
    other_vae = lm.Vae.fit(small, hidden=16, latent=16, epochs=1, engine=engine)
    for other, given in (
        (lm.synthesize(vae, small, fold=6, engine=engine), {"dtype": "f32"}),
        (lm.synthesize(vae, small, fold=5, seed=1, engine=engine), {"dtype": "f32"}),
        (lm.synthesize(other_vae, small, fold=5, engine=engine), {"dtype": "f32"}),
        (lm.synthesize(vae, small[:30], fold=5, engine=engine), {"dtype": "f32"}),
        (synthetic, {"dtype": "bf16"}),
        (synthetic, {"output": "latents"}),
    ):
        with refused("Exists", "exists already", "overwrite"):
            other.write(folder, **given)
        assert {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()} == before
    program("verify", folder, "--recompute", "all")
    done = lm.synthesize(other_vae, small, fold=6, engine=engine).write(folder, dtype="bf16", overwrite=True)
    assert done["pairs"] == 360 and done["resumed"] == 0
    program("verify", folder, "--recompute", "all")


def test_a_damaged_shard_is_found(synthetic, tmp_path, program):
    folder = tmp_path / "out"
    synthetic.write(folder, dtype="f32")
    shard = folder / "pairs-00000.safetensors"
    raw = bytearray(shard.read_bytes())
    raw[-5] ^= 1
    shard.write_bytes(raw)
    assert "checksum" in program("verify", folder, code_expected=1).stderr
    shutil.rmtree(folder)


def test_lensmith_error_is_one_class():
    assert issubclass(lm.LensmithError, Exception) and not issubclass(lm.LensmithError, ValueError)
    assert lm.LensmithError.__module__ == "lensmith" and issubclass(lm.LensmithWarning, UserWarning)
    with pytest.raises(lm.LensmithError) as found:
        lm.Engine("gpu")
    again = pickle.loads(pickle.dumps(found.value))
    assert (
        type(again) is lm.LensmithError and str(again) == str(found.value) and again.kind == "InvalidArgument"
    )
