"""An edit along one gradient: the knowledge is brought up by an adapter, the gradient is taken with it, and the weights
go as far along it as a budget of change on retain rows allows.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from data_module import Example
from engine.adapters import add_lora
from engine.edit_statistics import mlps_of
from engine.edits import EditRule
from engine.loss_trainer import LossTrainer
from engine.pairs import Batch, Chosen, drawn_of
from engine.progress import Work
from settings.script import SettingsError
from settings.training import Lora
from unlearn_losses import Scored, kl_from_start, nll

FIRST_LENGTH = 1e-4  # of the first step that is tried, in lengths of all weights that may move
DOUBLINGS, HALVINGS = 20, 10  # to a length that is too far, and back to the longest that is not


def edit_along_gradient(
    trainer: LossTrainer, rule: EditRule, rows: dict[str, Chosen], encoder: Any, own: dict[str, Any]
) -> dict[str, Any]:
    """Edit the linear layers of a decoder's MLPs along what the rule leaves of the forget gradient.

    Returns what `edit` does, `kl`, how far the model is from the start on retain rows, in nats, and `kl_rows`, on how
    many of them.
    Raises SettingsError where the rule would shrink more of a gradient than it has.
    """
    method = trainer.bound.method
    assert method.edit is not None
    args = method.edit.args
    linears = [linear for mlp in mlps_of(trainer.model, method.name) for linear in (mlp.down, *mlp.into)]
    matrices: list[Any] = [linear.weight for linear in linears]
    smallest = min(min(matrix.shape) for matrix in matrices)
    if own["components"] >= smallest:
        raise SettingsError(
            f"method.edit.args.components={own['components']} must be below {smallest}, the singular values of the "
            "smallest matrix that is edited"
        )
    gradients = gradient_with_adapter(trainer, matrices, rows["forget"], encoder)
    try:
        ways = [rule.apply(gradient, **own) for gradient in gradients]
    except ValueError as error:
        raise SettingsError(f"method.edit.args.{error}") from None
    kept = drawn_of(rows["retain"], args["kl_rows"], trainer.draw_seed, "kl_rows")
    batches = [encoder.collate([encoder.encode(row)]).to(trainer.args.device) for row in kept]
    start = scored(trainer, batches)

    def change() -> float:
        apart = zip(scored(trainer, batches), start, strict=True)
        return sum(kl_from_start(now, then).item() for now, then in apart) / len(batches)

    length, kl = go_farthest(matrices, ways, change, args["kl_budget"])
    return {"edited": float(length > 0), "kl": kl, "kl_rows": len(kept)}


def gradient_with_adapter(
    trainer: LossTrainer, matrices: Sequence[nn.Parameter], rows: Chosen, encoder: Any
) -> list[Tensor]:
    """The mean gradient of NLL over rows, taken while an adapter that has learned them in one pass is there."""
    method, model = trainer.bound.method, trainer.model
    assert method.edit is not None
    rank, rate = method.edit.args["adapter_rank"], method.edit.args["adapter_lr"]
    training = {id(weight) for weight in model.parameters() if weight.requires_grad}
    adapted = add_lora(model, Lora(r=rank, alpha=rank, dropout=0.0), "language_model", trainer.draw_seed)
    adapted.to(trainer.args.device).eval()
    own = [weight for weight in adapted.parameters() if weight.requires_grad]
    sums = [torch.zeros_like(weight) for weight in matrices]
    with Work("row for the edit", 2 * len(rows), prepares=True) as work:
        for row in rows:
            steps = torch.autograd.grad(loss_of(trainer, adapted, row, encoder), own)
            with torch.no_grad():
                for weight, step in zip(own, steps, strict=True):
                    weight.sub_(rate * step)
            work.advance(1)
        for weight in matrices:
            weight.requires_grad_(True)
        for row in rows:
            gradients = torch.autograd.grad(loss_of(trainer, adapted, row, encoder), matrices)
            for total, gradient in zip(sums, gradients, strict=True):
                total += gradient / len(rows)
            work.advance(1)
    adapted.unload()
    for weight in model.parameters():
        weight.requires_grad_(id(weight) in training)
    return sums


def loss_of(trainer: LossTrainer, model: nn.Module, row: Example, encoder: Any) -> Tensor:
    """NLL of one row's answer, in fp32."""
    return nll(trainer.forward(model, encoder.collate([encoder.encode(row)]).to(trainer.args.device)))


@torch.no_grad()
def scored(trainer: LossTrainer, batches: list[Batch]) -> list[Scored]:
    """What the model says of some batches now."""
    trainer.model.eval()
    return [trainer.forward(trainer.model, batch) for batch in batches]


@torch.no_grad()
def go_farthest(
    matrices: Sequence[Tensor], ways: Sequence[Tensor], change: Callable[[], float], budget: float
) -> tuple[float, float]:
    """Move matrices along their ways, in place, until the change that is allowed is reached.

    Args:
        matrices: what moves.
        ways: of each the direction; together they say how far each goes in comparison with the others.
        change: what the move costs where the matrices are now, 0 at the start.
        budget: the largest cost.

    Returns:
        How far they went, in lengths of all matrices together, and what it costs: at most `budget`. Both are 0 where
        the ways have no direction.
    """
    first = [matrix.clone() for matrix in matrices]
    own, along = norm_of(matrices), norm_of(ways)
    if along == 0:
        return 0.0, 0.0

    def cost_at(length: float) -> float:
        for matrix, start, way in zip(matrices, first, ways, strict=True):
            matrix.copy_(start + length * own / along * way)
        return change()

    near, far = 0.0, FIRST_LENGTH
    for _ in range(DOUBLINGS):
        if not cost_at(far) <= budget:  # a cost that is no number is too much
            break
        near, far = far, 2 * far
    for _ in range(HALVINGS):
        middle = (near + far) / 2
        if cost_at(middle) <= budget:
            near = middle
        else:
            far = middle
    return near, cost_at(near)


def norm_of(tensors: Sequence[Tensor]) -> float:
    """The length of several tensors together."""
    return sum(tensor.float().square().sum().item() for tensor in tensors) ** 0.5
