"""The page's first words: what was done, what base and gold are, and what came out, in sentences."""

from collections.abc import Mapping
from statistics import fmean, stdev
from typing import Any, NamedTuple

from engine.measures import MEASURES
from engine.places import judged_over_seeds
from engine.seeds import SeedGroup
from engine.verdicts import LIKE, is_clearly_better
from report.method_rows import MethodRow, nearness
from report.words import counted, in_words, listed

WORST, ALL = "distance_worst_way", "distance_to_gold"  # what the nearest is found by; all measures without a verdict
NOISE = {WORST: "distance_held_out_worst_way", ALL: "noise_floor"}  # what two golds differ by


class Outcome(NamedTuple):
    """What came out: one sentence to remember, and what it rests on."""

    headline: str
    sentences: list[str]


def what_was_done(rows: list[MethodRow], settings: Mapping[str, Any], forgotten: list[str]) -> list[str]:
    """What base and gold are and what the methods had to do, in sentences.

    Args:
        rows: The table's rows.
        settings: Those that an evaluation of base recorded; they name model, data and tasks.
        forgotten: The people to forget.
    """
    model, data = (settings.get(part, {}).get("name", "") for part in ("model", "data"))
    people = counted(len(forgotten), "person", "people")
    methods = [row for row in rows if row.is_method]
    golds = max([1, *(int(count) for row in rows for count in row.figure("golds").values)])
    sentences = [
        f"Base is {kind_of_model(settings)} ({model}) that learned everybody in {data}.",
        f"It was made to forget {people} by {counted(len(methods), 'method')}, and was to keep everything else.",
        f"Gold learned everybody but these {people} and is what a perfect forgetting would leave.",
        "Start is the model before it was taught anybody.",
    ]
    if golds > 1:
        sentences[2] += f" Each base has {golds} golds of different seeds, which differ by chance alone."
    sentences.append("A distance is a share of the way from gold, 0, to base, 1: less is better.")
    if several := [row for row in methods if len(row.of_seeds) > 1]:
        seeds = listed(str(result.seed) for result in several[0].of_seeds)
        sentences.append(f"Figures are means over the seeds {seeds}, with ± their standard deviation.")
    return sentences


def kind_of_model(settings: Mapping[str, Any]) -> str:
    """What was evaluated, in words, by the tasks that the evaluation recorded: faces have none."""
    if "tasks" not in settings:
        return "a face network"
    sees = any(task.get("image") for task in settings["tasks"].values())
    return "a vision-language model" if sees else "a language model"


def outcome(rows: list[MethodRow], names: Mapping[str, str]) -> Outcome:
    """Which method came nearest to gold among those that kept what they should, by how much, and against which noise.

    Args:
        rows: The table's rows.
        names: Task -> what the page calls it.
    """
    methods = [row for row in rows if row.is_method]
    if not methods:
        return Outcome("No method was run: base and gold are here alone.", [])
    if any(0.0 in row.figure("gate").values for row in rows if row.method == "base"):
        return Outcome("The memorisation gate failed: there was too little to forget, and no method can be judged.", [])
    counting = [row for row in methods if row.counts and nearness(row) is not None]
    others = [not_counted(row) for row in methods if row not in counting]
    left_out = [f"Not counted: {listed(others)}."] if others else []
    if not counting:
        return Outcome("No method can be called the nearest to gold.", left_out)
    measure = WORST if all(row.mean(WORST) is not None for row in counting) else ALL
    ranked = sorted(counting, key=lambda row: row.mean(measure) or 0.0)
    nearest = ranked[0]
    where = f"{distance_text(nearest, measure)} of the way from gold to base"
    if len(ranked) == 1:
        headline = f"{nearest.name} alone kept what it should have kept: it is {where}."
    else:
        headline = f"Of {len(ranked)} methods that kept what they should, {nearest.name} is nearest to gold: {where}."
    sentences = [distance_meaning(nearest, measure, names)]
    if len(ranked) > 1:
        sentences.append(lead_text(nearest, ranked[1], measure))
    return Outcome(headline, [*sentences, verdict_sentence(methods, nearest, names), *left_out])


def not_counted(row: MethodRow) -> str:
    """A method that cannot be the nearest, with why."""
    flags = row.figure("flag").values
    if row.failed:
        why = "failed"
    elif any(row.figure("hook").values):
        why = "asks through a hook"
    elif any(row.figure("skipped").values):
        why = "left people out"
    elif any(flags):
        why = MEASURES["flag"].words[max(flags)]
    else:
        why = "what it kept is not known" if not flags else "its distance is not known"
    return f"{row.name} ({why})"


def distance_text(row: MethodRow, measure: str) -> str:
    figure = row.figure(measure)
    spread = "" if figure.sd is None else f" ± {figure.sd:.2f}"
    return f"{figure.mean:.2f}{spread}"


def distance_meaning(nearest: MethodRow, measure: str, names: Mapping[str, str]) -> str:
    """What the distance is, and its interval."""
    figure = nearest.figure(measure)
    interval = f", 95 % interval {figure.low:.2f} to {figure.high:.2f}" if None not in (figure.low, figure.high) else ""
    if measure == ALL:
        return f"That is the mean over all measures{interval}; a verdict needs more than these logs hold."
    way = f" ({in_words(figure.why, names)})" if figure.why and len(nearest.of_seeds) == 1 else ""
    return f"That is in the way of asking in which it is farthest{way}{interval}."


def lead_text(nearest: MethodRow, second: MethodRow, measure: str) -> str:
    """By how much the nearest leads the next, against what two golds and several seeds differ by."""
    pairs = paired(nearest, second, measure)
    gap = fmean(pairs) if pairs else (second.mean(measure) or 0.0) - (nearest.mean(measure) or 0.0)
    # of the figures as they are shown, so that a reader's own subtraction gives it
    shown_gap = round(second.mean(measure) or 0.0, 2) - round(nearest.mean(measure) or 0.0, 2)
    ahead = f"Next is {second.name} at {distance_text(second, measure)}, {shown_gap:.2f} farther"
    floors = [*nearest.figure(NOISE[measure]).values, *second.figure(NOISE[measure]).values]
    if not floors:
        return f"{ahead}; how far two golds differ is not known, so that this may be chance."
    noise = max(floors)
    if gap <= noise:
        return f"{ahead}. Two golds differ by {noise:.2f}: these two methods cannot be told apart."
    ahead += f", and two golds differ by {noise:.2f}"
    if len(pairs) > 1:
        spread = 2 * stdev(pairs)
        over = f"twice its standard deviation over {len(pairs)} seeds ({spread:.2f})"
        return f"{ahead}. The lead is {'more' if gap > spread else 'no more'} than {over}: " + (
            "it holds." if gap > spread else "it may be chance."
        )
    clear = is_clear(nearest, second) if measure == WORST else None
    if clear is None:
        return f"{ahead}. There is one seed and no repeated run, so that another training may order them otherwise."
    return f"{ahead}. " + (
        "The lead is beyond repeated runs too." if clear else "Repeated runs may order them otherwise."
    )


def paired(one: MethodRow, other: MethodRow, measure: str) -> list[float]:
    """The other's figure less the one's, seed by seed."""
    values = {result.seed: result.value(measure) for result in one.of_seeds}
    found = []
    for result in other.of_seeds:
        theirs, ours = result.value(measure), values.get(result.seed)
        if theirs is not None and ours is not None:
            found.append(theirs - ours)
    return found


def is_clear(one: MethodRow, other: MethodRow) -> bool | None:
    """Whether the one is clearly better, by the rule of the places; None: no repeated runs say how far each moves."""
    rows = []
    for row in (one, other):
        spread = row.of_seeds[0].value("distance_spread")
        if spread is None:
            return None
        rows.append(judged_over_seeds(SeedGroup(row.name, row.of_seeds), spread))
    return is_clearly_better(*rows)


def verdict_sentence(methods: list[MethodRow], nearest: MethodRow, names: Mapping[str, str]) -> str:
    """Which methods are like gold, or why the nearest is not."""
    verdicts = nearest.figure("verdict")
    if not verdicts.values:
        why = in_words(verdicts.why or "the golds are too few", names)
        return f"Whether it is like gold is not known: {why}."
    like = [row.name for row in methods if set(row.figure("verdict").values) == {LIKE}]
    if like:
        return f"Like gold, by every person and every way of asking: {listed(like)}."
    word = MEASURES["verdict"].words[min(verdicts.values)]
    why = f": {in_words(nearest.of_seeds[0].figure('verdict').why or '', names)}" if len(nearest.of_seeds) == 1 else ""
    return f"No method is like gold. {nearest.name} is {word}{why}."
