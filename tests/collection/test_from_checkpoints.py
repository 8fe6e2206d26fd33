import json
import logging
import weakref

import pytest
import torch
from adapter_kinds import ADAPTERS, model_with
from conftest import lora_model, trainer_for
from huggingface_hub import HfApi
from oracles import two_pass_moments
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForSequenceClassification

from swag_trainer import (
    AdapterMismatchError,
    Every,
    MonteCarloPredictor,
    PosteriorFormatError,
    PosteriorNotFoundError,
    SwagCallback,
    SwagError,
    SwagPosterior,
    TooFewCollectionsError,
    posterior_from_checkpoints,
)
from swag_trainer.adapters.weights import AdapterWeights
from swag_trainer.posterior.layout import WeightLayout
from swag_trainer.posterior.saved_adapter import SavedAdapter

CONFIG = {
    "base_model_name_or_path": "user/base",
    "peft_type": "LORA",
    "peft_version": "0.21.2",
    "r": 2,
    "lora_alpha": 4,
    "lora_dropout": 0.1,
    "target_modules": ["query", "value"],
    "use_dora": False,
    "revision": None,
}
A, B = "base_model.model.lora_A.weight", "base_model.model.lora_B.weight"


def walk(count=7, dtype=torch.float32):
    """Weights that drift, as those of a training run do: one mapping for each checkpoint."""
    generator, weights = torch.Generator().manual_seed(0), {A: torch.zeros(2, 3), B: torch.zeros(3, 2)}
    for _ in range(count):
        weights = {key: tensor + torch.randn(tensor.shape, generator=generator) for key, tensor in weights.items()}
        yield {key: tensor.to(dtype) for key, tensor in weights.items()}


def save(folder, weights, *, step=None, rates=(), **config):
    """What the Trainer leaves of a PEFT model in a checkpoint; trainer_state.json only where a step is given."""
    folder.mkdir(parents=True, exist_ok=True)
    SavedAdapter(CONFIG | config, weights).write(folder)
    if step is not None:
        history = [{"step": at, "learning_rate": rate, "loss": 1.0} for at, rate in rates] + [{"step": step, "eval_loss": 2.0}]
        (folder / "trainer_state.json").write_text(json.dumps({"global_step": step, "log_history": history}))
    return folder


def saved(path, count=7, **settings):
    """A run of ``count`` checkpoints: their folders and their weights, one flat vector each."""
    weights = list(walk(count, settings.pop("dtype", torch.float32)))
    folders = [save(path / f"checkpoint-{10 * (n + 1)}", one, **settings) for n, one in enumerate(weights)]
    layout = WeightLayout.of(weights[0])
    return folders, torch.stack([layout.flatten(one) for one in weights])


def same(one: SwagPosterior, other: SwagPosterior) -> bool:
    parts = ("mean", "variance", "deviations")
    return all(torch.equal(getattr(one.gaussian, part), getattr(other.gaussian, part)) for part in parts)


@pytest.mark.parametrize("rank", [0, 3, 20])
def test_the_posterior_has_the_moments_of_the_saved_weights(tmp_path, rank):
    # Red for: a checkpoint left out or folded twice, a rank that is ignored, norms that are those of the last mean.
    folders, vectors = saved(tmp_path)
    posterior = posterior_from_checkpoints(folders, rank=rank)
    mean, variance, deviations = two_pass_moments(vectors)
    torch.testing.assert_close(posterior.gaussian.mean.double(), mean, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(posterior.gaussian.variance.double(), variance, rtol=1e-5, atol=0)
    kept = deviations[max(0, 7 - rank) :]
    torch.testing.assert_close(posterior.gaussian.deviations.double(), kept, rtol=1e-5, atol=1e-6)
    assert posterior.collection.deviation_norms == pytest.approx(deviations.norm(dim=1).tolist(), rel=1e-5)
    assert (posterior.rank, posterior.num_collected) == (min(rank, 7), 7)


def test_it_is_the_posterior_that_the_callback_collected_at_the_steps_that_were_saved(
    base_folder, rows, texts, tokenizer, tmp_path
):
    # Red for: other weights than those at the steps, a learning rate of another step, or a posterior that cannot be predicted with.
    swag = SwagCallback(Every(steps=2, start=0.5), rank=4)
    trainer = trainer_for(
        lora_model(base_folder),
        rows,
        tokenizer,
        tmp_path,
        callbacks=[swag],
        save_strategy="steps",
        save_steps=2,
        logging_steps=2,
    )
    trainer.train()
    made = posterior_from_checkpoints(
        [tmp_path / f"checkpoint-{step}" for step in range(12, 25, 2)], rank=4, labels=["negative", "neutral", "positive"]
    )
    assert made.layout == swag.posterior.layout
    for part in ("mean", "variance", "deviations"):
        found, expected = getattr(made.gaussian, part), getattr(swag.posterior.gaussian, part)
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-9, msg=part)
    facts, theirs = made.collection, swag.posterior.collection
    for fact in ("num_collected", "first_step", "last_step"):
        assert getattr(facts, fact) == getattr(theirs, fact), fact
    assert (made.record.base_model, made.record.labels) == (swag.posterior.record.base_model, swag.posterior.record.labels)
    assert facts.steps == list(range(12, 25, 2))
    # The Trainer logs the rate that made a step, the callback notes the one that the scheduler has reached after it.
    logged = {entry["step"]: entry["learning_rate"] for entry in trainer.state.log_history if "learning_rate" in entry}
    assert facts.learning_rates == [logged[step] for step in facts.steps]

    # Stored, loaded and used: the answers of the posterior that the callback made.
    made.save_pretrained(tmp_path / "made", dtype="float32")
    loaded = SwagPosterior.from_pretrained(tmp_path / "made")
    assert same(loaded, made) and loaded.record == made.record
    for key, mean in loaded.mean.items():
        assert torch.equal(loaded.adapter.tensors[key], mean)
    answers = [
        MonteCarloPredictor(trainer.model, one.with_scale(20.0), num_samples=4, progress=False).predict(rows).probabilities
        for one in (loaded, swag.posterior)
    ]
    torch.testing.assert_close(torch.tensor(answers[0]), torch.tensor(answers[1]), rtol=0, atol=1e-6)


def test_one_folder_stands_for_its_checkpoints_in_the_order_of_their_numbers(tmp_path):
    # Red for: the order of texts (checkpoint-100 before checkpoint-20), or every folder taken for a checkpoint.
    weights = list(walk(4))
    folders = [save(tmp_path / f"checkpoint-{number}", one) for number, one in zip((9, 20, 100, 1000), weights, strict=True)]
    save(tmp_path / "best", {A: torch.ones(2, 3), B: torch.ones(3, 2)})
    (tmp_path / "checkpoint-7").write_text("a file")
    made = posterior_from_checkpoints(str(tmp_path), rank=2)
    assert made.collection.steps == [9, 20, 100, 1000]
    assert same(made, posterior_from_checkpoints(folders, rank=2))
    assert not same(made, posterior_from_checkpoints(sorted(folders), rank=2))


def test_the_same_adapter_at_several_commits_of_a_repository_is_read_over_http(hub, tmp_path):
    # Red for: a revision that is resolved twice or not passed on, more files than two, or sub-folders of named adapters forgotten.
    folders, commits = saved(tmp_path, 4)[0], []
    HfApi().create_repo("user/history")
    for folder in folders:
        (folder / "training_args.bin").write_bytes(b"a pickle")
        opposite = {key: -tensor for key, tensor in SavedAdapter.read(folder).tensors.items()}
        save(folder / "expert", opposite)
        commits.append(HfApi().upload_folder(repo_id="user/history", folder_path=folder).oid)
    start = len(hub.hub.log)
    made = posterior_from_checkpoints("user/history", revisions=[*commits[:3], "main"], rank=3)
    asked = [path for method, path, _ in hub.hub.log[start:]]
    assert same(made, posterior_from_checkpoints(folders, rank=3))
    assert (made.collection.steps, made.collection.schedule) == ([1, 2, 3, 4], "4 saved checkpoints")
    assert made.adapter.base_model == "user/base"
    assert not any("training_args" in path or "expert" in path for path in asked)
    # A commit is known by itself; a branch is asked for once and called by its commit from there on.
    assert [path for path in asked if "/revision/" in path] == ["/api/models/user/history/revision/main"]
    assert not any("/resolve/main/" in path for path in asked)
    named = posterior_from_checkpoints("user/history", revisions=commits, adapter_name="expert", rank=3)
    assert torch.equal(named.gaussian.mean, -made.gaussian.mean)

    # Without the network: what was read once is read again, and nothing else.
    start = len(hub.hub.log)
    again = posterior_from_checkpoints("user/history", revisions=commits, rank=3, local_files_only=True)
    assert same(again, made) and len(hub.hub.log) == start
    with pytest.raises(PosteriorNotFoundError, match=r"'user/history' has no revision 'v9'"):
        posterior_from_checkpoints("user/history", revisions=[commits[0], "v9"])
    with pytest.raises(PosteriorNotFoundError, match="cache"):
        posterior_from_checkpoints("user/history", revisions=commits, cache_dir=tmp_path / "cold", local_files_only=True)


def test_one_adapter_is_in_memory_at_a_time(tmp_path, monkeypatch):
    # Red for: a list of adapters, or a variable that still holds one while the next is read.
    read, arrays, alive = SavedAdapter.read, [], []

    def watched(folder):
        alive.append(sum(array() is not None for array in arrays))
        adapter, tensors = read(folder), {}
        for key, tensor in adapter.tensors.items():
            # A weak reference to a tensor does not see its views; a numpy array lives as long as any tensor that shares its memory.
            array = tensor.numpy().copy()
            arrays.append(weakref.ref(array))
            tensors[key] = torch.from_numpy(array)
        return SavedAdapter(adapter.config, tensors)

    folders = saved(tmp_path)[0]
    monkeypatch.setattr(SavedAdapter, "read", watched)
    made = posterior_from_checkpoints(folders, final_weights="trained")
    assert made.num_collected == 7
    assert len(alive) == 15 and set(alive) == {0}  # two passes, and the last adapter once more to keep


@pytest.mark.parametrize("name", ADAPTERS)
def test_weights_that_were_not_trained_stay_in_the_adapter_and_out_of_the_posterior(base_folder, rows, tmp_path, name):
    # Red for: VeRA's projections or a saved embedding in the posterior, or missing from the adapter beside it.
    model, generator = model_with(base_folder, name), torch.Generator().manual_seed(0)
    for step in (1, 2, 3):
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter += 0.01 * torch.randn(parameter.shape, generator=generator)
        # PEFT itself saves the embedding along where its layer is called embed_tokens, or where the vocabulary has grown.
        model.save_pretrained(tmp_path / f"checkpoint-{step}", save_embedding_layers=name == "embedding")
    made = posterior_from_checkpoints(tmp_path)
    assert made.layout == AdapterWeights(model).layout
    last = SavedAdapter.read(tmp_path / "checkpoint-3")
    assert set(made.adapter.tensors) == set(last.tensors)
    assert made.adapter.config == last.config
    frozen = set(last.tensors) - set(made.layout.keys)
    assert all(torch.equal(made.adapter.tensors[key], last.tensors[key]) for key in frozen)
    assert bool(frozen) == (name in ("vera", "embedding"))
    assert made.record.initialisation == ("olora" if name == "olora" else None)
    made.save_pretrained(tmp_path / "made")
    loaded = SwagPosterior.from_pretrained(tmp_path / "made")
    assert MonteCarloPredictor(model, loaded, num_samples=2, progress=False).predict(rows[:4]).mutual_information.max() > 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_statistics_are_float32_and_the_adapter_keeps_its_own_dtype(tmp_path, dtype):
    # Red for: moments in the file's dtype, a mean that changes the adapter's dtype, or "trained" weights that are replaced.
    folders, vectors = saved(tmp_path, dtype=dtype)
    made = posterior_from_checkpoints(folders)
    mean, variance, _ = two_pass_moments(vectors)
    torch.testing.assert_close(made.gaussian.mean.double(), mean, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(made.gaussian.variance.double(), variance, rtol=1e-5, atol=0)
    for key, tensor in made.adapter.tensors.items():
        assert torch.equal(tensor, made.mean[key].to(dtype)) and tensor.dtype == dtype
    trained = posterior_from_checkpoints(folders, final_weights="trained")
    assert same(trained, made)
    assert trained.adapter.digest == SavedAdapter.read(folders[-1]).digest
    for posterior in (made, trained):
        posterior.save_pretrained(tmp_path / "made")
        assert SwagPosterior.from_pretrained(tmp_path / "made").record == posterior.record


def test_its_story_comes_from_the_trainers_record_or_the_folders_numbers_or_is_counted(tmp_path):
    # Red for: a rate of another step, a folder's number preferred to the record, or some steps known and others made up.
    first, second, third = walk(3)
    rates = [(100, 1e-3), (150, 5e-4), (200, 1e-4)]
    recorded = [
        save(tmp_path / "a" / "checkpoint-1", first, step=100, rates=rates[:1]),
        save(tmp_path / "a" / "two", second, step=200, rates=rates),
        save(tmp_path / "a" / "three", third, step=300, rates=rates),
    ]
    posterior = posterior_from_checkpoints(recorded, labels=("no", "yes"), problem_type="regression")
    facts, record = posterior.collection, posterior.record
    assert (facts.steps, facts.learning_rates) == ([100, 200, 300], [1e-3, 1e-4, None])
    assert (facts.first_step, facts.last_step, facts.first_learning_rate, facts.last_learning_rate) == (100, 300, 1e-3, None)
    assert (facts.num_collected, facts.num_skipped, facts.schedule) == (3, 0, "3 saved checkpoints")
    assert (record.labels, record.problem_type, record.base_model) == (["no", "yes"], "regression", "user/base")
    assert set(record.versions) == {"swag_trainer", "torch", "peft"}
    numbered = [save(tmp_path / "b" / f"checkpoint-{number}", one) for number, one in ((30, first), (40, second))]
    assert posterior_from_checkpoints(numbered).collection.steps == [30, 40]
    unknown = save(tmp_path / "b" / "end", third)
    assert posterior_from_checkpoints([*numbered, unknown]).collection.steps == [1, 2, 3]
    pinned = [save(tmp_path / "c" / f"checkpoint-{number}", one, revision="v1") for number, one in ((1, first), (2, second))]
    assert posterior_from_checkpoints(pinned).record.base_revision == "v1"


@pytest.mark.parametrize(
    "record",
    [
        [],
        {"global_step": "12", "log_history": "x"},
        {"global_step": True, "log_history": [1, {"step": 30, "learning_rate": "x"}]},
        {"global_step": None, "log_history": 5},
    ],
)
def test_a_record_of_other_types_is_not_believed(tmp_path, record):
    # Red for: a truth value or a text as the step, or a TypeError out of somebody else's trainer_state.json.
    folders = saved(tmp_path, 3)[0]
    (folders[2] / "trainer_state.json").write_text(json.dumps(record))
    facts = posterior_from_checkpoints(folders).collection
    assert (facts.steps, facts.learning_rates) == ([10, 20, 30], [None, None, None])


def test_checkpoints_with_the_same_weights_are_counted_once(tmp_path, caplog):
    # Red for: a resumed or copied checkpoint counted twice, next to its twin or not.
    folders, _ = saved(tmp_path, 3)
    copies = [save(tmp_path / f"copy-{n}", SavedAdapter.read(folders[n]).tensors) for n in (0, 2)]
    with caplog.at_level(logging.WARNING):
        order = [folders[0], copies[0], folders[1], folders[2], copies[1], folders[0]]
        made = posterior_from_checkpoints(order, final_weights="trained")
    assert same(made, posterior_from_checkpoints(folders))
    assert made.adapter.digest == SavedAdapter.read(folders[0]).digest  # the last of the list all the same
    assert (made.num_collected, made.collection.num_skipped, made.collection.steps) == (3, 0, [10, 20, 30])
    assert [record.levelname for record in caplog.records] == ["WARNING"] * 3
    assert "copy-0" in caplog.text and "copy-2" in caplog.text and "counted once" in caplog.text
    with pytest.raises(TooFewCollectionsError, match=r"all 2 from .*checkpoint-10.* to .*copy-0.* the same weights"):
        posterior_from_checkpoints([folders[0], copies[0]])


def test_an_order_that_is_not_that_of_training_is_said(tmp_path, caplog):
    # Red for: commits in the order in which the Hub lists them, or folders sorted as texts, without a word.
    folders = saved(tmp_path, 3)[0]
    with caplog.at_level(logging.WARNING):
        posterior_from_checkpoints(folders)
        assert not caplog.records
        posterior_from_checkpoints(folders[::-1])
        assert "[30, 20, 10]" in caplog.text
        other_run = save(tmp_path / "other" / "checkpoint-20", {A: torch.ones(2, 3), B: torch.ones(3, 2)})
        posterior_from_checkpoints([*folders[:2], other_run])
        assert "[10, 20, 20]" in caplog.text


def test_an_adapter_with_a_name_lies_in_a_folder_of_that_name(base_folder, tmp_path):
    # Red for: the folder's own adapter read in its place, the record of the Trainer looked for inside, or no hint at the name.
    base = AutoModelForSequenceClassification.from_pretrained(base_folder, num_labels=3, ignore_mismatched_sizes=True)
    model = get_peft_model(base, LoraConfig(r=2, target_modules=["query"], task_type="SEQ_CLS"), adapter_name="expert")
    for step in (1, 2):
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter += step
        model.save_pretrained(tmp_path / f"checkpoint-{step}")
    (tmp_path / "checkpoint-2" / "trainer_state.json").write_text(json.dumps({"global_step": 100}))
    made = posterior_from_checkpoints(tmp_path, adapter_name="expert")
    assert made.layout == AdapterWeights(model, "expert").layout
    assert made.collection.steps == [1, 100]
    with pytest.raises(PosteriorNotFoundError, match=r"checkpoint-1'.*\['expert'\].*adapter_name="):
        posterior_from_checkpoints(tmp_path)
    with pytest.raises(PosteriorNotFoundError, match=r"checkpoint-1'.*other"):
        posterior_from_checkpoints(tmp_path, adapter_name="other")


def test_default_is_the_name_of_the_adapter_in_the_folder_itself(tmp_path):
    # Red for: a folder called "default", which PEFT never writes.
    folders = saved(tmp_path, 2)[0]
    assert same(posterior_from_checkpoints(folders, adapter_name="default"), posterior_from_checkpoints(folders))


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("r", 3),
        ("lora_alpha", 8),
        ("use_rslora", True),
        ("use_dora", True),
        ("peft_type", "LOHA"),
        ("target_modules", ["query"]),
        ("target_modules", "all-linear"),
        ("alpha_pattern", {"query": 16}),
        ("revision", "v2"),
        ("base_model_name_or_path", "user/other"),
    ],
)
def test_settings_under_which_the_same_weights_mean_something_else_are_refused(tmp_path, setting, value):
    # Red for: names and shapes compared only; use_rslora and alpha_pattern stand in one of the two files only.
    folders = saved(tmp_path, 3)[0]
    save(folders[2], SavedAdapter.read(folders[2]).tensors, **{setting: value})
    name = "base model" if setting.startswith("base_model") else setting
    with pytest.raises(
        AdapterMismatchError, match=rf"checkpoint-30' holds another adapter than .*checkpoint-10'.*{name}"
    ) as caught:
        posterior_from_checkpoints(folders)
    assert repr(value) in str(caught.value)


def test_settings_that_change_nothing_may_differ(tmp_path):
    # Red for: a run that was resumed with a later PEFT, which writes a set in another order, refused.
    folders = saved(tmp_path, 3)[0]
    news = {"target_modules": ["value", "query"], "lora_dropout": 0.0, "peft_version": "0.99", "qalora_group_size": 16}
    save(folders[2], SavedAdapter.read(folders[2]).tensors, **news, rank_pattern={}, use_rslora=False)
    assert posterior_from_checkpoints(folders).num_collected == 3


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda weights: weights | {"more": torch.zeros(1)}, "'more'"),
        (lambda weights: {A: weights[A]}, "lora_B"),
        (lambda weights: weights | {B: torch.zeros(3, 5)}, r"lora_B.*\[3, 2\].*\[3, 5\]"),
        (lambda weights: weights | {B: weights[B].half()}, "lora_B.*float16.*float32"),
    ],
)
def test_other_weights_are_refused_by_name(tmp_path, change, expected):
    # Red for: a weight that is left out, broadcast, or moved by rounding alone.
    folders = saved(tmp_path, 3)[0]
    save(folders[1], change(SavedAdapter.read(folders[1]).tensors))
    with pytest.raises(AdapterMismatchError, match=rf"checkpoint-20' holds another adapter.*{expected}"):
        posterior_from_checkpoints(folders)


def _no_config(folder):
    (folder / "adapter_config.json").unlink()


def _no_weights(folder):
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")


def _half_a_file(folder):
    path = folder / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-5])


def _half_a_config(folder):
    (folder / "adapter_config.json").write_text('{"r": ')


def _half_a_record(folder):
    (folder / "trainer_state.json").write_text("")


def _not_finite(folder):
    save(folder, {A: torch.tensor([[1.0, float("inf"), 2.0]] * 2), B: torch.zeros(3, 2)})


def _beyond_float32(folder):
    save(folder, {A: torch.full((2, 3), 1e300, dtype=torch.float64), B: torch.zeros(3, 2)})


@pytest.mark.parametrize(
    ("damage", "error", "expected"),
    [
        (_no_config, PosteriorNotFoundError, "adapter_config.json is missing"),
        (_no_weights, PosteriorNotFoundError, "no file .*adapter_model.safetensors"),
        (_half_a_file, PosteriorFormatError, "adapter_model.safetensors"),
        (_half_a_config, PosteriorFormatError, "adapter_config.json' is not valid JSON"),
        (_half_a_record, PosteriorFormatError, "trainer_state.json' is not valid JSON"),
        (_not_finite, PosteriorFormatError, r"2 of 6 values of .*lora_A.* not finite"),
        (_beyond_float32, PosteriorFormatError, r"6 of 6 values of .*lora_A.* not finite"),
    ],
)
def test_a_checkpoint_that_cannot_be_read_whole_is_refused_by_name(tmp_path, damage, error, expected):
    # Red for: a checkpoint that is skipped in silence, or a pickle that is opened in its place.
    folders = saved(tmp_path, 3)[0]
    damage(folders[1])
    with pytest.raises(error, match=rf"checkpoint-20' cannot be part of a posterior\. .*{expected}"):
        posterior_from_checkpoints(folders)


def test_whole_numbers_that_change_are_refused_and_those_that_stand_still_are_kept(tmp_path):
    # Red for: indices that are averaged.
    folders = saved(tmp_path, 2)[0]
    for folder in folders:
        save(folder, SavedAdapter.read(folder).tensors | {"indices": torch.tensor([1, 2])})
    made = posterior_from_checkpoints(folders)
    assert made.adapter.tensors["indices"].tolist() == [1, 2] and "indices" not in made.layout.keys
    save(folders[1], SavedAdapter.read(folders[1]).tensors | {"indices": torch.tensor([1, 3])})
    with pytest.raises(SwagError, match=r"'indices'.*int64"):
        posterior_from_checkpoints(folders)


def test_a_checkpoint_that_is_rewritten_meanwhile_is_refused(tmp_path, monkeypatch):
    # Red for: weights folded that the first pass never checked.
    folders, read, reads = saved(tmp_path, 3)[0], SavedAdapter.read, []

    def rewriting(folder):
        reads.append(folder)
        if len(reads) == 5:
            save(folders[1], {A: torch.ones(2, 3), B: torch.ones(3, 2)})
        return read(folder)

    monkeypatch.setattr(SavedAdapter, "read", rewriting)
    with pytest.raises(SwagError, match="checkpoint-20' was rewritten"):
        posterior_from_checkpoints(folders)


def test_fewer_than_two_adapters_make_no_posterior(tmp_path):
    # Red for: a posterior without spread.
    folders = saved(tmp_path, 1)[0]
    cases = (([], "got 0"), (folders, "got 1 .*checkpoint-10'"), (tmp_path, f"got 1 .*checkpoint-N in .*{tmp_path.name}"))
    for given, expected in cases:
        with pytest.raises(TooFewCollectionsError, match=f"at least 2 saved adapters, {expected}"):
            posterior_from_checkpoints(given)
    with pytest.raises(TooFewCollectionsError, match=r"got 0 \(revisions of 'user/x'\)"):
        posterior_from_checkpoints("user/x", revisions=[])


def test_what_cannot_be_meant_is_refused_before_anything_is_read(hub, tmp_path):
    # Red for: revisions that are ignored or taken letter by letter, a Hub id taken for an empty folder, a request for nothing.
    folders, requests = saved(tmp_path, 2)[0], len(hub.hub.log)
    for given, arguments in (
        (folders, {"revisions": ["main"]}),
        (tmp_path, {"revisions": ["main"]}),
        ("user/x", {"revisions": "main"}),
    ):
        with pytest.raises(SwagError, match=r"revisions=\[\.\.\.\].*'main'"):
            posterior_from_checkpoints(given, **arguments)
    with pytest.raises(PosteriorNotFoundError, match=r"no folder 'user/x'.*revisions=\[\.\.\.\]"):
        posterior_from_checkpoints("user/x")
    with pytest.raises(PosteriorNotFoundError, match=r"no folder .*nowhere"):
        posterior_from_checkpoints([*folders, tmp_path / "nowhere"])
    for rank in (1, -1):
        with pytest.raises(SwagError, match=rf"rank=.* must be 0 \(diagonal only\) or at least 2, got {rank}"):
            posterior_from_checkpoints("user/x", revisions=["a", "b"], rank=rank)
    with pytest.raises(SwagError, match=r"final_weights=.*'best'"):
        posterior_from_checkpoints("user/x", revisions=["a", "b"], final_weights="best")
    assert len(hub.hub.log) == requests


def test_settings_with_which_nothing_could_load_the_posterior_are_refused_at_once(tmp_path):
    # Red for: a posterior that is made and saved, and refused wherever it is loaded.
    folders, _ = saved(tmp_path, alpha_pattern={"(query|value)": 3})
    with pytest.raises(PosteriorFormatError, match="alpha_pattern with the pattern"):
        posterior_from_checkpoints(folders, rank=3)
