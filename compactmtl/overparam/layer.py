"""What every layer does that is trained in another form than it is deployed in: contract, evaluate, cache.

Shape suffixes: B batch, O output channels, I input channels (of one convolution group), g convolution groups,
kh and kw of the kernel, r rank (of one convolution group), T tasks with a diagonal of their own.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from compactmtl.overparam.geometry import Axes, Geometry, Plain

FactorDims = dict[int, tuple[str, int]]
Evaluation = Literal["auto", "contract", "sequence"]

DIAGONAL = "M"  # name of the parameter that holds the diagonals, in every form that has them

# A MAC of a thin convolution, or of the product with its copies, takes about this many times as long as one of the
# whole convolution: measured on CPU cores with AVX-512 for 64 to 512 channels, forward and backward.
DETOUR_COST = 1.3
UNMEASURED_COST = 1.0  # on other devices, where nothing was measured: MACs alone decide

_steps = [0]  # of all optimizers: fused ones change parameters without counting up their versions


def _count_step(*_: Any) -> None:
    _steps[0] += 1


register_optimizer_step_post_hook(_count_step)


_LINEAR = ("in_features", "out_features")
_CONVOLUTION = (
    "in_channels",
    "out_channels",
    "kernel_size",
    "stride",
    "padding",
    "dilation",
    "groups",
    "padding_mode",
)


@dataclass(frozen=True)
class Stage:
    """One convolution of a layer that is evaluated in sequence: weight (out, in, kh, kw), where its kernel lies."""

    name: str
    weight: Tensor
    axes: Axes
    groups: int


@dataclass(frozen=True)
class Price:
    """MACs of one forward pass of a layer, contracted (the product and one convolution) and in sequence."""

    product: int
    plain: int
    sequence: int | None  # none where the layer has no such form
    detour: float = DETOUR_COST  # see there; of the layer's device

    @property
    def choice(self) -> Literal["contract", "sequence"]:
        """The cheaper evaluation while training."""
        if self.sequence is None or self.product + self.plain / self.detour <= self.sequence:
            return "contract"
        return "sequence"


class OverparamLayer(nn.Module, ABC):
    """A layer in training form. It computes what the plain layer with the weight `weight` computes.

    `factor_dims` says which dimension of which parameter carries a dimension of the plain weight: a zero slice of
    the one is an exactly zero slice of the other.
    """

    factor_dims: ClassVar[FactorDims] = {}

    def __init__(self, plain: Plain, rank: int) -> None:
        super().__init__()
        self.geometry = Geometry.of(plain)
        for name in _LINEAR if isinstance(plain, nn.Linear) else _CONVOLUTION:  # others' code reads them
            setattr(self, name, getattr(plain, name))
        self.rank = rank
        self.bias = plain.bias
        self.evaluation: Evaluation = "auto"
        # what the parameters were, the weight, and the parameters themselves, so that no other takes their id
        self._cache: tuple[tuple[object, ...], Tensor, tuple[Tensor, ...]] | None = None
        self._choices: dict[tuple[int, ...], str] = {}
        self.train(plain.training)

    @abstractmethod
    def product(self) -> Tensor:
        """The contracted weight (O, I, kh, kw), differentiable."""

    @abstractmethod
    def product_macs(self) -> int:
        """MACs of `product`, whatever the batch."""

    def stages(self) -> list[Stage]:
        """The same function as plain convolutions in a row without a bias between; empty where there is no such form."""
        return []

    @property
    def diagonals(self) -> nn.Parameter | None:
        """M (T, ·), a diagonal a task or one for all; none where the form has none."""
        return self._parameters.get(DIAGONAL)

    def factors(self) -> dict[str, nn.Parameter]:
        """The parameters that the weight is made of, by name."""
        return {name: parameter for name, parameter in self.named_parameters() if name != "bias"}

    @property
    def weight(self) -> Tensor:
        """The contracted weight in the plain layer's shape, in the parameters' own precision also under autocast."""
        with torch.autocast(next(self.parameters()).device.type, enabled=False):
            return self.product().view(self.geometry.weight_shape())

    def forward(self, x: Tensor) -> Tensor:
        """What the plain layer gives for x, (B, g·I, H, W) or, for a linear layer, (..., I)."""
        if not torch.is_grad_enabled() and not self.training:
            return self.geometry.apply(x, self._contracted_weight(), self.bias)
        if self.way(x.shape) == "sequence":
            return self.run_stages(x)
        return self.geometry.apply(x, self.weight, self.bias)

    def run_stages(self, x: Tensor) -> Tensor:
        """The function by its stages."""
        stages = self.stages()
        for stage in stages:
            bias = self.bias if stage is stages[-1] else None
            x = self.geometry.apply(x, stage.weight, bias, stage.axes, stage.groups)
        return x

    def price(self, shape: Sequence[int]) -> Price:
        """MACs of the ways to evaluate an input of `shape`, in any precision and with gradients alike in proportion."""
        geometry = self.geometry
        batch, size, output = geometry.positions(shape)
        kernel = geometry.kernel[0] * geometry.kernel[1]
        plain = batch * output[0] * output[1] * geometry.out * geometry.inner * kernel
        sequence, stages = None, self.stages()
        if stages:
            sequence = 0
            for stage in stages:
                # a stage before the one with the vertical (horizontal) stride sees the map at its input height (width)
                size = (
                    output[0] if "h" in stage.axes else size[0],
                    output[1] if "w" in stage.axes else size[1],
                )
                sequence += batch * size[0] * size[1] * stage.weight.numel()
        on_cpu = next(self.parameters()).device.type == "cpu"
        return Price(self.product_macs(), plain, sequence, DETOUR_COST if on_cpu else UNMEASURED_COST)

    def contracted(self, keep_factors_below: float | None = None) -> nn.Module:
        """The plain layer with exactly the weight that forward uses.

        With `keep_factors_below` the stages as plain layers in an nn.Sequential instead, where they need less than
        that share of the plain layer's MACs on a large map.
        """
        trained = any(parameter.requires_grad for parameter in self.factors().values())
        with torch.no_grad():
            if keep_factors_below is not None and self._stage_share() < keep_factors_below:
                return self._thin(trained)
            geometry = self.geometry
            plain = geometry.layer(
                geometry.out, geometry.inner * geometry.groups, geometry.kernel, self.bias is not None
            )
            weight, bias = self.deployed()
            _fill(plain, weight, bias, trained=trained)
        return plain.train(self.training)

    def deployed(self) -> tuple[Tensor, Tensor | None]:
        """Weight and bias of the plain layer that has this layer's function in eval mode."""
        return self.weight, self.bias

    def train(self, mode: bool = True) -> Self:
        """As nn.Module's; the weight kept for evaluation is dropped."""
        self._cache = None
        return super().train(mode)

    def extra_repr(self) -> str:
        return f"{self.geometry.describe()}, rank={self.rank}"

    def way(self, shape: Sequence[int]) -> str:
        """How an input of `shape` is evaluated while training: "contract" or "sequence"."""
        if self.evaluation != "auto":
            return self.evaluation if self.evaluation == "contract" or self.stages() else "contract"
        key = tuple(shape)
        if torch.compiler.is_compiling():  # a trace may see symbols for sizes, and one form serves them all
            return "contract"
        if key not in self._choices:
            with torch.no_grad():
                self._choices[key] = self.price(shape).choice
        return self._choices[key]

    def _contracted_weight(self) -> Tensor:
        """The contracted weight, computed once until a parameter or buffer changes or the mode does.

        A change is detected by a tensor's version, place or identity, and by any optimizer's step. Values written through
        `.data` change none of them: call `.eval()` afterwards.
        """
        parameters, tensors = tuple(self.parameters()), (*self.parameters(), *self.buffers())
        if torch.compiler.is_compiling() or not all(type(one) is nn.Parameter for one in parameters):
            return self.weight  # a trace, or tensors that stand in for the parameters
        if any(one.is_inference() for one in tensors):
            return self.weight  # they count no versions
        now = (_steps[0], *((id(one), one._version, one.data_ptr()) for one in tensors))
        if self._cache is None or self._cache[0] != now:
            self._cache = (now, self.weight, tensors)
        return self._cache[1]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        self._cache = None
        self._choices = {}
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self._cache = None
        super()._load_from_state_dict(*args, **kwargs)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_cache": None}  # a copy keeps its own

    def _stage_share(self) -> float:
        """MACs of the stages over the plain layer's, on a map so large that its border does not count."""
        stages = self.stages()
        if not stages:
            return float("inf")
        geometry = self.geometry
        sh, sw = geometry.stride
        macs = 0
        for stage in stages:
            sh, sw = (1 if "h" in stage.axes else sh), (1 if "w" in stage.axes else sw)
            macs += sh * sw * stage.weight.numel()
        return macs / (geometry.out * geometry.inner * geometry.kernel[0] * geometry.kernel[1])

    def _thin(self, trained: bool) -> nn.Module:
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        stages = self.stages()
        for stage in stages:
            out, inner, kh, kw = stage.weight.shape
            bias = self.bias if stage is stages[-1] else None
            layer = self.geometry.layer(
                out, inner * stage.groups, (kh, kw), bias is not None, stage.axes, stage.groups
            )
            _fill(layer, stage.weight.view(layer.weight.shape), bias, trained=trained)
            layers[stage.name] = layer
        return nn.Sequential(layers).train(self.training)


def _fill(plain: Plain, weight: Tensor, bias: Tensor | None, *, trained: bool) -> None:
    # A product may have strides that torch takes for channels last.
    own = weight.detach().clone(memory_format=torch.contiguous_format)
    plain.weight = nn.Parameter(own, requires_grad=trained)
    if bias is not None:
        plain.bias = nn.Parameter(bias.detach().clone(), requires_grad=bias.requires_grad)
