"""A compact model on disk: plan.json, weights.safetensors and surgery.json. Nothing in it can run code."""

from __future__ import annotations

import json
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import nn

from compactmtl.errors import ArtifactError
from compactmtl.surgery.apply import apply_plan
from compactmtl.surgery.compact import CompactResult
from compactmtl.surgery.plan import Plan


def save_compact(result: CompactResult, folder: Path) -> Path:
    """Write plan.json, weights.safetensors and surgery.json into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "surgery.json").write_text(json.dumps(result.report.to_json(), indent=1))
    state = {name: value.detach().contiguous().clone() for name, value in result.model.state_dict().items()}
    (folder / "weights.safetensors").write_bytes(save(state))  # a full disk is an OSError that names the file
    (folder / "plan.json").write_text(result.plan.to_json())
    return folder


def load_compact(model: nn.Module, folder: Path) -> nn.Module:
    """The compact model, from a freshly built plain `model` and what `save_compact` wrote.

    Raises ArtifactError where a file is missing, damaged or of another model.
    """
    plan = Plan.load(folder / "plan.json")
    small = apply_plan(model, plan)
    weights = folder / "weights.safetensors"
    try:
        state = load_file(weights)
    except (FileNotFoundError, SafetensorError) as error:
        raise ArtifactError(
            f"{weights} cannot be read: {error}", "run `compactmtl compact RUN` again"
        ) from error
    try:
        small.load_state_dict(state)
    except RuntimeError as error:
        raise ArtifactError(
            f"{weights} does not fit {folder / 'plan.json'}: {str(error).splitlines()[-1].strip()}",
            "run `compactmtl compact RUN` again",
        ) from error
    return small.eval()
