"""Launching: where stages run. Processes of this machine, a Ray cluster, jobs of Slurm; or several that train one student."""
