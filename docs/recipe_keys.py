"""Writes the tables of docs/training.md that list every entry of a recipe, from the classes that check recipes.

python docs/recipe_keys.py           rewrites the block between the two markers
python docs/recipe_keys.py --check   exits with 1 if the block is out of date
"""

from __future__ import annotations

import sys
import types
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from leanconv.train.recipe import Recipe
from leanconv.train.schedule import SCHEDULES

PAGE = Path(__file__).parent / "training.md"
BEGIN, END = "<!-- recipe: begin (docs/recipe_keys.py) -->", "<!-- recipe: end -->"


def tables() -> str:
    """One table for the recipe itself, one for each of its sections, one for the schedules' arguments."""
    parts = [table(Recipe)]
    for name, entry in Recipe.model_fields.items():
        section = section_of(entry.annotation)
        if section is not None:
            parts += [f"#### {name}", paragraph(section), table(section)]
    parts += ["#### schedule_args", "By the recipe's `schedule`; others are refused."]
    rows = [f"| `{name}` | {paragraph(kind)} | {arguments(kind)} |" for name, kind in SCHEDULES.items()]
    parts.append("\n".join(["| schedule | factor of the learning rate | entries |", "|---|---|---|", *rows]))
    return "\n\n".join(parts)


def table(section: type[BaseModel]) -> str:
    rows = [
        f"| `{key}` | {kind(field.annotation, field)} | {default(field)} | {described(field)} |"
        for key, field in section.model_fields.items()
    ]
    return "\n".join(["| entry | value | default | meaning |", "|---|---|---|---|", *rows])


def paragraph(section: type[BaseModel]) -> str:
    """The section's docstring as Markdown."""
    return " ".join((section.__doc__ or "").split()).replace("``", "`").replace(":func:", "")


def arguments(section: type[BaseModel]) -> str:
    """Every entry in a line."""
    entries = [
        f"`{key}`" + (f" ({', '.join(filter(None, (default(field), described(field))))})")
        for key, field in section.model_fields.items()
    ]
    return ", ".join(entries)


def section_of(annotation: Any) -> type[BaseModel] | None:
    """The section that an entry holds, if it holds one."""
    kinds = (annotation, *get_args(annotation))
    return next((k for k in kinds if isinstance(k, type) and issubclass(k, BaseModel)), None)


def kind(annotation: Any, field: FieldInfo) -> str:
    """What may stand there, in words."""
    if section_of(annotation) is not None:
        return "a section, below"
    if get_origin(annotation) in (Union, types.UnionType):
        return kind(next(k for k in get_args(annotation) if k is not type(None)), field)
    if get_origin(annotation) is Literal:
        return ", ".join(f"`{value}`" for value in get_args(annotation))
    words = {bool: "true or false", int: "whole number", float: "number", str: "text"}
    if annotation in words:
        return " ".join(filter(None, (words[annotation], bounds(field))))
    origin = get_origin(annotation)
    if origin in (list, tuple):
        inner = {float: "numbers", int: "whole numbers", str: "texts"}[get_args(annotation)[0]]
        return f"[{', '.join(['number'] * len(get_args(annotation)))}]" if origin is tuple else f"list of {inner}"
    if origin is dict:
        return "entries"
    raise TypeError(f"no words for {annotation}")


def bounds(field: FieldInfo) -> str:
    """``> 0, < 1``."""
    signs = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}
    found = [
        f"{sign} {getattr(bound, name):g}"
        for bound in field.metadata
        for name, sign in signs.items()
        if getattr(bound, name, None) is not None
    ]
    return ", ".join(found)


def default(field: FieldInfo) -> str:
    value = field.get_default(call_default_factory=True, validated_data={})
    if value is PydanticUndefined:
        return "needed"
    if value is None or isinstance(value, BaseModel) or value == {} or value == []:
        return ""
    text = str(value).lower() if isinstance(value, bool) else f"{value:g}" if isinstance(value, float) else str(value)
    return f"`{text}`"


def described(field: FieldInfo) -> str:
    return (field.description or "").replace("|", "\\|")


def filled(page: str) -> str:
    """docs/training.md with the block renewed."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise SystemExit(f"{PAGE.name} lacks the markers {BEGIN} and {END}")
    return f"{before}{BEGIN}\n{tables()}\n{END}{after}"


def main() -> None:
    old = PAGE.read_text(encoding="utf-8")
    new = filled(old)
    if "--check" in sys.argv[1:]:
        if new != old:
            raise SystemExit("the tables of docs/training.md are out of date: python docs/recipe_keys.py")
        return
    PAGE.write_text(new, encoding="utf-8")


if __name__ == "__main__":
    main()
