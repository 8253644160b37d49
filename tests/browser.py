"""What every page must hold to in a real browser."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

# Texts whose contrast with their background is below WCAG's AA: 4.5, for large letters 3.
FAINT = """() => {
  const parse = (color) => {
    const [r, g, b, a = 1] = color.match(/[\\d.]+/g).map(Number);
    return [r, g, b, a];
  };
  const over = ([r, g, b, a], under) => [r, g, b].map((value, k) => value * a + under[k] * (1 - a));
  const light = (color) => {
    const [r, g, b] = color.map((v) => ((v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = (node) => {
    if (!node) return matchMedia("(prefers-color-scheme: dark)").matches ? [18, 18, 18] : [255, 255, 255];
    return over(parse(getComputedStyle(node).backgroundColor), behind(node.parentElement));
  };
  const faint = [];
  const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (texts.nextNode()) {
    const node = texts.currentNode.parentElement;
    const words = texts.currentNode.textContent.trim();
    if (!words || !node.checkVisibility({ opacityProperty: true })) continue;
    if (node.closest("style, script, [disabled]")) continue;
    const style = getComputedStyle(node);
    const ground = behind(node);
    const ink = over(parse(node instanceof SVGElement ? style.fill : style.color), ground);
    const [dark, bright] = [light(ink), light(ground)].sort((a, b) => a - b);
    const size = parseFloat(style.fontSize);
    const large = size >= 24 || (size >= 18.6 && style.fontWeight >= 600);
    const contrast = (bright + 0.05) / (dark + 0.05);
    if (contrast < (large ? 3 : 4.5)) faint.push(`${words}: ${contrast.toFixed(2)}`);
  }
  return faint;
}"""
ENDED = "net::ERR_ABORTED"  # by the page itself: a stream of events that was read to its end, a download
# By how many pixels the page is wider than the window.
OVERFLOWING = "() => document.documentElement.scrollWidth - document.documentElement.clientWidth"


@contextmanager
def watched(browser: Any, **context: Any) -> Iterator[Any]:
    """A page that must not send a request to another machine, and must not have errors."""
    with browser.new_context(**context) as opened:
        page = opened.new_page()
        page.set_default_timeout(120_000)  # the machine may be busy
        requests, errors = [], []
        opened.on("request", lambda request: requests.append(request.url))
        opened.on("requestfailed", lambda r: errors.append(f"{r.failure}: {r.url}") if r.failure != ENDED else None)
        opened.on("response", lambda r: errors.append(f"{r.status}: {r.url}") if r.status >= 400 else None)
        page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: errors.append(str(error)))
        yield page
    local = ("http://127.0.0.1:", "data:", "blob:", "file:")
    assert all(url.startswith(local) for url in requests), requests
    assert not errors, errors


def check_looks(page: Any) -> None:
    """The page fits into the width of the window, and all text has enough contrast."""
    assert page.evaluate(OVERFLOWING) <= 0
    faint = page.evaluate(FAINT)
    assert not faint, faint
