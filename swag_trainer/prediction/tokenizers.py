"""Which tokenizer texts go through: the one that was saved beside the adapter, else that of the base model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import EntryNotFoundError, HTTPError, LocalEntryNotFoundError
from transformers import AutoTokenizer

from swag_trainer.errors import SwagError

_TOKENIZER_FILE = "tokenizer_config.json"


@dataclass(frozen=True)
class TokenizerSource:
    """Where the tokenizer of a model lies that was loaded with its adapter; used only where no tokenizer is passed.

    ``transformers.pipeline`` takes the base model's, whatever lies beside the adapter: a token that was added for the training, the
    length that texts were cut at, and the padding token that was chosen for a decoder would be lost.

    Attributes:
        adapter: Folder or repository of the adapter.
        base: That of its base model.
        hub: ``revision``, ``token``, ``cache_dir``, ``local_files_only`` for the adapter's repository.
        base_hub: The same for the base model's.
        pad_token_id: The padding token to take where the tokenizer has none.
    """

    adapter: str
    base: str
    hub: Mapping[str, Any]
    base_hub: Mapping[str, Any]
    pad_token_id: int | None = None

    def load(self) -> Any:
        """Return the tokenizer.

        Raises:
            SwagError: It cannot be loaded, or it cannot be determined whether there is one beside the adapter without asking the Hub.
        """
        name = self.base
        try:
            beside = self._beside_the_adapter()
            name, hub = (self.base, self.base_hub) if beside is None else beside
            tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False, **hub)
        except (HTTPError, OSError, ValueError, LookupError, TypeError) as error:
            raise SwagError(
                f"The tokenizer of {name!r} cannot be loaded: {type(error).__name__}: {str(error)[:300]} Pass another one: "
                "pipeline(..., tokenizer=...)."
            ) from error
        if tokenizer.pad_token_id is None and self.pad_token_id is not None:
            tokenizer.pad_token_id = self.pad_token_id
        return tokenizer

    def _beside_the_adapter(self) -> tuple[str, Mapping[str, Any]] | None:
        if Path(self.adapter).is_dir():
            return (self.adapter, {}) if (Path(self.adapter) / _TOKENIZER_FILE).is_file() else None
        hub = dict(self.hub)
        where = {"cache_dir": hub.get("cache_dir"), "revision": hub.get("revision")}
        hub["revision"] = where["revision"] = HfApi(token=hub.get("token")).resolve_revision(
            self.adapter, local_files_only=hub.get("local_files_only", False), **where
        )
        found = try_to_load_from_cache(self.adapter, _TOKENIZER_FILE, **where)
        if found is None:  # not asked for yet
            try:
                found = hf_hub_download(self.adapter, _TOKENIZER_FILE, **hub)
            except LocalEntryNotFoundError as error:
                raise SwagError(
                    f"Whether {self.adapter!r} has a tokenizer beside the adapter is not known, and the Hub cannot be reached or must not "
                    "be asked (offline mode). Load it once while online, or pass pipeline(..., tokenizer=...)."
                ) from error
            except EntryNotFoundError:
                return None
        return (self.adapter, hub) if isinstance(found, str) else None
