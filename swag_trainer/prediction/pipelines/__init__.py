"""transformers pipelines that answer with a posterior, one file per task."""
