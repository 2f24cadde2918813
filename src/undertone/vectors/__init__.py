"""Vectors: directions ``[layer, hidden]`` with where they came from; extraction, arithmetic, steering, files."""

from undertone.vectors.extract import activations, contrast, difference, principal, random_like
from undertone.vectors.learn import Learned, learn
from undertone.vectors.steer import ablate, patch, steer
from undertone.vectors.vector import SteeringVector, load_vector, save_vector

__all__ = [
    "Learned",
    "SteeringVector",
    "ablated",
    "activations",
    "contrast",
    "difference",
    "learn",
    "load_vector",
    "principal",
    "random_like",
    "replaced",
    "save_vector",
    "steered",
]
