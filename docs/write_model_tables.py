"""Write the tables of models in docs/models.md and the README: python docs/write_model_tables.py."""

from collections.abc import Iterable
from pathlib import Path
from urllib.parse import urlsplit

from page_tables import write_tables

from mambaout_jax.models import Family, families
from mambaout_jax.models.macs import variant_costs

PAGE = Path(__file__).parent / "models.md"
README = Path(__file__).parents[1] / "README.md"


def update(page: str) -> str:
    """Return docs/models.md with the table of every family written again, as `write_tables` does."""
    return write_tables(page, {family.name: _table(family) for family in families()})


def update_readme(page: str) -> str:
    """Return the README with its table of families written again."""
    return write_tables(page, {"families": _families_table()})


def _table(family: Family) -> str:
    lines = [
        "| model | parameters | MACs | published top-1 | weights | license of the weights | top-1 here |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, variant in family.variants.items():
        params, macs = variant_costs(name)
        top1 = ", ".join(f"{percent:g} % at {size} px" for size, percent in sorted(variant.top1.items())) or "-"
        file, license = "-", "-"
        if checkpoint := variant.checkpoint:
            url = checkpoint.url
            file = f"[{Path(urlsplit(url).path).name}]({url})"
            license = checkpoint.license or "not stated"
        reproduced = "not run" if variant.top1 and variant.checkpoint else "-"
        lines.append(
            f"| `{name}` | {params / 1e6:.2f} M | {macs / 1e9:.2f} G | {top1} | {file} | {license} | {reproduced} |"
        )
    if publication := family.publication:
        lines += [
            "",
            f"{publication.title}: [paper]({publication.paper}), [code]({publication.repository}), "
            f"{publication.license}.",
        ]
    return "\n".join(lines) + "\n"


def _families_table() -> str:
    lines = [
        "| family | models with published accuracy | parameters | top-1 at 224 px | license of the weights |",
        "|---|---|---|---|---|",
    ]
    for family in families():
        published = {name: variant for name, variant in family.variants.items() if variant.top1}
        params = _range(variant_costs(name)[0] / 1e6 for name in published)
        top1 = _range(variant.top1[224] for variant in published.values() if 224 in variant.top1)
        licenses = {variant.checkpoint.license or "not stated" for variant in published.values() if variant.checkpoint}
        title = f"[{family.module.__name__}]({family.publication.paper})"
        models = f"{len(published)}, from `{next(iter(published))}`"
        lines.append(f"| {title} | {models} | {params} M | {top1} % | {', '.join(sorted(licenses))} |")
    return "\n".join(lines) + "\n"


def _range(values: Iterable[float]) -> str:
    values = list(values)
    return f"{min(values):.1f} to {max(values):.1f}"


if __name__ == "__main__":
    for file, updated in ((PAGE, update), (README, update_readme)):
        file.write_text(updated(file.read_text(encoding="utf-8")), encoding="utf-8")
