"""compact(outputs=…): some outputs alone, without what only the others read, and the plan that says so."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
import torch
from torch import Tensor, nn

from compactmtl import compact
from compactmtl.errors import SurgeryError
from compactmtl.export import export_onnx
from compactmtl.surgery import apply_plan, load_compact, save_compact

HALF = 16


class ThreeOutputs(nn.Module):
    """Heads as a module, a list and a linear layer behind a stage of its own; each reads one half of the features."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 2 * HALF, 3, stride=2, padding=1), nn.BatchNorm2d(2 * HALF), nn.ReLU()
        )
        self.stage = nn.Sequential(nn.Conv2d(2 * HALF, 32, 3, stride=2, padding=1), nn.ReLU())
        self.masks = nn.Conv2d(2 * HALF, 5, 1)
        self.depth = nn.ModuleList([nn.Conv2d(2 * HALF, 8, 1), nn.Conv2d(8, 1, 1)])
        self.label = nn.Linear(32, 4)
        with torch.no_grad():
            self.masks.weight[:, HALF:] = 0
            for reader in (self.depth[0], self.stage[0]):
                reader.get_parameter("weight")[:, :HALF] = 0

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        features = self.body(image)
        deep = self.depth[1](torch.relu(self.depth[0](features)))
        return {
            "masks": nn.functional.interpolate(self.masks(features), scale_factor=2.0),
            "depth": deep + 1,
            "label": self.label(self.stage(features).mean((2, 3))),
        }


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    return ThreeOutputs().double().eval()


IMAGE = torch.randn(2, 3, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("outputs", "absent", "half"),
    [
        (["masks"], {"stage", "depth.0", "depth.1", "label"}, True),
        (["label", "depth"], {"masks"}, True),
        (["depth"], {"masks", "stage", "label"}, True),
        (["masks", "label"], {"depth.0", "depth.1"}, False),
    ],
)
def test_outputs_that_stay_are_the_same_and_what_only_others_read_is_gone(
    model: nn.Module, outputs: list[str], absent: set[str], half: bool
) -> None:
    before = {name: value.clone() for name, value in model.state_dict().items()}
    result = compact(model, (IMAGE,), outputs=outputs)
    expected = model(IMAGE)
    found = result.model(IMAGE)
    assert list(found) == [name for name in expected if name in outputs]
    for name, value in found.items():
        torch.testing.assert_close(value, expected[name], rtol=0, atol=1e-12)
    assert set(result.plan.absent) == absent
    assert result.plan.outputs == tuple(outputs)
    assert result.model.get_parameter("body.0.weight").shape[0] == (HALF if half else 2 * HALF)
    assert result.report.macs_after < result.report.macs_before
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert list(model(IMAGE)) == ["masks", "depth", "label"]


def test_another_size_and_batch_run_as_before(model: nn.Module) -> None:
    small = compact(model, (IMAGE,), outputs=["depth"]).model
    image = torch.randn(5, 3, 32, 24, dtype=torch.float64)
    torch.testing.assert_close(small(image)["depth"], model(image)["depth"], rtol=0, atol=1e-12)


def test_the_subset_trains_on(model: nn.Module) -> None:
    small = compact(model, (IMAGE,), outputs=["masks"]).model
    small(IMAGE)["masks"].sum().backward()
    assert all(one.grad is not None for one in small.parameters())


def test_the_plan_rebuilds_it_from_its_file(model: nn.Module, tmp_path: Path) -> None:
    result = compact(model, (IMAGE,), outputs=["masks"])
    save_compact(result, tmp_path)
    torch.manual_seed(1)
    loaded = load_compact(ThreeOutputs().double(), tmp_path)
    assert torch.equal(loaded(IMAGE)["masks"], result.model(IMAGE)["masks"])
    again = apply_plan(model, result.plan).eval()
    assert torch.equal(again(IMAGE)["masks"], result.model(IMAGE)["masks"])


def test_nothing_of_the_other_outputs_is_exported(model: nn.Module, tmp_path: Path) -> None:
    small = compact(model, (IMAGE,), outputs=["masks"]).model.float()
    export_onnx(small, (IMAGE.float(),), tmp_path / "model.onnx")
    graph = onnx.load(tmp_path / "model.onnx").graph
    assert [one.name for one in graph.output] == ["masks"]
    assert [node.op_type for node in graph.node].count("Conv") == 2
    assert not [one.name for one in graph.initializer if "label" in one.name or "stage" in one.name]


def test_all_outputs_change_nothing(model: nn.Module) -> None:
    result = compact(model, (IMAGE,), outputs=["masks", "depth", "label"])
    everything = compact(model, (IMAGE,))
    assert not result.plan.absent
    assert result.plan.slices == everything.plan.slices and result.plan.spans == everything.plan.spans
    assert result.report.macs_after == everything.report.macs_after


def test_what_no_output_reached_before_stays(model: nn.Module) -> None:
    model.auxiliary = nn.Conv2d(2 * HALF, 2, 1).double()
    result = compact(model, (IMAGE,), outputs=["label", "depth"])
    assert result.report.unreached == ("auxiliary",)
    assert "auxiliary" not in result.plan.absent


@pytest.mark.parametrize(
    ("outputs", "says"),
    [(["mask"], "no output 'mask'"), ("masks", "is the string"), (["masks", "dpeth"], "no output 'dpeth'")],
)
def test_wrong_names_are_named(model: nn.Module, outputs: list[str], says: str) -> None:
    with pytest.raises(SurgeryError, match=says):
        compact(model, (IMAGE,), outputs=outputs)


class InOrder(ThreeOutputs):
    """The same outputs as a tuple."""

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]
        return tuple(super().forward(image).values())


def test_outputs_of_a_tuple_are_chosen_by_position(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = InOrder().double().eval()
    result = compact(model, (IMAGE,), outputs=[0, 2])
    found, expected = result.model(IMAGE), model(IMAGE)
    assert isinstance(found, tuple) and len(found) == 2
    torch.testing.assert_close(found, (expected[0], expected[2]), rtol=0, atol=1e-12)
    assert set(result.plan.absent) == {"depth.0", "depth.1"}
    save_compact(result, tmp_path)
    loaded = load_compact(InOrder().double(), tmp_path)
    assert torch.equal(loaded(IMAGE)[1], found[1])
    for wrong in (3, "masks", True):
        with pytest.raises(SurgeryError, match=f"no output {wrong!r}"):
            compact(model, (IMAGE,), outputs=[wrong])


def test_one_output_has_no_parts() -> None:
    with pytest.raises(SurgeryError, match="gives a Tensor, which has no parts"):
        compact(nn.Sequential(nn.Conv2d(3, 4, 1)), (torch.randn(1, 3, 4, 4),), outputs=["a"])


def test_positions_of_a_selected_model_are_of_what_it_gives() -> None:
    torch.manual_seed(0)
    model = InOrder().double().eval()
    expected = model(IMAGE)
    two = compact(model, (IMAGE,), outputs=[0, 2])
    for position, original in ((0, 0), (1, 2)):
        one = compact(two.model, (IMAGE,), outputs=[position])
        (found,) = one.model(IMAGE)
        torch.testing.assert_close(found, expected[original], rtol=0, atol=1e-12)
        again = apply_plan(apply_plan(model, two.plan), one.plan).eval()
        assert torch.equal(again(IMAGE)[0], found)
    assert len(two.model(IMAGE)) == 2
    with pytest.raises(SurgeryError, match="no output 2"):
        compact(two.model, (IMAGE,), outputs=[2])


def test_names_of_a_selected_model_are_of_what_it_gives(model: nn.Module) -> None:
    two = compact(model, (IMAGE,), outputs=["masks", "label"]).model
    one = compact(two, (IMAGE,), outputs=["label"]).model
    assert list(one(IMAGE)) == ["label"]
    torch.testing.assert_close(one(IMAGE)["label"], model(IMAGE)["label"], rtol=0, atol=1e-12)
    with pytest.raises(SurgeryError, match="no output 'depth'"):
        compact(two, (IMAGE,), outputs=["depth"])


class Joined(ThreeOutputs):
    """A branch of one size, whatever the input's, is joined with maps of the input's size for an output that leaves."""

    def __init__(self) -> None:
        super().__init__()
        self.spread = nn.Conv2d(2 * HALF, 4, 1)
        self.fuse = nn.Conv2d(5 + 4, 2, 1)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        features = self.body(image)
        joined = torch.cat((self.masks(features), self.spread(features)), 1)
        return {
            "masks": self.masks(features),
            "both": self.fuse(joined) + torch.relu(self.spread(features)).mean((2, 3), keepdim=True)[:, :2],
        }


def test_a_module_whose_zeros_fit_one_size_alone_stays_where_sizes_differ(model: nn.Module) -> None:
    torch.manual_seed(0)
    model = Joined().double().eval()
    result = compact(model, (IMAGE,), outputs=["masks"])
    assert "fuse" in result.plan.absent
    assert "spread" not in result.plan.absent
    for image in (IMAGE, torch.randn(3, 3, 24, 40, dtype=torch.float64)):
        torch.testing.assert_close(result.model(image)["masks"], model(image)["masks"], rtol=0, atol=1e-12)
