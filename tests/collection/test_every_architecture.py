"""No architecture that PEFT can train is refused, although transformers renames and fuses weights while it loads them."""

import json
from pathlib import Path

import every_architecture
import pytest

TABLE = Path(__file__).parents[2] / "docs" / "data" / "architectures.json"

# Each renames, splits or fuses weights, or has a part of a name that no checkpoint has.
RENAMED = {
    "sequence classification": ["bert", "jina_embeddings_v3", "mixtral", "nomic_bert", "phimoe"],
    "causal language model": ["granitemoe", "minimax"],
    "image classification": ["beit", "dinov2", "ijepa", "swin", "vit", "vit_msn"],
    "audio classification": ["audio-spectrogram-transformer"],
}
# What takes longest to make and to load.
LONGEST = {"granitemoe"}


@pytest.mark.parametrize(
    ("kind", "model_type"),
    [
        pytest.param(kind, name, marks=pytest.mark.slow if name in LONGEST else ())
        for kind, names in RENAMED.items()
        for name in names
    ],
)
def test_renamed_and_fused_weights_are_no_missing_modules(kind, model_type, tmp_path):
    # Red for: names in memory compared with names in the checkpoint.
    class_name = dict(every_architecture.architectures(kind))[model_type]
    outcome = every_architecture.examine(kind, model_type, class_name, tmp_path)
    assert outcome.outcome == ("collects" if kind == "causal language model" else "predicts"), outcome.reason


@pytest.mark.slow
@pytest.mark.parametrize("kind", every_architecture.KINDS)
def test_no_architecture_is_refused_and_the_table_of_the_documentation_is_up_to_date(kind, tmp_path):
    # Red for: a new way of transformers to rename weights; a table of another version.
    found = every_architecture.table(tmp_path, kind)
    assert {name: row["reason"] for name, row in found.items() if row["outcome"] == "refused"} == {}
    recorded = json.loads(TABLE.read_text(encoding="utf-8"))
    if recorded["versions"]["transformers"] != every_architecture.version("transformers"):
        pytest.skip(f"The table is of transformers {recorded['versions']['transformers']}.")
    columns = ("class", "outcome", "fast_path")
    shown, measured = (
        {name: [row[column] for column in columns] for name, row in rows.items()} for rows in (recorded["kinds"][kind], found)
    )
    assert measured == shown, (
        "python tests/every_architecture.py docs/data/architectures.json, then python tests/support_matrix.py"
    )
