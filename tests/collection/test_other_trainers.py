"""The posterior under Trainers that others built on the Trainer."""

import numpy as np
import pytest
import torch
from conftest import WORDS
from peft import AutoPeftModelForCausalLM, AutoPeftModelForSeq2SeqLM, LoraConfig, get_peft_model, get_peft_model_state_dict
from safetensors.torch import load_file
from trajectories import Witness, assert_posterior_of, same
from transformers import (
    AutoModelForSeq2SeqLM,
    DataCollatorForSeq2Seq,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    T5Config,
    T5ForConditionalGeneration,
    set_seed,
)

from swag_trainer import Every, SwagCallback, SwagPosterior
from swag_trainer.collection.checkpoints import last_complete_checkpoint

DUE = [6, 8, 10, 12]  # every second step of the second half of 12


def settings(folder):
    return {
        "output_dir": str(folder),
        "max_steps": 12,
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-2,
        "save_strategy": "steps",
        "save_steps": 8,
        "logging_steps": 6,
        "report_to": [],
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
        "seed": 0,
    }


def collect_and_resume(make_trainer, folder, witness_class=Witness):
    """Train, train on from the checkpoint at step 8 with fresh objects, and check both posteriors: (trainer, callback)."""

    def start(resume=None):
        swag, witness = SwagCallback(Every(steps=2, start=0.5), rank=3), witness_class()
        trainer = make_trainer([witness, swag])
        trainer.train(resume_from_checkpoint=resume)
        return trainer, swag, witness

    trainer, swag, witness = start()
    assert_posterior_of(swag.posterior, witness, DUE)
    assert same(SwagPosterior.from_pretrained(folder), swag.posterior)
    assert last_complete_checkpoint(folder) == str(folder / "checkpoint-12")
    _, resumed, _ = start(str(folder / "checkpoint-8"))
    assert same(resumed.posterior, swag.posterior)
    trainer.save_model()
    assert same(SwagPosterior.from_pretrained(folder), swag.posterior)
    return trainer, swag


@pytest.fixture(scope="module")
def words_tokenizer():
    """A tokenizer with a token for each word, and one for the end of a text."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = Tokenizer(
        models.WordLevel({word: i for i, word in enumerate(["<pad>", "<unk>", "</s>", *WORDS])}, unk_token="<unk>")
    )
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", unk_token="<unk>", eos_token="</s>", model_max_length=64
    )


def test_a_seq2seq_trainer_that_generates_while_it_evaluates_collects_its_own_steps(words_tokenizer, texts, tmp_path, caplog):
    # Red for: an event of the generation taken for one of the training, a base model of two stacks misread, or a posterior that nothing
    # predicts with, collected without a word.
    base = tmp_path / "tiny-t5"
    set_seed(0)
    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2}
    config = T5Config(vocab_size=len(words_tokenizer), decoder_start_token_id=0, eos_token_id=2, pad_token_id=0, **sizes)
    T5ForConditionalGeneration(config).save_pretrained(base)
    rows = [
        {**words_tokenizer(text), "labels": words_tokenizer(" ".join(reversed(text.split())))["input_ids"]} for text in texts
    ]

    def make_trainer(callbacks):
        set_seed(0)
        lora = LoraConfig(task_type="SEQ_2_SEQ_LM", r=2, target_modules=["q", "v"])
        return Seq2SeqTrainer(
            model=get_peft_model(AutoModelForSeq2SeqLM.from_pretrained(base), lora),
            args=Seq2SeqTrainingArguments(
                **settings(tmp_path / "run"),
                predict_with_generate=True,
                generation_max_length=6,
                eval_strategy="steps",
                eval_steps=3,
            ),
            train_dataset=rows,
            eval_dataset=rows[:4],
            data_collator=DataCollatorForSeq2Seq(words_tokenizer),
            processing_class=words_tokenizer,
            compute_metrics=lambda predictions: {"length": float(np.shape(predictions.predictions)[1])},
            callbacks=callbacks,
        )

    trainer, swag = collect_and_resume(make_trainer, tmp_path / "run")
    assert any("eval_length" in entry for entry in trainer.state.log_history)
    assert (
        caplog.text.count("T5ForConditionalGeneration is for text generation, which has no predictor") == 2
    )  # one in each run
    plain = AutoPeftModelForSeq2SeqLM.from_pretrained(tmp_path / "run").eval()
    batch = words_tokenizer(texts[:4], padding=True, return_tensors="pt")
    with torch.no_grad():
        answers = [m(**batch, labels=batch["input_ids"]).logits for m in (plain, trainer.model.eval())]
    assert torch.equal(*answers)


def test_an_sft_trainer_that_makes_the_adapter_itself_is_collected_from(words_tokenizer, texts, tmp_path):
    # Red for: a model taken before TRL wrapped it, or activation checkpointing, TRL's default, that gets in the way.
    trl = pytest.importorskip("trl", reason="SFTTrainer is TRL's")
    from datasets import Dataset

    base = tmp_path / "tiny-qwen"
    set_seed(0)
    sizes = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
    }
    tokens = {"bos_token_id": None, "eos_token_id": 2, "pad_token_id": 0}
    Qwen2ForCausalLM(
        Qwen2Config(vocab_size=len(words_tokenizer), max_position_embeddings=64, **sizes, **tokens)
    ).save_pretrained(base)
    words_tokenizer.save_pretrained(base)

    def make_trainer(callbacks):
        set_seed(0)
        return trl.SFTTrainer(
            model=str(base),
            args=trl.SFTConfig(**settings(tmp_path / "run"), max_length=16, bf16=False, use_cpu=True),
            train_dataset=Dataset.from_dict({"text": texts}),
            processing_class=words_tokenizer,
            peft_config=LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj", "v_proj"], lora_dropout=0.1),
            callbacks=callbacks,
        )

    trainer, swag = collect_and_resume(make_trainer, tmp_path / "run")
    assert swag.posterior.record.task == "swag-text-generation"
    assert trainer.args.gradient_checkpointing  # another name of activation_checkpointing from transformers 5.23 on
    plain = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "run").eval()
    batch = words_tokenizer(texts[:4], padding=True, return_tensors="pt")
    with torch.no_grad():
        assert torch.equal(plain(**batch).logits, trainer.model.eval()(**batch).logits)


class SentenceWitness(Witness):
    """PEFT leaves out of an injected adapter's names what it puts into every adapter's file."""

    def adapter_in(self, model):
        inside = get_peft_model_state_dict(model[0].auto_model, save_embedding_layers=False)
        return {f"base_model.model.{key}": weight for key, weight in inside.items()}


def test_a_sentence_transformer_with_an_adapter_is_collected_from_and_embeds_with_the_mean(base_folder, texts, tmp_path):
    # Red for: a SentenceTransformer, which is no PEFT model, refused; its adapter looked for under the wrong names; or the mean lost
    # on the way to the file that SentenceTransformer(...) loads.
    st = pytest.importorskip("sentence_transformers", reason="SentenceTransformerTrainer is sentence-transformers'")
    from datasets import Dataset
    from sentence_transformers.losses import MultipleNegativesRankingLoss
    from sentence_transformers.models import Pooling, Transformer

    pairs = Dataset.from_dict({"anchor": texts, "positive": [" ".join(reversed(text.split())) for text in texts]})

    def make_trainer(callbacks):
        set_seed(0)
        transformer = Transformer(str(base_folder))
        model = st.SentenceTransformer(modules=[transformer, Pooling(32)], device="cpu")
        model.add_adapter(LoraConfig(task_type="FEATURE_EXTRACTION", r=2, target_modules=["query", "value"], lora_dropout=0.1))
        return st.SentenceTransformerTrainer(
            model=model,
            args=st.SentenceTransformerTrainingArguments(**settings(tmp_path / "run")),
            train_dataset=pairs,
            loss=MultipleNegativesRankingLoss(model),
            callbacks=callbacks,
        )

    trainer, swag = collect_and_resume(make_trainer, tmp_path / "run", SentenceWitness)
    stored = load_file(tmp_path / "run" / "adapter_model.safetensors")
    assert all(torch.equal(stored[key], mean) for key, mean in swag.posterior.mean.items())
    loaded = st.SentenceTransformer(str(tmp_path / "run"), device="cpu")
    np.testing.assert_array_equal(loaded.encode(texts), trainer.model.encode(texts))
