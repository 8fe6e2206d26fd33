"""One process of `swag-trainer train --members`: see test_train_members.py."""

from torchrun import work

from swag_trainer.cli.main import main


def train(folder, setup):
    return main(["train", *setup["options"], "--output", str(folder / "run")])


if __name__ == "__main__":
    work({"train": train})
