"""Result files of the scripts beside this file: written whole or not at all, into as many folders as are wanted."""
import json
import os
import re
import sys
from pathlib import Path


def slug(text):
    """A name as a file's: small letters, digits and dashes."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def read(path):
    """The object in a file; an empty one where there is no file."""
    try:
        found = json.loads(path.read_text())
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise OSError(f"holds no JSON: {error}") from error
    if not isinstance(found, dict):
        raise OSError("holds no JSON object")
    return found


def write(path, value):
    """Replaces a file: whoever reads it, or is left with it after a crash, has the old or the new one as a whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # Always the same name: what a full disk cut short is overwritten by the next attempt.
    part = path.with_name(f".{path.name}.part")
    with open(part, "w") as file:
        file.write(json.dumps(value, indent=1) + "\n")
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)


class Copies:
    """The same results in several folders. One that cannot be written costs its own copy, and is said once."""

    def __init__(self, name, folders):
        self.script = name
        self.folders = [Path(folder) for folder in folders if folder]
        self.said = set()
        self.written = {}

    def update(self, name, change):
        """Puts `change(what the file holds)` into `name` in every folder."""
        for folder in self.folders:
            path = folder / name
            try:
                write(path, change(read(path)))
                self.written[folder] = path
            except OSError as error:
                self.written.pop(folder, None)
                reason = error.strerror or error
                if (folder, str(reason)) not in self.said:
                    self.said.add((folder, str(reason)))
                    print(f"{self.script}: cannot write {path}: {reason}; going on without it", file=sys.stderr)


class Steady:
    """An output that may be full or closed: what is written is lost then, and the script goes on."""

    def __init__(self, stream):
        self.stream = stream

    def attempt(self, work, *arguments):
        try:
            return work(*arguments)
        except OSError:
            # What is still held back goes nowhere too.
            os.dup2(os.open(os.devnull, os.O_WRONLY), self.stream.fileno())
            return None

    def write(self, text):
        return self.attempt(self.stream.write, text)

    def flush(self):
        return self.attempt(self.stream.flush)
