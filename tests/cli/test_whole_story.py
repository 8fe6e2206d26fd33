"""From an empty folder to a repository that answers, in the commands that a user types."""

import json
import os
import re
import subprocess
import sys

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from command_line import DEMO, demo_base
from huggingface_hub import HfApi, ModelCard, hf_hub_download, metadata_load
from minihub import LoopbackSession
from transformers import pipeline

from swag_trainer import SwagPosterior
from swag_trainer.cli.main import main
from swag_trainer.evaluation.measurement import Measurement
from swag_trainer.evaluation.methods import METHODS
from swag_trainer.evaluation.names import detection

REPO = "user/whole-story"


def tables_of_metrics(card):
    """[{method: [metric, ...]}, ...] as the card's text shows them, without intervals; None for a dash."""
    tables = re.findall(r"^\| method .*\n\|[-:|]+\n((?:\|.*\n)+)", card.text.partition("## Evaluation")[2], re.MULTILINE)
    return [
        {
            cells[0].strip("`"): [None if cell == "-" else float(cell.split(" (")[0]) for cell in cells[1:]]
            for cells in ([cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines())
        }
        for table in tables
    ]


@pytest.mark.slow
def test_train_tune_evaluate_card_push_and_predict_from_an_empty_folder(hub, tmp_path, monkeypatch, capsys):
    # Red for: a command that does not take what the one before it left, a figure of the card that was not measured, a card whose
    # example does not run or whose metadata the Hub refuses, more than one commit, a prediction that is not the pipeline's.
    monkeypatch.chdir(tmp_path)
    data = ["--dataset", str(DEMO)]
    recipe = ["--steps", "40", "--learning-rate", "5e-3", "--max-length", "24", "--target-modules", "query", "value", "dense"]
    assert main(["train", demo_base(), *data, "--output", "run", *recipe]) == 0
    assert sorted(os.listdir("run"))[:3] == ["adapter_config.json", "adapter_model.safetensors", "swag_posterior.safetensors"]
    assert main(["tune", "run", *data, "--num-samples", "4", "--scales", "0.5", "1", "4"]) == 0
    measured = ["--validation-split", "validation", "--ood", str(DEMO), "--num-resamples", "20"]
    assert main(["evaluate", "run", *data, *measured, "--output", "results.json", "--rows", "rows.parquet"]) == 0
    assert main(["card", "run", "--results", "results.json", "--repo", REPO]) == 0
    capsys.readouterr()
    assert main(["push", "run", "--repo", REPO]) == 0
    url = capsys.readouterr().out.strip()

    commits = HfApi().list_repo_commits(REPO)
    assert [commit.title for commit in commits] == ["Upload SWAG posterior", "initial commit"]
    assert commits[0].commit_id in url
    assert {
        "README.md",
        "reliability.png",
        "risk-coverage.png",
        "entropy.png",
        "mutual-information.png",
        "trajectory.png",
    } <= set(HfApi().list_repo_files(REPO))

    # The figures: rows -> JSON -> card, text and metadata.
    measured = Measurement.read("results.json")
    results = measured.to_card()
    assert (results.dataset, results.split, results.num_examples, results.num_ood) == ("support.jsonl", "test", 420, 100)
    assert list(results.metrics) == list(METHODS[:6])
    rows = pq.read_table("rows.parquet").to_pandas()
    swag = rows[(rows.method == "SWAG") & ~rows.is_ood]
    truth = np.stack(swag.probabilities)[np.arange(420), swag.label.astype(int)]
    np.testing.assert_allclose(results.metrics["SWAG"]["nll"], -np.log(truth).mean(), rtol=1e-9)
    assert results.metrics["SWAG"]["accuracy"] == swag.correct.astype(bool).mean()
    assert results.metrics["SWAG"]["nll"] == measured.metrics["SWAG"]["nll"].value
    assert measured.metrics["SWAG"]["auroc_ood_score"] == measured.metrics["SWA"]["auroc_ood_score"]
    assert "auroc_energy" in measured.metrics["MAP"] and "auroc_ood_score" not in measured.metrics["MAP"]
    card = ModelCard.load(REPO)
    tables = tables_of_metrics(card)
    for kind, table in zip((None, "auroc", "aupr", "fpr95"), tables, strict=True):
        assert list(table) == list(results.metrics)
        for method, metrics in results.metrics.items():
            expected = [value for metric, value in metrics.items() if (detection(metric) or (None,))[0] == kind]
            costs = (results.num_trainings, results.fit_seconds, results.seconds_per_example)
            expected += [cost.get(method) for cost in costs] if kind is None else []
            assert [value is None for value in table[method]] == [value is None for value in expected]
            np.testing.assert_allclose(*(np.array(each, dtype=float) for each in (table[method], expected)), rtol=1e-3)
    assert "NLL of SWAG against" in card.text
    assert "detects out-of-distribution" in card.text or "cannot be told apart at detecting" in card.text
    readme = hf_hub_download(REPO, "README.md")
    assert card.data.metrics == ["accuracy", "f1", "roc_auc"] and "model-index" not in metadata_load(readme)

    # The metadata, as the Hub's client reads and validates it.
    monkeypatch.setattr("huggingface_hub.repocard.get_session", lambda: LoopbackSession(hub))
    card.validate()
    assert card.data.to_dict() == metadata_load(readme) == yaml.safe_load(str(card).split("---\n")[1])
    assert (card.data.base_model, card.data.base_model_relation) == (demo_base(), "adapter")

    # The example runs as it stands.
    capsys.readouterr()
    exec(re.search(r"```python\n(.*?)```", card.text, re.DOTALL)[1], {})
    shown = capsys.readouterr().out
    assert "'mutual_information'" in shown and "'ood_score'" in shown

    # A new process that knows the repository's name answers as the pipeline does.
    texts = ["where is my parcel??", "-- it says delivered, but the box was empty"]
    environment = os.environ | {"HF_HOME": str(tmp_path / "home")}
    command = [sys.executable, "-m", "swag_trainer.cli.main", "predict", REPO, "--device", "cpu", "--", *texts]
    answer = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert answer.returncode == 0, answer.stderr[-3000:]
    expected = pipeline("swag-text-classification", model=REPO, device="cpu")(texts)
    found = [json.loads(line) for line in answer.stdout.splitlines()]
    assert [row.pop("text") for row in found] == texts
    assert [row.pop("label") for row in found] == [row.pop("label") for row in expected]
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(list(one.values()), list(other.values()), rtol=0, atol=1e-6)
    assert SwagPosterior.from_pretrained(REPO).tuning.num_samples == 4
