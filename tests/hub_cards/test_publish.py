import io
from types import SimpleNamespace

import pytest
import yaml
from huggingface_hub import (
    CommitOperationAdd,
    EvalResult,
    HfApi,
    ModelCard,
    ModelCardData,
    hf_hub_download,
    parse_eval_result_entries,
)
from matplotlib.figure import Figure
from matplotlib.image import imread
from measured import some_results
from minihub import git_blob_oid
from test_card import some_posterior

from hub_cards import build_card, publish_card
from hub_cards.metadata import eval_results_file
from swag_trainer import SwagError
from swag_trainer.hub import FAILURES, read_readme


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


def test_the_accuracy_is_also_where_the_hub_ranks_it_and_goes_when_it_no_longer_holds(hub):
    # Red for: metrics of the deprecated model-index only, an ECE ranked as a score, a commit of its own, an accuracy that stays beside a
    # card without one; or a hand-written card's entries taken for ours.
    repo = "user/card-ranked"
    card = build_card(some_posterior(), some_results(dataset="clinc/clinc_oos:plus"), repo_id=repo)
    publish_card(repo, card)
    text = open(hf_hub_download(repo, ".eval_results/swag_trainer.yaml"), encoding="utf-8").read()
    (entry,) = parse_eval_result_entries(yaml.safe_load(text))
    assert (entry.dataset_id, entry.task_id, entry.dataset_revision, entry.value) == (
        "clinc/clinc_oos",
        "plus",
        "5503434",
        0.925,
    )
    assert entry.notes == "accuracy of SWAG, split validation, 872 examples, 30 draws of seed 7"
    HfApi().upload_file(repo_id=repo, path_in_repo=".eval_results/theirs.yaml", path_or_fileobj=b"[]")
    before = len(commits(repo))
    publish_card(repo, build_card(some_posterior(), some_results(revision=None), repo_id=repo))
    assert len(commits(repo)) == before + 1
    assert [name for name in HfApi().list_repo_files(repo) if "eval" in name] == [".eval_results/theirs.yaml"]
    assert eval_results_file(some_card()) is None
    with pytest.raises(SwagError, match="Nothing was committed"):
        publish_card(repo, card, files={".eval_results/swag_trainer.yaml": b""})


def test_files_arrive_in_the_commit_of_the_card(hub):
    # Red for: a commit of their own, bytes that are changed on the way, plots that give way to them.
    data = bytes(range(256)) * 100
    commit = publish_card(
        "user/card-files", some_card(), figures={"a.png": some_figure()}, files={"swag.safetensors": data, "some/b.png": b"PNG"}
    )
    assert len(commits("user/card-files")) == 2  # the other one is that of the new repository
    changed = hub.hub.repos["user/card-files"].commits[commit.oid]["files"]
    assert set(changed) == {".gitattributes", "README.md", "a.png", "swag.safetensors", "some/b.png"}
    assert open(hf_hub_download("user/card-files", "swag.safetensors", revision=commit.oid), "rb").read() == data
    assert open(hf_hub_download("user/card-files", "some/b.png", revision=commit.oid), "rb").read() == b"PNG"


@pytest.mark.parametrize("path", ["README.md", "./README.md", "/a.png", "./b.bin", "../c.bin", ".git/config"])
def test_a_file_cannot_take_the_place_of_the_card_or_a_plot_or_leave_the_repository(hub, path):
    # Red for: the card replaced by a file, spelled as the Hub does not spell it either; a repository created for nothing.
    with pytest.raises(SwagError, match="Nothing was committed"):
        publish_card("user/card-taken", some_card(), figures={"a.png": some_figure()}, files={"b.bin": b"", path: b""})
    assert "user/card-taken" not in hub.hub.repos


@pytest.mark.parametrize("private", [None, False, True])
def test_a_new_repository_is_private_where_that_was_asked_for_and_an_old_one_keeps_what_it_is(hub, private):
    # Red for: weights that all the world sees, or a public repository that disappears.
    publish_card(f"user/card-private-{private}", some_card(), private=private)
    assert hub.hub.repos[f"user/card-private-{private}"].private is bool(private)
    publish_card(f"user/card-private-{private}", some_card("# Another\n"), private=not private)
    assert hub.hub.repos[f"user/card-private-{private}"].private is bool(private)


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
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    with pytest.raises(SwagError, match="Nothing was committed"):
        publish_card("user/card-fails", some_card("# Another\n"), figures={"a.png": some_figure()})
    assert commits("user/card-fails") == before


def test_a_connection_that_is_refused_is_our_error(monkeypatch):
    # Red for: a list without HTTPError in `except`; huggingface_hub lets the HTTP library's own error through, which is no OSError.
    monkeypatch.setattr("swag_trainer.hub.HfApi", lambda token: HfApi(endpoint="http://127.0.0.1:9", token=token))
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


def our_card(figure=0.5):
    return build_card(some_posterior(), some_results(metrics={"SWAG": {"ECE": figure}}), repo_id="user/x")


def written_by_hand(repo_id, text):
    HfApi().create_repo(repo_id, exist_ok=True)
    return HfApi().create_commit(repo_id, [CommitOperationAdd("README.md", text.encode())], commit_message="By hand")


def test_what_a_person_wrote_on_the_hub_stays_line_ends_and_all(hub):
    # Red for: README.md not read first, or read through text mode, which changes carriage returns.
    written_by_hand("user/card-hand", "---\r\nlicense: mit\r\n---\r\n# Mine\r\n\r\nMy words.\r\n")
    publish_card("user/card-hand", our_card())
    written_by_hand("user/card-hand", readme("user/card-hand") + "\r\nMy last word.\r\n")
    publish_card("user/card-hand", our_card(0.25))
    card = ModelCard.load("user/card-hand")
    assert card.data.license == "mit"
    assert card.text.startswith("# Mine\r\n\r\nMy words.") and card.text.endswith("\r\nMy last word.\r\n")
    assert "| SWAG | 0.25 |" in card.text and "| SWAG | 0.5 |" not in card.text


def readme(repo_id):
    return open(hf_hub_download(repo_id, "README.md"), encoding="utf-8", newline="").read()


def test_publishing_the_same_card_again_makes_no_commit(hub):
    # Red for: a card that is not put back exactly as it was, or plots that differ from one drawing to the next.
    first = publish_card("user/card-same", our_card(), figures={"a.png": some_figure()})
    again = publish_card("user/card-same", our_card(), figures={"a.png": some_figure()})
    assert again.oid == first.oid
    assert len(commits("user/card-same")) == 2


def intrude(monkeypatch, repo_id, texts):
    """Let another commit land between each reading of README.md and the commit that follows, as long as there are texts."""
    real = HfApi.create_commit

    def create_commit(self, *args, **kwargs):
        if texts and kwargs["commit_message"] != "By hand":
            written_by_hand(repo_id, texts.pop(0))
        return real(self, *args, **kwargs)

    monkeypatch.setattr(HfApi, "create_commit", create_commit)


def test_words_that_land_while_we_publish_are_not_overwritten(hub, monkeypatch):
    # Red for: a commit without parent_commit, or a second attempt with the README.md of the first.
    HfApi().create_repo("user/card-race")
    intrude(monkeypatch, "user/card-race", ["# Mine\n\nJust written.\n"])
    publish_card("user/card-race", our_card())
    assert "Just written." in readme("user/card-race") and "| SWAG | 0.5 |" in readme("user/card-race")
    assert commits("user/card-race")[:2] == ["Add model card with measured metrics", "By hand"]


def test_a_busy_hub_is_asked_again_with_the_same_card(hub, monkeypatch):
    # Red for: 503 given up at once, as it was for cards alone, or a second commit on top of the first.
    publish_card("user/card-503", some_card())
    monkeypatch.setitem(hub.hub.fail, "/api/models/user/card-503/commit/", 2)
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    publish_card("user/card-503", our_card())
    assert "| SWAG | 0.5 |" in readme("user/card-503") and len(commits("user/card-503")) == 3


def test_a_repository_that_never_rests_is_given_up_with_our_error(hub, monkeypatch):
    # Red for: trying for ever, or overwriting in the end.
    HfApi().create_repo("user/card-busy")
    intrude(monkeypatch, "user/card-busy", [f"# Mine {index}\n" for index in range(9)])
    with pytest.raises(SwagError, match="Nothing was committed to 'user/card-busy'.*412"):
        publish_card("user/card-busy", our_card())
    assert "swag_trainer card" not in readme("user/card-busy")


@pytest.mark.parametrize("text", ["---\nlicense: [mit\n---\n", "<!-- swag_trainer card ends -->\n", "\udcff"])
def test_a_readme_that_cannot_be_read_is_left_alone(hub, text):
    # Red for: words of people replaced because they could not be understood.
    HfApi().create_repo("user/card-broken", exist_ok=True)
    before = hub.hub.repos["user/card-broken"].commits[
        hub.hub.repos["user/card-broken"].commit(
            "main",
            {},
            "By hand",
            files={"README.md": ("regular", blob := git_blob_oid(data := text.encode(errors="surrogateescape")), len(data))},
            blobs={blob: data},
        )
    ]
    with pytest.raises(SwagError, match="Nothing was committed to 'user/card-broken'"):
        publish_card("user/card-broken", our_card())
    repo = hub.hub.repos["user/card-broken"]
    assert repo.commits[repo.branches["main"]] is before


def test_a_plot_that_cannot_be_uploaded_is_our_error(hub, monkeypatch):
    # Red for: the client's RuntimeError for a large file let through.
    monkeypatch.setitem(hub.hub.fail, "/_lfs/", 100)
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)
    with pytest.raises(SwagError, match="Nothing was committed.*RuntimeError"):
        publish_card("user/card-lfs", our_card(), figures={"a.png": Figure(figsize=(3, 3))})  # nobody has uploaded this one
    assert commits("user/card-lfs") == ["initial commit"]


def test_a_hub_that_cannot_be_asked_is_not_a_repository_without_readme(hub, monkeypatch):
    # Red for: LocalEntryNotFoundError, which is an EntryNotFoundError too, taken for "there is none".
    publish_card("user/card-asked", our_card())
    assert read_readme("user/card-asked") is not None
    assert read_readme("user/card-asked", HfApi().list_repo_commits("user/card-asked")[-1].commit_id) is None

    class Unreachable(HfApi):
        def repo_info(self, repo_id, *, revision=None):
            return SimpleNamespace(sha="0" * 40)

    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)
    monkeypatch.setattr("swag_trainer.hub.HfApi", lambda token: Unreachable(endpoint="http://127.0.0.1:9", token=token))
    with pytest.raises(FAILURES, match="cannot|Cannot|could not|Could not|offline|connect"):
        read_readme("user/card-asked")


def test_a_mistake_of_ours_is_not_called_a_refusal_of_the_hub(monkeypatch):
    # Red for: `except Exception`, which hides an AttributeError behind "Nothing was committed".
    monkeypatch.setattr("swag_trainer.hub.HfApi", lambda token: object())
    with pytest.raises(AttributeError):
        publish_card("user/card-mistake", our_card())
