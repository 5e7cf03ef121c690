"""Studies: killed ones go on as if nothing had happened, finished ones add nothing, larger targets are topped up."""

from __future__ import annotations

from pathlib import Path

import pytest

from chestflow.errors import ConfigError, DataError
from chestflow.tuning.studies import Axis, Outcome, Values, history_plot, run_study

SPACE = {"x": Axis(-2.0, 2.0), "w": Axis(0.0, 1.0, step=0.01), "t": Axis(0.05, 20.0, log=True)}
FIRST = [{"x": 0.0, "w": 0.35, "t": 1.0}]


def bowl(values: Values) -> float:
    return (values["x"] - 0.7) ** 2 + (values["w"] - 0.3) ** 2


def study(folder: Path, trials: int, objective=bowl, *, seed: int = 3, about: str = "one") -> Outcome:
    return run_study(
        objective, SPACE, trials=trials, seed=seed, about={"name": about}, checkpoints=folder, first=FIRST
    )  # fmt: skip


def test_a_seed_gives_the_same_trials_in_another_folder(tmp_path: Path) -> None:
    assert study(tmp_path / "a", 15) == study(tmp_path / "b", 15)
    assert study(tmp_path / "c", 15, seed=4).trials != study(tmp_path / "a", 15).trials


def test_the_first_trial_is_the_papers_value(tmp_path: Path) -> None:
    assert study(tmp_path, 3).trials[0]["values"] == FIRST[0]


def test_a_finished_study_asks_for_nothing(tmp_path: Path) -> None:
    done = study(tmp_path, 12)

    def never(values: Values) -> float:
        raise AssertionError("a finished study ran a trial")

    assert study(tmp_path, 12, never) == done


def test_topping_up_continues_what_a_longer_study_would_have_done(tmp_path: Path) -> None:
    study(tmp_path / "a", 8)
    assert study(tmp_path / "a", 20) == study(tmp_path / "b", 20)


@pytest.mark.parametrize("at", [0, 1, 9])
def test_an_interrupted_study_ends_as_an_uninterrupted_one(tmp_path: Path, at: int) -> None:
    calls = 0

    def dies(values: Values) -> float:
        nonlocal calls
        calls += 1
        if calls == at + 1:
            raise KeyboardInterrupt
        return bowl(values)

    with pytest.raises(KeyboardInterrupt):
        study(tmp_path / "a", 14, dies)
    assert calls == at + 1
    assert study(tmp_path / "a", 14) == study(tmp_path / "b", 14)


def test_a_journal_torn_by_a_kill_is_read_up_to_its_last_whole_line(tmp_path: Path) -> None:
    study(tmp_path / "a", 9)
    journal = next((tmp_path / "a" / "optuna").glob("*.journal"))
    content = journal.read_bytes()
    journal.write_bytes(content[:-7])
    assert study(tmp_path / "a", 14) == study(tmp_path / "b", 14)


def test_another_subject_is_another_study(tmp_path: Path) -> None:
    study(tmp_path, 5)
    study(tmp_path, 5, about="two")
    assert len(list((tmp_path / "optuna").glob("*.journal"))) == 2


def test_values_stay_in_their_space_and_the_best_is_the_least(tmp_path: Path) -> None:
    found = study(tmp_path, 25)
    for trial in found.trials:
        assert all(SPACE[k].low <= v <= SPACE[k].high for k, v in trial["values"].items())
        assert round(trial["values"]["w"] * 100) == pytest.approx(trial["values"]["w"] * 100)
    assert found.objective == min(t["objective"] for t in found.trials) == bowl(found.best)
    assert [t["number"] for t in found.trials] == list(range(25))


def test_a_damaged_journal_and_an_unusable_storage_say_so_in_one_line(tmp_path: Path) -> None:
    study(tmp_path, 2)
    journal = next((tmp_path / "optuna").glob("*.journal"))
    journal.write_bytes(b"not a journal\n" + journal.read_bytes())
    with pytest.raises(DataError, match="delete it"):
        study(tmp_path, 3)
    with pytest.raises(ConfigError, match="check the URL"):
        run_study(bowl, SPACE, trials=1, seed=0, about={}, checkpoints=tmp_path, storage="nosuch://host/base")


def test_the_history_is_drawn_the_same_each_time(tmp_path: Path) -> None:
    trials = study(tmp_path, 6).trials
    for name in ("a.png", "b.png"):
        history_plot(trials, tmp_path / name, "a study")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    assert (tmp_path / "a.png").stat().st_size > 2000
