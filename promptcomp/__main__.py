"""The `promptcomp` command, also as `python -m promptcomp` (distributed launchers start it this way).

Ctrl-C has its handler before anything heavy is imported, so that from the start it ends the program with "interrupted".
"""

import os
import signal
import sys
import time
from types import FrameType
from typing import NoReturn

_INTERRUPTED = 130  # promptcomp.stopping says it too, but is imported later
_came: list[int] = []


class _Interrupt(KeyboardInterrupt):
    """A plain KeyboardInterrupt that went through eval() kills Python at its end, even if it was caught."""


def main() -> NoReturn:
    """Run the command line. Ctrl-C that no command handles ends it with "interrupted" and exit code 130."""
    begun = time.monotonic()
    _open_streams()
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # not ignored, as in the background of a shell
        signal.signal(signal.SIGINT, _interrupt)
    try:
        from promptcomp.cli import main as run

        run(begun)
    except BaseException:
        if not _came:
            raise
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the work is done, and its exit code stays
    _say()  # whatever Ctrl-C was turned into on its way here (typer and Lightning make an exit code of it)
    sys.exit(_INTERRUPTED)


def _open_streams() -> None:
    """A standard stream that was closed (`<&-`, `>&-`) is empty, and no file that is opened later gets its number."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            null = os.open(os.devnull, os.O_RDWR)
            if null != number:
                os.dup2(null, number)
                os.close(null)
            os.set_inheritable(number, True)
            setattr(sys, name, os.fdopen(number, "w" if number else "r", closefd=False))


def _interrupt(number: int, frame: FrameType | None) -> None:
    _came.append(number)
    if len(_came) > 1 or _imports(frame):
        _say()
        os._exit(_INTERRUPTED)
    raise _Interrupt


def _imports(frame: FrameType | None) -> bool:
    """Whether a module is being imported: nothing is at work yet, and C extensions turn exceptions into others."""
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False


def _say() -> None:
    if all(os.environ.get(name, "0") == "0" for name in ("RANK", "LOCAL_RANK")):  # one process of a run speaks
        over = b"\r\x1b[K" if os.isatty(2) and os.environ.get("TERM") != "dumb" else b""  # what was being loaded
        os.write(2, over + b"interrupted\n")


if __name__ == "__main__":
    main()
