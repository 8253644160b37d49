"""Where data files and decoded images are kept."""

import os
from pathlib import Path


def default_data_root() -> Path:
    """Where data files are looked for: METALSTM_DATA if it is set, otherwise a folder in the user cache directory."""
    return Path(os.environ.get("METALSTM_DATA") or _user_cache() / "data")


def cache_root() -> Path:
    """Where decoded images are kept: METALSTM_CACHE if it is set, otherwise a folder in the user cache directory."""
    return Path(os.environ.get("METALSTM_CACHE") or _user_cache() / "decoded")


def _user_cache() -> Path:
    from platformdirs import user_cache_dir

    return Path(user_cache_dir("metalstm"))
