"""The page's first words: what was done, what base and gold are, and what came out, in sentences."""

from collections.abc import Mapping
from statistics import fmean, stdev
from typing import Any, NamedTuple

from engine.measures import MEASURES
from engine.places import judged_over_seeds, why_group_unranked
from engine.verdicts import LIKE, is_clearly_better, spreads_needed
from report.method_rows import MethodRow
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
    if any(len(row) > 1 for row in methods):
        seeds = {seeds_of(row) for row in methods}
        which = f"the seeds {seeds.pop()}" if len(seeds) == 1 else "the seeds of each method"
        sentences.append(f"Figures are means over {which}, with ± their standard deviation.")
    return sentences


def seeds_of(row: MethodRow) -> str:
    return listed(str(result.seed) for result in row.results)


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
    measure = WORST if any(known_of_all(row, WORST) for row in methods) else ALL
    counting = [row for row in methods if row.counts and known_of_all(row, measure)]
    others = [not_counted(row) for row in methods if row not in counting]
    left_out = [f"Not counted: {listed(others)}."] if others else []
    if not counting:
        return Outcome("No method can be called the nearest to gold.", left_out)
    # where all have places these come first: methods of other seeds are not compared by their means
    placed = all(row.mean("place") is not None for row in counting)
    ranked = sorted(counting, key=lambda row: (row.mean("place") if placed else 0.0, row.mean(measure) or 0.0))
    nearest = ranked[0]
    where = f"{distance_text(nearest, measure)} of the way from gold to base"
    if len(ranked) == 1:
        headline = f"{nearest.label} alone kept what it should have kept: it is {where}."
    else:
        headline = f"Of {len(ranked)} methods that kept what they should, {nearest.label} is nearest to gold: {where}."
    sentences = [distance_meaning(nearest, measure, names)]
    if len(ranked) > 1:
        sentences.append(lead_text(nearest, ranked[1], measure))
    return Outcome(headline, [*sentences, verdict_sentence(methods, nearest, names), *left_out])


def known_of_all(row: MethodRow, measure: str) -> bool:
    """Whether a figure is known of every seed."""
    return len(row.figure(measure).values) == len(row)


def not_counted(row: MethodRow) -> str:
    """A method that cannot be the nearest, with why."""
    flags = row.figure("flag").values
    if any(failed := [bool(result.value("failed")) for result in row.results]):
        why = "failed" if all(failed) else f"{counted(sum(failed), 'seed')} failed"
    elif any(row.figure("hook").values):
        why = "has a hook"
    elif any(row.figure("skipped").values):
        why = "left people out"
    elif any(flags):
        why = MEASURES["flag"].words[max(flags)]
    else:
        why = "its distance is not known" if known_of_all(row, "flag") else "what it kept is not known"
    return f"{row.label} ({why})"


def distance_text(row: MethodRow, measure: str) -> str:
    figure = row.figure(measure)
    spread = "" if figure.deviation is None else f" ± {figure.deviation:.2f}"
    return f"{figure.mean:.2f}{spread}"


def distance_meaning(nearest: MethodRow, measure: str, names: Mapping[str, str]) -> str:
    """What the distance is, and its interval."""
    figure = nearest.figure(measure)
    interval = f", 95 % interval {figure.low:.2f} to {figure.high:.2f}" if None not in (figure.low, figure.high) else ""
    if measure == ALL:
        return f"That is the mean over all measures{interval}; a verdict needs more than these logs hold."
    way = f" ({in_words(figure.why, names)})" if figure.why and len(nearest.results) == 1 else ""
    return f"That is in the way of asking in which it is farthest{way}{interval}."


def lead_text(nearest: MethodRow, second: MethodRow, measure: str) -> str:
    """By how much the nearest leads the next, against what two golds and several seeds differ by."""
    leads = leads_by_seed(nearest, second, measure)
    gap = fmean(leads) if leads else (second.mean(measure) or 0.0) - (nearest.mean(measure) or 0.0)
    ahead = f"Next is {second.label} at {distance_text(second, measure)}, {how_far(nearest, second, measure, gap)}"
    floors = [mean for row in (nearest, second) if (mean := row.mean(NOISE[measure])) is not None]
    if not floors:
        return f"{ahead}; how far two golds differ is not known, so that this may be chance."
    noise = max(floors)
    if gap <= noise:
        return f"{ahead}. Two golds differ by {noise:.2f}: these two methods cannot be told apart."
    ahead += f", and two golds differ by {noise:.2f}"
    clear = is_clear(nearest, second) if measure == WORST else None
    if len(leads) > 1:
        return f"{ahead}. {over_seeds(gap, leads, clear)}"
    if clear is None:
        return f"{ahead}. There is one seed and no repeated run, so that another training may order them otherwise."
    return f"{ahead}. " + (
        "The lead is beyond repeated runs too." if clear else "Repeated runs may order them otherwise."
    )


def how_far(nearest: MethodRow, second: MethodRow, measure: str, gap: float) -> str:
    """The lead of the nearest in words; `gap`: over the seeds that both have."""
    own, theirs = {result.seed for result in nearest.results}, {result.seed for result in second.results}
    if own == theirs or not own & theirs:
        # of the figures as they are shown, so that a reader's own subtraction gives it
        return f"{round(second.mean(measure) or 0.0, 2) - round(nearest.mean(measure) or 0.0, 2):.2f} farther"
    common = sorted(seed for seed in own & theirs if seed is not None)
    which = f"the {'seed' if len(common) == 1 else 'seeds'} {listed(map(str, common))}"
    return f"over {which} that both have {gap:.2f} farther"


def over_seeds(gap: float, leads: list[float], clear: bool | None) -> str:
    """Whether a lead holds over several seeds.

    Args:
        gap: The lead.
        leads: The same, seed by seed.
        clear: What the rule of the places says; None: it is not known.
    """
    needed = spreads_needed(len(leads)) * stdev(leads)
    asked = f"{needed:.2f} that {len(leads)} seeds ask for"
    if gap <= needed:
        return f"The lead is no more than the {asked}: it may be chance."
    if clear is False:
        return f"The lead is more than the {asked}, but intervals meet, or one person pays for it: it may be chance."
    return f"The lead is more than the {asked}: it holds."


def leads_by_seed(one: MethodRow, other: MethodRow, measure: str) -> list[float]:
    """The other's figure less the one's, for each seed that both have."""
    values = {result.seed: result.value(measure) for result in one.results}
    found = []
    for result in other.results:
        theirs, ours = result.value(measure), values.get(result.seed)
        if theirs is not None and ours is not None:
            found.append(theirs - ours)
    return found


def is_clear(one: MethodRow, other: MethodRow) -> bool | None:
    """Whether the one is clearly better, by the rule of the places; None: one of them could not have a place."""
    spreads = [row.results[0].value("distance_spread") for row in (one, other)]
    if any(why_group_unranked(row) for row in (one, other)) or None in spreads:
        return None
    own, others = (judged_over_seeds(row, spread or 0.0) for row, spread in zip((one, other), spreads, strict=True))
    return is_clearly_better(own, others)


def verdict_sentence(methods: list[MethodRow], nearest: MethodRow, names: Mapping[str, str]) -> str:
    """Which methods are like gold, or why the nearest is not."""
    verdicts = nearest.figure("verdict")
    if not verdicts.values:
        why = in_words(verdicts.why or "the golds are too few", names)
        return f"Whether it is like gold is not known: {why}."
    like = [row.label for row in methods if set(row.figure("verdict").values) == {LIKE}]
    if like:
        return f"Like gold, by every person and every way of asking: {listed(like)}."
    word = MEASURES["verdict"].words[min(verdicts.values)]
    why = f": {in_words(nearest.results[0].figure('verdict').why or '', names)}" if len(nearest.results) == 1 else ""
    return f"No method is like gold. {nearest.label} is {word}{why}."
