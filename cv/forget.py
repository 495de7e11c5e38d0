"""Make a face network forget the people that it is to forget: accelerate launch cv/forget.py method=scrub"""

from cv.face_settings import ForgetFaces
from settings.script import script


@script("cv/forget", ForgetFaces)
def main(settings: ForgetFaces) -> None:
    from engine.record import TRAIN_RECORD, begin_run, run_facts, say_line

    code = begin_run(settings, TRAIN_RECORD, __file__)
    from engine.methods import bind

    method = settings.method
    loss = bind(method)
    from cv.division import met_by, read_division
    from cv.network import check_parts, end_at, load_network, start_of
    from cv.pictures import FaceEncoder, FacePairs, training_rows
    from data_module import fingerprint, make_missing
    from engine.train import train

    check_parts(method.activations)
    model, classes = load_network(settings.model_path, settings.model)
    make_missing(settings.inputs())
    division = read_division(settings.data)
    met = met_by(division, None)
    forget = training_rows(division, met.forget, "forget")
    retain = training_rows(division, met.retain, "retain")
    draws = {"seed": settings.seed, "other_answers": method.other_answers, "scope": method.scope}
    pairs = FacePairs(loss.batches, forget, retain, size=settings.model.size, **draws)

    if method.activations:
        end_at(model, method.activations)
    encoder = FaceEncoder(classes, settings.data.people, settings.model.size)
    encoder.read([*forget.files, *retain.files])
    start = start_of(model, settings.model, classes)
    record = {"method": loss.method.name, "data": fingerprint(settings.data.people.path), **run_facts(settings, code)}
    run = {"seed": settings.seed, "save_dir": settings.save_dir, "record": record}
    train(start, loss, pairs, encoder, settings.trainer, **run)
    say_line(f"forgot {len(met.forget)} people with {method.name}: {settings.save_dir}")


if __name__ == "__main__":
    main()
