"""An adapter whose weights are cut up over two processes; see test_sharded.py."""

import torch
import torch.distributed as dist
from conftest import lora_model
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torchrun import as_text, work

from swag_trainer import SwagError
from swag_trainer.adapters.weights import AdapterWeights, private_copy

IDS = {"input_ids": torch.arange(5, 11)[None]}


def sharded_model(base, **config):
    """A LoRA model as accelerate cuts it up: each layer of its own, the rest together."""
    mesh, model = init_device_mesh("cpu", (2,)), lora_model(base, r=3, **config).eval()
    for layer in model.get_base_model().bert.encoder.layer:
        fully_shard(layer, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def answer(model):
    with torch.no_grad():
        return model(**IDS).logits.clone()


def use(model, setup):
    """Do with a model's adapter everything that collection does, and return what came out."""
    weights = AdapterWeights(model)
    was = {key: weight.clone() for key, weight in weights.read().items()}
    new = {key: weight + 0.1 for key, weight in was.items()}
    results = {"keys": list(weights.layout.keys), "shapes": [list(shape) for shape in weights.layout.shapes], "read": was}
    results["before"] = answer(model)
    results["read after an answer"] = {key: weight.clone() for key, weight in weights.read().items()}
    answer(model)
    with weights.replaced_by(new):
        results["replaced"] = answer(model)
    results["back"] = answer(model)
    results["read after all"] = {key: weight.clone() for key, weight in weights.read().items()}
    answer(model)
    weights.write(new)
    results["written"] = answer(model)
    row = torch.empty(weights.layout.size)
    weights.copy_into(list(weights.layout.unflatten(row).values()))
    results["row"] = row
    saved = weights.saved()
    results["saved"] = {key: tensor.clone() for key, tensor in saved.tensors.items()}
    results["config"] = as_text(saved.config)
    return weights, results


def dtensor(folder, setup):
    dist.init_process_group("gloo")
    model = sharded_model(setup["base"])
    weights, results = use(model, setup)
    results["reader"] = type(weights._reader).__name__
    results["local shapes"] = [list(parameter.to_local().shape) for parameter in weights.parameters()]
    try:
        private_copy(model, None, weights.layout.keys)
    except SwagError as error:
        results["private copy"] = str(error)
    return results


def halves(folder, setup):
    """The head in bfloat16, LoRA in float32, in groups of their own as FSDP2 wants them."""
    mesh, model = init_device_mesh("cpu", (2,)), lora_model(setup["base"], r=3).eval()
    head = model.get_base_model().classifier.modules_to_save["default"].to(torch.bfloat16)
    fully_shard(head, mesh=mesh)
    for layer in model.get_base_model().bert.encoder.layer:
        fully_shard(layer, mesh=mesh)
    weights = AdapterWeights(fully_shard(model, mesh=mesh))
    weights.write(
        {key: torch.full(shape, 1 / 3) for key, shape in zip(weights.layout.keys, weights.layout.shapes, strict=True)}
    )
    return {
        "read": weights.read(),
        "saved": dict(weights.saved().tensors),
    }


def version_1(folder, setup):
    messages = []
    for keeps_parameters in (True, False):
        model = lora_model(setup["base"], r=3)
        model.requires_grad_(True)  # flattened together, which the second way asks for
        model = FullyShardedDataParallel(model, use_orig_params=keeps_parameters, device_id=torch.device("cpu"))
        try:
            AdapterWeights(model)
        except SwagError as error:
            messages.append(str(error))
    return messages


work({"dtensor": dtensor, "halves": halves, "version_1": version_1})
