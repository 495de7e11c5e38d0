"""The report: tables that hold the rows, and a page that opens, filters, escapes and asks for nothing outside."""

import csv
import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pandas
import pytest
from PIL import Image
from pydantic import TypeAdapter
from rich.console import Console

import aggregate_eval_stat
import mm.eval
import report.__main__ as report_command
from cv.division import list_pictures
from cv.face_settings import Album
from cv.pictures import read_pictures
from data_module import Example, open_image
from engine import task_metrics
from engine.logs import read_eval_log
from engine.measures import MEASURES
from engine.record import PLAN, write_json, write_text_whole
from engine.result_table import Figure, ModelResult, column_name, short_columns
from engine.table_files import wide_csv
from engine.task_metrics import log_metrics
from helpers import BASE, ROOT
from report import cards
from report.__main__ import write_report
from report.folder import read_plan
from report.page import render_page
from report.plots import drawn_svg, mean_distance, plt
from report.ratio_plots import add_legend, add_truth_ratios, draw_anchors, truth_ratio_plots
from report.rows import aggregation_settings, benchmark_results
from report.tables import latex_table, markdown_table, print_table
from settings.language import Task
from settings.results import GROUPS, Benchmark, RunBenchmark, Scoring
from settings.script import compose

EVIL = ["<script>alert(1)</script>", "</script><img src=x onerror=alert(1)>", "100 % of A & B | C_d"]
OFFLINE = ("file://", "data:image/", "blob:")  # how the address of what a page asks for may begin
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


def log_of(index_rows, shift):
    """A log in the layout of the evaluation; `shift` makes one model's losses differ from another's."""
    log = {}
    for index, (person, question, answer) in index_rows:
        values = {
            "avg_gt_loss": 0.1 + shift,
            "gt_loss": 0.3,
            "num_token_gt": 3,
            "generated_text": [f"<user>{question}", answer if shift < 1 else EVIL[1], answer],
            "rouge1_recall": 1.0 / (1 + shift),
            "rougeL_recall": 1.0 / (1 + shift),
            "average_perturb_loss": [2.0 + 0.1 * index, 3.0],
            "avg_paraphrased_loss": 0.2 + shift,
            "truth_ratio": 0.1 + shift + 0.01 * index,
            "paraphrased_loss": 0.5,
            "perturb_loss": [6.0, 9.0],
            "num_token_paraphrased": 3,
            "num_token_perturb": [3, 3],
            "exact_memorization": 1.0 / (1 + 3 * shift),
            "extraction_strength": 1.0 / (1 + 3 * shift),
            "person": person,
        }
        for metric, value in values.items():
            log.setdefault(metric, {})[str(index)] = value
    return log


def write_words(folder):
    """Questions in words about people whose names are what a page must not run."""
    folder.mkdir()
    for split, copies in (("forget10_perturbed", 1), ("retain_perturbed", 8)):
        lines = [
            {
                "question": f"Who is {evil}? {split}",
                "answer": f"It is {evil}.",
                "perturbed_answer": ["x", "y"],
                "who": evil,
            }
            for evil in EVIL
        ]
        (folder / f"{split}.jsonl").write_text("\n".join(map(json.dumps, lines * copies)))


def recorded_settings(world, words):
    """What an evaluation of a task in pictures and two in words would have recorded."""
    overrides = [f"data.path={world}/clear", f"data.text_path={world}/tofu", "data.made_by=''", f"model_path={BASE}"]
    settings = asdict(mm.eval.main.compose(overrides))
    columns = {"question": "question", "answer": "answer", "perturbed": "perturbed_answer", "person": "who"}
    in_words = {"dataset": str(words), **columns, "image": "", "ask": "", "paraphrase": ""}
    settings["tasks"] = {
        "eval_forget_facerec": settings["tasks"]["eval_forget_facerec"],
        "eval_forget_qa": {**in_words, "split": "forget10_perturbed"},
        "eval_retain_qa": {**in_words, "split": "retain_perturbed"},
    }
    return settings


def asked_of(task):
    """Row -> person, question and answer of a recorded task."""
    rows = [row.example for row in cards.task_rows(TypeAdapter(Task).validate_python(task), 0, 0)]
    return [(row.index, (row.person, row.question, row.answer)) for row in rows]


def write_model(model, settings, shift):
    """A model's evaluation and the records beside it; `shift` as in `log_of`."""
    logs = {f"{name}.json": log_of(asked_of(task), shift) for name, task in settings["tasks"].items()}
    write_json(model / "eval_results" / "eval_log_aggregated.json", logs)
    cost = {"versions": {}, "peak_memory_gb": 1.0}
    evaluation = {"settings": settings, "model": "m", "data": {}, "seconds": 1.0}
    write_json(model / "eval_results" / "eval_meta.json", evaluation | cost)
    training = {"settings": {}, "loss": [[1, 2.0], [2, 1.0]], "seed": 0, "seconds": 3.0, "data": "d"}
    write_json(model / "train_meta.json", training | cost)


def stage_of(kind, model):
    """A stage as the plan of a finished benchmark tells of it."""
    about = {"name": f"{kind} {model}", "kind": kind, "output": f"models/{model}"}
    return about | {"command": f"accelerate launch mm/{kind}.py", "seconds": 3.0, "peak_memory_gb": 1.0}


@pytest.fixture(scope="module")
def folder(world, tmp_path_factory):
    """A finished benchmark whose people, questions and answers are made of what a page must not run.

    Two of its tasks are in words, one is in the world's pictures.
    """
    root = tmp_path_factory.mktemp("report")
    results = root / "results"
    write_words(root / "words")
    settings = recorded_settings(world, root / "words")
    stages = []
    for name, shift in (("base", 0.0), ("gold", 1.0), ("npo", 0.8)):
        write_model(results / "models" / f"{name}_seed0", settings, shift)
        stages.append(stage_of("forget" if name == "npo" else "finetune", f"{name}_seed0"))
    write_model(results / "models" / "start", settings, 3.0)
    stages.append(stage_of("forget", "broken_seed0") | {"failed": "the loss is nan & more"})
    runs = {"npo": [], "broken": ["method=grad_ascent"]}
    benchmark = replace(compose("run_benchmark", RunBenchmark, ["benchmark=demo"]).benchmark, runs=runs, golds=1)
    plan = {"benchmark": asdict(benchmark), "command": "python run_benchmark.py seeds=0", "stages": stages}
    write_text_whole(results / PLAN, json.dumps(plan))
    write_report(results)
    return results


# ---- what it reads


def test_each_log_is_read_once_for_the_figures_of_a_seed(folder, monkeypatch):
    read, real = [], aggregate_eval_stat.read_eval_log
    monkeypatch.setattr(aggregate_eval_stat, "read_eval_log", lambda *how: (read.append(how[1]), real(*how))[1])
    results = benchmark_results(folder, read_plan(folder))
    assert {result.method for result in results} == {"base", "gold", "start", "npo", "broken"}
    places = [Path(path).parent.parent.name for path in read]
    # as references once, and each that has a row as the model of that row; broken has no log
    assert sorted(places) == sorted(["base_seed0", "gold_seed0", "start"] * 2 + ["npo_seed0"])


def test_the_metrics_of_base_and_gold_are_made_once(folder, monkeypatch):
    made, real = [], task_metrics.task_metrics
    monkeypatch.setattr(task_metrics, "task_metrics", lambda log, *how: (made.append(log), real(log, *how))[1])
    benchmark_results(folder, read_plan(folder))
    assert len(made) == len({id(log) for log in made})


def test_metrics_of_one_log_by_another_definition_are_others(folder):
    scoring = aggregation_settings(read_plan(folder).benchmark).scoring
    log = read_eval_log("log", str(folder / "models/npo_seed0/eval_results/eval_log_aggregated.json"), [*scoring])
    geometric, arithmetic = (log_metrics(log, scoring, name) for name in ("geometric", "arithmetic"))
    assert log_metrics(log, scoring, "geometric") is geometric
    task = next(name for name, made in geometric.items() if made.ratio is not None)
    assert not np.array_equal(geometric[task].ratio, arithmetic[task].ratio)


RATIO_SCORING = {"eval_log_forget": Scoring(group="forget", multiple_choice=False)}


@pytest.fixture(scope="module")
def ratio_logs():
    logs = {}
    for number, name in enumerate(("base", "gold", "a method of a very long name, " * 5, "npo")):
        ratios = np.linspace(0.1, 3, 9) * (1 + number)
        logs[name] = {"eval_log_forget.json": {"truth_ratio": dict(enumerate(ratios.tolist()))}}
    return logs


@pytest.fixture(scope="module")
def ratio_plots(ratio_logs):
    return truth_ratio_plots(ratio_logs, RATIO_SCORING)


def test_the_plot_of_a_method_does_not_depend_on_the_others(ratio_logs, ratio_plots):
    assert len(ratio_plots) == 2
    for name, plot in ratio_plots.items():
        alone = {each: log for each, log in ratio_logs.items() if each in ("base", "gold", name)}
        assert truth_ratio_plots(alone, RATIO_SCORING) == {name: plot}


def test_the_plot_of_a_method_shows_all_of_its_legend(ratio_plots):
    for name, plot in ratio_plots.items():
        left, top, width, height = map(float, re.search(r'viewBox="([^"]*)"', plot)[1].split())
        legend = plot[plot.index('<g id="legend_1">') :]
        lines = re.findall(r'<path d="M ([\d.]+) ([-\d.]+) \nL ([\d.]+)', legend)
        assert len(lines) == 3  # a line that is cut off has no points
        assert all(left <= float(x) <= float(end) <= left + width for x, _, end in lines)
        assert all(top <= float(y) <= top + height for _, y, _ in lines)
        assert [text.strip() for text in re.findall(r">([^<>]+)</text>", legend)] == ["base", "gold", name.strip()]


def test_a_plot_that_is_hidden_lends_no_other_its_areas(ratio_plots):
    named = [set(re.findall(r'id="([mp][0-9a-f]{10}[^"]*)"', plot)) for plot in ratio_plots.values()]
    used = [set(re.findall(r'[(]?#([mp][0-9a-f]{10}[^")]*)', plot)) for plot in ratio_plots.values()]
    assert named[0] and not named[0] & named[1]
    assert used == named


def test_the_plot_of_a_method_is_that_of_the_whole_figure(ratio_logs, ratio_plots):
    figure, anchors = draw_anchors(ratio_logs, {"eval_log_forget": "eval_log_forget"})
    lines = add_truth_ratios(figure, ratio_logs, "npo", ["eval_log_forget"])
    add_legend(figure, [*anchors, lines[0]], ["base", "gold", "npo"])
    whole, laid = (sorted(re.findall(r' d="([^"]*)"', plot)) for plot in (drawn_svg(figure, ""), ratio_plots["npo"]))
    plt.close(figure)
    assert laid == whole


# ---- the command


def test_the_report_of_a_folder_imports_no_torch(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "copy")
    code = "import sys; from report.__main__ import main; main(); sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code, tmp_path / "copy"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert f"report: {tmp_path}/copy/report.html" in done.stdout


def test_the_module_is_the_command(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "copy")
    (tmp_path / "copy" / "report.html").unlink()
    subprocess.run([sys.executable, "-m", "report", tmp_path / "copy"], cwd=ROOT, check=True, capture_output=True)
    assert (tmp_path / "copy" / "report.html").read_bytes() == (folder / "report.html").read_bytes()


def test_a_copy_of_a_benchmark_has_a_page_of_its_own_records(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "copy")
    file = tmp_path / "copy" / "models" / "base_seed0" / "train_meta.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "versions": {"torch": "of the copy"}}))
    write_report(tmp_path / "copy")
    assert "of the copy" in (tmp_path / "copy" / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("broken", ["missing", "torn", "no plan", "no stages", "lost log", "torn record"])
def test_a_folder_that_is_no_finished_benchmark_is_refused_in_one_line(broken, folder, tmp_path, monkeypatch, capsys):
    copy = tmp_path / "copy"
    if broken != "missing":
        shutil.copytree(folder, copy)
    if broken == "torn":
        (copy / PLAN).write_text("{")
    if broken == "no plan":
        (copy / PLAN).write_text("[]")
    if broken == "no stages":
        (copy / PLAN).write_text(json.dumps(json.loads((copy / PLAN).read_text()) | {"stages": []}))
    if broken == "lost log":
        (copy / "models/npo_seed0/eval_results/eval_log_aggregated.json").unlink()
    if broken == "torn record":
        (copy / "models/base_seed0/eval_results/verification.json").write_text("{")
    monkeypatch.setattr("sys.argv", ["report", str(copy)])
    with pytest.raises(SystemExit) as stop:
        report_command.main()
    error = capsys.readouterr().err
    assert stop.value.code == 1
    assert error.startswith("error: ")
    assert error.count("\n") == 1


# ---- tables


def test_the_tables_hold_one_row_a_model(folder):
    rows = {row["Method"]: row for row in csv.DictReader((folder / "results.csv").open(encoding="utf-8"))}
    assert list(rows) == ["base", "gold", "start", "npo", "broken"]
    assert float(rows["npo"]["Distance to gold"]) < 0.3
    assert float(rows["base"]["Distance to gold"]) == pytest.approx(1)
    markdown = (folder / "table.md").read_text(encoding="utf-8")
    assert [line.split("|")[1].strip() for line in markdown.splitlines()[2:]] == list(rows)
    latex = (folder / "table.tex").read_text(encoding="utf-8")
    assert latex.count(r"\\") == 6
    assert latex.startswith(r"\begin{tabular}{lr")
    assert r"\downarrow" in latex


def test_a_failed_run_says_why_in_the_table_and_on_the_page(folder):
    rows = {row["Method"]: row for row in csv.DictReader((folder / "results.csv").open(encoding="utf-8"))}
    assert rows["broken"]["Failed"] == "yes"
    assert rows["broken"]["Failed why"] == "the loss is nan & more"
    assert "the loss is nan &amp; more" in (folder / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@SUM(A1)", "\tx"])
def test_a_text_that_a_spreadsheet_would_run_has_an_apostrophe_before_it(text):
    result = ModelResult(text, 0, {("distance_people", ""): Figure(-0.5, why=text)})
    row = next(csv.DictReader(io.StringIO(wide_csv([result]), newline="")))
    assert row["Method"] == row["Distance (people) why"] == f"'{text}"
    assert float(row["Distance (people)"]) == -0.5


def test_a_return_in_a_text_ends_no_line_of_the_table():
    rows = list(csv.DictReader(io.StringIO(wide_csv([ModelResult("a\rb", 0, {})]), newline="")))
    assert [row["Method"] for row in rows] == ["a b"]


def test_what_stands_in_brackets_is_no_markup_on_the_terminal():
    stream = io.StringIO()
    print_table([ModelResult("[red]npo[/red]", 0, {})], [], Console(file=stream, width=80))
    assert "[red]npo[/red]" in stream.getvalue()


def test_the_terminal_says_why_methods_have_no_place_once_per_reason():
    stream = io.StringIO()
    figures = {"npo": Figure(1.0), "idk": Figure(None, why="not measured"), "kl": Figure(None, why="not measured")}
    results = [ModelResult(name, 0, {("place", ""): figure}) for name, figure in figures.items()]
    print_table([*results, ModelResult("gold", 0, {})], [], Console(file=stream, width=80))
    assert stream.getvalue().count("no place") == 1
    assert "no place: idk, kl (not measured)" in stream.getvalue()


def test_latex_and_markdown_signs_are_escaped():
    results = [ModelResult("a_b|c%", 0, {("distance_to_gold", ""): Figure(0.5)})]
    columns = short_columns(results, {})
    assert r"a\_b|c\%" in latex_table(results, columns)
    assert r"a_b\|c%" in markdown_table(results, columns)


def test_a_table_too_wide_for_the_terminal_has_a_line_per_figure(folder):
    results = benchmark_results(folder, read_plan(folder))
    columns = short_columns(results, aggregation_settings(read_plan(folder).benchmark).scoring)
    printed = {}
    for width in (80, 400):
        console = Console(width=width, record=True, file=io.StringIO())
        print_table(results, columns, console)
        printed[width] = console.export_text()
    assert "…" not in printed[80]
    assert any(line.split()[1:2] == ["broken"] for line in printed[400].splitlines())
    assert any("method" in line and "broken" in line for line in printed[80].splitlines())


def test_the_long_table_holds_every_model_and_why_one_failed(folder):
    table = pandas.read_parquet(folder / "results.parquet")
    assert list(table.model.unique()) == ["base", "gold", "start", "npo", "broken"]
    broken = table[table.model == "broken"]
    assert broken[["measure", "value", "why"]].values.tolist() == [["failed", 1.0, "the loss is nan & more"]]


def test_the_wide_table_is_a_view_of_the_long_one(folder):
    table = pandas.read_parquet(folder / "results.parquet")
    wide = pandas.read_csv(folder / "results.csv").set_index("Method")
    numbers = table[~table.measure.isin([key for key, measure in MEASURES.items() if measure.words])]
    for line in numbers.itertuples():
        there = wide.loc[line.model, column_name(MEASURES[line.measure], line.task)]
        assert there == line.value or (pandas.isna(there) and pandas.isna(line.value)), line


# ---- the page's parts


def test_every_group_of_tasks_has_its_word_on_the_page():
    assert set(cards.GROUP_WORDS) == set(GROUPS)


def test_words_that_differ_from_the_truth_are_marked():
    runs = cards.word_diff("Anna was born in Oslo", "Anna was raised in Oslo")
    assert runs == [[1, "Anna was "], [0, "born"], [1, " in Oslo"]]
    assert cards.word_diff("x y", "z") == [[0, "x y"]]
    assert cards.word_diff("", "z") == []


def test_the_text_of_an_answer_stays_whole():
    assert "".join(text for _, text in cards.word_diff("b  c\nd", "a c")) == "b  c\nd"


@pytest.mark.parametrize("size", [(40, 36), (33, 50), (50, 33), (41, 41)])
def test_the_page_shows_the_middle_square_that_the_networks_see(size, tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    (tmp_path / "ada").mkdir()
    Image.fromarray(noise).save(tmp_path / "ada" / "1.png")
    seen = read_pictures(Album(path=str(tmp_path)), ["ada/1.png"], 24)["ada/1.png"]
    image = {"path": str(tmp_path / "ada" / "1.png"), "bytes": None}
    picture = open_image(Example(question="", answer="", image=image, index=0, person=None, split=""))
    assert np.array_equal(np.asarray(cards.middle_square(picture, 24)), seen.permute(1, 2, 0).numpy())


def test_faces_are_read_from_a_folder_and_from_a_dataset(faces, world):
    directories = {"path": f"{faces}/people", "split": "", "image": "", "person": ""}
    dataset = {"path": f"{world}/clear", "split": "full", "image": "image", "person": "name"}
    for settings in (directories, dataset):
        names = next(iter(list_pictures(Album(**settings)).values()))
        urls = cards.face_pictures(settings, names, 40)
        assert len(set(urls)) == len(names)
        assert all(url.startswith("data:image/webp;base64,") for url in urls)


def test_data_cannot_end_its_script_element(folder):
    html = (folder / "report.html").read_text(encoding="utf-8")
    data = html.partition('id="data">')[2].partition("</script>")[0]
    assert not set("<>&") & set(data)
    people = {row["person"] for row in json.loads(data)["rows"]}
    assert set(EVIL) <= people


def test_the_page_is_the_same_bytes_each_time(folder):
    first = (folder / "report.html").read_bytes()
    write_report(folder)
    assert (folder / "report.html").read_bytes() == first


def test_the_page_is_small(folder):
    assert (folder / "report.html").stat().st_size < 3_000_000


def test_rows_that_do_not_fit_on_the_page_are_left_out_and_that_is_said(folder, monkeypatch):
    monkeypatch.setattr(cards, "MOST_CHARACTERS", 2000)
    log = folder / "models" / "base_seed0" / "eval_results" / "eval_log_aggregated.json"
    settings = json.loads(log.with_name("eval_meta.json").read_text())["settings"]
    scoring = aggregation_settings(read_plan(folder).benchmark).scoring
    made = cards.answer_cards({"base": json.loads(log.read_text())}, settings, scoring)
    assert len(json.dumps(made.data["rows"], separators=(",", ":"))) < 4000
    assert "until the page is full (" in made.note


@pytest.mark.parametrize(
    ("left_out", "said"),
    [((0, 0), "and of the others."), ((0, 5), "(5 rows are not shown)"), ((2, 5), "(2 are not shown)")],
)
def test_the_page_says_which_rows_it_shows(left_out, said):
    assert said in cards.shown_rows(*left_out)


def test_a_plot_has_coordinates_of_two_decimals(folder):
    html = (folder / "report.html").read_text(encoding="utf-8")
    drawing = html.partition("<svg")[2].partition("</svg>")[0]
    assert re.search(r" d=\"M \d+\.\d\d? ", drawing)
    assert not re.search(r"\d\.\d{3}", drawing)


@pytest.mark.parametrize(("seeds", "runs"), [([0, 1], {"npo": []}), ([0], {})])
def test_several_seeds_and_a_benchmark_without_methods_make_a_page_too(seeds, runs, folder, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    shutil.copytree(copy / "models", tmp_path / "again")
    for model in (tmp_path / "again").iterdir():
        meta = json.loads((model / "train_meta.json").read_text())
        (model / "train_meta.json").write_text(json.dumps({**meta, "seed": 1}))
        shutil.move(model, copy / "models" / model.name.replace("seed0", "seed1"))
    plan = json.loads((copy / PLAN).read_text())
    plan["benchmark"] |= {"seeds": seeds, "runs": runs}
    plan["stages"] = [stage for stage in plan["stages"] if "failed" not in stage]
    (copy / PLAN).write_text(json.dumps(plan))
    write_report(copy)
    wide = pandas.read_csv(copy / "results.csv")
    names = ("base", "gold", "start", *runs)
    rows = [(name, str(seed)) for seed in seeds for name in names]
    rows += [(name, kind) for name in names for kind in ("mean", "sd", "n")] if len(seeds) == 2 else []
    assert list(zip(wide["Method"], wide["Seed"].astype(str), strict=True)) == rows
    html = (copy / "report.html").read_text(encoding="utf-8")
    assert ("npo, seed 1" in html) == (len(seeds) == 2)
    assert ("<small> n = 2</small>" in html) == (len(seeds) == 2)
    assert html.count("Memorisation gate, ") == 1  # both say the same
    assert ("Memorisation gate, seeds 0 and 1:" in html) == (len(seeds) == 2)


@pytest.mark.parametrize(("gate", "text", "look"), [(0.0, "failed", 'bad" open'), (1.0, "passed", 'good"')])
def test_the_gate_is_said_and_marked_and_folded_only_where_it_passed(gate, text, look, folder):
    plan = read_plan(folder)
    results = benchmark_results(folder, plan)
    for result in results:
        result.figures["gate", ""] = Figure(gate)
    html = render_page(folder, plan.described, results, [], aggregation_settings(plan.benchmark).scoring, downloads={})
    assert f'<details class="gate {look}><summary><strong>Memorisation gate, seed 0: {text}.' in html


def test_distances_are_averaged_over_pictures_and_words_apart():
    figures = {
        ("distance_to_gold", ""): Figure(9.0),
        ("distance_to_gold:rouge", "a"): Figure(0.5),
        ("distance_to_gold:probability", "a"): Figure(-0.1),
        ("noise_floor:rouge", "a"): Figure(7.0),
    }
    result = ModelResult("npo", 0, figures)
    assert mean_distance(result, ["a"]) == pytest.approx(0.3)  # (.5 + |-.1|) / 2
    assert mean_distance(result, ["b"]) is None


def test_the_commands_on_the_page_give_the_settings_that_ran():
    from benchmark.plan import plan_stages, stage_command
    from benchmark.stages import recipe_of

    benchmark: Benchmark = compose("run_benchmark", RunBenchmark, ["benchmark=demo"]).benchmark
    for stage in plan_stages(benchmark, Path("results/demo")):
        typed = shlex.split(stage_command(benchmark, stage))
        assert typed[:4] == ["accelerate", "launch", "-q", f"mm/{stage.kind}.py"]
        assert (ROOT / typed[3]).is_file()
        recipe = recipe_of(benchmark, stage)
        assert recipe.compose(typed[4:]) == recipe.compose([*stage.overrides, "overwrite=true"])


# ---- in a browser


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None:
        assert "NEED_CHROMIUM" not in os.environ, "chromium is not installed"
        pytest.skip("chromium is not installed (apt-get install chromium)")
    from playwright.sync_api import sync_playwright

    quiet = "no-sandbox disable-gpu disable-quic no-first-run disable-sync "
    quiet += "disable-background-networking disable-component-update"
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=[f"--{flag}" for flag in quiet.split()])
        yield started
        started.close()


@pytest.fixture
def page(browser, folder):
    """The opened page; afterwards nothing may have been printed, asked for or popped up."""
    opened = browser.new_page(viewport={"width": 1400, "height": 900})
    noise = []
    opened.on("console", lambda message: noise.append(message.text))
    opened.on("pageerror", lambda error: noise.append(str(error)))
    opened.on("dialog", lambda dialog: (noise.append(dialog.message), dialog.dismiss()))
    opened.on(
        "request",
        lambda request: noise.append(request.url) if not request.url.startswith(OFFLINE) else None,
    )
    opened.goto(f"file://{folder}/report.html")
    yield opened
    assert noise == []
    opened.close()


def card_texts(page):
    """What the cards that can be seen say."""
    return [each.inner_text() for each in page.locator(".card").all()]


def test_the_page_opens_and_shows_names_and_answers_that_look_like_markup_as_text(page, folder):
    assert page.locator("#table tbody tr").count() == 5
    page.select_option("[name=task]", "eval_forget_qa")
    text = "\n".join(card_texts(page))
    assert [evil for evil in EVIL if f"It is {evil}." not in text] == []
    assert page.locator("img[src=x]").count() == 0
    assert page.locator("script").count() == 2


def test_filters_narrow_the_rows_and_survive_a_reload(page):
    every = int(page.inner_text("#count").split()[0])
    page.select_option("[name=group]", "forgotten")
    page.select_option("[name=task]", "eval_forget_qa")
    assert page.inner_text("#count") == f"3 of {every} rows"
    assert len(card_texts(page)) == 3
    page.select_option("[name=person]", EVIL[0])
    page.select_option("[name=one]", "npo")
    assert len(card_texts(page)) == 1
    assert page.locator(".card dt").all_inner_texts() == ["truth", "base", "gold", "npo"]
    page.reload()
    assert page.inner_text("#count") == f"1 of {every} rows"
    page.select_option("[name=person]", "")
    page.fill("[name=text]", "100 % OF A")
    assert len(card_texts(page)) == 1
    assert page.locator(".card mark").count() > 0


def test_keys_alone_filter_sort_and_choose(page):
    page.focus("[name=group]")
    page.keyboard.press("ArrowDown")
    assert page.input_value("[name=group]") != ""
    page.locator("#table thead th button", has_text="memorised, words").focus()
    page.keyboard.press("Enter")
    heading = page.locator("#table th", has_text="memorised, words")
    assert heading.get_attribute("aria-sort") == "ascending"
    order = page.locator("#table tbody th").all_inner_texts()
    assert order[0] == "start"  # the lowest
    assert order[-1] == "broken"  # rows without a figure stand last


def test_two_models_are_compared_and_only_rows_in_which_they_differ_are_kept(page):
    every = int(page.inner_text("#count").split()[0])
    assert page.is_disabled("[name=differs]")
    page.select_option("[name=one]", "base")
    page.select_option("[name=other]", "npo")  # whose answers are those of base, in this folder
    assert set(page.locator(".card dt").all_inner_texts()) == {"truth", "base", "npo"}
    assert int(page.inner_text("#count").split()[0]) == every
    page.check("[name=differs]")
    assert page.inner_text("#count") == f"0 of {every} rows"
    page.select_option("[name=other]", "gold")
    assert page.inner_text("#count") == f"{every} of {every} rows"
    page.reload()
    assert page.is_checked("[name=differs]")


def test_tasks_have_human_names_on_the_page(page):
    assert "questions in words" in page.locator("[name=task] option").all_inner_texts()
    assert "eval_" not in page.inner_text("header") + page.inner_text("#table") + page.inner_text("#cards")


def test_every_entry_of_the_contents_leads_to_its_heading(page):
    links = page.locator("nav a").all()
    assert len(links) == 6
    for link in links:
        target = link.get_attribute("href").removeprefix("#")
        assert page.locator(f"h2[id={target}]").count() == 1
    page.click("nav a >> text=Methods")
    assert page.locator("#methods").bounding_box()["y"] < 100


def test_the_files_and_plots_that_a_page_offers_are_saved_without_a_network(page, folder, tmp_path):
    page.context.set_offline(True)
    for name in ("results.csv", "table.tex"):
        with page.expect_download() as download:
            page.click(f"[data-download='{name}']")
        assert download.value.suggested_filename == name
        download.value.save_as(tmp_path / name)
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes()
    with page.expect_download() as download:
        page.locator("[data-svg]").first.click()
    download.value.save_as(tmp_path / "plot.svg")
    assert ElementTree.parse(tmp_path / "plot.svg").getroot().tag == "{http://www.w3.org/2000/svg}svg"


def test_a_phone_scrolls_the_table_and_not_the_page(page):
    page.set_viewport_size({"width": 400, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") == 400
    assert page.locator(".card img").first.evaluate("image => image.complete && image.naturalWidth > 0")


def test_a_phone_keeps_the_first_column_says_that_a_table_scrolls_and_folds_the_filters(page):
    page.set_viewport_size({"width": 400, "height": 800})
    page.reload()
    frame, first = page.locator(".frame").first, page.locator("#table tbody th").first
    page.wait_for_selector(".frame.after")
    assert not page.is_visible("[name=group]")
    before = first.bounding_box()["x"]
    page.locator("#table").evaluate("table => { table.parentElement.scrollLeft = 1e6; }")
    page.wait_for_selector(".frame.before")
    assert first.bounding_box()["x"] == before
    assert "after" not in frame.get_attribute("class")


def test_the_dark_scheme_is_the_readers_preference(page):
    shades = {}
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        shades[scheme] = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert shades == {"light": "rgb(255, 255, 255)", "dark": "rgb(20, 24, 29)"}


def test_every_control_and_every_region_has_a_name_for_a_screen_reader(page):
    nameless = page.evaluate("""() => {
      const named = (each) => each.getAttribute("aria-label") || each.getAttribute("aria-labelledby")
        || each.textContent.trim() || [...(each.labels || [])].some((label) => label.textContent.trim());
      const asked = "button, a, select, input, summary, nav, [role], section, form";
      return [...document.querySelectorAll(asked)].filter((each) => !named(each)).map((each) => each.outerHTML);
    }""")
    assert nameless == []


def test_more_rows_come_when_asked_for(page):
    count = int(page.inner_text("#count").split()[0])
    assert count > 20
    assert len(card_texts(page)) == 20
    page.click("#more")
    assert len(card_texts(page)) == min(count, 40)
