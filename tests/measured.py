"""A record of measured figures, for the tests of the cards."""

from hub_cards import CardResults


def some_results(**changes):
    record = {
        "dataset": "glue/sst2",
        "split": "validation",
        "revision": "5503434",
        "num_examples": 872,
        "num_samples": 30,
        "seed": 7,
        "num_bins": 15,
        "metrics": {"MAP": {"accuracy": 0.931, "ECE": 0.0512}, "SWAG": {"accuracy": 0.925, "ECE": 0.0312}},
    }
    return CardResults(**record | changes)
