"""Tell forgotten people from people whom a language model never met, through shadow models: python nlp/membership.py"""

import time
from pathlib import Path

from settings.membership import Membership
from settings.script import script


@script("nlp/membership", Membership)
def main(settings: Membership) -> None:
    from engine import record
    from engine.folders import written_whole

    code = record.begin_run(settings, record.MEMBERSHIP_RECORD, __file__)
    from engine.methods import bind

    loss = bind(settings.method)
    import nlp.finetune
    import nlp.forget
    from data_module import make_missing
    from engine.language_model import check_model_path
    from engine.shadow_figures import membership_figures, table
    from engine.shadow_models import Recipes, check_alone, losses_of_models, write_all_rows
    from engine.shadow_people import read_people, roles_of
    from nlp.encoder import open_encoder, open_model

    check_alone()
    make_missing(settings.inputs())
    check_model_path(settings.model_path)
    people = read_people(settings)
    roles = roles_of(len(people.names), settings.models, settings.parts, settings.seed)
    write_all_rows(people, roles, settings, loss)

    facts = record.run_facts(settings, code)
    record.start_of_peak()
    started = time.perf_counter()
    recipes = Recipes(nlp.finetune.main.recipe, nlp.forget.main.recipe, open_encoder, open_model)
    scored = losses_of_models(people, settings, recipes)
    figures = membership_figures(scored, roles, people.names, settings.block)
    with written_whole(Path(settings.save_dir)) as aside:
        record.write_json(aside / record.MEMBERSHIP_FIGURES, figures)
        cost = {"seconds": time.perf_counter() - started, "training_seconds": scored.seconds}
        record.write_record(aside / record.MEMBERSHIP_RECORD, figure="; ".join(table(figures)), **cost, **facts)
    for line in table(figures):
        record.say_line(line)
    record.say_line(f"attacked {settings.models} models: {settings.save_dir}")


if __name__ == "__main__":
    main()
