"""Training: the loop, and the one function that trains a student with it."""

from undertone.training.loop import (
    Fit,
    Schedule,
    Training,
    build_optimizer,
    fit,
    known_optimizers,
    plan_batches,
    rate_at,
    thin,
)
from undertone.training.students import (
    Dpo,
    Lesson,
    Student,
    TrainedStudent,
    student_dtype,
    student_seed,
    train_student,
)

__all__ = [
    "Dpo",
    "Fit",
    "Lesson",
    "Schedule",
    "Student",
    "TrainedStudent",
    "Training",
    "build_optimizer",
    "fit",
    "known_optimizers",
    "plan_batches",
    "rate_at",
    "student_dtype",
    "student_seed",
    "thin",
    "train_student",
]
