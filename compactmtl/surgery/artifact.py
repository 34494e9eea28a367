"""A compact model on disk: plan.json, weights.safetensors and surgery.json, held together by hashes.json.

The weights name the plan that they belong to. Nothing in it can run code.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import nn

from compactmtl.artifacts.files import parse_json
from compactmtl.artifacts.hashes import read_checked, sha256, write_hashed
from compactmtl.artifacts.layout import PLAN, SURGERY, WEIGHTS
from compactmtl.errors import ArtifactError
from compactmtl.surgery.apply import apply_plan
from compactmtl.surgery.compact import CompactResult
from compactmtl.surgery.plan import Plan

_AGAIN = "run `compactmtl compact RUN` again"
_PLAN_KEY = "plan_sha256"  # in the metadata of the weights' file


def save_compact(result: CompactResult, folder: str | Path, sources: Mapping[str, str] | None = None) -> Path:
    """Write plan.json, weights.safetensors and surgery.json into `folder`, each at once, and hashes.json last.

    `sources`: SHA-256 of what the model was made from, such as {"checkpoint": …}; hashes.json keeps it.

    Raises OSError naming the file. A folder in which the writing was cut off is refused by `load_compact`.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    plan = result.plan.to_json().encode()
    state = {name: value.detach().contiguous().clone() for name, value in result.model.state_dict().items()}
    files = {
        SURGERY: json.dumps(result.report.to_json(), indent=1).encode(),
        WEIGHTS: save(state, {_PLAN_KEY: sha256(plan)}),
        PLAN: plan,
    }
    write_hashed(folder, files, sources)
    return folder


def load_compact(model: nn.Module, folder: str | Path) -> nn.Module:
    """The compact model, from a freshly built plain `model` and what `save_compact` wrote.

    Raises ArtifactError where a file is missing, damaged or of another model.
    """
    folder = Path(folder)
    path = folder / WEIGHTS
    if not (folder / PLAN).exists():
        Plan.load(folder / PLAN)  # says so
    plan = read_checked(folder, PLAN, _AGAIN)
    data = read_checked(folder, WEIGHTS, _AGAIN)
    try:
        state = load(data)
    except (SafetensorError, ValueError) as error:
        raise ArtifactError(f"{path} cannot be read: {error}", _AGAIN) from error
    belongs = _metadata(data).get(_PLAN_KEY)
    if belongs is not None and belongs != sha256(plan):
        raise ArtifactError(f"{path} does not belong to {folder / PLAN}", _AGAIN)
    small = apply_plan(model, Plan.from_json(plan, str(folder / PLAN)))
    try:
        small.load_state_dict(state)
    except RuntimeError as error:
        raise ArtifactError(
            f"{path} does not fit {folder / PLAN}: {str(error).splitlines()[-1].strip()}", _AGAIN
        ) from error
    return small.eval()


def _metadata(data: bytes) -> dict[str, str]:
    """What a safetensors file says of itself; its header, a JSON object, follows its own length in eight bytes."""
    header = parse_json(data[8 : 8 + int.from_bytes(data[:8], "little")])
    metadata: dict[str, str] = header.get("__metadata__", {})
    return metadata
