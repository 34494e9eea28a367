"""Where an artifact differs from the torch model, of outputs that are maps alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from compactmtl.backends import get_backend
from compactmtl.backends.base import Arrays
from compactmtl.backends.onnxruntime.entry import OnnxRuntimeRunner
from compactmtl.config.target import Target
from compactmtl.export import export_onnx
from compactmtl.export.maps import write_error_maps
from compactmtl.verify.error_maps import as_gray, error_maps
from compactmtl.verify.parity import compare_outputs


class Tasks(nn.Module):
    """A map of two channels, a map of classes and one value an image."""

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        return {
            "depth": image[:, :2] * 10,
            "classes": image.argmax(dim=1),
            "age": image.mean(dim=(2, 3)),
        }


@pytest.mark.slow
def test_maps_show_where_and_how_much(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image = torch.rand(2, 3, 4, 6, generator=torch.Generator().manual_seed(0))
    model, target = Tasks(), Target(backend="onnxruntime")
    path = export_onnx(model, image, tmp_path / "model.onnx")
    run = OnnxRuntimeRunner._run

    def off(
        self: OnnxRuntimeRunner, inputs: Arrays
    ) -> dict[str, np.ndarray[tuple[int, ...], np.dtype[np.floating]]]:
        found = run(self, inputs)
        found["depth"][0, 1, 2, 3] += 0.5
        found["classes"][0, 0, 0] += 1
        return found

    monkeypatch.setattr(OnnxRuntimeRunner, "_run", off)
    with get_backend("onnxruntime").open(path, target) as runner:
        parity = compare_outputs(model, runner, [image], target, "m")
        found = error_maps(model, runner, image, parity)
        records = write_error_maps(tmp_path, model, runner, image, parity)
    assert set(found) == {"depth", "classes"}
    assert found["depth"].values.shape == (4, 6)
    assert np.argwhere(found["depth"].values > 0.1).tolist() == [[2, 3]]
    assert found["classes"].values.sum() == 1
    assert as_gray(found)["depth"][2, 3] == 255
    depth = next(output for output in parity.outputs if output.name == "depth")
    # one float32 step of the values, which are below 16
    assert records["depth"].largest == pytest.approx(0.5, abs=2**-20)
    assert records["depth"].relative == depth.max_relative  # the error that the gate saw, by the same rule
    assert records["classes"].relative == pytest.approx(1 / 24)  # one pixel of 4 × 6
    assert np.asarray(Image.open(tmp_path / records["depth"].file)).shape == (4, 6)


@pytest.mark.slow
def test_equal_maps_are_black(tmp_path: Path) -> None:
    image = torch.rand(1, 3, 4, 6)
    path = export_onnx(Tasks(), image, tmp_path / "model.onnx")
    target = Target(backend="onnxruntime")
    with get_backend("onnxruntime").open(path, target) as runner:
        parity = compare_outputs(Tasks(), runner, [image], target, "m")
        records = write_error_maps(tmp_path, Tasks(), runner, image, parity)
    assert records["classes"].largest == records["classes"].relative == 0
    assert not np.asarray(Image.open(tmp_path / records["classes"].file)).any()


@pytest.mark.slow
def test_an_image_that_is_nearly_flat_is_judged_by_the_range_of_all(tmp_path: Path) -> None:
    """Its own range is a thousandth of the others': float32 rounding would look like an error of a percent."""
    images = torch.rand(3, 3, 4, 6, generator=torch.Generator().manual_seed(0))
    images[0] = 0.5 + 1e-6 * images[0]
    model, target = Tasks(), Target(backend="onnxruntime")
    path = export_onnx(model, images, tmp_path / "model.onnx")

    class Rounded(nn.Module):
        """Off by a millionth."""

        def forward(self, image: Tensor) -> dict[str, Tensor]:
            return {**model(image), "depth": image[:, :2] * 10 + 1e-6}

    with get_backend("onnxruntime").open(path, target) as runner:
        parity = compare_outputs(Rounded(), runner, [images], target, "m")
        found = error_maps(Rounded(), runner, images, parity)
    assert all(output.passed for output in parity.outputs)
    depth = next(output for output in parity.outputs if output.name == "depth")
    assert found["depth"].relative <= depth.max_relative <= depth.tolerance
