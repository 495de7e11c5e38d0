"""Worlds of forgotten people for simulations: golds, and one gold more as the judged model; noise of many shapes."""

import numpy as np

from engine.leaks import Scope

MEASURES = ("exact_memorization", "rouge", "probability_without_end")
WAYS = ("as trained", "paraphrased", "with a prefix", "with a suffix", "with another suffix")
GOLD, GAP = 0.2, 0.8  # base is at 1

EVEN = {
    "normal": lambda source, size: source.normal(size=size),
    "Laplace": lambda source, size: source.laplace(size=size) / np.sqrt(2),
    "t of 5": lambda source, size: source.standard_t(5, size) / np.sqrt(5 / 3),
    "t of 3": lambda source, size: source.standard_t(3, size) / np.sqrt(3),
    "beta": lambda source, size: (source.beta(2, 6, size) - 0.25) / np.sqrt(2 * 6 / (64 * 9)),
    "lognormal": lambda source, size: (np.exp(0.75 * source.normal(size=size)) - 1.325) / 1.15,
}
UNEVEN = ("uneven people", "uneven people and measures", "uneven ways", "alike ways", "uneven and heavy", "shift")
SHAPES = (*EVEN, *UNEVEN)


def drawn(source, shape, *, people, ways=4, size=0.05, golds=2, add=0.0):
    """A scope whose judged model is one gold more, with `add` (of the gap) on top.

    Args:
        source: Of random numbers.
        shape: Of the noise, one of SHAPES.
        people: How many.
        ways: How many.
        size: Standard deviation of the judged model's deviations from the mean of the golds, as a share of the gap.
        golds: How many.
        add: Added to the judged model's deviations.
    """
    noise = drawn_noise(source, shape, (golds + 1, people, ways, len(MEASURES)))
    values = GOLD + GAP * size / np.sqrt(1 + 1 / golds) * noise
    base = np.ones(values.shape[1:]) - 0.05 * source.random(values.shape[1:])
    values[0] += GAP * np.asarray(add)
    names = [f"person {number:02d}" for number in range(people)]
    return Scope("words", names, list(WAYS[:ways]), list(MEASURES), values[0], base, values[1:])


def drawn_noise(source, shape, size):
    """Noise of models, (models, people, ways, measures), of mean 0 and standard deviation 1."""
    models, people, ways, measures = size
    if shape in EVEN:
        return EVEN[shape](source, size)
    if shape == "uneven people":
        return source.normal(size=size) * sizes(source, 0.7, (1, people, 1, 1))
    if shape == "uneven people and measures":
        return source.normal(size=size) * sizes(source, 0.5, (1, people, 1, measures))
    if shape == "uneven ways":
        of_ways = np.linspace(1, 4, ways)[:, None]
        return source.normal(size=size) * of_ways / np.sqrt((of_ways**2).mean())
    own = (models, people, 1, measures) if shape != "shift" else (models, 1, 1, measures)
    part = {"alike ways": 0.5, "uneven and heavy": 0.4, "shift": 0.7}[shape]
    draw = EVEN["t of 5" if shape == "uneven and heavy" else "normal"]
    noise = np.sqrt(part) * draw(source, own) + np.sqrt(1 - part) * draw(source, size)
    return noise * sizes(source, 0.4, (1, people, 1, 1)) if shape == "uneven and heavy" else noise


def sizes(source, spread, size):
    """Standard deviations that differ, lognormal, with a mean square of 1 over people."""
    drawn_sizes = np.exp(spread * source.normal(size=size))
    return drawn_sizes / np.sqrt((drawn_sizes**2).mean(axis=1, keepdims=True))
