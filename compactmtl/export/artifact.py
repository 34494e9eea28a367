"""The model file of a run for a target: exported with its interface, then brought to its precision."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from compactmtl.artifacts.files import sha256_file
from compactmtl.artifacts.layout import PLAN
from compactmtl.backends.versions import package_versions
from compactmtl.config.target import Target
from compactmtl.data import build_loader, load_dataset, preprocessing
from compactmtl.data.base import Sample, VisionDataset
from compactmtl.data.loader import Loader
from compactmtl.errors import ConfigError, DataError
from compactmtl.export.onnx import export_onnx
from compactmtl.export.precision import PrecisionRecord, apply_precision
from compactmtl.export.precision.apply import Check
from compactmtl.export.precision.ranges import Feed
from compactmtl.export.processing import Interface
from compactmtl.models import MultiTaskModel
from compactmtl.train import Run
from compactmtl.train.run import recipe_hash

INPUT = "image"
EXTERNAL = {"auto": None, "always": True, "never": False}
Progress = Callable[[str], None]


def interface_of(run: Run, target: Target) -> Interface:
    """What the model file of the run takes and gives on the target."""
    return Interface.of(target.onnx, run.tasks, preprocessing(run.recipe.data))


def check_names(run: Run, target: Target) -> None:
    """Raise ConfigError where the target bounds a task that the run doesn't have: nothing would hold it."""
    if unknown := sorted(set(target.parity.tasks) - set(run.tasks)):
        raise ConfigError(
            f"parity.tasks names {', '.join(unknown)}, which is no task; the tasks are {', '.join(run.tasks)}",
            "name tasks of the recipe",
        )


def build_artifact(
    run: Run,
    model: MultiTaskModel,
    example: Tensor,
    path: Path,
    target: Target,
    metadata: Mapping[str, str],
    *,
    check: Check | None = None,
    progress: Progress = lambda line: None,
) -> PrecisionRecord | None:
    """Write `model` to `path` as the target wants it; what its precision pass did, or None for float32.

    `example` is a batch of normalized images (B, 3, H, W). `check` gives the accuracy gates that a candidate
    file fails; without it no layers are searched that int8 should leave in float.
    """
    interface = interface_of(run, target)
    progress(f"exporting to ONNX (opset {target.onnx.opset})")
    export_onnx(
        interface.wrap(model),
        (interface.feed(example),),
        path,
        input_names=[INPUT],
        opset=target.onnx.opset,
        dynamic_batch=target.onnx.dynamic_batch,
        dynamic_size=target.onnx.dynamic_size,
        size_dimensions=(1, 2) if target.onnx.preprocess else (2, 3),
        metadata=metadata,
        external_data=EXTERNAL[target.onnx.external_data],
    )
    feeds = calibration_feeds(run, target, interface, len(example))
    return apply_precision(path, target, feeds, check=check, progress=progress)


def calibration_feeds(run: Run, target: Target, interface: Interface, batch: int) -> list[Feed]:
    """Batches of training images by input name, without augmentation and evenly spread: the same each time.

    As many images as the target's precision looks at, in whole batches of `batch`; none where it looks at none.
    """
    wanted = {"fp16": target.fp16.samples, "int8": target.int8.samples}.get(target.precision, 0)
    if not wanted:
        return []
    config = run.recipe.data
    dataset = load_dataset(config, "train")
    if len(dataset) == 0:
        raise DataError("the train split is empty: there is nothing to calibrate on", "check data.root")
    wanted = -(-min(wanted, len(dataset)) // batch) * batch
    indices = [position * len(dataset) // wanted for position in range(wanted)]
    loader = build_loader(Chosen(dataset, indices), config, train=False, seed=run.recipe.seed)
    images = torch.cat([one["image"] for one in loader])
    return [
        {INPUT: interface.feed(images[start : start + batch]).numpy()}
        for start in range(0, len(images), batch)
    ]


def provenance(run: Run) -> dict[str, str]:
    """Strings kept in the ONNX file: which run, recipe and plan it came from, with which versions."""
    plan = run.compact_folder / PLAN
    return {
        "compactmtl.run": run.name,
        "compactmtl.recipe_sha256": recipe_hash(run.recipe),
        "compactmtl.weights_sha256": sha256_file(run.deployed_weights),
        **({"compactmtl.plan_sha256": sha256_file(plan)} if run.has_compact else {}),
        **{f"version.{name}": version for name, version in package_versions().items()},
    }


class Chosen:
    """Some samples of a data set, by index; an index may come twice."""

    def __init__(self, whole: VisionDataset, indices: Sequence[int]) -> None:
        self.whole, self.indices = whole, indices
        self.specs, self.split = whole.specs, whole.split

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Sample:
        return self.whole[self.indices[index]]

    def identifier(self, index: int) -> str:
        return self.whole.identifier(self.indices[index])


PARITY_IMAGES = 8  # real images, beside random ones


@dataclass(frozen=True)
class Validation:
    """The split that verification looks at: a loader over its samples and the first images of it."""

    loader: Loader
    images: Tensor  # float32 (N, 3, H, W), normalized, at least as many as one batch of the target
    samples: int

    @classmethod
    def load(cls, run: Run, target: Target) -> Validation:
        """The first `target.accuracy.samples` of the val split, or all. Raises DataError where it is empty."""
        config = run.recipe.data
        dataset = load_dataset(config, "val")
        if len(dataset) == 0:
            raise DataError("the val split is empty: there is nothing to verify on", "check data.root")
        samples = min(target.accuracy.samples or len(dataset), len(dataset))
        loader = build_loader(Chosen(dataset, range(samples)), config, train=False, seed=run.recipe.seed)
        return cls(loader, _first_images(loader, max(PARITY_IMAGES, target.latency.batch)), samples)

    def cases(self, target: Target, interface: Interface) -> list[Tensor | tuple[Tensor, ...]]:
        """Images and noise as the file takes them, in batches that it takes; several sizes where they are free."""
        images, batch = self.images, target.latency.batch
        starts = range(0, len(images) - batch + 1, batch)
        found = [images[start : start + batch] for start in starts]
        found.append(torch.randn(batch, *images.shape[1:], generator=torch.Generator().manual_seed(0)))
        if target.onnx.dynamic_batch:
            found += [images[:1], images[:3]]
        if target.onnx.dynamic_size:
            found.append(torch.cat([images[:batch]] * 2, dim=3))
        return [interface.feed(case) for case in found]


def _first_images(loader: Loader, count: int) -> Tensor:
    """The first `count` images, repeated from the start where the set has fewer."""
    found: list[Tensor] = []
    for batch in loader:
        found.append(batch["image"])
        if sum(map(len, found)) >= count:
            break
    images = torch.cat(found)
    return images.repeat(-(-count // len(images)), 1, 1, 1)[:count]
