"""What training minimises, one file for each kind of model and way of training it.

An objective is all that such a way needs: how examples become a batch (`collator`), what its losses are summed over (`count`),
the losses of a batch (a call), which tasks it can learn, and what holds of its kind of model. A new one is one file here, a
registered subclass of `Objective`, and a line in this one.

seq2seq   an encoder-decoder learns to say the target                  seq2seq-choices  ... and to prefer it to the other choices
causal    a decoder learns to say the target after the prompt          causal-choices   ... and to prefer it to the other choices
ranking   an encoder learns to score the right (input, choice) pair highest
heads     a model with heads learns classes, numbers, and pairs, each task by its own head
masked    a masked language model learns to say the right choice's word at the mask of a prompt
"""

from mhr.objectives import causal, choices, classification, masked, ranking, seq2seq  # registers them
from mhr.objectives.objective import Distributions, Objective, PassLosses, make_objective, objective_of, objectives

__all__ = [
    "Distributions",
    "Objective",
    "PassLosses",
    "causal",
    "choices",
    "classification",
    "make_objective",
    "masked",
    "objective_of",
    "objectives",
    "ranking",
    "seq2seq",
]
