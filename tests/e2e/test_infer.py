"""A bundle's own infer.py, where there is only numpy, Pillow and the runtime, says what `compactmtl predict` says."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image

from compactmtl.cli.main import main
from compactmtl.export import Bundle, Predictor
from tests.support.clean_python import run_clean, write_packages
from tests.support.layouts.ccp import write_ccp
from tests.support.layouts.coco import write_coco
from tests.support.layouts.folder import write_folder
from tests.support.layouts.utkface import write_utkface

BANDS = 5
OWN = """\
data: {name: folder, root: ROOT, size: [32, 48], batch_size: 4}
tasks:
  segmentation: {kind: segmentation, head: {kind: fcn, width: 8}}
  edges: {kind: boundaries, target: segmentation, head: {kind: fcn, width: 8}}
  depth: {kind: depth, head: {kind: fcn, width: 8}}
  normals: {kind: normals, head: {kind: fcn, width: 8}}
  weather: {kind: classification}
  things: {kind: multilabel}
  height: {kind: regression}
  size: {kind: binned_regression, target: height, options: {low: 100, high: 200}}
model: {encoder: {name: test_resnet}}
"""


def faces(root: Path) -> list[str]:
    write_utkface(root)
    return ["utkface/small", f"data.root={root}"]


def rooms(root: Path) -> list[str]:
    return ["scenes/dense", "data.size=[64,96]", "data.options.train=8", "data.options.val=4"]


def clothing(root: Path) -> list[str]:
    write_ccp(root)
    return ["ccp/small", f"data.root={root}"]


def things(root: Path) -> list[str]:
    write_coco(root)
    small = [
        "data.size=[64,80]",
        "model.encoder.options.channels=[8,16,24,32]",
        "tasks.instances.head.width=24",
    ]
    # so low that the untrained network finds some
    return ["coco/overfit", f"data.root={root}", *small, "tasks.instances.options.threshold=0.001"]


def own(root: Path) -> list[str]:
    write_folder(root, size=(32, 48), split=True)
    recipe = root / "own.yaml"
    recipe.write_text(OWN.replace("ROOT", str(root)))
    return [str(recipe)]


def letterboxed(root: Path) -> list[str]:
    return [*own(root), "data.resize=letterbox"]


def gray_and_cut(root: Path) -> list[str]:
    return [*own(root), "data.resize=crop", "data.channels=1"]


def bands(root: Path) -> list[str]:
    """Images of five bands, half of them TIFF and half arrays."""
    recipe = own(root)
    for number, path in enumerate(sorted((root / "images").rglob("*.jpg"))):
        with Image.open(path) as image:
            values = np.asarray(image)[..., [0, 1, 2, 1, 0]]
        path.unlink()
        if number % 2:
            np.save(path.with_suffix(".npy"), values)
        else:
            tifffile.imwrite(path.with_suffix(".tif"), values, planarconfig="contig")
    return [*recipe, f"data.channels={BANDS}", "data.resize=letterbox"]


RECIPES: dict[str, Callable[[Path], list[str]]] = {
    "faces": faces,
    "rooms": rooms,
    "clothing": clothing,
    "instances": things,
    "own folder": own,
    "letterboxed": letterboxed,
    "gray and cut": gray_and_cut,
    "bands": bands,
}


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_packages(
        tmp_path_factory.mktemp("clean") / "packages", ["numpy", "pillow", "onnxruntime", "tifffile"]
    )


@pytest.fixture(scope="module", params=RECIPES)
def bundle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle of a run of two steps, alone in a folder."""
    root = tmp_path_factory.mktemp("run")
    (root / "data").mkdir()
    assert (
        main(
            ["train", *RECIPES[request.param](root / "data"), "--smoke", "--out", str(root), "--name", "run"]
        )
        == 0
    )
    target = root / "quick.yaml"
    target.write_text("extends: onnxruntime-cpu\nlatency: {warmup: 1, repeats: 3, settle: 0}\n")
    assert main(["export", str(root / "run"), "--target", str(target)]) in (
        0,
        4,
    )  # 4: latency on a busy machine
    alone = tmp_path_factory.mktemp("device") / "my bundle"
    shutil.copytree(root / "run" / "export" / "quick", alone)
    return alone


def write_photos(folder: Path, channels: int) -> list[Path]:
    """Pictures as users have them: large, small, gray, see-through, turned, of 16 bits; or of bands."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    if channels == BANDS:
        wide = rng.integers(0, 256, (21, 50, BANDS), np.uint8)
        np.save(folder / "wide.npy", wide)
        deep = np.ascontiguousarray(wide.transpose(2, 1, 0)).astype(np.uint16) * 200
        tifffile.imwrite(folder / "deep.tif", deep, photometric="minisblack")
        return sorted(folder.iterdir())
    coarse = rng.integers(0, 256, (12, 17, 4), np.uint8)
    large = Image.fromarray(coarse).resize((301, 205), Image.Resampling.BICUBIC)
    turned = Image.Exif()
    turned[0x0112] = 6
    large.convert("RGB").save(folder / "photo.jpg", exif=turned)
    large.save(folder / "see through.png")
    large.convert("L").save(folder / "gray.png")
    Image.fromarray(coarse[..., 0].astype(np.uint16) * 200).save(folder / "deep.png")
    Image.fromarray(coarse[..., :3]).save(folder / "small.bmp")
    return sorted(folder.iterdir())


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_infer_says_what_predict_says(bundle: Path, packages: Path, tmp_path: Path) -> None:
    photos = write_photos(tmp_path / "photos", Bundle.open(bundle).info.inputs[0].channels)
    found = run_clean(packages, bundle / "infer.py", *photos, "--out", tmp_path / "out")
    assert found.returncode == 0, found.stderr
    lines = found.stdout.splitlines()
    with Predictor.open(bundle) as predictor:
        outputs = {one.name: one for one in Bundle.open(bundle).info.outputs}
        for photo in photos:
            picture = predictor.photo(photo)
            for one in predictor.predict(picture):
                (line,) = [line for line in lines if line.startswith(f"{photo}: {one.task} ")]
                said = line.removeprefix(f"{photo}: {one.task} ")
                if outputs[one.task].map:
                    same_map(
                        tmp_path / "out" / f"{photo.stem}.{one.task}",
                        one.on(picture),
                        outputs[one.task],
                        picture.place.image,
                    )
                else:
                    same_value(said, one, outputs[one.task].unit)


def same_map(path: Path, value: Any, output: Any, size: tuple[int, int]) -> None:
    written = np.load(f"{path}.npy")
    assert written.shape == value.shape and value.shape[-2:] == size
    if written.dtype.kind in "iu":
        # Two logits that are equal but for rounding may change places.
        assert (written != value).mean() < 1e-3
    else:
        np.testing.assert_allclose(written, value, atol=1e-4 * max(np.nanmax(np.abs(value)), 1))
    with Image.open(f"{path}.png") as picture:
        assert picture.size == size[::-1]
        if picture.mode == "P":  # its indices are the classes
            assert len(picture.getpalette() or []) >= 3 * len(output.classes)
            np.testing.assert_array_equal(np.asarray(picture), written)


def same_value(said: str, one: Any, unit: str) -> None:
    if one.probabilities:
        shares = {
            name: float(share) / 100
            for name, share in re.findall(r"([^,]+?) (\d+)%", said.replace(", ", ","))
        }
        there = one.caption.split(", ") if one.caption != "none" else []
        assert set(there) <= set(shares) or said == "none"
        assert all(abs(one.probabilities[name] - share) < 0.0051 for name, share in shares.items())
    else:
        number, found_unit = said.split(" ", 1)
        assert float(number) == pytest.approx(float(one.value), rel=1e-4)
        assert found_unit == unit


@pytest.mark.slow
def test_the_golden_picture_comes_out_right(bundle: Path, packages: Path) -> None:
    found = run_clean(packages, "infer.py", "--check", cwd=bundle)
    assert found.returncode == 0, found.stdout + found.stderr
    assert len((bundle / "infer.py").read_text().splitlines()) <= 120


@pytest.mark.slow
def test_nothing_of_this_package_is_there(packages: Path) -> None:
    for name in ("compactmtl", "torch", "pydantic", "onnx"):
        assert run_clean(packages, "-c", f"import {name}", cwd=packages).returncode == 1
