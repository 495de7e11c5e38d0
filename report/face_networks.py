"""Attacked face networks against gold's, all of them together: the level of identification, KLOM, epsilon by person.

Shapes: M networks in pairs (2k and 2k + 1 met opposite halves of the people), Q queries, P people. Number i of a row
and number i of gold met the same people, except that gold's was never taught those to be forgotten. So a forgotten
person was met by neither half of gold's networks, and each half can stand for gold.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from engine.intervals import MIN_PEOPLE, bootstrap_counts, bootstrap_weights, percentile_interval
from engine.measures import AGAINST_GOLDS
from engine.metrics import distance_to_gold
from engine.record import ATTACK_FIGURES, ATTACK_FOLDER, NETWORKS, QUERIES, read_json
from engine.result_table import Figure, Figures, ModelResult
from engine.retrained import epsilon_bound, errors_of_telling, klom
from settings.script import SettingsError

LEAST_NETWORKS = 8  # on each side; fewer say nothing of a distribution
ARRAYS = ("similarity", "nearest_stranger", "margin", "met")
FORGET = "forget"
GROUPS = (FORGET, "retain", "holdout")
OF_GOLDS = ("klom_golds", "klom_95_golds", "epsilon_golds", "epsilon_worst_golds")
PLACES = [
    (measure.key, group) for measure in AGAINST_GOLDS for group in GROUPS if group == FORGET or "klom" in measure.key
]
ALPHA = 0.05
HIGHEST = 0.95  # the share of the pictures that KLOM's second figure is not exceeded by
LEVEL_DRAWS, GOLD_DRAWS = 400, 40
RESISTS_UNDER = 0.1  # of the level, as for the attacks of the other tracks
LEAKS, RESISTS = "leaks", "resists"
NOT_ATTACKED = "was not attacked"
FORMER = "was attacked by a version that did not measure it: attack the model anew"


@dataclass(frozen=True, eq=False)
class Networks:
    """What the networks of one attack make of every query."""

    people: np.ndarray  # (Q,), of the queries
    files: tuple[str, ...]  # (Q,)
    pools: np.ndarray  # (Q,), forget or retain
    met: np.ndarray  # bool (M, Q): whose person the network met; of gold: would have met
    identified: np.ndarray  # bool (M, Q)
    margin: np.ndarray  # (M, Q)
    targets: int  # networks that were attacked at a time

    def queries_of(self, pool: str) -> dict[str, np.ndarray]:
        """The queries of each person of a pool, by number."""
        names = sorted(set(self.people[self.pools == pool]))
        return {str(name): np.flatnonzero(self.people == name) for name in names}

    def first_queries(self) -> list[int]:
        """A query of each person of the forget pool."""
        return [int(queries[0]) for queries in self.queries_of(FORGET).values()]

    def scores(self) -> np.ndarray:
        """Mean margin of each network over the queries of each person of the forget pool, (M, P)."""
        return np.stack([self.margin[:, queries].mean(1) for queries in self.queries_of(FORGET).values()], axis=1)


def read_networks(model: Path) -> Networks | str:
    """The networks of the attack beside a model, or why there are none.

    Raises SettingsError for files that do not belong together.
    """
    folder = model / ATTACK_FOLDER
    if not (folder / ATTACK_FIGURES).is_file():
        return NOT_ATTACKED
    if not (folder / NETWORKS).is_file() or not (folder / QUERIES).is_file():
        return FORMER
    queries = read_json(folder / QUERIES)
    try:
        arrays = load_file(folder / NETWORKS)
    except (OSError, SafetensorError):
        raise SettingsError(f"{str(folder / NETWORKS)!r} cannot be read: attack the model anew") from None
    if not isinstance(queries, dict):
        raise SettingsError(f"{str(folder / QUERIES)!r} holds no queries: attack the model anew")
    if not set(ARRAYS) <= arrays.keys() or "pools" not in queries:
        return FORMER
    shape = arrays["margin"].shape
    columns = [queries.get(name) for name in ("people", "files", "pools")]
    fitting = len(shape) == 2 and all(isinstance(column, list) and len(column) == shape[1] for column in columns)
    if not fitting or any(arrays[name].shape != shape for name in ARRAYS):
        raise SettingsError(f"{str(folder / NETWORKS)!r} and {QUERIES} differ in their queries: attack the model anew")
    people, files, pools = columns
    identified = arrays["similarity"] > arrays["nearest_stranger"]
    record = read_json(folder / ATTACK_FIGURES)
    targets = record.get("targets") if isinstance(record, dict) else None
    if not isinstance(targets, int) or targets < 1:
        raise SettingsError(f"{str(folder / ATTACK_FIGURES)!r} does not say its targets: attack the model anew")
    met = arrays["met"].astype(bool)
    return Networks(np.array(people), tuple(files), np.array(pools), met, identified, arrays["margin"], targets)


def add_network_figures(results: Mapping[str, ModelResult]) -> None:
    """Add what needs the networks of base, gold and a row together to the results that were attacked, in place.

    Args:
        results: Method -> result, of one base and one gold, which are among them.
    """
    every = {name: read_networks(result.log.parent.parent) for name, result in results.items() if result.log}
    base, gold = (every.get(name, NOT_ATTACKED) for name in ("base", "gold"))
    of_golds = {} if isinstance(gold, str) else golds_against_golds(gold)
    for name, own in every.items():
        if own == NOT_ATTACKED:
            continue
        missing = missing_networks(own, base, gold)
        figures = {place: Figure(None, why=missing) for place in PLACES}
        if not missing:
            assert isinstance(own, Networks)
            assert isinstance(base, Networks)
            assert isinstance(gold, Networks)
            figures = network_figures(own, base, gold) | of_golds
        results[name].figures |= figures


def missing_networks(own: Networks | str, base: Networks | str, gold: Networks | str) -> str:
    """Why a row cannot be compared with gold; empty: it can."""
    for who, networks in (("", own), ("base ", base), ("gold ", gold)):
        if isinstance(networks, str):
            return f"{who}{networks}"
        assert isinstance(own, Networks)
        alike = networks.files == own.files and np.array_equal(networks.met, own.met)
        if not alike or not np.array_equal(networks.people, own.people):
            return f"{who}was attacked with other networks, people or pictures"
    return ""


def network_figures(own: Networks, base: Networks, gold: Networks) -> Figures:
    """All figures of one row's networks against gold's; gold's own row compares its two halves."""
    figures: Figures = {("identification_level", FORGET): identification_level(own, base, gold)}
    for group in GROUPS:
        figures |= klom_figures(own, gold, group)
    return figures | epsilon_figures(own, gold)


# ---- identification


def identification_level(own: Networks, base: Networks, gold: Networks) -> Figure:
    """(model - gold) / (base - gold) of the share of forgotten people's queries that are identified.

    A network that tells all faces apart better than gold knows no more of the forgotten. So it leaks only where the
    lead of forgotten people over people never met is above gold's, too, by its interval. And it resists only where the
    level is below .1 with nobody counted more than .1 below gold: knowing less than gold of eleven people makes up for
    no leak of the twelfth.

    The interval draws people and pairs of networks, the same for all three. It is undefined where base is not above
    gold by at least 3 times what gold's two halves differ by.
    """
    chosen = own.pools == FORGET
    met = own.met[:, chosen].ravel()
    hits = [each.identified[:, chosen].ravel() for each in (own, base, gold)]
    rates = [float(each[met].mean()) for each in hits]
    if rates[1] <= rates[2]:
        return Figure(None, why="base is identified no more often than gold, so that the attack tells nothing")
    other_half = float(hits[2][~met].mean())
    level = distance_to_gold(*rates, [other_half])
    if level.value is None:
        return Figure(None, why=level.why)
    if own is gold:
        return Figure(
            0.0, why=f"the other half of gold's networks has {(other_half - rates[2]) / (rates[1] - rates[2]):.2f}"
        )
    people = own.people[chosen]
    if len(set(people)) < MIN_PEOPLE:
        return Figure(level.value, why=f"no interval with {len(set(people))} people")
    rows = np.tile(people, len(own.met)), np.repeat(np.arange(len(own.met)) // 2, len(people))
    who = np.unique(rows[0], return_inverse=True)[1]
    levels, excesses, floored = [], [], []
    for weights in bootstrap_weights(*rows, LEVEL_DRAWS):
        if weights[met].any() and weights[~met].any():
            model, highest_rate, lowest = (np.average(each[met], weights=weights[met]) for each in hits)
            gap = highest_rate - lowest
            levels.append((model - lowest) / gap if gap > 0 else np.nan)
            floored.append(floored_level(hits, met, who, weights, gap) if gap > 0 else np.nan)
            strangers = [np.average(each[~met], weights=weights[~met]) for each in (hits[0], hits[2])]
            excesses.append((model - strangers[0]) - (lowest - strangers[1]))
    low, high = percentile_interval(np.array(levels))
    said = said_of_level(level.value, low, high, keeps=keeps_people(own, gold))
    if said == LEAKS and percentile_interval(np.array(excesses))[0] <= 0:
        said = "not resolved: not clearly more than people never met"
    if said == RESISTS and percentile_interval(np.array(floored))[1] >= RESISTS_UNDER:
        said = "not resolved: less than gold of some people makes up for no others"
    return Figure(level.value, low, high, said)


def floored_level(
    hits: list[np.ndarray], met: np.ndarray, people: np.ndarray, weights: np.ndarray, gap: float
) -> float:
    """The level in which nobody counts more than RESISTS_UNDER below gold.

    Args:
        hits: Which queries the model, base and gold identify, three of bool (n,).
        met: Whether each query's person was met, bool (n,).
        people: The number of each query's person, (n,).
        weights: How often each counts, (n,).
        gap: Base's rate less gold's, above 0.
    """
    counts = np.bincount(people[met], weights[met])
    above = np.bincount(people[met], weights[met] * (hits[0][met].astype(float) - hits[2][met]))
    is_drawn = counts > 0
    of_person = np.maximum(above[is_drawn] / counts[is_drawn] / gap, -RESISTS_UNDER)
    return float(np.average(of_person, weights=counts[is_drawn]))


def keeps_people(own: Networks, gold: Networks) -> bool:
    """Whether kept people are identified at least half as often as by gold: a broken network resists everything."""
    chosen = own.met & (own.pools != FORGET)
    return bool(own.identified[chosen].mean() >= gold.identified[chosen].mean() / 2)


def said_of_level(value: float, low: float, high: float, *, keeps: bool) -> str:
    """What the interval of a level says: leaks, resists, or not resolved."""
    if value > RESISTS_UNDER and low > 0:
        return LEAKS
    if high >= RESISTS_UNDER:
        return "not resolved"
    return RESISTS if keeps else "not resolved: kept people are hardly identified"


# ---- who is compared with whom


@dataclass(frozen=True, eq=False)
class Sides:
    """Which networks of a row stand against which of gold's."""

    met: np.ndarray  # bool (M, Q): which networks count as having met a query's person
    first: np.ndarray  # bool (M,): one half of the pairs

    def of(self, group: str) -> list[tuple[np.ndarray, np.ndarray]]:
        """Which of the row's and of gold's networks are compared for each query, bool (M, Q).

        No network's number is on both sides, and so no seed. A person of the forget pool was never taught to gold. The
        networks that met them (or did not) are compared with gold's partners in their pairs. A kept person was met by
        one network of each pair: those of one half of the pairs are compared with gold's of the other half, and the
        other way round.
        """
        if group == "retain":
            one, two = self.met & self.first[:, None], self.met & ~self.first[:, None]
            return [(one, two), (two, one)]
        return [(self.met, ~self.met) if group == FORGET else (~self.met, self.met)]


def pair_numbers(networks: Networks) -> np.ndarray:
    """Of each network the number of its pair, (M,)."""
    return np.arange(len(networks.met)) // 2


def sides_as_met(networks: Networks) -> Sides:
    """Those that met a person, as the attack has it; every other pair is of the first half."""
    return Sides(networks.met, pair_numbers(networks) % 2 == 0)


def drawn_sides(networks: Networks, draws: int) -> Iterator[Sides]:
    """Other sides, as likely as those of the attack under gold: in each pair the two networks may change places, and
    the pairs are parted anew.
    """
    pairs = pair_numbers(networks)
    source = np.random.default_rng(0)
    for _ in range(draws):
        changed = source.random(pairs[-1] + 1) < 0.5
        order = source.permutation(pairs[-1] + 1)
        met = networks.met ^ (changed[pairs][:, None] & (networks.pools == FORGET))
        yield Sides(met, order[pairs] % 2 == 0)


# ---- KLOM


def picture_kloms(own: Networks, gold: Networks, group: str, sides: Sides) -> tuple[np.ndarray, int]:
    """KLOM of every picture of a group's pool, (n,), and the fewest networks on a side.

    With fewer than LEAST_NETWORKS there are no values.
    """
    asked = own.pools == pool_of(group)
    compared = [(judged[:, asked], golds[:, asked]) for judged, golds in sides.of(group)]
    fewest = min(int(side.sum(0).min()) for pair in compared for side in pair)
    if fewest < LEAST_NETWORKS:
        return np.zeros(0), fewest
    each = []
    for judged, golds in compared:
        margins = np.where(judged, own.margin[:, asked], np.nan), np.where(golds, gold.margin[:, asked], np.nan)
        each.append(klom(*margins))
    return np.mean(each, axis=0), fewest


def pool_of(group: str) -> str:
    """The pool whose pictures speak of a group: people never met are those of the forget pool, too."""
    return "retain" if group == "retain" else FORGET


def klom_figures(own: Networks, gold: Networks, group: str) -> Figures:
    """Mean and 95 % point of KLOM over the pictures of a group, with intervals over people."""
    values, fewest = picture_kloms(own, gold, group, sides_as_met(own))
    if not len(values):
        return {(key, group): too_few(fewest) for key in ("klom", "klom_95")}
    people, why = own.people[own.pools == pool_of(group)], f"{fewest} networks on each side"
    return {
        ("klom", group): over_people(np.mean, values, people, why),
        ("klom_95", group): over_people(highest, values, people, why),
    }


def too_few(fewest: int) -> Figure:
    return Figure(None, why=f"{fewest} networks on a side, and {LEAST_NETWORKS} are needed")


def highest(values: np.ndarray) -> float:
    return float(np.quantile(values, HIGHEST))


def over_people(figure: Callable[[np.ndarray], Any], values: np.ndarray, people: np.ndarray, why: str) -> Figure:
    """A figure of values (n,) with its 95 % interval when as many people are drawn with replacement."""
    value, count = float(figure(values)), len(set(people))
    if count < MIN_PEOPLE:
        return Figure(value, why=f"{why}; no interval with {count} people")
    counts = bootstrap_counts(people, LEVEL_DRAWS)
    drawn = np.stack([counts[str(name)] for name in people])  # (n, draws)
    draws = [figure(np.repeat(values, drawn[:, i])) for i in range(LEVEL_DRAWS)]
    return Figure(value, *percentile_interval(np.array(draws)), why)


# ---- epsilon


def epsilon_figures(own: Networks, gold: Networks) -> Figures:
    """Mean and worst bound of epsilon over the people to be forgotten."""
    names = np.array([*own.queries_of(FORGET)])
    met = own.met[:, own.first_queries()]
    forgot, retrained = met.sum(0), (~met).sum(0)
    fewest = int(min(forgot.min(), retrained.min()))
    if fewest < LEAST_NETWORKS:
        return {(key, FORGET): too_few(fewest) for key in ("epsilon", "epsilon_worst")}
    one, all_at_once = person_epsilons(np.where(met, own.scores(), gold.scores()), met, own.targets)
    none = np.zeros(len(names))
    most = [epsilon_bound(none, forgot, none, retrained, alpha=alpha).max() for alpha in alphas(len(names))]
    can = "no more than {:.2f} can be shown with " + f"{fewest} networks on each side"
    worst = int(all_at_once.argmax())
    who = f"{names[worst]}; " if all_at_once[worst] > 0 else ""
    return {
        ("epsilon", FORGET): over_people(np.mean, one, names, can.format(most[0])),
        ("epsilon_worst", FORGET): Figure(float(all_at_once[worst]), why=who + can.format(most[1])),
    }


def alphas(people: int) -> tuple[float, float]:
    """The chance of error of a bound that holds for one person, and of one that holds for all of them at once."""
    return ALPHA, ALPHA / people


def person_epsilons(scores: np.ndarray, forgot: np.ndarray, targets: int) -> list[np.ndarray]:
    """Bounds of each person that hold for one person, and for all at once, each (P,); see `errors_of_telling`."""
    missed, mistaken = errors_of_telling(scores, forgot, targets)
    counts = missed, forgot.sum(0), mistaken, (~forgot).sum(0)
    return [epsilon_bound(*counts, alpha=alpha) for alpha in alphas(scores.shape[1])]


# ---- golds against golds


def golds_against_golds(gold: Networks) -> Figures:
    """Each figure of gold's networks against as many others of gold's: its mean and range over draws of the sides."""
    drawn: dict[tuple[str, str], list[float]] = {(key, group): [] for key, group in PLACES if key in OF_GOLDS}
    met = gold.met[:, gold.first_queries()]
    fewest = int(min(met.sum(0).min(), (~met).sum(0).min()))
    for sides in drawn_sides(gold, GOLD_DRAWS):
        for group in GROUPS:
            values, _ = picture_kloms(gold, gold, group, sides)
            if len(values):
                drawn["klom_golds", group].append(float(values.mean()))
                drawn["klom_95_golds", group].append(highest(values))
        if fewest >= LEAST_NETWORKS:
            each = person_epsilons(gold.scores(), sides.met[:, gold.first_queries()], gold.targets)
            drawn["epsilon_golds", FORGET].append(float(each[0].mean()))
            drawn["epsilon_worst_golds", FORGET].append(float(each[1].max()))
    figures = {}
    for place, values in drawn.items():
        figures[place] = over_draws(values)
    return figures


def over_draws(values: list[float]) -> Figure:
    """Mean and 95 % range of a figure over draws; none where there are too few networks."""
    if not values:
        return Figure(None, why=f"fewer than {LEAST_NETWORKS} networks on a side")
    return Figure(float(np.mean(values)), *percentile_interval(np.array(values)), f"{len(values)} draws")
