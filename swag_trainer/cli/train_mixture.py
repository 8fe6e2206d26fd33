"""Train the members of a mixture one after the other, or some in each process of a launch, and save the mixture."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TextIO

from swag_trainer.cli.files import prepared_outputs, write_files
from swag_trainer.cli.member_processes import working_apart
from swag_trainer.cli.mix import mix_into
from swag_trainer.cli.training_options import TrainOptions
from swag_trainer.cli.unfinished_run import RUN_FILE, folder_of, mark_finished, plan
from swag_trainer.errors import SwagError
from swag_trainer.posterior.folder import POSTERIOR_FILE
from swag_trainer.posterior.mixture import PosteriorMixture

_PLANNED, _TRAINED = "planned", "trained"


def train_mixture(
    options: TrainOptions, out: TextIO, *, train: Callable[[TrainOptions, Mapping[int, Path], TextIO], None]
) -> None:
    """Train ``--members`` members in folders below ``--output``, and save their mixture in ``--output``.

    Members that are finished are not trained again with ``--resume``.

    Args:
        options: Of `train`.
        out: For results.
        train: Trains several seeds, each in its folder.

    Raises:
        SwagError: A member cannot be trained, also in another process, or the folder holds something else.
        ResumableInterrupt: Ctrl-C was pressed, and the run is saved.
    """
    output = Path(options.output)
    folders = {seed: folder_of(seed, options.output) for seed in options.run_seeds}
    with working_apart() as processes, contextlib.ExitStack() as prepared:
        if processes.index == 0:
            with processes.announced(_PLANNED):
                prepared.enter_context(_planned(options, output, list(folders.values())))
        processes.wait_for(_PLANNED, [0])
        if _is_finished(output):
            sys.stderr.write(f"{output}: finished already.\n")
            return
        own = {seed: folders[seed] for seed in processes.own(list(folders))}
        with processes.announced(_TRAINED):
            train(options, own, out)
        if processes.index == 0:
            processes.wait_for(_TRAINED, range(processes.count))
            mix_into(output, list(map(str, folders.values())), out)
            mark_finished(output)


@contextlib.contextmanager
def _planned(options: TrainOptions, output: Path, members: list[Path]) -> Iterator[None]:
    """Check that the mixture can be saved, and record that it is not finished, unless it is."""
    settings = options.of_the_run() | {"members": options.members, "seed": options.run_seeds[0]}
    plan({options.run_seeds[0]: output}, settings, resume=options.resume, overwrite=options.overwrite)
    if options.resume and _is_finished(output):
        _check_same_members(output, options)
        yield
        return
    with prepared_outputs(posteriors=[output], overwrite=options.overwrite or options.resume):
        write_files({output / RUN_FILE: json.dumps(settings, indent=1).encode()})
        try:
            yield
        except BaseException:
            if not any(folder.exists() for folder in members):  # nothing was trained
                mark_finished(output)
            raise


def _is_finished(output: Path) -> bool:
    return (output / POSTERIOR_FILE).exists() and not (output / RUN_FILE).exists()


def _check_same_members(output: Path, options: TrainOptions) -> None:
    found = PosteriorMixture.from_pretrained(output)
    if len(found.members) != options.members:
        raise SwagError(
            f"{str(output)!r} holds a mixture of {len(found.members)} members already, and --members is {options.members}. Choose another "
            "--output."
        )
