"""Language models on bases in 4 and 8 bits: generation, and multiple choice, against transformers and a plain loop over draws."""

import numpy as np
import pytest
import torch
from choices import VOCABULARY, choice_tokenizer, questions
from generation_models import log_probabilities, mean_model, posterior_of
from peft import LoraConfig, get_peft_model
from quantised_bases import QUANTISED
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, pipeline, set_seed

from swag_trainer import ChoiceCollator, ChoiceSettings, MonteCarloPredictor, TextGenerator
from swag_trainer.tasks.multiple_choice import MultipleChoice

IDS = torch.tensor([[3, 9, 12, 20], [7, 8, 5, 11]])
# A row is as wide as a block of 4-bit weights.
SIZES = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "initializer_range": 0.2,
}

ROUNDING = 0.05  # of bfloat16, and of 8-bit activations, which depend on the rows of a batch


@pytest.fixture
def quantised(request, tmp_path):
    """A model on a quantised base, and a posterior of its adapter whose draws differ."""
    set_seed(0)
    LlamaForCausalLM(LlamaConfig(vocab_size=len(VOCABULARY), **SIZES)).save_pretrained(tmp_path)
    base = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16, quantization_config=request.param())
    lora = LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    model = get_peft_model(base, lora).eval()
    return model, posterior_of(model)


@pytest.mark.parametrize("quantised", QUANTISED, indirect=True)
def test_generation_on_a_quantised_base_is_that_of_transformers_and_of_a_loop_over_draws(quantised):
    # Red for: a base that is rounded a second time in the private copy, a cache of another dtype, draws that do not reach the layers.
    model, posterior = quantised
    expected = mean_model(model, posterior).generate(input_ids=IDS, attention_mask=torch.ones_like(IDS), max_new_tokens=5)
    assert torch.equal(TextGenerator(model, posterior, scale=0).generate(IDS, max_new_tokens=5).sequences, expected)
    given = [row[:3].tolist() for row in IDS], [row[3:].tolist() for row in IDS]
    scores = TextGenerator(model, posterior, num_samples=3, seed=0).score(*given)
    draws = log_probabilities(model, posterior, IDS)[:, :, 2]
    chosen = draws.gather(-1, IDS[:, 3].expand(3, -1)[..., None])[..., 0]
    found = np.stack([each.draw_log_probabilities[:, 0] for each in scores], axis=1)
    np.testing.assert_allclose(found, chosen.numpy(), rtol=0, atol=4 * ROUNDING)  # of logarithms
    assert found.std(axis=0).min() > 8 * ROUNDING


@pytest.mark.parametrize("quantised", QUANTISED, indirect=True)
def test_multiple_choice_on_a_quantised_base_is_that_of_a_loop_over_draws(quantised):
    # Red for: as above, and letters read at another position.
    model, posterior = quantised
    collator = ChoiceCollator(choice_tokenizer(), ChoiceSettings(scoring="letters"))
    rows = [collator.encoder(question) for question in questions(4)]
    task, letters = MultipleChoice(collator.encoder.settings), choice_tokenizer().convert_tokens_to_ids(list("ABCDE"))
    predictor = MonteCarloPredictor(model, posterior, task=task, num_samples=3, data_collator=collator, temperature=1.0)
    found = predictor.predict(rows, return_draws=True).draw_probabilities
    for place, row in enumerate(questions(4)):
        listed = "\n".join(f"{letter}. {text}" for letter, text in zip("ABCDE", row["choices"], strict=False))
        ids = choice_tokenizer()(f"Question: {row['question']}\n{listed}\nAnswer:", return_tensors="pt")["input_ids"]
        draws = log_probabilities(model, posterior, ids)[:, 0, -1, letters[: len(row["choices"])]].softmax(-1)
        np.testing.assert_allclose(found[:, place, : len(row["choices"])], draws.numpy(), rtol=0, atol=ROUNDING)
    assert found.std(axis=0).max() > 2 * ROUNDING


@pytest.mark.parametrize("quantised", QUANTISED, indirect=True)
@pytest.mark.parametrize("task", ["swag-text-generation", "swag-multiple-choice"])
def test_the_pipelines_quantise_the_base_that_they_load(quantised, task, request, tmp_path):
    # Red for: a base in full precision in the place of the one that was asked for, a device map that is dropped.
    model, posterior = quantised
    posterior.save_pretrained(tmp_path / "run")
    quantisation = request.node.callspec.params["quantised"]()
    how = {"quantization_config": quantisation, "dtype": torch.bfloat16, "device_map": {"": "cpu"}}
    served = pipeline(task, model=str(tmp_path / "run"), tokenizer=choice_tokenizer(), num_samples=2, model_kwargs=how)
    layers = [each.get_base_model().model.layers[1].mlp.down_proj for each in (served.model, model)]
    assert type(layers[0]) is type(layers[1]) and type(layers[0].weight) is type(layers[1].weight)
    question = questions(1)[0] if task == "swag-multiple-choice" else "Question with letter"
    found = served(question)
    assert (found if isinstance(found, dict) else found[0])["entropy"] > 0
