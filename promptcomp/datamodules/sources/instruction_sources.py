"""Sources of instruction rows: Alpaca+ in its four files, and your own files or datasets."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cached_property
from typing import Literal

from promptcomp.config import ConfigError
from promptcomp.datamodules.instruction.instruction_config import AlpacaPlusData, InstructionsData
from promptcomp.datamodules.sources.instruction_files import SomeRows, open_instructions, read_instructions
from promptcomp.datamodules.sources.records import Found, NotHere, tell_error
from promptcomp.datamodules.tasks import InstructionRow, InstructionSource


class HeldOutSource(InstructionSource):
    """Rows of named splits, some of them cut from the training rows."""

    def __init__(self, config: AlpacaPlusData | InstructionsData) -> None:
        """
        Raises:
            ConfigError: a file is missing.
        """
        self.config = config
        self._dataset = config.dataset if isinstance(config, InstructionsData) else None
        self.paths = config.paths() if isinstance(config, AlpacaPlusData) else dict(config.files)
        """The file of every split that has one."""
        missing = [str(path) for path in self.paths.values() if not path.is_file()]
        if missing:
            have = {split: str(path.name) for split, path in self.paths.items() if path.is_file()}
            known = ", ".join(f"{split}: {name}" for split, name in have.items())
            message = f"data.files: no such file: {', '.join(missing)}; name only those you have: {{{known}}}"
            no_folder = isinstance(config, AlpacaPlusData) and not config.folder.is_dir()
            raise (NotHere if no_folder else ConfigError)(message)
        self._tables: dict[str, Sequence[InstructionRow]] = {}
        self._remarks: list[str] = []

    @cached_property
    def _given(self) -> tuple[str, ...]:
        config = self.config
        return (
            tuple(config.dataset_splits) if isinstance(config, InstructionsData) and self._dataset else (*self.paths,)
        )

    @cached_property
    def _cuts(self) -> dict[str, int]:
        """Rows that are cut from the training rows for each split."""
        if "train" not in self._given:
            return {}
        test = self.config.test_examples if isinstance(self.config, InstructionsData) else 0
        wanted = {"dev": 0 if "dev" in self._given else self.config.dev_examples, "test": test}
        return {split: count for split, count in wanted.items() if count}

    @property
    def splits(self) -> tuple[str, ...]:
        """ "train" and "dev" where there are any, then the test splits."""
        found = {*self._given, *self._cuts}
        first = [split for split in ("train", "dev") if split in found]
        return (*first, *(split for split in dict.fromkeys((*self._given, *self._cuts)) if split not in first))

    def rows(self, split: str) -> Sequence[InstructionRow]:
        """The rows of a split.

        Raises:
            ConfigError: the split is unknown, or its file or dataset is bad.
        """
        if split not in self.splits:
            raise ConfigError(f"split {split!r} is unknown; there are {', '.join(self.splits)}")
        if split in self._cuts or (split == "train" and self._cuts):
            rows, parts = self._parts
            return SomeRows(rows, parts[split])
        return self._read(split)

    def check(self, found: Found = None) -> None:
        """Read every file or split once.

        Raises:
            ConfigError: the first bad row or file, unless they are collected.
        """
        for split in self._given:
            try:
                self._read(split, found)
            except ConfigError as error:
                tell_error(error, found, str(self.paths.get(split, "data")))

    def remarks(self) -> list[str]:
        """Later turns of conversations, which are left out."""
        return list(self._remarks)

    def _place(self, split: str) -> str:
        """File, or split of the dataset, that holds a split."""
        config = self.config
        has_dataset = isinstance(config, InstructionsData) and self._dataset is not None
        return config.dataset_splits[split] if has_dataset else str(self.paths[split])  # type: ignore[union-attr]

    def _read(self, split: str, found: Found = None) -> Sequence[InstructionRow]:
        place, config = self._place(split), self.config
        if place not in self._tables:
            how = (config.columns, config.allow_empty_instruction, found, self._remarks)
            if isinstance(config, InstructionsData) and self._dataset is not None:
                self._tables[place] = open_instructions(self._dataset, config.dataset_config, place, *how)
            else:
                self._tables[place] = read_instructions(self.paths[split], *how)
        return self._tables[place]

    @cached_property
    def _parts(self) -> tuple[Sequence[InstructionRow], dict[str, list[int]]]:
        """All training rows, and the places of those of each part."""
        rows = self._read("train")
        left = list(range(len(rows)))
        parts: dict[str, list[int]] = {}
        for split, count in self._cuts.items():
            parts[split] = held_out(rows, left, count, split, self.config.hold_out)
            chosen = set(parts[split])
            left = [place for place in left if place not in chosen]
        parts["train"] = left
        return rows, parts


def held_out(
    rows: Sequence[InstructionRow], places: Sequence[int], count: int, split: str, by: Literal["instruction", "row"]
) -> list[int]:
    """At most `count` of the places, chosen by their rows' text alone, in their order.

    Args:
        rows: All training rows.
        places: Those to choose from.
        count: Most rows to hold out.
        split: What they are held out for.
        by: Whether rows of one instruction stay together.

    Raises:
        ConfigError: there is no such choice that leaves a row to train on.
    """
    groups: dict[tuple[str, ...], list[int]] = {}
    for place in places:
        row = rows[place]
        key: tuple[str, ...] = (row.instruction,) if by == "instruction" else (row.instruction, row.input, row.output)
        groups.setdefault(key, []).append(place)
    order = sorted(groups, key=lambda key: hashlib.sha256("\0".join((split, *key)).encode()).digest())
    most = min(count, len(places) - 1)
    chosen: list[int] = []
    for key in order:
        if len(chosen) + len(groups[key]) <= most:
            chosen += groups[key]
    if not chosen:
        raise ConfigError(
            f"data.{split}_examples = {count}: every instruction has more rows than may be held out of "
            f"{len(places)}; set data.hold_out=row, or data.{split}_examples=0"
        )
    return sorted(chosen)
