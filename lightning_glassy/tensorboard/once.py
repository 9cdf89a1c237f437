"""Compute each answer once, in bounded memory and time.

TensorBoard answers each request in a thread of its own. Several pages, or one page that is loaded again, ask for the
same thing at the same time.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from typing import Generic, TypeVar

T = TypeVar("T")

_EACH = 1024  # bytes that an answer takes at least, with its question


class BusyError(Exception):
    """An answer is not ready in time. The text gives the reason."""


class Once(Generic[T]):
    """Run one computation for each key at a time. Further callers wait for its result, and nothing is kept."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running: dict[Hashable, Future[T]] = {}

    def __call__(self, key: Hashable, compute: Callable[[], T]) -> T:
        """Return the result of ``compute``, or of the computation for this key that is running."""
        with self._lock:
            is_own = key not in self._running
            future = self._running.setdefault(key, Future())
        if is_own:
            try:
                future.set_result(compute())
            except BaseException as error:
                future.set_exception(error)
            finally:
                with self._lock:
                    del self._running[key]
        return future.result()


class Answers:
    """Answers as texts, by question. The latest answers are kept.

    A computation has its own thread, because Python cannot interrupt it. A request stops waiting at its deadline. The
    computation continues, and its answer is there for the next request.

    Args:
        most_bytes: total length of the answers that are kept.
        at_once: largest number of computations at the same time.
        most_waiting: largest number of questions that are computed, or wait to be computed.
    """

    def __init__(self, *, most_bytes: int, at_once: int, most_waiting: int) -> None:
        self._most_bytes, self._most_waiting = most_bytes, most_waiting
        self._lock = threading.Lock()
        self._free = threading.Semaphore(at_once)
        self._running: dict[Hashable, Future[str]] = {}
        self._kept: OrderedDict[Hashable, str] = OrderedDict()
        self._size = 0

    def get(self, question: Hashable, compute: Callable[[], str], deadline: float) -> str:
        """Return the answer to a question.

        Args:
            question: the question, with the version of the data.
            compute: computes the answer. It is not called if the answer is known, or is being computed.
            deadline: time on the monotonic clock.

        Raises:
            BusyError: the answer is not ready at the deadline, or too many questions are waiting.
        """
        with self._lock:
            if question in self._kept:
                self._kept.move_to_end(question)
                return self._kept[question]
            future = self._running.get(question)
            if future is None:
                if time.monotonic() >= deadline:
                    raise BusyError("there was no time left for it: ask for less at a time")
                if len(self._running) >= self._most_waiting:
                    raise BusyError(f"{self._most_waiting} other questions are being answered: ask again")
                future = Future()
                arguments = (question, compute, future, deadline)
                threading.Thread(target=self._compute, args=arguments, daemon=True).start()
                self._running[question] = future  # the thread needs the lock before it can end
        try:
            return future.result(max(0.0, deadline - time.monotonic()))
        except FutureTimeoutError:
            raise BusyError("it takes long and is still being computed: ask again") from None

    def _compute(self, question: Hashable, compute: Callable[[], str], future: Future[str], deadline: float) -> None:
        answer, failure = "", None
        if self._free.acquire(timeout=max(0.0, deadline - time.monotonic())):
            try:
                answer = compute()
            except BaseException as error:
                failure = error
            finally:
                self._free.release()
        else:  # nobody waits for the answer any more
            failure = BusyError("other questions are being answered: ask again")
        with self._lock:
            del self._running[question]
            if failure is None:
                self._kept[question] = answer
                self._size += _EACH + len(answer)
                while self._size > self._most_bytes:
                    self._size -= _EACH + len(self._kept.popitem(last=False)[1])
        if failure is None:
            future.set_result(answer)
        else:
            future.set_exception(failure)
