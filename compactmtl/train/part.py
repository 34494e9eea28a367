"""What a part of a training step is: the hooks that a step calls, what it hands them, and what a part is built from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol, TypeVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from compactmtl.balancing import Balancer
from compactmtl.config import Recipe
from compactmtl.data.base import Batch
from compactmtl.data.inputs import Images, image_of
from compactmtl.data.loader import Loader
from compactmtl.models import MultiTaskModel
from compactmtl.sparsity import LatencyTable
from compactmtl.surgery.slice_plan import Kept
from compactmtl.tasks import Task

P = TypeVar("P", bound="Part")


@dataclass
class Position:
    """Where training is: the epoch in progress, its batches done, and optimizer steps done in all.

    With all batches of an epoch done its validation is still to come.
    """

    epoch: int = 1
    batch: int = 0
    step: int = 0


@dataclass
class ForwardPass:
    """One forward pass of a batch, to which parts add before the backward pass.

    `features` are as the heads read them; empty of a batch that passed in parts, whose penalties are there at once. `total`, a scalar, is what the backward pass follows; it is there once the
    losses are balanced. `penalties` are in it, beside the balanced losses. `head_parameters` are those of heads that a
    part added to a task's own. `taught` are a teacher's features, where a part has them already.
    """

    batch: Batch
    inputs: Images  # what the model was given: images (B, 3, H, W) on its device, or a tensor for each of its inputs
    features: Any
    outputs: dict[str, Tensor]  # task -> raw output
    targets: dict[str, Tensor]
    losses: dict[str, Tensor]  # task -> scalar
    total: Tensor | None = None
    penalties: dict[str, Tensor] = field(default_factory=dict)
    head_parameters: dict[str, list[nn.Parameter]] = field(default_factory=dict)
    taught: Any = None

    @property
    def image(self) -> Tensor:
        """The images, (B, 3, H, W); of several inputs the first picture."""
        return image_of(self.inputs)


class Training(Protocol):
    """What a part may use of the training that it is in."""

    @property
    def model(self) -> MultiTaskModel: ...

    @property
    def optimizer(self) -> Optimizer: ...

    @property
    def tasks(self) -> Mapping[str, Task]: ...

    @property
    def position(self) -> Position: ...

    @property
    def scaler(self) -> torch.amp.GradScaler: ...

    @property
    def held_out(self) -> Loader:
        """The held-out part of the training split, whole and in order, where bounds on tasks are watched on it."""

    def part(self, kind: type[P]) -> P | None:
        """The training's part of a class, if it has one."""

    def autocast(self) -> AbstractContextManager[Any]:
        """The recipe's mixed precision for forward passes."""

    def batches(self, order: int, first: int, last: int) -> Iterator[Batch]:
        """Training batches `first` to `last` (not included) of the data in the order of epoch number `order`."""

    def image(self, batch: Batch) -> Images:
        """A batch's images as the model takes them, (B, 3, H, W) on its device; or its inputs."""

    def forward_pass(self, batch: Batch) -> ForwardPass:
        """A forward pass with each task's loss; nothing is balanced."""

    def repeat(self, batch: Batch) -> None:
        """Replace the gradients by those of another forward and backward pass of the batch."""

    def rebind(self, kept: Kept) -> None:
        """The model and the optimizer were cut in place: of the parameters only the indices `kept` are left."""


class Part:
    """One method's share of a training step. Every hook does nothing until a part overrides it.

    A step calls, for all parts in the order of `compactmtl.train.parts`:

        before_forward, [forward pass, in each forward_context], after_forward, before_backward, [backward pass], after_backward,
        [gradient clipping, optimizer step], after_step

    `name` is the key of the part's state in checkpoints, empty for a part without state. `logs` is the key under which
    log.jsonl has what `report` says, empty for a part that reports nothing.
    """

    name: ClassVar[str] = ""
    logs: ClassVar[str] = ""

    undecayed: frozenset[str] = frozenset()  # names of parameters that get no weight decay
    learned: nn.Module | None = None  # further parameters for the optimizer
    penalties: tuple[str, ...] = ()  # names of what it puts into `ForwardPass.penalties`, for the log
    nested: int = (
        0  # how often a sum over the batch is taken of what follows from another one in its penalties
    )

    @property
    def eligible(self) -> bool:
        """Whether the model as it is now may become the best checkpoint."""
        return True

    def attach(self, optimizer: Optimizer) -> None:
        """Once, when the optimizer is built and before the first step."""

    def forward_context(self, batch: Batch) -> AbstractContextManager[None]:
        """What the model's pass over a batch happens in."""
        return nullcontext()

    def before_forward(self, image: Images) -> Images:
        """The image, or the inputs, that the model is given, on its device."""
        return image

    def after_forward(self, training: Training, current: ForwardPass) -> None:
        """Add to the tasks' losses. Also called for passes that are not followed by a backward pass."""

    def penalize(self, training: Training, current: ForwardPass) -> None:
        """Put those penalties that need no balanced loss into `current.penalties`, unless they are there.

        For a batch that passes in parts it is called after each part's forward pass.
        """

    def before_backward(self, training: Training, current: ForwardPass) -> None:
        """Add to `current.total`, or set it. What a part puts into `current.penalties` before that, the balancer adds."""

    def after_backward(self, training: Training, batch: Batch) -> None:
        """The gradients are there, without float16's scale and before they are clipped."""

    def after_step(self, training: Training, batch: Batch) -> None:
        """The weights have moved; not called where float16's scaler skipped the step for an overflow."""

    def before_validation(self, training: Training, model: MultiTaskModel) -> None:
        """An epoch's steps are done, and `model` is about to be validated. Once more where validation was interrupted."""

    def end_epoch(self, training: Training) -> None:
        """After the epoch's validation and before its checkpoint `last`."""

    def rebind(self, model: MultiTaskModel, kept: Kept) -> None:
        """The model was cut in place: of its parameters the indices `kept` are left."""

    def report(self) -> Mapping[str, Any]:
        """For the epoch's line of the log; see `logs`."""
        return {}

    def said(self) -> list[str]:
        """What a user should know of the steps since this was last asked, in lines."""
        return []

    def state_dict(self) -> Any:
        """All that a resumed run needs, loadable with weights_only=True; of the network at its first size."""
        return {}

    def load_state_dict(self, training: Training, state: Any) -> None:
        """The inverse of `state_dict`."""


@dataclass(frozen=True)
class Setup:
    """What parts are built from."""

    recipe: Recipe
    tasks: Mapping[str, Task]
    model: MultiTaskModel
    balancer: Balancer
    device: torch.device
    inputs: tuple[Tensor, ...]  # example inputs on the device, (1, 3, H, W)
    steps_per_epoch: int
    total_steps: int
    shares: Mapping[str, float] = field(default_factory=dict)  # of several data sets, of the training images
    table: LatencyTable | None = None  # that of a run that goes on; none: as the recipe says
