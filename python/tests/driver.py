"""A GPU for tests: the kernels as PTX, run by the machine for PTX behind a stand-in for the driver library."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
#: As `build/compile.rs` has them, but for the images.
FLAGS = ["-ptx", "-arch=compute_80", "-O3", "-std=c++17", "-fmad=false", "-lineinfo"]


def suits(source: Path) -> bool:
    """Whether a file of kernels/ is for compute capability 8.0: its first line may name what it is for."""
    named = re.match(r"// archs: sm_(\d+)", source.read_text())
    return named is None or int(named[1]) <= 80


def nvcc() -> Path | None:
    """The compiler that the build takes too."""
    homes = [os.environ.get(name) for name in ("CUDA_HOME", "CUDA_PATH")]
    places = [os.environ.get("NVCC"), *(f"{home}/bin/nvcc" for home in homes if home)]
    found = [place for place in places if place and Path(place).is_file()]
    found += [place for place in (shutil.which("nvcc"), ROOT / ".cuda" / "bin" / "nvcc") if place]
    return next((Path(place) for place in found if Path(place).is_file()), None)


def kernels() -> Path:
    """A folder with `sm_80/*.ptx` of kernels/, compiled where it is not there yet."""
    compiler = nvcc()
    if compiler is None:
        raise FileNotFoundError("no nvcc: run tools/setup_cuda")
    sources = [path for path in sorted((ROOT / "kernels").glob("*.cu")) if suits(path)]
    digest = hashlib.sha256()
    for path in [*sources, *sorted((ROOT / "kernels" / "include").glob("*.cuh"))]:
        digest.update(path.read_bytes())
    folder = ROOT / "target" / "ptx-python" / digest.hexdigest()[:16]
    if not (folder / "sm_80").exists():
        part = folder / f"part.{os.getpid()}"
        part.mkdir(parents=True)
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            commands = [[compiler, *FLAGS, "-o", part / f"{path.stem}.ptx", path] for path in sources]
            list(pool.map(lambda command: subprocess.run(command, check=True), commands))
        part.rename(folder / "sm_80")
    return folder


def environment(folder: Path, **more: str) -> dict[str, str]:
    """The environment of a process whose libcuda is the stand-in, which `folder` then has."""
    built = [ROOT / "target" / "debug" / place for place in ("deps/libptx_driver.so", "libptx_driver.so")]
    if not any(path.exists() for path in built):
        subprocess.run(["cargo", "build", "--locked", "--package", "ptx-driver"], cwd=ROOT, check=True)
    library = max((path for path in built if path.exists()), key=lambda path: path.stat().st_mtime)
    (folder / "libcuda.so").symlink_to(library)
    settings = f"races=0,capability=8.0,queue=random:3,kernels={kernels()}"
    return {**os.environ, "LD_LIBRARY_PATH": str(folder), "PTX_DRIVER": settings, **more}
