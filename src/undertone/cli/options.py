"""Options that several verbs have."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from cyclopts import Parameter

Json = Annotated[bool, Parameter(name="--json", negative="", help="print the result as JSON on stdout")]
Device = Annotated[str, Parameter(name="--device", help="auto, cpu, cuda or cuda:N")]
Recompute = Annotated[
    bool,
    Parameter(
        name="--recompute", negative="", help="compute finished stages again whose inputs or config have changed"
    ),
]
ModelName = Annotated[
    str,
    Parameter(help="lab/llama-0, smollm2, org/name[@revision], a folder, a .gguf file; any of them + adapter folder"),
]
Jobs = Annotated[
    int | None, Parameter(name=["--jobs", "-j"], help="processes side by side; default: one a core, on a GPU one")
]
Launch = Annotated[
    Literal["local", "ray", "slurm"],
    Parameter(name="--launch", help="where stages are computed: processes here, a Ray cluster, jobs of Slurm"),
]
Cluster = Annotated[
    tuple[str, ...],
    Parameter(
        name="--cluster", negative="", help="an option of the cluster, such as gpus=1 or partition=gpu; repeatable"
    ),
]


def start_workers(jobs: int | None, launch: str) -> None:
    """Begin to import what worker processes of this machine need, if there will be any, while this one goes on."""
    if jobs != 1 and launch == "local":
        from undertone.launch.workers import prepare

        prepare()


def place_of(launch: Literal["local", "ray", "slurm"], cluster: tuple[str, ...]) -> Any:
    """Where stages are computed, for ``launch=`` of :func:`undertone.run`."""
    from undertone.launch.clusters import cluster_of

    return cluster_of(launch, cluster) or launch
