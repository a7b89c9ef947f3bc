"""Write data/demo_study.csv: 20 self-made questions under three conditions. The same seed always writes the same file.

python data/make_demo_study.py
"""

# ruff: noqa: INP001, S311 - a script, and chance without secrecy

import csv
import random
from pathlib import Path

SEED = 20261123
MODEL = "claude-sonnet-5-5"
QUESTIONS = (
    "A library lends {a} books on Monday and twice as many on Tuesday. How many books does it lend on both days together?",
    "A train has {a} seats. {b} of them are taken. How many seats are free?",
    "{b} friends share the cost of a boat trip. Each pays {a} euros. What does the trip cost?",
    "A baker makes {a} rolls and puts {b} into each bag. How many rolls are left over?",
    "A garden is {a} metres long and {b} metres wide. How long is the fence around it?",
    "A lamp uses {b} watts. How many watt-hours does it use in {a} hours?",
    "Ada had {a} stamps, gave {b} away and then found 12 more. How many stamps does she have?",
    "A film starts at 18:00 and lasts {a} minutes. At what time does it end?",
    "A tank holds {a} litres, and {b} litres flow out every hour. How many whole hours does it last?",
    "What is larger: {b} times 7, or {a}?",
)
EXAMPLES = (
    ("A box holds 6 eggs. How many eggs are in 4 boxes?", "24"),
    ("Max has 15 pens and loses 4. How many pens does he have?", "11"),
    ("A path is 90 metres long, and every 10 metres stands a bench, also at both ends. How many benches are there?", "10"),
)
SHOTS = "\n\n".join(f"Question: {question}\nAnswer: {answer}" for question, answer in EXAMPLES)
CONDITIONS = {
    "zero-shot": ("{question} Answer with the result only.", 64),
    "few-shot": (SHOTS + "\n\nQuestion: {question}\nAnswer:", 64),
    "chain-of-thought": ("{question} Think step by step, then give the result in the last line.", 512),
}


def questions() -> list[str]:
    """Each template twice, with other numbers."""
    chance = random.Random(SEED)
    return [text.format(a=chance.randint(60, 150), b=chance.randint(7, 45)) for text in QUESTIONS * 2]


def main() -> None:
    """Write the file beside this script."""
    with Path(__file__).with_name("demo_study.csv").open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(["item", "condition", "model", "prompt", "max_tokens"])
        for number, question in enumerate(questions(), start=1):
            for condition, (prompt, max_tokens) in CONDITIONS.items():
                table.writerow([f"q{number:02}", condition, MODEL, prompt.format(question=question), max_tokens])


if __name__ == "__main__":
    main()
