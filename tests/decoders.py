"""A tiny random Llama whose tokenizer has no padding token, like those of most decoders."""

from collections.abc import Sequence
from pathlib import Path

from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, set_seed


def save_decoder(folder: Path, words: Sequence[str]) -> Path:
    vocabulary = {word: index for index, word in enumerate(["<end>", "<unk>", *words])}
    model = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    model.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=model, eos_token="<end>").save_pretrained(folder)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    set_seed(0)
    config = LlamaConfig(vocab_size=len(vocabulary), num_key_value_heads=2, eos_token_id=0, bos_token_id=0, **sizes)
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder
