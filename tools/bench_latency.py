"""What removed MACs and int8 bring in latency: ONNX Runtime's CPU, one thread, all models paired and interleaved.

python tools/bench_latency.py                                          # ResNet-18 and -50 at 224 pixels, 70 % of the MACs gone
python tools/bench_latency.py --networks resnet18 --pixels 64 --share 0.7 --align 16 --out latency.json

Every layer of an untrained network loses about the same share of its channels, at random; latency knows nothing of what the
weights hold. int8 has every layer quantized, calibrated on noise. Rows: the reduction of MACs, how much faster the compact
network is in float32 (`of MACs`: that over the reduction of MACs), and how much faster in int8. Ratios are medians over rounds, with
the 10th and the 90th percentile. Exits 1 below --least of the reduction of MACs.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from torch import Tensor, nn

from compactmtl.backends import get_backend
from compactmtl.config.sparsity import SelectiveConfig
from compactmtl.config.target import Target
from compactmtl.export import export_onnx
from compactmtl.export.precision import apply_precision
from compactmtl.sparsity import channel_groups
from compactmtl.sparsity.selection import marginal_costs
from compactmtl.sparsity.target import Target as Goal
from compactmtl.surgery import compact
from compactmtl.verify import LatencyResult, measure_latency
from compactmtl.verify.speed import speed_of

FP32 = Target(backend="onnxruntime")
INT8 = Target(backend="onnxruntime", precision="int8")


def empty(model: nn.Module, image: Tensor, share: float, align: int) -> None:
    """Set channels to zero so that `share` of the MACs can go, about the same share of each layer."""
    groups = channel_groups(model, image, scope="model")
    goal = Goal(groups, SelectiveConfig(mac_reduction=share), align, "selective")
    costs = marginal_costs(goal.cost, groups.whole())
    rng = np.random.default_rng(0)
    worth = [cost * rng.random(len(flags)) for cost, flags in zip(costs, groups.whole(), strict=True)]
    dead = goal.choose(worth, [~flags for flags in groups.whole()], costs)
    with torch.no_grad():
        for family, flags in zip(groups.bound, dead, strict=True):
            for s in family.tensors:
                s.zero_(s.parameter, torch.from_numpy(flags))


def measure(name: str, pixels: int, share: float, align: int, repeats: int) -> dict[str, Any]:
    """One network, dense and compact, in both precisions."""
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=16, zero_init_last=False).eval()
    image = torch.randn(1, 3, pixels, pixels)
    dense = timm.create_model(name, num_classes=16, zero_init_last=False).eval()
    empty(model, image, share, align)
    result = compact(model, (image,), align=align)
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        runners = {}
        for label, module in (("dense", dense), ("compact", result.model)):
            for target in (FP32, INT8):
                path = Path(folder) / f"{label}-{target.precision}.onnx"
                export_onnx(module, image, path, input_names=["image"])
                feeds = [{"image": torch.randn_like(image).numpy()} for _ in range(8)]
                apply_precision(path, target, feeds)
                opened = get_backend("onnxruntime").open(path, target)
                runners[f"{label} {target.precision}"] = stack.enter_context(opened)
        latency = measure_latency(runners, image, warmup=10, repeats=repeats)
    macs = result.report.macs_before / result.report.macs_after
    row: dict[str, Any] = {"network": name, "pixels": pixels, "align": align, "macs": macs}
    for label, (one, other) in {
        "fp32": ("dense fp32", "compact fp32"),
        "int8": ("dense int8", "compact int8"),
        "int8 of compact": ("compact fp32", "compact int8"),
        "both": ("dense fp32", "compact int8"),
    }.items():
        row[label] = ratio(latency, one, other)
    row["milliseconds"] = {name: stats.median_ms for name, stats in latency.stats.items()}
    row["variation"] = max(stats.variation for stats in latency.stats.values())
    return row


def ratio(latency: LatencyResult, one: str, other: str) -> tuple[float, float, float]:
    """How much faster `other` is, round by round: median, 10th and 90th percentile."""
    found = speed_of(latency, other, one)
    return found.ratio, found.low or math.nan, found.high or math.nan


def main() -> None:
    """Print a row for each network."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--networks", nargs="+", default=["resnet18", "resnet50"])
    parser.add_argument("--pixels", type=int, nargs="+", default=[224])
    parser.add_argument("--share", type=float, default=0.7, help="of the MACs that is to go")
    parser.add_argument("--align", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=100)
    parser.add_argument("--least", type=float, default=0.95)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    rows = []
    for network in args.networks:
        for pixels in args.pixels:
            row = measure(network, pixels, args.share, args.align, args.repeats)
            rows.append(row)
            gained = row["fp32"][0] / row["macs"]
            told = ", ".join(
                f"{label} {row[label][0]:.2f}× ({row[label][1]:.2f} to {row[label][2]:.2f})"
                for label in ("fp32", "int8", "int8 of compact", "both")
            )
            print(
                f"{network} at {pixels}: {row['macs']:.2f}× fewer MACs; faster: {told}; {gained:.2f} of MACs",
                flush=True,
            )
    if args.out:
        args.out.write_text(json.dumps(rows, indent=1) + "\n")
    sys.exit(any(row["fp32"][0] / row["macs"] < args.least for row in rows))


if __name__ == "__main__":
    main()
