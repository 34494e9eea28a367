"""How the tasks are balanced and the shared features regularized: two sections of the recipe."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from compactmtl.config.registry import one_of
from compactmtl.config.schema import Frozen, Positive, Scalar, ScheduleConfig

NotNegative = Annotated[float, Field(ge=0)]

BalancerName = Annotated[str, one_of("balancing/methods")]


class BalancingConfig(Frozen):
    """How task losses or their gradients are weighed against each other."""

    name: BalancerName = Field("equal", description="a method; docs/balancing.md lists them")
    at: Literal["features", "shared_parameters"] | None = Field(
        None,
        description="where task gradients are compared, for names that compare them: at the encoder's output (one "
        "backward pass of the encoder) or at its parameters (one a task; the default)",
    )
    options: dict[str, Scalar | list[Scalar]] = Field(
        default_factory=dict, description="options of this method; see docs/balancing.md"
    )


class DummyHeadConfig(Frozen):
    """Architecture of dummy heads; what is not given is as in the task's own head."""

    width: Annotated[int, Field(ge=1)] | None = Field(None, description="hidden channels or features")
    depth: Annotated[int, Field(ge=0)] | None = Field(None, description="hidden layers before the last one")
    activation: Literal["relu", "leaky_relu", "gelu", "silu", "tanh", "sigmoid", "identity"] | None = Field(
        None, description="instead of ReLU"
    )
    initialization: Literal[
        "default", "xavier_uniform", "xavier_normal", "kaiming_uniform", "kaiming_normal", "orthogonal"
    ] = Field("default", description="of weights, biases then being 0; default: as torch does it")


class DgrConfig(Frozen):
    """Dummy gradient norm regularization. Source: arXiv:2409.16651."""

    strength: NotNegative = Field(description="λ; the paper has 1e-6 for UTKFace and 0.1 for dense tasks")
    dummies: Annotated[int, Field(ge=1)] = Field(3, description="random frozen heads a task")
    mode: Literal["exact", "finite_difference"] = Field(
        "exact", description="double backward through the heads alone, or the paper's approximation"
    )
    norm: Literal["squared", "plain"] = Field(
        "squared", description="of the gradient; the paper's code squares it"
    )
    epsilon: Positive = Field(1e-4, description="length of the step of finite_difference")
    seed: int | None = Field(None, description="of the dummy heads' weights; the recipe's by default")
    head: DummyHeadConfig = DummyHeadConfig()
    chunk: Annotated[int, Field(ge=1)] | None = Field(
        None, description="dummies of a task at once: all for one value an image, 1 for maps by default"
    )
    schedule: ScheduleConfig = Field(
        ScheduleConfig(name="constant", warmup=0.0), description="of λ over the steps of the whole run"
    )


class GradientPenaltyConfig(Frozen):
    """λ times the squared norm of the multi-task loss's gradient."""

    strength: NotNegative = Field(description="λ")
    schedule: ScheduleConfig = Field(
        ScheduleConfig(name="constant", warmup=0.0), description="of λ over the steps of the whole run"
    )


class SamConfig(Frozen):
    """Sharpness-aware minimization: the gradient is taken where the loss is worst nearby. Source: arXiv:2010.01412."""

    rho: Positive = Field(0.05, description="distance of the step uphill")
    adaptive: bool = Field(False, description="relative to each weight's size. Source: arXiv:2102.11600")


class PtaConfig(Frozen):
    """Pseudo-task augmentation: several heads learn each task, the first is kept. Source: arXiv:1803.04062."""

    decoders: Annotated[int, Field(ge=2)] = Field(3, description="heads a task, the task's own included")
    control: Literal["independent", "freeze", "perturb"] = Field(
        "independent",
        description="extra heads learn on their own, stay random, or are moved at random at each epoch's end",
    )
    noise: Positive = Field(0.01, description="standard deviation of what `perturb` adds")
    seed: int | None = Field(None, description="of the extra heads' weights; the recipe's by default")


class RegularizationConfig(Frozen):
    """What is asked of the shared features or of the loss beside the tasks; all at once where several are given."""

    dgr: DgrConfig | None = None
    input_gradient: GradientPenaltyConfig | None = Field(
        None,
        description="penalize the gradient by the image. Source: double backpropagation, Drucker and LeCun 1992",
    )
    weight_gradient: GradientPenaltyConfig | None = Field(
        None, description="penalize the gradient by the encoder's weights. Source: arXiv:2202.03599"
    )
    sam: SamConfig | None = None
    pta: PtaConfig | None = None
