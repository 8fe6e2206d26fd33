import json
import shutil

import pytest
from command_line import DEMO, trained_folder
from huggingface_hub import HfApi, ModelCard, hf_hub_download

from swag_trainer import SwagPosterior
from swag_trainer.cli.main import main
from swag_trainer.evaluation.measurement import Measurement


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """A trained folder and its measured metrics."""
    file = tmp_path_factory.mktemp("measured") / "results.json"
    options = ["--methods", "SWA", "SWAG", "--num-samples", "2", "--num-resamples", "2", "--output", str(file)]
    assert main(["evaluate", str(trained_folder()), "--dataset", str(DEMO), *options]) == 0
    return trained_folder(), str(file)


@pytest.fixture
def folder(measured, tmp_path):
    """A copy that a test may write into."""
    shutil.copytree(measured[0], tmp_path / "run")
    return tmp_path / "run"


def test_text_outside_the_card_stays_and_the_card_is_replaced(measured, folder, capsys):
    # Red for: a README.md that is overwritten, a second card below the first, plots that the card does not link to.
    (folder / "README.md").write_text("---\nlicense: mit\n---\n# Mine\n\nMy words.\n")
    assert main(["card", str(folder), "--results", measured[1], "--repo", "user/one"]) == 0
    assert capsys.readouterr().out.split()[0] == str(folder / "README.md")
    first = (folder / "README.md").read_text()
    assert main(["card", str(folder), "--repo", "user/two"]) == 0
    second = (folder / "README.md").read_text()
    for text in (first, second):
        assert "My words." in text and "license: mit" in text and text.count("swag_trainer card begins") == 1
    assert 'model="user/one"' in first and "| SWAG |" in first
    assert 'model="user/two"' in second and 'model="user/one"' not in second and "| SWAG |" not in second
    assert all(
        (folder / name).read_bytes()[1:4] == b"PNG" for name in ("reliability.png", "risk-coverage.png", "trajectory.png")
    )


def test_metrics_of_another_posterior_are_refused(measured, folder, capsys):
    # Red for: metrics of the posterior as it was before it was tuned, on the card of the tuned one.
    SwagPosterior.from_pretrained(folder).with_scale(3.0).save_pretrained(folder)
    assert main(["card", str(folder), "--results", measured[1]]) == 1
    assert "measured with another posterior" in capsys.readouterr().err
    assert not (folder / "README.md").exists()


def test_plots_that_are_not_ours_are_not_overwritten(measured, folder, capsys):
    # Red for: a picture that happens to have our plot's name and is gone.
    (folder / "reliability.png").write_text("mine")
    assert main(["card", str(folder), "--results", measured[1]]) == 1
    assert "--overwrite replaces it" in capsys.readouterr().err
    assert (folder / "reliability.png").read_text() == "mine" and not (folder / "README.md").exists()
    assert main(["card", str(folder), "--output", str(folder / "card.txt")]) == 1
    assert main(["card", "user/repository"]) == 1
    assert "--output README.md" in capsys.readouterr().err


def test_a_push_keeps_the_text_of_the_repository_and_is_one_commit(measured, folder, hub):
    # Red for: text on the Hub that a push replaces, two commits, a checkpoint or results that were not to be published.
    HfApi().create_repo("user/cli-words", exist_ok=True)
    HfApi().upload_file(
        repo_id="user/cli-words", path_in_repo="README.md", path_or_fileobj=b"---\nlicense: mit\n---\nTheir words.\n"
    )
    (folder / "secret.txt").write_text("not for you")
    before = len(HfApi().list_repo_commits("user/cli-words"))
    assert main(["push", str(folder), "--repo", "user/cli-words", "--results", measured[1], "--message", "Metrics"]) == 0
    commits = HfApi().list_repo_commits("user/cli-words")
    assert (len(commits) - before, commits[0].title) == (1, "Metrics")
    card = ModelCard.load("user/cli-words")
    assert "Their words." in card.text and card.data.license == "mit" and "| SWAG |" in card.text
    files = set(HfApi().list_repo_files("user/cli-words"))
    assert {"adapter_model.safetensors", "swag_posterior.safetensors", "tokenizer.json", "reliability.png"} <= files
    assert "secret.txt" not in files
    values = Measurement.read(measured[1]).to_card().metrics["SWAG"]
    assert card.data.metrics == ["accuracy", "f1"] and f"{values['nll']:.4g}" in card.text
    assert "model-index" not in card.data.to_dict()  # support.jsonl is no data set of the Hub
    posterior = SwagPosterior.from_pretrained(folder)
    assert SwagPosterior.from_pretrained("user/cli-words").adapter.digest == posterior.adapter.digest


def test_a_card_that_would_be_wrong_in_the_repository_is_not_pushed(measured, folder, capsys):
    # Red for: an example about another repository, metrics of another posterior, a link to a plot that is not there.
    assert main(["card", str(folder), "--results", measured[1], "--repo", "user/other"]) == 0
    assert main(["push", str(folder), "--repo", "user/cli-lies"]) == 1
    assert "is not about 'user/cli-lies'" in capsys.readouterr().err
    assert main(["card", str(folder), "--results", measured[1], "--repo", "user/cli-lies"]) == 0
    (folder / "risk-coverage.png").rename(folder / "hidden.png")
    assert main(["push", str(folder), "--repo", "user/cli-lies"]) == 1
    assert "which is not there" in capsys.readouterr().err
    (folder / "hidden.png").rename(folder / "risk-coverage.png")
    SwagPosterior.from_pretrained(folder).with_scale(3.0).save_pretrained(folder)
    assert main(["push", str(folder), "--repo", "user/cli-lies"]) == 1
    assert "describes another posterior" in capsys.readouterr().err
    assert not HfApi().repo_exists("user/cli-lies")
    assert main(["push", "user/no-folder", "--repo", "user/cli-lies"]) == 1


def test_a_base_that_is_a_folder_of_this_machine_is_not_published(measured, folder, hub, capsys, tmp_path):
    # Red for: a path of this machine in adapter_config.json on the Hub, in the posterior's record or in the card.
    posterior = SwagPosterior.from_pretrained(folder)
    published = posterior.adapter.base_model
    (tmp_path / "base").mkdir()
    posterior.with_base_model(str(tmp_path / "base")).save_pretrained(folder)
    assert main(["push", str(folder), "--repo", "user/cli-path"]) == 1
    assert "by a folder of this machine" in capsys.readouterr().err and not HfApi().repo_exists("user/cli-path")
    assert main(["push", str(folder), "--repo", "user/cli-path", "--base-model", str(tmp_path)]) == 1
    assert main(["card", str(folder), "--repo", "user/cli-path", "--results", measured[1]]) == 0
    assert main(["push", str(folder), "--repo", "user/cli-path", "--base-model", published]) == 1
    assert "does not name the base model" in capsys.readouterr().err
    options = ["--repo", "user/cli-path", "--base-model", published]
    assert main(["card", str(folder), *options, "--results", measured[1]]) == 0
    assert main(["push", str(folder), *options]) == 0
    pushed = SwagPosterior.from_pretrained("user/cli-path")
    assert pushed.adapter.base_model == pushed.record.base_model == published and pushed.digest == posterior.digest
    card = ModelCard.load("user/cli-path")
    assert card.data.base_model == published and str(tmp_path) not in str(card)


def test_inspect_shows_the_metadata_of_the_file(measured, capsys):
    # Red for: a field that is left out, a label that is taken for markup, invalid JSON.
    posterior = SwagPosterior.from_pretrained(measured[0])
    assert main(["inspect", str(measured[0]), "--json"]) == 0
    metadata = json.loads(capsys.readouterr().out)
    assert metadata["num_weights"] == posterior.layout.size and metadata["rank"] == posterior.rank
    assert {name: metadata[name] for name in posterior.record.as_document()} == json.loads(
        json.dumps(posterior.record.as_document())
    )
    assert main(["inspect", str(measured[0])]) == 0
    shown = capsys.readouterr().out
    assert posterior.collection.schedule in shown and "num collected" in shown and posterior.record.labels[0] in shown
    assert main(["inspect", str(measured[0].parent)]) == 1


def test_license_language_and_data_sets_reach_the_card_and_the_repository(measured, folder, hub, capsys):
    # Red for: an option that is read and dropped, by one of the two commands; a license that the Hub does not know.
    options = ["--license", "apache-2.0", "--language", "en", "--datasets", "me/tickets"]
    assert main(["card", str(folder), "--repo", "user/cli-licensed", *options]) == 0
    data = ModelCard.load(folder / "README.md").data
    assert (data.license, data.language, data.datasets) == ("apache-2.0", ["en"], ["me/tickets"])
    assert main(["push", str(folder), "--repo", "user/cli-licensed", "--license", "mit"]) == 0
    data = ModelCard.load("user/cli-licensed").data
    assert (data.license, data.language, data.datasets) == ("mit", ["en"], ["me/tickets"])
    assert main(["card", str(folder), "--license", "Apache License"]) == 1
    assert "repositories-licenses" in capsys.readouterr().err
    (folder / "README.md").unlink()
    assert main(["push", str(folder), "--repo", "user/cli-licensed-2", *options]) == 0
    assert ModelCard.load("user/cli-licensed-2").data.license == "apache-2.0"


def test_a_pushed_readme_is_the_one_that_was_shown(measured, folder, hub):
    # Red for: a card that is built anew, without its metrics, when the folder's own was looked at and found right.
    assert main(["card", str(folder), "--results", measured[1], "--repo", "user/cli-shown"]) == 0
    shown = (folder / "README.md").read_text()
    assert main(["push", str(folder), "--repo", "user/cli-shown"]) == 0
    with open(hf_hub_download("user/cli-shown", "README.md"), encoding="utf-8") as file:
        assert file.read() == shown


def test_text_that_was_not_pushed_is_reported(measured, folder, hub, capsys):
    # Red for: a README.md of the folder whose text vanishes silently behind that of the Hub, or a note where nothing was left out.
    assert main(["card", str(folder), "--results", measured[1], "--repo", "user/cli-two-words"]) == 0
    assert main(["push", str(folder), "--repo", "user/cli-two-words"]) == 0
    assert "outside the card" not in capsys.readouterr().err
    (folder / "README.md").write_text((folder / "README.md").read_text() + "\nMine alone.\n")
    assert main(["push", str(folder), "--repo", "user/cli-two-words"]) == 0
    assert "'user/cli-two-words' had a README.md already, which was kept outside the card" in capsys.readouterr().err
    assert "Mine alone." not in ModelCard.load("user/cli-two-words").text


def test_a_push_goes_to_its_branch_and_reports_what_the_hub_refused(folder, hub, capsys):
    # Red for: a branch or a visibility that is left out, a traceback where another user's repository was named.
    assert main(["push", str(folder), "--repo", "user/cli-where", "--private", "--revision", "draft"]) == 0
    assert HfApi().repo_info("user/cli-where").private
    assert "swag_posterior.safetensors" in HfApi().list_repo_files("user/cli-where", revision="draft")
    assert HfApi().list_repo_files("user/cli-where") == [".gitattributes"]
    capsys.readouterr()
    assert main(["push", str(folder), "--repo", "another/user"]) == 1
    assert capsys.readouterr().err.startswith("swag-trainer push: Nothing was committed to 'another/user': ")
