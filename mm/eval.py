"""Evaluate a vision-language model on every task, into <model_path>/eval_results: accelerate launch mm/eval.py model_path=..."""

from dataclasses import asdict

from transformers import AutoModelForImageTextToText, AutoProcessor

from data_module import make_if_missing
from engine.encode import ChatEncoder
from engine.evaluate import evaluate, read_tasks
from engine.language_model import check_model_path, load, load_model, model_fingerprint
from engine.record import EVAL_RECORD, check_save_dir, say_line
from settings.language import Eval
from settings.script import processes, script


@script("mm/eval", Eval)
def main(settings: Eval) -> None:
    check_model_path(settings.model_path)
    check_save_dir(settings.save_dir, settings.overwrite, EVAL_RECORD)
    make_if_missing(settings.data)
    tasks = read_tasks(settings, settings.seed, settings.fold)

    encoder = ChatEncoder(load(AutoProcessor, settings.model_path, settings.model))
    model = load_model(AutoModelForImageTextToText, settings.model_path, settings.model, settings.model.weights)
    record = {"settings": asdict(settings), "model": model_fingerprint(settings.model_path)}
    evaluate(model.to(processes().device), encoder, tasks, settings, record)
    say_line(f"evaluated: {settings.save_dir}")


if __name__ == "__main__":
    main()
