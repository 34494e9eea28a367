"""A Shrinking in the loop of another library, which builds the optimizer and restores checkpoints itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils._pytree import tree_map

from compactmtl.errors import ConfigError, TrainingError
from compactmtl.loops.shrinking import Shrinking
from compactmtl.sparsity import LatencyTable


class Guest:
    """Builds the Shrinking when network and optimizer are there, and keeps the state of a checkpoint until then."""

    def __init__(
        self, example_inputs: Any, module: str, arguments: Mapping[str, Any], registration: str
    ) -> None:
        self._inputs = example_inputs
        self._module = module
        self._arguments = dict(arguments)
        self._registration = registration
        self._shrinking: Shrinking | None = None
        self._saved: Mapping[str, Any] | None = None

    @property
    def shrinking(self) -> Shrinking:
        if self._shrinking is None:
            raise TrainingError(
                "the training has not begun, so nothing shrinks yet", f"train with {self._registration}"
            )
        return self._shrinking

    def start(self, model: nn.Module, optimizer: Optimizer, count_steps: Callable[[], int]) -> None:
        """Build it, in the state of the checkpoint where there is one. Raises as Shrinking does."""
        if self._shrinking is not None:
            raise TrainingError(
                "this callback has shrunk a network already",
                "build network, trainer and callback anew for another training, also for one that goes on",
            )
        try:
            network = model.get_submodule(self._module)
        except AttributeError as error:
            children = ", ".join(name for name, _ in model.named_children())
            raise ConfigError(
                f"{type(model).__name__} has no module {self._module!r}", f"its modules are {children}"
            ) from error
        first = next(network.parameters(), None)
        if first is None:
            raise ConfigError(
                f"{type(network).__name__} has no parameters", "name the network's own module: module='net'"
            )
        arguments = {"total_steps": None, **self._arguments}
        if arguments["total_steps"] is None:
            arguments["total_steps"] = count_steps()
        if self._saved is not None and self._saved.get("table"):
            # the choice goes by the table of the start: nothing is measured again
            arguments["table"] = LatencyTable.from_json(self._saved["table"], "the saved state's table")
        shrinking = Shrinking(network, optimizer, _moved(self._inputs, first.device), **arguments)
        if self._saved is not None:
            shrinking.load_state_dict(self._saved)
        self._shrinking, self._saved = shrinking, None

    def end_epochs(self, done: int) -> None:
        """Epochs that are over by now, of which some were counted."""
        while self.shrinking.epochs < done:
            self.shrinking.end_epoch()

    def state_dict(self) -> dict[str, Any]:
        """Empty before the start."""
        return {} if self._shrinking is None else self._shrinking.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """For the start that follows."""
        self._saved = dict(state) or None


def _moved(inputs: Any, device: torch.device) -> Any:
    return tree_map(lambda leaf: leaf.to(device) if isinstance(leaf, Tensor) else leaf, inputs)
