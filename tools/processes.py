"""Programs under a time limit, for the scripts beside this file: what hangs or crashes costs its own result only."""
import os
import signal
import subprocess
import time
from dataclasses import dataclass

# Seconds in which a killed process group must be gone. One that hangs in the driver may never be.
GRACE = 10


@dataclass
class Done:
    """How a program ended: `status` is passed, failed (by an exit code that is not 0), crashed (by a signal), timed
    out, or not run (it could not be started)."""

    status: str
    code: int | None
    out: str
    err: str
    seconds: float

    def last_lines(self, most=20):
        """The end of what it said, standard error last, and how it ended."""
        lines = [line for text in (self.out, self.err) for line in text.splitlines() if line.strip()]
        if self.status == "crashed":
            try:
                lines.append(f"ended by {signal.Signals(-self.code).name}")
            except ValueError:
                lines.append(f"ended by signal {-self.code}")
        elif self.status == "timed out":
            lines.append(f"killed after {self.seconds:.0f} s")
        elif self.status == "failed":
            lines.append(f"exit code {self.code}")
        return lines[-most:]


def text(output):
    return (output or b"").decode(errors="replace")


def run(command, seconds, environment=None, folder=None):
    """Runs a command for at most `seconds`, then kills it with all processes that it started."""
    start = time.monotonic()
    try:
        process = subprocess.Popen(
            [str(word) for word in command],
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            # A group of its own, to be killed as a whole.
            start_new_session=True,
        )
    except OSError as error:
        return Done("not run", None, "", f"{command[0]}: {error.strerror}", 0.0)
    late = False
    try:
        out, err = process.communicate(timeout=max(seconds, 0.1))
    except subprocess.TimeoutExpired:
        late = True
        kill(process)
        try:
            out, err = process.communicate(timeout=GRACE)
        except subprocess.TimeoutExpired as expired:
            out, err = expired.stdout, (expired.stderr or b"") + b"\nit cannot be killed: the driver may hang"
    except BaseException:
        # Ctrl-C and the like: nothing stays behind.
        kill(process)
        raise
    taken = time.monotonic() - start
    code = process.returncode
    if late:
        status = "timed out"
    elif code == 0:
        status = "passed"
    else:
        status = "crashed" if code < 0 else "failed"
    return Done(status, code, text(out), text(err), taken)


def kill(process):
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
