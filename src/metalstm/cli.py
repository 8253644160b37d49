"""The command line: what a person types, checked and handed on. Torch is imported only once a command runs."""

import json
import logging
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, NoReturn

import tyro

from metalstm import recipes
from metalstm.console import console
from metalstm.errors import Interrupted, UserError, unknown

PROTOCOL_EPISODES = 600  # meta-test episodes of the paper's table


@dataclass(frozen=True)
class Common:
    """Options of every command."""

    seed: int = 0
    """Makes episodes and weights; the same seed gives the same episodes to every method, on every machine."""
    device: str = "auto"
    """`cpu`, `cuda`, `cuda:1`; `auto` takes a GPU if there is one."""
    threads: int = 0
    """CPU threads; 0 leaves the choice to torch."""
    data_root: Path | None = None
    """Folder of the data sets; else METALSTM_DATA, else the user cache directory."""
    debug: bool = False
    """Show a traceback when something goes wrong."""

    def start(self) -> str:
        """Set the threads, join the processes that torchrun started; gives the device."""
        import torch

        from metalstm import distributed, kernels

        kernels.keep_memory()
        if not 0 <= self.seed < 2**32:
            raise UserError(f"--seed {self.seed}: must be at least 0 and below {2**32}")
        if self.threads < 0:
            raise UserError(f"--threads {self.threads}: must be at least 0")
        if self.threads:
            torch.set_num_threads(self.threads)
        device = self.device
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        if _rank() is not None:
            device = distributed.join(device)
        with distributed.together():
            try:
                torch.zeros(1, device=device).item()
                if device.startswith("cuda:"):
                    torch.cuda.set_device(device)
            except (RuntimeError, AssertionError) as error:
                reason = str(error).splitlines()[0]
                raise UserError(f"--device {device}: not usable here ({reason}): pass --device cpu") from error
        return device


Options = tyro.conf.OmitArgPrefixes[Common]


@dataclass(frozen=True)
class Demo:
    """See it work: meta-train on built-in drawings of the world's scripts, test on scripts never seen.

    Takes under five minutes on two cores and needs no network. Writes a run folder and a page, `report.html`.
    """

    out: Path = Path("demo")
    """Run folder; run again with the same folder, it goes on where it was."""
    episodes: int = 400
    """Meta-train episodes."""
    common: Options = field(default_factory=Common)

    def run(self) -> None:
        """Train, compare, report."""
        if self.episodes < 1:
            raise UserError(f"--episodes {self.episodes}: must be at least 1")
        from metalstm.demo import demo

        demo(self.out, self.episodes, self.common.seed, self.common.start())


@dataclass(frozen=True)
class Data:
    """List the data sets, fetch one (checked by its checksum), or check the files that are there."""

    action: tyro.conf.Positional[str]
    """`list`, `fetch` or `check`."""
    name: tyro.conf.Positional[str] = ""
    """A data set: omniglot, cifar-fs, fc100."""
    common: Options = field(default_factory=Common)

    def run(self) -> None:
        """Do it."""
        from rich import box
        from rich.table import Table

        from metalstm import datasets

        if self.action not in ("list", "fetch", "check"):
            raise unknown("action", self.action, ("list", "fetch", "check"))
        if self.action != "list" and not self.name:
            raise UserError(f"data {self.action}: which data set? one of {', '.join(datasets.NAMES)}")
        root = self.common.data_root or datasets.default_data_root()
        if self.action == "list":
            table = Table("name", "images", *datasets.SPLITS, "here", "licence", box=box.SIMPLE_HEAD)
            for each in datasets.describe(root):
                counts = [str(each.classes[split]) for split in datasets.SPLITS]
                shape = "x".join(map(str, each.image_shape))
                table.add_row(each.name, shape, *counts, "yes" if each.present else "no", each.licence)
            _stdout().print(table)
            _stdout().print("folder:DIR  your own images as DIR/<class>/*")
        elif self.action == "fetch":
            for path in datasets.fetch(self.name, root):
                print(path)  # noqa: T201
        else:
            files = datasets.check(self.name, root)
            for path, state in files:
                print(f"{state}\t{path}")  # noqa: T201
            wrong = sum(state not in ("original", "rebuilt") for _, state in files)
            if wrong:
                raise UserError(f"{wrong} of {len(files)} files are not as released: metalstm data fetch {self.name}")


@dataclass(frozen=True)
class Train:
    """Meta-train a method into a run folder.

    `--recipe` sets the defaults of all that stands below it; `metalstm train --recipe paper --n-shot 1 --help` shows
    them. Ctrl-C saves, `--resume` goes on to the very same end (on CPU, with as many threads).
    """

    out: Path | None = None
    """Run folder to make, or with `--resume` to go on with; runs/METHOD-DATA-5w5s-RECIPE by default."""
    data: str = "glyphs"
    """glyphs, omniglot, cifar-fs, fc100, or folder:DIR for your own DIR/<class>/* images."""
    method: str = "meta-lstm"
    """The method to train."""
    recipe: str = "best"
    """`paper`: the authors' settings to the letter; `best`: what measured best."""
    n_way: int = 5
    """Classes an episode."""
    n_shot: int = 5
    """Support images a class."""
    n_query: int = 15
    """Query images a class."""
    resume: bool = False
    """Go on with the run in `--out`."""
    image_size: int | None = None
    """Side in pixels that images are resized to; 28 for glyphs and Omniglot, else 32, by default."""
    common: Options = field(default_factory=Common)
    settings: tyro.conf.OmitArgPrefixes[recipes.MetaLSTMSettings] = field(default_factory=recipes.MetaLSTMSettings)
    training: tyro.conf.OmitArgPrefixes[recipes.TrainingSettings] = field(default_factory=recipes.TrainingSettings)

    def run(self) -> None:
        """Train, then draw the learning curve and the gates."""
        recipes.check(self.settings, self.training)
        if self.n_query < 1:
            raise UserError(f"--n-query {self.n_query}: must be at least 1")
        device = self.common.start()
        from metalstm import checkpoint, datasets, distributed, kernels, report
        from metalstm.episodes import EpisodeSampler
        from metalstm.methods import GradientMethod
        from metalstm.training import train

        with distributed.together():
            meta_sets = datasets.load(self.data, self.common.data_root, self.image_size)
            if device.startswith("cpu") and os.environ.get("LOCAL_RANK", "0") == "0":
                kernels.build()
        if device.startswith("cpu"):
            kernels.build()  # the other processes of a machine find it
        _allow_tf32(self.settings.precision)
        config = recipes.RunConfig(
            method=self.method,
            recipe=self.recipe,
            data=self.data,
            data_digest=meta_sets.digest,
            licence=meta_sets.licence,
            image_shape=meta_sets.splits["meta-train"].image_shape,
            n_way=self.n_way,
            n_shot=self.n_shot,
            n_query=self.n_query,
            seed=self.common.seed,
            settings=self.settings,
            training=self.training,
        )
        source = self.data.rstrip("/").rpartition("/")[2].replace(":", "-")
        name = f"{self.method}-{source}-{self.n_way}w{self.n_shot}s-{self.recipe}"
        out = self.out or Path("runs") / name
        train(config, meta_sets, out, self.resume, device)
        if distributed.rank() > 0:
            return
        report.save(report.learning_curve(out / "metrics.jsonl"), out / "curve.png")
        method, _, meta = checkpoint.load_method(out)
        if isinstance(method, GradientMethod):
            sampler = EpisodeSampler(meta_sets.splits["meta-val"], self.n_way, self.n_shot, 0, self.common.seed)
            report.save(report.gates(method, sampler.batch(range(50))), out / "gates.png")
        console.print(
            f"{out}: best meta-val {meta['meta_val']:.2f} % after {meta['episode']:,} episodes; "
            f"now: metalstm evaluate {out}",
            soft_wrap=True,
        )


@dataclass(frozen=True)
class Evaluate:
    """Test a checkpoint: mean query accuracy over episodes with its 95 % confidence interval."""

    checkpoint: tyro.conf.Positional[str]
    """A shipped checkpoint's name, a run folder (its best by meta-val), or a file."""
    data: str | None = None
    """The data set, where a folder has moved; it must hold what the checkpoint was trained on."""
    split: str = "meta-test"
    """meta-test, meta-val or meta-train."""
    n_way: int | None = None
    """Classes an episode; as trained by default."""
    n_shot: int | None = None
    """Support images a class; as trained by default."""
    n_query: int = 15
    """Query images a class."""
    episodes: int = PROTOCOL_EPISODES
    """Episodes to test on."""
    query_norm: recipes.QueryNorm | None = None
    """Another normalisation of queries than the checkpoint's; `batch` is transductive."""
    precision: recipes.Precision | None = None
    """fp32, tf32 (CUDA) or bf16; as trained by default."""
    json: str | None = None
    """File to write the result to, `-` for stdout."""
    common: Options = field(default_factory=Common)

    def run(self) -> None:
        """Evaluate and print."""
        device = self.common.start()
        from metalstm import checkpoint, datasets, distributed
        from metalstm.episodes import EpisodeSampler
        from metalstm.evaluation import evaluate
        from metalstm.methods import GradientMethod

        if self.split not in datasets.SPLITS:
            raise unknown("split", self.split, datasets.SPLITS)
        if self.episodes < 2:
            raise UserError(f"--episodes {self.episodes}: an interval needs at least 2")
        if self.n_query < 1:
            raise UserError(f"--n-query {self.n_query}: must be at least 1")
        with distributed.together():
            path = checkpoint.find(self.checkpoint)
            method, config, _ = checkpoint.load_method(path)
            meta_sets = datasets.load(self.data or config.data, self.common.data_root, config.image_shape[1])
        if meta_sets.digest != config.data_digest:
            mend = f"pass --data {config.data}"
            if meta_sets.name == config.data:
                mend = "the files, or the version of Pillow that resized them, differ: see metalstm data check"
            raise UserError(
                f"{self.checkpoint} was trained on {config.data} (digest {config.data_digest[:12]}), but "
                f"{meta_sets.name} is other data (digest {meta_sets.digest[:12]}): {mend}"
            )
        n_way = config.n_way if self.n_way is None else self.n_way
        n_shot = config.n_shot if self.n_shot is None else self.n_shot
        sampler = EpisodeSampler(meta_sets.splits[self.split], n_way, n_shot, self.n_query, self.common.seed, device)
        query_norm, precision = None, config.settings.precision
        if isinstance(method, GradientMethod):
            method.theta_0(n_way)  # may refuse this number of classes
            method.query_norm = query_norm = self.query_norm or method.query_norm
            precision = self.precision or precision
            method.learner.bf16 = precision == "bf16"
        _allow_tf32(precision)
        start = time.perf_counter()
        accuracy = evaluate(method.to(device), sampler, self.episodes, f"evaluating on {self.split}")
        if distributed.rank() > 0:
            return
        result = {
            "method": config.method,
            "data": config.data,
            "split": self.split,
            "n_way": n_way,
            "n_shot": n_shot,
            "n_query": self.n_query,
            "episodes": self.episodes,
            "accuracy": accuracy.mean,
            "ci95": accuracy.ci95,
            "seed": self.common.seed,
            "query_norm": query_norm,
            "precision": precision,
            "transductive": query_norm == "batch",
            "recipe": config.recipe,
            "changes": config.changes(),
            "checkpoint_sha256": checkpoint.sha256(path),
            "seconds": time.perf_counter() - start,
            "per_episode": accuracy.per_episode,
        }
        label = " (transductive)" if result["transductive"] else ""
        if self.json == "-":
            print(json.dumps(result))  # noqa: T201
        else:
            print(  # noqa: T201
                f"{config.data} {self.split} {n_way}-way {n_shot}-shot, {self.episodes} episodes: {accuracy}{label}"
            )
            if self.json:
                checkpoint.write(Path(self.json), (json.dumps(result) + "\n").encode())


def main(argv: Sequence[str] | None = None) -> None:
    """Run `metalstm ARGV` and exit: status 0 on success, 2 on a user's mistake, 130 on Ctrl-C."""
    argv = list(sys.argv[1:] if argv is None else argv)
    _log_to_stderr()
    try:
        command = _parse(argv)
        if _rank() is not None and not isinstance(command, (Train, Evaluate)):
            raise UserError(f"{argv[0]} runs in one process, unlike train and evaluate: start it without torchrun")
        command.run()
        if _rank() is not None:
            _exit(0)
    except KeyboardInterrupt:
        _fail("interrupted", 130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except Exception as error:
        if "--debug" in argv:
            raise
        if isinstance(error, Interrupted):
            again = "give the same command again" if argv[0] == "demo" else "go on with the same command and --resume"
            _fail(f"{error}; {again}", 130)
        if isinstance(error, (UserError, OSError)):
            _fail(str(error), 2)
        from metalstm import distributed

        if distributed.world_size() > 1 and distributed.is_loss_of_process(error):
            if _rank():
                _exit(1)
            _fail("another process of this run has ended; go on with the same command and --resume", 1)
        _fail(f"internal error, {type(error).__name__}: {error}: please report it with the output of --debug", 1)


def _parse(argv: Sequence[str]) -> Any:
    """The command with its options; the defaults of `train` are those of the recipe that is named."""
    train_default = Train()
    if argv[:1] == ["train"]:
        choice, _ = tyro.cli(_Choice, args=argv[1:], return_unknown_args=True, add_help=False)
        settings, training = recipes.named(choice.method, choice.recipe, choice.data, choice.n_shot)
        train_default = Train(settings=settings, training=training)
    commands = (
        Annotated[Demo, tyro.conf.subcommand("demo")]
        | Annotated[Data, tyro.conf.subcommand("data")]
        | Annotated[Train, tyro.conf.subcommand("train", default=train_default)]
        | Annotated[Evaluate, tyro.conf.subcommand("evaluate")]
    )
    return tyro.cli(
        commands,
        args=argv,
        prog="metalstm",
        description="Learn to learn from a few images: the Meta-Learner LSTM of Ravi & Larochelle (ICLR 2017).",
    )


@dataclass(frozen=True)
class _Choice:
    """What of a `train` command chooses its recipe."""

    method: str = "meta-lstm"
    recipe: str = "best"
    data: str = "glyphs"
    n_shot: int = 5


def _allow_tf32(precision: recipes.Precision) -> None:
    """Of the whole process, and of no account but on CUDA."""
    import torch

    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = precision == "tf32"


def _log_to_stderr() -> None:
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger = logging.getLogger("metalstm")
    logger.setLevel(logging.INFO if not _rank() else logging.ERROR)  # of several processes one tells
    logger.handlers = [handler]


def _rank() -> int | None:
    """The number of this process, where torchrun has started several."""
    launched = {"RANK", "LOCAL_RANK", "WORLD_SIZE"} <= os.environ.keys() and os.environ["WORLD_SIZE"] != "1"
    return int(os.environ["RANK"]) if launched else None


def _fail(message: str, status: int) -> None:
    if rank := _rank():
        # What ends all processes, process 0 says: torchrun ends the others at once when it has.
        time.sleep(5 if status == 2 else 1)
        message = f"process {rank}: {message}"
    if not (rank and status == 130):
        print(f"metalstm: {' '.join(message.split())}", file=sys.stderr)  # noqa: T201
    _exit(status)


def _exit(status: int) -> NoReturn:
    if _rank() is not None:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)  # a thread of gloo that still runs may abort the interpreter's own way out
    sys.exit(status)


def _stdout() -> Any:
    from rich.console import Console

    return Console(highlight=False)
