"""Stand-ins for sbatch, srun, kubectl and docker, which run what scripts, manifests and images say on this machine.

They read the files that the real ones read, give each task the variables that the real ones give, and kill one task in the
middle of its work, once, to start it again as after a preemption. `install` puts them into a folder for PATH; there they
keep `log`, a line for each end of a task.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

NAMES = ("sbatch", "srun", "kubectl", "docker")


def install(
    folder: Path, program: list[str], places: dict[str, Path], small: dict[str, str], doomed: tuple[str, int], shards: int
) -> dict[str, str]:
    """Variables of an environment in which the stand-ins come first.

    `places` are folders of this machine by the paths of the examples, `small` values of a pod's variables for a run that is
    small, `doomed` the task that is killed, by job and number, and `shards` the shards of the run.
    """
    folder.mkdir(parents=True)
    for name in NAMES:
        script(folder / name, [sys.executable, __file__, name])
    script(folder / "lensmith", program)
    of = {path: str(place) for path, place in places.items()}
    (folder / "state.json").write_text(json.dumps({"places": of, "small": small, "doomed": list(doomed), "shards": shards}))
    return {"PATH": f"{folder}{os.pathsep}{os.environ['PATH']}", "LENSMITH_STAND_IN": str(folder), "LENSMITH_DEVICE": "cpu"}


def script(path: Path, command: list[str]) -> None:
    words = " ".join(f"'{word}'" for word in command)
    path.write_text(f'#!/bin/sh\nexec {words} "$@"\n')
    path.chmod(0o755)


class StandIn:
    def __init__(self) -> None:
        self.folder = Path(os.environ["LENSMITH_STAND_IN"])
        self.state: dict[str, Any] = json.loads((self.folder / "state.json").read_text())

    def here(self, text: str) -> str:
        """A text with the paths of this machine."""
        for path, place in self.state["places"].items():
            text = re.sub(rf"(?<![\w/]){re.escape(path)}\b", place, text)
        return text

    def log(self, *words: object) -> None:
        with (self.folder / "log").open("a") as file:
            file.write(" ".join(map(str, words)) + "\n")

    def task(self, job: str, task: int, command: list[str], variables: dict[str, str], attempts: int) -> bool:
        """Runs a task, again after it was killed; whether it succeeded."""
        for attempt in range(attempts):
            with (self.folder / f"{job}-{task}.out").open("ab") as said:
                process = subprocess.Popen(
                    command, env=os.environ | variables, start_new_session=True, stdout=said, stderr=said, cwd=self.folder
                )
            if self.state["doomed"] == [job, task] and attempt == 0:
                self.kill_in_the_middle(process)
            code = process.wait()
            self.log(job, task, code)
            if code == 0:
                return True
            if code != -signal.SIGKILL:
                return False  # It failed by itself.
        return False

    def kill_in_the_middle(self, process: subprocess.Popen[bytes]) -> None:
        """Kills a task, as a node does that is lost, while it writes a shard that is not its part's first."""
        while process.poll() is None:
            # Stopped, it stays in the middle until it is killed.
            os.killpg(process.pid, signal.SIGSTOP)
            if self.shard_of(process.pid) > 0:
                os.killpg(process.pid, signal.SIGKILL)
            os.killpg(process.pid, signal.SIGCONT)
            time.sleep(0.002)

    def shard_of(self, group: int) -> int:
        """Which shard of its part a process of the group is writing, from 0; -1 for none."""
        for process in Path("/proc").iterdir():
            try:
                if not process.name.isdigit() or os.getpgid(int(process.name)) != group:
                    continue
                words = (process / "cmdline").read_bytes().decode().split("\0")
                part, parts = map(int, words[words.index("--part") + 1].split("/"))
                for handle in (process / "fd").iterdir():
                    if found := re.fullmatch(r"\.pairs-(\d+)\.safetensors\.tmp", handle.readlink().name):
                        return int(found[1]) - part * int(self.state["shards"]) // parts
            except (OSError, ValueError, IndexError):
                continue  # It has ended, or is another program.
        return -1


def sbatch(arguments: list[str]) -> int:
    """Runs a batch script: each task of its array, as many at once as there are processors. Prints the job's number."""
    stand_in = StandIn()
    file = Path(next(word for word in arguments if not word.startswith("--")))
    options = dict(directive(line) for line in file.read_text().splitlines() if line.startswith("#SBATCH "))
    asked = dict(directive(word) for word in arguments if word.startswith("--"))
    number = str(1000 + len(list(stand_in.folder.glob("job-*"))))
    if condition := asked.get("dependency"):
        kind, _, before = condition.partition(":")
        assert kind == "afterok", condition
        if (stand_in.folder / f"job-{before}").read_text() != "COMPLETED":
            return 1
    cpus = options["cpus-per-task"]
    variables = {"SLURM_JOB_ID": number, "SLURM_CPUS_PER_TASK": cpus}
    first, last = map(int, options["array"].split("-")) if "array" in options else (0, 0)
    attempts = 3 if "requeue" in options else 1

    def run(task: int) -> bool:
        of = {"SLURM_ARRAY_JOB_ID": number, "SLURM_ARRAY_TASK_ID": str(task), "SLURM_ARRAY_TASK_COUNT": str(last - first + 1)}
        array = of if "array" in options else {}
        return stand_in.task(options["job-name"], task, ["bash", str(file.absolute())], variables | array, attempts)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        good = all(list(pool.map(run, range(first, last + 1))))
    (stand_in.folder / f"job-{number}").write_text("COMPLETED" if good else "FAILED")
    # Slurm answers before the job runs; here it has run.
    print(number if "parsable" in asked else f"Submitted batch job {number}")
    return 0


def directive(text: str) -> tuple[str, str]:
    name, _, value = text.removeprefix("#SBATCH ").strip().removeprefix("--").partition("=")
    return name, value


def srun(arguments: list[str]) -> int:
    """Becomes the command."""
    first = next(i for i, word in enumerate(arguments) if not word.startswith("--"))
    command = [StandIn().here(word) for word in arguments[first:]]
    os.execvp(command[0], command)


def kubectl(arguments: list[str]) -> int:
    """`apply` runs the pods of a job, `wait` tells whether they have succeeded."""
    import yaml

    stand_in = StandIn()
    states = stand_in.folder / "kubernetes"
    states.mkdir(exist_ok=True)
    if arguments[0] == "wait":
        wanted = dict(directive(word) for word in arguments if word.startswith("--"))
        state = (states / arguments[-1].removeprefix("job/")).read_text()
        return 0 if wanted["for"] == f"condition={state}" else 1
    assert arguments[:2] == ["apply", "-f"], arguments
    for found in yaml.safe_load_all(Path(arguments[2]).read_text()):
        name = found["metadata"]["name"]
        if found["kind"] == "PersistentVolumeClaim":
            (states / f"claim-{name}").touch()
            continue
        assert (found["apiVersion"], found["kind"]) == ("batch/v1", "Job")
        good = run_job(stand_in, states, name, found["spec"])
        (states / name).write_text("complete" if good else "failed")
    return 0


def run_job(stand_in: StandIn, states: Path, name: str, spec: dict[str, Any]) -> bool:
    pod = spec["template"]["spec"]
    assert pod["restartPolicy"] == "Never", "backoffLimitPerIndex asks for it"
    (container,) = pod["containers"]
    for volume in pod["volumes"]:
        claim = volume["persistentVolumeClaim"]["claimName"]
        assert (states / f"claim-{claim}").exists(), f"no claim {claim}"
    assert {mount["name"] for mount in container["volumeMounts"]} <= {volume["name"] for volume in pod["volumes"]}
    variables = {variable["name"]: variable["value"] for variable in container.get("env", [])}
    assert all(isinstance(value, str) for value in variables.values()), "values of variables are strings"
    variables |= {name: value for name, value in stand_in.state["small"].items() if name in variables}
    indexed = spec.get("completionMode") == "Indexed"
    attempts = 1 + spec["backoffLimitPerIndex" if indexed else "backoffLimit"]
    command = [stand_in.here(word) for word in [*container["command"], *container["args"]]]

    def run(index: int) -> bool:
        own = {"JOB_COMPLETION_INDEX": str(index)} if indexed else {}
        return stand_in.task(name, index, command, variables | own, attempts)

    with ThreadPoolExecutor(min(os.cpu_count() or 1, spec.get("parallelism", 1))) as pool:
        return all(list(pool.map(run, range(spec.get("completions", 1)))))


def docker(arguments: list[str]) -> int:
    """`build` notes the entry point of the last stage, `run` starts it with the volumes' folders."""
    stand_in = StandIn()
    words = iter(arguments[1:])
    if arguments[0] == "build":
        options = {word: next(words) for word in words if word.startswith("-")}
        entry = re.findall(r'^ENTRYPOINT (\[.*\])$', Path(options["-f"]).read_text(), re.MULTILINE)[-1]
        (stand_in.folder / f"image-{options['-t']}").write_text(entry)
        return 0
    assert arguments[0] == "run"
    volumes: dict[str, str] = {}
    image = ""
    for word in words:
        if word == "--rm":
            continue
        if not word.startswith("-"):
            image = word
            break
        value = next(words)
        if word == "-v":
            outside, inside = value.split(":")
            volumes[inside] = outside
    command = json.loads((stand_in.folder / f"image-{image}").read_text())
    for word in words:
        for inside, outside in volumes.items():
            word = re.sub(rf"^{re.escape(inside)}(?=/|$)", outside, word)
        command.append(stand_in.here(word))
    os.execvp(command[0], command)


if __name__ == "__main__":
    sys.exit({"sbatch": sbatch, "srun": srun, "kubectl": kubectl, "docker": docker}[sys.argv[1]](sys.argv[2:]))
