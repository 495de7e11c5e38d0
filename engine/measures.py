"""Every measure of the result table, declared once: its key, its heading, which direction is better, what it says.

A figure is a measure of one model on one task, or over all tasks. Some measures are of people instead of a task:
`forget` (to be forgotten), `retain` (kept) and, in face recognition, `holdout` (never met).
"""

from dataclasses import dataclass, field

HIGHER, LOWER, LIKE_GOLD, NEITHER = "higher", "lower", "like gold", "neither"  # which value is better
P_VALUES = ("forget_quality", "forget_quality_by_person")  # keys; a mean of these says nothing
ARROWS = {HIGHER: " ↑", LOWER: " ↓"}


@dataclass(frozen=True)
class Measure:
    """One measure."""

    key: str  # in the long table
    heading: str  # in the wide table, where a task's name follows it
    better: str  # HIGHER, LOWER, LIKE_GOLD or NEITHER
    sentence: str
    format: str = ".3f"  # of a number in the short tables
    short: dict[str, str] = field(default_factory=dict)  # task, or "" over all -> heading in the short tables
    words: dict[float, str] = field(default_factory=dict)  # of a verdict: value -> word
    missing: str = "–"  # what the short tables show in place of a value
    unnamed_task: str = ""  # the task whose name the heading in the wide table leaves out
    has_interval: bool = False
    has_why: bool = False


YES_OR_NO = {1.0: "yes", 0.0: "no"}

# ---- attacks on face networks

ATTACKED = [
    (
        "U-LiRA",
        "by likelihood ratio",
        {
            "accuracy": {"forget": "U-LiRA, forgotten", "retain": "U-LiRA, kept"},
            "auc": {"forget": "U-LiRA AUC"},
            "tpr_1": {"forget": "U-LiRA TPR at 1 %"},
        },
    ),
    (
        "U-MIA",
        "by the population attack that shadow models held out for it preferred",
        {"accuracy": {"forget": "U-MIA, forgotten"}},
    ),
    ("U-MIA logistic", "by logistic regression on all people together", {}),
    ("U-MIA tree", "by a decision tree on all people together", {}),
]


def face_attack(name: str, how: str, short: dict[str, dict[str, str]]) -> list[Measure]:
    """What a membership attack on face networks tells of people.

    Args:
        name: The attack's name in the attack's record.
        how: How it decides, in a few words.
        short: Last part of a key -> its headings in the short tables.
    """
    key = name.lower().replace(" ", "_")
    above = "Share of these people's scores above all but {} of those of people never met, " + how
    measures = [
        Measure(
            f"{key}_accuracy",
            f"{name} accuracy",
            LIKE_GOLD,
            f"Accuracy of telling these people from people never met, {how}; .5: nothing is told",
            short=short.get("accuracy", {}),
            has_interval=True,
            has_why=True,
        ),
        Measure(
            f"{key}_auc",
            f"{name} AUC",
            LIKE_GOLD,
            f"Chance that a score of these people is above one of people never met, {how}",
            short=short.get("auc", {}),
            has_interval=True,
            has_why=True,
        ),
    ]
    for ending, rate, percent in (("tpr_1", "1%", "1 %"), ("tpr_0.1", "0.1%", "0.1 %")):
        measures.append(
            Measure(
                f"{key}_{ending}",
                f"{name} TPR at {rate} FPR",
                LIKE_GOLD,
                above.format(percent),
                short=short.get(ending, {}),
                missing="not resolvable",
                has_interval=True,
                has_why=True,
            )
        )
    return measures


FACE_ATTACKS = {name: face_attack(name, how, short) for name, how, short in ATTACKED}
EER = Measure(
    "eer",
    "EER",
    LIKE_GOLD,
    "Equal error rate of verifying these people",
    short={"forget": "EER, forgotten"},
)

IDENTIFICATION = Measure(
    "identification",
    "Identification",
    LIKE_GOLD,
    "Share of new pictures of these people that are nearer to their own enrolled pictures than to those of anybody "
    "whom the network never met; over all attacked networks",
    short={"forget": "identified, forgotten"},
    has_interval=True,
    has_why=True,
)
KLOM_SENTENCE = (
    "KL divergence, in nats, of a picture's margins over networks that forgot from its margins over as many "
)
KLOM_SENTENCE += "networks that never met the forgotten (golds); "
EPSILON_SENTENCE = "Lower bound of the epsilon by which the margins of a forgotten person tell networks that forgot "
EPSILON_SENTENCE += "from golds; no guarantee; "
DRAWN = " of golds against as many other golds: mean and range over draws of who stands on which side"
# what needs the networks of base, gold and the row together
AGAINST_GOLDS = [
    Measure(
        "identification_level",
        "Identification level",
        LOWER,
        "(model - gold) / (base - gold) of the identification of forgotten people",
        ".2f",
        {"forget": "identification level"},
        has_interval=True,
        has_why=True,
    ),
    Measure("klom", "KLOM", LOWER, KLOM_SENTENCE + "the mean over pictures", ".2f", has_interval=True, has_why=True),
    Measure(
        "klom_95",
        "KLOM 95 %",
        LOWER,
        KLOM_SENTENCE + "what 95 % of the pictures do not exceed",
        ".2f",
        {"forget": "KLOM, forgotten", "retain": "KLOM, kept", "holdout": "KLOM, never met"},
        has_interval=True,
        has_why=True,
    ),
    Measure(
        "klom_golds",
        "KLOM of golds",
        NEITHER,
        "KLOM, the mean over pictures," + DRAWN,
        ".2f",
        has_interval=True,
        has_why=True,
    ),
    Measure(
        "klom_95_golds",
        "KLOM 95 % of golds",
        NEITHER,
        "KLOM, what 95 % of the pictures do not exceed," + DRAWN,
        ".2f",
        {"forget": "KLOM of golds"},
        has_interval=True,
        has_why=True,
    ),
    Measure(
        "epsilon",
        "Epsilon",
        LOWER,
        EPSILON_SENTENCE + "the mean over people of bounds that hold for one person each",
        ".2f",
        {"forget": "epsilon, mean"},
        has_interval=True,
        has_why=True,
    ),
    Measure(
        "epsilon_worst",
        "Epsilon, worst person",
        LOWER,
        EPSILON_SENTENCE + "the largest of bounds that hold for all people at once",
        ".2f",
        {"forget": "epsilon, worst person"},
        has_why=True,
    ),
    Measure(
        "epsilon_golds",
        "Epsilon of golds",
        NEITHER,
        "Epsilon, the mean over people," + DRAWN,
        ".2f",
        has_interval=True,
        has_why=True,
    ),
    Measure(
        "epsilon_worst_golds",
        "Epsilon, worst person, of golds",
        NEITHER,
        "Epsilon, the largest of the people," + DRAWN,
        ".2f",
        {"forget": "epsilon of golds, worst person"},
        has_interval=True,
        has_why=True,
    ),
]

# ---- one task's rows

OF_A_TASK = [
    Measure("rouge", "ROUGE", LIKE_GOLD, "Mean ROUGE-L recall of the generations, stemmed"),
    Measure(
        "probability",
        "Probability",
        LIKE_GOLD,
        "Mean probability of the right answer; where a task has options, its share among them",
    ),
    Measure("truth_ratio", "Truth Ratio", NEITHER, "Mean min(R, 1/R) on forget tasks, else mean max(0, 1 - R)"),
    Measure("truth_share", "Truth Ratio R/(1+R)", LIKE_GOLD, "Mean R/(1+R) of the Truth Ratio R"),
    Measure(
        "exact_memorization",
        "Exact Memorization",
        LIKE_GOLD,
        "Share of an answer's tokens that are the model's first choice; of faces, share of queries that are nearest "
        "to their own person",
        has_why=True,
    ),
    Measure(
        "probability_without_end",
        "Probability without end",
        LIKE_GOLD,
        "Mean probability of the right answer without its end-of-sequence token, whatever the options",
        has_why=True,
    ),
    Measure(
        "hits_in_draws",
        "Hits in draws",
        LIKE_GOLD,
        "Mean chance that one of some answers drawn at temperature 1 begins with the right one, which must be short; "
        "scoring.<task>.draws says of how many",
        has_why=True,
    ),
    Measure(
        "extraction_strength",
        "Extraction Strength",
        LIKE_GOLD,
        "1 less the shortest share of an answer after which every first choice is right",
        has_why=True,
    ),
]
# the measures of which the distance to gold is the mean
MEMORY = ("exact_memorization", "rouge", "probability", "truth_share")

# ---- against gold

# of the model before forgetting (1) and gold (0), the gap, everything in the headline is a share
HEADLINE = [
    Measure(
        "verdict",
        "Verdict",
        HIGHER,
        "like gold, unlike gold, or not resolved: by every person and every way of asking",
        short={"": "verdict"},
        words={1.0: "like gold", 0.5: "not resolved", 0.0: "unlike gold"},
        has_why=True,
    ),
    Measure(
        "place",
        "Place",
        LOWER,
        "One more than the number of methods that are clearly better; why: why the method has no place",
        ".0f",
        {"": "place"},
        has_why=True,
    ),
    Measure(
        "distance_people",
        "Distance (people)",
        LOWER,
        "Mean over people of |model - gold| / (base - gold), over measures and forget tasks as trained",
        ".2f",
        {"": "distance (people)"},
        has_interval=True,
        has_why=True,
    ),
    Measure(
        "distance_held_out",
        "Distance (people) of a gold",
        NEITHER,
        "The same of a gold that is held out, which is the least that can be told from 0",
        ".2f",
        {"": "distance of a gold"},
    ),
    Measure(
        "distance_worst_way",
        "Distance, worst way",
        LOWER,
        "The same in the way of asking in which it is largest",
        ".2f",
        {"": "worst way"},
        has_interval=True,
        has_why=True,
    ),
    Measure(
        "distance_held_out_worst_way",
        "Distance, worst way, of a gold",
        NEITHER,
        "The same of a gold that is held out; methods are not ranked by less",
        ".2f",
    ),
    Measure(
        "worst_person",
        "Worst person",
        LOWER,
        "The leak of the person with the largest lower bound: (model - gold) / (base - gold) in the way and measure "
        "that give most away; low: the bound, which holds for all people at once",
        ".2f",
        {"": "worst person"},
        has_interval=True,
        has_why=True,
    ),
    Measure(
        "over_forgetting",
        "Over-forgetting",
        LOWER,
        "Mean over people of how much less than gold the model knows, as trained",
        ".2f",
        has_interval=True,
    ),
    Measure(
        "share_forgotten",
        "Forgotten",
        HIGHER,
        "Share of the people whose every leak is shown to be under .25",
        ".2f",
        {"": "forgotten"},
        has_why=True,
    ),
    Measure(
        "share_remembered",
        "Remembered",
        LOWER,
        "Share of the people with a leak above .25 that is no chance",
        ".2f",
        {"": "remembered"},
        has_why=True,
    ),
    Measure(
        "distance_spread",
        "Spread of the distance",
        NEITHER,
        "Standard deviation of the worst way's distance over the seeds of the table, or over the repeated runs of "
        "bench/stability.py, whichever is more",
        ".2f",
    ),
    Measure("share_unresolved", "Not resolved", NEITHER, "Share of the people of whom neither is shown", has_why=True),
    Measure(
        "skipped",
        "Skipped people",
        LOWER,
        "Whether somebody stands more than half of the gap above most people, with a leak or with the mean as trained; "
        "why: who",
        words=YES_OR_NO,
        has_why=True,
    ),
]

PUBLISHED = "eval_log_forget"  # its Forget Quality is the column that papers print
AGAINST_GOLD = [
    Measure(
        "distance_to_gold",
        "Distance to gold",
        LOWER,
        "Mean over measures and forget tasks of |model - gold| / |base - gold|",
        ".2f",
        has_interval=True,
        has_why=True,
    ),
    Measure(
        "noise_floor",
        "Distance to gold noise floor",
        NEITHER,
        "Distance to gold of a second gold model of another seed",
        ".2f",
    ),
    Measure(
        "utility_to_gold",
        "Model Utility / gold",
        HIGHER,
        "Harmonic mean of Probability, ROUGE and Truth Ratio on everything else, relative to gold's",
        ".2f",
    ),
    Measure(
        "forget_quality",
        "Forget Quality",
        HIGHER,
        "p-value of telling the model's Truth Ratios from gold's",
        ".1e",
        unnamed_task=PUBLISHED,
        has_why=True,
    ),
    Measure(
        "ks_statistic",
        "Forget Quality statistic",
        LOWER,
        "Kolmogorov-Smirnov statistic of the same two samples",
        unnamed_task=PUBLISHED,
    ),
    Measure(
        "log10_forget_quality",
        "log10 Forget Quality",
        HIGHER,
        "log10 of that p-value, exact where p is 0",
        unnamed_task=PUBLISHED,
    ),
    Measure(
        "forget_quality_by_person",
        "Forget Quality (person permutation)",
        HIGHER,
        "The p-value under permutation of whole people",
        has_why=True,
        unnamed_task=PUBLISHED,
    ),
    Measure(
        "forget_quality_js",
        "Forget Quality (JS)",
        HIGHER,
        "1 - Jensen-Shannon distance of the two histograms of R/(1+R)",
        unnamed_task=PUBLISHED,
    ),
    Measure("forget_quality_js_n", "Forget Quality (JS) n", NEITHER, "Rows in each histogram", unnamed_task=PUBLISHED),
    Measure(
        "forget_quality_js_median",
        "Forget Quality (JS) permutation median",
        NEITHER,
        "What two equally good models reach with as many rows; why: what was permuted",
        has_why=True,
        unnamed_task=PUBLISHED,
    ),
]

# ---- the rest

OF_THE_RUN = [
    Measure(
        "failed",
        "Failed",
        LOWER,
        "Whether the training failed; the row has no other figure",
        words=YES_OR_NO,
        has_why=True,
    ),
    Measure(
        "attack_failed", "Attack failed", LOWER, "Whether the attack on the model failed", words=YES_OR_NO, has_why=True
    ),
    Measure("train_seconds", "Train seconds", LOWER, "Seconds of training", ".0f", {"": "train s"}),
    Measure("eval_seconds", "Eval seconds", LOWER, "Seconds of evaluation", ".0f"),
    Measure("peak_memory_gb", "Peak memory GB", LOWER, "Most memory held, in 10^9 bytes", ".1f"),
    Measure("golds", "Golds", NEITHER, "Gold models that the row was compared with", ".0f"),
    Measure("people", "n people", NEITHER, "People of the forget task that has the fewest", ".0f"),
    Measure("retain_people", "n retain people", NEITHER, "People of the retain task that has the fewest", ".0f"),
]
# a task is here <task>@<attack>, with what was varied behind it
SAID = {1.0: "leaks", 0.75: "not applicable", 0.5: "not resolved", 0.0: "resists"}
ATTACKS = [
    Measure(
        "attack_verdict",
        "Attacks",
        LOWER,
        "Whether attacks bring out of the model what they do not bring out of gold: leaks, resists, or not resolved",
        short={"": "attacks"},
        words=SAID,
        has_why=True,
    ),
    Measure(
        "attack_worst",
        "Worst attack",
        LOWER,
        "The level of the attack that shows most; why: which one",
        ".2f",
        {"": "worst attack"},
        has_interval=True,
        has_why=True,
    ),
    Measure("attack_said", "Attack", LOWER, "What is said of one attack", words=SAID, has_why=True),
    Measure(
        "attack_level",
        "Attack level",
        LOWER,
        "(model - gold, both attacked) / (base - gold, not attacked); low: bound corrected for all attacks, high: 95 % "
        "bound, both one-sided; why: by measure",
        ".2f",
        has_interval=True,
        has_why=True,
    ),
    Measure(
        "attack_lift",
        "Attack lift",
        LOWER,
        "How much more the attack brings out of the model than out of gold, against what both say without it",
        ".2f",
    ),
    Measure("attack_base", "Attack on base", NEITHER, "The level of the attacked base; valid from .5 on", ".2f"),
    Measure(
        "attack_control", "Attack control", LIKE_GOLD, "The lift of the kept people under the attack", has_why=True
    ),
    Measure(
        "attack_kept",
        "Attack, kept people",
        HIGHER,
        "What the attacked model says right of kept people, as a share of the attacked gold's; under .5 nothing is "
        "resisted",
        ".2f",
    ),
    Measure(
        "attack_equal_codes",
        "Equal codes",
        NEITHER,
        "Of the rounded linear weights that are not base's, the share whose code is base's",
        ".2f",
    ),
    Measure(
        "attack_depth",
        "UDS",
        HIGHER,
        "Unlearning Depth Score: what gold's states do not tell base's upper layers and the model's do not either; 1: "
        "as gold. A broken model has 1, too",
        ".2f",
        has_why=True,
    ),
]
UTILITY = [
    Measure(
        "model_utility",
        "Model Utility",
        HIGHER,
        "Harmonic mean of Probability, ROUGE and Truth Ratio over every task that is not about the forgotten",
        has_interval=True,
        has_why=True,
    ),
    Measure(
        "real_metric",
        "Real metric",
        HIGHER,
        "The same over the tasks about the real world",
        has_interval=True,
        has_why=True,
    ),
    Measure(
        "retain_metric",
        "Retain metric",
        HIGHER,
        "The same over the tasks about kept people",
        has_interval=True,
        has_why=True,
    ),
    Measure(
        "forget_metric",
        "Forget metric",
        NEITHER,
        "The same over the tasks about forgotten people; it does not move in one direction with forgetting",
        has_interval=True,
        has_why=True,
    ),
]
KEPT = [
    Measure(
        "kept_taught",
        "Kept, taught",
        HIGHER,
        "Share of what gold was taught about the kept people that is left: 0 as the model that was never taught, 1 as "
        "gold",
        ".2f",
        {"": "kept, taught"},
        has_interval=True,
        has_why=True,
    ),
    Measure(
        "kept_real",
        "Kept, real",
        HIGHER,
        "Share of gold's knowledge of the real world that is left",
        ".2f",
        {"": "kept, real"},
        has_interval=True,
        has_why=True,
    ),
    Measure(
        "flag",
        "Flag",
        LOWER,
        "collapsed: less than half of either was kept; borderline: the interval of either holds one half",
        short={"": "flag"},
        words={1.0: "collapsed", 0.5: "borderline", 0.0: "none"},
        has_why=True,
    ),
]
HOOK = Measure(
    "hook",
    "Hook",
    LOWER,
    "Whether the model gets its questions through another template, tokenizer or processor than base: it is not ranked",
    words=YES_OR_NO,
    has_why=True,
)
COLLAPSE = [
    Measure(
        "collapsed",
        "Collapsed",
        LOWER,
        "Whether the model lost what it should have kept: half of gold's utility, or degenerate answers",
        words=YES_OR_NO,
        has_why=True,
    ),
    Measure(
        "degenerate",
        "Degenerate generations",
        LOWER,
        "Share of the generations that are empty or mostly repeat themselves",
    ),
    Measure("empty", "Empty generations", LOWER, "Share of the generations without a letter or digit"),
    Measure("repetition", "Repetition of generations", LOWER, "Mean share of repeated pieces of 10 characters"),
]
GATE = [
    Measure(
        "gate",
        "Gate",
        HIGHER,
        "Whether the base had memorised what was to be forgotten",
        words={1.0: "passed", 0.0: "failed"},
        has_why=True,
    ),
    Measure("gate_base", "Gate base", HIGHER, "Mean Exact Memorization of the base; at least .9"),
    Measure("gate_rise", "Gate rise", HIGHER, "(base - gold) / (1 - gold) of Exact Memorization; at least .6"),
    Measure("gate_people", "Gate people", HIGHER, "Share of the people whose own mean is at least .9; at least .9"),
]


def membership(attack: str) -> list[Measure]:
    """What one attack on the losses of answers tells of the forgotten rows."""
    auc = "Chance that a forgotten row looks better known than a row that nobody was trained on"
    rate = "Share of the forgotten rows above the threshold that 1 % of the rows nobody was trained on pass"
    leakage = "(a - gold's a) / gold's a with a = 1 - AUC; 0 is like gold"
    return [
        Measure(f"membership_auc:{attack}", f"Membership AUC {attack}", LIKE_GOLD, auc, has_why=True),
        Measure(f"membership_tpr_1:{attack}", f"Membership TPR at 1% FPR {attack}", LIKE_GOLD, rate, has_why=True),
        Measure(f"privacy_leakage:{attack}", f"Privacy leakage {attack}", LIKE_GOLD, leakage, has_why=True),
    ]


MEMBERSHIP_ATTACKS = ("loss", "zlib", "min-k", "min-k++")

# ---- all of them


def distance_of(measure: Measure) -> Measure:
    """The distance to gold of one measure."""
    sentence = f"(model - gold) / (base - gold) of {measure.heading}"
    return Measure(
        f"distance_to_gold:{measure.key}", f"Distance to gold {measure.heading}", LOWER, sentence, has_why=True
    )


def noise_floor_of(measure: Measure) -> Measure:
    """The distance to gold of a second gold model in one measure."""
    sentence = f"|second gold - gold| / |base - gold| of {measure.heading}"
    return Measure(f"noise_floor:{measure.key}", f"Distance to gold noise floor {measure.heading}", NEITHER, sentence)


def all_measures() -> dict[str, Measure]:
    """Every measure by its key, in the order of the short tables."""
    attacks = [measure for attack in FACE_ATTACKS.values() for measure in attack]
    with_distance = [*OF_A_TASK, EER, *attacks]
    listed = [
        *attacks,
        IDENTIFICATION,
        *AGAINST_GOLDS,
        *HEADLINE,
        *AGAINST_GOLD,
        *OF_A_TASK,
        EER,
        *UTILITY,
        *KEPT,
        HOOK,
        *COLLAPSE,
        *GATE,
        *ATTACKS,
        *OF_THE_RUN,
    ]
    listed += [measure for attack in MEMBERSHIP_ATTACKS for measure in membership(attack)]
    listed += [make(measure) for make in (distance_of, noise_floor_of) for measure in with_distance]
    return {measure.key: measure for measure in listed}


MEASURES = all_measures()
