"""How the tasks are balanced and the shared features regularized: two sections of the recipe."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from compactmtl.config.registry import names_schema, one_of
from compactmtl.config.schema import Frozen, Positive, Scalar, ScheduleConfig

NotNegative = Annotated[float, Field(ge=0)]

BalancerName = Annotated[str, one_of("balancing/methods"), names_schema("balancing/methods")]


class BalancingConfig(Frozen):
    """How the losses of the tasks, or their gradients, are combined."""

    name: BalancerName = Field("equal", description="Balancing method.")
    at: Literal["features", "shared_parameters"] | None = Field(
        None,
        description="Where the gradients of the tasks are compared, for methods that compare them: at the "
        "encoder's output (`features`; one backward pass of the encoder) or at its parameters "
        "(`shared_parameters`, the default; one backward pass per task).",
    )
    options: dict[str, Scalar | list[Scalar]] = Field(
        default_factory=dict, description="Options of this method. See the list of balancers."
    )


class DummyHeadConfig(Frozen):
    """Architecture of dummy heads. A key that is not given has the value of the task's own head."""

    width: Annotated[int, Field(ge=1)] | None = Field(
        None, description="Hidden channels or features. null: as in the task's head."
    )
    depth: Annotated[int, Field(ge=0)] | None = Field(
        None, description="Hidden layers before the output layer. null: as in the task's head."
    )
    activation: Literal["relu", "leaky_relu", "gelu", "silu", "tanh", "sigmoid", "identity"] | None = Field(
        None, description="Activation function. null: as in the task's head."
    )
    initialization: Literal[
        "default", "xavier_uniform", "xavier_normal", "kaiming_uniform", "kaiming_normal", "orthogonal"
    ] = Field(
        "default",
        description="Initialization of the weights. `default` is torch's own; with any other the biases are"
        " 0.",
    )


class DgrConfig(Frozen):
    """Dummy gradient norm regularization. Source: arXiv:2409.16651."""

    strength: NotNegative = Field(
        description="λ of the penalty. The paper uses 1e-6 on UTKFace and 0.1 on dense tasks."
    )
    dummies: Annotated[int, Field(ge=1)] = Field(3, description="Random frozen heads per task.")
    mode: Literal["exact", "finite_difference"] = Field(
        "exact",
        description="`exact` differentiates twice through the heads alone. `finite_difference` is the "
        "paper's approximation.",
    )
    norm: Literal["squared", "plain"] = Field(
        "squared", description="Norm of the gradient. `squared` is what the paper's code uses."
    )
    epsilon: Positive = Field(1e-4, description="Step length of `finite_difference`.")
    seed: int | None = Field(None, description="Seed of the dummy heads' weights. null: the recipe's seed.")
    head: DummyHeadConfig = Field(DummyHeadConfig(), description="Architecture of the dummy heads.")
    chunk: Annotated[int, Field(ge=1)] | None = Field(
        None,
        description="Dummy heads of a task that are evaluated together. null: all for one value per image, "
        "1 for maps.",
    )
    schedule: ScheduleConfig = Field(
        ScheduleConfig(name="constant", warmup=0.0), description="λ over the steps of the run."
    )


class GradientPenaltyConfig(Frozen):
    """λ times the squared norm of the multi-task loss's gradient."""

    strength: NotNegative = Field(description="λ of the penalty.")
    schedule: ScheduleConfig = Field(
        ScheduleConfig(name="constant", warmup=0.0), description="λ over the steps of the run."
    )


class SamConfig(Frozen):
    """Sharpness-aware minimization: the gradient is taken where the loss is worst nearby. Source: arXiv:2010.01412."""

    rho: Positive = Field(0.05, description="Length of the ascent step.")
    adaptive: bool = Field(
        False, description="Scale the ascent step by the size of each weight. Source: arXiv:2102.11600."
    )


class PtaConfig(Frozen):
    """Pseudo-task augmentation: several heads learn each task, the first is kept. Source: arXiv:1803.04062."""

    decoders: Annotated[int, Field(ge=2)] = Field(3, description="Heads per task, including the task's own.")
    control: Literal["independent", "freeze", "perturb"] = Field(
        "independent",
        description="Extra heads train on their own (`independent`), stay at their random weights "
        "(`freeze`), or are perturbed at the end of each epoch (`perturb`).",
    )
    noise: Positive = Field(0.01, description="Standard deviation of the noise that `perturb` adds.")
    seed: int | None = Field(None, description="Seed of the extra heads' weights. null: the recipe's seed.")


class RegularizationConfig(Frozen):
    """Penalties on the shared features and on the loss. Several can be combined."""

    dgr: DgrConfig | None = Field(None, description="Dummy gradient norm regularization. null: off.")
    input_gradient: GradientPenaltyConfig | None = Field(
        None,
        description="Penalty on the gradient with respect to the image. Source: double backpropagation, "
        "Drucker and LeCun 1992. null: off.",
    )
    weight_gradient: GradientPenaltyConfig | None = Field(
        None,
        description="Penalty on the gradient with respect to the encoder's weights. Source: "
        "arXiv:2202.03599. null: off.",
    )
    sam: SamConfig | None = Field(None, description="Sharpness-aware minimization. null: off.")
    pta: PtaConfig | None = Field(None, description="Pseudo-task augmentation. null: off.")
