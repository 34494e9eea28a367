"""A network of color, depth and a camera's numbers walks the whole road, and its bundle needs no code."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from compactmtl.cli.main import main
from compactmtl.errors import OK, USAGE
from compactmtl.export.script import MOST_LINES
from tests.support.own_inputs import MODULE, RECIPE, TARGET

BAKED = TARGET + "onnx: {preprocess: true, dynamic_batch: true, postprocess: {kind: argmax}}\n"
INT8 = TARGET + "precision: int8\n"
SAMPLE = ["rgb=a.png", "depth=a_depth.png", "camera=a.npy"]
SECOND = ["rgb=b.png", "depth=b_depth.png", "camera=1.4,24,16"]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "own_inputs.py").write_text(MODULE)
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    for name, text in (("t", TARGET), ("baked", BAKED), ("int8", INT8)):
        (tmp_path / f"{name}.yaml").write_text(text)
    draw = np.random.default_rng(0)
    for name, size in (("a", (60, 90)), ("b", (33, 48))):
        Image.fromarray(draw.integers(0, 255, (*size, 3)).astype(np.uint8)).save(f"{name}.png")
        # depth of another size and the same shape, at 16 bits
        small = draw.integers(0, 65535, (size[0] // 3, size[1] // 3)).astype(np.uint16)
        Image.fromarray(small).save(f"{name}_depth.png")
    Image.new("L", (30, 30)).save("square.png")
    np.save("a.npy", np.array([0.8, 24, 16]))
    path = list(sys.path)
    yield tmp_path
    sys.path[:] = path
    sys.modules.pop("own_inputs", None)


def infer(bundle: Path, *words: str) -> str:
    done = subprocess.run(
        [sys.executable, bundle / "infer.py", *words], capture_output=True, text=True, check=True
    )
    return done.stdout


@pytest.mark.slow
def test_the_whole_road(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trust = ["--trust"]
    assert main(["data", "check", "recipe.yaml", *trust]) == OK
    told = capsys.readouterr().out
    assert "input    depth: picture, channels: 1" in told and "input    camera: vector of 3" in told
    assert main(["train", "recipe.yaml", "--smoke", "--name", "smoke", *trust]) == OK
    assert main(["train", "recipe.yaml", "--name", "own", *trust]) == OK
    run = Path("runs/own")
    assert main(["compact", str(run), *trust]) == OK
    surgery = json.loads((run / "compact/surgery.json").read_text())
    assert surgery["macs"]["after"] <= 0.65 * surgery["macs"]["before"]
    for target in ("t", "baked", "int8"):
        assert main(["export", str(run), "--target", f"{target}.yaml", *trust]) == OK
    # A kit times and scores the file where only its runtime is.
    assert (
        main(["export", str(run), "--target", "t.yaml", "--kit-out", "kit", "--kit-images", "3", *trust])
        == OK
    )
    subprocess.run([sys.executable, "kit.py", "--repeats", "3"], cwd="kit", check=True, capture_output=True)
    assert main(["collect", str(run), "kit/results.json", *trust]) == OK
    assert main(["profile", str(run), "--warmup", "1", "--repeats", "3", "--target", "t.yaml", *trust]) == OK
    assert main(["tasks", str(run), "--target", "t.yaml", *trust]) == OK
    assert main(["report", str(run), *trust]) == OK
    card = (run / "README.md").read_text()
    assert "rgb=FILE depth=FILE camera=FILE" in card
    for words in ("- `rgb`: RGB, ", "- `depth`: gray, ", "- `camera`: 3 numbers. Values: "):
        assert words in card
    assert main(["predict", str(run), *SAMPLE, *SECOND, "--out", "of_run", "--maps", *trust]) == OK
    # The bundle is on its own.
    Path("own_inputs.py").unlink()
    sys.modules.pop("own_inputs", None)
    for target in ("t", "baked", "int8"):
        bundle, out = run / "export" / target, Path(f"of_{target}")
        info = json.loads((bundle / "bundle.json").read_text())
        assert [one["name"] for one in info["inputs"]] == ["rgb", "depth", "camera"]
        assert [one["channels"] for one in info["inputs"]] == [3, 1, None]
        assert (info["inputs"][1]["normalize"] is None) == (target == "baked")
        assert list(info["golden"]["inputs"]) == ["rgb", "depth", "camera"]
        assert json.loads((bundle / "verification.json").read_text())["parity"]["passed"]
        assert len((bundle / "infer.py").read_text().splitlines()) <= MOST_LINES
        assert main(["predict", str(bundle), *SAMPLE, *SECOND, "--out", str(out), "--maps"]) == OK
        assert infer(bundle, "--check").count("is right") == 5
        infer(bundle, *SAMPLE, *SECOND, "--out", f"alone_{target}")
        for name in ("a", "b"):
            alone, ours, first = (
                np.load(f"{folder}/{name}.kind.npy") for folder in (f"alone_{target}", out, "of_run")
            )
            assert alone.shape == np.asarray(Image.open(f"{name}.png")).shape[:2]
            assert np.array_equal(alone, ours)
            # int8 rounds; else a pixel whose two classes are equal but for rounding may differ
            assert (ours != first).mean() <= (0.2 if target == "int8" else 0.001)
    values = [json.loads(Path(folder, "predictions.json").read_text()) for folder in ("of_t", "of_run")]
    for name in ("a.png", "b.png"):
        one, other = (value[name]["tasks"]["focal"]["value"] for value in values)
        assert one == pytest.approx(other, abs=1e-4)
    assert values[0]["a.png"]["tasks"]["focal"] != values[0]["b.png"]["tasks"]["focal"]


@pytest.mark.slow
def test_a_fit_and_what_predict_refuses(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["fit", "own_inputs:Fused", "--recipe", "recipe.yaml", "--target", "t.yaml", "--macs-reduction", "0.4"]  # fmt: skip
    assert main([*words, "train.epochs=2", "--no-dense"]) == OK
    told = capsys.readouterr().out
    assert "mac_reduction 0.4: met" in told and "rgb=FILE depth=FILE camera=FILE" in told
    bundle = Path("runs/own_inputs/t-macs-0.4/export/t")
    for given, message in (
        (["a.png"], "a.png: the model takes rgb, depth, camera"),
        (SAMPLE[:2], "each sample needs one file of each input, found 1 of rgb, 1 of depth, 0 of camera"),
        ([SAMPLE[0], "depth=square.png", SAMPLE[2]], "square.png: 30x30 pixels (width x height)"),
        ([*SAMPLE[:2], "camera=1,2"], "input 'camera' has 3 numbers"),
        ([*SAMPLE[:2], "camera=nan,1,2"], "not finite"),
        ([*SAMPLE[:2], "camera=a.png"], "not the numbers of input 'camera'"),
        ([*SAMPLE, "far=a.png"], "the model takes rgb, depth, camera"),
    ):
        assert main(["predict", str(bundle), *given]) == USAGE, given
        assert message in capsys.readouterr().err, given
    for given in (SAMPLE[:2], [SAMPLE[0], "depth=square.png", SAMPLE[2]], [*SAMPLE[:2], "camera=1,2"]):
        with pytest.raises(subprocess.CalledProcessError):
            infer(bundle, *given)
