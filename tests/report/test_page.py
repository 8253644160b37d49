import re

import pytest

from metalstm import report
from metalstm.report import Heading, Strong
from report.examples import episode, write_metrics


def test_a_page_is_self_contained_and_escapes_what_it_is_given(tmp_path):
    figure = report.learning_curve(write_metrics(tmp_path / "metrics.jsonl", 3))
    blocks = [Heading("<h>"), "some & text", figure, (("a", "<b>"), [("< 3",), ("1 < 2", Strong("<i>"))])]
    page = report.page("A <title>", blocks)
    assert "<title>A &lt;title&gt;</title>" in page
    assert "<h1>A &lt;title&gt;</h1>" in page
    assert "<h2>&lt;h&gt;</h2>" in page
    assert "<p>some &amp; text</p>" in page
    assert "<th>&lt;b&gt;</th>" in page
    assert '<th colspan="2"><span>&lt; 3</span></th>' in page
    assert re.search(r"<td>1 &lt; 2</td>\s*<td><b>&lt;i&gt;</b></td>", page)
    assert not re.search(r"""(src|href)=["'](?!data:image/png;base64,)""", page)
    assert page.startswith("<!doctype html>")
    assert page.rstrip().endswith("</html>")


def test_plots_turn_dark_and_images_stay_as_they_are(tmp_path):
    plot = report.learning_curve(write_metrics(tmp_path / "metrics.jsonl", 3))
    images = report.episode_picture(episode(1), drawing=True)
    page = report.page("", [plot, images])
    kinds = re.findall(r'<div class="figure (\w+)"><img alt="([^"]*)"', page)
    assert kinds == [("plot", "query loss (nats), query accuracy (%)"), ("images", "")]


@pytest.mark.parametrize("write", [report.page, report.markdown])
def test_an_unknown_block_is_refused(write):
    with pytest.raises(TypeError):
        write("", [7])
