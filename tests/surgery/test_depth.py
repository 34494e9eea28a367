"""Depth: branches that give a constant leave with all that only they read; the rest runs as before, at any size."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn

from compactmtl import compact
from compactmtl.export import export_onnx
from compactmtl.surgery import apply_plan, depth, load_compact, outputs, save_compact
from compactmtl.surgery.stand_ins import put, put_where_it_holds

WIDTH = 8


class Branch(nn.Module):
    """A residual block; how the branch is added is what forwards differ in."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.conv1 = nn.Conv2d(WIDTH, 12, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(12)
        self.act = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(12, WIDTH, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(WIDTH)
        if kind == "scaled":
            self.scale = nn.Parameter(torch.full((WIDTH, 1, 1), 0.5))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.bn2(self.conv2(self.act(self.bn1(self.conv1(x)))))
        if self.kind == "in place":
            out += x
        elif self.kind == "other way round":
            x = x.clone()
            x += out
            out = x
        elif self.kind == "scaled":
            out = x + out.mul(self.scale)
        elif self.kind == "concatenated":
            out = torch.cat((x, out), 1)[:, ::2]
        elif self.kind == "gated":
            out = x * torch.sigmoid(out)
        else:
            out = torch.relu(x + out)
        return out


class Network(nn.Module):
    def __init__(self, kind: str, blocks: int = 4) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, WIDTH, 3, stride=2, padding=1)
        self.blocks = nn.Sequential(*(Branch(kind) for _ in range(blocks)))
        self.head = nn.Linear(WIDTH, 5)

    def forward(self, image: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(image)).mean((2, 3)))  # type: ignore[no-any-return]


def network(kind: str, dead: tuple[int, ...], constant: float = 0.0) -> nn.Module:
    torch.manual_seed(0)
    model = Network(kind).eval()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.get_buffer("running_mean").normal_(0, 0.1)
                module.bias.normal_(0, 0.1)
        for index in dead:
            norm = model.blocks[index].get_submodule("bn2")
            norm.get_parameter("weight").zero_()
            norm.get_parameter("bias").copy_(constant * torch.randn(WIDTH))
    return model.double()


IMAGE = torch.randn(2, 3, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
OTHER = torch.randn(3, 3, 40, 24, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
GONE = {f"blocks.{index}.{part}" for index in (1, 3) for part in ("conv1", "bn1", "conv2")}


@pytest.mark.parametrize("constant", [0.0, 1.0])
@pytest.mark.parametrize("kind", ["", "in place", "other way round", "scaled", "gated", "concatenated"])
def test_a_dead_branch_leaves_and_the_function_stays(kind: str, constant: float) -> None:
    model = network(kind, (1, 3), constant)
    result = compact(model, (IMAGE,))
    for image in (IMAGE, OTHER):
        torch.testing.assert_close(result.model(image), model(image), rtol=0, atol=1e-12)
    # What a full-size constant is needed for fits one size alone, and this network takes any: there one channel stays.
    if kind == "concatenated" or (kind == "in place" and constant):
        assert not result.plan.constants and not result.plan.absent
        return
    assert {edit.module for edit in result.plan.constants} == {"blocks.1.bn2", "blocks.3.bn2"}
    assert set(result.plan.absent) == GONE
    names = dict(result.model.named_parameters())
    assert not any(name.startswith(tuple(GONE)) for name in names)
    assert set(dict(result.model.named_modules())) >= set(dict(model.named_modules()))
    layers = {layer.name: layer for layer in result.report.layers}
    assert layers["blocks.1.conv1"].after == (0, 0) and layers["blocks.1.conv1"].macs_after == 0
    assert layers["blocks.0.conv1"].macs_after > 0
    assert [*layers] == ["stem", *(f"blocks.{i}.conv{j}" for i in range(4) for j in (1, 2)), "head"]


def test_the_stream_behind_a_constant_is_still_cut() -> None:
    """The constant's own channels follow those of the stream that it is added to."""
    model = network("", (1, 3), 1.0)
    with torch.no_grad():
        for (
            name,
            value,
        ) in model.named_parameters():  # half of the stream: written by nobody, but by constants of 0
            if name == "stem.weight" or name.endswith(("conv2.weight", "bn2.weight")):
                value[: WIDTH // 2] = 0
            if name in ("stem.bias",) or name.endswith("bn2.bias"):
                value[: WIDTH // 2] = 0
    result = compact(model, (IMAGE,))
    torch.testing.assert_close(result.model(OTHER), model(OTHER), rtol=0, atol=1e-12)
    assert result.model.get_parameter("stem.weight").shape[0] == WIDTH // 2
    assert result.model.get_buffer("blocks.1.bn2.value").shape == (1, WIDTH // 2, 1, 1)


def test_a_plan_rebuilds_it_from_its_file_and_from_the_trained_model(tmp_path: Path) -> None:
    model = network("", (1, 2), 1.0)
    result = compact(model, (IMAGE,))
    save_compact(result, tmp_path)
    loaded = load_compact(network("", ()), tmp_path)
    again = apply_plan(model, result.plan).eval()
    for one in (loaded, again):
        torch.testing.assert_close(one(OTHER), model(OTHER), rtol=0, atol=1e-12)


def test_it_trains_on_and_repeats_itself() -> None:
    small = compact(network("in place", (1, 3)), (IMAGE,)).model
    small(IMAGE).sum().backward()
    assert all(parameter.grad is not None for parameter in small.parameters())
    again = compact(small.eval(), (IMAGE,))
    assert again.report.macs_after == again.report.macs_before
    torch.testing.assert_close(again.model(IMAGE), small(IMAGE), rtol=0, atol=0)


def test_constants_are_not_written_into() -> None:
    """A forward that goes on in place behind the constant would change it from call to call."""

    class Doubling(Branch):
        def forward(self, x: Tensor) -> Tensor:
            return x + self.bn2(self.conv2(self.act(self.bn1(self.conv1(x))))).mul_(2)  # type: ignore[no-any-return]

    model = network("", (1,), 1.0)
    doubling = Doubling("").double().eval()
    doubling.load_state_dict(model.get_submodule("blocks.1").state_dict())
    put(model, "blocks.1", doubling)
    small = compact(model, (IMAGE,)).model
    expected = model(IMAGE)
    for _ in range(3):
        torch.testing.assert_close(small(IMAGE), expected, rtol=0, atol=1e-12)


def test_a_dead_output_stays_an_output() -> None:
    model = network("", ())
    with torch.no_grad():
        model.get_parameter("head.weight").zero_()
    result = compact(model, (IMAGE,))
    assert "head" not in {edit.module for edit in result.plan.constants}
    torch.testing.assert_close(result.model(OTHER), model(OTHER), rtol=0, atol=1e-12)


def test_a_branch_that_is_read_twice_or_called_twice_is_right() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = Network("", 2)

        def forward(self, image: Tensor) -> Tensor:
            first = self.net.blocks(self.net.stem(image))
            shared = self.net.get_submodule("blocks.1.bn2")(first)
            return self.net.head((self.net.blocks(first) + shared).mean((2, 3)))  # type: ignore[no-any-return]

    torch.manual_seed(0)
    model = Twice().double().eval()
    with torch.no_grad():
        model.get_parameter("net.blocks.1.bn2.weight").zero_()
        model.get_parameter("net.blocks.1.bn2.bias").fill_(0.25)
    result = compact(model, (IMAGE,))
    torch.testing.assert_close(result.model(OTHER), model(OTHER), rtol=0, atol=1e-12)


class Ends(Branch):
    """A branch that ends in a module without parameters, and is dropped for whole samples in training."""

    def __init__(self) -> None:
        super().__init__("")
        self.drop = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.drop(self.bn2(self.conv2(self.act(self.bn1(self.conv1(x))))))
        if self.training:
            out = out * torch.ones(out.shape[0], 1, 1, 1, dtype=out.dtype)
        return x + out


def _with_ends(constant: float) -> nn.Module:
    model = network("", (1, 3), constant)
    for index in (1, 3):
        block = Ends().double().eval()
        block.load_state_dict(model.get_submodule(f"blocks.{index}").state_dict())
        put(model, f"blocks.{index}", block)
    return model


@pytest.mark.parametrize("constant", [0.0, 1.0])
def test_it_runs_in_training_mode_where_the_original_does(constant: float) -> None:
    """In eval mode dropout of paths hands on whatever it is given, and a number would do."""
    model = _with_ends(constant)
    result = compact(model, (IMAGE,))
    assert {edit.module for edit in result.plan.constants} == {"blocks.1.drop", "blocks.3.drop"}
    assert all(edit.shape for edit in result.plan.constants)
    result.model.train()
    assert result.model(OTHER).shape == model.train()(OTHER).shape


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_a_constant_has_the_model_s_type(dtype: torch.dtype) -> None:
    """Also in the place of a module that has no parameter to take it from."""
    model = _with_ends(1.0).to(dtype)
    result = compact(model, (IMAGE.to(dtype),))
    assert result.plan.constants
    assert {value.dtype for value in result.model.state_dict().values() if value.is_floating_point()} == {
        dtype
    }
    assert result.model(IMAGE.to(dtype)).dtype == dtype
    assert apply_plan(model, result.plan).eval()(IMAGE.to(dtype)).dtype == dtype


def test_what_a_head_of_training_reads_stays() -> None:
    class Beside(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.head = nn.Conv2d(3, 8, 3), nn.Linear(8, 5)
            self.first, self.last = nn.Conv2d(8, 6, 1), nn.Conv2d(6, 8, 1)
            self.auxiliary = nn.Conv2d(6, 2, 1)

        def forward(self, image: Tensor) -> Tensor | tuple[Tensor, Tensor]:
            x = torch.relu(self.stem(image))
            inner = torch.relu(self.first(x))
            out: Tensor = self.head((x + self.last(inner)).mean((2, 3)))
            return (out, self.auxiliary(inner)) if self.training else out

    torch.manual_seed(0)
    model = Beside().double().eval()
    with torch.no_grad():
        for value in model.last.parameters():
            value.zero_()
    kept = compact(model, (IMAGE,))
    assert "first" not in kept.plan.absent
    for one, other in zip(kept.model.train()(IMAGE), model.train()(IMAGE), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)
    told = compact(model.eval(), (IMAGE,), unreached="report")
    assert "first" in told.plan.absent


def test_blocks_that_only_hand_on_their_input_cost_no_trial(monkeypatch: pytest.MonkeyPatch) -> None:
    """All branches of a new timm network are zero, and every trial is a whole proof: none is made of a block that is read."""
    trials: list[int] = []

    def counted(
        model: nn.Module, modules: Mapping[str, nn.Module], holds: Callable[[], bool]
    ) -> tuple[str, ...]:
        def trial() -> bool:
            trials.append(len(modules))
            return holds()

        return put_where_it_holds(model, modules, trial)

    for module in (depth, outputs):
        monkeypatch.setattr(module, "put_where_it_holds", counted)
    found = compact(network("plain", dead=(0, 1, 2, 3)), (torch.randn(1, 3, 16, 16, dtype=torch.float64),))
    assert sum(path.startswith("blocks.") for path in found.plan.absent) == 4 * 3
    assert len(trials) == 2, trials


def test_a_constant_that_is_rounded_holds_the_caller_s_tolerance() -> None:
    model = network("", ()).float()
    with torch.no_grad():  # the norm makes the constant, in float32
        model.get_parameter("blocks.1.conv2.weight").zero_()
        model.get_buffer("blocks.1.bn2.running_mean").fill_(1 / 3)
    assert compact(model, (IMAGE.float(),)).plan.constants
    strict = compact(model, (IMAGE.float(),), tolerance=1e-15)
    assert not strict.plan.constants
    assert strict.report.proof.passed


def _nodes(path: Path) -> list[str]:
    return [node.op_type for node in onnx.load(path).graph.node]


def test_the_exported_file_holds_nothing_of_it(tmp_path: Path) -> None:
    model = network("in place", (1, 3)).float()
    small = compact(model, (IMAGE.float(),)).model
    export_onnx(small, (IMAGE.float(),), tmp_path / "small.onnx")
    nodes = _nodes(tmp_path / "small.onnx")
    assert nodes.count("Conv") == 1 + 2 * 2
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    session = onnxruntime.InferenceSession(
        str(tmp_path / "small.onnx"), options, providers=["CPUExecutionProvider"]
    )
    (found,) = session.run(None, {session.get_inputs()[0].name: IMAGE.float().numpy()})
    np.testing.assert_allclose(found, model(IMAGE.float()).detach().numpy(), rtol=0, atol=1e-5)


def _kill_half(model: nn.Module) -> None:
    count = 0
    with torch.no_grad():
        for module in list(model.modules()):
            kind = type(module).__name__
            if kind not in ("BasicBlock", "Bottleneck", "ConvNeXtBlock", "Block", "SwinTransformerBlock"):
                continue
            count += 1
            if count % 2:
                continue
            if kind in ("BasicBlock", "Bottleneck"):
                ends = [module.get_submodule("bn3" if kind == "Bottleneck" else "bn2")]
            else:
                ends = [module.get_submodule("mlp.fc2")]
                ends += [module.get_submodule("attn.proj")] if kind != "ConvNeXtBlock" else []
            for end in ends:
                end.get_parameter("weight").zero_()
                end.get_parameter("bias").zero_()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("build", "size"),
    [
        (lambda: torchvision.models.resnet50(), 64),
        (lambda: timm.create_model("resnet18", zero_init_last=False), 64),
        (lambda: timm.create_model("convnext_atto"), 64),
        (lambda: timm.create_model("vit_tiny_patch16_224", img_size=64), 64),
        (lambda: timm.create_model("swin_tiny_patch4_window7_224", img_size=112, depths=(2, 2, 2, 2)), 112),
    ],
)
def test_half_the_branches_of_a_real_network_leave_with_all_their_macs(build: object, size: int) -> None:
    torch.manual_seed(0)
    model = build().eval()  # type: ignore[operator]
    _kill_half(model)
    image = torch.randn(1, 3, size, size)
    result = compact(model, (image,))
    gone = {edit.module for edit in result.plan.constants} | set(result.plan.absent)
    blocks = {name.rpartition(".")[0] for name in gone if name.endswith(("bn2", "bn3"))}
    dead = [layer for layer in result.report.layers if layer.macs_after == 0]
    assert result.report.proof.passed
    # Every dead branch is gone whole: of its block nothing but the shortcut is left.
    left = sum(
        layer.macs_after
        for layer in result.report.layers
        if any(layer.name.startswith(f"{block}.") and "downsample" not in layer.name for block in blocks)
    )
    assert left == 0
    assert sum(layer.macs_before for layer in dead) >= 0.3 * result.report.macs_before
