"""Dataset rows -> examples -> encoded examples -> batches, for every modality.

Shapes: B examples, L input positions, T answer positions. A batch is a dict with `input_ids` and `attention_mask` (B, L), whatever
else the processor made (pictures concatenated along dimension 0), `labels` (B, T) and `positions` (B, T): the logits at
`positions[b, t]` predict `labels[b, t]`.
"""

import functools
import hashlib
import random
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import Any

import datasets
import torch
from natsort import natsorted
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from run_record import processes
from run_settings import ROOT, Data, SettingsError, Task, nearest
from unlearn_losses import IGNORE

datasets.disable_progress_bars()  # a bar a split drowns the lines that matter

CAPTION_QUESTIONS = (
    "What can you see in this picture?",
    "What does this picture show?",
    "Describe this picture, please.",
    "Tell me what is in this picture.",
    "What is shown here?",
    "Can you describe what you see?",
    "Please say what this image shows.",
    "How would you describe this image?",
    "What do you notice in this image?",
)
NAME_QUESTION = "The name of the person on the image is"


@dataclass(frozen=True)
class Example:
    """One question with its right answer; `image` is the undecoded picture ({"bytes", "path"}) or None for a question in words."""

    question: str
    answer: str
    image: dict | None
    index: int  # row of the split
    person: str | None  # where the data gives or implies one
    split: str

    @property
    def key(self) -> str:
        """What names this question with its answer, whatever their place in a batch or an epoch."""
        return f"{self.split}/{self.index}/{self.question}/{self.answer}"


@dataclass(frozen=True)
class TaskRow:
    """A row to evaluate: the example, a paraphrase of its answer (None: the data has none) and wrong answers, any number of them."""

    example: Example
    paraphrase: str | None
    perturbed: list[str]


@dataclass(frozen=True)
class Encoded:
    """An example in the model's terms: `prompt` as the processor made it (batch of one), `answer` its tokens, end-of-sequence last."""

    prompt: dict[str, Tensor]
    answer: list[int]

    @property
    def length(self) -> int:
        """Positions that it takes in a batch."""
        return self.prompt["input_ids"].shape[1] + len(self.answer)


def draw(*key: Any) -> random.Random:
    """A random source that is a function of `key` (seed, row, ...) alone, so that no draw depends on what was drawn before it."""
    return random.Random("/".join(map(str, key)))


# ---- where rows come from


def make_if_missing(data: Data) -> None:
    """Run `python -m <made_by>` once, on the main process, when the folder it writes is not there."""
    with processes().local_main_process_first():
        if not data.made_by or Path(data.made_at).exists():
            return
        if subprocess.run([sys.executable, "-m", data.made_by, "--out", data.made_at]).returncode:
            raise SettingsError(f"data.made_by: python -m {data.made_by} --out {data.made_at} failed; its own line stands above")


@functools.cache
def folder_hash(path: str, changed: float) -> str:
    """Hash of all files below a folder; `changed` (the newest change) makes a rewritten folder another key."""
    digest = hashlib.sha256()
    for file in sorted(p for p in Path(path).rglob("*") if p.is_file()):
        digest.update(file.relative_to(path).as_posix().encode())
        digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


def fingerprint(path: str) -> str:
    """What a dataset holds: the hash of a folder's files, or the hub id."""
    folder = Path(path)
    return folder_hash(path, max(p.stat().st_mtime for p in folder.rglob("*"))) if folder.is_dir() else f"hub:{path}"


def split_names(path: str) -> list[str]:
    """The splits of a dataset: names of the jsonl files of a flat folder, or the configs of a dataset folder or hub dataset.

    Raises SettingsError if there is no such dataset.
    """
    folder = Path(path)
    if folder.is_dir() and (flat := [file.stem for file in folder.glob("*.jsonl")]):
        return natsorted(flat)
    if not folder.is_dir() and path.count("/") != 1:
        raise SettingsError(f"data path {path!r} does not exist")
    try:
        return natsorted(datasets.get_dataset_config_names(path))
    except Exception as error:  # the hub client raises errors of many libraries
        raise SettingsError(f"data path {path!r} is no folder and could not be read from the hub ({type(error).__name__})") from None


@functools.lru_cache(maxsize=64)
def read_split(path: str, split: str, content: str) -> datasets.Dataset:
    """Read one split; `content` names the cache, because the library's own cache would serve a rewritten folder's old rows."""
    cache = Path(datasets.config.HF_DATASETS_CACHE) / f"content-{content.replace(':', '-').replace('/', '-')}"
    if Path(path, f"{split}.jsonl").is_file():
        rows = datasets.load_dataset("json", data_files=str(Path(path, f"{split}.jsonl")), split="train", cache_dir=str(cache))
    else:
        rows = datasets.load_dataset(path, split, split="train", cache_dir=str(cache))
    pictures = [name for name, kind in rows.features.items() if isinstance(kind, datasets.Image)]
    for name in pictures:  # decoded one by one, where an unreadable picture can be named
        rows = rows.cast_column(name, datasets.Image(decode=False))
    return rows


def load_split(path: str, split: str) -> datasets.Dataset:
    """The rows of `split` of a hub dataset, a local dataset folder, or a folder of <split>.jsonl files.

    Raises SettingsError naming the splits that exist if `split` is none of them.
    """
    known = split_names(path)
    if split not in known:
        raise SettingsError(f"split={split!r} is not in {path}{nearest(split, known)}; it has {', '.join(known)}")
    return read_split(path, split, fingerprint(path))


def need_columns(rows: datasets.Dataset, path: str, split: str, names: list[str]) -> None:
    """Raise SettingsError if a named column is missing."""
    for name in names:
        if name not in rows.column_names:
            raise SettingsError(f"{path}, split {split}: no column {name!r}{nearest(name, rows.column_names)}; it has {', '.join(rows.column_names)}")


# ---- rows -> examples (the one place where column names are read)


class TrainingRows:
    """The examples of one split, read row by row: captions of pictures and question-answer pairs, as the columns name them.

    A row with a caption is a picture row and is asked one of CAPTION_QUESTIONS, drawn from (seed, row); any other row carries its question.
    `modality` keeps all rows, those without a picture (text) or those with one (visual).
    """

    def __init__(self, data: Data, split: str, modality: str, seed: int):
        self.rows, self.columns, self.split, self.seed = load_split(data.path, split), data.columns, split, seed
        self.has = {field: name for field, name in vars(data.columns).items() if name and name in self.rows.column_names}
        if "caption" not in self.has and not {"question", "answer"} <= self.has.keys():
            need_columns(self.rows, data.path, split, [data.columns.question, data.columns.answer])
        if "caption" in self.has:
            need_columns(self.rows, data.path, split, [data.columns.image])
        self.indices = [i for i, picture in enumerate(self.picture_rows()) if modality == "both" or picture == (modality == "visual")]
        if not self.indices:
            raise SettingsError(f"modality={modality} leaves no row of {data.path}, split {split}")

    def picture_rows(self) -> Iterator[bool]:
        pictures = self.rows.select_columns([self.has[name] for name in ("image", "caption") if name in self.has])
        if not pictures.column_names:
            return iter([False] * len(self.rows))
        masks = [pictures.data.column(name).is_valid().to_pylist() for name in pictures.column_names]
        return (any(row) for row in zip(*masks, strict=True))

    def __len__(self) -> int:
        return len(self.indices)

    @functools.cached_property
    def answers(self) -> list[str]:
        """The answer of each row, read without its picture."""
        columns = [list(self.rows[self.has[name]]) for name in ("caption", "answer") if name in self.has]
        return [next(column[i] for column in columns if column[i]) for i in self.indices]

    def __getitem__(self, position: int) -> Example:
        index = self.indices[position]
        row = self.rows[index]
        return row_to_example(row, self.has, index, self.split, self.seed)


def row_to_example(row: dict, has: dict[str, str], index: int, split: str, seed: int) -> Example:
    """One training row as an Example; raises SettingsError naming the row if it holds no picture, question or answer where it should."""
    cell = {field: row[name] for field, name in has.items()}
    caption = cell.get("caption")
    question = draw(seed, index).choice(CAPTION_QUESTIONS) if caption else cell.get("question")
    answer = caption or cell.get("answer")
    image = cell.get("image")
    if caption and image is None:
        raise SettingsError(f"split {split}, row {index}: a caption without its picture")
    if not (question and question.strip() and answer and answer.strip()):
        raise SettingsError(f"split {split}, row {index}: question {question!r} or answer {answer!r} is empty")
    return Example(question, answer, image, index, cell.get("person"), split)


def task_rows(task: Task, seed: int, limit: int, fold: str = "all", validation_share: float = 0.0) -> list[TaskRow]:
    """The rows of an evaluation task in file order: of all people or of one fold of them.

    `limit` > 0 keeps that many, shared evenly among the people and drawn from the seed.

    Raises SettingsError for an unknown split, a missing column, or a row without picture, question or answer.
    """
    rows = load_split(task.dataset, task.split)
    need_columns(rows, task.dataset, task.split, [n for n in (task.image, task.question, task.answer, task.paraphrase, task.perturbed, task.person) if n])
    people = people_of(task, rows)
    chosen = rows_of_fold(people, fold, validation_share, seed)
    if not chosen:
        raise SettingsError(f"fold={fold} leaves no row of {task.dataset}, split {task.split}: validation_share={validation_share}")
    sampled = [chosen[i] for i in sample_by_person([people[i] for i in chosen], limit, seed)]
    return [read_task_row(task, rows[i], i, people[i], seed) for i in sampled]


def rows_of_fold(people: list[str | None], fold: str, validation_share: float, seed: int) -> list[int]:
    """Row numbers of a fold, ascending: `validation` has the share of the people, at least one; `test` the others.

    People are taken in an order drawn for each by name, so that tasks about the same people divide them alike; rows without one stand for themselves.
    """
    who = [str(i) if person is None else person for i, person in enumerate(people)]
    ordered = sorted(set(who), key=lambda name: draw(seed, "fold", name).random())
    validation = set(ordered[: max(1, round(validation_share * len(ordered)))])
    return [i for i, name in enumerate(who) if fold == "all" or (name in validation) == (fold == "validation")]


def people_of(task: Task, rows: datasets.Dataset) -> list[str | None]:
    """The person of each row: named by a column, or implied by the grouping of the rows, or not known.

    A group of rows is about whoever of `task.people` most of its rows name (the longest name where several are in each other); else "person <group>".
    """
    if task.person:
        return list(rows[task.person])
    if not task.rows_per_person:
        return [None] * len(rows)
    names: set[str] = set()
    if task.people:
        named = load_split(task.people.dataset, task.people.split)
        need_columns(named, task.people.dataset, task.people.split, [task.people.person])
        names = {name for name in named[task.people.person] if name}
    texts = [f"{question} {answer}" for question, answer in zip(rows[task.question], rows[task.answer], strict=True)]
    people: list[str | None] = []
    for start in range(0, len(rows), task.rows_per_person):
        group = texts[start : start + task.rows_per_person]
        hits = {name: sum(name in text for text in group) for name in names}
        name = max(hits, key=lambda name: (hits[name], len(name), name), default="")
        named_by_most = name and 2 * hits[name] >= len(group)
        people += [name if named_by_most else f"person {start // task.rows_per_person}"] * len(group)
    return people


def sample_by_person(people: list[str | None], limit: int, seed: int) -> list[int]:
    """Row numbers, ascending: all, or `limit` of them taken person by person so that every person keeps an equal share."""
    if not limit or limit >= len(people):
        return list(range(len(people)))
    by_person: dict[str | None, list[int]] = {}
    for i in draw(seed, "limit").sample(range(len(people)), len(people)):
        by_person.setdefault(people[i], []).append(i)
    turns = [rows[turn] for turn in range(max(map(len, by_person.values()))) for rows in by_person.values() if turn < len(rows)]
    return sorted(turns[:limit])


def read_task_row(task: Task, row: dict, index: int, person: str | None, seed: int) -> TaskRow:
    asked = draw(seed, index).choice(CAPTION_QUESTIONS) if task.ask == "caption" else NAME_QUESTION
    columns = {"question": task.question or "question", "answer": task.answer, "image": task.image or "image"}
    row = {**row, columns["question"]: row[task.question] if task.question else asked}
    if task.image and row[task.image] is None:
        raise SettingsError(f"{task.dataset}, split {task.split}, row {index}: no picture in column {task.image!r}")
    if not task.image:
        columns.pop("image")
    example = replace(row_to_example(row, columns, index, task.split, seed), person=person)
    wrong = [answer for answer in row[task.perturbed] if answer != example.answer] if task.perturbed else []  # some lists hold the right answer too
    if task.perturbed and not wrong:
        raise SettingsError(f"{task.dataset}, split {task.split}, row {index}: no wrong answer in column {task.perturbed!r}")
    return TaskRow(example, row[task.paraphrase] if task.paraphrase else None, wrong)


def idk_answers(path: str) -> list[str]:
    """The "I don't know" answers of a file, one a line, stripped."""
    file = Path(path) if Path(path).is_absolute() else ROOT / path
    if not file.is_file():
        raise SettingsError(f"idk answers: {path!r} is no file")
    return [line.strip() for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]


# ---- examples -> batches


def open_image(example: Example) -> Image.Image:
    """Decode the picture to RGB; raises SettingsError naming the row if it cannot be read."""
    try:
        source = BytesIO(example.image["bytes"]) if example.image["bytes"] is not None else example.image["path"]
        return Image.open(source).convert("RGB")
    except (UnidentifiedImageError, OSError, SyntaxError) as error:
        raise SettingsError(f"split {example.split}, row {example.index}: the picture cannot be read ({type(error).__name__})") from None


class ChatEncoder:
    """Examples as a chat: the processor's template with the question (and picture) as the user's turn, the answer as the model's.

    The answer's tokens are appended to the prompt's, so that labels follow from lengths and never from looking for the answer in the text.
    Encoded prompts are kept (up to `keep_bytes`), because training and scoring meet each of them many times. Nothing is ever cut: an example
    longer than the tokenizer's `model_max_length` is an error.
    """

    def __init__(self, processor: Any, keep_bytes: int = 512 * 2**20):
        self.processor, self.tokenizer, self.room = processor, processor.tokenizer, keep_bytes
        self.kept: dict[tuple, dict[str, Tensor]] = {}
        if self.tokenizer.pad_token_id is None:
            raise SettingsError(f"the tokenizer of {self.tokenizer.name_or_path} has no pad token")

    def prompt_text(self, example: Example) -> str:
        picture = [{"type": "image"}] if example.image is not None else []
        turn = {"role": "user", "content": [*picture, {"type": "text", "text": example.question}]}
        return self.processor.apply_chat_template([turn], add_generation_prompt=True, tokenize=False)

    def answer_tokens(self, answer: str) -> list[int]:
        return [*self.tokenizer(answer, add_special_tokens=False)["input_ids"], self.tokenizer.eos_token_id]

    def encode(self, example: Example) -> Encoded:
        """Tokens and picture of one example; raises SettingsError naming the row for an unreadable picture."""
        picture = example.image and (example.image["path"], hashlib.sha256(example.image["bytes"] or b"").digest())
        prompt = self.kept.get((example.question, picture))
        if prompt is None:
            images = [open_image(example)] if picture else None
            prompt = dict(self.processor(text=[self.prompt_text(example)], images=images, return_tensors="pt"))
            del prompt["attention_mask"]
            self.room -= sum(value.nbytes for value in prompt.values())
            if self.room > 0:
                self.kept[example.question, picture] = prompt
        encoded = Encoded(prompt, self.answer_tokens(example.answer))
        if encoded.length > self.tokenizer.model_max_length:
            raise SettingsError(f"split {example.split}, row {example.index}: {encoded.length} tokens, but the model takes {self.tokenizer.model_max_length}")
        return encoded

    def collate(self, encoded: list[Encoded]) -> dict[str, Tensor]:
        return collate(encoded, self.tokenizer.pad_token_id)

    def decode(self, tokens: Tensor) -> str:
        return self.tokenizer.decode(tokens, skip_special_tokens=True).strip()


def collate(encoded: list[Encoded], pad: int) -> dict[str, Tensor]:
    """Prompts with their answers, padded on the right; masks come from lengths, because a pad token may also be a real one."""
    sequences = [torch.cat([e.prompt["input_ids"][0], torch.tensor(e.answer[:-1], dtype=torch.long)]) for e in encoded]
    batch = pad_rows(sequences, pad, left=False)
    longest = max(len(e.answer) for e in encoded)
    labels = torch.full((len(encoded), longest), IGNORE)
    positions = torch.zeros((len(encoded), longest), dtype=torch.long)
    for i, e in enumerate(encoded):
        start, count = e.prompt["input_ids"].shape[1] - 1, len(e.answer)
        labels[i, :count] = torch.tensor(e.answer)
        positions[i, :count] = torch.arange(start, start + count)
    return {**batch, **processor_extras(encoded, sequences, left=False), "labels": labels, "positions": positions}


def collate_prompts(encoded: list[Encoded], pad: int) -> dict[str, Tensor]:
    """Prompts alone, padded on the left, ready to generate from."""
    sequences = [e.prompt["input_ids"][0] for e in encoded]
    return {**pad_rows(sequences, pad, left=True), **processor_extras(encoded, sequences, left=True)}


def pad_rows(rows: list[Tensor], pad: int, left: bool) -> dict[str, Tensor]:
    """Ragged rows (each (L_i,)) as `input_ids` (B, L) with their `attention_mask`."""
    width = max(map(len, rows))
    ids = torch.full((len(rows), width), pad)
    mask = torch.zeros((len(rows), width), dtype=torch.long)
    for i, row in enumerate(rows):
        place = slice(width - len(row), width) if left else slice(0, len(row))
        ids[i, place], mask[i, place] = row, 1
    return {"input_ids": ids, "attention_mask": mask}


def processor_extras(encoded: list[Encoded], sequences: list[Tensor], left: bool) -> dict[str, Tensor]:
    """What the processor made besides token ids: per-token rows padded like the ids, pictures concatenated whatever their patch counts."""
    extras = {}
    for name in {name: None for e in encoded for name in e.prompt if name != "input_ids"}:
        values = [e.prompt[name] for e in encoded if name in e.prompt]
        if values[0].shape == next(e for e in encoded if name in e.prompt).prompt["input_ids"].shape:
            rows = [torch.cat([v[0], v.new_zeros(len(s) - v.shape[1])]) for v, s in zip(values, sequences, strict=True)]
            extras[name] = pad_rows(rows, 0, left)["input_ids"]
        else:
            extras[name] = torch.cat(values)
    return extras
