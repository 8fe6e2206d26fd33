"""`swag-trainer fit`: posteriors of adapters that were trained without one."""

import pytest
from command_line import DEMO, demo_rows, plain_adapter, train, trained_folder
from transformers import pipeline

from swag_trainer import SwagPosterior, load_posterior
from swag_trainer.cli.main import main


@pytest.fixture(scope="module")
def adapter(tmp_path_factory):
    """The trained adapter without its posterior, as plain PEFT saves it."""
    return plain_adapter(tmp_path_factory.mktemp("plain") / "adapter")


@pytest.fixture(scope="module")
def fitting_adapter(tmp_path_factory):
    """An adapter that was trained for longer: noise raises its loss on the training examples, as TFB needs it."""
    folder = tmp_path_factory.mktemp("plain") / "fitting"
    train(folder, "--steps", "200", "--learning-rate", "1e-2", "--train-rows", "300")
    (folder / "swag_posterior.safetensors").unlink()
    return folder


@pytest.mark.parametrize(
    ("method", "trained", "kind", "shown"),
    [
        pytest.param("tfb", "fitting_adapter", "mean-field", "sigma", marks=pytest.mark.slow),
        ("laplace-head", "adapter", "kronecker", "prior precision"),
        ("laplace", "adapter", "kronecker", "held out examples"),
    ],
)
def test_a_plain_adapter_gets_a_posterior_that_answers_with_the_names_it_was_given(
    method, trained, kind, shown, request, tmp_path, capsys
):
    # Red for: a method or a setting that is not passed on, names that are lost, a tokenizer that is left behind.
    labels = SwagPosterior.from_pretrained(trained_folder()).record.labels
    adapter = request.getfixturevalue(trained)
    options = ["--dataset", str(DEMO), "--split", "train", "--labels", *labels, "--method", method, "--num-samples", "2"]
    assert main(["fit", str(adapter), *options, "--output", str(tmp_path / "fitted")]) == 0
    assert f"{shown} " in capsys.readouterr().out
    posterior = load_posterior(tmp_path / "fitted")
    rows = [row for row in demo_rows() if row["split"] == "train" and row["intent"] in labels]
    assert (posterior.kind, posterior.record.labels, posterior.fit.num_examples) == (kind, labels, len(rows))
    (answer,) = pipeline("swag-text-classification", model=str(tmp_path / "fitted"), device="cpu")("where is my parcel??")
    assert answer["label"] in labels and answer["mutual_information"] > 0
    assert main(["fit", str(adapter), *options, "--output", str(tmp_path / "fitted")]) == 1
    assert "--overwrite" in capsys.readouterr().err


def test_labels_in_another_order_than_that_of_the_record_are_refused(tmp_path, capsys):
    # Red for: a posterior fitted to exchanged classes.
    labels = SwagPosterior.from_pretrained(trained_folder()).record.labels
    options = [
        "--dataset",
        str(DEMO),
        "--split",
        "validation",
        "--labels",
        *reversed(labels),
        "--output",
        str(tmp_path / "fitted"),
    ]
    assert main(["fit", str(trained_folder()), *options]) == 1
    assert "Every class would be taken for another one" in capsys.readouterr().err
    assert not (tmp_path / "fitted").exists()
