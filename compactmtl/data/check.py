"""What `data check` says of a data set: counts, faults, label distributions, and a sheet of samples with labels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePath
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from compactmtl.config.recipe import DataConfig, TaskConfig
from compactmtl.config.sources import as_deployed, of_source
from compactmtl.data.base import DataReport, Sample, Split, VisionDataset
from compactmtl.data.datasets import check_inputs, dataset_module, load_dataset, splits_of
from compactmtl.data.external import is_external
from compactmtl.data.files import some
from compactmtl.data.fit import as_rgb
from compactmtl.data.labels import anything_known, known_labels, parts
from compactmtl.errors import DataError
from compactmtl.tasks import TargetSpec, Task, build_tasks
from compactmtl.tasks.registry import usual_kind
from compactmtl.tasks.summaries import class_colors

_DENSE = ("mask", "depth", "disparity", "normals", "instances")
_LOOKED_AT = {"dense": 60, "labels": 2000}  # samples a distribution is taken from, spread over the split
_PLAUSIBLE = (0.05, 1000.0)  # metres, of a picture's median depth
_DARK = 32  # of 255: a whole data set below it is hardly meant
_GAP = 6


def check_dataset(config: DataConfig, tasks: Mapping[str, str] | None = None) -> DataReport:
    """Count, decode and describe a data set; faults are listed in `problems`, never raised.

    `tasks` are a recipe's, each with its target.

    Raises ConfigError where `config` itself is wrong: an unknown name or option.
    """
    check_inputs(config)
    plain = as_deployed(config.model_copy(update={"cache": "none"}))  # a look leaves nothing behind
    counts: dict[str, int] = {}
    known: dict[str, dict[str, int | None]] = {}
    endings: Counter[str] = Counter()
    targets: dict[str, str] = {}
    try:
        problems, notes = _problems(plain)
    except DataError as error:
        return DataReport(counts, [str(error)])
    splits: list[Split] = list(splits_of(config))
    if config.holdout:
        splits.append("holdout")
    for split in splits:
        try:
            dataset = load_dataset(plain, split)
        except DataError as error:
            if split != "test" and error.message not in problems:
                problems.append(error.message)
            continue
        for called, one in (*parts(split, dataset), (split, dataset)):
            counts[called] = len(one)
            known[called] = _known(one)
        endings.update(PurePath(dataset.identifier(index)).suffix.lower() for index in range(len(dataset)))
        notes += _without_any(known, split, dataset)
        if split == "train":
            # Of published data it is known which classes are rare.
            own = any(name == "folder" or is_external(name) for name in config.names)
            targets, said = _distributions(dataset, own=own)
            notes += said + (dark_pictures(dataset, config) if own else [])
    del endings[""]  # of samples that are no files
    taught, missing = _taught(config, tasks or {}, counts, known)
    return DataReport(counts, problems + missing, notes, known, dict(endings.most_common()), targets, taught)


def _without_any(
    known: Mapping[str, Mapping[str, int | None]], split: Split, dataset: VisionDataset
) -> list[str]:
    """A note on each target of which a split has no label, and on each source without one of a target that it should have."""
    use = "learned" if split == "train" else "measured there"
    notes = [
        f"target {name}: no sample of {split} has a label, so a task of it cannot be {use}"
        for name, count in known[split].items()
        if count == 0
    ]
    return notes + [
        f"target {name}: no sample of {called} has a label, so a task of it cannot be {use}: take it out of that source's "
        "`tasks`, or give labels"
        for called, _ in parts(split, dataset)
        for name, count in known[called].items()
        if count == 0 and known[split].get(name) != 0
    ]


def _taught(
    config: DataConfig,
    tasks: Mapping[str, str],
    counts: Mapping[str, int],
    known: Mapping[str, Mapping[str, int | None]],
) -> tuple[list[str], list[str]]:
    """How many training samples each teacher of pseudo-labels is asked for, in words; and the teachers that are not there."""
    said, missing = [], []
    for task, one in config.pseudo_labels.items():
        some = known.get("train", {}).get(tasks.get(task, task))
        if some is not None:
            said.append(
                f"{task}: {some:,} of {counts['train']:,} training samples have a label, {one.teacher} is to label "
                f"{counts['train'] - some:,} more{one.bound}; training counts those that it does"
            )
        if "{seed}" not in one.teacher and not Path(one.teacher).exists():
            missing.append(f"data.pseudo_labels.{task}.teacher: {one.teacher} is not there")
    return said, missing


def _problems(config: DataConfig) -> tuple[list[str], list[str]]:
    """What the data set's own check finds, or that of each of several: (problems, notes)."""
    if not config.sources:
        return dataset_module(config.name).problems(config)
    problems: list[str] = []
    notes: list[str] = []
    for source in config.sources:
        one = of_source(config, source, deployed=True)
        bad, said = dataset_module(one.name).problems(one)
        problems += [f"{source.called}: {text}" for text in bad]
        notes += [f"{source.called}: {text}" for text in said]
    return problems, notes


def target_tasks(specs: Mapping[str, TargetSpec]) -> dict[str, Task]:
    """One task for each target, with the defaults of its kind."""
    configs = {
        name: TaskConfig.model_validate({"kind": usual_kind(spec.kind)}) for name, spec in specs.items()
    }
    return build_tasks(configs, specs)


def sample_sheet(dataset: VisionDataset, count: int = 6) -> NDArray[np.uint8]:
    """A picture (H, W, 3) of samples spread over the split: a row each, the image, its maps, and its labels in words.

    Samples that cannot be decoded are left out.
    """
    tasks = target_tasks(dataset.specs)
    maps = [name for name, task in tasks.items() if task.dense]
    words = [name for name, task in tasks.items() if not task.dense]
    rows: list[list[NDArray[np.uint8]]] = []
    captions: list[str] = []
    titles: list[str] = []
    for index, sample in _spread(dataset, count):
        values = {name: target.numpy() for name, target in sample["targets"].items()}
        beside = {name: one.numpy() for name, one in sample.get("others", {}).items()}
        pictures = {name: one for name, one in beside.items() if one.ndim == 3}
        shown = [as_rgb(one).transpose(1, 2, 0) for one in (sample["image"].numpy(), *pictures.values())]
        rows.append(shown + [tasks[n].picture(values[n]) for n in maps])
        titles = ["image", *pictures, *maps]
        said = [f"{name}: {tasks[name].caption(values[name])}" for name in words]
        said += [f"{name}: {_numbers(one)}" for name, one in beside.items() if name not in pictures]
        captions.append("\n".join([dataset.identifier(index).rpartition("/")[2], *said]))
    if not rows:
        raise DataError(f"split {dataset.split} has no sample that can be shown", "see the problems above")
    return _sheet(rows, titles, captions, _legend(dataset.specs))


def _numbers(vector: NDArray[Any]) -> str:
    """The first numbers of a vector."""
    return some([f"{value:.4g}" for value in vector], 4)


def _legend(specs: Mapping[str, TargetSpec]) -> list[tuple[str, tuple[int, ...]]]:
    """Class names of the masks with the colors that they are drawn in."""
    masks = [spec.classes for spec in specs.values() if spec.kind == "mask"]
    return [(name, color) for classes in masks for name, color in class_colors(classes).items()]


def _sheet(
    rows: list[list[NDArray[np.uint8]]],
    titles: list[str],
    captions: list[str],
    legend: list[tuple[str, tuple[int, ...]]],
) -> NDArray[np.uint8]:
    scale = max(1, round(160 / rows[0][0].shape[0]))
    height, width = (side * scale for side in rows[0][0].shape[:2])
    font = ImageFont.load_default(14)
    measure = ImageDraw.Draw(Image.new("RGB", (1, 1)))
    text_width = max(int(measure.multiline_textbbox((0, 0), text, font=font)[2]) for text in captions)
    top, line, swatch = 24, 22, 110
    right = len(titles) * (width + _GAP) + text_width + 3 * _GAP
    bottom = top + len(rows) * (height + _GAP)
    across = max((right - _GAP) // swatch, 1)
    sheet = Image.new("RGB", (right, bottom + line * -(-len(legend) // across)), "white")
    draw = ImageDraw.Draw(sheet)
    for column, title in enumerate(titles):
        draw.text((column * (width + _GAP) + _GAP, 4), title, "black", font)
    for number, (row, caption) in enumerate(zip(rows, captions, strict=True)):
        y = top + number * (height + _GAP)
        for column, picture in enumerate(row):
            tile = Image.fromarray(np.ascontiguousarray(picture)).resize(
                (width, height), Image.Resampling.NEAREST
            )
            sheet.paste(tile, (column * (width + _GAP) + _GAP, y))
        draw.multiline_text((len(titles) * (width + _GAP) + 2 * _GAP, y + 4), caption, "black", font)
    for number, (text, color) in enumerate(legend):
        x, y = _GAP + number % across * swatch, bottom + number // across * line
        draw.rectangle((x, y + 3, x + 14, y + 17), color)
        draw.text((x + 20, y + 1), text, "black", font)
    return np.asarray(sheet)


def _spread(dataset: VisionDataset, count: int) -> Iterator[tuple[int, Sample]]:
    """Up to `count` samples at even steps through the split, without those that cannot be decoded."""
    for index in np.unique(np.linspace(0, len(dataset) - 1, min(count, len(dataset))).astype(int)).tolist():
        try:
            yield index, dataset[index]
        except DataError:
            continue


def _known(dataset: VisionDataset) -> dict[str, int | None]:
    """Samples with a label by target; those of a data set that cannot say are decoded, but the damaged ones."""
    known = known_labels(dataset, getattr(dataset, "own_targets", dataset.specs))
    open_ones = [name for name, count in known.items() if count is None]
    if open_ones:
        known |= dict.fromkeys(open_ones, 0)
        for _, sample in _spread(dataset, len(dataset)):
            for name in open_ones:
                target = sample["targets"][name].numpy()[None]
                known[name] = (known[name] or 0) + int(anything_known(dataset.specs[name], target).sum())
    return known


def _distributions(dataset: VisionDataset, *, own: bool) -> tuple[dict[str, str], list[str]]:
    """A line a target, and notes on what looks wrong in the labels of a data set of the user's own."""
    dense = any(spec.kind in _DENSE for spec in dataset.specs.values())
    looked_at = _LOOKED_AT["dense" if dense else "labels"]
    samples = [sample["targets"] for _, sample in _spread(dataset, looked_at)]
    lines: dict[str, str] = {}
    notes: list[str] = []
    for name, spec in dataset.specs.items() if samples else ():
        values = np.stack([targets[name].numpy() for targets in samples])
        lines[name] = describe_target(spec, values)
        if own:
            notes += [f"target {name}: {text}" for text in odd_labels(spec, values)]
    return lines, notes


def dark_pictures(dataset: VisionDataset, config: DataConfig) -> list[str]:
    """A note on each picture that is dark in every sample looked at: files of fewer bits than 16 are read as 16."""
    brightest: dict[str, int] = {}
    count = 0
    for _, sample in _spread(dataset, _LOOKED_AT["dense"]):
        count += 1
        for name, one in {config.first: sample["image"], **sample.get("others", {})}.items():
            if config.given[name].is_picture:
                brightest[name] = max(brightest.get(name, 0), int(one.max()))
    return [
        f"no pixel of the {count} images{f' of input {name}' if config.inputs else ''} looked at is above {value} of 255; "
        "16-bit images are read as value / 257: where they have fewer bits, say their range in "
        + (f"data.inputs.{name}.range" if config.inputs else "data.range")
        for name, value in brightest.items()
        if value < _DARK
    ]


def odd_labels(spec: TargetSpec, values: NDArray[Any]) -> list[str]:
    """What is allowed in targets (N, ...) and yet looks wrong."""
    notes: list[str] = []
    if spec.kind in ("mask", "class"):
        counts = np.bincount(values[values != spec.ignore_index].reshape(-1), minlength=len(spec.classes))
        absent = [name for name, count in zip(spec.classes, counts, strict=False) if not count]
        if absent and counts.any():
            notes.append(f"none of {some(absent)} in the {len(values)} training samples looked at")
    if spec.kind == "mask":
        shifted = [name for n, name in enumerate(spec.classes) if name.isdecimal() and int(name) != n]
        if shifted:
            number = spec.classes.index(shifted[0])
            notes.append(
                f"class {shifted[0]!r} is the value {number} of a mask: classes are named in their order"
            )
    if spec.kind == "depth" and (values > 0).any():
        middle = float(np.median(values[values > 0]))
        if not _PLAUSIBLE[0] <= middle <= _PLAUSIBLE[1]:
            notes.append(f"half of the depths are below {middle:.3g} m: is units_per_metre right?")
    return notes


def describe_target(spec: TargetSpec, values: NDArray[Any]) -> str:
    """One line: the format of a target and how its values (N, ...) are spread."""
    if spec.kind in ("mask", "class"):
        known = values if spec.ignore_index is None else values[values != spec.ignore_index]
        shares = np.bincount(known.reshape(-1), minlength=len(spec.classes)) / max(known.size, 1)
        text = ", ".join(f"{name} {share:.1%}" for name, share in zip(spec.classes, shares, strict=False))
        ignored = 1 - known.size / values.size
        return f"{spec.kind}, {len(spec.classes)} classes: {text}" + (
            f"; ignored {ignored:.1%}" if ignored else ""
        )
    if spec.kind == "scalar":
        unknown = 1 - np.isfinite(values).mean()
        values = values[np.isfinite(values)]
        if not values.size:
            return f"scalar, {spec.unit}: known 0.0%"
        low, middle, high = np.percentile(values, (5, 50, 95))
        return (
            f"scalar, {spec.unit}: mean {values.mean():.1f}, std {values.std():.1f}, "
            f"5/50/95 % {low:.0f}/{middle:.0f}/{high:.0f}, range {values.min():.0f} to {values.max():.0f}"
            + (f"; unknown {unknown:.1%}" if unknown else "")
        )
    if spec.kind == "multilabel":
        known = values >= 0
        shares = (values == 1).sum(0) / np.maximum(known.sum(0), 1)
        text = ", ".join(f"{name} {share:.1%}" for name, share in zip(spec.classes, shares, strict=True))
        unknown = 1 - known.mean()
        return f"multilabel, {len(spec.classes)} classes: {text}" + (
            f"; unknown {unknown:.1%}" if unknown else ""
        )
    if spec.kind == "instances":
        counts = [len(np.unique(numbers[numbers > 0])) for numbers in values[:, 0]]
        return (
            f"instances, {len(spec.classes)} classes: {np.mean(counts):.1f} an image, at most {max(counts)}; "
            f"pixels of instances {(values[:, 0] > 0).mean():.1%}, of crowds {(values[:, 0] < 0).mean():.1%}"
        )
    known = np.any(values != 0, axis=1)
    if spec.kind in ("depth", "disparity") and known.any():
        known_values = values[:, 0][known]
        low, middle, high = np.percentile(known_values, (5, 50, 95))
        return (
            f"{spec.kind}, {spec.unit or 'no unit'}: 5/50/95 % {low:.4g}/{middle:.4g}/{high:.4g}, "
            f"range {known_values.min():.4g} to {known_values.max():.4g}; known {known.mean():.1%}"
        )
    return f"{spec.kind}: known {known.mean():.1%}"
