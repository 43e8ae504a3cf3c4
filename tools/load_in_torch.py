#!/usr/bin/env python3
"""Loads lensmith checkpoints into PyTorch and compares them with what lensmith itself computes.

    pip install torch numpy safetensors
    cargo build --release
    python tools/load_in_torch.py

Trains a small VAE and a reward model with the release binary, loads both with load_state_dict(strict=True), and
compares PyTorch's rewards with `lensmith score`. Then the way back: PyTorch saves both state dicts, and lensmith scores
with the file. Exits with 1 if anything differs.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import save_file
from safetensors.torch import load_file
from safetensors.torch import save_file as save_state

from make_golden import Vae, reward_model

BINARY = Path(__file__).resolve().parent.parent / "target" / "release" / "lensmith"
PAIRS, DIM = 60, 24


def lensmith(*arguments):
    done = subprocess.run([BINARY, *map(str, arguments), "--json"], check=True, capture_output=True, text=True)
    return json.loads(done.stdout)


def main():
    rng = np.random.default_rng(1)
    worst = 0.0
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        chosen, rejected = (rng.normal(m, 2.0, (PAIRS, DIM)).astype(np.float32) for m in (0.3, -0.2))
        save_file({"chosen": chosen, "rejected": rejected}, folder / "pairs.safetensors")
        save_file({"embeddings": chosen}, folder / "rows.safetensors")
        lensmith("train-vae", folder / "pairs.safetensors", "--vae-epochs", 3, "--out", folder / "vae.safetensors")
        lensmith("train-reward", folder / "pairs.safetensors", "--epochs", 3, "--out", folder / "r.safetensors")

        vae = Vae(DIM, 64, 16)
        vae.load_state_dict(load_file(folder / "vae.safetensors"), strict=True)
        reward = reward_model(DIM, 256)
        reward.load_state_dict(load_file(folder / "r.safetensors"), strict=True)
        save_state({k: v.contiguous() for k, v in reward.state_dict().items()}, folder / "back.safetensors")
        save_state({k: v.contiguous() for k, v in vae.state_dict().items()}, folder / "vae_back.safetensors")

        with torch.no_grad():
            want = reward(torch.from_numpy(chosen)).reshape(-1).numpy()
            mu, _ = vae.encode(torch.from_numpy(chosen))
        for model in ("r.safetensors", "back.safetensors"):
            scored = lensmith("score", folder / "rows.safetensors", "--model", folder / model)
            got = np.array(scored["reward"], np.float32)
            worst = max(worst, float(np.abs(got - want).max() / np.abs(want).max()))

        common = ("--fold", 2, "--output", "latents", "--source", "mean", "--out")
        lensmith("synth", folder / "pairs.safetensors", "--vae", folder / "vae_back.safetensors", *common, folder / "z")
        z = load_file(folder / "z" / "pairs-00000.safetensors")["chosen_z"][:PAIRS]
        worst = max(worst, float((z - mu).abs().max() / mu.abs().max()))
    print(f"worst difference between PyTorch and lensmith: {worst:.1e} of the largest value")
    return 0 if worst < 1e-5 else 1


if __name__ == "__main__":
    sys.exit(main())
