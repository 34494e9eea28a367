"""A network of the user's own, built whole by a function that the recipe names (`model.factory`).

Its forward takes the images (B, C, H, W), or the inputs that the recipe names by those names (`data.inputs`), and gives its
outputs by name. What lies in it is not known, unless it has an
encoder and heads, as submodules of these names or under paths that the recipe gives.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_map

from compactmtl.config.lookup import close_names
from compactmtl.config.model import ModelConfig
from compactmtl.data.inputs import Images, parts
from compactmtl.errors import ConfigError
from compactmtl.models.features import encoder_of, tensors_in
from compactmtl.models.multitask import MultiTaskModel
from compactmtl.models.user_code import construct

NETWORK = "network"  # the submodule that is the user's module: parameters are named `network.…`
KEY = "model.factory"


class OwnModel(MultiTaskModel):
    """A module of the user's own as a multi-task network: image (B, C, H, W) to {task: output}, in the order of `tasks`.

    Where the recipe names its inputs it takes one tensor each, in their order. `encoder` and `heads` are there where the module has them. The forward pass is always the module's own.
    """

    def __init__(
        self, network: nn.Module, tasks: Sequence[str], config: ModelConfig, inputs: Sequence[str] = ()
    ) -> None:
        """`network` is what the factory of `config` gave, `inputs` the names that its forward is called with, if any.

        Raises ConfigError for a path that it does not have, or a name that it does not take.
        """
        nn.Module.__init__(self)
        _check_inputs(network, inputs)
        self.network = network
        self.input_names = tuple(inputs)
        self._tasks = self._all_tasks = tuple(tasks)
        self._outputs = config.outputs
        self.encoder_path = _encoder_path(network, config)
        self.head_paths = self._head_paths = _head_paths(network, tasks, config)

    def __getattr__(self, name: str) -> Any:
        own = self.__dict__  # while the module is copied, nothing may be there yet
        if name == "encoder" and own.get("encoder_path") is not None:
            return self.network.get_submodule(own["encoder_path"])
        if name == "heads" and own.get("head_paths"):
            return {task: self.network.get_submodule(path) for task, path in own["head_paths"].items()}
        return super().__getattr__(name)

    @property
    def task_names(self) -> tuple[str, ...]:
        return self._tasks

    def keep_tasks(self, names: Iterable[str]) -> OwnModel:
        """Give the outputs of these tasks alone, in place. The module stays whole: its own forward calls all of it."""
        self._tasks = tuple(names)
        self.head_paths = {task: path for task, path in self._head_paths.items() if task in self._tasks}
        return self

    @property
    def head_prefixes(self) -> tuple[str, ...]:
        """What the names of the heads' parameters begin with."""
        return tuple(f"{NETWORK}.{path}." for path in self.head_paths.values())

    def forward(self, image: Tensor, *others: Tensor) -> dict[str, Tensor]:
        if self.input_names:
            raw = self.network(**dict(zip(self.input_names, (image, *others), strict=True)))
        else:
            raw = self.network(image)
        given = named_outputs(raw, self._outputs)
        check_names(given, self.task_names, (*self._outputs, *self._all_tasks))
        return {task: given[task] for task in self.task_names}

    def pass_through(
        self, image: Images, cut: Callable[[Tensor], Tensor] = lambda x: x
    ) -> tuple[Any, dict[str, Tensor]]:
        """The encoder's features and the outputs; None for the features of a module without an encoder.

        Features are the tensor that the encoder gives, or a list of the tensors in what it gives. `cut` is applied to each
        before the module goes on with it.
        """
        if self.encoder_path is None:
            return None, self(*parts(image))
        seen: list[Any] = []

        def keep(module: nn.Module, args: Any, output: Any) -> Any:
            seen.append(tree_map(lambda leaf: cut(leaf) if isinstance(leaf, Tensor) else leaf, output))
            return seen[-1]

        handle = self.encoder.register_forward_hook(keep)
        try:
            outputs = self(*parts(image))
        finally:
            handle.remove()
        features = seen[-1] if seen else []
        return (features if isinstance(features, Tensor) else tensors_in(features)), outputs

    def features(self, image: Images) -> Any:
        return self.pass_through(image)[0]

    def run_head(self, name: str, features: Any, size: tuple[int, int]) -> Tensor:
        raise NotImplementedError(
            "the heads of a module of one's own run in its own forward: use pass_through"
        )


def build_own(config: ModelConfig, tasks: Sequence[str], inputs: Sequence[str] = ()) -> OwnModel:
    """The network that the factory of `config` gives, in training mode; `inputs` are the recipe's, where it names them.

    Raises UntrustedError without the user's word for the code, ConfigError where the factory cannot be imported, does not
    take the options, fails, or gives anything but a network that takes the inputs.
    """
    assert config.factory is not None
    network = construct(config.factory, KEY, "model.options", config.options)
    meta = next((name for name, one in _tensors(network) if one.is_meta), None)
    if meta is not None:
        raise ConfigError(
            f"{KEY}: {config.factory} leaves {meta} on the meta device, without values",
            "build the network on one real device; train.device then says where it trains",
        )
    devices = {str(one.device): name for name, one in _tensors(network)}
    if len(devices) > 1:
        places = ", ".join(f"{name} on {device}" for device, name in sorted(devices.items()))
        raise ConfigError(
            f"{KEY}: {config.factory} puts its network on {len(devices)} devices: {places}",
            "build all of it on the CPU; train.device says where it trains",
        )
    return OwnModel(network, tasks, config, inputs).train()


def _check_inputs(network: nn.Module, names: Sequence[str]) -> None:
    """Raise ConfigError unless the network's forward can be called with these names, or, without any, with one image."""
    try:
        signature = inspect.signature(network.forward)
    except (TypeError, ValueError):  # of a compiled module: what it does not take, it says when it is called
        return
    takes = [
        one.name
        for one in signature.parameters.values()
        if one.kind in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY)
    ]
    try:
        signature.bind(**dict.fromkeys(names)) if names else signature.bind(None)
    except TypeError as error:
        given = f"is called with {', '.join(names)}" if names else "is called with the images alone"
        raise ConfigError(
            f"{KEY}: the forward of the network takes {', '.join(takes) or 'no arguments by name'}, and {given}: {error}",
            "name the inputs as forward does: data.inputs={"
            + ", ".join(f"{one}: {{}}" for one in takes)
            + "}",
        ) from None


def _encoder_path(network: nn.Module, config: ModelConfig) -> str | None:
    path = config.encoder_path
    if path is None:
        return None if encoder_of(network) is None else "encoder"
    _check_path(network, path, "model.encoder_path")
    return path


def _head_paths(network: nn.Module, tasks: Sequence[str], config: ModelConfig) -> dict[str, str]:
    """The heads by task; empty unless every task has one."""
    for task, path in config.head_paths.items():
        _check_path(network, path, f"model.head_paths.{task}")
    heads = getattr(network, "heads", None)
    offered = set(heads) if isinstance(heads, nn.ModuleDict) else set()
    paths = {task: f"heads.{task}" for task in tasks if task in offered} | dict(config.head_paths)
    if missing := [task for task in tasks if task not in paths]:
        if config.head_paths:
            raise ConfigError(
                f"model.head_paths: {', '.join(missing)} has no head there",
                "name the head of every task, or of none",
            )
        return {}
    return {task: paths[task] for task in tasks}


def _check_path(network: nn.Module, path: str, key: str) -> None:
    known = [name for name, _ in network.named_modules() if name]
    if path not in known:
        near = close_names(path, known)
        top = [name for name, _ in network.named_children()]
        raise ConfigError(
            f"{key}: the network has no submodule {path!r}",
            f"did you mean {' or '.join(near)}?"
            if near
            else f"its submodules are {', '.join(top) or 'none'}",
        )


def named_outputs(given: Any, names: Sequence[str]) -> Mapping[str, Any]:
    """What a forward gave, by name. Raises ConfigError where the names are not known."""
    if isinstance(given, Mapping):
        return given
    if isinstance(given, tuple) and hasattr(given, "_asdict"):
        named: dict[str, Any] = given._asdict()
        return named
    several = isinstance(given, list | tuple)
    parts = list(given) if several else [given]
    if not names or not (several or isinstance(given, Tensor)):
        what = f"a {type(given).__name__} of {len(parts)}" if several else f"a {type(given).__name__}"
        raise ConfigError(
            f"{KEY}: the forward of the network gives {what}, and outputs need names",
            "return a dict {task: tensor}, or name what it gives in order: model.outputs: [segmentation, depth]"
            if several or isinstance(given, Tensor)
            else "return a dict {task: tensor}",
        )
    if len(parts) != len(names):
        raise ConfigError(
            f"model.outputs names {len(names)} outputs, and the forward of the network gives {len(parts)}",
            "name each of them, in order; those that are no tasks are left aside",
        )
    return dict(zip(names, parts, strict=True))


def check_names(given: Mapping[str, Any], tasks: Sequence[str], names: Sequence[str]) -> None:
    """Raise ConfigError unless every task has an output, and every output is a task's or named in `model.outputs`."""
    gives = ", ".join(map(str, given)) or "none"
    if missing := [task for task in tasks if task not in given]:
        raise ConfigError(
            f"{KEY}: the network gives no output {missing[0]!r}: its outputs are {gives}, the tasks {', '.join(tasks)}",
            "name the tasks as the outputs are named (a target of another name: tasks.NAME.target), or the outputs as the "
            "tasks are",
        )
    if extra := [str(name) for name in given if name not in tasks and name not in names]:
        raise ConfigError(
            f"{KEY}: the network gives {', '.join(extra)}, which is no task of {', '.join(tasks)}",
            f"add the task, or leave the output aside: model.outputs=[{','.join(map(str, given))}]",
        )


def _tensors(network: nn.Module) -> list[tuple[str, Tensor]]:
    """Parameters and buffers by name."""
    return [*network.named_parameters(), *network.named_buffers()]
