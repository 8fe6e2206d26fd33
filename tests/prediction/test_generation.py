"""TextGenerator: transformers' own generation at scale 0, a plain loop over draws at S = 3, and what cannot be averaged refused."""

import numpy as np
import pytest
import torch
from generation_models import language_posterior, log_probabilities, mean_model, posterior_of
from peft import LoraConfig, get_peft_model
from transformers import (
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    StoppingCriteria,
    T5Config,
    T5ForConditionalGeneration,
    set_seed,
)

from swag_trainer import MonteCarloPredictor, SwagError, TextGenerator, tune
from swag_trainer.prediction.token_scores import TokenScores

IDS = torch.tensor([[3, 9, 12, 20], [7, 8, 5, 11]])
PROMPTS, CONTINUATIONS = [[3, 9, 12, 20, 4, 5], [7, 8]], [[5, 6, 7], [9, 10, 11, 12, 13]]
KINDS = {
    "llama": ("llama", {}),
    "qwen2": ("qwen2", {}),
    "gpt2": ("gpt2", {}),
    "upper layer": ("llama", {"layers_to_transform": [1]}),
    "upper layer of gpt2": ("gpt2", {"layers_to_transform": [1]}),
    "output projection": ("llama", {"target_modules": ["o_proj"]}),
    "head": ("llama", {"target_modules": ["lm_head"]}),
    "dora": ("llama", {"use_dora": True}),
}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Models and posteriors by kind, made when they are first asked for."""
    known = {}

    def get(kind):
        if kind not in known:
            name, lora = KINDS[kind]
            known[kind] = language_posterior(name, tmp_path_factory.mktemp("lm"), **lora)
        return known[kind]

    return get


@pytest.mark.parametrize("kind", ["llama", "qwen2", "gpt2"])
def test_at_scale_0_the_tokens_are_those_of_transformers(made, kind):
    # Red for: a shifted position, a step without the cache, logits that repetition_penalty takes for others, another generator.
    model, posterior = made(kind)
    generator, plain = TextGenerator(model, posterior, scale=0), mean_model(model, posterior)
    padded, mask = torch.tensor([[3, 9, 12, 20], [0, 0, 5, 11]]), torch.tensor([[1, 1, 1, 1], [0, 0, 1, 1]])
    sampled = {"do_sample": True, "temperature": 0.7, "top_k": 9, "top_p": 0.9, "num_return_sequences": 2}
    for ids, attended in ((IDS, torch.ones_like(IDS)), (padded, mask)):
        for options in ({}, sampled, {"repetition_penalty": 1.3, "use_cache": False}, {"eos_token_id": [0, 13, 20]}):
            found, expected = None, None
            for model_or_draws in ("draws", "plain"):
                torch.manual_seed(1)
                if model_or_draws == "draws":
                    found = generator.generate(ids, attended, max_new_tokens=9, **options).sequences
                else:
                    expected = plain.generate(input_ids=ids, attention_mask=attended, max_new_tokens=9, **options)
            assert torch.equal(found, expected), options


@pytest.mark.parametrize("kind", KINDS)
def test_three_draws_generate_by_the_average_that_a_plain_loop_gives(made, kind):
    # Red for: logits averaged in the place of probabilities, rows of another draw, a cache of shared layers that lags behind.
    model, posterior = made(kind)
    generator = TextGenerator(model, posterior, num_samples=3, seed=0)
    seen, averaged = [], generator._average

    def watched(logits):
        seen.append(averaged(logits))
        return seen[-1]

    generator._average = watched
    made_tokens = generator.generate(IDS, max_new_tokens=6, eos_token_id=None)
    assert made_tokens.lengths.tolist() == [6, 6]
    draws = log_probabilities(model, posterior, made_tokens.sequences)[:, :, 3:-1]
    average = draws.exp().mean(0)
    torch.testing.assert_close(torch.cat(seen, dim=1).double().softmax(-1), average, rtol=0, atol=1e-5)
    assert torch.equal(average.argmax(-1), made_tokens.sequences[:, 4:])
    chosen = draws.gather(-1, made_tokens.sequences[:, 4:].expand(3, -1, -1)[..., None])[..., 0]
    torch.testing.assert_close(made_tokens.draw_log_probabilities.double(), chosen.transpose(0, 1), rtol=0, atol=5e-5)
    torch.testing.assert_close(made_tokens.entropy.double(), torch.special.entr(average).sum(-1), rtol=0, atol=1e-5)
    is_shared = kind in ("upper layer", "upper layer of gpt2", "head")
    assert generator._decoder.num_shared_layers == (is_shared and 1 + (kind == "head"))
    assert (generator.obstacle is None) == (kind != "dora")


@pytest.mark.parametrize("kind", ["llama", "qwen2", "gpt2", "upper layer", "dora"])
@pytest.mark.parametrize("max_tokens", [None, 12])
def test_given_continuations_are_scored_as_a_plain_loop_scores_them_alone(made, kind, max_tokens):
    # Red for: a token scored by the place behind it, padding that is attended to, a prompt cut at the wrong place.
    model, posterior = made(kind)
    generator = TextGenerator(model, posterior, num_samples=3, seed=0, max_tokens=max_tokens)
    scored = generator.score(PROMPTS, CONTINUATIONS)
    for prompt, continuation, found in zip(PROMPTS, CONTINUATIONS, scored, strict=True):
        draws = log_probabilities(model, posterior, torch.tensor([prompt + continuation]))[:, 0, len(prompt) - 1 : -1]
        average, chosen = draws.exp().mean(0), draws.gather(-1, torch.tensor(continuation).expand(3, -1)[..., None])[..., 0]
        np.testing.assert_allclose(found.draw_log_probabilities, chosen, atol=3e-5)
        np.testing.assert_allclose(found.log_probabilities, chosen.exp().mean(0).log(), atol=3e-5)
        assert found.log_probability == pytest.approx(float(chosen.sum(-1).exp().mean().log()), abs=1e-4)
        np.testing.assert_allclose(found.entropy, torch.special.entr(average).sum(-1), atol=1e-5)
        np.testing.assert_allclose(found.aleatoric, torch.special.entr(draws.exp()).sum(-1).mean(0), atol=1e-5)
        assert (found.mutual_information > 1e-3).all() and found.tokens.tolist() == continuation


def test_a_padded_prompt_is_continued_as_it_is_alone(made):
    # Red for: positions that count the padding, or keys of padding that are attended to behind the cache.
    for kind in ("llama", "gpt2", "upper layer"):
        generator = TextGenerator(*made(kind), num_samples=3, seed=0, max_tokens=12)
        both = generator.generate(
            torch.tensor([[3, 9, 12, 20], [0, 0, 5, 11]]), torch.tensor([[1] * 4, [0, 0, 1, 1]]), max_new_tokens=6
        )
        alone = generator.generate(torch.tensor([[5, 11]]), max_new_tokens=6)
        length = int(alone.lengths[0])
        assert both.lengths[1] == length and both.sequences[1, 4 : 4 + length].tolist() == alone.sequences[0, 2:].tolist()
        torch.testing.assert_close(both.entropy[1, :length], alone.entropy[0], rtol=0, atol=1e-5)


def test_a_text_that_something_stopped_has_its_length_in_every_batch(made):
    # Red for: padding that is an end token counted as generated, where a function or a string and no token stopped the text.
    class AtTheThird(StoppingCriteria):
        def __call__(self, input_ids, scores, **kwargs):
            return input_ids[:, 1] == 8 if input_ids.shape[1] == 5 else input_ids[:, 1] == -1

    generator = TextGenerator(*made("llama"), num_samples=3, seed=0)
    prompts = torch.tensor([[7, 8], [3, 9]])
    how = {"max_new_tokens": 6, "eos_token_id": [2, 13], "pad_token_id": 2, "stopping_criteria": [AtTheThird()]}
    both, plain = generator.generate(prompts, **how), generator.generate(prompts, max_new_tokens=6, eos_token_id=None)
    assert both.lengths[0] == 3 and both.sequences[0, 5:].unique().tolist() == [2]
    ends = [index for index, token in enumerate(plain.sequences[1, 2:].tolist(), 1) if token in (2, 13)]
    assert both.lengths[1] == (ends[0] if ends else 6)
    assert torch.equal(both.sequences[0, :5], plain.sequences[0, :5])
    alone = generator.generate(prompts[:1], **how)
    assert alone.lengths.tolist() == [3]
    torch.testing.assert_close(alone.draw_log_probabilities[0], both.draw_log_probabilities[0, :, :3], rtol=0, atol=1e-5)
    returned = generator.generate(prompts, **how, do_sample=True, num_return_sequences=2)
    assert returned.lengths.shape == (4,) and (returned.lengths[:2] <= 3).all()


def test_draws_of_unequal_weight_and_a_temperature_count_in_every_mean(made, monkeypatch):
    # Red for: a plain mean over the draws of a mixture; a temperature that divides after the average.
    draws = np.log(np.array([[0.5, 0.2], [0.1, 0.4]]))
    scores = TokenScores(np.array([1, 2]), draws, np.ones(2), np.array([0.4, 1.1]), weights=np.array([0.75, 0.25]))
    np.testing.assert_allclose(np.exp(scores.log_probabilities), [0.4, 0.25])
    assert np.exp(scores.log_probability) == pytest.approx(0.75 * 0.1 + 0.25 * 0.04)
    np.testing.assert_allclose(scores.mutual_information, [0.6, 0.0])
    assert scores.summary()["mutual_information"] == pytest.approx(0.3)
    assert scores.token_rows(["a", "b"])[1] == pytest.approx(
        {"token": "b", "log_probability": np.log(0.25), "entropy": 1.0, "aleatoric": 1.1, "mutual_information": 0.0}
    )
    model, posterior = made("llama")
    found = TextGenerator(model, posterior, num_samples=3, seed=0, temperature=2.0).score([[3, 9]], [[5]])[0]
    tempered = (log_probabilities(model, posterior, torch.tensor([[3, 9]]))[:, 0, -1] / 2).softmax(-1)
    np.testing.assert_allclose(np.exp(found.draw_log_probabilities[:, 0]), tempered[:, 5], atol=1e-5)
    draw, counts = type(posterior).draw, torch.tensor([0.7, 0.2, 0.1], dtype=torch.float64)
    monkeypatch.setattr(type(posterior), "draw", lambda *args, **options: draw(*args, **options)._replace(weights=counts))
    generator, draws = TextGenerator(model, posterior, num_samples=3, seed=0), log_probabilities(model, posterior, IDS)
    average = (counts[:, None, None, None] * draws.exp()).sum(0)[:, -1]
    assert torch.equal(generator.generate(IDS, max_new_tokens=1).sequences[:, -1], average.argmax(-1))
    (scored,) = generator.score([IDS[0].tolist()], [[5]])
    assert scored.log_probability == pytest.approx(float(average[0, 5].log()), abs=1e-5)
    assert scored.entropy[0] == pytest.approx(float(torch.special.entr(average[0]).sum()), abs=1e-5)


REFUSED = {
    "num_beams": 3, "penalty_alpha": 0.6, "dola_layers": "low", "assistant_model": object(), "prompt_lookup_num_tokens": 2,
    "custom_generate": "user/code", "guidance_scale": 1.5, "cache_implementation": "static", "past_key_values": object(),
    "output_scores": True, "return_dict_in_generate": True, "force_words_ids": [[1]], "prefill_chunk_size": 4, "synced_gpus": True,
}  # fmt: skip


def test_ways_of_decoding_without_an_average_are_refused_before_anything_runs(made, monkeypatch):
    # Red for: beams that reorder the caches of other draws, an assistant that is not drawn, a default of the model that is overlooked.
    generator = TextGenerator(*made("llama"), num_samples=2)
    monkeypatch.setattr(generator, "_decoder", None)
    for name, value in REFUSED.items():
        with pytest.raises(SwagError, match=f"^{name}=.*from the averaged next-token distribution"):
            generator.generate(IDS, **{name: value})
        if hasattr(GenerationConfig(), name):
            with pytest.raises(SwagError, match=f"^{name}=.* in the generation config is for"):
                generator.generate(IDS, generation_config=GenerationConfig(**{name: value}))
    generator.generation_config.num_beams = 4
    with pytest.raises(SwagError, match="num_beams=4 in the generation config is for beam search.*Pass num_beams=1"):
        generator.generate(IDS)
    generator.generation_config.num_beams = None


def test_models_posteriors_and_texts_that_cannot_be_scored_are_refused(made):
    # Red for: an encoder's text scored by a decoder, a raw IndexError of the table of positions, classes that are a vocabulary.
    model, posterior = made("gpt2")
    for prompts, continuations in (([[]], [[3]]), ([[3]], [[]]), ([[3]], [[3], [4]])):
        with pytest.raises(SwagError, match="each with a token at least"):
            TextGenerator(model, posterior).score(prompts, continuations)
    with pytest.raises(SwagError, match="An empty prompt needs a token that texts begin with"):
        TextGenerator(model, posterior).generate(None, bos_token_id=None)
    for options in ({"max_new_tokens": 126}, {"max_length": 130}):
        with pytest.raises(SwagError, match="129 tokens to read, and the model has 128 positions"):
            TextGenerator(model, posterior).generate(IDS, **options)
    with pytest.raises(SwagError, match="128 positions"):
        TextGenerator(model, posterior).score([[3] * 127], [[3, 3, 3]])
    assert TextGenerator(model, posterior).score([[3] * 127], [[3, 3]])[0].tokens.tolist() == [3, 3]
    with pytest.raises(SwagError, match="leave dropout out"):
        TextGenerator(model, posterior, dropout=True)
    with pytest.raises(SwagError, match="max_tokens must be at least 1"):
        TextGenerator(model, posterior, max_tokens=0)
    assert posterior.record.task == "swag-text-generation"
    for refused in (lambda: MonteCarloPredictor(model, posterior), lambda: tune(posterior, model, [])):
        with pytest.raises(SwagError, match="vocabulary in the place of classes.*TextGenerator"):
            refused()
    set_seed(0)
    sizes = {
        "d_model": 16,
        "d_kv": 8,
        "d_ff": 16,
        "num_layers": 1,
        "num_heads": 2,
        "vocab_size": 40,
        "decoder_start_token_id": 0,
    }
    other = get_peft_model(T5ForConditionalGeneration(T5Config(**sizes)), LoraConfig(r=2, target_modules=["q"]))
    with pytest.raises(SwagError, match="needs a causal language model.*got T5ForConditionalGeneration"):
        TextGenerator(other, posterior_of(other))


def test_draws_on_a_base_in_bfloat16_are_packed(tmp_path):
    # Red for: a proof by the worst of many logits, which bfloat16 rounds by more than those of a few classes.
    set_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4, "vocab_size": 8192}
    base = LlamaForCausalLM(LlamaConfig(**sizes, initializer_range=0.3)).to(torch.bfloat16)
    targets = {"target_modules": ["q_proj", "v_proj"], "init_lora_weights": False}
    model = get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", r=4, **targets)).eval()
    posterior = posterior_of(model)
    generator = TextGenerator(model, posterior, num_samples=3)
    assert generator.generate(IDS, max_new_tokens=2).entropy.isfinite().all() and generator.obstacle is None
    found = TextGenerator(model, posterior, scale=0).generate(IDS, max_new_tokens=6).sequences
    assert torch.equal(found, mean_model(model, posterior).generate(input_ids=IDS, max_new_tokens=6))


def test_a_merged_adapter_and_nan_logits_are_refused(tmp_path):
    # Red for: draws added to a merged adapter; a text "generated" from NaN, whose first token is always token 0.
    model, posterior = language_posterior("llama", tmp_path)
    generator = TextGenerator(model, posterior, num_samples=2)
    model.merge_adapter()
    with pytest.raises(SwagError, match="merged into the base"):
        generator.generate(IDS, max_new_tokens=2)
    model.unmerge_adapter()
    wide = TextGenerator(model, posterior, num_samples=2, scale=1e38)
    with pytest.raises(SwagError, match="NaN or infinite logits"):
        wide.score([[3, 4]], [[5]])
