"""transformers pipelines that predict with a posterior, one file per task."""
