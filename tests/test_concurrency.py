"""Several processes and threads at once: one folder, one pipeline, one model."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from lively import pipeline_of, short_run

from swag_trainer import SwagError, SwagPosterior, load_posterior

CUT = {"truncation": True, "max_length": 4}


@pytest.fixture(scope="module")
def run(base_folder, texts, tmp_path_factory):
    return short_run(base_folder, texts, tmp_path_factory.mktemp("run"))


@pytest.fixture
def two(run):
    """Two posteriors with other means, and so with other adapters beside them."""
    posterior = run[1]
    moved = replace(posterior.gaussian, mean=posterior.gaussian.mean + 1)
    found = [posterior, replace(posterior, gaussian=moved)]
    return [replace(each, adapter=each.adapter.with_weights(each.mean)) for each in found]


def forked(work) -> int:
    """Do work in a child of this process and return its number."""
    pid = os.fork()
    if pid == 0:
        try:
            work()
            os._exit(0)
        except BaseException as error:
            sys.stderr.write(f"{error!r}\n")
            os._exit(1)
    return pid


def wait_for(pids) -> list[int]:
    return [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]


def test_a_reader_finds_one_of_two_posteriors_that_two_processes_write_or_is_refused(two, tmp_path):
    # Red for: files written in place, a temporary name that two processes share, a pair taken for one because its parts are whole.
    two[0].save_pretrained(tmp_path)
    before = sorted(path.name for path in tmp_path.iterdir())
    deadline = time.monotonic() + 1.5

    def write(posterior) -> None:
        while time.monotonic() < deadline:
            posterior.save_pretrained(tmp_path)

    found, refused = [load_posterior(tmp_path).digest], 0
    pids = [forked(lambda each=each: write(each)) for each in two]
    while time.monotonic() < deadline:
        try:
            found.append(load_posterior(tmp_path).digest)
        except SwagError:  # between the renames of two files
            refused += 1
    assert wait_for(pids) == [0, 0]
    assert set(found) <= {each.digest for each in two}
    two[1].save_pretrained(tmp_path)
    assert load_posterior(tmp_path).digest == two[1].digest
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_each_of_32_threads_gets_the_predictions_that_it_would_get_alone(run, texts):
    # Red for: a predictor that is replaced while another thread predicts with it, options of another caller, a shared set of weights,
    # a tokenizer that cuts a text where another caller wants it to.
    classify = pipeline_of(run, num_samples=4)
    calls = [
        (
            texts[number % len(texts)],
            {"seed": int(number % 8 == 0), "num_samples": 3, "top_k": (None, 1)[number % 2]} | (CUT if number % 5 == 0 else {}),
        )
        for number in range(32)
    ]
    alone = [classify(text, **options) for text, options in calls]
    barrier = threading.Barrier(32)

    def call(text, options):
        barrier.wait(60)
        return classify(text, **options)

    with ThreadPoolExecutor(32) as threads:
        together = list(threads.map(lambda pair: call(*pair), calls))
    assert together == alone


def test_interrupts_between_the_calls_of_threads_change_no_prediction(run, texts):
    # Red for: weights of a draw left in a model that other threads predict with, a lock that an interrupt leaves closed.
    classify = pipeline_of(run, num_samples=4)
    alone = [classify(text) for text in texts[:8]]
    wrong, done = [], threading.Event()

    def serve() -> None:
        while not done.is_set():
            if [classify(text) for text in texts[:8]] != alone:
                wrong.append("another prediction")

    threads = [threading.Thread(target=serve, daemon=True) for _ in range(4)]
    for thread in threads:
        thread.start()
    interrupted = 0
    for _ in range(40):
        signal.setitimer(signal.ITIMER_REAL, 0.001 + 0.02 * torch.rand(1).item())
        before = signal.signal(signal.SIGALRM, signal.default_int_handler)
        try:
            classify(texts[0])
            signal.setitimer(signal.ITIMER_REAL, 0)
        except KeyboardInterrupt:
            interrupted += 1
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
    done.set()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    assert interrupted and not wrong
    assert [classify(text) for text in texts[:8]] == alone


def test_a_forked_worker_predicts_as_its_parent(run, texts, tmp_path):
    # Red for: a lock or threads of the parent that the child waits for.
    classify = pipeline_of(run, num_samples=4)
    expected = classify(texts[:4])
    (pid,) = [forked(lambda: (tmp_path / "found").write_bytes(pickle.dumps(classify(texts[:4]))))]
    assert wait_for([pid]) == [0]
    assert pickle.loads((tmp_path / "found").read_bytes()) == expected


def predict_in_worker(folder: str, texts: list[str]) -> list:
    from transformers import pipeline

    return pipeline("swag-text-classification", model=folder, device="cpu", num_samples=4)(texts)


@pytest.mark.slow
def test_spawned_workers_predict_as_their_parent(trained, texts):
    # Red for: a global state of the parent that predictions depend on.
    folder = trained[0].args.output_dir
    expected = predict_in_worker(folder, texts[:4])
    with multiprocessing.get_context("spawn").Pool(2) as workers:
        assert workers.starmap(predict_in_worker, [(folder, texts[:4])] * 4) == [expected] * 4


@pytest.mark.slow
def test_a_pickled_pipeline_predicts_in_a_spawned_worker_as_here(run, texts):
    # Red for: a lock or a predictor in what is pickled.
    classify = pipeline_of(run, num_samples=4)
    with multiprocessing.get_context("spawn").Pool(1) as workers:
        assert workers.apply(classify, (texts[:4],)) == classify(texts[:4])


def test_saving_over_a_folder_that_is_read_leaves_what_was_loaded(two, tmp_path):
    # Red for: tensors that are mapped from the file.
    two[0].save_pretrained(tmp_path, dtype="float32")
    loaded: SwagPosterior = load_posterior(Path(tmp_path))
    two[1].save_pretrained(tmp_path, dtype="float32")
    assert loaded.digest == two[0].digest
    assert torch.equal(loaded.draw(2, seed=0).vectors, two[0].draw(2, seed=0).vectors)
