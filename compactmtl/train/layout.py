"""The memory layout in which a network trains: NCHW, or NHWC (`channels_last`) where that is clearly faster here.

Another layout sums in another order, so a run's last digits depend on it. `train.channels_last: auto` times both once,
before training and on copies, and the answer is kept: in the run, and in the user's cache folder for all runs of the
same network on the same machine. So a second run of a recipe does not depend on a second measurement.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import time
import warnings
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import compactmtl
from compactmtl.artifacts.files import parse_json
from compactmtl.backends.machine import cpu_flags, cpu_name
from compactmtl.config import Recipe
from compactmtl.data.cache import user_cache
from compactmtl.data.inputs import Images, each, parts
from compactmtl.errors import CompactWarning
from compactmtl.graph.copies import copy_model
from compactmtl.models import MultiTaskModel
from compactmtl.runs.model import example_inputs
from compactmtl.train.optimizers import build_optimizer
from compactmtl.train.random_state import same_random_state

FEWEST_STEPS = 200  # timing takes as long as eight steps or so: 4 % of this many
ROUNDS = 3  # of one step in each layout, after one that is not timed
MARGIN = 0.1  # NHWC must be this much faster, so that noise does not decide
FOLDER = "layouts"  # of the user's caches
VERSION = 1  # of what is kept there


@dataclass(frozen=True)
class Layout:
    """The layout of a run, and how it came about.

    `origin` is `recipe`, `run` (of a resumed run), `short` (too few steps to time), `plain` (no convolution, so
    nothing to choose), `timed`, or `kept` (timed for an earlier run). `seconds` are of one step in NCHW and NHWC.
    """

    channels_last: bool
    origin: str
    seconds: tuple[float, float] | None = None

    def lay(self, image: Images) -> Images:
        """The image, (B, 3, H, W), in this layout; of several inputs each picture."""
        return each(self._laid, image) if self.channels_last else image

    @staticmethod
    def _laid(one: Tensor) -> Tensor:
        return one.contiguous(memory_format=torch.channels_last) if one.ndim == 4 else one

    def apply(self, model: MultiTaskModel) -> MultiTaskModel:
        """Put a model's weights into this layout, in place."""
        return model.to(memory_format=torch.channels_last) if self.channels_last else model

    def notes(self) -> tuple[str, ...]:
        """A line for the user where the layout was measured; else none."""
        if self.seconds is None:
            return ()
        plain, last = self.seconds
        name = "NHWC (channels_last)" if self.channels_last else "NCHW"
        when = "timed just now" if self.origin == "timed" else "timed for an earlier run"
        return (f"{name} memory layout: a step took {plain:.3g} s in NCHW and {last:.3g} s in NHWC, {when}",)


def stated(recipe: Recipe) -> Layout:
    """What the recipe says without a measurement; `auto` is NCHW."""
    return Layout(recipe.train.channels_last is True, "recipe")


def choose(recipe: Recipe, model: MultiTaskModel, steps: int, *, keep: bool = True) -> Layout:
    """The layout of a run of `steps` steps: the recipe's, or for `auto` the faster one on this machine.

    `model` is on its device. Where the answer is not known from an earlier run, training steps are timed on copies;
    model, gradients and random generators are as before. With `keep` the answer is kept for later runs; where that
    cannot be written, a CompactWarning says so.
    """
    if recipe.train.channels_last != "auto":
        return stated(recipe)
    if steps < FEWEST_STEPS:
        return Layout(False, "short")
    if not any(parameter.ndim == 4 for parameter in model.parameters()):
        return Layout(False, "plain")
    path = user_cache() / FOLDER / f"{_key(recipe, model)}.json"
    if (known := _read(path)) is not None:
        return known
    plain, last = step_seconds(recipe, model)
    found = Layout(last < (1 - MARGIN) * plain, "timed", (plain, last))
    return _keep(path, found) if keep else found


def step_seconds(recipe: Recipe, model: MultiTaskModel, rounds: int = ROUNDS) -> tuple[float, float]:
    """Seconds of the fastest of `rounds` training steps in NCHW and in NHWC, on copies of `model`, taking turns.

    A step is the forward pass of as many random images as pass at once, a backward pass and the optimizer's step: without the data, the
    recipe's balancing and its other parts.
    """
    device = next(model.parameters()).device
    inputs = tuple(one.to(device) for one in example_inputs(recipe, recipe.images_at_once))
    with same_random_state(device):
        steps = {last: _Steps(recipe, model, inputs, Layout(last, "recipe")) for last in (False, True)}
        for number in range(rounds + 1):
            for one in steps.values():
                one.step(timed=number > 0)
    return min(steps[False].seconds), min(steps[True].seconds)


class _Steps:
    """Training steps of a copy of a model in one layout."""

    def __init__(
        self, recipe: Recipe, model: MultiTaskModel, inputs: tuple[Tensor, ...], layout: Layout
    ) -> None:
        self._model = layout.apply(copy_model(model).train())
        self._inputs = parts(layout.lay(inputs))
        self._optimizer = build_optimizer(
            recipe.train.optimizer, [{"params": list(self._model.parameters())}]
        )
        name = recipe.train.autocast
        self._autocast = torch.autocast(
            inputs[0].device.type,
            dtype=torch.float16 if name == "float16" else torch.bfloat16,
            enabled=name != "off",
        )
        self.seconds: list[float] = []

    def step(self, *, timed: bool) -> None:
        start = time.perf_counter()
        with self._autocast:
            outputs = self._model(*self._inputs)
        torch.stack([output.float().square().mean() for output in outputs.values()]).sum().backward()  # type: ignore[no-untyped-call]
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        if self._inputs[0].device.type == "cuda":
            torch.cuda.synchronize(self._inputs[0].device)
        if timed:
            self.seconds.append(time.perf_counter() - start)


def _key(recipe: Recipe, model: MultiTaskModel) -> str:
    """A name for all that a step's time depends on: network, batch, arithmetic, machine and versions."""
    device = next(model.parameters()).device
    facts: dict[str, Any] = {
        "version": VERSION,
        "network": repr(model),  # every layer with its settings
        "size": recipe.data.size,
        "batch": recipe.images_at_once,
        "optimizer": recipe.train.optimizer.name,
        "autocast": recipe.train.autocast,
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "processor": [cpu_name(), cpu_flags()],
        "versions": [compactmtl.__version__, *(metadata.version(name) for name in ("torch", "timm"))],
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:20]


def _read(path: Path) -> Layout | None:
    """What was kept for this network; None where nothing was, or what is there cannot be read."""
    try:
        values: Mapping[str, Any] = parse_json(path.read_text(encoding="utf-8"))
        plain, last = (float(value) for value in values["seconds"])
        return Layout(bool(values["channels_last"]), "kept", (plain, last))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _keep(path: Path, found: Layout) -> Layout:
    """Keep what was found, unless another process was first: then its answer is everyone's."""
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(json.dumps(asdict(found)) + "\n", "utf-8")
        try:
            if path.exists() and _read(path) is None:  # damaged
                path.unlink(missing_ok=True)
            with suppress(FileExistsError):  # a rename would replace what another process kept
                os.link(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        warnings.warn(
            f"the faster memory layout could not be kept in {path.parent} ({error.strerror}): another run of this "
            "recipe may choose differently; set train.channels_last, or XDG_CACHE_HOME to a folder that can be written",
            CompactWarning,
            stacklevel=2,
        )
    kept = _read(path)
    return found if kept is None or kept.seconds == found.seconds else kept
