"""Weights that a whole network starts from, from a file: a state_dict of it or a checkpoint of a run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import nn

from compactmtl.models.weights import check_weights, read_weights

NETWORK_PREFIX = "network."  # of a module of the user's own in a checkpoint of a run


def load_whole(model: nn.Module, path: str, *, key: str = "model.weights", parts: Sequence[str] = ()) -> None:
    """Load the file `path`, the value of `key`, into `model`.

    It holds the model's own names, or those of a run whose network holds the model: below `network.` or one of `parts`.

    Raises ConfigError where the file is missing, of another format or holds code, ArtifactError where it is damaged or a
    weight is missing, unknown or of another shape.
    """
    state = read_weights(Path(path), key)
    reference = model.state_dict()
    for prefix in (NETWORK_PREFIX, *parts):
        below = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
        if below and not any(name.startswith(prefix) for name in reference):
            state = below
        elif not below and state and all(name.startswith(prefix) for name in reference):
            state = {prefix + name: value for name, value in state.items()}
    check_weights(
        Path(path),
        "the network",
        state,
        reference,
        f"name weights of this network in {key}, or build that one",
    )
    model.load_state_dict(state, strict=False)  # checked; counters of batches may be missing
