import logging

import pytest

from swag_trainer.load_reports import load_reports_held_back
from swag_trainer.prediction.loading import AutoSwagModelForSequenceClassification

LOGGER = logging.getLogger("transformers.modeling_utils")


@pytest.fixture
def shown(caplog):
    """What transformers logs at WARNING, which its loggers do not hand on to the root by themselves."""
    LOGGER.addHandler(caplog.handler)
    yield caplog
    LOGGER.removeHandler(caplog.handler)


def test_a_head_that_the_adapter_brings_is_not_reported_as_newly_initialised(trained, tmp_path, shown):
    # Red for: "Consider training on your downstream task" for a classifier that was trained.
    _, swag = trained
    swag.posterior.save_pretrained(tmp_path)
    with shown.at_level(logging.WARNING):
        AutoSwagModelForSequenceClassification.from_pretrained(str(tmp_path))
    assert "LOAD REPORT" not in shown.text and "newly initialized" not in shown.text


def test_a_report_is_shown_where_the_load_fails_and_other_messages_always(shown):
    # Red for: an error that points to a report which was thrown away; warnings that have nothing to do with it held back.
    with shown.at_level(logging.WARNING), load_reports_held_back():
        LOGGER.warning("BertModel LOAD REPORT of one that went well")
        LOGGER.warning("Something else.")
    assert "went well" not in shown.text and "Something else." in shown.text
    with shown.at_level(logging.WARNING), pytest.raises(RuntimeError), load_reports_held_back():
        LOGGER.warning("BertModel LOAD REPORT of one that failed")
        raise RuntimeError("look at the above report")
    assert "of one that failed" in shown.text
    LOGGER.warning("BertModel LOAD REPORT of another load")
    assert "of another load" in shown.text
