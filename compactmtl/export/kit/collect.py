"""Take a device's results into the bundle that they are of: checks, metrics, gates."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from compactmtl.artifacts.arrays import load_arrays
from compactmtl.artifacts.files import sha256_file
from compactmtl.artifacts.layout import EXPORT
from compactmtl.artifacts.lock import exclusive
from compactmtl.artifacts.told import now
from compactmtl.backends import Description, get_backend
from compactmtl.backends.precision import PrecisionError, show_layers
from compactmtl.config.target import Target
from compactmtl.data import build_loader, load_dataset
from compactmtl.data.inputs import Images, parts
from compactmtl.data.inputs import count as size_of_batch
from compactmtl.data.sources import choose, first
from compactmtl.errors import ArtifactError, DataError
from compactmtl.export.artifact import interface_of
from compactmtl.export.bundle import Bundle
from compactmtl.export.kit.files import (
    DeviceRecord,
    Digest,
    Manifest,
    Results,
    find_manifest,
    keep_record,
    read_results,
)
from compactmtl.export.kit.on_device import IMAGES, INPUTS, REFERENCES, SCRIPT
from compactmtl.runs import Run
from compactmtl.verify.accuracy import evaluate
from compactmtl.verify.gates import check_gates
from compactmtl.verify.latency import latency_result, latency_stats
from compactmtl.verify.parity import NonFiniteError, as_parity
from compactmtl.verify.result import (
    AccuracyResult,
    GateResult,
    LatencyResult,
    ParityResult,
    PhaseTimes,
)
from compactmtl.verify.tally import Differences

ROLES = {
    INPUTS: "the inputs",
    REFERENCES: "the references",
    IMAGES: "the packed images",
    SCRIPT: "the script",
}
_MEND = "copy the kit to the device again and run kit.py there"


@dataclass(frozen=True)
class Collected:
    """A device's record, its bundle, and whether a former record of that device was replaced."""

    record: DeviceRecord
    bundle: Path
    replaced: bool


@exclusive("collect")
def collect_results(
    run: Run, path: Path, *, name: str = "", progress: Callable[[str], None] = lambda line: None
) -> Collected:
    """Add what a kit found on a device to the run's bundle for that target, with the target's gates.

    `name` replaces the device's own. A gate that fails is in the record, which is kept; the caller decides.

    Raises ArtifactError where the results were changed, are of another run or export, or of a kit whose files were
    changed; DataError where the packed images are not those of the val split; NonFiniteError where an output of the
    device held NaN or infinity.
    """
    results = read_results(path)
    found = find_manifest(run.path / EXPORT, results.kit)
    if found is None:
        raise ArtifactError(
            f"{path} is not of a kit of {run.path}: no bundle of this run knows a kit {results.kit[:12]}",
            "name the run that the kit was exported from; where it was exported again since, export a new kit too",
        )
    folder, manifest = found
    bundle = Bundle.open(folder)
    if bundle.sha256 != manifest.bundle_sha256:
        raise ArtifactError(
            f"{path} is of a former export of {folder}", "export a new kit, and run it on the device"
        )
    _check_files(path, results, manifest)
    _check_complete(path, results, manifest)
    target = bundle.info.target
    if results.parity.not_finite:
        told = ", ".join(f"{count} of '{name}'" for name, count in results.parity.not_finite.items())
        raise NonFiniteError(
            f"{results.device}: values that are NaN or infinite: {told}",
            "float16 overflows above 65504: keep more layers in float32, or take bf16 or fp32",
        )
    parity = _parity(results, target)
    types, layers = _types(bundle, results, manifest)
    latency = _latency(results, manifest, target, layers)
    accuracy = None
    not_run = {"accuracy": "the kit holds no images (--kit-images N)"}
    if manifest.images is not None:
        progress(f"measuring accuracy on {manifest.images.count} validation images")
        accuracy, not_run = _accuracy(path, run, results, manifest, bundle), {}
    gates = (
        types,
        *check_gates(
            target,
            run.measured,
            parity=parity,
            accuracy=accuracy,
            latency=latency,
            subject=manifest.subject,
            megabytes=bundle.megabytes,
        ),
    )
    record = DeviceRecord(
        name=name or results.name,
        device=results.device,
        target=manifest.target_name,
        kit=results.kit,
        results=results.digest,
        bundle_sha256=bundle.sha256,
        parity=parity,
        accuracy=accuracy,
        latency=latency,
        phases={name: _phases(runs) for name, runs in results.latency.phases_ms.items()},
        build_seconds={
            name: facts.build_seconds
            for name, facts in results.models.items()
            if facts.build_seconds is not None
        },
        megabytes=bundle.megabytes,
        gates=gates,
        passed=all(gate.passed for gate in gates),
        not_run=not_run,
        held_back=results.held_back,
        machine=results.machine,
        states=results.states,
        versions=results.versions,
        measured=results.created,
        collected=now(),
    )
    return Collected(record, folder, keep_record(folder, record))


def _check_files(path: Path, results: Results, manifest: Manifest) -> None:
    """Raise ArtifactError where the device had other files than the kit was written with."""
    for name, expected in manifest.files.items():
        found = results.files.get(name)
        if found == expected:
            continue
        role = ROLES.get(name, "the model")
        what = "is missing from the results" if found is None else "is another than the kit was written with"
        raise ArtifactError(f"{path}: {role} on the device, {name}, {what}", _MEND)


def _check_complete(path: Path, results: Results, manifest: Manifest) -> None:
    """Raise ArtifactError where the results lack a model, an output or a round."""
    latency = results.latency
    for what, given, expected in (
        ("models", results.models, manifest.models),
        ("latencies", latency.samples_ms, manifest.models),
        ("processor times", latency.process_ms, manifest.models),
        ("outputs", {**results.parity.outputs, **results.parity.not_finite}, manifest.outputs),
    ):
        if set(given) != set(expected):
            raise ArtifactError(
                f"{path}: {what} of {', '.join(given)}, expected {', '.join(expected)}", _MEND
            )
    rounds = {len(samples) for samples in (*latency.samples_ms.values(), *latency.process_ms.values())}
    if len(rounds) != 1 or not all(rounds):
        raise ArtifactError(f"{path}: models were timed in unequal numbers of rounds", _MEND)
    if (results.images is None) != (manifest.images is None):
        raise ArtifactError(f"{path}: outputs for the packed images are missing", _MEND)


def _parity(results: Results, target: Target) -> ParityResult:
    outputs = tuple(
        as_parity(name, Differences(**one.model_dump()), target.tolerance(name))
        for name, one in results.parity.outputs.items()
    )
    return ParityResult(
        outputs=outputs, samples=results.parity.samples, passed=all(one.passed for one in outputs)
    )


def _types(bundle: Bundle, results: Results, manifest: Manifest) -> tuple[GateResult, dict[str, int]]:
    """The gate on the types in which the device ran the bundle's model, and its layers by precision."""
    target = bundle.info.target
    facts = results.models[manifest.subject]
    layers: dict[str, int] = {}
    try:
        layers = get_backend(target.backend).check_device(facts.model_dump(), bundle.model_path, target)
    except (PrecisionError, ArtifactError) as error:
        passed, message = False, error.message
    else:
        passed = True
        message = (
            f"{target.precision} was asked for: {show_layers(layers) or 'no layer with weights is there'}"
        )
    gate = GateResult(
        gate="types",
        subject=manifest.subject,
        bound=1.0,
        value=float(passed),
        passed=passed,
        message=message,
    )
    return gate, layers


def _latency(
    results: Results, manifest: Manifest, target: Target, layers: Mapping[str, int]
) -> LatencyResult:
    """What the device's times say, by the rules of every latency here."""
    runtime, version = next(iter(results.versions.items()))
    facts = results.latency
    stats = {}
    for name, one in manifest.models.items():
        told = results.models[name]
        description = Description(
            backend=runtime,
            version=version,
            provider=told.provider,
            device=results.device,
            precision=one.precision,
            threads=told.threads,
            layers=dict(layers if name == manifest.subject else told.layers or {}),
        )
        stats[name] = latency_stats(
            name,
            facts.samples_ms[name],
            facts.process_ms[name],
            facts.batch,
            description,
            includes_transfers=True,
        )
    return latency_result(
        stats,
        manifest.reference,
        warmup=facts.warmup,
        settle=facts.settle,
        load_average=facts.load_average,
    )


def _phases(runs: tuple[tuple[float, float, float], ...]) -> PhaseTimes:
    copy_in, compute, copy_out = (float(np.median(times)) for times in zip(*runs, strict=True))
    return PhaseTimes(copy_in_ms=copy_in, compute_ms=compute, copy_out_ms=copy_out, samples=runs)


def _accuracy(path: Path, run: Run, results: Results, manifest: Manifest, bundle: Bundle) -> AccuracyResult:
    """The tasks' metrics of the outputs that the device gave for the packed images."""
    assert results.images is not None and manifest.images is not None
    outputs = _outputs(path, results, manifest, bundle)
    config = run.recipe.data
    dataset = load_dataset(config, "val")
    numbers = first(dataset, manifest.images.count)
    loader = build_loader(choose(dataset, numbers), config, train=False, seed=run.recipe.seed)
    fed = Digest()
    position = 0

    def recorded(images: Images) -> dict[str, Tensor]:
        nonlocal position
        fed.update([one.numpy() for one in parts(images)])
        start, position = position, position + size_of_batch(images)
        return {name: torch.from_numpy(array[start:position]) for name, array in outputs.items()}

    artifact = evaluate(
        interface_of(run, bundle.info.target).runner(recorded), loader, run.tasks, finite=True
    )
    if fed.text != manifest.images.sha256:
        raise DataError(
            f"the first {manifest.images.count} images of the val split are not those that the kit was packed with",
            "give the data that the kit was exported with, such as data.root=/data, or export a new kit",
        )
    return AccuracyResult(
        samples=manifest.images.count,
        torch=manifest.images.torch,
        artifact=artifact,
        baseline=manifest.images.baseline,
    )


def _outputs(path: Path, results: Results, manifest: Manifest, bundle: Bundle) -> dict[str, NDArray[Any]]:
    """The outputs file beside the results. Raises ArtifactError where it is missing, another, or incomplete."""
    assert results.images is not None and manifest.images is not None
    file = path.with_name(results.images.file)
    if not file.is_file():
        raise ArtifactError(
            f"{file} is missing", f"take it from the device too, and put it beside {path.name}"
        )
    if sha256_file(file) != results.images.sha256:
        raise ArtifactError(f"{file} is not the file that kit.py wrote with {path.name}", _MEND)
    try:
        outputs = load_arrays(file)
        if not isinstance(outputs, dict):
            raise ValueError("it is a single array without a name")
    except (OSError, ValueError, EOFError) as error:
        raise ArtifactError(f"{file} can't be read: {error}", _MEND) from error
    count = manifest.images.count
    expected = {tensor.name: (count, tensor.dtype) for tensor in bundle.info.outputs}
    found = {name: (len(array) if array.ndim else 0, array.dtype.name) for name, array in outputs.items()}
    if found != expected:
        raise ArtifactError(f"{file} holds {_listed(found)}, expected {_listed(expected)}", _MEND)
    return outputs


def _listed(arrays: Mapping[str, tuple[int, str]]) -> str:
    return ", ".join(f"{count} {kind} of '{name}'" for name, (count, kind) in arrays.items()) or "nothing"
