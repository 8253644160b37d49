import re

import numpy as np
import pytest

pytest.importorskip("gradio", reason="needs the extra app")
from metalstm.app.answers import answers

CLASSES = [f"<{k}>" for k in range(12)]
DRAWING, PHOTO = {"url": "data:image/png;base64,A"}, {"url": "/file?a&b", "path": "/tmp/a.png"}


def rows(html: str) -> list[list[tuple[str, str, str]]]:
    """Share, class and percentage, for each image."""
    parts = html.split('<div class="answer">')[1:]
    return [re.findall(r'<p style="--share: ([\d.]+)%">([^<]*)<b>(\d+ %)</b></p>', part) for part in parts]


def test_one_image_gets_ten_classes_the_most_probable_first():
    probabilities = np.arange(12)[None] / 66
    html = answers([DRAWING], CLASSES, probabilities, [False])
    (row,) = rows(html)
    assert row[:2] == [("16.7", "&lt;11&gt;", "17 %"), ("15.2", "&lt;10&gt;", "15 %")]
    assert len(row) == 10
    assert "none of these" not in html
    assert '<span class="drawing"><img alt="" src="data:image/png;base64,A"></span>' in html


def test_several_images_have_three_classes_in_the_order_of_the_images():
    probabilities = np.eye(12)[[4, 7]]
    html = answers([DRAWING, PHOTO], CLASSES, probabilities, np.array([True, False]))
    assert [row[0] for row in rows(html)] == [("100.0", "&lt;4&gt;", "100 %"), ("100.0", "&lt;7&gt;", "100 %")]
    assert [len(row) for row in rows(html)] == [3, 3]
    first, second = html.split('<div class="answer">')[1:]
    assert "perhaps none of these" in first
    assert "none of these" not in second
    assert '<span class="photo"><img alt="" src="/file?a&amp;b"></span>' in second
