"""Options that several verbs have."""

from __future__ import annotations

from typing import Annotated

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
