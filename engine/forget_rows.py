"""The rows that a forgetting of a language model draws from, opened as its settings and its method ask."""

from dataclasses import replace

from data_module import TrainingRows, check_apart, invented_answers
from engine.encode import ChatEncoder
from engine.methods import BoundLoss
from engine.pairs import Pairs
from engine.row_lengths import check_instruction, check_lengths
from engine.word_files import idk_answers, lines_of
from settings.language import Data, Forget
from settings.script import SettingsError


def open_pairs(settings: Forget, loss: BoundLoss) -> Pairs:
    """What the method asks for, row by row. Raises SettingsError where the data lacks it, or gives a row to both."""
    data, method, seed = settings.data, settings.method, settings.seed
    forget = TrainingRows(data, settings.split, settings.modality, seed)
    retain = TrainingRows(data, settings.retain_split, settings.modality, seed)
    check_apart(forget, retain)
    return Pairs(
        loss.batches,
        forget,
        retain,
        idk={False: idk_answers(data.idk_questions), True: idk_answers(data.idk_pictures)},
        seed=seed,
        other_answers=method.other_answers,
        scope=method.scope,
        alternatives=invented_answers(data) if "alternate" in loss.batches else None,
        noise=method.noise,
        asked=lines_of("method.visual.questions", method.visual.questions) if method.visual else None,
        holdout=holdout_rows(data, seed) if "holdout" in loss.looks_at else None,
    )


def holdout_rows(data: Data, seed: int) -> TrainingRows:
    """Questions about people whom no model met. Raises SettingsError where the data names none."""
    if not data.holdout_split:
        raise SettingsError("the method asks for questions about people whom no model met: data.holdout_split is empty")
    return TrainingRows(replace(data, path=data.text_path), data.holdout_split, "text", seed)


def check_rows_fit(encoder: ChatEncoder, pairs: Pairs) -> None:
    """Check that every row fits, before any weights load. Raises SettingsError."""
    check_lengths(encoder, pairs.all_forget, pairs.all_retain, *([pairs.holdout] if pairs.holdout else []))
    check_instruction(encoder, pairs)
