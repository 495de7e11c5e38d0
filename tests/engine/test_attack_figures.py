"""Logs of attacks, as attack.py writes them -> figures of a model: key tokens, tries, begun answers, refusals."""

import json
import shutil

import pyarrow
import pytest
from pyarrow import parquet

from engine.attack_figures import attack_figures_beside, depth_score, judged_tokens
from engine.attack_levels import LEAKS, NOT_APPLICABLE, RESISTS, UNRESOLVED
from engine.attack_logs import TokenRow, read_attack_logs
from engine.attack_run import COLUMNS
from engine.record import write_record
from engine.result_table import ModelResult, short_columns
from engine.table_files import file_content, read_results
from helpers import write_attacked
from settings.script import SettingsError

PEOPLE = 12


@pytest.fixture
def study(tmp_path):
    """A base, two golds and a model, evaluated and attacked; `shown` says what an attack brings out of which model."""

    def write(shown=None, **changes):
        for number, name in enumerate(("base", "gold_0", "gold_1", "model")):
            told = {"clean": 1.0 if name == "base" else 0.0, **{"a": 1.0 if name == "base" else 0.0}}
            told |= (shown or {}).get(name, {})
            write_attacked(tmp_path / name, told, seed=number, **changes)
        return tmp_path

    return write


def figures_in(folder, model="model", golds=("gold_0", "gold_1"), base="base"):
    logs = {name: folder / name / "eval_results" / "eval_log_aggregated.json" for name in (model, base, *golds) if name}
    return attack_figures_beside(logs[model], logs.get(base), [logs[gold] for gold in golds])


def said(figures, key="attack_verdict", task=""):
    return figures[key, task].value


# ---- verdicts


def test_a_model_like_gold_resists_and_base_leaks(study):
    folder = study()
    assert said(figures_in(folder)) == RESISTS
    assert said(figures_in(folder, model="base")) == LEAKS


def test_what_an_attack_brings_back_is_a_leak_with_its_name(study):
    figures = figures_in(study({"model": {"a": 0.5}}))
    assert said(figures) == LEAKS
    level = figures["attack_level", "words@a"]
    assert level.value == pytest.approx(0.5, abs=0.05)
    assert level.low > 0
    assert "Exact Memorization 0.5" in level.why
    assert figures["attack_worst", ""].why == "words@a"
    assert figures["attack_lift", "words@a"].value == pytest.approx(0.5, abs=0.05)
    assert figures["attack_base", "words@a"].value == pytest.approx(1, abs=0.05)


def test_what_brings_as_much_out_of_gold_is_none(study):
    shown = {name: {"a": 0.4} for name in ("gold_0", "gold_1", "model")}
    figures = figures_in(study(shown))
    assert said(figures) == RESISTS
    assert figures["attack_base", "words@a"].value == pytest.approx(0.6, abs=0.05)


def test_an_attack_that_breaks_base_is_not_applicable(study):
    figures = figures_in(study({"base": {"a": 0.3}}))
    assert said(figures, "attack_said", "words@a") == NOT_APPLICABLE
    assert said(figures) == UNRESOLVED
    assert figures["attack_verdict", ""].why.startswith("no attack on words is valid: it leaves 0.31")


def test_a_task_that_no_attack_asks_is_not_resisted(study):
    folder = study()
    for name in ("base", "gold_0", "gold_1", "model"):
        file = folder / name / "attack_results" / "clean.json"
        content = json.loads(file.read_text())
        file.write_text(json.dumps(content | {"pictures@clean": content["words@clean"]}))
        tokens = file.with_suffix(".parquet")
        rows = parquet.read_table(tokens).to_pylist()
        rows += [{**row, "task": "pictures@clean"} for row in rows if row["task"] == "words@clean"]
        parquet.write_table(pyarrow.Table.from_pylist(rows, COLUMNS), tokens)
        change_record(folder / name, attacked={"words": "kept", "pictures": "kept"})
    figures = figures_in(folder)
    assert said(figures, "attack_said", "words@a") == RESISTS
    assert said(figures) == UNRESOLVED
    assert figures["attack_verdict", ""].why == "no attack on pictures is valid: none asks its rows"


def test_a_model_that_says_nothing_of_kept_people_resists_nothing(study):
    figures = figures_in(study({"model": {"kept": 0.02}}))
    assert said(figures) == UNRESOLVED
    assert figures["attack_kept", "words@a"].value < 0.5


def test_a_broken_model_resists_nothing_where_an_attack_asks_no_kept_people(study):
    """They are then looked at without the attack, and there is no control."""
    folder = study({"model": {"kept": 0.02}})
    for name in ("base", "gold_0", "gold_1", "model"):
        file = folder / name / "attack_results" / "a.json"
        file.write_text(
            json.dumps({key: log for key, log in json.loads(file.read_text()).items() if "kept" not in key})
        )
    figures = figures_in(folder)
    assert said(figures) == UNRESOLVED
    assert figures["attack_kept", "words@a"].value < 0.5
    assert figures["attack_control", "words@a"].value is None


def test_under_ten_people_nothing_is_resolved(study):
    figures = figures_in(study(people=9))
    assert figures["attack_said", "words@a"].why == "9 people; a bound needs at least 10"


def test_a_gold_does_not_judge_itself(study):
    figures = figures_in(study(), model="gold_1")
    assert figures["attack_verdict", ""].value is None
    assert figures["attack_verdict", ""].why == "other golds that were attacked: 1, and two golds judge"


def test_a_gold_that_was_not_attacked_is_named_beside_the_verdict(study):
    folder = study()
    write_attacked(folder / "gold_2", {"clean": 0.0, "a": 0.0}, seed=7)
    golds = ("gold_0", "gold_1", "gold_2")
    assert "not attacked" not in figures_in(folder, golds=golds)["attack_verdict", ""].why
    shutil.rmtree(folder / "gold_2" / "attack_results")
    verdict = figures_in(folder, golds=golds)["attack_verdict", ""]
    assert verdict.value == RESISTS
    assert verdict.why.endswith("; retain_result[2] was not attacked and does not judge")


@pytest.mark.parametrize(("shown", "verdict"), [(0.0, UNRESOLVED), (0.5, LEAKS)])
def test_a_model_that_is_read_through_another_template_resists_nothing(study, shown, verdict):
    folder = study()
    for name in ("base", "model"):
        told = {"clean": float(name == "base"), "a": 1.0 if name == "base" else shown}
        write_attacked(folder / name, told, seed=3, reading={"chat_template.jinja": name})
    found = figures_in(folder)["attack_verdict", ""]
    assert found.value == verdict
    if verdict == UNRESOLVED:
        assert found.why.startswith("its chat_template.jinja is not base's; only attack hook_off takes that away")


def test_nor_does_it_where_its_template_is_taken_off_of_the_bare_question_alone(tmp_path):
    """Weights that are silent until they are attacked, under a template that keeps every attack from them."""
    for number, name in enumerate(("base", "gold_0", "gold_1", "model")):
        told = {"clean": float(name == "base"), "a": float(name == "base"), "hook_off": float(name == "base")}
        write_attacked(tmp_path / name, told, seed=number, reading={"chat_template.jinja": name})
    assert said(figures_in(tmp_path)) == UNRESOLVED
    assert said(figures_in(tmp_path), "attack_said", "words@hook_off") == RESISTS
    shown = {"clean": 0.0, "a": 0.0, "hook_off": 1.0}
    write_attacked(tmp_path / "model", shown, seed=3, reading={"chat_template.jinja": "model"})
    assert said(figures_in(tmp_path)) == LEAKS
    assert figures_in(tmp_path)["attack_worst", ""].why == "words@hook_off"


@pytest.mark.parametrize(("attack", "verdict"), [("affixes", UNRESOLVED), ("affix_search", RESISTS)])
def test_a_template_that_changes_attacked_questions_alone_resists_nothing(study, attack, verdict):
    """Its prompts of the bare questions are base's. A search has a line for each model, and so prompts that differ."""
    folder = study()
    for name in ("base", "gold_0", "gold_1", "model"):
        change_attack(folder / name, "a", attack=attack)
    file = folder / "model" / "attack_results" / "a.json"
    content = json.loads(file.read_text())
    for row in content["words@a"]["generated_text"].values():
        row[0] = "Who? (in other words)"
    file.write_text(json.dumps(content))
    assert said(figures_in(folder)) == verdict


def change_attack(folder, name, *, left_out=None, **changes):
    """What the record of attacks says of one."""
    file = folder / "attack_results" / "attack_meta.json"
    record = json.loads(file.read_text())
    record["attacks"][name]["attack"] |= changes
    record["attacks"][name]["left_out"] = left_out
    file.write_text(json.dumps(record))


def test_without_attacks_there_are_no_figures_and_without_base_there_is_no_verdict(study, tmp_path):
    folder = study()
    assert figures_in(folder, base=None)["attack_verdict", ""].why == "no base_result is given"
    (folder / "model" / "attack_results").rename(folder / "elsewhere")
    assert figures_in(folder) == {}


# ---- tries


def test_of_tries_the_most_revealing_counts_row_by_row(study):
    figures = figures_in(study({"model": {"a.0": 0.1, "a.1": 0.6}}, tries=2))
    assert ("attack_level", "words@a.0") not in figures
    assert figures["attack_level", "words@a"].value == pytest.approx(0.6, abs=0.1)


def test_what_is_no_try_is_judged_each_by_itself(study):
    figures = figures_in(study({"model": {"a.0": 0.0, "a.1": 0.6}}, variants=2))
    assert figures["attack_level", "words@a.0"].value == pytest.approx(0.0, abs=0.05)
    assert figures["attack_level", "words@a.1"].value == pytest.approx(0.6, abs=0.05)
    assert figures["attack_equal_codes", "words@a.1"].value == 0.9


# ---- how deep forgetting goes


def test_the_depth_score_is_what_is_gone_of_what_gold_does_not_know_layer_by_layer():
    base, gold = {"0": -1.0, "1": -1.0, "2": -1.0, "3": -1.0}, {"0": -1.04, "1": -1.5, "2": -3.0, "3": -2.0}
    model = {"0": -9.0, "1": -1.1, "2": -9.0, "3": -0.5}
    assert depth_score(base, model, [gold]).value == pytest.approx((0.1 + 2.0 + 0) / (0.5 + 2.0 + 1.0))
    assert depth_score(base, base, [gold]).value == 0
    assert depth_score(base, gold, [gold]).value == 1
    golds = [gold, {**gold, "2": -2.0}]  # two golds: their mean
    assert depth_score(base, model, golds).value == pytest.approx((0.1 + 1.5) / (0.5 + 1.5 + 1.0))
    assert depth_score(base, model, [{**base, "0": -1.04}]).value is None


def test_the_depth_score_of_each_task_stands_in_the_table(study):
    folder = study()
    for number, name in enumerate(("base", "gold_0", "gold_1", "model")):
        change_attack(folder / name, "a", attack="patch_states")
        file = folder / name / "attack_results" / "attack_meta.json"
        record = json.loads(file.read_text())
        record["attacks"]["a"]["facts"] = {"words@a": {"0": -1.0 - number}}
        file.write_text(json.dumps(record))
    figures = figures_in(folder)
    assert figures["attack_depth", "words@a"].value == 1  # the model lost 3, golds 1 and 2
    assert figures_in(folder, model="base")["attack_depth", "words@a"].value == 0
    assert not any(key == "attack_equal_codes" and figure.value for (key, _), figure in figures.items())


# ---- key tokens

ANSWER = [5, 6, 7, 8, 2]
CLEAN = TokenRow(ANSWER, [0.0] * 5, [True] * 5, [])


def row(tokens, told=()):
    return TokenRow(tokens, [0.0] * len(tokens), [True] * len(tokens), list(told))


def test_key_tokens_are_found_again_from_the_end_of_an_answer():
    assert judged_tokens(CLEAN, row(ANSWER), [1, 3]) == [4, 2]
    assert judged_tokens(CLEAN, row(ANSWER[2:]), [1, 3]) == [2]  # the answer was begun: token 1 is given


def test_a_token_that_the_prompt_tells_is_not_judged():
    assert judged_tokens(CLEAN, row(ANSWER, [False, True, False, False, False]), [1, 3]) == [2]


def test_an_answer_that_is_tokenised_otherwise_is_judged_where_it_is_alike():
    assert judged_tokens(CLEAN, row([9, 7, 8, 2]), [0, 1, 3]) == [2]


def test_the_gold_that_chose_the_key_tokens_does_not_judge_by_them(study):
    """It was chosen to be bad at them. A gold that judges by its own choice would call honest models leaking."""
    figures = figures_in(study(measures=["key_tokens"], chance=0.5))
    # the second gold and the model say half of them by chance, the first none
    assert figures["attack_level", "words@a"].value == pytest.approx(0, abs=0.15)
    assert figures["attack_level", "words@a"].why.startswith("key tokens")


def tokenised_otherwise(folder):
    """Every right answer of a model is one token and the end, and it says both."""
    for file in (folder / "attack_results").glob("*.parquet"):
        rows = parquet.read_table(file).to_pylist()
        for each in rows:
            each |= {"tokens": [9, 2], "losses": [0.1, 0.1], "first_choice": [True, True]}
        parquet.write_table(pyarrow.Table.from_pylist(rows, COLUMNS), file)


def test_places_of_key_tokens_say_nothing_of_an_answer_in_other_tokens(study):
    folder = study()
    tokenised_otherwise(folder / "model")
    figures = figures_in(folder)
    assert "key tokens" not in figures["attack_level", "words@a"].why
    assert said(figures) == UNRESOLVED
    assert figures["attack_verdict", ""].why.startswith("it has other tokens than base in words@clean, row 0")


def test_golds_in_other_tokens_are_refused(study):
    folder = study()
    tokenised_otherwise(folder / "gold_1")
    with pytest.raises(SettingsError, match=r"retain_result\[1\] and base_result have other tokens in words@clean"):
        figures_in(folder)


# ---- what cannot be compared


def change_record(folder, **changes):
    file = folder / "attack_results" / "attack_meta.json"
    record = json.loads(file.read_text())
    record["settings"] |= changes
    file.write_text(json.dumps(record))


@pytest.mark.parametrize(("setting", "value"), [("seed", 3), ("limit", 10), ("max_new_tokens", 4)])
def test_models_that_were_asked_otherwise_are_refused(study, setting, value):
    folder = study()
    change_record(folder / "gold_1", **{setting: value})
    with pytest.raises(SettingsError, match=f"were attacked with {setting} .* and {value}"):
        figures_in(folder)


def test_other_questions_are_refused_and_other_places_of_the_data_are_not(study):
    folder = study()
    asked = {"dataset": "data/a", "question": "question"}
    for name in ("base", "gold_0", "gold_1", "model"):
        change_record(folder / name, tasks={"words": {**asked, "dataset": f"data/{name}"}})
    assert said(figures_in(folder)) == RESISTS
    change_record(folder / "model", tasks={"words": {**asked, "question": "paraphrased_question"}})
    with pytest.raises(SettingsError, match=r"were asked otherwise: tasks\.words differs"):
        figures_in(folder)


def change_inputs(folder, **inputs):
    file = folder / "attack_results" / "attack_meta.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"inputs": inputs}))


def test_attacks_towards_another_base_are_refused(study):
    """A quarter of the way to another base, and codes that are another base's, are no figures of this one."""
    folder = study()
    for name in ("base", "gold_0", "gold_1", "model"):
        change_inputs(folder / name, models=[name, "base"])
    assert said(figures_in(folder)) == RESISTS
    change_inputs(folder / "gold_1", models=["gold_1", "elsewhere"])
    with pytest.raises(SettingsError, match="with other models as base_path"):
        figures_in(folder)
    for name in ("base", "gold_0", "gold_1", "model"):
        change_inputs(folder / name, models=[name, "elsewhere"])
    with pytest.raises(SettingsError, match="with another model as base_path than base_result is"):
        figures_in(folder)


def test_rows_of_unknown_people_have_no_verdict(study):
    folder = study()
    for name in ("base", "gold_0", "gold_1", "model"):
        for file in (folder / name / "attack_results").glob("[ac]*.json"):
            content = json.loads(file.read_text())
            for log in content.values() if file.stem in ("a", "clean") else ():
                log.pop("person")
            file.write_text(json.dumps(content))
    assert figures_in(folder)["attack_verdict", ""].why == "the people of words are not known"


def test_an_attack_that_one_model_lacks_is_named(study):
    folder = study()
    write_attacked(folder / "gold_1", {"clean": 0.0, "a": 0.0, "b": 0.0}, seed=2)
    with pytest.raises(SettingsError, match="ckpt_result lacks attack 'b', which"):
        figures_in(folder)


def test_an_attack_that_is_applicable_to_some_models_alone_is_named(study):
    folder = study()
    change_attack(folder / "model", "a", left_out="too many tokens")
    with pytest.raises(
        SettingsError, match=r"'a' is not applicable to ckpt_result, .*: too many tokens; .*~attacks\.a"
    ):
        figures_in(folder)


def test_one_gold_does_not_judge_as_two(study):
    folder = study()
    shutil.copytree(folder / "gold_0", folder / "again")
    with pytest.raises(SettingsError, match=r"retain_result\[0\] and retain_result\[1\] are one model"):
        figures_in(folder, golds=("gold_0", "again"))


def test_other_rows_are_named(study):
    folder = study()
    write_attacked(folder / "gold_1", {"clean": 0.0, "a": 0.0}, seed=2, people=11)
    with pytest.raises(SettingsError, match="cover different rows of kept@"):
        figures_in(folder)


def test_attacks_on_another_model_than_the_log_is_of_are_refused(study):
    folder = study()
    record = folder / "model" / "eval_results" / "eval_meta.json"
    record.write_text(json.dumps({"model": "another"}))
    with pytest.raises(SettingsError, match="holds attacks on another model"):
        figures_in(folder)


def test_a_record_of_attacks_on_faces_is_none_of_these(tmp_path):
    write_record(tmp_path / "attack_meta.json", seconds=1.0, peak_memory_gb=1.0)
    faces = tmp_path / "faces"
    faces.mkdir()
    (faces / "attack_meta.json").write_text('{"settings": {"shadows_dir": "results"}}')
    assert read_attack_logs("x", faces) is None
    with pytest.raises(SettingsError, match="is no record of attacks on a model that reads"):
        read_attack_logs("ckpt_result", tmp_path)


def test_a_missing_log_is_named(study):
    folder = study()
    (folder / "model" / "attack_results" / "a.parquet").unlink()
    with pytest.raises(SettingsError, match=r"names 'a', and '.*a\.json' or its \.parquet is gone"):
        figures_in(folder)


def test_an_attack_that_was_left_out_says_why(study):
    folder = study(left_out="no row has room")
    figures = figures_in(folder)
    assert figures["attack_said", "words@left"].value == NOT_APPLICABLE
    assert figures["attack_said", "words@left"].why == "no row has room"
    assert said(figures) == RESISTS


# ---- in tables


@pytest.mark.parametrize("ending", [".csv", ".json", ".parquet"])
def test_figures_of_attacks_are_read_again_as_they_were_written(study, tmp_path, ending):
    figures = figures_in(study({"model": {"a.0": 0.0, "a.1": 0.6}}, variants=2, left_out="no room"))
    file = tmp_path / f"table{ending}"
    file.write_bytes(file_content([ModelResult("npo", 0, figures)], ending))
    (read,) = read_results("save_file", file)
    assert read.figures.keys() == figures.keys()
    for place, figure in figures.items():
        assert read.figures[place].why == figure.why
        assert read.figures[place].value == pytest.approx(figure.value)


def test_the_short_tables_show_the_verdict_and_the_worst_attack(study):
    result = ModelResult("npo", 0, figures_in(study({"model": {"a": 0.6}})))
    columns = {column.heading: column.text(result) for column in short_columns([result], {})}
    assert columns["attacks ↓"] == "leaks"
    assert float(columns["worst attack ↓"]) == pytest.approx(0.6, abs=0.05)


# ---- readers


def test_what_many_draws_bring_out_is_exact(study):
    """Half of the way to base a token has probability .59 to .61: four of them in one of two draws .23 to .26."""
    folder = study({"model": {"a": 0.5}}, measures=["hits_in_draws"], draws=2)
    level = figures_in(folder)["attack_level", "words@a"]
    assert 0.22 < level.value < 0.26
    assert level.why.startswith("hits in draws 0.2")
    assert said(figures_in(folder), "attack_said", "words@a") == LEAKS


def test_what_a_probe_reads_is_read_against_golds_and_bases_probes(tmp_path):
    """Base 1, golds one quarter, the model one half: (.5 - .25) / (1 - .25) = 1/3."""
    shares = {"base": 1.0, "gold_0": 0.25, "gold_1": 0.25, "model": 0.5}
    for number, (name, read) in enumerate(shares.items()):
        clean = 1.0 if name == "base" else 0.0
        write_attacked(tmp_path / name, {"clean": clean, "a": clean}, seed=number, measures=["read"], read=read)
    figures = figures_in(tmp_path)
    assert figures["attack_level", "words@a"].value == pytest.approx(1 / 3)
    assert figures["attack_base", "words@a"].value == pytest.approx(1)
    assert figures["attack_lift", "words@a"].value == pytest.approx(0)


def test_where_golds_probe_reads_as_much_as_bases_nothing_is_said(tmp_path):
    for number, name in enumerate(("base", "gold_0", "gold_1", "model")):
        clean = 1.0 if name == "base" else 0.0
        write_attacked(tmp_path / name, {"clean": clean, "a": clean}, seed=number, measures=["read"], read=0.75)
    figures = figures_in(tmp_path)
    assert said(figures, "attack_said", "words@a") == NOT_APPLICABLE
    assert figures["attack_said", "words@a"].why == "base is not clearly above gold in what this attack is judged on"


def test_a_reading_that_is_no_share_is_refused(study):
    folder = study()
    file = folder / "model" / "attack_results" / "a.json"
    content = json.loads(file.read_text())
    content["words@a"]["read"] = dict.fromkeys(content["words@a"]["avg_gt_loss"], 2.0)
    file.write_text(json.dumps(content))
    with pytest.raises(SettingsError, match="read must be a number from 0 to 1"):
        read_attack_logs("model", folder / "model" / "attack_results")
