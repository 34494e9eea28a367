"""A bundle for a target that can't run here: the exact graph, its inputs and outputs, and the command; marked not run.

Where the backend can build for a device that is not here, what it built is in the bundle too: built, not run.

What is checked is the graph alone, on ONNX Runtime's CPU provider: that shows that precision pass and surgery kept the
function, and nothing of the arithmetic, speed or memory of the device that it is meant for.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from compactmtl.artifacts.files import new_folder, sha256_file, write_text
from compactmtl.artifacts.hashes import write_hashes
from compactmtl.artifacts.layout import EXPORT, MODEL_FILE, PREPARED_FILE, VERIFICATION_FILE
from compactmtl.artifacts.lock import exclusive
from compactmtl.backends import get_backend, open_graph
from compactmtl.backends.base import Arrays
from compactmtl.backends.versions import package_versions
from compactmtl.config.schema import Frozen
from compactmtl.config.target import Target
from compactmtl.errors import CompactError, ConfigError
from compactmtl.export.artifact import (
    INPUT,
    ArtifactWriter,
    Validation,
    check_names,
    provenance,
)
from compactmtl.export.bundle import write_bundle
from compactmtl.export.golden import write_golden
from compactmtl.export.onnx import model_tensors
from compactmtl.export.run import Scoring, bundle_info
from compactmtl.runs import Run
from compactmtl.verify.accuracy import evaluate_on
from compactmtl.verify.gates import parity_message
from compactmtl.verify.parity import compare_outputs
from compactmtl.verify.result import ParityResult, Record


class RawTensor(Frozen):
    """A tensor in a file of its own: its bytes in C order, nothing else."""

    file: str
    shape: tuple[int, ...]
    dtype: str
    sha256: str


class Prepared(Record):
    """prepared.json: what is there and why it was not run."""

    version: Literal[1] = 1
    target: str
    status: Literal["not run", "built, not run"] = "not run"
    built: str = ""  # what was built for the device, in words
    reason: str  # what is missing on the machine that prepared it
    hint: str
    bundle_sha256: str
    graph: ParityResult | None  # of the graph on ONNX Runtime's CPU provider against torch
    graph_note: str
    held: bool | None = (
        None  # of int8: whether the accuracy gate held for the graph on the CPU; none: not asked
    )
    inputs: dict[str, RawTensor]
    outputs: dict[str, RawTensor]  # the torch model's, for these inputs
    commands: tuple[str, ...]
    versions: dict[str, str]
    created: str


def graph_failures(prepared: Prepared) -> list[str]:
    """What is wrong with the prepared graph already on the CPU, in words."""
    outputs = () if prepared.graph is None else prepared.graph.outputs
    failed = [parity_message(output) for output in outputs if not output.passed]
    if prepared.held is False:
        failed.append("no choice of layers in float keeps the accuracy within the target's bound")
    return failed


@exclusive("export")
def prepare_run(
    run: Run,
    target_name: str,
    target: Target,
    *,
    progress: Callable[[str], None] = lambda line: None,
    device: torch.device | str = "cpu",
) -> Prepared:
    """Write run/export/<target_name>/ for a target whose backend can't run here.

    The torch model is evaluated on `device`. Raises ConfigError where the backend can run, or where a verified bundle would be overwritten.
    """
    availability = get_backend(target.backend).availability(target)
    if availability.available:
        raise ConfigError(
            f"target '{target_name}' can run here", "export it: `compactmtl export RUN --target NAME`"
        )
    if (run.path / EXPORT / target_name / VERIFICATION_FILE).exists():
        raise ConfigError(
            f"{run.path / 'export' / target_name} holds a bundle that was verified elsewhere",
            "remove or rename it before you prepare another",
        )
    check_names(run, target)
    model = run.load_compact() if run.has_compact else run.load_plain()
    data = Validation.load(run, target)
    writer = ArtifactWriter(run, target, data.images[: target.latency.batch])
    interface = writer.interface
    with new_folder(run.path / EXPORT / target_name) as folder:
        path = folder / MODEL_FILE
        strings = provenance(run)
        reference = evaluate_on(model, device, data.loader, run.tasks, finite=True)
        # The search for layers that int8 leaves in float has only the CPU to ask.
        scoring = Scoring(run, target, interface, data, reference, open_graph)
        record = writer.write(model, path, metadata=strings, check=scoring.failed, progress=progress)
        ahead = get_backend(target.backend).build_ahead(path, target)
        if ahead is not None:
            progress(f"built {ahead.files[0].name}")
        files = () if ahead is None else ahead.files
        wrapped = interface.wrap(model).eval()
        info = bundle_info(writer, target_name, path, strings, record, files)
        golden = write_golden(
            folder, info, run.tasks, partial(_run_torch, wrapped), f"torch {torch.__version__}, float32"
        )
        bundle = write_bundle(folder, info.model_copy(update={"golden": golden}))
        progress("running the graph on the CPU")
        graph, note = None, ""
        try:
            with open_graph(path, target) as runner:
                graph = compare_outputs(wrapped, runner, data.cases(target, interface), target, str(path))
                note = "the graph on ONNX Runtime's CPU provider; says nothing of the device's own arithmetic"
        except CompactError as error:
            note = f"not run: {error.message}"
        fed = writer.inputs
        with torch.no_grad():
            outputs = wrapped(fed)
        inputs = {INPUT: _raw(folder, f"input.{INPUT}.bin", fed.numpy())}
        prepared = Prepared(
            target=target_name,
            status="not run" if ahead is None else "built, not run",
            built="" if ahead is None else ahead.summary,
            reason=availability.reason,
            hint=availability.hint,
            bundle_sha256=bundle.sha256,
            graph=graph,
            graph_note=note,
            held=None if record is None else record.held,
            inputs=inputs,
            outputs={
                name: _raw(folder, f"reference.{name}.bin", array.numpy()) for name, array in outputs.items()
            },
            commands=_commands(folder, path, target, inputs),
            versions=package_versions(),
            created=datetime.now(UTC).isoformat(timespec="seconds"),
        )
        write_text(folder / PREPARED_FILE, prepared.model_dump_json(indent=2) + "\n")
        write_hashes(folder)
    return prepared


def _run_torch(model: nn.Module, arrays: Arrays) -> dict[str, NDArray[Any]]:
    """The model in float32 for arrays of its one input."""
    (array,) = arrays.values()
    with torch.no_grad():
        outputs: dict[str, torch.Tensor] = model(torch.from_numpy(array))
    return {name: output.numpy() for name, output in outputs.items()}


def _raw(folder: Path, name: str, array: NDArray[Any]) -> RawTensor:
    path = folder / name
    path.write_bytes(np.ascontiguousarray(array).tobytes())
    return RawTensor(file=name, shape=tuple(array.shape), dtype=array.dtype.name, sha256=sha256_file(path))


def _commands(folder: Path, path: Path, target: Target, inputs: dict[str, RawTensor]) -> tuple[str, ...]:
    """Write the backend's scripts that build and run the graph on its device; their names."""
    shapes, _ = model_tensors(path)
    files = {name: tensor.file for name, tensor in inputs.items()}
    scripts = get_backend(target.backend).scripts(path.name, target, shapes, files)
    for name, text in scripts.items():
        (folder / name).write_text(text, encoding="utf-8")
        (folder / name).chmod(0o755)
    return tuple(scripts)
