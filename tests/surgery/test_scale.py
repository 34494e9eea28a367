"""Surgery keeps running on large networks: its time grows with the nodes, its memory with the model."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time

import pytest
import torch
from torch import Tensor, nn

from compactmtl.graph import ChannelGraph
from compactmtl.surgery import compact

MEGABYTE = 2.0**20


class Chain(nn.Module):
    """Residual blocks one after another, half of each one's inner channels dead: three layers a block."""

    def __init__(self, blocks: int, width: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(3, width, 8, stride=8)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(width, width, 1, bias=False),
                nn.BatchNorm2d(width),
                nn.ReLU(),
                nn.Conv2d(width, width, 3, padding=1),
                nn.ReLU(),
                nn.Conv2d(width, width, 1),
            )
            for _ in range(blocks)
        )
        with torch.no_grad():
            for block in self.blocks:
                block[0].weight[: width // 2] = 0  # type: ignore[index]
                block[1].bias.uniform_(0.1, 0.5)  # type: ignore[index]
                block[3].weight[: width // 2] = 0  # type: ignore[index]
                block[5].weight *= 0.1  # type: ignore[index]

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = x + block(x)
        return x.mean((2, 3))


def measure(blocks: int, width: int) -> dict[str, float]:
    """CPU seconds and megabytes of one `compact`, in this process."""
    torch.set_num_threads(1)
    image = (torch.randn(1, 3, 32, 32),)
    compact(Chain(1, 4), image)  # imports and caches of torch itself
    model = Chain(blocks, width).eval()
    nodes = len(ChannelGraph.trace(model, image).calls)
    size = sum(value.numel() * value.element_size() for value in model.state_dict().values()) / MEGABYTE
    with open("/proc/self/statm") as statm:  # noqa: PTH123 - a file of the kernel
        before = int(statm.read().split()[1]) * resource.getpagesize() / MEGABYTE
    started = time.process_time()
    result = compact(model, image)
    return {
        "seconds": time.process_time() - started,
        "nodes": nodes,
        "model": size,
        "peak": _highest() - before,
        "reduction": result.report.mac_reduction,
        "rolled_back": sum("rolled back" in reason for reason in result.report.not_pruned.values()),
    }


def _highest() -> float:
    """Most megabytes that this process has held; ru_maxrss would begin with what its parent held."""
    with open("/proc/self/status") as status:  # noqa: PTH123 - a file of the kernel
        line = next(line for line in status if line.startswith("VmHWM:"))
    return int(line.split()[1]) / 1024


def _measured(blocks: int, width: int) -> dict[str, float]:
    done = subprocess.run(
        [sys.executable, __file__, str(blocks), str(width)],
        capture_output=True,
        text=True,
        check=True,
        timeout=900,
    )
    measured: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    assert measured["reduction"] > 0.4 and not measured["rolled_back"]
    return measured


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_time_grows_about_linearly_and_six_hundred_nodes_take_a_minute() -> None:
    short, long = _measured(20, 32), _measured(90, 32)
    assert long["nodes"] > 600
    # CPU seconds, which the load of the machine hardly changes; a minute of two cores has 120.
    assert long["seconds"] < 60
    grown = long["nodes"] / short["nodes"]
    assert long["seconds"] / short["seconds"] < 2 * grown


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(sys.platform != "linux", reason="reads the memory in use from /proc")
def test_memory_stays_under_six_times_the_model() -> None:
    measured = _measured(8, 512)
    assert measured["model"] > 80
    # On top of the model itself; its activations are a few megabytes.
    assert measured["peak"] < 5 * measured["model"] + 30


if __name__ == "__main__":
    print(json.dumps(measure(int(sys.argv[1]), int(sys.argv[2]))))
