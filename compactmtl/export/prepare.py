"""A bundle for a target that can't run here: the exact graph, its inputs and outputs, and the command; marked not run.

Where the backend can build for a device that is not here, what it built is in the bundle too: built, not run.

What is checked is the graph alone, on ONNX Runtime's CPU provider: that shows that precision pass and surgery kept the
function, and nothing of the arithmetic, speed or memory of the device that it is meant for.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from compactmtl.artifacts.files import new_folder, sha256_file, write_text
from compactmtl.artifacts.hashes import write_hashes
from compactmtl.artifacts.layout import EXPORT, MODEL_FILE, PREPARED_FILE, VERIFICATION_FILE
from compactmtl.artifacts.lock import exclusive
from compactmtl.artifacts.told import now
from compactmtl.backends import get_backend, open_graph
from compactmtl.backends.torch.runner import TorchRunner
from compactmtl.backends.versions import package_versions
from compactmtl.config.schema import Frozen
from compactmtl.config.target import Target
from compactmtl.errors import CompactError, ConfigError
from compactmtl.export.bundle import write_bundle
from compactmtl.export.in_bundle.shared import file_name
from compactmtl.export.onnx import model_tensors
from compactmtl.export.run import ExportedRun
from compactmtl.export.verified import Exported, bundle_info, check_names
from compactmtl.graph.inputs import as_arguments, tensors_in
from compactmtl.runs import Run
from compactmtl.verify.gates import parity_message
from compactmtl.verify.parity import compare_outputs, reference_outputs
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
    check_names(target, run.tasks)
    with new_folder(run.path / EXPORT / target_name) as folder:
        return write_prepared(folder, ExportedRun(run, target_name, target, device=device), progress)


def write_prepared(folder: Path, one: Exported, progress: Callable[[str], None]) -> Prepared:
    """Write the bundle of `one`, for a device that is not here, into an empty folder."""
    target = one.target
    backend = get_backend(target.backend)
    availability = backend.availability(target)
    path = folder / MODEL_FILE
    # The search for layers that int8 leaves in float has only the CPU to ask.
    record = one.writer.write(
        one.models[one.subject], path, metadata=one.provenance, check=one.check(open_graph), progress=progress
    )
    ahead = backend.build_ahead(path, target)
    if ahead is not None:
        progress(f"built {ahead.files[0].name}")
    info = bundle_info(one, path, record, () if ahead is None else ahead.files)
    deployed, names = one.deployed, one.output_names
    torch_runner = TorchRunner(deployed, one.writer.input_names, names)
    golden = one.golden(folder, info, torch_runner.run, f"torch {torch.__version__}, float32")
    bundle = write_bundle(folder, info.model_copy(update={"golden": golden}))
    progress("running the graph on the CPU")
    graph, note = None, ""
    try:
        with open_graph(path, target) as runner:
            graph = compare_outputs(deployed, runner, one.cases(), target, str(path), names)
            note = "the graph on ONNX Runtime's CPU provider; says nothing of the device's own arithmetic"
    except CompactError as error:
        note = f"not run: {error.message}"
    fed = dict(zip(one.writer.input_names, tensors_in(one.writer.inputs), strict=True))
    outputs = reference_outputs(deployed, as_arguments(deployed, one.writer.inputs), names)
    inputs = {
        name: _raw(folder, f"input.{file_name(name)}.bin", tensor.numpy(force=True))
        for name, tensor in fed.items()
    }
    prepared = Prepared(
        target=one.target_name,
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
            name: _raw(folder, f"reference.{file_name(name)}.bin", array) for name, array in outputs.items()
        },
        commands=_commands(folder, path, target, inputs),
        versions=package_versions(),
        created=now(),
    )
    write_text(folder / PREPARED_FILE, prepared.model_dump_json(indent=2) + "\n")
    write_hashes(folder)
    return prepared


def _raw(folder: Path, name: str, array: NDArray[Any]) -> RawTensor:
    path = folder / name
    if path.exists():
        raise ConfigError(f"the files of two tensors would both be {name}", "rename one of the tensors")
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
