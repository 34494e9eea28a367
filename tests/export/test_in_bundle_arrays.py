"""infer.py of a bundle that takes arrays: how they are named on the command line, and golden outputs of any size."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from compactmtl.artifacts.files import sha256_file
from compactmtl.artifacts.layout import MODEL_FILE
from compactmtl.backends.targets import load_target
from compactmtl.export.bundle import Bundle, write_bundle
from compactmtl.export.golden import MOST, write_array_golden
from compactmtl.export.module_outputs import OutputWords, array_input, raw_output
from compactmtl.export.record import BundleInfo, GoldenTensor, Runtime, Training
from compactmtl.export.script import MOST_LINES, scripts
from tests.export.test_in_bundle import exported_targets, imports
from tests.support.bundle_programs import PARTS, program_of, run

INPUTS = {"x": (2, 3), "y": (2, 3)}
OUTPUTS = {"/head/sum": (2, 3), "none": (2, 0)}


def write_model(path: Path) -> Path:
    """Two inputs; their sum under a name that is no file's, and an output of no number."""
    nodes = [
        helper.make_node("Add", ["x", "y"], ["/head/sum"]),
        helper.make_node("Slice", ["x", "zero", "zero", "one"], ["none"]),
    ]
    inputs, outputs = (
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in tensors.items()]
        for tensors in (INPUTS, OUTPUTS)
    )
    numbers = [
        onnx.numpy_helper.from_array(np.array([one]), name) for one, name in enumerate(("zero", "one"))
    ]
    graph = helper.make_graph(nodes, "arrays", inputs, outputs, numbers)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)
    return path


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("arrays=1") / "bundle=2"
    folder.mkdir()
    path, target = write_model(folder / MODEL_FILE), load_target("onnxruntime-cpu")
    info = BundleInfo(
        run="by-hand",
        compact=False,
        target_name="by-hand",
        target=target,
        model=MODEL_FILE,
        runtime=Runtime(name="onnxruntime", package="onnxruntime"),
        files={MODEL_FILE: sha256_file(path)},
        inputs=tuple(array_input(name, shape, "float32") for name, shape in INPUTS.items()),
        outputs=tuple(raw_output(name, shape, "float32", OutputWords()) for name, shape in OUTPUTS.items()),
        training=Training(tasks={}, preprocessing=None),
        recipe_sha256=None,
        versions={},
        created="",
    )
    feed = {name: np.ones(shape, np.float32) for name, shape in INPUTS.items()}
    with Bundle(folder, info).runner() as runner:
        golden = write_array_golden(folder, info, {}, feed, runner.run, "by hand")
    return write_bundle(folder, info.model_copy(update={"golden": golden}))


@pytest.fixture
def program(made: Bundle, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[ModuleType]:
    """The bundle's infer.py as a module; the working folder holds arrays of ones and twos."""
    monkeypatch.chdir(tmp_path)
    for number, name in enumerate(("ones", "twos"), 1):
        np.save(f"{name}.npy", np.full((2, 3), number, np.float32))
    with program_of(made.path, monkeypatch) as module:
        yield module


def test_an_output_without_numbers_is_stored_and_held(
    made: Bundle, program: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert made.info.golden is not None
    assert made.info.golden.tensors["none"] == GoldenTensor(step=1, tolerance=1e-4)
    assert run(program, monkeypatch, "--check") == 0  # in a folder whose name holds =
    assert "none: off by 0.0e+00" in capsys.readouterr().out


def test_an_output_of_another_shape_is_wrong(
    program: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    opened = program.open_model
    monkeypatch.setattr(
        program,
        "open_model",
        lambda *words: lambda arrays: {**opened(*words)(arrays), "none": np.zeros((2, 1), np.float32)},
    )
    assert run(program, monkeypatch, "--check") == 1
    assert "none: [2], [0] is right" in capsys.readouterr().out


def test_a_path_may_hold_an_equals_sign(
    program: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = tmp_path / "x=1" / "z=2"
    folder.mkdir(parents=True)
    np.savez(folder / "both.npz", x=np.load("ones.npy"), y=np.load("twos.npy"))
    for words in (["x=1/z=2/both.npz"], [str(folder / "both.npz")]):
        assert run(program, monkeypatch, *words, "--out", "o=1") == 0
        assert (np.load("o=1/_head_sum.npy") == 3).all()
    np.save(folder / "twos.npy", np.load("twos.npy"))
    assert run(program, monkeypatch, "x=ones.npy", f"y={folder / 'twos.npy'}", "--out", "out") == 0
    assert (np.load("out/_head_sum.npy") == 3).all() and np.load("out/none.npy").shape == (2, 0)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["ones.npy", "twos.npy"], "an array without a name is given twice"),
        (["x=ones.npy", "y=ones.npy", "x=twos.npy"], "x is given twice"),
        (["x=ones.npy", "twos.npy"], "the model takes y, and there is only x, an array without a name"),
        (["x=ones.npy", "z=ones.npy"], "z=ones.npy"),
        (["cut.npz"], "zip"),
    ],
)
def test_what_cannot_be_meant_is_named(
    program: ModuleType, monkeypatch: pytest.MonkeyPatch, words: list[str], says: str
) -> None:
    np.savez("cut.npz", x=np.zeros((2, 3), np.float32))
    Path("cut.npz").write_bytes(Path("cut.npz").read_bytes()[:60])
    with pytest.raises(SystemExit, match=says):
        run(program, monkeypatch, *words)


@pytest.mark.parametrize("target", exported_targets())
def test_every_target_gets_a_program_of_few_lines(target: str, made: Bundle) -> None:
    files = scripts(made.info.model_copy(update={"target": load_target(target)}))
    assert len(files["infer.py"].splitlines()) <= MOST_LINES
    assert set(files) <= {"infer.py", "shared.py", "runtime.py"}
    for name, text in files.items():
        compile(text, name, "exec")
        assert {f"{one}.py" for one in imports(text) & PARTS} <= set(files), name


def test_a_large_output_is_stored_in_part(made: Bundle, tmp_path: Path) -> None:
    outputs = {"large": np.zeros(3 * MOST, np.float32), "small": np.zeros((0, 4), np.float32)}
    golden = write_array_golden(tmp_path, made.info, {}, {}, lambda feed: outputs, "by hand")
    assert [golden.tensors[name].step for name in outputs] == [3, 1]
    assert np.load(tmp_path / "golden.npz")["large"].size == MOST
