"""Memory stays where it is however many pairs are made; how fast is measured by tools/bench_python.py."""

from __future__ import annotations

import gc
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, arrays_of, environment

import lensmith as lm

pytestmark = [
    pytest.mark.filterwarnings("ignore::lensmith.LensmithWarning"),
    pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="resident memory is read from /proc"),
]
#: What the allocator may keep for itself.
SLACK = 50 << 20


def resident() -> int:
    """Bytes of this process in memory."""
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


@pytest.fixture(scope="module")
def many(engine) -> lm.SyntheticPairs:
    """10,000,000 pairs: 2.5 GB as float32."""
    seeds = lm.PairSet(*arrays_of(200), engine=engine)
    vae = lm.Vae.fit(seeds, hidden=16, latent=16, epochs=1, engine=engine)
    return lm.synthesize(vae, seeds, fold=50_000, pairing="combine", engine=engine)


def test_ten_million_pairs_stream_through_little_memory(many):
    assert len(many) == 10_000_000
    batches = many.batches(8192)
    next(batches)
    before, peak, rows, total = resident(), 0, 8192, 0.0
    for i, batch in enumerate(batches):
        assert batch.indices[0] == rows
        rows += len(batch)
        total += float(batch.chosen[0, 0])
        if i % 200 == 0:
            peak = max(peak, resident())
    assert rows == 10_000_000 and np.isfinite(total)
    grown = max(peak, resident()) - before
    assert grown < SLACK, f"{grown / 2**20:.0f} MiB more"


def test_pairs_in_any_order_take_little_memory(vae, small, engine):
    pairs = lm.synthesize(vae, small, fold=50, engine=engine)
    rng = np.random.default_rng(0)
    for _ in range(3):
        pairs.take(rng.integers(0, len(pairs), 1024))
    before = resident()
    for _ in range(300):
        pairs.take(rng.integers(0, len(pairs), 1024)).torch()
    assert resident() - before < SLACK


def test_training_on_many_synthetic_pairs_does_not_make_them(engine, vae, small):
    pairs = lm.synthesize(vae, small, fold=8000, engine=engine)
    assert len(pairs) == 480_000
    lm.RewardModel.fit(pairs, hidden=16, steps=2, engine=engine)
    before = resident()
    model = lm.RewardModel.fit(pairs, hidden=16, steps=200, engine=engine)
    # As float32 they would take 123 MB.
    assert model.steps == 200 and resident() - before < SLACK


def test_engines_and_models_are_given_back(small):
    def once() -> None:
        with lm.Engine("cpu", threads=2) as engine:
            vae = lm.Vae.fit(small, hidden=256, latent=64, epochs=1, engine=engine)
            pairs = lm.synthesize(vae, small, fold=8, engine=engine)
            pairs.take([3]), pairs[:], lm.RewardModel.fit(pairs, epochs=1, engine=engine)

    for _ in range(5):
        once()
    before, threads = resident(), len(list(Path("/proc/self/task").iterdir()))
    for _ in range(40):
        once()
    assert resident() - before < SLACK
    assert len(list(Path("/proc/self/task").iterdir())) <= threads + 2, "threads end with their engine"


def test_a_mapped_file_is_not_read_into_memory(tmp_path, engine):
    rows = np.ones((60_000, 256), np.float32)
    lm.PairSet(rows, rows, engine=engine).save(tmp_path / "pairs.safetensors")
    del rows
    pairs = lm.PairSet.open(tmp_path / "pairs.safetensors", engine=engine)
    own = int(Path("/proc/self/statm").read_text().split()[5])
    assert pairs.chosen.numpy()[59_999].sum() == pairs.rejected.torch()[59_999].sum() == 256
    assert (int(Path("/proc/self/statm").read_text().split()[5]) - own) * 4096 < 32 << 20


def test_the_benchmark_measures(tmp_path):
    out = tmp_path / "figures.json"
    command = [sys.executable, ROOT / "tools" / "bench_python.py", "--quick", "--json", out]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    figures = json.loads(out.read_text())
    assert figures["shared_memory"]["same_address"] is True
    for name in ("batches", "torch", "engine", "fit", "program"):
        assert (
            figures["rates"][name]["median"] > 0 and len(figures["rates"][name]["all"]) == figures["rounds"]
        )
    assert "pairs/s" in done.stdout
