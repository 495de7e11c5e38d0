"""Attacks that read a model instead of taking its likeliest answer: drawn answers, and probes of its states."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy import linalg
from torch import nn
from transformers import GenerationConfig

from data_module import TaskRow
from engine.adapters import LanguageModel
from engine.attack_target import NotApplicable, Rows, Target, Variant, Variants, person_of
from engine.attacks_on_weights import half_of_rows
from engine.draws import draw
from engine.encode import collate_prompts
from engine.metrics import rouge_recall
from engine.score_answers import ends_of, generation_settings

ROWS_AT_ONCE = 32


def draws(target: Target, *, draws: int, most_tokens: int) -> Variants:
    """Draw many answers at temperature 1 instead of taking the likeliest: a refusal hides the likeliest one alone.

    Nothing is drawn. The chance that one of `draws` answers begins with the right one follows exactly from the losses
    of its tokens. It says something of short answers alone, because a long one may be said in other words.

    Args:
        target: What is attacked.
        draws: How many answers; the figures take it from the record.
        most_tokens: Longer answers are left out.
    """
    rows: Rows = {}
    for task, own in target.rows.items():
        short = [row for row in own if len(target.encoder.encode_answer(row.example, 0)) - 1 <= most_tokens]
        rows |= {task: short} if short else {}
    if not any(task in rows for task in target.controls):
        raise NotApplicable(f"no answer has at most {most_tokens} tokens")
    yield Variant("", rows, target.encoder)


def samples(target: Target, *, samples: int, best_of: int, temperature: float, max_new_tokens: int) -> Variants:
    """Draw answers of any length, and read how much of the truth the best of some of them holds.

    What is read is the mean, over all choices of `best_of` among the drawn answers, of the largest ROUGE-L recall: an
    unbiased estimate of what as many draws would bring out. What is drawn depends on the seed and the row.

    Args:
        target: What is attacked.
        samples: How many answers are drawn.
        best_of: Of how many the best counts; at most `samples`.
        temperature: Of the draws.
        max_new_tokens: Of a drawn answer.
    """
    read: dict[tuple[str, int], float] = {}
    for task, own in target.rows.items():
        for row in own:
            drawn = drawn_answers(target, row, count=samples, temperature=temperature, most=max_new_tokens)
            said = [rouge_recall(answer, row.example.answer)["rougeL_recall"] for answer in drawn]
            read[task, row.example.index] = best_of_draws(said, best_of)
    yield Variant("", target.rows, target.encoder, read=read)


@torch.no_grad()
def drawn_answers(target: Target, row: TaskRow, *, count: int, temperature: float, most: int) -> list[str]:
    """So many answers of at most `most` tokens to a row's question, all of their tokens drawn."""
    asked, encoder = row.example, target.encoder
    model: LanguageModel = target.model
    inputs = collate_prompts([encoder.encode(asked)], encoder.pad)
    device = next(model.parameters()).device
    how = GenerationConfig(
        max_new_tokens=most, do_sample=True, temperature=temperature, top_k=0, top_p=1.0, num_return_sequences=count,
        pad_token_id=encoder.pad, eos_token_id=sorted(ends_of(model, encoder)),
    )  # fmt: skip
    seed = draw(target.seed, "samples", asked.split, asked.index, asked.question).getrandbits(63)
    with torch.random.fork_rng(), generation_settings(model, how):
        torch.manual_seed(seed)
        given = {name: value.to(device) for name, value in inputs.items()}
        tokens = model.generate(**given, generation_config=how)
    return [encoder.decode(each) for each in tokens[:, inputs["input_ids"].shape[1] :]]


def best_of_draws(values: Sequence[float], draws: int) -> float:
    """The mean of the largest value over all choices of `draws` among some values.

    The j-th smallest of n is the largest of C(j - 1, draws - 1) of the C(n, draws) choices.

    Source: leak@k (arXiv 2511.04934), for values that are not 0 or 1.
    """
    ways = [math.comb(place, draws - 1) for place in range(len(values))]
    total = sum(way * value for way, value in zip(ways, sorted(values), strict=True))
    return min(1.0, total / math.comb(len(values), draws))  # rounding


# ---- probes


class Probed(NamedTuple):
    """Rows with the hidden states at the last token of their prompts."""

    rows: list[TaskRow]
    states: np.ndarray  # (layers, n, d), the embeddings first


def probe_people(target: Target, *, ridge: float) -> Variants:
    """Tell by a linear probe of hidden states whom a picture shows, where the question does not say it.

    The probe learns half of each person's rows and reads the others, and the other way round. Its layer is chosen by
    the half that it learns. A face alone tells people apart, too, in a model that never met them: gold is probed alike.

    Args:
        target: What is attacked.
        ridge: Penalty on the probe's weights, as a share of the mean squared length of a standardised state.
    """
    halves = half_of_rows(target)
    rows: Rows = {}
    read: dict[tuple[str, int], float] = {}
    for task, own in target.rows.items():
        shown = [row for row in own if row.example.image is not None and is_silent(row)]
        if len({person_of(row) for row in shown}) < 2:
            continue
        probed = Probed(shown, hidden_states(target.model, target.encoder, shown))
        in_first = np.array([halves[target.key_of(task, row)] for row in shown])
        found = read_people(probed, in_first, ridge)
        rows[task] = [row for row, value in zip(shown, found, strict=True) if not np.isnan(value)]
        read |= {(task, row.example.index): float(value) for row, value in zip(shown, found, strict=True)}
    if not any(rows.get(task) for task in target.controls):
        raise NotApplicable("no row shows a person whom the question does not name, or all are of one person")
    yield Variant("", {task: own for task, own in rows.items() if own}, target.encoder, read=read)


def is_silent(row: TaskRow) -> bool:
    """Whether the question does not name the person whom the row is about."""
    return row.example.person is not None and row.example.person not in row.example.question


@torch.no_grad()
def hidden_states(model: nn.Module, encoder: Any, rows: Sequence[TaskRow]) -> np.ndarray:
    """The states of every layer at the last token of each prompt, (layers + 1, n, d), the embeddings first."""
    device, found = next(model.parameters()).device, []
    for start in range(0, len(rows), ROWS_AT_ONCE):
        batch = encoder.collate([encoder.encode(row.example) for row in rows[start : start + ROWS_AT_ONCE]]).to(device)
        given = model(**batch.inputs, output_hidden_states=True, use_cache=False, logits_to_keep=1)
        if getattr(given, "hidden_states", None) is None:
            raise NotApplicable("the model does not give its hidden states")
        last = batch.positions[:, 0]  # the first answer token is predicted there
        places = torch.arange(len(last), device=device)
        found.append(torch.stack([layer[places, last].float().cpu() for layer in given.hidden_states]))
    return torch.cat(found, 1).numpy()


def read_people(probed: Probed, in_first: np.ndarray, ridge: float) -> np.ndarray:
    """Whether the probe of the other half names each row's person, (n,); NaN where that half lacks the person."""
    people = np.array([person_of(row) for row in probed.rows])
    found = np.full(len(people), np.nan)
    for learns in (True, False):
        learned, judged = np.flatnonzero(in_first == learns), np.flatnonzero(in_first != learns)
        judged = judged[np.isin(people[judged], people[learned])]
        if len(set(people[learned])) < 2 or not len(judged):
            continue
        layer = best_layer(probed.states[:, learned], people[learned], ridge)
        of_layer = probed.states[layer]
        found[judged] = named(of_layer[learned], people[learned], of_layer[judged], ridge) == people[judged]
    return found


def best_layer(states: np.ndarray, people: np.ndarray, ridge: float) -> int:
    """The layer whose probe names most of the rows that it did not learn, each row left out once; of equals the first.

    Args:
        states: Of the rows to learn, (layers, n, d).
        people: Of each row.
        ridge: As of `probe_people`.
    """
    right = np.zeros(len(states))
    rank = np.zeros(len(people), dtype=int)  # the how manieth row of its person each is
    for place in range(len(people)):
        rank[place] = np.sum(people[:place] == people[place])
    for fold in range(rank.max() + 1):
        out = rank == fold
        if len(set(people[~out])) < 2:
            continue
        for layer, of_layer in enumerate(states):
            right[layer] += np.sum(named(of_layer[~out], people[~out], of_layer[out], ridge) == people[out])
    return int(right.argmax())


def named(learned: np.ndarray, people: np.ndarray, judged: np.ndarray, ridge: float) -> np.ndarray:
    """Whom a linear probe takes each judged state for: ridge regression on one indicator per person, the largest wins.

    Args:
        learned: States that the probe learns, (n, d).
        people: Of each of them, (n,).
        judged: Other states, (m, d).
        ridge: As of `probe_people`.

    Returns:
        A person for each judged state, (m,).
    """
    center, spread = learned.mean(axis=0), learned.std(axis=0)
    spread = np.where(spread > 0, spread, 1)  # an embedding of one and the same token says nothing
    learned, judged = ((states.astype(float) - center) / spread for states in (learned, judged))
    names = np.unique(people)
    indicators = (people[:, None] == names).astype(float)
    alike = learned @ learned.T
    penalty = ridge * max(float(np.diag(alike).mean()), 1e-12)
    weights = linalg.solve(alike + penalty * np.eye(len(alike)), indicators - indicators.mean(axis=0), assume_a="pos")
    return names[(judged @ learned.T @ weights + indicators.mean(axis=0)).argmax(axis=1)]
