import io

from rich.console import Console

from pdarts_tune.study import progress as progress_module
from pdarts_tune.study.progress import Progress


def plain_console():
    return Console(file=io.StringIO(), width=200, force_terminal=False)


def test_a_log_file_gets_a_line_per_finished_trial_and_none_of_the_redrawing():
    console = plain_console()
    with Progress("searches", total=4, done=1, slots=2, console=console) as progress:
        progress.started("a-seed0")
        progress.epoch("a-seed0", "stage 1/3, epoch 1/2", ("validation", 0.5), 1, 6, 2.0)
        progress.finished("a-seed0")
        progress.finished("b-seed0", error="FloatingPointError: stage 1, epoch 0: training loss is nan")
    lines = console.file.getvalue().splitlines()
    assert lines[0] == "4 searches, 1 already done, 2 at a time"
    assert lines[1].startswith("2/4 a-seed0: done in 0 s, accuracy: validation 50.0 %")
    assert lines[2] == "3/4 b-seed0: failed: FloatingPointError: stage 1, epoch 0: training loss is nan"
    assert progress.failed == 1


def test_a_warning_is_printed_at_once_on_one_line_and_stays():
    console = Console(file=io.StringIO(), width=40, force_terminal=False)
    with Progress("searches", total=2, done=0, slots=1, console=console) as progress:
        progress.epoch("a-seed0", "stage 1/1, epoch 3/9", ("validation", 0.5), 3, 9, 2.0, "stage 1, epoch 3: 5 of 8 [...]")
        progress.epoch("a-seed0", "stage 1/1, epoch 4/9", ("validation", 0.5), 4, 9, 2.0)
    assert console.file.getvalue().splitlines()[1:] == ["0/2 a-seed0: warning: stage 1, epoch 3: 5 of 8 [...]"]


def test_a_log_file_gets_a_summary_line_now_and_then(monkeypatch):
    monkeypatch.setattr(progress_module, "LINE_EVERY_SECONDS", 0.0)
    console = plain_console()
    with Progress("searches", total=2, done=0, slots=1, console=console) as progress:
        progress.epoch("a-seed0", "stage 2/3, epoch 1/2", ("validation", 0.25), 3, 6, 2.0)
    assert "0/2 searches | a-seed0 stage 2/3, epoch 1/2, accuracy: validation 25.0 %" in console.file.getvalue()


def test_a_terminal_shows_variant_seed_position_accuracy_and_time_left():
    console = Console(file=io.StringIO(), width=120, force_terminal=True)
    with Progress("searches", total=2, done=0, slots=1, console=console) as progress:
        progress.epoch("deep-seed1", "stage 2/3, epoch 1/2", ("validation", 0.25), 3, 6, 61.0)
    shown = console.file.getvalue()
    for text in ("deep-seed1", "stage 2/3, epoch 1/2", "validation 25.0 %", "3 min 03 s", "0/2 searches"):
        assert text in shown


def test_the_time_left_follows_from_finished_trials_and_shares_of_running_ones():
    progress = Progress("searches", total=6, done=2, slots=2, console=plain_console())
    assert progress.seconds_left() is None
    progress.durations = [10.0, 30.0]
    progress.epoch("a", "epoch 1/4", ("validation", 0.5), 1, 4, 1.0)
    # One trial has 3/4 of 20 seconds to go, three wait for 20 seconds each, on two slots.
    assert progress.seconds_left() == (0.75 * 20 + 3 * 20) / 2


def test_a_trial_that_is_started_again_says_why_and_brackets_are_not_markup():
    console = plain_console()
    with Progress("searches", total=1, done=0, slots=1, console=console) as progress:
        progress.retried("a-seed0", "ValueError: sizes [4, 1] and [1, 1] differ")
    assert "0/1 a-seed0: started again after ValueError: sizes [4, 1] and [1, 1] differ" in console.file.getvalue()
    assert progress.failed == 0
