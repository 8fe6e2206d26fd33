"""Targets of the fuzzer: cards, text data, options and results of measurements."""

from __future__ import annotations

import contextlib
import io
import json
import random
import warnings
from collections.abc import Callable

import numpy as np
from case_folders import Place, refused
from harness import WrongValuesError
from honest import TEXTS
from mutations import (
    json_text,
    mutated_bytes,
    mutated_json,
    put_special,
)

from hub_cards import build_card, merge_card
from swag_trainer import SwagError
from swag_trainer.cli.options import parse_options
from swag_trainer.cli.text_data import read_any_text, read_ood, read_text
from swag_trainer.cli.train import Options as TrainOptions
from swag_trainer.evaluation.measurement import Measurement, measure
from swag_trainer.evaluation.predictions import MethodPredictions
from swag_trainer.prediction.sampler import Sampling


class Cards:
    """README.md as it lies in a repository: the metadata and the text that a new card is put into."""

    name = "card"

    def __init__(self, place: Place) -> None:
        self.card = build_card(place.posteriors["swag"], repo_id="user/fuzzed")
        self.text = place.contents["swag"]["README.md"].decode()
        self.allowance = 3 * len(self.text)

    def read_honest(self) -> None:
        merge_card(self.card, self.text)

    def run(self, rng: random.Random) -> str:
        import yaml

        _, head, body = self.text.split("---\n", 2)
        way = rng.randrange(4)
        if way == 0:
            text = mutated_bytes(self.text.encode(), rng).decode("utf-8", "replace")
        elif way == 1:
            lines = head.splitlines()
            lines.insert(
                rng.randrange(len(lines) + 1), rng.choice(["a: &a [*a]", "x: 2026-13-45", "? [a]\n: b", "- x", "\t", "<<: 1"])
            )
            text = "---\n" + "\n".join(lines) + "\n---\n" + body
        else:
            index = [{"name": "x", "results": [{"task": {"type": "t"}, "dataset": {"type": "d", "name": "d"}, "metrics": []}]}]
            metadata = {**yaml.safe_load(head), "license": "mit", "language": ["en"], "model-index": index}
            try:
                head = yaml.safe_dump(mutated_json(metadata, rng))
            except (yaml.YAMLError, RecursionError, ValueError):
                return "refused"
            text = f"---\n{head}---\n{body}"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                merged = merge_card(self.card, text)
            except SwagError as error:
                return refused(error)
        if 'model="user/fuzzed"' not in merged.text or merged.data.library_name != self.card.data.library_name:
            raise WrongValuesError("The merged card lacks what is ours.")
        return "accepted"


class TextData:
    """Files of labelled text that a command is given."""

    name = "data"
    allowance = 0
    _ROWS = [(f"{text} {number}", "no" if number % 2 else "yes") for number in range(12) for text in TEXTS]

    def __init__(self, place: Place) -> None:
        self.place = place
        objects = [{"text": text, "label": label, "split": "train"} for text, label in self._ROWS]
        table = "text,label\n" + "".join(f'"{text}",{label}\n' for text, label in self._ROWS)
        self.honest = {
            "data.csv": table.encode(),
            "data.tsv": table.replace(",", "\t").encode(),
            "data.jsonl": "".join(json.dumps(each) + "\n" for each in objects).encode(),
            "data.json": json.dumps(objects).encode(),
            "data.parquet": b"PAR1" + bytes(40) + b"PAR1",
        }

    def read_honest(self) -> None:
        for name, data in self.honest.items():
            for read in self._readers(str(self.place.fresh("data", {name: data})), random.Random(0)):
                self._read(read, data)

    def run(self, rng: random.Random) -> str:
        name = rng.choice(list(self.honest))
        data = self.honest[name]
        if name == "data.json" and rng.random() < 0.6:
            data = json_text(mutated_json(json.loads(data), rng), rng)
        elif name == "data.jsonl" and rng.random() < 0.6:
            lines = data.split(b"\n")
            for place in rng.sample(range(len(lines) - 1), 3):
                lines[place] = json_text(mutated_json(json.loads(lines[place]), rng), rng)
            data = b"\n".join(lines)
        else:
            data = mutated_bytes(data, rng, self.honest["data.json"])
            if rng.random() < 0.3:
                data = data.replace(b",", rng.choice([b",", b'"', b"\0", b"\r", b";", b"\xff"]), rng.choice([1, 3, -1]))
        folder = self.place.fresh("data", {name: data})
        if rng.random() < 0.05:
            put_special(folder / name, rng, smallest=10 * 1024**3)  # data of gigabytes may be meant
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            outcomes = {self._read(read, data) for read in self._readers(str(rng.choice([folder, folder / name])), rng)}
        return "accepted" if "accepted" in outcomes else "refused"

    @staticmethod
    def _readers(source: str, rng: random.Random) -> list[Callable[[], list[str]]]:
        column = rng.choice([None, None, "text", "x"])
        return [
            lambda: (
                read_text(
                    TrainOptions(model="x", dataset=source, output="x", text_column=column),
                    rng.choice(["train", "validation", "test"]),
                ).texts
            ),
            lambda: read_ood(source, "test").ood,
            lambda: [example.text for example in read_any_text(source, None, column) if example.problem is None],
        ]

    @staticmethod
    def _read(read: Callable[[], list[str]], data: bytes) -> str:
        try:
            texts = read()
        except SwagError as error:
            return refused(error)
        whole = data.decode("utf-8", "replace")
        for text in texts:
            plain = text.replace('"', '""')
            if not text.strip() or not any(form in whole for form in (text, plain, json.dumps(text)[1:-1])):
                if "\\" not in whole and "\r" not in text:  # JSON may spell a text in many ways
                    raise WrongValuesError(f"The text {text[:80]!r} is not in the file.")
        return "accepted"


class Options:
    """YAML files of options."""

    name = "options"
    allowance = 0

    def __init__(self, place: Place) -> None:
        self.place = place
        self.settings = {
            "model": "x",
            "dataset": "user/texts",
            "output": "out",
            "steps": 400,
            "learning_rate": 1e-4,
            "snapshots": 8,
            "target_modules": ["query", "value"],
            "overwrite": True,
        }

    def read_honest(self) -> None:
        import yaml

        path = self.place.fresh("options", {"options.yaml": yaml.safe_dump(self.settings).encode()}) / "options.yaml"
        parse_options(TrainOptions, [str(path)], command="train", description=None)

    def run(self, rng: random.Random) -> str:
        import yaml

        way = rng.randrange(4)
        honest = yaml.safe_dump(self.settings).encode()
        if way == 0:
            data = mutated_bytes(honest, rng)
        elif way == 1:
            laughs = ["a0: &a0 [lol, lol, lol, lol, lol, lol, lol, lol, lol]"]
            laughs += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 10)]
            odd = [
                *laughs,
                "dataset: *a9",
                "steps: 2026-13-45",
                "steps: 190:20:30",
                "a: &a [*a]",
                "dataset: &d {x: *d}",
                "? [a]\n: b",
            ]
            odd += [
                "steps: 0o17",
                "target_modules: !!set {a}",
                "target_modules: !!binary x",
                "!!python/name:os.system ''",
                "\t",
                "steps: " + "9" * 5000,
            ]
            chosen = laughs + ["dataset: *a9"] if rng.random() < 0.2 else rng.sample(odd, rng.choice([1, 2, 3]))
            data = honest + "\n".join(chosen).encode()
        else:
            try:
                data = yaml.safe_dump(mutated_json(self.settings, rng)).encode("utf-8", "surrogatepass")
            except (yaml.YAMLError, RecursionError, ValueError):
                data = json_text(mutated_json(self.settings, rng), rng)
        path = self.place.fresh("options", {"options.yaml": data}) / "options.yaml"
        if rng.random() < 0.05:
            put_special(path, rng)
        with contextlib.redirect_stderr(io.StringIO()):
            try:
                parse_options(TrainOptions, [str(path)], command="train", description=None)
            except SwagError as error:
                return refused(error)
            except SystemExit as stop:
                if stop.code != 2:
                    raise
                return "refused"
        return "accepted"


class Results:
    """Files of measurements, which a card is made of."""

    name = "results"
    allowance = 0

    def __init__(self, place: Place) -> None:
        self.place = place
        self.document = json.loads(_measured().to_json())
        self.posterior = place.posteriors["swag"]

    def read_honest(self) -> None:
        path = self.place.fresh("results", {"results.json": json.dumps(self.document).encode()}) / "results.json"
        build_card(self.posterior, Measurement.read(path).to_card(), repo_id="user/fuzzed")

    def run(self, rng: random.Random) -> str:
        honest = json.dumps(self.document).encode()
        data = mutated_bytes(honest, rng) if rng.random() < 0.2 else json_text(mutated_json(self.document, rng), rng)
        path = self.place.fresh("results", {"results.json": data}) / "results.json"
        if rng.random() < 0.05:
            put_special(path, rng)
        try:
            measurement = Measurement.read(path)
            build_card(self.posterior, measurement.to_card(), repo_id="user/fuzzed")
        except (SwagError, ValueError) as error:  # of to_card(): its docstring promises ValueError
            return refused(error)
        return "accepted"


def _measured() -> Measurement:
    """Measure two methods on few made-up predictions."""
    generator = np.random.default_rng(0)
    labels = generator.integers(3, size=20)
    methods = {name: MethodPredictions(generator.dirichlet(np.ones(3), size=20)) for name in ("MAP", "SWAG")}
    return measure(methods, labels, dataset="me/texts", split="test", num_resamples=20, sampling=Sampling(num_samples=2))
