"""Places of methods: among those that forget the same, without those that collapsed or left somebody out."""

import pytest

from engine.logs import forgotten, forgotten_modality
from engine.result_table import Figure, ModelResult
from report import ranking
from report.ranking import add_benchmark_places, measured_spreads
from settings.training import SCOPES

SPREAD_IS_KNOWN = ("npo", "idk", "ga", "near", "cheat", "words", "both")


def result(method, distance, *, flag=0.0, skipped=None, leak=0.5):
    figures = {
        ("distance_worst_way", ""): Figure(distance, distance - 0.02, distance + 0.02),
        ("distance_held_out_worst_way", ""): Figure(0.03),
        ("worst_person", ""): Figure(leak, leak - 0.05),
        ("flag", ""): Figure(flag, why="kept_taught 0.10" if flag else None),
        ("skipped", ""): Figure(float(skipped is not None), why=skipped),
    }
    return ModelResult(method, 0, figures)


@pytest.fixture
def placed(monkeypatch):
    """Places of some methods, and why some have none; `modality`: method -> what it was made to forget."""

    monkeypatch.setattr(ranking, "measured_spreads", lambda benchmark: dict.fromkeys(SPREAD_IS_KNOWN, 0.01))

    def place(*results, modality=()):
        for each in results:
            named = dict(modality).get(each.method, "both")  # a scope, or a modality
            each.forgets = forgotten(*((named, "both") if named in SCOPES else (None, named)))
        add_benchmark_places(results, "measured")
        return {each.method: each.figure("place") for each in results}

    return place


def test_methods_have_places_by_the_worst_way_and_anchors_have_none(placed):
    found = placed(result("base", 1.0), result("npo", 0.2), result("idk", 0.6), result("ga", 0.21))
    assert [found[name].value for name in ("base", "npo", "idk", "ga")] == [None, 1, 3, 1]


def test_a_collapsed_model_and_one_that_left_somebody_out_have_no_place_and_say_why(placed):
    found = placed(result("near", 0.1, flag=1.0), result("cheat", 0.1, skipped="Ann 1.00"), result("npo", 0.4))
    assert (found["near"].value, found["near"].why) == (None, "kept_taught 0.10")
    assert (found["cheat"].value, found["cheat"].why) == (None, "left out: Ann 1.00")
    assert found["npo"].value == 1


def test_a_hook_has_no_place_and_says_why(placed):
    hook = result("cheat", 0.1)
    hook.figures["hook", ""] = Figure(1.0, why="its tokenizer.json is not base's")
    found = placed(hook, result("npo", 0.4))
    assert (found["cheat"].value, found["cheat"].why) == (None, "a hook: its tokenizer.json is not base's")
    assert found["npo"].value == 1


def test_a_method_whose_spread_was_not_measured_has_no_place(placed):
    found = placed(result("npo", 0.2), result("new", 0.1))
    assert (found["npo"].value, found["new"].value) == (1, None)
    assert found["new"].why == "bench/stability/measured.csv holds no spread of this method"


def test_methods_that_forget_something_else_are_not_compared(placed):
    found = placed(result("words", 0.1), result("both", 0.9), modality=[("words", "text"), ("both", "both")])
    assert [found[name].value for name in ("words", "both")] == [1, 1]


def test_a_method_of_pictures_alone_is_compared_with_those_that_forget_pictures(placed):
    """Its run reads rows of both, for the words among them are to be kept."""
    forgets = [("npo", "pictures"), ("near", "visual"), ("idk", "both"), ("words", "words")]
    found = placed(
        *(result(name, distance) for name, distance in (("npo", 0.1), ("near", 0.9), ("idk", 0.9), ("words", 0.9))),
        modality=forgets,
    )
    assert [found[name].value for name, _ in forgets] == [1, 2, 1, 1]


def test_what_a_run_was_to_forget_is_its_methods_scope_or_else_its_modality():
    def record(modality, **method):
        return {"settings": {"modality": modality, "method": method}}

    assert forgotten_modality(record("both", scope="pictures")) == "visual"
    assert forgotten_modality(record("both", scope="words")) == "text"
    assert forgotten_modality(record("text", scope="both")) == "text"
    assert forgotten_modality(record("visual")) == "visual"  # a record of a time without scopes
    assert forgotten_modality({}) is None


def test_spreads_are_read_from_the_committed_runs(tmp_path, monkeypatch):
    monkeypatch.setattr(ranking, "STABILITY", tmp_path)
    lines = ["seed,precision,threads,model,measure,value", "0,fp32,1,npo,distance_worst_way,0.2"]
    lines += ["1,fp32,1,npo,distance_worst_way,0.4", "0,fp32,1,npo,flag,0"]
    (tmp_path / "demo.csv").write_text("\n".join(lines))
    assert measured_spreads("demo") == {"npo": pytest.approx(0.141421, abs=1e-6)}  # |.4 - .2| / sqrt(2)
    assert measured_spreads("other") == {}
