"""Does trust help clients that average their adapters? Four clients of one text task, one of them with shuffled labels.

    python benchmarks/collaboration.py --data FOLDER/clinc15

Each client is a process with its own `Trainer` and `CollaborationCallback`, and its own part of the examples: of every class each client has
another share, drawn from a Dirichlet distribution. The labels of the last client are shuffled, in training and validation. Measured on each
client's own test examples, whose classes are distributed as its training examples are: mean NLL and accuracy of the clients with true labels,
and the trust that these have in the last one. MiniLM-L6 with LoRA on the upper two of six layers; the lower ones are computed once.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import Trainer, TrainingArguments

sys.path.append(str(Path(__file__).parent))

from study.tasks import BASE, Examples, Sizes, StudyTask, read_data  # noqa: E402
from study.training import build_model  # noqa: E402

from swag_trainer import CollaborationCallback  # noqa: E402
from swag_trainer.metrics.scores import negative_log_likelihood  # noqa: E402

RESULTS = Path(__file__).parent / "results" / "collaboration.json"
SCHEMES = ("none", "uniform", "validation", "weights", "predictions")
CLIENTS = 4
CONCENTRATION = 0.5  # of the Dirichlet distribution: the lower, the more the clients differ
SHARED = 50  # out-of-distribution texts on which predictions are compared


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--data", type=Path, required=True, help="folder or file of a text classification task")
    options.add_argument("--train-rows", type=int, default=300, help="of all clients together")
    options.add_argument("--steps", type=int, default=200)
    options.add_argument("--every", type=int, default=25)
    options.add_argument("--learning-rate", type=float, default=2e-3)
    options.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    options.add_argument("--schemes", nargs="+", choices=SCHEMES, default=list(SCHEMES))
    options.add_argument("--results", type=Path, default=RESULTS)
    arguments = options.parse_args()
    torch.set_num_threads(1)
    found = {}
    for seed in arguments.seeds:
        parts = divided(arguments, seed)
        for scheme in arguments.schemes:
            found.setdefault(scheme, []).append(run(arguments, parts, scheme, seed))
            print(f"seed {seed}, {scheme}: {found[scheme][-1]}", flush=True)
    arguments.results.parent.mkdir(exist_ok=True)
    settings = {name: value for name, value in vars(arguments).items() if name != "results"} | {"data": arguments.data.stem}
    arguments.results.write_text(json.dumps({"settings": settings, "results": found}, indent=1) + "\n")
    print(f"{'trust':12} {'NLL':>8} {'accuracy':>8} {'trust in the last client':>26}")
    for scheme, runs in found.items():
        mean = {name: np.mean([one[name] for one in runs]) for name in runs[0]}
        print(f"{scheme:12} {mean['nll']:8.3f} {mean['accuracy']:8.3f} {mean['trust_in_last']:26.3f}")


def divided(arguments: argparse.Namespace, seed: int) -> dict[str, Any]:
    """Return the examples of every client and split, and the number of classes."""
    task = StudyTask(arguments.data.stem, str(arguments.data), arguments.train_rows, arguments.steps)
    data = read_data(task, BASE, seed=seed, sizes=Sizes(validation=200, test=600, ood=SHARED))
    generator = np.random.default_rng(seed)
    shares = generator.dirichlet([CONCENTRATION] * CLIENTS, size=data.num_labels)
    clients: list[dict[str, list[dict]]] = [{} for _ in range(CLIENTS)]
    for split in ("train", "validation", "test"):
        rows = as_rows(data.splits[split])
        for client in clients:
            client[split] = []
        for label in range(data.num_labels):
            chosen = [row for row in rows if row["labels"] == label]
            cuts = (shares[label].cumsum()[:-1] * len(chosen)).round().astype(int)
            for client, part in zip(clients, np.split(np.arange(len(chosen)), cuts), strict=True):
                client[split] += [chosen[index] for index in part]
    for split in ("train", "validation"):
        labels = generator.permutation([row["labels"] for row in clients[-1][split]])
        clients[-1][split] = [{**row, "labels": int(label)} for row, label in zip(clients[-1][split], labels, strict=True)]
    return {"clients": clients, "shared": as_rows(data.splits["ood"]), "num_labels": data.num_labels}


def as_rows(examples: Examples) -> list[dict]:
    """Return examples as the Trainer takes them."""
    labels = [None] * len(examples.texts) if examples.labels is None else examples.labels.tolist()
    return [
        {"inputs_embeds": hidden} | ({} if label is None else {"labels": label})
        for hidden, label in zip(examples.hidden, labels, strict=True)
    ]


def collate(rows: list[dict]) -> dict[str, torch.Tensor]:
    """Pad a batch."""
    lengths = torch.tensor([len(row["inputs_embeds"]) for row in rows])
    batch = {
        "inputs_embeds": pad_sequence([row["inputs_embeds"] for row in rows], batch_first=True),
        "attention_mask": (torch.arange(int(lengths.max())) < lengths[:, None]).long(),
    }
    return batch | ({"labels": torch.tensor([row["labels"] for row in rows])} if "labels" in rows[0] else {})


def run(arguments: argparse.Namespace, parts: dict[str, Any], scheme: str, seed: int) -> dict[str, float]:
    """Train all clients, each in a process, and return the means over those with true labels."""
    with tempfile.TemporaryDirectory() as folder:
        jobs = [(arguments, parts, scheme, seed, client, folder) for client in range(CLIENTS)]
        with multiprocessing.get_context("fork").Pool(CLIENTS) as pool:
            found = pool.map(train_client, jobs, chunksize=1)
    return {name: float(np.mean([one[name] for one in found[:-1]])) for name in found[0]}


def train_client(job: tuple[argparse.Namespace, dict[str, Any], str, int, int, str]) -> dict[str, float]:
    """Train one client, and return its metrics on its own test examples."""
    arguments, parts, scheme, seed, client, folder = job
    own = parts["clients"][client]
    together = CollaborationCallback(
        client=client,
        num_clients=CLIENTS,
        rendezvous=f"{folder}/meet",
        scheme=scheme,
        every=arguments.every,
        shared_data=parts["shared"] if scheme == "predictions" else None,
    )
    trainer = Trainer(
        model=build_model(BASE, parts["num_labels"], seed=seed, frozen_layers=Sizes.frozen_layers),
        args=TrainingArguments(
            f"{folder}/{client}",
            max_steps=arguments.steps,
            per_device_train_batch_size=16,
            learning_rate=arguments.learning_rate,
            seed=seed,
            save_strategy="no",
            logging_strategy="no",
            report_to=[],
            disable_tqdm=True,
            remove_unused_columns=False,
            label_names=["labels"],
        ),
        train_dataset=own["train"],
        eval_dataset=own["validation"],
        data_collator=collate,
        callbacks=[together],
    )
    together.attach(trainer)
    trainer.train()
    logits, labels = trainer.predict(own["test"])[:2]
    probabilities = torch.from_numpy(logits).double().softmax(-1).numpy()
    trust = [float(row[-1]) for row in together.trust.values()]
    return {
        "nll": float(negative_log_likelihood(probabilities, labels)),
        "accuracy": float((probabilities.argmax(1) == labels).mean()),
        "trust_in_last": float(np.mean(trust)) if trust else 0.0,
    }


if __name__ == "__main__":
    main()
