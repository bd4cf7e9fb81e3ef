"""What is asked of AdaMix, see claims.py: sides are methods of adamix_plan.py."""

from __future__ import annotations

from mhr.analysis.verdicts import SAME, Question

from .claims import Claim

ONE, SHARED = "one bottleneck", "AdaMix, up shared"

CLAIMS = (
    Claim(
        1,
        "AdaMix with the up projection shared is above one bottleneck of the size that it is served with",
        (Question("AdaMix, up shared, above one bottleneck", SHARED, ONE),),
        (
            Question("AdaMix, up shared, within 2 points of one bottleneck", SHARED, ONE, SAME),
            Question(
                "AdaMix, up shared, above one bottleneck of as many passes",
                SHARED,
                "one bottleneck, twice the steps",
            ),
            Question("AdaMix, up shared, above a LoRA of as many parameters", SHARED, "LoRA"),
            Question("AdaMix, up shared, above full fine-tuning", SHARED, "full fine-tuning"),
        ),
    ),
    Claim(
        2,
        "Its parts matter: consistency, and sharing the up projection",
        (Question("Consistency above none", SHARED, "AdaMix, up shared, no consistency"),),
        (Question("The up projection shared above nothing shared", SHARED, "AdaMix, nothing shared"),),
    ),
)
