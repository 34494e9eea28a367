"""`export` of an ONNX file as a user calls it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from compactmtl.cli.main import main
from compactmtl.errors import GATE, OK, USAGE
from compactmtl.export import Bundle
from tests.support.conv_onnx import write_conv
from tests.support.onnx_files import TwoHeads, write_onnx

TARGET = """\
backend: onnxruntime
precision: {precision}
latency: {{warmup: 1, repeats: 3, settle: 0}}
"""


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """In the working folder, with targets and calibration data beside it."""
    monkeypatch.chdir(tmp_path)
    for precision in ("fp32", "int8"):
        Path(f"{precision}.yaml").write_text(TARGET.format(precision=precision))
    np.savez("samples.npz", image=np.random.default_rng(0).standard_normal((16, 6)).astype(np.float32))
    return write_onnx(Path("small.onnx"), TwoHeads())


INT8 = ["--target", "int8.yaml", "--calibration", "samples.npz"]


@pytest.mark.slow  # exports
def test_from_a_file_to_a_report(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", str(file), *INT8, "--tolerance", "0.2"]) == OK
    said = capsys.readouterr().out
    assert "bundle: small-int8" in said and "next: compactmtl report small-int8" in said
    assert Bundle.open("small-int8").doubt == ""
    assert main(["report", "small-int8"]) == OK
    assert "held: parity" in Path("small-int8/report.html").read_text()


@pytest.mark.slow  # exports
def test_int8_that_nothing_bounds_is_not_verified(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", str(file), *INT8]) == GATE
    assert "no gate is on its outputs" in capsys.readouterr().err


@pytest.mark.slow  # exports
def test_an_evaluation_of_ones_own(
    file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("judge.py").write_text(
        "import torch\n\ndef score(predict):\n    return {'sum': float(predict(torch.ones(4, 6))['alpha'].sum())}\n"
    )
    monkeypatch.syspath_prepend(".")
    words = ["export", str(file), "--target", "fp32.yaml", "--evaluate", "judge:score"]
    assert main(words) == USAGE
    assert "add --trust" in capsys.readouterr().err
    assert main([*words, "--trust"]) == OK
    said = capsys.readouterr().out
    assert "model sum:" in said and "made-up inputs alone" in said


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "no target is named"),
        (["--target", "int8.yaml"], "--calibration PATH"),
        (["--target", "fp32.yaml", "--kit"], "--kit has no meaning for an ONNX file"),
        (["--target", "fp32.yaml", "data.root=/data"], "key=value has no meaning"),
        (["--target", "fp32.yaml", "--mean", "0,0,0"], "belong together"),
        (["--target", "fp32.yaml", "--mean", "0,0,0", "--std", "1,1,1"], "takes image"),
        (["--target", "fp32.yaml", "--kit-images", "0"], "--kit-images has no meaning for an ONNX file"),
        (["--target", "fp32.yaml", "--device", "cpu"], "--device has no meaning for an ONNX file"),
        (["--target", "fp32.yaml", "--shape", "x=1x6"], "has no input 'x'"),
        (["--target", "fp32.yaml", "--shape", "image=0x6"], "--shape image=0x6: expected NAME"),
        (["--target", "fp32.yaml", "--shape", "image=1x6", "--shape", "image=2x6"], "has a shape already"),
        (["--target", "fp32.yaml", "--shape", "image=2x6", "--calibration", "samples.npz"], "made-up inputs"),
        (["--target", "fp32.yaml", "--tolerance", "0"], "bounds nothing"),
        (["--target", "fp32.yaml", "--tolerance", "inf"], "bounds nothing"),
        (["--target", "fp32.yaml", "--latency-ms", "-1"], "is no latency"),
        (["--target", "fp32.yaml", "--latency-ms", "0"], "is no latency"),
        (["--target", "fp32.yaml", "--latency-ms", "inf"], "is no latency"),
        (["--target", "fp32.yaml", "--baseline", ""], "--baseline: the value is empty"),
        (["--target", "fp32.yaml", "--out="], "--out: the value is empty"),
        (["--target", "fp32.yaml", "int8.yaml", "--out", "b"], "several targets"),
    ],
)
def test_what_does_not_fit_is_named(
    file: Path, words: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", str(file), *words]) == USAGE
    assert says in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--mean", "0,0,0", "--std", "0,0,0"], "--std 0, 0, 0: pictures are divided by it"),
        (["--mean", "0,0,0", "--std=-1,1,1"], "--std -1, 1, 1: pictures are divided by it"),
        (["--mean", "nan,0,0", "--std", "1,1,1"], "--mean nan, 0, 0: a value is not finite"),
        (["--mean", "0,0", "--std", "1,1"], "--mean 0,0: 2 numbers for 3 channels"),
        (["--mean", "", "--std", "1,1,1"], "--mean: the value is empty"),
    ],
)
def test_a_normalization_that_nothing_can_do(
    file: Path, words: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    conv = write_conv(Path("conv.onnx"))
    assert main(["export", str(conv), "--target", "fp32.yaml", *words]) == USAGE
    assert says in capsys.readouterr().err


@pytest.mark.parametrize(
    "option",
    [
        ["--calibration", "samples.npz"],
        ["--mean", "0,0,0"],
        ["--shape", "image=1x3x8x8"],
        ["--tolerance", "0"],
        ["--latency-ms", "0"],
    ],
)
def test_options_of_files_are_not_for_runs(
    tmp_path: Path, option: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", str(tmp_path), *option]) == USAGE
    assert f"{option[0]} has no meaning for a run" in capsys.readouterr().err
