"""Base models out of GGUF files, as transformers marks them when it has dequantised one."""

from types import SimpleNamespace

import pytest
import torch
from choices import choice_tokenizer, language_model, save_base
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments
from transformers.quantizers.quantizer_gguf import GgufHfQuantizer
from transformers.utils.quantization_config import GgufConfig

from swag_trainer import SwagError, as_dequantised
from swag_trainer.adapters.gguf import gguf_file
from swag_trainer.prediction.loading import gguf_settings


def marked(model):
    """As `from_pretrained(..., gguf_file="tiny.Q4_1.gguf")` leaves a model whose weights it wrote out in full."""
    config = GgufConfig(gguf_file="tiny.Q4_1.gguf")
    model.config.quantization_config = config.to_dict()
    model.is_quantized, model.hf_quantizer = True, GgufHfQuantizer(config)
    model.quantization_method = model.hf_quantizer.quantization_config.quant_method
    return model


def test_a_dequantised_model_can_be_trained_on_and_saved(tmp_path):
    # Red for: the Trainer's and save_pretrained's ValueError; a file whose name is lost, so that no process finds the base again.
    folder = save_base("llama", tmp_path / "base")
    model = language_model("llama", folder)
    base = marked(model.get_base_model())
    arguments = {"args": TrainingArguments(output_dir=str(tmp_path / "run"), report_to=[]), "train_dataset": [{}]}
    with pytest.raises(ValueError, match="do not support training"):
        Trainer(model=model, **arguments)
    with pytest.raises(ValueError, match="not serializable"):
        base.save_pretrained(tmp_path / "refused")
    assert gguf_file(base.config) == "tiny.Q4_1.gguf"
    assert as_dequantised(base) is base and gguf_file(base.config) == "tiny.Q4_1.gguf"
    Trainer(model=model, **arguments)
    plain = as_dequantised(marked(AutoModelForCausalLM.from_pretrained(folder)))
    plain.save_pretrained(tmp_path / "saved")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    ids = torch.tensor([choice_tokenizer()("a good film")["input_ids"]])
    assert torch.equal(again(ids).logits, AutoModelForCausalLM.from_pretrained(folder)(ids).logits)


@pytest.mark.parametrize("name", ["/etc/passwd", "../other/tiny.gguf", "..\\tiny.gguf"])
def test_a_record_cannot_name_a_file_elsewhere(name, tmp_path):
    # Red for: an untrusted repository that chooses which file of this machine is opened.
    posterior = SimpleNamespace(record=SimpleNamespace(gguf_file=name), adapter=SimpleNamespace(base_model=str(tmp_path)))
    with pytest.raises(SwagError, match="not one beside the base model"):
        gguf_settings(posterior, str(tmp_path), None)


def test_the_recorded_file_goes_with_the_recorded_base_only(tmp_path):
    # Red for: the file's name asked for in another base that the caller named, where the weights lie as usual.
    posterior = SimpleNamespace(record=SimpleNamespace(gguf_file="sub/a.gguf"), adapter=SimpleNamespace(base_model="me/base"))
    assert gguf_settings(posterior, "me/base", None) == {"gguf_file": "sub/a.gguf"}
    assert gguf_settings(posterior, str(tmp_path), None) == {}
    assert gguf_settings(posterior, str(tmp_path), "b.gguf") == {"gguf_file": "b.gguf"}


def test_other_models_stay_as_they_are_and_packed_weights_are_refused(tmp_path):
    # Red for: a model of 4 bits taken for one of 32.
    model = AutoModelForCausalLM.from_pretrained(save_base("llama", tmp_path))
    assert as_dequantised(model) is model and gguf_file(model.config) is None and gguf_file(None) is None
    packed = marked(model)
    packed.lm_head.weight = torch.nn.Parameter(torch.zeros(4, 4, dtype=torch.uint8), requires_grad=False)
    with pytest.raises(SwagError, match="still quantised"):
        as_dequantised(packed)
