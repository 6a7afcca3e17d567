"""Requests in batches, where some answers ask for another attempt."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

from magicseg.backends import Retry


def answered_in_batches(
    requests: Sequence[Any],
    batch_size: int,
    attempt: Callable[[list[Any]], Sequence[Any]],
    before_batch: Callable[[], None] = lambda: None,
    at_once: int = 1,
) -> Iterator[tuple[int, Any]]:
    """Yield the position of every request with its final answer, in the order in which they are ready.

    A request whose answer is a `Retry` waits for the others, so that retries share full batches.

    Args: attempt: answers a batch of up to ``batch_size`` requests, in order. before_batch: called before each batch;
    what it raises ends the work. at_once: batches in progress, each in a thread if there are several. With more than
    one, retries get into other batches than with one.
    """
    waiting = deque(enumerate(requests))
    started: deque[tuple[list[tuple[int, Any]], Callable[[], Sequence[Any]]]] = deque()
    with ThreadPoolExecutor(at_once, thread_name_prefix="batch") as threads:  # starts a thread when it gets work
        while waiting or started:
            while waiting and len(started) < at_once:
                before_batch()
                batch = [waiting.popleft() for _ in range(min(batch_size, len(waiting)))]
                call = partial(attempt, [request for _, request in batch])
                started.append((batch, threads.submit(call).result if at_once > 1 else call))
            batch, answers = started.popleft()
            for (position, _), answer in zip(batch, answers(), strict=True):
                if isinstance(answer, Retry):
                    waiting.append((position, answer.request))
                else:
                    yield position, answer
