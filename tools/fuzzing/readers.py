"""The readers, each with whole files to begin with. A reader may return or raise CompactError; all else is a find."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import tempfile
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save
from torch import Tensor, nn

from compactmtl.artifacts.layout import BUNDLE_FILE
from compactmtl.backends import load_target
from compactmtl.config import resolve_recipe, resolve_sweep
from compactmtl.config.lookup import entries
from compactmtl.config.target import Target
from compactmtl.data.bands import read_pixels
from compactmtl.data.coco_annotations import draw, read_annotations
from compactmtl.data.folder import open_folder
from compactmtl.data.maps import read_map, read_npy
from compactmtl.data.tables import read_numbers
from compactmtl.errors import CompactError
from compactmtl.export.bundle import read_info
from compactmtl.export.kit.files import read_results
from compactmtl.export.kit.on_device import digest
from compactmtl.export.kit.on_device import main as run_kit
from compactmtl.export.onnx_file import OnnxModel
from compactmtl.models.weights import read_weights
from compactmtl.sparsity.latency import LatencyTable
from compactmtl.sparsity.layer_latency import Memory, Regime, StaircaseLatency
from compactmtl.surgery import apply_plan, compact
from compactmtl.surgery.plan import Plan
from tests.support.bundles import conv_bundle
from tests.support.kits import NumpyRuntime, write_numpy_kit

INSTANCE_SIZE = (24, 32)


@dataclass(frozen=True)
class Reader:
    """One kind of file: how it ends, whole ones of it, and what reads it."""

    suffix: str
    seeds: Callable[[], Iterable[bytes]]
    read: Callable[[Path], object]
    stem: str = "file"


def feed(reader: Reader, data: bytes, folder: Path) -> bool:
    """Let a reader read a file of these bytes; whether it took them. Raises what is no error of ours."""
    path = folder / f"{reader.stem}{reader.suffix}"
    path.write_bytes(data)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            reader.read(path)
    except CompactError:
        return False
    return True


def network() -> nn.Sequential:
    """What plans and weights are of."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 1))


@cache
def plan() -> str:
    """A plan with a constant, of a network half of whose channels are zero."""
    model = network().eval()
    first, norm = model[0], model[1]
    assert isinstance(first, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d) and first.bias is not None
    with torch.no_grad():
        first.weight[:4], first.bias[:4], norm.bias[:4] = 0, 0, torch.tensor([0.0, 0.0, 1.0, 1.0])
    return compact(model, (torch.zeros(1, 3, 8, 8),)).plan.to_json()


def apply(path: Path) -> object:
    """Read a plan and cut a network by it."""
    return apply_plan(network(), Plan.load(path))


def _files_of(kind: str) -> list[bytes]:
    return [entry.path.read_bytes() for entry in entries(kind)]  # type: ignore[arg-type]


def _picture(mode: str, kind: str) -> bytes:
    stream = io.BytesIO()
    shape = {"RGB": (9, 7, 3), "L": (9, 7), "I;16": (9, 7)}[mode]
    values = np.arange(np.prod(shape)).reshape(shape).astype(np.uint16 if mode == "I;16" else np.uint8)
    Image.fromarray(values).save(stream, format=kind)
    return stream.getvalue()


def _npy(array: object) -> bytes:
    stream = io.BytesIO()
    np.save(stream, np.asarray(array))
    return stream.getvalue()


def _torch(state: Mapping[str, Tensor]) -> bytes:
    stream = io.BytesIO()
    torch.save(dict(state), stream)
    return stream.getvalue()


def _table() -> bytes:
    stream = io.StringIO()
    csv.writer(stream).writerows([("image", "x", "y"), ("a.png", 1, 2.5), ("b.png", "0", "-3e4")])
    return stream.getvalue().encode()


def _instances() -> bytes:
    polygon = [[1, 1, 9, 1, 9, 8, 1, 8]]
    counts = {"counts": [10, 30, 728], "size": [24, 32]}
    annotations = [
        {"id": 1, "image_id": 3, "category_id": 2, "segmentation": polygon, "area": 56, "iscrowd": 0},
        {"id": 2, "image_id": 3, "category_id": 2, "segmentation": counts, "area": 30, "iscrowd": 1},
    ]
    document = {
        "images": [{"id": 3, "file_name": "3.jpg", "height": 24, "width": 32}],
        "categories": [{"id": 2, "name": "cup"}],
        "annotations": annotations,
    }
    return json.dumps(document).encode()


def _draw(path: Path) -> object:
    """Read annotations and draw those of the first pictures, as training does."""
    found = read_annotations(path)
    return [
        draw([{**known, "label": 0} for known in one.annotations], (24, 32), INSTANCE_SIZE)
        for one in found.pictures[:3]
    ]


def _description() -> bytes:
    return b"""description: a street corner
targets:
  segmentation: {kind: mask, classes: [road, house, tree], ignore_index: 255}
  depth: {kind: depth, units_per_metre: 1000}
  normals: {kind: normals}
  weather: {kind: class, classes: [sun, rain]}
  things: {kind: multilabel, classes: [car, dog]}
  height: {kind: scalar, unit: cm}
"""


def _folder(path: Path) -> object:
    """Open the folder of a dataset.yaml, which holds a file or a table for each target of the whole one."""
    for name in ("images", "segmentation", "depth", "normals"):
        (path.parent / name).mkdir(exist_ok=True)
        (path.parent / name / "a.png").write_bytes(_picture("L" if name == "segmentation" else "RGB", "PNG"))
    for name, header, row in (
        ("weather", "image,value", "a,sun"),
        ("things", "image,car,dog", "a,1,0"),
        ("height", "image,value", "a,1.5"),
    ):
        (path.parent / f"{name}.csv").write_text(f"{header}\n{row}\n", encoding="utf-8")
    return open_folder(str(path.parent))


def _latency() -> bytes:
    each = Regime(step=8, constant=1e-3, outputs=1e-3, inputs=1e-3, both=1e-5)
    layer = StaircaseLatency(full=(64, 3), align=8, aligned=each, ragged=each, weights=1728)
    table = LatencyTable(
        version=4,
        target="mine",
        image=(3, 8, 8),
        tasks=(),
        layers={"0": layer},
        memory=Memory(held=1000, ms=1e-6),
    )
    return table.model_dump_json().encode()


def _measure(path: Path) -> object:
    table = LatencyTable.load(path)
    return table.milliseconds(dict.fromkeys(table.layers, (17, 3)))


@cache
def _onnx() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        torch.onnx.export(
            network().eval(),
            (torch.zeros(1, 3, 8, 8),),
            path,
            dynamo=True,
            external_data=False,
            verbose=False,
        )
        return path.read_bytes()


def _results(path: Path) -> object:
    """Read what a device sent, its digest set right: an edit of a value must not hide behind it."""
    try:
        content = json.loads(path.read_bytes())
        if isinstance(content, dict):
            content["digest"] = digest(content)
    except (ValueError, TypeError, RecursionError):
        return read_results(path)
    path.write_text(json.dumps(content), encoding="utf-8")
    return read_results(path)


def _bundle() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        target = Target(backend="onnxruntime", provider="cpu")
        return (conv_bundle(Path(folder) / "bundle", target).path / BUNDLE_FILE).read_bytes()


@cache
def _measured() -> bytes:
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        out = Path(folder) / "results.json"
        run_kit(NumpyRuntime, write_numpy_kit(Path(folder) / "kit"), ["--out", str(out)])
        return out.read_bytes()


READERS: dict[str, Reader] = {
    "recipe": Reader(".yaml", lambda: _files_of("recipe"), lambda path: resolve_recipe(str(path))),
    "target": Reader(".yaml", lambda: _files_of("target"), load_target),
    "sweep": Reader(".yaml", lambda: _files_of("sweep"), lambda path: resolve_sweep(path)),
    "description": Reader(".yaml", lambda: [_description()], _folder, "dataset"),
    "plan": Reader(".json", lambda: [plan().encode()], apply),
    "bundle": Reader(".json", lambda: [_bundle()], read_info),
    "results": Reader(".json", lambda: [_measured()], _results),
    "latency": Reader(".json", lambda: [_latency()], _measure),
    "coco": Reader(".json", lambda: [_instances()], _draw),
    "table": Reader(".csv", lambda: [_table()], lambda path: read_numbers(path, 2)),
    "safetensors": Reader(".safetensors", lambda: [save(network().state_dict())], read_weights),
    "weights": Reader(".pth", lambda: [_torch(network().state_dict())], read_weights),
    "image": Reader(
        ".png", lambda: [_picture("RGB", "PNG"), _picture("L", "PNG")], lambda path: read_pixels(path, 3)
    ),
    "jpeg": Reader(".jpg", lambda: [_picture("RGB", "JPEG")], lambda path: read_pixels(path, 3)),
    "bands": Reader(".npy", lambda: [_npy(np.ones((4, 5, 6), np.uint16))], lambda path: read_pixels(path, 6)),
    "map": Reader(".png", lambda: [_picture("L", "PNG"), _picture("I;16", "PNG")], read_map),
    "npy": Reader(".npy", lambda: [_npy(np.ones((4, 5)))], lambda path: read_npy(path, 2)),
    "onnx": Reader(".onnx", lambda: [_onnx()], OnnxModel),
}
