"""From a model to a verified bundle, wherever the model comes from: file, parity, accuracy, paired latency, gates."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from compactmtl.artifacts.files import sha256_file
from compactmtl.artifacts.layout import MODEL_FILE
from compactmtl.artifacts.told import Progress, now
from compactmtl.backends import Runner, get_backend
from compactmtl.backends.base import Arrays
from compactmtl.backends.batching import run_batched
from compactmtl.backends.fit import package_version
from compactmtl.backends.model_file import model_files
from compactmtl.backends.versions import package_versions
from compactmtl.config.target import Target
from compactmtl.errors import ConfigError, MissingDependencyError
from compactmtl.export.bundle import write_bundle, write_verification
from compactmtl.export.maps import write_error_maps
from compactmtl.export.onnx import model_tensors, tensor_dtypes
from compactmtl.export.precision import PrecisionRecord
from compactmtl.export.precision.apply import Check
from compactmtl.export.record import (
    BundleInfo,
    Golden,
    InputRecord,
    OutputRecord,
    Runtime,
    Shape,
    Training,
)
from compactmtl.export.timing import measure_artifact
from compactmtl.export.writer import Writer
from compactmtl.verify.gates import Scored, check_gates, export_drops, verified
from compactmtl.verify.parity import check_parity
from compactmtl.verify.result import AccuracyResult, GateResult, TaskMetrics, Verification

SCORED_BATCHES = (1, 3)  # sizes beside the data's own at which a file with a free batch is scored


class Exported(ABC):
    """What is exported for a target, and what is known of it: a run's model, or a module or ONNX file of the user's."""

    name: str  # of the run or model
    target_name: str
    target: Target
    subject: str  # the model's name in the latency table
    models: Mapping[str, Any]  # the dense model it is timed beside, or None, and it itself, by name
    compact: bool  # whether channels were removed
    output_names: Sequence[str] | None = None  # where they are not the model's own
    writer: Writer  # writes it as a file
    deployed: nn.Module  # the module as its file computes it
    metrics: Mapping[str, Scored]  # what its accuracy is judged by, by task
    provenance: Mapping[str, str]  # strings that are kept in the ONNX file

    @abstractmethod
    def cases(self) -> list[Any]:
        """Inputs on which the file is compared with the torch model."""

    def check(self, opener: Callable[[Path, Target], Runner] | None = None) -> Check | None:
        """The accuracy gates that a candidate file fails; None where nothing measures it.

        `opener` opens the file where the target's own backend can't.
        """
        if not self.metrics:
            return None
        opened = opener or get_backend(self.target.backend).open

        def failed(path: Path) -> tuple[GateResult, ...]:
            with opened(path, self.target) as runner:
                accuracy = self.score(runner)
            drops = export_drops(self.target, self.metrics, accuracy)
            return tuple(gate for gate in drops if not gate.passed)

        return failed

    @abstractmethod
    def score(self, runner: Runner) -> AccuracyResult:
        """The metrics of the opened file beside the torch model's, where there are some."""

    @abstractmethod
    def accuracy(self, runner: Runner) -> AccuracyResult:
        """Of the opened file, of the torch model and of the baseline; of 0 samples where nothing measures it."""

    @abstractmethod
    def inputs(self, shapes: Mapping[str, Shape], dtypes: Mapping[str, str]) -> tuple[InputRecord, ...]:
        """What bundle.json says of the file's inputs."""

    @abstractmethod
    def outputs(self, shapes: Mapping[str, Shape], dtypes: Mapping[str, str]) -> tuple[OutputRecord, ...]:
        """What bundle.json says of the file's outputs."""

    @abstractmethod
    def training(self) -> Training:
        """What compactmtl itself reads to rebuild the tasks."""

    @abstractmethod
    def golden(
        self, folder: Path, info: BundleInfo, run: Callable[[Arrays], Arrays], made_by: str
    ) -> Golden | None:
        """Write the golden input and outputs into the bundle; `run` is what ran the model, `made_by` its name."""


def write_verified(folder: Path, one: Exported, progress: Progress) -> Verification:
    """Write the bundle of `one` into an empty folder, and its verification.

    A gate that fails is in the result (`passed` False). Raises what the passes, the backend and parity raise.
    """
    target = one.target
    path = folder / MODEL_FILE
    model = one.models[one.subject]
    record = one.writer.write(model, path, metadata=one.provenance, check=one.check(), progress=progress)
    if built := get_backend(target.backend).build(path, target):
        progress(f"built {built[0].name}")
    info = bundle_info(one, path, record, built)
    with ExitStack() as stack:
        runner = stack.enter_context(get_backend(target.backend).open(path, info.target))
        facts = runner.describe()
        made_by = f"{facts.backend} {facts.version}, {facts.provider}"
        golden = one.golden(folder, info, partial(run_batched, runner), made_by)
        bundle = write_bundle(folder, info.model_copy(update={"golden": golden}))
        progress("comparing outputs")
        deployed, names = one.deployed, one.output_names
        parity = check_parity(deployed, path, one.cases(), target=target, output_names=names)
        if one.metrics:
            progress("measuring accuracy")
        accuracy = one.accuracy(runner)
        progress(f"measuring latency, {target.latency.repeats} rounds")
        latency, measured = measure_artifact(one.writer, one.models, path, runner)
        maps = write_error_maps(folder, deployed, runner, one.writer.inputs, parity, names)
    gates = check_gates(
        target,
        one.metrics,
        parity=parity,
        accuracy=accuracy,
        latency=latency,
        subject=one.subject,
        megabytes=bundle.megabytes,
    )
    verification = Verification(
        target=one.target_name,
        bundle_sha256=bundle.sha256,
        parity=parity,
        accuracy=accuracy,
        latency=latency,
        megabytes=bundle.megabytes,
        gates=gates,
        passed=verified(gates),
        versions=package_versions(),
        created=now(),
        measured=measured,
        error_maps=maps,
    )
    write_verification(folder, verification)
    return verification


def bundle_info(
    one: Exported, path: Path, record: PrecisionRecord | None, built: Sequence[Path] = ()
) -> BundleInfo:
    """What bundle.json says of the model file that was written to `path` and of what the backend has built of it."""
    backend = get_backend(one.target.backend)
    wheel = backend.wheel(one.target)
    shapes_in, shapes_out = model_tensors(path)
    dtypes = tensor_dtypes(path)
    strings = one.provenance
    return BundleInfo(
        run=one.name,
        compact=one.compact,
        target_name=one.target_name,
        target=backend.portable(one.target),
        model=path.name,
        runtime=Runtime(
            name=backend.name, package=wheel, version=package_version(wheel.partition(" ")[0]) or ""
        ),
        files={file.name: sha256_file(file) for file in [*model_files(path), *built]},
        inputs=one.inputs(shapes_in, dtypes),
        outputs=one.outputs(shapes_out, dtypes),
        training=one.training(),
        recipe_sha256=strings.get("compactmtl.recipe_sha256"),
        plan_sha256=strings.get("compactmtl.plan_sha256"),
        weights_sha256=strings.get("compactmtl.weights_sha256"),
        versions=package_versions(),
        created=now(),
        precision=record,
    )


def by_batch(target: Target, score: Callable[[int], TaskMetrics]) -> dict[int, TaskMetrics]:
    """The metrics of a file at batches of other sizes than its data's, where its batch is free."""
    return {size: score(size) for size in SCORED_BATCHES} if target.onnx.dynamic_batch else {}


def check_names(target: Target, outputs: Collection[str]) -> None:
    """Raise ConfigError where the target bounds an output that the model doesn't have: nothing would hold it."""
    if unknown := sorted(set(target.parity.tasks) - set(outputs)):
        raise ConfigError(
            f"parity.tasks names {', '.join(unknown)}, which is no output; the outputs are {', '.join(outputs)}",
            "name tasks of the recipe, or outputs of the model",
        )


def check_target(name: str, target: Target, *, available: bool = True) -> None:
    """Raise ConfigError where a target runs no exported file, and MissingDependencyError where it can't run here.

    `available` False: it need not run here.
    """
    backend = get_backend(target.backend)
    if not backend.opens_files:
        raise ConfigError(
            f"target '{name}' has backend {backend.name}, which runs no exported file",
            "choose a target whose backend opens files; `compactmtl targets list` shows them",
        )
    if objection := backend.objection(target):
        raise ConfigError(f"target '{name}': {objection}", "change that key of the target")
    found = backend.availability(target)
    if available and not found.available:
        raise MissingDependencyError(f"target '{name}' can't run here: {found.reason}", found.hint)
