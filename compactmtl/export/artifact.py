"""The model file of a run for a target: exported with its interface, then brought to its precision."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from compactmtl.artifacts.files import sha256_file
from compactmtl.artifacts.layout import PLAN
from compactmtl.artifacts.told import Progress
from compactmtl.backends.versions import package_versions
from compactmtl.config.precision import Precision
from compactmtl.config.sources import as_deployed
from compactmtl.config.target import Target
from compactmtl.data import build_loader, load_dataset, preprocessing
from compactmtl.data.base import rules
from compactmtl.data.inputs import Images, between, count, each, given, joined, parts
from compactmtl.data.loader import Loader
from compactmtl.data.sources import choose, first, spread
from compactmtl.errors import ConfigError, DataError
from compactmtl.export.precision import PrecisionRecord
from compactmtl.export.precision.apply import Check
from compactmtl.export.precision.ranges import Feed
from compactmtl.export.processing import Interface
from compactmtl.export.writer import write_module
from compactmtl.models import MultiTaskModel
from compactmtl.runs import Run
from compactmtl.runs.identity import recipe_hash


def interface_of(run: Run, target: Target) -> Interface:
    """What the model file of the run takes and gives on the target.

    Raises ConfigError where the file would normalize, and data sets of the run have a normalization of their own.
    """
    data = run.recipe.data
    apart = [source.called for source in data.sources if source.normalized_apart]
    if apart and target.onnx.preprocess:
        raise ConfigError(
            f"onnx.preprocess: the file would normalize all images alike, and those of {', '.join(apart)} have a mean and "
            "std of their own",
            "set onnx.preprocess: false, or train with one normalization for all data.sources",
        )
    made = tuple(rules(data).values()) if data.inputs else preprocessing(data)
    return Interface.of(target.onnx, run.tasks, made)


@dataclass(frozen=True)
class ArtifactWriter:
    """Writes models of a run as files for one target: each with the same interface, traced on the same batch."""

    run: Run
    target: Target
    example: Images  # normalized images (B, 3, H, W), or the inputs that the recipe names

    @cached_property
    def interface(self) -> Interface:
        """What each file takes and gives."""
        return interface_of(self.run, self.target)

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        """The example as the files take it."""
        return parts(self.interface.feed(self.example))

    @property
    def input_names(self) -> tuple[str, ...]:
        """Of the inputs, in their order; `image` where the recipe names none."""
        return tuple(self.run.recipe.data.given)

    def write(
        self,
        model: MultiTaskModel,
        path: Path,
        *,
        metadata: Mapping[str, str] | None = None,
        check: Check | None = None,
        progress: Progress = lambda line: None,
    ) -> PrecisionRecord | None:
        """Write `model` to `path`, as `Writer.write`."""
        return write_module(
            self.interface.wrap(model),
            self.inputs,
            path,
            self.target,
            lambda: calibration_feeds(self.run, self.target, self.interface, count(self.example)),
            input_names=self.input_names,
            size_dimensions=(1, 2) if self.target.onnx.preprocess else (2, 3),
            metadata=metadata,
            check=check,
            progress=progress,
        )

    def at(self, precision: Precision) -> ArtifactWriter:
        """The same for the target in another precision."""
        return replace(self, target=self.target.model_copy(update={"precision": precision}))


def calibration_feeds(run: Run, target: Target, interface: Interface, batch: int) -> list[Feed]:
    """Batches of training images by input name, without augmentation and evenly spread: the same each time.

    As many images as the target's precision looks at, in whole batches of `batch`; none where it looks at none.
    """
    samples = {"fp16": target.fp16.samples, "int8": target.int8.samples}.get(target.precision, 0)
    if not samples:
        return []
    config = run.recipe.data
    dataset = load_dataset(as_deployed(config), "train")
    if len(dataset) == 0:
        raise DataError("the train split is empty: there is nothing to calibrate on", "check data.root")
    samples = -(-min(samples, len(dataset)) // batch) * batch
    chosen = choose(dataset, spread(dataset, samples))
    loader = build_loader(chosen, config, train=False, seed=run.recipe.seed)
    images = joined([given(one) for one in loader])
    fed = [interface.feed(between(images, start, start + batch)) for start in range(0, count(images), batch)]
    return [{name: one.numpy() for name, one in zip(config.given, parts(case), strict=True)} for case in fed]


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


PARITY_IMAGES = 8  # real images, beside random ones


@dataclass(frozen=True)
class Validation:
    """The split that verification looks at: a loader over its samples and the first images of it."""

    loader: Loader
    images: Images  # float32 (N, 3, H, W), normalized, at least as many as one batch of the target; or inputs
    samples: int

    @classmethod
    def load(cls, run: Run, target: Target) -> Validation:
        """The first `target.accuracy.samples` of the val split, of every source some, or all.

        Raises DataError where it is empty.
        """
        config = run.recipe.data
        dataset = load_dataset(config, "val")
        if len(dataset) == 0:
            raise DataError("the val split is empty: there is nothing to verify on", "check data.root")
        numbers = first(dataset, target.accuracy.samples or len(dataset))
        loader = build_loader(choose(dataset, numbers), config, train=False, seed=run.recipe.seed)
        count = max(PARITY_IMAGES, target.latency.batch)
        looked_at = build_loader(
            choose(dataset, first(dataset, min(count, len(numbers)))), config, train=False, seed=0
        )
        return cls(loader, _first_images(looked_at, count), len(numbers))

    def cases(self, target: Target, interface: Interface) -> list[Tensor | tuple[Tensor, ...]]:
        """Images and noise as the file takes them, in batches that it takes; several sizes where they are free."""
        images, batch = self.images, target.latency.batch
        generator = torch.Generator().manual_seed(0)
        starts = range(0, count(images) - batch + 1, batch)
        cases = [between(images, start, start + batch) for start in starts]
        cases.append(each(lambda one: torch.randn(batch, *one.shape[1:], generator=generator), images))
        if target.onnx.dynamic_batch:
            cases += [between(images, 0, 1), between(images, 0, 3)]
        if target.onnx.dynamic_size:
            cases.append(each(lambda one: torch.cat([one] * 2, dim=3), between(images, 0, batch)))
        return [interface.feed(case) for case in cases]


def _first_images(loader: Loader, wanted: int) -> Images:
    """The first `wanted` images, repeated from the start where the set has fewer."""
    batches: list[Images] = []
    for batch in loader:
        batches.append(given(batch))
        if sum(map(count, batches)) >= wanted:
            break
    images = joined(batches)
    return between(joined([images] * -(-wanted // count(images))), 0, wanted)
