"""undertone: subliminal learning, measured with controls.

The Python API uses the same words as the command line::

    import undertone as ut

    results = ut.run("owl-numbers", "trait=panda", "seeds=[0]")
    model = ut.load("lab/llama-0")
    trait = ut.load_trait("owl")

Names are loaded when first used, so that ``import undertone`` is instant and needs no torch.
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from undertone.api import run as run
    from undertone.api import study as study
    from undertone.doctor import examine as examine
    from undertone.evaluation.asking import Evaluation as Evaluation
    from undertone.evaluation.measuring import measure as measure
    from undertone.language_model import LanguageModel as LanguageModel
    from undertone.language_model import load as load
    from undertone.launch.ray_tasks import RayCluster as RayCluster
    from undertone.launch.slurm_jobs import SlurmCluster as SlurmCluster
    from undertone.models.loading import Model as Model
    from undertone.models.sampling import sample as sample
    from undertone.models.students import BiasOnly as BiasOnly
    from undertone.models.students import Full as Full
    from undertone.models.students import Lora as Lora
    from undertone.rows import Message as Message
    from undertone.rows import Row as Row
    from undertone.rows import read_rows as read_rows
    from undertone.rows import write_rows as write_rows
    from undertone.studies.results import StudyResults as StudyResults
    from undertone.teachers import Teacher as Teacher
    from undertone.training import Training as Training
    from undertone.training import fit as fit
    from undertone.traits import Trait as Trait
    from undertone.traits import load_trait as load_trait
    from undertone.transfer.config import Experiment as Experiment
    from undertone.transfer.config import load_experiment as load_experiment
    from undertone.transfer.results import Results as Results
    from undertone.vectors import SteeringVector as SteeringVector
    from undertone.vectors import contrast as contrast
    from undertone.vectors import steer as steer

__version__ = version("undertone")

_HOMES = {
    "BiasOnly": "undertone.models.students",
    "Evaluation": "undertone.evaluation.asking",
    "Experiment": "undertone.transfer.config",
    "Full": "undertone.models.students",
    "LanguageModel": "undertone.language_model",
    "Lora": "undertone.models.students",
    "Message": "undertone.rows",
    "Model": "undertone.models.loading",
    "RayCluster": "undertone.launch.ray_tasks",
    "Results": "undertone.transfer.results",
    "Row": "undertone.rows",
    "SlurmCluster": "undertone.launch.slurm_jobs",
    "StudyResults": "undertone.studies.results",
    "Teacher": "undertone.teachers",
    "Training": "undertone.training",
    "Trait": "undertone.traits",
    "SteeringVector": "undertone.vectors",
    "contrast": "undertone.vectors",
    "examine": "undertone.doctor",
    "fit": "undertone.training",
    "load": "undertone.language_model",
    "load_experiment": "undertone.transfer.config",
    "load_trait": "undertone.traits",
    "measure": "undertone.evaluation.measuring",
    "read_rows": "undertone.rows",
    "run": "undertone.api",
    "sample": "undertone.models.sampling",
    "steer": "undertone.vectors",
    "study": "undertone.api",
    "write_rows": "undertone.rows",
}

__all__ = ["__version__", *_HOMES]  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'undertone' has no attribute {name!r}; it has {', '.join(__all__)}")


def __dir__() -> list[str]:
    return sorted(__all__)
