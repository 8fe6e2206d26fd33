import json

import pytest
import torch
from command_line import DEMO, demo_base, demo_decoder, train
from transformers import AutoTokenizer, Trainer

from swag_trainer import SwagError, SwagPosterior
from swag_trainer.cli.collect import last_with_tokenizer
from swag_trainer.cli.main import main
from swag_trainer.cli.training_arguments import training_arguments
from swag_trainer.cli.training_options import TrainOptions


def test_options_of_a_yaml_file_reach_the_run_and_the_posterior(tmp_path, capsys):
    # Red for: a setting of the recipe that is read and not used, a tokenizer that forgets where texts were cut.
    (tmp_path / "run.yaml").write_text(
        f"model: {demo_base()}\ndataset: {DEMO}\noutput: {tmp_path / 'never'}\nsteps: 12\ntrain_rows: 40\nsnapshots: 3\nstart: 0.5\n"
        "rank: 2\nlora_r: 2\nlearning_rate: 1e-2\ncollection-learning-rate: 2e-3\nmax_length: 16\nfinal_weights: trained\n"
        "target_modules: [value]\n"
    )
    assert main(["train", str(tmp_path / "run.yaml"), "--output", str(tmp_path / "run")]) == 0
    assert "3 snapshots" in capsys.readouterr().out
    assert not (tmp_path / "never").exists()
    posterior = SwagPosterior.from_pretrained(tmp_path / "run")
    assert (posterior.num_collected, posterior.rank, posterior.collection.steps) == (3, 2, [6, 9, 12])
    assert posterior.collection.learning_rates[-1] == pytest.approx(2e-3)
    assert len(posterior.record.labels) == 10 and "out_of_scope" not in posterior.record.labels
    assert posterior.adapter.config["r"] == 2 and list(posterior.adapter.config["target_modules"]) == ["value"]
    assert any(not torch.equal(mean, posterior.adapter.tensors[key]) for key, mean in posterior.mean.items())
    assert AutoTokenizer.from_pretrained(tmp_path / "run").model_max_length == 16


def test_sgd_trains_with_momentum_at_a_rate_of_its_own(tmp_path):
    # Red for: SGD at AdamW's rate, arguments of the optimizer that transformers drops, an optimizer that is named twice.
    given = {"model": demo_base(), "dataset": str(DEMO), "output": str(tmp_path / "run"), "optimizer": "sgd"}
    for rate, expected in ((None, 1.0), (0.3, 0.3)):
        arguments = training_arguments(TrainOptions(**given, learning_rate=rate), tmp_path, 0)
        kind, settings = Trainer.get_optimizer_cls_and_kwargs(arguments)
        assert kind is torch.optim.SGD and settings == {"lr": expected, "momentum": 0.9, "dampening": 0.9}
    with pytest.raises(SwagError, match="leave it out to set them here"):
        training_arguments(TrainOptions(**given, training='{"optim": "adafactor"}'), tmp_path, 0)


def test_a_decoder_in_half_precision_without_a_padding_token_trains_and_predicts(tmp_path, capsys):
    # Red for: a tokenizer that cannot pad, a head left in bfloat16, TrainingArguments or a dtype that are dropped.
    (tmp_path / "run.yaml").write_text(
        f"model: {demo_decoder()}\ndataset: {DEMO}\noutput: {tmp_path / 'run'}\nsteps: 6\ntrain_rows: 60\nsnapshots: 2\n"
        "batch_size: 5\nsave_steps: 6\ndtype: bfloat16\ntraining:\n  gradient_accumulation_steps: 2\n"
    )
    assert main(["train", str(tmp_path / "run.yaml")]) == 0
    state = json.loads((tmp_path / "run" / "checkpoint-6" / "trainer_state.json").read_text())
    assert state["epoch"] == 6 * 5 * 2 / 60
    posterior = SwagPosterior.from_pretrained(tmp_path / "run")
    assert {tensor.dtype for tensor in posterior.adapter.tensors.values()} == {torch.float32}
    assert posterior.record.pad_token_id == AutoTokenizer.from_pretrained(tmp_path / "run").pad_token_id == 0
    whole = ["--dtype", "float32", "--output", str(tmp_path / "whole")]
    assert main(["train", str(tmp_path / "run.yaml"), *whole]) == 0
    assert not torch.equal(SwagPosterior.from_pretrained(tmp_path / "whole").gaussian.mean, posterior.gaussian.mean)
    capsys.readouterr()
    assert main(["predict", str(tmp_path / "run"), "where is my parcel", "money back"]) == 0
    predictions = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(predictions) == 2 and all(each["label"] in posterior.record.labels for each in predictions)


def test_a_length_beyond_the_models_positions_is_cut_there_and_counted(tmp_path, capsys):
    # Red for: texts of 90 tokens into 64 positions because --max-length says 1000, or a cut in silence.
    data = tmp_path / "long.csv"
    data.write_text("text,label\n" + "".join(f"{'well ' * (90 if i < 3 else 5)},{'ab'[i % 2]}\n" for i in range(30)))
    out = tmp_path / "run"
    options = ["--output", str(out), "--max-length", "1000", "--steps", "4", "--snapshots", "2"]
    assert main(["train", "--model", demo_base(), "--dataset", str(data), *options]) == 0
    assert "have more than 64 tokens and are truncated" in capsys.readouterr().err
    assert AutoTokenizer.from_pretrained(out).model_max_length == 64
    assert main(["predict", str(out), "--file", str(data)]) == 0
    shown = capsys.readouterr()
    assert "3 texts have more than 64 tokens and were truncated" in shown.err
    assert len(shown.out.strip().split("\n")) == 30


def test_several_seeds_get_a_folder_each_and_other_weights(tmp_path):
    # Red for: one seed for all, or the second run in the place of the first.
    train(tmp_path / "runs", "--steps", "6", "--snapshots", "2", "--train-rows", "1000", "--seeds", "1", "2")
    one, two = (SwagPosterior.from_pretrained(tmp_path / "runs" / f"seed-{seed}") for seed in (1, 2))
    assert not torch.equal(one.gaussian.mean, two.gaussian.mean)


def test_a_folder_with_a_posterior_is_not_trained_over(tmp_path, capsys):
    # Red for: a finished run that the next one replaces.
    (tmp_path / "swag_posterior.safetensors").write_text("mine")
    command = ["train", demo_base(), "--dataset", str(DEMO), "--output", str(tmp_path)]
    assert main(command) == 1
    assert "holds a posterior already" in capsys.readouterr().err
    assert (tmp_path / "swag_posterior.safetensors").read_text() == "mine"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--rank", "1"], "must be 0 (diagonal only) or at least 2"),
        (["--collection-learning-rate", "fast"], "is a number, 'hold' or 'schedule'"),
        (["--every-steps", "5", "--every-epochs", "1"], "either steps=... or epochs=..."),
        (["--split", "dog"], "has no split 'dog'"),
        (["--training", "bf16"], "as a JSON object"),
        (["--training", "[1]"], "it is not a JSON object"),
        (["--training", '{"max_steps": 3}'], "'max_steps' has an option of its own"),
        (["--training", '{"bf17": true}'], "unexpected keyword argument 'bf17'"),
    ],
)
def test_a_recipe_that_cannot_work_is_refused_before_anything_is_loaded(tmp_path, options, words, capsys):
    # Red for: an error after the training, or a traceback.
    assert main(["train", "user/no-such-model", "--dataset", str(DEMO), "--output", str(tmp_path / "run"), *options]) == 1
    shown = capsys.readouterr().err
    assert words in shown and "Traceback" not in shown
    assert not (tmp_path / "run").exists()


def test_checkpoints_of_a_run_become_a_posterior_that_predicts(tmp_path, capsys):
    # Red for: labels, checkpoints or the tokenizer lost on the way from a finished run; a posterior that cannot be loaded, as the
    # number of its classes is nowhere.
    train(tmp_path / "run", "--steps", "12", "--train-rows", "20", "--snapshots", "2", "--save-steps", "4")
    labels = SwagPosterior.from_pretrained(tmp_path / "run").record.labels
    assert main(["collect", str(tmp_path / "run"), "--output", str(tmp_path / "late"), "--labels", *labels]) == 0
    posterior = SwagPosterior.from_pretrained(tmp_path / "late")
    assert (posterior.num_collected, posterior.record.labels) == (3, labels)
    capsys.readouterr()
    assert main(["predict", str(tmp_path / "late"), "where is my parcel"]) == 0
    assert json.loads(capsys.readouterr().out)["label"] in labels
    assert main(["collect", str(tmp_path / "run"), "--output", str(tmp_path / "late")]) == 1
    assert "holds a posterior already" in capsys.readouterr().err
    # Folders of other names than checkpoint-N: "run1", "run2", and one whose name ends in a digit that is no number.
    names = ["run1", "run2", "last²"]
    for name, step in zip(names, (4, 8, 12), strict=True):
        (tmp_path / "run" / f"checkpoint-{step}").rename(tmp_path / name)
    command = ["collect", *(str(tmp_path / name) for name in names), "--output", str(tmp_path / "named")]
    for options, wrong in (([], "config of 'user/demo-tiny-bert' has 2"), (["--labels", *labels[1:]], "--labels gives")):
        assert main([*command, *options]) == 1
        error = capsys.readouterr().err
        assert f"head has {len(labels)} classes" in error and wrong in error
    assert not (tmp_path / "named").exists()
    assert main([*command, "--labels", *labels]) == 0
    assert f"tokenizer of {tmp_path / names[-1]}" in capsys.readouterr().out
    named = SwagPosterior.from_pretrained(tmp_path / "named")
    assert torch.equal(named.gaussian.mean, posterior.gaussian.mean)


def test_the_tokenizer_is_that_of_the_last_checkpoint_in_the_order_of_training(tmp_path):
    # Red for: checkpoint-9 after checkpoint-10, or the first of the folders that are given by other names.
    def folder(name):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "tokenizer_config.json").write_text("{}")
        return str(tmp_path / name)

    numbered = [folder(f"out/checkpoint-{step}") for step in (9, 10, 8)]
    assert last_with_tokenizer([str(tmp_path / "out")]) == last_with_tokenizer(numbered) == numbered[1]
    others = [folder(name) for name in ("run2", "run10", "run1", "checkpoint-x")]
    assert last_with_tokenizer(others) == others[-1]
    assert last_with_tokenizer([str(tmp_path / "nowhere")]) is None
