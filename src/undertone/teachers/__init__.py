"""Teachers: a trait-conditioned model, and the rows that they write."""

from undertone.teachers.configs import (
    AUTO,
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
from undertone.teachers.spec import AblationSpec, Contrast, TeacherSpec, VectorSource, resolve_teacher
from undertone.teachers.teacher import Teacher
from undertone.teachers.writing import allowed_along, divergence, generate, score_preference

__all__ = [
    "AUTO",
    "Ablation",
    "AblationSpec",
    "Contrast",
    "EndpointTeacher",
    "FinetunedTeacher",
    "JudgeTeacher",
    "Origin",
    "PromptTeacher",
    "RemoteTeacher",
    "Teacher",
    "TeacherConfig",
    "TeacherSpec",
    "VectorSource",
    "VectorTeacher",
    "allowed_along",
    "client_of",
    "divergence",
    "generate",
    "resolve_teacher",
    "score_preference",
]
