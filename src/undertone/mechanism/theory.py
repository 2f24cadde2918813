"""The one-step theorem of Cloud et al. (arXiv 2507.14805, Theorem 1), exact to first order, on any autograd network.

A teacher takes one gradient step of size ε on its own loss: θ_T = θ_0 + ε·Δ_T. A student at θ_0 takes one small
gradient step towards the teacher's outputs on ANY inputs. To first order in ε that step is

    Δ_S = Jᵀ H J Δ_T,

where J is the Jacobian of the imitated outputs at θ_0 and H the curvature of the imitation loss at equality: 1 for the
squared loss, diag(p) − p pᵀ for the softmax cross-entropy. So Δ_S · Δ_T = (J Δ_T)ᵀ H (J Δ_T) ≥ 0: the student moves
with the teacher, whatever it is shown. From another θ_0 the difference of outputs is no longer J Δ_T, and either sign
occurs. The theorem says nothing of many steps, of Adam, of sampled data or of filters.

Parameters are mappings name -> tensor, networks are functions (parameters, inputs ``[row, …]``) -> outputs
``[row, output]``; the outputs are those that the student imitates. Use float64.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Parameters = dict[str, Tensor]
Network = Callable[[Parameters, Tensor], Tensor]
Imitation = Literal["squared", "cross-entropy"]


@dataclass(frozen=True)
class Step:
    """A student's first step beside its teacher's.

    ``inner`` is Δ_S · Δ_T, ``cosine`` the same of unit vectors (0 where one of them is 0), and ``student`` is Δ_S.
    """

    inner: float
    cosine: float
    student: Parameters


def descent(loss: Callable[[Parameters], Tensor], parameters: Parameters) -> Parameters:
    """Minus the gradient of a loss: the direction of the teacher's own step."""
    return {name: -gradient for name, gradient in torch.func.grad(loss)(parameters).items()}


def first_order_step(
    network: Network, start: Parameters, teacher: Parameters, inputs: Tensor, loss: Imitation = "squared"
) -> Step:
    """The student's step from the teacher's own start, in the limit of a small teacher's step.

    Args:
        network: gives the imitated outputs.
        start: θ_0 of both.
        teacher: Δ_T, the direction in which the teacher moved.
        inputs: what the student is shown, of any distribution.
        loss: what the student minimises, as a mean over rows (squared: half the squared distance).
    """

    def outputs(parameters: Parameters) -> Tensor:
        return network(parameters, inputs)

    at_start, change, *_ = torch.func.jvp(outputs, (start,), (teacher,))
    _, pull, *_ = torch.func.vjp(outputs, start)
    (student,) = pull(_curved(at_start, change, loss) / len(inputs))
    return _beside(student, teacher)


def imitation_step(
    network: Network,
    start: Parameters,
    targets: Tensor,
    teacher: Mapping[str, Tensor],
    inputs: Tensor,
    loss: Imitation = "squared",
) -> Step:
    """The student's gradient step from any start towards any targets ``[row, output]``; exact, at any distance.

    Args:
        network: gives the imitated outputs.
        start: where the student is.
        targets: the teacher's outputs on the inputs.
        teacher: Δ_T, to compare with.
        inputs: what both are shown.
        loss: what the student minimises, as a mean over rows.
    """

    def distance(parameters: Parameters) -> Tensor:
        outputs = network(parameters, inputs)
        if loss == "squared":
            return 0.5 * (outputs - targets).square().sum() / len(inputs)
        return -(targets.softmax(-1) * outputs.log_softmax(-1)).sum() / len(inputs)

    return _beside(descent(distance, start), teacher)


def _curved(outputs: Tensor, change: Tensor, loss: Imitation) -> Tensor:
    """H times a change of outputs."""
    if loss == "squared":
        return change
    p = outputs.softmax(-1)
    return p * (change - (p * change).sum(-1, keepdim=True))


def _beside(student: Parameters, teacher: Mapping[str, Tensor]) -> Step:
    inner = sum(float((student[name] * teacher[name]).sum()) for name in student)
    lengths = [
        sum(float(part[name].square().sum()) for name in student) ** 0.5 for part in (student, teacher)
    ]  # fmt: skip
    product = lengths[0] * lengths[1]
    return Step(inner, inner / product if product else 0.0, student)
