"""Evaluate a language model on every task, into <model_path>/eval_results: accelerate launch nlp/eval.py model_path=..."""

from dataclasses import asdict

from transformers import AutoModelForCausalLM, AutoTokenizer

from data_module import make_if_missing, make_model_if_missing
from engine.encode import check_answers
from engine.evaluate import evaluate, read_tasks
from engine.language_model import check_model_path, load, load_model, model_fingerprint, positions_of
from engine.record import EVAL_RECORD, check_save_dir, say_line
from nlp.encoder import TextEncoder
from settings.language import Eval
from settings.script import processes, script


@script("nlp/eval", Eval)
def main(settings: Eval) -> None:
    make_model_if_missing(settings.model, settings.model_path)
    check_model_path(settings.model_path)
    check_save_dir(settings.save_dir, settings.overwrite, EVAL_RECORD)
    make_if_missing(settings.data)
    tasks = read_tasks(settings, settings.seed, settings.fold)

    tokenizer, positions = (
        load(AutoTokenizer, settings.model_path, settings.model),
        positions_of(settings.model_path, settings.model),
    )
    encoder = TextEncoder(tokenizer, settings.model.tags, positions=positions)
    check_answers(encoder, tasks)
    model = load_model(AutoModelForCausalLM, settings.model_path, settings.model, settings.model.weights)
    record = {"settings": asdict(settings), "model": model_fingerprint(settings.model_path)}
    evaluate(model.to(processes().device), encoder, tasks, settings, record)
    say_line(f"evaluated: {settings.save_dir}")


if __name__ == "__main__":
    main()
