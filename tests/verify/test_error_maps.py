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
from compactmtl.backends.onnxruntime import OnnxRuntimeRunner
from compactmtl.config.target import Target
from compactmtl.export import export_onnx
from compactmtl.export.maps import write_error_maps
from compactmtl.verify.error_maps import as_gray, error_maps


class Tasks(nn.Module):
    """A map of two channels, a map of classes and one value an image."""

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        return {
            "depth": image[:, :2] * 10,
            "classes": image.argmax(dim=1),
            "age": image.mean(dim=(2, 3)),
        }


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
        found = error_maps(model, runner, image)
        records = write_error_maps(tmp_path, model, runner, image)
    assert set(found) == {"depth", "classes"}
    assert found["depth"].values.shape == (4, 6)
    assert np.argwhere(found["depth"].values > 0.1).tolist() == [[2, 3]]
    assert found["classes"].values.sum() == 1
    assert as_gray(found)["depth"][2, 3] == 255
    first = (image[0, :2] * 10).numpy()
    assert records["depth"].largest == pytest.approx(0.5, rel=1e-5)
    assert records["depth"].relative == pytest.approx(0.5 / (first.max() - first.min()), rel=1e-5)
    assert np.asarray(Image.open(tmp_path / records["depth"].file)).shape == (4, 6)


def test_equal_maps_are_black(tmp_path: Path) -> None:
    image = torch.rand(1, 3, 4, 6)
    path = export_onnx(Tasks(), image, tmp_path / "model.onnx")
    with get_backend("onnxruntime").open(path, Target(backend="onnxruntime")) as runner:
        records = write_error_maps(tmp_path, Tasks(), runner, image)
    assert records["classes"].largest == records["classes"].relative == 0
    assert not np.asarray(Image.open(tmp_path / records["classes"].file)).any()
