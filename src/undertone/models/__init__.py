"""Machinery over ``transformers`` models: loading, layers and hooks, sampling, scoring."""
