"""A Ray cluster of several nodes on this machine, and what happens to nodes and workers."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from conftest import environment

#: A node that is gone is noticed after seconds.
HEALTH = {"health_check_period_ms": 1000, "health_check_timeout_ms": 5000, "health_check_failure_threshold": 3}
#: Bytes of shared memory of a node: enough for these tests.
STORE = 80 << 20


def settings() -> dict[str, str]:
    """What Ray's processes need: the package under test, no word to anybody, no token in the home folder."""
    return environment(
        RAY_AUTH_MODE="disabled",
        RAY_USAGE_STATS_ENABLED="0",
        RAY_DATA_DISABLE_PROGRESS_BARS="1",
        RAY_memory_monitor_refresh_ms="0",
        # Not behind everything else that the machine does.
        RAY_worker_niceness="0",
    )


@contextmanager
def cluster(nodes: int, cpus: int = 1) -> Iterator[Any]:
    """A cluster of so many nodes, to which this process is connected from the first one."""
    import ray
    from ray.cluster_utils import Cluster

    head = node_settings(cpus, include_dashboard=False, _system_config=HEALTH)
    made = patiently(lambda: Cluster(initialize_head=True, head_node_args=head))
    try:
        for _ in range(nodes - 1):
            add_node(made, cpus)
        ray.init(address=made.address, log_to_driver=False, logging_level="error")
        made.wait_for_nodes()
        yield made
    finally:
        ray.shutdown()
        made.shutdown()


def patiently(start: Callable[[], Any]) -> Any:
    """Starts a node, more than once if need be: Ray gives one up that takes half a minute, as on a busy machine."""
    for _ in range(3):
        try:
            return start()
        except Exception as error:
            if "timed out during startup" not in str(error):
                raise
    return start()


def add_node(made: Any, cpus: int = 1, **more: Any) -> Any:
    """Adds a node."""
    return patiently(lambda: made.add_node(**node_settings(cpus, **more)))


def node_settings(cpus: int = 1, **more: Any) -> dict[str, Any]:
    """Arguments of a node."""
    return {"num_cpus": cpus, "object_store_memory": STORE} | more


@contextmanager
def another(made: Any, **settings: Any) -> Iterator[Any]:
    """A node that is there for a while."""
    node = add_node(made, **settings)
    try:
        yield node
    finally:
        if node in made.worker_nodes:
            made.remove_node(node, allow_graceful=False)


@contextmanager
def node_without(folder: Path, address: str) -> Iterator[None]:
    """A node that sees nothing in `folder`: a file system of its own is mounted there, in a namespace of its own."""
    start = [sys.executable, "-m", "ray.scripts.scripts", "start", f"--address={address}", "--block"]
    start += ["--num-cpus=1", f"--object-store-memory={STORE}", "--disable-usage-stats"]
    script = 'mount -t tmpfs none "$0" && exec "$@"'
    command = ["unshare", "--mount", "--map-root-user", "sh", "-c", script, str(folder), *start]
    known = {node["NodeID"] for node in alive()}
    before = len(known)
    # On a busy machine Ray gives up a node that takes long to start.
    for _ in range(3):
        node = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True)
        wait_for(lambda: alive_nodes() > before or node.poll() is not None, 120, "the node to come up")  # noqa: B023
        if node.poll() is None:
            break
    else:
        raise AssertionError((node.stdout.read() if node.stdout else b"").decode())
    try:
        # Others would take all tasks before this node is ready for the first.
        run_on(next(found["NodeID"] for found in alive() if found["NodeID"] not in known))
        yield
    finally:
        os.killpg(node.pid, signal.SIGKILL)
        node.wait()
        wait_for(lambda: alive_nodes() == before, 60, "the node to be given up")


def crash(made: Any, node: Any) -> None:
    """Ends a node as a machine ends that loses its power: all of it at once."""
    for raylet in node.all_processes["raylet"]:
        for pid in [raylet.process.pid, *(pid for pid in processes() if parent(pid) == raylet.process.pid)]:
            os.kill(pid, signal.SIGKILL)
    made.remove_node(node, allow_graceful=False)


def has_namespaces() -> bool:
    """Whether this system lets processes have file systems of their own."""
    found = shutil.which("unshare")
    return found is not None and not subprocess.run([found, "--mount", "--map-root-user", "true"]).returncode


def alive() -> list[dict[str, Any]]:
    """Nodes that Ray believes in."""
    import ray

    return [node for node in ray.nodes() if node["Alive"]]


def alive_nodes() -> int:
    """Their number."""
    return len(alive())


def run_on(node: str) -> None:
    """Runs a task on the node of this number, which starts a worker there."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    there = ray.remote(lambda: os.getpid()).options(num_cpus=1, scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False))
    ray.get(there.remote())


def wait_for(done: Callable[[], Any], seconds: float, what: str) -> Any:
    """What `done` gives once it is true."""
    until = time.monotonic() + seconds
    while not (found := done()):
        assert time.monotonic() < until, f"waited {seconds} s for {what}"
        time.sleep(0.005)
    return found


def processes() -> list[int]:
    """All processes of this machine."""
    return [int(process.name) for process in Path("/proc").iterdir() if process.name.isdigit()]


def parent(process: int) -> int | None:
    """The process that started another; None for one that has ended."""
    try:
        status = Path(f"/proc/{process}/status").read_text()
    except OSError:
        return None
    return int(status.split("PPid:")[1].split()[0])


def writers(folder: Path) -> dict[int, Path]:
    """Processes that are writing a shard in a folder, with its temporary file."""
    found = {}
    for process in processes():
        try:
            for handle in Path(f"/proc/{process}/fd").iterdir():
                path = handle.readlink()
                if path.parent == folder and path.name.endswith(".safetensors.tmp"):
                    found[process] = path
        except OSError:
            continue  # It has ended, or closed the file.
    return found


def programs(folder: Path) -> dict[int, int]:
    """Processes whose command line names a folder, each with the one that started it."""
    found = {}
    for process in processes():
        try:
            words = Path(f"/proc/{process}/cmdline").read_bytes().split(b"\0")
        except OSError:
            continue  # It has ended.
        started_by = parent(process)
        if str(folder).encode() in words and started_by is not None:
            found[process] = started_by
    return found


def node_of(made: Any, worker: int) -> Any:
    """The node whose raylet started a worker; None for one of no node here."""
    raylet = parent(worker)
    for node in made.list_all_nodes():
        if any(started.process.pid == raylet for started in node.all_processes["raylet"]):
            return node
    return None
