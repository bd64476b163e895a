"""What can go wrong on a node and shows at submission already: missing models, missing data, mistakes in the data."""

from __future__ import annotations

import os
from collections.abc import Iterable

from promptcomp.cluster.profile import SlurmProfile
from promptcomp.config import ConfigError
from promptcomp.experiment import Experiment
from promptcomp.language_model.loading import BUILTIN

_WEIGHTS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)


def check_parts(experiment: Experiment, profile: SlurmProfile) -> None:
    """Open the data and the tokenizer as the job will.

    Raises:
        ConfigError: something is missing or wrong; for nodes without internet also weights that are not on disk.
    """
    from promptcomp.run.opening import make_parts
    from promptcomp.run.quiet import quiet

    try:
        with quiet():
            make_parts(experiment)
    except ConfigError as error:
        if profile.offline and "cannot be read" in str(error):
            raise ConfigError(f"{error}{_HINT}") from None
        raise
    if profile.offline:
        _check_weights(experiment)


def check_all_parts(experiments: Iterable[Experiment], profile: SlurmProfile) -> None:
    """`check_parts` for every LM and data among the trials of a sweep.

    Raises:
        ConfigError: as `check_parts`.
    """
    different = {(each.lm.model_dump_json(), each.data.model_dump_json()): each for each in experiments}
    for each in different.values():
        check_parts(each, profile)


_HINT = (
    "\nthe profile says that the nodes are offline: download it on this machine first (for example by a short "
    "'promptcomp fit' here), give a folder, or set slurm.offline=false"
)


def _check_weights(experiment: Experiment) -> None:
    lm = experiment.lm
    if lm.from_scratch is not None or lm.path.startswith(BUILTIN) or os.path.exists(lm.path):
        return
    from huggingface_hub import try_to_load_from_cache

    if not any(isinstance(try_to_load_from_cache(lm.path, name, revision=lm.revision), str) for name in _WEIGHTS):
        raise ConfigError(f"lm.path = {lm.path!r}: its weights are not on this machine{_HINT}")
