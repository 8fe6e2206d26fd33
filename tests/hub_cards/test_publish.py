import io

import pytest
from huggingface_hub import EvalResult, HfApi, ModelCard, ModelCardData, hf_hub_download
from matplotlib.figure import Figure
from matplotlib.image import imread

from hub_cards import publish_card
from swag_trainer import SwagError


def some_card(text="# A card\n"):
    evaluation = EvalResult(
        task_type="text-classification", dataset_type="d", dataset_name="d: | x", metric_type="ece", metric_value=0.03
    )
    data = ModelCardData(library_name="peft", tags=["swag-lora"], model_name="card-test", eval_results=[evaluation])
    return ModelCard(f"---\n{data.to_yaml()}\n---\n{text}")


def some_figure():
    figure = Figure(figsize=(2, 1))
    figure.subplots().plot([0, 1], [0, 1])
    return figure


def commits(repo_id, revision=None):
    return [commit.title for commit in HfApi().list_repo_commits(repo_id, revision=revision)]


def test_card_and_plots_arrive_in_exactly_one_commit(hub):
    # Red for: a file for each commit, a plot that is left behind, bytes that are no PNG.
    HfApi().create_repo("user/card-test")
    before = commits("user/card-test")
    commit = publish_card("user/card-test", some_card(), figures={"plots/bins.png": some_figure()}, commit_message="The card")
    assert commits("user/card-test") == ["The card", *before]
    changed = hub.hub.repos["user/card-test"].commits[commit.oid]["files"]
    assert set(changed) == {".gitattributes", "README.md", "plots/bins.png"}
    picture = hf_hub_download("user/card-test", "plots/bins.png", revision=commit.oid)
    assert imread(io.BytesIO(open(picture, "rb").read()), format="png").shape == (150, 300, 4)  # 2 x 1 inches at 150 dpi


def test_the_card_on_the_hub_has_the_metadata_and_the_text_of_the_card(hub):
    # Red for: the text without its metadata, or metadata written in another way than the card's own.
    publish_card("user/card-round-trip", some_card())
    loaded = ModelCard.load("user/card-round-trip")
    assert loaded.data.to_dict() == some_card().data.to_dict()
    assert loaded.text == some_card().text


def test_a_missing_repository_is_created_and_other_files_of_an_old_one_stay(hub):
    # Red for: a repository that must exist, or a commit that replaces everything.
    publish_card("user/card-new", some_card(), figures={"a.png": some_figure()})
    publish_card("user/card-new", some_card("# Another card\n"))
    assert ModelCard.load("user/card-new").text == "# Another card\n"
    assert "a.png" in HfApi().list_repo_files("user/card-new")


def test_a_branch_is_created_and_main_left_alone(hub):
    # Red for: revision ignored.
    publish_card("user/card-branch", some_card(), revision="draft")
    assert "README.md" in HfApi().list_repo_files("user/card-branch", revision="draft")
    assert "README.md" not in HfApi().list_repo_files("user/card-branch")


def test_a_pull_request_leaves_main_alone(hub):
    # Red for: create_pr ignored.
    commit = publish_card("user/card-pr", some_card(), create_pr=True)
    assert commit.pr_url.endswith("/user/card-pr/discussions/1")
    assert "README.md" not in HfApi().list_repo_files("user/card-pr")


def test_a_refusal_of_the_hub_is_our_error_and_says_that_nothing_was_committed(hub):
    # Red for: the client's own error, or a repository of somebody else taken for one's own.
    with pytest.raises(SwagError, match="Nothing was committed to 'somebody/else'"):
        publish_card("somebody/else", some_card())
    assert "somebody/else" not in hub.hub.repos


def test_a_wrong_token_is_refused_without_being_repeated(hub):
    # Red for: the token argument ignored in favour of the one in the environment, or printed.
    with pytest.raises(SwagError, match="Nothing was committed") as caught:
        publish_card("user/card-token", some_card(), token="hf_wrong_secret")
    assert "hf_wrong_secret" not in str(caught.value)
    assert "user/card-token" not in hub.hub.repos


def test_a_commit_that_fails_leaves_the_repository_as_it_was(hub, monkeypatch):
    # Red for: README.md committed before the plots.
    publish_card("user/card-fails", some_card())
    before = commits("user/card-fails")
    monkeypatch.setitem(hub.hub.fail, "/api/models/user/card-fails/commit/", 100)
    with pytest.raises(SwagError, match="Nothing was committed"):
        publish_card("user/card-fails", some_card("# Another\n"), figures={"a.png": some_figure()})
    assert commits("user/card-fails") == before


def test_a_connection_that_is_refused_is_our_error(monkeypatch):
    # Red for: a list of types in `except`; huggingface_hub lets the HTTP library's own error through, which is no OSError.
    monkeypatch.setattr("hub_cards.publish.HfApi", lambda token: HfApi(endpoint="http://127.0.0.1:9", token=token))
    with pytest.raises(SwagError, match="Nothing was committed"):
        publish_card("user/card-unreachable", some_card())


@pytest.mark.parametrize("path", ["../a.png", "README.md", "adapter_model.safetensors"])
def test_a_plot_cannot_take_the_place_of_another_file(hub, path):
    # Red for: any path taken as it comes.
    with pytest.raises(SwagError, match="Nothing was committed.*path inside the repository"):
        publish_card("user/card-path", some_card(), figures={path: some_figure()})
    assert "user/card-path" not in hub.hub.repos


def test_a_card_that_no_file_can_hold_is_refused_before_the_hub_is_asked(hub):
    # Red for: a repository created, or an empty README.md written, for a card with a lone surrogate.
    with pytest.raises(SwagError, match="Nothing was committed.*surrogates not allowed"):
        publish_card("user/card-surrogate", some_card("\ud800"))
    assert "user/card-surrogate" not in hub.hub.repos
