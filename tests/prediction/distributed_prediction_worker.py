"""Predictions in two processes; see test_distributed_prediction.py and test_trainer_evaluation.py."""

import os

import torch
from accelerate import PartialState
from conftest import lora_model
from lively import short_run
from peft import PeftModel
from torchrun import work
from transformers import BertForSequenceClassification, BertTokenizerFast, Trainer, TrainingArguments

from swag_trainer import MonteCarloPredictor, SwagEvaluationMixin, SwagPosterior
from swag_trainer.distributed import Processes
from swag_trainer.metrics.trainer import classification_metrics

FIELDS = ("probabilities", "entropy", "mutual_information", "std", "num_draws")
RANK = int(os.environ.get("RANK", 0))


def setup_in(folder, base, texts):
    """A base of three classes, a saved posterior whose answers differ from row to row, and rows as the Trainer takes them."""
    lora_model(base).unload().save_pretrained(folder / "base")
    BertTokenizerFast.from_pretrained(base).save_pretrained(folder / "base")
    _, posterior, tokenizer = short_run(folder / "base", texts, folder / "run")
    posterior.save_pretrained(folder / "posterior")
    rows = [{**tokenizer(text), "labels": index % 3} for index, text in enumerate(texts)]
    return {"base": str(folder / "base"), "posterior": str(folder / "posterior"), "rows": rows}


def a_model(setup):
    return PeftModel.from_pretrained(BertForSequenceClassification.from_pretrained(setup["base"]), setup["posterior"])


def a_predictor(setup, **arguments):
    posterior = SwagPosterior.from_pretrained(setup["posterior"])
    return MonteCarloPredictor(a_model(setup), posterior, **{"batch_size": 2, "progress": False, **arguments})


def as_tensors(predictive):
    return {name: torch.from_numpy(getattr(predictive, name)) for name in FIELDS}


def answer(setup, count, **arguments):
    return as_tensors(a_predictor(setup, **arguments).predict(setup["rows"][:count]))


def together(folder, setup):
    """Data sets that two processes can share evenly, and not."""
    predictor, rows = a_predictor(setup), setup["rows"]
    answered, inner = [], predictor._predict_batch
    predictor._predict_batch = lambda batch, *rest: answered.append(len(batch["input_ids"])) or inner(batch, *rest)
    results = {str(count): as_tensors(predictor.predict(rows[:count])) for count in (24, 3, 2, 1)}
    results["answered here"] = list(answered)
    results["draws"] = torch.from_numpy(predictor.predict(rows[:5], return_draws=True).draw_probabilities)
    results["dropout"] = answer(setup, 24, dropout=True)
    results["until exact"] = answer(setup, 24, max_error=0.02, num_blocks=4)
    results["processes for accelerate"] = PartialState().num_processes
    results["gathered"] = Processes.of_this_run().all_gather(lambda: RANK)
    return results


def alone(folder, setup):
    """What needs nobody else: a batch, and a predictor that was told so, in one process and not in the other."""
    results = {}
    if RANK == 1:
        batch = {name: torch.tensor([setup["rows"][0][name]]) for name in ("input_ids", "attention_mask")}
        results["batch"] = as_tensors(a_predictor(setup).predict(batch))
        results["told so"] = answer(setup, 3, across_processes=False)
    return results


def message_of(function):
    """Whatever came out of it; the next collective shows that both processes are still in step."""
    try:
        function()
    except Exception as error:
        result = f"{type(error).__name__}: {error}"
    else:
        result = ""
    numbers = Processes.of_this_run().all_gather(lambda: 1)
    assert numbers == [1, 1], (numbers, result)
    return result


class Broken:
    """A data set that cannot be read, in the second process."""

    def __init__(self, rows):
        self.rows = rows

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        if RANK == 1 and index == 1:
            raise OSError("the disk of process 1")
        return self.rows[index]


def failing(folder, setup):
    """Each of the ways in which one process does not answer as the other one does."""
    rows, predictor = setup["rows"], a_predictor(setup)

    def fail_in_process_1():
        broken, inner = a_predictor(setup), predictor._collate
        broken._collate = lambda batch: inner(batch) if RANK == 0 else [][1]
        broken.predict(rows)

    return {
        "reading": message_of(lambda: predictor.predict(Broken(rows))),
        "answering": message_of(fail_in_process_1),
        "a part of the rows each": message_of(lambda: predictor.predict(rows[RANK::2])),
        "a seed each": message_of(lambda: a_predictor(setup, seed=RANK).predict(rows)),
        "a batch size each": message_of(lambda: a_predictor(setup, batch_size=2 + RANK).predict(rows)),
        "no rows": message_of(lambda: predictor.predict([])),
        "afterwards": as_tensors(predictor.predict(rows)),
    }


class PosteriorTrainer(SwagEvaluationMixin, Trainer):
    pass


def a_trainer(folder, setup, **arguments):
    settings = {
        "per_device_eval_batch_size": 4 // setup.get("processes", 2),
        "report_to": [],
        "disable_tqdm": True,
        "use_cpu": True,
    }
    return PosteriorTrainer(
        model=a_model(setup),
        args=TrainingArguments(str(folder), **settings | {"dataloader_pin_memory": False} | arguments),
        eval_dataset=setup["rows"],
        processing_class=BertTokenizerFast.from_pretrained(setup["base"]),
        compute_metrics=classification_metrics(),
    )


def trainers(folder, setup):
    """Trainer.predict, for rows that fill the last batch of both processes and for rows that do not, and Trainer.evaluate."""
    results = {}
    for strategy in ("random", "group_by_length"):
        trainer = a_trainer(folder, setup, train_sampling_strategy=strategy)
        trainer.use_posterior(SwagPosterior.from_pretrained(setup["posterior"]))
        for count in (24, 21):
            output = trainer.predict(setup["rows"][:count])
            results[f"{strategy} {count}"] = {
                "predictions": torch.from_numpy(output.predictions),
                "labels": torch.from_numpy(output.label_ids),
                "metrics": {name: float(value) for name, value in output.metrics.items()},
            }
    results["evaluate"] = {name: float(value) for name, value in trainer.evaluate().items()}
    return results


MODES = {"trainers": trainers, "together": together, "alone": alone, "failing": failing}

if __name__ == "__main__":
    work(MODES)
