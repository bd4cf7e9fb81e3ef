"""How the input of an instance follows the definition of its task."""

from __future__ import annotations

DEFINITION_FORMS = ("plain", "published")
"""Forms of `after_definition`."""


def after_definition(form: str, head: str, text: str) -> str:
    """What a model reads of an input, where `head` stands before it; "" leaves the input as it is.

    plain       the head, an empty line, "Input: ...", "Output:"
    published   as MHR was trained on Super-NaturalInstructions (arXiv 2211.03831): the head is a definition and is called one
    """
    if not head:
        return text
    if form == "published":
        return f"Task definition: {head}\nNow complete the following example -\nInput: {text}\nOutput:"
    return f"{head}\n\nInput: {text}\nOutput:"
