"""The posterior in the Trainer's output folder: saved beside the adapter, and deleted there when it is out of date."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from swag_trainer.adapters.plain_lora import to_plain_lora
from swag_trainer.collection.trainer_access import delete_from_hub
from swag_trainer.posterior.folder import POSTERIOR_FILE
from swag_trainer.posterior.swag import SwagPosterior

logger = logging.getLogger(__name__)


def save_portable(posterior: SwagPosterior, folder: Path) -> None:
    """Save a posterior so that another process can load it: as plain LoRA where the adapter's initialisation cannot be repeated."""
    (posterior if posterior.adapter.is_reproducible else to_plain_lora(posterior)).save_pretrained(folder)


def warn_about_plain_lora(posterior: SwagPosterior) -> None:
    """Log a warning where `save_portable` saved another adapter than the Trainer's own methods would."""
    if not posterior.adapter.is_reproducible:
        logger.warning(
            "The adapter was initialised with %r, which no other process can repeat: its posterior was saved as plain LoRA. "
            "trainer.save_model() and trainer.push_to_hub() would put the adapter itself in its place; call "
            "swag_trainer.to_plain_lora(swag.posterior) and its save_pretrained() and push_to_hub().",
            posterior.record.initialisation,
        )


def delete_stale_posterior(trainer: Any, folder: Path, output_dir: str) -> None:
    """Delete the posterior of an earlier run in a folder and on the Hub, before the Trainer pushes another adapter beside it.

    Args:
        trainer: The Trainer; None where it was not found, and the Hub is left alone.
        folder: Where the posterior lies.
        output_dir: The Trainer's; the same path below it is that on the Hub.
    """
    stale = folder / POSTERIOR_FILE
    if stale.exists():
        logger.info("%s of an earlier run is deleted: the adapter beside it is being replaced.", str(stale))
        stale.unlink()
    delete_from_hub(trainer, stale.relative_to(output_dir).as_posix())
