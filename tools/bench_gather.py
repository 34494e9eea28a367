"""How many multiply-accumulates fit in the time of moving one number: the price of an index gather.

python tools/bench_gather.py [--threads 1]

For several widths and map sizes it times, in turn, a 3x3 and a 1x1 convolution and an `index_select` of half of its
input channels, in eager torch. `compactmtl.surgery.gather.MACS_PER_MOVE` is about the median over them.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import nn

CASES = ((64, 56), (128, 28), (256, 14), (512, 7), (64, 112), (256, 56))  # channels, side of the map
ROUNDS = 15


def seconds(run: Callable[[], object]) -> float:
    """One timed call of enough repetitions."""
    started = time.perf_counter()
    for _ in range(3):
        run()
    return (time.perf_counter() - started) / 3


def main() -> None:
    """Print the ratio for every case and its median."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=1)
    torch.set_num_threads(parser.parse_args().threads)
    ratios = []
    print("| channels | map | kernel | MACs a microsecond | numbers moved a microsecond | MACs per move |")
    print("| ---: | ---: | ---: | ---: | ---: | ---: |")
    with torch.inference_mode():
        for channels, side in CASES:
            x = torch.randn(1, channels, side, side)
            half = torch.arange(0, channels, 2)
            for kernel in (1, 3):
                layer = nn.Conv2d(channels, channels, kernel, padding=kernel // 2)
                times: tuple[list[float], list[float]] = ([], [])
                for _ in range(ROUNDS):
                    times[0].append(seconds(lambda layer=layer, x=x: layer(x)))  # type: ignore[misc]
                    times[1].append(seconds(lambda x=x, half=half: x.index_select(1, half)))  # type: ignore[misc]
                conv, move = (statistics.median(own) for own in times)
                macs = (channels * kernel * side) ** 2 / conv / 1e6
                moved = len(half) * side**2 / move / 1e6
                ratios.append(macs / moved)
                print(f"| {channels} | {side} | {kernel} | {macs:,.0f} | {moved:,.0f} | {macs / moved:.0f} |")
    print(
        f"\nmedian {statistics.median(ratios):.0f} MACs per number moved, {torch.get_num_threads()} threads"
    )


if __name__ == "__main__":
    main()
