"""Entry point of the command line: finds the command, runs it, and turns errors into one message and an exit code.

Exit codes: 0 success; 1 the command failed; 2 the command line is wrong; 130 interrupted; 141 the reader of the output left, as `head` does.
"""

from __future__ import annotations

import contextlib
import difflib
import importlib
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TextIO

FINE, FAILED, WRONG_USAGE, INTERRUPTED, OUTPUT_CLOSED = 0, 1, 2, 130, 141

# The modules are imported when their command is asked for: this list is all that --help needs.
COMMANDS = {
    "train": "fine-tune a model with LoRA on labelled text, and collect a posterior meanwhile",
    "collect": "make a posterior of the saved checkpoints of a training run",
    "fit": "make a posterior of an adapter that was trained without one",
    "mix": "make one posterior of several, such as of runs with other seeds (MultiSWAG)",
    "tune": "choose scale, temperature and thresholds on held-out text or questions",
    "evaluate": "measure a model, with a posterior or without, on held-out text or questions",
    "predict": "predict texts, images or questions, with uncertainty",
    "inspect": "show the metadata of a posterior",
    "card": "write the model card with the metrics that evaluate measured",
    "push": "put adapter, posterior, tokenizer, card and plots on the Hub",
    "export": "write the draws as LoRA adapters for vLLM, TGI, LoRAX or plain PEFT",
    "serve": "serve a local web page that predicts with uncertainty",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return the exit code; ``argv`` is the command line without the program's name."""
    try:
        code = _dispatch(argv)
    except BrokenPipeError:  # of standard error
        code = OUTPUT_CLOSED
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except BrokenPipeError:
            code = OUTPUT_CLOSED
            # The interpreter flushes again when it exits, and reports what fails then.
            with open(os.devnull, "w") as nowhere:
                os.dup2(nowhere.fileno(), stream.fileno())
    return code


class _OutputClosedError(Exception):
    """The reader of standard output has left."""


class _Results:
    """Standard output, whose broken pipe is told from that of a connection."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        return self._unless_closed(lambda: self._stream.write(text))

    def flush(self) -> None:
        self._unless_closed(self._stream.flush)

    @staticmethod
    def _unless_closed(call: Callable[[], Any]) -> Any:
        try:
            return call()
        except BrokenPipeError as error:
            raise _OutputClosedError from error


def _dispatch(argv: Sequence[str] | None) -> int:
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        (sys.stdout if arguments else sys.stderr).write(_overview())
        return FINE if arguments else WRONG_USAGE
    name, *rest = arguments
    if name == "--version":
        from swag_trainer.version import __version__

        sys.stdout.write(f"swag-trainer {__version__}\n")
        return FINE
    if name not in COMMANDS:
        close = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f"Did you mean {close[0]!r}?" if close else f"There are {', '.join(COMMANDS)}."
        sys.stderr.write(f"swag-trainer: there is no command {name[:50]!r}. {hint}\n")
        return WRONG_USAGE
    return _run(name, rest)


def _overview() -> str:
    commands = "".join(f"  {name:<9} {summary}\n" for name, summary in COMMANDS.items())
    return (
        "usage: swag-trainer COMMAND [FILE.yaml] [options]\n\nBayesian low-rank adaptation for the Hugging Face Trainer.\n\n"
        f"commands:\n{commands}\nswag-trainer COMMAND --help lists the options of a command.\n"
    )


def _run(name: str, arguments: list[str]) -> int:
    results, debug = _Results(sys.stdout), "--debug" in arguments
    try:
        # Standard output is for results: what libraries print while they work goes where the progress bars are.
        with contextlib.redirect_stdout(sys.stderr):
            command: Any = importlib.import_module(f"swag_trainer.cli.{name}")
            from swag_trainer.cli.options import parse_options
        options = parse_options(command.Options, arguments, command=name, description=command.__doc__)
        debug = options.debug
        with contextlib.redirect_stdout(sys.stderr), _quiet_libraries(), _plain_warnings():
            command.run(options, results)
        return FINE
    except SystemExit as stop:  # of argparse: 0 after --help, 2 after what it could not read
        return stop.code if isinstance(stop.code, int) else FAILED
    except KeyboardInterrupt as stop:
        sys.stderr.write(f"\n{_interruption(stop, name, arguments)}\n")
        return INTERRUPTED
    except _OutputClosedError:
        return OUTPUT_CLOSED
    except Exception as error:  # outermost frame: every error becomes a message, none is repaired
        if debug:
            traceback.print_exc()
        else:
            sys.stderr.write(f"swag-trainer {name}: {_message(error)}\n")
        return FAILED


def _interruption(stop: KeyboardInterrupt, name: str, arguments: list[str]) -> str:
    from swag_trainer.cli.resumable import ResumableInterrupt, resuming_command

    if isinstance(stop, ResumableInterrupt):
        return f"{stop} This continues it:\n  {resuming_command(name, arguments)}"
    return "Interrupted."


def _message(error: Exception) -> str:
    from swag_trainer.errors import SwagError

    # Their texts are whole sentences; that of any other error needs the name of its class.
    if isinstance(error, (SwagError, ValueError, ImportError)) and str(error):
        return str(error)
    return f"{type(error).__name__}: {error} (--debug shows where it came from)"


@contextlib.contextmanager
def _plain_warnings() -> Iterator[None]:
    """Show a warning as one line without the line of code that it came from."""

    def show(message: Warning | str, category: type[Warning], *where: Any, file: TextIO | None = None, **others: Any) -> None:
        sys.stderr.write(f"Warning: {message}\n")

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
        warnings.showwarning = show
        yield


@contextlib.contextmanager
def _quiet_libraries() -> Iterator[None]:
    """Keep transformers from reporting every file it loads; its errors are still shown."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


if __name__ == "__main__":
    sys.exit(main())
