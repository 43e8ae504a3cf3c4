"""examples/slurm, kubernetes, ray and docker, and docs/clusters.md: what is printed there runs as printed.

There is no scheduler here. Stand-ins (schedulers.py) read the same files and run the same commands, kill one task in the
middle of its work and start it again; the folder must be, byte for byte, that of one run. Images are not built: their
stages are copied and their commands run, cargo's as `cargo metadata`.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import schedulers
from conftest import PROGRAM, ROOT, arrays_of, environment

import lensmith as lm

PAGE = ROOT / "docs" / "clusters.md"
EXAMPLES = ROOT / "examples"
#: Three shards for each of forty parts, whose pairs take long for their bytes.
SEEDS, FOLD, ROWS, DIM = 100, 240, 200, 256
SHARDS = SEEDS * FOLD // ROWS
#: Which task of the examples is lost once.
LOST = 7
VERSION = tomllib.loads((ROOT / "Cargo.toml").read_text())["package"]["version"]


@pytest.fixture(scope="module")
def lab(tmp_path_factory, engine, program) -> Path:
    """A folder with what a user has, and what one run makes of it."""
    lab: Path = tmp_path_factory.mktemp("deployment")
    (lab / "program.py").write_text(PROGRAM)
    lm.PairSet(*arrays_of(SEEDS, DIM), engine=engine).save(lab / "seeds.safetensors")
    seeds = lm.PairSet.open(lab / "seeds.safetensors", engine=engine)
    lm.Vae.fit(seeds, hidden=2048, latent=16, epochs=1, engine=engine).save(lab / "vae.safetensors")
    one_run(program, lab, "whole", "--fold", FOLD, "--shard-rows", ROWS)
    return lab


def one_run(program: Any, lab: Path, out: str, *options: object) -> None:
    program("synth", lab / "seeds.safetensors", "--vae", lab / "vae.safetensors", *options, "--out", lab / out)


def assert_one_run(lab: Path, shared: Path, whole: str = "whole") -> None:
    """The folder is, byte for byte, that of one run, but for locks and manifests of parts."""

    def of(folder: Path) -> dict[str, bytes]:
        kept = [path for path in folder.iterdir() if not path.name.startswith(("manifest.part", ".")) or path.suffix == ".tmp"]
        return {path.name: path.read_bytes() for path in kept} | {"recipe.json": without_paths(folder / "recipe.json")}

    expected, found = of(lab / whole), of(shared)
    assert sorted(found) == sorted(expected)
    for name, content in expected.items():
        assert found[name] == content, name
    assert json.loads((shared / "manifest.json").read_text())["complete"] is True


def without_paths(recipe: Path) -> bytes:
    """A recipe but for the folders in which seeds and VAE lie, which are others here."""
    return re.sub(r'"[^"]*/(?=(seeds|vae)\.safetensors")', '"', recipe.read_text()).encode()


class Shared:
    """A folder that all tasks share, as the examples have it, with the stand-ins."""

    def __init__(self, lab: Path, folder: Path, path: str, doomed: tuple[str, int] = ("", 0)) -> None:
        self.folder, self.stand_in = folder / "shared", folder / "stand-in"
        self.folder.mkdir()
        for name in ("seeds.safetensors", "vae.safetensors"):
            shutil.copy(lab / name, self.folder / name)
        small = {"FOLD": str(FOLD), "SHARD_ROWS": str(ROWS)}
        program = [sys.executable, "-IS", str(lab / "program.py")]
        places = {path: self.folder}
        self.variables = environment(**schedulers.install(self.stand_in, program, places, small, doomed, SHARDS))

    def run(self, command: list[str], cwd: Path = ROOT, code: int = 0, **more: str) -> str:
        variables = self.variables | more
        done = subprocess.run(command, env=variables, cwd=cwd, capture_output=True, text=True, timeout=280)
        said = [path.read_text()[-500:] for path in self.stand_in.glob("*.out")]
        assert done.returncode == code, "\n".join([done.stdout[-1000:], done.stderr[-3000:], *said[:3]])
        return done.stdout

    def ends(self) -> list[tuple[str, int, int]]:
        """The tasks that ended: job, task, exit code."""
        lines = [line.split() for line in (self.stand_in / "log").read_text().splitlines()]
        return [(job, int(task), int(code)) for job, task, code in lines]


def assert_tasks(ends: list[tuple[str, int, int]], job: str, count: int, lost: int) -> None:
    """Every task succeeded once, and one of them was killed before."""
    assert sorted(task for name, task, code in ends if name == job and code == 0) == list(range(count))
    assert [(task, code) for name, task, code in ends if name == job and code] == [(lost, -9)]


# Slurm


def test_slurm_makes_one_run_with_a_task_that_is_killed_and_requeued(lab, tmp_path):
    shared = Shared(lab, tmp_path, "/shared", ("lensmith-synth", LOST))
    (line,) = commands("FOLD=1000")
    out = shared.run(["sh", "-ec", line.replace("FOLD=1000", f"FOLD={FOLD} SHARD_ROWS={ROWS}")])
    assert "Submitted batch job 1001" in out
    assert_tasks(shared.ends(), "lensmith-synth", 40, LOST)
    assert ("lensmith-merge", 0, 0) in shared.ends()
    assert_one_run(lab, shared.folder / "synth")


def test_slurm_merges_nothing_where_a_part_failed(lab, tmp_path):
    shared = Shared(lab, tmp_path, "/shared")
    # More parts than shards: the last ones have nothing to make, and say so.
    variables = {"FOLD": "2", "SHARD_ROWS": "100"}
    shared.run(["bash", str(EXAMPLES / "slurm" / "submit.sh")], code=1, **variables)
    assert not [end for end in shared.ends() if end[0] == "lensmith-merge"]
    assert not (shared.folder / "synth" / "manifest.json").exists()


# Kubernetes


def test_kubernetes_makes_one_run_with_a_pod_that_is_killed(lab, tmp_path):
    shared = Shared(lab, tmp_path, "/data", ("lensmith-synth", LOST))
    (line,) = commands("examples/kubernetes")
    shared.run(["sh", "-ec", line])
    assert_tasks(shared.ends(), "lensmith-synth", 40, LOST)
    assert ("lensmith-merge", 0, 0) in shared.ends()
    assert_one_run(lab, shared.folder / "synth")


def documents(name: str) -> list[dict[str, Any]]:
    yaml = pytest.importorskip("yaml")
    return list(yaml.safe_load_all((EXAMPLES / "kubernetes" / name).read_text()))


def test_manifests_agree_with_each_other_and_with_the_image():
    (claim,) = documents("data.yaml")
    image = (EXAMPLES / "docker" / "cpu.Dockerfile").read_text()
    (user,) = {int(number) for number in re.findall(r"^(?:RUN useradd --uid|USER) (\d+)", image, re.MULTILINE)}
    for name in ("synth.yaml", "merge.yaml"):
        (job,) = documents(name)
        pod = job["spec"]["template"]["spec"]
        (container,) = pod["containers"]
        assert container["image"] == f"lensmith:{VERSION}"
        assert pod["securityContext"] == {"runAsNonRoot": True, "fsGroup": user}
        assert pod["volumes"][0]["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
    (synth,) = documents("synth.yaml")
    parts = {variable["name"]: variable["value"] for variable in synth["spec"]["template"]["spec"]["containers"][0]["env"]}
    assert int(parts["PARTS"]) == synth["spec"]["completions"] == synth["spec"]["parallelism"]


# Ray


def test_the_driver_makes_one_run_on_a_ray_cluster(lab, tmp_path, program):
    pytest.importorskip("ray")
    import ray_cluster

    one_run(program, lab, "recipe", "--fold", FOLD, "--output", "recipe")
    before = dict(os.environ)
    os.environ.update(ray_cluster.settings())
    try:
        with ray_cluster.cluster(2) as made:
            command = [sys.executable, str(EXAMPLES / "ray" / "generate.py"), str(lab / "recipe"), str(tmp_path / "synth")]
            command += ["--parts", "4", "--shard-rows", str(ROWS)]
            variables = ray_cluster.settings() | {"RAY_ADDRESS": made.address}
            done = subprocess.run(command, env=variables, cwd=lab, capture_output=True, text=True, timeout=200)
    finally:
        os.environ.clear()
        os.environ.update(before)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["pairs"] == SEEDS * FOLD
    _, line = commands("ray up")
    script = re.search(r"/shared/(generate\.py) /shared/recipe /shared/synth (--parts 40 --cpus 8)'$", line)
    assert script and f"/shared/{script[1]} /shared/recipe /shared/synth {script[2]}" in (EXAMPLES / "ray" / "generate.py").read_text()
    assert_one_run(lab, tmp_path / "synth")


def test_the_ray_cluster_is_one_that_ray_takes():
    yaml = pytest.importorskip("yaml")
    util = pytest.importorskip("ray.autoscaler._private.util")
    text = (EXAMPLES / "ray" / "cluster.yaml").read_text()
    config = yaml.safe_load(text)
    util.validate_config(util.prepare_config(config))
    assert config["max_workers"] == len(config["provider"]["worker_ips"])
    # What the package asks for, and the wheel that tools/build_wheel makes.
    asked = tomllib.loads((ROOT / "python" / "pyproject.toml").read_text())["project"]["optional-dependencies"]["ray"][0]
    lowest, pinned = re.search(r">=([\d.]+)", asked), re.search(r"ray\[default,data\]==([\d.]+)", text)
    assert lowest and pinned and version(pinned[1]) >= version(lowest[1])
    assert f"/lensmith-{VERSION}-cp311-abi3-manylinux2014_x86_64.manylinux_2_17_x86_64.whl" in text
    assert "manylinux_2_17" in (ROOT / "tools" / "build_wheel").read_text()


def version(text: str) -> list[int]:
    return [int(number) for number in text.split(".")]


# Images


def stages(name: str) -> list[list[tuple[str, str]]]:
    """The instructions of a Dockerfile, by stage."""
    text = re.sub(r"\\\n", " ", (EXAMPLES / "docker" / name).read_text())
    found: list[list[tuple[str, str]]] = []
    for line in text.splitlines():
        if line and not line.startswith("#"):
            word, _, rest = line.partition(" ")
            assert word in ("FROM", "WORKDIR", "COPY", "RUN", "USER", "ENTRYPOINT", "CMD"), line
            if word == "FROM":
                found.append([])
            found[-1].append((word, rest))
    return found


IMAGES = ["cpu.Dockerfile", "cuda.Dockerfile"]


@pytest.mark.parametrize("name", IMAGES)
def test_images_are_pinned_and_have_no_compiler_and_no_root(name):
    build, final = stages(name)
    lowest = tomllib.loads((ROOT / "Cargo.toml").read_text())["package"]["rust-version"]
    assert build[0] == ("FROM", f"rust:{lowest}.0-bookworm AS build")
    commands = " && ".join(rest for word, rest in final if word == "RUN")
    assert not re.search("rustup|cargo|nvcc|setup_cuda", commands)
    # What object stores need, and nothing else: images without certificates reach none.
    assert re.findall(r"apt-get install --yes --no-install-recommends (.*?) &&", commands) == ["ca-certificates"]
    # In the order that makes the user the one who runs it.
    words = [word for word, _ in final]
    assert words.index("USER") < words.index("ENTRYPOINT")
    assert dict(final)["USER"] == "10001"
    assert json.loads(dict(final)["ENTRYPOINT"]) == ["lensmith"]
    (binary,) = [rest for word, rest in final if word == "COPY"]
    workdir = dict(build)["WORKDIR"]
    assert binary == f"--from=build {workdir}/target/release/lensmith /usr/local/bin/lensmith"
    tag = f"lensmith:{VERSION}" + ("-cuda" if name.startswith("cuda") else "")
    assert f"docker build -f examples/docker/{name} -t {tag} .\n" in (EXAMPLES / "docker" / name).read_text()


def test_the_cuda_image_is_of_the_release_that_the_compiler_is_of():
    compiler = re.search(r"nvidia-cuda-nvcc==(\d+\.\d+)\.", (ROOT / "tools" / "setup_cuda").read_text())
    _, final = stages("cuda.Dockerfile")
    image = re.fullmatch(r"nvidia/cuda:(\d+\.\d+)\.\d+-base-ubuntu\d\d\.\d\d", final[0][1])
    assert compiler and image and compiler[1] == image[1]
    assert any(word == "RUN" and "tools/setup_cuda" in rest for word, rest in stages("cuda.Dockerfile")[0])


@pytest.mark.parametrize("name", IMAGES)
def test_a_build_stage_has_all_that_cargo_needs(name, tmp_path):
    """Every COPY has its source. Then the RUN lines: cargo reads manifests, lock file and targets as `cargo build` does and
    compiles nothing; installing packages and nvcc is left out."""
    if shutil.which("cargo") is None:
        pytest.skip("there is no cargo here")
    bin_folder = tmp_path / "bin"
    bin_folder.mkdir()
    real = subprocess.run(["rustup", "which", "cargo"], capture_output=True, text=True) if shutil.which("rustup") else None
    cargo = real.stdout.strip() if real and real.returncode == 0 else shutil.which("cargo")
    # Of `cargo build OPTIONS` what can be done without building.
    (bin_folder / "cargo").write_text(
        f'#!/bin/sh\ntest "$1 $2 $3 $4 $5" = "build --release --locked --bin lensmith" || exit 9\n'
        f'exec {cargo} metadata --locked --offline --no-deps --format-version 1 >"$METADATA"\n'
    )
    (bin_folder / "apt-get").write_text("#!/bin/sh\nexit 0\n")
    for stand_in in bin_folder.iterdir():
        stand_in.chmod(0o755)
    stage = tmp_path / "build"
    stage.mkdir()
    metadata = tmp_path / "metadata.json"
    variables = environment(PATH=f"{bin_folder}{os.pathsep}{os.environ['PATH']}", METADATA=str(metadata))
    for word, rest in stages(name)[0]:
        if word == "COPY":
            *sources, target = rest.split()
            for source in sources:
                copy(ROOT / source, stage / source if target == "./" else stage / target)
        elif word == "RUN":
            # Neither the packages of an image nor a compiler from a package index.
            command = rest.replace("rm -rf /var/lib/apt/lists/*", "true").replace("tools/setup_cuda", "bash -n tools/setup_cuda")
            subprocess.run(["sh", "-ec", command], cwd=stage, env=variables, check=True)
    # All members of the workspace are there, and all targets that Cargo.toml may name: cargo leaves out what it does not find.
    command = [str(cargo), "metadata", "--locked", "--offline", "--no-deps", "--format-version", "1"]
    whole = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert targets(metadata.read_text()) == targets(whole) != set()
    # And what the sources take in.
    for path in (stage / "src").rglob("*.rs"):
        for found in re.findall(r'include_(?:str|bytes)!\("([^"]+)"\)', path.read_text()):
            assert (path.parent / found).exists(), f"{path}: {found}"


def targets(metadata: str) -> set[tuple[str, str, str]]:
    """Package, kind and name of what cargo may build of the workspace, without tests and examples."""
    return {
        (package["name"], target["kind"][0], target["name"])
        for package in json.loads(metadata)["packages"]
        for target in package["targets"]
        if target["kind"][0] not in ("test", "example") and (package["name"] == "lensmith" or target["kind"][0] != "bench")
    }


def copy(source: Path, target: Path) -> None:
    assert source.exists(), f"COPY {source.relative_to(ROOT)}: there is no such file"
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        shutil.copytree(source, target, dirs_exist_ok=True)
    else:
        shutil.copy(source, target)


# The page


def blocks() -> list[tuple[str | None, str, str]]:
    """The blocks of docs/clusters.md outside of its section on Ray: the file that each is, its language, its text."""
    text = re.sub(r"\n## Ray\n.*?(?=\n## )", "\n", PAGE.read_text(), flags=re.DOTALL)
    found = re.finditer(r"^(?:<!-- (\S+) -->\n)?```(\w+)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [(block[1], block[2], block[3]) for block in found]


def test_the_page_shows_the_examples_as_they_are():
    shown = {name for name, _, _ in blocks() if name}
    for name, _, text in blocks():
        if name:
            assert text == (ROOT / name).read_text(), f"{name}: docs/clusters.md shows something else"
    kept = {str(path.relative_to(ROOT)) for kind in ("slurm", "kubernetes", "ray", "docker") for path in (EXAMPLES / kind).iterdir()}
    assert shown == {name for name in kept if "__pycache__" not in name}


def commands(first: str) -> list[str]:
    """The lines of the block whose first line begins so."""
    (found,) = [text for name, kind, text in blocks() if name is None and kind == "sh" and text.startswith(first)]
    return [line.partition("  #")[0].strip() for line in found.splitlines()]


def test_every_other_block_of_the_page_is_run_here():
    firsts = [text.split()[0] for name, _, text in blocks() if name is None]
    # `ray up` starts machines; what it starts them with, and the driver, are tested above.
    # The second one, with URLs of objects, is tested by test_stores.py, on a store of its own.
    assert firsts == ["lensmith", "lensmith", "ray", "FOLD=1000", "docker", "examples/kubernetes/run.sh"]


def test_the_commands_of_parts_make_one_run(lab, tmp_path, program):
    one_run(program, lab, "thousand", "--fold", 1000, "--shard-rows", 2000)
    shared = Shared(lab, tmp_path, "/none")
    lines = commands("lensmith synth seeds.safetensors")
    assert len(lines) == 5
    for line in lines:
        if "--part" in line:
            # The shards of so small a run are one.
            line += " --shard-rows 2000"
        shared.run(["sh", "-ec", line], cwd=shared.folder)
    assert_one_run(lab, shared.folder / "synth", "thousand")


def test_the_image_is_built_and_run_as_printed(lab, tmp_path, program):
    shared = Shared(lab, tmp_path, "/none")
    one_run(program, lab, "eight", "--fold", 8)
    build, cuda, run = commands("docker build")
    for line in (build, cuda):
        shared.run(["sh", "-ec", line])
    shared.run(["sh", "-ec", run], cwd=shared.folder)
    assert_one_run(lab, shared.folder / "synth", "eight")


def test_a_script_that_is_started_on_the_page_is_one_that_can_be_started():
    for name in ("slurm/submit.sh", "kubernetes/run.sh"):
        assert os.access(EXAMPLES / name, os.X_OK), name
        subprocess.run(["bash", "-n", str(EXAMPLES / name)], check=True)


# Input that does not go together


def test_a_part_of_other_seeds_is_refused_and_named(lab, tmp_path, engine):
    shared = Shared(lab, tmp_path, "/none")
    line = "lensmith synth seeds.safetensors --vae vae.safetensors --fold 20 --shard-rows 500 --part {}/2 --out synth"
    shared.run(["sh", "-ec", line.format(0)], cwd=shared.folder)
    lm.PairSet(*arrays_of(SEEDS, DIM, seed=1), engine=engine).save(shared.folder / "seeds.safetensors")
    done = subprocess.run(["sh", "-ec", line.format(1)], cwd=shared.folder, env=shared.variables, capture_output=True, text=True)
    assert done.returncode != 0
    assert "it was made with other settings: `seeds[0].xxh3` is" in done.stderr, done.stderr


def test_a_folder_that_cannot_be_written_is_named(lab, tmp_path):
    shared = Shared(lab, tmp_path, "/none")
    line = "lensmith synth seeds.safetensors --vae vae.safetensors --fold 20 --part 0/1 --out {}"
    (shared.folder / "file").touch()
    # Root writes everywhere, but not into what is no folder, nor into a file system that is read-only.
    for out, words in [("file/synth", r"file/synth\S*: Not a directory"), ("/proc/synth", r"/proc/synth\S*: ")]:
        done = subprocess.run(["sh", "-ec", line.format(out)], cwd=shared.folder, env=shared.variables, capture_output=True, text=True)
        assert done.returncode != 0
        assert re.search(words, done.stderr), done.stderr
