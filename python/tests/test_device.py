"""Arrays in the memory of a GPU: read where they lie, results that stay there, pinned memory.

The GPU is a stand-in for the driver library that runs the kernels' PTX (driver.py): the tests run in a process of their
own, started by the first one here.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import DIM, arrays_of
from driver import environment

import lensmith as lm

INSIDE = "PTX_DRIVER" in os.environ
inside = pytest.mark.skipif(not INSIDE, reason="runs in a process that has the stand-in")


@pytest.mark.skipif(INSIDE, reason="starts the others")
def test_in_a_process_with_a_stand_in_for_the_driver(tmp_path):
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__]
    done = subprocess.run(
        command, env=environment(tmp_path), cwd=Path(__file__).parents[1], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-3000:]
    assert "9 passed, 1 skipped" in done.stdout, done.stdout[-3000:]


class Interface:
    """An array that has nothing but `__cuda_array_interface__`."""

    def __init__(self, array, **changed):
        self.array = array
        self.__cuda_array_interface__ = {**array.__cuda_array_interface__, **changed}


class Dlpack:
    """An array that has nothing but DLPack."""

    def __init__(self, array):
        self.array = array

    def __dlpack__(self, **options):
        return self.array.__dlpack__(**options)

    def __dlpack_device__(self):
        return self.array.__dlpack_device__()


@pytest.fixture(scope="module")
def gpu():
    with lm.Engine("cuda") as opened:
        yield opened


@pytest.fixture(scope="module")
def cpu():
    with lm.Engine("cpu", threads=1) as opened:
        yield opened


@pytest.fixture(scope="module")
def pairs(cpu):
    return lm.PairSet(*arrays_of(40), engine=cpu)


@pytest.fixture(scope="module")
def vae(pairs, cpu):
    return lm.Vae.fit(pairs, hidden=16, epochs=2, batch_size=16, engine=cpu)


@pytest.fixture(scope="module")
def reward(pairs, cpu):
    return lm.RewardModel.fit(pairs, hidden=16, epochs=1, batch_size=16, engine=cpu)


@pytest.fixture(scope="module")
def synthetic(vae, pairs, gpu):
    return lm.synthesize(vae, pairs, fold=4, seed=1, engine=gpu)


@inside
@pytest.mark.parametrize("lend", [lambda a: a, Interface, Dlpack])
def test_arrays_are_read_where_they_lie_and_results_stay(lend, vae, reward, pairs, synthetic, gpu, cpu):
    numbers = np.arange(len(pairs))[::-1]
    x = synthetic.take(numbers, on_device=True).chosen
    assert isinstance(x, lm.DeviceArray)
    assert (x.shape, x.dtype, x.device, x.nbytes, len(x)) == ((40, DIM), "float32", "cuda:0", 40 * DIM * 4, 40)
    host = x.numpy()
    assert np.array_equal(host, np.asarray(pairs.chosen)[::-1])

    mu, logvar = vae.encode(lend(x), engine=gpu)
    want = vae.encode(host, engine=cpu)
    assert isinstance(mu, lm.DeviceArray) and mu.shape == (40, vae.latent)
    assert np.array_equal(mu.numpy(), want[0]) and np.array_equal(logvar.numpy(), want[1])
    rewards = reward.score(lend(x), engine=gpu)
    assert isinstance(rewards, lm.DeviceArray) and rewards.shape == (40,) and rewards.ndim == 1
    assert np.array_equal(rewards.numpy(), reward.score(host, engine=cpu))
    made = vae.decode(lend(mu), engine=gpu)
    assert np.array_equal(made.numpy(), vae.decode(want[0], engine=cpu))


@inside
def test_pairs_stay_on_the_device_with_the_same_bytes(vae, pairs, gpu, cpu):
    numbers = [3, 100, 0, 7, 100, 139]
    for dtype in ["float32", "float16", "bfloat16"]:
        for mode in ["plain", "residual"]:
            options = {"fold": 4, "seed": 2, "dtype": dtype, "mode": mode}
            got = lm.synthesize(vae, pairs, engine=gpu, **options).take(numbers, on_device=True)
            want = lm.synthesize(vae, pairs, engine=cpu, **options).take(numbers)
            for got_side, want_side in [(got.chosen, want.chosen), (got.rejected, want.rejected)]:
                assert got_side.dtype == dtype
                assert got_side.host().tobytes() == want_side.tobytes()
    assert got.numpy()[0].dtype == np.float32, "numpy has no bfloat16"


@inside
def test_interfaces_describe_the_memory(synthetic, vae, pairs, gpu):
    x = synthetic.take([1, 2, 3], on_device=True).chosen
    interface = x.__cuda_array_interface__
    assert interface["shape"] == (3, DIM) and interface["typestr"] == "<f4" and interface["version"] == 3
    assert interface["data"][0] % 256 == 0 and interface["data"][0] > 0
    assert x.__dlpack_device__() == (2, 0)
    capsule = type(x.__dlpack__(max_version=(1, 0))).__name__
    assert capsule == "PyCapsule"
    half = lm.synthesize(vae, pairs, dtype="bfloat16", engine=gpu).take([1], on_device=True).chosen
    assert not hasattr(half, "__cuda_array_interface__"), "there is no bfloat16"
    assert half.__dlpack_device__() == (2, 0)


@inside
def test_what_cannot_be_read_is_named(synthetic, reward, vae, gpu, cpu):
    x = synthetic.take([1, 2, 3, 4], on_device=True).chosen
    with pytest.raises(ValueError, match="the engine has no GPU"):
        reward.score(Dlpack(x), engine=cpu)
    with pytest.raises(TypeError, match="float32, float16 or bfloat16, found f8"):
        reward.score(Interface(x, typestr="<f8"), engine=gpu)
    with pytest.raises(ValueError, match="C-contiguous"):
        reward.score(Interface(x, strides=(2 * DIM * 4, 4), shape=(2, DIM)), engine=gpu)
    with pytest.raises(ValueError, match="2 dimensions"):
        reward.score(Interface(x, shape=(4 * DIM,)), engine=gpu)
    with pytest.raises(TypeError, match="without a mask"):
        reward.score(Interface(x, mask=x), engine=gpu)
    with pytest.raises(lm.LensmithError, match="columns of the embeddings"):
        reward.score(Interface(x, shape=(8, DIM // 2)), engine=gpu)
    with pytest.raises(lm.LensmithError, match="storage type of the latents"):
        vae.decode(Interface(x, shape=(4, vae.latent), typestr="<f2"), engine=gpu)
    with pytest.raises(lm.LensmithError, match="device: expected a GPU"):
        lm.synthesize(vae, lm.PairSet(*arrays_of(8), engine=cpu), engine=cpu).take([1], on_device=True)
    # Rows whose first value lies at no multiple of 16 bytes are read all the same.
    interface = x.__cuda_array_interface__
    later = Interface(x, data=(interface["data"][0] + 4, False), shape=(2, DIM))
    assert reward.score(later, engine=gpu).shape == (2,)


@inside
def test_arrays_outlive_what_made_them(vae, pairs, cpu):
    engine = lm.Engine("cuda")
    synthetic = lm.synthesize(vae, pairs, engine=engine)
    x = synthetic.take([5, 6], on_device=True).chosen
    want = x.numpy()
    engine.close()
    del synthetic, engine
    assert np.array_equal(x.numpy(), want)


@inside
def test_batches_of_torch_datasets(synthetic, monkeypatch):
    torch = pytest.importorskip("torch")
    # This torch knows no such GPU: what it would be given is looked at instead.
    monkeypatch.setattr(torch, "from_dlpack", lambda array: array)
    seen = [batch for batch in synthetic.torch(batch_size=64, seed=3, on_device=True)]
    assert sum(len(batch.chosen) for batch in seen) == len(synthetic)
    assert all(isinstance(side, lm.DeviceArray) for batch in seen for side in batch)
    monkeypatch.undo()
    host = [batch for batch in synthetic.torch(batch_size=64, seed=3)]
    for got, want in zip(seen, host, strict=True):
        assert np.array_equal(got.chosen.numpy(), want.chosen.numpy())
        assert np.array_equal(got.rejected.numpy(), want.rejected.numpy())
    with pytest.raises(ValueError, match="on_device"):
        synthetic.torch(on_device=True, pin_memory=True)


@inside
def test_pinned_batches_lie_in_registered_memory(synthetic):
    pytest.importorskip("torch")
    driver = ctypes.CDLL("libcuda.so")
    driver.ptx_driver_pinned.argtypes = [ctypes.c_int, ctypes.c_size_t, ctypes.c_size_t]

    def pinned(tensor) -> bool:
        return bool(driver.ptx_driver_pinned(0, tensor.data_ptr(), tensor.nbytes))

    plain = next(iter(synthetic.torch(batch_size=32, prefetch=0)))
    own = next(iter(synthetic.torch(batch_size=32, prefetch=0, pin_memory=True)))
    assert pinned(own.chosen) and pinned(own.rejected)
    assert not pinned(plain.chosen)
    assert np.array_equal(own.chosen.numpy(), plain.chosen.numpy())
    at, size = own.chosen.data_ptr(), own.chosen.nbytes
    del own
    assert not driver.ptx_driver_pinned(0, at, size), "the memory is given back with its registration"
