"""Signals that ask a process to end: who handles them, and for how long."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def handling(handler: Callable[[int, Any], Any]) -> Iterator[None]:
    """Handle SIGINT, SIGTERM and SIGHUP (a closed terminal) for a while.

    A signal that is ignored stays ignored, as `nohup` wants it.

    Args:
        handler: Called with the signal's number and the frame. Outside the main thread it never is.
    """
    numbers = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
    if threading.current_thread() is not threading.main_thread():
        numbers = []  # only the main thread may handle signals
    before = {number: signal.getsignal(number) for number in numbers}
    before = {number: old for number, old in before.items() if old not in (signal.SIG_IGN, None)}
    for number in before:
        signal.signal(number, handler)
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)
