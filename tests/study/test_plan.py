import json
from dataclasses import fields, replace

import numpy as np
import pytest

from pdarts_tune.config.evaluation import EvalConfig
from pdarts_tune.config.methods import PartialChannels, RandomSampling, RandomSearch, Snas
from pdarts_tune.config.presets import PRESETS
from pdarts_tune.config.remedies import Latencies, ResourcePenalty
from pdarts_tune.config.search import SearchConfig
from pdarts_tune.config.serialize import ConfigError, content_id, to_dict
from pdarts_tune.pdarts.progressive_depth import DARTS, PDARTS_CIFAR10, PDARTS_CIFAR100, Stage, with_depths
from pdarts_tune.results.manifest import check_definition, planned_seeds
from pdarts_tune.study.cli import main
from pdarts_tune.study.plan import Arguments, Study, Variant, define, describe, differences, make_plan


def two_variants(base):
    return [Variant("base", base), Variant("flat", replace(base, stages=with_depths(base.stages, (5, 5, 5))))]


STUDY = Study("example", "Does it matter?", two_variants)
LATENCIES = Latencies("a device", "2.14", 1, 1, (("sep_conv_3x3", 4, 1, 8, 1e-4),))


def test_a_table_of_latencies_without_a_shape_is_refused_before_anything_starts(tmp_path, capsys):
    (tmp_path / "latency.json").write_text(json.dumps(to_dict(LATENCIES)))
    settings = ["penalty.resource=latency", f"penalty.latencies={tmp_path}/latency.json", "penalty.weight=0.5"]
    with pytest.raises(SystemExit) as exit_:
        main(STUDY, ["--preset", "smoke", "--results", str(tmp_path / "results"), "--set", *settings])
    assert exit_.value.code == 2
    assert capsys.readouterr().err == (
        "error: penalty.latencies: has no avg_pool_3x3 with 4 channels, stride 1, 8 pixels; "
        "benchmarks/latency.py with the settings of this search measures it\n"
    )
    assert not (tmp_path / "results").exists()


def test_a_plan_is_variants_times_seeds_with_seeds_outermost():
    plan = make_plan(STUDY, Arguments("smoke", seeds=2))
    assert [trial.trial_id for trial in plan.searches] == ["base-seed0", "flat-seed0", "base-seed1", "flat-seed1"]
    assert [trial.config.seed for trial in plan.searches] == [0, 0, 1, 1]


def test_each_distinct_genotype_is_evaluated_once_per_evaluation_seed():
    plan = make_plan(STUDY, Arguments("smoke", evaluation_seeds=2))
    trials = plan.evaluations({"aaa": "Genotype A", "bbb": "Genotype B"})
    assert [(trial.genotype, trial.config.seed) for trial in trials] == [
        ("Genotype A", 0),
        ("Genotype B", 0),
        ("Genotype A", 1),
        ("Genotype B", 1),
    ]
    assert len({trial.trial_id for trial in trials}) == 4


def test_search_and_evaluation_split_the_same_images_in_the_same_way():
    for preset in PRESETS.values():
        search, evaluation = preset.search, preset.evaluation
        assert (search.data, search.split_seed, search.test_images) == (
            evaluation.data,
            evaluation.split_seed,
            evaluation.test_images,
        )
        if search.train_images == evaluation.train_images:  # other images are split otherwise anyway
            assert search.validation_fraction == evaluation.validation_fraction


def test_the_paper_preset_is_the_papers_setting():
    preset = PRESETS["paper"]
    assert preset.search.stages == PDARTS_CIFAR10
    assert (preset.evaluation.cells, preset.evaluation.channels, preset.evaluation.epochs) == (20, 36, 600)


def test_the_resolution_and_what_becomes_of_bad_images_hold_for_searches_and_every_recipe():
    plain = make_plan(STUDY, Arguments("smoke", data="imagenet,parquet:b"))
    sized = make_plan(STUDY, Arguments("smoke", data="imagenet,parquet:b", image_size=64, skip_bad_images=True))
    for config in (sized.base, *(variant.search for variant in sized.variants), *sized.recipes):
        assert (config.image_size, config.skip_bad_images) == (64, True)
    assert not any(config.image_size or config.skip_bad_images for config in (plain.base, *plain.recipes))
    assert sized.evaluation.recipe_id != plain.evaluation.recipe_id


def test_the_data_set_replaces_that_of_search_and_evaluation():
    plan = make_plan(STUDY, Arguments("smoke", data="parquet:/somewhere"))
    assert plan.base.data == plan.evaluation.data == "parquet:/somewhere"
    assert {variant.search.data for variant in plan.variants} == {"parquet:/somewhere"}


def test_data_in_files_are_named_by_their_whole_path_since_trials_start_in_other_folders(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    plan = make_plan(STUDY, Arguments("smoke", data="parquet:../images,digits,folder:here"))
    assert plan.base.data == f"parquet:{tmp_path.parent}/images"
    assert [recipe.data for recipe in plan.recipes] == [plan.base.data, "digits", f"folder:{tmp_path}/here"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"preset": "huge"}, "preset: 'huge' is unknown, known are smoke, laptop, cifar-small, paper"),
        ({"preset": "smoke", "variants": "flat,bsae"}, "variants: 'bsae' is unknown, known are base, flat"),
        ({"preset": "smoke", "seeds": 0}, "seeds: 0 is wrong, it must be at least 1"),
        ({"preset": "smoke", "evaluation_seeds": -1}, "evaluation_seeds: -1 is wrong"),
    ],
)
def test_a_wrong_request_is_refused_with_what_would_be_right(settings, message):
    with pytest.raises(ConfigError) as caught:
        make_plan(STUDY, Arguments(**settings))
    assert message in str(caught.value)


@pytest.mark.parametrize(
    "pair",
    [
        None,
        lambda base: replace(base, max_skips=4),
        lambda base: replace(base, method=RandomSampling()),
    ],
)
def test_a_random_control_of_no_search_is_refused(pair):
    def variants(base):
        control = Variant("control", replace(base, method=RandomSampling(skips_of="pair")))
        return [control] if pair is None else [Variant("pair", pair(base)), control]

    says = "skips_of: variant control draws as many skip-connects as the searches of 'pair' find, which must be one of the study's"
    with pytest.raises(ConfigError, match=says):
        make_plan(Study("example", "?", variants), Arguments("smoke"))


def test_two_variants_of_one_name_are_refused():
    twice = Study("example", "?", lambda base: [Variant("base", base)])
    plan = make_plan(twice, Arguments("smoke"))
    with pytest.raises(ConfigError, match="base, base"):
        replace(plan, variants=plan.variants * 2)


def test_the_difference_names_just_the_fields_that_differ():
    base = SearchConfig()
    assert differences(base, base) == []
    changed = replace(base, max_skips=4, stages=with_depths(base.stages, (17, 11, 5)))
    assert differences(changed, base) == ["depths 17-11-5 (base: 5-11-17)", "max_skips 4 (base: 2)"]
    later = replace(base, stages=tuple(replace(stage, warmup_epochs=0) for stage in base.stages))
    assert differences(later, base) == ["stage warmup_epochs [0, 0, 0] (base: [10, 10, 10])"]
    saving = replace(base, penalty=ResourcePenalty("macs", 0.5))
    assert differences(saving, base) == ["penalty 0.5 x macs (base: none)"]
    table = content_id(to_dict(LATENCIES))
    measured = replace(base, penalty=ResourcePenalty("latency", 0.5, LATENCIES))
    assert differences(measured, saving) == [f"penalty 0.5 x latency, latencies {table} of a device (base: 0.5 x macs)"]


def test_a_dry_run_shows_every_trial_and_what_it_changes(tmp_path):
    text = describe(make_plan(STUDY, Arguments("smoke", seeds=2)), tmp_path)
    assert "2 variants x 2 seeds = 4 searches on digits" in text
    assert "flat-seed1" in text
    assert "depths 5-5-5 (base: 3-4-5)" in text


def write_definition(plan, folder):
    (folder / "study.json").write_text(json.dumps(check_definition(define(plan), None, str(folder))))


def check_folder(plan, folder):
    return check_definition(define(plan), (folder / "study.json").read_bytes(), str(folder))


def test_seeds_and_variants_may_be_added_to_a_results_folder(tmp_path):
    write_definition(make_plan(STUDY, Arguments("smoke", variants="base")), tmp_path)
    merged = check_folder(make_plan(STUDY, Arguments("smoke", variants="flat", seeds=5)), tmp_path)
    assert list(merged["variants"]) == ["base", "flat"]
    assert merged["seeds"] == {"base": 1, "flat": 5}


def test_anything_else_in_a_results_folder_may_not_change(tmp_path):
    write_definition(make_plan(STUDY, Arguments("smoke")), tmp_path)
    with pytest.raises(ConfigError, match=r"evaluation.recipe was 'smoke', is 'laptop'"):
        check_folder(make_plan(STUDY, Arguments("laptop")), tmp_path)
    plan = make_plan(STUDY, Arguments("smoke"))
    wider = replace(plan, variants=(Variant("base", replace(plan.base, channels=32)),))
    with pytest.raises(ConfigError, match=r"channels was 4, is 32 \(base\); name another folder"):
        check_folder(wider, tmp_path)
    deeper = replace(plan, variants=(Variant("base", replace(plan.base, stages=with_depths(plan.base.stages, (9, 4, 5)))),))
    with pytest.raises(ConfigError, match=r"stages\[0\].cells was 3, is 9 \(base\)"):
        check_folder(deeper, tmp_path)


def test_a_setting_that_joined_later_is_no_difference_in_any_part_of_a_definition(tmp_path):
    plan = make_plan(STUDY, Arguments("smoke", data="digits,cifar10,cifar100"))
    older = check_definition(define(plan), None, "")
    configs = [*older["variants"].values(), older["evaluation"], *older["further_evaluations"]]
    assert len(configs) == 5
    for settings in configs:
        kind = SearchConfig if "stages" in settings else EvalConfig
        for setting in fields(kind):
            if setting.metadata.get("later"):
                del settings[setting.name]
    (tmp_path / "study.json").write_text(json.dumps(older))
    assert check_folder(plan, tmp_path)["further_evaluations"] == [to_dict(recipe) for recipe in plan.recipes[1:]]
    longer = replace(plan, recipes=(*plan.recipes[:2], replace(plan.recipes[2], epochs=9)))
    with pytest.raises(ConfigError, match=r"study.json is .*: epochs was 2, is 9 \(smoke on cifar100\); name another folder"):
        check_folder(longer, tmp_path)


def test_recipes_may_be_added_to_a_results_folder_but_the_first_stays_the_first(tmp_path):
    def study(*names):
        return Study("example", "?", two_variants, evaluations=lambda base, _: [replace(base, recipe=name) for name in names])

    write_definition(make_plan(study("one", "two"), Arguments("smoke")), tmp_path)
    merged = check_folder(make_plan(study("one", "three"), Arguments("smoke")), tmp_path)
    assert [recipe["recipe"] for recipe in merged["further_evaluations"]] == ["two", "three"]
    assert check_folder(make_plan(study("one"), Arguments("smoke")), tmp_path) == check_folder(
        make_plan(study("one", "two"), Arguments("smoke")), tmp_path
    )
    with pytest.raises(ConfigError, match=r"study.json is .*: evaluation.recipe was 'one', is 'two'; name another folder"):
        check_folder(make_plan(study("two", "one"), Arguments("smoke")), tmp_path)


def test_a_refusal_names_two_differences_and_is_short(tmp_path):
    write_definition(make_plan(STUDY, Arguments("smoke")), tmp_path)
    with pytest.raises(ConfigError, match=r"/study.json is of another .*; and \d+ more; name another folder") as caught:
        check_folder(make_plan(STUDY, Arguments("paper")), tmp_path)
    assert len(str(caught.value)) < 400
    one_stage = replace(
        make_plan(STUDY, Arguments("smoke")), variants=(Variant("base", replace(PRESETS["smoke"].search, stages=DARTS)),)
    )
    with pytest.raises(ConfigError) as caught:
        check_folder(one_stage, tmp_path)
    assert len(str(caught.value)) < 400


def test_seeds_may_start_anywhere_and_the_folder_remembers_which_there_are(tmp_path):
    later = make_plan(STUDY, Arguments("smoke", seeds=2, first_seed=3))
    assert [trial.trial_id for trial in later.searches][:3] == ["base-seed3", "flat-seed3", "base-seed4"]
    assert define(later)["seeds"] == {"base": [3, 4], "flat": [3, 4]}
    write_definition(make_plan(STUDY, Arguments("smoke", seeds=2)), tmp_path)
    apart = check_folder(later, tmp_path)
    assert apart["seeds"] == {"base": [0, 1, 3, 4], "flat": [0, 1, 3, 4]}
    assert planned_seeds(apart)["base"] == [0, 1, 3, 4]
    assert check_folder(make_plan(STUDY, Arguments("smoke", seeds=1, first_seed=2)), tmp_path)["seeds"] == {"base": 3, "flat": 3}


def test_changes_reach_the_base_and_the_recipe_and_every_variant():
    plan = make_plan(STUDY, Arguments("smoke", set=["batch_size=64", "evaluation.epochs=9"]))
    assert {variant.search.batch_size for variant in plan.variants} == {64}
    assert (plan.evaluation.epochs, plan.evaluation.batch_size) == (9, 48)
    assert "set: batch_size=64 evaluation.epochs=9" in describe(plan, "results")
    assert make_plan(STUDY, Arguments("smoke", set=["batch_size=48"])).variants == make_plan(STUDY, Arguments("smoke")).variants


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (["channels=8"], "set: channels=8 would have no effect, own sets it in every variant"),
        (["evaluation.epochs=8"], "set: evaluation.epochs=8 would have no effect, own sets it in every recipe"),
        (["batch_size=64", "batch_size=32"], "set: batch_size is given 2 times, it must be given once"),
        (["seed=8"], "set: seed is set by --seeds and --first-seed"),
        (["evaluation.batch_size=0"], "evaluation.batch_size: 0 is wrong, it must be a whole number of at least 1"),
    ],
)
def test_a_change_without_an_effect_is_refused(changes, says):
    study = Study(
        "own",
        "?",
        lambda base: [Variant("a", replace(base, channels=4))],
        evaluations=lambda base, _: [replace(base, epochs=2)],
    )
    with pytest.raises(ConfigError, match=says):
        make_plan(study, Arguments("smoke", set=changes))


def test_a_studys_own_sizes_are_presets_too():
    tiny = replace(PRESETS["smoke"], seeds=5)
    study = Study("own", "?", two_variants, presets={"tiny": tiny})
    assert make_plan(study, Arguments("tiny")).seeds == 5
    with pytest.raises(ConfigError, match="preset: 'huge' is unknown, known are smoke, laptop, cifar-small, paper, tiny"):
        make_plan(study, Arguments("huge"))


def test_differences_are_from_a_base_of_the_studys_own():
    def wide(base):
        return [Variant(name, replace(base, channels=8, batch_size=size)) for name, size in (("b48", 48), ("b64", 64))]

    plan = make_plan(Study("own", "?", wide), Arguments("smoke", variants="b64"))
    lines = describe(plan, "results").splitlines()
    assert "the study's own base, which the differences below are from: channels 8 (base: 4)" in lines
    assert lines[-1].endswith("  batch_size 64 (base: 48)")
    assert not any(
        "own base" in line for line in describe(make_plan(STUDY, Arguments("smoke", variants="flat")), "results").splitlines()
    )


def test_a_dry_run_names_the_memory_limit_where_there_is_one():
    assert "memory limit: 1,000,000 bytes" in describe(make_plan(STUDY, Arguments("smoke", memory_limit=1_000_000)), "results")
    assert "memory limit" not in describe(make_plan(STUDY, Arguments("smoke")), "results")


def test_a_dry_run_marks_the_searches_that_are_done():
    lines = describe(make_plan(STUDY, Arguments("smoke")), "results", {"flat-seed0"}).splitlines()
    assert lines[-2].startswith("        base-seed0")
    assert lines[-1].startswith("  done  flat-seed0")


def test_a_setting_that_an_older_release_let_into_a_definition_is_named_with_the_way_on(tmp_path):
    plan = make_plan(STUDY, Arguments("smoke"))
    poisoned = check_definition(define(plan), None, "")
    poisoned["variants"]["flat"]["dropping"] = "randm"
    (tmp_path / "study.json").write_text(json.dumps(poisoned))
    with pytest.raises(ConfigError, match=r"study.json: variants.flat: dropping: 'randm' is wrong, .*; take a variant that never"):
        check_folder(plan, tmp_path)
    del poisoned["variants"]["flat"]
    (tmp_path / "study.json").write_text(json.dumps(poisoned))
    assert check_folder(plan, tmp_path)["variants"]["flat"]["dropping"] == "lowest"


def test_a_definition_that_cannot_be_read_is_named(tmp_path):
    (tmp_path / "study.json").write_text("{")
    with pytest.raises(ConfigError, match=r"study.json: not readable as JSON"):
        check_folder(make_plan(STUDY, Arguments("smoke")), tmp_path)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (
            lambda base: replace(base, method=Snas(k=4)),
            "variants of own: k: unknown setting of Snas, known are temperature, final_temperature, penalty",
        ),
        (
            lambda base: replace(base, method=Snas(temperature=-1.0)),
            "variants of own: temperature: -1.0 is wrong, it must be a number of more than 0",
        ),
        (lambda base: replace(base, method=PartialChannels(3)), "method.k: 3 does not divide the 4 channels; take a divisor"),
        (lambda base: replace(base, method=RandomSearch()), "stages: method random_search cannot use 3 stages, its candidates"),
        (
            lambda base: replace(base, max_skip=1),
            "variants of own: max_skip: unknown setting of SearchConfig, known are stages, method, data",
        ),
        (
            lambda base: replace(base, stages=(Stage(2, 8),)),
            "variants of own: cells: 2 is wrong, it must be a whole number of at least 3",
        ),
        (lambda base: replace(base, stages=(Stage(5, 8), Stage(8, 1))), "stages[1].operations: 1 leaves nothing to search"),
        (
            lambda base: replace(base, dropping="randm"),
            "variants of own: dropping: 'randm' is wrong, it must be 'lowest' or 'random'",
        ),
        (
            lambda base: replace(base, dropout_on_reduce=1),
            "variants of own: dropout_on_reduce: 1 is wrong, it must be True or False",
        ),
        (lambda base: replace(base, momentum="0.9"), "variants of own: momentum: '0.9' is wrong, it must be a number in [0, 1)"),
        (lambda base: replace(base, momentum=float("nan")), "variants of own: momentum: nan is wrong, it must be a finite number"),
        (
            lambda base: replace(base, channels=np.int64(4)),
            "variants of own: channels: np.int64(4) is wrong, it must be a whole number of at least 1",
        ),
        (lambda base: replace(base, stages=list(base.stages)), "variants of own: stages: [Stage("),
        (
            lambda base: replace(base, stages=(replace(base.stages[0], epochs=2.0),)),
            "variants of own: epochs: 2.0 is wrong, it must be a whole number of",
        ),
        (lambda base: replace(base, channels="16"), "variants of own: channels: '16' is wrong, it must be a whole number"),
        (lambda base: replace(base, stages=(Stage(5, 8, epoch=3),)), "variants of own: Stage.__init__() got an unexpected keyword"),
        (
            lambda base: replace(base, stages=(Stage("5", 8),)),
            "variants of own: cells: '5' is wrong, it must be a whole number of at least 3",
        ),
        (lambda base: replace(base, method=PartialChannels("4")), "variants of own: k: '4' is wrong, it must be a whole number"),
    ],
)
@pytest.mark.parametrize("dry_run", [[], ["--dry-run", "--probe-seconds", "0"]])
def test_a_wrong_setting_in_a_study_is_one_line_on_the_command_line(tmp_path, capsys, wrong, said, dry_run):
    refuse(Study("own", "Does it?", lambda base: [Variant("wrong", wrong(base))]), said, tmp_path, capsys, dry_run)


@pytest.mark.parametrize(
    ("study", "said"),
    [
        (
            Study("own", "?", lambda base: [Variant("no dropout", base)]),
            "variant: 'no dropout' is wrong, a name has letters, digits",
        ),
        (Study("own", "?", lambda base: [Variant("lr/0.1", base)]), "variant: 'lr/0.1' is wrong"),
        (Study("my study/x", "?", two_variants), "study: 'my study/x' is wrong, a name has letters, digits"),
        (Study("trials", "?", two_variants), "study: a study cannot be called 'trials'"),
        (
            Study("own", "?", two_variants, evaluations=lambda recipe, _: [replace(recipe, recipe="a b")]),
            "recipe: 'a b' is wrong, a name has",
        ),
        (Study("own", "?", lambda base: [Variant("a", base, (1.5,))]), "skip_limits: (1.5,) of variant a are wrong"),
        (Study("own", "?", lambda base: [Variant("a", base, 2)]), "skip_limits: 2 of variant a are wrong, they must be numbers"),
        (
            Study("own", "?", lambda base: [Variant("a", base), Variant("b", base, (0, 2))]),
            "variants: a and b have the same settings, so they are one search",
        ),
        (
            Study("own", "?", lambda base: Variant("a", base)),
            "variants of own: returns a Variant, it must return a list",
        ),
        (Study("own", "?", lambda base: [base]), "variants of own: returns a list with SearchConfig, it must"),
        (Study("own", "?", lambda _: None), "variants of own: returns nothing, it must return a list of Variant"),
        (Study("own", "?", []), "variants of own: a list is wrong, it must be a function that returns a list of Variant"),
        (Study("own", "?", lambda base: [Variant(3, base)]), "variant: 3 is wrong, a name has letters"),
        (Study(3, "?", two_variants), "study: 3 is wrong, a name has letters"),
        (Study("own", "?", lambda _: [Variant("a", {})]), "variant a: search is a dict, it must be a SearchConfig"),
        (
            Study("own", "?", two_variants, presets={"smoke": EvalConfig()}),
            "presets of own: smoke is a EvalConfig, it",
        ),
        (Study("own", "?", two_variants, report="not_there.py"), "the report script not_there.py is not there"),
        (
            Study("own", "?", lambda base: [Variant("a", replace(base, seed=5))]),
            "variant a: seed 5 would have no effect, the study sets seeds (--seeds and --first-seed)",
        ),
        (
            Study("own", "?", two_variants, evaluations=lambda recipe, _: [replace(recipe, seed=5)]),
            "recipe smoke: seed 5 would have no effect, the study sets seeds (--evaluation-seeds)",
        ),
        (
            Study("own", "?", two_variants, evaluations=lambda recipe, _: [replace(recipe, momentum=None)]),
            "evaluations of own: momentum: None is wrong, it must be a number in [0, 1)",
        ),
        (
            Study("own", "?", two_variants, evaluations=lambda recipe, _: [replace(recipe, epochs="9")]),
            "evaluations of own: epochs: '9' is wrong, it must be a whole number of at least 1",
        ),
    ],
)
def test_a_wrong_name_limit_or_recipe_in_a_study_is_one_line_too(tmp_path, capsys, study, said):
    refuse(study, said, tmp_path, capsys, [])


def refuse(study, said, tmp_path, capsys, options):
    with pytest.raises(SystemExit) as stopped:
        main(study, ["--preset", "smoke", "--results", str(tmp_path / "results"), *options])
    assert stopped.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert said in line
    assert not (tmp_path / "results").exists()


def test_a_mistake_in_a_studys_code_keeps_its_traceback():
    study = Study("own", "Does it?", lambda base: [Variant("wrong", base + 1)])
    with pytest.raises(TypeError, match="unsupported operand"):
        make_plan(study, Arguments("smoke"))


def test_a_method_is_told_by_its_name_and_settings_and_a_given_genotype_by_its_source():
    base = SearchConfig()
    given = make_plan(STUDY, Arguments("paper", genotypes="darts=DARTS_V1")).variants[0].search
    assert differences(given, base) == ["method given (source DARTS_V1) (base: first_order)", "max_skips 3 (base: 2)"]
    exactly = replace(base, method=RandomSampling(exactly=True))
    assert differences(exactly, base) == ["method random (exactly True) (base: first_order)"]


def test_a_plan_on_cifar100_says_that_its_dropout_is_that_of_cifar10():
    plan = make_plan(STUDY, Arguments("paper", data="cifar100"))
    says = "for CIFAR-100 it has --set stages.0.skip_dropout=0.1 stages.1.skip_dropout=0.2 stages.2.skip_dropout=0.3"
    assert says in describe(plan, "results")
    taken = make_plan(STUDY, Arguments("paper", data="cifar100", set=plan.note.split("--set ")[1].split()))
    assert taken.base.stages == PDARTS_CIFAR100
    for other in (taken, make_plan(STUDY, Arguments("paper")), make_plan(STUDY, Arguments("smoke", data="cifar100"))):
        assert other.note is None
