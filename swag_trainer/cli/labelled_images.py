"""Images with a label each, encoded for a model: a folder for each class, or rows of {"image": path, "label": ...}, here or on the Hub."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from transformers import default_data_collator

from swag_trainer.cli.encoded import Encoded, EncodedTask
from swag_trainer.cli.options import TextOptions
from swag_trainer.cli.split_names import usual_split
from swag_trainer.cli.text_files import SUFFIXES
from swag_trainer.cli.text_sources import Row, missing_column, named_column, refuse
from swag_trainer.errors import SwagError, shortened

IMAGE_SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})
_IMAGE_COLUMNS = ("image", "img", "file_name", "image_path", "path")


class LabelledImages(EncodedTask):
    """Rows with an image, or its path from the folder that their file lies in, and a label.

    A folder without such a file holds a folder of images for each class, or for each split such folders: SPLIT/CLASS/IMAGE.

    Raises:
        SwagError: The model is for several labels or a regression, or ``--labels`` does not name each of its classes once.
    """

    takes_ood: ClassVar[bool] = True
    has_features: ClassVar[bool] = True

    def __init__(self, options: TextOptions, classifier: Any) -> None:
        super().__init__(options, classifier)
        if self.task.link(classifier.model.config) != "softmax":
            raise SwagError(
                "Images are read with one label each, and this model is for several labels or a regression: in Python, swag_trainer.tune and "
                "MonteCarloPredictor take examples as the Trainer takes them."
            )
        self.data_collator = default_data_collator
        self._classes = self.class_numbers()

    def read_source(self, source: str) -> tuple[Mapping[str, Iterable[Row]], str | None]:
        """Read a source of rows, or a folder of images."""
        path = Path(source)
        if not path.is_dir() or any(each.suffix in SUFFIXES for each in path.iterdir()):
            return super().read_source(source)
        return _images_by_split(path), None

    def encode(self, rows: Sequence[Row], *, needs_labels: bool) -> Encoded:
        """Encode images. Their texts are their paths, or where they stand in a data set."""
        encoded, texts = [], []
        for row, label in self._classes.labelled(rows, needs_labels=needs_labels):
            given = self.options.text_column if needs_labels else None  # names a column of --dataset
            column = named_column(row.values, given, _IMAGE_COLUMNS)
            if column is None:
                refuse(row, missing_column(row.values, given, _IMAGE_COLUMNS, "--text-column"))
            image = row.values[column]
            encoded.append({"pixel_values": self._pixels(image, row), **({} if label is None else {"labels": label})})
            texts.append(image if isinstance(image, str) else row.where)
        return Encoded(encoded, texts)

    def _pixels(self, image: Any, row: Row) -> Any:
        """Return what the model takes of an image, or of the file whose path a row holds. Shape (channels, height, width)."""
        if isinstance(image, str):
            if row.folder is None:
                refuse(row, f"it has {shortened(repr(image))} where an image is needed; paths are for files on this machine.")
            if not _is_file(row.folder / image):
                refuse(row, f"there is no image {shortened(repr(image))} in {str(row.folder)!r}.")
            image = str(row.folder / image)
        from PIL.Image import DecompressionBombError  # Pillow is needed where there are images, and nowhere else

        try:
            return self.classifier.preprocess(image)["pixel_values"][0]
        except (OSError, SyntaxError, TypeError, ValueError, DecompressionBombError) as error:
            refuse(row, f"it has no image that can be read. {type(error).__name__}: {shortened(str(error))}")


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # too long for a path, or with a null character
        return False


def _images_by_split(folder: Path) -> dict[str, list[Row]]:
    """Return the images in SPLIT/CLASS, or in CLASS for the training split, or without classes in the folder itself.

    Raises:
        SwagError: There are none, or some lie deeper.
    """
    splits: dict[str, list[Row]] = {}
    for file in _images_below(folder, set()):
        parts = file.relative_to(folder).parts
        if len(parts) > 3:
            raise SwagError(f"{str(file)!r} lies deeper than SPLIT/CLASS/IMAGE in {str(folder)!r}: its class cannot be told.")
        split = usual_split(parts[0]) if len(parts) == 3 else "train"
        label = {"label": parts[-2]} if len(parts) > 1 else {}
        splits.setdefault(split, []).append(Row({"image": "/".join(parts), **label}, f"{str(file)!r}", folder=folder))
    if not splits:
        raise SwagError(
            f"{str(folder)!r} has no images: neither CLASS/IMAGE nor SPLIT/CLASS/IMAGE nor a table of paths and labels."
        )
    return splits


def _images_below(folder: Path, seen: set[Path]) -> Iterator[Path]:
    """Yield the images in a folder and those below it, by name, through links too; names with a dot in front are hidden."""
    if folder.resolve() in seen:
        return
    inner = {*seen, folder.resolve()}
    for path in sorted(folder.iterdir()):
        if path.name.startswith("."):
            continue
        if path.is_dir():
            yield from _images_below(path, inner)
        elif path.suffix.lower() in IMAGE_SUFFIXES:
            yield path
