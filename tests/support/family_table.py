"""The README's table of models, made from the table of families."""

from dit_accel.accel.comfy.families import FAMILIES


def family_table() -> str:
    """Markdown: one line for each family."""
    rows = [f"| {family.name} | {family.note} |" for family in FAMILIES.values()]
    return "\n".join(["| model | |", "|---|---|", *rows])


if __name__ == "__main__":
    print(family_table())
