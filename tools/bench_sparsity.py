"""What structured sparsity costs a training step, as a share of forward, backward and the optimizer's step.

python tools/bench_sparsity.py                                     # ResNet-50, batch 16, 256×256
python tools/bench_sparsity.py --network resnet18 --batch 8 --pixels 64 --steps 5

CPU seconds of the process, which a busy machine hardly changes, one thread by default. The step is one of AdamW. Rows
are the proximal step of a group lasso alone, under the controller (with its settings of λ shared out over the steps
between them), and selective shrinking (likewise). Exits 1 where a row is above 5 %.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable

import timm
import torch
from torch import nn

from compactmtl.config.sparsity import ControllerConfig, SelectiveConfig
from compactmtl.sparsity import (
    ChannelGroups,
    Control,
    GroupLasso,
    ProximalStep,
    SelectiveShrinking,
    StrengthController,
    StrengthSchedule,
    channel_groups,
    split_parameter_groups,
)

MOST = 0.05
TOTAL = 10_000

CONTROLS: dict[str, Callable[[ChannelGroups], Control]] = {
    "proximal step": lambda groups: StrengthSchedule(GroupLasso(groups, 1.0), TOTAL, warmup=0),
    "controller": lambda groups: StrengthController(
        GroupLasso(groups, 0.0), ControllerConfig(mac_reduction=0.7), TOTAL, warmup=0
    ),
    "selective": lambda groups: SelectiveShrinking(
        groups, SelectiveConfig(mac_reduction=0.7, start=0), TOTAL
    ),
}


def cpu_seconds(run: Callable[[], object]) -> float:
    """Of one call."""
    started = time.process_time()
    run()
    return time.process_time() - started


def main() -> None:
    """Print a row for each control."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--network", default="resnet50")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--pixels", type=int, default=256)
    parser.add_argument("--steps", type=int, default=3, help="training steps that are timed")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    model: nn.Module = timm.create_model(args.network, num_classes=3).train()
    image = torch.randn(args.batch, 3, args.pixels, args.pixels)
    groups = channel_groups(model, image[:1])
    optimizer = torch.optim.AdamW(split_parameter_groups(model, groups, 0.01), lr=1e-3, fused=True)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        model(image).square().mean().backward()
        optimizer.step()

    step()
    whole = statistics.median(cpu_seconds(step) for _ in range(args.steps))
    print(f"{args.network}, batch {args.batch}, {args.pixels}²: {whole:.2f} CPU seconds a step")
    failed = False
    before = {name: value.clone() for name, value in model.state_dict().items()}
    nearest = min(float(d.min()) for d in ProximalStep(optimizer, GroupLasso(groups, 1.0)).distances())
    for name, build in CONTROLS.items():
        model.load_state_dict(before)
        control = build(groups)
        control.attach(optimizer)
        if isinstance(control, StrengthSchedule):
            control.whole = nearest / 1000  # such that groups take a thousand steps to go
        every = 20  # steps between settings: the mean over them counts

        def once(control: Control = control) -> None:
            control.observe()
            control.step()

        once()
        assert control.strength is None or control.strength > 0
        share = sum(cpu_seconds(once) for _ in range(every)) / every / whole
        failed |= share > MOST
        print(f"{name}: {100 * share:.2f} % of a step{' (too much)' if share > MOST else ''}")
    sys.exit(failed)


if __name__ == "__main__":
    main()
