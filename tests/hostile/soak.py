"""Everything hostile at length: cases, kills of commands, and clients of the page. `make soak` runs it.

    PYTHONPATH=tests python -m hostile.soak --cases 2000 --kills 5 --clients 10 --minutes 1

Prints a table, and ends with status 1 if anything failed. A case that failed is repeated by
`PYTHONPATH=tests python -m hostile.worker FOLDER KIND:NUMBER:1`.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from hostile import KINDS, shares

CHUNK = 400  # cases of a process
RESTARTS = 20  # of a process that died, until no more cases of it are run


def cases(folder: Path, *parts: str) -> Iterator[dict[str, Any]]:
    """Run cases in another process, and start it again behind a case that ended it.

    Args:
        folder: Where they may write.
        parts: KIND:FIRST:NUMBER each.

    Yields:
        The lines of the process: one for each failure, and one for each kind.
    """
    left = list(parts)
    for _ in range(RESTARTS):
        folder.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "hostile.worker", str(folder), *left]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
        last: dict[str, Any] = {}
        with (
            tempfile.TemporaryFile("w+") as errors,
            subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment) as process,
        ):
            assert process.stdout
            for line in process.stdout:
                values = json.loads(line)
                if "failure" in values or "read" in values:
                    yield values
                    if "read" in values:
                        left, last = left[1:], {}
                else:
                    last = values
            status = process.wait()
            errors.seek(0)
            said = errors.read()
        if not left:
            return
        if not last:
            raise RuntimeError(f"{left[0]} cannot be run: {said[-3000:]}")
        kind, first, number = left[0].split(":")
        case = last["case"]
        yield {"kind": kind, "case": case, "failure": f"the process ended with {status}: {said[-1500:]}"}
        done = case + 1 - int(first)
        yield {"kind": kind, "read": done - 1, "refused": 0, "failed": 1, "seconds": 0, "slowest": 0, "megabytes": 0}
        left[0] = f"{kind}:{case + 1}:{int(number) - done}"


def soak(folder: Path, n_cases: int, kills: int, clients: int, minutes: float, jobs: int) -> list[dict[str, Any]]:
    """Run all; gives a line of the table for each kind."""
    from hostile.clients import visit
    from hostile.kills import KINDS as KILLED
    from hostile.kills import kill

    rows: dict[str, dict[str, Any]] = {}
    chunks = [
        f"{kind}:{first}:{min(CHUNK, number - first)}"
        for kind, number in shares(n_cases, KINDS).items()
        for first in range(0, number, CHUNK)
    ]
    with ThreadPoolExecutor(jobs) as pool:
        for found in pool.map(lambda k: list(cases(folder / f"cases-{k}", chunks[k])), range(len(chunks))):
            for line in found:
                row = rows.setdefault(
                    line["kind"], {"cases": 0, "failures": [], "seconds": 0, "megabytes": 0, "slowest": 0}
                )
                if "failure" in line:
                    row["failures"].append(f"{line['kind']}:{line['case']}:1 {line['failure']} {line.get('where', '')}")
                    print(row["failures"][-1], file=sys.stderr, flush=True)  # noqa: T201
                else:
                    row["cases"] += line["read"] + line["refused"] + line["failed"]
                    row["seconds"] += line["seconds"]
                    for name in ("megabytes", "slowest"):
                        row[name] = max(row[name], line[name])
        (folder / "kills").mkdir()
        killed = {
            kind: pool.submit(kill, folder / "kills" / kind, kind, number)
            for kind, number in shares(kills, KILLED).items()
            if number
        }

        for kind, future in killed.items():
            error = future.exception()
            failed = {"cases": 0, "failures": [f"{kind}: {error!r:.1000}"], "seconds": 0}
            rows[f"kill {kind}"] = failed if error else future.result()
    if clients:
        (folder / "page").mkdir()
        rows[f"{clients} clients"] = visit(folder / "page", clients, minutes)
    return [{"kind": kind, **row} for kind, row in rows.items()]


def main() -> None:
    """The command."""
    about, _, more = (__doc__ or "").partition("\n")
    parser = argparse.ArgumentParser(
        description=about, epilog=more, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", type=int, default=20_000, help=f"hostile inputs, of {', '.join(KINDS)}")
    parser.add_argument("--kills", type=int, default=50, help="of commands at random moments")
    parser.add_argument("--clients", type=int, default=50, help="of the page at the same time")
    parser.add_argument("--minutes", type=float, default=10, help="that the clients stay")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes at the same time")
    options = parser.parse_args()
    from metalstm.data.places import cache_root

    os.environ.setdefault("METALSTM_CACHE", str(cache_root()))  # of the kernels
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="metalstm-soak-") as folder:
        rows = soak(
            Path(folder).resolve(), options.cases, options.kills, options.clients, options.minutes, options.jobs
        )
    print(table(rows))  # noqa: T201
    minutes = (time.monotonic() - started) / 60
    print(f"\n{minutes:.0f} minutes; {platform.platform()}, Python {platform.python_version()}")  # noqa: T201
    failures = [failure for row in rows for failure in row["failures"]]
    print(*failures[:50], sep="\n", file=sys.stderr)  # noqa: T201
    sys.exit(1 if failures else 0)


def table(rows: list[dict[str, Any]]) -> str:
    """The rows in Markdown."""
    lines = ["| kind | cases | failures | seconds | slowest (s) | peak memory (MB) |", "|---|--:|--:|--:|--:|--:|"]
    lines += [
        f"| {row['kind']} | {row['cases']:,} | {len(row['failures'])} | {row['seconds']:,.0f} | "
        f"{row.get('slowest', '')} | {row.get('megabytes', '')} |"
        for row in rows
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
