"""Export of a posterior for servers: each weight draw as an ordinary LoRA adapter, and an index that says how to average them.

vLLM, TGI and LoRAX load many LoRA adapters over one base. They read ``r``, ``lora_alpha`` and ``use_rslora`` of adapter_config.json, one
number for all modules, and weights called ``lora_A`` and ``lora_B``; a rank or an alpha of single modules they ignore. So every exported
adapter has one rank and one alpha: smaller matrices are filled up with zeros, and B carries what is left of a module's own scaling.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor
from torch.nn.functional import pad

from swag_trainer.adapters.plain_lora import NOT_PLAIN, base_changed_by
from swag_trainer.adapters.settings import loadable_settings
from swag_trainer.errors import PosteriorFormatError, SwagError, shortened
from swag_trainer.posterior.atomic import write_bytes
from swag_trainer.posterior.base import WeightPosterior
from swag_trainer.posterior.design import Design
from swag_trainer.posterior.gaussian import checked_num_samples, checked_scale
from swag_trainer.posterior.regular_file import read_json, shown
from swag_trainer.posterior.saved_adapter import SavedAdapter
from swag_trainer.posterior.tuning import MAX_TEMPERATURE

INDEX_FILE = "swag_adapters.json"
MEAN = "mean"
_VERSION = 1
_LORA_WEIGHT = re.compile(r"base_model\.model\.(?P<module>.+)\.lora_(?P<matrix>[AB])\.weight")
_NOT_SERVED = ("use_dora", "lora_bias", "trainable_token_indices", *NOT_PLAIN)


@dataclass(frozen=True)
class AdapterIndex:
    """What was exported, and how predictions of the draws are averaged.

    The averaged probabilities are ``sum_s weights[s] * softmax(logits_s / temperature)``.

    Attributes:
        draws: Names of the draws' adapters, which are those of their folders.
        weights: What each draw counts; they sum to 1.
        draws_per_block: How many consecutive draws depend on each other (a matched set).
        members: Of a mixture, the number of the member that each draw comes from; None for a single posterior.
        mean: Name of the adapter at the mean of the weights; None for a mixture, whose mean is no good approximation of it.
        temperature: What each draw's logits are divided by.
        rank: r of every adapter.
        base_model: Folder or Hub name of the base model.
        task, labels: As in the posterior's record.
        posterior: Digest of the posterior.
        seed, scale: Of the draws.
    """

    draws: tuple[str, ...]
    weights: tuple[float, ...]
    draws_per_block: int
    members: tuple[int, ...] | None
    mean: str | None
    temperature: float
    rank: int
    base_model: str | None
    task: str | None
    labels: tuple[str, ...] | None
    posterior: str
    seed: int
    scale: float

    def write(self, folder: Path) -> None:
        """Write the index into the folder of the adapters."""
        document = {"version": _VERSION, "average": "sum of weight * softmax(logits / temperature)", **asdict(self)}
        write_bytes(folder / INDEX_FILE, json.dumps(document, indent=2).encode())

    @classmethod
    def read(cls, folder: str | Path) -> Self:
        """Read the index of a folder.

        Raises:
            PosteriorNotFoundError: There is none.
            PosteriorFormatError: It is damaged, or of a newer version.
        """
        path = Path(folder) / INDEX_FILE
        document = dict(read_json(path))
        version, _ = document.pop("version", None), document.pop("average", None)
        if version != _VERSION:
            raise PosteriorFormatError(
                f"{shown(path)} states version={shortened(repr(version))}; this version of swag_trainer reads {_VERSION}."
            )
        try:
            values = {name: tuple(value) if isinstance(value, list) else value for name, value in document.items()}
            index = cls(**values)
            index._check()
        except (OverflowError, TypeError, ValueError) as error:
            raise PosteriorFormatError(f"{shown(path)} is no index of exported adapters: {str(error)[:300]}") from error
        return index

    def _check(self) -> None:
        """Raise OverflowError, TypeError or ValueError where values do not go together."""
        for name in ("draws", "weights", "members", "labels"):
            value = getattr(self, name)
            if not isinstance(value, tuple) and not (value is None and name in ("members", "labels")):
                raise TypeError(f"{name} is {shortened(repr(value))}; a list was expected")
        count = len(self.draws)
        sizes = {len(self.weights), count if self.members is None else len(self.members)}
        if not count or sizes != {count} or not all(isinstance(name, str) for name in self.draws):
            raise ValueError(f"{count} draws, {len(self.weights)} weights")
        if len(set(self.draws)) != count:
            raise ValueError("a draw occurs twice")
        if any(type(member) is not int or not 0 <= member < 2**31 for member in self.members or ()):
            raise ValueError("members are not the numbers of members")
        if not math.isclose(math.fsum(self.weights), 1, abs_tol=1e-6) or min(self.weights) < 0:
            raise ValueError("the weights are not numbers >= 0 that sum to 1")
        is_temperature = type(self.temperature) in (int, float) and 1 / MAX_TEMPERATURE <= self.temperature <= MAX_TEMPERATURE
        if (
            not is_temperature
            or type(self.draws_per_block) is not int
            or self.draws_per_block < 1
            or count % self.draws_per_block
        ):
            raise ValueError(f"temperature={self.temperature}, draws_per_block={self.draws_per_block}")


def export_adapters(
    posterior: WeightPosterior,
    folder: str | Path,
    *,
    num_samples: int | None = None,
    seed: int | None = None,
    scale: float | None = None,
    design: Design | None = None,
    with_heads: bool = False,
) -> AdapterIndex:
    """Write each weight draw as a LoRA adapter that vLLM, TGI, LoRAX and plain PEFT load, the mean besides, and an index.

    With the same ``num_samples``, ``seed``, ``scale`` and ``design`` they are the draws of the pipeline. The adapters lie in folders called draw-0,
    draw-1, ... and mean, the index in swag_adapters.json; `swag_trainer.serving.ServedPosterior` asks a server for all of them and averages.

    TGI and LoRAX ignore, without an error, a kind of module that some layers have an adapter for and others have not.

    Args:
        posterior: Of any kind, over the weights of a LoRA adapter.
        folder: Where to write; made if needed.
        num_samples: S, how many draws; at scale 0 there is one, or one for each member of a mixture. Default: what the posterior was tuned
            with, else 8.
        seed: Of the draws. Default: what the posterior was tuned with, else 0.
        scale: Factor of the covariance; None for the posterior's own.
        design: As in `Sampling`. Default: what the posterior was tuned with, else "matched".
        with_heads: Export a head in ``modules_to_save`` too, drawn like the rest. Plain PEFT loads it; of the servers few do, and some
            refuse the adapter.

    Returns:
        The index.

    Raises:
        SwagError: The adapter is of a kind, or has a head, that these servers cannot load; the posterior was tuned with dropout, which they
            do not apply; the folder holds exported adapters already; ``num_samples`` or ``scale`` is out of range.
    """
    folder = Path(folder)
    if (folder / INDEX_FILE).exists():
        raise SwagError(f"{str(folder)!r} holds exported adapters already: delete them, or choose another folder.")
    scale = posterior.scale if scale is None else checked_scale(scale)
    tuned = posterior.tuning
    if num_samples is None:
        num_samples = 8 if tuned is None else tuned.num_samples
    if seed is None:
        seed = 0 if tuned is None else tuned.seed
    if design is None:
        design = "matched" if tuned is None else tuned.design
    tuning = tuned if scale == posterior.scale else None
    if tuning is not None and tuning.dropout:
        raise SwagError(
            "The posterior was tuned with dropout while drawing, and no server drops out: its draws would not be those that were tuned. Tune "
            "without dropout, or pass another scale."
        )
    layout = _ServedLayout(posterior.adapter, with_heads=with_heads)
    drawn = posterior.draw(checked_num_samples(num_samples) if scale else 1, seed=seed, scale=scale, design=design)
    center = posterior.mean_vector() if tuning is None else posterior.center(tuning.center)
    names = tuple(f"draw-{number}" for number in range(len(drawn.vectors)))
    vectors = dict(zip(names, drawn.vectors + (center - posterior.mean_vector()), strict=True))
    if drawn.members is None:
        vectors[MEAN] = posterior.mean_vector()
    for name, vector in vectors.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        layout.adapter(posterior.layout.unflatten(vector)).write(folder / name)
    weights = torch.full((len(names),), 1 / len(names)) if drawn.weights is None else drawn.weights
    labels = posterior.record.labels
    index = AdapterIndex(
        draws=names,
        weights=tuple(weights.double().tolist()),
        draws_per_block=drawn.block_size,
        members=None if drawn.members is None else tuple(drawn.members.tolist()),
        mean=MEAN if MEAN in vectors else None,
        temperature=1.0 if tuning is None else tuning.temperature,
        rank=layout.rank,
        base_model=posterior.adapter.base_model,
        task=posterior.record.task,
        labels=None if labels is None else tuple(labels),
        posterior=posterior.digest,
        seed=seed,
        scale=float(scale),
    )
    index.write(folder)
    return index


class _ServedLayout:
    """How the adapters of a posterior are written so that servers load them.

    Args:
        saved: The adapter beside the posterior.
        with_heads: Whether heads in ``modules_to_save`` are written.

    Attributes:
        rank: r of every adapter.

    Raises:
        SwagError: They cannot load an adapter of this kind.
    """

    def __init__(self, saved: SavedAdapter, *, with_heads: bool) -> None:
        self._saved = saved
        config = loadable_settings(saved, name=str(saved.base_model))
        _refuse_unserved(config, with_heads=with_heads)
        heads = config.get("modules_to_save") or []
        ranks = {}
        for key, tensor in saved.tensors.items():
            match = _LORA_WEIGHT.fullmatch(key)
            if match is not None and tensor.dim() == 2:
                ranks |= {match["module"]: len(tensor)} if match["matrix"] == "A" else {}
            elif not any(part in heads for part in key.split(".")):
                raise SwagError(
                    f"The adapter has the weight {shortened(repr(key))}, and servers load matrices lora_A and lora_B of linear layers alone: "
                    "it cannot be exported."
                )
        if not ranks:
            raise SwagError(
                "The adapter has a head alone and no matrices lora_A and lora_B: there is nothing that servers load."
            )
        self.rank = max(ranks.values())
        alpha = config["lora_alpha"] or self.rank
        rank_of = math.sqrt if config.get("use_rslora") else float
        own = {name: config["alpha_pattern"].get(re.escape(name), config["lora_alpha"]) for name in ranks}
        self._factors = {name: own[name] / rank_of(rank) * rank_of(self.rank) / alpha for name, rank in ranks.items()}
        self._config = {**config, "r": self.rank, "lora_alpha": alpha, "rank_pattern": {}, "alpha_pattern": {}}

    def adapter(self, weights: Mapping[str, Tensor]) -> SavedAdapter:
        """Return the adapter with these weights, in float32; those that the posterior does not have are the saved ones."""
        tensors = {key: self._filled(key, tensor.float()) for key, tensor in {**self._saved.tensors, **weights}.items()}
        return SavedAdapter(self._config, tensors)

    def _filled(self, key: str, tensor: Tensor) -> Tensor:
        match = _LORA_WEIGHT.fullmatch(key)
        if match is None:
            return tensor.contiguous()
        if match["matrix"] == "A":
            return pad(tensor, (0, 0, 0, self.rank - len(tensor))).contiguous()
        factor = self._factors[match["module"]]
        return pad(tensor if factor == 1 else tensor * factor, (0, self.rank - tensor.shape[1])).contiguous()


def _refuse_unserved(config: Mapping[str, Any], *, with_heads: bool) -> None:
    """Refuse the settings of an adapter that servers cannot load."""
    if config["peft_type"] != "LORA":
        raise SwagError(
            f"Servers load LoRA adapters, and this one is of the kind {config['peft_type']!r}: it cannot be exported."
        )
    if initialisation := base_changed_by(config):
        raise SwagError(
            f"The adapter was initialised with {initialisation!r}, which changed its base in memory, and a server loads the base as it is on "
            "disk. Export swag_trainer.to_plain_lora(posterior)."
        )
    obstacle = next((name for name in _NOT_SERVED if config.get(name)), None)
    obstacle = "bias" if config.get("bias", "none") != "none" else obstacle
    if obstacle is not None:
        raise SwagError(f"The adapter has {obstacle}={shortened(repr(config[obstacle]))}, which servers do not load.")
    if config.get("modules_to_save") and not with_heads:
        raise SwagError(
            f"The adapter trains the modules {config['modules_to_save']} whole (modules_to_save), and most servers cannot load them: their "
            "predictions would be those of another head. Train a language model without such modules, its letters with MultipleChoiceMixin "
            "for instance; or pass with_heads=True (--with-heads on the command line) for plain PEFT or a server that takes heads."
        )
