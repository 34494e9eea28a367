"""The encoder and the heads of a network of the user's own: what of a recipe needs them, and how its forward calls them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_map

from compactmtl.balancing import Balancer, GradientBalancer
from compactmtl.config import Recipe
from compactmtl.data.inputs import size_of
from compactmtl.errors import ConfigError
from compactmtl.graph.borrow import borrowed
from compactmtl.models.features import tensors_in
from compactmtl.models.own import OwnModel

_NAME_ENCODER = "make it the network's submodule `encoder`, or name it: model.encoder_path=backbone"
_NAME_HEADS = "make the heads an nn.ModuleDict `heads` by task, or name them: model.head_paths"


def encoder_users(recipe: Recipe, weighing: Balancer) -> Iterator[tuple[str, str]]:
    """Keys of a recipe that need to know the encoder, each with another way to mend it, or none."""
    if recipe.sparsity is not None and recipe.sparsity.scope == "encoder":
        yield "sparsity.scope: encoder", "set sparsity.scope=model"
    over = recipe.overparam
    if over is not None and over.scope == "encoder" and over.kind != "none":
        yield "overparam.scope: encoder", "set overparam.scope=model"
    if isinstance(weighing, GradientBalancer):
        yield f"balancing.name: {recipe.balancing.name}", "choose a method that weighs losses, such as equal"
    for name in ("dgr", "weight_gradient", "pta"):
        if getattr(recipe.regularization, name) is not None:
            yield f"regularization.{name}", "leave it out"
    if recipe.distillation is not None and recipe.distillation.features is not None:
        yield "distillation.features", "leave it out"
    if recipe.train.optimizer.uneven:
        yield "train.optimizer.encoder_scale and layer_decay", "leave them at 1"
    if recipe.train.competition:
        yield "train.competition", "set it to 0"


def head_users(recipe: Recipe, weighing: Balancer) -> Iterator[str]:
    """Keys of a recipe that need to know each task's head."""
    if isinstance(weighing, GradientBalancer):
        yield f"balancing.name: {recipe.balancing.name}"
    yield from (
        f"regularization.{name}"
        for name in ("dgr", "pta")
        if getattr(recipe.regularization, name) is not None
    )


def check_parts(recipe: Recipe, model: OwnModel, weighing: Balancer, image: tuple[Tensor, ...]) -> None:
    """Raise ConfigError, naming the key, where the recipe needs parts that the network does not have or show."""
    users = list(encoder_users(recipe, weighing))
    if users and model.encoder_path is None:
        key, otherwise = users[0]
        raise ConfigError(
            f"{key} needs the encoder of the network, and model.factory's network has no submodule `encoder`",
            f"{_NAME_ENCODER}; or {otherwise}",
        )
    of_heads = list(head_users(recipe, weighing))
    if of_heads and not model.head_paths:
        raise ConfigError(
            f"{of_heads[0]} needs the head of each task, and model.factory's network shows none", _NAME_HEADS
        )
    if isinstance(weighing, GradientBalancer):
        _check_complete(model, recipe.balancing.name)
    if any(not key.startswith(("sparsity", "overparam", "train.optimizer")) for key, _ in users):
        _check_encoder_call(model, users[-1][0], image)


def _check_complete(model: OwnModel, method: str) -> None:
    """A method that combines gradients fills those of the encoder and of the heads: no other parameter would train."""
    known = {id(one) for one in model.encoder.parameters()}
    known |= {id(one) for head in model.heads.values() for one in head.parameters()}
    for name, parameter in model.network.named_parameters():
        if parameter.requires_grad and id(parameter) not in known:
            raise ConfigError(
                f"balancing.name: {method} gives gradients to the encoder ({model.encoder_path}) and the heads "
                f"({', '.join(model.head_paths.values())}), and {name} is in neither",
                "let model.encoder_path name a submodule that holds all shared layers, or choose a method that weighs losses",
            )


def _check_encoder_call(model: OwnModel, key: str, image: tuple[Tensor, ...]) -> None:
    calls = _watch(model, image)[0]
    given = (
        [leaf for leaf in tree_flatten((calls[0][0], calls[0][1]))[0] if isinstance(leaf, Tensor)]
        if calls
        else []
    )
    # Of several inputs the encoder may read what it likes.
    alone = len(image) > 1 or (len(given) == 1 and torch.equal(given[0], image[0]))
    if len(calls) != 1 or not alone or not tensors_in(calls[0][2]):
        how = f"calls it {len(calls)} times" if len(calls) != 1 else "does not call it with the images alone"
        raise ConfigError(
            f"{key} needs the encoder's features, and the forward of model.factory's network {how} "
            f"({model.encoder_path})",
            "let the forward call the encoder once, as encoder(image), and have it give a tensor, or a list or dict of them",
        )


Call = tuple[tuple[Any, ...], dict[str, Any], Any]


def _watch(
    model: OwnModel, image: tuple[Tensor, ...]
) -> tuple[list[Call], dict[str, list[Call]], dict[str, Tensor]]:
    """The calls of the encoder and of each head in one forward, and the outputs."""
    calls: list[Call] = []
    of_heads: dict[str, list[Call]] = {task: [] for task in model.head_paths}
    handles = []

    def keep(into: list[Call]) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            into.append((args, kwargs, output))

        return hook

    for module, into in [
        (model.encoder, calls),
        *((head, of_heads[task]) for task, head in (model.heads.items() if model.head_paths else ())),
    ]:
        handles.append(module.register_forward_hook(keep(into), with_kwargs=True))
    try:
        with borrowed(model):
            outputs = model(*image)
            # Copies: what hangs on the modules is put back as it was, these lists too.
            return list(calls), {task: list(of_one) for task, of_one in of_heads.items()}, outputs
    finally:
        for handle in handles:
            handle.remove()


class _Feature:
    """In place of the feature tensor of this number."""

    def __init__(self, number: int) -> None:
        self.number = number


class CalledHead(nn.Module):
    """A head of the user's own, called as head(features, (H, W)) as a recipe's heads are."""

    needs = "pyramid"  # it picks what it reads itself

    def __init__(self, head: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """`args` and `kwargs` are those of its own call, with a `_Feature` for each feature tensor."""
        super().__init__()
        self.head = head
        self._call = (args, kwargs)

    def forward(self, features: Any, size: tuple[int, int] | None = None) -> Tensor:
        tensors = tensors_in(features)
        args, kwargs = tree_map(
            lambda leaf: tensors[leaf.number] if isinstance(leaf, _Feature) else leaf, self._call
        )
        return self.head(*args, **kwargs)  # type: ignore[no-any-return]


def called_heads(model: OwnModel, image: tuple[Tensor, ...]) -> dict[str, nn.Module]:
    """The heads of `model` for what calls them apart from its forward: dummy heads and pseudo-tasks.

    Raises ConfigError for a head that reads anything but the encoder's features, or whose output the forward changes.
    """
    encoder_calls, of_heads, outputs = _watch(model, image)
    numbers = {id(tensor): number for number, tensor in enumerate(tensors_in(encoder_calls[0][2]))}
    size = size_of(image)
    heads: dict[str, nn.Module] = {}
    for task, calls in of_heads.items():
        path = model.head_paths[task]
        if len(calls) != 1:
            raise ConfigError(
                f"model.head_paths.{task}: the forward calls {path} {len(calls)} times",
                "let it call the head once",
            )
        args, kwargs, output = calls[0]
        stranger = next(
            (
                leaf
                for leaf in tree_flatten((args, kwargs))[0]
                if isinstance(leaf, Tensor) and id(leaf) not in numbers
            ),
            None,
        )
        if stranger is not None:
            raise ConfigError(
                f"model.head_paths.{task}: {path} is called with a tensor {tuple(stranger.shape)} that is none of the "
                f"encoder's features ({model.encoder_path})",
                "dummy heads read the encoder's features alone: let the head hold what lies between, or leave out "
                "regularization.dgr and regularization.pta",
            )
        if not isinstance(output, Tensor) or not torch.equal(output, outputs[task]):
            raise ConfigError(
                f"model.head_paths.{task}: the forward changes what {path} gives before it returns it",
                f"let the head give the output itself, at the size {size}, or leave out regularization.dgr and "
                "regularization.pta",
            )
        args, kwargs = tree_map(
            lambda leaf: _Feature(numbers[id(leaf)]) if isinstance(leaf, Tensor) else leaf, (args, kwargs)
        )
        heads[task] = CalledHead(model.heads[task], args, kwargs)
    return heads
