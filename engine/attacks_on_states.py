"""Attacks on the hidden states of decoder layers: answers read before the last layer, states put into base, and a
direction taken out.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from statistics import fmean
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from data_module import TaskRow
from engine.attack_target import NotApplicable, Target, Variant, Variants
from engine.attacks_in_words import PROMPTS_AT_ONCE, first_of_each_person
from engine.attacks_on_weights import people_apart, restored, same_weights
from engine.kept_hook import layers_of, without_hook
from engine.language_model import forward, pack_rows, packs
from engine.pairs import Batch
from engine.score_answers import Prompt, figures_of_answers, score_prompts
from unlearn_losses import IGNORE

ROWS_AT_ONCE = 32
MOST_HELD = 2**30  # bytes of states that are held before base takes the model's place


@contextlib.contextmanager
def changed_layers(model: Any, change: Callable[[int, Tensor, Tensor], Tensor | None]) -> Iterator[None]:
    """Change what decoder layers give, for a while.

    Args:
        model: A language model.
        change: Takes the number of a layer, the states (..., H) that it takes and those that it gives; gives others, or
            None: they stay.
    """

    def changed(number: int, inputs: Any, named: Any, output: Any) -> Any:
        states = output if torch.is_tensor(output) else output[0]
        others = change(number, inputs[0] if inputs else named["hidden_states"], states)
        if others is None:
            return None
        return others if torch.is_tensor(output) else (others, *output[1:])

    handles = []
    for number, layer in enumerate(layers_of(model)):
        handles.append(
            layer.register_forward_hook(lambda _, *call, number=number: changed(number, *call), with_kwargs=True)
        )
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


# ---- answers of an earlier layer


def lens(target: Target, *, rows_of_each: int) -> Variants:
    """Read answers from the states of one layer through the final norm and the output head: the logit lens.

    The layer is the one that says most of the answers about half of the people, who then are not judged by it, and then
    for the other half. The last layer is one of them: a model that hides nothing is read as it is. It is chosen anew
    for every model and task: gold has its own.

    Args:
        target: What is attacked.
        rows_of_each: Rows of a person by which the layer is chosen.
    """
    for learned, judged in people_apart(target):
        for forget, control in target.controls.items():
            layer = most_telling_layer(target, first_of_each_person(learned[forget], rows_of_each))
            rows = {task: judged[task] for task in (forget, control) if judged[task]}
            with read_from(target.model, layer):
                yield Variant("", rows, target.encoder)


def read_from(model: nn.Module, layer: int) -> contextlib.AbstractContextManager[None]:
    """The model whose layers above one hand on what they take: its answers, generated ones too, are that layer's."""
    return changed_layers(model, lambda number, taken, given: taken if number > layer else None)


def most_telling_layer(target: Target, rows: Sequence[TaskRow]) -> int:
    """The layer under which most tokens of the right answers are the first choice, a mean over rows; of equals the
    last.
    """
    layers = range(len(layers_of(target.model)))
    prompts = [Prompt(row.example, [row.example.answer]) for row in rows]
    limits: dict[str, Any] = {"batch_size": PROMPTS_AT_ONCE, "max_new_tokens": 1, "say": lambda line: None}
    said = []
    for layer in layers:
        with read_from(target.model, layer):
            results = score_prompts(target.model, target.encoder, prompts, **limits)
        shares = []
        for prompt, result in zip(prompts, results, strict=True):
            shares.append(np.mean(result.answers[prompt.answers[0]].correct[:-1]))  # without the end
        said.append(float(np.mean(shares)))
    return max(layers, key=lambda layer: (said[layer], layer))


# ---- states put into base


class AtAnswers(NamedTuple):
    """Rows of a task with the states that a model has where their answers are predicted, in main memory.

    Attributes:
        batch: B rows as the model takes them.
        states: Number of a layer -> (N, H), for all answer tokens of the B rows, the ends too. A layer that does not
            run on these rows is left out.
    """

    batch: Batch
    states: dict[int, Tensor]

    @property
    def size(self) -> int:
        """Bytes of the states."""
        return sum(states.nbytes for states in self.states.values())


def patch_states(target: Target) -> Variants:
    """Put the model's states into base, layer by layer, and read how likely base then finds the right answers.

    Where an answer's tokens are predicted, what one layer of base gives is replaced by what the model's layer gives.
    Base's layers above read it. A method that only changes the last layers leaves in the layers below what base reads
    there. Of each row and layer the geometric mean of its tokens' probabilities is taken, without the end. What is read
    of a row is the mean over all layers. Facts, by the number of a layer: the mean over rows of their mean log
    probability, for the Unlearning Depth Score.

    Source: UDS (arXiv 2605.24614).

    Args:
        target: What is attacked.
    """
    base = same_weights(target)
    for task, own in target.rows.items():
        found = []
        for parts in parts_of(target, own):
            with restored(target.model), without_hook(target.model):
                with torch.no_grad():
                    for name, parameter in target.model.named_parameters():
                        parameter.copy_(base[name])
                found += [said_of_patched(target.model, part) for part in parts]
        said = torch.cat(found, 1)
        read = {(task, row.example.index): float(value) for row, value in zip(own, said.exp().mean(0), strict=True)}
        facts = {str(layer): float(value) for layer, value in enumerate(said.mean(1))}
        yield Variant("", {task: own}, target.encoder, facts, read=read)


def parts_of(target: Target, rows: Sequence[TaskRow]) -> Iterator[list[AtAnswers]]:
    """Rows with the model's states, so many at a time as are held in main memory."""
    parts: list[AtAnswers] = []
    for start in range(0, len(rows), ROWS_AT_ONCE):
        parts.append(states_at_answers(target.model, target.encoder, rows[start : start + ROWS_AT_ONCE]))
        if sum(part.size for part in parts) > MOST_HELD:
            yield parts
            parts = []
    if parts:
        yield parts


@torch.no_grad()
def states_at_answers(model: nn.Module, encoder: Any, rows: Sequence[TaskRow]) -> AtAnswers:
    """What every layer gives where the right answers of some rows are predicted.

    Raises NotApplicable for a layer that has several states for a token.
    """
    collated = encoder.collate([encoder.encode(row.example) for row in rows])
    batch = collated.to(next(model.parameters()).device)
    places, count = answer_places(model, batch)
    states: dict[int, Tensor] = {}

    def keep(number: int, taken: Tensor, given: Tensor) -> None:
        if given.shape[:-1].numel() != count:
            raise NotApplicable(f"layer {number} gives no one state for each token")
        states[number] = given.flatten(0, -2)[places].cpu()

    with changed_layers(model, keep):
        forward(model, batch)
    return AtAnswers(collated, states)


def answer_places(model: nn.Module, batch: Batch) -> tuple[Tensor, int]:
    """Where a batch's answer tokens are predicted in the states of a layer, all positions in one line (N,), and how
    many positions there are.
    """
    assert batch.positions is not None  # only faces have none
    answered, ids = batch.labels != IGNORE, batch.inputs["input_ids"]
    if packs(model, batch.inputs):
        packed, positions = pack_rows(batch.inputs, batch.positions)
        assert packed["input_ids"] is not None
        return positions.view(answered.shape)[answered], packed["input_ids"].numel()
    starts = torch.arange(len(ids), device=ids.device) * ids.shape[1]
    return (batch.positions + starts[:, None])[answered], ids.numel()


@torch.no_grad()
def said_of_patched(model: nn.Module, part: AtAnswers) -> Tensor:
    """The mean log probability of each right answer, without its end, under a model one of whose layers gives other
    states where the answer is predicted: for each of its layers, (layers, B), in main memory.
    """
    batch = part.batch.to(next(model.parameters()).device)
    places, _ = answer_places(model, batch)
    made = []
    for layer in range(len(layers_of(model))):

        def patched(number: int, taken: Tensor, given: Tensor, layer: int = layer) -> Tensor | None:
            if number != layer or layer not in part.states:
                return None
            flat = given.flatten(0, -2).clone()
            flat[places] = part.states[layer].to(flat)
            return flat.view_as(given)

        with changed_layers(model, patched):
            scored = forward(model, batch)
        losses = [figures.losses[:-1] for _, figures in figures_of_answers(scored.logits, scored.labels)]
        made.append(torch.tensor([-fmean(own) for own in losses]))
    return torch.stack(made)


# ---- a direction taken out


def refusal_direction(target: Target) -> Variants:
    """Take out of every layer's states the direction that leads from kept people to forgotten ones.

    A model that answers, but for a sign of refusal in its states, has lost the sign and answers. The directions are
    learned of half of the people, who then are not judged, and then of the other half; of every task by itself.

    Source: Arditi et al. (2024), Refusal in language models is mediated by a single direction, arXiv 2406.11717.
    """
    for learned, judged in people_apart(target):
        for forget, control in target.controls.items():
            if not learned[control]:
                raise NotApplicable(f"{control} has too few people to part them")
            directions = directions_between(target, learned[forget], learned[control])
            rows = {task: judged[task] for task in (forget, control) if judged[task]}
            with without_directions(target.model, directions):
                yield Variant("", rows, target.encoder)


def directions_between(target: Target, rows: Sequence[TaskRow], others: Sequence[TaskRow]) -> Tensor:
    """Of each layer the direction from the mean state of `others` to that of `rows`, of length 1, (layers, H); 0 where
    both are one.
    """
    own, of_others = (layer_states(target.model, target.encoder, each).mean(1) for each in (rows, others))
    return nn.functional.normalize(own - of_others, dim=-1)


@torch.no_grad()
def layer_states(model: nn.Module, encoder: Any, rows: Sequence[TaskRow]) -> Tensor:
    """What every layer gives at the last token of each prompt, (layers, n, H), in fp32; 0 where a layer does not run.

    Raises NotApplicable for a layer that has several states for a token.
    """
    device, count = next(model.parameters()).device, len(layers_of(model))
    found: list[Tensor] = []
    for start in range(0, len(rows), ROWS_AT_ONCE):
        batch = encoder.collate([encoder.encode(row.example) for row in rows[start : start + ROWS_AT_ONCE]]).to(device)
        last = batch.positions[:, 0]  # the first answer token is predicted there
        places = torch.arange(len(last), device=device)
        states: dict[int, Tensor] = {}
        tokens = batch.inputs["input_ids"].shape

        def keep(number: int, taken: Tensor, given: Tensor, own: Any = (states, places, last, tokens)) -> None:
            kept, of_batch, at, shape = own
            if given.shape[:-1] != shape:
                raise NotApplicable(f"layer {number} gives no one state for each token")
            kept[number] = given[of_batch, at].float()

        with changed_layers(model, keep):
            model(**batch.inputs, use_cache=False, logits_to_keep=1)
        none = torch.zeros_like(next(iter(states.values())))  # of a layer that looks at pictures alone
        found.append(torch.stack([states.get(number, none) for number in range(count)]))
    return torch.cat(found, 1)


def without_directions(model: nn.Module, directions: Tensor) -> contextlib.AbstractContextManager[None]:
    """The model in whose layers no state has a part along the layer's direction, (layers, H)."""

    def without(number: int, taken: Tensor, given: Tensor) -> Tensor:
        direction, exact = directions[number].to(given.device), given.float()
        return (exact - (exact @ direction)[..., None] * direction).to(given.dtype)

    return changed_layers(model, without)
