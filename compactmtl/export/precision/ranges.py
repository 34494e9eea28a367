"""The values that a graph's tensors take on calibration images, by ONNX Runtime's own calibrators."""

from __future__ import annotations

import contextlib
import io
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compactmtl.config.precision import Int8Config
from compactmtl.errors import ArtifactError, MissingDependencyError

Feed = Mapping[str, NDArray[Any]]  # one batch: input name to array
METHODS = {"minmax": "MinMax", "percentile": "Percentile", "entropy": "Entropy"}


def quantization() -> Any:
    """ONNX Runtime's quantization package. Raises MissingDependencyError where it can't be imported."""
    try:
        import onnxruntime.quantization as package
    except ImportError as error:
        raise MissingDependencyError(
            f"fp16 and int8 are calibrated by onnxruntime, which can't be imported ({error})",
            "pip install 'compactmtl[cpu]'",
        ) from error
    return package


def calibrate(path: Path, feeds: Sequence[Feed], config: Int8Config, operators: Sequence[str] = ()) -> Any:
    """ONNX Runtime's TensorsData of the activations around `operators` (all by default) of the model at `path`.

    Batches go in one by one and are merged, so that no more than one batch of activations is held.
    Raises ArtifactError where a value isn't finite.
    """
    quantization()
    from onnxruntime.quantization.calibrate import CalibrationMethod, create_calibrator

    options: dict[str, Any] = {"symmetric": config.symmetric}
    if config.method == "percentile":
        options["percentile"] = config.percentile
    with (
        tempfile.TemporaryDirectory(prefix="compactmtl-") as folder,
        contextlib.redirect_stdout(io.StringIO()),  # the histogram calibrators print
    ):
        calibrator = create_calibrator(
            path,
            list(operators) or None,
            augmented_model_path=str(Path(folder) / "augmented.onnx"),
            calibrate_method=CalibrationMethod[METHODS[config.method]],
            use_external_data_format=path.with_name(f"{path.name}.data").exists(),
            extra_options=options,
        )
        for feed in feeds:
            calibrator.collect_data(_Once(feed))
        ranges = calibrator.compute_data()
    for name, data in ranges.items():
        if not all(np.isfinite(value).all() for value in data.range_value):
            raise ArtifactError(
                f"tensor '{name}' holds values that aren't finite on a calibration image",
                "check the weights and the images; the float32 model itself is at fault",
            )
    return ranges


def largest_values(path: Path, feeds: Sequence[Feed]) -> dict[str, float]:
    """The largest magnitude of each float tensor of the model at `path` over all batches."""
    ranges = calibrate(path, feeds, Int8Config(method="minmax"))
    return {
        name: float(max(np.abs(np.asarray(value)).max() for value in data.range_value))
        for name, data in ranges.items()
    }


class _Once:
    """One batch in the form that a calibrator reads."""

    def __init__(self, feed: Feed) -> None:
        self._feeds: Iterator[Feed] = iter([feed])

    def get_next(self) -> dict[str, NDArray[Any]] | None:
        feed = next(self._feeds, None)
        return None if feed is None else dict(feed)
