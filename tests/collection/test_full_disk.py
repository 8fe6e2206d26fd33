import contextlib
import errno
import os
import signal
import subprocess
import tempfile
from pathlib import Path

import pytest
import trajectories
from conftest import lora_model, trainer_for
from transformers import BertTokenizerFast, TrainerCallback

from swag_trainer import Every, SwagCallback, SwagError, SwagPosterior
from swag_trainer.collection.checkpoints import last_complete_checkpoint
from swag_trainer.collection.records import MOMENTS_FILE
from swag_trainer.posterior.folder import POSTERIOR_FILE

resource = pytest.importorskip("resource")  # not on Windows


class NoLargeFiles:
    """A disk on which no file may grow beyond a size: the limit of the operating system, RLIMIT_FSIZE."""

    errno = errno.EFBIG

    def __init__(self, folder: Path) -> None:
        assert signal.getsignal(signal.SIGXFSZ) == signal.SIG_IGN  # Python ignores it, so that a write fails instead
        self.folder = folder
        self._before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill(self, *, fits: list[Path], fails: Path) -> None:
        """Leave room for files as large as ``fits``, and for half of one as large as ``fails``."""
        largest = max(path.stat().st_size for path in fits)
        assert 2 * largest < fails.stat().st_size
        resource.setrlimit(resource.RLIMIT_FSIZE, (fails.stat().st_size // 2, self._before[1]))

    def free(self) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, self._before)


class SmallDisk:
    """A disk of 4 MiB in memory, and a file that fills it."""

    errno = errno.ENOSPC
    PAGE = 4096

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._filler = folder.parent / "filler"

    def fill(self, *, fits: list[Path], fails: Path) -> None:
        self.leave(sum(-(-path.stat().st_size // self.PAGE) * self.PAGE for path in fits) + fails.stat().st_size // 2)

    def leave(self, room: int) -> None:
        disk = os.statvfs(self._filler.parent)
        self._filler.write_bytes(bytes(max(0, disk.f_bavail * disk.f_frsize - room)))

    def free(self) -> None:
        self._filler.unlink(missing_ok=True)


@contextlib.contextmanager
def mounted(folder: Path):
    command = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)]
    try:
        subprocess.run(command, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("mounting a small disk is not permitted here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.fixture
def small_disk(tmp_path_factory):
    with mounted(tmp_path_factory.mktemp("disk")) as folder:
        yield SmallDisk(folder / "output")


@pytest.fixture(params=["file size limit", "small disk"])
def disk(request, tmp_path):
    if request.param == "small disk":
        yield request.getfixturevalue("small_disk")
        return
    limited = NoLargeFiles(tmp_path / "output")
    yield limited
    limited.free()


class At(TrainerCallback):
    """Does something after a step, before the Trainer saves, or at the end of training."""

    def __init__(self, step: int | None, action) -> None:
        self.step = step
        self.action = action

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            self.action()

    def on_train_end(self, args, state, control, **kwargs):
        if self.step is None:
            self.action()


@pytest.fixture(scope="module")
def train(base_folder, texts):
    """A run of 24 steps, 20 of them collected, that saves at every fourth and keeps one checkpoint; started or gone on with."""
    tokenizer = BertTokenizerFast.from_pretrained(base_folder)
    rows = [{**tokenizer(text), "labels": index % 3} for index, text in enumerate(texts)]

    def train(folder, *first, **arguments):
        swag = SwagCallback(Every(steps=1, start=0.2), rank=20)
        settings = {"save_strategy": "steps", "save_steps": 4, "save_total_limit": 1} | arguments
        trainer = trainer_for(lora_model(base_folder), rows, tokenizer, folder, callbacks=[*first, swag], **settings)
        trainer.train(resume_from_checkpoint=last_complete_checkpoint(folder))
        return swag.posterior

    return train


@pytest.fixture(scope="module")
def expected(train, tmp_path_factory):
    """The posterior of a run with room enough."""
    return train(tmp_path_factory.mktemp("undisturbed"))


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def same(one: SwagPosterior, other: SwagPosterior) -> bool:
    return one.adapter.digest == other.adapter.digest and trajectories.same(one, other)


def test_moments_that_do_not_fit_stop_the_run_by_name_and_it_goes_on_from_the_checkpoint_before(disk, train, expected):
    # Red for: a checkpoint completed without its moments, a stray temporary file, the older checkpoint deleted first, an error without
    # the path.
    folder, before = disk.folder, {}

    def fill():
        before.update(contents(folder))
        checkpoint = folder / "checkpoint-16"
        disk.fill(
            fits=[path for path in checkpoint.iterdir() if path.name != MOMENTS_FILE],
            fails=checkpoint / MOMENTS_FILE,
        )

    with pytest.raises(OSError, match=r"while writing it.*checkpoint-20/swag_moments\.safetensors") as caught:
        train(folder, At(20, fill))
    assert caught.value.errno == disk.errno
    assert caught.value.filename == str(folder / "checkpoint-20" / MOMENTS_FILE)
    after = contents(folder)
    assert {name: after[name] for name in before} == before
    assert "checkpoint-16/swag_moments.safetensors" in before
    assert "checkpoint-20/optimizer.pt" in after
    assert not [name for name in after if name.startswith("checkpoint-20") and "swag" in name]
    assert last_complete_checkpoint(folder) == str(folder / "checkpoint-16")
    disk.free()
    assert same(train(folder), expected)
    assert same(SwagPosterior.from_pretrained(folder), expected)


@pytest.mark.parametrize("part", [0.0, 0.2, 0.4])
def test_whatever_part_of_a_checkpoint_does_not_fit_the_one_before_is_gone_on_from(small_disk, train, expected, part):
    # Red for: trusting a checkpoint whose own files, PEFT's or the Trainer's, are cut off or missing.
    folder = small_disk.folder

    def fill():
        files = list((folder / "checkpoint-16").iterdir())
        small_disk.leave(int(part * sum(path.stat().st_size for path in files)))

    # Each writer has its own: torch.save a RuntimeError, safetensors a SafetensorError, tokenizers a plain Exception.
    with pytest.raises(Exception, match="."):
        train(folder, At(20, fill))
    assert last_complete_checkpoint(folder) == str(folder / "checkpoint-16")
    small_disk.free()
    assert same(train(folder), expected)


@pytest.fixture
def older(train, disk):
    """The posterior of an earlier run, with another seed, in the same folder."""
    posterior = train(disk.folder, seed=1, save_strategy="no")
    assert same(SwagPosterior.from_pretrained(disk.folder), posterior)
    return posterior


def run_into_the_full_disk(disk, train):
    folder = disk.folder
    with pytest.raises(OSError, match=r"while writing it.*swag_posterior\.safetensors") as caught:
        train(
            folder,
            At(
                None,
                lambda: disk.fill(
                    fits=[folder / "adapter_model.safetensors", folder / "adapter_config.json"], fails=folder / POSTERIOR_FILE
                ),
            ),
        )
    assert caught.value.errno == disk.errno
    assert caught.value.filename == str(folder / POSTERIOR_FILE)


def test_a_posterior_that_does_not_fit_leaves_the_older_one_and_is_written_when_there_is_room(disk, older, train, expected):
    # Red for: writing over the older posterior, a stray temporary file, an error without the path, a run that cannot be finished.
    folder = disk.folder
    before = (folder / POSTERIOR_FILE).read_bytes()
    run_into_the_full_disk(disk, train)
    assert (folder / POSTERIOR_FILE).read_bytes() == before
    assert sorted(path.name for path in folder.iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
        "checkpoint-24",
        POSTERIOR_FILE,
    ]
    disk.free()
    assert same(train(folder), expected)
    assert same(SwagPosterior.from_pretrained(folder), expected)


def test_an_older_posterior_can_still_be_loaded_when_the_new_one_does_not_fit(disk, older, train):
    # Red for: a new adapter beside the older posterior, which refuses it ever after.
    run_into_the_full_disk(disk, train)
    assert same(SwagPosterior.from_pretrained(disk.folder), older)


def test_a_full_temporary_folder_is_named(small_disk, train, tmp_path, monkeypatch):
    # Red for: "I/O error: No space left on device" at the end of a run whose own disk has room.
    temporary = small_disk.folder
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    with pytest.raises(
        SwagError, match=rf"could not write the adapter into the temporary folder '{temporary}.*No space left.*TMPDIR"
    ):
        train(tmp_path / "output", At(None, lambda: small_disk.leave(0)), save_strategy="no")
