"""A language model that answers questions, trained by FSDP2 in two real processes, and its posterior in the pipeline of one."""

import pytest
from choices import choice_tokenizer, questions, save_base
from distributed_worker import assert_close
from fsdp_choices_worker import ChoiceTrainer, choices
from torchrun import two_processes
from transformers import pipeline


@pytest.mark.slow
def test_a_sharded_language_model_makes_the_posterior_of_one_process_and_its_pipeline_answers(tmp_path):
    # Red for: questions of one process alone in the loss, pieces of weights in the file, a task that only the whole model tells.
    setup = {"base": str(save_base("llama", tmp_path / "base"))}
    results = two_processes("collection/fsdp_choices_worker.py", "sharded", folder=tmp_path / "two", **setup)
    single = choices(tmp_path / "one", setup, kind=ChoiceTrainer, processes=1)
    for found in (result["sharded"] for result in results):
        assert (found["parameter"], found["task"]) == ("DTensor", single["task"])
        assert_close(found, single, tolerance=1e-5)
    place = str(tmp_path / "two" / "sharded" / "run")
    answers = pipeline("swag-multiple-choice", model=place, tokenizer=choice_tokenizer(), num_samples=3)(questions(3))
    assert all(answer["mutual_information"] > 0 for answer in answers)
