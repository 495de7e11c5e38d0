"""A method's `hook` step: the states of rows are measured, and what is made of them stands beside the weights."""

from typing import Any

from engine.kept_hook import KeptHook, install, numbered_layer
from engine.loss_trainer import LossTrainer
from engine.methods import HOOKS
from engine.pairs import drawn_of
from engine.progress import Work
from engine.states import Place, mean_first_state, seen, size_of
from settings.script import SettingsError


def keep_hook(trainer: LossTrainer, pairs: Any, encoder: Any) -> dict[str, Any]:
    """Install a hook in the model of a trainer.

    Args:
        trainer: with the model, which is whole on each process.
        pairs: what the rows are drawn from.
        encoder: examples -> batches.

    Returns:
        For the record: `steered_forget` and `steered_retain`, how far the states of these rows go, as the root of the
        mean square in shares of the whole way, which is the direction.

    Raises:
        SettingsError: there is no such layer, or the hook would change nothing.
    """
    method = trainer.bound.method
    step = method.hook
    assert step is not None  # else there is nothing to do
    args = dict(step.args)
    number, strength = args.pop("layer"), args.pop("strength")
    setting = f"method.hook.args.layer={number}"
    place = Place(numbered_layer(trainer.model, number, setting), setting)
    own = pairs.pairs_for(["forget", "noised"])
    items = [own[row] for row in drawn_of(own.forget, step.rows, trainer.draw_seed).positions]
    retain_rows = drawn_of(pairs.rows_of("retain"), step.rows, trainer.draw_seed)
    with Work("row for the hook", 2 * len(items) + len(retain_rows), prepares=True) as work:
        forget = seen(trainer, encoder, [item["forget"][0] for item in items], place, work=work)
        noised = mean_first_state(trainer, encoder, [item["noised"][0] for item in items], place, work=work)
        retain = seen(trainer, encoder, list(retain_rows), place, work=work)
    gate = HOOKS[step.rule](forget.mean, forget.moment, retain.moment, **args)
    direction = noised - forget.first
    if not strength or not gate.any() or not direction.any():
        raise SettingsError(f"method={method.name}: method.hook changes nothing, nothing would be forgotten")
    install(trainer.model, KeptHook(number, float(strength), gate, direction))
    steered = {"steered_forget": forget.moment, "steered_retain": retain.moment}
    return {name: strength * size_of(gate, moment) for name, moment in steered.items()}
