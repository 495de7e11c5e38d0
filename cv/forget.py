"""Make a face network forget the people that it is to forget: accelerate launch cv/forget.py method=scrub"""

from cv.face_settings import ForgetFaces
from settings.script import script


@script("cv/forget", ForgetFaces)
def main(settings: ForgetFaces) -> None:
    from engine.record import TRAIN_RECORD, begin_run, run_facts, say_line

    code = begin_run(settings, TRAIN_RECORD, __file__)
    from engine.methods import bind

    method = settings.method
    loss = bind(method, faces=True)
    from cv.division import met_by, read_division
    from cv.network import check_parts, end_at, load_network, start_of
    from cv.preparation import People, prepare
    from data_module import fingerprint, make_missing
    from engine.train import train

    check_parts(method.activations)
    model, classes = load_network(settings.model_path, settings.model)
    make_missing(settings.inputs())
    division = read_division(settings.data)
    met = met_by(division, None)
    people = People(division, met, classes)
    ready = prepare(loss, model, people, data=settings.data, shape=settings.model, seed=settings.seed)
    if method.activations:
        end_at(ready.model, method.activations)
    asked = {"untaught": ready.untaught, "measured": ready.measured}
    start = start_of(ready.model, settings.model, classes, **asked)
    record = {"method": loss.method.name, "data": fingerprint(settings.data.people.path), **run_facts(settings, code)}
    record |= ready.measured
    run = {"seed": settings.seed, "save_dir": settings.save_dir, "record": record}
    train(start, loss, ready.pairs, ready.encoder, settings.trainer, **run)
    say_line(f"forgot {len(met.forget)} people with {method.name}: {settings.save_dir}")


if __name__ == "__main__":
    main()
