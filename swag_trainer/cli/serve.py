"""`swag-trainer serve`: a page on this machine to type texts into."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TextIO

from swag_trainer.cli.classifier import load_classifier
from swag_trainer.cli.options import CommonOptions
from swag_trainer.cli.page import LAUNCH, build_page
from swag_trainer.errors import SwagError

if TYPE_CHECKING:
    import gradio as gr


@dataclass(frozen=True, kw_only=True)
class ServeOptions(CommonOptions):
    """What `swag-trainer serve` takes.

    Attributes:
        model: Folder or Hub name of an adapter with its posterior.
        port: 0 takes the first free one from 7860 on.
        host: Interface to listen on; 127.0.0.1 is this machine alone.
        share: Whether gradio's servers may give the page a public address.
        num_samples: S, how many draws; None for those of the tuning, or 10.
        seed: Of the draws; None for that of the tuning, or 0.
        text: What stands in the box at first and is answered when the page opens.
    """

    model: str = field(metadata={"help": "a folder with a posterior, or a repository on the Hub"})
    port: int = field(default=7860, metadata={"help": "port to listen on; 0 takes the first free one from 7860 on"})
    host: str = field(default="127.0.0.1", metadata={"help": "interface to listen on; 0.0.0.0 lets other machines in"})
    share: bool = field(default=False, metadata={"help": "give the page a public address, through gradio's servers"})
    num_samples: int | None = field(default=None, metadata={"help": "draws; as many as it was tuned with, or 10"})
    seed: int | None = field(default=None, metadata={"help": "of the draws; that of the tuning, or 0"})
    text: str = field(default="", metadata={"help": "a text to begin with"})

    def __post_init__(self) -> None:
        if not 0 <= self.port < 2**16:
            raise ValueError(f"port must lie between 0 and 65535, got {self.port}.")


def serve(options: ServeOptions, *, block: bool = True) -> gr.Blocks:
    """Load a model and serve its page until interrupted.

    Args:
        options: What to serve, and where.
        block: Return only when the server is interrupted. Otherwise the page comes back while it is served; its ``close()`` ends that.

    Raises:
        SwagError: No posterior there, no gradio, or the port is taken.
    """
    classify = load_classifier(options.model, num_samples=options.num_samples, seed=options.seed)
    page = build_page(classify, name=options.model, text=options.text)
    try:
        page.launch(
            **{**LAUNCH, "share": options.share},
            server_name=options.host,
            server_port=options.port or None,
            prevent_thread_lock=not block,
            quiet=not block,
        )
    except OSError as error:
        raise SwagError(
            f"The page cannot be served at {options.host}:{options.port}: {error} Is something else listening there? Choose another port."
        ) from error
    return page


Options = ServeOptions


def run(options: ServeOptions, out: TextIO) -> None:
    """Serve until interrupted."""
    serve(options)
