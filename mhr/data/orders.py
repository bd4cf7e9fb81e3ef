"""Built-in instruction tasks in chat form: messages to a shop, and what its staff writes down about them. Seeded, without files.

A task asks for one field of a message in one house style, and its name joins the two ("city-ledger"):

    field   customer city product order date
    style   ledger  CITY = Oslo;        tag  <city:OSLO>        record  {"city": "Oslo"}        reply  The city is Oslo.

Two more tasks ask for the topic of a message and for its urgency, with choices. No style is explained in the instruction: a model has
to learn what "ledger style" is. Three compositions are held out, whose field and style other tasks teach.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from functools import lru_cache
from itertools import islice

from mhr.data.example import Example, Task, TaskCollection

CUSTOMERS = (
    "Amara Diallo", "Ben Whitlock", "Chiara Rossi", "Dmitri Volkov", "Elena Marsh", "Farid Haddad", "Greta Lund", "Hiro Tanaka",
    "Ines Carvalho", "Jonas Weber", "Keisha Brown", "Liam Doyle", "Mina Park", "Noah Fischer", "Olga Petrova", "Priya Nair",
)  # fmt: skip
CITIES = (
    "Oslo", "Lisbon", "Toronto", "Nairobi", "Osaka", "Prague", "Dublin", "Lima", "Vienna", "Perth", "Hanoi", "Chicago", "Ghent", "Turin",
)  # fmt: skip
PRODUCTS = (
    "desk lamp", "coffee grinder", "rain jacket", "bookshelf", "phone case", "garden hose", "yoga mat", "wall clock", "water bottle",
    "kitchen chair", "bread knife", "wool blanket", "tea kettle", "bike light",
)  # fmt: skip
MONTHS = ("January", "March", "April", "May", "June", "August", "October", "December")

TOPICS = {
    "delay": ("It still has not arrived.", "I have been waiting for it for two weeks.", "The parcel seems to be stuck somewhere."),
    "damage": ("It arrived broken.", "One side of it is badly scratched.", "It stopped working after a day."),
    "refund": ("I would like my money back.", "Please cancel it and repay what I paid.", "I was charged twice for it."),
    "change": ("Could you send a larger one instead?", "I need it in another colour.", "Please change the address on it."),
}  # fmt: skip
URGENCIES = {
    "low": ("There is no hurry.", "Whenever you find the time is fine.", "Take your time with this."),
    "high": ("I need an answer today!", "Please treat this as urgent.", "This cannot wait any longer."),
}
OPENINGS = (
    "Hello, this is {customer} from {city}. I ordered a {product} on {date}, order {order}.",
    "On {date} I bought a {product} (order {order}). My name is {customer} and I live in {city}.",
    "Order {order}: a {product} for {customer}, to be sent to {city}, bought on {date}.",
    "Hi, {customer} here. My {product} was to come to {city}; I paid for it on {date}. The order is {order}.",
)

FIELDS = ("customer", "city", "product", "order", "date")
STYLES: dict[str, Callable[[str, str], str]] = {
    "ledger": lambda field, value: f"{field.upper()} = {value};",
    "tag": lambda field, value: f"<{field}:{value.upper()}>",
    "record": lambda field, value: json.dumps({field: value}),
    "reply": lambda field, value: f"The {field} is {value}.",
}
LABELS = {"topic": tuple(TOPICS), "urgency": tuple(URGENCIES)}
HELD_OUT = ("city-record", "product-ledger", "date-tag")


def orders_suite(seed: int = 0, train_per_task: int = 200, test_per_task: int = 100) -> TaskCollection:
    """The tasks as a collection, each example a conversation of one user turn and one assistant turn.

    The messages of a task's "test" examples never occur among its "train" examples.
    """
    return TaskCollection(list(_suite(seed, train_per_task, test_per_task)), "builtin:orders")


@lru_cache(maxsize=2)
def _suite(seed: int, train_per_task: int, test_per_task: int) -> tuple[Task, ...]:
    names = [f"{field}-{style}" for field in FIELDS for style in STYLES]
    tasks = []
    for name in sorted([*names, *LABELS], key=lambda name: name in HELD_OUT):
        examples = _draw(name, seed)
        test, train = list(islice(examples, test_per_task)), list(islice(examples, train_per_task))
        category = name.rpartition("-")[2] if name in names else "label"
        choices = LABELS.get(name, ())
        tasks.append(Task(name, train, test, name in HELD_OUT, category, choices, definition=_question(name)))
    return tuple(tasks)


def _question(task: str) -> str:
    """What a task asks of a message."""
    choices = LABELS.get(task, ())
    if choices:
        return f"What is the {task} of this message: {', '.join(choices[:-1])} or {choices[-1]}?"
    field, _, style = task.partition("-")
    return f"Find the {field} in this message and write it in {style} style."


def _draw(task: str, seed: int) -> Iterator[Example]:
    """Examples of one task, no message twice."""
    rng = random.Random(f"{task}/{seed}")
    choices, seen = LABELS.get(task, ()), set[str]()
    while True:
        message, facts = _message(rng)
        if message in seen:
            continue
        seen.add(message)
        if choices:
            answer = facts[task]
        else:
            field, _, style = task.partition("-")
            answer = STYLES[style](field, facts[field])
        text = f"{_question(task)}\n\n{message}"
        turns = ({"role": "user", "content": text}, {"role": "assistant", "content": answer})
        yield Example(task, text, (answer,), choices, f"{task}-{len(seen)}", turns)


def _message(rng: random.Random) -> tuple[str, dict[str, str]]:
    """A message, and what it says."""
    facts = {
        "customer": rng.choice(CUSTOMERS),
        "city": rng.choice(CITIES),
        "product": rng.choice(PRODUCTS),
        "order": f"{rng.choice('ABCDEFGHK')}-{rng.randint(1000, 9999)}",
        "date": f"{rng.randint(1, 28)} {rng.choice(MONTHS)}",
        "topic": rng.choice(list(TOPICS)),
        "urgency": rng.choice(list(URGENCIES)),
    }
    parts = (
        rng.choice(OPENINGS).format(**facts),
        rng.choice(TOPICS[facts["topic"]]),
        rng.choice(URGENCIES[facts["urgency"]]),
    )
    return " ".join(parts), facts
