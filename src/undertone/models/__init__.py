"""Machinery over ``transformers`` models: loading, blocks and hooks, sampling, scoring."""
