"""Posteriors over the weights of an adapter: their families, their files, and `load_posterior`, which finds the family of a file."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from swag_trainer.posterior.base import WeightPosterior

# The modules of the families that come with this package; a module's class registers its kind when it is imported.
_FAMILIES = ("coefficients", "combined", "kronecker", "mean_field", "mixture", "point", "swag")


def import_families() -> None:
    """Import the families that come with this package, so that their kinds are known."""
    for family in _FAMILIES:
        import_module(f"{__name__}.{family}")


def load_posterior(pretrained_model_name_or_path: str | Path, **hub: Any) -> WeightPosterior:
    """Load a posterior of any kind, with the adapter it belongs to, from a folder or a repository on the Hub.

    The class is found by the ``kind`` in the file. A family of your own is known once its module has been imported.

    Args:
        pretrained_model_name_or_path: A folder, or "user/name" on the Hub.
        hub: ``revision``, ``token``, ``cache_dir``, ``force_download``, ``local_files_only`` and ``ignore_mismatched_adapter``, see
            `WeightPosterior.from_pretrained`, whose errors are raised.
    """
    import_families()
    return import_module(f"{__name__}.base").WeightPosterior.from_pretrained(pretrained_model_name_or_path, **hub)
