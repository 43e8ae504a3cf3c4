"""The kernels' images of a build, what cuobjdump says of them, and the limits of kernels/expectations.txt."""
import os
import re
import shutil
import subprocess
from collections import Counter
from pathlib import Path

from machine_code import flat, instructions, loops

ROOT = Path(__file__).resolve().parent.parent
EXPECTATIONS = ROOT / "kernels" / "expectations.txt"


class Missing(Exception):
    """A tool or a file that is not there, in words."""


def missing(message):
    raise Missing(message)


def toolkit_program(name):
    """A program of the CUDA toolkit, looked for where the build looks for nvcc."""
    homes = [os.environ.get(variable) for variable in ("CUDA_HOME", "CUDA_PATH")]
    places = [Path(home) / "bin" / name for home in homes if home]
    in_path = shutil.which(name)
    places += ([Path(in_path)] if in_path else []) + [ROOT / ".cuda/bin" / name]
    found = next((place for place in places if place.is_file()), None)
    return found or missing(f"no {name} in CUDA_HOME, CUDA_PATH, PATH or .cuda/: run tools/setup_cuda")


def newest_build():
    """The folder of the newest build's images."""
    target = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
    builds = sorted(target.glob("**/build/lensmith-*/out/kernels.rs"), key=lambda p: p.stat().st_mtime)
    if not builds:
        missing(f"no build below {target}: run cargo build, or name fatbins")
    return builds[-1].parent


def newest_images():
    folder = newest_build()
    names = re.findall(r'aligned!\("(.*)"\)', (folder / "kernels.rs").read_text())
    return [folder / name for name in names] or missing("the newest build holds no kernels")


def dump(tool, path, *options):
    # nvdisasm, which cuobjdump calls, is in the same folder.
    path_list = f"{tool.parent}{os.pathsep}{os.environ.get('PATH', '')}"
    done = subprocess.run(
        [tool, *options, path], capture_output=True, text=True, env={**os.environ, "PATH": path_list}, check=False
    )
    if done.returncode != 0:
        missing(f"{tool} {' '.join(options)} {path} failed: {done.stderr.strip()}")
    return done.stdout.splitlines() + done.stderr.splitlines()


def read_usage(tool, path, out, *options):
    """Fills out[kernel, architecture] with what the compiler recorded of each kernel."""
    architecture = kernel = None
    for line in dump(tool, path, "-res-usage", *options):
        if match := re.match(r"\s*arch = (\S+)", line):
            architecture = match[1]
        elif match := re.match(r"\s*Function (\S+?):", line):
            kernel = match[1]
        elif kernel and (match := re.match(r"\s*REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)", line)):
            names = ("registers", "stack", "shared", "local")
            out[kernel, architecture].update(dict(zip(names, map(int, match.groups()))))
            kernel = None


def hot_loop(outermost):
    """The hot loop of a kernel and the loop around it."""

    def weight(found):
        names = found[0].names - sum((inner.names for inner in found[0].inner), Counter())
        products = sum(n for name, n in names.items() if name.startswith(("HMMA", "HGMMA")))
        # Of equal numbers of products the hot one is that without inner loops, then the shorter one: the others are for
        # sizes known at run time only.
        return products, not found[0].inner, -names.total() if products else names.total()

    return max(flat(outermost), key=weight, default=(None, None))


def read_code(tool, path, out, hot, *options):
    """Fills out[kernel, architecture] with the number of instructions of each kind, and hot[..] with the hot loop."""
    for key, code in instructions(dump(tool, path, "-sass", *options)).items():
        out[key].update(one.name for one in code)
        hot[key] = hot_loop(loops(code))


def loop_cost(hot, pattern):
    """Instructions per item, which the limit of a loop bounds."""
    match = re.fullmatch(r"(?:hot|around\(([\d,]*)\))(?:/(\d+))?", pattern)
    loop = hot[1] if pattern.startswith("around") else hot[0]
    if loop is None:
        return float("inf")
    trips = [int(t) for t in (match[1] or "").split(",") if t]
    return loop.cost(trips) / int(match[2] or 1)


def count(code, pattern):
    """Instructions whose name has all parts of the pattern: STG.128 covers STG.E.128."""
    first, *rest = pattern.split(".")
    parts = ((name.split("."), number) for name, number in code.items())
    return sum(n for name, n in parts if name[0] == first and all(part in name for part in rest))


def read_expectations():
    """Lines as (kernel, architecture, limits)."""
    out = []
    text = EXPECTATIONS.read_text() if EXPECTATIONS.is_file() else ""
    for number, line in enumerate(text.splitlines(), 1):
        words = line.split("#")[0].split()
        if not words:
            continue
        if len(words) < 2:
            missing(f"{EXPECTATIONS}:{number}: expected a kernel, an architecture or *, and limits")
        limits = []
        for word in words[2:]:
            match = re.fullmatch(r"([\w.]+|hot(?:/\d+)?|around\([\d,]*\)(?:/\d+)?)(<=|>=|=)(\d+)", word)
            if word != "may-spill" and not match:
                missing(f"{EXPECTATIONS}:{number}: `{word}` is neither a limit such as registers<=64 nor may-spill")
            limits.append(word if not match else (match[1], match[2], int(match[3])))
        out.append((words[0], words[1], limits))
    return out
