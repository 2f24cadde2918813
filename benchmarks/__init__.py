"""Benchmarks: undertone beside ``transformers`` and TRL, same work, one run."""
