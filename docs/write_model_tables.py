"""Write the tables of docs/models.md from the registered variants: python docs/write_model_tables.py."""

import re
from pathlib import Path
from urllib.parse import urlsplit

from mambaout_jax.models import Family, families
from mambaout_jax.models.macs import variant_costs

PAGE = Path(__file__).parent / "models.md"


def update(page: str) -> str:
    """Return the page with every table between `<!-- table FAMILY -->` and `<!-- end -->` written again.

    Raises:
        ValueError: the page lacks a family, or has an unknown one.
    """
    tables = {family.name: _table(family) for family in families()}
    names = re.findall(r"^<!-- table (\S+) -->$", page, re.MULTILINE)
    if sorted(names) != sorted(tables):
        raise ValueError(f"the page has the tables {sorted(names)}; {sorted(tables)} are expected")
    return re.sub(
        r"^<!-- table (\S+) -->\n.*?^<!-- end -->$",
        lambda found: f"<!-- table {found[1]} -->\n{tables[found[1]]}<!-- end -->",
        page,
        flags=re.MULTILINE | re.DOTALL,
    )


def _table(family: Family) -> str:
    lines = [
        "| model | parameters | MACs | published top-1 | weights | licence of the weights | top-1 here |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, variant in family.variants.items():
        params, macs = variant_costs(name)
        top1 = ", ".join(f"{percent:g} % at {size} px" for size, percent in sorted(variant.top1.items())) or "-"
        file, licence = "-", "-"
        if checkpoint := variant.checkpoint:
            url = checkpoint.url
            file = f"[{Path(urlsplit(url).path).name}]({url})"
            licence = checkpoint.licence or "not stated"
        reproduced = "not run" if variant.top1 and variant.checkpoint else "-"
        lines.append(
            f"| `{name}` | {params / 1e6:.2f} M | {macs / 1e9:.2f} G | {top1} | {file} | {licence} | {reproduced} |"
        )
    if publication := family.publication:
        lines += [
            "",
            f"{publication.title}: [paper]({publication.paper}), [code]({publication.repository}), "
            f"{publication.licence}.",
        ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    PAGE.write_text(update(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
