"""Hold back transformers' reports about weights that a checkpoint lacks, where this package checks them itself.

A classifier's head comes from the adapter. transformers sees the base model's checkpoint alone, and advises to train the head.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_LOGGER = "transformers.modeling_utils"


@contextmanager
def load_reports_held_back() -> Iterator[None]:
    """Keep the load reports of this thread from being logged; where the block fails, they are logged, as its error may point to them."""
    thread, held = threading.get_ident(), []

    def pass_on(record: logging.LogRecord) -> bool:
        if record.thread != thread or "LOAD REPORT" not in record.getMessage():
            return True
        held.append(record)
        return False

    logger = logging.getLogger(_LOGGER)
    logger.addFilter(pass_on)
    try:
        yield
    except BaseException:
        logger.removeFilter(pass_on)
        for record in held:
            logger.handle(record)
        raise
    finally:
        logger.removeFilter(pass_on)
