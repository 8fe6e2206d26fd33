import copy

import pytest
import torch
from changed_bases import INPUT_IDS, OTHERS, REPRODUCIBLE, adapter_on, lively_base, load_base, query_weight
from peft import LoraConfig, PeftModel

from swag_trainer import AdapterMismatchError, SwagError
from swag_trainer.adapters.initialisation import (
    base_changing_initialisation,
    base_fingerprint,
    check_base,
    initial_lora,
    initial_lora_if_needed,
)

QUERY = "bert.encoder.layer.0.attention.self.query"


@pytest.fixture(scope="module")
def base(base_folder, tmp_path_factory):
    """A function that returns a base as it is loaded; loading it for each test would take four times as long."""
    loaded = load_base(lively_base(base_folder, tmp_path_factory.mktemp("lively-bert")))
    return lambda dtype=torch.float32: copy.deepcopy(loaded).to(dtype)


def one_step(model, learning_rate):
    optimizer = torch.optim.AdamW([weight for weight in model.parameters() if weight.requires_grad], lr=learning_rate)
    model(INPUT_IDS, labels=torch.arange(6) % 3).loss.backward()
    optimizer.step()


def with_query(model, change):
    """Change the first query weight of the base in memory."""
    model.get_base_model().bert.encoder.layer[0].attention.self.query.get_base_layer().weight.data.copy_(
        change(query_weight(model)).clone()
    )
    return model


@pytest.mark.parametrize("initialisation", [True, "gaussian", "orthogonal", "mica", *REPRODUCIBLE, *OTHERS])
def test_the_initialisations_that_are_known_to_change_the_base_are_those_that_do(base, initialisation):
    # Red for: one that PEFT lets change the base and the list lacks, or one too many ("orthogonal" only looks like OLoRA).
    model = adapter_on(base(), initialisation)
    changed = not torch.equal(query_weight(model), base().bert.encoder.layer[0].attention.self.query.weight)
    assert (base_changing_initialisation(model.peft_config["default"]) is not None) == changed


@pytest.mark.parametrize("initialisation", [*REPRODUCIBLE, *OTHERS])
def test_the_same_change_is_recognised_and_an_absent_one_is_not_accepted(base, initialisation):
    # Red for: a fingerprint that depends on the process's random state, or one of the adapter instead of the base.
    recorded = base_fingerprint(adapter_on(base(), initialisation, seed=1), "default")
    check_base(adapter_on(base(), initialisation, seed=1), "default", recorded)
    untouched = adapter_on(base(), True)
    untouched.peft_config["default"].init_lora_weights = initialisation  # what low_cpu_mem_usage=True leaves
    with pytest.raises(AdapterMismatchError, match=rf"'{QUERY}' in memory is about .* of its length away.*'{initialisation}'"):
        check_base(untouched, "default", recorded)


@pytest.mark.parametrize("initialisation", ["pissa_niter_4", "pissa_niter_16"])
def test_another_random_decomposition_is_noticed(base, initialisation):
    # Red for: a fingerprint of lengths, which hardly differ from one draw to the next.
    recorded = base_fingerprint(adapter_on(base(), initialisation, seed=1), "default")
    with pytest.raises(AdapterMismatchError, match="another way in every process.*to_plain_lora"):
        check_base(adapter_on(base(), initialisation, seed=2), "default", recorded)


@pytest.mark.parametrize("initialisation", REPRODUCIBLE)
@pytest.mark.parametrize("threads", [1, 2])
def test_rounding_noise_is_no_other_base(base, initialisation, threads):
    # Red for: a digest of the bytes. The same decomposition in float64 stands for another machine.
    recorded = base_fingerprint(adapter_on(base(), initialisation), "default")
    default, before = torch.linalg.qr if initialisation == "olora" else torch.linalg.svd, torch.get_num_threads()

    def in_float64(matrix, **arguments):
        return tuple(part.float() for part in default(matrix.double(), **arguments))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.linalg, default.__name__.removeprefix("linalg_"), in_float64)
        torch.set_num_threads(threads)
        try:
            other = adapter_on(base(), initialisation)
        finally:
            torch.set_num_threads(before)
    assert base_fingerprint(other, "default") != recorded
    check_base(other, "default", recorded)


def test_a_base_in_another_precision_is_the_same_base(base):
    # Red for: one tolerance for all dtypes. bfloat16 rounds a weight by about 0.2 % of its length.
    recorded = base_fingerprint(adapter_on(base(), "olora"), "default")
    check_base(adapter_on(base(torch.bfloat16), "olora"), "default", recorded)
    recorded = base_fingerprint(adapter_on(base(torch.bfloat16), "olora"), "default")
    check_base(adapter_on(base(), "olora"), "default", recorded)


@pytest.mark.parametrize(
    "change",
    [
        lambda weight: weight * 1.01,
        lambda weight: (
            weight + 0.01 * weight.norm() * torch.nn.functional.one_hot(torch.tensor(0), weight.numel()).view_as(weight)
        ),
        lambda weight: weight + 0.01 * weight.flip(0),
        lambda weight: -weight,
        lambda weight: weight.T,
        lambda weight: weight * 0,
        lambda weight: weight * torch.nan,
    ],
)
def test_any_change_by_a_hundredth_is_noticed(base, change):
    # Red for: projections that are blind to a factor, a sign, a transposition or a single entry; NaN counted as near.
    model = adapter_on(base(), "olora")
    recorded = base_fingerprint(model, "default")
    with pytest.raises(AdapterMismatchError, match=QUERY):
        check_base(with_query(model, change), "default", recorded)


def test_the_probes_are_the_same_for_ever(base):
    # Red for: another hash, another order of the bits, u and v exchanged: every posterior ever saved would be refused.
    model = adapter_on(base(), True)
    weight = torch.arange(32 * 32, dtype=torch.float32).view(32, 32).sin()
    numbers = base_fingerprint(with_query(model, lambda _: weight), "default")[QUERY]
    # The rounding unit of float32, the length, four projections; computed in float64.
    assert numbers == pytest.approx([2**-23, 22.6282497, 0.1673141, 1.8070602, 1.1572268, -0.2968085], rel=1e-5)


def test_an_adapter_over_other_weights_is_refused_by_name(base):
    # Red for: only the weights that both have compared.
    recorded = base_fingerprint(adapter_on(base(), "olora"), "default")
    model = adapter_on(base(), "olora", target_modules=["query"])
    with pytest.raises(AdapterMismatchError, match=r"over 4 base weights, this one has 2.*value"):
        check_base(model, "default", recorded)


def test_a_merged_or_offloaded_base_cannot_be_measured(base):
    # Red for: the fingerprint of a base with the adapter in it, or of memory that was never written.
    model = adapter_on(base(), "olora")
    model.merge_adapter()
    with pytest.raises(SwagError, match="merged"):
        base_fingerprint(model, "default")
    model.unmerge_adapter()
    recorded = base_fingerprint(model, "default")
    model.get_base_model().bert.encoder.layer[0].attention.self.query.get_base_layer().to("meta")
    with pytest.raises(SwagError, match=f"{QUERY}.*offloaded"):
        check_base(model, "default", recorded)
    model.peft_config["default"].init_lora_weights = True  # under plain LoRA an offloaded base is as good as any
    check_base(model, "default", recorded)


@pytest.mark.parametrize("initialisation", [*REPRODUCIBLE, *OTHERS])
def test_initial_weights_are_those_that_the_base_gave_up(base, initialisation):
    # Red for: a view of the weights that train, a transposed matrix, or a fingerprint of the changed base.
    model = adapter_on(base(), initialisation)
    initial = initial_lora(model, "default")
    kept = {key: tensor.clone() for key, tensor in initial.tensors.items()}
    left = query_weight(model).clone()
    one_step(model, 0.1)
    key = f"base_model.model.{QUERY}.lora_{{}}.weight"
    given = 8 / 4 * kept[key.format("B")] @ kept[key.format("A")]
    untouched = base().bert.encoder.layer[0].attention.self.query.weight
    torch.testing.assert_close(left + given, untouched, rtol=1e-5, atol=1e-5)
    assert all(torch.equal(initial.tensors[key], tensor) for key, tensor in kept.items()) and len(kept) == 8
    check_base(adapter_on(base(), True), "default", initial.pristine)


@pytest.mark.parametrize("initialisation", REPRODUCIBLE)
def test_initial_weights_are_not_taken_from_an_adapter_that_has_moved(base, initialisation):
    # Red for: A0 and B0 of a run that goes on; the export would then be of the last part of it only.
    model = adapter_on(base(), initialisation)
    one_step(model, 1e-4)
    with pytest.raises(SwagError, match="are not known.*trained since"):
        initial_lora(model, "default")


@pytest.mark.parametrize("initialisation", REPRODUCIBLE)
def test_a_loaded_adapter_goes_on_training_without_initial_weights(base, initialisation, tmp_path):
    # Red for: a refusal, though every process loads such an adapter alike; or the loaded weights taken for the initial ones.
    model = adapter_on(base(), initialisation)
    recorded = base_fingerprint(model, "default")
    one_step(model, 0.01)
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(base(), tmp_path, is_trainable=True)
    assert initial_lora_if_needed(loaded, "default") is None
    check_base(loaded, "default", recorded)


@pytest.mark.parametrize("initialisation", OTHERS)
def test_what_can_only_be_saved_as_plain_lora_is_refused_before_training_without_initial_weights(base, initialisation):
    # Red for: a run whose result nobody can load.
    model = adapter_on(base(), initialisation)
    assert initial_lora_if_needed(model, "default") is not None
    one_step(model, 1e-4)
    with pytest.raises(SwagError, match="are not known"):
        initial_lora_if_needed(model, "default")


def test_an_adapter_that_leaves_the_base_alone_needs_nothing(base):
    # Red for: A0 and B0 of plain LoRA stored with every posterior.
    model = adapter_on(base(), True)
    assert initial_lora_if_needed(model, "default") is None
    with pytest.raises(SwagError, match="did not change its base"):
        initial_lora(model, "default")


@pytest.mark.parametrize("initialisation", ["olora", "lora_ga"])
def test_a_base_that_was_changed_twice_is_noticed_before_training(base, initialisation):
    # Red for: a notebook cell run again. The adapter fits the doubly changed base, which no other process will have.
    once = adapter_on(base(), "olora").unload()
    with pytest.raises(AdapterMismatchError, match=f"{QUERY}.*changed before.*Load the base anew"):
        initial_lora_if_needed(adapter_on(once, initialisation), "default")


@pytest.mark.parametrize("where", ["nowhere", "user/not-on-this-machine"])
def test_a_base_without_a_checkpoint_here_proves_nothing(base, where):
    # Red for: refusing a model that was made in memory.
    model = adapter_on(base(), "olora")
    model.peft_config["default"].base_model_name_or_path = None if where == "nowhere" else where
    assert initial_lora(model, "default").tensors


def test_a_checkpoint_in_several_files_is_read(base, tmp_path):
    # Red for: the index that large models have left aside, and the comparison with it.
    base().save_pretrained(tmp_path, max_shard_size="20kB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    assert initial_lora(adapter_on(load_base(tmp_path), "olora"), "default").tensors
    twice = adapter_on(adapter_on(load_base(tmp_path), "olora").unload(), "olora")
    with pytest.raises(AdapterMismatchError, match="changed before"):
        initial_lora(twice, "default")


def test_an_adapter_on_a_base_that_another_adapter_changed_is_refused(base):
    # Red for: looking at the trained adapter's own initialisation alone.
    model = adapter_on(base(), "olora")
    model.add_adapter("second", LoraConfig(task_type="SEQ_CLS", target_modules=["query"]))
    model.set_adapter("second")
    with pytest.raises(AdapterMismatchError, match="'second' would be trained on a base that .* 'default', changed"):
        initial_lora_if_needed(model, "second")


def test_loftq_is_refused_with_what_to_do_instead(base):
    # Red for: an adapter whose base, quantised in memory, is saved nowhere. PEFT itself needs a GPU to make one.
    model = adapter_on(base(), "olora")
    model.peft_config["default"].init_lora_weights = "loftq"
    with pytest.raises(SwagError, match="LoftQ.*replace_lora_weights_loftq"):
        initial_lora_if_needed(model, "default")


def test_a_kind_without_an_export_is_refused_before_training_if_it_needs_one(base):
    # Red for: finding out when the posterior is saved.
    model = adapter_on(base(), "lora_ga")
    model.peft_config["default"].alora_invocation_tokens = [5]
    with pytest.raises(SwagError, match="alora_invocation_tokens"):
        initial_lora_if_needed(model, "default")
