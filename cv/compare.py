"""Whose face is it: queries compared with everybody's enrolment centre, and the logs that come of it.

Shapes: N networks side by side, P people, Q queries. A person's centre is the mean of the embeddings of their enrolled pictures, scaled to length 1;
an enrolled picture is never asked about.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from scipy.special import log_softmax
from torch import Tensor

from cv.attack_metrics import equal_error_rate
from cv.face_settings import Album
from cv.network import FaceNetwork
from cv.pictures import Division, Met, read_pictures, to_pixels
from engine.metrics import truth_ratio

QUESTION = "Whose face is this?"
TASKS = {"forget": "eval_forget_faces", "retain": "eval_retain_faces", "holdout": "eval_holdout_faces"}
BINS = 40  # of the score distributions, on [-1, 1]


@dataclass(frozen=True)
class Compared:
    """Every query against every centre."""

    people: list[str]  # P, of the centres
    files: list[str]  # Q
    owner: np.ndarray  # (Q,), whose the query is, as a place in `people`
    cosines: np.ndarray  # (N, Q, P)

    @property
    def own(self) -> np.ndarray:
        """Verification scores: cosines to the query's own person, (N, Q)."""
        return self.cosines[:, np.arange(len(self.owner)), self.owner]

    @property
    def nearest_other(self) -> np.ndarray:
        """Cosines to the nearest of the others, (N, Q)."""
        others = self.cosines.copy()
        others[:, np.arange(len(self.owner)), self.owner] = -np.inf
        return others.max(-1)


@torch.no_grad()
def embed(model: FaceNetwork, pictures: list[Tensor], batch_size: int) -> Tensor:
    """Embeddings (n, N, E) of pictures in uint8, the same ones for each network; in fp32 and in eval mode."""
    model.eval()
    device = next(model.parameters()).device
    made = []
    for first in range(0, len(pictures), batch_size):
        pixels = to_pixels(torch.stack(pictures[first : first + batch_size])).to(device)
        made.append(model.embeddings(pixels.repeat(1, model.models, 1, 1)).cpu())
    return torch.cat(made)


def compare(model: FaceNetwork, division: Division, album: Album, size: int, batch_size: int) -> Compared:
    """Embed everybody's enrolled pictures and queries, and compare them."""
    people = sorted(division.people)
    enrolled = [(place, file) for place, name in enumerate(people) for file in division.people[name].enrol]
    queries = [(place, file) for place, name in enumerate(people) for file in division.people[name].query]
    pictures = read_pictures(album, [file for _, file in (*enrolled, *queries)], size)
    of_enrolled, of_queries = (
        embed(model, [pictures[file] for _, file in part], batch_size) for part in (enrolled, queries)
    )
    sums = torch.zeros(len(people), *of_enrolled.shape[1:]).index_add_(
        0, torch.tensor([place for place, _ in enrolled]), of_enrolled
    )
    cosines = torch.einsum("qne,pne->nqp", of_queries, F.normalize(sums, dim=-1))
    return Compared(
        people, [file for _, file in queries], np.array([place for place, _ in queries]), cosines.double().numpy()
    )


def row_logs(compared: Compared, met: Met, scale: float) -> dict[str, dict[str, dict[str, Any]]]:
    """Task -> metric -> row -> value of the first network, in the layout of the other tracks' logs: the answer is the person among all who are enrolled.

    Probabilities are the softmax of s * cosine over the centres; a query's row is its place among all queries.
    """
    logs: dict[str, dict[str, dict[str, Any]]] = {task: {} for task in TASKS.values()}
    losses = -log_softmax(scale * compared.cosines[0], axis=-1)
    groups = {name: TASKS[group] for group in TASKS for name in getattr(met, group)}
    for row, (owner, of_row) in enumerate(zip(compared.owner, losses, strict=True)):
        person, said = compared.people[owner], compared.people[int(of_row.argmin())]
        right = float(said == person)
        values = {
            "avg_gt_loss": float(of_row[owner]),
            "average_perturb_loss": np.delete(of_row, owner).tolist(),
            "generated_text": [QUESTION, said, person],
            "rougeL_recall": right,
            "exact_memorization": right,
            "person": person,
            "truth_ratio": truth_ratio(of_row[owner], np.delete(of_row, owner)),
            "cosine": float(compared.cosines[0, row, owner]),
            "file": compared.files[row],
        }
        for metric, value in values.items():
            logs[groups[person]].setdefault(metric, {})[str(row)] = value
    return logs


def verification(compared: Compared, met: Met) -> dict[str, dict[str, Any]]:
    """Group -> closed-set accuracy, equal error rate, and the distributions of genuine and impostor scores of its queries; of the first network."""
    figures = {}
    edges = np.linspace(-1, 1, BINS + 1)
    for group in TASKS:
        chosen = np.isin(compared.owner, [compared.people.index(name) for name in getattr(met, group)])
        cosines, owner = compared.cosines[0, chosen], compared.owner[chosen]
        own = np.zeros_like(cosines, dtype=bool)
        own[np.arange(len(owner)), owner] = True
        figures[group] = {
            "people": len(getattr(met, group)),
            "queries": len(owner),
            "accuracy": float((cosines.argmax(-1) == owner).mean()),
            "eer": equal_error_rate(cosines[own], cosines[~own]),
            "genuine": np.histogram(cosines[own].clip(-1, 1), edges)[0].tolist(),
            "impostor": np.histogram(cosines[~own].clip(-1, 1), edges)[0].tolist(),
        }
    return figures
