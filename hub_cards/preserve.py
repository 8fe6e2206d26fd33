"""PreserveModelCardMixin: a Trainer whose pushes keep the published model card."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hub_cards.card import build_card
from hub_cards.marks import find_marked
from hub_cards.merging import merge_card
from hub_cards.metadata import EVAL_RESULTS
from swag_trainer import PosteriorNotFoundError, SwagError, load_posterior
from swag_trainer.hub import FAILURES, delete_if_present, read_readme


class PreserveModelCardMixin:
    """Mixin for a Trainer that pushes into a repository with a published card.

        class CardTrainer(PreserveModelCardMixin, Trainer):
            pass

    ``Trainer.push_to_hub`` writes a README.md of its own over the one on the Hub, and calls nothing afterwards. With this mixin the
    README.md of the Hub goes back into the push if it holds a card made by `hub_cards.build_card`: whole, while the posterior is the one
    that the card describes; with a fresh card in place of the old one, and without the old metrics, when another posterior is pushed.
    Other text in it stays in both cases.

    The Hub is asked with ``args.hub_token`` for ``args.hub_revision``. A run that collected no posterior gets the Trainer's own card.
    Pushes from checkpoints upload the README.md that lies in the output folder as it is: remove it there before a second run.
    """

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Write README.md into the output folder, as the Trainer does, and put back what the Hub has.

        Raises:
            SwagError: The README.md on the Hub cannot be read; pushing would overwrite it unseen.
        """
        super().create_model_card(*args, **kwargs)  # type: ignore[misc]  # of the Trainer that this is mixed into
        if self.is_world_process_zero() and self.hub_model_id is not None:
            readme = _kept(self.hub_model_id, Path(self.args.output_dir), self.args.hub_revision, self.args.hub_token)
            if readme is not None:
                (Path(self.args.output_dir) / "README.md").write_bytes(readme.encode())


def _kept(repo_id: str, folder: Path, revision: str | None, token: str | None) -> str | None:
    """Return what README.md should hold, None where the Hub has no card of ours or the folder no posterior."""
    try:
        readme = read_readme(repo_id, revision, token=token)
    except FAILURES as error:
        raise SwagError(f"The card of {repo_id!r} could not be read before a push that would overwrite it: {error}") from error
    marked = None if readme is None else find_marked(readme)
    if marked is None:
        return None
    try:
        posterior = load_posterior(folder)
    except PosteriorNotFoundError:
        return None
    fresh = build_card(posterior, repo_id=repo_id)
    if find_marked(fresh.text).identity == marked.identity:
        return readme
    delete_if_present(
        repo_id, EVAL_RESULTS, commit_message="Remove results of another posterior", revision=revision, token=token
    )
    return str(merge_card(fresh, readme))
