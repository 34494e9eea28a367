"""What the removal of whole branches is worth: half of the residual branches of known networks are made zero.

python -m tools.bench_depth [--repeats 60] [--target onnxruntime-cpu]

Every second block's branches end in zeros: the last norm of a ResNet's, the last linear layer of an MLP's and of an
attention's. For each network: the share of those branches' MACs that is gone, the share of all MACs that is left, and the
latency of the compact model's file over that of the whole one's, paired in the same rounds.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import timm
import torch
import torchvision
from torch import nn

from compactmtl.backends import get_backend
from compactmtl.backends.targets import load_target
from compactmtl.export import export_onnx
from compactmtl.surgery import compact
from compactmtl.verify.latency import measure_latency

NETWORKS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "ResNet-50 (torchvision)": (lambda: torchvision.models.resnet50(), 224),
    "ConvNeXt-T (timm)": (lambda: timm.create_model("convnext_tiny"), 224),
    "ViT-S/16 (timm)": (lambda: timm.create_model("vit_small_patch16_224"), 224),
    "Swin-T (timm)": (lambda: timm.create_model("swin_tiny_patch4_window7_224"), 224),
}
LAST = {
    "BasicBlock": ("bn2",),
    "Bottleneck": ("bn3",),
    "ConvNeXtBlock": ("mlp.fc2",),
    "Block": ("attn.proj", "mlp.fc2"),
    "SwinTransformerBlock": ("attn.proj", "mlp.fc2"),
}
SHORTCUTS = ("downsample", "shortcut")


def close_half(model: nn.Module) -> tuple[str, ...]:
    """Make the branches of every second residual block zero, in place; the blocks' paths."""
    blocks = [(path, module) for path, module in model.named_modules() if type(module).__name__ in LAST]
    closed = blocks[1::2]
    with torch.no_grad():
        for _, block in closed:
            for name in LAST[type(block).__name__]:
                block.get_parameter(f"{name}.weight").zero_()
                block.get_parameter(f"{name}.bias").zero_()
    return tuple(path for path, _ in closed)


def main() -> None:
    """Print a row for each network."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--target", default="onnxruntime-cpu")
    parser.add_argument("--repeats", type=int, default=60)
    args = parser.parse_args()
    target = load_target(args.target)
    backend = get_backend(target.backend)
    backend.require(target)
    print(
        "| network | image | branches' MACs gone | MACs left | latency left | its 10–90 % band | surgery, s |"
    )
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    for name, (build, size) in NETWORKS.items():
        torch.manual_seed(0)
        model = build().eval()
        closed = close_half(model)
        image = torch.randn(1, 3, size, size)
        result = compact(model, (image,))
        own = [
            layer
            for layer in result.report.layers
            if any(layer.name.startswith(f"{path}.") for path in closed)
            and not any(word in layer.name for word in SHORTCUTS)
        ]
        gone = 1 - sum(layer.macs_after for layer in own) / sum(layer.macs_before for layer in own)
        with ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="compactmtl-")))
            runners = {}
            for kind, network in (("whole", model), ("compact", result.model)):
                path = folder / f"{kind}.onnx"
                export_onnx(network, (image,), path)
                runners[kind] = stack.enter_context(backend.open(path, target))
            latency = measure_latency(runners, image, repeats=args.repeats, reference="whole")
        speed = next(one for one in latency.speeds if one.name == "compact")
        band = f"{1 / speed.high:.3f} to {1 / speed.low:.3f}" if speed.low and speed.high else ""
        print(
            f"| {name} | {size} | {gone:.1%} | {1 - result.report.mac_reduction:.3f} | {1 / speed.ratio:.3f} | {band} | "
            f"{result.report.seconds:.1f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
