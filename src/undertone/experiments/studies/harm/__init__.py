"""Harm by dose: how much of a teacher that was steered away from refusing passes through benign answers."""
