"""Samples that cannot be read in training: an error, or another one in their place (`data.on_error`).

With `skip` the next sample of the split, in the split's own order, takes the place. Which one that is depends on the files
alone, so that batches are the same for any number of workers and processes and after any resumption. A batch keeps its
size: a loss is the mean over images that were really read, and batch norm sees no blank one.
"""

from __future__ import annotations

from compactmtl.config.recipe import DataConfig
from compactmtl.data.base import Sample, VisionDataset
from compactmtl.errors import DataError

IN_A_ROW = 32  # samples that fail one after the other: a folder that is gone, not a damaged file
GO_ON = "or go on without it: data.on_error=skip"
ALONE = "data.on_error: skip passes over training samples alone, since metrics are to be of the same images in every run"
Unread = dict[str, str]  # the samples that were tried in vain for one place of a batch: name -> what is wrong


def skips(config: DataConfig, split: str) -> bool:
    """Whether samples of a split that cannot be read are passed over: of the training split alone, and where that is asked for.

    Metrics on other splits must be of the same images in every run.
    """
    return config.on_error == "skip" and split == "train"


def with_mend(error: DataError, config: DataConfig, split: str) -> DataError:
    """The error of a sample with a mend that says, where that is asked for and does not help, why it is not passed over."""
    if config.on_error == "raise" or skips(config, split) or ALONE in error.hint:
        return error
    return DataError(error.message, f"{error.hint}; {ALONE}")


def read_sample(dataset: VisionDataset, config: DataConfig, index: int) -> tuple[Sample, Unread]:
    """The sample `index`, or the one that takes its place, and what was tried in vain before it.

    Raises DataError for a sample that cannot be read and is not passed over, or with which 32 in a row cannot.
    """
    try:
        return dataset[index], {}
    except DataError as error:
        if not skips(config, dataset.split):
            go_on = config.on_error == "raise" and dataset.split == "train" and not config.pseudo_labels
            mended = DataError(error.message, f"{error.hint}; {GO_ON}") if go_on else error
            raise with_mend(mended, config, dataset.split) from error
        unread = {dataset.identifier(index): error.message}
        first = error
    count = len(dataset)
    for step in range(1, min(IN_A_ROW, count)):
        number = (index + step) % count
        try:
            return dataset[number], unread
        except DataError as error:
            unread[dataset.identifier(number)] = error.message
    raise DataError(
        f"{len(unread)} samples in a row cannot be read, the first of them: {first.message}",
        "look whether the folder of the data is there and whole: `compactmtl data check NAME root=FOLDER` names what is damaged",
    )
