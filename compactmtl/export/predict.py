"""Predictions for a user's own images from a run or a bundle: the same preprocessing, the same decoding."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from compactmtl.artifacts.layout import BUNDLE_FILE, INFER_SCRIPT
from compactmtl.artifacts.run_folder import is_run
from compactmtl.backends import Runner
from compactmtl.backends.batching import run_batched
from compactmtl.data.base import Preprocessing, Rule, Vector
from compactmtl.data.images import read_picture
from compactmtl.data.maps import check_beside
from compactmtl.data.pixels import ImageInfo
from compactmtl.data.vectors import read_vector
from compactmtl.errors import ArtifactError, ConfigError
from compactmtl.export.bundle import Bundle
from compactmtl.export.interface import feed, feed_all, restore
from compactmtl.tasks.base import Task
from compactmtl.tasks.placement import Placement
from compactmtl.tasks.reading import Reading, readings_of


@dataclass(frozen=True)
class Photo:
    """A user's image as the network sees it, uint8 (C, H, W), and where the image lies on that picture."""

    pixels: NDArray[np.uint8]
    place: Placement
    others: Mapping[str, NDArray[Any]] = field(
        default_factory=dict
    )  # inputs beside it, of a model of several

    @property
    def visible(self) -> NDArray[np.uint8]:
        """The picture without its padding."""
        return self.pixels[(..., *self.place.visible)]


@dataclass(frozen=True)
class Prediction:
    """One task's answer for one image."""

    task: str
    value: NDArray[Any]  # decoded, in the target's own format and unit, without a batch dimension
    caption: str  # in words; empty for maps
    probabilities: dict[str, float]  # of classification and multilabel, by class name; else empty
    unknown: int | None = 0  # what a map holds where nothing is known; none: not a number

    def on(self, photo: Photo) -> NDArray[Any]:
        """A map of this photo at the photo's own size, each pixel the nearest one; `unknown` where a crop cut it off."""
        return photo.place.back(self.value, np.nan if self.unknown is None else self.unknown)


class Predictor:
    """A run or a bundle, opened for prediction; a context manager. `Predictor.open(path)`.

    A bundle is opened and read without torch, which takes seconds to load.
    """

    def __init__(
        self,
        runner: Runner,
        tasks: Mapping[str, Task],
        prepare: Preprocessing,
        doubt: str = "",
        *,
        baked: bool = False,
        postprocess: Mapping[str, str] | None = None,
        inputs: Mapping[str, Rule] | None = None,
    ) -> None:
        self.runner = runner
        self.tasks = dict(tasks)
        self.prepare = prepare
        self.doubt = doubt  # why not to trust it, in words; empty where there is no reason
        self.baked = baked  # whether the model file takes uint8 images and normalizes them itself
        self.postprocess = dict(postprocess or {})  # what the model file has behind its outputs
        self.inputs = dict(inputs or {})  # by name, of a model of several; else empty

    @classmethod
    def open(cls, path: str | Path, *, lean_runtime: Path | None = None, device: str = "cpu") -> Predictor:
        """Open a bundle's folder or a run's; of a run its compact model where there is one.

        `lean_runtime` is for a bundle on TensorRT, as `Bundle.runner` takes it, and `device` for a run's torch model; a
        bundle runs where its target says. Raises ArtifactError where the folder is neither.
        """
        path = Path(path)
        if (path / BUNDLE_FILE).is_file():
            if device != "cpu":
                raise ConfigError(
                    f"{path} is a bundle, which runs where its target says, not on {device}",
                    "leave --device out, or export the run for a target of that device",
                )
            bundle = Bundle.open(path)
            onnx = bundle.info.target.onnx
            images = bundle.info.preprocessing
            if images is None:
                raise ArtifactError(
                    f"{path} takes arrays, and does not say how pictures become them",
                    f"run its own program on .npy files: python {path / INFER_SCRIPT}, or export it again with images=",
                )
            return cls(
                bundle.runner(lean_runtime),
                bundle.tasks,
                images,
                bundle.doubt,
                baked=onnx.preprocess,
                postprocess=onnx.postprocess,
                inputs=bundle.info.training.inputs,
            )
        if lean_runtime is not None:
            raise ConfigError(
                f"{path} is no bundle, which alone has an engine to run", "leave --lean-runtime out"
            )
        return cls._of_run(path, device)

    @classmethod
    def _of_run(cls, path: Path, device: str) -> Predictor:
        from compactmtl.backends.torch.device import find_device
        from compactmtl.backends.torch.runner import TorchRunner
        from compactmtl.data import preprocessing
        from compactmtl.data.base import rules
        from compactmtl.runs.run import Run

        if not is_run(path):
            raise ArtifactError(
                f"{path} is neither a run nor a bundle",
                "give a folder that `compactmtl train RECIPE` wrote, or its export/<target>",
            )
        run = Run.open(path)
        model = run.load_compact() if run.has_compact else run.load_plain()
        model = model.to(find_device(device, "--device"))
        tasks = run.tasks
        data = run.recipe.data
        runner = TorchRunner(model, list(data.given), list(tasks))
        return cls(runner, tasks, preprocessing(data), inputs=rules(data) if data.inputs else None)

    @property
    def readings(self) -> dict[str, Reading]:
        """Deprecated: `tasks`."""
        return readings_of(self.tasks, "Predictor")

    @property
    def first(self) -> str:
        """The first picture of a model of several inputs, whose size maps have; else empty."""
        return next((name for name, rule in self.inputs.items() if isinstance(rule, Preprocessing)), "")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.runner.close()

    def read(self, path: Path) -> NDArray[np.uint8]:
        """An image file as the network sees it, uint8 (C, H, W). Raises DataError naming a file that is no image."""
        return self.photo(path).pixels

    def photo(self, path: Path | Mapping[str, Path | str]) -> Photo:
        """An image file as the network sees it, with the way back to its own size. Raises DataError as `read` does.

        Of a model of several inputs a file each by name; a vector may be its numbers, as `read_vector` takes them. Pictures
        of one sample need one aspect ratio.
        """
        if isinstance(path, Mapping):
            return self._sample(path)
        if self.inputs:
            raise ConfigError(
                f"the model takes {', '.join(self.inputs)}, and one file is given: {path}",
                f"name each: {' '.join(f'{name}=FILE' for name in self.inputs)}",
            )
        fit = self.prepare.fit
        pixels, read = read_picture(path, fit)
        return Photo(pixels, fit.placement(read.size))

    def _sample(self, given: Mapping[str, Path | str]) -> Photo:
        known = ", ".join(self.inputs) or "one picture without a name"
        if not self.inputs or set(given) != set(self.inputs):
            raise ConfigError(
                f"the model takes {known}, found {', '.join(given) or 'none'}",
                "give `photo` a file for each input by its name"
                if self.inputs
                else "give `photo` the file itself",
            )
        values: dict[str, NDArray[Any]] = {}
        first: ImageInfo | None = None
        for name, rule in self.inputs.items():
            if isinstance(rule, Vector):
                values[name] = read_vector(given[name], rule.channels, name)
                continue
            values[name], read = read_picture(Path(given[name]), rule.fit)
            first = first or read
            check_beside(Path(given[name]), read.size, first, name)
        assert first is not None  # the recipe is refused without a picture
        pixels = values.pop(self.first)
        return Photo(pixels, self.prepare.fit.placement(first.size), values)

    def predict(self, image: NDArray[np.uint8] | Photo) -> list[Prediction]:
        """One prediction a task for an image as `read` or `photo` gives it.

        Maps come at the network's size; of a photo without its padding, and `Prediction.on` brings them to its own size.
        """
        photo = image if isinstance(image, Photo) else None
        pixels = image.pixels if isinstance(image, Photo) else image
        given = {self.first: pixels, **({} if photo is None else photo.others)}
        self._check(given)
        if self.inputs:
            fed = feed_all(given, self.inputs, baked=self.baked)
        else:
            fed = dict.fromkeys(self.runner.input_names, feed(pixels, self.prepare, baked=self.baked))
        outputs = run_batched(self.runner, fed)
        return [self._read(name, one, outputs, photo) for name, one in self.tasks.items()]

    def _check(self, given: Mapping[str, NDArray[Any]]) -> None:
        """Raise ConfigError for arrays that are not as `photo` gives them, which would be broadcast or taken for others."""
        rules: Mapping[str, Rule] = self.inputs or {"": self.prepare}
        if set(given) != set(rules):
            raise ConfigError(
                f"the model takes {_listed(rules)}, found {_listed(given)}", "give what `photo` returns"
            )
        for name, rule in rules.items():
            value, vector = given[name], isinstance(rule, Vector)
            kind, axes = (
                ("float32", f"({rule.channels},)") if vector else ("uint8", f"({rule.channels}, H, W)")
            )
            if value.dtype != kind or value.ndim != (1 if vector else 3) or len(value) != rule.channels:
                raise ConfigError(
                    f"{f'input {name!r}' if name else 'the image'} is {value.dtype} of shape {value.shape}, expected {kind} of"
                    f" shape {axes}",
                    "give what `read` or `photo` returns, which is not yet normalized",
                )

    def _read(
        self, name: str, task: Task, outputs: Mapping[str, NDArray[Any]], photo: Photo | None
    ) -> Prediction:
        if name not in outputs:
            raise ArtifactError(
                f"the model has no output {name!r}, only {', '.join(outputs)}",
                f"export the run again: model and {BUNDLE_FILE} don't belong together",
            )
        after = self.postprocess.get(name)
        output = restore(outputs[name], after, task.channels)
        value = task.read(output)[0]
        if photo is not None and task.dense:
            value = value[(..., *photo.place.visible)]
        # What was reduced to a class has no probability left.
        probabilities = {} if after == "argmax" else task.probabilities(output[0])
        return Prediction(name, value, task.caption(value), probabilities, task.unknown)


def _listed(names: Iterable[str]) -> str:
    return ", ".join(name or "one image" for name in names)
