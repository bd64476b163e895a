"""Exports in repositories of a hub: huggingface_hub's upload and download, with its token, cache and endpoint."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from promptcomp.checkpoints.places import PROMPT, TENSORS
from promptcomp.errors import ConfigError, command, first_line

_NAME = re.compile(r"\w[\w.-]*/\w[\w.-]*", re.ASCII)


def downloaded(path: Path, revision: str | None = None) -> Path:
    """A folder as it is; of `user/name`, where there is no such folder, the one that its files are downloaded to.

    Args:
        path: A folder, or the name of a repository.
        revision: Branch, tag or commit of a repository.

    Raises:
        ConfigError: there is no such repository or revision, or no network and it is not in the cache either; a
            revision of a folder.
    """
    if path.exists() or not _NAME.fullmatch(path.as_posix()):
        if revision is not None:
            raise ConfigError(f"{path}: --revision goes with a repository of a hub, user/name")
        return path
    with _asking(f"{path}: is not here, and cannot be got as a repository of the hub"):
        from huggingface_hub import snapshot_download

        return Path(snapshot_download(path.as_posix(), revision=revision, endpoint=_endpoint()))


def prompt_file(path: Path, revision: str | None = None) -> Path:
    """A compressed prompt's file: as it is, or that of an exported prompt, a folder or a repository, `user/name`.

    Raises:
        ConfigError: as `downloaded`; or the folder holds no prompt.
    """
    is_file = path.suffix == Path(PROMPT).suffix and revision is None  # one that is missing is not asked for elsewhere
    found = path if is_file else downloaded(path, revision)
    if not found.is_dir():
        return found
    if (found / PROMPT).is_file():
        return found / PROMPT
    if (found / TENSORS).is_file():
        again = command("compress", path, "--text", "...", "-o", PROMPT)
        raise ConfigError(f"{path}: is a compressor and no prompt; compress one with it: {again}")
    raise ConfigError(f"{path}: has no {PROMPT}; `promptcomp export FILE --to tensors -o FOLDER` makes such a folder")


def upload(folder: Path, files: Sequence[str], name: str, *, private: bool) -> tuple[str, tuple[str, ...]]:
    """Put these files of a folder into a repository, which is made if it is not there.

    Returns:
        The address of the commit, and the repository's other files, which stay.

    Raises:
        ConfigError: it may not or cannot be written, or is there and public although `private` is asked for.
    """
    with _asking(f"{name}: the upload has failed; either all files are there or none"):
        from huggingface_hub import CommitOperationAdd, HfApi

        hub = HfApi(endpoint=_endpoint())
        hub.create_repo(name, private=private or None, exist_ok=True)
        found = hub.model_info(name)
        if private and found.private is False:
            raise ConfigError(f"{name}: is there already and public; make it private on the hub, or name another one")
        others = {each.rfilename for each in found.siblings or ()} - {*files, ".gitattributes"}
        parts = [CommitOperationAdd(path_in_repo=each, path_or_fileobj=folder / each) for each in files]
        done = hub.create_commit(name, parts, commit_message="promptcomp push")
        return str(done.commit_url), tuple(sorted(others))


def check_name(name: str) -> None:
    """
    Raises:
        ConfigError: it is no name of a repository.
    """
    if not _NAME.fullmatch(name):
        raise ConfigError(f"{name!r} is no name of a repository; write user/name")


def _endpoint() -> str | None:
    return os.environ.get("HF_ENDPOINT") or None


@contextmanager
def _asking(what: str) -> Iterator[None]:
    try:
        yield
    except ConfigError:
        raise
    except Exception as error:  # its own, httpx's and the system's: all say that the hub did not do it
        status = getattr(getattr(error, "response", None), "status_code", None)
        hint = "; `hf auth login` stores a token, which needs the right to do this" if status in (401, 403) else ""
        raise ConfigError(f"{what} ({first_line(error)}){hint}") from None
