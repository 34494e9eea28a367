"""The exported file is what was asked for: names, order, shapes, opset, values; or an error says why not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from torch import Tensor, nn

from compactmtl.backends import get_backend
from compactmtl.backends.model_file import data_file
from compactmtl.config.target import Target
from compactmtl.errors import CompactError
from compactmtl.export import export_onnx
from compactmtl.export.onnx import ExportError, model_tensors, read_metadata
from compactmtl.verify import check_parity, measure_latency


class Small(nn.Module):
    """Convolution, batch norm and two heads, whose names are not in alphabetical order."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU())
        self.zeta = nn.Conv2d(4, 2, 1)
        self.alpha = nn.Linear(4, 5)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        features = self.encoder(image)
        return {"zeta": self.zeta(features), "alpha": self.alpha(features.mean((2, 3)))}


@pytest.fixture(scope="module")
def model() -> Small:
    torch.manual_seed(0)
    model = Small().train()
    model(torch.randn(8, 3, 8, 8))  # batch norm learns statistics that differ from its first ones
    return model


@pytest.fixture(scope="module")
def image() -> Tensor:
    return torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def path(model: Small, image: Tensor, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("onnx")
    return export_onnx(model, image, folder / "new" / "model.onnx", metadata={"recipe": "abc"})


@pytest.mark.slow
def test_names_and_shapes_are_the_models_own_in_its_order(path: Path) -> None:
    inputs, outputs = model_tensors(path)
    assert inputs == {"image": (1, 3, 8, 8)}
    assert list(outputs.items()) == [("zeta", (1, 2, 8, 8)), ("alpha", (1, 5))]


def test_values_are_those_of_eval_mode_and_the_model_is_left_alone(
    path: Path, model: Small, image: Tensor
) -> None:
    assert model.training
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert check_parity(model, path, image).passed
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_file_keeps_metadata_and_no_traces_of_the_machine(path: Path) -> None:
    assert read_metadata(path)["recipe"] == "abc"
    assert b".py" not in path.read_bytes()
    assert [entry.version for entry in onnx.load(path).opset_import if entry.domain == ""] == [18]


def test_nothing_else_is_left_in_the_folder(path: Path) -> None:
    assert [file.name for file in path.parent.iterdir()] == ["model.onnx"]


@pytest.mark.slow
def test_same_model_gives_the_same_file(path: Path, model: Small, image: Tensor, tmp_path: Path) -> None:
    again = export_onnx(model, image, tmp_path / "model.onnx", metadata={"recipe": "abc"})
    assert again.read_bytes() == path.read_bytes()


@pytest.mark.slow
def test_free_batch_takes_any_batch(model: Small, image: Tensor, tmp_path: Path) -> None:
    path = export_onnx(model, image, tmp_path / "m.onnx", dynamic_batch=True)
    inputs, outputs = model_tensors(path)
    assert inputs == {"image": ("batch", 3, 8, 8)}
    assert outputs == {"zeta": ("batch", 2, 8, 8), "alpha": ("batch", 5)}
    assert check_parity(model, path, [image, torch.randn(2, 3, 8, 8), torch.randn(5, 3, 8, 8)]).passed


@pytest.mark.slow
def test_free_size_takes_any_size(model: Small, image: Tensor, tmp_path: Path) -> None:
    path = export_onnx(model, image, tmp_path / "m.onnx", dynamic_batch=True, dynamic_size=True)
    assert model_tensors(path)[0] == {"image": ("batch", 3, "height", "width")}
    cases = [torch.randn(2, 3, height, width) for height, width in ((8, 8), (16, 12), (9, 11))]
    assert check_parity(model, path, [image, *cases]).passed


@pytest.mark.slow
def test_free_size_through_strides_and_windows_that_overhang(tmp_path: Path) -> None:
    """As in any residual network: the tracer can't prove of every size that it leaves a pixel."""
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Conv2d(3, 4, 3, stride=2, padding=1), nn.MaxPool2d(3, 2, 1), nn.AvgPool2d(2, 2, ceil_mode=True)
    )
    shape = (1, 3, 24, 32)
    path = export_onnx(module, torch.randn(shape), tmp_path / "m.onnx", dynamic_batch=True, dynamic_size=True)
    assert list(model_tensors(path)[0].values()) == [("batch", 3, "height", "width")]
    cases = [torch.randn(2, 3, height, width) for height, width in ((24, 32), (40, 18), (33, 29))]
    assert check_parity(module, path, list(cases)).passed


@pytest.mark.slow
def test_free_size_of_a_class_map(tmp_path: Path) -> None:
    class ClassMap(nn.Conv2d):
        def forward(self, image: Tensor) -> Tensor:
            return super().forward(image).argmax(dim=1)

    path = export_onnx(ClassMap(3, 4, 1), torch.randn(1, 3, 8, 8), tmp_path / "m.onnx", dynamic_size=True)
    assert model_tensors(path)[1] == {"output": (1, "height", "width")}


@pytest.mark.slow
def test_external_data_and_back(model: Small, image: Tensor, tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    export_onnx(model, image, path, external_data=True)
    assert data_file(path).exists()
    assert check_parity(model, path, image).passed
    export_onnx(model, image, path)
    assert not data_file(path).exists()  # weights of the former file would mislead
    assert check_parity(model, path, image).passed


@pytest.mark.slow
def test_other_opset_and_names(model: Small, image: Tensor, tmp_path: Path) -> None:
    path = export_onnx(
        model, image, tmp_path / "m.onnx", opset=20, input_names=["pixels"], output_names=["map", "vector"]
    )
    inputs, outputs = model_tensors(path)
    assert list(inputs) == ["pixels"]
    assert list(outputs) == ["map", "vector"]
    assert check_parity(model, path, image, output_names=["map", "vector"]).passed


class Reshapes(nn.Module):
    """Its output's first dimension isn't the batch."""

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten()


class Branches(nn.Module):
    """Control flow that depends on the data."""

    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else 2 * x


class Selects(nn.Module):
    """An output whose shape depends on the data."""

    def forward(self, x: Tensor) -> Tensor:
        return x[x > 0]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("broken", "options", "message"),
    [
        (Reshapes(), {"dynamic_batch": True}, "outputs are"),
        (Branches(), {}, "Branches can't be exported to ONNX: .*data-dependent"),
        (Selects(), {}, "outputs are"),
        (Reshapes(), {"input_names": ["a", "b"]}, "2 input names for 1 inputs"),
        (Reshapes(), {"output_names": ["x"]}, "both an input and an output"),
        (Reshapes(), {"opset": 99}, "99"),
    ],
)
def test_what_cannot_be_exported_is_an_error_and_leaves_no_file(
    broken: nn.Module, options: dict[str, object], message: str, image: Tensor, tmp_path: Path
) -> None:
    with pytest.raises(ExportError, match=message):
        export_onnx(broken, image, tmp_path / "m.onnx", **options)  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


class Nested(nn.Module):
    """Takes what networks take: a list, a dict, a tensor that may be missing, the name of a task."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 4, 3)

    def forward(
        self, images: list[Tensor], batch: dict[str, Tensor], mask: Tensor | None = None, task: str = "sum"
    ) -> dict[str, Tensor]:
        y = self.layer(images[0] - 2 * images[1]) + batch["offset"]
        return {task: y if mask is None else y * mask}


def nested(batch: int = 2) -> tuple[Any, ...]:
    x = [torch.randn(batch, 3, 8, 8), torch.randn(batch, 3, 8, 8)]
    return x, {"offset": torch.randn(batch, 4, 6, 6)}, None, "difference"


@pytest.mark.slow
@pytest.mark.parametrize("free", [False, True])
def test_nested_arguments_become_inputs_by_their_places(free: bool, tmp_path: Path) -> None:
    path = export_onnx(Nested(), nested(), tmp_path / "nested.onnx", dynamic_batch=free)
    inputs, outputs = model_tensors(path)
    assert list(inputs) == ["images_0", "images_1", "batch_offset"] and list(outputs) == ["difference"]


@pytest.mark.slow
def test_nested_arguments_have_parity_and_a_latency(tmp_path: Path) -> None:
    model = Nested()
    path = export_onnx(model, nested(), tmp_path / "nested.onnx", dynamic_batch=True)
    assert check_parity(model, path, [nested(2), nested(3)]).passed
    target = Target(backend="onnxruntime")
    with get_backend("onnxruntime").open(path, target) as runner:
        found = measure_latency({"torch": model, "onnx": runner}, nested(3), warmup=1, repeats=2)
    assert [stats.batch for stats in found.stats.values()] == [3, 3]


@pytest.mark.slow
def test_keyword_arguments_are_taken(tmp_path: Path) -> None:
    images, batch, _, _ = nested()
    path = export_onnx(Nested(), {"batch": batch, "images": images}, tmp_path / "nested.onnx")
    assert list(model_tensors(path)[0]) == ["images_0", "images_1", "batch_offset"]


def test_what_is_no_input_is_a_clear_error(tmp_path: Path) -> None:
    for wrong in ((), (None,), "image", 3):
        with pytest.raises(CompactError, match="example inputs"):
            export_onnx(Nested(), wrong, tmp_path / "nested.onnx")  # type: ignore[arg-type]


class Tracking(nn.Module):
    """Moves a state that lies behind an empty buffer."""

    mean: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("grid", None)
        self.register_buffer("mean", torch.zeros(4))
        self.register_buffer("last", torch.zeros(3))
        self.conv = nn.Conv2d(3, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.conv(x)
        self.mean = self.mean + y.mean((0, 2, 3))
        return y


@pytest.mark.slow
def test_a_state_behind_an_empty_buffer_is_exported(tmp_path: Path) -> None:
    model = Tracking().eval()
    path = export_onnx(model, (torch.randn(2, 3, 5, 5),), tmp_path / "model.onnx")
    assert path.is_file() and not model.mean.any() and set(model._buffers) == {"grid", "mean", "last"}


class Sum(nn.Module):
    """Takes any number of tensors behind the first."""

    def forward(self, first: Tensor, *rest: Tensor) -> dict[str, Tensor]:
        return {"sum": first + torch.stack([one.mean((1, 2, 3)) for one in rest]).sum(0)[:, None]}


@pytest.mark.parametrize("count", [1, 3])
def test_a_free_batch_of_a_forward_with_a_rest(count: int, tmp_path: Path) -> None:
    example = (torch.randn(2, 4), *(torch.randn(2, 3, 5, 5) for _ in range(count)))
    names = ["first", *(f"rest_{number}" for number in range(count))]
    path = export_onnx(Sum(), example, tmp_path / "m.onnx", input_names=names, dynamic_batch=True)
    assert {name: shape[0] for name, shape in model_tensors(path)[0].items()} == dict.fromkeys(names, "batch")
    assert check_parity(Sum(), path, example).passed
