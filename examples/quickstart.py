"""Fine-tune a small model on little text, collect a SWAG posterior meanwhile, and compare its calibration with its baselines'.

    python examples/quickstart.py
    python examples/quickstart.py --dataset clinc/clinc_oos:plus --train-rows 300 --seeds 5

MAP is what the same Trainer gives without SwagCallback: same steps, same seed, the learning rate going linearly to zero. "best MAP" is the
checkpoint of that run with the lowest validation loss, out of twenty. Both get a temperature and dropout too, on the same validation examples.
The learning rate of 5e-3 makes MAP overconfident, and is the better one of two for it all the same: with a temperature its NLL is 0.899, and 0.968 at 2e-3
(five seeds, docs/benchmarks.md).
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import transformers
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from scipy.stats import t as student
from text_data import DATA, TextTask, read_task, recipe_parser
from transformers import AutoModelForSequenceClassification, AutoTokenizer, Trainer, TrainingArguments, pipeline, set_seed

from hub_cards import reliability_diagram
from swag_trainer import Sampling, SwagCallback, SwagError, tune
from swag_trainer.evaluation.measurement import Measurement, measure
from swag_trainer.evaluation.methods import predict_methods

NUM_SAMPLES = 10
SHOWN_METRICS = {"accuracy": "accuracy", "nll": "NLL", "ece": "ECE", "brier": "Brier", "auroc_entropy": "AUROC OOD"}
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
    task = read_task(arguments.dataset, ood_source=arguments.ood)
    runs: list[Measurement] = []
    for seed in range(arguments.seeds):
        subset = task.subset(arguments.train_rows, arguments.validation_rows, seed=seed, test_rows=arguments.test_rows)
        folder = Path(arguments.output) / f"seed-{seed}"
        console.print(f"[bold]Seed {seed}[/]: {sizes(subset)}. Training twice: without SwagCallback (MAP) and with it.")
        measured, chosen = compare(subset, arguments, folder, seed)
        runs.append(measured)
        console.print(as_table(as_text(measured), f"{subset.name}, test split, seed {seed}: {chosen}"))
        for sentence in (measured.verdict, measured.ood_verdict):
            console.print(sentence or "", highlight=False, markup=False)
        bins = {name: method.bins for name, method in measured.methods.items()}
        reliability_diagram(bins, title=f"{subset.name}, seed {seed}").savefig(folder / "reliability.png", dpi=150)
        (folder / "results.json").write_text(
            json.dumps(json.loads(measured.to_json()) | {"chosen": chosen, "task": subset.name}, indent=2)
        )
    if arguments.seeds > 1:
        console.print(as_table(over_seeds(runs), f"{task.name}: mean over {arguments.seeds} seeds and its 95 % interval"))
        for other in runs[0].methods:
            if other != "SWAG":
                wins = sum(run.metrics["SWAG"]["nll"].value < run.metrics[other]["nll"].value for run in runs)
                console.print(f"SWAG has the lower test NLL than {other} for {wins} of {arguments.seeds} seeds.")
    show_sentences(Path(arguments.output) / "seed-0", ask_demo_questions=Path(arguments.dataset) == DATA, task=task)
    console.print(f"Adapter, posterior and reliability diagram are in {arguments.output}/seed-0.")


def parse_arguments() -> argparse.Namespace:
    parser = recipe_parser(__doc__)
    parser.add_argument("--ood", help="another source of out-of-distribution text, if the data set has none")
    parser.add_argument("--train-rows", type=int, help="train on that many examples, balanced over the classes")
    parser.add_argument("--validation-rows", type=int, help="choose scale and temperature on that many examples")
    parser.add_argument("--test-rows", type=int, help="measure on that many examples")
    parser.add_argument("--seeds", type=int, default=1, help="how many times to train, with another seed (and subset) each")
    parser.add_argument("--output", default="demo-output")
    return parser.parse_args()


def compare(task: TextTask, arguments: argparse.Namespace, folder: Path, seed: int) -> tuple[Measurement, str]:
    """Train both ways, tune on the validation split, measure on the test split."""
    tokenizer = AutoTokenizer.from_pretrained(arguments.model)
    data = {split: tokenised(task.texts[split], tokenizer, task.targets[split]) for split in task.texts}
    ood = tokenised(task.ood, tokenizer)

    plain = train(task, data["train"], tokenizer, arguments, folder / "map", seed, validation=data["validation"])
    swag = SwagCallback()
    model = train(task, data["train"], tokenizer, arguments, folder, seed, callbacks=[swag]).model.eval()

    # The validation split chooses centre, scale, dropout and temperatures, as many examples for each method; the test split is used once, afterwards.
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always", category=UserWarning)
        posterior = tune(
            swag.posterior,
            model,
            data["validation"],
            name=task.name,
            split="validation",
            sampling=Sampling(num_samples=NUM_SAMPLES, seed=seed),
            progress=False,
        )
    for warning in warned:
        console.print(f"[yellow]{escape(str(warning.message))}[/]")
    posterior.save_pretrained(folder)
    tokenizer.save_pretrained(folder)

    sampling = Sampling(num_samples=NUM_SAMPLES, seed=seed)
    settings = {"ood": ood if task.ood else None, "sampling": sampling, "progress": False}
    settings["validation"] = data["validation"]
    rivals = ["MAP", "MAP, temperature", "MC dropout, temperature"]
    methods = predict_methods(plain.model.eval(), posterior, data["test"], methods=rivals, **settings)
    plain.model.load_adapter(plain.state.best_model_checkpoint, "best")
    plain.model.set_adapter("best")
    best = predict_methods(plain.model.eval(), posterior, data["test"], methods=["MAP, temperature"], **settings)
    methods["best MAP, temperature"] = best["MAP, temperature"]
    methods |= predict_methods(model, posterior, data["test"], methods=["SWA", "SWAG"], **settings)
    measured = measure(methods, task.targets["test"], dataset=task.name, split="test", posterior=posterior, sampling=sampling)
    tuning = posterior.tuning
    around = f"draws around the {tuning.center_name}{' with dropout' if tuning.dropout else ''}"
    chosen = f"{around}, scale {posterior.scale:g} and temperature {posterior.temperature:.2f} chosen on validation"
    return measured, f"{chosen}, {NUM_SAMPLES} draws, {posterior.num_collected} snapshots"


def train(
    task: TextTask,
    rows: Dataset,
    tokenizer: object,
    arguments: argparse.Namespace,
    folder: Path,
    seed: int,
    *,
    callbacks: list | None = None,
    validation: Dataset | None = None,
) -> Trainer:
    """Fine-tune LoRA and a new head, as with peft and Trainer alone; with validation examples, keep the best checkpoint."""
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
        eval_strategy="no" if validation is None else "steps",
        eval_steps=max(1, arguments.steps // 20),
        per_device_eval_batch_size=64,
        save_strategy="no" if validation is None else "best",
        save_only_model=True,
        save_total_limit=1,
        metric_for_best_model="eval_loss",
        logging_strategy="no",
        report_to=[],
        dataloader_pin_memory=False,
    )
    trainer = Trainer(
        model=model,
        args=training,
        train_dataset=rows,
        eval_dataset=validation,
        processing_class=tokenizer,
        callbacks=callbacks,
    )
    trainer.train()
    return trainer


def tokenised(texts: list[str], tokenizer: object, targets: np.ndarray | None = None) -> Dataset:
    columns = dict(tokenizer(texts, truncation=True, max_length=128)) if texts else {"input_ids": []}
    return Dataset.from_dict(columns if targets is None else {**columns, "labels": targets.tolist()})


def show_sentences(folder: Path, *, ask_demo_questions: bool, task: TextTask) -> None:
    """Reload everything through the pipeline, as a user who only has the folder does."""
    sentences = SHOWN if ask_demo_questions else (*task.texts["test"][:4], *task.ood[:1])
    classify = pipeline("swag-text-classification", model=str(folder), num_samples=NUM_SAMPLES, seed=0)
    table = Table(title="Five messages (nats)")
    for column in ("message", "label", "probability", "entropy", "mutual information"):
        table.add_column(column, overflow="fold")  # a long label is broken, not cut
    for sentence, prediction in zip(sentences, classify(list(sentences)), strict=True):
        numbers = (f"{prediction[name]:.3f}" for name in ("score", "entropy", "mutual_information"))
        table.add_row(sentence, prediction["label"], *numbers)
    console.print(table)


def as_table(metrics: dict[str, dict[str, str]], title: str) -> Table:
    table = Table(title=title)
    table.add_column("method", overflow="fold", min_width=len("temperature"))
    for column in next(iter(metrics.values())):
        table.add_column(column)
    for name, row in metrics.items():
        table.add_row(name, *row.values())
    return table


def as_text(measured: Measurement) -> dict[str, dict[str, str]]:
    """Return the metrics of each method, and below them their 95 % bootstrap intervals."""
    return {
        method: {
            shown: f"{figures[name].value:.3f}\n{figures[name].low:.2f}-{figures[name].high:.2f}"  # fits 80 columns
            for name, shown in SHOWN_METRICS.items()
            if name in figures
        }
        for method, figures in measured.metrics.items()
    }


def over_seeds(runs: list[Measurement]) -> dict[str, dict[str, str]]:
    """Return means over the seeds, with the 95 % interval of such a mean (Student)."""
    quantile = float(student.ppf(0.975, len(runs) - 1))
    table: dict[str, dict[str, str]] = {}
    for method, figures in runs[0].metrics.items():
        for name, shown in SHOWN_METRICS.items():
            if name in figures:
                values = np.array([run.metrics[method][name].value for run in runs])
                half = quantile * values.std(ddof=1) / len(values) ** 0.5
                table.setdefault(method, {})[shown] = f"{values.mean():.3f}\n± {half:.3f}"
    return table


def sizes(task: TextTask) -> str:
    counts = ", ".join(f"{len(texts)} {split}" for split, texts in task.texts.items())
    return f"{len(task.labels)} classes, {counts}, {len(task.ood)} out-of-distribution"


def quiet_libraries() -> None:
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    logging.getLogger("peft").setLevel(logging.ERROR)


def run(main: Callable[[], None]) -> None:
    """Run an example; an error, such as data that cannot be read, ends it with a message and no traceback."""
    try:
        main()
    except SwagError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    run(main)
