from matplotlib.figure import Figure

from metalstm import report
from metalstm.report import Heading, Strong


def test_markdown_has_texts_and_tables():
    table = (("method", "accuracy"), [("Ours",), ("Meta-LSTM", Strong("76.27")), ("chance", "20.00")])
    assert report.markdown("Title", ["Text.", Heading("Section"), Figure(), table]) == (
        "# Title\n\nText.\n\n## Section\n\n"
        "| method | accuracy |\n| --- | --- |\n| *Ours* |  |\n| Meta-LSTM | **76.27** |\n| chance | 20.00 |\n"
    )
