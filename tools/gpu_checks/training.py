"""Checks of training: the GPU does what the CPU does, the same each time, in the memory that was foreseen."""

from __future__ import annotations

import gc
import hashlib
import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from compactmtl.balancing.dummies import random_head
from compactmtl.config import Recipe, resolve_recipe
from compactmtl.errors import MissingDependencyError
from compactmtl.sparsity import GroupLasso, ProximalStep, channel_groups, split_parameter_groups
from compactmtl.surgery import compact
from compactmtl.train import dry_run
from compactmtl.train.build import build_session
from compactmtl.train.machine import torch_settings
from compactmtl.train.resume import Progress, read_last, restore, save_last
from compactmtl.train.session import Session
from tools.gpu_checks import CheckFailed, Setting

CURVE = 1e-2  # float32 sums in another order: differences grow with the steps, from 1e-6 on
LOW_PRECISION = 0.1  # of the mean loss; bfloat16 has 8 bits
SAME_FUNCTION = 1e-4  # float32 of a network of a dozen layers, relative to the largest output
MEMORY = (0.5, 2.0)  # the estimate leaves out cuDNN's workspace and what the allocator rounds up
MOST_WAITS = 16  # step counts, finiteness, first bounds, Newton's steps, the newly dead, and the losses

RECIPE = """
description: rendered rooms, for the checks of a GPU
data:
  name: scenes
  size: [{height}, {width}]
  batch_size: {batch}
  cache: memory
  options: {{train: {train}, val: {batch}}}
tasks:
  segmentation: {{kind: segmentation, head: {{kind: fcn, width: 16}}}}
  depth: {{kind: depth, head: {{kind: fcn, width: 16}}}}
model:
  encoder:
    name: resnet10t
    options: {{channels: [{channels}], stem_width: 16}}
    output_stride: 16
train:
  epochs: {epochs}
  optimizer: {{lr: 1e-3}}
  threads: 1
surgery: {{align: 1}}
"""
SPARSE = "sparsity: {controller: {mac_reduction: 0.4, end: 0.6, every: 2, min_channels: 4}}\n"
SHRINKING = SPARSE.replace("sparsity: {", "sparsity: {shrink_every: 1, ")
PARTS = "regularization: {dgr: {strength: 0.1}}\n" + SPARSE


def recipe(setting: Setting, name: str, more: str = "", *overrides: str) -> Recipe:
    """The checks' recipe with further sections and overrides, on the setting's device."""
    sizes: dict[str, Any] = {
        "height": 96,
        "width": 128,
        "batch": 8,
        "train": 64,
        "epochs": 5,
        "channels": "64, 64, 128, 256",
    }
    if setting.tiny:
        sizes = {"height": 32, "width": 48, "batch": 2, "train": 6, "epochs": 2, "channels": "16, 16, 24, 32"}
    path = setting.folder / f"{name}.yaml"
    path.write_text(RECIPE.format(**sizes) + more, encoding="utf-8")
    return resolve_recipe(path, [f"train.device={setting.device}", *overrides]).recipe


def on_cpu(given: Recipe) -> Recipe:
    """The same recipe on the CPU."""
    return given.model_copy(update={"train": given.train.model_copy(update={"device": "cpu"})})


@contextmanager
def session_of(given: Recipe) -> Iterator[Session]:
    """A recipe's session under its settings of torch, ready to train."""
    with torch_settings(given):
        session = build_session(given)
        session.model.train()
        yield session


def train_steps(session: Session, most: int | None = None) -> list[float]:
    """The total loss of each step, to the end of the recipe or for `most` steps; epochs end as in a training."""
    totals: list[Tensor] = []
    while session.position.epoch <= session.recipe.train.epochs:
        loader, position = session.train_loader, session.position
        loader.sampler.set_epoch(position.epoch)
        loader.sampler.set_start(position.batch)
        for batch in loader:
            _, total = session.forward(batch)
            totals.append(total.detach())
            session.update(total)
            if most is not None and len(totals) >= most:
                return _values(totals)
        session.end_epoch()
        session.model.train()
        position.epoch, position.batch = position.epoch + 1, 0
    return _values(totals)


def _values(totals: list[Tensor]) -> list[float]:
    values = [float(value) for value in totals]
    if not all(value == value and abs(value) != float("inf") for value in values):
        raise CheckFailed(f"a loss is not finite: {values}")
    return values


def _worst(one: list[float], other: list[float]) -> float:
    return max(abs(a - b) / max(abs(b), 1e-6) for a, b in zip(one, other, strict=True))


def same_draws(setting: Setting) -> dict[str, Any]:
    """What is drawn at random before the first step, on both devices."""
    given = recipe(setting, "draws", "regularization: {dgr: {strength: 0.1}, pta: {decoders: 2}}\n")
    states: list[dict[str, Tensor]] = []
    for one in (on_cpu(given), given):
        with session_of(one) as session:
            state = dict(session.model.state_dict())
            for part in session.parts:
                if part.learned is not None:
                    state |= {f"{part.name}.{key}": value for key, value in part.learned.state_dict().items()}
            head = session.model.heads["depth"]
            dummy = random_head(head, "depth", 0, 0)
            state |= {f"dummy.{key}": value for key, value in dummy.state_dict().items()}
            states.append({key: value.cpu() for key, value in state.items()})
    differing = [key for key, value in states[0].items() if not torch.equal(value, states[1][key])]
    if differing:
        raise CheckFailed(f"{len(differing)} tensors differ, such as {differing[0]}")
    return {"tensors": len(states[0])}


def curves(setting: Setting) -> dict[str, Any]:
    """Step by step against the CPU."""
    given = recipe(setting, "curves", PARTS)
    with session_of(on_cpu(given)) as session:
        expected = train_steps(session, 40)
    with session_of(given) as session:
        found = train_steps(session, 40)
    worst = _worst(found, expected)
    measured = {"worst": worst, "cpu": expected, "device": found}
    if worst > CURVE:
        raise CheckFailed(f"losses differ by {worst:.1e}, more than {CURVE:.0e}", measured)
    return measured


def _digest(model: nn.Module) -> str:
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(
            name.encode() + value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        )
    return digest.hexdigest()


def deterministic(setting: Setting) -> dict[str, Any]:
    """Twice, and once in two sittings."""
    more = PARTS.replace("width: 16", "width: 16, dropout: 0.2")
    given = recipe(setting, "twice", more)
    digests, steps = [], 0
    for _ in range(2):
        with session_of(given) as session:
            steps = len(train_steps(session))
            digests.append(_digest(session.model))
    with session_of(given) as session:
        train_steps(session, steps // 2)
        save_last(session, Progress(), setting.folder / "last")
    state = read_last(given, setting.folder / "last")
    assert state is not None
    with session_of(given) as session:
        torch.rand(3, device=session.device)  # another place in the generator's sequence
        restore(session, Progress(), setting.folder / "last", state)
        train_steps(session)
        digests.append(_digest(session.model))
    measured = {"steps": steps, "sha256": digests}
    if len(set(digests)) > 1:
        what = "the second run" if digests[0] != digests[1] else "the resumed run"
        raise CheckFailed(f"the weights of {what} differ", measured)
    return measured


def shrinking(setting: Setting) -> dict[str, Any]:
    """A run that removes channels while it trains, and surgery where the model is."""
    given = recipe(setting, "shrinking", SHRINKING)
    with session_of(given) as session:
        first = sum(parameter.numel() for parameter in session.model.parameters())
        losses = train_steps(session)
        left = sum(parameter.numel() for parameter in session.model.parameters())
        places = {str(value.device) for value in session.model.state_dict().values()}
    with session_of(recipe(setting, "masked", SPARSE)) as session:
        train_steps(session)
        sparsifier = session.sparsifier
        assert sparsifier is not None
        reached = sparsifier.control.reached
        model = session.model.eval()
        image = torch.randn(2, 3, *given.data.size, generator=torch.Generator().manual_seed(0)).to(
            session.device
        )
        result = compact(model, (image,))
        places |= {str(value.device) for value in result.model.state_dict().values()}
        with torch.no_grad():
            before, after = model(image), result.model.eval()(image)
        worst = max(
            float((before[name] - after[name]).abs().max() / before[name].abs().max()) for name in before
        )
    removed = 1 - result.report.macs_after / result.report.macs_before
    measured = {"macs_removed": removed, "worst": worst, "parameters": [first, left], "losses": losses}
    if not reached or removed < 0.4 or left >= first:
        raise CheckFailed(f"{removed:.1%} of the MACs removed, {left} of {first} parameters left", measured)
    if worst > SAME_FUNCTION:
        raise CheckFailed(f"outputs differ by {worst:.1e} after surgery", measured)
    if len(places) > 1:
        raise CheckFailed(f"parts of the models lie on {', '.join(sorted(places))}", measured)
    return measured


def autocast(setting: Setting, precision: str) -> dict[str, Any]:
    """A low precision of the forward pass, with float16's scaler where it needs one."""
    given = recipe(setting, "float32")
    low = recipe(setting, precision, "", f"train.autocast={precision}")
    means = []
    for one in (given, low):
        with session_of(one) as session:
            means.append(statistics.fmean(train_steps(session)))
    difference = abs(means[1] - means[0]) / abs(means[0])
    measured = {"difference": difference, "float32": means[0], precision: means[1]}
    if difference > LOW_PRECISION:
        raise CheckFailed(f"the mean loss differs by {difference:.1%}", measured)
    return measured


def channels_last(setting: Setting) -> dict[str, Any]:
    """The same steps in another layout, and what a step takes."""
    losses, seconds = [], []
    for word in ("false", "true"):
        with session_of(recipe(setting, f"layout-{word}", "", f"train.channels_last={word}")) as session:
            losses.append(train_steps(session, 20))
            start = time.perf_counter()
            train_steps(session, 10)  # its losses are read at the end, which waits for the device
            seconds.append(time.perf_counter() - start)
    measured = {"worst": _worst(losses[1], losses[0]), "speedup": seconds[0] / seconds[1]}
    if measured["worst"] > CURVE:
        raise CheckFailed(f"losses differ by {measured['worst']:.1e}", measured)
    return measured


def memory(setting: Setting) -> dict[str, Any]:
    """The allocator's peak over two steps, the second with the optimizer's state."""
    given = recipe(setting, "memory")
    estimate = dry_run(given).total_bytes
    if not setting.on_gpu:
        raise MissingDependencyError("the CPU has no counter of peak memory", "run it on a GPU")
    gc.collect()
    before = torch.cuda.memory_allocated(setting.device)
    with session_of(given) as session:
        torch.cuda.reset_peak_memory_stats(session.device)
        train_steps(session, 2)
        peak = torch.cuda.max_memory_allocated(session.device) - before
    measured = {"ratio": peak / estimate, "peak_mb": peak / 1e6, "estimate_mb": estimate / 1e6}
    if not MEMORY[0] <= measured["ratio"] <= MEMORY[1]:
        raise CheckFailed(f"the peak is {measured['ratio']:.2f} times the estimate", measured)
    return measured


def waits(setting: Setting) -> dict[str, Any]:
    """torch's own count of waits in a proximal step."""
    device = torch.device(setting.device)
    counts, milliseconds = {}, 0.0
    for depth in (2, 16):
        step = _proximal_step(device, depth)
        for _ in range(3):
            step()
        if setting.on_gpu:
            counts[depth] = count_waits(step)
            start = time.perf_counter()
            step()
            torch.cuda.synchronize(device)
            milliseconds = 1e3 * (time.perf_counter() - start)
    if not setting.on_gpu:
        raise MissingDependencyError("torch counts waits for CUDA alone", "run it on a GPU")
    measured = {"few": counts[2], "many": counts[16], "proximal_ms": milliseconds}
    if max(counts.values()) > MOST_WAITS:
        raise CheckFailed(f"{counts[2]} waits for 2 families and {counts[16]} for 16", measured)
    return measured


def _proximal_step(device: torch.device, depth: int) -> Callable[[], None]:
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for index in range(depth):
        layers += [nn.Conv2d(3 if index == 0 else 16, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU()]
    model = nn.Sequential(*layers, nn.Conv2d(16, 2, 1)).to(device)
    image = torch.randn(2, 3, 16, 16, device=device)
    groups = channel_groups(model, (image,), scope="model")
    optimizer = torch.optim.AdamW(split_parameter_groups(model, groups, 0.01), lr=1e-2, fused=True)
    proximal = ProximalStep(optimizer, GroupLasso(groups, 0.05))

    def step() -> None:
        optimizer.zero_grad()
        model(image).square().mean().backward()
        optimizer.step()
        proximal.step()

    return step


def count_waits(step: Callable[[], None]) -> int:
    """The waits for a GPU in a call, by torch's own warnings."""
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return sum("synchronizing" in str(one.message) for one in caught)
