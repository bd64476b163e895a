"""Keeping the libraries' remarks away from what a person reads."""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from transformers.utils.logging import disable_progress_bar

from promptcomp.files import open_append
from promptcomp.run.run_directory import RunDirectory


class _LogFile(logging.FileHandler):
    """A log that is not written through a link."""

    def _open(self) -> io.TextIOWrapper:
        return io.TextIOWrapper(open_append(Path(self.baseFilename)), self.encoding, self.errors)


@contextmanager
def quiet(run: RunDirectory | None = None) -> Iterator[None]:
    """Lightning's and torch's remarks go to log.txt, not between the lines a person reads."""
    loggers = [
        logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric", "transformers", "py.warnings")
    ]
    previous = [(logger.level, logger.propagate, list(logger.handlers)) for logger in loggers]
    handler: logging.Handler = logging.NullHandler()
    if run is not None:
        handler = _LogFile(run.log, encoding="utf-8", errors="replace", delay=True)
        handler.setFormatter(logging.Formatter("%(asctime)s %(name)s %(message)s"))
    for logger in loggers:
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(logging.INFO if logger.name.startswith("lightning") else logging.WARNING)
    logging.captureWarnings(True)
    disable_progress_bar()
    try:
        with warnings.catch_warnings():
            yield
    finally:
        logging.captureWarnings(False)
        for logger, (level, propagate, handlers) in zip(loggers, previous, strict=True):
            logger.handlers, logger.propagate = handlers, propagate
            logger.setLevel(level)
        handler.close()
