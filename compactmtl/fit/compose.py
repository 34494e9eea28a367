"""What a fit trains: the recipes of the dense and of the shrunk network, from a recipe or a module of the user's own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from compactmtl.artifacts.layout import BEST, CHECKPOINTS, WEIGHTS
from compactmtl.backends import load_target
from compactmtl.config import Resolved, trust
from compactmtl.config.load import resolve_layers
from compactmtl.config.lookup import find, name_of
from compactmtl.config.merge import apply_overrides, extended, read_extended
from compactmtl.config.sparsity import ReductionConfig
from compactmtl.config.target import Target
from compactmtl.config.trust import is_class_name, split_name
from compactmtl.config.yaml import Node, Place, node_of
from compactmtl.errors import ConfigError

DEFAULT_TARGET = "onnxruntime-cpu"
SECTIONS = ("selective", "controller", "prune")  # of sparsity, that take a budget
# What a recipe without sparsity shrinks with. The whole model counts in a budget, so heads shrink too; the last 40 % of
# the steps train what is left.
SHRINKING = ("sparsity.scope=model", "sparsity.selective.start=0.1", "sparsity.selective.end=0.6")
# The dense network is plain, and trained without all that makes it another one.
DENSE = ("sparsity=null", "overparam=null")
RECIPE, FUNCTION = (
    "RECIPE",
    "recipe",
)  # of a module: its recipe as a mapping or a path, or a function that gives that

Measure = Literal["latency-ms", "speedup", "macs-reduction"]
_KEYS: Mapping[Measure, str] = {
    "latency-ms": "latency.ms",
    "speedup": "latency.speedup",
    "macs-reduction": "mac_reduction",
}


@dataclass(frozen=True)
class Budget:
    """What the deployed network may cost: milliseconds on the target, a speedup there, or MACs that are gone."""

    measure: Measure
    amount: float

    @property
    def slug(self) -> str:
        """The budget as a part of a folder's name."""
        amount = f"{self.amount:g}"
        return {
            "latency-ms": f"{amount}ms",
            "speedup": f"{amount}x",
            "macs-reduction": f"macs-{amount}",
        }[self.measure]


@dataclass(frozen=True)
class Road:
    """A fit before it is walked: its recipes, and where everything lies.

    `plain` is the shrunk network's recipe before the table and the dense weights are there: what is checked and measured
    first. `dense` is None where nothing dense is trained.
    """

    subject: str
    folder: Path  # of all fits of the subject
    name: str  # of the shrunk run in it
    target_name: str
    target: Target
    plain: Resolved
    shrunk: Resolved
    dense: Resolved | None

    @property
    def run(self) -> Path:
        """The folder of the shrunk run."""
        return self.folder / self.name

    @property
    def dense_run(self) -> Path:
        """The folder of the dense run."""
        return self.folder / "dense"

    @property
    def own_table(self) -> bool:
        """Whether the recipe names a latency table itself, such as one of another device."""
        section = None if self.plain.recipe.sparsity is None else self.plain.recipe.sparsity.target
        return section is not None and section.latency is not None and section.latency.table is not None

    @property
    def table(self) -> Path:
        """The latency table that the network is shrunk by, where it is measured here."""
        return self.folder / f"{self.name}.latency.json"

    @property
    def state(self) -> Path:
        """What the finished stages were made from."""
        return self.folder / f"{self.name}.fit.json"

    @property
    def reduction(self) -> ReductionConfig:
        """The section of the recipe that holds the budget."""
        assert self.shrunk.recipe.sparsity is not None
        section = self.shrunk.recipe.sparsity.target
        assert section is not None
        return section


def plan_road(
    subject: str,
    overrides: Sequence[str] = (),
    *,
    base: str | None = None,
    budget: Budget | None = None,
    target: str | None = None,
    out: str | Path = "runs",
    name: str | None = None,
    dense: bool = True,
) -> Road:
    """The recipes of a fit.

    Args:
        subject: a recipe by name or path, or `package.module:build`, which gives the network.
        overrides: `key=value` words, laid over the recipe.
        base: recipe by name or path to which a module's network is given; by default the module's own `RECIPE`.
        budget: None: as the recipe says.
        target: by name or path. None: of the recipe's budget, else the recipe's first target.
        out: folder of runs.
        name: folder of the subject in it.
        dense: whether the dense network is trained first, and shrinking starts from its weights.

    Raises:
        ConfigError: for a subject without data, tasks or budget, and all that `resolve_recipe` refuses.
        UntrustedError: where a module's code may not be run.
    """
    node, title, path = _document(subject, base)
    words = list(overrides)
    if is_class_name(subject):
        words = [*_network(subject, node), *words]
    values = apply_overrides(node, words).plain()
    _check_whole(subject, values)
    section, shrinking, dropped = _section(values)
    given = _target_of(values, section) if target is None else target
    words = [*shrinking, *words, *dropped, f"targets=[{given}]"]
    words += _budget_words(values, section, budget, given)
    title = name or "-".join(title.split("/"))
    folder = Path(out) / title
    plain = resolve_layers(node, words, title, path)
    assert plain.recipe.sparsity is not None
    reduction = plain.recipe.sparsity.target
    assert reduction is not None
    stem = Path(given).stem
    road = Road(
        subject=subject,
        folder=folder,
        name=f"{stem}-{(budget or _budget_of(reduction)).slug}",
        target_name=stem,
        target=load_target(plain.recipe.targets[0]),
        plain=plain,
        shrunk=plain,
        dense=resolve_layers(node, [*words, *DENSE], title, path) if dense else None,
    )
    if reduction.latency is not None and not road.own_table:
        words.append(f"sparsity.{section}.latency.table={_quoted(road.table)}")
    if dense:
        weights = road.dense_run / CHECKPOINTS / BEST / WEIGHTS
        words.append(f"model.weights={_quoted(weights)}")
    return replace(road, shrunk=resolve_layers(node, words, title, path))


def _quoted(path: Path) -> str:
    return "'" + str(path.absolute()).replace("'", "''") + "'"


def _document(subject: str, base: str | None) -> tuple[Node, str, Path]:
    """The recipe that a fit begins with, what the fit is called, and the recipe's file."""
    if not is_class_name(subject):
        if base is not None:
            raise ConfigError(
                f"--recipe {base}: {subject} is a recipe itself",
                f"extend it there, or fit {base} with key=value",
            )
        path = find("recipe", subject)
        return read_extended("recipe", path), name_of("recipe", path), path
    module_name, _ = split_name(subject, "the network to fit")
    module = trust.import_module(subject, "the network to fit")
    file = Path(module.__file__ or ".").resolve()
    if base is not None:
        path = find("recipe", base)
        return read_extended("recipe", path), module_name, path
    own = getattr(module, RECIPE, None)
    if own is None and callable(getattr(module, FUNCTION, None)):
        own = module.recipe()
    if isinstance(own, str | Path):
        path = find("recipe", file.parent / own if str(own).endswith((".yaml", ".yml")) else own)
        return read_extended("recipe", path), module_name, path
    if own is not None and not isinstance(own, Mapping):
        raise ConfigError(
            f"{module_name}.{RECIPE} is a {type(own).__name__}",
            "let it be a mapping as a recipe's file has it, or the path of a recipe",
        )
    node = node_of(dict(own or {}), Place(file))
    return extended("recipe", node, file), module_name, file


def _network(subject: str, node: Node) -> list[str]:
    """Words that put the module's network in the place of the recipe's."""
    values = node.plain()
    tasks = values.get("tasks") if isinstance(values, dict) else None
    heads = [
        f"tasks.{name}.head=null"
        for name, task in (tasks.items() if isinstance(tasks, dict) else ())
        if isinstance(task, dict) and task.get("head")
    ]
    return ["model.encoder={}", f"model.factory={subject}", *heads]


def _check_whole(subject: str, values: Any) -> None:
    """Raise ConfigError where nothing says what to train on."""
    data = values.get("data") if isinstance(values, dict) else None
    missing = [
        key
        for key, there in (
            ("data", isinstance(data, dict) and data.get("name")),
            ("tasks", isinstance(values, dict) and values.get("tasks")),
        )
        if not there
    ]
    if missing and is_class_name(subject):
        raise ConfigError(
            f"{subject}: nothing says {' and '.join(missing)}",
            "give them as key=value (data.name=folder data.root=… data.size=[224,224] tasks.age.kind=regression), "
            f"name a recipe with --recipe, or let the module have {RECIPE}",
        )


def _section(values: Mapping[str, Any]) -> tuple[str, tuple[str, ...], tuple[str, ...]]:
    """The section of `sparsity` that takes the budget, words that make one where there is none, and those that drop a λ."""
    sparsity = values.get("sparsity")
    if isinstance(sparsity, dict):
        for section in SECTIONS:
            if isinstance(sparsity.get(section), dict):
                return section, (), ()
        # a λ alone has no budget to keep
        return "selective", SHRINKING[1:], ("sparsity.strength=null", "sparsity.schedule=null")
    return "selective", SHRINKING, ()


def _target_of(values: Mapping[str, Any], section: str) -> str:
    """The target of the recipe's budget, else its first, else the CPU."""
    latency = ((values.get("sparsity") or {}).get(section) or {}).get("latency")
    if isinstance(latency, dict) and latency.get("target"):
        return str(latency["target"])
    targets = values.get("targets")
    return str(targets[0]) if isinstance(targets, list) and targets else DEFAULT_TARGET


def _budget_words(values: Mapping[str, Any], section: str, budget: Budget | None, target: str) -> list[str]:
    """Words that put `budget` in the place of the recipe's own."""
    former = (
        ((values.get("sparsity") or {}).get(section) or {})
        if isinstance(values.get("sparsity"), dict)
        else {}
    )
    keys = ("mac_reduction", "parameter_reduction", "latency", "latency_reduction", "latency_table")
    given = [key for key in keys if former.get(key) is not None]
    if budget is None:
        if not given:
            raise ConfigError(
                "no budget: neither the command nor the recipe says what the network may cost",
                "add --latency-ms 5, --speedup 2 or --macs-reduction 0.5",
            )
        if "latency" in given:
            return [f"sparsity.{section}.latency.target={target}"]
        return []
    words = [f"sparsity.{section}.{key}=null" for key in given]
    key = _KEYS[budget.measure]
    if key.startswith("latency."):
        words.append(
            f"sparsity.{section}.latency={{target: {target}, {key.partition('.')[2]}: {budget.amount!r}}}"
        )
    else:
        words.append(f"sparsity.{section}.{key}={budget.amount!r}")
    return words


def _budget_of(section: ReductionConfig) -> Budget:
    """The recipe's own budget, for the name of its folder."""
    if section.latency is None:
        return Budget("macs-reduction", section.amount)
    if section.latency.ms is not None:
        return Budget("latency-ms", section.latency.ms)
    return Budget("speedup", 1 / section.latency.milliseconds(1.0))
