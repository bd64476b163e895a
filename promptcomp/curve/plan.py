"""Which runs make a curve: every method at every size, share of the training data and seed, as whole experiments."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from promptcomp.config import ConfigError, apply_overrides, build, read_yaml
from promptcomp.datamodules import RationaleConfig
from promptcomp.experiment import Experiment, shipped
from promptcomp.run.finding import identity

SHARED_BY_BASELINES = ("targets", "label_source")
"""Keys of the data section that a baseline takes from its own file; all others are the method's."""


@dataclass(frozen=True, slots=True)
class CurveSpec:
    """What was asked for."""

    method: str
    """A shipped experiment, or a YAML file."""
    against: tuple[str, ...]
    """Baselines, likewise."""
    fractions: tuple[float, ...]
    seeds: int
    overrides: tuple[str, ...] = ()
    """`key=value` for all methods (`method.*`: for the method alone), `NAME:key=value` for one of them."""
    sizes: tuple[str, ...] = ()
    """Values of `size_key`; empty: the student of the method's file."""
    size_key: str = "lm.path"

    def check(self) -> None:
        """
        Raises:
            ConfigError: a fraction, the seeds or the names make no curve.
        """
        wrong = [f for f in self.fractions if not 0 < f <= 1]
        if not self.fractions or wrong:
            raise ConfigError(f"--fractions {wrong[0] if wrong else 'is empty'}: shares of the data lie in (0, 1]")
        for what, values in (("--fractions", self.fractions), ("--sizes", self.sizes), ("methods", self.names)):
            if len(set(values)) < len(values):
                raise ConfigError(f"{what}: {', '.join(map(str, values))} holds a value twice")
        if self.seeds < 1:
            raise ConfigError(f"--seeds {self.seeds}: at least one seed is needed")

    @property
    def names(self) -> tuple[str, ...]:
        """The methods, the first one first."""
        return (self.method, *self.against)


@dataclass(frozen=True, slots=True)
class Point:
    """One run of a curve."""

    method: str
    size: str
    """Empty where there is one size only."""
    fraction: float
    seed: int
    experiment: Experiment

    @property
    def folder(self) -> str:
        """Name of its run directory; experiments that differ in anything that counts have different ones."""
        parts = [_slug(self.method), *([_slug(self.size)] if self.size else [])]
        return "-".join([*parts, f"f{self.fraction:g}", f"s{self.seed}", identity(self.experiment)[:8]])

    @property
    def title(self) -> str:
        """The point in words."""
        size = f" {self.size}" if self.size else ""
        return f"{self.method}{size}, share {self.fraction:g}, seed {self.seed}"


def plan(spec: CurveSpec, runs: Path) -> list[Point]:
    """All points of a curve, in the order in which they are run: small shares (short waits) first, seed by seed.

    Args:
        spec: what was asked for.
        runs: folder of the run directories.

    Raises:
        ConfigError: any mistake in the request or in one of the configurations.
    """
    spec.check()
    trees = _trees(spec)
    points = []
    for seed in range(spec.seeds):
        for fraction in sorted(spec.fractions):
            for size in spec.sizes or ("",):
                for name in spec.names:
                    experiment = _experiment(spec, trees[name], name, size, fraction, seed, runs)
                    points.append(Point(name, size, fraction, seed, experiment))
    return points


def _trees(spec: CurveSpec) -> dict[str, dict[str, Any]]:
    """The configuration of each method: a baseline has the method's data, LM, optimiser and steps."""
    shared, own = _sorted_overrides(spec)
    of_method = _read(spec.method, "METHOD")
    method_tree = apply_overrides(of_method, shared)
    trees = {spec.method: method_tree}
    for name in spec.against:
        tree = _read(name, "--against")
        data = _section(tree, "data", name)
        kept = {key: data[key] for key in SHARED_BY_BASELINES if key in data}
        base = apply_overrides(of_method, [item for item in shared if not item.startswith(("method.", "method="))])
        trees[name] = {**base, "method": _section(tree, "method", name), "data": {**base["data"], **kept}}
    return {name: apply_overrides(tree, own.get(name, ())) for name, tree in trees.items()}


def _sorted_overrides(spec: CurveSpec) -> tuple[list[str], dict[str, list[str]]]:
    """Overrides for all, and those for one method."""
    shared: list[str] = []
    own: dict[str, list[str]] = {}
    for item in spec.overrides:
        key, _, _ = item.partition("=")
        name, colon, rest = key.rpartition(":")
        if not colon:
            shared.append(item)
            continue
        if name not in spec.names:
            raise ConfigError(f"{item!r}: {name!r} is none of the curve's methods ({', '.join(spec.names)})")
        own.setdefault(name, []).append(rest + item[len(key) :])
    for item in [*shared, *(item for items in own.values() for item in items)]:
        key = item.partition("=")[0]
        if key in ("seed", "name", "output_dir", "data.train_share"):
            raise ConfigError(f"{item!r}: the curve sets {key} itself; use --fractions, --seeds and --output")
    return shared, own


def _read(name: str, what: str) -> dict[str, Any]:
    path = Path(name) if name.endswith((".yaml", ".yml")) else shipped().get(name)
    if path is None:
        raise ConfigError(f"{what} {name!r} is neither a shipped experiment (see 'promptcomp methods') nor a YAML file")
    return read_yaml(path)


def _section(tree: Mapping[str, Any], key: str, name: str) -> dict[str, Any]:
    section = tree.get(key)
    if not isinstance(section, dict):
        raise ConfigError(f"{name}: {key} is missing")
    return section


def _experiment(
    spec: CurveSpec, tree: Mapping[str, Any], name: str, size: str, fraction: float, seed: int, runs: Path
) -> Experiment:
    _section(tree, "data", name)
    settings = [f"seed={seed}"]
    if size:
        settings.append(f"{spec.size_key}={size}")
    chosen = apply_overrides(tree, settings)
    # Seeds draw other rows too unless told otherwise: an interval over seeds should know of the luck of the rows.
    chosen["data"] = {"subset": "per_seed", **chosen["data"], "train_share": fraction}
    chosen["output_dir"], chosen["name"] = str(runs), ""
    try:
        experiment = build(Experiment, chosen, source=name)
    except ConfigError as error:
        if "data.train_share: unknown key" in str(error):
            raise ConfigError(f"{name}: a curve needs rationale data; {chosen['data'].get('name')} is none") from None
        raise
    if not isinstance(experiment.data, RationaleConfig):
        raise ConfigError(f"{name}: a curve needs rationale data (data.train_share); {experiment.data.name} is none")
    return experiment


def fractions_of(text: str) -> tuple[float, ...]:
    """The numbers of `--fractions`, smallest first.

    Raises:
        ConfigError: one is no number.
    """
    try:
        return tuple(sorted(float(part) for part in _parts(text)))
    except ValueError:
        raise ConfigError(f"--fractions {text!r}: expected numbers such as 0.125,0.25,0.5,1") from None


def names_of(texts: Iterable[str]) -> tuple[str, ...]:
    """Names from comma-separated lists."""
    return tuple(part for text in texts for part in _parts(text))


def _parts(text: str) -> Sequence[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _slug(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9._]+", "_", text).strip("_")
