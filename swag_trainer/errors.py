"""The errors of this package.

They descend from ``Exception`` alone: while transformers loads the model of a pipeline it catches OSError, ValueError,
TypeError and RuntimeError and goes on with another model (``transformers/pipelines/base.py``, ``load_model``). A posterior
that was refused with one of those would be replaced by a point estimate.
"""


class SwagError(Exception):
    """Something this package was asked for cannot be done as asked. All its own errors are of this family."""


class AdapterMismatchError(SwagError):
    """The posterior (or the moments it is made of) belongs to another adapter or another base model."""


class PosteriorFormatError(SwagError):
    """A file does not hold what its name promises: truncated, edited, of a newer format, or with impossible values."""


class PosteriorNotFoundError(SwagError):
    """The folder or repository that should hold a posterior has none, or it cannot be reached."""


class TooFewCollectionsError(SwagError):
    """Fewer than two weight vectors were collected, so there is no covariance to speak of."""


class DropoutError(SwagError):
    """Draws cannot drop out: the model has a kind of dropout that is not supported."""


class NoDropoutError(DropoutError):
    """Draws cannot drop out: nothing in the model does."""


def shortened(text: str) -> str:
    """Return untrusted text, at most 200 characters of it, for a message."""
    return text if len(text) <= 200 else text[:197] + "..."


def printable(text: str) -> str:
    """Return untrusted text for a message: as it is, or with its characters spelt where it has some that cannot be printed."""
    return text if text.replace("\n", " ").isprintable() else repr(text)
