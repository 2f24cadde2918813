"""One way to conduct a run: open its folder, compute in it side by side, and write what came out beside the stages."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel

from undertone.launch import group
from undertone.launch.clusters import Launch, open_workers
from undertone.launch.executor import Executor
from undertone.provenance.configs import Config
from undertone.provenance.runs import Run, write_json

R = TypeVar("R", bound=BaseModel)
Work = Callable[[Executor, str], tuple[R, Mapping[str, Any]]]
"""(executor, the command that runs it again) -> the results and the manifest."""


def conduct(
    config: Config,
    name: str,
    folder: Path,
    work: Work[R],
    *,
    parts: int,
    jobs: int | None,
    device: str,
    command: str,
    recompute: bool,
    launch: Launch,
) -> R:
    """The results of some work in a run folder, also written to ``results.json`` with ``manifest.json`` beside it.

    Args:
        config: whose run it is; it is kept once nothing in the folder is stale.
        name: for the progress bar.
        folder: the run folder.
        work: computes stages and concludes from them.
        parts: how many parts are independent: no more processes than that are started.
        jobs: processes side by side; None: one a core, or 1 on a GPU.
        device: auto, cpu, cuda …
        command: what the user typed, for messages.
        recompute: compute finished stages again that no longer fit, instead of refusing them.
        launch: where its stages are computed: local, ray, slurm, or a cluster.

    Raises:
        RunError: the folder cannot be used, or finished stages no longer fit. Whatever the work raises.
    """
    if group.rank():
        followed: R = group.follow()
        return followed
    with group.leading() as reached, Run.open(folder, config, command=command, recompute=recompute) as run:
        with (
            open_workers(launch, run.folder, jobs=jobs, device=device, parts=parts) as pool,
            Executor.open(run, pool, device, name) as executor,
        ):
            results, manifest = work(executor, f"undertone run {folder / 'config.yaml'}")
        run.keep_config()
        write_json(folder / "results.json", results.model_dump(mode="json", by_alias=True))
        write_json(folder / "manifest.json", dict(manifest))
        reached.append(results)
    return results
