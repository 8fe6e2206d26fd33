import pytest
from conftest import lora_model, trainer_for
from huggingface_hub import CommitOperationAdd, HfApi, ModelCard, hf_hub_download
from measured import some_results
from transformers import Trainer

from hub_cards import PreserveModelCardMixin, build_card, publish_card
from hub_cards.identity import identity
from hub_cards.marks import find_marked
from hub_cards.metadata import EVAL_RESULTS
from swag_trainer import SwagCallback, SwagError


class CardTrainer(PreserveModelCardMixin, Trainer):
    pass


@pytest.fixture
def base_repository(hub, base_folder):
    HfApi().create_repo("user/tiny-bert", exist_ok=True)
    HfApi().upload_folder(repo_id="user/tiny-bert", folder_path=base_folder)
    return "user/tiny-bert"


@pytest.fixture
def run(base_repository, rows, tokenizer, tmp_path, monkeypatch):
    """Return a function that makes a trainer for a repository."""
    monkeypatch.setattr("conftest.Trainer", CardTrainer)

    def make(repo_id, *, swag=True, folder="run"):
        callbacks = [SwagCallback(rank=5)] if swag else []
        arguments = {"push_to_hub": True, "hub_model_id": repo_id, "hub_token": "hf_test"}
        return trainer_for(lora_model(base_repository), rows, tokenizer, tmp_path / folder, callbacks=callbacks, **arguments)

    return make


def posterior_of(trainer):
    return next(one for one in trainer.callback_handler.callbacks if isinstance(one, SwagCallback)).posterior


def readme(repo_id):
    return open(hf_hub_download(repo_id, "README.md"), encoding="utf-8").read()


def published(run, repo_id):
    """A pushed run whose card has been published, and then completed by a person on the Hub; the trainer and the README.md."""
    trainer = run(repo_id)
    trainer.train()
    trainer.push_to_hub()
    card = build_card(posterior_of(trainer), some_results(), repo_id=repo_id)
    publish_card(repo_id, card)
    edited = readme(repo_id).replace("---\n", "---\nlicense: mit\n", 1) + "\nMy last word.\n"
    HfApi().create_commit(repo_id, [CommitOperationAdd("README.md", edited.encode())], commit_message="By hand")
    return trainer, edited


def test_another_push_of_the_same_posterior_changes_nothing_in_the_card(run):
    # Red for: the Trainer's own README.md over the card, or figures dropped although they are of these very weights.
    trainer, edited = published(run, "user/keep-same")
    trainer.push_to_hub()
    assert readme("user/keep-same") == edited
    assert EVAL_RESULTS in HfApi().list_repo_files("user/keep-same")
    assert (ModelCard.load("user/keep-same").data.license, "0.0312" in edited) == ("mit", True)


def test_a_push_of_another_posterior_keeps_the_words_and_drops_the_figures(run):
    # Red for: figures of weights that are no longer there, in the table or in the metadata; or a person's words gone with them.
    _, edited = published(run, "user/keep-other")
    another = run("user/keep-other", folder="another")
    another.args.max_steps = 12
    another.train()
    another.push_to_hub()
    card = ModelCard.load("user/keep-other")
    assert "My last word." in card.text and card.data.license == "mit"
    assert "No metrics are on record." in card.text and "0.0312" not in str(card)
    assert "model-index" not in card.data.to_dict()
    assert EVAL_RESULTS not in HfApi().list_repo_files("user/keep-other")
    assert find_marked(card.text).identity == identity(posterior_of(another)) != find_marked(edited).identity


def test_without_a_card_on_the_hub_the_trainer_writes_its_own(run):
    # Red for: a card of ours where nobody published one, or a crash for want of README.md.
    trainer = run("user/keep-none")
    trainer.train()
    trainer.push_to_hub()
    assert "swag_trainer card" not in readme("user/keep-none")
    assert "generated automatically" in readme("user/keep-none")


def test_a_run_without_a_posterior_gets_the_trainers_own_card(run):
    # Red for: an old card beside weights that it does not describe.
    published(run, "user/keep-plain")
    plain = run("user/keep-plain", swag=False, folder="plain")
    plain.train()
    plain.push_to_hub()
    assert "swag_trainer card" not in readme("user/keep-plain")


def test_a_push_that_cannot_read_the_card_stops_before_it_overwrites_it(run, hub, monkeypatch):
    # Red for: "could not be asked" taken for "there is none".
    trainer, edited = published(run, "user/keep-unread")
    monkeypatch.setattr("swag_trainer.hub.HfApi", lambda token: HfApi(endpoint="http://127.0.0.1:9", token=token))
    with pytest.raises(SwagError, match="could not be read before a push"):
        trainer.push_to_hub()
    assert readme("user/keep-unread") == edited


def test_without_the_mixin_publishing_again_mends_what_the_trainer_wrote_over(base_repository, rows, tokenizer, tmp_path):
    # Red for: a card that cannot be put into the Trainer's README.md, or that lies there twice.
    arguments = {"push_to_hub": True, "hub_model_id": "user/keep-plainly", "hub_token": "hf_test"}
    swag = SwagCallback(rank=5)
    trainer = trainer_for(lora_model(base_repository), rows, tokenizer, tmp_path / "run", callbacks=[swag], **arguments)
    trainer.train()
    for _ in range(2):
        trainer.push_to_hub()
        assert "swag_trainer card" not in readme("user/keep-plainly")
        publish_card("user/keep-plainly", build_card(swag.posterior, some_results(), repo_id="user/keep-plainly"))
        text = readme("user/keep-plainly")
        assert text.count("swag_trainer card begins") == 1
        assert "learning_rate: 0.01" in text and "More information needed" not in text
        assert ModelCard.load("user/keep-plainly").data.base_model == "user/tiny-bert"
