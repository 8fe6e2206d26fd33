import threading

import numpy as np
import pytest
import torch
from conftest import lora_model
from datasets import Dataset

from swag_trainer import AdapterMismatchError, MonteCarloPredictor, SwagError
from swag_trainer.adapters.weights import AdapterWeights
from swag_trainer.prediction.predictive import RegressionPredictive


def predictor(trained, tokenizer, **arguments):
    trainer, swag = trained
    settings = {"progress": False} | arguments
    return MonteCarloPredictor(trainer.model, swag.posterior.with_scale(20.0), **settings)


def snapshot(model):
    return {name: (tensor.data_ptr(), tensor.clone()) for name, tensor in model.state_dict().items()}


def assert_untouched(model, before):
    for name, tensor in model.state_dict().items():
        assert tensor.data_ptr() == before[name][0] and torch.equal(tensor, before[name][1]), name


def test_draw_by_draw_it_says_what_a_model_with_those_weights_says(trained, base_folder, rows, tokenizer):
    # Red for: a draw put under the wrong key, in the wrong order, or not at all; a scale or a seed that is ignored.
    trainer, swag = trained
    answer = predictor(trained, tokenizer, num_samples=4, seed=3, scale=30.0).predict(rows, return_draws=True)
    draws = swag.posterior.sample(4, seed=3, scale=30.0)
    batch = tokenizer.pad([{name: row[name] for name in ("input_ids", "attention_mask")} for row in rows], return_tensors="pt")
    for index in range(4):
        twin = lora_model(base_folder).eval()
        AdapterWeights(twin).write({key: weight[index] for key, weight in draws.items()})
        with torch.no_grad():
            expected = twin(**batch).logits.double().softmax(-1)
        # Other batches are padded to other lengths, which moves float32 sums by some 1e-7.
        np.testing.assert_allclose(answer.draw_probabilities[index], expected, rtol=0, atol=1e-6)
    assert answer.draw_probabilities.std(axis=0).max() > 1e-3
    np.testing.assert_allclose(answer.probabilities, answer.draw_probabilities.mean(0), rtol=1e-12)


def test_answers_do_not_depend_on_batches_order_or_threads(trained, rows, tokenizer):
    # Red for: draws made anew for each batch, rows answered in the order of their lengths, a global generator.
    threads, order = torch.get_num_threads(), np.random.default_rng(0).permutation(len(rows))
    reference = predictor(trained, tokenizer, batch_size=7).predict(rows)
    try:
        for batch_size, count in ((1, 1), (7, 2), (64, 1)):
            torch.set_num_threads(count)
            answer = predictor(trained, tokenizer, batch_size=batch_size).predict([rows[index] for index in order])
            for name in ("probabilities", "entropy", "mutual_information", "aleatoric", "std"):
                np.testing.assert_allclose(
                    getattr(answer, name), getattr(reference, name)[order], rtol=0, atol=1e-6, err_msg=name
                )
    finally:
        torch.set_num_threads(threads)


def test_the_same_seed_gives_the_same_answer_whatever_the_global_state(trained, rows, tokenizer):
    # Red for: torch.manual_seed inside, or noise from the global generator.
    torch.manual_seed(1)
    before = torch.get_rng_state()
    one = predictor(trained, tokenizer, seed=5).predict(rows)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert np.array_equal(one.probabilities, predictor(trained, tokenizer, seed=5).predict(rows).probabilities)
    assert not np.array_equal(one.probabilities, predictor(trained, tokenizer, seed=6).predict(rows).probabilities)


def test_scale_0_is_one_pass_at_the_mean_with_nothing_to_disagree_about(trained, rows, tokenizer):
    # Red for: S equal passes, or a mutual information of 1e-17.
    trainer, _ = trained
    answer = predictor(trained, tokenizer, scale=0, num_samples=30, batch_size=24).predict(rows, return_draws=True)
    assert answer.draw_probabilities.shape[0] == 1
    assert (answer.mutual_information == 0).all()
    batch = tokenizer.pad([{name: row[name] for name in ("input_ids", "attention_mask")} for row in rows], return_tensors="pt")
    with torch.no_grad():
        expected = trainer.model(**batch).logits.double().softmax(-1)
    np.testing.assert_allclose(answer.probabilities, expected, rtol=0, atol=1e-6)


def test_a_data_set_a_list_and_a_batch_are_answered_alike(trained, rows, tokenizer):
    # Red for: labels or text columns handed to the model, or a batch taken for a data set of columns.
    ours = predictor(trained, tokenizer)
    expected = ours.predict(rows).probabilities
    columns = {name: [row[name] for row in rows] for name in rows[0]} | {"text": ["x"] * len(rows)}
    np.testing.assert_allclose(ours.predict(Dataset.from_dict(columns)).probabilities, expected, rtol=0, atol=1e-6)
    batch = tokenizer.pad([{name: row[name] for name in ("input_ids", "attention_mask")} for row in rows], return_tensors="pt")
    np.testing.assert_allclose(ours.predict(batch).probabilities, expected, rtol=0, atol=1e-6)


def test_the_users_model_is_never_written(trained, rows, tokenizer):
    # Red for: draws copied into the model and back, or a model left in evaluation mode or without gradients.
    trainer, _ = trained
    trainer.model.train()
    before, grads = snapshot(trainer.model), [p.requires_grad for p in trainer.model.parameters()]
    predictor(trained, tokenizer).predict(rows)
    assert_untouched(trainer.model, before)
    assert trainer.model.training and grads == [p.requires_grad for p in trainer.model.parameters()]


def test_an_interrupt_in_the_middle_leaves_the_model_and_the_next_answer_alone(trained, rows, tokenizer):
    # Red for: try/finally around weights written into the user's model; a lock that is never given back.
    trainer, _ = trained
    ours = predictor(trained, tokenizer)
    expected, before, calls = ours.predict(rows), snapshot(trainer.model), []

    def interrupt(module, arguments):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt

    handle = ours._logits.sampler._weights.model.get_base_model().bert.register_forward_pre_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        ours.predict(rows)
    handle.remove()
    assert_untouched(trainer.model, before)
    assert np.array_equal(ours.predict(rows).probabilities, expected.probabilities)


def test_threads_get_the_answers_they_would_get_alone(trained, rows, tokenizer):
    # Red for: weights swapped without a lock (32 of 100 answers wrong), or a plain forward that sees a draw.
    trainer, _ = trained
    batch = tokenizer.pad([{name: row[name] for name in ("input_ids", "attention_mask")} for row in rows], return_tensors="pt")
    with torch.no_grad():
        plain = trainer.model(**batch).logits
    shared, own = predictor(trained, tokenizer, seed=1), predictor(trained, tokenizer, seed=2)
    expected, wrong = {ours: ours.predict(rows).probabilities for ours in (shared, own)}, []

    def ask(ours):
        wrong.extend(not np.array_equal(ours.predict(rows).probabilities, expected[ours]) for _ in range(5))

    def forward():
        with torch.no_grad():
            wrong.extend(not torch.equal(trainer.model(**batch).logits, plain) for _ in range(30))

    threads = [threading.Thread(target=ask, args=(ours,)) for ours in (shared, shared, own)] + [
        threading.Thread(target=forward)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(wrong) == 45 and not any(wrong)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [({"num_samples": 0}, "got 0"), ({"scale": -1.0}, "got -1"), ({"scale": float("inf")}, "got inf")],
)
def test_a_number_out_of_range_is_refused(trained, tokenizer, arguments, expected):
    # Red for: NaN out of no draws.
    with pytest.raises(SwagError, match=expected):
        predictor(trained, tokenizer, **arguments)


def test_a_posterior_of_another_adapter_is_refused_with_the_first_difference(trained, base_folder):
    # Red for: weights that happen to have the same names put into another shape, or left out.
    _, swag = trained
    with pytest.raises(AdapterMismatchError, match=r"\[4, 32\].*\[8, 32\]"):
        MonteCarloPredictor(lora_model(base_folder, r=8), swag.posterior)
    with pytest.raises(AdapterMismatchError, match=r"lacks is .*value"):
        MonteCarloPredictor(lora_model(base_folder, target_modules=["query"]), swag.posterior)


def test_padding_does_not_reach_the_model(trained, rows, texts, tokenizer):
    # Red for: a padded batch answered as it is; the padded rows and the rows alone then differ in their last digits.
    ours = predictor(trained, tokenizer)
    seen = []
    bert = ours._logits.sampler._weights.model.get_base_model().bert
    bert.register_forward_pre_hook(
        lambda module, arguments, keywords: seen.append(keywords["attention_mask"]), with_kwargs=True
    )
    padded = tokenizer(texts, padding="max_length", max_length=40, return_tensors="pt")
    answer = ours.predict(padded)
    assert seen and all(bool(mask.all()) for mask in seen)
    # The logits are the same; the mean over the draws adds them up in float64 in another order.
    np.testing.assert_allclose(answer.probabilities, ours.predict(rows).probabilities, rtol=0, atol=1e-12)


def test_padding_on_the_left_is_left_alone(trained, texts, tokenizer):
    # Red for: tokens cut off because the mask's sum is taken for a position.
    ours, right = predictor(trained, tokenizer), tokenizer(texts[:5], padding=True, return_tensors="pt")
    turned = {name: value.flip(1) for name, value in right.items()}
    seen = []
    bert = ours._logits.sampler._weights.model.get_base_model().bert
    bert.register_forward_pre_hook(
        lambda module, arguments, keywords: seen.append(keywords["attention_mask"].shape[1]), with_kwargs=True
    )
    ours.predict(turned)
    assert set(seen) == {right["input_ids"].shape[1]}


def test_a_data_set_without_rows_is_refused(trained, tokenizer):
    # Red for: an IndexError out of nothing to concatenate.
    with pytest.raises(SwagError, match="without rows"):
        predictor(trained, tokenizer).predict([])


def test_an_answer_that_is_not_finite_is_refused(trained, rows, tokenizer):
    # Red for: NaN handed on as a probability.
    with pytest.raises(SwagError, match="NaN or infinite"):
        predictor(trained, tokenizer, scale=1e38).predict(rows)


def test_regression_gives_means_and_spreads(base_folder, rows, tokenizer, tmp_path):
    # Red for: a probability for a number.
    from conftest import trainer_for

    from swag_trainer import SwagCallback

    swag = SwagCallback()
    targets = [{**row, "labels": float(row["labels"])} for row in rows]
    trainer = trainer_for(lora_model(base_folder, num_labels=1), targets, tokenizer, tmp_path, callbacks=[swag])
    trainer.train()
    answer = MonteCarloPredictor(trainer.model, swag.posterior).predict(rows)
    assert isinstance(answer, RegressionPredictive)
    assert answer.mean.shape == (24, 1)
    assert answer.std.min() > 0


def test_a_model_trained_under_bfloat16_autocast_is_sampled_too(base_folder, rows, tokenizer, tmp_path):
    # Red for: accelerate's wrapper of forward pointing from the private copy back to the user's model: S equal answers.
    from conftest import trainer_for

    from swag_trainer import SwagCallback

    swag = SwagCallback()
    trainer = trainer_for(lora_model(base_folder), rows, tokenizer, tmp_path, callbacks=[swag], bf16=True, use_cpu=True)
    trainer.train()
    answer = MonteCarloPredictor(trainer.model, swag.posterior, scale=30.0).predict(rows)
    assert answer.std.max() > 1e-3


def test_a_row_stops_drawing_when_it_is_exact_enough(trained, rows, tokenizer):
    # Red for: one number of draws for all rows, blocks that are answered twice, rows in another order, a limit that is ignored.
    few, all_ = {"num_samples": 4, "num_blocks": 6, "scale": 2000.0}, np.arange(len(rows))
    exact = {blocks: predictor(trained, tokenizer, **few | {"num_blocks": blocks}).predict(rows) for blocks in range(1, 7)}
    # The limit is 2.1 times the estimate for six blocks, 4.4 times for three.
    mark = 2.7 * float(np.median(exact[6].standard_error.max(axis=1)))
    answer = predictor(trained, tokenizer, max_error=mark, **few).predict(rows)
    assert len(set(answer.num_draws)) > 1 and set(answer.num_draws) <= {4 * blocks for blocks in exact}
    for row in all_:
        same = exact[answer.num_draws[row] // 4]
        for name in ("probabilities", "mutual_information", "std", "standard_error"):
            np.testing.assert_allclose(getattr(answer, name)[row], getattr(same, name)[row], rtol=0, atol=1e-6, err_msg=name)
    # Which rows need more does not depend on the rows beside them.
    turned = predictor(trained, tokenizer, max_error=mark, batch_size=5, **few).predict([rows[index] for index in all_[::-1]])
    assert np.array_equal(turned.num_draws[::-1], answer.num_draws)
    np.testing.assert_allclose(turned.probabilities[::-1], answer.probabilities, rtol=0, atol=1e-6)


def test_several_blocks_know_their_error_and_one_does_not(trained, rows, tokenizer):
    # Red for: the formula for independent draws on matched ones, or matched draws across blocks.
    assert np.isnan(predictor(trained, tokenizer).predict(rows).standard_error).all()
    blocks = predictor(trained, tokenizer, num_samples=5, num_blocks=3).predict(rows, return_draws=True)
    means = blocks.draw_probabilities.reshape(3, 5, 24, 3).mean(1)
    np.testing.assert_allclose(blocks.standard_error, means.std(0, ddof=1) / 3**0.5, rtol=1e-9)
    assert (blocks.num_draws == 15).all() and np.ptp(means, axis=0).min() > 0
    independent = predictor(trained, tokenizer, design="iid").predict(rows)
    np.testing.assert_allclose(independent.standard_error, independent.std / 9**0.5, rtol=1e-9)


def test_scale_0_has_no_error_to_bring_down(trained, rows, tokenizer):
    # Red for: ten blocks of equal draws, as their standard error is not a number.
    assert (predictor(trained, tokenizer, scale=0, max_error=0.01).predict(rows).num_draws == 1).all()


def test_draws_are_packed_and_say_what_single_draws_say(trained, rows, tokenizer, monkeypatch):
    # Red for: a predictor that never packs, a number of forwards that grows with that of the draws.
    ours, calls = predictor(trained, tokenizer), []
    packed = ours.predict(rows, return_draws=True).draw_probabilities
    ours._logits.sampler._weights.model.get_base_model().register_forward_pre_hook(lambda module, arguments: calls.append(1))
    ours.predict(rows)
    lengths = {len(row["input_ids"]) for row in rows}
    # What comes before the adapter, and then all ten draws, for the rows of each length.
    assert ours._logits.sampler.obstacle is None and len(calls) == 2 * len(lengths)
    ours._logits.sampler._give_up("to see the plain path")
    np.testing.assert_allclose(ours.predict(rows, return_draws=True).draw_probabilities, packed, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"max_error": 0}, "got 0"),
        ({"max_error": float("nan")}, "got nan"),
        ({"num_blocks": 0}, "num_blocks must be at least 1"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"max_tokens": 0}, "max_tokens must be at least 1"),
    ],
)
def test_a_setting_out_of_range_is_refused_where_it_is_made(trained, tokenizer, arguments, expected):
    # Red for: rows that never stop, or a division by nothing in the middle of a data set.
    with pytest.raises(SwagError, match=expected):
        predictor(trained, tokenizer, **arguments)


def test_each_draws_answer_is_not_to_be_had_where_rows_have_different_draws(trained, rows, tokenizer):
    # Red for: draws of some rows cut off, or an error of NumPy.
    with pytest.raises(SwagError, match="return_draws"):
        predictor(trained, tokenizer, max_error=0.1).predict(rows, return_draws=True)


def test_at_scale_0_no_error_is_looked_for_and_the_draws_can_be_had(trained, texts, tokenizer):
    # Red for: max_error kept where one pass is exact, so that return_draws is refused.
    trainer, swag = trained
    batch = tokenizer(texts[:3], padding=True, return_tensors="pt")
    ours = MonteCarloPredictor(trainer.model, swag.posterior, scale=0, max_error=0.01)
    answer = ours.predict(dict(batch), return_draws=True)
    assert answer.num_draws.tolist() == [1, 1, 1]
    assert answer.draw_probabilities.shape == (1, 3, 3)
