import sys
from pathlib import Path
from types import SimpleNamespace

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


@pytest.mark.parametrize(("kind", "typed"), [(0, "bac"), (1, "bc"), (2, "aabc"), (3, "zbc")])
def test_a_letter_is_swapped_dropped_doubled_or_replaced(shift, kind, typed):
    # Red for: a kind of typo that leaves the text as it was. The first letter of "abc" is mistyped, the others are not.
    shares, numbers = iter([0.0, 1.0, 1.0]), iter([kind, 25])
    generator = SimpleNamespace(random=lambda: next(shares), integers=lambda count: min(next(numbers), count - 1))
    assert shift.mistyped("abc", 0.5, generator) == typed


def test_the_interval_is_of_the_auroc_of_shifted_examples(shift, monkeypatch):
    # Red for: unshifted examples taken for the shifted ones, resamples that change how many there are of each.
    generator = torch.Generator().manual_seed(0)
    known = Predictive.from_logits(3 * torch.randn(4, 50, 3, generator=generator), "softmax")
    shifted = Predictive.from_logits(torch.randn(4, 20, 3, generator=generator), "softmax")
    sizes, real = set(), shift.auroc
    monkeypatch.setattr(shift, "auroc", lambda one, other: sizes.add((len(one), len(other))) or real(one, other))
    interval = shift.shift_interval(known, shifted, "entropy", 200)
    assert sizes == {(50, 20)}
    oracle = roc_auc_score([0] * 50 + [1] * 20, np.concatenate([known.entropy, shifted.entropy]))
    assert interval.value == pytest.approx(oracle)
    assert 0.5 < interval.low < oracle < interval.high <= 1


def test_the_means_are_of_the_rows_they_stand_beside(shift):
    # Red for: the accuracy of the rows without typos in every line, an accuracy of OOD examples, a score in another's column.
    def predictions(right):
        logits = torch.tensor([[4.0, 0.0]] * right + [[0.0, 4.0]] * (4 - right))
        return Predictive.from_logits(torch.stack([logits, 0.5 * logits]), "softmax")

    kept = {"test split": predictions(4), "5% typos": predictions(3), "OOD": predictions(2)}
    task = shift.TextTask("t", ["x", "y"], {}, {"test": np.zeros(4, dtype=int)}, ["?"])
    table = shift.averages(kept, task)
    columns = {column.header: list(column.cells) for column in table.columns}
    assert columns["examples"] == list(kept) and columns["accuracy"] == ["1.000", "0.750", "-"]
    first = kept["test split"]
    for header, score in (
        ("entropy", first.entropy),
        ("mutual information", first.mutual_information),
        ("aleatoric", first.aleatoric),
    ):
        assert columns[f"{header} (nats)"][0] == f"{score.mean():.3f}"
    assert "with 2 draws" in table.title


def test_the_example_measures_typos_and_ood_examples(shift, base_folder, tmp_path, monkeypatch, capsys):
    # Red for: a kind of shift left out, metrics of the training examples, OOD examples with an accuracy.
    base = headless_base(base_folder, tmp_path / "base")
    options = f"--model {base} --steps 12 --train-rows 40 --resamples 20 --num-samples 4 --scale 2"
    monkeypatch.setattr(sys, "argv", ["distribution_shift.py", *options.split()])
    monkeypatch.setattr(shift.console, "width", 200)  # it read the terminal's when it was made
    kept = {}
    real = shift.predicted
    monkeypatch.setattr(shift, "predicted", lambda *arguments: kept.update(real(*arguments)) or kept)
    shares, settings = [], []
    mistype, predictor = shift.mistyped, shift.MonteCarloPredictor
    monkeypatch.setattr(
        shift, "mistyped", lambda text, share, generator: shares.append(share) or mistype(text, share, generator)
    )
    monkeypatch.setattr(shift, "MonteCarloPredictor", lambda *a, **k: settings.append(k) or predictor(*a, **k))
    shift.main()
    shown = capsys.readouterr().out
    assert shares == [0.05] * 420 + [0.15] * 420
    assert settings == [{"num_samples": 4, "seed": 0, "scale": 2.0, "progress": False}]
    # The labels are those of the test split, typos or not; there is one row in the second table for each kind of shift.
    labels = shift.read_task(str(EXAMPLES / "data" / "support.jsonl")).targets["test"]
    cells = [[cell.strip() for cell in line.split("│")[1:-1]] for line in shown.splitlines() if "│" in line]
    assert [row[0] for row in cells] == ["test split", "5% typos", "15% typos", "OOD", "5% typos", "15% typos", "OOD"]
    for (name, accuracy, *_), predictive in zip(cells[:3], kept.values(), strict=False):
        assert accuracy == f"{(predictive.probabilities.argmax(axis=1) == labels).mean():.3f}", name
    assert cells[3][1] == "-"
    line = next(line for line in shown.splitlines() if "test split" in line and "accuracy" not in line and "AUROC" not in line)
    assert f"{kept['test split'].entropy.mean():.3f}" in line
    ood = roc_auc_score([0] * 420 + [1] * 100, np.concatenate([kept["test split"].entropy, kept["OOD"].entropy]))
    assert f"{ood:.3f} [" in shown
