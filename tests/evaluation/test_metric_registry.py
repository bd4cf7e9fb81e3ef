"""Metrics of whole collections, against their libraries called directly and against values worked out by hand."""

from __future__ import annotations

import itertools
import math

import pytest
import sacrebleu
import scipy.stats
import sklearn.metrics

from mhr.data import Example, Task
from mhr.errors import DataError
from mhr.evaluation.measuring import Plan, measure, plan_task, refuse_misfits
from mhr.evaluation.metrics import Judged, Undefined, metrics
from mhr.evaluation.metrics.metric import TEXT
from mhr.evaluation.result import Prediction
from mhr.runs.scoring import METRICS
from mhr.task_heads import TaskHead

NO_YES = ("no", "yes")
SEVERAL = ("accuracy", "nist", "bleu", "mse", "pearson")


def value(name: str, answers: list[str], targets: list[str], choices: tuple[str, ...] = ()) -> float:
    return metrics[name].compute(Judged(answers, [(t,) for t in targets], choices))


def labels(letters: str) -> list[str]:
    """ "nyy" -> no, yes, yes."""
    return [{"n": "no", "y": "yes"}[letter] for letter in letters]


def test_the_settings_name_every_metric() -> None:
    assert set(METRICS) == set(metrics)


# ---- labels: 3 true positives, 1 false positive, 2 false negatives, 4 true negatives -----------------------------------

TRUTH, ANSWERS = labels("yyyyynnnnn"), labels("yyynnynnnn")


@pytest.mark.parametrize(
    ("name", "by_hand"),
    [
        ("accuracy", 7 / 10),
        ("f1", 2 * 3 / (2 * 3 + 1 + 2)),
        ("macro_f1", (6 / 9 + 8 / 11) / 2),
        ("micro_f1", 7 / 10),
        ("matthews", (3 * 4 - 1 * 2) / math.sqrt((3 + 1) * (3 + 2) * (4 + 1) * (4 + 2))),
    ],
)
def test_metrics_of_two_labels(name: str, by_hand: float) -> None:
    library = {
        "accuracy": sklearn.metrics.accuracy_score(TRUTH, ANSWERS),
        "f1": sklearn.metrics.f1_score(TRUTH, ANSWERS, pos_label="yes"),
        "macro_f1": sklearn.metrics.f1_score(TRUTH, ANSWERS, average="macro"),
        "micro_f1": sklearn.metrics.f1_score(TRUTH, ANSWERS, average="micro"),
        "matthews": sklearn.metrics.matthews_corrcoef(TRUTH, ANSWERS),
    }
    found = value(name, ANSWERS, TRUTH, NO_YES)
    assert found == pytest.approx(by_hand, abs=1e-12)
    assert found == pytest.approx(library[name], abs=1e-12)


def test_f1_is_of_the_second_choice() -> None:
    # Of "no": 4 true positives, 2 false positives, 1 false negative.
    assert value("f1", ANSWERS, TRUTH, ("yes", "no")) == pytest.approx(8 / 11)


def test_metrics_of_three_labels() -> None:
    truth, answers = list("aabbcc"), list("aabcca")
    # a: TP 2, FP 1, FN 0; b: TP 1, FP 0, FN 1; c: TP 1, FP 1, FN 1.
    assert value("macro_f1", answers, truth) == pytest.approx((4 / 5 + 2 / 3 + 2 / 4) / 3)
    assert value("micro_f1", answers, truth) == pytest.approx(4 / 6)
    # Gorodkin: (c s - sum p t) / sqrt((s^2 - sum p^2) (s^2 - sum t^2)), with s 6, c 4, p (3, 1, 2), t (2, 2, 2).
    assert value("matthews", answers, truth) == pytest.approx((24 - 12) / math.sqrt((36 - 14) * (36 - 12)))


def test_any_acceptable_label_is_right() -> None:
    judged = Judged(["yes", "no"], [("no", "yes"), ("yes",)], NO_YES)
    assert metrics["accuracy"].compute(judged) == 0.5
    assert metrics["micro_f1"].compute(judged) == 0.5


@pytest.mark.parametrize(
    ("name", "answers", "truth", "why"),
    [
        ("matthews", "nnnn", "nyny", "all answers are 'no'"),
        ("matthews", "nyny", "yyyy", "all targets are 'yes'"),
        ("matthews", "y", "y", "all targets are 'yes'"),
        ("f1", "nn", "nn", "no target and no answer is 'yes'"),
    ],
)
def test_metrics_of_labels_that_are_undefined(name: str, answers: str, truth: str, why: str) -> None:
    with pytest.raises(Undefined, match=why):
        value(name, labels(answers), labels(truth), NO_YES)


def test_one_example_with_a_label() -> None:
    assert value("accuracy", ["yes"], ["yes"]) == 1
    assert value("f1", ["yes"], ["yes"], NO_YES) == 1
    assert value("f1", ["no"], ["yes"], NO_YES) == 0
    assert value("macro_f1", ["no"], ["yes"], NO_YES) == 0


# ---- numbers ---------------------------------------------------------------------------------------------------------


def test_correlations() -> None:
    truth, answers = ["1", "2", "3", "4"], ["1", "3", "2", "10"]
    # Means 2.5 and 4: covariance sum (-1.5)(-3) + (-0.5)(-1) + (0.5)(-2) + (1.5)(6) = 13; squares 5 and 50.
    assert value("pearson", answers, truth) == pytest.approx(13 / math.sqrt(5 * 50))
    # Ranks 1 3 2 4: 1 - 6 (0 + 1 + 1 + 0) / (4 (16 - 1)).
    assert value("spearman", answers, truth) == pytest.approx(1 - 6 * 2 / 60)
    x, y = [float(t) for t in truth], [float(a) for a in answers]
    assert value("pearson", answers, truth) == pytest.approx(scipy.stats.pearsonr(x, y).statistic)
    assert value("spearman", answers, truth) == pytest.approx(scipy.stats.spearmanr(x, y).statistic)


def test_equal_values_share_the_mean_of_their_ranks() -> None:
    # Ranks 1, 2.5, 2.5, 4 and 1, 2, 3, 4: covariance 4.5, squares 4.5 and 5.
    assert value("spearman", ["0", "5", "5", "9"], ["1", "2", "3", "4"]) == pytest.approx(4.5 / math.sqrt(4.5 * 5))


@pytest.mark.parametrize("name", ["pearson", "spearman"])
@pytest.mark.parametrize(
    ("answers", "truth", "why"),
    [
        (["2", "2", "2.0"], ["1", "2", "3"], "all answers are 2"),
        (["1", "2"], ["5", "5.0"], "all targets are 5"),
        (["1"], ["1"], "there is one example only"),
        (["", ""], ["1", "2"], "all answers are -1"),
    ],
)
def test_correlations_that_are_undefined(name: str, answers: list[str], truth: list[str], why: str) -> None:
    with pytest.raises(Undefined, match=why):
        value(name, answers, truth)


def test_squared_error() -> None:
    truth, answers = ["1", "2", "3", "4"], ["1", "3", "2", "6"]
    assert value("mse", answers, truth) == pytest.approx((0 + 1 + 1 + 4) / 4)
    x, y = [float(t) for t in truth], [float(a) for a in answers]
    assert value("mse", answers, truth) == pytest.approx(sklearn.metrics.mean_squared_error(x, y))
    assert value("mse", ["3"], ["1"]) == 4


def test_answers_that_are_no_numbers_count_as_minus_one_and_are_told() -> None:
    judged = Judged(["1", "two", "nan", "4"], [(t,) for t in "1234"])
    assert metrics["pearson"].compute(judged) == pytest.approx(scipy.stats.pearsonr([1, -1, -1, 4], [1, 2, 3, 4])[0])
    assert judged.remarks == ["2 of 4 answers are no numbers, and count as -1"]


# ---- texts -----------------------------------------------------------------------------------------------------------

HYPOTHESES = ["the cat sat on the mat", "a dog"]
REFERENCES = [("the cat sat on a mat", "the cat was on the mat"), ("a dog barked",)]


def test_bleu_with_several_references() -> None:
    found = metrics["bleu"].compute(Judged(HYPOTHESES, REFERENCES))
    library = sacrebleu.corpus_bleu(HYPOTHESES, [["the cat sat on a mat", "a dog barked"], [REFERENCES[0][1], None]])
    assert found == pytest.approx(library.score / 100)
    # Clipped by the reference that has most of each: 8 of 8 words, 6 of 6 pairs but "sat on the" among triples, 8 words for 9.
    one, two = 8 / 8, 6 / 6
    three, four = 3 / 4, 1 / 3  # the cat sat, cat sat on, on the mat; the cat sat on
    assert found == pytest.approx((one * two * three * four) ** 0.25 * math.exp(1 - 9 / 8))
    assert metrics["bleu"].compute(Judged([r[0] for r in REFERENCES], REFERENCES)) == pytest.approx(1.0)


def test_rouge_l_takes_the_best_reference() -> None:
    # Longest common subsequences: 5 of 6 words with either of the first, 2 of 2 and 3 words with the last.
    assert metrics["rouge_l"].compute(Judged(HYPOTHESES, REFERENCES)) == pytest.approx((5 / 6 + 4 / 5) / 2)


def test_exact_match_takes_any_reference() -> None:
    assert metrics["exact_match"].compute(Judged(["The cat!", "dog"], [("a cat", "the cat"), ("a dog",)])) == 0.5


def test_nist() -> None:
    from nltk.translate.nist_score import corpus_nist

    found = metrics["nist"].compute(Judged(HYPOTHESES, REFERENCES))
    references = [[r.split() for r in own] for own in REFERENCES]
    assert found == pytest.approx(corpus_nist(references, [h.split() for h in HYPOTHESES], 5))
    # Four different words, each information log2(4 / 1); of every longer n-gram the information is log2(1 / 1) = 0.
    assert metrics["nist"].compute(Judged(["One two three four"], [("one two three four",)])) == pytest.approx(2.0)
    # Half as long: no word is missed, and the penalty is exp(-ln 2 / ln(3/2)^2 ln(1/2)^2).
    penalty = math.exp(-math.log(2) * (math.log(0.5) / math.log(1.5)) ** 2)
    assert metrics["nist"].compute(Judged(["one two"], [("one two three four",)])) == pytest.approx(2.0 * penalty)


@pytest.mark.parametrize("name", ["bleu", "nist", "rouge_l", "exact_match"])
def test_empty_texts_score_nothing(name: str) -> None:
    assert metrics[name].compute(Judged(["", ""], REFERENCES)) == 0
    assert metrics[name].compute(Judged([""], [("one",)])) == 0


# ---- which metrics judge a task --------------------------------------------------------------------------------------


def examples(targets: list[str], choices: tuple[str, ...] = (), parts: str = "") -> list[Example]:
    part = {"m": "matched", "x": "mismatched"}
    return [
        Example("t", f"input {i}", (target,), choices, str(i), part=part[parts[i]] if parts else "")
        for i, target in enumerate(targets)
    ]


def task(of: list[Example], *named: str) -> Task:
    return Task("t", of, of, metrics=named)


def test_the_data_name_a_tasks_metrics_and_what_is_asked_for_stands_above_them() -> None:
    two = examples(TRUTH, NO_YES)
    assert plan_task(task(two), two, None, True).names == ["accuracy"]
    assert plan_task(task(two, "matthews", "f1"), two, None, True).names == ["matthews", "f1"]
    assert plan_task(task(two, "matthews"), two, ["f1", "accuracy"], True).names == ["f1", "accuracy"]
    free = examples(["a", "b"])
    assert plan_task(task(free), free, None, True).names == ["exact_match", "rouge_l"]
    plan = plan_task(task(two), two, ["accuracy", "bleu"], True)
    assert plan.rank
    assert plan.generate
    plan = plan_task(task(two), two, ["accuracy", "bleu"], False)
    assert (plan.names, plan.rank, plan.generate) == (["accuracy"], True, False)


def test_what_a_head_gives_is_judged() -> None:
    numbers, words = examples(["1", "2.5"]), examples(["a", "b"])
    plan = plan_task(task(numbers), numbers, None, False, TaskHead("regress"))
    assert (plan.names, plan.rank, plan.generate) == (["pearson", "spearman", "mse"], True, False)
    assert plan_task(task(numbers, "pearson"), numbers, None, False, TaskHead("regress")).names == ["pearson"]
    scale = examples(["1", "2.5"], ("1", "2.5"))
    plan = plan_task(task(scale), scale, ["accuracy", "pearson"], False, TaskHead("regress"))
    assert plan.misfits == {"accuracy": "is of choices, and the task's head gives numbers"}
    assert plan.skipped == ""
    plan = plan_task(task(words), words, ["f1", "exact_match"], False, TaskHead("classify", ("a", "b")))
    assert (plan.names, plan.rank, plan.generate) == (["f1"], True, False)
    assert plan.misfits == {"exact_match": "is of texts that are generated, and an encoder cannot generate"}
    with pytest.raises(
        DataError, match="metric 'exact_match' does not fit task 't': it is of texts that are generated"
    ):
        refuse_misfits({"t": plan}, ["f1", "exact_match"])


@pytest.mark.parametrize(
    ("targets", "choices", "metric", "why"),
    [
        (["good", "bad"], (), "pearson", "needs numbers as targets, and 'good' is none"),
        (["good", "bad"], ("bad", "good"), "spearman", "needs numbers as targets, and 'good' is none"),
        (["a", "b"], ("a", "b", "c"), "f1", "is for two labels, and the task has 3: use macro_f1 or micro_f1"),
        (["a text", "b"], (), "matthews", "needs a fixed set of labels, and the task is answered in free text"),
        (["a text", "b"], (), "f1", "needs a fixed set of labels, and the task is answered in free text"),
        (
            ["a", "b"],
            ("a", "b"),
            "accuracy_matched",
            r"is for examples of the split validation_matched \(dev_matched\)",
        ),
    ],
)
def test_a_metric_that_does_not_fit_is_refused(
    targets: list[str], choices: tuple[str, ...], metric: str, why: str
) -> None:
    own = examples(targets, choices)
    plan = plan_task(task(own), own, [metric], True)
    assert plan.names == []
    with pytest.raises(DataError, match=f"^metric '{metric}' does not fit task 't': it {why}"):
        refuse_misfits({"t": plan}, [metric])


def test_choices_that_vary_by_example_are_no_label_set() -> None:
    own = [Example("t", "i", ("a",), ("a", "b")), Example("t", "j", ("c",), ("c", "d"))]
    plan = plan_task(task(own), own, ["accuracy", "macro_f1"], True)
    assert plan.names == ["accuracy"]
    assert plan.misfits == {"macro_f1": "needs a fixed set of labels, and the task's choices vary by example"}


def test_a_metric_that_fits_one_of_the_tasks_is_not_refused() -> None:
    numbers, words = examples(["1", "2"]), examples(["a", "b"])
    plans = {
        "n": plan_task(task(numbers), numbers, ["pearson"], True),
        "w": plan_task(task(words), words, ["pearson"], True),
    }
    refuse_misfits(plans, ["pearson"])
    assert plans["w"].skipped == "pearson needs numbers as targets, and 'a' is none"
    assert plans["n"].names == ["pearson"]


def test_nist_gives_no_score() -> None:
    own = examples(["a", "b"])
    plan = plan_task(task(own), own, ["nist"], True)
    assert plan.skipped == "no score can be made of nist: name a share or a correlation too"
    assert not plan.rank
    assert not plan.generate


@pytest.mark.parametrize("asked", [list(some) for n in (1, 2, 3) for some in itertools.permutations(SEVERAL, n)])
def test_the_first_metric_that_fits_and_may_be_a_score_gives_it(asked: list[str]) -> None:
    """Whatever is asked of tasks of each kind: a task is judged by all that fits and scored by one that may, or it is skipped."""
    for own in (
        examples(["a", "b"]),
        examples(TRUTH, NO_YES),
        examples(["1", "2.5"]),
        examples(["1", "2.5"], ("1", "2.5")),
    ):
        plan = plan_task(task(own), own, asked, True)
        fitting = [name for name in asked if name in plan_task(task(own), own, ["exact_match", name], True).names]
        scores = [name for name in asked if name in fitting and metrics[name].scored]
        assert plan.names[:1] == scores[:1]
        assert set(plan.names) == (set(fitting) if scores else set())
        assert bool(plan.skipped) == (not scores)
        assert (plan.rank or plan.generate) == bool(scores)


# ---- what is told of a task ------------------------------------------------------------------------------------------


def predictions(of: list[Example], answers: list[str], how: str = "ranking") -> list[Prediction]:
    return [
        Prediction("t", e.id, e.input, e.targets, answer, how, e.choices, part=e.part)
        for e, answer in zip(of, answers, strict=True)
    ]


def test_the_first_metric_gives_score_and_majority() -> None:
    own = examples(TRUTH, NO_YES)
    own_task = Task("t", own + examples(["no"], NO_YES), own, metrics=("f1", "accuracy"))
    found = measure(own_task, plan_task(own_task, own, None, True), predictions(own, ANSWERS), [])
    assert found == {
        "category": "",
        "n": 10,
        "metric": "f1",
        "score": pytest.approx(6 / 9),
        "f1": pytest.approx(6 / 9),
        "accuracy": 0.7,
        "majority": 0.0,  # always "no", of which F1 of "yes" is 0
    }


def test_an_undefined_metric_is_shown_as_0_and_told() -> None:
    own = examples(["1", "2", "3"])
    own_task = task(own, "pearson", "spearman")
    found = measure(own_task, plan_task(own_task, own, None, True), [], predictions(own, ["2", "2", "2"], "generation"))
    assert (found["score"], found["pearson"], found["spearman"], found["majority"]) == (0, 0, 0, 0)
    assert found["remarks"] == [
        "pearson: undefined, shown as 0: all answers are 2",
        "spearman: undefined, shown as 0: all answers are 2",
    ]


def test_matched_and_mismatched_genres_are_judged_apart() -> None:
    own = examples(labels("yynny"), NO_YES, parts="mxmxx")
    named = ("accuracy_matched", "accuracy_mismatched")
    plan = plan_task(task(own, *named), own, None, True)
    found = measure(task(own, *named), plan, predictions(own, labels("yyyyn")), [])
    assert found["accuracy_matched"] == found["score"] == 1 / 2
    assert found["accuracy_mismatched"] == 1 / 3
    matched = [e for e in own if e.part == "matched"]
    plan = plan_task(task(own, *named), matched, None, True)
    found = measure(task(own, *named), plan, predictions(matched, labels("yn")), [])
    assert found["score"] == 1
    assert "accuracy_mismatched" not in found
    assert found["remarks"] == [
        "accuracy_mismatched is for examples of the split validation_mismatched (dev_mismatched), and the task has none of them"
    ]


@pytest.mark.parametrize("name", ["mse", "pearson", "spearman"])
@pytest.mark.parametrize("answer", ["1" * 300, "9" * 120, "-1e308", "1e200", "inf", "nan"])
def test_an_answer_too_large_to_square_is_no_number(name: str, answer: str) -> None:
    """A mean over tasks is finite, and JSON can hold it."""
    judged = Judged([answer, "1", "3"], [("1",), ("2",), ("3",)])
    assert metrics[name].compute(judged) == value(name, ["-1", "1", "3"], ["1", "2", "3"])
    assert judged.remarks == ["1 of 3 answers are no numbers, and count as -1"]
    assert plan_task(Task("t"), [Example("t", "a", (answer,))], [name], True).misfits == {
        name: f"needs numbers as targets, and {answer!r:.60} is none"
    }


@pytest.mark.parametrize("references", [[""], ["", " "], ["\u200b\n"]])
@pytest.mark.parametrize("name", [name for name, metric in metrics.items() if metric.judges == TEXT])
def test_references_without_a_word_score_nothing(name: str, references: list[str]) -> None:
    predictions = [Prediction("t", "1", "q", tuple(references), "a b", "generation")]
    assert measure(Task("t"), Plan([name]), [], predictions)[name] == 0
