"""Retries of requests to the Hub: which failures pass by themselves, and how long to wait for it."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TypeVar

from huggingface_hub.errors import HfHubHTTPError, HTTPError, LocalEntryNotFoundError, RevisionResolutionError

TOO_MANY_REQUESTS = 429
_TRANSIENT = {TOO_MANY_REQUESTS, 500, 502, 503, 504}
# Of the HTTP library: the connection broke after it was made, or nothing came for too long. One that is refused is not tried again.
DROPPED = {"ReadError", "ReadTimeout", "RemoteProtocolError", "WriteError", "WriteTimeout"}
ATTEMPTS = 5
_LONGEST_PAUSE = 60.0  # seconds

_Result = TypeVar("_Result")


def retried(call: Callable[[], _Result], *, also: tuple[type[Exception], ...] = ()) -> _Result:
    """Return the result of a request that changes nothing if it is made twice; one that fails for a while is made again.

    Args:
        call: Makes the request.
        also: Errors of a library that does not say which reply of the Hub they come from: after those it is made again too.
    """
    failures = 0
    while True:
        try:
            return call()
        except (HTTPError, LocalEntryNotFoundError, RevisionResolutionError, *also) as error:
            failures += 1
            # What cannot be found in the cache either has the Hub's own error as its cause.
            pause = pause_after(error, failures) or pause_after(error.__cause__, failures)
            if pause is None and isinstance(error, also) and status_of(error) is None:
                pause = _growing(failures)
            if pause is None or failures == ATTEMPTS:
                raise
            time.sleep(pause)


def pause_after(error: BaseException | None, failures: int) -> float | None:
    """Return for how many seconds to wait before another attempt, which the Hub may say; None where one is of no use."""
    growing = _growing(failures)
    if isinstance(error, HfHubHTTPError) and status_of(error) in _TRANSIENT:
        asked = _seconds(error.response.headers.get("retry-after"))
        return min(growing if asked is None else asked, _LONGEST_PAUSE)
    return growing if type(error).__name__ in DROPPED else None


def _growing(failures: int) -> float:
    return 0.5 * 2 ** (failures - 1)


def _seconds(retry_after: str | None) -> float | None:
    """Read a header Retry-After: a number of seconds, or a date."""
    if retry_after is None:
        return None
    if retry_after.strip().isdigit():
        return float(retry_after)
    try:
        return max(0.0, (parsedate_to_datetime(retry_after) - datetime.now(UTC)).total_seconds())
    except (TypeError, ValueError):
        return None


def status_of(error: BaseException | None) -> int | None:
    """Return the status of the Hub's reply that an error is about; None where there was no reply."""
    response = error.response if isinstance(error, HfHubHTTPError) else None
    return None if response is None else response.status_code
