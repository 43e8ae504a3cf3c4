"""What cargo builds: the executables of tests and benches, for the scripts beside this file."""
import json
import subprocess


def built(root, *arguments, environment=None):
    """Builds with `cargo` and gives the path of every executable by its target's name."""
    command = ["cargo", *arguments, "--locked", "--message-format=json"]
    # Nothing that was built is run; `cargo build` runs nothing.
    command += ["--no-run"] if arguments[0] != "build" else []
    made = subprocess.run(command, cwd=root, env=environment, stdout=subprocess.PIPE, check=True, text=True)
    messages = map(json.loads, made.stdout.splitlines())
    return {m["target"]["name"]: m["executable"] for m in messages if m.get("executable")}
