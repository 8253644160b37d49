import pytest
from PIL import Image

pytest.importorskip("gradio", reason="needs the extra app")
from metalstm.app import cards
from metalstm.errors import UserError


def test_only_uploaded_files_are_read(tmp_path, monkeypatch):
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "uploads"))
    for path in (tmp_path / "secret.png", tmp_path / "uploads" / ".." / "secret.png", "a\0b", "a" * 5000):
        with pytest.raises(UserError, match=r"^This file was not uploaded\.$"):
            cards.read({"url": "", "path": str(path)})
    assert cards.read({"url": "", "path": str(tmp_path / "uploads" / "a.png")}) == tmp_path / "uploads" / "a.png"


@pytest.mark.parametrize("url", ["", "data:image/png;base64,AAAA", "data:image/png;base64,A", "javascript:alert(1)"])
def test_drawings_that_are_none(url):
    with pytest.raises(UserError, match=r"^This drawing cannot be read\.$"):
        cards.read({"url": url})


def test_example_has_drawings_of_five_characters_that_can_be_read():
    support, (query,) = cards.example_cards()
    assert [card["name"] for card in support] == ["Lao ko", "Lao mo", "Lao wo", "Old Italic esh", "Old Italic phe"]
    assert [len(card["images"]) for card in support] == [3] * 5
    assert len(query["images"]) == 5
    image = cards.read(query["images"][0])
    assert isinstance(image, Image.Image)
    assert (image.mode, image.size) == ("L", (28, 28))
    assert image.getpixel((0, 0)) == 255  # dark ink on light paper
