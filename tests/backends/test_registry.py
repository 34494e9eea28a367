"""A backend is one folder: what is in it is found, and a new one needs no line elsewhere."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import compactmtl.backends
from compactmtl.backends import all_backends, backend_names, checked_target, get_backend, load_target
from compactmtl.backends.base import Availability, Backend, Runner
from compactmtl.backends.targets import machine_files
from compactmtl.backends.versions import package_versions
from compactmtl.cli.main import main
from compactmtl.config.target import Target
from compactmtl.errors import OK, USAGE, ConfigError
from compactmtl.export import Bundle
from compactmtl.export.precision import apply_precision
from compactmtl.verify import check_parity
from tests.support.onnx_files import WIDTH, TwoHeads, write_onnx
from tests.support.real_runs import SCENES, write_run

OUTSIDE = Path(__file__).parents[1] / "support" / "backends"
NAME = "onnx-reference"


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working folder with a target of a backend that is not of the package."""
    monkeypatch.setattr(compactmtl.backends, "__path__", [*compactmtl.backends.__path__, str(OUTSIDE)])
    importlib.invalidate_caches()
    monkeypatch.chdir(tmp_path)
    (tmp_path / "export").mkdir()
    (tmp_path / "export/numpy.yaml").write_text(
        f"description: plain numpy\nbackend: {NAME}\nevaluator: {{verbose: 0}}\n"
        "accuracy: {samples: 2}\nlatency: {warmup: 0, repeats: 1, settle: 0}\n"
    )
    yield tmp_path
    for module in [name for name in sys.modules if name.startswith("compactmtl.backends.onnx_reference")]:
        del sys.modules[module]


def test_every_folder_is_a_backend_of_its_name() -> None:
    assert {"onnxruntime", "openvino", "tensorrt", "torch"} <= set(backend_names())
    assert [backend.name for backend in all_backends()] == list(backend_names())
    assert [backend.name for backend in all_backends() if backend.is_reference] == ["onnxruntime"]


def test_an_unknown_name_has_its_mend() -> None:
    with pytest.raises(ConfigError, match="unknown backend 'openvio'") as caught:
        get_backend("openvio")
    assert caught.value.hint == "did you mean openvino?"


def test_a_new_folder_is_listed_everywhere(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert NAME in backend_names()
    assert main(["doctor"]) == OK
    assert [NAME, "yes"] in [line.split() for line in capsys.readouterr().out.splitlines()]
    assert main(["targets", "list"]) == OK
    assert ["numpy", "plain", "numpy"] in [line.split() for line in capsys.readouterr().out.splitlines()]
    assert main(["targets", "show", "numpy", "--resolved"]) == OK
    shown = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["verbose:", "0", "#", "export/numpy.yaml:3"] in shown
    assert "ml_dtypes" in package_versions()


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("evaluator.verbos=1", "did you mean `evaluator.verbose`?"),
        ("evaluator.verbose=-1", "`evaluator.verbose`: expected a number of at least 0, found"),
        ("precision=int8", f"precision int8: backend {NAME} takes fp32"),
        ("backend=onnx-referenc", f"did you mean {NAME}?"),
    ],
)
def test_its_keys_are_checked_with_the_target(
    place: Path, override: str, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["targets", "show", "numpy", override]) == USAGE
    assert says in capsys.readouterr().err


def test_its_outputs_are_those_of_the_module(place: Path) -> None:
    module = TwoHeads().eval()
    path = write_onnx(place / "m.onnx", module)
    assert check_parity(module, path, torch.randn(4, WIDTH), target=load_target("numpy")).passed


def test_its_precisions_say_how_the_graph_is_made(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A backend that lowers a graph itself gets the float32 file."""
    monkeypatch.setattr(type(get_backend(NAME)), "precisions", {"fp32": "none", "fp16": "none"})
    path = write_onnx(place / "m.onnx", TwoHeads().eval())
    before = path.read_bytes()
    assert apply_precision(path, Target(backend=NAME, precision="fp16")) is None
    assert path.read_bytes() == before
    with pytest.raises(ConfigError, match=f"precision int8: backend {NAME} takes fp32, fp16"):
        apply_precision(path, Target(backend=NAME, precision="int8"))


@pytest.mark.slow
def test_a_run_is_exported_and_verified_through_it(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(place / "run", SCENES)
    assert main(["export", "run", "--target", "numpy"]) == OK
    verification = json.loads((place / "run/export/numpy/verification.json").read_text())
    assert verification["passed"]
    assert verification["latency"]["stats"]["model"]["backend"] == NAME
    layers = verification["measured"]["model"]["layers"]
    assert {"Conv", "Relu"} < {layer["operator"] for layer in layers}
    bundle = Bundle.open(place / "run/export/numpy")
    assert bundle.info.target == load_target("numpy")
    assert "provider" not in bundle.info.target.own  # another backend's key
    with bundle.runner() as runner:
        assert runner.describe().provider == "numpy"


class Idle(Backend):
    """A backend that declares nothing."""

    name = "idle"

    def availability(self, target: Target) -> Availability:
        return Availability(True)

    def open(self, model: Path, target: Target) -> Runner:
        raise NotImplementedError


@pytest.mark.parametrize("key", ["provider", "precison"])
def test_a_key_that_the_backend_does_not_have_is_refused_where_it_runs(key: str) -> None:
    with pytest.raises(ConfigError, match=f"unknown key `{key}`"):
        Idle().require(Target.model_validate({"backend": "idle", key: "x"}))


def test_a_target_of_an_earlier_version_holds_the_keys_of_every_backend() -> None:
    earlier = Target.model_validate(
        {
            "backend": "openvino",
            "provider": "CPUExecutionProvider",
            "device": "GPU",
            "tensorrt": {"max_batch": 3},
        }
    )
    assert checked_target(earlier) == Target(backend="openvino", device="GPU")
    broken = earlier.model_copy(update={"tensorrt": {"max_batch": 0}})
    with pytest.raises(ConfigError, match=r"`tensorrt\.max_batch`: expected a number of at least 1"):
        checked_target(broken)


def test_files_of_one_machine_are_found_whatever_the_backend() -> None:
    target = Target(backend="openvino", tensorrt={"lean_runtime": "/opt/lean.so", "max_batch": 3})
    assert machine_files(target) == {"tensorrt.lean_runtime": "/opt/lean.so"}
