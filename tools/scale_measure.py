"""What tools/plan_scale.py measures: short real runs of lensmith on this machine.

Of processor time medians count. Of times by the clock the shortest counts: what else the machine does only adds to them.
"""

import json
import os
import re
import resource
import shutil
import signal
import statistics
import struct
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import Random

import results  # beside this file
from scale_model import DIM, Cluster, Rates, Work, simulate

#: Pairs a seed, as in the plan of 10^9 pairs from 10^6 seeds.
FOLD = 1000
#: Seeds of the runs for memory: narrow, so that they are quick to make and take little room.
NARROW = 64
ROUNDS = 3


class Failed(Exception):
    """A run that went wrong, with what it said."""


class Lab:
    """A folder with seeds and VAEs, and runs in it."""

    def __init__(self, program, folder, quick):
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
        self.folder = Path(tempfile.mkdtemp(prefix="plan-scale-", dir=folder))
        self.program, self.quick, self.rounds = program, quick, 1 if quick else ROUNDS
        self.made = set()

    def command(self, *arguments):
        return [str(self.program), *map(str, arguments), "--device", "cpu", "--json"]

    def run(self, *arguments):
        """The object that a run prints, and the processor time of it and its children."""
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run(self.command(*arguments, "--quiet"), capture_output=True, text=True, cwd=self.folder)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        if done.returncode:
            raise Failed(f"{self.program.name} {arguments[0]} failed: {done.stderr.strip()}")
        spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        return (json.loads(done.stdout) if done.stdout.strip() else {}), spent

    def seeds(self, count, dim, name=None):
        """A file of random seed pairs in F16, and a VAE for them that need not have learnt anything."""
        name = name or f"seeds-{count}-{dim}.safetensors"
        vae = f"vae-{dim}.safetensors"
        if name not in self.made:
            write_pairs(self.folder / name, count, dim)
            self.made.add(name)
        if vae not in self.made:
            write_pairs(self.folder / "few.safetensors", 200, dim)
            self.run("train-vae", "few.safetensors", "--out", vae, "--vae-epochs", 1)
            self.made.add(vae)
        return ["synth", name, "--vae", vae, "--fold", FOLD]

    def remove(self, *names):
        for name in names:
            shutil.rmtree(self.folder / name, ignore_errors=True)

    def core_rate(self, line, start):
        """Pairs a second of a core's time, without the start; of its maker alone, by the clock; and bytes a second of the disk
        while it was at work."""
        found = []
        for _ in range(self.rounds):
            self.remove("out")
            figures, spent = self.run(*line, "--threads", 1, "--out", "out")
            speed = figures["speed"]
            found.append((figures["pairs"] / (spent - start), speed["device_pairs_per_second"], speed["disk_bytes_per_second"]))
        self.remove("out")
        cores, makers, disks = zip(*found, strict=True)
        return statistics.median(cores), max(makers), max(disks)

    def rates(self):
        """All rates, for the record."""
        few = 20 if self.quick else 300
        narrow, wide = self.seeds(20 * few, NARROW), self.seeds(few, DIM)
        start = statistics.median(self.run("inspect", "few.safetensors")[1] for _ in range(self.rounds + 2))
        latents, _, _ = self.core_rate([*narrow, "--output", "latents"], start)
        # Pairs that are scored, or handed to a loader, stay in memory: there the maker's rate counts.
        embeddings, decoded, disk = self.core_rate([*wide, "--dtype", "f16"], start)
        # The same work behind a hundred times the seeds: what is added is reading them against their checksum.
        count = few * (10 if self.quick else 100)
        large = self.seeds(count, DIM)
        part = ["--output", "latents", "--shard-rows", 1000, "--part", f"0/{count}", "--threads", 1]
        small = ["--output", "latents", "--shard-rows", 1000, "--part", f"0/{few}", "--threads", 1]
        more = statistics.median(self.once([*large, *part]) for _ in range(self.rounds))
        less = statistics.median(self.once([*wide, *small]) for _ in range(self.rounds))
        checksum = (count - few) * 4 * DIM / max(more - less, 1e-3)
        listed_latents, _ = self.merge([*narrow, "--output", "latents"])
        listed_embeddings, merge = self.merge(narrow)
        opened = self.opening(narrow)
        return {
            "rates": {
                "latents": latents,
                "embeddings": embeddings,
                "decoded": decoded,
                "disk": disk,
                "sync": self.sync(),
                "checksum": checksum,
                "start": start,
                "listed_latents": listed_latents,
                "listed_embeddings": listed_embeddings,
                "open_manifest": opened,
                "merge_shard": merge,
                "dispatch": dispatch(200 if self.quick else 2000),
            },
            "measured": {"device": processor(), "date": time.strftime("%Y-%m-%d"), "rounds": self.rounds},
        }

    def once(self, line):
        self.remove("once")
        return self.run(*line, "--out", "once")[1]

    def sync(self):
        """Seconds of a small file that is written as the engine writes it."""
        rounds, path = [], self.folder / "small"
        for _ in range(self.rounds):
            times = []
            for _ in range(20):
                start = time.perf_counter()
                results.write(path, {})
                folder = os.open(self.folder, os.O_RDONLY)
                os.fsync(folder)
                os.close(folder)
                times.append(time.perf_counter() - start)
            rounds.append(statistics.median(times))
        return min(rounds)

    def merge(self, line):
        """Bytes in the manifest and seconds for a shard, of a run of thousands of small ones."""
        parts, times = 8, []
        for i in range(parts):
            self.run(*line, "--shard-rows", FOLD, "--part", f"{i}/{parts}", "--threads", 1, "--out", "merge")
        for _ in range(self.rounds):
            (self.folder / "merge" / "manifest.json").unlink(missing_ok=True)
            start = time.perf_counter()
            merged, _ = self.run("merge-manifests", "merge")
            times.append(time.perf_counter() - start)
        size = (self.folder / "merge" / "manifest.json").stat().st_size
        self.remove("merge")
        return size / merged["shards"], min(times) / merged["shards"]

    def opening(self, line):
        """Seconds of a core that a part takes longer to open a folder for each manifest in it, of 40 shards."""
        seeds, count = int(line[1].split("-")[1]), 50 if self.quick else 1000
        parts = seeds // 40
        line = [*line, "--output", "latents", "--shard-rows", FOLD, "--threads", 1, "--out", "opening"]
        first = self.folder / "opening" / f"manifest.part-0-of-{parts}.json"
        self.run(*line, "--part", f"0/{parts}")

        def again():
            # It is complete: it is opened, and nothing is made.
            return statistics.median(self.run(*line, "--part", f"0/{parts}")[1] for _ in range(self.rounds))

        before = again()
        for i in range(count):
            shutil.copy(first, first.with_name(f"manifest.part-{i + 1}-of-{parts + count}.json"))
        after = again()
        self.remove("opening")
        return max(after - before, 1e-3) / count

    def validate(self, rates):
        """Runs of one process a core, the fastest of several by the clock, and what the model says of them."""
        processes = os.cpu_count()
        shape = Cluster(machines=1, cores=processes, store=False, losses=0.0)
        runs, others = [], []
        for output, seeds, dim, parts, more in [
            ("latents", 200 if self.quick else 20_000, NARROW, 4, ["--output", "latents"]),
            ("latents", 200 if self.quick else 20_000, NARROW, 40, ["--output", "latents"]),
            ("embeddings", 20 if self.quick else 300, DIM, 4, ["--dtype", "f16"]),
            ("embeddings", 20 if self.quick else 300, DIM, 18, ["--dtype", "f16"]),
        ]:
            pairs = seeds * FOLD
            rows = -(-pairs // (2 * parts))
            line = [*self.seeds(seeds, dim), *more, "--shard-rows", rows, "--threads", 1, "--out", "out"]
            times = []
            for _ in range(2 * self.rounds):
                self.remove("out")
                start, busy = time.perf_counter(), busy_seconds()
                own = resource.getrusage(resource.RUSAGE_CHILDREN)
                with ThreadPoolExecutor(processes) as pool:
                    list(pool.map(lambda i: self.run(*line, "--part", f"{i}/{parts}"), range(parts)))  # noqa: B023
                self.run("merge-manifests", "out")
                times.append(time.perf_counter() - start)
                ours = resource.getrusage(resource.RUSAGE_CHILDREN)
                taken = busy_seconds() - busy - (ours.ru_utime + ours.ru_stime - own.ru_utime - own.ru_stime)
                others.append(max(0.0, taken) / (times[-1] * processes))
            self.remove("out")
            work = Work.of(output, pairs, seeds, rows, parts, shape, dim=dim)
            # No driver of Ray is in it.
            found = simulate(work, shape, Rates(**{**vars(rates), "dispatch": 1e-9}))
            clock = {"measured": min(times), "slowest": max(times), "simulated": found["seconds"]}
            runs.append({"what": output, "pairs": pairs, "parts": parts} | clock)
        taken = statistics.median(others)
        return {"validated": {"date": time.strftime("%Y-%m-%d"), "processes": processes, "others": taken, "runs": runs}}

    def memory(self, pairs, csv):
        """Memory over a run of latents; then the run once more, killed in the middle and resumed. Equal checksums."""
        seeds, threads = max(1, pairs // FOLD), os.cpu_count()
        pairs = seeds * FOLD
        free, needed = shutil.disk_usage(self.folder).free, 150 * pairs + (2 << 30)
        if free < needed:
            raise Failed(f"{self.folder}: expected {needed >> 30} GiB free for {pairs:,} pairs, found {free >> 30}")
        line = [*self.seeds(seeds, NARROW), "--output", "latents", "--threads", threads, "--progress-every", 0.2]
        if self.quick:
            line += ["--shard-rows", 4096]
        samples, seconds, _ = self.sampled([*line, "--out", "whole"])
        if csv is not None:
            rows = [f"{s['seconds']:.2f},{s['pairs']},{s['rss_mib']:.1f},{s['own_mib']:.1f},{s['peak_mib']:.1f}\n" for s in samples]
            csv.write_text("seconds,pairs,rss_mib,own_mib,peak_mib\n" + "".join(rows))
        whole = (self.folder / "whole" / "manifest.json").read_bytes()
        self.remove("whole")
        _, after, before = self.sampled([*line, "--out", "killed"], kill_at=pairs // 2)
        _, _, summary = self.sampled([*line, "--out", "killed"])
        # It has the checksum of every tensor of every shard.
        if (self.folder / "killed" / "manifest.json").read_bytes() != whole:
            raise Failed("the run that was killed and resumed has another manifest than the one that was left alone")
        verified, _ = self.run("verify", "killed")
        self.remove("killed")
        if not 0 < summary["resumed"] < pairs:
            raise Failed(f"expected a kill in the middle, found {summary['resumed']} of {pairs} pairs kept")
        return {
            "memory": {
                "date": time.strftime("%Y-%m-%d"), "pairs": pairs, "seeds": seeds, "dim": NARROW, "threads": threads,
                "seconds": seconds, "bytes": summary["bytes"], "shards": summary["shards"],
                "peak_mib": max(s["peak_mib"] for s in samples), "curve": curve(samples, pairs),
                "resumed": {"killed_after": after, "kept": summary["resumed"]}, "verified": verified,
            }
        }  # fmt: skip

    def sampled(self, line, kill_at=None):
        """Samples of a run's memory, its seconds, and what it printed; killed once so many pairs are made."""
        start = time.perf_counter()
        process = subprocess.Popen(self.command(*line), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=self.folder)
        made, said = [0], []

        def listen():
            for text in process.stderr:
                said.append(text)
                if '"progress"' in text:
                    made[0] = json.loads(text)["pairs"]

        listener = threading.Thread(target=listen, daemon=True)
        listener.start()
        samples = []
        while process.poll() is None:
            if (sample := memory_of(process.pid)) is not None:
                samples.append({"seconds": time.perf_counter() - start, "pairs": made[0]} | sample)
            if kill_at is not None and made[0] >= kill_at:
                process.send_signal(signal.SIGKILL)
                break
            time.sleep(0.05)
        out = process.communicate()[0] if kill_at is None else (process.wait(), "")[1]
        listener.join()
        seconds = time.perf_counter() - start
        if kill_at is None and process.returncode:
            raise Failed(f"synth failed: {''.join(said).strip()}")
        if kill_at is not None and process.returncode != -signal.SIGKILL:
            raise Failed("the run ended before it could be killed: take more pairs")
        return samples, seconds, json.loads(out) if out else {}


def write_pairs(path, count, dim):
    """Random pairs in F16 as a safetensors file, block by block: a stretch of noise at offsets that differ."""
    random = Random(0)
    noise = b"".join(struct.pack("<e", random.gauss(0, 1)) for _ in range(1 << 16))
    size = count * dim * 2
    tensor = {"dtype": "F16", "shape": [count, dim]}
    header = {name: tensor | {"data_offsets": [i * size, (i + 1) * size]} for i, name in enumerate(("chosen", "rejected"))}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for _ in header:
            left = size
            while left:
                at = 2 * random.randrange(len(noise) // 4)
                piece = noise[at : at + min(left, len(noise) - at)]
                left -= file.write(piece)


def memory_of(pid):
    """Resident memory, that of no mapped file, and the most so far, in MiB; None once the process has ended."""
    try:
        text = Path(f"/proc/{pid}/status").read_text()
        found = {key: int(kib) / 1024 for key, kib in re.findall(r"^(\w+):\s+(\d+) kB$", text, re.MULTILINE)}
        return {"rss_mib": found["VmRSS"], "own_mib": found["RssAnon"] + found["RssShmem"], "peak_mib": found["VmHWM"]}
    except (OSError, KeyError):
        return None


def curve(samples, pairs):
    """About seven samples over the run, from a tenth to its end."""
    return [min(samples, key=lambda s: abs(s["pairs"] - pairs * share)) for share in (0.02, 0.1, 0.25, 0.5, 0.75, 0.9, 0.98)]


def busy_seconds():
    """Processor time of everything on this machine."""
    fields = [int(word) for word in Path("/proc/stat").read_text().splitlines()[0].split()[1:]]
    # Without idle and waiting.
    return (sum(fields[:3]) + sum(fields[5:8])) / os.sysconf("SC_CLK_TCK")


def processor():
    """What the processor is called, and how many there are."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        text = ""
    name = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return f"{name[1] if name else 'unknown processor'}, {os.cpu_count()} cores"


def dispatch(tasks):
    """Seconds of Ray's driver for a task that does nothing."""
    os.environ |= {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}
    try:
        import ray
    except ImportError:
        raise Failed("measuring the driver's time for a task needs Ray: run it with target/python/bin/python") from None
    ray.init("local", num_cpus=os.cpu_count(), include_dashboard=False, object_store_memory=80 << 20, log_to_driver=False,
             logging_level="error")  # fmt: skip
    try:
        nothing = ray.remote(num_cpus=1)(lambda: None)
        ray.get([nothing.remote() for _ in range(20)])
        times = []
        for _ in range(5):
            start = time.perf_counter()
            for task in [nothing.remote() for _ in range(tasks // 5)]:
                ray.get(task)
            times.append((time.perf_counter() - start) / (tasks // 5))
        return min(times)
    finally:
        ray.shutdown()


if __name__ == "__main__":
    sys.exit("run tools/plan_scale.py")
