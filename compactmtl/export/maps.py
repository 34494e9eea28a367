"""Pictures in a bundle of where the artifact differs from the torch model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import nn

from compactmtl.artifacts.files import naming
from compactmtl.backends import Runner
from compactmtl.verify.error_maps import as_gray, error_maps
from compactmtl.verify.parity import Inputs
from compactmtl.verify.result import ErrorMap, ParityResult

FOLDER = "errors"


def write_error_maps(
    bundle: Path,
    model: nn.Module,
    runner: Runner,
    inputs: Inputs,
    parity: ParityResult,
    output_names: Sequence[str] | None = None,
) -> dict[str, ErrorMap]:
    """A gray PNG below `bundle`/errors for each output that is a map, of the first image of `inputs`.

    Errors are on the scales of `parity`. `output_names` are those that the export gave, where they are not the model's own.
    """
    from PIL import Image

    differences = error_maps(model, runner, inputs, parity, output_names)
    records = {}
    for number, (name, picture) in enumerate(as_gray(differences).items()):
        file = f"{FOLDER}/{number}.png"  # a task's name need not be a file's
        with naming(bundle / file):
            (bundle / FOLDER).mkdir(exist_ok=True)
            Image.fromarray(picture).save(bundle / file, optimize=True)
        largest = float(differences[name].values.max(initial=0.0))
        records[name] = ErrorMap(file=file, largest=largest, relative=differences[name].relative)
    return records
