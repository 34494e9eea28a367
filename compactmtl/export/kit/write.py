"""Write a device kit: a bundle's models with what to feed them, what torch answers, and kit.py."""

from __future__ import annotations

import math
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from compactmtl.artifacts.files import new_folder, sha256_file
from compactmtl.artifacts.layout import EXPORT, MODEL_FILE
from compactmtl.artifacts.lock import exclusive
from compactmtl.artifacts.told import now
from compactmtl.backends import get_backend
from compactmtl.backends.base import DeviceKit
from compactmtl.backends.model_file import model_files
from compactmtl.data import build_loader, load_dataset
from compactmtl.data.inputs import between, given, parts
from compactmtl.data.sources import choose, first
from compactmtl.errors import ArtifactError, ConfigError, command
from compactmtl.export.artifact import ArtifactWriter, Validation
from compactmtl.export.bundle import Bundle
from compactmtl.export.kit.files import Digest, KitImages, KitModel, Manifest, Plan, keep_manifest
from compactmtl.export.kit.on_device import IMAGES, INPUTS, MANIFEST, REFERENCES, RESULTS, SCRIPT, array_key
from compactmtl.export.kit.script import script
from compactmtl.export.timing import COMPACT, DENSE
from compactmtl.graph.inputs import as_arguments
from compactmtl.models import MultiTaskModel
from compactmtl.runs import Run
from compactmtl.verify.accuracy import evaluate, torch_runner
from compactmtl.verify.parity import reference_outputs
from compactmtl.verify.result import SINGLE

README = "README.txt"
MODELS = "models"
ZIP = ".zip"


@dataclass(frozen=True)
class WrittenKit:
    """A kit that was written."""

    path: Path
    megabytes: float
    images: int
    install: str  # what brings the runtime to the device


@exclusive("export")
def write_kit(
    run: Run,
    target_name: str,
    path: Path,
    baseline: Run | None = None,
    *,
    images: int = 0,
    progress: Callable[[str], None] = lambda line: None,
) -> WrittenKit:
    """Write a kit of the run's bundle for a target as a folder or, where `path` ends in .zip, one file.

    It holds the bundle's model and, to be timed beside it, the models that `export_run` times: the dense one, of
    `baseline` where one is given, and float32 forms of lower precisions. `images` is how many images of the val split
    are packed; their targets stay here.

    Raises ArtifactError where there is no such bundle or it is not of the run's model, ConfigError where the backend
    has no kit or `path` holds something else.
    """
    bundle = Bundle.open(run.path / EXPORT / target_name)
    target, info = bundle.info.target, bundle.info
    if info.weights_sha256 not in (None, sha256_file(run.deployed_weights)):
        raise ArtifactError(
            f"{bundle.path} is of an earlier model of {run.path}",
            "export the run again: compactmtl export RUN --target NAME",
        )
    backend = get_backend(target.backend)
    device = backend.device_kit(target, {tensor.name: tensor.shape for tensor in info.inputs})
    if device is None:
        raise ConfigError(f"backend {backend.name} has no device kit", "choose a target of another backend")
    check_place(path)
    data = Validation.load(run, target)
    writer = ArtifactWriter(run, target, between(data.images, 0, target.latency.batch))
    model = run.load_compact() if run.has_compact else run.load_plain()
    subject = COMPACT if run.has_compact else "model"
    dense = (baseline or run).load_plain() if run.has_compact or baseline is not None else None
    with kit_folder(path) as folder:
        progress("writing the kit's models")
        models = _write_models(folder, writer, {DENSE: dense, subject: model}, bundle)
        wrapped = writer.interface.wrap(model)
        cases = data.cases(target, writer.interface)
        outputs = _write_cases(folder, writer.input_names, wrapped, cases)
        packed = None
        if images:
            progress("packing images of the val split")
            packed = _write_images(folder, writer, images, model, None if baseline is None else dense)
        (folder / SCRIPT).write_text(script(device.runtime, device.install), encoding="utf-8")
        files = sorted(file for file in folder.rglob("*") if file.is_file())
        tolerances = {name: target.tolerance(name) for name in outputs}
        manifest = Manifest(
            run=run.name,
            target_name=target_name,
            bundle_sha256=bundle.sha256,
            subject=subject,
            reference=DENSE if dense is not None else subject,
            models=models,
            runtime=dict(device.settings),
            inputs=writer.input_names,
            outputs=outputs,
            tolerances={name: None if math.isinf(one) else one for name, one in tolerances.items()},
            cases=len(cases),
            latency=Plan(
                warmup=target.latency.warmup, repeats=target.latency.repeats, settle=target.latency.settle
            ),
            images=packed,
            files={file.relative_to(folder).as_posix(): sha256_file(file) for file in files},
            created=now(),
        )
        content = (manifest.model_dump_json(indent=1) + "\n").encode()
        (folder / MANIFEST).write_bytes(content)
        (folder / README).write_text(_readme(manifest, device), encoding="utf-8")
        megabytes = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) / 1e6
    keep_manifest(bundle.path, content)
    return WrittenKit(path, megabytes, packed.count if packed else 0, device.install)


def check_place(path: Path) -> None:
    """Raise ConfigError where writing the kit would replace anything but a kit."""
    if path.suffix == ZIP:
        if path.is_dir():
            raise ConfigError(f"{path} is a folder", "name a file, or a folder whose name has no .zip")
    elif path.exists() and not (path.is_dir() and ((path / MANIFEST).is_file() or not any(path.iterdir()))):
        raise ConfigError(f"{path} exists and is no kit", "choose another folder or file for it")


@contextmanager
def kit_folder(path: Path) -> Iterator[Path]:
    """A folder to fill, which becomes `path` or, where that ends in .zip, that file; nothing where anything raises."""
    if path.suffix != ZIP:
        with new_folder(path) as folder:
            yield folder
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="compactmtl-kit-") as scratch:
        folder = Path(scratch)
        yield folder
        partial = path.with_name(f".{path.name}.tmp")
        try:
            with zipfile.ZipFile(partial, "w", zipfile.ZIP_DEFLATED) as packed:
                for file in sorted(folder.rglob("*")):
                    if file.is_file():
                        packed.write(file, Path(path.stem) / file.relative_to(folder))
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)


def _write_models(
    folder: Path, writer: ArtifactWriter, models: Mapping[str, MultiTaskModel | None], bundle: Bundle
) -> dict[str, KitModel]:
    """The bundle's model file as it is, and what it is timed beside; those of lower precision in float32 too."""
    target = writer.target
    written: dict[str, KitModel] = {}

    def place(name: str) -> Path:
        path = folder / MODELS / name.replace(" ", "-") / MODEL_FILE
        path.parent.mkdir(parents=True)
        return path

    for name, model in models.items():
        if model is None:
            continue
        path = place(name)
        if name == DENSE:
            writer.write(model, path)
        else:
            for file in model_files(bundle.model_path):
                shutil.copyfile(file, path.parent / file.name)
        written[name] = KitModel(file=path.relative_to(folder).as_posix(), precision=target.precision)
    if target.precision != "fp32":
        for name, model in models.items():
            if model is not None:
                path = place(name + SINGLE)
                writer.at("fp32").write(model, path)
                written[name + SINGLE] = KitModel(file=path.relative_to(folder).as_posix(), precision="fp32")
    return written


def _write_cases(
    folder: Path, input_names: Sequence[str], model: torch.nn.Module, cases: list[Any]
) -> tuple[str, ...]:
    """Inputs and the torch model's outputs of every case; the outputs' names."""
    inputs: dict[str, NDArray[Any]] = {}
    references: dict[str, NDArray[Any]] = {}
    names: tuple[str, ...] = ()
    for index, case in enumerate(cases):
        for name, one in zip(input_names, parts(case), strict=True):
            inputs[array_key(index, name)] = one.numpy()
        outputs = reference_outputs(model, as_arguments(model, case))
        names = tuple(outputs)
        references |= {array_key(index, name): array for name, array in outputs.items()}
    save_arrays(folder / INPUTS, inputs)
    save_arrays(folder / REFERENCES, references)
    return names


def _write_images(
    folder: Path, writer: ArtifactWriter, count: int, model: MultiTaskModel, dense: MultiTaskModel | None
) -> KitImages:
    """The first images of the val split as the file takes them, and the torch models' metrics on them."""
    run = writer.run
    config = run.recipe.data
    dataset = load_dataset(config, "val")
    numbers = first(dataset, count)
    loader = build_loader(choose(dataset, numbers), config, train=False, seed=run.recipe.seed)
    fed = [parts(writer.interface.feed(given(batch))) for batch in loader]
    columns = [np.concatenate([one.numpy() for one in column]) for column in zip(*fed, strict=True)]
    digest = Digest()
    for batch in fed:
        digest.update([one.numpy() for one in batch])
    save_arrays(folder / IMAGES, dict(zip(writer.input_names, columns, strict=True)))
    return KitImages(
        count=len(numbers),
        batch=writer.target.latency.batch,
        sha256=digest.text,
        torch=evaluate(torch_runner(model), loader, run.tasks, finite=True),
        baseline=None if dense is None else evaluate(torch_runner(dense), loader, run.tasks, finite=True),
    )


def save_arrays(path: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Write an .npz, packed."""
    with path.open("wb") as file:
        np.savez_compressed(file, **dict(arrays))  # type: ignore[arg-type]


def _readme(manifest: Manifest, device: DeviceKit) -> str:
    images = "It holds no images of the data set but those that outputs are compared on."
    if manifest.images is not None:
        images = f"{IMAGES} holds {manifest.images.count} images of the data set's val split, without their targets."
    return f"""Device kit of {manifest.run} for {manifest.target_name}

On the device, with Python 3.8 or later, numpy and the runtime ({device.install}):

    python {SCRIPT}

It writes {RESULTS}. Take that file (and the .outputs.npz beside it, if there is one) back, and run

    {command("collect", "RUN", RESULTS)}

{images}
The first images of the val split are in {INPUTS}. They are part of your data: its licence and your duties towards the people in
it go with the kit, and with the outputs. Pass the kit on only to whom you may pass on the data.
"""


def default_place(run: Run, target_name: str) -> Path:
    """Where a kit is written if nothing else is asked for: kits/<target> of the run."""
    return run.path / "kits" / target_name
