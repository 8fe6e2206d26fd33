"""Train an adapter of every kind in one process, or load them all in another: ``python every_tuner_worker.py save|load FOLDER``.

Each outcome becomes a line of save.jsonl, or load.jsonl: the predictions, or the error and the step at which it was raised.
"""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from conftest import WORDS, trainer_for  # noqa: E402
from every_tuner import TUNERS, AllocateRanks, tuner_model  # noqa: E402
from transformers import pipeline  # noqa: E402

from swag_trainer import Evenly, SwagCallback, SwagError, SwagTextClassificationPipeline  # noqa: E402

TEXTS = ["good film", "a bad dull plot", "long slow end but bright cast"]
SCALE = 100.0  # else the draws of so short a run hardly differ


def predictions(classify: SwagTextClassificationPipeline) -> list[list[list[float]]]:
    return [[[row["score"], row["mutual_information"]] for row in rows] for rows in classify(TEXTS, top_k=None, scale=SCALE)]


def save(name: str, folder: Path) -> dict:
    model, tokenizer = tuner_model(name, folder)
    rows = [{**tokenizer(" ".join(WORDS[index % 7 : index % 7 + index % 11 + 2])), "labels": index % 3} for index in range(24)]
    swag = SwagCallback(Evenly(snapshots=6, start=0.4), rank=4)
    callbacks = [swag, AllocateRanks()]
    trainer = trainer_for(model, rows, tokenizer, folder / name, callbacks=callbacks, max_steps=16, logging_strategy="no")
    frozen = {key: weight.clone() for key, weight in model.named_parameters() if not weight.requires_grad}
    try:
        trainer.train()
    except SwagError as error:
        return {"error": str(error), "step": trainer.state.global_step}
    changed = [key for key, weight in model.named_parameters() if key in frozen and not weight.equal(frozen[key])]
    model, posterior = trainer.model.eval(), swag.posterior.stored_as("bfloat16")
    classify = SwagTextClassificationPipeline(model=model, tokenizer=tokenizer, posterior=posterior, device="cpu")
    predicted = predictions(classify)
    is_packed = getattr(classify._predictor._logits.sampler, "obstacle", "it has none") is None
    return {"predictions": predicted, "changed": changed, "num_weights": posterior.layout.size, "packed": is_packed}


def load(name: str, folder: Path) -> dict:
    return {"predictions": predictions(pipeline("swag-text-classification", model=str(folder / name), device="cpu"))}


if __name__ == "__main__":
    logging.disable(logging.WARNING)
    step, place = sys.argv[1], Path(sys.argv[2])
    names = list(TUNERS) if step == "save" else [name for name in TUNERS if (place / name / "adapter_config.json").exists()]
    with open(place / f"{step}.jsonl", "w") as results:
        for each in names:
            outcome = (save if step == "save" else load)(each, place)
            results.write(json.dumps({"name": each, **outcome}) + "\n")
            results.flush()
