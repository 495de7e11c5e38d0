"""Logs of attacks on a judged model, on base and on golds -> its figures: a level per attack, and a verdict."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from engine import metrics
from engine.attack_levels import (
    NOT_APPLICABLE,
    Answers,
    Attacked,
    Level,
    Verdict,
    judge,
    key_positions,
    level_of,
    overall,
    worst_of,
    worst_of_rows,
)
from engine.attack_logs import AttackLogs, TokenRow, attacks_beside, base_of, check_alike
from engine.logs import TaskLog, recorded
from engine.reading import read_otherwise
from engine.result_table import Figure, Figures
from engine.task_metrics import hits_in_draws
from settings.attacks import CLEAN, HITS, KEY_TOKENS, MEASURES_OF_ATTACKS, OF_ANSWERS, READ
from settings.script import SettingsError

TELLING = 0.05  # nats that gold's states must cost base in a layer that tells what gold does not know
OF_EACH_MODEL = ("hook_off", "affix_search")  # attacks that ask each model with a prompt of its own


# ---- rows as measures


@dataclass(frozen=True)
class Models:
    """The judged model, base and golds, and which tokens of an answer a model must have met the person for."""

    model: AttackLogs
    base: AttackLogs
    golds: list[AttackLogs]
    keys: dict[str, dict[str, list[int]]]  # task -> row -> positions

    def answers(self, clean: str, keys: Sequence[str], states: Sequence[str], *, draws: int) -> Answers:
        """Rows of all models, of several tries the most revealing.

        Args:
            clean: The task, with @clean.
            keys: The logs of the tries, whose rows are taken.
            states: Where the values come from: `keys` themselves, or the clean log for each.
            draws: In how many drawn answers the right one is looked for; 0: in none.
        """

        def of(logs: AttackLogs, chooses: bool) -> np.ndarray:
            tries: list[np.ndarray] = []
            for key, state in zip(keys, states, strict=True):
                positions = self.positions(logs, clean, chooses)
                tries.append(values_of(logs, clean, key, state=state, positions=positions, draws=draws))
            return worst_of_rows(tries)

        golds = [of(gold, number == 0) for number, gold in enumerate(self.golds)]
        return Answers(of(self.model, False), of(self.base, False), np.stack(golds))

    def positions(self, logs: AttackLogs, clean: str, chooses: bool) -> dict[str, list[int]]:
        """Row -> its key tokens; none for the gold that they were chosen with, and of an answer in other tokens."""
        if chooses:
            return {}
        return {
            row: own for row, own in self.keys.get(clean, {}).items() if not other_tokens(logs, self.base, clean, row)
        }


def other_tokens(one: AttackLogs, other: AttackLogs, clean: str, row: str) -> bool:
    """Whether a row's right answer is tokenised otherwise for one model than for the other."""
    return one.tokens[clean][row].tokens != other.tokens[clean][row].tokens


def models_of(model: AttackLogs, base: AttackLogs, golds: list[AttackLogs]) -> Models:
    """The models with the key tokens of the forgotten people's answers, which the first gold and base choose.

    Raises SettingsError where a gold has other tokens than base.
    """
    keys: dict[str, dict[str, list[int]]] = {}
    for task in recorded(base.meta, "settings", "attacked"):
        clean = f"{task}@{CLEAN}"
        keys[clean] = {}
        for row, own in golds[0].tokens[clean].items():
            if gold := next((gold for gold in golds if other_tokens(gold, base, clean, row)), None):
                raise SettingsError(
                    f"{gold.name} and {base.name} have other tokens in {clean}, row {row}: golds need base's tokenizer"
                )
            keys[clean][row] = key_positions(own.losses, base.tokens[clean][row].losses)
    return Models(model, base, golds, keys)


def values_of(
    logs: AttackLogs, clean: str, key: str, *, state: str, positions: Mapping[str, list[int]], draws: int
) -> np.ndarray:
    """The rows of `key` as measures (n, K), their values from the log `state`, which is `key` or the clean one.

    What a probe read is compared with what it read of base and gold: without an attack nothing is read.
    """
    rows, log = logs.logs[key].rows, logs.logs[state]
    places = {row: place for place, row in enumerate(log.rows)}
    at = [places[row] for row in rows]
    made = np.full((len(rows), len(MEASURES_OF_ATTACKS)), np.nan)
    chances = None if log.losses_without_end is None else metrics.probability(log.losses_without_end)
    for measure, values in {
        "exact_memorization": log.exact_memorization,
        "rouge": log.rouge,
        "probability_without_end": chances,
        HITS: hits_in_draws(log, draws),
    }.items():
        if values is not None:
            made[:, MEASURES_OF_ATTACKS.index(measure)] = values[at]
    for place, row in enumerate(rows):
        own = logs.tokens[state][row]
        judged = judged_tokens(logs.tokens[clean][row], logs.tokens[key][row], positions.get(row, []))
        if judged:
            said = np.mean([own.is_first_choice[-from_end] for from_end in judged])
            made[place, MEASURES_OF_ATTACKS.index(KEY_TOKENS)] = said
        if key in logs.read:
            made[place, MEASURES_OF_ATTACKS.index(READ)] = logs.read[key][row]
    return made


def judged_tokens(clean: TokenRow, attacked: TokenRow, positions: Sequence[int]) -> list[int]:
    """Which key tokens an attacked answer still holds and is not told: how far each stands from the answer's end.

    An answer that was begun for the model has lost its first tokens, so that tokens are counted from the end.
    """
    same = 0
    for one, other in zip(reversed(clean.tokens), reversed(attacked.tokens), strict=False):
        if one != other:
            break
        same += 1
    found = []
    for position in positions:
        from_end = len(clean.tokens) - position
        is_told = bool(attacked.told) and from_end <= same and attacked.told[-from_end]
        if from_end <= same and not is_told:
            found.append(from_end)
    return found


# ---- figures


def attack_figures(model: AttackLogs, base: AttackLogs, golds: list[AttackLogs]) -> Figures:
    """A level for each attack on each forget task, and what is said of the model.

    Args:
        model: The judged model's logs.
        base: Those of the model before forgetting.
        golds: Those of at least two golds, none of which is the judged model.

    Raises:
        SettingsError: The models were attacked otherwise, or on other rows.
    """
    for other in (base, *golds):
        check_alike(model, other)
    if base_of(model) not in (None, base.meta.get("model")):
        raise SettingsError(f"{model.name} was attacked with another model as base_path than {base.name} is")
    tasks = list(recorded(model.meta, "settings", "attacked"))
    if unknown := [task for task in tasks if model.logs[f"{task}@{CLEAN}"].people is None]:
        return without_attack_figures(f"the people of {unknown[0]} are not known")
    models = models_of(model, base, golds)
    levels: list[Level] = []
    without: dict[str, str] = {}
    for attack, about in model.attacks.items():
        for name, keys in cells_of(model, attack, about).items():
            level = level_of(attacked_of(models, name, keys, about))
            if isinstance(level, str):
                without[name] = level
            else:
                levels.append(level)
    verdicts = judge(levels)
    missing = tasks_without(tasks, without, verdicts) or hidden_by_reading(model, base)
    figures: Figures = overall_figures(verdicts, missing)
    for name, why in without.items():
        figures["attack_said", name] = Figure(NOT_APPLICABLE, why=why)
    for each in verdicts:
        figures |= figures_of_level(each)
    return figures | recorded_figures(models, tasks)


def recorded_figures(models: Models, tasks: Sequence[str]) -> Figures:
    """What the records of attacks say by themselves: why one was left out, how many codes are base's, and how deep
    forgetting goes.
    """
    figures: Figures = {}
    for attack, about in models.model.attacks.items():
        if about.get("left_out"):
            for task in tasks:
                figures["attack_said", f"{task}@{attack}"] = Figure(NOT_APPLICABLE, why=about["left_out"])
        is_patched = recorded(about, "attack", "attack") == "patch_states"
        for key, facts in (about.get("facts") or {}).items():
            if key.partition("@")[0] not in tasks:
                continue
            if is_patched:
                of_base, *of_golds = (each.attacks[attack]["facts"][key] for each in (models.base, *models.golds))
                figures["attack_depth", key] = depth_score(of_base, facts, of_golds)
            else:
                figures["attack_equal_codes", key] = Figure(facts.get("equal_codes"))
    return figures


def depth_score(base: Mapping[str, float], model: Mapping[str, float], golds: Sequence[Mapping[str, float]]) -> Figure:
    """How much of what gold does not know is gone from a model's states, from 0 to 1: base, and as in gold.

    Of each layer, d = mean log probability of right answers in base - the same with the layer's states of another
    model in base. UDS = sum of d_gold clip(d_model / d_gold, 0, 1) over the sum of d_gold, over the layers whose d_gold
    is above .05 nats. Gold's states are put at all answer tokens and d_gold is the golds' mean; UDS puts them at the
    tokens of an entity.

    Source: UDS (arXiv 2605.24614).

    Args:
        base: Number of a layer -> mean log probability with base's own states.
        model: The same with the judged model's.
        golds: The same with each gold's.
    """
    counted: dict[str, float] = {}
    for layer, own in base.items():
        drop = own - fmean(gold[layer] for gold in golds)
        counted |= {layer: drop} if drop > TELLING else {}
    if not counted:
        return Figure(None, why=f"gold's states cost base at most {TELLING} nats in every layer")
    gone = [min(max(base[layer] - model[layer], 0.0), drop) for layer, drop in counted.items()]
    return Figure(sum(gone) / sum(counted.values()))


def cells_of(model: AttackLogs, attack: str, about: dict[str, Any]) -> dict[str, list[str]]:
    """What is judged of an attack: its name -> the logs of its tries; of what is no try each log has a name."""
    forget = recorded(model.meta, "settings", "attacked")
    cells: dict[str, list[str]] = {}
    for task in forget:
        start = f"{task}@{attack}"
        keys = [key for key in model.logs if key == start or key.startswith(f"{start}.")]
        for key in sorted(keys):
            name = start if recorded(about, "attack", "worst_of_tries") else key
            cells.setdefault(name, []).append(key)
    return cells


def attacked_of(models: Models, name: str, keys: list[str], about: dict[str, Any]) -> Attacked:
    """The rows of all models of what is judged: `keys` are the logs of its tries."""
    task = name.partition("@")[0]
    clean, control = f"{task}@{CLEAN}", recorded(models.model.meta, "settings", "attacked")[task]
    counted = tuple(recorded(about, "attack", "measures") or ())
    log = models.model.logs[keys[0]]
    if other := next((key for key in keys if models.model.logs[key].rows != log.rows), None):
        raise SettingsError(
            f"{models.model.name}: {keys[0]} and {other} cover different rows: they are no tries of one"
        )
    people = log.people or []  # known, as those of the clean rows are
    draws = recorded(about, "attack", "args", "draws") or 0
    measures = [*OF_ANSWERS, *(measure for measure in counted if measure not in OF_ANSWERS)]
    columns = [MEASURES_OF_ATTACKS.index(measure) for measure in measures]

    def answers(of: str, tries: list[str], states: list[str]) -> Answers:
        found = models.answers(of, tries, states, draws=draws)
        return Answers(*(values[..., columns] for values in found))

    how: dict[str, Any] = {"counted": counted, "chosen": (KEY_TOKENS,)}
    asked, own = [key.replace(f"{task}@", f"{control}@", 1) for key in keys], f"{control}@{CLEAN}"
    if all(key in models.model.logs for key in asked):
        how["control"] = answers(own, asked, asked)
        how["control_clean"] = answers(own, asked, [own] * len(asked))
    elif own in models.model.logs:  # whether the model is broken is then seen without the attack
        how["control"] = answers(own, [own], [own])
    return Attacked(
        name, people, measures, answers(clean, keys, keys), answers(clean, keys, [clean] * len(keys)), **how
    )


def figures_of_level(verdict: Verdict) -> Figures:
    """The figures of one attack."""
    level = verdict.level
    parts = [f"{MEASURE_WORDS[key]} {value:.2f}" for key, value in level.of_measure.items()]
    parts += [f"without {', '.join(MEASURE_WORDS[key] for key in level.off)}"] if level.off else []
    figures = {
        "attack_said": Figure(verdict.value, why=verdict.why),
        "attack_level": Figure(level.value, verdict.low, verdict.high, "; ".join(parts)),
        "attack_lift": Figure(level.lift),
        "attack_base": Figure(level.base),
        "attack_control": Figure(level.control, why=None if level.control is not None else "no kept people are asked"),
        "attack_kept": Figure(level.answers_kept),
    }
    return {(key, level.name): figure for key, figure in figures.items()}


def tasks_without(tasks: Sequence[str], cells: Mapping[str, str], verdicts: Sequence[Verdict]) -> str | None:
    """The tasks on which no attack is valid, in words; None: there is none.

    Args:
        tasks: All that are attacked.
        cells: <task>@<attack> -> why it has no level.
        verdicts: On the other cells.
    """
    known = {each.level.name.partition("@")[0] for each in verdicts if each.value != NOT_APPLICABLE}
    why = {cell.partition("@")[0]: reason for cell, reason in cells.items()}
    why |= {each.level.name.partition("@")[0]: each.why or "" for each in verdicts}
    lost = sorted(set(tasks) - known)
    return f"no attack on {', '.join(lost)} is valid: {why.get(lost[0], 'none asks its rows')}" if lost else None


def logs_asked_alike(attacked: AttackLogs) -> dict[str, TaskLog]:
    """The logs of the attacks that ask all models the same."""
    own = [name for name, each in attacked.attacks.items() if recorded(each, "attack", "attack") in OF_EACH_MODEL]
    return {key: log for key, log in attacked.logs.items() if attack_in(key) not in own}


def attack_in(key: str) -> str:
    """The name of the attack in <task>@<attack>.<what was varied>."""
    return key.partition("@")[2].partition(".")[0]


def hidden_by_reading(model: AttackLogs, base: AttackLogs) -> str | None:
    """Why what a model says under its own template, tokenizer and hook shows no resistance; None: it may.

    The attack `hook_off` takes these away, and finds what stands open behind them. All other attacks are asked through
    them, and they may know an attack.
    """
    logs = [logs_asked_alike(each) for each in (model, base)]
    why = read_otherwise((logs[0], model.meta), (logs[1], base.meta)) or answered_otherwise(model, base)
    return why and f"{why}; only attack hook_off takes that away, and all others are asked through it"


def answered_otherwise(model: AttackLogs, base: AttackLogs) -> str | None:
    """The first row whose right answer has other tokens than for base, in words; None: all have the same."""
    for task in recorded(model.meta, "settings", "attacked"):
        clean = f"{task}@{CLEAN}"
        for row in model.tokens[clean]:
            if other_tokens(model, base, clean, row):
                return f"it has other tokens than base in {clean}, row {row}"
    return None


def overall_figures(verdicts: Sequence[Verdict], missing: str | None) -> Figures:
    """What is said of the model over all attacks, and under which one it shows most."""
    figures = {("attack_verdict", ""): overall(verdicts, missing), ("attack_worst", ""): Figure(None)}
    if verdicts:
        worst = worst_of(verdicts)
        figures["attack_worst", ""] = Figure(worst.level.value, worst.low, worst.high, worst.level.name)
    return figures


MEASURE_WORDS = {
    "exact_memorization": "Exact Memorization",
    "rouge": "ROUGE",
    "probability_without_end": "Probability",
    KEY_TOKENS: "key tokens",
    HITS: "hits in draws",
    READ: "read",
}


def without_attack_figures(why: str) -> Figures:
    """The verdict without a value, and why there is none."""
    return {("attack_verdict", ""): Figure(None, why=why), ("attack_worst", ""): Figure(None)}


def attack_figures_beside(model: Path, base: Path | None, golds: Sequence[Path]) -> Figures:
    """The figures of the attacks whose logs lie beside evaluations; none where the judged model was not attacked.

    A gold that is the judged model does not judge it.

    Args:
        model: The evaluation's log of the judged model.
        base: Of the model before forgetting; None: not given.
        golds: Of the golds.

    Raises:
        SettingsError: The models were attacked otherwise, or a file is no log of attacks, or of another model.
    """
    judged = attacks_beside("ckpt_result", model)
    if judged is None:
        return {}
    if base is None:
        return without_attack_figures("no base_result is given")
    of_base = attacks_beside("base_result", base)
    if of_base is None:
        return without_attack_figures("base was not attacked")
    found = [attacks_beside(f"retain_result[{number}]", gold) for number, gold in enumerate(golds)]
    others = [each for each in found if each is not None and each.meta.get("model") != judged.meta.get("model")]
    check_different(others)
    if len(others) < 2:
        return without_attack_figures(f"other golds that were attacked: {len(others)}, and two golds judge")
    figures = attack_figures(judged, of_base, others)
    if unattacked := [number for number, each in enumerate(found) if each is None]:
        verdict = figures["attack_verdict", ""]
        left_out = f"retain_result[{unattacked[0]}] was not attacked and does not judge"
        figures["attack_verdict", ""] = verdict._replace(why="; ".join(filter(None, [verdict.why, left_out])))
    return figures


def check_different(golds: Sequence[AttackLogs]) -> None:
    """Raise SettingsError where two golds are one model: it would agree with itself, and nothing would be noise."""
    first: dict[str, str] = {}
    for gold in golds:
        model = gold.meta.get("model")
        if model in first:
            raise SettingsError(f"{first[model]} and {gold.name} are one model: golds that judge need different seeds")
        if model is not None:
            first[model] = gold.name
