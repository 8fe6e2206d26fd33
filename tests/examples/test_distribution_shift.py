import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from headless import headless_base
from sklearn.metrics import roc_auc_score

from swag_trainer import Predictive

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture
def shift(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    import distribution_shift

    # What it silences would stay silent for the tests after this one.
    monkeypatch.setattr(distribution_shift, "quiet_libraries", lambda: None)
    return distribution_shift


def test_mistyping_changes_about_as_many_letters_as_asked_for_and_nothing_else(shift):
    # Red for: a share of words in place of letters, digits and spaces that are touched, typos that another seed does not change.
    text = "order 20931 came broken, please send another one " * 40
    assert shift.mistyped(text, 0.0, np.random.default_rng(0)) == text
    typed = shift.mistyped("a" * 4000, 0.1, np.random.default_rng(0))
    # Of four kinds of typo in a row of equal letters, a swap is not seen and a replacement seldom stays "a".
    assert 60 <= sum(character != "a" for character in typed) <= 150
    assert shift.mistyped("20931 ?!", 1.0, np.random.default_rng(0)) == "20931 ?!"
    one, other = (shift.mistyped(text, 0.1, np.random.default_rng(seed)) for seed in (0, 1))
    assert one != other and one == shift.mistyped(text, 0.1, np.random.default_rng(0))


def test_the_interval_is_of_the_auroc_of_shifted_rows(shift):
    # Red for: known rows taken for the shifted ones, resamples that change how many there are of each.
    generator = torch.Generator().manual_seed(0)
    known = Predictive.from_logits(3 * torch.randn(4, 50, 3, generator=generator), "softmax")
    shifted = Predictive.from_logits(torch.randn(4, 20, 3, generator=generator), "softmax")
    interval = shift.shift_interval(known, shifted, "entropy", 200)
    oracle = roc_auc_score([0] * 50 + [1] * 20, np.concatenate([known.entropy, shifted.entropy]))
    assert interval.value == pytest.approx(oracle)
    assert 0.5 < interval.low < oracle < interval.high <= 1


def test_the_example_measures_typos_and_foreign_rows(shift, base_folder, tmp_path, monkeypatch, capsys):
    # Red for: a kind of shift left out, figures of the training rows, foreign rows with an accuracy.
    base = headless_base(base_folder, tmp_path / "base")
    options = f"--model {base} --steps 12 --train-rows 40 --resamples 20 --num-samples 4"
    monkeypatch.setattr(sys, "argv", ["distribution_shift.py", *options.split()])
    monkeypatch.setenv("COLUMNS", "200")
    kept = {}
    real = shift.answered
    monkeypatch.setattr(shift, "answered", lambda *arguments: kept.update(real(*arguments)) or kept)
    shift.main()
    said = capsys.readouterr().out
    assert list(kept) == ["test split", "5% typos", "15% typos", "foreign"]
    assert [len(predictive) for predictive in kept.values()] == [420, 420, 420, 100]
    line = next(line for line in said.splitlines() if "test split" in line and "accuracy" not in line and "AUROC" not in line)
    assert f"{kept['test split'].entropy.mean():.3f}" in line
    foreign = roc_auc_score([0] * 420 + [1] * 100, np.concatenate([kept["test split"].entropy, kept["foreign"].entropy]))
    assert f"{foreign:.3f} [" in said
