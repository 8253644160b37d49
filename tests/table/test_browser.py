"""The page of a table in a real browser: from a file, light and dark, wide and narrow."""

import os
from dataclasses import replace
from pathlib import Path

import pytest

from browser import check_looks, watched
from metalstm.table import Table, page
from table.conftest import BUDGET
from table.filled import fill

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def table(small_sets, tmp_path_factory) -> Table:
    """As many columns as any data set has, and published figures."""
    tasks = ((5, 1), (5, 5), (20, 1), (20, 5))
    table = Table(replace(small_sets, name="cifar-fs", tasks=tasks), tmp_path_factory.mktemp("looks"), BUDGET)
    fill(table)
    page.write(table)
    return table


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 400])
def test_looks(browser, table, scheme, width):
    with watched(browser, viewport={"width": width, "height": 900}, color_scheme=scheme, offline=True) as shown:
        shown.goto((table.out / "report.html").as_uri())
        check_looks(shown)
        assert shown.locator("h1 ~ *:is(.figure, .table)").first.evaluate("node => node.className") == "figure plot"
        for each in shown.locator(".table").all():
            cut = each.evaluate("node => node.scrollWidth - node.clientWidth")
            assert width < 1280 or cut == 0
        if folder := os.environ.get("METALSTM_SCREENSHOTS"):
            shown.screenshot(path=Path(folder) / f"table-{scheme}-{width}.png", full_page=True)
