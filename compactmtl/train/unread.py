"""Training samples that could not be read and that others stood in for (`data.on_error: skip`): counted, joined, reported."""

from __future__ import annotations

from typing import Any

from compactmtl.data.base import Batch
from compactmtl.data.unreadable import skips
from compactmtl.distributed.agree import gathered
from compactmtl.errors import DataError
from compactmtl.train.resume import Progress
from compactmtl.train.session import Session

MOST = 0.1  # of the training split: with more the data set is broken, not a file of it
SHOWN = 10  # files in the log
_NAMED = 3  # files on the console


class UnreadSamples:
    """What the batches of training steps lacked. `progress` has it for checkpoints, the same on all processes."""

    def __init__(self, session: Session, progress: Progress) -> None:
        self._on = skips(session.recipe.data, "train")
        self._count = session.samples["train"]
        self._progress = progress
        self._places, self._unread = 0, dict[str, str]()  # of this process, since the last `join`

    def note(self, batch: Batch) -> None:
        """Count what was passed over for a batch."""
        for failed in batch.get("unread", []):
            self._places += 1
            self._unread |= failed

    def join(self) -> None:
        """Add what all processes met since the last time to the progress; of several all must come by here.

        Raises DataError where more than a tenth of the training split cannot be read.
        """
        if not self._on:
            return
        progress = self._progress
        for places, unread in gathered([self._places, self._unread]):
            progress.epoch_replaced += places
            progress.replaced += places
            progress.unread |= unread
        self._places, self._unread = 0, {}
        if len(progress.unread) > MOST * self._count:
            raise DataError(
                f"{len(progress.unread):,} of {self._count:,} training samples cannot be read, more than {MOST:.0%}: {self._named()}",
                "mend them (`compactmtl data check NAME root=FOLDER` reads them all), or take them out of the data set",
            )

    def epoch(self) -> dict[str, Any]:
        """For the epoch's line of the log; nothing where samples are not passed over."""
        if not self._on:
            return {}
        return {"unread": {"replaced": self._progress.epoch_replaced, "samples": len(self._progress.unread)}}

    def end(self) -> dict[str, Any]:
        """For the log's last line."""
        if not self._on:
            return {}
        first = dict(sorted(self._progress.unread.items())[:SHOWN])
        counts = {"replaced": self._progress.replaced, "samples": len(self._progress.unread)}
        return {"unread": {**counts, "first": first}}

    def line(self, *, of_run: bool) -> str:
        """For the user, of the epoch or of the whole run; empty where every sample was read."""
        progress = self._progress
        places = progress.replaced if of_run else progress.epoch_replaced
        if not places:
            return ""
        return (
            f"{len(progress.unread):,} of {self._count:,} training samples could not be read{'' if of_run else ' so far'}; others took "
            f"their place {places:,} times{'' if of_run else ' in this epoch'}: {self._named()}"
        )

    def _named(self) -> str:
        unread = sorted(self._progress.unread.items())
        more = ", …" if len(unread) > _NAMED else ""
        return "; ".join(what if name in what else f"{name}: {what}" for name, what in unread[:_NAMED]) + more
