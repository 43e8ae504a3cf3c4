#!/bin/bash
# Submits the parts, and what follows when all of them have succeeded. SEEDS, VAE, OUT, FOLD and SHARD_ROWS go along.
set -euo pipefail
cd "$(dirname "$0")"
parts=$(sbatch --parsable synth.sbatch)
sbatch --dependency="afterok:$parts" --kill-on-invalid-dep=yes merge.sbatch
