"""How many multiply-accumulates fit in the time of moving one number: the price of an index gather, and of a span.

python tools/bench_gather.py [--threads 1]

For several widths and map sizes it times, in turn, a 3x3 and a 1x1 convolution and an `index_select` of half of its
input channels, in eager torch, and in ONNX Runtime a chain of Slice and Pad, which take half of the channels in one piece and put
zeros in the place of the others. On one pixel the chain, and a padding in eager torch, take the time of their operators alone.
`compactmtl.surgery.thin` has its three prices from here: MACS_PER_MOVE, MACS_PER_COPY and MACS_PER_CALL.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

CASES = ((64, 56), (128, 28), (256, 14), (512, 7), (64, 112), (256, 56))  # channels, side of the map
ROUNDS = 15
PAIRS = 10  # of a Slice and a Pad, one after another


def seconds(run: Callable[[], object]) -> float:
    """One timed call of enough repetitions."""
    started = time.perf_counter()
    for _ in range(3):
        run()
    return (time.perf_counter() - started) / 3


def chain(channels: int, side: int, pairs: int, threads: int) -> Callable[[], object]:
    """A run in ONNX Runtime of `pairs` of Slice and Pad in the channel."""
    half = channels // 2
    shape = [1, channels, side, side]
    constants = {
        "first": np.array([0]),
        "end": np.array([half]),
        "axes": np.array([1]),
        "pads": np.array([0, 0, 0, 0, 0, channels - half, 0, 0]),
    }
    nodes = []
    for pair in range(pairs):
        nodes += [
            helper.make_node("Slice", [f"x{pair}", "first", "end", "axes"], [f"half{pair}"]),
            helper.make_node("Pad", [f"half{pair}", "pads"], [f"x{pair + 1}"]),
        ]
    graph = helper.make_graph(
        nodes,
        "chain",
        [helper.make_tensor_value_info("x0", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(f"x{pairs}", TensorProto.FLOAT, shape)],
        [numpy_helper.from_array(value.astype(np.int64), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    inputs = {"x0": np.random.default_rng(0).standard_normal(shape).astype(np.float32)}
    return lambda: session.run(None, inputs)


def one_operator(channels: int, side: int, threads: int) -> float:
    """Seconds of one operator of the chain: the mean of Slice and Pad, without what a run costs whatever it does."""
    long, short = (chain(channels, side, pairs, threads) for pairs in (2 * PAIRS, PAIRS))
    differences = []
    for _ in range(ROUNDS):
        differences.append(seconds(long) - seconds(short))
    return statistics.median(differences) / (2 * PAIRS)


def main() -> None:
    """Print the ratios for every case and their medians."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=1)
    threads = parser.parse_args().threads
    torch.set_num_threads(threads)
    by_index, in_one_piece, rates = [], [], []
    operator = one_operator(8, 1, threads)
    pixel = torch.randn(1, 8, 1, 1)
    padding = statistics.median(
        seconds(lambda: nn.functional.pad(pixel, (0, 0, 0, 0, 0, 8))) for _ in range(20 * ROUNDS)
    )
    print(
        "| channels | map | kernel | MACs a microsecond | moved by index a microsecond | in one piece | MACs per move | per copy |"
    )
    print("| ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    with torch.inference_mode():
        for channels, side in CASES:
            x = torch.randn(1, channels, side, side)
            half = torch.arange(0, channels, 2)
            # A Slice moves half of the numbers, a Pad writes all of them.
            copy = max(one_operator(channels, side, threads) - operator, 1e-9)
            copied = 0.75 * channels * side**2 / copy / 1e6
            for kernel in (1, 3):
                layer = nn.Conv2d(channels, channels, kernel, padding=kernel // 2)
                times: tuple[list[float], list[float]] = ([], [])
                for _ in range(ROUNDS):
                    times[0].append(seconds(lambda layer=layer, x=x: layer(x)))  # type: ignore[misc]
                    times[1].append(seconds(lambda x=x, half=half: x.index_select(1, half)))  # type: ignore[misc]
                conv, move = (statistics.median(own) for own in times)
                macs = (channels * kernel * side) ** 2 / conv / 1e6
                moved = len(half) * side**2 / move / 1e6
                by_index.append(macs / moved)
                in_one_piece.append(macs / copied)
                rates.append(macs)
                print(
                    f"| {channels} | {side} | {kernel} | {macs:,.0f} | {moved:,.0f} | {copied:,.0f} | "
                    f"{macs / moved:.0f} | {macs / copied:.0f} |"
                )
    print(
        f"\nmedians: {statistics.median(by_index):.0f} MACs per number moved by index, "
        f"{statistics.median(in_one_piece):.0f} per number copied in one piece, "
        f"{operator * statistics.median(rates) * 1e6:,.0f} per operator of ONNX Runtime ({operator * 1e6:.1f} µs), "
        f"{padding * statistics.median(rates) * 1e6:,.0f} per padding in eager torch ({padding * 1e6:.1f} µs), {threads} threads"
    )


if __name__ == "__main__":
    main()
