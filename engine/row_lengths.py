"""How many positions rows take: whether they fit a model, and what sorts them so that little of a batch is padding."""

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from data_module import Example, TaskRow
from engine.encode import ChatEncoder, TooLong
from settings.script import SettingsError


def row_lengths(encoder: ChatEncoder, rows: Any) -> list[int]:
    """The positions that each training row takes with its answer.

    Pictures are not opened for it, but for the first: every other row with a picture is taken to have as many positions
    beside its words. Where pictures differ in that, rows with a picture are still sorted by their words.

    Args:
        encoder: Of the rows.
        rows: With the words of each in `questions` and `answers`, and the places of those without a picture in
            `in_words`.

    Raises:
        SettingsError: The first row with a picture, or the first without, cannot be encoded.
    """
    parts = encoder.text_lengths(rows.questions), encoder.text_lengths(rows.answers)
    lengths = [sum(of_row) for of_row in zip(*parts, strict=True)]
    worded = set(rows.in_words)
    beside: dict[bool, int] = {}  # whether a row has a picture -> positions beside its words
    for place in range(len(rows)):
        is_worded = place in worded
        if is_worded not in beside:
            beside[is_worded] = encoder.encode(rows[place]).length - lengths[place]
        lengths[place] += beside[is_worded]
    return lengths


def check_lengths(encoder: ChatEncoder, *splits: Any) -> None:
    """Check that the rows of every split fit, before any weights load.

    Where the model sees, picture rows are not opened for it: one that does not fit is named when training meets it.
    Raises SettingsError with the number of rows that are too long and the first of them.
    """
    for rows in splits:
        positions = rows.in_words if encoder.sees else range(len(rows))
        long = too_long(encoder, (rows[i] for i in positions))
        if long:
            raise SettingsError(
                f"{len(long)} of {len(rows)} rows are too long, the first: {long[0]}; "
                "max_length= allows more, truncate=true cuts their answers"
            )


def check_instruction(encoder: ChatEncoder, pairs: Any) -> None:
    """Check that forget rows fit with the method's instruction too, before any weights load: every row in words, and
    of those with a picture the one of the most letters.

    Args:
        encoder: of the rows.
        pairs: what the method asks for.

    Raises:
        SettingsError: a row is too long with the instruction, or its answer is cut.
    """
    if "noised" not in pairs.passes:
        return
    rows = [pairs.forget[place] for place in range(len(pairs.forget))]
    kept = [row for row in rows if row.image is None or not encoder.sees]
    pictures = [row for row in rows if row.image is not None and encoder.sees]
    if pictures:
        kept.append(max(pictures, key=lambda row: len(row.question) + len(row.answer)))
    for row in kept:
        try:
            cut = len(encoder.encode(row).answer) - len(encoder.encode(pairs.instructed(row)).answer)
        except TooLong as error:
            raise SettingsError(
                f"method.noise.instruction: with it before the question, {error}; a shorter one or a larger max_length "
                "fits"
            ) from None
        if cut:
            raise SettingsError(
                f"method.noise.instruction: with it before the question, {cut} tokens more are cut of the answer of "
                f"split {row.split}, row {row.index}; a shorter one or a larger max_length leaves room"
            )


def check_answers(encoder: ChatEncoder, tasks: dict[str, list[TaskRow]]) -> None:
    """The same for the rows of tasks with all their answers; raises SettingsError too for one without a token."""
    for name, rows in tasks.items():
        answers = []
        for row in rows:
            if encoder.sees and row.example.image is not None:
                continue
            texts = [row.example.answer, row.paraphrase, *row.perturbed]
            answers += [replace(row.example, answer=text) for text in texts if text is not None]
        if long := too_long(encoder, answers):
            raise SettingsError(f"{name}: {len(long)} of {len(answers)} answers are too long, the first: {long[0]}")


def too_long(encoder: ChatEncoder, examples: Iterable[Example]) -> list[str]:
    """A line for each example that does not fit."""
    found = []
    for example in examples:
        try:
            encoder.encode(example)
        except TooLong as error:
            found.append(str(error))
    return found
