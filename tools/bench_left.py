"""What a copy costs, and what a latency table leaves: the figures behind `compactmtl.surgery.timed`.

python tools/bench_left.py copies
python tools/bench_left.py stream [--network vit_tiny_patch16_224] [--target onnxruntime-cpu] [--dead 4 96] [--cuts 12]

`copies` times, in turn, a linear layer and what a norm at full width adds (zeros put behind half of the channels, and the first
half taken out again), in eager torch on one thread: `MACS_PER_COPY` is about the median of their ratio.

`stream` silences channels of the residual stream of a vision transformer and times the network before surgery, with all of them
removed, and by its latency table, in interleaved rounds on the target.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import torch
from torch import Tensor, nn

from compactmtl.artifacts.told import tell
from compactmtl.backends import load_target
from compactmtl.latency import Settings, latency_table
from compactmtl.latency.observe import opened
from compactmtl.surgery import compact
from compactmtl.verify import measure_latency

CASES = ((197, 192), (197, 384), (197, 768), (784, 192), (3136, 96))  # tokens, channels
ROUNDS = 15


def seconds(run: Callable[[], object]) -> float:
    """Processor time of one call, of enough repetitions: on a busy machine the wall's clock counts others' work."""
    started = time.process_time()
    for _ in range(20):
        run()
    return (time.process_time() - started) / 20


def copies() -> None:
    """Print the ratio for every case and its median."""
    torch.set_num_threads(1)
    ratios = []
    print("| tokens | channels | MACs a microsecond | numbers copied a microsecond | MACs per copy |")
    print("| ---: | ---: | ---: | ---: | ---: |")
    with torch.inference_mode():
        for tokens, channels in CASES:
            full, half = torch.randn(1, tokens, channels), torch.randn(1, tokens, channels // 2)
            layer = nn.Linear(channels, channels)

            def there_and_back(half: Tensor = half, full: Tensor = full) -> Tensor:
                count = half.shape[-1]
                nn.functional.pad(half, (0, count))
                return full.narrow(-1, 0, count).contiguous()

            times: tuple[list[float], list[float]] = ([], [])
            for _ in range(ROUNDS):
                times[0].append(seconds(lambda layer=layer, full=full: layer(full)))  # type: ignore[misc]
                times[1].append(seconds(there_and_back))
            linear, copy = (statistics.median(own) for own in times)
            macs = tokens * channels**2 / linear / 1e6
            copied = tokens * (channels + channels // 2) / copy / 1e6
            ratios.append(macs / copied)
            print(f"| {tokens} | {channels} | {macs:,.0f} | {copied:,.0f} | {macs / copied:.0f} |")
    print(f"\nmedian {statistics.median(ratios):.0f} MACs per number copied, one thread")


def silence(model: nn.Module, width: int, count: int) -> None:
    """Set the first `count` channels of a stream of `width` channels to zero, wherever they are written or scaled."""
    with torch.no_grad():
        for name, value in model.named_parameters():
            if value.shape[-1:] == (width,) and (value.ndim == 1 or name in ("pos_embed", "cls_token")):
                value[..., :count] = 0  # norms, biases of what writes the stream, and what is added to it
            elif value.ndim >= 2 and len(value) == width and not name.startswith("head"):
                value[:count] = 0


def stream(network: str, name: str, dead: list[int], cuts: int) -> None:
    """Print what is left and what each form takes."""
    import timm

    torch.set_num_threads(1)
    target = load_target(name)
    image = (torch.randn(target.latency.batch, 3, 224, 224),)
    print("| dead channels | form | MACs | predicted ms | measured ms | of before |")
    print("| ---: | --- | ---: | ---: | ---: | ---: |")
    settings = Settings(cuts=cuts, points=min(cuts, Settings.points))
    table = latency_table(
        timm.create_model(network).eval(), image, target, name, settings=settings, progress=tell
    )
    for count in dead:
        torch.manual_seed(0)
        model = timm.create_model(network).eval()
        silence(model, model.embed_dim, count)  # type: ignore[arg-type]
        gone, left = compact(model, image, join=False), compact(model, image, join=False, table=table)
        timing = left.report.timing
        assert timing is not None
        forms = {
            "before": (model, gone.report.macs_before, timing.before),
            "all removed": (gone.model, gone.report.macs_after, timing.all_removed),
            "by the table": (left.model, left.report.macs_after, timing.after),
        }
        with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
            runners = {
                form: stack.enter_context(opened(one, image, target, Path(folder) / f"{index}.onnx"))
                for index, (form, (one, *_)) in enumerate(forms.items())
            }
            names = next(iter(runners.values())).input_names
            found = measure_latency(runners, dict(zip(names, image, strict=True)), repeats=60).stats
        for form, (_, macs, predicted) in forms.items():
            ms = found[form].median_ms
            share = ms / found["before"].median_ms
            print(f"| {count} | {form} | {macs:,} | {predicted:.2f} | {ms:.2f} | {share:.3f} |")


def main() -> None:
    """Run one of the two."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("copies", "stream"))
    parser.add_argument("--network", default="vit_tiny_patch16_224")
    parser.add_argument("--target", default="onnxruntime-cpu")
    parser.add_argument("--dead", type=int, nargs="+", default=[4, 96])
    parser.add_argument("--cuts", type=int, default=12, help="networks that the table is made of")
    args = parser.parse_args()
    if args.what == "copies":
        copies()
    else:
        stream(args.network, args.target, args.dead, args.cuts)


if __name__ == "__main__":
    main()
