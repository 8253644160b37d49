import re

import pytest

import helpers
from helpers import flags

QUICK = "from metalstm import demo; demo.TEST_EPISODES, demo.TUNING_EPISODES, demo.RATES = 8, 4, (0.1, 1.0)"


@pytest.mark.slow
def test_demo_compares_four_and_writes_a_page_that_needs_no_network(cache, tmp_path):
    out, commands = tmp_path / "demo", helpers.Commands(cache, QUICK)
    words = ["demo", *flags(out=out, episodes=10, threads=1)]
    status, table, err = commands(*words)
    assert status == 0, err
    for name in ("chance", "nearest neighbor", "gradient descent", "Meta-LSTM"):
        assert name in table
    assert "20.00 %" in table
    numbers = re.findall(r"\d+\.\d\d \+- \d+\.\d\d %", table)
    assert len(numbers) == 3
    page = (out / "report.html").read_text()
    assert all(number in page for number in numbers)
    loaded = re.findall(r"""(?:src|href|action|data)\s*=\s*["']?([^"'\s>]+)|url\(([^)]*)\)|@import\s*([^;]+)""", page)
    assert len(loaded) == page.count("<img") > 0
    assert all("".join(address).startswith("data:image/png;base64,") for address in loaded)

    weights = (out / "last.safetensors").read_bytes()
    status, again, err = commands(*words)
    assert (status, again) == (0, table), err
    assert "going on after episode 10" in err
    assert (out / "last.safetensors").read_bytes() == weights
    commands.close()


def test_demo_refuses(commands, tmp_path):
    out = tmp_path / "demo"
    assert commands.refusal("demo", *flags(out=out, threads=-1)) == "--threads -1: must be at least 0"
    assert commands.refusal("demo", *flags(out=out, episodes=0)) == "--episodes 0: must be at least 1 and at most 1e+09"
    assert not out.exists()
