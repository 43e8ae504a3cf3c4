#!/usr/bin/env python3
"""Measures the Python package beside the engine and the program that it is made of, in turns, and whether it copies.

    tools/bench_python.py                        a table; minutes on 2 cores
    tools/bench_python.py --json FILE            and the figures as JSON
    tools/bench_python.py --quick                seconds, to see that it works
    tools/bench_python.py --program PATH         another build of the program than the package's own

What is made or trained is the same on either side of a row. A round does every row once; rows are compared round by
round, so that what else the machine does falls on both. Shown are medians, and in brackets the lowest and the highest
of the rounds.

    engine      the engine's own stream of batches, without Python
    batches     `for batch in pairs.batches(size)`
    torch       `pairs.torch(batch_size=size, shuffle=False).loader()`: batches of tensors, in order
    shuffled    `pairs.torch(batch_size=size).loader()`: in an order of the whole set
    program     `lensmith train-reward --recipe`: pairs and epochs a second, by the time that it tells itself
    fit         `RewardModel.fit` on the same recipe, by the clock

Run it with the interpreter that has the package and PyTorch: target/python/bin/python.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

sys.dont_write_bytecode = True
ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "python"))

import numpy as np  # noqa: E402

try:
    import torch
except ImportError:
    sys.exit(
        "bench_python: PyTorch is missing: run it with target/python/bin/python (tools/setup_python makes it)"
    )
import lensmith as lm  # noqa: E402
from results import write  # noqa: E402, beside this file

#: Each row and the one that it is held against.
PEERS = {"batches": "engine", "torch": "engine", "shuffled": "engine", "fit": "program"}
PROGRAM = (
    "import sys; from lensmith import _lensmith; sys.exit(_lensmith.program(['lensmith', *sys.argv[1:]]))"
)


def parsed():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=1000)
    parser.add_argument("--fold", type=int, default=64)
    parser.add_argument("--dim", type=int, default=384)
    parser.add_argument("--batch", type=int, default=1024)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=["float32", "float16", "bfloat16"])
    parser.add_argument("--program", type=Path, help="the program lensmith; by default the package's own")
    parser.add_argument("--json", type=Path, help="file for the figures")
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    if options.quick:
        options.seeds, options.fold, options.dim, options.rounds, options.epochs = 100, 16, 64, 2, 1
    return options


class Bench:
    def __init__(self, options, folder):
        self.options, self.folder = options, folder
        self.engine = lm.Engine(options.device, threads=options.threads)
        rng = np.random.default_rng(0)
        chosen = rng.standard_normal((options.seeds, options.dim), dtype=np.float32)
        rejected = chosen - 0.3 * rng.standard_normal(chosen.shape, dtype=np.float32)
        lm.PairSet(chosen, rejected, engine=self.engine).save(folder / "seeds.safetensors")
        self.seeds = lm.PairSet.open(folder / "seeds.safetensors", engine=self.engine)
        with warnings.catch_warnings():
            # It need not learn anything.
            warnings.simplefilter("ignore", lm.LensmithWarning)
            self.vae = lm.Vae.fit(self.seeds, epochs=2, engine=self.engine)
        self.pairs = lm.synthesize(
            self.vae, self.seeds, options.fold, dtype=options.dtype, engine=self.engine
        )
        self.pairs.write(folder / "recipe", output="recipe")
        # Makes what is kept between batches.
        self.pairs.take([0]), self.pairs[0]
        self.touched = 0

    def made(self, batches):
        """Seconds for all batches, each of which is looked at."""
        start = time.perf_counter()
        rows = 0
        for chosen, rejected in batches:
            rows += len(chosen)
            self.touched += int(chosen[-1, -1] == rejected[-1, -1])
        assert rows == len(self.pairs), f"{rows} of {len(self.pairs)} pairs"
        return rows / (time.perf_counter() - start)

    def engine_rate(self):
        return len(self.pairs) / self.pairs._core.time_stream(self.options.batch)

    def batches_rate(self):
        return self.made(batch.torch() for batch in self.pairs.batches(self.options.batch))

    def torch_rate(self):
        return self.made(self.pairs.torch(batch_size=self.options.batch, shuffle=False).loader())

    def shuffled_rate(self):
        return self.made(self.pairs.torch(batch_size=self.options.batch).loader())

    def program_rate(self):
        recipe, out = self.folder / "recipe" / "recipe.json", self.folder / "reward.safetensors"
        command = [self.options.program] if self.options.program else [sys.executable, "-c", PROGRAM]
        flags = [
            "--epochs",
            self.options.epochs,
            "--patience",
            0,
            "--device",
            self.options.device,
            "--threads",
            self.options.threads,
        ]
        flags += ["--allow-outside", "--overwrite", "--out", out, "--json", "--quiet"]
        command = [*command, "train-reward", "--recipe", recipe, *flags]
        environment = {**os.environ, "PYTHONPATH": str(ROOT / "python")}
        done = subprocess.run(list(map(str, command)), env=environment, capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"bench_python: lensmith train-reward failed:\n{done.stderr}")
        return self.options.epochs * len(self.pairs) / json.loads(done.stdout)["seconds"]

    def fit_rate(self):
        start = time.perf_counter()
        lm.RewardModel.fit(self.pairs, epochs=self.options.epochs, patience=None, engine=self.engine)
        return self.options.epochs * len(self.pairs) / (time.perf_counter() - start)

    def shared_memory(self):
        """Whether arrays have one address on their way in and out."""
        rows = np.zeros((4, self.options.dim), np.float32)
        tensor = torch.zeros(4, self.options.dim, dtype=torch.bfloat16)
        batch = next(self.pairs.batches(4))
        found = {
            "numpy_in_and_out": lm.PairSet(rows, rows, engine=self.engine).chosen.numpy().ctypes.data
            == rows.ctypes.data,
            "numpy_to_torch": lm.Embeddings(rows).torch().data_ptr() == rows.ctypes.data,
            "torch_in_and_out": lm.PairSet(tensor, tensor, engine=self.engine).chosen.torch().data_ptr()
            == tensor.data_ptr(),
            "batch_to_torch_twice": batch.chosen.torch().data_ptr() == batch.torch()[0].data_ptr(),
        }
        return {"same_address": all(found.values()), **found}


def figure(rates):
    return {"median": statistics.median(rates), "low": min(rates), "high": max(rates), "all": rates}


def shown(value):
    return f"{value / 1e6:.2f} M" if value >= 1e6 else f"{value / 1e3:.1f} k"


def main():
    options = parsed()
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(options, Path(folder))
        rows = {
            name: getattr(bench, f"{name}_rate")
            for name in ("engine", "batches", "torch", "shuffled", "program", "fit")
        }
        for measure in rows.values():
            measure()
        rates = {name: [] for name in rows}
        for number in range(options.rounds):
            # Every other round the other way round: no row always follows the same one.
            for name in list(rows)[:: 1 if number % 2 == 0 else -1]:
                rates[name].append(rows[name]())
        memory = bench.shared_memory()
        device = {"name": bench.engine.device, "detail": bench.engine.detail, "threads": bench.engine.threads}
        pairs = len(bench.pairs)
    figures = {
        "version": lm.__version__,
        "device": device,
        "pairs": pairs,
        "rounds": options.rounds,
        **{name: getattr(options, name) for name in ("seeds", "fold", "dim", "batch", "epochs", "dtype")},
        "rates": {name: figure(of) for name, of in rates.items()},
        "ratios": {
            name: figure([a / b for a, b in zip(rates[name], rates[peer], strict=True)])
            for name, peer in PEERS.items()
        },
        "shared_memory": memory,
    }
    print(f"{pairs} pairs of {options.seeds} seeds, d = {options.dim}, {options.dtype}, batches of {options.batch}; "
          f"{device['name']} ({device['detail']}), {device['threads']} threads; {options.rounds} rounds")  # fmt: skip
    print(f"{'':10} {'pairs/s':>9}{'':22}of its peer")
    for name, of in figures["rates"].items():
        line = f"{name:10} {shown(of['median']):>9} ({shown(of['low'])} to {shown(of['high'])})".ljust(42)
        if name in PEERS:
            ratio = figures["ratios"][name]
            line += f"{ratio['median']:.2f} ({ratio['low']:.2f} to {ratio['high']:.2f}) of {PEERS[name]}"
        print(line.rstrip())
    print(f"memory shared: {', '.join(f'{name} {same}' for name, same in memory.items())}")
    if options.json:
        write(options.json, figures)


if __name__ == "__main__":
    main()
