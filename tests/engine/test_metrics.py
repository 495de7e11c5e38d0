"""Every figure of a result row: hand numbers, scipy as independent reference, and what may and may not change it."""

import json
import math
import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.distance import jensenshannon
from scipy.stats import ks_2samp

from engine import metrics as metrics
from helpers import TOFU_LOGS, WHOLE_TOFU_LOGS

LN2 = math.log(2)
ANY_LOSS = st.floats(min_value=0) | st.just(math.nan)
RATIOS = st.lists(st.floats(1e-6, 1e6), min_size=2, max_size=40)


def shuffled(*columns, seed=1):
    order = np.random.default_rng(seed).permutation(len(columns[0]))
    return [np.asarray(column)[order] for column in columns]


# Probability


def test_probability_is_the_exponential_of_the_negative_loss():
    assert metrics.probability(np.array([0.0, LN2, 2 * LN2])).tolist() == pytest.approx([1, 0.5, 0.25])


def test_an_answer_whose_loss_is_nan_or_infinite_has_probability_zero():
    assert metrics.probability(np.array([np.nan, np.inf, 1e4])).tolist() == [0, 0, 0]


@pytest.mark.parametrize("loss", [-1e-3, -5.0, -math.inf])
def test_a_loss_below_zero_is_refused_and_no_probability_is_above_one(loss):
    for call in (
        lambda: metrics.probability([0.1, loss]),
        lambda: metrics.multiple_choice_probability(loss, [1.0]),
        lambda: metrics.multiple_choice_probability(1.0, [loss]),
        lambda: metrics.truth_ratio(loss, [1.0]),
        lambda: metrics.min_k([loss, 1.0]),
    ):
        with pytest.raises(ValueError, match="a loss is 0 or more"):
            call()


def test_a_loss_that_rounding_made_negative_is_zero():
    assert metrics.probability([-1e-7, 0.0]).tolist() == [1, 1]
    # 1 / (1 + 1/2) = 2/3
    assert metrics.multiple_choice_probability(-1e-7, [LN2]) == pytest.approx(2 / 3, abs=1e-12)


def test_multiple_choice_probability_is_the_share_of_the_right_answer():
    # p = 1/2 against 1/4 and 1/8: (1/2) / (7/8) = 4/7
    assert metrics.multiple_choice_probability(LN2, [2 * LN2, 3 * LN2]) == pytest.approx(4 / 7)


def test_multiple_choice_probability_has_a_share_where_exponentials_vanish():
    # exp(-10000) is 0 in floating point, yet the right answer is twice as probable as the only wrong one: 2/3
    assert metrics.multiple_choice_probability(1e4, [1e4 + LN2]) == pytest.approx(2 / 3)


def test_multiple_choice_probability_is_zero_when_no_answer_is_possible():
    assert metrics.multiple_choice_probability(np.nan, [np.inf, np.nan]) == 0
    assert metrics.multiple_choice_probability(1.0, [np.inf]) == 1


# Truth Ratio


def test_geometric_truth_ratio_averages_the_perturbed_losses():
    # right 1/2; wrong 1/4 and 1/16, geometric mean 1/8: R = (1/8) / (1/2) = 1/4
    assert metrics.truth_ratio(LN2, [2 * LN2, 4 * LN2]) == pytest.approx(0.25)


def test_arithmetic_truth_ratio_averages_the_perturbed_probabilities():
    # (1/4 + 1/16) / 2 = 5/32, over 1/2: 5/16
    assert metrics.truth_ratio(LN2, [2 * LN2, 4 * LN2], "arithmetic") == pytest.approx(5 / 16)


@pytest.mark.parametrize("definition", ["geometric", "arithmetic"])
def test_the_number_of_perturbed_answers_may_be_any_from_one_up(definition):
    # equal wrong answers of probability 1/4 against 1/2: R = 1/2 however many there are
    for count in (1, 2, 5, 9):
        assert metrics.truth_ratio(LN2, [2 * LN2] * count, definition) == pytest.approx(0.5)


def test_a_truth_ratio_without_perturbed_answers_is_an_error():
    with pytest.raises(ValueError, match="at least one perturbed answer"):
        metrics.truth_ratio(1.0, [])


def test_an_unknown_definition_of_the_truth_ratio_is_an_error():
    with pytest.raises(ValueError, match="geometric, arithmetic"):
        metrics.truth_ratio(1.0, [1.0], "harmonic")


@given(ANY_LOSS, st.lists(ANY_LOSS, min_size=1, max_size=6), st.sampled_from(["geometric", "arithmetic"]))
def test_whatever_a_collapsed_model_logs_its_truth_ratio_is_a_positive_number(right, wrong, definition):
    ratio = metrics.truth_ratio(right, wrong, definition)
    assert 0 < ratio < math.inf
    for forget in (True, False):
        assert 0 <= metrics.truth_ratio_scores([ratio], forget)[0] <= 1
    assert 0 <= metrics.truth_share([ratio])[0] <= 1


@given(st.floats(0, 50), st.lists(st.floats(0, 50), min_size=1, max_size=6))
def test_the_geometric_truth_ratio_is_never_above_the_arithmetic_one(right, wrong):
    assert metrics.truth_ratio(right, wrong) <= metrics.truth_ratio(right, wrong, "arithmetic") * (1 + 1e-9)


@pytest.mark.parametrize("definition", ["geometric", "arithmetic"])
def test_a_model_that_gives_no_answer_any_probability_prefers_neither(definition):
    assert metrics.truth_ratio(np.nan, [np.inf, np.nan], definition) == 1


@pytest.mark.parametrize("definition", ["geometric", "arithmetic"])
def test_truth_ratios_of_many_rows_are_those_of_each_row(definition):
    right = np.array([0.3, np.nan, 2.0, np.inf, 1000.0])
    wrong = np.array([[0.1, 4.0, 1.5], [np.inf] * 3, [900.0, 2.0, 1.0], [0.5, 0.25, 7.0], [0.0, 0.0, 0.0]])
    rows = [metrics.truth_ratio(one, list(others), definition) for one, others in zip(right, wrong, strict=True)]
    assert metrics.truth_ratios(right, wrong, definition).tolist() == rows


def test_truth_ratios_are_scored_by_nearness_to_one_on_forget_and_by_shortfall_elsewhere():
    # R = 1/4, 1, 4: min(R, 1/R) = 1/4, 1, 1/4; max(0, 1 - R) = 3/4, 0, 0
    assert metrics.truth_ratio_scores([0.25, 1, 4], forget=True).tolist() == [0.25, 1, 0.25]
    assert metrics.truth_ratio_scores([0.25, 1, 4], forget=False).tolist() == [0.75, 0, 0]


def test_the_truth_share_puts_even_odds_in_the_middle():
    assert metrics.truth_share([0.25, 1, 3]).tolist() == [0.2, 0.5, 0.75]


# ROUGE


def test_rouge_counts_the_true_words_found():
    # truth of 4 words; in order "the cat sat": 3 of 4; as a bag "the cat sat down": 4 of 4
    scores = metrics.rouge_recall("down the cat sat", "the cat sat down")
    assert scores == {"rouge1_recall": 1.0, "rougeL_recall": 0.75}


def test_rouge_stems_words_and_does_not_mind_more_of_them():
    assert metrics.rouge_recall("She writes many novels, they say", "writing novel")["rougeL_recall"] == 1


def test_rouge_of_an_empty_generation_is_zero():
    assert metrics.rouge_recall("", "the truth") == {"rouge1_recall": 0.0, "rougeL_recall": 0.0}


@pytest.mark.parametrize("logs", [TOFU_LOGS, WHOLE_TOFU_LOGS], ids=["40 rows", "whole"])
@pytest.mark.parametrize("file", ["llama2-7b_full.json", "llama2-7b_retain90.json"])
def test_rouge_equals_what_tofu_logged_for_every_generation(file, logs):
    if not logs.is_dir():
        pytest.skip("TOFU's whole logs are not beside the repository")
    difference, rows = 0.0, {"ascii": 0, "unicode": 0}
    for task in json.loads((logs / file).read_text(encoding="utf-8")).values():
        for row, (_, generation, truth) in task["generated_text"].items():
            words = metrics.rouge_tokenizer(truth)
            rows[words] += 1
            if words == "ascii":
                for name, value in metrics.rouge_recall(generation, truth).items():
                    difference = max(difference, abs(value - task[name][row]))
    assert difference < 1e-12
    assert rows == ({"ascii": 159, "unicode": 1} if logs == TOFU_LOGS else {"ascii": 789, "unicode": 28})


# ROUGE of other letters


@pytest.mark.parametrize(
    "truth",
    [
        "他出生在北京。",
        "東京タワーは高い",
        "Владимир родился.",
        "नमस्ते दुनिया",
        "ภาษาไทย",
        "김철수는 산다",
        "שָׁלוֹם",
        "مرحبا",
    ],
)
def test_an_answer_in_any_script_scores_one_against_itself_and_zero_against_another(truth):
    assert metrics.rouge_recall(truth, truth) == {"rouge1_recall": 1.0, "rougeL_recall": 1.0}
    assert metrics.rouge_recall("Ωμέγα", truth) == {"rouge1_recall": 0.0, "rougeL_recall": 0.0}
    assert metrics.rouge_recall("", truth) == {"rouge1_recall": 0.0, "rougeL_recall": 0.0}


@pytest.mark.parametrize(
    ("generation", "truth", "recall"),
    [
        ("王明 1985", "李华 1985", 1 / 3),  # of 李, 华, 1985; ASCII words alone would give 1
        ("李明", "李华", 1 / 2),
        ("京北在", "在北京", 1 / 3),  # the longest common subsequence is one character
        ("Анна любит Осло", "Анна любит Москву", 2 / 3),
        ("Jaime Vasquez", "Jaime Vásquez", 1 / 2),
        ("jaime va\u0301squez", "Jaime V\u00e1squez", 1.0),  # composed or not
        ("１９８５年", "1985年", 1.0),  # full width
        ("STRASSE", "Straße", 1.0),
        ("He wrote cafés and novels", "Cafés, writing a novel", 2 / 4),  # cafés, write, a, novel: cafés and novel
        ("co\u00adoperation é", "cooperation é", 1.0),  # a hyphen that is not seen
    ],
)
def test_rouge_of_other_letters_by_hand(generation, truth, recall):
    assert metrics.rouge_recall(generation, truth)["rougeL_recall"] == pytest.approx(recall)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("東京タワーはTokyoにある", ["東", "京", "タ", "ワ", "ー", "は", "tokyo", "に", "あ", "る"]),
        ("김철수는 서울", ["김철수는", "서울"]),
        ("l'été œuvre-là", ["l", "été", "œuvre", "là"]),
        ("ภาษี", ["ภ", "า", "ษี"]),  # a mark stays on its letter
        ("नमस्ते", ["नमस्ते"]),
        ("snake_case écrit", ["snake", "case", "écrit"]),
        ("!?", []),
    ],
)
def test_words_of_other_scripts(text, words):
    assert metrics.unicode_words(text) == words


def test_words_of_ascii_letters_are_those_of_rouge_score():
    from rouge_score.tokenizers import DefaultTokenizer

    source = np.random.default_rng(0)
    for _ in range(200):
        text = "".join(map(chr, source.integers(32, 127, 60)))
        assert metrics.unicode_words(text) == DefaultTokenizer(use_stemmer=True).tokenize(text)


@pytest.mark.parametrize("truth", ["Ann Lee’s “novel” – in Oslo…", "naive", "C++ & 1985", ""])
def test_signs_alone_do_not_change_the_words_that_rouge_goes_by(truth):
    assert metrics.rouge_tokenizer(truth) == "ascii"


@pytest.mark.parametrize("truth", ["naïve", "李", "1985年", "Ω", "٣"])
def test_one_other_letter_or_digit_does(truth):
    assert metrics.rouge_tokenizer(truth) == "unicode"


# Harmonic means


def test_model_utility_is_a_harmonic_mean():
    assert metrics.harmonic_mean([1, 0.5, 0.25]) == pytest.approx(3 / (1 + 2 + 4))


def test_model_utility_is_zero_when_any_part_is_zero():
    assert metrics.harmonic_mean([1, 0, 1]) == 0


@pytest.mark.parametrize("values", [[], [0.5, -0.1], [0.5, np.nan]])
def test_a_harmonic_mean_of_nothing_or_of_impossible_values_is_an_error(values):
    with pytest.raises(ValueError, match="at least 0"):
        metrics.harmonic_mean(values)


@given(st.lists(st.floats(0.001, 1), min_size=1, max_size=12))
def test_a_harmonic_mean_lies_between_the_smallest_value_and_the_plain_mean(values):
    assert min(values) * (1 - 1e-9) <= metrics.harmonic_mean(values) <= np.mean(values) * (1 + 1e-9)


def test_harmonic_means_of_many_draws_are_taken_draw_by_draw():
    assert metrics.harmonic_mean([[1, 0], [0.5, 1]]).tolist() == pytest.approx([2 / 3, 0])


# Forget Quality: Kolmogorov-Smirnov


def test_ks_of_two_separate_samples_by_hand():
    # all of a below all of b: statistic 1; 2 of the C(6, 3) = 20 orders are as far apart: p = .1
    test = metrics.ks_test([1, 2, 3], [4, 5, 6])
    assert (test.statistic, test.p, test.log10_p) == (1, pytest.approx(0.1), pytest.approx(-1))


def test_a_model_against_itself_has_forget_quality_one():
    values = np.random.default_rng(0).random(50)
    assert metrics.ks_test(values, values) == metrics.KSTest(0, 1, 0)


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 60)), min_size=1, max_size=80))
def test_log10_p_is_the_logarithm_of_scipys_exact_p(pairs):
    a, b = np.array(pairs, dtype=float).T
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        reference = ks_2samp(a, b, method="exact")
    test = metrics.ks_test(a, b)
    assert test.statistic == reference.statistic
    if said:  # scipy's exact way fails, and it gives an approximation
        assert test.p == pytest.approx(10**test.log10_p)
        return
    assert test.p == pytest.approx(reference.pvalue, rel=1e-9)
    assert test.log10_p == pytest.approx(math.log10(reference.pvalue), abs=1e-8)


def test_p_is_one_where_every_order_is_as_far_apart_and_scipys_exact_way_fails():
    # one of seven rows differs: no two samples of seven different values are nearer than 1 / 7
    test = metrics.ks_test(np.zeros(7), np.array([0.0] * 6 + [1.0]))
    assert (test.p, test.log10_p) == (pytest.approx(1.0), pytest.approx(0.0))


def test_log10_p_is_exact_where_p_underflows():
    # 3600 against 3600 rows apart: p = 2 / C(7200, 3600), far below the smallest float
    test = metrics.ks_test(np.zeros(3600), np.ones(3600))
    assert test.log10_p == pytest.approx(math.log10(2) - math.log10(math.comb(7200, 3600)))
    assert test.p == 0


def test_ks_of_unequal_or_empty_samples_is_an_error():
    for a, b in (([1.0], [1.0, 2.0]), ([], [])):
        with pytest.raises(ValueError, match="same rows"):
            metrics.ks_test(a, b)


@given(RATIOS, st.integers(0, 1000))
def test_forget_quality_does_not_depend_on_row_order(ratios, seed):
    a = np.array(ratios)
    b = a[::-1] * 1.5
    other_a, other_b = shuffled(a, b, seed=seed)
    assert metrics.ks_test(a, b) == metrics.ks_test(other_a, other_b)
    assert metrics.js_similarity(a, b) == metrics.js_similarity(other_a, other_b)


# Forget Quality: permutation of whole people


def test_four_people_apart_cannot_reach_below_an_eighth():
    # 2^4 = 16 permutations; no swap and all swapped are as far apart as observed: 2/16
    people = np.repeat(["a", "b", "c", "d"], 25)
    assert metrics.person_permutation_p(np.zeros(100), np.ones(100), people) == 2 / 16
    assert metrics.ks_test(np.zeros(100), np.ones(100)).p < 1e-50  # rows taken for independent would have claimed this


def test_the_permutation_swaps_people_not_rows():
    # one person differs (10 rows), the other three do not: swapping that one leaves the statistic as it is, so every
    # permutation reaches it
    a = np.arange(40.0)
    b = np.where(np.arange(40) < 10, a + 100, a)
    assert metrics.person_permutation_p(a, b, np.repeat([0, 1, 2, 3], 10)) == 1


def test_the_enumerated_permutation_equals_scipys_statistic_over_all_swaps():
    rng = np.random.default_rng(3)
    a, b, people = rng.random(60).round(1), (rng.random(60) + 0.2).round(1), np.repeat(np.arange(5), 12)
    observed = ks_2samp(a, b).statistic
    reached = 0
    for pattern in range(2**5):
        swap = (pattern >> people) & 1 == 1
        reached += ks_2samp(np.where(swap, b, a), np.where(swap, a, b)).statistic >= observed - 1e-12
    assert metrics.person_permutation_p(a, b, people) == reached / 2**5


def test_drawn_permutations_come_near_the_enumerated_ones():
    rng = np.random.default_rng(5)
    a, b, people = rng.random(100), rng.random(100) + 0.12, np.repeat(np.arange(10), 10)
    exact = metrics.person_permutation_p(a, b, people)
    drawn = metrics.person_permutation_p(a, b, people, draws=1000)  # 2^10 > 1000: drawn
    assert 0.05 < exact < 0.95
    assert drawn == pytest.approx(exact, abs=0.05)  # three standard errors of 1000 draws


def test_a_drawn_p_is_never_zero():
    # 20 people apart: only 2 of 2^20 swaps reach it, none of the 4096 drawn: (1 + 0) / (1 + 4096)
    assert metrics.person_permutation_p(np.zeros(20), np.ones(20), range(20)) == 1 / 4097


def test_the_permutation_p_is_seeded_and_does_not_depend_on_row_order():
    rng = np.random.default_rng(6)
    a, b, people = rng.random(60), rng.random(60) + 0.2, np.repeat([f"person {i}" for i in range(20)], 3)
    first = metrics.person_permutation_p(a, b, people)
    assert first == metrics.person_permutation_p(a, b, people)
    assert first == metrics.person_permutation_p(*shuffled(a, b, people))


# Forget Quality: Jensen-Shannon


def ratio_of(share):
    return np.asarray(share) / (1 - np.asarray(share))


def test_js_similarity_by_hand():
    # halves in bins 1, 2 against halves in bins 2, 3: divergence 1/2 bit, distance sqrt(1/2)
    a, b = ratio_of([1.5 / 21, 2.5 / 21]), ratio_of([2.5 / 21, 3.5 / 21])
    assert metrics.js_similarity(a, b) == pytest.approx(1 - math.sqrt(0.5))


def test_js_similarity_of_a_model_with_itself_is_one_and_of_disjoint_ones_zero():
    a = ratio_of(np.linspace(0.05, 0.4, 30))
    assert metrics.js_similarity(a, a) == 1
    assert metrics.js_similarity(a, ratio_of(np.linspace(0.6, 0.9, 30))) == 0


def test_js_similarity_equals_scipys_distance_of_numpys_histograms():
    rng = np.random.default_rng(7)
    a, b = np.exp(rng.normal(0, 1, 200)), np.exp(rng.normal(0.5, 2, 200))
    counts = [np.histogram(ratios / (1 + ratios), bins=21, range=(0, 1))[0] for ratios in (a, b)]
    assert metrics.js_similarity(a, b) == pytest.approx(1 - jensenshannon(*counts, base=2))


def test_js_similarity_sees_the_perturbed_answers():
    gold = np.array([metrics.truth_ratio(2.0, [2.0 + i / 10]) for i in range(20)])
    other = np.array([metrics.truth_ratio(2.0, [5.0 + i / 10]) for i in range(20)])
    assert metrics.js_similarity(gold, other) < 0.5


def test_a_collapsed_model_is_not_like_gold():
    rng = np.random.default_rng(8)
    gold = np.exp(rng.normal(0, 1, 200))
    for losses in (1e4 * rng.random((200, 4)), np.full((200, 4), np.nan)):
        collapsed = np.array([metrics.truth_ratio(row[0], row[1:]) for row in losses])
        assert metrics.js_similarity(collapsed, gold) < 0.35
        assert metrics.ks_test(collapsed, gold).p < 1e-6


def test_the_permutation_median_is_what_equal_models_reach_with_so_few_rows():
    rng = np.random.default_rng(9)
    medians = {}
    for n in (40, 400):
        a, b = np.exp(rng.normal(0, 1, (2, n)))
        medians[n] = metrics.js_permutation_median(a, b, range(n))
        assert abs(metrics.js_similarity(a, b) - medians[n]) < 0.12
    assert medians[40] < medians[400] < 1


def test_the_permutation_median_is_the_median_over_all_swaps_of_people():
    rng = np.random.default_rng(10)
    a, b = np.exp(rng.normal(0, 1, 40)), np.exp(rng.normal(1, 1, 40))
    people = np.repeat(np.arange(4), 10)
    swaps = [(pattern >> people) & 1 == 1 for pattern in range(16)]
    values = [metrics.js_similarity(np.where(swap, b, a), np.where(swap, a, b)) for swap in swaps]
    assert metrics.js_permutation_median(a, b, people) == pytest.approx(np.median(values))
    assert metrics.js_permutation_median(*shuffled(a, b, people)) == pytest.approx(np.median(values))


@given(RATIOS)
def test_js_similarity_is_symmetric_and_between_zero_and_one(ratios):
    a, b = np.array(ratios), 1 / np.array(ratios)
    assert 0 <= metrics.js_similarity(a, b) <= 1
    assert metrics.js_similarity(a, b) == pytest.approx(metrics.js_similarity(b, a), abs=1e-12)


# Distance to gold


def test_distance_is_one_for_the_base_and_zero_for_gold_and_negative_beyond():
    # base .9, gold .4: .65 is half the way, .3 is over-forgotten by a fifth of it
    for measure, expected in ((0.9, 1), (0.4, 0), (0.65, 0.5), (0.3, -0.2)):
        assert metrics.distance_to_gold(measure, 0.9, 0.4).value == pytest.approx(expected)


def test_distance_works_where_forgetting_raises_the_measure():
    assert metrics.distance_to_gold(0.3, base=0.2, gold=0.6).value == pytest.approx(0.75)


def test_the_noise_floor_is_the_other_golds_distance():
    # golds .4 and .45, base .9: |.05| / .5 = .1
    distance = metrics.distance_to_gold(0.9, 0.9, 0.4, [0.45])
    assert (distance.value, distance.noise) == (pytest.approx(1), pytest.approx(0.1))
    assert metrics.distance_to_gold(0.9, 0.9, 0.4).noise is None


def test_distance_is_undefined_where_base_and_gold_hardly_differ():
    # golds .1 apart: base must be .3 from gold
    near = metrics.distance_to_gold(0.5, 0.69, 0.4, [0.5])
    assert near.value is None
    assert "3 times the golds' own 0.1" in near.why
    assert metrics.distance_to_gold(0.5, 0.71, 0.4, [0.5]).value is not None
    assert metrics.distance_to_gold(0.5, 0.4, 0.4) == metrics.Distance(None, None, "base and gold do not differ")


# Degenerate generations


@pytest.mark.parametrize(
    "text", ["", "  \n", "?!... ?!", "the the the the the the", "aaaaaaaaaaaaaaaaaaaaaaa", "He was born in Rome. " * 4]
)
def test_empty_and_looping_generations_are_degenerate(text):
    assert metrics.is_degenerate(text)


@pytest.mark.parametrize(
    "text",
    [
        "Ada",
        "12",
        "Anna Anna",
        "松本",
        "The author's father was a baker and her mother was a florist, and she grew up in Taipei.",
        "Hina Ameen writes about geology; Hina Ameen's best known book is Granite Glossary.",
    ],
)
def test_short_answers_and_plain_sentences_are_not_degenerate(text):
    assert not metrics.is_degenerate(text)


def test_a_loop_is_caught_once_it_is_longer_than_two_periods_and_nine_characters():
    # period 4: n-grams L - 9, of which 4 unique; 1 - 4/(L - 9) > 1/2 from L = 18 on
    loop = "abcd" * 10
    assert not metrics.is_degenerate(loop[:17])
    assert metrics.is_degenerate(loop[:18])


# Memorization gate


def test_the_gate_passes_a_base_that_memorized_and_a_gold_that_did_not():
    people = ["a", "a", "b", "b"]
    gate = metrics.memorization_gate([1, 0.9, 1, 0.9], [0.5, 0.5, 0.5, 0.5], people)
    # base .95; rise (.95 - .5) / (1 - .5) = .9; both people at .95
    assert (gate.base, gate.rise, gate.people, gate.passed) == (pytest.approx(0.95), pytest.approx(0.9), 1, True)


def test_the_gate_holds_at_its_very_thresholds():
    assert metrics.memorization_gate([0.9] * 10, [0.75] * 10, list("abcdefghij")).passed  # rise .15 / .25 = .6


@pytest.mark.parametrize(
    ("base", "gold"),
    [([0.89] * 4, [0.1] * 4), ([0.95] * 4, [0.88] * 4), ([1, 1, 1, 0.6], [0.1] * 4), ([1] * 4, [1] * 4)],
    ids=["base knows too little", "gold knows nearly as much", "one person of four not memorized", "gold knows all"],
)
def test_the_gate_fails(base, gold):
    assert metrics.memorization_gate(base, gold, list("abcd")).passed is False


def test_without_people_the_gate_fails_on_what_is_known_and_is_open_otherwise():
    assert metrics.memorization_gate([1] * 4, [0.1] * 4, None).passed is None
    assert metrics.memorization_gate([0.5] * 4, [0.1] * 4, None).passed is False


# ---- per-token figures


@pytest.mark.parametrize(
    ("correct", "memorized", "strength"),
    [
        # the last flag is the end-of-sequence token, which does not count
        ([True, True, True, True, False], 1.0, 1.0),
        ([False, True, True, True, True], 3 / 4, 3 / 4),
        ([True, True, False, True, True], 3 / 4, 1 / 4),
        ([True, True, True, False, True], 3 / 4, 0.0),
        ([False, False, False, False, True], 0.0, 0.0),
    ],
)
def test_memorization_and_extraction_strength_by_hand(correct, memorized, strength):
    assert (metrics.exact_memorization(correct), metrics.extraction_strength(correct)) == (memorized, strength)


def test_min_k_is_the_mean_of_the_least_likely_tokens_by_hand():
    # five tokens, 40 % of them are two: the losses 4 and 3, whose log-probabilities are -4 and -3
    assert metrics.min_k([0.5, 4.0, 1.0, 3.0, 0.0]) == -3.5
    assert metrics.min_k([2.0, 1.0]) == -2.0  # at least one token


def test_min_k_plus_plus_measures_each_token_against_its_vocabulary_by_hand():
    # (log p - mean) / deviation: (-1 - -2) / .5 = 2, (-4 - -2) / 1 = -2, (-3 - -3) / 2 = 0; 40 % of three is one token:
    # the lowest
    assert metrics.min_k_plus_plus([1.0, 4.0, 3.0], [-2.0, -2.0, -3.0], [0.5, 1.0, 2.0]) == -2.0
    assert metrics.min_k_plus_plus([1.0], [-1.0], [0.0]) == 0.0  # uniform over the vocabulary: no deviation


def test_membership_auc_equals_scipys_mann_whitney_and_counts_ties_half():
    from scipy.stats import mannwhitneyu

    source = np.random.default_rng(0)
    members, others = source.normal(0.5, 1, 40).round(1), source.normal(0, 1, 60).round(1)
    assert metrics.membership_auc(members, others) == pytest.approx(mannwhitneyu(members, others).statistic / (40 * 60))
    assert metrics.membership_auc(np.ones(3), np.ones(5)) == 0.5
    assert metrics.membership_auc(np.array([2.0, 3.0]), np.array([0.0, 1.0])) == 1.0
    assert metrics.membership_auc(np.array([np.nan]), np.array([0.0])) == 0.0  # a broken model recognises nothing


def test_the_tpr_at_a_low_fpr_is_read_off_the_others_and_needs_ten_of_them_beyond_it():
    others = np.arange(1000.0)
    # 1 % of 1000 is ten: the threshold is the eleventh largest, 989, which ten others pass
    assert metrics.membership_tpr(np.array([989.0, 989.5, 2000.0, 0.0]), others, 0.01) == 0.5
    assert metrics.membership_tpr(np.array([1.0]), others[:999], 0.01) is None


def test_privacy_leakage_has_muses_sign():
    assert metrics.privacy_leakage(0.5, 0.5) == 0.0
    assert metrics.privacy_leakage(1.0, 0.5) == -1.0  # every forgotten row still recognised
    assert metrics.privacy_leakage(0.25, 0.5) == 0.5
    assert metrics.privacy_leakage(0.5, 1.0) is None


def test_repetition_is_the_share_of_ten_letter_pieces_seen_before():
    # 24 letters of period 2 have 15 pieces, two of them different: 1 - 2/15
    assert metrics.repetition("ab" * 12) == pytest.approx(13 / 15)
    assert metrics.repetition("short") == 0.0 and metrics.repetition("the quick brown fox jumps") == 0.0
    assert metrics.is_empty(" ... ") and not metrics.is_empty("a")


def test_the_chance_of_a_hit_in_draws_by_hand():
    # a tenth of the probability on the answer: 1 - .9^10 = .6513; nothing lost and everything lost
    chances = metrics.hit_chance([math.log(10), 0.0, 800.0, math.nan], 10)
    assert chances == pytest.approx([0.65132156, 1, 0, 0])


def test_one_draw_hits_with_the_answers_own_probability():
    assert metrics.hit_chance([0.5, 3.0], 1) == pytest.approx(metrics.probability([0.5, 3.0]))
