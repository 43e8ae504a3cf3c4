"""The program ``lensmith``, which the package installs too."""

from __future__ import annotations

import signal
import sys

from . import _lensmith


def main() -> int:
    """Runs the command line of this process."""
    # As a program of its own: Ctrl-C ends it at once, and what it was writing can be continued.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    return _lensmith.program(["lensmith", *sys.argv[1:]])
