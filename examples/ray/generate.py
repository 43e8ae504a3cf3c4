"""Makes the pairs of a recipe on a Ray cluster. Killed at any moment, the same command makes what is missing.

ray exec examples/ray/cluster.yaml \
    '~/lensmith/bin/python /shared/generate.py /shared/recipe /shared/synth --parts 40 --cpus 8'
"""

import argparse
import json

import ray

from lensmith.ray import generate

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("recipe", help="of lensmith synth --output recipe; its seeds and its VAE are on every node")
parser.add_argument("out", help="folder that all nodes share")
parser.add_argument("--parts", type=int, default=40, help="tasks (40)")
parser.add_argument("--cpus", type=float, default=1, help="of a task (1)")
parser.add_argument("--shard-rows", type=int, help="pairs a shard; by default shards of about 256 MiB")
options = parser.parse_args()

ray.init()  # the cluster that this machine belongs to, or RAY_ADDRESS
made = generate(options.recipe, options.out, options.parts, {"CPU": options.cpus}, shard_rows=options.shard_rows)
print(json.dumps(made))
