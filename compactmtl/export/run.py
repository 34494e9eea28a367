"""From a run to a verified bundle: export, parity, accuracy on the artifact, paired latency, gates."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import torch
from torch import Tensor

from compactmtl.backends import Runner, get_backend
from compactmtl.backends.machine import package_versions
from compactmtl.config.target import Target
from compactmtl.data import build_loader, load_dataset, preprocessing
from compactmtl.data.base import Sample, VisionDataset
from compactmtl.data.loader import Loader
from compactmtl.errors import ConfigError, DataError, MissingDependencyError
from compactmtl.export.bundle import (
    MODEL_FILE,
    BundleInfo,
    TensorRecord,
    bundle_tasks,
    write_bundle,
    write_verification,
)
from compactmtl.export.onnx import Shape, data_file, export_onnx, model_tensors
from compactmtl.models import MultiTaskModel
from compactmtl.train import Run
from compactmtl.train.files import new_folder, sha256_file
from compactmtl.train.run import COMPACT as COMPACT_FOLDER
from compactmtl.train.run import recipe_hash
from compactmtl.verify.accuracy import array_runner, evaluate, torch_runner
from compactmtl.verify.gates import check_gates
from compactmtl.verify.latency import measure_latency
from compactmtl.verify.parity import check_parity
from compactmtl.verify.result import (
    AccuracyResult,
    LatencyResult,
    ParityResult,
    Verification,
)

INPUT = "image"
DENSE, COMPACT = "dense", "compact"  # names in the latency table
PARITY_IMAGES = 8  # real images, beside random ones

Progress = Callable[[str], None]


def export_run(
    run: Run,
    target_name: str,
    target: Target,
    baseline: Run | None = None,
    *,
    progress: Progress = lambda line: None,
) -> Verification:
    """Export a run for a target and verify the artifact; writes run/export/<target_name>/.

    What is exported is the run's compact model where there is one, else its contracted model. Its accuracy is
    measured on the artifact over the val split against the torch model, and against the dense `baseline` where
    one is given. Its latency is measured paired with the baseline's or, without one, with the run's own
    contracted model before surgery. `progress` is told each step in a line.

    A gate that fails is in the result (`passed` False) and the bundle is kept, marked; the caller decides.
    A former bundle stays as it was where anything raises: ConfigError on a target or baseline that doesn't
    fit, ArtifactError on a compact model that isn't of the best checkpoint, MissingDependencyError where
    the backend can't run here, ParityError where the artifact's outputs are not the torch model's or hold NaN.
    """
    _check_target(target_name, target)
    if baseline is not None:
        _check_baseline(run, baseline)
    model = run.load_compact() if run.has_compact else run.load_plain()
    if run.has_compact or baseline is not None:
        dense: MultiTaskModel | None = run.load_plain() if baseline is None else baseline.load_plain()
    else:
        dense = None
    data = _Validation.load(run, target)
    provenance = _provenance(run)
    with new_folder(run.path / "export" / target_name) as folder:
        progress(f"exporting to ONNX (opset {target.onnx.opset})")
        example = data.images[: target.latency.batch]
        path = _export(model, example, folder / MODEL_FILE, target, provenance)
        bundle = write_bundle(folder, _bundle_info(run, target_name, target, path, provenance))
        with ExitStack() as stack:
            runner = stack.enter_context(bundle.runner())
            progress("comparing outputs with torch")
            parity = check_parity(model, path, _parity_cases(data.images, target), target=target)
            progress(f"measuring accuracy on {data.samples} validation images")
            accuracy = _accuracy(run, model, runner, data, None if baseline is None else dense)
            progress(f"measuring latency, {target.latency.repeats} rounds")
            subject = COMPACT if run.has_compact else "model"
            latency = _latency(subject, runner, dense, example, target, stack)
        verification = _verification(
            target_name, target, run, bundle.sha256, bundle.megabytes, subject, parity, accuracy, latency
        )
        write_verification(folder, verification)
    return verification


def _check_target(name: str, target: Target) -> None:
    backend = get_backend(target.backend)
    if backend.name == "torch":
        raise ConfigError(
            f"target '{name}' has backend torch, which runs no exported file",
            "choose a target whose backend is onnxruntime; `compactmtl targets list` shows them",
        )
    availability = backend.availability(target)
    if not availability.available:
        raise MissingDependencyError(
            f"target '{name}' can't run here: {availability.reason}", availability.hint
        )


def _check_baseline(run: Run, baseline: Run) -> None:
    """A baseline has the same tasks on the same kind of images; else neither metrics nor latencies compare.

    Its data.root doesn't matter: it is evaluated on the run's own images.
    """
    if missing := sorted(set(run.tasks) - set(baseline.tasks)):
        raise ConfigError(
            f"baseline {baseline.path} lacks the tasks {missing} of {run.path}",
            "give a run of the same tasks",
        )
    for key in ("name", "size", "options"):
        one, other = getattr(run.recipe.data, key), getattr(baseline.recipe.data, key)
        if one != other:
            raise ConfigError(
                f"baseline {baseline.path} has data.{key} {other!r}, {run.path} has {one!r}",
                "give a run on the same data at the same size",
            )


class _First:
    """The first samples of a data set."""

    def __init__(self, whole: VisionDataset, count: int) -> None:
        self.whole, self.count = whole, count
        self.specs, self.split = whole.specs, whole.split

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Sample:
        return self.whole[index]

    def identifier(self, index: int) -> str:
        return self.whole.identifier(index)


@dataclass(frozen=True)
class _Validation:
    """The split that verification looks at: a loader over its samples and the first images of it."""

    loader: Loader
    images: Tensor  # float32 (N, 3, H, W), normalized, at least as many as one batch of the target
    samples: int

    @classmethod
    def load(cls, run: Run, target: Target) -> _Validation:
        config = run.recipe.data
        dataset = load_dataset(config, "val")
        if len(dataset) == 0:
            raise DataError("the val split is empty: there is nothing to verify on", "check data.root")
        samples = min(target.accuracy.samples or len(dataset), len(dataset))
        loader = build_loader(_First(dataset, samples), config, train=False, seed=run.recipe.seed)
        images = _first_images(loader, max(PARITY_IMAGES, target.latency.batch))
        return cls(loader, images, samples)


def _first_images(loader: Loader, count: int) -> Tensor:
    """The first `count` images, repeated from the start where the set has fewer."""
    found: list[Tensor] = []
    for batch in loader:
        found.append(batch["image"])
        if sum(map(len, found)) >= count:
            break
    images = torch.cat(found)
    return images.repeat(-(-count // len(images)), 1, 1, 1)[:count]


def _provenance(run: Run) -> dict[str, str]:
    """Strings kept in the ONNX file: which run, recipe and plan it came from, with which versions."""
    plan = run.path / COMPACT_FOLDER / "plan.json"
    return {
        "compactmtl.run": run.name,
        "compactmtl.recipe_sha256": recipe_hash(run.recipe),
        "compactmtl.weights_sha256": sha256_file(run.deployed_weights),
        **({"compactmtl.plan_sha256": sha256_file(plan)} if run.has_compact else {}),
        **{f"version.{name}": version for name, version in package_versions().items()},
    }


def _export(
    model: MultiTaskModel, example: Tensor, path: Path, target: Target, metadata: Mapping[str, str]
) -> Path:
    return export_onnx(
        model,
        (example,),
        path,
        input_names=[INPUT],
        opset=target.onnx.opset,
        dynamic_batch=target.onnx.dynamic_batch,
        metadata=metadata,
    )


def _bundle_info(
    run: Run, target_name: str, target: Target, path: Path, provenance: Mapping[str, str]
) -> BundleInfo:
    inputs, outputs = model_tensors(path)
    files = [file for file in (path, data_file(path)) if file.exists()]
    return BundleInfo(
        run=run.name,
        compact=run.has_compact,
        target_name=target_name,
        target=target,
        model=path.name,
        files={file.name: sha256_file(file) for file in files},
        inputs=_records(inputs),
        outputs=_records(outputs),
        tasks=bundle_tasks(run.tasks, run.recipe.tasks),
        preprocessing=preprocessing(run.recipe.data),
        recipe_sha256=provenance["compactmtl.recipe_sha256"],
        plan_sha256=provenance.get("compactmtl.plan_sha256"),
        weights_sha256=provenance["compactmtl.weights_sha256"],
        versions=package_versions(),
        created=_now(),
    )


def _records(tensors: Mapping[str, Shape]) -> tuple[TensorRecord, ...]:
    return tuple(TensorRecord(name=name, shape=shape, dtype="float32") for name, shape in tensors.items())


def _parity_cases(images: Tensor, target: Target) -> list[Tensor | tuple[Tensor, ...]]:
    """Real images and noise in batches that the artifact takes; of several sizes where its batch is free."""
    batch = target.latency.batch
    starts = range(0, len(images) - batch + 1, batch)
    cases: list[Tensor | tuple[Tensor, ...]] = [images[start : start + batch] for start in starts]
    noise = torch.randn(batch, *images.shape[1:], generator=torch.Generator().manual_seed(0))
    cases.append(noise)
    if target.onnx.dynamic_batch:
        cases += [images[:1], images[:3]]
    return cases


def _accuracy(
    run: Run, model: MultiTaskModel, runner: Runner, data: _Validation, baseline: MultiTaskModel | None
) -> AccuracyResult:
    return AccuracyResult(
        samples=data.samples,
        torch=evaluate(torch_runner(model), data.loader, run.tasks),
        artifact=evaluate(array_runner(runner), data.loader, run.tasks),
        baseline=None if baseline is None else evaluate(torch_runner(baseline), data.loader, run.tasks),
    )


def _latency(
    subject: str,
    runner: Runner,
    dense: MultiTaskModel | None,
    example: Tensor,
    target: Target,
    stack: ExitStack,
) -> LatencyResult:
    """Paired with the dense model on the same backend; the artifact alone where it is the dense model."""
    runners: dict[str, Runner] = {}
    if dense is not None:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="compactmtl-")))
        path = _export(dense, example, folder / MODEL_FILE, target, {})
        runners[DENSE] = stack.enter_context(get_backend(target.backend).open(path, target))
    runners[subject] = runner
    return measure_latency(runners, example, warmup=target.latency.warmup, repeats=target.latency.repeats)


def _verification(
    target_name: str,
    target: Target,
    run: Run,
    bundle_sha256: str,
    megabytes: float,
    subject: str,
    parity: ParityResult,
    accuracy: AccuracyResult,
    latency: LatencyResult,
) -> Verification:
    gates = check_gates(
        target,
        run.tasks,
        parity=parity,
        accuracy=accuracy,
        latency=latency,
        subject=subject,
        megabytes=megabytes,
    )
    return Verification(
        target=target_name,
        bundle_sha256=bundle_sha256,
        parity=parity,
        accuracy=accuracy,
        latency=latency,
        megabytes=megabytes,
        gates=gates,
        passed=all(gate.passed for gate in gates),
        versions=package_versions(),
        created=_now(),
    )


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
