from __future__ import annotations

from collections import Counter
from itertools import islice

import pytest

from mhr.data import load_tasks, skills_of, skills_suite
from mhr.data.skills import SKILLS, choices_of, compositions, draw_examples, solve
from mhr.errors import ConfigError, TaskError


@pytest.mark.parametrize(
    ("skill", "text", "answer"),
    [
        ("rev", "abch", "hcba"),
        ("next", "abch", "bcda"),
        ("swap", "abch", "hbca"),
        ("rotl", "abch", "bcha"),
        ("rotr", "abch", "habc"),
        ("init", "abch", "abc"),
        ("tail", "abch", "bch"),
        ("sort", "hbca", "abch"),
        ("first", "cba", "c"),
        ("second", "cba", "b"),
        ("last", "cba", "a"),
        ("max", "bdc", "d"),
        ("min", "bdc", "b"),
        ("vow", "abea", "3"),
        ("asc", "acb", "yes"),
        ("asc", "bcb", "no"),
        ("upper", "abc", "ABC"),
        ("twice", "ab", "aabb"),
        ("place", "ach", "138"),
        ("box", "yes", "[yes]"),
    ],
)
def test_each_skill(skill: str, text: str, answer: str):
    assert solve((skill,), text) == answer


def test_every_skill_has_a_case_above():
    (mark,) = test_each_skill.pytestmark  # type: ignore[attr-defined]
    assert {case[0] for case in mark.args[1]} == set(SKILLS)


def test_the_suite_is_the_same_for_a_seed_and_differs_between_seeds():
    first, again, other = (skills_suite(seed, 5, 5) for seed in (0, 0, 1))
    assert [t.train for t in first.values()] == [t.train for t in again.values()]
    assert list(first) == list(other)
    assert [t.train for t in first.values()] != [t.train for t in other.values()]


def test_a_suite_that_is_changed_leaves_the_next_one_as_it_was():
    changed = skills_suite(0, 5, 5)
    for task in changed.values():
        task.train.clear()
        task.held_out = True
    assert all(len(task.train) == 5 for task in skills_suite(0, 5, 5).values())
    assert skills_suite(0, 5, 5).training()


def test_a_smaller_suite_is_the_beginning_of_a_greater_one():
    small, great = skills_suite(0, 5, 10), skills_suite(0, 20, 10)
    assert all(small[name].test == great[name].test for name in small)
    assert all(small[name].train == great[name].train[:5] for name in small)


def test_held_out_tasks_recombine_skills_that_training_knows():
    suite = skills_suite(0, 1, 1)
    training = Counter(skill for name in suite.training() for skill in skills_of(name))
    held_out = {skill for name in suite.held_out() for skill in skills_of(name)}
    assert len(suite.training()) >= 60
    assert len(suite.held_out()) >= 12
    assert min(training[skill] for skill in held_out) >= 3
    assert {t.category for t in suite.held_out().values()} == {t.category for t in suite.training().values()}


def test_no_task_is_a_single_skill():
    assert all(len(skills) == 2 for skills in compositions())


def test_examples_are_right_and_distinct():
    for name, task in skills_suite(0, 60, 30).items():
        for example in task.train + task.test:
            text = example.input.rsplit(": ")[-1]
            assert example.targets == (solve(skills_of(name), text),)
            assert not example.choices or example.targets[0] in example.choices
        assert len({e.input for e in task.train + task.test}) == 90


def test_answers_are_balanced():
    examples = list(islice(draw_examples(("max",)), 400))
    assert max(Counter(e.targets[0] for e in examples).values()) < 0.25 * len(examples)


def test_choices_are_written_as_answers_are():
    assert choices_of(("asc", "upper")) == ("NO", "YES")
    assert choices_of(("first", "place")) == tuple("12345678")
    assert choices_of(("rev", "box")) == ()
    assert choices_of(("rev", "first", "twice"))[:2] == ("aa", "bb")


def test_the_suite_is_a_collection_like_others():
    suite = load_tasks("builtin:skills", max_train=7, limit_test=3, seed=2)
    assert {(len(t.train), len(t.test)) for t in suite.values()} == {(7, 3)}
    assert suite["rev-last"].train == skills_suite(2, 7, 3)["rev-last"].train
    assert suite.source == "builtin:skills"


def test_unknown_skills_and_sizes_are_told():
    with pytest.raises(TaskError, match=r"unknown skill 'lst'; did you mean 'last'"):
        skills_of("rev-lst")
    with pytest.raises(ConfigError, match="must be 0 or more, got -1 and 2"):
        skills_suite(0, -1, 2)
