"""lensmith's side of tools/bench_peers.py: runs `lensmith bench` or, on a GPU, benches/gpu.rs, and reads figures."""
import json
import shutil
import subprocess
import sys
from pathlib import Path

import gpu_package
from peer_record import OPERATIONS
from programs import built

ROOT = Path(__file__).resolve().parent.parent
RELEASE = ROOT / "target" / "release" / "lensmith"
# On a GPU these operations are measured without copies to the host, by benches/gpu.rs on 2^18 rows of d = 4096.
KERNELS = {
    "decode": "decode_{}_bf16",
    "encode": "encode_{}_bf16",
    "score": "score_{}_bf16",
    "decode-score": "score_latents_{}",
    "folded": "score_latents_{}",
}
RESIDENT = (4096, 1 << 18)
FLOORS = ["floor_read", "floor_write", "floor_copy", "floor_mma_bf16", "memset", "memcpy"]


def program(name):
    """A program of this checkout, or of those packed for a machine without cargo; None if there is neither."""
    if name == "lensmith" and RELEASE.exists():
        return RELEASE
    folder = gpu_package.unpacked()
    if folder:
        return folder / name
    if name == "gpu" and shutil.which("cargo"):
        return Path(built(ROOT, "bench", "--bench", "gpu")["gpu"])
    return None


class Lensmith:
    def __init__(self, options):
        self.options = options

    def on_gpu(self, name):
        return self.options.device != "cpu" and name in KERNELS

    def output(self, command):
        done = subprocess.run([str(word) for word in command], capture_output=True, text=True)
        if done.returncode != 0:
            print(done.stderr, file=sys.stderr)
            sys.exit(1)
        return done.stdout

    def report(self, operation, kind, *more):
        """The report of `lensmith bench` on an operation."""
        o = self.options
        return json.loads(
            self.output([
                program("lensmith"), "bench", "--only", operation, "--json", "--device", o.device,
                "--threads", o.threads, "--precision", kind.lower(), "--dim", o.dim, "--rows", o.rows, *more,
            ])  # fmt: skip
        )

    def entry(self, report, name):
        """The entry of an operation in a report."""
        _, operation, what = OPERATIONS[name]
        found = [e for e in report["entries"] if e["operation"] == operation and e["what"].startswith(what)]
        if not found:
            print(f"lensmith bench has no entry for {name}: {[e['what'] for e in report['entries']]}", file=sys.stderr)
            sys.exit(1)
        return found[0]

    def measured(self, name, kind, *more, limits=True):
        """Rate, share of the limit that bounds it, and the limits; without `limits`, the rate alone."""
        if self.on_gpu(name):
            return self.kernel(name, kind, limits)
        # On a GPU only kernels have shares (see `kernel`): the calls of `lensmith bench` end with a copy to the host.
        quick = [] if limits and self.options.device == "cpu" else ["--no-limits"]
        report = self.report(OPERATIONS[name][1], kind, *more, *quick)
        return self.entry(report, name) | {"limits": report["limits"]}

    def kernel(self, name, kind, limits):
        wanted = KERNELS[name].format(kind.lower())
        names = [word for one in [*(FLOORS if limits else []), wanted] for word in ("--kernel", one)]
        rates = [json.loads(line) for line in self.output([program("gpu"), *names]).splitlines()]
        *floors, rate = rates
        highest = {}
        for floor in floors:
            highest[floor["floor"]] = max(floor["per_second"], highest.get(floor["floor"], 0.0))
        shares = {}
        if rate["floor"] in highest:
            shares[rate["floor"]] = rate["per_second"] * rate["bytes"] / highest[rate["floor"]]
        if rate["tensor_cores"] and "flop" in highest:
            shares["flop"] = rate["per_second"] * rate["flop"] / highest["flop"]
        bound = max(shares, key=shares.get) if shares else None
        found = [{"what": f["what"], "resource": f["floor"], "per_second": f["per_second"]} for f in floors]
        share = shares.get(bound)
        return {"per_second": rate["per_second"], "share": share, "bound_by": bound, "limits": found}
