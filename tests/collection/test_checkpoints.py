import json
import logging
import os
import shutil
import struct
import tracemalloc

import pytest
import torch
from conftest import lora_model, trainer_for
from transformers import AutoModelForSequenceClassification, BertTokenizerFast

from swag_trainer import Every, SwagCallback, SwagError, SwagPosterior
from swag_trainer.collection.checkpoints import adapters_digest, last_complete_checkpoint
from swag_trainer.collection.records import MOMENTS_FILE, RECORDS_KEY
from swag_trainer.posterior.storage import read_file

NEEDED = "adapter_config.json adapter_model.safetensors optimizer.pt rng_state.pth scheduler.pt swag_moments.safetensors trainer_state.json"
DIGEST = "0123456789abcdef" * 4
LOGGER = "swag_trainer.collection.checkpoints"


def edit_state(checkpoint, edit):
    path = checkpoint / "trainer_state.json"
    state = json.loads(path.read_text())
    edit(state)
    path.write_text(json.dumps(state, indent=2))


def record_the_adapters(checkpoint):
    """Make the record agree with the files of another kind of save, as the callback would have written it there."""
    digest = adapters_digest(checkpoint)
    edit_state(checkpoint, lambda state: state["stateful_callbacks"][RECORDS_KEY]["default"].update(adapters_digest=digest))


@pytest.fixture(scope="session")
def finished(base_folder, texts, tmp_path_factory):
    """A real run of 24 steps with checkpoints at 8, 16 and 24. The first collection is at step 12."""
    folder = tmp_path_factory.mktemp("finished")
    tokenizer = BertTokenizerFast.from_pretrained(base_folder)
    rows = [{**tokenizer(text), "labels": index % 3} for index, text in enumerate(texts)]
    swag = SwagCallback(Every(steps=1, start=0.5), rank=4)
    trainer_for(lora_model(base_folder), rows, tokenizer, folder, callbacks=[swag], save_strategy="steps", save_steps=8).train()
    return folder


@pytest.fixture
def folder(finished, tmp_path):
    """A copy of it that may be damaged."""
    return shutil.copytree(finished, tmp_path / "output")


@pytest.fixture
def alone(finished, tmp_path):
    """A folder with the checkpoint of step 24 alone, and that checkpoint."""
    return tmp_path / "alone", shutil.copytree(finished / "checkpoint-24", tmp_path / "alone" / "checkpoint-24")


def test_the_newest_checkpoint_is_found_as_text_that_the_trainer_takes(folder, base_folder, rows, tokenizer):
    # Red for: a Path, a name without its folder, another checkpoint than the newest.
    expected = SwagPosterior.from_pretrained(folder).gaussian
    assert last_complete_checkpoint(folder) == str(folder / "checkpoint-24")
    shutil.rmtree(folder / "checkpoint-24")
    swag = SwagCallback(Every(steps=1, start=0.5), rank=4)
    trainer = trainer_for(lora_model(base_folder), rows, tokenizer, folder, callbacks=[swag])
    trainer.train(resume_from_checkpoint=last_complete_checkpoint(str(folder)))
    assert trainer.state.global_step == 24
    found = swag.posterior.stored_as("bfloat16").gaussian
    assert torch.equal(found.mean, expected.mean) and torch.equal(found.deviations, expected.deviations)


@pytest.mark.parametrize("name", NEEDED.split())
def test_a_checkpoint_that_lacks_a_file_is_passed_over(folder, name, caplog):
    # Red for: a check that leaves one file out. Without optimizer, scheduler or random state the Trainer goes on and says nothing.
    (folder / "checkpoint-24" / name).unlink()
    with caplog.at_level(logging.INFO, logger=LOGGER):
        assert last_complete_checkpoint(folder) == str(folder / "checkpoint-16")
    (record,) = [record for record in caplog.records if record.name == LOGGER]
    assert record.levelno == logging.INFO
    assert "checkpoint-24" in record.message and name in record.message


def test_what_a_resumed_run_does_not_read_may_be_missing(alone):
    # Red for: refusing a checkpoint because somebody removed training_args.bin, which holds the Hub's token.
    folder, checkpoint = alone
    for path in list(checkpoint.iterdir()):
        if path.name not in NEEDED.split():
            path.unlink()
    assert {path.name for path in checkpoint.iterdir()} == set(NEEDED.split())
    assert last_complete_checkpoint(folder) == str(checkpoint)


@pytest.mark.parametrize("name", NEEDED.split())
def test_a_file_that_is_cut_off_anywhere_is_noticed(alone, name):
    # Red for: a size that is not compared, a JSON text or a zip file that is taken because it begins well.
    folder, checkpoint = alone
    path = checkpoint / name
    whole = path.read_bytes()
    lengths = {*range(min(70, len(whole))), *range(0, len(whole), 97), *range(max(0, len(whole) - 110), len(whole))}
    assert len(lengths) > 100
    for length in sorted(lengths):
        path.write_bytes(whole[:length])
        if name.endswith(".json") and whole[length:].isspace():
            continue  # only the last line's end is missing
        assert last_complete_checkpoint(folder) is None, f"{name} cut off at {length} of {len(whole)} bytes"
    path.write_bytes(whole)
    assert last_complete_checkpoint(folder) == str(checkpoint)


@pytest.mark.parametrize(
    "name", ["adapter_model.safetensors", "optimizer.pt", "swag_moments.safetensors", "trainer_state.json"]
)
def test_a_file_with_more_at_its_end_is_noticed(alone, name):
    # Red for: "at least as long as the header says".
    folder, checkpoint = alone
    with open(checkpoint / name, "ab") as file:
        file.write(b"\0" * 7)
    assert last_complete_checkpoint(folder) is None


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "optimizer.pt"])
def test_a_file_that_lacks_a_piece_is_noticed(alone, name):
    # Red for: looking at the end alone; pieces of a file reach the disk in any order.
    folder, checkpoint = alone
    whole = (checkpoint / name).read_bytes()
    (checkpoint / name).write_bytes(whole[: len(whole) // 2] + whole[len(whole) // 2 + 64 :])
    assert last_complete_checkpoint(folder) is None


def test_the_numbers_are_compared_as_numbers(folder):
    # Red for: names in the order of the alphabet, where checkpoint-8 comes after checkpoint-24, or the order of time.
    shutil.rmtree(folder / "checkpoint-16")
    assert last_complete_checkpoint(folder) == str(folder / "checkpoint-24")
    shutil.copytree(folder / "checkpoint-24", folder / "checkpoint-100")
    edit_state(folder / "checkpoint-100", lambda state: state.update(global_step=100))
    os.utime(folder / "checkpoint-100", (0, 0))
    assert last_complete_checkpoint(folder) == str(folder / "checkpoint-100")


def test_other_names_are_not_checkpoints(folder, caplog):
    # Red for: a pattern that takes a part of the name, or digits that int() takes and the Trainer never writes; files taken for folders.
    for name in (
        "checkpoint-99-copy",
        "checkpoint-099",
        "checkpoint-+99",
        "checkpoint-９９",
        "Checkpoint-99",
        "old-checkpoint-99",
    ):
        shutil.copytree(folder / "checkpoint-24", folder / name)
        edit_state(folder / name, lambda state: state.update(global_step=99))
    (folder / "checkpoint-99").write_text("a file")
    (folder / "checkpoint-98").symlink_to(folder / "checkpoint-98")
    (folder / ("checkpoint-" + "9" * 200)).mkdir()
    with caplog.at_level(logging.INFO, logger=LOGGER):
        assert last_complete_checkpoint(folder) == str(folder / "checkpoint-24")
    assert not [record for record in caplog.records if record.name == LOGGER]


def test_a_renamed_checkpoint_is_passed_over_and_a_moved_run_is_not(folder, tmp_path):
    # Red for: believing the folder's name; the Trainer takes the step from trainer_state.json, and the callback the moments of that step.
    (folder / "checkpoint-24").rename(folder / "checkpoint-32")
    assert last_complete_checkpoint(folder) == str(folder / "checkpoint-16")
    folder.rename(tmp_path / "elsewhere")
    assert last_complete_checkpoint(tmp_path / "elsewhere") == str(tmp_path / "elsewhere" / "checkpoint-16")


@pytest.mark.parametrize("step", [None, "24", True, 24.0, 16, [24]])
def test_a_state_of_another_step_is_passed_over(alone, step):
    # Red for: comparing texts or floats; a step that is no whole number breaks the Trainer later.
    folder, checkpoint = alone
    edit_state(checkpoint, lambda state: state.update(global_step=step))
    assert last_complete_checkpoint(folder) is None


@pytest.mark.parametrize("text", ["", "[]", "null", "24", "[" * 100_000, '{"global_step": 24', "\udcff"])
def test_a_state_that_is_no_object_is_passed_over(alone, text):
    # Red for: an exception out of json, or AttributeError on a list.
    folder, checkpoint = alone
    (checkpoint / "trainer_state.json").write_bytes(text.encode(errors="surrogateescape"))
    assert last_complete_checkpoint(folder) is None


def test_a_checkpoint_that_sigterm_cut_off_is_passed_over(folder):
    # Red for: not knowing the Trainer's mark; it writes over a checkpoint of the same step, whose files are then of two saves.
    mark = folder / "checkpoint-24" / "checkpoint-is-incomplete.txt"
    mark.write_text("Checkpoint started at step 24 and in progress...")
    assert last_complete_checkpoint(folder) == str(folder / "checkpoint-16")
    # Red for: throwing the only checkpoint away. Its older ones are deleted before the mark is, and a later save does not remove it.
    edit_state(folder / "checkpoint-24", lambda state: None)
    os.utime(mark, (0, 0))
    assert last_complete_checkpoint(folder) == str(folder / "checkpoint-24")


def test_moments_of_another_step_are_passed_over(folder):
    # Red for: believing any whole file of the right name.
    shutil.copy(folder / "checkpoint-16" / MOMENTS_FILE, folder / "checkpoint-24" / MOMENTS_FILE)
    assert last_complete_checkpoint(folder) == str(folder / "checkpoint-16")


def test_a_changed_bit_in_the_moments_is_noticed(alone):
    # Red for: comparing the recorded digest with the one in the file's own metadata, without computing it.
    folder, checkpoint = alone
    whole = (checkpoint / MOMENTS_FILE).read_bytes()
    for position in range(len(whole) - 4000, len(whole), 500):
        changed = bytearray(whole)
        changed[position] ^= 1
        (checkpoint / MOMENTS_FILE).write_bytes(changed)
        assert last_complete_checkpoint(folder) is None


def test_before_the_first_collection_there_are_no_moments_to_look_for(folder):
    # Red for: a file required although the record says that nothing was collected.
    for step in (16, 24):
        shutil.rmtree(folder / f"checkpoint-{step}")
    assert not (folder / "checkpoint-8" / MOMENTS_FILE).exists()
    assert last_complete_checkpoint(folder) == str(folder / "checkpoint-8")


def test_a_run_without_the_callback_has_complete_checkpoints_too(alone):
    # Red for: requiring a record; a user may look before the callback joins.
    folder, checkpoint = alone
    edit_state(checkpoint, lambda state: state["stateful_callbacks"].pop(RECORDS_KEY))
    assert last_complete_checkpoint(folder) == str(checkpoint)
    edit_state(checkpoint, lambda state: state.update(stateful_callbacks=None))
    assert last_complete_checkpoint(folder) == str(checkpoint)


@pytest.mark.parametrize("callbacks", [[], [{}], "x", 3])
def test_a_state_whose_callbacks_are_no_object_is_passed_over(alone, callbacks):
    # Red for: AttributeError, or taking it for a run without the callback.
    folder, checkpoint = alone
    edit_state(checkpoint, lambda state: state.update(stateful_callbacks=callbacks))
    assert last_complete_checkpoint(folder) is None


def test_the_moments_of_every_callback_are_looked_at(alone):
    # Red for: looking at the first record, or at "default", alone.
    folder, checkpoint = alone
    shutil.copy(checkpoint / MOMENTS_FILE, checkpoint / "swag_moments.head.safetensors")
    digest = read_file(checkpoint / MOMENTS_FILE)[2]
    edit_state(checkpoint, lambda state: state["stateful_callbacks"][RECORDS_KEY].update(head={"digest": digest}))
    assert last_complete_checkpoint(folder) == str(checkpoint)
    (checkpoint / "swag_moments.head.safetensors").unlink()
    assert last_complete_checkpoint(folder) is None


@pytest.mark.parametrize(
    "records", [[], "x", {"default": None}, {"default": {}}, {"default": {"digest": 1}}, {"../../x": {"digest": DIGEST}}]
)
def test_a_checkpoint_with_records_that_nobody_writes_is_passed_over(alone, records):
    # Red for: a record that is dropped in silence, and with it the check of its moments.
    folder, checkpoint = alone
    edit_state(checkpoint, lambda state: state["stateful_callbacks"].update({RECORDS_KEY: records}))
    assert last_complete_checkpoint(folder) is None


def test_a_checkpoint_of_two_saves_is_passed_over(folder, base_folder, rows, tokenizer, tmp_path):
    # Red for: a record without the digest of the adapters; "every file is complete" taken for "complete". A save over an older checkpoint
    # begins with the adapter, here that of a run with other data, and is killed before it comes to the moments.
    other, swag = tmp_path / "other", SwagCallback(Every(steps=1, start=0.5), rank=4)
    arguments = {"save_strategy": "steps", "save_steps": 8, "seed": 3}
    trainer_for(lora_model(base_folder), rows, tokenizer, other, callbacks=[swag], **arguments).train()
    assert last_complete_checkpoint(folder) == str(folder / "checkpoint-24")
    assert last_complete_checkpoint(other) == str(other / "checkpoint-24")
    shutil.copy(other / "checkpoint-24" / "adapter_model.safetensors", folder / "checkpoint-24")
    assert last_complete_checkpoint(folder) == str(folder / "checkpoint-16")


def test_a_checkpoint_of_an_earlier_version_is_one_to_go_on_from(folder, base_folder, rows, tokenizer):
    # Red for: a record without a digest of the adapters refused, or "handled", its name for the last processed step, not read.
    expected = SwagPosterior.from_pretrained(folder).gaussian
    shutil.rmtree(folder / "checkpoint-24")

    def as_before(state):
        record = state["stateful_callbacks"][RECORDS_KEY]["default"]
        del record["adapters_digest"]
        record["handled"] = record.pop("last_processed_step") - 1  # as if it had been made on SIGTERM

    edit_state(folder / "checkpoint-16", as_before)
    assert last_complete_checkpoint(folder) == str(folder / "checkpoint-16")
    processed = []

    class Watched(SwagCallback):
        def on_step_end(self, args, state, control, **kwargs):
            processed.append((state.global_step, self._run.last_processed_step))
            super().on_step_end(args, state, control, **kwargs)

    swag = Watched(Every(steps=1, start=0.5), rank=4)
    trainer_for(lora_model(base_folder), rows, tokenizer, folder, callbacks=[swag]).train(
        resume_from_checkpoint=str(folder / "checkpoint-16")
    )
    assert processed[0] == (16, 15)
    assert torch.equal(swag.posterior.gaussian.mean, expected.mean)  # the weights of step 16 are not counted twice


def test_the_digest_of_the_adapters_is_over_names_and_bytes(tmp_path):
    # Red for: leaving the sub-folders out, or hashing one stream of bytes that can be cut in two ways.
    digests = set()
    one_stream = b"12" + b"a/adapter_model.safetensors" + b"3"
    for layout in ({".": b"12", "a": b"3"}, {".": one_stream}, {".": b"12", "b": b"3"}, {".": b"12"}, {"a": b"12"}, {}):
        folder = tmp_path / str(len(digests))
        folder.mkdir()
        for name, data in layout.items():
            (folder / name).mkdir(exist_ok=True)
            (folder / name / "adapter_model.safetensors").write_bytes(data)
        digests.add(adapters_digest(folder))
        assert adapters_digest(str(folder)) in digests
    assert len(digests) == 6


def test_a_checkpoint_of_the_model_alone_is_not_one_to_go_on_from(base_folder, rows, tokenizer, tmp_path, caplog):
    # Red for: taking it; the Trainer then goes on with a fresh optimizer. And for a start from scratch that nobody is told of.
    arguments = {"save_strategy": "steps", "save_steps": 4, "max_steps": 8, "save_only_model": True}
    trainer_for(lora_model(base_folder), rows, tokenizer, tmp_path, **arguments).train()
    with caplog.at_level(logging.INFO, logger=LOGGER):
        assert last_complete_checkpoint(tmp_path) is None
    assert [record.levelname for record in caplog.records if record.name == LOGGER] == ["INFO", "INFO", "WARNING"]
    assert "optimizer.pt" in caplog.text and "None of the 2 checkpoints" in caplog.text


def test_an_adapter_in_a_folder_of_its_own_is_looked_at(base_folder, rows, tokenizer, tmp_path):
    # Red for: looking at the adapter called "default" alone; PEFT puts the others into sub-folders.
    model = lora_model(base_folder)
    model.add_adapter("second", model.peft_config["default"])
    trainer_for(model, rows, tokenizer, tmp_path, save_strategy="steps", save_steps=4, max_steps=4).train()
    second = tmp_path / "checkpoint-4" / "second" / "adapter_model.safetensors"
    assert last_complete_checkpoint(tmp_path) == str(tmp_path / "checkpoint-4")
    whole = second.read_bytes()
    second.write_bytes(whole[:-1])
    assert last_complete_checkpoint(tmp_path) is None
    second.unlink()
    assert last_complete_checkpoint(tmp_path) is None
    second.write_bytes(whole)
    second.with_name("adapter_config.json").unlink()
    assert last_complete_checkpoint(tmp_path) is None


def test_a_model_that_is_saved_whole_or_in_shards_is_looked_at(alone, base_folder, tmp_path):
    # Red for: a checkpoint without an adapter refused, or a shard that is not there.
    folder, checkpoint = alone
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        (checkpoint / name).unlink()
    assert last_complete_checkpoint(folder) is None
    model = AutoModelForSequenceClassification.from_pretrained(base_folder)
    model.save_pretrained(checkpoint)
    record_the_adapters(checkpoint)
    assert last_complete_checkpoint(folder) == str(checkpoint)
    (checkpoint / "model.safetensors").unlink()
    model.save_pretrained(checkpoint, max_shard_size="50kB")
    shards = sorted(checkpoint.glob("model-*.safetensors"))
    assert len(shards) > 1
    assert last_complete_checkpoint(folder) == str(checkpoint)
    shards[1].unlink()
    assert last_complete_checkpoint(folder) is None


@pytest.mark.parametrize("shard", ["../../outside.safetensors", "/dev/zero", "..", "", 3, None, ["a"], "a/b"])
def test_an_index_that_names_other_places_is_refused(alone, shard, caplog):
    # Red for: a path out of a file opened.
    folder, checkpoint = alone
    shutil.copy(checkpoint / "adapter_model.safetensors", folder.parent / "outside.safetensors")
    (checkpoint / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": shard}}))
    with caplog.at_level(logging.INFO, logger=LOGGER):
        assert last_complete_checkpoint(folder) is None
    assert "does not name the files of the model" in caplog.text


def test_a_large_model_is_not_read(alone):
    # Red for: hashing or loading the weights: 2 GiB here, which the file system does not store.
    folder, checkpoint = alone
    size = 2 * 1024**3
    header = json.dumps({"a": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}).encode()
    path = checkpoint / "model.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header)
    os.truncate(path, 8 + len(header) + size)
    tracemalloc.start()
    try:
        assert last_complete_checkpoint(folder) == str(checkpoint)
        assert tracemalloc.get_traced_memory()[1] < 32 * 1024**2
    finally:
        tracemalloc.stop()
    os.truncate(path, 8 + len(header) + size - 1)
    assert last_complete_checkpoint(folder) is None


@pytest.mark.parametrize(
    "header",
    [
        b"[]",
        b'{"a": 1}',
        b'{"a": {"data_offsets": 4}}',
        b'{"a": {"data_offsets": []}}',
        b'{"a": {"data_offsets": ["0", "4"]}}',
        b"[" * 5000,
    ],
)
def test_a_header_that_is_none_is_refused_as_such(alone, header):
    # Red for: TypeError or RecursionError out of a search for checkpoints.
    folder, checkpoint = alone
    (checkpoint / "adapter_model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(4))
    assert last_complete_checkpoint(folder) is None


def test_the_folders_of_deepspeed_are_accepted_with_their_end_mark(alone):
    # Red for: a missing optimizer.pt and scheduler.pt held against DeepSpeed, or a folder that was begun taken for a whole one.
    folder, checkpoint = alone
    for name in ("optimizer.pt", "scheduler.pt"):
        (checkpoint / name).unlink()
    (checkpoint / "global_step24").mkdir()
    (checkpoint / "global_step24" / "bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt").write_bytes(b"...")
    assert last_complete_checkpoint(folder) is None
    (checkpoint / "latest").write_text("global_step24")
    assert last_complete_checkpoint(folder) == str(checkpoint)


def test_the_folders_of_fsdp_are_accepted_with_their_end_mark(alone):
    # Red for: requiring optimizer.pt or an adapter file, neither of which sharded FSDP writes.
    folder, checkpoint = alone
    for name in ("optimizer.pt", "adapter_model.safetensors", "adapter_config.json"):
        (checkpoint / name).unlink()
    record_the_adapters(checkpoint)
    for name in ("optimizer_0", "pytorch_model_fsdp_0"):
        (checkpoint / name).mkdir()
        (checkpoint / name / "__0_0.distcp").write_bytes(b"...")
        assert last_complete_checkpoint(folder) is None
    (checkpoint / "optimizer_0" / ".metadata").write_bytes(b"...")
    assert last_complete_checkpoint(folder) is None
    (checkpoint / "pytorch_model_fsdp_0" / ".metadata").write_bytes(b"...")
    assert last_complete_checkpoint(folder) == str(checkpoint)
    (checkpoint / "optimizer_0" / ".metadata").unlink()
    assert last_complete_checkpoint(folder) is None


def test_the_random_states_of_all_ranks_are_looked_at(alone):
    # Red for: looking at the first, or taking ranks 0 and 2 for all there are.
    folder, checkpoint = alone
    (checkpoint / "rng_state.pth").rename(checkpoint / "rng_state_0.pth")
    for rank in (1, 2):
        shutil.copy(checkpoint / "rng_state_0.pth", checkpoint / f"rng_state_{rank}.pth")
    assert last_complete_checkpoint(folder) == str(checkpoint)
    os.truncate(checkpoint / "rng_state_2.pth", 100)
    assert last_complete_checkpoint(folder) is None
    shutil.copy(checkpoint / "rng_state_0.pth", checkpoint / "rng_state_2.pth")
    (checkpoint / "rng_state_1.pth").unlink()
    assert last_complete_checkpoint(folder) is None


def test_a_scaler_that_is_there_is_whole(alone):
    # Red for: a half-written scale of float16 training, at which the resumed run would fail.
    folder, checkpoint = alone
    torch.save({"scale": 1.0}, checkpoint / "scaler.pt")
    assert last_complete_checkpoint(folder) == str(checkpoint)
    os.truncate(checkpoint / "scaler.pt", 50)
    assert last_complete_checkpoint(folder) is None


@pytest.mark.parametrize("name", NEEDED.split())
def test_a_pipe_is_passed_over_at_once(folder, name, caplog):
    # Red for: open() on a FIFO, which waits for ever.
    (folder / "checkpoint-24" / name).unlink()
    os.mkfifo(folder / "checkpoint-24" / name)
    with caplog.at_level(logging.INFO, logger=LOGGER):
        assert last_complete_checkpoint(folder) == str(folder / "checkpoint-16")
    assert "regular file" in caplog.text


def test_no_folder_is_a_run_that_has_not_begun_and_a_file_is_a_mistake(folder, tmp_path):
    # Red for: an error at the first start of a job, or a run started anew because the path was wrong.
    assert last_complete_checkpoint(tmp_path / "not-yet") is None
    (tmp_path / "empty").mkdir()
    assert last_complete_checkpoint(tmp_path / "empty") is None
    with pytest.raises(SwagError, match=r"trainer_state\.json.*Not a directory"):
        last_complete_checkpoint(folder / "checkpoint-24" / "trainer_state.json")


def test_a_folder_that_cannot_be_read_is_an_error(folder, monkeypatch):
    # Red for: starting anew over checkpoints that are there. (Permissions do not bind the superuser, so they are not used here.)
    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(os, "listdir", refuse)
    with pytest.raises(SwagError, match=r"output.*Permission denied"):
        last_complete_checkpoint(folder)
