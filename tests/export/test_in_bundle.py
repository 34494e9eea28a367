"""The programs of a bundle: they read pictures and outputs as the package does, and say clearly what is wrong."""

from __future__ import annotations

import ast
import importlib.util
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from compactmtl.backends import all_backends, get_backend
from compactmtl.backends.targets import load_target
from compactmtl.config import list_targets
from compactmtl.config.target import Target
from compactmtl.data.images import read_image
from compactmtl.errors import DataError
from compactmtl.export.bundle import Bundle, write_bundle
from compactmtl.export.describe import TO_PICTURE, output_record
from compactmtl.export.golden import write_golden
from compactmtl.export.in_bundle import picture, pixels, shared, show
from compactmtl.export.record import BundleInfo, Runtime
from compactmtl.export.script import MOST_LINES, scripts
from compactmtl.tasks.postprocess import POSTPROCESS
from compactmtl.tasks.registry import task_kinds
from tests.support.bundle_programs import PARTS, program_of, run
from tests.support.bundles import conv_bundle
from tests.support.python38 import later_than_38
from tests.support.task_kinds import usual_task

ALLOWED = {
    "numpy",
    "PIL",
    "onnxruntime",
    "onnxruntime_ep_nv_tensorrt_rtx",
    "openvino",
    "tensorrt",
    "tensorrt_rtx_bindings",
    "tifffile",
    *PARTS,
}
RGB = {"colors": "RGB", "channels": 3, "values": None}
BEHIND = [(kind, after) for kind in task_kinds() for after in (None, *usual_task(kind).postprocess)]


def golden_bundle(
    folder: Path, target: Target, make: Callable[[Path, Target], Bundle] = conv_bundle
) -> Bundle:
    """A hand-written bundle with its golden pair and its programs."""
    bundle = make(folder, target)
    info = bundle.info.model_copy(update={"runtime": Runtime(name=target.backend, package="onnxruntime")})
    with bundle.runner() as runner:
        golden = write_golden(folder, info, bundle.tasks, runner.run, "by hand")
    return write_bundle(folder, info.model_copy(update={"golden": golden}))


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return golden_bundle(tmp_path / "bundle", load_target("onnxruntime-cpu")).path


@pytest.fixture
def program(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The bundle's infer.py as a module."""
    with program_of(bundle, monkeypatch) as module:
        yield module


# -- the same as the package -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "after"), BEHIND)
@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 2**31))
def test_an_output_is_decoded_as_its_task_does(kind: str, after: str | None, seed: int) -> None:
    task = usual_task(kind)
    shape = (1, task.channels, 6, 8) if task.dense else (1, task.channels)
    raw = (np.random.default_rng(seed).normal(size=shape) * 4).astype(np.float32)
    expected = task.read(raw)[0]
    output = raw
    if after is not None:
        import torch

        output = POSTPROCESS[after].apply(torch.from_numpy(raw)).numpy()
    record = output_record("it", output.shape, output.dtype.name, task, after)
    assert record.decode is not None and len(record.axes) == output.ndim
    found = shared.decode(output[0], record.decode.model_dump(mode="json"))
    assert np.shape(found) == expected.shape
    # float32 kernels round the exponential in the last place
    np.testing.assert_allclose(found, expected, rtol=2e-6, atol=2e-6)


def photos(folder: Path) -> Iterator[Path]:
    """Files of every mode, depth and orientation that Pillow writes."""
    colors = Image.fromarray(np.random.default_rng(0).integers(0, 256, (11, 8, 3)).astype(np.uint8))
    deep = (np.arange(11 * 8) * 700).astype(np.uint16).reshape(11, 8)
    for number, mode in enumerate(
        ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "F", "I", "LAB", "HSV")
    ):
        for suffix in ("png", "jpg", "tif", "gif"):
            with suppress(OSError, ValueError):  # a format that cannot hold the mode
                colors.convert("RGB" if mode == "LAB" else mode).save(folder / f"{number}.{suffix}")
                yield folder / f"{number}.{suffix}"
    for turn in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = turn
        for name, image in {"rgb": colors, "deep": Image.fromarray(deep)}.items():
            for suffix in ("png", "tif", "jpg", "webp"):
                with suppress(OSError, ValueError):
                    image.save(folder / f"{name}{turn}.{suffix}", exif=exif)
                    yield folder / f"{name}{turn}.{suffix}"
    Image.frombytes("I;16B", (8, 11), deep.astype(">u2").tobytes()).save(folder / "big.tif")
    colors.convert("P").save(folder / "clear.png", transparency=bytes(range(256)))
    colors.save(folder / "pages.tif", save_all=True, append_images=[colors])
    (folder / "cut.jpg").write_bytes((folder / "4.jpg").read_bytes()[:400])
    (folder / "text.png").write_text("no picture")
    yield from (
        folder / name for name in ("big.tif", "clear.png", "pages.tif", "cut.jpg", "text.png", "none.png")
    )


def read_in_bundle(path: Path) -> np.ndarray:
    return np.asarray(pixels.read(path, RGB)).transpose(2, 0, 1)


def tried(read: Callable[[Path], np.ndarray], path: Path) -> tuple[np.ndarray | None, str]:
    """What it gives, or how it refuses."""
    try:
        return read(path), ""
    except DataError as error:
        return None, error.message
    except ValueError as error:
        return None, str(error)


def test_a_picture_is_read_as_the_package_reads_it(tmp_path: Path) -> None:
    read = refused = 0
    for path in photos(tmp_path):
        expected, refusal = tried(read_image, path)
        found, told = tried(read_in_bundle, path)
        assert told == refusal
        refused += bool(refusal)
        read += not refusal
        np.testing.assert_array_equal(found, expected, str(path))
    assert read > 50 and refused >= 6


# -- what a bundle gets ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole_info(tmp_path_factory: pytest.TempPathFactory) -> BundleInfo:
    folder = tmp_path_factory.mktemp("whole") / "bundle"
    return golden_bundle(folder, load_target("onnxruntime-cpu")).info


def exported_targets() -> list[str]:
    """Targets that run an exported file: one of torch is for measuring layers."""
    names = [entry.name for entry in list_targets()]
    return [name for name in names if get_backend(load_target(name).backend).opens_files]


@pytest.mark.parametrize("target", exported_targets())
def test_every_target_gets_programs_that_need_the_runtime_alone(target: str, whole_info: BundleInfo) -> None:
    info = whole_info.model_copy(update={"target": load_target(target)})
    tasks = [usual_task(kind) for kind in task_kinds()]
    outputs = [
        output_record(
            task.kind, (1, task.channels, 6, 8) if task.dense else (1, task.channels), "float32", task, None
        )
        for task in tasks
    ]
    for shown in (info.outputs, tuple(outputs)):
        files = scripts(info.model_copy(update={"outputs": shown}))
        assert {"infer.py", "shared.py", "show.py"} <= set(files)
        assert len(files["infer.py"].splitlines()) <= MOST_LINES
        for name, text in files.items():
            compile(text, name, "exec")
            assert imports(text) - set(sys.stdlib_module_names) <= ALLOWED, name
            assert {f"{one}.py" for one in imports(text) & PARTS} <= set(files), name
            assert not {"eval", "exec", "pickle"} & set(text.replace("(", " ").split())
            assert later_than_38(text) == [], name


def imports(text: str) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            names |= {one.name.partition(".")[0] for one in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(str(node.module).partition(".")[0])
    return names


def test_every_backend_that_opens_files_can_be_opened_without_the_package() -> None:
    for backend in all_backends():
        for _, target in backend.cases():
            assert bool(backend.in_bundle(target)) is backend.opens_files, backend.name


# -- what goes wrong -------------------------------------------------------------------------------------------------


def test_maps_lie_beside_the_picture_or_in_a_folder(
    program: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    photo = tmp_path / "a photo.of me.png"
    Image.new("RGB", (50, 30), (200, 40, 90)).save(photo)
    assert run(program, monkeypatch, photo) == 0
    assert (tmp_path / "a photo.of me.map.npy").is_file()
    assert run(program, monkeypatch, photo, "--out", tmp_path / "deep" / "er") == 0
    with Image.open(tmp_path / "deep" / "er" / "a photo.of me.map.png") as picture:
        assert picture.mode == "P" and picture.size == (50, 30)
    assert f"{photo}: logits " in capsys.readouterr().out


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 90), st.integers(1, 90))
def test_a_map_comes_to_the_picture_by_the_rule_that_the_bundle_states(
    rows: int, columns: int, height: int, width: int
) -> None:
    """A reader who has the sentence of `to_picture` alone gets what the program gets, on every tie."""
    assert "row floor((2r + 1) H / (2h)) of the H rows" in TO_PICTURE
    value = np.arange(rows * columns).reshape(rows, columns)
    rule = {"how": "stretch", "height": rows, "width": columns}
    found = picture.back(value, (height, width), rule, 0)
    down = [(2 * r + 1) * rows // (2 * height) for r in range(height)]
    across = [(2 * c + 1) * columns // (2 * width) for c in range(width)]
    np.testing.assert_array_equal(found, value[np.ix_(down, across)])


def test_two_pictures_never_write_the_same_file(
    program: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for words, told in (
        (["a.png", "a.jpg"], "a.png and a.jpg"),
        (["x/a.png", "y/a.png", "--out", "z"], "x/a.png and y/a.png"),
        ([], "give pictures, or --check"),
    ):
        with pytest.raises(SystemExit) as caught:
            run(program, monkeypatch, *words)
        assert caught.value.code == 2
        assert told in capsys.readouterr().err


def test_a_file_that_is_no_picture_is_named(
    program: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SystemExit, match=r"nowhere\.png: no such file"):
        run(program, monkeypatch, tmp_path / "nowhere.png")


def test_another_model_file_is_refused(
    program: ModuleType, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = bundle / "model.onnx"
    model.write_bytes(model.read_bytes() + b"\0")
    with pytest.raises(SystemExit, match=r"model\.onnx is not the file .* its hash differs"):
        run(program, monkeypatch, "--check")
    model.unlink()
    with pytest.raises(SystemExit, match=r"model\.onnx is missing"):
        run(program, monkeypatch, "--check")


def test_a_missing_package_is_named_with_its_mend(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    monkeypatch.syspath_prepend(str(bundle))
    spec = importlib.util.spec_from_file_location("infer_without", bundle / "infer.py")
    assert spec is not None and spec.loader is not None
    with pytest.raises(SystemExit, match=r"onnxruntime.*pip install numpy pillow onnxruntime"):
        spec.loader.exec_module(importlib.util.module_from_spec(spec))


# -- the golden picture ----------------------------------------------------------------------------------------------

Prepare = Callable[..., np.ndarray]


def wrongly(fault: str, prepare: Prepare) -> Prepare:
    """`prepare` of a program whose writer made one mistake."""

    def faulty(pixels: np.ndarray, want: dict[str, dict[str, int]]) -> np.ndarray:
        size = (want["resize"]["width"], want["resize"]["height"])
        if fault == "blue first":
            return np.ascontiguousarray(prepare(pixels, want)[:, ::-1])
        if fault == "no antialias":
            rows = np.arange(size[1]) * len(pixels) // size[1]
            columns = np.arange(size[0]) * pixels.shape[1] // size[0]
            return prepare(pixels[rows][:, columns], want)
        if fault == "bicubic":
            resized = Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC)
            return prepare(np.asarray(resized), want)
        if fault == "cut, not stretched":
            side = min(pixels.shape[:2])
            return prepare(pixels[:side, :side], want)
        if fault == "0 to 255":
            return prepare(pixels, {**want, "normalize": {**want["normalize"], "scale": 1.0}})
        if fault == "no mean":
            return prepare(pixels, {**want, "normalize": {**want["normalize"], "mean": [0, 0, 0]}})
        if fault == "mirrored":
            return np.ascontiguousarray(prepare(pixels, want)[..., ::-1])
        return prepare(pixels, want)

    return faulty


@pytest.mark.parametrize(
    "fault",
    ["", "blue first", "no antialias", "bicubic", "cut, not stretched", "0 to 255", "no mean", "mirrored"],
)
def test_a_mistake_in_preparing_a_picture_shows_on_the_golden_one(
    fault: str, program: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(program, "prepare", wrongly(fault, program.prepare))
    assert run(program, monkeypatch, "--check") == int(bool(fault)), capsys.readouterr().out


def test_an_output_that_is_off_fails_the_check(program: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = program.open_model

    def off(path: Path, target: object) -> Callable[..., dict[str, np.ndarray]]:
        inner = opened(path, target)
        return lambda inputs: {name: array * 1.01 for name, array in inner(inputs).items()}

    monkeypatch.setattr(program, "open_model", off)
    assert run(program, monkeypatch, "--check") == 1


def test_golden_values_are_what_predict_keeps(bundle: Path) -> None:
    golden = Bundle.open(bundle).info.golden
    assert golden is not None
    assert golden.values["logits"]["class"] in "abcde"
    assert sum(golden.values["map"]["pixel_shares"].values()) == pytest.approx(1)


# -- words and pictures ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [kind for kind in task_kinds() if usual_task(kind).dense])
def test_every_map_has_a_picture(kind: str) -> None:
    task = usual_task(kind)
    raw = np.random.default_rng(0).normal(size=(1, task.channels, 6, 8)).astype(np.float32) * 4
    record = output_record("it", raw.shape, "float32", task, None).model_dump(mode="json")
    value = shared.decode(raw[0], record["decode"])
    picture = show.picture(record, value)
    assert picture.size == value.shape[-2:][::-1]
    assert np.ptp(np.asarray(picture)) > 0
    assert show.words(record, raw[0], value)


def test_words_name_classes_shares_and_units() -> None:
    task = replace(usual_task("regression"), name="age")
    record = output_record("age", (1, 1), "float32", task, None).model_dump(mode="json")
    assert show.words(record, np.array([31.25], np.float32), np.float32(31.25)) == "31.25 years"
    record = output_record("it", (1, 3), "float32", usual_task("classification"), None).model_dump(
        mode="json"
    )
    assert show.words(record, np.array([0, 20, 0], np.float32), np.int64(1)) == "wall 100%"
    record = output_record("it", (1,), "int64", usual_task("classification"), "argmax").model_dump(
        mode="json"
    )
    assert show.words(record, np.int64(2), np.int64(2)) == "lamp"
    record = output_record("it", (1, 3), "float32", usual_task("multilabel"), None).model_dump(mode="json")
    assert (
        show.words(record, np.array([20, -1, -2], np.float32), np.array([1, 0, 0], np.float32))
        == "floor 100%"
    )
    assert show.words(record, np.array([-3, -1, -2], np.float32), np.array([0, 0, 0], np.float32)) == "none"
