"""What `promptcomp push` uploads: the files that an export's card lists, and no others."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from promptcomp.checkpoints.hub import upload
from promptcomp.config import ConfigError
from promptcomp.exports.card import files_of
from promptcomp.files import check_file


@dataclass(frozen=True, slots=True)
class Upload:
    """An export that is ready to be uploaded."""

    folder: Path
    files: tuple[str, ...]
    bytes: int

    def send(self, name: str, *, private: bool) -> tuple[str, tuple[str, ...]]:
        """Upload it to the repository `name`; see `upload`.

        Raises:
            ConfigError: the hub refuses, or there is no network.
        """
        return upload(self.folder, self.files, name, private=private)


def prepare(folder: Path) -> Upload:
    """
    Raises:
        ConfigError: the folder is no export, a file of it is missing, or it holds others.
    """
    files, root = files_of(folder), folder.resolve()
    found = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir()}
    if missing := sorted(set(files) - found):
        raise ConfigError(f"{folder / missing[0]}: belongs to the export and is not there; export again")
    if foreign := sorted(found - set(files)):
        raise ConfigError(f"{folder / foreign[0]}: is no file of the export; move it away, then push")
    for file in (folder / name for name in files):
        if not file.resolve().is_relative_to(root):
            raise ConfigError(f"{file}: leads out of the folder; put the file itself there")
        check_file(file, "file of an export")
    return Upload(folder, files, sum((folder / name).stat().st_size for name in files))
