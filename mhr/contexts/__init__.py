"""What is known of a task as a vector: embeddings of definitions and of shots, for routers that compute routing from them."""

from __future__ import annotations

from mhr.contexts.encoders import Encoder, encoder_of
from mhr.contexts.tasks import (
    attach_to_tasks,
    check_context,
    embed_task,
    embed_tasks,
    embeds,
    give_contexts,
    give_examples,
    set_apart,
)

__all__ = [
    "Encoder",
    "attach_to_tasks",
    "check_context",
    "embed_task",
    "embed_tasks",
    "embeds",
    "encoder_of",
    "give_contexts",
    "give_examples",
    "set_apart",
]
