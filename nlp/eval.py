"""Evaluate a language model on every task, into <model_path>/eval_results: accelerate launch nlp/eval.py
model_path=...
"""

from settings.language import Eval
from settings.script import processes, script


@script("nlp/eval", Eval)
def main(settings: Eval) -> None:
    from engine.record import EVAL_RECORD, begin_run, run_facts, say_line

    code = begin_run(settings, EVAL_RECORD, __file__)
    from data_module import make_missing
    from engine.evaluate import evaluate, read_tasks
    from engine.language_model import check_model_path
    from engine.row_lengths import check_answers
    from engine.tracking import tracked_evaluation
    from nlp.encoder import open_encoder, open_model

    make_missing(settings.inputs())
    check_model_path(settings.model_path)
    tasks = read_tasks(settings, settings.seed, settings.fold)

    encoder = open_encoder(settings.model_path, settings.model)
    check_answers(encoder, tasks)
    model = open_model(settings.model_path, settings.model)
    with tracked_evaluation(settings.report_to, settings.save_dir):
        evaluate(model.to(processes().device), encoder, tasks, settings, facts=run_facts(settings, code))
    say_line(f"evaluated: {settings.save_dir}")


if __name__ == "__main__":
    main()
