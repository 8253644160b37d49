"""The command line: what a person types, checked and handed on. Torch is imported only once a command runs."""

import contextlib
import csv
import io
import json
import logging
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Generic, NoReturn, TypeVar, Union

import tyro

from metalstm import recipes
from metalstm.console import console
from metalstm.errors import Interrupted, UserError, unknown

S = TypeVar("S", bound=recipes.Settings)

NONE = "none of these"


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
    """A data set: omniglot, cifar-fs, fc100, mini-imagenet."""
    common: Options = field(default_factory=Common)

    def run(self) -> None:
        """Do it."""
        from rich import box
        from rich.table import Column, Table

        from metalstm import datasets

        if self.action not in ("list", "fetch", "check"):
            raise unknown("action", self.action, ("list", "fetch", "check"))
        if self.action != "list" and not self.name:
            raise UserError(f"data {self.action}: which data set? one of {', '.join(datasets.NAMES)}")
        root = self.common.data_root or datasets.default_data_root()
        if self.action == "list":
            table = Table(
                Column("name", no_wrap=True), "images", *datasets.SPLITS, "here", "licence", box=box.SIMPLE_HEAD
            )
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
class Train(Generic[S]):
    """Meta-train a method into a run folder.

    `--method`, `--recipe`, `--data` and `--n-shot` set the defaults of all that stands below them; `metalstm train
    --method matching-net --recipe paper --help` shows them. Ctrl-C saves, `--resume` goes on to the very same end (on
    CPU, with as many threads).
    """

    settings: tyro.conf.OmitArgPrefixes[S]
    training: tyro.conf.OmitArgPrefixes[recipes.TrainingSettings]
    out: Path | None = None
    """Run folder to make, or with `--resume` to go on with; runs/METHOD-DATA-5w5s-RECIPE by default."""
    data: str = "glyphs"
    """glyphs, omniglot, cifar-fs, fc100, mini-imagenet, or folder:DIR for your own DIR/<class>/* images."""
    method: str = "meta-lstm"
    """meta-lstm, matching-net, matching-net-fce, or pretrained (the classifier of all meta-train classes, for nearest
    neighbour and fine-tuning)."""
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
    """Side in pixels that images are resized to; 28 for glyphs and Omniglot, 84 for mini-ImageNet, else 32, by
    default."""
    tensorboard: bool = False
    """Write TensorBoard's event file into the run folder too: `tensorboard --logdir runs` shows it as it grows."""
    common: Options = field(default_factory=Common)

    def run(self) -> None:
        """Train, then write `report.html`."""
        recipes.check(self.settings, self.training)
        if self.n_query < 1:
            raise UserError(f"--n-query {self.n_query}: must be at least 1")
        device = self.common.start()
        from metalstm import checkpoint, datasets, distributed, kernels, report
        from metalstm.evaluation import allow_tf32
        from metalstm.training import run_config, train

        with distributed.together():
            meta_sets = datasets.load(self.data, self.common.data_root, self.image_size)
            if device.startswith("cpu") and os.environ.get("LOCAL_RANK", "0") == "0":
                kernels.build()
        if device.startswith("cpu"):
            kernels.build()  # the other processes of a machine find it
        allow_tf32(self.settings.precision)
        config = run_config(
            meta_sets,
            self.settings,
            self.training,
            self.method,
            self.recipe,
            self.n_way,
            self.n_shot,
            self.n_query,
            self.common.seed,
        )
        name = f"{self.method}-{meta_sets.short_name}-{self.n_way}w{self.n_shot}s-{self.recipe}"
        out = self.out or Path("runs") / name
        is_first = distributed.rank() == 0
        with report.tensorboard(out) if self.tensorboard and is_first else contextlib.nullcontext():
            train(config, meta_sets, out, self.resume, device)
        if not is_first:
            return
        report.write_run(out, name, meta_sets.splits["meta-val"])
        meta = checkpoint.load(out / "best.safetensors")[1]
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
    episodes: int = 600
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
        from metalstm.evaluation import evaluate_checkpoint

        if self.split not in datasets.SPLITS:
            raise unknown("split", self.split, datasets.SPLITS)
        if self.episodes < 2:
            raise UserError(f"--episodes {self.episodes}: an interval needs at least 2")
        if self.n_query < 1:
            raise UserError(f"--n-query {self.n_query}: must be at least 1")
        with distributed.together():
            _, config, _ = checkpoint.load_method(self.checkpoint)
            meta_sets = datasets.load(self.data or config.data, self.common.data_root, config.image_shape[1])
        result = evaluate_checkpoint(
            self.checkpoint,
            meta_sets,
            self.split,
            self.n_way,
            self.n_shot,
            self.n_query,
            self.episodes,
            self.common.seed,
            self.query_norm,
            self.precision,
            device,
        )
        if distributed.rank() > 0:
            return
        label = " (transductive)" if result["transductive"] else ""
        if self.json == "-":
            print(json.dumps(result))  # noqa: T201
        else:
            task = f"{self.split} {result['n_way']}-way {result['n_shot']}-shot, {self.episodes} episodes"
            accuracy = f"{result['accuracy']:.2f} +- {result['ci95']:.2f} %"
            print(f"{config.data} {task}: {accuracy}{label}")  # noqa: T201
            if self.json:
                checkpoint.write(Path(self.json), (json.dumps(result) + "\n").encode())


@dataclass(frozen=True)
class Table:
    """Make the paper's Table 1 on a data set: train, tune and test every method, and compare.

    What is there already is not made again: stop it at any time, and give the same command again to go on. Rows can be
    made side by side, by commands with another `--only` each; of those that start from one pre-training (all but
    `meta-lstm-paper`, by filters), let one come first. The command without `--only` also compares the optimisers. Takes
    hours; `--quick` takes minutes.
    """

    data: str = "glyphs"
    """glyphs, omniglot, cifar-fs, fc100, mini-imagenet, or folder:DIR for your own DIR/<class>/* images."""
    out: Path | None = None
    """Folder of the table; results/DATA by default, results/DATA-quick with `--quick`."""
    only: str | None = None
    """Make one row, by its name; `list` names all."""
    quick: bool = False
    """Short trainings, few episodes: to see what it looks like."""
    precision: recipes.Precision = "fp32"
    """Of training and tuning: bf16, tf32 (CUDA) or fp32. Tests are always in fp32."""
    minutes: float | None = None
    """Minutes of each training at the most, validations included; the recipes' episodes by default."""
    seeds: int = 1
    """Trainings of the best Meta-LSTM at 5 shots, from as many seeds, to tell how much trainings differ."""
    common: Options = field(default_factory=Common)

    def run(self) -> None:
        """Make what is missing, then write `table.md`, `table.json` and `report.html`."""
        if self.seeds < 1:
            raise UserError(f"--seeds {self.seeds}: must be at least 1")
        from metalstm import convergence, datasets, kernels, table, table_page

        if self.only == "list":
            for row in table.ROWS:
                print(f"{row.name}\t{row.label}")  # noqa: T201
            return
        chosen = table.select(self.only)
        device = self.common.start()
        if device.startswith("cpu"):
            kernels.build()
        meta_sets = datasets.load(self.data, self.common.data_root)
        out = self.out or Path("results") / (meta_sets.short_name + ("-quick" if self.quick else ""))
        budget = replace(table.QUICK if self.quick else table.Budget(), train_minutes=self.minutes)
        making = table.Table(meta_sets, out, budget, self.common.seed, device, self.precision)
        seeds = range(self.common.seed + 1, self.common.seed + self.seeds)
        table.make(making, chosen, seeds)
        table_page.write(making)
        if self.only is None:
            convergence.compare(making)
            table_page.write(making)
        console.print(f"{out}: table.md, table.json, report.html", soft_wrap=True)
        print((out / "table.md").read_text(), end="")  # noqa: T201


@dataclass(frozen=True)
class Adapt:
    """Make a classifier from a few images of each class: DIR/<class name>/* images.

    Tells then how well it does, by cross-validation on these images.
    """

    images: tyro.conf.Positional[Path]
    """A folder with a folder of images for each class, 2 to 20 of them, named as the classes."""
    checkpoint: str | None = None
    """The meta-learner: a shipped checkpoint's name, a run folder or a file; by default a shipped one, by the kind of
    the images (drawings or photos) and their number."""
    out: Path | None = None
    """File of the classifier; by default named as the folder of the images, in the current folder."""
    common: Options = field(default_factory=Common)

    def run(self) -> None:
        """Learn, save, tell the accuracy."""
        out = self.out or Path(f"{self.images.resolve().name}.safetensors")
        if out.is_dir():
            raise UserError(f"--out {out} is a folder: name a file, {out / 'classifier.safetensors'} say")
        device = self.common.start()
        from metalstm import datasets
        from metalstm.classifier import Classifier

        files = datasets.labelled_files(self.images, datasets.class_folders(self.images))
        labels, paths = [label for label, _ in files], [path for _, path in files]
        classifier = Classifier(self.checkpoint, self.common.seed, device).fit(paths, labels)
        classifier.save(out)
        counts = zip(classifier.meta["images"], classifier.classes_, strict=True)
        console.print(f"{self.images}: {', '.join(f'{n} {name}' for n, name in counts)}", soft_wrap=True)
        if self.checkpoint is None:
            kind = "drawings" if classifier.preprocessing.drawing else "photos"
            reason = f"for {kind}, {len(files) / len(classifier.classes_):.3g} a class; --checkpoint takes another"
            console.print(f"meta-learner: {classifier.checkpoint_} ({reason})", soft_wrap=True)
        console.print(f"{out}: the classifier; now: metalstm predict {out} IMAGES", soft_wrap=True)
        try:
            told = str(classifier.estimate(paths, labels))
        except UserError as error:  # too few images for one
            told = f"unknown: {error}"
        console.print(f"accuracy on images like these: {told}", soft_wrap=True)


@dataclass(frozen=True)
class Predict:
    """Tell the classes of images, by a classifier that `metalstm adapt` made.

    Images that cannot be read are told on stderr, and the exit status is then 2; all others are predicted.
    """

    classifier: tyro.conf.Positional[Path]
    """The file of the classifier."""
    images: tyro.conf.Positional[tuple[str, ...]]
    """Image files; folders, for all images in them; `-` to read paths from stdin, one a line."""
    reject: bool = False
    """Say "none of these" where no class is probable: of images of the classes nine in ten are to pass."""
    csv: str | None = None
    """File to write the answers to as a table, `-` for stdout."""
    json: str | None = None
    """File to write the answers to as JSON, `-` for stdout."""
    common: Options = field(default_factory=Common)

    def run(self) -> None:
        """Predict and print."""
        if self.csv == self.json == "-":
            raise UserError("--csv - and --json -: only one of them can go to stdout")
        if not self.images:
            raise UserError("no images: name files or folders, or - to read paths from stdin")
        device = self.common.start()
        from metalstm.classifier import Classifier
        from metalstm.images import find

        classifier = Classifier.load(self.classifier, device)
        if self.reject:
            classifier.threshold()  # it may have none
        paths = find(self.images, sys.stdin)
        read, probabilities, faults = classifier.predict_files(paths)
        known = classifier.are_known(probabilities) if self.reject else [True] * len(read)
        best = classifier.classes_[probabilities.argmax(1)].tolist()
        answers = [
            {
                "image": str(path),
                "class": label if is_known else None,
                "probability": round(max(row), 6),
                "probabilities": {str(name): round(p, 6) for name, p in zip(classifier.classes_, row, strict=True)},
            }
            for path, label, is_known, row in zip(read, best, known, probabilities.tolist(), strict=True)
        ]
        self._tell(answers)
        for fault in faults:
            console.print(fault, soft_wrap=True)
        if faults:
            raise UserError(f"{len(faults)} of {len(paths)} images could not be read; the others are predicted")

    def _tell(self, answers: list[dict[str, Any]]) -> None:
        """To files or stdout."""
        lines = [(a["image"], NONE if a["class"] is None else str(a["class"]), a["probability"]) for a in answers]
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([("image", "class", "probability"), *lines])
        for place, content in ((self.csv, text.getvalue()), (self.json, json.dumps(answers) + "\n")):
            if place == "-":
                print(content, end="")  # noqa: T201
            elif place:
                from metalstm import checkpoint

                checkpoint.write(Path(place), content.encode("utf-8", "surrogateescape"))
        if "-" not in (self.csv, self.json) and answers:
            from rich import box
            from rich.table import Column, Table
            from rich.text import Text

            table = Table(Column("image", overflow="fold"), "class", Column("probability", justify="right"))
            table.box = box.SIMPLE_HEAD
            for image, label, probability in lines:
                table.add_row(Text(image), Text(label), f"{100 * probability:.1f} %")
            _stdout().print(table)


@dataclass(frozen=True)
class Export:
    """Write a classifier as a file that runs without this package: ONNX, or a program of torch.export.

    It takes uint8 images (n, height, width, channels) and gives probabilities; its metadata hold the size of images,
    the filter to resize them by, and the class names. `examples/` of the source shows how to run it.
    """

    classifier: tyro.conf.Positional[Path]
    """The file of the classifier, made by `metalstm adapt`."""
    format: str = "onnx"
    """`onnx`, checked against onnxruntime before it is kept, or `torch`."""
    out: Path | None = None
    """File to write; by default named as the classifier, with .onnx or .pt2."""
    common: Options = field(default_factory=Common)

    def run(self) -> None:
        """Export, check, write."""
        suffixes = {"onnx": ".onnx", "torch": ".pt2"}
        if self.format not in suffixes:
            raise unknown("format", self.format, suffixes)
        self.common.start()
        from metalstm import export
        from metalstm.classifier import Classifier

        out = self.out or self.classifier.with_suffix(suffixes[self.format])
        classifier = Classifier.load(self.classifier)
        to = {"onnx": export.to_onnx, "torch": export.to_torch}
        to[self.format](classifier, out)
        size, channels = classifier.preprocessing.image_size, classifier.preprocessing.channels
        console.print(f"{out}: takes uint8 (n, {size}, {size}, {channels})", soft_wrap=True)


@dataclass(frozen=True)
class App:
    """Open a page in the browser: draw or drop a few images a class, watch it learn, try it on new ones.

    The page is for this machine alone, and sends nothing elsewhere.
    """

    checkpoint: str | None = None
    """The meta-learner: a shipped checkpoint's name, a run folder or a file; by default a shipped one, by the kind of
    the images."""
    port: int = 0
    """Port of the page; 0 takes the first free one from 7860 on."""
    browser: bool = True
    """Open the browser."""
    common: Options = field(default_factory=Common)

    def run(self) -> None:
        """Serve until Ctrl-C."""
        if not 0 <= self.port < 2**16:
            raise UserError(f"--port {self.port}: must be at least 0 and below {2**16}")
        device = self.common.start()
        try:
            import gradio  # noqa: F401
        except ModuleNotFoundError as error:
            raise UserError(
                f"the web page needs {error.name}, which is not here: pip install 'metalstm[app]'"
            ) from error
        from metalstm import app, checkpoint
        from metalstm.classifier import Classifier

        if self.checkpoint is not None:
            checkpoint.load_method(self.checkpoint)  # complains now, not on the page
        learner = Classifier(self.checkpoint, self.common.seed, device)
        app.serve(learner, self.port or None, self.browser)


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
            again = (
                "give the same command again"
                if argv[0] in ("demo", "table")
                else "go on with the same command and --resume"
            )
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
    choice = _Choice()
    if argv[:1] == ["train"]:
        choice, _ = tyro.cli(_Choice, args=argv[1:], return_unknown_args=True, add_help=False)
    settings, training = recipes.named(choice.method, choice.recipe, choice.data, choice.n_shot)
    train: Any = Train[type(settings)]  # its options are those of the method
    commands: Any = Union[  # noqa: UP007
        Annotated[Demo, tyro.conf.subcommand("demo")],
        Annotated[Data, tyro.conf.subcommand("data")],
        Annotated[train, tyro.conf.subcommand("train", default=train(settings, training))],
        Annotated[Evaluate, tyro.conf.subcommand("evaluate")],
        Annotated[Table, tyro.conf.subcommand("table")],
        Annotated[Adapt, tyro.conf.subcommand("adapt")],
        Annotated[Predict, tyro.conf.subcommand("predict")],
        Annotated[Export, tyro.conf.subcommand("export")],
        Annotated[App, tyro.conf.subcommand("app")],
    ]
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
