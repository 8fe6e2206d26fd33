"""The kinds of adapters that must go the whole way: read, copied, saved, loaded."""

from peft import IA3Config, LoraConfig, VeraConfig, get_peft_model
from transformers import AutoModelForSequenceClassification, set_seed

TARGETS = {"task_type": "SEQ_CLS", "target_modules": ["query", "value"]}
ADAPTERS = {
    "lora": LoraConfig(r=4, **TARGETS),
    "rslora": LoraConfig(r=4, use_rslora=True, **TARGETS),
    "dora": LoraConfig(r=4, use_dora=True, **TARGETS),
    "bias": LoraConfig(r=4, bias="lora_only", **TARGETS),
    "pooler": LoraConfig(r=4, modules_to_save=["classifier", "pooler"], **TARGETS),
    "tokens": LoraConfig(r=4, trainable_token_indices={"word_embeddings": [5, 7]}, **TARGETS),
    "embedding": LoraConfig(r=4, task_type="SEQ_CLS", target_modules=["query", "word_embeddings"]),
    "olora": LoraConfig(r=4, init_lora_weights="olora", **TARGETS),
    "ia3": IA3Config(task_type="SEQ_CLS", target_modules=["query", "output.dense"], feedforward_modules=["output.dense"]),
    "vera": VeraConfig(r=8, **TARGETS),
}


def model_with(base_folder, name):
    set_seed(0)
    base = AutoModelForSequenceClassification.from_pretrained(base_folder, num_labels=3, ignore_mismatched_sizes=True)
    return get_peft_model(base, ADAPTERS[name]).eval()
