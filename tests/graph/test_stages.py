"""Models that torch.export does not take as they are: other ways of exporting, then modules that are taken whole."""

from __future__ import annotations

import gc
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from compactmtl.errors import SurgeryError
from compactmtl.graph import ChannelGraph, cost
from compactmtl.graph.trace import trace
from compactmtl.surgery import compact
from tests.support.masking import compacted, image, kill, shape

pytestmark = pytest.mark.slow
X = (2, 3, 8, 8)


class Item(nn.Module):
    """Python decides by a value."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 1)

    def forward(self, y: Tensor) -> Tensor:
        z: Tensor = self.conv(y)
        if z.mean().item() > 0:
            return torch.relu(z)
        return z + 1


class Indexed(Item):
    """A mask by values, of any number."""

    def forward(self, y: Tensor) -> Tensor:
        z: Tensor = self.conv(y)
        kept = z[z > 0]
        return z - kept.sum() / (1 + len(kept))


class Counted(Item):
    """The places of what is not zero."""

    def forward(self, y: Tensor) -> Tensor:
        z: Tensor = self.conv(y)
        places = torch.nonzero(z.amax((1, 2, 3)) > 0)
        return z * (1 + places.shape[0])


class Looped(Item):
    """As many times as a value says."""

    def forward(self, y: Tensor) -> Tensor:
        z: Tensor = self.conv(y)
        for _ in range(int(z.abs().amax().clamp(1, 3))):
            z = torch.tanh(z)
        return z


INNER = {"item": Item, "boolean index": Indexed, "nonzero": Counted, "loop": Looped}


class Around(nn.Module):
    """Layers before and behind a module that cannot be exported, and a way around it."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.into = nn.Conv2d(3, 12, 3, padding=1), nn.Conv2d(12, 8, 1)
        self.inner = inner
        self.hidden, self.last = nn.Conv2d(8, 10, 1), nn.Conv2d(10, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.into(torch.relu(self.first(x)))
        z: Tensor = self.last(torch.relu(self.hidden(self.inner(y) + y)))
        return z


@pytest.mark.parametrize("name", INNER)
def test_surgery_goes_on_around_what_cannot_be_exported(name: str) -> None:
    torch.manual_seed(0)
    model = Around(INNER[name]())
    kill(model.first, zero=[0, 5], constant=[7])
    kill(model.into, zero=[3])
    kill(model.hidden, zero=[1, 2], unread=[4])
    result = compacted(model, image(*X))
    assert shape(result, "first.weight") == (9, 3, 3, 3) and shape(result, "into.weight") == (8, 9, 1, 1)
    assert shape(result, "hidden.weight") == (8, 8, 1, 1) and shape(result, "inner.conv.weight") == (
        8,
        8,
        1,
        1,
    )
    report = result.report
    assert report.tracing.stage == "submodules" and list(report.tracing.whole) == ["inner"]
    assert [stage for stage, _ in report.tracing.failed] == ["non-strict", "strict", "draft"]
    assert all(reason for _, reason in report.tracing.failed)
    assert "inner is traced whole" in report.not_pruned["into"] and not report.unreached
    assert report.to_json()["tracing"]["whole"][0]["module"] == "inner"


def test_what_torch_says_of_stages_that_fail_stays_off_the_terminal(
    capfd: pytest.CaptureFixture[str],
) -> None:
    result = compact(Around(Item()).double().eval(), (image(*X),))
    assert result.report.tracing.stage == "submodules"
    said = capfd.readouterr().err
    assert "def forward" not in said and "symbolic_shapes" not in said


def test_only_the_smallest_module_is_taken_whole() -> None:
    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.before, self.item = nn.Conv2d(8, 6, 1), Item()
            self.back = nn.Conv2d(6, 8, 1)

        def forward(self, y: Tensor) -> Tensor:
            z: Tensor = self.item(self.back(torch.relu(self.before(y))))
            return z

    torch.manual_seed(0)
    model = Around(Outer())
    kill(model.inner.before, zero=[2, 4])
    result = compacted(model, image(*X))
    assert list(result.report.tracing.whole) == ["inner.item"]
    assert shape(result, "inner.before.weight") == (4, 8, 1, 1)


def test_a_call_of_the_trace_runs_the_module_and_counts_its_work() -> None:
    model, given = Around(Item()).eval(), (torch.randn(*X),)
    traced = trace(model, given)
    with torch.no_grad():
        expected = model(*given)
    assert torch.equal(dict(traced.run(given))[traced.outputs[0]], expected)
    graph = ChannelGraph.trace(model, given, whole=traced.tracing.whole)
    assert graph.tracing.failed == () and list(graph.tracing.whole) == ["inner"]
    assert graph.macs_of_classes(graph.fixed | True) == cost(model, given).macs
    assert "forward" not in vars(model.inner)


def test_what_was_taken_whole_lives_as_long_as_the_trace() -> None:
    from compactmtl.graph import whole

    gc.collect()
    before = len(whole._held)
    traced = trace(Around(Item()).eval(), (torch.randn(*X),))
    assert len(whole._held) > before
    del traced
    gc.collect()
    assert len(whole._held) == before


class Packing(nn.Module):
    """Gives an object that torch does not look into, and takes one."""

    def forward(self, given: Any) -> Any:
        if isinstance(given, Tensor):
            given = given * (1.0 if bool((given > 0).any()) else 2.0)
            return Packed(given, [tuple(given.shape[2:])])
        return {"sum": given.tensor + float(given.tensor.mean() > 0)}


class Packed:
    def __init__(self, tensor: Tensor, sizes: list[tuple[int, ...]]) -> None:
        self.tensor, self.sizes = tensor, sizes


def test_objects_pass_between_modules_that_are_taken_whole() -> None:
    class Objects(Around):
        def __init__(self) -> None:
            super().__init__(Packing())
            self.unpack = Packing()

        def forward(self, x: Tensor) -> Tensor:
            packed = self.inner(self.into(torch.relu(self.first(x))))
            z: Tensor = self.last(torch.relu(self.hidden(self.unpack(packed)["sum"])))
            scaled: Tensor = z * packed.sizes[0][0]
            return scaled

    model = Objects()
    kill(model.first, zero=[0, 5])
    kill(model.hidden, zero=[1])
    result = compacted(model, image(*X))
    assert set(result.report.tracing.whole) == {"inner", "unpack"}
    assert shape(result, "first.weight")[0] == 10 and shape(result, "hidden.weight")[0] == 9


class Branching(Around):
    """Its own forward decides by what a module in it gives."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.into(torch.relu(self.first(x)))
        z: Tensor = self.last(torch.relu(self.hidden(torch.relu(y) if self.inner(y) > 3 else y + 1)))
        return z


class Number(nn.Module):
    def forward(self, y: Tensor) -> int:
        return int((y > 0).sum().item())


class Writing(nn.Module):
    def forward(self, y: Tensor) -> Tensor:
        if y.mean().item() > 0:
            y.mul_(2)
        return y


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (Branching(Number()), "inner cannot be taken whole: it gives numbers that depend on values"),
        (Around(Writing()), "inner cannot be taken whole: it writes into what it is given"),
        (Item(), "no module of it can be taken whole"),
    ],
    ids=["numbers", "writes", "its own"],
)
def test_what_cannot_be_taken_whole_is_said(model: nn.Module, reason: str) -> None:
    with pytest.raises(SurgeryError, match=f"could not be traced.*{reason}"):
        trace(model, (torch.randn(2, 8, 4, 4) if isinstance(model, Item) else torch.randn(*X),))


def test_strict_export_is_the_second_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    export = torch.export.export

    def failing(*args: Any, strict: bool, **kwargs: Any) -> Any:
        if not strict:
            raise RuntimeError("not this way")
        return export(*args, strict=strict, **kwargs)

    monkeypatch.setattr(torch.export, "export", failing)
    model = Around(nn.Conv2d(8, 8, 1)).double()
    kill(model.first, zero=[0, 5])
    result = compacted(model, image(*X))
    assert result.report.tracing.stage == "strict"
    assert result.report.tracing.failed == (("non-strict", "RuntimeError: not this way"),)
    assert shape(result, "first.weight")[0] == 10


def test_a_draft_serves_operators_that_do_not_say_what_they_give() -> None:
    with torch.library._scoped_library("compactmtl_test", "FRAGMENT") as library:
        library.define("twice(Tensor x) -> Tensor")
        library.impl("twice", lambda x: x * 2, "CPU")

        class Twice(nn.Module):
            def forward(self, y: Tensor) -> Tensor:
                z: Tensor = torch.ops.compactmtl_test.twice(y)
                return z

        model = Around(Twice())
        kill(model.first, zero=[0, 5])
        result = compacted(model, image(*X))
        assert result.report.tracing.stage == "draft" and not result.report.tracing.whole
        assert shape(result, "first.weight")[0] == 10


def test_a_draft_leaves_sizes_open_that_depend_on_values() -> None:
    with torch.library._scoped_library("compactmtl_test", "FRAGMENT") as library:
        library.define("thrice(Tensor x) -> Tensor")
        library.impl("thrice", lambda x: x * 3, "CPU")

        class Selecting(nn.Module):
            def forward(self, x: Tensor) -> Tensor:
                y: Tensor = torch.ops.compactmtl_test.thrice(x)
                return y[y > 0]

        with pytest.raises(SurgeryError, match=r"could not be traced.*thrice"):
            trace(Selecting(), (torch.ones(3),))


class Finding(nn.Module):
    """As many results as there are values above a bound, as a detector gives."""

    def __init__(self, bound: float) -> None:
        super().__init__()
        self.bound = bound

    def forward(self, y: Tensor) -> Tensor:
        scores = y.mean((2, 3))
        return scores[scores > self.bound]


class Detector(Around):
    """A module that finds things is the last one."""

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.hidden(self.into(torch.relu(self.first(x)))))
        z: Tensor = self.inner(self.last(y))
        return z


def test_a_network_that_ends_in_what_it_finds_is_proved_on_it() -> None:
    model = Detector(Finding(-1e3))
    kill(model.first, zero=[0, 5])
    kill(model.hidden, zero=[1])
    result = compacted(model, image(*X))
    assert list(result.report.tracing.whole) == ["inner"]
    assert shape(result, "first.weight")[0] == 10 and shape(result, "hidden.weight")[0] == 9


def test_where_nothing_is_found_nothing_is_proved() -> None:
    with pytest.raises(SurgeryError, match="all outputs of Detector are empty on the example inputs"):
        compact(Detector(Finding(1e3)).double().eval(), (image(*X),))
