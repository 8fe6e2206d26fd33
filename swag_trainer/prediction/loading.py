"""Load a base model, its adapter and its posterior together, for a pipeline or by hand."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePath
from typing import Any, ClassVar

import torch
from huggingface_hub.errors import HFValidationError, HTTPError, StrictDataclassError
from huggingface_hub.utils import validate_repo_id
from peft import PeftModel
from safetensors import SafetensorError

from swag_trainer.adapters.embeddings import resize_embeddings
from swag_trainer.adapters.initialisation import base_changing_initialisation, check_base
from swag_trainer.adapters.loading import load_adapter
from swag_trainer.adapters.plain_lora import is_reproducible
from swag_trainer.adapters.settings import loadable_settings
from swag_trainer.errors import AdapterMismatchError, SwagError, shortened
from swag_trainer.load_reports import load_reports_held_back
from swag_trainer.posterior import load_posterior
from swag_trainer.posterior.base import WeightPosterior
from swag_trainer.posterior.record import PosteriorRecord
from swag_trainer.posterior.saved_adapter import SavedAdapter
from swag_trainer.prediction.tokenizers import TokenizerSource
from swag_trainer.prediction.transformers_internals import refuse_remote_code
from swag_trainer.tasks import mark, task_named
from swag_trainer.tasks.base import Task
from swag_trainer.tasks.generation import TextGeneration
from swag_trainer.tasks.image_classification import ImageClassification
from swag_trainer.tasks.multiple_choice import MultipleChoice
from swag_trainer.tasks.multiple_choice_encoder import MultipleChoiceEncoder
from swag_trainer.tasks.question_answering import QuestionAnswering
from swag_trainer.tasks.sequence_classification import SequenceClassification
from swag_trainer.tasks.token_classification import TokenClassification
from swag_trainer.tasks.zero_shot import ZeroShotClassification

# Of transformers, PEFT, huggingface_hub, torch and safetensors while they load files that are not what they should be.
LOADING_FAILURES = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    HTTPError,
    ImportError,
    LookupError,
    MemoryError,
    OSError,
    RuntimeError,
    SafetensorError,
    StrictDataclassError,
    TypeError,
    ValueError,
)


class AutoSwagModel:
    """Loads a PEFT model with its posterior, which it attaches as ``model.swag_posterior``; ``model.swag_tokenizer`` loads its tokenizer.

    PEFT loads the adapter, not transformers: that keeps the adapter in float32 on a bfloat16 base, and loads a trained head in
    every version of transformers that this package accepts. Labels and problem type come from the posterior's file, as
    adapter_config.json has no place for them.

    Attributes:
        task_name: The task to load for; None for the one in the posterior's record.
    """

    task_name: ClassVar[str | None] = None

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str,
        *,
        posterior: WeightPosterior | None = None,
        base_model: str | Path | None = None,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        force_download: bool = False,
        local_files_only: bool = False,
        trust_remote_code: bool | None = None,
        adapter_kwargs: Mapping[str, Any] | None = None,
        ignore_mismatched_adapter: bool = False,
        _from_pipeline: str | None = None,
        _commit_hash: str | None = None,
        code_revision: str | None = None,
        **base_kwargs: Any,
    ) -> PeftModel:
        """Load from a folder or the Hub.

        Args:
            pretrained_model_name_or_path: Where adapter and posterior lie.
            posterior: The posterior that lies there, where it was read already; it is not read again.
            base_model: Folder or Hub name of the base model, where it lies elsewhere than adapter_config.json says. Files are not
                changed by this: what is saved later names the base model as before. A pipeline takes it as
                ``model_kwargs={"base_model": ...}``.
            revision: Of the adapter's repository.
            token: Access token, as everywhere in huggingface_hub; so are the next three.
            trust_remote_code: Refused: the adapter names the base, and so would choose whose code runs.
            adapter_kwargs: Arguments for the adapter's repository alone, as in transformers: ``revision``, ``token``.
            ignore_mismatched_adapter: See `WeightPosterior.from_pretrained`.
            **base_kwargs: For the base model: ``dtype``, ``device_map``, ``attn_implementation``, ...

        Raises:
            SwagError: Whatever fails, as transformers goes on with another model after other errors: no posterior; another adapter or
                base than the recorded one; weights that would be random; an adapter whose initialisation changed its base in a way
                that cannot be repeated here; settings that are not safe to load.
        """
        refuse_remote_code(pretrained_model_name_or_path, trust_remote_code)
        hub = {"token": token, "cache_dir": cache_dir, "force_download": force_download, "local_files_only": local_files_only}
        where: dict[str, Any] = {"revision": revision, **hub, **(adapter_kwargs or {})}
        with one_error(str(pretrained_model_name_or_path)):
            if posterior is None:
                posterior = load_posterior(
                    pretrained_model_name_or_path, ignore_mismatched_adapter=ignore_mismatched_adapter, **where
                )
            return cls._load(str(pretrained_model_name_or_path), posterior, base_model, where, hub, base_kwargs)

    @classmethod
    def _load(
        cls,
        name: str,
        posterior: WeightPosterior,
        base_model: str | Path | None,
        where: Mapping[str, Any],
        hub: Mapping[str, Any],
        base_kwargs: Mapping[str, Any],
    ) -> PeftModel:
        settings = loadable_settings(posterior.adapter, name=name)
        _refuse_unrepeatable(posterior.adapter, low_cpu_mem_usage=bool(base_kwargs.get("low_cpu_mem_usage")))
        task = task_named(cls.task_name or posterior.record.task)
        recorded = task_named(posterior.record.task or task.name)
        if recorded.auto_model is not task.auto_model:
            raise SwagError(
                f"The posterior in {name!r} is for the task {recorded.name!r}, and was to be loaded for {task.name!r}, which needs "
                f"another kind of model. Use pipeline({recorded.name!r}, model=...)."
            )
        source, base_revision = base_of(posterior, base_model, name)
        base_kwargs = dict(base_kwargs)
        gguf = gguf_settings(posterior, source, base_kwargs.pop("gguf_file", None))
        base = _load_base(posterior, task, source, revision=base_revision, **hub, **gguf, **base_kwargs)
        if posterior.record.task == task.name and posterior.record.task_settings:
            mark(base, task.name, posterior.record.task_settings)  # for what asks the model alone, such as fit_posterior
        model = load_adapter(base, posterior.adapter, settings)
        # Files of earlier versions have no fingerprint.
        if posterior.record.base_fingerprint:
            check_base(model, "default", posterior.record.base_fingerprint, what=f"The posterior in {name!r}")
        model.swag_posterior = posterior
        model.swag_tokenizer = TokenizerSource(
            adapter=name,
            base=source,
            hub=where,
            base_hub={**hub, **gguf, "revision": base_revision},
            config=base.config,
            pad_token_id=getattr(base.config, "pad_token_id", None),
        )
        return model.eval()


class AutoSwagModelForSequenceClassification(AutoSwagModel):
    """Loads a PEFT classifier of texts with its posterior."""

    task_name: ClassVar[str | None] = SequenceClassification.name


class AutoSwagModelForMultipleChoiceEncoder(AutoSwagModel):
    """Loads a PEFT encoder with a head for multiple choice and its posterior."""

    task_name: ClassVar[str | None] = MultipleChoiceEncoder.name


class AutoSwagModelForZeroShotClassification(AutoSwagModel):
    """Loads a PEFT classifier of natural-language inference with its posterior."""

    task_name: ClassVar[str | None] = ZeroShotClassification.name


class AutoSwagModelForImageClassification(AutoSwagModel):
    """Loads a PEFT classifier of images with its posterior."""

    task_name: ClassVar[str | None] = ImageClassification.name


class AutoSwagModelForTokenClassification(AutoSwagModel):
    """Loads a PEFT model that gives each token a label, with its posterior."""

    task_name: ClassVar[str | None] = TokenClassification.name


class AutoSwagModelForQuestionAnswering(AutoSwagModel):
    """Loads a PEFT model that finds the answer to a question in a context, with its posterior."""

    task_name: ClassVar[str | None] = QuestionAnswering.name


class AutoSwagModelForMultipleChoice(AutoSwagModel):
    """Loads a PEFT causal language model with its posterior, to choose between the answers to a question."""

    task_name: ClassVar[str | None] = MultipleChoice.name


class AutoSwagModelForTextGeneration(AutoSwagModel):
    """Loads a PEFT causal language model with its posterior, to score and generate texts."""

    task_name: ClassVar[str | None] = TextGeneration.name


def _refuse_unrepeatable(adapter: SavedAdapter, *, low_cpu_mem_usage: bool) -> None:
    """Say before the base is loaded that its change in memory cannot be repeated; PEFT says it late, in other words, or not at all."""
    initialisation = base_changing_initialisation(adapter.config)
    if initialisation is None:
        return
    if not is_reproducible(initialisation):
        raise AdapterMismatchError(
            f"The adapter was initialised with {initialisation!r}, which changed its base in memory by random numbers or data that are "
            "not in its file: on the base as it is on disk its weights mean something else. Save the posterior as plain LoRA where it "
            "was trained: swag_trainer.to_plain_lora(posterior)."
        )
    if low_cpu_mem_usage:
        raise AdapterMismatchError(
            f"low_cpu_mem_usage=True leaves the base as it is on disk, but {initialisation!r} changes it when the adapter is made, and the "
            "posterior was collected on the changed one. Leave low_cpu_mem_usage out, or export it with swag_trainer.to_plain_lora(posterior)."
        )


@contextmanager
def one_error(name: str) -> Iterator[None]:
    """Turn the errors of other libraries into ours: `transformers.pipeline` catches theirs and tries another model."""
    try:
        yield
    except SwagError:
        raise
    except LOADING_FAILURES as error:
        hint = ""
        if isinstance(error, OSError):
            hint = " Is there space in the folder for temporary files, and in the cache? The environment variables TMPDIR and HF_HOME name them."
        message = " ".join(str(error).split())[:500]
        raise SwagError(f"Loading {name!r} failed: {type(error).__name__}: {message}{hint}") from error


def base_of(posterior: WeightPosterior, base_model: str | Path | None, name: str) -> tuple[str, str | None]:
    """Return folder or Hub name of the base model, and the commit that the posterior was collected on where it is that repository.

    A repository from the Hub may name a repository, and a local folder also a folder; only the caller may name anything else.

    Args:
        posterior: The posterior.
        base_model: What the caller names.
        name: Where the posterior lies.

    Raises:
        SwagError: There is none, or it may not be loaded from where the adapter says.
    """
    named = posterior.adapter.base_model
    source = str(base_model or named or "")
    if not source:
        raise SwagError(
            "The adapter names no base model: pass base_model=... (--base-model on the command line), or load the base and pass "
            "model=... and posterior=..."
        )
    if not base_model:
        _check_source(source, name)
    return source, posterior.record.base_revision if source == named and not Path(source).is_dir() else None


def _check_source(source: str, name: str) -> None:
    advice = "Pass base_model=... (--base-model on the command line), if you know which base model it is."
    if "://" in source:
        raise SwagError(f"The adapter in {name!r} names its base model by the address {shortened(repr(source))}. {advice}")
    is_local = Path(name).is_dir()
    if is_local and Path(source).is_dir():
        return
    try:
        validate_repo_id(source)
    except HFValidationError as error:
        where = "which is not here" if is_local else "and paths are not followed for a repository from the Hub"
        raise SwagError(
            f"The base model {shortened(repr(source))} cannot be loaded: the adapter in {name!r} names it by a path, {where}. {advice}"
        ) from error
    if not is_local and Path(source).exists():
        raise SwagError(
            f"The adapter in {name!r} names the base model {source!r}, which is a repository on the Hub, and a path here too. {advice}"
        )


def label_settings(record: PosteriorRecord) -> dict[str, Any]:
    """Return what a posterior's record says about the config of its base: labels and problem type."""
    settings: dict[str, Any] = {}
    if record.labels:
        settings["id2label"] = dict(enumerate(record.labels))
        settings["label2id"] = {label: index for index, label in enumerate(record.labels)}
        settings["num_labels"] = len(record.labels)
    if record.problem_type:
        settings["problem_type"] = record.problem_type
    return settings


def _load_base(posterior: WeightPosterior, task: Task, name: str, **kwargs: Any) -> torch.nn.Module:
    record = posterior.record
    kwargs |= label_settings(record)
    try:
        with load_reports_held_back():  # the head comes from the adapter; what neither has is refused below
            base, info = task.auto_model.from_pretrained(
                name, trust_remote_code=False, output_loading_info=True, ignore_mismatched_sizes=True, **kwargs
            )
    except (OSError, ValueError) as error:
        raise SwagError(
            f"The base model {name!r} cannot be loaded: {type(error).__name__}: {str(error)[:300]} If it lies elsewhere, pass "
            "base_model=... (--base-model on the command line)."
        ) from error
    # A mismatched entry is (name, shape in the file, shape in the model): a head of another task, which the adapter's must replace.
    fresh = set(info["missing_keys"]) | {entry[0] for entry in info["mismatched_keys"]}
    missing = sorted(fresh - {key.removeprefix("base_model.model.") for key in posterior.adapter.tensors})
    if missing:
        raise SwagError(
            f"The weights {missing[:3]} are in neither the checkpoint of {name!r} nor the adapter's file, so they would be random at every "
            "load. The adapter must be trained anew with their module in modules_to_save."
        )
    resize_embeddings(base, posterior.adapter, pad_token_id=record.pad_token_id)
    return base


def gguf_settings(posterior: WeightPosterior, source: str, given: str | None) -> dict[str, str]:
    """Return what transformers needs to find a base, and its tokenizer, in a GGUF file; nothing where the base has other files."""
    recorded = posterior.record.gguf_file
    # transformers also opens a path from here, and the record is untrusted.
    if recorded is not None and (PurePath(recorded).is_absolute() or {"..", "\\"} & {*PurePath(recorded).parts, *recorded}):
        raise SwagError(
            f"The posterior's record names the GGUF file {shortened(repr(recorded))}, which is not one beside the base model."
        )
    if recorded is not None and source != posterior.adapter.base_model and not (Path(source) / recorded).is_file():
        recorded = None
    name = given or recorded
    return {} if name is None else {"gguf_file": name}
