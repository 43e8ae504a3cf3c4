"""What the tests share: an engine, small pairs and models of them, real pairs, and the program."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import hypothesis
import numpy as np
import pytest

import lensmith as lm
from lensmith import _lensmith

ROOT = Path(__file__).resolve().parents[2]
#: 2,312 human preferences, d = 384, F16, with groups.
HH = ROOT / "examples" / "hh-harmless" / "pairs.safetensors"
DIM = 32

# `pytest tests/test_fuzz.py --hypothesis-profile long` looks for ten minutes.
hypothesis.settings.register_profile("long", max_examples=4000, deadline=None, print_blob=True)

Run = Callable[..., "subprocess.CompletedProcess[str]"]


def arrays_of(n: int, dim: int = DIM, seed: int = 0, noise: float = 0.3) -> tuple[np.ndarray, np.ndarray]:
    """Chosen and rejected embeddings that a model can tell apart a little."""
    rng = np.random.default_rng(seed)
    chosen = rng.standard_normal((n, dim), dtype=np.float32)
    rejected = chosen - noise * rng.standard_normal((n, dim), dtype=np.float32)
    rejected[:, 0] -= 0.5
    return chosen, rejected


def environment(**more: str) -> dict[str, str]:
    """The environment of a process that imports the package under test."""
    path = os.pathsep.join([str(ROOT / "python"), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**os.environ, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1", **more}


@pytest.fixture(scope="session")
def engine() -> Iterator[lm.Engine]:
    with lm.Engine("cpu", threads=2) as opened:
        yield opened


@pytest.fixture(scope="session")
def arrays() -> tuple[np.ndarray, np.ndarray]:
    return arrays_of(60)


@pytest.fixture(scope="session")
def small(arrays, engine) -> lm.PairSet:
    """60 pairs of 20 prompts, d = 32, float32."""
    return lm.PairSet(*arrays, group=np.arange(60) // 3, engine=engine)


@pytest.fixture(scope="session")
def vae(small, engine) -> lm.Vae:
    return lm.Vae.fit(small, hidden=16, latent=16, epochs=3, batch_size=16, lr=1e-3, engine=engine)


@pytest.fixture(scope="session")
def synthetic(vae, small, engine) -> lm.SyntheticPairs:
    """300 pairs."""
    return lm.synthesize(vae, small, fold=5, engine=engine)


@pytest.fixture(scope="session")
def reward(small, engine) -> lm.RewardModel:
    return lm.RewardModel.fit(small, hidden=16, epochs=3, batch_size=16, lr=1e-3, engine=engine)


@pytest.fixture(scope="session")
def hh(engine) -> lm.PairSet:
    return lm.PairSet.open(HH, engine=engine)


@pytest.fixture(scope="session")
def run_python(tmp_path_factory) -> Run:
    """Runs Python code in a process of its own, and wants it to end well."""
    folder = tmp_path_factory.mktemp("processes")

    def run(
        code: str, *arguments: object, code_expected: int | None = 0, **more: str
    ) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [sys.executable, "-c", code, *map(str, arguments)],
            env=environment(**more),
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=120,
        )
        if code_expected is not None:
            assert done.returncode == code_expected, (
                f"exit code {done.returncode}\n{done.stdout}{done.stderr}"
            )
        return done

    return run


#: The program ``lensmith``, as Python code.
# The compiled module alone, without numpy and what else the package imports: that takes longer than most commands.
PROGRAM = f"""
import sys
from importlib.util import module_from_spec, spec_from_file_location
spec = spec_from_file_location("_lensmith", {_lensmith.__file__!r})
module = module_from_spec(spec)
spec.loader.exec_module(module)
sys.exit(module.program(["lensmith", *sys.argv[1:]]))
"""


@pytest.fixture(scope="session")
def program(run_python) -> Run:
    """Runs the program ``lensmith`` with a command line."""

    def run(*arguments: object, code_expected: int | None = 0) -> subprocess.CompletedProcess[str]:
        return run_python(PROGRAM, *arguments, "--device", "cpu", "--quiet", code_expected=code_expected)

    return run
