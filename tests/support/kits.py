"""A device kit written by hand, whose models are numpy functions: no run, no export, no runtime."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compactmtl.backends.device import DeviceModel, DeviceRuntime
from compactmtl.export.kit.on_device import (
    IMAGES,
    INPUTS,
    MANIFEST,
    REFERENCES,
    array_key,
    file_sha256,
)

Arrays = dict[str, NDArray[Any]]


def double(arrays: Arrays) -> Arrays:
    """What the kit's models compute: two outputs, one of them a map of classes."""
    image = arrays["image"]
    return {"value": image.mean((1, 2)) * 2, "classes": (image > 0).astype(np.int64)}


class NumpyModel(DeviceModel):
    input_names = ("image",)
    output_names = ("value", "classes")

    def __init__(self, function: Callable[[Arrays], Arrays]) -> None:
        self.function = function
        self.closed = False
        self.batches: list[int] = []

    def run(self, arrays: Arrays) -> Arrays:
        assert not self.closed
        self.batches.append(len(arrays["image"]))
        return self.function(arrays)

    def facts(self) -> dict[str, Any]:
        return {"provider": "numpy", "threads": 1, "layers": {"fp32": 2}}

    def close(self) -> None:
        self.closed = True


class NumpyRuntime(DeviceRuntime):
    """Opens any file as `double`, unless a test gives another function."""

    function: Callable[[Arrays], Arrays] = staticmethod(double)
    lacks: tuple[tuple[str, str], ...] = ()
    opened: list[NumpyModel]

    def __init__(self, settings: dict[str, Any]) -> None:
        super().__init__(settings)
        type(self).opened = []

    def missing(self) -> list[tuple[str, str]]:
        return list(self.lacks)

    def versions(self) -> dict[str, str]:
        return {"numpy": np.__version__}

    def device(self) -> str:
        return "a processor"

    def open(self, path: Path, example: Arrays, folder: Path) -> DeviceModel:
        assert path.is_file()
        assert example["image"].shape[0] == 2
        model = NumpyModel(type(self).function)
        type(self).opened.append(model)
        return model


def write_numpy_kit(folder: Path, images: int = 3, latency: Mapping[str, int] | None = None) -> Path:
    """Three cases of 2 samples; the last batch of the packed images is short."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    cases = [{"image": rng.standard_normal((2, 4, 5)).astype(np.float32)} for _ in range(3)]
    inputs: Arrays = {}
    references: Arrays = {}
    for number, case in enumerate(cases):
        inputs |= {array_key(number, name): array for name, array in case.items()}
        references |= {array_key(number, name): array for name, array in double(case).items()}
    np.savez(folder / INPUTS, **inputs)  # type: ignore[arg-type]
    np.savez(folder / REFERENCES, **references)  # type: ignore[arg-type]
    np.savez(folder / IMAGES, image=rng.standard_normal((images, 4, 5)).astype(np.float32))
    for name in ("dense", "compact"):
        (folder / name).write_text(f"the {name} model")
    files = ("dense", "compact", INPUTS, REFERENCES, IMAGES)
    manifest = {
        "version": 1,
        "run": "by-hand",
        "target_name": "by-hand",
        "bundle_sha256": "0" * 64,
        "subject": "compact",
        "reference": "dense",
        "models": {name: {"file": name, "precision": "fp32"} for name in ("dense", "compact")},
        "runtime": {},
        "inputs": ["image"],
        "outputs": ["value", "classes"],
        "tolerances": {"value": 1e-4, "classes": None},
        "cases": len(cases),
        "latency": dict(latency or {"warmup": 1, "repeats": 4, "settle": 0}),
        "images": {"count": images, "batch": 2, "sha256": "0" * 64, "torch": {}, "baseline": None},
        "files": {name: file_sha256(folder / name) for name in files},
        "created": "",
    }
    (folder / MANIFEST).write_text(json.dumps(manifest))
    return folder
