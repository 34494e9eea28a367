"""Batch norm by source: each source as if it were alone, and one set of statistics for what is deployed."""

from __future__ import annotations

import copy
import io
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file
from torch import Tensor, nn

from compactmtl.config import resolve_recipe
from compactmtl.errors import ConfigError
from compactmtl.report.collect import build_report
from compactmtl.report.samples import ValSplits
from compactmtl.train import Run, compact_run, train
from compactmtl.train.source_norms import SourceNorms, build_source_norms
from tests.support.interrupting import trained_in_two_parts
from tests.support.layouts.ccp import write_ccp
from tests.support.layouts.utkface import write_utkface

HERE = Path(__file__).parent
MIXING = "{batch_norm: per_source, by: shares, shares: {utkface: 0.25, ccp: 0.75}, epoch: 4}"


class Net(nn.Module):
    """Two norms in the trunk and one in the head of `age`."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)
        self.first, self.second = nn.BatchNorm2d(4), nn.BatchNorm2d(4, momentum=None)
        self.heads = nn.ModuleDict({"age": nn.Sequential(nn.BatchNorm2d(4))})

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.heads["age"](self.second(self.first(self.conv(x)).relu()))
        return y


def norms_of(net: Any) -> SourceNorms:
    labeled = {"age": ["a"], "segmentation": ["b"]}
    return SourceNorms(net, {"a": 0.25, "b": 0.75}, labeled)


def batch(sources: list[str]) -> Any:
    return {"sources": sources}


def close(one: Tensor, other: Tensor) -> bool:
    return torch.allclose(one, other, rtol=1e-12, atol=1e-12)  # float64; sums in the same order


def test_each_source_is_normalized_as_if_it_were_alone() -> None:
    torch.manual_seed(0)
    net: Any = Net().double().train()
    alone = {source: copy.deepcopy(net) for source in "ab"}
    norms = norms_of(net)
    sources = ["b", "a", "a", "b", "b"]
    for step in range(3):
        x = (
            torch.randn(5, 3, 4, 4, dtype=torch.float64)
            + torch.tensor([5.0, 0, 0, 5, 5]).view(-1, 1, 1, 1) * step
        )
        with norms.forward_context(batch(sources)):
            together = net(x)
        for source in "ab":
            rows = [row for row, one in enumerate(sources) if one == source]
            assert close(together[rows], alone[source](x[rows]))
    for name in ("first", "second"):
        for source in "ab":
            own, there = norms.state_dict()[name][source], getattr(alone[source], name)
            assert close(own[0], there.running_mean) and close(own[1], there.running_var) and own[2] == 3
    net.eval()
    with norms.forward_context(batch(sources)):
        together = net(x)
    for source in "ab":
        rows = [row for row, one in enumerate(sources) if one == source]
        assert close(together[rows], alone[source].eval()(x[rows]))


def test_the_folded_statistics_are_those_of_a_draw_from_all_sources() -> None:
    torch.manual_seed(0)
    net: Any = Net().double().train()
    norms = norms_of(net)
    # a quarter of the images of a, as its share says: then the mixture is the batch
    x = torch.randn(8, 3, 6, 6, dtype=torch.float64)
    x[2:] += 3
    with norms.forward_context(batch(["a"] * 2 + ["b"] * 6)):
        net(x)
    own = norms.state_dict()["first"]
    mean = 0.25 * own["a"][0] + 0.75 * own["b"][0]
    var = 0.25 * (own["a"][1] + (own["a"][0] - mean) ** 2) + 0.75 * (own["b"][1] + (own["b"][0] - mean) ** 2)
    assert close(net.first.running_mean, mean) and close(net.first.running_var, var)
    # `second` averages plainly, so after one batch its statistics are the batch's: those of what it was given
    seen: list[Tensor] = []
    net.second.register_forward_pre_hook(lambda module, args: seen.append(args[0].detach()))
    second = copy.deepcopy(norms.state_dict()["second"])
    with torch.no_grad(), norms.forward_context(batch(["a"] * 2 + ["b"] * 6)):
        net(x)
    assert close(second["a"][0], seen[0][:2].mean((0, 2, 3)))
    whole_mean, whole_var = seen[0].mean((0, 2, 3)), seen[0].var((0, 2, 3), correction=0)
    # but for Bessel's correction, which each source has of its own
    parts = {"a": seen[0][:2], "b": seen[0][2:]}
    bessel = sum(
        p * part.var((0, 2, 3)) - p * part.var((0, 2, 3), correction=0)
        for p, part in ((0.25, parts["a"]), (0.75, parts["b"]))
    )
    assert close(net.second.running_mean, whole_mean)
    assert close(net.second.running_var, whole_var + bessel)


def test_a_heads_statistics_are_of_the_sources_that_label_its_task() -> None:
    net: Any = Net().train()
    norms = norms_of(net)
    with norms.forward_context(batch(["a", "a", "b", "b"])):
        net(torch.randn(4, 3, 2, 2))
    head = net.heads["age"][0]
    assert torch.equal(head.running_mean, norms.state_dict()["heads.age.0"]["a"][0])


def test_a_source_that_was_not_seen_yet_does_not_count() -> None:
    net: Any = Net().train()
    norms = norms_of(net)
    with norms.forward_context(batch(["b", "b"])):
        net(torch.randn(2, 3, 2, 2))
    assert torch.equal(net.first.running_mean, norms.state_dict()["first"]["b"][0])


def test_rows_that_are_no_images_are_refused() -> None:
    net: Any = Net().train()
    norms = norms_of(net)
    with (
        pytest.raises(ConfigError, match="a norm is given 4 rows of a batch of 2"),
        norms.forward_context(batch(["a", "b"])),
    ):
        net(torch.randn(4, 3, 2, 2))
    net(torch.randn(4, 3, 2, 2))  # nothing is left behind


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_utkface(folder, count=8)
    write_ccp(folder / "ccp", count=6)
    return folder


def recipe(root: Path, *overrides: str, mixing: str = MIXING, more: str = "") -> Any:
    path = root / "recipe.yaml"
    path.write_text(f"""\
extends: {HERE / "tiny.yaml"}
data:
  name: ""
  root: .
  batch_size: 8
  options: {{}}
  mixing: {mixing}
  sources:
    - {{name: utkface, tasks: [age]}}
    - {{name: ccp, tasks: [segmentation], options: {{classes: grouped}}}}
tasks:
  depth: null
  age: {{kind: regression}}
{more}
""")
    return resolve_recipe(path, list(overrides))


def quiet() -> Console:
    return Console(file=io.StringIO(), width=200)


def weights(run: Run) -> dict[str, Tensor]:
    return load_file(run.path / "checkpoints" / "last" / "weights.safetensors")


def test_what_folding_costs_is_logged_and_said(root: Path, tmp_path: Path) -> None:
    console = quiet()
    run = train(recipe(root, "train.epochs=2"), tmp_path / "run", console=console)
    event = [event for event in run.log() if event["event"] == "epoch"][-1]
    own = event["batch_norm"]["own_statistics"]
    assert set(own) == {"age", "segmentation"}
    assert own["age"]["mae"] != event["val"]["age"]["mae"]
    assert isinstance(console.file, io.StringIO)
    said = f"age mae {own['age']['mae']:.4g} with each source's statistics, {event['val']['age']['mae']:.4g} folded"
    assert said in console.file.getvalue()
    report = build_report([run], None, ValSplits())
    (note,) = [note for note in report.notes if "batch norm of several data sets" in note]
    best = next(e for e in run.log() if e["event"] == "epoch" and e["epoch"] == run.log()[-1]["best_epoch"])
    assert f"age MAE {best['batch_norm']['own_statistics']['age']['mae']:.1f} years →" in note


SHRINKING = """
sparsity:
  groups: coupled
  shrink_every: 1
  selective: {mac_reduction: 0.3, start: 0.0, end: 0.5}
"""


@pytest.mark.parametrize("batches", ["joined", "alternating"])
def test_it_goes_on_bit_equal_also_while_the_network_shrinks(
    root: Path, tmp_path: Path, batches: str
) -> None:
    mixing = MIXING.replace("{batch_norm", f"{{batches: {batches}, batch_norm")
    resolved = recipe(root, "train.epochs=4", mixing=mixing, more=SHRINKING)
    whole = train(resolved, tmp_path / "whole", console=quiet())
    parts = trained_in_two_parts(resolved, tmp_path / "parts", quiet(), 14)
    one, other = weights(whole), weights(parts)
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert whole.best == parts.best
    compact_run(whole)
    (image,) = whole.example_inputs(batch=2)
    small, plain = Run.open(whole.path).load_compact(), whole.load_plain()
    assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in plain.parameters())
    with torch.no_grad():
        for task, output in plain(image).items():
            torch.testing.assert_close(
                small(image)[task], output, rtol=0, atol=1e-5 * float(output.abs().max())
            )


@pytest.mark.parametrize(
    ("more", "key"),
    [
        ("train: {ema: {}}", "train.ema"),
        ("overparam: {kind: repvgg}", "overparam.kind: repvgg"),
        (SHRINKING.replace("groups", "norm_batches: 2\n  groups"), "sparsity.norm_batches"),
    ],
)
def test_what_it_does_not_go_with_is_named(root: Path, more: str, key: str) -> None:
    with pytest.raises(ConfigError, match=f"per_source does not go with {key}"):
        recipe(root, more=more)


def test_a_network_without_batch_norm_is_refused(root: Path) -> None:
    setup: Any = SimpleNamespace(
        recipe=recipe(root).recipe, model=nn.Sequential(nn.Conv2d(3, 4, 1), nn.GroupNorm(1, 4))
    )
    with pytest.raises(ConfigError, match="the network has no batch norm"):
        build_source_norms(setup)
