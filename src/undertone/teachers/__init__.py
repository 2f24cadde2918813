"""Teachers: a trait-conditioned model, and the rows that they write."""

from undertone.teachers.configs import (
    Ablation,
    EndpointTeacher,
    FinetunedTeacher,
    JudgeTeacher,
    Origin,
    PromptTeacher,
    TeacherConfig,
    VectorTeacher,
)
from undertone.teachers.endpoint import RemoteTeacher, client_of
from undertone.teachers.teacher import Teacher, build_teacher, trait_vector
from undertone.teachers.writing import divergence, generate, score_preference

__all__ = [
    "Ablation",
    "EndpointTeacher",
    "FinetunedTeacher",
    "JudgeTeacher",
    "Origin",
    "PromptTeacher",
    "RemoteTeacher",
    "Teacher",
    "TeacherConfig",
    "VectorTeacher",
    "build_teacher",
    "client_of",
    "divergence",
    "generate",
    "score_preference",
    "trait_vector",
]
