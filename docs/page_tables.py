"""Tables of pages that are written by a program."""

import re
from collections.abc import Mapping


def write_tables(page: str, tables: Mapping[str, str]) -> str:
    """Return a page with every table between `<!-- table NAME -->` and `<!-- end -->` written again.

    Raises:
        ValueError: the page lacks a table, or has an unknown one.
    """
    names = re.findall(r"^<!-- table (\S+) -->$", page, re.MULTILINE)
    if sorted(names) != sorted(tables):
        raise ValueError(f"the page has the tables {sorted(names)}; expected {sorted(tables)}")
    return re.sub(
        r"^<!-- table (\S+) -->\n.*?^<!-- end -->$",
        lambda found: f"<!-- table {found[1]} -->\n{tables[found[1]]}<!-- end -->",
        page,
        flags=re.MULTILINE | re.DOTALL,
    )
