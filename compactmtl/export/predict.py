"""Predictions for a user's own images from a run or a bundle: the same preprocessing, the same decoding."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from compactmtl.backends import Runner
from compactmtl.backends.batching import run_batched
from compactmtl.backends.torch import TorchRunner
from compactmtl.data import preprocessing
from compactmtl.data.base import Preprocessing
from compactmtl.data.images import normalize, read_image
from compactmtl.errors import ArtifactError
from compactmtl.export.bundle import BUNDLE_FILE, Bundle
from compactmtl.export.processing import Interface
from compactmtl.tasks.base import Task
from compactmtl.train import Run
from compactmtl.train.run import is_run


@dataclass(frozen=True)
class Prediction:
    """One task's answer for one image."""

    task: str
    value: NDArray[Any]  # decoded, in the target's own format and unit, without a batch dimension
    caption: str  # in words; empty for maps
    probabilities: dict[str, float]  # of classification and multilabel, by class name; else empty


class Predictor:
    """A run or a bundle, opened for prediction; a context manager. `Predictor.open(path)`."""

    def __init__(
        self,
        runner: Runner,
        tasks: Mapping[str, Task],
        prepare: Preprocessing,
        doubt: str = "",
        interface: Interface | None = None,
    ) -> None:
        self.runner = runner
        self.interface = interface
        self.tasks = dict(tasks)
        self.prepare = prepare
        self.doubt = doubt  # why not to trust it, in words; empty where there is no reason

    @classmethod
    def open(cls, path: str | Path) -> Predictor:
        """Open a bundle's folder or a run's; of a run its compact model where there is one.

        Raises ArtifactError where the folder is neither.
        """
        path = Path(path)
        if (path / BUNDLE_FILE).is_file():
            bundle = Bundle.open(path)
            return cls(
                bundle.runner(), bundle.tasks, bundle.info.preprocessing, bundle.doubt, bundle.interface
            )
        if is_run(path):
            run = Run.open(path)
            model = run.load_compact() if run.has_compact else run.load_plain()
            return cls(
                TorchRunner(model, ["image"], list(run.tasks)), run.tasks, preprocessing(run.recipe.data)
            )
        raise ArtifactError(
            f"{path} is neither a run nor a bundle",
            "give a folder that `compactmtl train RECIPE` wrote, or its export/<target>",
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.runner.close()

    def read(self, path: Path) -> NDArray[np.uint8]:
        """An image file as the network sees it, uint8 (3, H, W). Raises DataError naming a file that is no image."""
        return read_image(path, self.prepare.size)

    def predict(self, image: NDArray[np.uint8]) -> list[Prediction]:
        """One prediction a task for an image as `read` gives it; maps come at its size."""
        images = normalize(torch.from_numpy(image)[None], self.prepare)
        if self.interface is not None:
            images = self.interface.feed(images)
        arrays = run_batched(self.runner, dict.fromkeys(self.runner.input_names, images.numpy()))
        outputs: dict[str, Tensor] = {name: torch.from_numpy(array) for name, array in arrays.items()}
        if self.interface is not None:
            outputs = self.interface.restore(outputs)
        return [self._decode(name, task, outputs[name]) for name, task in self.tasks.items()]

    def _decode(self, name: str, task: Task, output: Tensor) -> Prediction:
        value = task.decode(output)[0].numpy()
        probabilities: dict[str, float] = {}
        if task.kind in ("classification", "multilabel"):
            shares = output[0].softmax(dim=0) if task.kind == "classification" else output[0].sigmoid()
            probabilities = dict(zip(task.spec.classes, shares.tolist(), strict=True))
        return Prediction(name, value, task.caption(value), probabilities)
