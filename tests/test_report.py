"""The report: tables that hold the rows, and a page that opens, filters, escapes and asks for nothing outside itself."""

import csv
import json
import os
import shlex
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import pytest

import mm.eval
import report.__main__ as report_main
from engine.record import write_text_whole
from helpers import BASE, ROOT
from report import cards, plots
from report import page as report_page
from report.rows import PLAN, read_plan
from report.tables import latex_table, markdown_table
from settings.results import GROUPS, Benchmark, Run, RunBenchmark
from settings.script import compose

EVIL = ["<script>alert(1)</script>", "</script><img src=x onerror=alert(1)>", "100 % of A & B | C_d"]
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


@pytest.fixture(scope="module")
def folder(world, tmp_path_factory):
    """A finished benchmark whose people, questions and answers are made of what a page must not run: two rows in words, the world's in pictures."""
    root = tmp_path_factory.mktemp("report")
    words, results = root / "words", root / "results"
    words.mkdir()
    for split in ("forget10_perturbed", "retain_perturbed"):
        lines = [
            {
                "question": f"Who is {evil}? {split}",
                "answer": f"It is {evil}.",
                "perturbed_answer": ["x", "y"],
                "who": evil,
            }
            for evil in EVIL
        ] * (1 + 7 * ("retain" in split))
        (words / f"{split}.jsonl").write_text("\n".join(map(json.dumps, lines)))
    overrides = [f"data.path={world}/clear", f"data.text_path={world}/tofu", "data.made_by=''", f"model_path={BASE}"]
    settings = asdict(mm.eval.main.compose(overrides))
    qa = {
        "dataset": str(words),
        "question": "question",
        "answer": "answer",
        "perturbed": "perturbed_answer",
        "person": "who",
        "image": "",
        "ask": "",
        "paraphrase": "",
    }
    kept = {"eval_forget_facerec": settings["tasks"]["eval_forget_facerec"]}
    settings["tasks"] = kept | {
        name: {**qa, "split": split}
        for name, split in (("eval_forget_qa", "forget10_perturbed"), ("eval_retain_qa", "retain_perturbed"))
    }
    tasks = {
        name: [(r.example.index, (r.example.person, r.example.question, r.example.answer)) for r in rows_of(task)]
        for name, task in settings["tasks"].items()
    }
    runs = {"npo": Run(method="npo"), "broken": Run(method="grad_ascent")}
    plan = compose("run_benchmark", RunBenchmark, ["benchmark=demo"]).benchmark
    stages = []
    for name, shift in (("base", 0.0), ("gold", 1.0), ("npo", 0.8)):
        model = results / "models" / f"{name}_seed0"
        (model / "eval_results").mkdir(parents=True)
        logs = {f"{task}.json": log_of(rows, shift) for task, rows in tasks.items()}
        (model / "eval_results" / "eval_log_aggregated.json").write_text(json.dumps(logs))
        meta = {"settings": settings, "model": "m", "data": {}, "versions": {}, "seconds": 1.0, "peak_memory_gb": 1.0}
        (model / "eval_results" / "eval_meta.json").write_text(json.dumps(meta))
        curve = {
            "settings": {},
            "versions": {},
            "loss": [[1, 2.0], [2, 1.0]],
            "seed": 0,
            "seconds": 3.0,
            "peak_memory_gb": 1.0,
            "data": "d",
        }
        (model / "train_meta.json").write_text(json.dumps(curve))
        kind = "forget" if name == "npo" else "finetune"
        stages.append(
            {
                "name": f"{kind} {name}_seed0",
                "kind": kind,
                "output": str(model),
                "command": f"accelerate launch mm/{kind}.py",
                "seconds": 3.0,
                "peak_memory_gb": 1.0,
            }
        )
    stages.append(
        {
            **stages[-1],
            "name": "forget broken_seed0",
            "output": str(results / "models/broken_seed0"),
            "failed": "the loss is nan & more",
        }
    )
    write_text_whole(
        results / PLAN,
        json.dumps(
            {
                "benchmark": asdict(replace(plan, runs=runs)),
                "command": "python run_benchmark.py seeds=0",
                "stages": stages,
            }
        ),
    )
    report_main.make(results)
    return results


def rows_of(task):
    return cards.task_rows(cards.task_of(task), 0, 0)


def test_every_group_of_tasks_has_its_word_on_the_page():
    assert tuple(cards.SHOWN) == GROUPS


def test_the_tables_hold_one_row_a_model_and_failures_say_why(folder):
    rows = {row["Method"]: row for row in csv.DictReader((folder / "results.csv").open(encoding="utf-8"))}
    assert list(rows) == ["base", "gold", "npo", "broken"] and rows["broken"]["Failed"] == "the loss is nan & more"
    assert float(rows["npo"]["Distance to gold"]) < 0.3 and float(rows["base"]["Distance to gold"]) == pytest.approx(1)
    markdown, latex = ((folder / f"table.{ending}").read_text() for ending in ("md", "tex"))
    assert [line.split("|")[1].strip() for line in markdown.splitlines()[2:]] == list(rows)
    assert latex.count(r"\\") == 5 and latex.startswith(r"\begin{tabular}{lr") and r"\downarrow" in latex
    assert "the loss is nan &amp; more" in (folder / "report.html").read_text()


def test_latex_and_markdown_signs_are_escaped():
    made = [{"Method": "a_b|c%", "Seed": 0, "Distance to gold": 0.5}]
    assert r"a\_b|c\%" in latex_table(made) and r"a_b\|c%" in markdown_table(made)


def test_words_that_differ_from_the_truth_are_marked_and_the_text_stays_whole():
    runs = cards.compared("Anna was born in Oslo", "Anna was raised in Oslo")
    assert runs == [[1, "Anna was "], [0, "born"], [1, " in Oslo"]]
    assert "".join(text for _, text in cards.compared("b  c\nd", "a c")) == "b  c\nd"
    assert cards.compared("x y", "z") == [[0, "x y"]] and cards.compared("", "z") == []


def test_data_cannot_end_its_script_element():
    text = report_page.as_script({"a": "</script><!--&\u2028"})
    assert not set("<>&\u2028") & set(text) and json.loads(text) == {"a": "</script><!--&\u2028"}


def test_the_page_is_the_same_bytes_each_time_and_small(folder):
    first = (folder / "report.html").read_bytes()
    report_main.make(folder)
    assert (folder / "report.html").read_bytes() == first and len(first) < 3_000_000


@pytest.mark.parametrize(("seeds", "runs"), [([0, 1], {"npo": {"method": "npo", "overrides": []}}), ([0], {})])
def test_several_seeds_and_a_benchmark_without_methods_make_a_page_too(seeds, runs, folder, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    shutil.copytree(copy / "models", tmp_path / "again")
    for model in (tmp_path / "again").iterdir():
        meta = json.loads((model / "train_meta.json").read_text())
        (model / "train_meta.json").write_text(json.dumps({**meta, "seed": 1}))
        shutil.move(model, copy / "models" / model.name.replace("seed0", "seed1"))
    plan = read_plan(copy)
    plan["benchmark"] |= {"seeds": seeds, "runs": runs}
    plan["stages"] = [stage for stage in plan["stages"] if "failed" not in stage]
    (copy / PLAN).write_text(json.dumps(plan))
    made = report_main.make(copy)
    assert [(row["Method"], row["Seed"]) for row in made] == [
        (name, seed) for seed in seeds for name in ("base", "gold", *runs)
    ]
    html = (copy / "report.html").read_text()
    assert ("npo, seed 1" in html) == (len(seeds) == 2) and html.count("Memorisation gate:") == len(seeds)


def test_a_failed_gate_is_said_and_marked(folder):
    made = report_main.make(folder)
    for verdict, look in (("failed", "bad"), ("passed", "good")):
        html = report_page.page(
            folder, read_plan(folder), [row | ({"Gate": verdict} if "Gate" in row else {}) for row in made]
        )
        assert f'<p class="verdict {look}"><strong>Memorisation gate: {verdict}.' in html


def test_distances_are_averaged_over_pictures_and_words_apart():
    row = {
        "Distance to gold": 9.0,
        "Distance to gold ROUGE a": 0.5,
        "Distance to gold Probability a": -0.1,
        "Distance to gold noise floor ROUGE a": 7.0,
    }
    assert plots.mean_distance(row, ["a"]) == pytest.approx(0.3) and plots.mean_distance(row, ["b"]) is None


def test_the_commands_on_the_page_give_the_settings_that_ran():
    from benchmark.plan import command, stages
    from benchmark.stages import recipe_of

    benchmark: Benchmark = compose("run_benchmark", RunBenchmark, ["benchmark=demo"]).benchmark
    for stage in stages(benchmark, Path("results/demo")):
        typed = shlex.split(command(benchmark, stage))
        assert typed[:3] == ["accelerate", "launch", f"mm/{stage.kind}.py"] and (ROOT / typed[2]).is_file()
        recipe = recipe_of(benchmark, stage)
        assert recipe.compose(typed[3:]) == recipe.compose([*stage.overrides, "overwrite=true"])


@pytest.mark.parametrize("broken", ["missing", "torn", "lost log"])
def test_a_folder_that_is_no_finished_benchmark_is_refused_in_one_line(broken, folder, tmp_path, monkeypatch, capsys):
    copy = tmp_path / "copy"
    if broken != "missing":
        shutil.copytree(folder, copy)
    if broken == "torn":
        (copy / PLAN).write_text("{")
    if broken == "lost log":
        (copy / "models/npo_seed0/eval_results/eval_log_aggregated.json").unlink()
    monkeypatch.setattr("sys.argv", ["report.py", str(copy)])
    with pytest.raises(SystemExit) as stop:
        report_main.main()
    error = capsys.readouterr().err
    assert stop.value.code == 1 and error.startswith("error: ") and error.count("\n") == 1


# ---- in a browser


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None:
        assert "NEED_CHROMIUM" not in os.environ, "chromium is not installed"
        pytest.skip("chromium is not installed (apt-get install chromium)")
    from playwright.sync_api import sync_playwright

    quiet = "no-sandbox disable-gpu disable-quic no-first-run disable-background-networking disable-component-update disable-sync"
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
        lambda request: noise.append(request.url) if not request.url.startswith(("file://", "data:image/")) else None,
    )
    opened.goto(f"file://{folder}/report.html")
    yield opened
    assert noise == []
    opened.close()


def shown(page):
    return [each.inner_text() for each in page.locator(".card").all()]


def test_the_page_opens_and_shows_names_and_answers_that_look_like_markup_as_text(page, folder):
    assert page.locator("#table tbody tr").count() == 4
    page.select_option("[name=task]", "eval_forget_qa")
    text = "\n".join(shown(page))
    assert all(f"It is {evil}." in text for evil in EVIL)
    assert page.locator("img[src=x]").count() == 0 and page.locator("script").count() == 2


def test_filters_narrow_the_rows_and_survive_a_reload(page):
    every = int(page.inner_text("#count").split()[0])
    page.select_option("[name=group]", "forgotten")
    page.select_option("[name=task]", "eval_forget_qa")
    assert page.inner_text("#count") == f"3 of {every} rows" and len(shown(page)) == 3
    page.select_option("[name=person]", EVIL[0])
    page.select_option("[name=method]", "npo")
    assert len(shown(page)) == 1 and page.locator(".card dt").all_inner_texts() == ["truth", "base", "gold", "npo"]
    page.reload()
    assert page.inner_text("#count") == f"1 of {every} rows"
    page.select_option("[name=person]", "")
    page.fill("[name=text]", "100 % OF A")
    assert len(shown(page)) == 1 and page.locator(".card mark").count() > 0


def test_keys_alone_filter_sort_and_choose(page):
    page.focus("[name=group]")
    page.keyboard.press("ArrowDown")
    assert page.input_value("[name=group]") != ""
    page.focus("#table thead th:nth-child(2) button")
    page.keyboard.press("Enter")
    order = page.locator("#table tbody th").all_inner_texts()
    assert order[0] == "gold" and order[-1] == "broken"  # rows without a figure stand last


def test_a_phone_scrolls_the_table_and_not_the_page(page):
    page.set_viewport_size({"width": 400, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") == 400
    assert page.locator(".card img").first.evaluate("image => image.complete && image.naturalWidth > 0")


def test_more_rows_come_when_asked_for(page):
    count = int(page.inner_text("#count").split()[0])
    assert count > 20 and len(shown(page)) == 20
    page.click("#more")
    assert len(shown(page)) == min(count, 40)
