"""The part of a bundle's infer.py that finds instances by their centers: arXiv:1911.10194, section 3.2."""

import numpy as np


def panoptic(raw, rule):
    """Of (K + 4, h, w) two maps: the number of each pixel's instance, 0 none and 1 the best, and its class."""
    classes = len(raw) - 3  # the background is the first
    logits, center = enlarge(raw[:classes], rule["cell"]), raw[classes]
    labels, heat = logits.argmax(0), 1 / (1 + np.exp(-center))
    numbers, names = np.zeros(labels.shape, np.int64), np.zeros(1, np.int64)
    around = np.pad(center, rule["window"] // 2, constant_values=-np.inf)
    around = np.lib.stride_tricks.sliding_window_view(around, (rule["window"], rule["window"]))
    peaks = np.argwhere((center == around.max((2, 3))) & (heat >= rule["threshold"]))
    peaks = peaks[np.argsort(-center[tuple(peaks.T)], kind="stable")][: rule["limit"]]
    pixels = np.argwhere(labels)
    if len(peaks) and len(pixels):
        votes = enlarge(raw[classes + 1 :], rule["cell"])[:, labels > 0].T * np.float32(rule["offset_unit"])
        votes = votes + pixels.astype(np.float32) + np.float32(0.5)
        places = ((peaks + 0.5) * rule["cell"]).astype(np.float32)
        parts = np.array_split(votes, -(-len(votes) // 16384))  # all at once would take much memory
        owner = np.concatenate([((one[:, None] - places) ** 2).sum(2).argmin(1) for one in parts])
        votes_of = np.zeros((len(peaks), classes), np.int64)
        np.add.at(votes_of, (owner, labels[labels > 0]), 1)
        kind, count = votes_of.argmax(1), votes_of.sum(1)
        certain = logits[:, labels > 0]
        certain = 1 / np.exp(certain - certain.max(0)).sum(0)
        sure = np.where(labels[labels > 0] == kind[owner], certain, 0)
        score = heat[tuple(peaks.T)] * np.bincount(owner, sure, len(peaks)) / np.maximum(count, 1)
        order = np.flatnonzero(count)[np.argsort(-score[count > 0].astype(np.float32), kind="stable")]
        rank = np.zeros(len(peaks), np.int64)
        rank[order] = np.arange(1, len(order) + 1)
        numbers[labels > 0], names = rank[owner], np.append(0, kind[order] - 1)
    return np.stack([numbers, names[numbers]])


def enlarge(value, factor):
    """Bilinear, (C, h, w) to (C, h * factor, w * factor), pixel centers aligned."""
    for axis in (1, 2):
        last = value.shape[axis] - 1
        place = ((np.arange((last + 1) * factor) + 0.5) / factor - 0.5).clip(0, last).astype(np.float32)
        low = place.astype(np.int64)
        share = (place - low).reshape((-1, 1) if axis == 1 else -1)
        near, far = value.take(low, axis), value.take(np.minimum(low + 1, last), axis)
        value = near + (far - near) * share
    return value
