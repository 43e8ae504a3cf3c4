"""The model behind tools/plan_scale.py: parts on cores, bytes through networks and an object store, machines that are lost.

A discrete-event simulation. Every core makes one part after the other. The driver dispatches it; the process starts and reads
all seeds against their checksum; it opens the folder, lists what is there and reads a manifest; then it makes shards, each of
which is written while the next one is made. What is shared (a machine's network or disk, the store's bytes and requests, the
driver, the lock of a folder on disk) serves in the order of asking, and a transfer ends with the slowest that it goes through.
A machine that is lost takes its shards in the making along; its parts go to whoever is free, and keep finished shards. At the
end one process checks every shard and writes the manifest.
"""

import heapq
import itertools
import random
from dataclasses import dataclass, field

#: Rules of the engine: src/data/folder.rs, store/object.rs, place.rs. Bytes of a piece that is read and of one that is
#: uploaded; names of a page of a list; manifests that are read at once.
READ, UPLOAD, PAGE, AT_ONCE = 16 << 20, 32 << 20, 1000, 32
MOST_SHARDS = 100_000
SHARD_BYTES = 256 << 20
MANIFEST_SECONDS, MANIFEST_FACTOR = 2.0, 50
#: The plan's sizes: d and latent numbers of an embedding, bytes of a number.
DIM, LATENT, NUMBER = 4096, 16, 2
#: About as many groups of shards are simulated; a part has at least so many, or one for each of its shards.
STEPS, STEPS_OF_A_PART = 100_000, 64
#: A run that loses more machines is given up.
MOST_LOSSES = 2_000


def seen(unit="", digits=3):
    """How a figure is shown."""

    def show(number):
        for factor, prefix in ((1e9, "G"), (1e6, "M"), (1e3, "k"), (1, ""), (1e-3, "m"), (1e-6, "µ")):
            if number >= factor:
                return f"{number / factor:.{digits}g} {prefix}{unit}"
        return f"{number:g} {unit}"

    return show


def known(help, default=None, unit=""):
    meta = {"help": help, "show": seen(unit)}
    return field(metadata=meta) if default is None else field(default=default, metadata=meta)


@dataclass(frozen=True)
class Rates:
    """What was measured on one machine; of one core where nothing else is said."""

    latents: float = known("pairs a second of a core, latents (fold 1000)", unit=" pairs/s")
    embeddings: float = known("pairs a second of a core, embeddings (fold 1000, d = 4096, F16), written", unit=" pairs/s")
    decoded: float = known("pairs a second of a core, embeddings into memory", unit=" pairs/s")
    disk: float = known("bytes a second of the disk, written", unit="B/s")
    sync: float = known("seconds to sync and rename a small file on the disk", unit="s")
    checksum: float = known("bytes a second of a core, seeds against their checksum", unit="B/s")
    start: float = known("seconds of a process until it reads seeds", unit="s")
    listed_latents: float = known("bytes of a shard in the manifest, latents", unit="B")
    listed_embeddings: float = known("bytes of a shard in the manifest, embeddings", unit="B")
    open_manifest: float = known("seconds to read a manifest of 40 shards, in memory", unit="s")
    merge_shard: float = known("seconds a shard to merge, its header in memory", unit="s")
    dispatch: float = known("seconds of Ray's driver for a task", unit="s")


@dataclass(frozen=True)
class Cluster:
    """What there is; assumed."""

    machines: int = known("machines", 100)
    cores: int = known("cores of a machine", 16)
    nic: float = known("bytes a second of a machine's network", 3.1e9)
    store: bool = known("where seeds and shards lie: in an object store, or on the disk of each machine (none)", True)
    store_rate: float = known("bytes a second of the store", 1e11)
    connection: float = known("bytes a second of a connection to the store", 9e7)
    connections: int = known("pieces that a process reads or uploads at once: the engine's rule", 3)
    latency: float = known("seconds of a request", 0.03)
    puts: float = known("writing requests that the store takes a second, for one folder", 3500.0)
    gets: float = known("reading requests that the store takes a second, for one folder", 5500.0)
    losses: float = known("machines lost, for an hour of one", 0.01)
    replace: float = known("seconds until another machine takes the place of one that was lost", 120.0)
    random: int = known("seed of the losses", 0)
    headers: int = known("1: merging asks for the header of every shard; the engine lists objects", 0)
    all_manifests: int = known("1: opening, a part reads every manifest, and keeps others out; the engine reads one", 0)
    own_seeds: int = known("1: parts start from a recipe in the store and read their own seeds; 0: all, for their checksum", 1)
    piece: int = known("bytes of a piece that is read: the engine's rule", READ)
    part_piece: int = known("bytes of a piece that is uploaded: the engine's rule", UPLOAD)

    def words(self):
        """In a sentence."""
        return (
            f"machines of {self.cores} cores with a network of {self.nic / 1e9:g} GB/s; an object store of "
            f"{self.store_rate / 1e9:g} GB/s, {self.connection / 1e6:g} MB/s a connection and {self.connections} connections a "
            f"process, {self.latency * 1e3:g} ms, "
            f"{self.puts:g} writing and {self.gets:g} reading requests a second; of {1 / self.losses:g} machines one is lost in an "
            f"hour, and replaced after {self.replace:g} s"
        )


@dataclass(frozen=True)
class Work:
    """A run, cut into shards and parts."""

    output: str
    pairs: int
    seeds: int
    dim: int
    row: int
    shard_rows: int
    shards: int
    parts: int
    bytes: int

    @classmethod
    def of(cls, output, pairs, seeds, shard_rows, parts, cluster, dim=DIM):
        """By the engine's rule for shards, and with a part for every core, or as many as there are shards. Blocks of a
        recipe are of the size of shards."""
        row = 8 * LATENT + 16 if output == "latents" else 2 * dim * NUMBER
        usual = max(1 << (SHARD_BYTES // row - 1).bit_length(), 1 << (-(-pairs // MOST_SHARDS) - 1).bit_length())
        rows = shard_rows or usual
        shards = -(-pairs // rows)
        parts = min(shards, parts or cluster.machines * cluster.cores)
        written = 0 if output == "recipe" else pairs * row
        return cls(output, pairs, seeds, dim, row, rows, 0 if output == "recipe" else shards, parts, written)

    @property
    def blocks(self):
        """Shards, written or not."""
        return -(-self.pairs // self.shard_rows)

    @property
    def seed_bytes(self):
        """Bytes of the seeds' file."""
        return self.seeds * 2 * self.dim * NUMBER

    def limits(self):
        """Rules of the engine that this run is beyond."""
        if self.shards <= MOST_SHARDS:
            return []
        need = -(-self.pairs // MOST_SHARDS)
        return [f"more than {MOST_SHARDS:,} shards: refused without --shard-rows {need:,} or more"]


class Pipe:
    """Something shared that serves in order: so much a second."""

    def __init__(self, rate):
        self.rate, self.free, self.busy = rate, 0.0, 0.0

    def take(self, now, amount):
        """When `amount`, asked for now, is through."""
        took = amount / self.rate
        self.busy += took
        self.free = max(self.free, now) + took
        return self.free


class Part:
    """A stretch of shards, in groups that are made in one step, and how many of these are finished."""

    def __init__(self, work, index):
        first, end = (i * work.blocks // work.parts for i in (index, index + 1))
        groups = min(end - first, max(STEPS_OF_A_PART, STEPS // work.parts))
        cuts = [first + i * (end - first) // groups for i in range(groups + 1)]
        pairs = [min(cut * work.shard_rows, work.pairs) for cut in cuts]
        #: Shards and pairs of each group.
        self.groups = [(cuts[i + 1] - cuts[i], pairs[i + 1] - pairs[i]) for i in range(groups)]
        self.done = 0
        #: Whether its manifest is there, and whether shards of it are in the making.
        self.begun = self.making = False

    def shards(self, groups):
        """Shards in some of its groups."""
        return sum(shards for shards, _ in self.groups[groups])


class Core:
    """A core of a machine, and the part that it makes."""

    def __init__(self, machine):
        self.machine, self.part, self.life = machine, None, None


class Simulation:
    """One run. The life of a core is a generator that says until when it is busy; a heap holds what happens next."""

    def __init__(self, work, cluster, rates):
        self.work, self.cluster, self.rates = work, cluster, rates
        self.pace = {"latents": rates.latents, "embeddings": rates.embeddings, "recipe": rates.decoded}[work.output]
        self.listed = rates.listed_latents if work.output == "latents" else rates.listed_embeddings
        self.driver, self.opening = Pipe(1 / rates.dispatch), Pipe(1.0)
        #: Parts that have written a first manifest.
        self.begun = 0
        # What a machine's bytes go through: its network, or its own disk.
        self.links = [Pipe(cluster.nic if cluster.store else rates.disk) for _ in range(cluster.machines)]
        self.store, self.puts, self.gets = Pipe(cluster.store_rate), Pipe(cluster.puts), Pipe(cluster.gets)
        self.waiting = [Part(work, index) for index in reversed(range(work.parts))]
        #: Cores at work, by machine, and how many are idle. Dictionaries, whose order is the same in every run.
        self.cores = [{} for _ in range(cluster.machines)]
        self.idle = [0] * cluster.machines
        self.events, self.order = [], itertools.count()
        self.made = self.read = self.requests = self.failures = self.lost = 0
        self.core_seconds, self.end = 0.0, 0.0

    def run(self):
        """Makes all parts; gives the figures."""
        chance = random.Random(self.cluster.random)
        if self.cluster.losses:
            for machine in range(self.cluster.machines):
                self.loss_to_come(machine, 0.0, chance)
        # A core of each machine in turn, as schedulers spread tasks.
        for _ in range(self.cluster.cores):
            for machine in range(self.cluster.machines):
                self.start(machine, 0.0)
        while self.made < self.work.pairs or any(self.cores):
            now, _, event = heapq.heappop(self.events)
            event(now)
        return self.figures()

    def at(self, time, event):
        heapq.heappush(self.events, (time, next(self.order), event))

    def start(self, machine, now):
        """Puts a core to work, if there is a part for it."""
        if not self.waiting:
            self.idle[machine] += 1
            return
        core = Core(machine)
        core.life = self.life(core)
        next(core.life)
        self.cores[machine][core] = None
        self.go_on(core, now)

    def go_on(self, core, now):
        if core not in self.cores[core.machine]:
            return  # Lost with its machine.
        try:
            until = core.life.send(now)
        except StopIteration:
            del self.cores[core.machine][core]
            self.idle[core.machine] += 1
            self.end = now
        else:
            self.at(until, lambda time: self.go_on(core, time))

    def loss_to_come(self, machine, now, chance):
        self.at(now + chance.expovariate(self.cluster.losses / 3600), lambda time: self.lose(machine, time, chance))

    def lose(self, machine, now, chance):
        """Takes a machine away, and puts another in its place after a while."""
        self.failures += 1
        if self.failures > MOST_LOSSES:
            raise RuntimeError(f"the run does not end: {MOST_LOSSES:,} machines are lost before it is done")
        for core in self.cores[machine]:
            part = core.part
            self.lost += part.shards(slice(part.done, part.done + 1)) * part.making
            part.making = False
            self.waiting.append(part)
        self.cores[machine], self.idle[machine] = {}, 0

        def replaced(time):
            for _ in range(self.cluster.cores):
                self.start(machine, time)
            self.loss_to_come(machine, time, chance)

        self.at(now + self.cluster.replace, replaced)
        for other, idle in enumerate(self.idle):
            for _ in range(min(idle, len(self.waiting))):
                self.idle[other] -= 1
                self.start(other, now)

    def life(self, core):
        """Makes parts as long as there are any. Gives until when it is busy, and is told when it is."""
        work, rates, cluster, machine = self.work, self.rates, self.cluster, core.machine
        now = yield
        while self.waiting:
            part = core.part = self.waiting.pop()
            now = yield self.driver.take(now, 1)
            now = yield now + self.compute(rates.start)
            seeds = self.seeds()
            self.read += seeds
            checked = now + self.compute(seeds / rates.checksum)
            now = yield max(checked, self.transfer(now, machine, seeds, writing=False))
            if work.shards:
                now = yield self.open(now, machine, part)
            if kept := part.shards(slice(part.done)) * cluster.store:
                # The headers of what an attempt before this one finished, one after the other.
                now = yield self.transfer(now, machine, 0, writing=False, requests=kept) + (kept - 1) * cluster.latency
            written, listed, part.making = now, now, True
            for at in range(part.done, len(part.groups)):
                shards, pairs = part.groups[at]
                # It is made while the one before it is written.
                now = yield max(now + self.compute(pairs / self.pace), written)
                self.finished(part, at)
                if work.shards:
                    written = self.write(now, machine, shards, pairs)
                    written, listed = self.list(part, at, listed, written, now, machine)
            now = yield max(now, written)
            if work.shards:
                # The recipe, and the manifest at the end.
                now = yield self.transfer(now, machine, part.shards(slice(None)) * self.listed, requests=2, files=2)
            self.finished(part, len(part.groups))

    def seeds(self):
        """Bytes of seeds that a part reads."""
        own = self.cluster.own_seeds and self.cluster.store
        return self.work.seed_bytes // (self.work.parts if own else 1)

    def open(self, now, machine, part):
        """When a part knows what lies in the folder and has written its first manifest."""
        begun, cluster = self.begun, self.cluster
        self.begun += not part.begun
        part.begun = True
        manifests = begun if cluster.all_manifests else min(begun, 1)
        if not cluster.store:
            # A lock keeps the others out meanwhile.
            return self.opening.take(now, manifests * self.rates.open_manifest + self.rates.sync)
        # Every page of the list is asked for by the one before it.
        requests = -(-(begun + self.made // self.work.shard_rows) // PAGE) + 1 + manifests
        asked = self.transfer(now, machine, 0, writing=False, requests=requests) + (requests - 1) * cluster.latency
        if cluster.all_manifests:
            asked = self.opening.take(now, requests * cluster.latency + manifests * self.rates.open_manifest)
        return self.transfer(asked, machine, 0, requests=1)

    def compute(self, seconds):
        self.core_seconds += seconds
        return seconds

    def finished(self, part, groups):
        self.made += sum(pairs for _, pairs in part.groups[part.done : groups])
        part.done = groups

    def write(self, now, machine, shards, pairs):
        """When shards are written."""
        size = pairs * self.work.row
        # An upload is begun, sent in pieces and ended.
        requests = shards * 2 + -(-size // self.cluster.part_piece)
        return self.transfer(now, machine, size, requests=requests, files=shards)

    def list(self, part, at, listed, written, now, machine):
        """The manifests that a part writes on the way, each of all that it has finished."""
        if now - listed < MANIFEST_SECONDS or not self.cluster.store:
            return written, listed
        # Each when a shard is finished, and the last one is old enough.
        pause = max(MANIFEST_SECONDS, MANIFEST_FACTOR * self.cluster.latency)
        times = max(1, min(part.groups[at][0], int((now - listed) / pause)))
        return max(written, self.transfer(now, machine, times * part.shards(slice(at)) * self.listed, requests=times)), now

    def transfer(self, now, machine, size, writing=True, requests=None, files=1):
        """When bytes have gone to where shards lie, or have come from there."""
        cluster, link = self.cluster, self.links[machine]
        if not cluster.store:
            # Seeds lie in the machine's page cache; a file system syncs one file after the other.
            return link.take(now, size + files * self.rates.sync * link.rate) if writing else now
        requests = requests or max(1, -(-size // cluster.piece))
        self.requests += requests
        alone = cluster.latency + size / (cluster.connection * cluster.connections)
        asked = (self.puts if writing else self.gets).take(now, requests)
        return max(now + alone, asked, link.take(now, size), self.store.take(now, size))

    def figures(self):
        work, cluster, rates = self.work, self.cluster, self.rates
        merging = 0.0
        if work.shards:
            merging = work.shards * rates.merge_shard
            if cluster.store:
                # Headers, where they are asked for, and pages of a list come one after the other.
                asked = work.shards if cluster.headers else -(-(work.shards + work.parts) // PAGE)
                merging += (asked + -(-work.parts // AT_ONCE) + 1) * cluster.latency
                self.requests += asked + work.parts + 1
        links = sum(link.busy for link in self.links) / cluster.machines
        bounds = {
            "cores": self.core_seconds / (cluster.machines * cluster.cores),
            "network": links * cluster.store,
            "disk": links * (not cluster.store),
            "store": self.store.busy,
            "requests": max(self.puts.busy, self.gets.busy),
            "driver": self.driver.busy,
            "opening": self.opening.busy,
            "part": self.alone(),
            "merge": merging,
        }
        return {
            "seconds": self.end + merging,
            "manifest": work.shards * self.listed,
            "merging": merging,
            "pairs": self.made,
            "core_seconds": self.core_seconds,
            "read": self.read,
            "requests": self.requests,
            "failures": self.failures,
            "lost_shards": self.lost,
            "bounds": bounds,
            "bound_by": max(bounds, key=bounds.get),
        }

    def alone(self):
        """Seconds of a part that has everything for itself, but for its last write."""
        work, cluster, rates = self.work, self.cluster, self.rates
        pairs = sum(pairs for _, pairs in Part(work, work.parts - 1 if work.parts == 1 else 0).groups)
        seeds = self.seeds()
        read = cluster.latency + seeds / (cluster.connection * cluster.connections) if cluster.store else 0.0
        return rates.dispatch + rates.start + max(read, seeds / rates.checksum) + pairs / self.pace


def simulate(work, cluster, rates):
    """What a run takes: seconds, counts, and for each resource the seconds that it needs at least."""
    return Simulation(work, cluster, rates).run()
