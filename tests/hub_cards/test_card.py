import ast
from collections import Counter
from dataclasses import dataclass, replace

import pytest
import torch
import yaml
from huggingface_hub import HfApi, ModelCard, metadata_load
from huggingface_hub.repocard_data import model_index_to_eval_results
from markdown_it import MarkdownIt
from matplotlib.figure import Figure
from measured import some_results
from minihub import LoopbackSession

from hub_cards import build_card, merge_card, publish_card, trajectory_plot
from swag_trainer import PointPosterior, SwagError, SwagPosterior, WeightPosterior
from swag_trainer.evaluation.comparison import Comparison
from swag_trainer.metrics import Interval as Limits
from swag_trainer.posterior.base import Draws
from swag_trainer.posterior.gaussian import LowRankGaussian
from swag_trainer.posterior.layout import WeightLayout
from swag_trainer.posterior.record import PosteriorRecord
from swag_trainer.posterior.saved_adapter import SavedAdapter
from swag_trainer.posterior.swag import SwagRecord
from swag_trainer.posterior.tuning import CalibratedThreshold, ConformalQuantile, Tuning

HOSTILE = [
    "x | y\n---\nlicense: evil",
    "---\nlicense: evil\n---\n",
    "<script>alert(1)</script>",
    "<!-- hidden",
    "![](http://x)",
    "[click](javascript:alert(1))",
    "<http://evil.example>",
    "see http://evil.example or www.evil.example or me@evil.example",
    "{{ 7*7 }}{% for x in ().__class__.__mro__ %}{{ x }}{% endfor %}",
    "` | <b>out of the span</b> | `",
    "\\` **bold** \\|",
    "\n\n# heading\n\n```\nfence",
    "&lt;b&gt; &#91;",
    "$$\\href{http://x}{y}$$",
    "* ~~a~~ _b_",
    "\u202eevil\u2066\u0000\u001b[31m",
    "lone \ud800 surrogate",
]


def some_posterior(*, base_model="FacebookAI/roberta-base", rank=3, adapter=None, **facts):
    weights = {"lora_A.weight": torch.tensor([[0.1, 0.2, 0.3]]), "lora_B.weight": torch.tensor([[0.5], [0.7]])}
    layout = WeightLayout.of(weights)
    gaussian = LowRankGaussian(layout.flatten(weights), torch.ones(layout.size), torch.zeros(rank, layout.size))
    record = {
        "num_collected": 30,
        "schedule": "Every(steps=50, start=0.5)",
        "first_step": 1050,
        "last_step": 2500,
        "first_learning_rate": 2e-4,
        "last_learning_rate": 1.5e-4,
        "scale": 0.5,
        "base_model": base_model,
        "labels": ["negative", "positive"],
        "versions": {"peft": "0.21.2", "torch": "2.6.0"},
    }
    saved = SavedAdapter({"base_model_name_or_path": base_model}, adapter or weights)
    given = record | facts
    own = {name: value for name, value in given.items() if name in PosteriorRecord.field_names()}
    collection = SwagRecord(**{name: value for name, value in given.items() if name not in own})
    return SwagPosterior(layout, gaussian, PosteriorRecord(**own), collection, saved)


def tokens(card):
    """The card's text as a reader of CommonMark with tables sees it, flat."""
    blocks = MarkdownIt("commonmark").enable("table").parse(card.text)
    return [token for block in blocks for token in [block, *(block.children or [])]]


def shown(card):
    """What a reader sees, markup taken away."""
    texts = ("text", "code_inline", "fence", "softbreak")
    return "".join("\n" if token.type == "softbreak" else token.content for token in tokens(card) if token.type in texts)


def tables(card):
    """The rows of each of the card's tables."""
    found = []
    for token, following in zip(tokens(card), tokens(card)[1:], strict=False):
        if token.type == "table_open":
            found.append([])
        elif token.type == "tr_open":
            found[-1].append([])
        elif token.type in ("th_open", "td_open"):
            found[-1][-1].append("".join(child.content for child in following.children))
    return found


def table(card):
    """The rows of the card's only table."""
    (rows,) = tables(card)
    return rows


def test_the_table_holds_every_figure_in_its_row_and_column():
    # Red for: columns in the order of each method's own dictionary, rounding to nothing, methods swapped.
    metrics = {"MAP": {"accuracy": 0.931, "NLL": 0.25}, "SWAG": {"NLL": 0.000012, "accuracy": 0.9254}}
    assert table(build_card(some_posterior(), some_results(metrics=metrics))) == [
        ["method", "accuracy", "NLL"],
        ["MAP", "0.931", "0.25"],
        ["SWAG", "0.9254", "1.2e-05"],
    ]


def test_ood_scores_have_tables_of_their_own_and_what_a_method_lacks_is_a_dash():
    # Red for: the OOD score left out because MAP has none, a score in another's column, one table of twenty columns.
    metrics = {
        "MAP": {"nll": 0.5, "auroc_entropy": 0.7, "auroc_ood_score": None, "fpr95_ood_score": None},
        "SWAG": {"nll": 0.4, "auroc_entropy": 0.8, "auroc_ood_score": 0.9, "fpr95_ood_score": 0.25},
    }
    intervals = {"SWAG": {"auroc_ood_score": (0.85, 0.95)}}
    card = build_card(
        some_posterior(), some_results(metrics=metrics, intervals=intervals, interval_level=0.95, ood="imdb", num_ood=9)
    )
    assert tables(card) == [
        [["method", "NLL"], ["MAP", "0.5"], ["SWAG", "0.4"]],
        [["method", "entropy", "OOD score"], ["MAP", "0.7", "-"], ["SWAG", "0.8", "0.9 (0.85 to 0.95)"]],
        [["method", "OOD score"], ["MAP", "-"], ["SWAG", "0.25"]],
    ]
    text = " ".join(shown(card).split())
    assert "AUROC of detecting out-of-distribution (OOD) examples by:" in text and "FPR at TPR 95 % of" in text


def test_the_card_says_whether_swag_is_better_than_its_strongest_rival_and_at_detecting_ood_examples():
    # Red for: the weakest rival, SWA as a rival, a loss at OOD detection that stays in the file, a name that is markup.
    comparisons = [
        Comparison("SWAG", "SWA", Limits(-0.5, -0.6, -0.4), 872),
        Comparison("SWAG", "MAP, <b>temperature", Limits(0.0213, 0.002, 0.04), 872),
        Comparison("SWAG", "MAP", Limits(0.3, 0.2, 0.4), 872),
        Comparison("SWAG", "MAP", Limits(-0.03, -0.05, -0.01), 872, "auroc_entropy", 100),
    ]
    card = build_card(some_posterior(), some_results(comparisons=comparisons))
    text = " ".join(shown(card).split())
    assert "SWAG is better than MAP + <b>temperature by 0.021 nats [0.002, 0.040] on 872 examples." in text
    assert (
        "SWAG detects out-of-distribution (OOD) examples worse than MAP: the AUROC of its entropy is lower by 0.030 [0.010, 0.050]"
        in text
    )
    assert tables(card)[1] == [
        ["NLL of SWAG against", "lower by", "interval"],
        ["SWA", "-0.5", "-0.6 to -0.4"],
        ["MAP, <b>temperature", "0.0213", "0.002 to 0.04"],
        ["MAP", "0.3", "0.2 to 0.4"],
    ]
    assert "cannot be told apart" not in text and "is better" not in shown(build_card(some_posterior(), some_results()))


def test_the_figures_stand_with_their_circumstances():
    # Red for: a number without the bins, the draws, the data or N it belongs to.
    card = build_card(some_posterior(), some_results())
    text = " ".join(shown(card).split())
    assert "(15 equal-width bins; 30 draws; glue/sst2, validation at 5503434, N = 872)" in text
    assert "seed 7" in text
    text = shown(build_card(some_posterior(), some_results(revision=None)))
    assert "validation, N = 872)" in text


def test_the_metadata_holds_the_figures_of_swag_and_no_other_method():
    # Red for: MAP's calibration published as SWAG's, or figures whose circumstances stay behind.
    card = ModelCard(str(build_card(some_posterior(), some_results(), repo_id="me/sst2-swag")))
    assert card.data.model_name == "sst2-swag"
    found = {entry.metric_name: (entry.metric_type, entry.metric_value) for entry in card.data.eval_results}
    assert found == {"accuracy": ("accuracy", 0.925), "ECE": ("ece", 0.0312)}
    entry = card.data.eval_results[0]
    assert (entry.task_type, entry.dataset_name, entry.dataset_type) == ("text-classification", "glue/sst2", "glue/sst2")
    assert (entry.dataset_split, entry.dataset_revision) == ("validation", "5503434")
    assert entry.dataset_args == {"num_examples": 872}
    assert entry.metric_args == {"method": "SWAG", "num_bins": 15, "num_samples": 30, "seed": 7}


def test_metrics_have_the_ids_that_the_hub_knows_and_their_own_names():
    # Red for: a metric that no page of the Hub explains where there is one, an id for a metric of another definition.
    metrics = {"accuracy": 0.9, "macro_f1": 0.8, "nll": 0.3, "brier": 0.2, "auroc_entropy": 0.7, "auroc_energy": 0.6}
    card = ModelCard(str(build_card(some_posterior(), some_results(dataset="clinc/clinc_oos:plus", metrics={"SWAG": metrics}))))
    ids = {entry.metric_name: entry.metric_type for entry in card.data.eval_results}
    assert ids == {"accuracy": "accuracy", "macro_f1": "f1", "nll": "nll", "brier": "brier"} | dict.fromkeys(
        ("auroc_entropy", "auroc_energy"), "roc_auc"
    )
    assert card.data.metrics == ["accuracy", "f1", "roc_auc"]
    assert {(entry.dataset_type, entry.dataset_config) for entry in card.data.eval_results} == {("clinc/clinc_oos", "plus")}


@pytest.mark.parametrize("changes", [{"revision": None}, {"dataset": "my reviews.csv"}, {"dataset": "a/b/c"}])
def test_metrics_of_data_that_is_not_on_the_hub_stand_in_the_table_only(changes):
    # Red for: a link to a data set that does not exist; an entry without a type, which the Hub's clients refuse to load.
    card = ModelCard(str(build_card(some_posterior(), some_results(**changes), repo_id="me/x")))
    assert "model-index" not in card.data.to_dict() and card.data.metrics == ["accuracy"]
    assert table(card)[2][0] == "SWAG"


def test_license_language_and_data_sets_are_those_that_were_given_or_are_known():
    # Red for: an argument that is dropped, the data set of the tuning left out, or a local one published as an id.
    card = build_card(tuned(some_tuning(revision="55")), license="apache-2.0", language="en", datasets=["me/reviews"])
    data = ModelCard(str(card)).data
    assert (data.license, data.language, data.datasets) == ("apache-2.0", ["en"], ["me/reviews", "glue/sst2"])
    assert "datasets" not in build_card(tuned(some_tuning())).data.to_dict()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"license": "Apache 2.0"}, "repositories-licenses"),
        ({"language": "English"}, "ISO 639"),
        ({"datasets": ["me/reviews", "/home/me/reviews.csv"]}, "/home/me/reviews.csv"),
    ],
)
def test_what_the_hub_would_refuse_is_refused_before_the_push(given, said):
    # Red for: a push that ends after minutes, or a filter of the Hub that never finds the card.
    with pytest.raises(ValueError, match=said):
        build_card(some_posterior(), **given)


def test_the_metadata_of_a_card_without_figures_is_exactly_this():
    # Red for: the bare tag "swag", an empty model-index, a licence or a language that nobody stated.
    assert ModelCard(str(build_card(some_posterior()))).data.to_dict() == {
        "library_name": "peft",
        "base_model": "FacebookAI/roberta-base",
        "base_model_relation": "adapter",
        "pipeline_tag": "text-classification",
        "tags": ["swag-lora", "lora", "uncertainty"],
    }


def test_a_card_whose_results_lack_swag_has_its_table_but_no_model_index():
    # Red for: another method's figures in the metadata, or a crash for want of a "SWAG".
    card = build_card(some_posterior(), some_results(metrics={"MAP": {"ECE": 0.05}}))
    assert table(card)[1:] == [["MAP", "0.05"]]
    assert "model-index" not in card.data.to_dict()


def test_a_card_without_results_says_that_nothing_was_measured():
    # Red for: an empty table, or a sentence about a measurement that never was.
    text = shown(build_card(some_posterior()))
    assert "No metrics are on record." in text
    assert "has not been measured" in text
    assert "was measured on" not in text


def test_a_card_says_that_nothing_is_promised_out_of_distribution():
    # Red for: the sentence lost in one of the two branches.
    for results in (None, some_results()):
        assert "no guarantee for out-of-distribution text" in shown(build_card(some_posterior(), results))


def test_the_record_of_the_collection_is_printed():
    # Red for: first and last mixed up, the capacity printed as the rank, a fact left out.
    posterior = some_posterior(num_skipped=2, base_revision="e2da8e2f", initialisation="pissa")
    lines = shown(build_card(posterior)).replace("\n", " ")
    for fact in (
        "the adapter's 5 trained weights",
        "FacebookAI/roberta-base at revision e2da8e2f",
        "pissa",
        "Snapshots: 30, from step 1050 to step 2500",
        "not finite: 2",
        "0.0002 at the first snapshot, 0.00015 at the last",
        "Every(steps=50, start=0.5)",
        "Rank: 3 deviations kept",
        "Scale of the covariance: 0.5; relative energy",
        "peft 0.21.2, torch 2.6.0",
        "negative, positive",
    ):
        assert fact in lines


def test_what_is_not_on_record_is_said_to_be_not_on_record():
    # Red for: "None" printed as if it were a fact.
    posterior = some_posterior(
        base_model=None, rank=0, first_learning_rate=None, last_learning_rate=None, labels=None, versions={}, schedule=""
    )
    text = shown(build_card(posterior))
    assert "None " not in text.replace("No metrics are on record", "")
    assert "Rank: 0 (diagonal covariance)" in text
    assert "Learning rate: not on record" in text
    assert "Schedule: not on record" in text
    assert "names of the labels are not on record" in text


@pytest.mark.parametrize("path", ["/home/alice/models/base", "./alice", "out/alice/run", r"C:\alice", "x\nlicense: alice"])
def test_a_base_model_that_is_no_hub_id_is_named_nowhere(path):
    # Red for: the layout of somebody's disk in the text or in the metadata.
    card = build_card(some_posterior(base_model=path))
    assert "alice" not in str(card)
    assert not {"base_model", "base_model_relation"} & set(card.data.to_dict())


def test_a_folder_that_looks_like_a_hub_id_is_a_folder_unless_a_commit_says_otherwise(tmp_path, monkeypatch):
    # Red for: only the spelling looked at; the Hub would then show the card under a stranger's model.
    monkeypatch.chdir(tmp_path)
    (tmp_path / "roberta-base").mkdir()
    assert build_card(some_posterior(base_model="roberta-base")).data.base_model is None
    assert build_card(some_posterior(base_model="roberta-base", base_revision="e2da8e2f")).data.base_model == "roberta-base"


@pytest.mark.parametrize("text", HOSTILE)
def test_no_text_from_outside_becomes_markup(text):
    # Red for: any value printed raw, a span that a backtick leaves, a cell that a pipe ends, a template made from data.
    def card(word):
        posterior = some_posterior(
            labels=[word, word], schedule=word, initialisation=word, base_revision=word, versions={word: word}
        )
        return build_card(
            posterior, some_results(dataset=word, split=word, revision=word, metrics={word: {word: 0.5}, "SWAG": {word: 0.5}})
        )

    hostile, harmless = card(text), card("word")
    structure = [
        Counter(token.type for token in tokens(one) if token.type not in ("text", "code_inline")) for one in (hostile, harmless)
    ]
    assert structure[0] == structure[1]
    # No link is looked for in code; in running text a renderer may make one of an address.
    running = [token.content for token in tokens(hostile) if token.type == "text"]
    assert not any(sign in content for content in running for sign in ("://", "www.", "@", "$"))
    assert not any(character in str(hostile) for character in "\u202e\u2066\u0000\u001b\ud800")
    assert len(table(hostile)) == 3
    assert {len(row) for row in table(hostile)} == {2}


@pytest.mark.parametrize("text", HOSTILE)
def test_metadata_says_what_it_says_whatever_a_data_set_or_label_is_called(text):
    # Red for: YAML put together from strings.
    results = some_results(split=text, metrics={"SWAG": {text: 0.5}})
    written = str(build_card(some_posterior(labels=[text]), results, repo_id="me/x")).encode().decode()
    expected = build_card(some_posterior(), some_results(metrics={"SWAG": {"other": 0.5}}), repo_id="me/x").data.to_dict()
    found = ModelCard(written).data.to_dict()
    dataset, metric = found["model-index"][0]["results"][0]["dataset"], found["model-index"][0]["results"][0]["metrics"][0]
    plain = " ".join("".join(c for c in text if c not in "\u202e\u2066\u0000\u001b").replace("\ud800", "\ufffd").split())
    assert (dataset["split"], metric["name"]) == (plain, plain)
    dataset |= {"split": "validation"}
    metric |= {"name": "other", "type": "other"}
    assert found == expected


@pytest.mark.parametrize("text", ["a | b", "it`s", "<b>", "100 % {{ x }}", "[a](b)", "f1_macro", "a\\|b"])
def test_hostile_looking_text_is_shown_letter_for_letter(text):
    # Red for: an escape that shows on the page, or characters thrown away that need not be.
    card = build_card(some_posterior(labels=[text]), some_results(metrics={"SWAG": {text: 0.5}}))
    assert f"order of the logits: {text}" in shown(card)
    assert table(card)[0] == ["method", text]


def test_long_texts_are_cut_and_long_lists_are_counted():
    # Red for: a label of a megabyte, or a million labels, in README.md.
    card = build_card(some_posterior(labels=["x" * 10**6] + [f"label {index}" for index in range(999)]))
    assert "x" * 199 + "…" in str(card)
    assert "x" * 200 not in str(card)
    assert "label 98 and 900 more" in shown(card)
    assert len(str(card)) < 10_000


def test_the_example_is_python_that_asks_for_this_repository_as_it_was_measured():
    # Red for: another repository, task, number of draws or seed than the figures are of.
    card = build_card(some_posterior(), some_results(), repo_id="me/sst2-swag")
    code = next(token.content for token in tokens(card) if token.type == "fence")
    names = [alias.name for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Import) for alias in node.names]
    call = next(n for n in ast.walk(ast.parse(code)) if isinstance(n, ast.Call) and ast.unparse(n.func) == "pipeline")
    assert names == ["swag_trainer"]
    assert ast.unparse(call) == "pipeline('swag-text-classification', model='me/sst2-swag', num_samples=30, seed=7)"


def test_the_example_for_plain_peft_writes_the_labels_out_and_nothing_in_them_ends_the_code():
    # Red for: labels that end the fence, a string or a comment; label2id in another order; more of them than a card can hold.
    labels = ['say "no"', "```\nimport os", "<!-- swag_trainer card ends -->", "Grün\u202e"]
    card = build_card(some_posterior(labels=labels), repo_id="me/sst2-swag")
    _, code = (token.content for token in tokens(card) if token.type == "fence")
    call = next(
        n for n in ast.walk(ast.parse(code)) if isinstance(n, ast.Call) and ast.unparse(n.func).endswith("from_pretrained")
    )
    given = {keyword.arg: ast.literal_eval(keyword.value) for keyword in call.keywords if keyword.arg != "revision"}
    assert given["num_labels"] == 4 and given["id2label"] == dict(enumerate(labels))
    assert given["label2id"] == {label: index for index, label in enumerate(labels)}
    many = build_card(some_posterior(labels=[f"label {index}" for index in range(101)]))
    assert "num_labels=101" in str(many) and "id2label={" not in str(many)


def test_the_card_explains_its_metrics_and_methods_in_plain_words():
    # Red for: "MAP", "SWA" and "ece" without a word for readers who know none of them; an explanation of what is not in the table.
    metrics = {
        "MAP": {"accuracy": 0.9, "ece": 0.1},
        "MAP, temperature": {"accuracy": 0.9, "ece": 0.1},
        "other": {"accuracy": 1.0, "ece": 0.0},
    }
    text = shown(build_card(some_posterior(), some_results(metrics=metrics)))
    assert "MAP: one pass with the weights that training ended with" in text and "temperature: the same as MAP" in text
    assert "ECE: expected calibration error" in text and "SWA: " not in text and "other: " not in text


def test_the_card_says_what_plain_peft_gets():
    # Red for: the mean promised although SwagCallback(final_weights="trained") left other weights in the adapter.
    mean, other = (
        some_posterior(),
        some_posterior(adapter={"lora_A.weight": torch.zeros(1, 3), "lora_B.weight": torch.zeros(2, 1)}),
    )
    assert "gets the posterior mean" in shown(build_card(mean))
    assert "gets the posterior mean" not in shown(build_card(other))
    assert "not the\nposterior mean" in shown(build_card(other))


def test_an_adapter_in_half_precision_holds_the_mean_too():
    # Red for: the rounded mean compared with the exact one.
    posterior = some_posterior()
    rounded = {key: tensor.bfloat16() for key, tensor in posterior.adapter.tensors.items()}
    posterior = replace(posterior, adapter=SavedAdapter(posterior.adapter.config, rounded))
    assert "gets the posterior mean" in shown(build_card(posterior))


def test_plots_are_relative_links_to_files_of_the_repository():
    # Red for: plots left out, absolute, or in another order.
    card = build_card(some_posterior(), plots=["reliability.png", "plots/second.png"])
    assert [token.attrs["src"] for token in tokens(card) if token.type == "image"] == ["reliability.png", "plots/second.png"]


@pytest.mark.parametrize("plot", ["/tmp/a.png", "../a.png", "http://x/a.png", "a.svg", "a b.png", "a)](x.png", "a.png\n", ""])
def test_a_plot_that_is_no_file_of_the_repository_is_refused(plot):
    # Red for: a link that leaves the repository or its brackets.
    with pytest.raises(ValueError, match="path inside the repository"):
        build_card(some_posterior(), plots=[plot])


@pytest.mark.parametrize("repo_id", ['me/x", trust_remote_code=True, y="', "a/b/c", "me/x\n", "", "/tmp/x"])
def test_a_repository_that_is_no_hub_id_is_refused(repo_id):
    # Red for: an id that ends the string in the example.
    with pytest.raises(ValueError, match="id of a repository"):
        build_card(some_posterior(), repo_id=repo_id)


NO_COSTS = {"num_trainings": {}, "fit_seconds": {}, "seconds_per_example": {}}


def full_results(**changes):
    facts = {
        "intervals": {"SWAG": {"ECE": (0.025, 0.0401)}},
        "interval_level": 0.95,
        "num_trainings": {"MAP": 1, "SWAG": 3},
        "fit_seconds": {"SWAG": 2.5},
        "seconds_per_example": {"SWAG": 0.0103},
        "scale": 0.5,
        "temperature": 1.25,
        "ood": "imdb",
        "num_ood": 500,
        "versions": {"torch": "2.13.0", "peft": "0.21.2"},
    }
    return some_results(**facts | changes)


def test_intervals_and_times_stand_beside_the_figures_they_are_of():
    # Red for: low and high swapped, an interval beside the neighbour's figure, a time that was not measured printed as one.
    card = build_card(some_posterior(), full_results())
    assert table(card) == [
        ["method", "accuracy", "ECE", "trainings", "seconds to fit", "seconds per example"],
        ["MAP", "0.931", "0.0512", "1", "-", "not measured"],
        ["SWAG", "0.925", "0.0312 (0.025 to 0.0401)", "3", "2.5", "0.0103"],
    ]
    text = " ".join(shown(card).split())
    assert "intervals of 95 %, by bootstrap over the examples" in text
    assert "Out of distribution: imdb, N = 500." in text
    assert "seed 7, at scale 0.5, their logits divided by the temperature 1.25." in text
    assert "Measured with: peft 0.21.2, torch 2.13.0" in text


def test_what_was_not_measured_is_not_spoken_of():
    # Red for: "None" or an empty bracket for intervals, times, scale, temperature and foreign text that are not there.
    text = shown(build_card(some_posterior(), some_results()))
    for words in ("None", "brackets", "seconds", "at scale", "temperature", "Out of distribution:", "Measured with", "Tuning"):
        assert words not in text


def test_figures_of_another_scale_than_the_posteriors_are_refused():
    # Red for: figures printed beside weights that do not answer like that.
    with pytest.raises(ValueError, match=r"measured at scale 0\.25, the posterior's own is 0\.5"):
        build_card(some_posterior(), full_results(scale=0.25))
    assert build_card(
        some_posterior(),
        full_results(scale=0.25, metrics={"MAP": {"ECE": 0.1}}, intervals={}, interval_level=None, **NO_COSTS),
    )


def test_the_diagnostics_of_the_trajectory_are_printed():
    # Red for: diagnostics that stay in the file, or names with underscores.
    posterior = some_posterior(
        diagnostics={"effective_rank": 8.312, "autocorrelation": 0.6, "drift": 0.2}, acceptance="Adaptive()"
    )
    text = " ".join(shown(build_card(posterior)).split())
    assert "Trajectory of the snapshots: autocorrelation 0.60, drift 0.20, effective rank 8.31." in text
    assert "accepted by: Adaptive()" in text
    assert "no diagnostics are on record" in shown(build_card(some_posterior()))


def some_tuning(**changes):
    thresholds = [
        CalibratedThreshold("risk", 0.01, None, 0.0, None, 0.9),
        CalibratedThreshold("risk", 0.1, 0.8123456789, 0.75, 0.0625, 0.9),
        CalibratedThreshold("coverage", 0.5, 0.9375, 0.5, 0.03125),
    ]
    facts = {"temperature": 1.25, "dataset": "glue/sst2", "split": "validation", "num_examples": 61, "num_calibration": 62}
    figures = {"num_samples": 10, "seed": 3, "nll": 0.375, "baselines": {"SWA": 0.4375}}
    return Tuning(
        **(facts | figures | {"thresholds": thresholds, "conformal": [ConformalQuantile("aps", 0.9, 0.5, 1.75)]} | changes)
    )


def tuned(tuning, **changes):
    posterior = some_posterior(**changes)
    return replace(posterior, record=replace(posterior.record, tuning=tuning))


def test_tuning_is_printed_with_what_it_was_done_on_and_what_came_of_it():
    # Red for: a posterior that was tuned and does not say so, a fact of its tuning left out, one row's figures under another's.
    text = shown(build_card(tuned(some_tuning())))
    for fact in (
        "temperature 1.25 were chosen on 61 examples of glue/sst2, validation",
        "10 draws of seed 3",
        "measured on 62 other examples",
        "SWAG 0.375, SWA 0.4375",
    ):
        assert fact in " ".join(text.split()), fact
    source = str(build_card(tuned(some_tuning())))
    assert "| risk 0.01 | no score | 0 | - | 0.9 |" in source
    assert "| risk 0.1 | 0.8123 | 0.75 | 0.0625 | 0.9 |" in source
    assert "| coverage 0.5 | 0.9375 | 0.5 | 0.03125 | - |" in source
    assert "| 0.9 | aps | 1.75 |" in source
    crossed = " ".join(shown(build_card(tuned(some_tuning(num_folds=5, center="tail", dropout=True)))).split())
    assert "Draws around the mean of the last snapshots, with dropout: scale 0.5 and temperature 1.25" in crossed
    assert "the same examples by cross-fitting: each of 5 parts" in crossed and "guarantees hold approximately" in crossed
    assert "Tuning" not in shown(build_card(some_posterior()))


@dataclass(frozen=True, eq=False)
class Interval(WeightPosterior):
    """Uniform between two weight vectors: a family that cards have never seen."""

    kind = "uniform-interval"
    layout: WeightLayout
    record: PosteriorRecord
    adapter: SavedAdapter
    ends: torch.Tensor

    def mean_vector(self):
        return self.ends.mean(dim=0)

    def draw(self, num_samples, *, seed=0, scale=None, design="matched"):
        places = torch.linspace(0, 1, num_samples)[:, None]
        return Draws(places * self.ends[0] + (1 - places) * self.ends[1])

    def tensors(self):
        return {"ends": self.ends}

    def metadata(self):
        return {"rule": "<b>ends</b> of 2 runs", "runs": 2}

    @classmethod
    def from_tensors(cls, tensors, record, adapter, metadata, *, where):
        return cls(WeightLayout.of(adapter.tensors), record, adapter, tensors["ends"])


def other_families():
    swag = some_posterior()
    interval = Interval(swag.layout, swag.record, swag.adapter, torch.stack([swag.mean_vector(), swag.mean_vector() + 1]))
    return {"point": PointPosterior.at(swag.mean_vector(), swag), "uniform-interval": interval}


@pytest.mark.parametrize("kind", ["point", "uniform-interval"])
def test_a_posterior_of_another_family_has_a_card_that_does_not_speak_of_swag(kind):
    # Red for: an attribute of SWAG that a card cannot do without, snapshots or a rank where there are none, metadata left out.
    posterior = other_families()[kind]
    results = some_results(metrics={"MAP": {"ECE": 0.05}, kind: {"ECE": 0.03}})
    card = ModelCard(str(build_card(posterior, results, repo_id="me/other")))
    text = shown(card)
    for word in ("SWAG posterior", "Snapshots", "Rank", "Schedule", "Trajectory"):
        assert word not in text, word
    assert ("family uniform-interval" in text and "rule: <b>ends</b> of 2 runs" in text and "runs: 2" in text) == (
        kind == "uniform-interval"
    )
    assert [entry.metric_value for entry in card.data.eval_results] == [0.03]
    assert card.data.eval_results[0].metric_args["method"] == kind
    again = str(merge_card(build_card(posterior, results, repo_id="me/other"), str(card)))
    assert len(ModelCard(again).data.eval_results) == 1
    with pytest.raises(SwagError, match="at least two snapshots"):
        trajectory_plot(posterior)


def code_of(card):
    return next(token.content for token in tokens(card) if token.type == "fence")


def test_the_example_asks_for_a_risk_that_a_threshold_was_found_for():
    # Red for: a risk that the pipeline refuses, one where none was tuned, draws that the thresholds are not of.
    code = code_of(build_card(tuned(some_tuning()), some_results()))
    assert "risk=0.1)" in code and "num_samples" not in code
    nothing = [CalibratedThreshold("risk", 0.05, None, 0.0, None, 0.9), CalibratedThreshold("coverage", 0.5, 0.9, 0.5, 0.1)]
    assert "risk=" not in code_of(build_card(tuned(some_tuning(thresholds=nothing))))
    assert "risk=" not in code_of(build_card(some_posterior())) and "num_samples=10" in code_of(build_card(some_posterior()))


@pytest.mark.parametrize("abstains", [False, True])
def test_the_example_runs_as_it_stands(trained, hub, base_folder, tokenizer, capsys, abstains):
    # Red for: a name, an argument or a key that an example shows and the packages do not have; a head of two labels for plain PEFT.
    trainer, swag = trained
    repo_id = f"user/card-runs-{abstains}".lower()
    HfApi().create_repo("user/card-base", exist_ok=True)
    HfApi().upload_folder(repo_id="user/card-base", folder_path=base_folder)
    adapter = swag.posterior.adapter
    adapter = replace(adapter, config={**adapter.config, "base_model_name_or_path": "user/card-base"})
    posterior = replace(swag.posterior, adapter=adapter)
    if abstains:
        tuning = some_tuning(thresholds=[CalibratedThreshold("risk", 0.05, 0.9999, 0.1, 0.0, 0.9)])
        posterior = replace(posterior, record=replace(posterior.record, tuning=tuning))
    posterior.push_to_hub(repo_id)
    tokenizer.push_to_hub(repo_id)
    publish_card(repo_id, build_card(SwagPosterior.from_pretrained(repo_id), some_results(), repo_id=repo_id))
    example, plain = (token.content for token in tokens(ModelCard.load(repo_id)) if token.type == "fence")
    if not abstains:
        exec(plain, names := {})
        told = ast.literal_eval(capsys.readouterr().out.strip().splitlines()[-1])
        assert names["base"].num_labels == 3 and told[0]["label"] in posterior.record.labels
        with torch.no_grad():
            batch = tokenizer(["good film"], return_tensors="pt")
            torch.testing.assert_close(names["model"](**batch).logits, trainer.model.eval()(**batch).logits)
    exec(example, {})
    answers = [ast.literal_eval(line)[0] for line in capsys.readouterr().out.strip().splitlines()[-1 - abstains :]]
    assert set(answers[0]) == {"label", "score", "entropy", "mutual_information"}
    assert [answer["label"] is None for answer in answers] == [False, True][: 1 + abstains]


def images(card):
    return [
        (token.attrs["src"], "".join(child.content for child in token.children))
        for token in tokens(card)
        if token.type == "image"
    ]


def test_the_alternative_text_of_a_figure_says_what_it_shows():
    # Red for: "Figure" for readers who cannot see it, or one figure's words under another.
    figure = Figure()
    figure.set_label("Reliability diagram. SWAG: accuracy 0.925 | N = 872")
    card = build_card(some_posterior(), plots={"a.png": figure, "b.png": "By hand.", "c.png": Figure()})
    assert images(card) == [
        ("a.png", "Reliability diagram. SWAG: accuracy 0.925 | N = 872"),
        ("b.png", "By hand."),
        ("c.png", "Figure"),
    ]
    assert images(build_card(some_posterior(), plots=["a.png"])) == [("a.png", "Figure")]


def test_the_hub_client_accepts_the_card_from_a_file_and_in_its_validation(hub, tmp_path, monkeypatch):
    # Red for: metadata that the client warns of, re-orders or refuses, or that is not YAML to a strict reader.
    monkeypatch.setattr("huggingface_hub.repocard.get_session", lambda: LoopbackSession(hub))
    card = build_card(some_posterior(), full_results(), repo_id="me/sst2-swag")
    card.save(tmp_path / "README.md")
    card.validate()
    loaded = ModelCard.load(tmp_path / "README.md")
    assert loaded.data.to_dict() == metadata_load(tmp_path / "README.md") == yaml.safe_load(str(card).split("---\n")[1])
    assert str(loaded) == str(card)
    name, results = model_index_to_eval_results(metadata_load(tmp_path / "README.md")["model-index"])
    assert (name, len(results)) == ("sst2-swag", 2)
    assert (loaded.data.library_name, loaded.data.base_model, loaded.data.base_model_relation, loaded.data.pipeline_tag) == (
        "peft",
        "FacebookAI/roberta-base",
        "adapter",
        "text-classification",
    )
    assert "swag" not in loaded.data.tags
