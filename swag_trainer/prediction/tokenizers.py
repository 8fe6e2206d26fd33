"""Which tokenizer texts go through: the one that was saved beside the adapter, else that of the base model."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, hf_hub_download, snapshot_download, try_to_load_from_cache
from huggingface_hub.errors import EntryNotFoundError, HTTPError, LocalEntryNotFoundError, RevisionResolutionError
from torch import Tensor, nn
from transformers import AutoTokenizer, PretrainedConfig

from swag_trainer.errors import SwagError, shortened
from swag_trainer.posterior.regular_file import read_bytes, read_json

_TOKENIZER_FILE = "tokenizer_config.json"
# What a tokenizer is made of. No config.json, whose code and classes an adapter's folder could choose, and no module.
_FILES = (
    "added_tokens.json",
    "bpe.codes",
    "chat_template.jinja",
    "merges.txt",
    "sentencepiece.bpe.model",
    "sentencepiece.model",
    "source.spm",
    "special_tokens_map.json",
    "spiece.model",
    "spm.model",
    "target.spm",
    "tekken.json",
    "tiktoken.model",
    "tokenizer.json",
    "tokenizer.model",
    _TOKENIZER_FILE,
    "vocab.json",
    "vocab.txt",
)
_MAX_BYTES = 512 * 1024**2
_FAILURES = (AttributeError, HTTPError, ImportError, LookupError, OSError, RuntimeError, TypeError, ValueError)


def load_tokenizer(folder: str | Path, *, config: PretrainedConfig | None = None) -> Any:
    """Load the tokenizer that lies in a folder, of the files that a tokenizer is made of alone.

    Args:
        folder: The folder.
        config: Configuration of the model that the tokenizer is for; it tells the class of one that does not state its own.

    Raises:
        SwagError: It cannot be loaded.
    """
    try:
        with tempfile.TemporaryDirectory(prefix="swag_trainer-") as place:
            for name in filter(lambda name: os.path.lexists(Path(folder) / name), _FILES):
                content = read_bytes(Path(folder) / name, max_bytes=_MAX_BYTES)
                (Path(place) / name).write_bytes(content)
            if config is None or read_json(Path(place) / _TOKENIZER_FILE, max_bytes=_MAX_BYTES).get("tokenizer_class"):
                config = PretrainedConfig()
            tokenizer = AutoTokenizer.from_pretrained(place, config=config, trust_remote_code=False)
            _check_length(tokenizer.model_max_length)
    except BaseException as error:
        if not isinstance(error, (*_FAILURES, ArithmeticError, AssertionError, MemoryError)) and not _is_of_tokenizers(error):
            raise
        raise SwagError(
            f"The tokenizer of {str(folder)!r} cannot be loaded: {type(error).__name__}: {str(error)[:300]!r} Pass another one: "
            "pipeline(..., tokenizer=...)."
        ) from error
    tokenizer.name_or_path = str(folder)
    return tokenizer


@contextlib.contextmanager
def encoding_errors() -> Iterator[None]:
    """Turn what a tokenizer raises where its own files do not let it encode a text into a `SwagError`.

    What is wrong with the text, or with an argument, stays the error that it is.
    """
    try:
        yield
    except BaseException as error:
        if not isinstance(error, OverflowError) and not _is_of_tokenizers(error):
            raise
        raise SwagError(
            f"The tokenizer cannot encode the text: {type(error).__name__}: {str(error)[:300]!r} Pass another one: pipeline(..., "
            "tokenizer=...)."
        ) from error


def check_tokens(numbers: Tensor, model: nn.Module) -> None:
    """Check that a model has the tokens of a text: with another model's tokenizer the look-up fails, or on a GPU the process.

    Raises:
        SwagError: It does not.
    """
    rows = getattr(model.get_input_embeddings(), "num_embeddings", None)
    if rows is not None and numbers.numel() and not 0 <= int(numbers.min()) <= int(numbers.max()) < rows:
        raise SwagError(
            f"The tokenizer gives a text the token {int(numbers.max())}, and the model has {rows}: it is the tokenizer of another model. Pass "
            "pipeline(..., tokenizer=...)."
        )


def _check_length(length: object) -> None:
    if isinstance(length, bool) or not isinstance(length, (int, float)) or not length >= 1:
        raise ValueError(f"model_max_length is {shortened(repr(length))}; a number of at least 1 was expected.")


def _is_of_tokenizers(error: BaseException) -> bool:
    """Does an error come from inside the tokenizers library?

    It raises `Exception` itself where it cannot parse or use what its files hold, and where it does not expect that at all it panics, which
    is no `Exception` (https://pyo3.rs, "PanicException").
    """
    return type(error) is Exception or (type(error).__name__ == "PanicException" and not isinstance(error, Exception))


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
        config: Configuration of the base model.
        pad_token_id: The padding token to take where the tokenizer has none.
    """

    adapter: str
    base: str
    hub: Mapping[str, Any]
    base_hub: Mapping[str, Any]
    config: PretrainedConfig | None = None
    pad_token_id: int | None = None

    def load(self) -> Any:
        """Return the tokenizer.

        Raises:
            SwagError: It cannot be loaded, or it cannot be determined whether there is one beside the adapter without asking the Hub.
        """
        folder = self.folder_beside_the_adapter(_TOKENIZER_FILE, _FILES)
        if folder is not None:
            tokenizer = load_tokenizer(folder, config=self.config)
        else:
            try:
                tokenizer = AutoTokenizer.from_pretrained(self.base, trust_remote_code=False, **self.base_hub)
            except _FAILURES as error:
                raise SwagError(
                    f"The tokenizer of {self.base!r} cannot be loaded: {type(error).__name__}: {str(error)[:300]} Pass another one: "
                    "pipeline(..., tokenizer=...)."
                ) from error
        if tokenizer.pad_token_id is None and self.pad_token_id is not None:
            tokenizer.pad_token_id = self.pad_token_id
        return tokenizer

    def folder_beside_the_adapter(self, name: str, files: Sequence[str]) -> Path | None:
        """Return the folder, or that of a download, where a file lies beside the adapter; None where there is none.

        Args:
            name: The file, such as "tokenizer_config.json".
            files: What is downloaded where it is there.

        Raises:
            SwagError: It cannot be determined whether it is there without asking the Hub, or it cannot be fetched.
        """
        if Path(self.adapter).is_dir():
            # What is there and no file, such as a broken link, is refused when it is read: the base model's would be another one.
            return Path(self.adapter) if os.path.lexists(Path(self.adapter) / name) else None
        hub = dict(self.hub)
        try:
            hub["revision"] = HfApi(token=hub.get("token")).resolve_revision(
                self.adapter,
                local_files_only=hub.get("local_files_only", False),
                cache_dir=hub.get("cache_dir"),
                revision=hub.get("revision"),
            )
            where = {"cache_dir": hub.get("cache_dir"), "revision": hub["revision"]}
            found = try_to_load_from_cache(self.adapter, name, **where)
            if found is None:  # not asked for yet
                found = hf_hub_download(self.adapter, name, **hub)
            if not isinstance(found, str):
                return None
            return Path(snapshot_download(self.adapter, allow_patterns=list(files), **hub))
        except LocalEntryNotFoundError as error:
            kind, argument = ("tokenizer", "tokenizer") if name == _TOKENIZER_FILE else (name, "image_processor")
            raise SwagError(
                f"Whether {self.adapter!r} has a {kind} beside the adapter is not known, and the Hub cannot be reached or must not "
                f"be asked (offline mode). Load it once while online, or pass pipeline(..., {argument}=...)."
            ) from error
        except EntryNotFoundError:
            return None
        except (*_FAILURES, RevisionResolutionError) as error:
            raise SwagError(
                f"{name!r} beside the adapter in {self.adapter!r} cannot be fetched: {type(error).__name__}: {str(error)[:300]}"
            ) from error
