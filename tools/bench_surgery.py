"""Surgery on a zoo of networks and masks: exactness, how much goes, how much could go, beside Torch-Pruning.

    python tools/bench_surgery.py run --out surgery.jsonl        # goes on where it stopped
    python tools/bench_surgery.py table surgery.jsonl            # Markdown

Each line of the JSONL file is one network under one pattern. Random weights; half of the channels masked:
A filters and their batch norm zeroed, A2 filters zeroed with the norm's bias live, B input slices, C our
coupled groups, D Torch-Pruning's groups.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
import torchvision
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from compactmtl.graph import ChannelGraph, cost
from compactmtl.surgery import compact

PATTERNS = ("A", "A2", "B", "C", "D")
OUTPUTS = (1000, 21)  # classes of the zoo: the layers that write them stay whole
EXACT = 1e-4  # largest |difference| as a share of the largest |output|, float32
ZOO = (
    *("resnet18", "resnet50", "resnet26d", "seresnet50", "resnext50_32x4d", "res2net50_26w_4s", "skresnet18"),
    *(
        "regnetx_002",
        "regnety_002",
        "regnetz_b16",
        "densenet121",
        "dla34",
        "dla60_res2net",
        "vovnet39a",
        "ese_vovnet19b_dw",
    ),
    *(
        "mobilenetv2_100",
        "mobilenetv3_small_100",
        "mobilenetv4_conv_small",
        "efficientnet_b0",
        "efficientnetv2_rw_t",
    ),
    *(
        "ghostnet_100",
        "ghostnetv2_100",
        "mnasnet_100",
        "fbnetc_100",
        "hardcorenas_a",
        "tinynet_e",
        "lcnet_050",
    ),
    *(
        "cspresnet50",
        "cspdarknet53",
        "darknet53",
        "hrnet_w18_small",
        "hrnet_w18_small_v2",
        "selecsls42b",
        "rexnet_100",
    ),
    *(
        "inception_v3",
        "xception41",
        "repvgg_a0",
        "mobileone_s0",
        "nfnet_l0",
        "nf_regnet_b0",
        "gernet_s",
        "ecaresnet26t",
    ),
    *(
        "vit_tiny_patch16_224",
        "deit_tiny_patch16_224",
        "swin_tiny_patch4_window7_224",
        "pvt_v2_b0",
        "coat_tiny",
    ),
    *(
        "maxvit_tiny_tf_224",
        "convnext_atto",
        "convnextv2_atto",
        "poolformer_s12",
        "mixer_s32_224",
        "levit_128s",
    ),
    *(
        "efficientformer_l1",
        "edgenext_xx_small",
        "mobilevit_xxs",
        "fastvit_t8",
        "twins_pcpvt_small",
        "xcit_nano_12_p16_224",
    ),
    *(
        "tv:alexnet",
        "tv:vgg11_bn",
        "tv:squeezenet1_1",
        "tv:googlenet",
        "tv:shufflenet_v2_x0_5",
        "tv:shufflenet_v2_x1_0",
    ),
    *("tv:mobilenet_v2", "tv:mnasnet0_5", "tv:wide_resnet50_2"),
    *(
        "tv:fcn_resnet50",
        "tv:deeplabv3_resnet50",
        "tv:deeplabv3_mobilenet_v3_large",
        "tv:lraspp_mobilenet_v3_large",
    ),
)


def build(name: str) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """A network with random weights and norms, and one example input."""
    size = 96
    model: Any
    if name.startswith("tv:"):
        extra: dict[str, Any] = {}
        if any(key in name for key in ("fcn", "deeplab", "lraspp")):
            extra = {"weights_backbone": None}
        if "googlenet" in name:
            extra = {"init_weights": True, "aux_logits": False}
        model = torchvision.models.get_model(name[3:], weights=None, **extra)
    else:
        model = timm.create_model(name)
        settings = model.default_cfg
        if settings.get("fixed_input_size"):
            size = settings["input_size"][-1]
    module: Any
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, _BatchNorm) and module.affine:
                statistics: Any = module
                statistics.running_mean.normal_(0, 0.2)
                statistics.running_var.uniform_(0.5, 1.5)
                module.weight.uniform_(0.5, 1.5)
                module.bias.normal_(0, 0.2)
    return model.eval(), (torch.randn(1, 3, size, size),)


def _half(count: int, generator: torch.Generator) -> Tensor:
    return torch.randperm(count, generator=generator)[: count // 2]


def _coupled(model: nn.Module, image: tuple[Tensor, ...], generator: torch.Generator) -> None:
    for family in ChannelGraph.trace(model, image).groups():
        if family.size < 4:
            continue
        dead = _half(family.size, generator).numpy()
        for member in family.members:
            if member.role != "consumer":
                index = torch.from_numpy(np.ascontiguousarray(member.indices[dead].ravel()))
                model.get_parameter(member.parameter).index_fill_(member.dim, index, 0.0)


def _torch_pruning_groups(model: nn.Module, image: tuple[Tensor, ...]) -> Iterator[Any]:
    import torch_pruning as tp

    with torch.enable_grad():  # its tracer follows autograd
        graph = tp.DependencyGraph().build_dependency(model, example_inputs=image[0])
    layers = [m for m in model.modules() if isinstance(m, (_ConvNd, nn.Linear))]
    outputs = [layer for layer in layers if layer.weight.shape[0] in OUTPUTS]
    yield from graph.get_all_groups(ignored_layers=outputs, root_module_types=[nn.Conv2d, nn.Linear])


def _writers(group: Any) -> Iterator[tuple[Any, list[int]]]:
    """The layers of a Torch-Pruning group whose outputs or affines carry its channels."""
    for dependency, indices in group:
        module = dependency.target.module
        name = getattr(dependency.handler, "__name__", "")
        if isinstance(module, (_ConvNd, nn.Linear, _BatchNorm)) and "out" in name:
            yield module, list(indices)


def _by_torch_pruning(model: nn.Module, image: tuple[Tensor, ...], generator: torch.Generator) -> None:
    for group in _torch_pruning_groups(model, image):
        size = len(group[0][1])
        if size < 4:
            continue
        dead = set(_half(size, generator).tolist())
        for module, indices in _writers(group):
            if len(indices) == size:
                rows = [index for position, index in enumerate(indices) if position in dead]
                module.weight.data[rows] = 0
                if module.bias is not None:
                    module.bias.data[rows] = 0


def mask(model: nn.Module, image: tuple[Tensor, ...], pattern: str, seed: int) -> None:
    """Zero half of the channels as the pattern says."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        if pattern == "C":
            _coupled(model, image, generator)
            return
        if pattern == "D":
            _by_torch_pruning(model, image, generator)
            return
        modules: list[Any] = list(model.modules())
        layers = [i for i, module in enumerate(modules) if isinstance(module, _ConvNd)]
        for i in layers[1:]:
            layer = modules[i]
            if pattern == "B" and layer.weight.shape[1] > 1:
                layer.weight[:, _half(layer.weight.shape[1], generator)] = 0
            elif pattern != "B":
                rows = _half(layer.weight.shape[0], generator)
                layer.weight[rows] = 0
                if layer.bias is not None:
                    layer.bias[rows] = 0
                norm = modules[i + 1] if i + 1 < len(modules) else None
                if pattern == "A" and isinstance(norm, _BatchNorm) and norm.num_features == len(layer.weight):
                    norm.weight[rows] = 0
                    norm.bias[rows] = 0


def _leaves(output: object) -> list[Tensor]:
    return [leaf for leaf in torch.utils._pytree.tree_leaves(output) if isinstance(leaf, Tensor)]


def varies(model: nn.Module, image: tuple[Tensor, ...]) -> float:
    """How much the output moves with the input: largest spread over inputs as a share of the largest value."""
    batch = torch.randn(4, *image[0].shape[1:])
    with torch.no_grad():
        outputs = _leaves(model(batch))
    return max(float((o.amax(0) - o.amin(0)).max() / o.abs().max().clamp_min(1e-12)) for o in outputs)


def error(one: nn.Module, other: nn.Module, image: tuple[Tensor, ...]) -> float:
    """Largest relative error on fresh inputs at two batch sizes and, where the network allows, two resolutions."""
    worst = 0.0
    _, channels, height, width = image[0].shape
    for shape in (
        (1, channels, height, width),
        (3, channels, height, width),
        (2, channels, height + 32, width + 32),
    ):
        batch = torch.randn(shape)
        with torch.no_grad():
            try:
                expected = _leaves(one(batch))
            except Exception:
                continue  # this network is built for one resolution
            found = _leaves(other(batch))
        for a, b in zip(expected, found, strict=True):
            worst = max(worst, float((a - b).abs().max() / a.abs().max().clamp_min(1e-12)))
    return worst


def bound(model: nn.Module, image: tuple[Tensor, ...]) -> float:
    """Share of the MACs left when every convolution and linear drops what is constant, unread or without gradient."""
    seen: dict[Any, dict[str, Tensor]] = {}
    handles = []

    def watch(module: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        dim = 1 if isinstance(module, _ConvNd) else output.ndim - 1
        spread = [t.detach().movedim(dim, 0).flatten(1) for t in (inputs[0], output)]
        record = seen.setdefault(module, {"scale": torch.tensor(0.0)})
        for key, flat in zip(("in", "out"), spread, strict=True):
            moves = (flat.amax(1) - flat.amin(1)) > 1e-6 * flat.abs().amax(1)
            record[key] = record.get(key, torch.zeros_like(moves)) | moves
        record["scale"] = record["scale"] + output[0].numel() / output.shape[dim]
        if output.requires_grad:
            output.register_hook(  # type: ignore[no-untyped-call]
                lambda grad: record.update(grad=(grad.movedim(dim, 0).flatten(1) != 0).any(1))
            )

    for module in model.modules():
        if isinstance(module, (_ConvNd, nn.Linear)) and not getattr(module, "transposed", False):
            handles.append(module.register_forward_hook(watch))
    batch = torch.randn(16, *image[0].shape[1:])  # few inputs leave channels at zero by chance
    outputs = _leaves(model(batch))
    sum((o * torch.randn_like(o)).sum() for o in outputs).backward()  # type: ignore[union-attr]
    model.zero_grad(set_to_none=True)
    for handle in handles:
        handle.remove()
    full = left = 0.0
    for module, record in seen.items():
        weight = module.weight.detach()
        assert isinstance(weight, Tensor)
        groups = int(getattr(module, "groups", 1))
        kernel = float(np.prod(weight.shape[2:]))
        outs = record["out"] & record.get("grad", torch.ones_like(record["out"]))
        rows = outs.reshape(groups, -1).sum(1)
        nonzero = (weight != 0).flatten(2).any(2) if weight.ndim > 2 else weight != 0
        read = nonzero.reshape(groups, -1, nonzero.shape[1]).any(1)
        columns = (record["in"].reshape(groups, -1) & read).sum(1)
        full += float(record["scale"]) * kernel * weight.shape[0] * weight.shape[1]
        left += float(record["scale"]) * kernel * float((rows * columns).sum())
    return left / full


def by_torch_pruning(model: nn.Module, image: tuple[Tensor, ...]) -> nn.Module:
    """What Torch-Pruning removes when told to drop every channel whose writers are all zero."""
    small = copy.deepcopy(model)
    for group in list(_torch_pruning_groups(small, image)):
        size = len(group[0][1])
        dead = torch.ones(size, dtype=torch.bool)
        for module, indices in _writers(group):
            if len(indices) != size:
                dead[:] = False
                break
            rows = module.weight.detach()[indices].reshape(size, -1)
            dead &= (rows == 0).all(1)
            if module.bias is not None:
                dead &= module.bias.detach()[indices] == 0
        if dead.any() and not dead.all():
            import torch_pruning as tp

            root = group[0][0].target.module
            graph = tp.DependencyGraph().build_dependency(small, example_inputs=image[0])
            handler = (
                tp.prune_conv_out_channels if isinstance(root, _ConvNd) else tp.prune_linear_out_channels
            )
            graph.get_pruning_group(root, handler, idxs=torch.nonzero(dead).flatten().tolist()).prune()
    return small


def measure(name: str, pattern: str) -> dict[str, Any]:
    """One row: ours and Torch-Pruning's on the same mask."""
    row: dict[str, Any] = {"network": name, "pattern": pattern}
    for seed in range(3):
        torch.manual_seed(seed)
        model, image = build(name)
        mask(model, image, pattern, seed)
        row["varies"] = varies(model, image)
        if row["varies"] > 1e-3:
            break
    full = cost(model, image)
    row["bound"] = bound(copy.deepcopy(model), image)
    started = time.perf_counter()
    result = compact(model, image)
    row["seconds"] = time.perf_counter() - started
    row |= {
        "error": error(model, result.model, image),
        "macs": result.report.macs_after / full.macs,
        "parameters": result.report.parameters_after / full.parameters,
        "kept_whole": len(result.report.kept_whole),
    }
    started = time.perf_counter()
    try:
        other = by_torch_pruning(model, image)
        row["tp"] = {"error": error(model, other, image), "macs": cost(other, image).macs / full.macs}
    except Exception as failure:
        row["tp"] = {"failure": f"{type(failure).__name__}: {failure}"[:200]}
    row["tp"]["seconds"] = time.perf_counter() - started
    return row


def run(out: Path, names: list[str], patterns: list[str]) -> None:
    """Measure what the file does not hold yet, one line at a time."""
    done = set()
    if out.exists():
        done = {(r["network"], r["pattern"]) for r in map(json.loads, out.read_text().splitlines())}
    for name in names:
        for pattern in patterns:
            if (name, pattern) in done:
                continue
            try:
                row = measure(name, pattern)
            except Exception as failure:
                row = {
                    "network": name,
                    "pattern": pattern,
                    "failure": f"{type(failure).__name__}: {failure}"[:300],
                }
            with out.open("a") as file:
                file.write(json.dumps(row) + "\n")
            print(json.dumps(row), flush=True)


def removed_share(row: dict[str, Any], macs: Callable[[dict[str, Any]], float]) -> float | None:
    """What went as a share of what could go (1 - bound)."""
    return (1 - macs(row)) / (1 - row["bound"]) if row["bound"] < 1 else None


def table(path: Path) -> str:
    """Markdown: one row a pattern."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    lines = [
        "| pattern | networks | exact | silent errors | crashed | share of removable MACs gone: median | 10th percentile "
        "| Torch-Pruning: exact | median where exact |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for pattern in PATTERNS:
        chosen = [r for r in rows if r["pattern"] == pattern]
        fine = [r for r in chosen if "failure" not in r and r["varies"] > 1e-3]
        exact = [r for r in fine if r["error"] <= EXACT]
        shares = [s for r in exact if (s := removed_share(r, lambda r: r["macs"])) is not None]
        theirs = [r for r in fine if r["tp"].get("error", 1.0) <= EXACT]
        their_shares = [s for r in theirs if (s := removed_share(r, lambda r: r["tp"]["macs"])) is not None]
        if not fine:
            continue
        lines.append(
            f"| {pattern} | {len(fine)} | {len(exact)} | {len(fine) - len(exact)} | "
            f"{sum('failure' in r for r in chosen)} | {np.median(shares):.2f} | {np.percentile(shares, 10):.2f} | "
            f"{len(theirs)} | {np.median(their_shares) if their_shares else float('nan'):.2f} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    verbs = parser.add_subparsers(required=True, dest="verb")
    runner = verbs.add_parser("run")
    runner.add_argument("--out", type=Path, default=Path("surgery.jsonl"))
    runner.add_argument("--networks", nargs="*", default=list(ZOO))
    runner.add_argument("--patterns", nargs="*", default=list(PATTERNS), choices=PATTERNS)
    printer = verbs.add_parser("table")
    printer.add_argument("file", type=Path)
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    if given.verb == "run":
        run(given.out, given.networks, given.patterns)
    else:
        print(table(given.file))


if __name__ == "__main__":
    main()
