"""Sweeps: the transfer experiment under many variations, and what is claimed of them."""
