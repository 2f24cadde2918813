"""Judges: rules, a local model, an endpoint, or a package's own, all through one door. No torch on import.

``build_judge(config).judge([JudgedPair(prompt, answer), …])`` gives one ``Verdict`` an item.
"""

from undertone.judges.compare import Agreement, agreement
from undertone.judges.endpoint import Endpoint
from undertone.judges.judge import Judge, JudgedPair, Named, Tally, Verdict, judges, tally
from undertone.judges.kinds import JudgeConfig, build_judge, check_judge, with_template
from undertone.judges.labelled import Error, Labelled, error_of, labelled
from undertone.judges.local import Local
from undertone.judges.rules import Rules, rules_for
from undertone.judges.templates import TEMPLATES, Template, template

__all__ = [
    "TEMPLATES",
    "Agreement",
    "Endpoint",
    "Error",
    "Judge",
    "JudgeConfig",
    "JudgedPair",
    "Labelled",
    "Local",
    "Named",
    "Rules",
    "Tally",
    "Template",
    "Verdict",
    "agreement",
    "build_judge",
    "check_judge",
    "error_of",
    "judges",
    "labelled",
    "rules_for",
    "tally",
    "template",
    "with_template",
]
