"""Vectors: directions ``[layer, hidden]`` with where they came from; extraction, arithmetic, steering, files."""

from undertone.vectors.extract import activations, contrast, difference, principal, random_like
from undertone.vectors.learn import Learned, learn
from undertone.vectors.steer import ablate, patch, steer
from undertone.vectors.vector import SteeringVector, load_vector, save_vector

__all__ = [
    "Learned",
    "SteeringVector",
    "ablate",
    "activations",
    "contrast",
    "difference",
    "learn",
    "load_vector",
    "patch",
    "principal",
    "random_like",
    "save_vector",
    "steer",
]
