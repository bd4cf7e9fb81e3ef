"""The claims of the paper, see claims.py. Each side of a question is "VARIANT ROW" of what paper_plan.py makes."""

from __future__ import annotations

from mhr.analysis.verdicts import GAIN, SAME, Question

from .claims import Claim

CLAIMS = (
    Claim(
        1,
        "MHR reaches a lower loss on unseen examples of its training tasks than a shared LoRA of the same rank",
        (
            Question("MHR below a shared LoRA, equal steps", "mhr loss", "lora loss", GAIN, None, True),
            Question(
                "MHR below a shared LoRA, equal FLOPs", "mhr loss at budget", "lora loss at budget", GAIN, None, True
            ),
        ),
        (
            Question("Poly below a shared LoRA, equal steps", "poly loss", "lora loss", GAIN, None, True),
            Question("MHR below Poly, equal steps", "mhr loss", "poly loss", GAIN, None, True),
            Question(
                "MHR below a shared LoRA of as many parameters, equal steps", "mhr loss", "wide loss", GAIN, None, True
            ),
            Question("MHR below a bank without routing, equal steps", "mhr loss", "uniform loss", GAIN, None, True),
        ),
    ),
    Claim(
        2,
        "After multi-task pretraining, few-shot adaptation to held-out tasks is better with MHR than with a shared LoRA of either size and with Poly",
        (
            Question("MHR above a shared LoRA of the same rank", "mhr mhr", "lora lora"),
            Question("MHR above a shared LoRA of as many parameters", "mhr mhr", "wide lora"),
            Question("MHR above Poly", "mhr mhr", "poly mhr"),
        ),
        (
            Question("Poly above a shared LoRA of the same rank", "poly mhr", "lora lora"),
            Question("Poly above a shared LoRA of as many parameters", "poly mhr", "wide lora"),
        ),
    ),
    Claim(
        3,
        "MHR-mu, which adapts the average of the bank, adapts as well as MHR (within 2 points)",
        (Question("MHR-mu within 2 points of MHR", "mhr mu", "mhr mhr", SAME),),
        (
            Question("MHR above a bank pretrained without routing", "mhr mhr", "uniform mhr"),
            Question("MHR above a bank pretrained under fixed random routing", "mhr mhr", "random mhr"),
            Question("MHR-z, which trains the routing alone, within 5 points of MHR", "mhr z", "mhr mhr", SAME, 0.05),
        ),
    ),
    Claim(
        4,
        "Zero-shot, MHR whose average is trained for some more steps is above a shared LoRA that is trained for as many more",
        (Question("MHR-mu above a shared LoRA of the same rank", "mhr further zero-shot", "lora further zero-shot"),),
        (
            Question("MHR-mu above MHR routed uniformly, without such steps", "mhr further zero-shot", "mhr zero-shot"),
            Question("A shared LoRA above itself without such steps", "lora further zero-shot", "lora zero-shot"),
            Question(
                "MHR routed uniformly above a shared LoRA, both without such steps", "mhr zero-shot", "lora zero-shot"
            ),
        ),
    ),
)
