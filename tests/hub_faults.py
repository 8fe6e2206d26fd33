"""Every fault at every request of every operation with the Hub, on the loopback interface.

    python tests/hub_faults.py            # the table, in Markdown
    python tests/hub_faults.py --operation push --fault "503 once"

An operation is run once to see which requests it makes. Then it is run anew for each request and each fault: "once", this request alone
fails; "always", so does every later one like it. It may succeed, retried or not, or be refused with a `SwagError`; a push must have made
one commit or none, and what it says must be true; what is loaded must be what lies in one commit. No token may be in an error, a log, the
output or an address. Whatever else happens is wrong, and the exit status is 1.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import logging
import os
import resource
import shutil
import sys
import tempfile
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

TESTS = Path(__file__).parent
TITLE = "Ours"
_TEXTS = "datasets/user/texts"
PAUSE = 0.6  # seconds of a slow reply, and more than the clients' limit for downloads in these trials
_STATUSES: dict[str, tuple[int, dict[str, str]]] = {
    "401": (401, {"X-Error-Code": "RepoNotFound"}),
    "403": (403, {}),
    "404": (404, {"X-Error-Code": "RepoNotFound"}),
    "409": (409, {}),
    "412": (412, {}),
    "429": (429, {"Retry-After": "1"}),
    "500": (500, {}),
    "502": (502, {}),
    "503": (503, {}),
    "504": (504, {}),
    "gated": (403, {"X-Error-Code": "GatedRepo"}),
    "private": (404, {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"}),
}
FAULTS = [f"{name} {how}" for name in (*_STATUSES, "dropped", "lost", "short") for how in ("once", "always")] + [
    "slow once",
    "moved once",
]

CACHES = ["offline, all in the cache", "offline, nothing in the cache", "not to be written", "full"]


@dataclass
class Operation:
    """Something that is done with the Hub.

    Attributes:
        run: Does it, and returns what tells one result from another.
        repo: The repository it is about.
        is_push: Whether it commits.
        prepare: Makes the repository what it is to be before each trial.
        accepted: The results that are right.
        branch: That it commits to.
        fills_cache: Whether ``prepare`` fills the cache.
    """

    run: Callable[[], Any]
    repo: str
    is_push: bool = False
    prepare: Callable[[], None] = lambda: None
    accepted: set[Any] = field(default_factory=set)
    branch: str = "main"
    fills_cache: bool = False

    @property
    def reads(self) -> bool:
        """Whether it only reads, and with a cache that is empty at first."""
        return not self.is_push and not self.fills_cache


class Trials:
    """Repositories, operations and what came of them.

    Args:
        hub: The loopback Hub that ``HF_ENDPOINT`` names.
        place: A folder for files.
        names: Of the operations to prepare; all by default.
    """

    def __init__(self, hub: Any, place: Path, names: list[str] | None = None) -> None:
        sys.path[:0] = [str(TESTS), str(TESTS / "fuzzing")]
        import datasets
        from honest import posteriors, save, save_base
        from huggingface_hub import HfApi, constants

        constants.HF_HUB_DOWNLOAD_TIMEOUT = constants.HF_HUB_ETAG_TIMEOUT = PAUSE / 2
        self.hub, self.place, self.cache = hub.hub, place, Path(constants.HF_HUB_CACHE)
        self.datasets = Path(datasets.config.HF_DATASETS_CACHE)
        datasets.config.HF_UPDATE_DOWNLOAD_COUNTS = False  # by a request to another server
        self.moves: dict[str, tuple[str, str]] = {}
        self.token, self.hub.pause = os.environ["HF_TOKEN"], PAUSE
        base = save_base(place / "base")
        HfApi().create_repo("user/faulty-base", exist_ok=True)
        HfApi().upload_folder(repo_id="user/faulty-base", folder_path=base)
        made = posteriors(base)
        self.first, self.second = (
            _on_hub(made[kind], "user/faulty-base", shift) for kind, shift in (("plain", 0.0), ("swag", 0.1))
        )
        self.folder = save(self.first, place / "folder", "plain", base)
        (self.folder / "README.md").unlink()
        operations = self._operations(save(self.second, place / "second", "swag", base))
        self.operations = {name: each for name, each in operations.items() if names is None or name in names}
        for operation in self.operations.values():
            self._clear_cache()
            operation.prepare()
            operation.accepted.add(operation.run())
            if operation.repo in self.moves:
                self._move(operation)
                self._clear_cache()
                operation.accepted.add(operation.run())
                self._move_back()

    def _operations(self, second: Path) -> dict[str, Operation]:
        from huggingface_hub import HfApi
        from transformers import pipeline

        from hub_cards import build_card, publish_card
        from swag_trainer import load_posterior, posterior_from_checkpoints
        from swag_trainer.cli.main import main
        from swag_trainer.cli.text_data import read_text
        from swag_trainer.cli.train import Options as TrainOptions

        api = HfApi()
        api.create_repo("user/pulled", exist_ok=True)
        commits = [api.upload_folder(repo_id="user/pulled", folder_path=folder).oid for folder in (second, self.folder)]
        self.moves["user/pulled"] = (commits[1], commits[0])
        api.create_repo("user/texts", repo_type="dataset", exist_ok=True)
        stale, *commits_of_texts = (self._commit_texts(number) for number in range(3))
        self.moves[_TEXTS] = (commits_of_texts[1], commits_of_texts[0])
        card = build_card(self.first, repo_id="user/card")

        def command(*argv: str) -> Any:
            with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
                code = main(list(argv))
            if code:
                raise CommandFailedError(err.getvalue())
            return out.getvalue() if argv[0] != "push" else None

        def existing(repo: str, readme: str | None = None) -> Callable[[], None]:
            def prepare() -> None:
                api.create_repo(repo)
                if readme is not None:
                    api.upload_file(path_or_fileobj=readme.encode(), path_in_repo="README.md", repo_id=repo)

            return prepare

        def texts() -> Any:
            read = read_text(TrainOptions(model="x", dataset="user/texts", output="x"), "train")
            return read.revision, *read.texts, *read.labels

        def with_a_stale_cache() -> None:
            self.hub.repos[_TEXTS].branches["main"] = stale
            texts()
            self._move_back()

        def predicted() -> Any:
            classify = pipeline("swag-text-classification", model="user/pulled", device="cpu", num_samples=2)
            return tuple(row["score"] for row in classify(["good film", "bad"]))

        pushed = {"commit_message": TITLE}
        operations = {
            "push": Operation(lambda: self.first.push_to_hub("user/push", card="# Card", **pushed) and None, "user/push", True),
            "push to a branch": Operation(
                lambda: self.first.push_to_hub("user/branch", revision="side", **pushed) and None,
                "user/branch",
                True,
                existing("user/branch"),
                branch="side",
            ),
            "card": Operation(
                lambda: publish_card("user/card", card, files={"a.txt": b"a"}, **pushed) and None,
                "user/card",
                True,
                existing("user/card", "---\nlicense: mit\n---\n# Theirs\n"),
            ),
            "swag-trainer push": Operation(
                lambda: command("push", str(self.folder), "--repo", "user/cli", "--message", TITLE), "user/cli", True
            ),
            "load_posterior": Operation(lambda: load_posterior("user/pulled").digest, "user/pulled"),
            "pipeline": Operation(predicted, "user/pulled"),
            "swag-trainer predict": Operation(
                lambda: command("predict", "user/pulled", "good film", "bad", "--num-samples", "2", "--device", "cpu"),
                "user/pulled",
            ),
            "data set": Operation(texts, _TEXTS),
            "data set, another commit in the cache": Operation(texts, _TEXTS, prepare=with_a_stale_cache, fills_cache=True),
            "swag-trainer inspect": Operation(lambda: command("inspect", "user/pulled"), "user/pulled"),
            "checkpoints": Operation(
                lambda: posterior_from_checkpoints("user/pulled", revisions=commits).digest, "user/pulled"
            ),
        }
        return operations

    def requests_of(self, name: str) -> list[tuple[str, str]]:
        """Return method and path of each request that an operation makes."""
        asked: list[tuple[str, str]] = []
        self._begin(self.operations[name])
        self.hub.intercept = lambda method, path: asked.append((method, path))
        self.operations[name].run()
        self.hub.intercept = lambda method, path: None
        return asked

    def run(self, name: str, fault: str, number: int, expected: int) -> str:
        """Run an operation with a fault at one of its requests; return "passed", "retried", "refused" or "WRONG: ..."."""
        operation = self.operations[name]
        self._begin(operation)
        asked = self._inject(operation, fault, number)
        error = None
        with _everything_logged() as log, _quick(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                result = operation.run()
            except BaseException as caught:
                error = caught
        self.hub.intercept = lambda method, path: None
        from swag_trainer import SwagError

        text = "" if error is None else "".join(traceback.format_exception(error))
        problem = None
        if self.token in text + log.getvalue() + "".join(path for _, path, _ in self.hub.log):
            problem = "the token is in an error, a log or an address"
        elif error is not None and not isinstance(error, (SwagError, CommandFailedError)):
            problem = f"{type(error).__name__}: {str(error)[:200]}"
        elif isinstance(error, CommandFailedError) and "--debug shows" in str(error):
            problem = str(error)[:300]
        elif error is None and result not in operation.accepted:
            problem = "another result"
        elif operation.is_push:
            problem = self._wrong_commits(operation, error)
        self._move_back()
        if problem is not None:
            return f"WRONG: {problem}"
        return "refused" if error is not None else "retried" if len(asked) > expected else "passed"

    def run_with_cache(self, name: str, state: str) -> str:
        """Load with a cache in some state; return "passed", "refused" or "WRONG: ..."."""
        import datasets
        from huggingface_hub import constants

        from swag_trainer import SwagError

        operation, files = self.operations[name], resource.getrlimit(resource.RLIMIT_FSIZE)
        self._begin(operation)
        if state == "offline, all in the cache":
            operation.run()
            self.hub.log.clear()
        if state == "not to be written":
            self._clear_cache()
            self.cache.parent.mkdir(parents=True, exist_ok=True)
            self.cache.write_text("a file where the folder should be: root, who may run this, can write into every folder")
        if state == "full":
            resource.setrlimit(resource.RLIMIT_FSIZE, (512, files[1]))
        constants.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = state.startswith("offline")
        try:
            result, error = operation.run(), None
        except (SwagError, CommandFailedError) as caught:
            result, error = None, caught
        except Exception as caught:
            return f"WRONG: {type(caught).__name__}: {str(caught)[:200]}"
        finally:
            constants.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = False
            resource.setrlimit(resource.RLIMIT_FSIZE, files)
            self.cache.unlink() if self.cache.is_file() else None
        if "--debug shows" in str(error) or (error is None and result not in operation.accepted):
            return f"WRONG: {error or 'another result'}"
        if state.startswith("offline") and self.hub.log:
            return f"WRONG: {len(self.hub.log)} requests"
        if (error is None) != (state == "offline, all in the cache"):
            return f"WRONG: {error or 'it was loaded'}"
        return "passed" if error is None else "refused"

    def _wrong_commits(self, operation: Operation, error: BaseException | None) -> str | None:
        repo = self.hub.repos.get(operation.repo)
        ours, sha = [], None if repo is None else repo.branches.get(operation.branch)
        while sha is not None:
            ours += [sha] if repo.commits[sha]["title"] == TITLE else []
            sha = repo.commits[sha]["parent"]
        if len(ours) > 1:
            return f"{len(ours)} commits"
        if error is None and not ours:
            return "no commit, and no error"
        if error is not None and ours and "cannot be determined" not in str(error):
            return f"one commit, and the error {str(error)[:300]}"
        return None

    def _inject(self, operation: Operation, fault: str, number: int) -> list[tuple[str, str]]:
        kind, _, how = fault.partition(" ")
        asked: list[tuple[str, str]] = []
        reached: list[tuple[str, str]] = []

        def intercept(method: str, path: str) -> Any:
            asked.append((method, path))
            is_at = len(asked) - 1 == number
            if is_at:
                reached.append((method, path))
            if not is_at and not (how == "always" and (method, path) in reached):
                return None
            if kind == "moved":
                self._move(operation)
                return None
            return _STATUSES.get(kind, kind)

        self.hub.intercept = intercept
        return asked

    def _move(self, operation: Operation) -> None:
        """Let another commit land on the branch."""
        repo = self.hub.repos.get(operation.repo)
        if operation.repo in self.moves:
            repo.branches["main"] = self.moves[operation.repo][1]
        elif repo is not None and operation.branch in repo.branches:
            parent = repo.branches[operation.branch]
            repo.commit(operation.branch, {}, "Theirs", repo.commits[parent]["files"], parent=parent)

    def _move_back(self) -> None:
        for repo, (commit, _) in self.moves.items():
            self.hub.repos[repo].branches["main"] = commit

    def _commit_texts(self, number: int) -> str:
        """Commit other texts to the data set, whose card says where the training split lies."""
        from huggingface_hub import CommitOperationAdd, HfApi

        rows = "".join(f'{{"text": "film {number} {row}", "label": "{row % 2}"}}\n' for row in range(40))
        files = {
            "README.md": "---\nconfigs:\n- config_name: default\n  data_files:\n  - split: train\n    path: data/one.jsonl\n---\n",
            "data/one.jsonl": rows,
            "data/two.jsonl": '{"text": "not of the split", "label": "0"}\n',
        }
        operations = [CommitOperationAdd(name, content.encode()) for name, content in files.items()]
        return HfApi().create_commit("user/texts", operations, commit_message=TITLE, repo_type="dataset").oid

    def _begin(self, operation: Operation) -> None:
        if operation.is_push:
            self.hub.repos.pop(operation.repo, None)
        self.hub.log.clear()
        self._clear_cache()
        operation.prepare()

    def _clear_cache(self) -> None:
        from huggingface_hub import HfFileSystem

        for cache in (self.cache, self.datasets):
            shutil.rmtree(cache, ignore_errors=True)
        HfFileSystem.clear_instance_cache()


class CommandFailedError(Exception):
    """A command ended with an exit code other than 0; the message is what it wrote."""


def _on_hub(posterior: Any, base: str, shift: float) -> Any:
    """Return a posterior whose adapter names a repository as its base, and has other weights."""
    from dataclasses import replace

    shifted = posterior.adapter.with_weights({key: weight + shift for key, weight in posterior.adapter.tensors.items()})
    adapter = replace(shifted, config={**posterior.adapter.config, "base_model_name_or_path": base})
    return replace(posterior, adapter=adapter, record=replace(posterior.record, base_model=base))


@contextlib.contextmanager
def _everything_logged() -> Iterator[io.StringIO]:
    """Collect what all loggers say, at every level."""
    log, root = io.StringIO(), logging.getLogger()
    handler, level = logging.StreamHandler(log), root.level
    quiet = {name: logging.getLogger(name).level for name in ("httpx", "httpcore", "httpx2", "httpcore2", "huggingface_hub")}
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    for name in quiet:
        logging.getLogger(name).setLevel(logging.DEBUG)
    try:
        yield log
    finally:
        root.removeHandler(handler)
        root.setLevel(level)
        for name, before in quiet.items():
            logging.getLogger(name).setLevel(before)


@contextlib.contextmanager
def _quick() -> Iterator[None]:
    """Let clients try again at once, without the pauses that they make."""
    import time

    from huggingface_hub.utils import _http

    from swag_trainer import hub, retries

    modules = (hub, retries, _http)
    for module in modules:
        module.time = SimpleNamespace(sleep=lambda seconds: None, time=time.time, monotonic=time.monotonic)
    try:
        yield
    finally:
        for module in modules:
            module.time = time


def table(trials: Trials, names: list[str], faults: list[str], show: Callable[[str], None]) -> list[str]:
    """Run everything, show a Markdown table of outcomes by fault and operation, and return what is wrong."""
    requests = {name: trials.requests_of(name) for name in names}
    show("| fault | " + " | ".join(f"{name} ({len(asked)} requests)" for name, asked in requests.items()) + " |")
    show("|---|" + "---|" * len(names))
    wrong, total = [], Counter()
    for fault in faults:
        cells = []
        for name, asked in requests.items():
            outcomes: Counter[str] = Counter()
            for number, (method, path) in enumerate(asked):
                outcome = trials.run(name, fault, number, len(asked))
                if outcome.startswith("WRONG"):
                    wrong.append(f"{name}, {fault} at request {number} ({method} {path[:80]}): {outcome}")
                outcomes[outcome.partition(":")[0]] += 1
            total += outcomes
            cells.append(", ".join(f"{count} {outcome}" for outcome, count in sorted(outcomes.items())))
        show(f"| {fault} | " + " | ".join(cells) + " |")
    for state in CACHES:
        found = {name: trials.run_with_cache(name, state) if trials.operations[name].reads else "" for name in names}
        wrong += [f"{name}, cache {state}: {outcome}" for name, outcome in found.items() if outcome.startswith("WRONG")]
        show(f"| cache: {state} | " + " | ".join(outcome.partition(":")[0] for outcome in found.values()) + " |")
    show(
        f"\n{sum(total.values())} requests with a fault: "
        + ", ".join(f"{count} {name}" for name, count in sorted(total.items()))
    )
    return wrong


def main() -> int:
    from minihub import MiniHub

    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--operation", nargs="+", default=None)
    parser.add_argument("--fault", nargs="+", choices=FAULTS, default=FAULTS)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="hub-faults-") as place, MiniHub(tokens={"hf_NeverToBeSeen": "user"}) as hub:
        os.environ |= {"HF_ENDPOINT": hub.endpoint, "HF_HOME": f"{place}/home", "HF_TOKEN": "hf_NeverToBeSeen"}
        os.environ |= {"HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
        os.environ |= {"TOKENIZERS_PARALLELISM": "false"}
        trials = Trials(hub, Path(place))
        wrong = table(
            trials, arguments.operation or list(trials.operations), arguments.fault, lambda line: print(line, flush=True)
        )
        kept = [path for path in Path(place).rglob("*") if path.is_file() and trials.token.encode() in path.read_bytes()]
        wrong += [f"the token is in the file {path}" for path in kept]
    print(*wrong, sep="\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
