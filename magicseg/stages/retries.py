"""Requests in batches, where some answers ask for another attempt."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from magicseg.backends import Retry


def answered_in_batches(
    requests: Sequence[Any],
    batch_size: int,
    attempt: Callable[[list[Any]], Sequence[Any]],
    before_batch: Callable[[], None] = lambda: None,
) -> Iterator[tuple[int, Any]]:
    """Yield the position of every request with its final answer, in the order in which they are ready.

    A request whose answer is a `Retry` waits for the others, so that retries share full batches.

    Args: attempt: answers a batch of up to ``batch_size`` requests, in order. before_batch: called before each batch;
    what it raises ends the work.
    """
    waiting = deque(enumerate(requests))
    while waiting:
        before_batch()
        batch = [waiting.popleft() for _ in range(min(batch_size, len(waiting)))]
        for (position, _), answer in zip(batch, attempt([request for _, request in batch]), strict=True):
            if isinstance(answer, Retry):
                waiting.append((position, answer.request))
            else:
                yield position, answer
