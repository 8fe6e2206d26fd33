import pytest
import torch
import transformers

from swag_trainer.tasks import task_named

SIZES = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8, "image_size": 224}
MODELS = {
    "ViT": (SIZES, 196 + 1),
    "DeiT": (SIZES, 196 + 2),
    "Beit": (SIZES, 196 + 1),
    "Dinov2WithRegisters": (
        {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "patch_size": 14, "num_register_tokens": 4},
        256 + 1 + 4,
    ),
    "Swin": ({"embed_dim": 8, "depths": [1, 1], "num_heads": [2, 2]}, 56 * 56),
    "ConvNext": ({"hidden_sizes": [8, 8], "depths": [1, 1], "num_stages": 2}, 56 * 56),
    "ResNet": ({"embedding_size": 8, "hidden_sizes": [8, 8], "depths": [1, 1], "layer_type": "basic"}, 112 * 112),
}


@pytest.mark.parametrize("name", MODELS)
def test_an_image_has_the_positions_that_the_model_cuts_it_into(name):
    # Red for: rows times channels (96 for 32 images), a class token that Swin has not or a distillation token that DeiT has, a patch
    # size that a ResNet has not.
    settings, expected = MODELS[name]
    model = getattr(transformers, f"{name}ForImageClassification")(getattr(transformers, f"{name}Config")(**settings))
    images = torch.zeros(32, 3, 224, 224)
    assert task_named(None).tokens({"pixel_values": images}, model) == 32 * expected
    hidden = model(images[:1], output_hidden_states=True).hidden_states
    if name in ("ViT", "DeiT", "Beit", "Dinov2WithRegisters"):
        assert hidden[0].shape[1] == expected
