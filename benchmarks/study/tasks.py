"""Tasks of the study: which text, how many training examples and steps; examples as hidden states in padded batches."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer

EXAMPLES = Path(__file__).parents[2] / "examples"
sys.path.append(str(EXAMPLES))
from text_data import DATA, bundled_minilm, read_task  # noqa: E402

BASE = bundled_minilm()
MAX_TOKENS = 64


@dataclass(frozen=True)
class StudyTask:
    """What one task of the study trains on.

    Attributes:
        name: Its name in folders and tables.
        source: A file or folder that `text_data.read_task` reads.
        train_rows: Balanced training examples, another choice for each seed.
        steps: Optimizer steps of every training.
        ood_source: Where out-of-distribution text comes from; None for what the source marks as such.
    """

    name: str
    source: str
    train_rows: int
    steps: int
    ood_source: str | None = None


def standard_tasks(data: Path | None) -> list[StudyTask]:
    """Return the demo's text, and with a folder of data sets the tasks of the README, in the order in which they are trained."""
    demo = StudyTask("demo", str(DATA), 300, 400)
    if data is None:
        return [demo]
    clinc, hwu, banking = (str(data / name) for name in ("clinc15", "hwu64", "banking77"))
    return [
        demo,
        StudyTask("clinc15-150", clinc, 150, 400),
        StudyTask("clinc15-300", clinc, 300, 400),
        StudyTask("hwu64", hwu, 500, 1500, clinc),
        StudyTask("banking77", banking, 500, 1500, clinc),
    ]


@dataclass(frozen=True)
class Examples:
    """Examples as the frozen lower layers give them, computed once, when they are first asked for.

    Attributes:
        texts: N texts.
        labels: Class numbers; None for out-of-distribution text. Shape (N,).
        base: The base model.
        frozen_layers: How many of its layers are frozen.
    """

    texts: list[str]
    labels: np.ndarray | None
    base: Path | str
    frozen_layers: int

    @cached_property
    def hidden(self) -> list[Tensor]:
        """The hidden states of each, without padding. Shapes (T, h), float32."""
        return hidden_states(self.base, self.texts, layer=self.frozen_layers)

    def padded(self, chosen: Sequence[int]) -> dict[str, Tensor]:
        """Return some examples as a batch, padded to the longest of them."""
        rows = [self.hidden[index] for index in chosen]
        lengths = torch.tensor([len(row) for row in rows])
        mask = (torch.arange(int(lengths.max())) < lengths[:, None]).long()
        return {"inputs_embeds": pad_sequence(rows, batch_first=True), "attention_mask": mask}

    def batches(self, size: int = 64) -> Iterator[tuple[np.ndarray, dict[str, Tensor]]]:
        """Yield indices and batch of all examples, of similar length in each batch."""
        order = np.argsort([len(row) for row in self.hidden], kind="stable")
        for start in range(0, len(order), size):
            chosen = order[start : start + size]
            yield chosen, self.padded(chosen)


@dataclass(frozen=True)
class Sizes:
    """How many examples each task has, and how many lower layers are frozen.

    Attributes:
        validation, test, ood: Numbers of examples, at most.
        resampled: How many test examples become validation examples, where they are divided anew.
        frozen_layers: Lower layers that get no adapter. Their output is computed once, without dropout, which saves their part of every
            step and of every prediction.
    """

    validation: int = 100
    test: int = 300
    ood: int = 200
    resampled: int = 100
    frozen_layers: int = 4


@dataclass(frozen=True)
class TaskData:
    """The examples of one task and seed: "train", "validation", "test" and "ood".

    Attributes:
        num_labels: C.
        splits: Examples by split.
    """

    num_labels: int
    splits: dict[str, Examples]


def read_data(task: StudyTask, base: Path | str, *, seed: int, sizes: Sizes) -> TaskData:
    """Read a task; the seed chooses training and validation examples, test and OOD text are the same for all seeds."""
    whole = read_task(task.source, ood_source=task.ood_source, max_ood=sizes.ood)
    text = whole.subset(task.train_rows, sizes.validation, seed=seed, test_rows=sizes.test)
    if not text.ood:
        raise SystemExit(f"The task {task.name!r} has no out-of-distribution text; name some with ood_source.")
    splits = {
        split: Examples(texts, text.targets.get(split), base, sizes.frozen_layers)
        for split, texts in (*text.texts.items(), ("ood", text.ood))
    }
    return TaskData(len(text.labels), splits)


def hidden_states(base: Path | str, texts: list[str], *, layer: int, batch_size: int = 32) -> list[Tensor]:
    """Return the hidden states of each text after some layers, 0 for the embeddings. Shapes (T, h)."""
    tokenizer = AutoTokenizer.from_pretrained(str(base))
    model = AutoModel.from_pretrained(str(base)).eval()
    model.encoder.layer = model.encoder.layer[:layer]
    order = np.argsort([len(text) for text in texts], kind="stable")
    hidden: dict[int, Tensor] = {}
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        batch = tokenizer(
            [texts[index] for index in chosen], truncation=True, max_length=MAX_TOKENS, padding=True, return_tensors="pt"
        )
        with torch.no_grad():
            states = model(**batch).last_hidden_state
        hidden |= {
            int(index): state[: int(length)].clone()
            for index, state, length in zip(chosen, states, batch["attention_mask"].sum(1), strict=True)
        }
    return [hidden[index] for index in range(len(texts))]


class _PassedOn(nn.Module):
    """In the place of the embeddings: hidden states of the frozen layers go to the next layer as they are."""

    def forward(self, inputs_embeds: Tensor, **_: object) -> Tensor:
        return inputs_embeds


class _FirstPosition(nn.Module):
    """In the place of the last layer: its output at the first position, which is all that the pooler reads.

    Args:
        layer: A BertLayer.
    """

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.attention, self.intermediate, self.output = layer.attention, layer.intermediate, layer.output

    def forward(self, hidden: Tensor, attention_mask: Tensor | None = None, *_: object, **__: object) -> Tensor:
        attention, first = self.attention.self, hidden[:, :1]
        query, key, value = (
            project(of).unflatten(-1, (attention.num_attention_heads, -1)).transpose(1, 2)
            for project, of in ((attention.query, first), (attention.key, hidden), (attention.value, hidden))
        )
        mask = None if attention_mask is None else attention_mask[:, :, :1]
        rate = attention.dropout.p if self.training else 0.0
        context = functional.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=rate)
        middle = self.attention.output(context.transpose(1, 2).flatten(2), first)
        return self.output(self.intermediate(middle), middle)


def upper_layers(base: Path | str, num_labels: int, *, frozen_layers: int) -> nn.Module:
    """Return a classifier of hidden states: the layers above the frozen ones, the pooler and a new head. For models of BERT's kind."""
    model = AutoModelForSequenceClassification.from_pretrained(str(base), num_labels=num_labels, ignore_mismatched_sizes=True)
    layers = model.bert.encoder.layer
    layers[-1] = _FirstPosition(layers[-1])
    model.bert.embeddings, model.bert.encoder.layer = _PassedOn(), layers[frozen_layers:]
    return model
