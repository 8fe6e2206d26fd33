import os
from dataclasses import dataclass, field
from typing import ClassVar

import pytest

from swag_trainer.cli.options import CommonOptions, parse_options
from swag_trainer.errors import SwagError


@dataclass(frozen=True, kw_only=True)
class Options(CommonOptions):
    positionals: ClassVar[tuple[str, ...]] = ("model", "texts")

    model: str = field(metadata={"help": "m"})
    texts: list[str] = field(default_factory=list, metadata={"help": "t"})
    learning_rate: float = field(default=0.1, metadata={"help": "l"})
    scales: list[float] | None = field(default=None, metadata={"help": "s"})
    overwrite: bool = field(default=False, metadata={"help": "o"})


def parse(*argv):
    return parse_options(Options, argv, command="try", description=None)


def yaml_file(tmp_path, text, name="options.yaml"):
    (tmp_path / name).write_text(text)
    return str(tmp_path / name)


def test_the_command_line_has_the_last_word_over_the_file(tmp_path):
    # Red for: a file that overrides what was typed, a default that overrides the file, or lists that are joined.
    file = yaml_file(tmp_path, "model: here\nlearning-rate: 5e-3\nscales: [1, 2]\noverwrite: true\n")
    assert parse(file) == Options(model="here", learning_rate=5e-3, scales=[1.0, 2.0], overwrite=True, config=file)
    assert parse("--config", file, "--scales", "4") == Options(
        model="here", learning_rate=5e-3, scales=[4.0], overwrite=True, config=file
    )
    chosen = parse(file, "there", "--learning_rate", "1", "--overwrite", "false")
    assert (chosen.model, chosen.learning_rate, chosen.overwrite) == ("there", 1.0, False)


def test_positional_arguments_stand_before_between_and_behind_options():
    # Red for: a positional that argparse takes for a leftover, or texts that are lost.
    for argv in (["m", "a", "b", "--overwrite"], ["m", "a", "--learning-rate", "0.1", "b", "--overwrite"]):
        assert parse(*argv) == Options(model="m", texts=["a", "b"], overwrite=True)
    assert parse("m", "--", "--model", "-x").texts == ["--model", "-x"]


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["m", "--learning-rat", "1"], "there is no option --learning-rat. Did you mean --learning-rate?"),
        (["m", "--over"], "there is no option --over"),
        (["--overwrite"], "needs --model"),
        (["m", "--model", "n"], "--model was given, and 'm' beside it"),
        (["m", "--learning-rate", "fast"], "invalid float value: 'fast'"),
    ],
)
def test_a_wrong_command_line_is_refused_with_what_is_wrong(argv, words, capsys):
    # Red for: a misspelt option that is ignored or taken for its abbreviation, or one value that silently wins over another.
    with pytest.raises(SystemExit) as stop:
        parse(*argv)
    assert stop.value.code == 2
    assert words in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("model: m\nlearning_rat: 1\n", "Did you mean --learning-rate?"),
        ("model: m\nscales: {a: 1}\n", "is a value or a list of values"),
        ("model: m\nlearning_rate: fast\n", "invalid float value: 'fast'"),
        ("model: m\nconfig: other.yaml\n", "there is no option --config in"),
    ],
)
def test_a_file_is_held_to_the_same_names_and_types_as_the_command_line(tmp_path, text, words, capsys):
    # Red for: keys of a file that are dropped, or a text where a number is needed.
    with pytest.raises(SystemExit) as stop:
        parse(yaml_file(tmp_path, text))
    assert stop.value.code == 2
    assert words in capsys.readouterr().err


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    # Red for: options of a file that is not there, or is no YAML, taken for no options.
    with pytest.raises(SwagError, match="missing.yaml"):
        parse(str(tmp_path / "missing.yaml"))
    with pytest.raises(SwagError, match=r"bad\.yml"):
        parse(yaml_file(tmp_path, "a: [1", "bad.yml"))
    with pytest.raises(SwagError, match="it holds list"):
        parse(yaml_file(tmp_path, "- a\n"))


def test_a_file_that_is_no_plain_yaml_is_refused_at_once(tmp_path):
    # Red for: aliases of aliases written out in a message, which fills the memory; a pipe that is waited for; a ValueError of a date.
    laughs = ["a0: &a0 [lol, lol, lol, lol, lol, lol, lol, lol, lol]"]
    laughs += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 10)]
    for text in ("\n".join([*laughs, "scales: *a9"]), "scales: &a [*a]"):
        with pytest.raises(SwagError, match="more than 100000 values"):
            parse(yaml_file(tmp_path, text))
    for text in ("scales: 2026-13-45", "scales: " + "9" * 5000):
        with pytest.raises(SwagError, match="cannot be read"):
            parse(yaml_file(tmp_path, text))
    os.mkfifo(tmp_path / "pipe.yaml")
    with pytest.raises(SwagError, match="not a regular file"):
        parse(str(tmp_path / "pipe.yaml"))
