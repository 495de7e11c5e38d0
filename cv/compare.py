"""Whose face is it: queries compared with everybody's enrolment centre, and the logs that come of it.

Shapes: N networks of a stack, P people, Q queries. A person's centre is the mean of the embeddings of their enrolled
pictures, scaled to length 1. An enrolled picture is never asked about.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from scipy.special import log_softmax
from torch import Tensor

from cv.attack_metrics import equal_error_rate
from cv.division import Division, Met
from cv.face_settings import Album
from cv.network import FaceNetwork
from cv.pictures import read_pictures, to_pixels
from engine.metrics import truth_ratio
from engine.record import AGGREGATED, VERIFICATION, write_json
from engine.retrained import margin

QUESTION = "Whose face is this?"
TASKS = {"forget": "eval_forget_faces", "retain": "eval_retain_faces", "holdout": "eval_holdout_faces"}
BINS = 40  # of the distributions of similarities, on [-1, 1]


@dataclass(frozen=True)
class Compared:
    """Every query against every centre."""

    people: list[str]  # P, of the centres
    files: list[str]  # Q
    owner: np.ndarray  # (Q,), the query's person, as a place in `people`
    cosines: np.ndarray  # (N, Q, P)

    @property
    def similarity(self) -> np.ndarray:
        """What verification decides by: the cosine of each query to its own person's centre, (N, Q)."""
        return self.cosines[:, np.arange(len(self.owner)), self.owner]

    @property
    def nearest_other(self) -> np.ndarray:
        """The cosine of each query to the nearest of the other people's centres, (N, Q)."""
        return self.nearest_among(np.ones((len(self.cosines), len(self.people)), dtype=bool))

    def nearest_among(self, enrolled: np.ndarray) -> np.ndarray:
        """The cosine of each query to the nearest of some other people's centres, (N, Q).

        Args:
            enrolled: who counts for which network, bool (N, P); a query's own person never does.
        """
        others = np.where(enrolled[:, None, :], self.cosines, -np.inf)
        others[:, np.arange(len(self.owner)), self.owner] = -np.inf
        return others.max(-1)

    def margins(self, logit_scale: float) -> np.ndarray:
        """Log odds of each query's own person among everybody, (N, Q), with logits of `logit_scale` times cosines."""
        return margin(logit_scale * self.cosines, self.owner)


@torch.no_grad()
def embed(model: FaceNetwork, pictures: list[Tensor], batch_size: int) -> Tensor:
    """Embeddings (n, N, E) of pictures in uint8, the same ones for each network; in fp32 and in eval mode."""
    model.eval()
    device = next(model.parameters()).device
    embedded = []
    for first in range(0, len(pictures), batch_size):
        pixels = to_pixels(torch.stack(pictures[first : first + batch_size])).to(device)
        embedded.append(model.embeddings(pixels.repeat(1, model.models, 1, 1)).cpu())
    return torch.cat(embedded)


def compare(model: FaceNetwork, division: Division, album: Album, *, size: int, batch_size: int) -> Compared:
    """Embed everybody's enrolled pictures and queries, and compare them.

    Args:
        model: one network or a stack.
        division: everybody's pictures.
        album: where the pictures stand.
        size: pixels per side that the network takes.
        batch_size: pictures that are embedded at once.
    """
    people = sorted(division.people)
    rows = [division.people[name] for name in people]
    enrolled, enrolled_owner = files_with_owner([person.enrol for person in rows])
    queries, query_owner = files_with_owner([person.query for person in rows])
    pictures = read_pictures(album, [*enrolled, *queries], size)
    enrolled_embeddings = embed(model, [pictures[file] for file in enrolled], batch_size)
    query_embeddings = embed(model, [pictures[file] for file in queries], batch_size)
    sums = torch.zeros(len(people), *enrolled_embeddings.shape[1:])
    sums.index_add_(0, torch.tensor(enrolled_owner), enrolled_embeddings)
    cosines = torch.einsum("qne,pne->nqp", query_embeddings, F.normalize(sums, dim=-1))
    return Compared(people, queries, np.array(query_owner), cosines.double().numpy())


def files_with_owner(files: list[list[str]]) -> tuple[list[str], list[int]]:
    """The files of all people in a row, and of each its person's place in `files`."""
    flat = [file for own in files for file in own]
    return flat, [place for place, own in enumerate(files) for _ in own]


def row_logs(compared: Compared, met: Met, logit_scale: float) -> dict[str, dict[str, dict[str, Any]]]:
    """Task -> metric -> row -> value of the first network, in the layout of the other tracks' logs.

    The answer to a query is one of all the people who are enrolled. Their probabilities are the softmax of
    `logit_scale` (s of AM-softmax) times the cosines to the centres. A query's row is its place among all queries.
    """
    logs: dict[str, dict[str, dict[str, Any]]] = {task: {} for task in TASKS.values()}
    losses = -log_softmax(logit_scale * compared.cosines[0], axis=-1)
    tasks = {name: task for group, task in TASKS.items() for name in getattr(met, group)}
    for row, owner in enumerate(compared.owner):
        log = logs[tasks[compared.people[owner]]]
        for metric, value in row_values(compared, row, losses[row]).items():
            log.setdefault(metric, {})[str(row)] = value
    return logs


def row_values(compared: Compared, row: int, losses: np.ndarray) -> dict[str, Any]:
    """Metric -> value of one query; `losses` (P,): -log of each person's probability."""
    owner = compared.owner[row]
    person, answer = compared.people[owner], compared.people[int(losses.argmin())]
    others = np.delete(losses, owner)
    right = float(answer == person)
    return {
        "avg_gt_loss": float(losses[owner]),
        "average_perturb_loss": others.tolist(),
        "generated_text": [QUESTION, answer, person],
        "rougeL_recall": right,
        "rouge_tokenizer": "whole names",
        "exact_memorization": right,
        "person": person,
        "truth_ratio": truth_ratio(losses[owner], others),
        "cosine": float(compared.cosines[0, row, owner]),
        "file": compared.files[row],
    }


def verification_figures(compared: Compared, met: Met) -> dict[str, dict[str, Any]]:
    """Group -> what verification of its queries by the first network's similarities comes to.

    The figures are closed-set accuracy, the equal error rate, and the distributions of genuine and of impostor
    similarities.
    """
    figures = {}
    for group in TASKS:
        people = getattr(met, group)
        chosen = np.isin(compared.owner, [compared.people.index(name) for name in people])
        cosines, owner = compared.cosines[0, chosen], compared.owner[chosen]
        is_genuine = np.zeros_like(cosines, dtype=bool)
        is_genuine[np.arange(len(owner)), owner] = True
        figures[group] = {
            "people": len(people),
            "queries": len(owner),
            "accuracy": float((cosines.argmax(-1) == owner).mean()),
            "eer": equal_error_rate(cosines[is_genuine], cosines[~is_genuine]),
            "genuine": similarity_counts(cosines[is_genuine]),
            "impostor": similarity_counts(cosines[~is_genuine]),
        }
    return figures


def similarity_counts(cosines: np.ndarray) -> list[int]:
    """How many cosines lie in each of BINS bins on [-1, 1]."""
    return np.histogram(cosines.clip(-1, 1), np.linspace(-1, 1, BINS + 1))[0].tolist()


def write_logs(folder: Path, logs: dict[str, dict[str, dict[str, Any]]], figures: dict[str, dict[str, Any]]) -> None:
    """Write the logs of all tasks, each in a file of its own and all in one, and the figures of verification."""
    for task, log in logs.items():
        write_json(folder / f"{task}.json", log)
    write_json(folder / AGGREGATED, {f"{task}.json": log for task, log in logs.items()})
    write_json(folder / VERIFICATION, figures)
