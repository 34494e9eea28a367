"""What spans of channels add: the share of the removable MACs that surgery removes without them and with them.

python -m tools.bench_spans resnet18 dla34 [--patterns A A2 B]

Networks, masks and the bound are those of `bench_surgery`, with its first seed.
"""

from __future__ import annotations

import argparse
import math
import time
import warnings

import torch
from torch import Tensor, nn

from compactmtl.surgery import compact, thin
from compactmtl.surgery.compact import CompactResult
from tools.bench_surgery import bound, errors, layer_macs
from tools.surgery_zoo import PATTERNS, ZOO, NotMasked, build, calibrate, mask


def compacted(model: nn.Module, image: tuple[Tensor, ...], call: float) -> tuple[CompactResult, float]:
    """The result where one operator more costs so many MACs, and the processor seconds that it took."""
    thin.MACS_PER_CALL = call
    started = time.process_time()
    return compact(model, image), time.process_time() - started


def row(name: str, pattern: str) -> str:
    """One network under one mask, in a line of Markdown."""
    torch.manual_seed(0)
    model, image = build(name)
    mask(model, image, pattern, 0)
    calibrate(model, image)
    full, left, price = layer_macs(model, image), bound(model, image), thin.MACS_PER_CALL
    cells = []
    for call in (math.inf, price):  # at an infinite price nothing is taken in part
        result, seconds = compacted(model, image, call)
        share = (1 - layer_macs(result.model, image) / full) / (1 - left)
        cells += [f"{share:.3f}", f"{seconds:.1f}"]
    cells += [str(len(result.plan.spans)), f"{errors(model, result.model, image)['error']:.0e}"]
    return f"| {name} | {pattern} | {' | '.join(cells)} |"


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("networks", nargs="+", choices=ZOO, metavar="NETWORK")
    parser.add_argument("--patterns", nargs="*", default=["A", "A2", "B"], choices=PATTERNS)
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    print("| network | pattern | without spans | seconds | with spans | seconds | spans | error |")
    print("| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    for name in given.networks:
        for pattern in given.patterns:
            try:
                print(row(name, pattern), flush=True)
            except NotMasked as reason:
                print(f"| {name} | {pattern} | not masked: {reason} | | | | | |", flush=True)


if __name__ == "__main__":
    main()
