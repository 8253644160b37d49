"""The web page: draw or drop a few images of each class, watch the learner train, try it. All on this machine."""

from metalstm.app.server import serve

__all__ = ["serve"]
