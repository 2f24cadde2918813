"""Evaluation: what a model answers when asked about a trait, exactly and by sampling.

``measures`` holds the records (no torch); ``asking`` puts the questions.
"""
