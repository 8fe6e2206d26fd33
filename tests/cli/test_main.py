import os
import subprocess
import sys
from dataclasses import fields
from importlib import import_module

import pytest

from swag_trainer.cli.main import COMMANDS, main
from swag_trainer.errors import SwagError


def broken(error):
    def run(options, out):
        raise error

    return run


def test_help_names_every_command_and_imports_none_of_them():
    # Red for: a command that is not listed, or one that is imported (seconds) before it is asked for.
    code = (
        "import sys; from swag_trainer.cli.main import main; assert main(['--help']) == 0; "
        "print([name for name in sys.modules if name.startswith('swag_trainer.cli.') and name != 'swag_trainer.cli.main'], "
        "*[name in sys.modules for name in ('matplotlib', 'datasets', 'rich', 'pyarrow', 'torch', 'transformers')])"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    for name in ("train", "collect", "tune", "evaluate", "predict", "inspect", "card", "push"):
        assert f"\n  {name} " in shown
    assert shown.splitlines()[-1] == "[] False False False False False False"


def test_a_command_that_does_not_exist_is_wrong_usage_and_its_neighbour_is_named(capsys):
    # Red for: a traceback, another exit code, a hint that is missing.
    assert main(["trian"]) == 2
    assert "Did you mean 'train'?" in capsys.readouterr().err
    assert main([]) == 2
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("swag-trainer ")


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_every_command_has_help_for_every_option(command, capsys):
    # Red for: an option without an explanation, a percent sign that breaks argparse, a type it cannot read.
    assert main([command, "--help"]) == 0
    shown = capsys.readouterr().out
    assert f"usage: swag-trainer {command} " in shown and "--config" in shown

    for item in fields(import_module(f"swag_trainer.cli.{command}").Options):
        assert item.metadata.get("help"), (command, item.name)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (SwagError("The data are gone."), "swag-trainer inspect: The data are gone.\n"),
        (ValueError("rank must be 0 or at least 2"), "swag-trainer inspect: rank must be 0 or at least 2\n"),
        (KeyError("odd"), "swag-trainer inspect: KeyError: 'odd' (--debug shows where it came from)\n"),
    ],
)
def test_an_error_is_one_message_without_a_traceback_unless_debug_is_asked_for(error, message, monkeypatch, capsys):
    # Red for: a traceback for users, none for developers, or exit code 0 for a failure.
    import swag_trainer.cli.inspect as command

    monkeypatch.setattr(command, "run", broken(error))
    assert main(["inspect", "folder"]) == 1
    assert capsys.readouterr().err == message
    assert main(["inspect", "folder", "--debug"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_a_command_whose_reader_leaves_ends_quietly_as_unix_tools_do(monkeypatch, capsys):
    # Red for: a traceback or "Exception ignored" after `| head`, success where half was written, and a failed connection that ends without
    # a word.
    import swag_trainer.cli.inspect as command

    for run in (lambda options, out: out.write("x" * 100_000), lambda options, out: out.write("few")):
        monkeypatch.setattr(command, "run", run)
        reader, writer = os.pipe()
        os.close(reader)
        with open(writer, "w") as closed, monkeypatch.context() as patch:
            patch.setattr(sys, "stdout", closed)
            assert main(["inspect", "folder"]) == 141
        assert capsys.readouterr().err == ""
    monkeypatch.setattr(command, "run", broken(BrokenPipeError(32, "Broken pipe")))
    assert main(["inspect", "folder"]) == 1
    assert "BrokenPipeError: [Errno 32]" in capsys.readouterr().err

    code = "import sys; from swag_trainer.cli.main import main; sys.exit(main(['--help']))"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        process.stdout.close()
        assert process.wait() == 141 and process.stderr.read() == ""


def test_an_interrupted_command_exits_with_130(monkeypatch, capsys):
    # Red for: a traceback after Ctrl-C, or an exit code that a shell takes for success.
    import swag_trainer.cli.inspect as command

    monkeypatch.setattr(command, "run", broken(KeyboardInterrupt()))
    assert main(["inspect", "folder"]) == 130
    assert "Traceback" not in capsys.readouterr().err


def test_what_libraries_print_goes_to_standard_error_and_results_to_standard_output(monkeypatch, capsys):
    # Red for: the Trainer's logs or a warning between the lines that a program reads.
    import warnings

    import swag_trainer.cli.inspect as command

    def run(options, out):
        print("chatter")
        warnings.warn("mind this", UserWarning, stacklevel=1)
        out.write("result\n")

    monkeypatch.setattr(command, "run", run)
    assert main(["inspect", "folder"]) == 0
    shown = capsys.readouterr()
    assert shown.out == "result\n"
    assert shown.err == "chatter\nWarning: mind this\n"


def test_the_libraries_log_as_before_afterwards(monkeypatch):
    # Red for: a process that called main() once and sees no logs of transformers from then on.
    from transformers.utils import logging

    import swag_trainer.cli.inspect as command

    monkeypatch.setattr(command, "run", broken(SwagError("no")))
    before = logging.get_verbosity(), logging.is_progress_bar_enabled()
    assert main(["inspect", "folder"]) == 1
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == before
