"""Settings: every config composes, every mistake is one line that names field, value and what is allowed."""

import re
from dataclasses import asdict, fields
from importlib.machinery import ModuleSpec
from types import SimpleNamespace

import pytest
import torch
from omegaconf import OmegaConf

from cv.face_settings import AttackFaces, EvalFaces, FinetuneFaces, ForgetFaces, Pretrain
from helpers import ROOT
from settings.attacks import AttackRun
from settings.language import Eval, Finetune, Forget, Invent
from settings.membership import Membership
from settings.results import Aggregate, RunBenchmark
from settings.script import SettingsError, check_installation, choices, compose, end_processes, one_line_errors
from settings.training import Trainer, trainer_of

SCRIPTS = {
    "mm/finetune": Finetune,
    "mm/forget": Forget,
    "mm/eval": Eval,
    "mm/attack": AttackRun,
    "mm/alternatives": Invent,
    "nlp/finetune": Finetune,
    "nlp/forget": Forget,
    "nlp/eval": Eval,
    "nlp/attack": AttackRun,
    "nlp/alternatives": Invent,
    "nlp/membership": Membership,
    "cv/pretrain": Pretrain,
    "cv/finetune": FinetuneFaces,
    "cv/forget": ForgetFaces,
    "cv/eval": EvalFaces,
    "cv/attack": AttackFaces,
    "aggregate_eval_stat": Aggregate,
    "run_benchmark": RunBenchmark,
}


def choices_of(track, group):
    """The choices of a group that are for faces (cv), or for language (mm)."""
    return [name for name in choices(group) if name.endswith(("_faces", "resnet18")) == (track == "cv")]


def test_every_primary_config_is_known_here():
    files = [
        *ROOT.glob("config/mm/*.yaml"),
        *ROOT.glob("config/nlp/*.yaml"),
        *ROOT.glob("config/cv/*.yaml"),
        *ROOT.glob("config/*.yaml"),
    ]
    names = {file.relative_to(ROOT / "config").with_suffix("").as_posix() for file in files}
    assert names - {"run", "eval_limits", "eval_folds"} == set(SCRIPTS)


@pytest.mark.parametrize("name", SCRIPTS)
def test_every_config_composes_into_its_schema(name):
    assert isinstance(compose(name, SCRIPTS[name], []), SCRIPTS[name])


@pytest.mark.parametrize(
    ("script", "group", "choice"),
    [(s, g, c) for s in SCRIPTS if "/" in s for g in ("model", "data") for c in choices_of(s[:2], g)],
)
def test_every_model_and_every_data_choice_composes_in_every_script(script, group, choice):
    # shadow models choose among all people
    all_people = ["data.people=null"] if (script, choice) == ("nlp/membership", "tofu_small") else []
    settings = compose(script, SCRIPTS[script], [f"{group}={choice}", *all_people])
    assert getattr(settings, group).name == choice


@pytest.mark.parametrize("method", choices("method"))
def test_every_method_composes(method):
    steps = OmegaConf.load(ROOT / f"config/method/{method}.yaml")
    held = ["trainer.weight_decay=0"] if "mask" in steps else ["trainer=clear_lora"] if "init" in steps else []
    assert compose("mm/forget", Forget, [f"method={method}", *held]).method.name == method


STAGES = ("pretrain", "finetune", "forget")
TRAINERS = [*choices("trainer"), *(f"{stage}/{model}" for stage in STAGES for model in choices(f"trainer/{stage}"))]


def own_lines(trainer):
    """What a file of config/trainer says itself, and the file that its `defaults` name, if any."""
    lines = OmegaConf.to_container(OmegaConf.load(ROOT / f"config/trainer/{trainer}.yaml"))
    before = [name for name in lines.pop("defaults", []) if name != "_self_"]
    return lines, before


@pytest.mark.parametrize("trainer", TRAINERS)
def test_every_trainer_composes(trainer):
    script, schema = ("cv/forget", ForgetFaces) if trainer.endswith(("_faces", "resnet18")) else ("mm/forget", Forget)
    lines, _ = own_lines(trainer)
    composed = asdict(compose(script, schema, [f"trainer={trainer}"]).trainer)
    assert {name: composed[name] for name in lines} == lines


@pytest.mark.parametrize("trainer", TRAINERS)
def test_a_trainer_states_all_its_values_or_is_one_step_from_a_preset_that_does(trainer):
    lines, before = own_lines(trainer)
    if before:
        assert len(before) == 1
        assert before[0] in choices("trainer")
        lines, further = own_lines(before[0])
        assert further == []
    optional = {"l1"}
    assert set(lines) == {item.name for item in fields(Trainer)} - optional


def test_every_training_file_is_of_a_model():
    assert {file.parent.name for file in ROOT.glob("config/trainer/*/*")} == set(STAGES)
    of_stages = {model for stage in STAGES for model in choices(f"trainer/{stage}")}
    assert of_stages - set(choices("model")) == set()


@pytest.mark.parametrize(
    ("script", "model", "preset"),
    [
        ("nlp/finetune", "llama2-7b", "tofu_lora"),
        ("mm/forget", "llama2-7b", "tofu_lora"),
        ("cv/pretrain", "resnet18", "clear_faces"),
    ],
)
def test_a_preset_serves_a_model_without_a_file_of_its_own_and_says_so(script, model, preset, capsys):
    trainer_of.cache_clear()  # the line is said once
    chosen = compose(script, SCRIPTS[script], [f"model={model}"])
    stage = script.partition("/")[2]
    line = f"config/trainer/{stage}/{model}.yaml is not there: the model trains as trainer={preset}\n"
    assert capsys.readouterr().err == line
    assert chosen == compose(script, SCRIPTS[script], [f"model={model}", f"trainer={preset}"])
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("name", ["lora", "finetune/lora"])
def test_a_trainer_that_is_not_there_is_never_replaced_by_the_preset(name):
    with pytest.raises(SettingsError, match="='lora' is not known"):
        compose("nlp/finetune", Finetune, [f"trainer={name}"])


def test_a_mask_is_refused_with_an_adapter_and_with_weight_decay():
    with pytest.raises(SettingsError, match=r"method=salun masks the model's own weights: set trainer.lora=null"):
        compose("mm/forget", Forget, ["method=salun", "trainer=clear_lora"])
    with pytest.raises(SettingsError, match=r"trainer.weight_decay=0.01 would move"):
        compose("mm/forget", Forget, ["method=salun"])
    with pytest.raises(SettingsError, match=r"trainer.weight_decay=0.0005 would move"):
        compose("cv/forget", ForgetFaces, ["method=salun"])


def test_an_optimizer_that_needs_cuda_says_so_where_there_is_none(monkeypatch):
    monkeypatch.setattr("settings.training.cuda_is_there", lambda: False)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: ModuleSpec(name, None, origin="there"))
    for optimizer in ("adamw_bnb_8bit", "paged_adamw_8bit"):
        with pytest.raises(
            SettingsError, match=f"trainer.optimizer={optimizer} needs a CUDA GPU, and this machine has none"
        ):
            compose("mm/forget", Forget, [f"trainer.optimizer={optimizer}"])


@pytest.mark.parametrize(
    ("own", "line"),
    [
        (["trainer.precision=fp32"], "computes in half precision only: set trainer.precision=bf16"),
        (
            ["trainer.precision=bf16", "epoch_eval=nlp", "model.weights=float32"],
            "evaluates half-precision weights only: set model.weights=bfloat16",
        ),
    ],
)
def test_flash_attention_is_refused_where_it_would_meet_full_precision(own, line):
    with pytest.raises(SettingsError, match=line):
        compose("nlp/finetune", Finetune, ["model.attention=flash_attention_2", *own])
    assert (
        compose(
            "nlp/finetune", Finetune, ["model.attention=flash_attention_2", "trainer.precision=bf16"]
        ).model.attention
        == "flash_attention_2"
    )


def test_a_method_means_the_same_to_every_script_and_seeds_name_the_output():
    settings = compose("mm/forget", Forget, ["method=grad_diff", "seed=3"])
    assert settings.method.loss == "grad_diff" and "seed3" in settings.save_dir and "grad_diff" in settings.save_dir


def test_every_task_of_the_evaluation_is_known_to_the_aggregator():
    scoring = compose("aggregate_eval_stat", Aggregate, []).scoring
    assert set(compose("mm/eval", Eval, []).tasks) <= set(scoring)


MISTAKES = [
    ("trainer.lrr=1", r"unknown setting trainer\.lrr \(did you mean 'lr'\?\)"),
    ("+trainer.lrr=1", r"unknown setting trainer\.lrr \(did you mean 'lr'\?\)"),
    ("sede=1", r"unknown setting sede \(did you mean 'seed'\?\)"),
    ("trainr=lora", r"unknown setting trainr \(did you mean 'trainer'\?\)"),
    ("method=nppo", r"method='nppo' is not known \(did you mean 'npo'\?\); choose from .*grad_diff"),
    ("trainer.lr=fast", r"trainer\.lr: Value 'fast' .* could not be converted to Float"),
    ("trainer.epochs=0", r"trainer\.epochs=0 must be at least 1"),
    ("trainer.warmup_ratio=10", r"trainer\.warmup_ratio=10\.0 must be below 1"),
    ("trainer.precision=fp8", r"trainer\.precision='fp8' is not known.*choose from bf16, fp32"),
    ("modality=txt", r"modality='txt' is not known \(did you mean 'text'\?\); choose from both, text, visual"),
    ("overwrite=maybe", r"overwrite: Value 'maybe' is not a valid bool"),
    ("split=???", r"split is required"),
    ("trainer.lora={r: 8}", r"trainer\.lora\.alpha is required"),
    ("method.args.beta=${nothing.here}", r"nothing"),
]


@pytest.mark.parametrize(("override", "line"), MISTAKES, ids=[override for override, _ in MISTAKES])
def test_a_mistake_is_one_line_that_says_what_is_allowed(override, line):
    with pytest.raises(SettingsError) as caught:
        compose("mm/forget", Forget, [override])
    assert re.search(line, str(caught.value)) and "\n" not in str(caught.value)


def test_a_field_that_only_the_schema_has_says_how_to_set_it():
    with pytest.raises(SettingsError, match=r"\+scoring\.eval_log\.gate="):
        compose("aggregate_eval_stat", Aggregate, ["scoring.eval_log.gate=true"])


def test_booleans_are_typed_and_not_strings():
    assert compose("mm/forget", Forget, ["overwrite=true"]).overwrite is True


@pytest.mark.parametrize(
    ("own", "line"),
    [
        (["benchmark.seeds=[]"], r"benchmark\.seeds=\[\] names no seed"),
        (["benchmark.seeds=[0,1,0]"], r"benchmark\.seeds=\[0, 1, 0\] names a seed twice"),
        (["benchmark.seeds=[0,1000]"], r"benchmark\.seeds=\[0, 1000\] lie a multiple of 1000 apart"),
        (["+benchmark.models.start=a/b"], r"benchmark\.models\.start: a row of this name is there already"),
        (["benchmark.golds=0"], r"benchmark\.golds=0 must be at least 1"),
        (["benchmark.modality=xx"], r"benchmark\.modality='xx' is not known"),
        (["~benchmark.expected_seconds.eval"], r"benchmark\.expected_seconds\.eval is required"),
        (["benchmark=cv_orl", "benchmark.modality=nlp"], r"benchmark\.forget_split='' must name the people to forget"),
        (["+benchmark.pretrain=[]"], r"benchmark\.pretrain: only faces have it"),
        (["benchmark.forget_people=''"], r"benchmark\.forget_people='' must name the people to forget \(modality=mm\)"),
        (["benchmark=cv_demo", "+benchmark.forget_people=a"], r"must be '', because the data's division says"),
        (
            ["benchmark.forget_split=forget05+tofu"],
            r"forget_people='forget25' must be the people of forget_split='forget05",
        ),
        (
            ["+benchmark.runs.npo_long=[trainer]"],
            r"runs\.npo_long: method='npo_long' is not known \(did you mean 'npo'",
        ),
        (['benchmark.runs.npo=["method=nppo"]'], r"runs\.npo: method='nppo' is not known .* choose from .*npo"),
        (["+benchmark.runs.gold=[]"], r"benchmark\.runs\.gold: a row of this name is there already"),
        (["+benchmark.runs.start=[]"], r"benchmark\.runs\.start: a row of this name is there already"),
        (
            ["+benchmark.runs.a$b=[]"],
            r"benchmark\.runs: a row's name is part of its model's folder, and 'a\$b' is none",
        ),
        (["benchmark.runs.npo=null"], r"benchmark\.runs\.npo: null is not allowed"),
        (["+benchmark.models.npo=a/b"], r"benchmark\.models\.npo: a row of this name is there already"),
        (["+benchmark.models.gold=a/b"], r"gold: a row of this name is there already"),
        (["+benchmark.models.a$b=a/b"], r"a row's name is part of its model's folder, and 'a\$b' is none"),
    ],
)
def test_a_benchmark_that_cannot_run_is_refused_before_its_first_stage(own, line):
    with pytest.raises(SettingsError, match=line):
        compose("run_benchmark", RunBenchmark, own)


@pytest.mark.parametrize(
    ("script", "own"),
    [
        ("nlp/finetune", "seed"),
        ("mm/forget", "seed"),
        ("mm/eval", "seed"),
        ("nlp/eval", "affix_seed"),
        ("nlp/attack", "seed"),
        ("cv/pretrain", "seed"),
        ("cv/attack", "seed"),
    ],
)
def test_a_seed_that_a_library_does_not_take_is_refused_in_every_script(script, own):
    for seed, line in ((2**32, "must be below 2^32"), (-1, "must be at least 0")):
        with pytest.raises(SettingsError, match=re.escape(f"{own}={seed} {line}")):
            compose(script, SCRIPTS[script], [f"{own}={seed}"])
    compose(script, SCRIPTS[script], [f"{own}={2**32 - 1}"])


def test_the_forgotten_people_are_no_control_of_themselves():
    for script, own in (("nlp/attack", "eval_log_forget"), ("mm/attack", "eval_forget_facerec")):
        with pytest.raises(SettingsError, match=f"attacked.eval_log_forget='{own}' asks about the forgotten, too"):
            compose(script, SCRIPTS[script], [f"attacked.eval_log_forget={own}"])


def test_the_seeds_of_a_benchmarks_golds_are_seeds_too():
    with pytest.raises(SettingsError, match=r"benchmark\.seeds=4294967300 must be below 2\^32"):
        compose("run_benchmark", RunBenchmark, ["benchmark.seeds=[4294966300]"])


@pytest.mark.parametrize("value", ["nan", "inf"])
def test_a_setting_that_is_no_finite_number_is_refused(value):
    with pytest.raises(SettingsError, match=rf"trainer\.lr={value} must be a finite number"):
        compose("nlp/finetune", Finetune, [f"trainer.lr={value}"])


def test_a_copy_of_the_engine_elsewhere_than_beside_settings_is_refused_in_one_line(tmp_path):
    (tmp_path / "config").mkdir()
    with pytest.raises(SettingsError, match=r"only an editable install works; pip uninstall clear-unlearning") as error:
        check_installation(tmp_path)
    assert "\n" not in str(error.value)


def test_a_copy_of_settings_without_its_config_is_refused(tmp_path, monkeypatch):
    (tmp_path / "engine").mkdir()
    (tmp_path / "engine" / "__init__.py").write_text("")
    spec = type("Spec", (), {"origin": str(tmp_path / "engine" / "__init__.py")})
    monkeypatch.setattr("importlib.util.find_spec", lambda name: spec)
    with pytest.raises(SettingsError, match="only an editable install works"):
        check_installation(tmp_path)
    (tmp_path / "config").mkdir()
    check_installation(tmp_path)


def test_the_clone_itself_is_a_good_installation():
    check_installation()


# ---- what a run reads


def test_a_finetuning_reads_its_data_and_its_base_model():
    settings = compose("mm/finetune", Finetune, ["model_path=models/x"])
    inputs = settings.inputs()
    assert inputs.data == [settings.data.path, settings.data.text_path]
    assert inputs.models == ["models/x"]
    assert inputs.losses == ["retain_ft"]


def test_a_forgetting_reads_the_files_of_i_do_not_know_wherever_it_is_started():
    inputs = compose("nlp/forget", Forget, []).inputs()
    assert inputs.files == [str(ROOT / "config" / "idk" / name) for name in ("questions.txt", "pictures.txt")]


def test_invented_answers_are_read_by_a_method_that_asks_for_them_alone(tmp_path):
    (tmp_path / "invented.jsonl").write_text("")
    told = [f"data.alternatives={tmp_path / 'invented.jsonl'}"]
    named = {
        method: compose("nlp/forget", Forget, [f"method={method}", *told]).inputs().files for method in ("npo", "altpo")
    }
    assert named["altpo"] == [*named["npo"], str(tmp_path / "invented.jsonl")]


@pytest.mark.parametrize("script", ["mm/forget", "nlp/forget", "cv/forget"])
@pytest.mark.parametrize("name", ["base", "gold", "start", "finetune", "pretrain"])
def test_no_method_is_called_like_a_model_that_forgot_nobody(script, name):
    with pytest.raises(SettingsError, match=rf"^method.name='{name}' is what a model is called that forgot nobody"):
        compose(script, SCRIPTS[script], [f"method.name={name}"])


def test_a_method_with_a_mask_runs_the_losses_of_both():
    inputs = compose("mm/forget", Forget, ["method=salun", "trainer.weight_decay=0"]).inputs()
    assert inputs.losses == ["idk", "grad_ascent"]


def test_an_evaluation_at_the_end_of_epochs_reads_golds_log_and_the_tasks_data():
    more = ["epoch_eval=mm", "epoch_eval.gold_result=gold.json", "epoch_eval.tasks.eval_log.dataset=elsewhere"]
    inputs = compose("mm/forget", Forget, more).inputs()
    assert "gold.json" in inputs.files
    assert "elsewhere" in inputs.data


def test_an_evaluation_reads_where_its_rows_and_the_names_of_their_people_stand():
    settings = compose("nlp/eval", Eval, ["model_path=models/x"])
    inputs = settings.inputs()
    places = {task.dataset for task in settings.tasks.values()}
    places |= {task.people.dataset for task in settings.tasks.values() if task.people}
    assert set(inputs.data) == places
    assert inputs.models == ["models/x"]


@pytest.mark.parametrize("script", [name for name in SCRIPTS if name.startswith("cv/")])
def test_every_run_on_faces_reads_the_pictures_and_their_division(script):
    settings = compose(script, SCRIPTS[script], [])
    inputs = settings.inputs()
    assert inputs.data == [settings.data.people.path, settings.data.pretraining.path]
    assert inputs.files == [settings.data.split_file]


def test_a_pretraining_of_faces_reads_no_model_and_the_others_read_the_one_at_model_path():
    models = {name: compose(name, SCRIPTS[name], []) for name in SCRIPTS if name.startswith("cv/")}
    read = {name: settings.inputs().models for name, settings in models.items()}
    assert read.pop("cv/pretrain") == []
    assert read == {name: [models[name].model_path] for name in read}


def test_an_attack_runs_the_loss_of_the_finetuning_and_that_of_the_method():
    assert compose("cv/attack", AttackFaces, ["method=scrub"]).inputs().losses == ["retain_ft", "scrub"]


def test_only_a_base_model_that_is_named_by_its_own_path_is_made():
    base = compose("nlp/finetune", Finetune, [])
    other = compose("nlp/finetune", Finetune, ["model_path=elsewhere"])
    assert [maker.setting for maker in base.inputs().makers] == ["model.made_by", "data.made_by"]
    assert [maker.setting for maker in other.inputs().makers] == ["data.made_by"]


def test_an_error_goes_out_in_one_piece_with_the_end_of_its_line(monkeypatch):
    """Two processes of a launch say their lines at once: a piece for the end would stand behind the other's line."""
    pieces = []
    monkeypatch.setattr("sys.stderr", SimpleNamespace(write=pieces.append, flush=lambda: None))
    with pytest.raises(SystemExit, match=r"^1$"), one_line_errors(Forget):
        raise SettingsError("seed=-1")
    assert pieces == ["error: seed=-1\n"]


def test_a_process_takes_leave_of_the_others_of_its_launch(tmp_path):
    end_processes()  # where there is no launch, nothing happens
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    end_processes()
    assert not torch.distributed.is_initialized()
