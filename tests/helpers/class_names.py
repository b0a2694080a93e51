"""What texts mean as classes: one rule for Python, the browser and the C++ program."""

from __future__ import annotations

LABELS = ("7", "3", "cat, house cat", "Dog", "dog", "12", "-4")
RULE: list[tuple[str, int | str]] = [
    ("3", 3),  # the class called 3 is another
    ("label:3", 1),
    (" label: 3 ", 1),
    ("7", 0),  # there is no eighth class, but one called so
    ("12", 5),
    ("-4", 6),
    ("-1", -1),
    ("0", 0),
    ("06", 6),
    ("+2", 2),
    (" 2 ", 2),
    ("House Cat", 2),
    ("dog", 4),
    ("Dog", 3),
    ("label:dog", 4),
    ("DOG", "several classes"),
    ("99", "here is no class 99"),
    ("-2", "here is no class -2"),
    ("9" * 30, "here is no class 999"),
    ("9" * 5000, "here is no class 999"),
    ("label:9", "o class is called"),
    ("2.0", "o class is called"),
    ("1e0", "o class is called"),
    ("0x1", "o class is called"),
    ("²", "o class is called"),
    ("label:", "o class is called"),
]
