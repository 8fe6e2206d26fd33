"""Serve a local web page that predicts with uncertainty."""

from __future__ import annotations

import errno
import socket
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, TextIO

from swag_trainer.cli.classifier import find_task, load_pipeline
from swag_trainer.cli.files import require
from swag_trainer.cli.options import ClassifierOptions
from swag_trainer.cli.page import LAUNCH, build_page
from swag_trainer.cli.task_page import build_task_page
from swag_trainer.errors import SwagError
from swag_trainer.tasks.sequence_classification import SequenceClassification

if TYPE_CHECKING:
    import gradio as gr


@dataclass(frozen=True, kw_only=True)
class ServeOptions(ClassifierOptions):
    """Options of `swag-trainer serve`.

    Attributes:
        model: Folder or Hub name of an adapter with its posterior.
        port: 0 takes the first free one from 7860 on.
        host: Interface to listen on; 127.0.0.1 is this machine alone.
        share: Whether gradio's servers may give the page a public address.
        num_samples: S, how many draws; None for those of the tuning, or 10.
        seed: Of the draws; None for that of the tuning, or 0.
        text: Text in the first box; one to classify is classified when the page opens.

    Raises:
        SwagError: The port or a number of draws is out of range.
    """

    counts: ClassVar[tuple[str, ...]] = ("num_samples",)

    port: int = field(default=7860, metadata={"help": "port to listen on; 0 takes the first free one from 7860 on"})
    host: str = field(default="127.0.0.1", metadata={"help": "interface to listen on; 0.0.0.0 lets other machines in"})
    share: bool = field(default=False, metadata={"help": "give the page a public address, through gradio's servers"})
    num_samples: int | None = field(default=None, metadata={"help": "number of draws; default: that of the tuning, or 10"})
    seed: int | None = field(default=None, metadata={"help": "of the draws; default: that of the tuning, or 0"})
    text: str = field(default="", metadata={"help": "a text to begin with"})

    def __post_init__(self) -> None:
        if not 0 <= self.port < 2**16:
            raise SwagError(f"--port must lie between 0 and 65535, got {self.port}.")
        super().__post_init__()


def serve(options: ServeOptions, *, block: bool = True, out: TextIO | None = None) -> gr.Blocks:
    """Load a model and serve its page until interrupted.

    Args:
        options: What to serve, and where.
        block: Return only when the server is interrupted. Otherwise the page comes back while it is served; its ``close()`` ends that.
        out: Where the address is written once the page is served; None for nowhere.

    Raises:
        SwagError: No posterior there, no gradio, or the port is taken.
    """
    require("gradio", extra="page")
    _check_free(options)
    page = _page(options)
    try:
        page.launch(
            **{**LAUNCH, "share": options.share},
            server_name=options.host,
            server_port=options.port or None,
            prevent_thread_lock=True,
            quiet=True,  # gradio would advise a public link, of which it writes the address itself where one was asked for
        )
    except OSError as error:
        raise _refusal(options, error) from error
    if out is not None:
        out.write(f"The page is at {page.local_url} until Ctrl-C.\n")
        out.flush()
    if block:
        page.block_thread()
    return page


def _page(options: ServeOptions) -> gr.Blocks:
    posterior, task = find_task(options)
    drawing = {"num_samples": options.num_samples, "seed": options.seed}
    loaded = load_pipeline(options, posterior, task, **drawing)
    if task.name == SequenceClassification.name and loaded.predicted_task().link(loaded.model.config) == "softmax":
        return build_page(loaded, name=options.model, text=options.text)
    return build_task_page(loaded, name=options.model, text=options.text)


def _check_free(options: ServeOptions) -> None:
    """Refuse a port that is taken before the model is loaded; what else can be wrong with an address gradio finds out."""
    with socket.socket() as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind((options.host, options.port))
        except OSError as error:
            if error.errno in (errno.EADDRINUSE, errno.EACCES):
                raise _refusal(options, error) from error


def _refusal(options: ServeOptions, error: OSError) -> SwagError:
    return SwagError(
        f"The page cannot be served at {options.host}:{options.port}: {error}. Is something else listening there? Choose another --port."
    )


Options = ServeOptions


def run(options: ServeOptions, out: TextIO) -> None:
    """Serve until interrupted."""
    serve(options, out=out)
