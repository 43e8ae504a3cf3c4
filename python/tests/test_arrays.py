"""Arrays come in and go out without a copy, live as long as anything reads them, and are not written to by accident."""

from __future__ import annotations

import array
import copy
import ctypes
import gc
import pickle
import weakref

import numpy as np
import pytest
from conftest import DIM, arrays_of

import lensmith as lm

torch = pytest.importorskip("torch")

pytestmark = pytest.mark.filterwarnings("ignore::lensmith.LensmithWarning")  # trained for a moment only

KINDS = ["float32", "float16", "bfloat16"]
ROWS = 6


def address(rows) -> int:
    """Where the first value lies."""
    if isinstance(rows, np.ndarray):
        return int(rows.__array_interface__["data"][0])
    return rows.data_ptr()


def numpy_rows(kind: str = "float32", n: int = ROWS) -> np.ndarray:
    return arrays_of(n)[0].astype(kind)


def torch_rows(kind: str = "float32", n: int = ROWS):
    return torch.from_numpy(arrays_of(n)[0]).to(getattr(torch, kind))


def fresh(kind: str = "float32", n: int = ROWS) -> lm.Embeddings:
    """Rows in memory that the package made itself."""
    rows = torch_rows(kind, n)
    return lm.Embeddings.from_bytes(rows.contiguous().view(torch.uint8).numpy().tobytes(), DIM, kind)


def mapped(path, kind: str = "float32") -> lm.Embeddings:
    lm.PairSet(torch_rows(kind), torch_rows(kind)).save(path)
    return lm.PairSet.open(path).chosen


class Producer:
    """A library with DLPack and nothing else, such as jax or cupy."""

    def __init__(self, rows, **fixed):
        self.rows, self.fixed = rows, fixed
        self.asked: list[dict] = []

    def __dlpack_device__(self):
        return self.rows.__dlpack_device__()

    def __dlpack__(self, *, stream=None, max_version=None, dl_device=None, copy=None):
        self.asked.append({"max_version": max_version, "copy": copy})
        return self.rows.__dlpack__(**self.fixed or {"max_version": max_version})


def capsule_name(capsule) -> bytes:
    of = ctypes.pythonapi.PyCapsule_GetName
    of.restype, of.argtypes = ctypes.c_char_p, [ctypes.py_object]
    return of(capsule)


# In and out.


@pytest.mark.parametrize("kind", ["float32", "float16"])
def test_numpy_goes_through_a_pair_set_at_its_address(kind):
    chosen, rejected = numpy_rows(kind), numpy_rows(kind) + 1
    pairs = lm.PairSet(chosen, rejected)
    assert pairs.dtype == kind and pairs.dim == DIM and len(pairs) == ROWS
    for side, rows in ((pairs.chosen, chosen), (pairs.rejected, rejected)):
        assert (side.shape, side.ndim, side.dtype, side.nbytes, len(side)) == (
            (ROWS, DIM),
            2,
            kind,
            rows.nbytes,
            ROWS,
        )
        assert address(side.numpy()) == address(rows) == address(side.torch()) == address(np.asarray(side))
        assert side.numpy().dtype == rows.dtype and np.array_equal(side.numpy(), rows)


@pytest.mark.parametrize("kind", KINDS)
def test_torch_goes_through_a_pair_set_at_its_address(kind):
    chosen, rejected = torch_rows(kind), torch_rows(kind) + 1
    pairs = lm.PairSet(chosen, rejected)
    assert pairs.dtype == kind
    for side, rows in ((pairs.chosen, chosen), (pairs.rejected, rejected)):
        back = side.torch()
        assert address(back) == address(rows) and back.dtype == rows.dtype and torch.equal(back, rows)
        assert address(torch.from_dlpack(side)) == address(rows)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("source", ["torch", "made", "mapped"])
def test_embeddings_of_embeddings_share_memory(kind, source, tmp_path):
    rows = {
        "torch": lambda: torch_rows(kind),
        "made": lambda: fresh(kind),
        "mapped": lambda: mapped(tmp_path / "pairs.safetensors", kind),
    }[source]()
    first = lm.Embeddings(rows)
    second = lm.Embeddings(first)
    # Not by .torch(), which copies rows of files.
    there = address(torch.from_dlpack(first))
    assert address(torch.from_dlpack(second)) == there
    assert address(torch.from_dlpack(lm.PairSet(second, first).rejected)) == there


def test_other_sources_are_read_without_a_copy():
    flat = array.array("f", range(4 * DIM))
    view = memoryview(flat).cast("B").cast("f", (4, DIM))
    assert address(lm.Embeddings(view).numpy()) == flat.buffer_info()[0]
    rows = numpy_rows()
    assert address(lm.Embeddings(memoryview(rows)).numpy()) == address(rows)
    assert address(lm.Embeddings(rows.view(type("Sub", (np.ndarray,), {}))).numpy()) == address(rows)
    assert address(lm.Embeddings(rows[2:5]).numpy()) == address(rows) + 2 * rows.strides[0]
    tensor = torch_rows()
    assert address(lm.Embeddings(torch.nn.Parameter(tensor, requires_grad=False)).torch()) == address(tensor)
    assert address(lm.Embeddings(tensor[1:]).torch()) == address(tensor[1:])


def test_a_single_row_or_column_may_have_any_stride():
    """Their strides mean nothing: numpy and torch call them contiguous too."""
    rows = np.ones((5, 1), np.float32)[::2]
    assert lm.Embeddings(np.ascontiguousarray(rows)).shape == (3, 1)
    assert lm.Embeddings(np.ones((8, DIM), np.float32)[3:4, :]).shape == (1, DIM)
    assert lm.Embeddings(torch.ones(8, DIM)[3:4]).shape == (1, DIM)


def test_no_rows_are_embeddings_too():
    for rows in (np.zeros((0, DIM), np.float32), torch.zeros(0, DIM)):
        none = lm.Embeddings(rows)
        assert none.shape == (0, DIM) and len(none) == 0 and none.nbytes == 0
        assert none.numpy().shape == (0, DIM) and tuple(none.torch().shape) == (0, DIM)
        assert memoryview(none).nbytes == 0 and none.tobytes() == b""
        assert pickle.loads(pickle.dumps(none)).shape == (0, DIM)


@pytest.mark.parametrize("size", [1, 7])
def test_batches_go_to_torch_and_numpy_without_a_copy(synthetic, size):
    for batch in (next(synthetic.batches(size)), synthetic[3 : 3 + size], synthetic.take(range(size))):
        chosen, rejected = batch.torch()
        assert [address(side) for side in batch.numpy()] == [address(chosen), address(rejected)]
        assert address(batch.chosen.numpy()) == address(chosen) != address(rejected)


# bfloat16, which numpy has not.


@pytest.mark.parametrize("look", [lm.Embeddings.numpy, np.asarray, np.array, lambda rows: rows[0], list])
def test_bfloat16_names_what_to_use_instead(look):
    rows = lm.Embeddings(torch_rows("bfloat16"))
    with pytest.raises(
        TypeError, match=r"no bfloat16: \.float32\(\) makes a copy as float32, \.torch\(\) a tensor"
    ):
        look(rows)


def test_bfloat16_has_no_buffer():
    with pytest.raises(BufferError, match=r"no bfloat16: \.float32\(\) .*, \.torch\(\)"):
        memoryview(lm.Embeddings(torch_rows("bfloat16")))


@pytest.mark.parametrize("kind", KINDS)
def test_float32_is_a_writable_copy(kind):
    rows = torch_rows(kind)
    made = lm.Embeddings(rows).float32()
    assert made.dtype == np.float32 and np.array_equal(made, rows.float().numpy())
    assert made.flags.writeable and made.flags.c_contiguous
    made[0, 0] = 99
    assert rows[0, 0] != 99


# DLPack.


@pytest.mark.parametrize(
    "fixed", [{"max_version": (1, 0)}, {"max_version": None}], ids=["versioned", "legacy"]
)
@pytest.mark.parametrize("library", ["numpy", "torch"])
def test_both_kinds_of_capsules_come_in(fixed, library):
    rows = numpy_rows() if library == "numpy" else torch_rows()
    producer = Producer(rows, **fixed)
    made = lm.Embeddings(producer)
    assert address(made.torch()) == address(rows)
    assert len(producer.asked) == 1 and producer.asked[0]["copy"] is not True


def test_capsules_go_out_in_the_version_that_is_asked_for():
    rows = fresh()
    assert capsule_name(rows.__dlpack__()) == b"dltensor"
    assert capsule_name(rows.__dlpack__(max_version=(0, 8))) == b"dltensor"
    for version in ((1, 0), (1, 1), (2, 0)):
        assert capsule_name(rows.__dlpack__(max_version=version)) == b"dltensor_versioned"
    assert rows.__dlpack_device__() == (1, 0)
    assert address(torch.from_dlpack(rows.__dlpack__())) == address(rows.numpy())
    assert address(np.from_dlpack(rows)) == address(rows.numpy())


def test_a_capsule_that_nobody_takes_is_given_back():
    rows = numpy_rows()
    gone = weakref.ref(rows)
    capsule = lm.Embeddings(rows).__dlpack__(max_version=(1, 0))
    del rows
    gc.collect()
    assert gone() is not None
    del capsule
    gc.collect()
    assert gone() is None


def test_dlpack_refuses_what_it_cannot_do():
    rows = fresh()
    with pytest.raises(BufferError, match="copies are not supported"):
        rows.__dlpack__(dl_device=(2, 0))
    with pytest.raises(BufferError, match="zero-copy"):
        rows.__dlpack__(copy=True)
    with pytest.raises(TypeError):
        rows.__dlpack__(max_version="1.0")
    used = Producer(numpy_rows())
    capsule = used.rows.__dlpack__()
    used.__class__ = type("Once", (Producer,), {"__dlpack__": lambda self, **_: capsule})
    lm.Embeddings(used)
    with pytest.raises(ValueError, match="already been consumed"):
        lm.Embeddings(used)


# Read-only.


@pytest.mark.parametrize("source", ["input", "mapped", "slice"])
def test_inputs_and_maps_cannot_be_written_through_numpy(source, tmp_path):
    rows = numpy_rows()
    shown = {
        "input": lambda: lm.PairSet(rows, rows + 1).chosen,
        "mapped": lambda: mapped(tmp_path / "pairs.safetensors"),
        "slice": lambda: lm.PairSet(rows, rows + 1)[1:3].chosen,
    }[source]()
    for view in (
        shown.numpy(),
        np.asarray(shown),
        np.from_dlpack(shown),
        shown[1:],
        np.frombuffer(shown, np.float32),
    ):
        assert not view.flags.writeable
        with pytest.raises(ValueError, match="read-only"):
            view[0] = 1
        with pytest.raises(ValueError, match="WRITEABLE"):
            view.setflags(write=True)
    buffer = memoryview(shown)
    assert buffer.readonly
    with pytest.raises(TypeError, match="read-only"):
        buffer[0, 0] = 1.0
    with pytest.raises((BufferError, TypeError), match="read-only|read-write|writable"):
        ctypes.c_char.from_buffer(shown)


def test_what_was_made_may_be_written(synthetic):
    for made in (fresh(), synthetic[0:4].chosen, synthetic.take([2, 9]).rejected):
        view = made.numpy()
        view[0, 0] = 42
        assert made.torch()[0, 0] == 42 and made[0, 0] == 42 and memoryview(made)[0, 0] == 42
        made.torch()[0, 1] = 43
        assert view[0, 1] == 43


def test_writing_to_a_batch_does_not_reach_the_seeds(synthetic, small):
    before = small.chosen.numpy().copy()
    synthetic[0:4].chosen.numpy()[:] = 7
    synthetic[0].chosen[:] = 7
    assert np.array_equal(small.chosen.numpy(), before)
    assert np.array_equal(synthetic[0].chosen, before[0])


def test_torch_knows_no_read_only_tensors():
    """torch drops the flag: what it is given can be written through, as its documentation says."""
    rows = numpy_rows()
    tensor = lm.Embeddings(rows).torch()
    tensor[0, 0] = 123
    assert rows[0, 0] == 123


def test_read_only_rows_have_no_legacy_capsule_that_could_not_say_so():
    rows = lm.Embeddings(numpy_rows())
    with pytest.raises(BufferError):
        rows.__dlpack__()
    assert capsule_name(rows.__dlpack__(max_version=(1, 0))) == b"dltensor_versioned"


# Lifetime.


@pytest.mark.parametrize("library", ["numpy", "torch", "dlpack"])
@pytest.mark.parametrize("look", ["pairs", "embeddings", "numpy", "torch", "memoryview", "slice", "float32"])
def test_memory_lives_as_long_as_anything_reads_it(library, look):
    n = 4000
    rows = torch_rows(n=n) if library == "torch" else numpy_rows(n=n)
    expected = np.array(rows.tolist(), np.float32)
    source = Producer(rows) if library == "dlpack" else rows
    pairs = lm.PairSet(source, source)
    kept = {
        "pairs": lambda: pairs,
        "embeddings": lambda: pairs.chosen,
        "numpy": lambda: pairs.chosen.numpy(),
        "torch": lambda: pairs.chosen.torch(),
        "memoryview": lambda: memoryview(pairs.chosen),
        "slice": lambda: pairs[100:].rejected,
        "float32": lambda: pairs.chosen.float32(),
    }[look]()
    gone = weakref.ref(rows)
    del rows, source, pairs
    gc.collect()
    # Memory that was freed would be handed out again.
    waste = [np.full((n, DIM), 7, np.float32) for _ in range(8)]
    found = kept.chosen.numpy() if look == "pairs" else np.asarray(kept)
    assert np.array_equal(found, expected[100:] if look == "slice" else expected)
    del kept, found, waste
    assert gone() is None, "nothing keeps the source once nothing reads it"


def test_pairs_live_as_long_as_what_is_made_of_them(engine):
    def made() -> lm.SyntheticPairs:
        pairs = lm.PairSet(*arrays_of(20), engine=engine)
        vae = lm.Vae.fit(pairs, hidden=16, latent=16, epochs=1, engine=engine)
        return lm.synthesize(vae, pairs, fold=3, engine=engine)

    synthetic = made()
    gc.collect()
    assert np.array_equal(synthetic[0:20].chosen.numpy(), arrays_of(20)[0])


def test_nothing_is_left_of_many_round_trips():
    rows = numpy_rows(n=2000)
    gone = weakref.ref(rows)
    for _ in range(200):
        once = lm.Embeddings(rows)
        np.asarray(once), once.torch(), memoryview(once), lm.Embeddings(once.torch()), np.from_dlpack(once)
    del rows, once
    gc.collect()
    assert gone() is None


# The protocols of numpy and of Python.


def test_asarray_copies_as_numpy_wants_it():
    rows = numpy_rows()
    shown = lm.Embeddings(rows)
    for kind in (None, np.float32):
        for make in (
            lambda kind=kind: np.asarray(shown, dtype=kind),
            lambda kind=kind: np.asarray(shown, dtype=kind, copy=False),
            lambda kind=kind: np.array(shown, dtype=kind, copy=None),
        ):
            assert np.shares_memory(make(), rows)
        for made in (np.array(shown, dtype=kind), np.asarray(shown, dtype=kind, copy=True)):
            assert not np.shares_memory(made, rows) and made.flags.writeable and np.array_equal(made, rows)
    for kind in (np.float64, np.float16):
        assert np.array_equal(np.asarray(shown, dtype=kind), rows.astype(kind))
        with pytest.raises(ValueError, match="Unable to avoid copy"):
            np.asarray(shown, dtype=kind, copy=False)
    assert np.add(shown, 1).dtype == np.float32 and np.stack([shown, shown]).shape == (2, ROWS, DIM)


@pytest.mark.parametrize(("kind", "code", "size"), [("float32", "f", 4), ("float16", "e", 2)])
def test_memoryview_says_what_it_is(kind, code, size):
    rows = numpy_rows(kind)
    view = memoryview(lm.Embeddings(rows))
    assert (view.format, view.itemsize, view.ndim, view.shape) == (code, size, 2, (ROWS, DIM))
    assert view.strides == (DIM * size, size) and view.c_contiguous and view.nbytes == rows.nbytes
    assert view.tobytes() == rows.tobytes() == lm.Embeddings(rows).tobytes() == bytes(lm.Embeddings(rows))
    assert np.array_equal(np.frombuffer(view.cast("B"), kind), rows.ravel())
    view.release()


def test_rows_are_selected_as_numpy_selects_them():
    rows = numpy_rows()
    shown = lm.Embeddings(rows)
    mask = np.arange(ROWS) % 2 == 0
    for key in (0, -1, slice(1, 4), slice(None, None, -2), (2, 3), [0, 2], mask, ..., None, (slice(None), 5)):
        assert np.array_equal(shown[key], rows[key])
    assert np.shares_memory(shown[1:3], rows) and not np.shares_memory(shown[[1, 2]], rows)
    assert [row.shape for row in shown] == [(DIM,)] * ROWS
    for key in (ROWS, -ROWS - 1):
        with pytest.raises(IndexError):
            shown[key]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("copied", [lambda x: pickle.loads(pickle.dumps(x)), copy.copy, copy.deepcopy])
def test_embeddings_pickle_to_the_same_bits(kind, copied):
    rows = lm.Embeddings(torch_rows(kind))
    back = copied(rows)
    assert (back.shape, back.dtype) == (rows.shape, rows.dtype)
    assert back.tobytes() == rows.tobytes() and address(back.torch()) != address(rows.torch())
    assert lm.Embeddings.from_bytes(rows.tobytes(), DIM, kind).tobytes() == rows.tobytes()


# Pair sets.


@pytest.mark.parametrize("kind", KINDS)
def test_slices_of_pairs_share_memory(kind):
    chosen, rejected = torch_rows(kind, 20), torch_rows(kind, 20) + 1
    pairs = lm.PairSet(chosen, rejected, group=np.arange(20))
    part = pairs[5:12]
    assert len(part) == 7 and part.group.tolist() == list(range(5, 12))
    assert address(part.chosen.torch()) == address(chosen[5:]) and address(part.rejected.torch()) == address(
        rejected[5:]
    )
    deep = part[2:][1:3]
    assert deep.group.tolist() == [8, 9] and address(deep.chosen.torch()) == address(chosen[8:])
    for key, rows in ((slice(None), range(20)), (slice(-3, None), range(17, 20)), (slice(0, 99), range(20))):
        assert pairs[key].group.tolist() == list(rows) and address(pairs[key].chosen.torch()) == address(
            chosen[rows[0] :]
        )


@pytest.mark.parametrize("kind", KINDS)
def test_other_rows_of_pairs_are_copies(kind):
    chosen, rejected = torch_rows(kind, 20), torch_rows(kind, 20) + 1
    pairs = lm.PairSet(chosen, rejected, group=np.arange(20) + 100)
    mask = np.arange(20) % 3 == 1
    for key in (
        [3, 0, 3, -1],
        np.array([7], np.uint8),
        torch.tensor([2, 4]),
        slice(15, 2, -4),
        mask,
        mask.tolist(),
        range(3),
    ):
        rows = np.arange(20)[key if isinstance(key, slice) else np.asarray(key)]
        picked = pairs[key]
        assert len(picked) == len(rows) and (picked.dim, picked.dtype) == (DIM, kind)
        assert torch.equal(picked.chosen.torch(), chosen[rows.copy()])
        assert torch.equal(picked.rejected.torch(), rejected[rows.copy()])
        assert picked.group.tolist() == (rows + 100).tolist()
    assert pairs[[4, 5, 6]][[2, 0]].group.tolist() == [106, 104]
    assert pairs[[4, 5, 6]][1:].group.tolist() == [105, 106]


@pytest.mark.parametrize("group", [None, np.arange(ROWS)[::-1]])
@pytest.mark.parametrize("kind", KINDS)
def test_pairs_pickle_and_save_to_the_same_bits(kind, group, tmp_path, engine):
    pairs = lm.PairSet(torch_rows(kind), torch_rows(kind) + 1, group=group, engine=engine)
    path = tmp_path / "pairs.safetensors"
    pairs.save(path)
    for back in (
        pickle.loads(pickle.dumps(pairs)),
        copy.deepcopy(pairs),
        lm.PairSet.open(path, engine=engine),
    ):
        assert len(back) == ROWS and back.dtype == kind
        assert (
            back.chosen.tobytes() == pairs.chosen.tobytes()
            and back.rejected.tobytes() == pairs.rejected.tobytes()
        )
        assert (back.group is None) == (group is None) and (
            group is None or back.group.tolist() == group.tolist()
        )


def test_a_group_of_any_whole_numbers_is_kept():
    chosen, rejected = arrays_of(4)
    for group in ([5, -1, 5, 2**62], (1, 2, 3, 4), range(4), np.arange(4, dtype=np.uint16), torch.arange(4)):
        pairs = lm.PairSet(chosen, rejected, group=group)
        assert pairs.group.dtype == np.int64 and pairs.group.tolist() == [int(number) for number in group]
    assert lm.PairSet(chosen, rejected).group is None


def test_files_join_in_order(tmp_path, engine):
    parts = [lm.PairSet(*arrays_of(n, seed=n), group=np.full(n, n), engine=engine) for n in (3, 5, 2)]
    names = [tmp_path / f"{i}.safetensors" for i in range(3)]
    for part, name in zip(parts, names, strict=True):
        part.save(name)
    whole = np.concatenate([part.chosen.numpy() for part in parts])
    for opened in (
        lm.PairSet.open(*names),
        lm.PairSet.open(tmp_path),
        lm.PairSet.open(tmp_path / "*.safetensors"),
    ):
        assert (
            np.array_equal(opened.chosen.numpy(), whole)
            and opened.group.tolist() == [3] * 3 + [5] * 5 + [2] * 2
        )
        assert np.array_equal(opened[2:4].chosen.numpy(), whole[2:4])
        assert np.array_equal(opened[[9, 0]].chosen.numpy(), whole[[9, 0]])
    first = lm.PairSet.open(names[0])
    assert address(first.chosen.numpy()) == address(torch.from_dlpack(first.chosen)), (
        "one file is shown where it is mapped"
    )
    renamed = lm.PairSet.open(names[1], chosen="rejected", rejected="chosen")
    assert np.array_equal(renamed.chosen.numpy(), parts[1].rejected.numpy())


@pytest.mark.parametrize("rows", [torch.ones(DIM, 1).T, torch.ones(1, 5).T, torch.ones(3, 3)[:1, :1]], ids=str)
def test_strides_of_axes_of_one_entry_do_not_count(rows):
    assert rows.is_contiguous() and lm.Embeddings(rows).shape == tuple(rows.shape)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (torch._neg_view(torch.ones(2, DIM)), "found a negative view; .resolve_neg"),
        (torch.empty(3, DIM, device="meta"), "expected an array in host memory, found one on meta"),
        (torch.ones(3, DIM).to_sparse(), "expected a dense tensor, found torch.sparse_coo"),
    ],
    ids=["negative", "meta", "sparse"],
)
def test_tensors_whose_memory_is_not_their_values(rows, message):
    with pytest.raises(ValueError, match=f"chosen: expected .*{message}|chosen: {message}"):
        lm.PairSet(rows, rows)


def test_masks_are_not_ignored():
    rows = np.zeros((2, DIM), np.float32)
    with pytest.raises(TypeError, match="array: expected an array without a mask"):
        lm.Embeddings(np.ma.masked_array(rows, mask=rows > 0))


@pytest.mark.parametrize(("columns", "dtype"), [(2**62 + 1, "float32"), (2**63 + 1, "float16"), (0, "float32")])
def test_sizes_that_overflow(columns, dtype):
    with pytest.raises(ValueError, match="data: expected rows of"):
        lm.Embeddings.from_bytes(b"a" * 8, columns, dtype)


def test_tensors_of_files_may_be_written_to(tmp_path):
    rows = mapped(tmp_path / "pairs.safetensors")
    before = rows.numpy().copy()
    tensor = rows.torch()
    tensor[0, 0] = 1
    tensor = lm.PairSet.open(tmp_path / "pairs.safetensors")[1:3].chosen.torch()
    tensor[:] = 2
    assert (rows.numpy() == before).all()
    assert (lm.PairSet.open(tmp_path / "pairs.safetensors").chosen.numpy() == before).all()
