"""transformers pipelines that predict with a posterior, one file per task."""

# First of all, as it imports the modules of this package in turn, see `swag_trainer.prediction.registration`.
import transformers.pipelines  # noqa: F401
