"""Checkpoints: weights.safetensors and a state that loads without running code, replaced as one.

`last` is written at every epoch's end and on interruption, and holds all that a bit-equal resume
needs; `best` holds weights and the metrics they were chosen for.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as dump_tensors
from torch import Tensor, nn

from compactmtl.artifacts.files import parse_json
from compactmtl.artifacts.hashes import read_checked, read_hashes, sha256, write_hashed
from compactmtl.artifacts.layout import HASHES, STATE, SUMMARY, WEIGHTS
from compactmtl.artifacts.states import CodeError, read_state
from compactmtl.artifacts.versions import is_version, new_version, read_version, resolve
from compactmtl.errors import ArtifactError

Weights = nn.Module | Mapping[str, Tensor]
_MEND = "train again with --overwrite, or use the run's other checkpoint"


def save_checkpoint(folder: Path, weights: Weights, state: Mapping[str, Any]) -> None:
    """Write weights, a model's or its state_dict, and `state` (tensors, numbers, strings and containers of them) as `folder`.

    Raises OSError naming the folder or file; the checkpoint that was there before then stays.
    """
    buffer = io.BytesIO()
    torch.save(dict(state), buffer)
    with new_version(folder) as temporary:
        write_hashed(temporary, {WEIGHTS: dump_weights(weights), STATE: buffer.getvalue()})


def save_best(folder: Path, weights: Weights, summary: Mapping[str, Any]) -> None:
    """Write weights and a JSON summary (epoch, step, score, metrics) as `folder`."""
    text = json.dumps(dict(summary), indent=2) + "\n"
    with new_version(folder) as temporary:
        write_hashed(temporary, {WEIGHTS: dump_weights(weights), SUMMARY: text.encode()})


def dump_weights(weights: Weights) -> bytes:
    """The state_dict as safetensors; a tensor under two names is written twice."""
    state = weights.state_dict() if isinstance(weights, nn.Module) else weights
    return dump_tensors({name: value.detach().cpu().contiguous().clone() for name, value in state.items()})


def load_weights(model: nn.Module, folder: Path) -> None:
    """Load a checkpoint's weights into `model`, names and shapes exactly.

    Raises ArtifactError where the file is missing, damaged or belongs to another model.
    """
    path = folder / WEIGHTS
    if not resolve(folder).is_dir():
        raise ArtifactError(f"{path}: no such checkpoint", "train the run, or name another checkpoint")
    try:
        tensors = load_tensors(_read(folder, WEIGHTS))
    except (SafetensorError, ValueError) as error:
        raise ArtifactError(f"{path} is damaged: {error}", _MEND) from error
    _check_names(path, tensors, model.state_dict())
    model.load_state_dict(tensors)


def _check_names(path: Path, tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    hint = "this checkpoint belongs to another model: use the recipe that it was trained with"
    if layer := _trained_otherwise(tensors, expected):
        hint = f"{layer} was over-parameterized on one side alone: use the recipe's overparam section, or contract the model"
    for name in expected:
        if name not in tensors:
            raise ArtifactError(f"{path} lacks the tensor {name}", hint)
        if tensors[name].shape != expected[name].shape:
            sizes = f"{tuple(tensors[name].shape)}, the model needs {tuple(expected[name].shape)}"
            raise ArtifactError(f"{path}: tensor {name} has shape {sizes}", hint)
    for name in sorted(tensors):
        if name not in expected:
            raise ArtifactError(f"{path} has the tensor {name}, which the model does not", hint)


def _trained_otherwise(loaded: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> str | None:
    """A layer that has a weight on one side and other tensors in its place on the other, such as factors."""
    for mine, theirs in ((expected, loaded), (loaded, expected)):
        layers = {
            name.rpartition(".")[0] for name in theirs if name not in mine and not name.endswith(".bias")
        }
        for name in sorted(mine):  # safetensors keeps no order
            path, _, leaf = name.rpartition(".")
            if leaf == "weight" and name not in theirs and path in layers:
                return path
    return None


def load_state(folder: Path) -> dict[str, Any] | None:
    """The state of a checkpoint for resuming, or None where there is no checkpoint."""
    path = folder / STATE
    if not resolve(folder).is_dir():
        return None
    data = _read(folder, STATE)
    try:
        state = read_state(io.BytesIO(data))
    except (CodeError, ValueError) as error:
        raise ArtifactError(f"{path} is damaged: {error}", _MEND) from error
    if not isinstance(state, dict):
        raise ArtifactError(f"{path} holds a {type(state).__name__}, not a state", "train with --overwrite")
    return state


def load_summary(folder: Path) -> dict[str, Any]:
    """The JSON summary of the best checkpoint. Raises ArtifactError where it is missing or damaged."""
    path = folder / SUMMARY
    if not resolve(folder).is_dir():
        raise ArtifactError(
            f"{folder} holds no checkpoint yet",
            "let the run train on with --resume; a sparse run's best is chosen once its target is reached",
        )
    try:
        summary = parse_json(_read(folder, SUMMARY))
    except ValueError as error:
        raise ArtifactError(f"{path} is damaged: {error}", "train again with --overwrite") from error
    if not isinstance(summary, dict):
        raise ArtifactError(f"{path} is not a JSON object", "train again with --overwrite")
    return summary


def checked_weights(folder: Path) -> str:
    """SHA-256 of a checkpoint's weights, which are read and held against their hash.

    Raises ArtifactError where they are missing or damaged.
    """
    return sha256(_read(folder, WEIGHTS))


def _read(folder: Path, name: str) -> bytes:
    """A file of the checkpoint that `folder` stands for now, held against its hash."""

    def read(version: Path) -> bytes:
        if is_version(version) and read_hashes(version, _MEND) is None:
            raise ArtifactError(f"{version / HASHES} is missing", _MEND)
        return read_checked(version, name, _MEND)

    return read_version(folder, read)
