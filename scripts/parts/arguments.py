"""What is checked of every script's options before any work is done."""

import dataclasses
import math
from pathlib import Path
from typing import Any


def check(options: Any, **least: float) -> None:
    """Raise ValueError, in one sentence, where an option is wrong: a number below its least or not
    finite, none where there should be some, a folder to write that is a file.

    `options` is a dataclass; of an option that takes several numbers each is looked at.
    """
    for field in dataclasses.fields(options):
        value, flag = getattr(options, field.name), "--" + field.name.replace("_", "-")
        several = value if isinstance(value, tuple) else (value,)
        if not several:
            raise ValueError(f"{flag} is empty, expected at least one")
        for each in several:
            if isinstance(each, float) and not math.isfinite(each):
                raise ValueError(f"{flag} is {each}, expected a finite number")
            if field.name in least and each is not None and each < least[field.name]:
                raise ValueError(f"{flag} is {each}, expected at least {least[field.name]}")
        if field.name == "write" and isinstance(value, Path) and value.is_file():
            raise ValueError(f"{flag} is {value}, a file, expected a folder")
