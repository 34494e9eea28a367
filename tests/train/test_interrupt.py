"""Ctrl-C and SIGTERM become a request; handlers are put back."""

from __future__ import annotations

import signal
import threading

import pytest

from compactmtl.train.interrupt import Interrupt


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_a_request(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with Interrupt() as interrupt:
        states = [interrupt.requested]
        signal.raise_signal(number)
        states.append(interrupt.requested)
    assert states == [False, True]
    assert signal.getsignal(number) == before


def test_a_second_ctrl_c_does_not_wait() -> None:
    with Interrupt():
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_a_second_sigterm_still_waits() -> None:
    with Interrupt() as interrupt:
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)
        assert interrupt.requested


def test_another_thread_trains_without_signals() -> None:
    found: list[bool] = []

    def train() -> None:
        with Interrupt() as interrupt:
            found.append(interrupt.requested)

    thread = threading.Thread(target=train)
    thread.start()
    thread.join()
    assert found == [False]
