"""The programs of tools/gpu_check in one file, to copy to a machine that has a GPU and no Rust."""
import hashlib
import os
import shutil
import tarfile
import tempfile
from pathlib import Path

from programs import built

ROOT = Path(__file__).resolve().parent.parent
ARCHIVE = ROOT / "target" / "gpu_check.tar.xz"
FOLDER = ROOT / "target" / "gpu_check"
# Test programs, and what measures; `lensmith` is for tools/bench_peers.py.
TESTS = ["single", "operations", "parity", "cuda", "large", "instructions"]
PROGRAMS = [*TESTS, "gpu", "lensmith"]
STAMP = "archive"


def build(architectures):
    """Builds the programs for a GPU and packs them. Gives the archive's size in MiB."""
    environment = dict(os.environ, LENSMITH_REQUIRE_CUDA="1")
    if architectures:
        environment["LENSMITH_CUDA_ARCHS"] = architectures
    tests = [word for name in TESTS for word in ("--test", name)]
    packages = ["--package", "lensmith", "--package", "ptx"]
    found = built(
        ROOT, "build", "--release", *packages, "--bin", "lensmith", "--bench", "gpu", *tests, environment=environment
    )
    ARCHIVE.parent.mkdir(exist_ok=True)
    part = ARCHIVE.with_name(f"{ARCHIVE.name}.part")
    # The kernels are in every program: a dictionary that spans several of them stores them once.
    with tarfile.open(part, "w:xz", preset=9) as archive:
        for name in PROGRAMS:
            archive.add(found[name], name)
    part.replace(ARCHIVE)
    return ARCHIVE.stat().st_size / 2**20


def unpacked():
    """The folder with the programs, unpacked where they are missing or of another archive; None if nothing is built."""
    if not ARCHIVE.exists():
        return FOLDER if all((FOLDER / name).exists() for name in PROGRAMS) else None
    digest = hashlib.sha256(ARCHIVE.read_bytes()).hexdigest()
    if (FOLDER / STAMP).exists() and (FOLDER / STAMP).read_text() == digest:
        return FOLDER
    try:
        return unpack(FOLDER, digest)
    except OSError:
        # The repository cannot be written.
        return unpack(Path(tempfile.mkdtemp(prefix="gpu_check-")), digest)


def unpack(folder, digest):
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    with tarfile.open(ARCHIVE) as archive:
        for member in archive.getmembers():
            # Only plain files with the expected names, whatever else the archive holds.
            if member.isfile() and member.name in PROGRAMS:
                with archive.extractfile(member) as source, open(folder / member.name, "wb") as target:
                    shutil.copyfileobj(source, target)
                (folder / member.name).chmod(0o755)
    # Written last, so that a partly unpacked folder is unpacked again.
    (folder / STAMP).write_text(digest)
    return folder
