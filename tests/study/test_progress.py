import io

import pytest
from rich.console import Console

from pdarts_tune.study import progress as progress_module
from pdarts_tune.study.progress import Progress

TABLE = "variant      searches\nprogressive  1/4"


def console(width=200, terminal=False):
    return Console(file=io.StringIO(), width=width, force_terminal=terminal)


def report(position, accuracy, done_epochs, total_epochs, epoch_seconds, warning=""):
    return locals()


def show(total=4, done=0, slots=2, table=str, **settings):
    counts = {"searches": done, "evaluations": 0}
    return Progress({"searches": total, "evaluations": total}, counts, slots, table, console(**settings))


def test_a_log_file_gets_a_line_per_finished_trial_and_none_of_the_redrawing():
    with show(done=1) as progress:
        progress.started("a-seed0")
        progress.epoch("a-seed0", report("stage 1/3, epoch 1/2", ("validation", 0.5), 1, 6, 2.0))
        progress.finished("a-seed0")
        progress.finished("cell-seed0", is_evaluation=True)
        progress.finished("b-seed0", error="FloatingPointError: stage 1, epoch 0: training loss is nan")
    lines = progress.console.file.getvalue().splitlines()
    assert lines[0] == "4 searches (1 already done), at most 4 evaluations, 2 at a time"
    assert lines[1].startswith("searches 2/4 a-seed0: done in 0 s, accuracy: validation 50.0 %")
    assert lines[2] == "evaluations 1/4 cell-seed0: done in 0 s"
    assert lines[3] == "searches 3/4 b-seed0: failed: FloatingPointError: stage 1, epoch 0: training loss is nan"
    assert progress.failed == 1


def test_a_warning_is_printed_at_once_on_one_line_and_stays():
    with show(width=40) as progress:
        progress.epoch("a-seed0", report("stage 1/1, epoch 3/9", ("validation", 0.5), 3, 9, 2.0, "stage 1, epoch 3: 5 of 8 [...]"))
        progress.epoch("a-seed0", report("stage 1/1, epoch 4/9", ("validation", 0.5), 4, 9, 2.0))
    assert progress.console.file.getvalue().splitlines()[1:] == ["a-seed0: warning: stage 1, epoch 3: 5 of 8 [...]"]


def test_a_log_file_gets_the_variants_after_a_trial_now_and_then_a_line_a_record(monkeypatch):
    with show(width=20, table=lambda: TABLE) as progress:
        progress.finished("a-seed0")
        assert "progressive" not in progress.console.file.getvalue()  # a block has been printed, or the study begun, just now
        monkeypatch.setattr(progress_module, "LINE_EVERY_SECONDS", 0.0)
        progress.finished("b-seed0")
    lines = progress.console.file.getvalue().splitlines()
    assert lines[lines.index("searches 2/4 b-seed0: done in 0 s") + 1 :][:2] == TABLE.splitlines()


def test_a_log_file_gets_a_summary_line_now_and_then(monkeypatch):
    monkeypatch.setattr(progress_module, "LINE_EVERY_SECONDS", 0.0)
    with show() as progress:
        progress.epoch("a-seed0", report("stage 2/3, epoch 1/2", ("validation", 0.25), 3, 6, 2.0))
    said = progress.console.file.getvalue()
    assert "searches 0/4, evaluations 0/4 | a-seed0 stage 2/3, epoch 1/2, accuracy: validation 25.0 %" in said


def test_a_terminal_shows_the_variants_and_each_trials_position_accuracy_and_time_left():
    tables = iter(["none yet", TABLE])
    with show(width=120, terminal=True, table=lambda: next(tables)) as progress:
        progress.epoch("deep-seed1", report("stage 2/3, epoch 1/2", ("validation", 0.25), 3, 6, 61.0))
        shown = progress.console.file.getvalue()
        for text in ("none yet", "deep-seed1", "stage 2/3, epoch 1/2", "validation 25.0 %", "3 min 03 s", "searches 0/4"):
            assert text in shown
        progress.finished("deep-seed1")
    assert "progressive  1/4" in progress.console.file.getvalue()


def test_the_time_left_follows_from_finished_trials_of_each_kind_and_shares_of_running_ones():
    progress = show(total=6, done=2)
    assert progress.seconds_left() is None
    progress.durations["searches"] = [10.0, 30.0]
    assert progress.seconds_left() is None  # nothing is known of evaluations
    progress.durations["evaluations"] = [5.0]
    progress.epoch("a", report("epoch 1/4", ("validation", 0.5), 1, 4, 1.0))
    # Four searches of 20 seconds and six evaluations of 5, less a quarter of a trial of 12.5 on average, on two slots.
    assert progress.seconds_left() == pytest.approx((4 * 20 + 6 * 5 - 0.25 * 12.5) / 2)


def test_a_trial_that_is_started_again_says_why_and_brackets_are_not_markup():
    with show() as progress:
        progress.retried("a-seed0", "ValueError: sizes [4, 1] and [1, 1] differ")
    assert "a-seed0: started again after ValueError: sizes [4, 1] and [1, 1] differ" in progress.console.file.getvalue()
    assert progress.failed == 0
