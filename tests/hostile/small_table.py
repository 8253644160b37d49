"""A table of a few rows that is made in seconds: python -m hostile.small_table IMAGES OUT."""

import sys
from pathlib import Path

from metalstm import data, table
from metalstm.methods import Search

if __name__ == "__main__":
    images, out = map(Path, sys.argv[1:])
    search = Search(few=2, many=3, read_at=(1, 2))
    budget = table.Budget(train_episodes=4, val_every=2, val_episodes=2, search=search, test_episodes=4)
    making = table.Table(data.load(f"folder:{images}", image_size=16), out, budget)
    table.make(making, table.select("nearest-neighbor-pixels", "protonet", "finetune-sgd"), [])
    table.write(making)
