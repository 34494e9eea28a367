"""What a recipe would cost, before anything is written: shapes, parameters, MACs, memory, one batch timed."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from compactmtl.backends import load_target
from compactmtl.config import Recipe
from compactmtl.data.base import Batch
from compactmtl.data.inputs import given, parts, to_device
from compactmtl.errors import ConfigError
from compactmtl.graph import cost
from compactmtl.latency import require
from compactmtl.overparam import OverparamLayer, factorized_layers
from compactmtl.overparam.layer import Price
from compactmtl.runs.model import example_inputs, plain_form
from compactmtl.sparsity import LatencyTable
from compactmtl.train.build import build_session
from compactmtl.train.faults import explained
from compactmtl.train.layout import choose
from compactmtl.train.machine import torch_settings
from compactmtl.train.norms import train_mode
from compactmtl.train.session import Session
from compactmtl.train.sparse import Foreseen


@dataclass(frozen=True)
class Evaluated:
    """How an over-parameterized layer is evaluated on the batch, and the MACs of its two ways."""

    layer: str
    way: str  # contract or sequence
    price: Price


@dataclass(frozen=True)
class DryRun:
    """What one batch of a recipe showed. Bytes are of training; `seconds` is the faster of two steps."""

    samples: dict[str, int]  # split -> samples
    data: tuple[str, ...]  # notes on the data that training would print at its start
    input: tuple[int, ...]  # (B, 3, H, W); of several inputs the first picture
    inputs: dict[str, tuple[int, ...]]  # by name, as the network takes them
    outputs: dict[str, tuple[int, ...]]  # task -> shape
    parameters: int  # of the deployed (plain) model
    trained_parameters: int  # of the model while it trains, factors included
    macs: int  # of the deployed model for one image
    weight_bytes: int
    gradient_bytes: int
    optimizer_bytes: int
    activation_bytes: (
        int  # what backward needs of the images that pass at once; a block that is computed again apart
    )
    losses: dict[str, float]
    seconds: float
    steps_per_epoch: int
    total_steps: int
    evaluated: tuple[Evaluated, ...] = ()  # in the order of the forward pass
    encoder_passes: int = 1  # one a task where each has a weight of its own
    diagonal_seconds: float = 0.0  # of a step of pass 1, where there is one
    diagonal_steps: int = 0
    remaining: Foreseen | None = None  # of a sparse recipe with a target, about
    notes: tuple[str, ...] = ()  # on its channel groups
    layout: tuple[str, ...] = ()  # a line on the memory layout, where it was measured

    @property
    def left(self) -> Foreseen | None:
        """Deprecated: `remaining`."""
        warnings.warn("DryRun.left is deprecated: use DryRun.remaining", DeprecationWarning, stacklevel=2)
        return self.remaining

    @property
    def total_bytes(self) -> int:
        return self.weight_bytes + self.gradient_bytes + self.optimizer_bytes + self.activation_bytes

    @property
    def hours(self) -> float:
        """Predicted training time, validation apart."""
        return (self.total_steps * self.seconds + self.diagonal_steps * self.diagonal_seconds) / 3600


def check_recipe(recipe: Recipe) -> None:
    """Build a recipe's session and throw it away. Raises what training would raise at its start.

    No latency is measured, which can take minutes: whether a budget can be met is told when its training starts.
    """
    recipe = _without_measuring(_light(recipe))
    with torch_settings(recipe), explained(recipe):
        build_session(recipe, fill=False)


def expected_cost(recipe: Recipe) -> tuple[float, float] | None:
    """MACs for one image and parameters of the network that training will leave, about, before it has begun.

    None where that is not known: of a sparse recipe whose λ has no target, or whose budget of latency would have to be
    measured first. Raises what training would raise at its start.
    """
    if _without_measuring(recipe) is not recipe:
        return None
    recipe = _light(recipe)
    with torch_settings(recipe), explained(recipe):
        session = build_session(recipe, fill=False)
        if session.sparsifier is not None:
            remaining = session.sparsifier.foreseen()
            return None if remaining is None else (remaining.macs, remaining.parameters)
        plain = plain_form(recipe, session.model)
        deployed = cost(plain, tuple(one.to(session.device) for one in example_inputs(recipe)))
    return float(deployed.macs), float(deployed.parameters)


def measured_table(recipe: Recipe) -> LatencyTable:
    """The latency table of a recipe's budget, measured or from the cache, as training would make it at its start.

    Raises what training would raise at its start.
    """
    recipe = _light(recipe)
    with torch_settings(recipe), explained(recipe):
        sparsifier = build_session(recipe, fill=False).sparsifier
    if sparsifier is None or sparsifier.steering.table is None:
        raise ConfigError("the recipe has no latency budget", "give sparsity.selective.latency a limit")
    return sparsifier.steering.table


def _light(recipe: Recipe) -> Recipe:
    """The recipe without a cache of its data and without processes that load it."""
    data = recipe.data.model_copy(update={"cache": "none", "workers": 0})
    return recipe.model_copy(update={"data": data})


def _without_measuring(recipe: Recipe) -> Recipe:
    """The recipe with a share of MACs in place of a latency budget that would have to be measured."""
    sparsity = recipe.sparsity
    if sparsity is None or sparsity.section is None or sparsity.target is None:
        return recipe
    section = sparsity.target
    if section.latency is None or section.latency.table is not None:
        return recipe
    require(load_target(section.latency.target or ""), section.latency.target or "")
    instead = section.model_copy(update={"latency": None, "mac_reduction": 0.01})
    return recipe.model_copy(update={"sparsity": sparsity.model_copy(update={sparsity.section: instead})})


def dry_run(recipe: Recipe) -> DryRun:
    """Build a recipe's session, train it on one batch and throw it away; nothing is written.

    Raises what training would raise at its start.
    """
    recipe = _light(recipe)
    with torch_settings(recipe), explained(recipe):
        session = build_session(recipe, layout=partial(choose, recipe, keep=False), fill=False)
        plain = plain_form(recipe, session.model)
        deployed = cost(plain, tuple(one.to(session.device) for one in example_inputs(recipe)))
        sparsifier = session.sparsifier
        remaining = sparsifier.foreseen() if sparsifier else None
        notes = tuple(sparsifier.notes()) if sparsifier else ()
        batch = next(iter(session.train_loader))
        train_mode(session.model, recipe)
        with _watching(session.model) as evaluated:
            activations, losses = _activation_bytes(session, batch)
        seconds = min(_step_seconds(session, batch) for _ in range(2))
        diagonal_seconds = min(_diagonal_seconds(session, batch) for _ in range(2))
        shapes = [tuple(one.shape) for one in parts(given(batch))]
        session.model.eval()
        with torch.no_grad():
            outputs = session.model(*parts(to_device(given(batch), session.device)))
    state = session.optimizer.state.values()
    parameters = list(session.model.parameters())
    return DryRun(
        samples=session.samples,
        data=session.data.notes,
        layout=session.layout.notes(),
        input=tuple(batch["image"].shape),
        inputs=dict(zip(recipe.data.given, shapes, strict=True)),
        outputs={name: tuple(output.shape) for name, output in outputs.items()},
        parameters=deployed.parameters,
        trained_parameters=sum(parameter.numel() for parameter in parameters),
        macs=deployed.macs,
        weight_bytes=sum(
            _bytes(one.state_dict().values()) for one in {session.model, session.deployed}
        ),  # and of their average
        gradient_bytes=_bytes(parameters),
        optimizer_bytes=sum(_bytes(v for v in values.values() if isinstance(v, Tensor)) for values in state),
        activation_bytes=activations,
        losses=losses,
        seconds=seconds,
        steps_per_epoch=session.steps_per_epoch,
        total_steps=session.total_steps,
        evaluated=tuple(evaluated),
        remaining=remaining,
        notes=notes,
        diagonal_seconds=diagonal_seconds,
        diagonal_steps=session.diagonals.total_steps if session.diagonals else 0,
        encoder_passes=len(session.tasks) if recipe.overparam and recipe.overparam.per_task else 1,
    )


@contextmanager
def _watching(model: nn.Module) -> Iterator[list[Evaluated]]:
    """What each over-parameterized layer is called with for a while."""
    evaluated: list[Evaluated] = []
    handles = []
    for name, layer in factorized_layers(model).items():

        def note(module: nn.Module, args: tuple[Tensor, ...], name: str = name) -> None:
            assert isinstance(module, OverparamLayer)
            with torch.no_grad():
                evaluated.append(Evaluated(name, module.way(args[0].shape), module.price(args[0].shape)))

        handles.append(layer.register_forward_pre_hook(note))
    try:
        yield evaluated
    finally:
        for handle in handles:
            handle.remove()


def _activation_bytes(session: Session, batch: Batch) -> tuple[int, dict[str, float]]:
    """Bytes that autograd keeps for the backward pass of the images that pass at once, parameters apart; and the losses."""
    own = {tensor.untyped_storage().data_ptr() for tensor in session.model.state_dict().values()}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        losses, _ = session.forward(session.parts_of(batch)[-1])  # the largest where they differ
    if session.recipe.train.accumulate > 1:
        losses, _ = session.forward(batch)
    return sum(kept.values()), {name: float(loss.detach()) for name, loss in losses.items()}


def _step_seconds(session: Session, batch: Batch) -> float:
    start = time.perf_counter()
    _, total = session.forward(batch)
    session.update(total)
    if session.device.type == "cuda":
        torch.cuda.synchronize(session.device)
    return time.perf_counter() - start


def _diagonal_seconds(session: Session, batch: Batch) -> float:
    if session.diagonals is None:
        return 0.0
    start = time.perf_counter()
    with session.diagonals.training():
        session.diagonals.update(session, batch)
    if session.device.type == "cuda":
        torch.cuda.synchronize(session.device)
    return time.perf_counter() - start


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
