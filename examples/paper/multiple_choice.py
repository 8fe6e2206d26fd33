"""The protocol of SWAG-LoRA (arXiv:2405.03425) on multiple-choice questions that a causal language model answers.

    python examples/paper/multiple_choice.py --small
    python examples/paper/multiple_choice.py --model HuggingFaceTB/SmolLM2-135M-Instruct --scoring answers --learning-rate 5e-4 \
        --train arc_easy.train.jsonl --test arc_easy.test.jsonl --shifted mmlu_cs.test.jsonl --seeds 0 1 2

Files are JSON Lines of {"question": ..., "choices": [...], "answer": ...}. For each seed a LoRA adapter is trained and its posterior saved under
--output, where another run finds it again. "last" is the last snapshot of the run, the baseline without averaging. A temperature is fitted
to the validation questions, which are the last ones of the training file. The table has means and standard deviations over the seeds;
results.json has every number. Defaults are those for models of the size of Llama-2-7B.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Trainer,
    TrainingArguments,
    set_seed,
)

from swag_trainer import (
    ChoiceCollator,
    ChoiceSettings,
    MonteCarloPredictor,
    MultipleChoiceMixin,
    SwagCallback,
    WeightPosterior,
    load_posterior,
)
from swag_trainer.metrics import accuracy, auroc, brier_score, expected_calibration_error, negative_log_likelihood
from swag_trainer.metrics.temperature import fit_temperature
from swag_trainer.tasks.multiple_choice import MultipleChoice

# Name in the table -> how the posterior is drawn from.
METHODS: Mapping[str, Mapping[str, Any]] = {
    "last": {"center": "last", "scale": 0.0},
    "MC dropout": {"center": "last", "scale": 0.0, "dropout": True},
    "SWA": {"center": "mean", "scale": 0.0},
    "SWAG": {"center": "mean"},
}
METRICS = {
    "accuracy": accuracy,
    "NLL": negative_log_likelihood,
    "ECE": expected_calibration_error,
    "Brier": brier_score,
}


class ChoiceTrainer(MultipleChoiceMixin, Trainer):
    """The Trainer with the loss of multiple choice."""


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    options = parse_arguments(arguments)
    if options.small:
        small_mode(options)
    questions = {name: read_questions(getattr(options, name), options.limit) for name in ("train", "test", "shifted")}
    train, validation = questions["train"][: -options.validation], questions["train"][-options.validation :]
    results: dict[str, Any] = {"options": {name: str(value) for name, value in vars(options).items()}, "seeds": {}}
    for seed in options.seeds:
        model, posterior, collator = trained(train, seed, options)
        data = {"validation": validation, "test": questions["test"], "shifted": questions["shifted"]}
        results["seeds"][seed] = measured(model, posterior, collator, data, options)
        Path(options.output, "results.json").write_text(json.dumps(results, indent=2), encoding="utf-8")
    print(table(list(results["seeds"].values())))
    return results


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="a tiny random model and 64 questions, to see that all of it runs")
    parser.add_argument(
        "--model", default="meta-llama/Llama-2-7b-hf", help="a causal language model: a name on the Hub or a folder"
    )
    parser.add_argument("--gguf-file", help="the file in that repository or folder, if the model lies in one")
    parser.add_argument("--train", help="questions to train on, the last of them to fit temperatures to")
    parser.add_argument("--test", help="questions to measure on")
    parser.add_argument("--shifted", help="questions of another kind")
    parser.add_argument("--limit", type=int, help="take that many questions of each file at most")
    parser.add_argument(
        "--validation", type=int, default=100, help="how many of the training questions are for the temperature"
    )
    parser.add_argument("--scoring", choices=("letters", "answers"), default="letters")
    parser.add_argument("--target-modules", nargs="+", default=["q_proj", "v_proj"])
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--learning-rate", type=float, default=1e-4)
    parser.add_argument("--num-samples", type=int, default=8)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--output", default="paper-output")
    options = parser.parse_args(arguments)
    if not options.small and not (options.train and options.test and options.shifted):
        parser.error("--train, --test and --shifted are needed, or --small")
    return options


def read_questions(path: str, limit: int | None) -> list[dict[str, Any]]:
    with open(path, encoding="utf-8") as file:
        return [json.loads(line) for line in file if line.strip()][:limit]


def trained(
    train: list[dict[str, Any]], seed: int, options: argparse.Namespace
) -> tuple[torch.nn.Module, WeightPosterior, ChoiceCollator]:
    """Train an adapter and save its posterior, or load the one that an earlier run left; what is measured is what was saved."""
    folder = Path(options.output, f"seed-{seed}")
    where = {"gguf_file": options.gguf_file} if options.gguf_file else {}
    set_seed(seed)
    tokenizer = AutoTokenizer.from_pretrained(options.model, **where)
    base = AutoModelForCausalLM.from_pretrained(options.model, dtype=getattr(torch, options.dtype), **where)
    lora = LoraConfig(task_type="CAUSAL_LM", r=8, lora_alpha=16, lora_dropout=0.05, target_modules=options.target_modules)
    model, settings = get_peft_model(base, lora), ChoiceSettings(scoring=options.scoring)
    if not (folder / "swag_posterior.safetensors").exists():
        swag = SwagCallback()
        arguments = TrainingArguments(
            output_dir=str(folder),
            max_steps=options.steps,
            per_device_train_batch_size=options.batch_size,
            learning_rate=options.learning_rate,
            save_strategy="no",
            report_to=[],
            seed=seed,
        )
        ChoiceTrainer(
            model=model,
            args=arguments,
            train_dataset=train,
            processing_class=tokenizer,
            choice_settings=settings,
            callbacks=[swag],
        ).train()
        swag.posterior.save_pretrained(folder)
    return model.eval(), load_posterior(folder), ChoiceCollator(tokenizer, settings)


def measured(
    model: torch.nn.Module,
    posterior: WeightPosterior,
    collator: ChoiceCollator,
    data: Mapping[str, list[dict[str, Any]]],
    options: argparse.Namespace,
) -> dict[str, dict[str, float]]:
    """Return the metrics of each method, and of each with a temperature: of the test questions, and as "shifted ..." of the others."""
    rows = {name: [collator.encoder(question) for question in questions] for name, questions in data.items()}
    labels = {name: np.array([row["labels"] for row in each]) for name, each in rows.items()}
    task, found = MultipleChoice(collator.encoder.settings), {}
    for method, drawing in METHODS.items():
        predictor = MonteCarloPredictor(
            model, posterior, task=task, num_samples=options.num_samples, temperature=1.0, **drawing
        )
        draws = predictor.predict(rows["validation"], return_draws=True).draw_probabilities
        temperature = fit_temperature(np.log(np.maximum(draws, np.finfo(np.float64).tiny)), labels["validation"])
        for name, chosen in ((method, predictor), (f"{method}, T", predictor.with_output(temperature=temperature))):
            predicted = {split: chosen.predict(rows[split]) for split in ("test", "shifted")}
            found[name] = {
                f"{prefix}{metric}": float(function(predicted[split].probabilities, labels[split]))
                for split, prefix in (("test", ""), ("shifted", "shifted "))
                for metric, function in METRICS.items()
            }
            found[name]["AUROC"] = float(auroc(predicted["test"].entropy, predicted["shifted"].entropy))
            found[name]["temperature"] = float(chosen.temperature)
    return found


def table(seeds: Sequence[Mapping[str, Mapping[str, float]]]) -> str:
    """Return a table of Markdown: a row for each method, mean and standard deviation over the seeds. ECE has 15 equal-width bins."""
    names = list(next(iter(seeds[0].values())))
    lines = ["| method | " + " | ".join(names) + " |", "|---|" + "---:|" * len(names)]
    for method in seeds[0]:
        values = np.array([[seed[method][name] for name in names] for seed in seeds])
        spread = values.std(axis=0, ddof=1) if len(seeds) > 1 else np.full(len(names), np.nan)
        cells = [f"{mean:.3f} ± {std:.3f}" for mean, std in zip(values.mean(axis=0), spread, strict=True)]
        lines.append(f"| {method} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def small_mode(options: argparse.Namespace) -> None:
    """Write a tiny random model and 64 questions whose right answer is the word that is asked for, and point the options at them."""
    folder = Path(tempfile.mkdtemp(prefix="swag-paper-"))
    words = ["stone", "river", "cloud", "plant", "metal", "glass", "paper", "light", "sound", "water", "which", "word", "is"]
    vocabulary = ["<end>", "<unk>", *"ABCDE", "Question", "Answer", ":", ".", "?", *words]
    model = Tokenizer(models.WordLevel({word: place for place, word in enumerate(vocabulary)}, unk_token="<unk>"))
    model.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=model, eos_token="<end>", unk_token="<unk>").save_pretrained(folder)
    set_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    LlamaForCausalLM(LlamaConfig(vocab_size=len(vocabulary), num_key_value_heads=4, **sizes)).save_pretrained(folder)
    generator = np.random.default_rng(0)
    for name, count in (("train", 32), ("test", 16), ("shifted", 16)):
        rows = []
        for _ in range(count):
            choices = generator.choice(words[:10], size=generator.integers(3, 6), replace=False).tolist()
            answer = int(generator.integers(len(choices)))
            rows.append({"question": f"which word is {choices[answer]} ?", "choices": choices, "answer": answer})
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
        setattr(options, name, str(folder / f"{name}.jsonl"))
    options.model, options.dtype, options.validation, options.steps = str(folder), "float32", 8, min(options.steps, 20)


if __name__ == "__main__":
    main()
