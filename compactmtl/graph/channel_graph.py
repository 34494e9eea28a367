"""The channel graph of a model: which channels go together, what each costs, which are dead."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import fx, nn

from compactmtl.errors import SurgeryError
from compactmtl.graph.analysis import analyse
from compactmtl.graph.effect import Binding, FullWidth
from compactmtl.graph.groups import GroupFamily, Member, Role
from compactmtl.graph.inputs import Arguments
from compactmtl.graph.questions import Questions
from compactmtl.graph.rules import FALLBACK, RULES
from compactmtl.graph.space import Flags, Grid, Ids
from compactmtl.graph.stages import Tracing
from compactmtl.graph.state import State
from compactmtl.graph.threads import one_thread
from compactmtl.graph.trace import Traced, check_inputs, trace
from compactmtl.graph.unreached import Unreached, kept_for_unreached, unreached_modules
from compactmtl.graph.work import MacModel

_ROLE_ORDER: tuple[Role, ...] = ("producer", "affine", "consumer")


class ChannelGraph(Questions):
    """The coordinates of every channel of a traced model, in classes that can only be removed together.

    `labels` (n ids,) is the class of each coordinate. `fixed` (n classes,) marks classes that cannot be removed, such as
    those of inputs, outputs and operators without a rule. Where the classes of a grid must be removed in equal numbers, a
    group of `groups()` is one class of every row.
    """

    def __init__(
        self,
        state: State,
        parameters: Mapping[str, tuple[str, int]],
        unreached: tuple[str, ...] = (),
        elsewhere: Sequence[Ids] = (),
    ) -> None:
        """`parameters` gives for every name of a parameter the first of its names, and its number of elements; `elsewhere`
        the coordinates that unreached modules may read or write."""
        super().__init__(state)
        self._elsewhere = np.unique(np.concatenate([own.ravel() for own in elsewhere])) if elsewhere else None
        self.unreached = unreached  # modules, and single parameters, that the traced forward does not read
        self._parameters = parameters
        self.labels: Ids = state.space.classes()
        self.classes = int(self.labels.max()) + 1 if len(self.labels) else 0
        # A coordinate that no activation carries, such as a kernel's width, is no channel: it stays.
        self.fixed: Flags = np.ones(self.classes, dtype=bool)
        for node in self.calls:
            for axis in self.layout(node) if not self.is_computed(node) else ():
                self.fixed[self.labels[axis.ids]] = False
        for ids, _ in state.followers:  # tables of positions by head among them
            self.fixed[self.labels[ids]] = False
        self._pin_what_is_made()
        self.fixed[self.labels[state.space.pinned()]] = True
        self._families: list[GroupFamily] | None = None
        self._family_classes: list[Ids] = []
        self._coupled_of: Ids = np.arange(self.classes)
        self._mac_model = MacModel(self, self.labels, self.classes)

    def _pin_what_is_made(self) -> None:
        """Channels of tensors that a forward makes are as many as it says, unless they go with those of a layer."""
        written = [product.outputs for product in self.products]
        of_layers = np.unique(self.labels[np.concatenate(written)]) if written else np.empty(0, np.int64)
        for ids in self._state.made:
            own = ids[~np.isin(self.labels[ids], of_layers)]
            self._state.space.pin(own, "a tensor that the forward makes in a size of its own")

    @classmethod
    @one_thread()
    def trace(
        cls,
        model: nn.Module,
        example_inputs: Sequence[Any] | Mapping[str, Any],
        unreached: Unreached = "keep",
        whole: Collection[str] = (),
    ) -> ChannelGraph:
        """Trace `model` in eval mode on `example_inputs` and follow its channels. The model is left as it was.

        Args:
            model: any module that `torch.export` can trace, if only with some of its modules taken whole.
            example_inputs: positional arguments, or a mapping of keyword arguments.
            unreached: what to do about modules that this forward pass does not reach, such as heads of other tasks: "keep"
                keeps the channels that they may read, "report" does not, "error" raises.
            whole: modules known to be ones that have to be taken whole, such as those of an earlier trace (see `tracing`).

        Raises:
            SurgeryError: where the model cannot be traced, returns something other than tensors, or holds values that are
                not finite.
        """
        arguments = check_inputs(model, example_inputs)
        traced = trace(model, arguments, whole=whole)
        names = unreached_modules(model, traced)
        if names and unreached == "error":
            raise SurgeryError(
                f"{type(model).__name__} does not reach {', '.join(names)} on its example inputs",
                'pass a model without these modules, or unreached="keep", which keeps what they may read',
            )
        state = _analysed(traced, arguments)
        keep = names and unreached == "keep"
        kept = kept_for_unreached(model, arguments, state, names, _analysed) if keep else []
        for pin in kept:
            state.space.pin(pin.ids, pin.reason)
        first = {id(parameter): name for name, parameter in model.named_parameters()}
        named = model.named_parameters(remove_duplicate=False)
        sizes = {name: (first[id(value)], value.numel()) for name, value in named}
        return cls(state, sizes, names, [pin.ids for pin in kept])

    # -- what surgery reads beside single calls --------------------------------------------------------

    @property
    def tracing(self) -> Tracing:
        """How the model was traced, and which modules were taken whole."""
        return self._state.traced.tracing

    @property
    def grids(self) -> tuple[Grid, ...]:
        """Channels that stay a full grid, each with the reason."""
        return tuple(self._state.space.grids)

    @property
    def units(self) -> tuple[Ids, ...]:
        """Heads of attention and groups of convolutions, each (units, any): a row can go as a whole."""
        return tuple(self._state.space.units)

    @property
    def followers(self) -> tuple[tuple[Ids, Ids], ...]:
        """Channels (n,) that go where all of others do, such as the biases of a head, with those others, (n, any)."""
        return tuple(self._state.followers)

    @property
    def projected(self) -> tuple[tuple[Ids, Ids], ...]:
        """Cells (rows, H) and outputs (rows, P) of each LSTM that projects."""
        return tuple(self._state.projected)

    @property
    def full_width(self) -> tuple[FullWidth, ...]:
        """Modules that count channels and can go on at their full width."""
        return tuple(self._state.full_width.values())

    @property
    def not_pruned(self) -> Mapping[str, str]:
        """Parameters of which no channel goes -> why."""
        return self._state.not_pruned

    def parameter_shape(self, name: str) -> tuple[int, ...]:
        """The shape of a parameter or buffer that some call reads."""
        return tuple(self._state.named[name].shape)

    def is_read_elsewhere(self, node: fx.Node) -> bool:
        """Whether modules that the forward does not reach may read or write a tensor."""
        axis = self.axis(node)
        return (
            axis is not None
            and self._elsewhere is not None
            and bool(np.isin(axis.ids, self._elsewhere).any())
        )

    def pin_reasons(self) -> dict[int, str]:
        """Class -> why it has to stay, of those that an operator keeps."""
        return self._state.space.reasons(self.labels)

    def joined_reasons(self) -> dict[int, str]:
        """Class -> why it goes only together with others, of those that an operator couples."""
        return {int(label): why for ids, why in self._state.joined for label in self.labels[ids]}

    def counted_classes(self, in_groups: bool = True) -> Flags:
        """Classes that an operator counts, such as a norm over the channel, or also over groups of it."""
        classes = np.zeros(self.classes, dtype=bool)
        for own in self.counted.values():
            if in_groups or own.groups == 1:
                classes[self.labels[own.ids]] = True
        return classes

    def grouped_classes(self) -> Flags:
        """Classes that a grouped convolution reads, or a transposed one writes."""
        classes = np.zeros(self.classes, dtype=bool)
        for binding in self.bindings:
            if binding.groups > 1:
                classes[self.labels[binding.ids]] = True
        return classes

    def forget_values(self) -> None:
        """Let go of the values of all tensors, which only edits read: a second copy of the weights would live as long."""
        self._state.forget_values()

    # -- groups --------------------------------------------------------------------------------------

    def groups(self) -> list[GroupFamily]:
        """Return the coupled channel groups that can be removed, as families with the same member tensors."""
        if self._families is None:
            self._families = self._find_families()
        return self._families

    def _find_families(self) -> list[GroupFamily]:
        coupled = self._state.space.classes(coupled=True)
        self._coupled_of = np.zeros(self.classes, dtype=np.int64)
        self._coupled_of[self.labels] = coupled
        count = int(coupled.max()) + 1 if len(coupled) else 0
        fixed = np.zeros(count, dtype=bool)
        fixed[self._coupled_of[self.fixed]] = True
        for ids, _ in self.followers:  # they go with others, and never alone
            fixed[coupled[ids]] = True
        for ids in self._state.unforced:  # zeros of its producers would not remove one
            fixed[coupled[ids]] = True
        bindings = [b for b in self.bindings if b.roles and b.name in self._parameters]
        # Classes with the same number of entries in the same parameters are alike. A random fingerprint per
        # binding, summed over entries, tells them apart (64 bits: a false match is out of reach).
        marks = np.random.default_rng(0).integers(1, 2**62, size=len(bindings), dtype=np.int64)
        keys = np.zeros(count, dtype=np.int64)
        produced = np.zeros(count, dtype=bool)
        for mark, binding in zip(marks, bindings, strict=True):
            np.add.at(keys, coupled[binding.ids], mark)
            if "producer" in binding.roles:
                produced[coupled[binding.ids]] = True
                if binding.groups > 1:  # a slice of one group's rows and columns is no member
                    fixed[coupled[binding.ids]] = True
        free = np.flatnonzero(produced & ~fixed)
        weights = {product.weight for product in self.products}
        families: list[GroupFamily] = []
        self._family_classes = []
        _, first, inverse = np.unique(keys[free], return_index=True, return_inverse=True)
        for family in np.argsort(first, kind="stable"):
            classes = free[inverse == family]
            place = np.full(count, -1, dtype=np.int64)
            place[classes] = np.arange(len(classes))
            members = self._members([b for b in bindings if b.groups == 1], coupled, place, len(classes))
            written = [m.parameter for m in members if m.role == "producer"]
            name = next((w for w in written if w in weights), written[0]).rpartition(".")[0]
            families.append(GroupFamily(name, members, len(classes), 0.0, 0.0))
            self._family_classes.append(classes)
        full = self.macs_of_classes(np.ones(self.classes, dtype=bool))
        costed = []
        for family, classes in zip(families, self._family_classes, strict=True):
            alive = np.ones(count, dtype=bool)
            alive[classes[0]] = False
            macs = full - self.macs_of_classes(alive[self._coupled_of])
            costed.append(
                GroupFamily(
                    family.name, family.members, family.size, macs, self._parameters_of(family.members)
                )
            )
        return costed

    def members(self, owner: Ids, size: int) -> tuple[Member, ...]:
        """The slices of parameters that belong to each of `size` groups; `owner` (classes,) is as in `owners`."""
        bindings = [b for b in self.bindings if b.roles and b.name in self._parameters]
        return self._members([b for b in bindings if b.groups == 1], self.labels, owner, size)

    @staticmethod
    def _members(bindings: Sequence[Binding], labels: Ids, place: Ids, size: int) -> tuple[Member, ...]:
        members = []
        for binding in bindings:
            group = place[labels[binding.ids]]
            entries = np.flatnonzero(group >= 0)
            if len(entries) == 0:
                continue
            order = entries[np.argsort(group[entries], kind="stable")]
            role = next(role for role in _ROLE_ORDER if role in binding.roles)
            members.append(Member(binding.name, binding.dim, order.reshape(size, -1), role))
        return tuple(sorted(members, key=lambda member: _ROLE_ORDER.index(member.role)))

    def _parameters_of(self, members: Sequence[Member]) -> float:
        total = 0.0
        sizes = {name: value.shape for name, value in self._state.named.items()}
        places = set[tuple[str, int]]()
        for member in members:
            place = self._parameters[member.parameter][0], member.dim
            if self._keeps_its_width(member.parameter) or place in places:
                continue
            places.add(place)
            shape = sizes[member.parameter]
            total += member.indices.shape[1] * int(np.prod(shape)) / shape[member.dim]
        return total

    # -- cost ----------------------------------------------------------------------------------------

    def macs_of_classes(self, alive: Flags, without: Flags | None = None) -> float:
        """MACs of the whole model with only the `alive` classes left, (classes,), as `cost` counts them; `without` see `parts_of`."""
        return self._mac_model.total(alive, without)

    def parts_of(self, calls: Collection[fx.Node]) -> Flags:
        """The parts of all MACs, a bool array, that these calls have."""
        return self._mac_model.parts_of(calls)

    def layer_macs(self, alive: Flags) -> NDArray[np.float64]:
        """MACs of each of `products` with only the `alive` classes left."""
        return self._mac_model.by_product(alive)

    def macs(self, keep: Sequence[Flags]) -> float:
        """MACs left when of each family of `groups()` only the channels flagged in `keep` stay."""
        families = self.groups()
        if len(keep) != len(families):
            raise ValueError(f"keep needs {len(families)} arrays, one a family, found {len(keep)}")
        alive = np.ones(int(self._coupled_of.max()) + 1, dtype=bool)
        for flags, classes in zip(keep, self._family_classes, strict=True):
            alive[classes] = flags
        return self.macs_of_classes(alive[self._coupled_of])

    def owners(self) -> list[Ids]:
        """For each family of `groups()` the group that every class belongs to, (classes,), -1 for none of its own."""
        self.groups()
        owners = []
        for own in self._family_classes:
            place = np.full(int(self._coupled_of.max()) + 1, -1, dtype=np.int64)
            place[own] = np.arange(len(own))
            owners.append(place[self._coupled_of])
        return owners

    def parameters_of_classes(self, alive: Flags, without: Collection[str] = ()) -> float:
        """Elements of all parameters, each once, with only the `alive` classes left, (classes,), `without` those of these names."""
        dims: dict[str, dict[int, float]] = {}
        for binding in self.bindings:
            kept = alive[self.labels[binding.ids]]
            count = float(kept.sum())
            if self._keeps_its_width(binding.name, alive):
                continue
            if binding.groups > 1:  # each group that is left reads as many
                count /= max(int(kept.reshape(binding.groups, -1).any(1).sum()), 1)
            dims.setdefault(binding.name, {})[binding.dim] = count
        sizes = {first: float(size) for first, size in self._parameters.values()}  # what no call reads stays
        for name, value in self._state.named.items():
            if name in self._parameters:
                own = dims.get(name, {})
                sizes[self._parameters[name][0]] = float(
                    np.prod([own.get(dim, size) for dim, size in enumerate(value.shape)])
                )
        for name in self._parameters.keys() & set(without):  # buffers may be among them
            sizes[self._parameters[name][0]] = 0.0
        return sum(sizes.values())

    def _keeps_its_width(self, parameter: str, alive: Flags | None = None) -> bool:
        """Whether it belongs to a module that counts channels, and so holds them all whatever goes."""
        return any(
            parameter.startswith(f"{module.module}.")
            and (alive is None or not module.is_cut(alive[self.labels[module.ids]]))
            for module in self.full_width
        )

    def widths(self, alive: Flags, without: Collection[str] = ()) -> dict[str, tuple[int, int | None]]:
        """Outputs and inputs of every convolution and linear layer with only the `alive` classes left, by its name.

        A depthwise layer has no inputs of its own (None). A layer used several times is there once. `without` names layers that
        are not there.
        """
        widths: dict[str, tuple[int, int | None]] = {}
        for product in self.products:
            if product.name in without:
                continue
            outputs = int(alive[self.labels[product.outputs]].sum())
            inputs = None if product.inputs is None else int(alive[self.labels[product.inputs]].sum())
            widths[product.name] = (outputs, inputs)
        return widths

    # -- liveness ------------------------------------------------------------------------------------

    def live_classes(self) -> Flags:
        """Classes that must stay: fixed, varying, or with a constant that its reader cannot do without."""
        exact = self._classes_of(self.used_exactly, self.zero)
        return self.fixed | self.varying_classes() | exact

    def varying_classes(self) -> Flags:
        """Classes with a coordinate that varies with the input and is used."""
        return self._classes_of(self.used, self.constant)

    def nonzero_classes(self) -> Flags:
        """Classes with a coordinate that is used and not known to be 0."""
        return self._classes_of(self.used, self.zero)

    def _classes_of(self, marked: Callable[[fx.Node], Flags], known: Callable[[fx.Node], Flags]) -> Flags:
        """Classes with a coordinate of an activation that is marked and not known."""
        classes = np.zeros(self.classes, dtype=bool)
        for node in self.calls:
            axis = self.axis(node)
            if axis is None or not self.follows(node) or self.is_computed(node):
                continue
            classes[self.labels[axis.ids[marked(node) & ~known(node)]]] = True
        return classes


def _analysed(traced: Traced, arguments: Arguments) -> State:
    return analyse(traced, RULES, FALLBACK, arguments)
