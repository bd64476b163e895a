"""Methods and data of other installed packages: entry points that name a section of the configuration.

A package adds a method with an entry point of the group `promptcomp.methods`, data with one of `promptcomp.data`:

    [project.entry-points."promptcomp.methods"]
    mean_pool = "my_package.mean_pool_config:MeanPoolConfig"

The entry point's name is the section's `name`. Sections are imported with the schema, so their files import no torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import entry_points
from typing import TypeVar

from promptcomp.config import Config
from promptcomp.errors import ConfigError

SectionT = TypeVar("SectionT", bound=Config)


def with_installed(group: str, own: Mapping[str, type[SectionT]], base: type[SectionT]) -> dict[str, type[SectionT]]:
    """This package's sections by name, and those that installed packages add.

    Args:
        group: The group of entry points, "promptcomp.methods" or "promptcomp.data".
        own: The sections of this package.
        base: The class that every section derives from.

    Raises:
        ConfigError: an installed section cannot be imported, is none, or takes the name of another.
    """
    found = dict(own)
    for point in entry_points(group=group):
        where = f"{point.value} (entry point {point.name!r} of {group}, {_package(point.dist)})"
        try:
            section = point.load()
        except Exception as error:  # whatever another package's code raises
            raise ConfigError(
                f"{where} cannot be imported: {type(error).__name__}: {error}; mend or uninstall it"
            ) from error
        if not (isinstance(section, type) and issubclass(section, base)):
            raise ConfigError(f"{where} is no subclass of {base.__module__}.{base.__name__}")
        if section.model_fields["name"].default != point.name:
            raise ConfigError(f"{where}: the default of its field `name` has to be {point.name!r}")
        if point.name in found:
            raise ConfigError(f"{where}: the name is taken by {found[point.name].__module__}")
        found[point.name] = section
    return found


def _package(dist: object) -> str:
    return f"package {getattr(dist, 'name', 'unknown')}"
