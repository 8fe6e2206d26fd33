"""A tiny random BERT for extractive question answering, and questions with answers for it, of contexts short and long."""

from __future__ import annotations

from pathlib import Path

from conftest import WORDS, trainer_for
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import (
    AutoModelForQuestionAnswering,
    BertConfig,
    BertForQuestionAnswering,
    BertTokenizerFast,
    DataCollatorWithPadding,
    Trainer,
    set_seed,
)

LENGTH = 40
CONTEXTS = [
    "the film was good and the cast was funny",
    "a short poor plot, a great cast, and a very sad but not so slow end",
    "good film",
    " ".join(WORDS[(7 * place + place // 5) % len(WORDS)] for place in range(70)),
]


def examples() -> list[dict]:
    """Six questions as SQuAD has them: one of them has no answer, one a context of several windows."""
    answers = ["film", "great cast", "good", CONTEXTS[3].split()[40], "not so slow", None]
    contexts = [*CONTEXTS, CONTEXTS[1], CONTEXTS[0]]
    return [
        {
            "id": f"q{number}",
            "question": "the quite bright film" if number % 2 else "was",
            "context": context,
            "answers": {"text": [answer], "answer_start": [context.index(answer)]}
            if answer
            else {"text": [], "answer_start": []},
        }
        for number, (context, answer) in enumerate(zip(contexts, answers, strict=True))
    ]


def save_answering(folder: Path) -> Path:
    """Write the base model with its tokenizer."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ",", *WORDS]
    BertTokenizerFast(vocab={word: index for index, word in enumerate(words)}, model_max_length=LENGTH).save_pretrained(folder)
    set_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    BertForQuestionAnswering(BertConfig(vocab_size=len(words), max_position_embeddings=LENGTH, **sizes)).save_pretrained(folder)
    return folder


def answering(base: str | Path) -> PeftModel:
    """A PEFT model on the base."""
    set_seed(0)
    model = AutoModelForQuestionAnswering.from_pretrained(base)
    return get_peft_model(model, LoraConfig(task_type="QUESTION_ANS", r=4, target_modules=["query", "value"]))


def answering_trainer(model: PeftModel, rows: list, tokenizer: BertTokenizerFast, folder: Path, **arguments) -> Trainer:
    """A Trainer that takes 12 steps of 4 windows."""
    trainer = trainer_for(model, rows, tokenizer, folder, **{"max_steps": 12, **arguments})
    trainer.data_collator = DataCollatorWithPadding(tokenizer)
    return trainer
