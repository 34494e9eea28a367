"""infer.py of a model of several inputs: golden inputs that nothing can confuse, and the refusals of `predict`, word for word."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

from compactmtl.backends.targets import load_target
from compactmtl.cli.predict import samples_of
from compactmtl.errors import CompactError, ConfigError, DataError
from compactmtl.export import Predictor
from compactmtl.export.bundle import Bundle
from compactmtl.export.golden import INPUT
from compactmtl.export.predict import Photo
from compactmtl.export.script import MOST_LINES
from tests.export.test_in_bundle import golden_bundle
from tests.support.bundle_programs import program_of, run
from tests.support.bundles import several_bundle
from tests.support.damaged_npy import HEADERS, npy_of

PICTURES, VECTORS = "abcd", "uv"
DAMAGED = {name: HEADERS[name] for name in ("cut header", "claims", "nested", "long")}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("several") / "bundle"
    return golden_bundle(folder, load_target("onnxruntime-cpu"), several_bundle)


@pytest.fixture
def program(bundle: Bundle, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[ModuleType]:
    """The bundle's infer.py as a module; the working folder holds a picture, one of another shape, and vectors."""
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (30, 20), (200, 40, 90)).save("wide.png")
    Image.new("RGB", (20, 20)).save("square.png")
    Image.new("RGB", (20, 20)).save("pages.tif", save_all=True, append_images=[Image.new("RGB", (20, 20))])
    Path("text.png").write_text("no picture")
    np.save("three.npy", np.array([1.0, 20, 0]))
    Path("three.npy").rename("three.NPY")
    np.save("two.npy", np.array([1.0, 20]))
    np.save("rows.npy", np.ones((1, 3)))
    np.save("yes.npy", np.array([True, False, True]))
    np.save("huge.npy", np.array([1e300, 0, 0]))
    np.save("object.npy", np.array([{}], object), allow_pickle=True)
    np.savez("archive.npz", x=np.ones(3))
    Path("archive.npz").rename("archive.npy")
    Path("cut.npy").write_bytes(Path("archive.npy").read_bytes()[:80])
    for name, header in DAMAGED.items():
        Path(f"{name}.npy").write_bytes(npy_of(header))
    with program_of(bundle.path, monkeypatch) as module:
        yield module


def given(**others: str) -> dict[str, str]:
    """Files of a whole sample, some of them others."""
    return {**dict.fromkeys(PICTURES, "wide.png"), "u": "three.NPY", "v": "1.5,20,-1", **others}


def test_its_program_is_one_that_a_user_reads(bundle: Bundle) -> None:
    assert len((bundle.path / "infer.py").read_text(encoding="utf-8").splitlines()) <= MOST_LINES


# -- the golden inputs -----------------------------------------------------------------------------------------------


def test_each_golden_input_is_another(bundle: Bundle) -> None:
    golden = bundle.info.golden
    assert golden is not None and list(golden.inputs) == [*PICTURES, *VECTORS]
    stored = np.load(bundle.path / golden.arrays)
    for names in (PICTURES, VECTORS):
        for one, other in itertools.combinations(names, 2):
            # far beyond what passes for the same
            assert np.abs(stored[one] - stored[other]).max() > 100 * INPUT * np.abs(stored[one]).max(), (
                one,
                other,
            )


@pytest.mark.parametrize("pair", [*itertools.combinations(PICTURES, 2), ("u", "v")], ids="".join)
def test_inputs_that_change_places_show_on_the_golden_ones(
    pair: tuple[str, str], program: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(program, monkeypatch, "--check") == 0
    load = program.load

    def confused(files: Mapping[str, str], inputs: object) -> object:
        one, other = pair
        return load({**files, one: files[other], other: files[one]}, inputs)

    monkeypatch.setattr(program, "load", confused)
    assert run(program, monkeypatch, "--check") == 1


# -- the same refusals as predict --------------------------------------------------------------------------------------


def test_infer_and_predict_agree_on_a_sample(
    program: ModuleType, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [f"{name}={file}" for name, file in given().items()]
    assert run(program, monkeypatch, *words, "--out", "out") == 0
    with Predictor.open(bundle.path) as predictor:
        photo = predictor.photo(given())
        found = {one.task: one for one in predictor.predict(photo)}
    np.testing.assert_array_equal(np.load("out/wide.map.npy"), found["map"].on(photo))


@pytest.mark.parametrize(
    "words",
    [
        ["wide.png"],
        ["a=wide.png", "b"],
        ["a=wide.png", "far=wide.png"],
        ["a=wide.png"],
        [*(f"{name}={file}" for name, file in given().items()), "a=square.png"],
    ],
    ids=" ".join,
)
def test_words_that_name_no_whole_sample(
    words: list[str], program: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ConfigError) as caught:
        samples_of(words, [*PICTURES, *VECTORS])
    with pytest.raises(SystemExit) as ended:
        run(program, monkeypatch, *words)
    assert ended.value.code == 2
    assert capsys.readouterr().err.endswith(f"error: {caught.value.message}\n")


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("a", "none.png"),
        ("a", "text.png"),
        ("a", "pages.tif"),
        ("a", "."),
        ("b", "square.png"),
        ("a", "archive.npy"),
        *(("a", f"{name}.npy") for name in DAMAGED),
        ("u", "two.npy"),
        ("u", "rows.npy"),
        ("u", "yes.npy"),
        ("u", "huge.npy"),
        ("u", "object.npy"),
        ("u", "archive.npy"),
        ("u", "cut.npy"),
        ("u", "none.npy"),
        *(("u", f"{name}.npy") for name in DAMAGED),
        ("u", "wide.png"),
        ("u", "1,2"),
        ("u", "1,2,x"),
        ("u", "1,2,3,"),
        ("u", "nan,1,2"),
        ("u", "1e300,1,2"),
        ("u", ""),
    ],
)
def test_files_that_the_model_cannot_take(
    name: str, file: str, program: ModuleType, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = given(**{name: file})
    with Predictor.open(bundle.path) as predictor, pytest.raises(DataError) as caught:
        predictor.photo(files)
    with pytest.raises(SystemExit) as ended:
        run(program, monkeypatch, *(f"{one}={other}" for one, other in files.items()))
    assert ended.value.code == f"error: {caught.value.message}"


# -- arrays that a user makes ------------------------------------------------------------------------------------------


def without(photo: Photo, name: str) -> Photo:
    return Photo(photo.pixels, photo.place, {key: one for key, one in photo.others.items() if key != name})


def changed(name: str, change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Photo], Photo]:
    def apply(photo: Photo) -> Photo:
        if name == "a":
            return Photo(change(photo.pixels), photo.place, photo.others)
        return Photo(photo.pixels, photo.place, {**photo.others, name: change(photo.others[name])})

    return apply


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda photo: photo.pixels, "the model takes a, b, c, d, u, v, found a"),
        (lambda photo: without(photo, "u"), "the model takes a, b, c, d, u, v, found a, b, c, d, v"),
        (changed("a", lambda one: one / np.float32(255)), "input 'a' is float32 of shape"),
        (
            changed("b", lambda one: one.transpose(1, 2, 0)),
            r"input 'b' .* expected uint8 of shape \(3, H, W\)",
        ),
        (changed("c", lambda one: one[:1]), r"input 'c' is uint8 of shape \(1, 8, 8\)"),
        (
            changed("u", lambda one: one[:2]),
            r"input 'u' is float32 of shape \(2,\), expected float32 of shape \(3,\)",
        ),
        (changed("v", lambda one: one[None]), r"input 'v' is float32 of shape \(1, 3\)"),
    ],
)
def test_arrays_that_would_be_taken_for_others_are_refused(
    change: Callable[[Photo], Photo], says: str, program: ModuleType, bundle: Bundle
) -> None:
    with Predictor.open(bundle.path) as predictor:
        photo = predictor.photo(given())
        assert len(predictor.predict(photo)) == 2
        with pytest.raises(ConfigError, match=says):
            predictor.predict(change(photo))


def test_one_picture_is_no_sample_of_named_ones(tmp_path: Path) -> None:
    bundle = golden_bundle(tmp_path / "bundle", load_target("onnxruntime-cpu"))
    with Predictor.open(bundle.path) as predictor:
        for files in ({}, {"image": "wide.png"}):
            with pytest.raises(CompactError, match="takes one picture without a name"):
                predictor.photo(files)
        with pytest.raises(ConfigError, match=r"the image is float32 of shape \(3, 8, 8\), expected uint8"):
            predictor.predict(np.zeros((3, 8, 8), np.float32))
        with pytest.raises(ConfigError, match=r"the image is uint8 of shape \(8, 8, 3\)"):
            predictor.predict(np.zeros((8, 8, 3), np.uint8))
