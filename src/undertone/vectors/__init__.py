"""Vectors: directions ``[block, hidden]`` with where they came from; extraction by contrast; steering."""

from undertone.vectors.extract import contrast, random_like
from undertone.vectors.steer import steered
from undertone.vectors.vector import Vector, load_vector, save_vector

__all__ = ["Vector", "contrast", "load_vector", "random_like", "save_vector", "steered"]
