"""The stages of tools/gpu_check: what each runs, in which processes, and for how long."""
import csv
import json
import os
import re
import shutil
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from processes import Done, run

ROOT = Path(__file__).resolve().parent.parent
# Seconds of each stage, the most valuable first, in case the machine is taken away early.
SECONDS = {
    "device": 20,
    "probes": 30,
    "kernels": 90,
    "rates": 90,
    "instructions": 40,
    "memcheck": 90,
    "racecheck": 90,
    "ncu": 90,
    # Only where --stages names them.
    "initcheck": 60,
    "synccheck": 60,
}
USUAL = ["device", "probes", "kernels", "rates", "instructions", "memcheck", "racecheck", "ncu"]
SANITIZER = ["memcheck", "racecheck", "initcheck", "synccheck"]
# Test program and filters of its tests.
PROBES = [("single", ["probes", "floor", "adam", "perturb"])]
KERNELS = [
    ("large", ["cuda_"]),
    ("operations", ["cuda_"]),
    ("parity", ["cuda::"]),
    ("cuda", ["posteriors_of_both_sides"]),
]
# The tests of the machine for PTX that run their snippets on the GPU: the same definitions hold on both.
INSTRUCTIONS = [
    (
        "instructions",
        ["arithmetic", "carries_bits", "comparisons", "conversions", "shuffles", "votes", "loads_", "stores_of", "hints_"]
        + ["addresses_", "moves_", "copies_of", "products_of", "of_one_dimension"],
    )
]
# Under the sanitizer a program is some fifty times slower: every kernel once, and the training steps.
SANITIZED = [("parity", ["cuda::"]), ("operations", ["cuda_in_bf16_gives", "cuda_gives_the_bits"])]
# The machine for PTX takes seconds where a GPU takes milliseconds.
SMALL_PROBES = [("single", ["probes::tensor", "floor::products"])]
SMALL_KERNELS = [("large", ["cuda_decodes"]), ("parity", ["cuda::encodes", "cuda::scores"])]
SMALL_INSTRUCTIONS = [("instructions", ["comparisons_to_registers"])]
SMALL_SANITIZED = [("parity", ["cuda::encodes"])]
HOT = ["encode_bf16_bf16", "decode_bf16_bf16", "score_bf16_bf16", "score_latents_bf16"]
# From compute capability 9.0 on these run other kernels than on older GPUs, whose rates are measured beside them.
RENEWED = ["encode_bf16_bf16", "score_bf16_bf16"]
# A stage's status is the first of these that any of its steps has.
WORST = ["crashed", "timed out", "failed", "not run", "skipped", "passed"]


def tool(name):
    """A program of the CUDA toolkit: in CUDA_HOME, which then is the only place beside PATH, or where it is usual."""
    home = os.environ.get("CUDA_HOME")
    places = [Path(home) / "bin" / name] if home else []
    in_path = shutil.which(name)
    places += [Path(in_path)] if in_path else []
    if not home:
        places += [Path("/usr/local/cuda/bin") / name, *sorted(Path("/opt/nvidia").glob(f"nsight-compute/*/{name}"))]
    return next((place for place in places if place.is_file()), None)


def absent(name):
    """The step of a tool that this machine lacks."""
    return {"what": name, "status": "not run", "seconds": 0, "reason": f"no {name} here"}


class Stages:
    """Runs stages on the programs of a folder; each gives a record for the report."""

    def __init__(self, programs, small=False, jobs=1, limits=None, keep=None):
        self.programs, self.small, self.jobs = Path(programs), small, jobs
        self.limits = SECONDS | (limits or {})
        # A folder for ncu's reports.
        self.keep = keep
        # Rates by name, metrics of ncu by kernel, and what the device is.
        self.measured, self.metrics, self.found = {}, {}, {}

    def run(self, stage):
        """Runs a stage. No GPU is a `not run` of the stage `device` with the exit code 3 in its only step."""
        self.stage, start = stage, time.monotonic()
        self.deadline = start + self.limits[stage]
        try:
            steps = self.sanitize() if stage in SANITIZER else getattr(self, stage)()
        except Exception:
            # An error of this script fails the stage, as an error of a program does.
            said = traceback.format_exc().splitlines()[-12:]
            steps = [{"what": "tools/gpu_stages.py", "status": "failed", "seconds": 0, "said": said}]
        statuses = {step["status"] for step in steps} or {"failed"}
        status = min(statuses, key=WORST.index)
        record = {"stage": stage, "status": status, "seconds": round(time.monotonic() - start, 1)}
        reasons = [step["reason"] for step in steps if step["status"] == status and "reason" in step]
        return record | ({"reason": reasons[0]} if reasons else {}) | {"steps": steps}

    # Steps -------------------------------------------------------------------------------------------------------

    def environment(self, more=None):
        # CARGO would tell a benchmark that cargo runs it.
        own = {name: value for name, value in os.environ.items() if name != "CARGO"}
        own |= {"LENSMITH_TEST_GPU": "0", "CARGO_MANIFEST_DIR": str(ROOT), "LENSMITH_DEVICE": "cpu", "PTX_TEST_GPU": "0"}
        own |= {"LENSMITH_CHECK_STAGE": self.stage} | ({"LENSMITH_TEST_SMALL": "1"} if self.small else {})
        return own | (more or {})

    def process(self, program, arguments, wrapper=(), share=0.5, more=None):
        """A program of the folder, or what runs it, for a share of the stage's time and never past its end."""
        left = self.deadline - time.monotonic()
        if left <= 0:
            return Done("not run", None, "", "the time of the stage was used up before", 0.0)
        command = [*wrapper, self.programs / program, *arguments] if program else [*wrapper, *arguments]
        return run(command, min(left, share * self.limits[self.stage]), self.environment(more), ROOT)

    def step(self, what, done):
        """The record of a process."""
        record = {"what": what, "status": done.status, "seconds": round(done.seconds, 1)}
        if done.status == "not run":
            record["reason"] = done.err
        elif done.status != "passed":
            record["said"] = done.last_lines()
        return record

    def tests(self, programs, wrapper=()):
        """Every test of some programs in a process of its own: after a CUDA fault a process can do nothing more on the GPU."""
        named, steps = [], []
        for program, filters in programs:
            # `--list` opens no device.
            done = self.process(program, [*filters, "--list", "--format", "terse"])
            names = re.findall(r"^(.*): test$", done.out, re.MULTILINE)
            if done.status != "passed" or not names:
                # A filter that matches no test is a mistake.
                failed = done if done.status != "passed" else Done("failed", 0, done.out, "no test of this name", 0.0)
                steps.append(self.step(f"{program}: {' '.join(filters)}", failed))
            named += [(program, name) for name in names]

        def one(test):
            program, name = test
            done = self.process(program, [name, "--exact", "--test-threads=1"], wrapper)
            if done.status == "passed" and "test result: ok. 1 passed" not in done.out:
                done.status, done.err = "failed", done.err + "\nthe test did not run"
            return self.step(f"{program}: {name}", done)

        return steps + self.at_once(one, named)

    def at_once(self, work, items):
        with ThreadPoolExecutor(self.jobs) as pool:
            return list(pool.map(work, items))

    def gpu(self, arguments, wrapper=(), share=0.5, more=None):
        return self.process("gpu", [*arguments, *(["--small"] if self.small else [])], wrapper, share, more)

    def objects(self, done):
        """The JSON objects that a program printed, one a line."""
        try:
            return [json.loads(line) for line in done.out.splitlines() if line.startswith("{")]
        except ValueError:
            return []

    def named(self):
        """What can be measured: name, kernel and file."""
        done = self.process("gpu", ["--list"])
        return done, self.objects(done)

    # Stages ------------------------------------------------------------------------------------------------------

    def device(self):
        done = self.gpu(["--device"], share=1)
        found = self.objects(done)
        if done.code == 3:
            return [{"what": "no GPU", "status": "not run", "seconds": 0, "reason": done.err.strip(), "code": 3}]
        if done.status == "passed" and not found:
            done.status, done.err = "failed", "it did not say what the device is"
        if found:
            self.found = found[0] | self.settings()
        return [self.step("opens, takes the kernels", done)]

    def settings(self):
        """Clocks, power and the like, where nvidia-smi tells them."""
        names = ["driver_version", "clocks.max.sm", "clocks.max.mem", "power.limit", "temperature.gpu"]
        query = ["nvidia-smi", f"--query-gpu={','.join(names)}", "--format=csv,noheader"]
        done = run(query, 5) if shutil.which("nvidia-smi") else None
        if done is None or done.status != "passed":
            return {}
        values = [value.strip() for value in done.out.splitlines()[0].split(",")] if done.out.strip() else []
        return {"settings": dict(zip(names, values))}

    def probes(self):
        return self.tests(SMALL_PROBES if self.small else PROBES)

    def kernels(self):
        return self.tests(SMALL_KERNELS if self.small else KERNELS)

    def rates(self):
        done, named = self.named()
        if not named:
            return [self.step("list of kernels", done)]
        steps = []
        wanted = [(one["name"], one["name"], None) for one in named]
        if self.found.get("capability", [0])[0] >= 9:
            wanted += [(f"{name} (sm80)", name, {"LENSMITH_CUDA_PATH": "sm80"}) for name in RENEWED]
        for what, name, more in wanted:
            done = self.gpu(["--kernel", name], more=more)
            found = self.objects(done)
            if done.status == "passed" and not (found and found[0]["per_second"] > 0):
                done.status, done.err = "failed", "it gave no rate"
            if done.status == "passed":
                self.measured[what] = found[0] | {"name": what}
            steps.append(self.step(what, done))
        return steps

    def instructions(self):
        return self.tests(SMALL_INSTRUCTIONS if self.small else INSTRUCTIONS)

    def sanitize(self):
        program = tool("compute-sanitizer")
        if program is None:
            return [absent("compute-sanitizer")]
        wrapper = [program, "--tool", self.stage, "--error-exitcode", "9", "--launch-timeout", "60"]
        done, named = self.named()
        if not named:
            return [self.step("list of kernels", done)]
        kernels = [one["name"] for one in named if one["kernel"]]
        if self.small:
            kernels = kernels[:2]

        def one(name):
            arguments = ["--kernel", name, "--once", "--small"]
            return self.step(name, self.process("gpu", arguments, wrapper))

        return self.at_once(one, kernels) + self.tests(SMALL_SANITIZED if self.small else SANITIZED, wrapper)

    def ncu(self):
        program = tool("ncu")
        if program is None:
            return [absent("ncu")]
        if self.keep is None:
            return [absent("room for ncu's reports")]
        steps = []
        for kernel in HOT[:2] if self.small else HOT:
            report = Path(self.keep) / f"{kernel}.ncu-rep"
            profile = ["--clock-control", "none", "--set", "full", "--launch-count", "1", "--force-overwrite"]
            operation, types = kernel.split("_bf16", 1)
            symbol = f"regex:^{operation}(_tma|_wgmma)?_bf16{types}$"
            wrapper = [program, *profile, "--kernel-name", symbol, "--export", report]
            done = self.gpu(["--kernel", kernel, "--once"], wrapper)
            if done.status == "passed":
                done = self.process(None, ["--import", report, "--page", "details", "--csv"], [program])
                self.metrics[kernel] = metrics_of(done.out)
                if done.status == "passed" and not self.metrics[kernel]:
                    done.status, done.err = "failed", done.err + "\nno metric was read"
            steps.append(self.step(kernel, done))
        return steps


def metrics_of(text):
    """Metrics of ncu's page of details: `section: metric` to value and unit."""
    lines = text.splitlines()
    first = next((i for i, line in enumerate(lines) if line.startswith('"ID"')), len(lines))
    out = {}
    for row in csv.DictReader(lines[first:]):
        if row.get("Metric Name"):
            value = f"{row.get('Metric Value')} {row.get('Metric Unit') or ''}".strip()
            out[f"{row.get('Section Name')}: {row['Metric Name']}"] = value
    return out
