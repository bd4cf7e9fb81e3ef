"""A small collection in the nine layouts of GLUE: ten rows a task, of sentences of our own. Some hold a quote that nothing closes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets

from mhr.data.forms.glue import GLUE

TRAIN = 6
"""Rows of a task to train on; the others are for validation, those of MNLI matched and mismatched in turn."""

FOLDERS = {
    "cola": "CoLA",
    "sst2": "SST-2",
    "mrpc": "MRPC",
    "qqp": "QQP",
    "stsb": "STS-B",
    "mnli": "MNLI",
    "qnli": "QNLI",
    "rte": "RTE",
    "wnli": "WNLI",
}

ROWS: dict[str, list[tuple[Any, ...]]] = {
    "cola": [
        ("The kettle whistled all morning.", 1),
        ("The kettle whistle all mornings the.", 0),
        ("Who did Ann say that left early?", 0),
        ("Ann said that they left early.", 1),
        ("She gave the key to her neighbour.", 1),
        ('"Stop, he shouted at the bus.', 1),
        ("He donated the library a book which.", 0),
        ("The more it rains, the slower we walk.", 1),
        ("It seems the garden to be flooded.", 0),
        ("Three of the lamps are broken.", 1),
    ],
    "sst2": [
        ("a warm and funny film about bakers", 1),
        ("dull from its first minute to its last", 0),
        ("the songs alone are worth the ticket", 1),
        ("nobody in it seems to want to be there", 0),
        ('an ending so clever that i clapped "twice', 1),
        ("two hours of shouting in the dark", 0),
        ("tender, patient and beautifully shot", 1),
        ("a plot held together with tape", 0),
        ("it made my grandmother laugh aloud", 1),
        ("wooden dialogue, worse wigs", 0),
    ],
    "mrpc": [
        ("The mill closed in May after a fire.", "After a fire, the mill was closed in May.", 1),
        ("The mayor opened the bridge on Monday.", "The mayor will sell the bridge.", 0),
        ('"We lost our keys, the guard said.', "The guard said that they had lost their keys.", 1),
        ("Rain delayed the ferry by an hour.", "The ferry left an hour late because of rain.", 1),
        ("The team won its third match.", "The team lost its second match.", 0),
        ("Prices of flour rose by a tenth.", "Flour became a tenth more expensive.", 1),
        ("The school has two hundred pupils.", "The school hired two hundred teachers.", 0),
        ("A whale was seen near the harbour.", "Near the harbour, people saw a whale.", 1),
        ("The train stops in both villages.", "The train passes neither village.", 0),
        ("Her novel was printed in Porto.", "Porto is where her novel was printed.", 1),
    ],
    "qqp": [
        ("How do I boil an egg?", "What is the way to boil an egg?", 1),
        ("How do I boil an egg?", "How do I peel an egg?", 0),
        ("Where can I learn to sail?", "Which places teach sailing?", 1),
        ("Is glass a liquid?", "Is glass made of sand?", 0),
        ('What does "hygge mean?', "What is the meaning of hygge?", 1),
        ("Why do cats purr?", "Why do cats scratch?", 0),
        ("How long is a marathon?", "What is the length of a marathon?", 1),
        ("How can I sleep better?", "How can I sing better?", 0),
        ("What makes bread rise?", "Why does bread rise?", 1),
        ("Who built the first clock?", "Who repaired the first clock?", 0),
    ],
    "stsb": [
        ("A man plays a drum.", "A man is playing a drum.", 5.0),
        ("A woman cuts an onion.", "A woman slices an onion.", 4.2),
        ("A dog runs on the beach.", "A dog sleeps on a sofa.", 1.4),
        ("Two boys kick a ball.", "The stock market fell.", 0.0),
        ('A sign says "open in red.', "A red sign says open.", 4.75),
        ("A cat drinks milk.", "A kitten is drinking milk.", 3.8),
        ("Someone peels a potato.", "Someone peels a carrot.", 2.4),
        ("A plane lands.", "An aeroplane is landing.", 4.8),
        ("A girl writes a letter.", "A girl reads a letter.", 2.0),
        ("The lake is frozen.", "A bus turns left.", 0.2),
    ],
    "mnli": [
        ("Somebody rode a bicycle.", "She cycled to the market at dawn.", 0),
        ("The market was closed.", "She cycled to the market at dawn.", 1),
        ("She has never cycled.", "She cycled to the market at dawn.", 2),
        ("The roof was repaired.", 'He wrote "fixed in his notes about the roof.', 0),
        ("It was repaired by two men.", "He fixed the roof in April.", 1),
        ("The roof is still broken.", "He fixed the roof in April.", 2),
        ("There is a well.", "The well behind the church is dry.", 0),
        ("A well is full of water.", "The well behind the church is dry.", 2),
        ("The church is white.", "The well behind the church is dry.", 1),
        ("Water is missing somewhere.", "The well behind the church is dry.", 0),
    ],
    "qnli": [
        ("When was the tower built?", "The tower was built in 1820 by monks.", 0),
        ("Who paid for the tower?", "The tower was built in 1820 by monks.", 1),
        ("What do otters eat?", "Otters live on fish and crabs.", 0),
        ("How old do otters get?", "Otters live on fish and crabs.", 1),
        ("Where is the museum?", 'The museum "of salt stands by the old mine.', 0),
        ("When does the museum open?", "The museum stands by the old mine.", 1),
        ("How many strings has a lute?", "A lute has between six and twenty strings.", 0),
        ("Who invented the lute?", "A lute has between six and twenty strings.", 1),
        ("What is the river called?", "The river is called the Ister by its fishermen.", 0),
        ("How deep is the river?", "The river is called the Ister by its fishermen.", 1),
    ],
    "rte": [
        ("The ship sank in a storm off Malta.", "A ship sank.", 0),
        ("The ship sank in a storm off Malta.", "Malta sank.", 1),
        ("Lena teaches chemistry in Graz.", "Lena is a teacher.", 0),
        ("Lena teaches chemistry in Graz.", "Lena was born in Graz.", 1),
        ('The paper called it "a triumph of glass.', "A paper praised it.", 0),
        ("The paper called it a triumph.", "The paper is made of glass.", 1),
        ("All nine bridges were rebuilt.", "Bridges were rebuilt.", 0),
        ("All nine bridges were rebuilt.", "A tenth bridge was rebuilt.", 1),
        ("The vote was won by four seats.", "Someone won a vote.", 0),
        ("The vote was won by four seats.", "The vote was repeated.", 1),
    ],
    "wnli": [
        ("The jug would not fit on the shelf as it was too tall.", "The jug was too tall.", 1),
        ("The jug would not fit on the shelf as it was too tall.", "The shelf was too tall.", 0),
        ("Eva thanked Ida for the help she had given.", "Ida had given help.", 1),
        ("Eva thanked Ida for the help she had given.", "Eva had given help.", 0),
        ('Tom told Jan "that he had won.', "Somebody had won.", 1),
        ("The hammer broke the plate because it was thin.", "The hammer was thin.", 0),
        ("The hammer broke the plate because it was thin.", "The plate was thin.", 1),
        ("Ben lent Leo a coat since he was cold.", "Ben was cold.", 0),
        ("Ben lent Leo a coat since he was cold.", "Leo was cold.", 1),
        ("The pond froze over the path since it was low.", "The pond was a path.", 0),
    ],
}
"""Task -> rows: the texts in the order of `GLUE`, then the label as its datasets have it."""

HEADERS = {
    "sst2": "sentence label",
    "qqp": "id qid1 qid2 question1 question2 is_duplicate",
    "stsb": "index genre filename year old_index source1 source2 sentence1 sentence2 score",
    "qnli": "index question sentence label",
    "rte": "index sentence1 sentence2 label",
    "wnli": "index sentence1 sentence2 label",
}
MRPC_HEADER = ["Quality", "#1 ID", "#2 ID", "#1 String", "#2 String"]
MNLI_TREES = ["sentence1_binary_parse", "sentence2_binary_parse", "sentence1_parse", "sentence2_parse"]
MNLI_HEADER = ["index", "promptID", "pairID", "genre", *MNLI_TREES, "sentence1", "sentence2"]


def rows_of(task: str) -> list[dict[str, Any]]:
    """The rows of a task with the columns of its dataset."""
    columns = [*GLUE[task].texts, "label"]
    return [{**dict(zip(columns, row, strict=True)), "idx": i} for i, row in enumerate(ROWS[task])]


def splits_of(task: str) -> dict[str, list[dict[str, Any]]]:
    """Split -> rows, as the dataset calls them."""
    rows = rows_of(task)
    if task != "mnli":
        return {"train": rows[:TRAIN], "validation": rows[TRAIN:]}
    return {
        "train": rows[:TRAIN],
        "validation_matched": rows[TRAIN::2],
        "validation_mismatched": rows[TRAIN + 1 :: 2],
    }


def write_glue(folder: Path) -> Path:
    """The collection as GLUE's authors lay it out, with test files without labels."""
    for task, name in FOLDERS.items():
        (folder / name).mkdir(parents=True)
        for split, rows in splits_of(task).items():
            lines = _lines(task, rows, labelled=True, training=split == "train")
            _write(folder / name / f"{split.replace('validation', 'dev')}.tsv", lines)
        for test in ("test_matched", "test_mismatched") if task == "mnli" else ("test",):
            _write(folder / name / f"{test}.tsv", _lines(task, rows_of(task)[TRAIN:], labelled=False, training=False))
    return folder


def _write(file: Path, lines: list[list[str]]) -> None:
    file.write_text("".join("\t".join(line) + "\n" for line in lines), "utf-8-sig" if "MRPC" in str(file) else "utf-8")


def _lines(task: str, rows: list[dict[str, Any]], *, labelled: bool, training: bool) -> list[list[str]]:
    texts = GLUE[task].texts
    if not labelled and task not in ("mnli", "mrpc"):
        return [["index", *texts], *([str(row["idx"]), *(row[t] for t in texts)] for row in rows)]
    if task == "cola":
        return [["gj04", str(row["label"]), "" if row["label"] else "*", row["sentence"]] for row in rows]
    if task == "mrpc":
        first = "Quality" if labelled else "index"
        body = [[str(r["label"]), "11", "12", r["sentence1"], r["sentence2"]] for r in rows]
        return [[first, *MRPC_HEADER[1:]], *body]
    if task == "mnli":
        votes = ["label1"] if training else [f"label{i}" for i in range(1, 6)]
        head = [*MNLI_HEADER, *([*votes, "gold_label"] if labelled else [])]
        body = []
        for r in rows:
            label = GLUE["mnli"].labels[r["label"]]
            named = [*[label] * len(votes), label] if labelled else []
            body.append([str(r["idx"]), "1", "1e", "letters", *["( tree )"] * 4, r["premise"], r["hypothesis"], *named])
        return [head, *body]
    header = HEADERS[task].split()
    written = []
    for row in rows:
        own = {**row, "is_duplicate": row["label"], "score": f"{float(row['label']):.3f}", "index": row["idx"]}
        if GLUE[task].labels and task in ("qnli", "rte"):  # these files hold names
            own["label"] = GLUE[task].labels[row["label"]]
        written.append([str(own.get(column, "none")) for column in header])
    return [header, *written]


def write_jsonl(folder: Path, *, names: bool) -> Path:
    """TASK_SPLIT.jsonl with the columns of the datasets; labels by name or index."""
    folder.mkdir()
    for task in FOLDERS:
        for split, rows in splits_of(task).items():
            labels = GLUE[task].labels
            made = [{**r, "label": labels[r["label"]]} if names and labels else r for r in rows]
            (folder / f"{task}_{split}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in made))
    return folder


def save_dataset(folder: Path, task: str) -> Path:
    """A task as its dataset, in a folder that `save_to_disk` writes, with a test split whose labels are withheld."""
    labels = GLUE[task].labels
    kind = datasets.ClassLabel(names=list(labels)) if labels else datasets.Value("float32")
    features = {
        **{t: datasets.Value("string") for t in GLUE[task].texts},
        "label": kind,
        "idx": datasets.Value("int32"),
    }
    splits = splits_of(task)
    withheld = [{**row, "label": -1} for row in rows_of(task)[:2]]
    splits |= {"test_matched": withheld, "test_mismatched": withheld} if task == "mnli" else {"test": withheld}
    made = {split: datasets.Dataset.from_list(rows, datasets.Features(features)) for split, rows in splits.items()}
    datasets.DatasetDict(made).save_to_disk(folder / f"glue-{task}")
    return folder / f"glue-{task}"
