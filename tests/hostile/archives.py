"""Archives of data sets, and the cache of what was decoded from them: bombs, foreign names, links, pickles, damage."""

import gzip
import io
import os
import pickle
import shutil
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from data.makers import make_cifar_tar, make_cifar_zip, make_omniglot, write_tar
from hostile.mutations import Random, mutated_bytes
from metalstm import data
from metalstm.data.archives import MAX_UNPACKED

NAMES = [
    "../../escaped.png", "/tmp/escaped.png", "images_background/../../escaped/a/b.png", "C:\\escaped.png", "a\0b/c.png",
    "images_background/Abc0/\x1b[31m\n/1.png", "images_background/Abc0/" + "x" * 5000 + "/1.png", "", "/", "..", ".",
    "images_background/\u202ex/\udcff/1.png", "images_background/Abc0/c\u00e9/1.png", "images_background//x/1.png",
    "images_background/../../1.png", "images_background/Abc0/character01/=cmd|x.png", "__MACOSX/a/b/c.png",
]  # fmt: skip
CALLS = [  # what a pickle asks for
    (os.system, ("touch canary",)), (eval, ("open('canary', 'w')",)), (exec, ("open('canary', 'w')",)),
    (open, ("canary", "w")), (os.mkdir, ("canary",)), (np.load, ("canary",)), (np.fromfile, ("/etc/passwd",)),
    (getattr, ("", "join")), (np.memmap, ("canary", "u1", "w+", 0, 9)), (bytearray, (2**40,)), (np.zeros, (2**40,)),
]  # fmt: skip
PICKLES = [
    b"", b".", b"N.", b"(" * 10**5, b"]" + b"]a" * 10**5 + b".", b"\x8e" + b"\xff" * 8, b"\x8d" + b"\xff" * 7 + b"\x7f",
    b"cos\nsystem\n(S'touch canary'\ntR.", b"\x80\x04\x95" + b"\xff" * 8, b"c__builtin__\neval\n(S'1'\ntR.",
    b"r\xff\xff\xff\x7f.", b"I1\nr\xff\xff\xff\x07.", b"cnumpy\ndtype\n(S'O8'\ntR.",
    b"cnumpy\ndtype\n(S'V2147483647'\ntR.",
    b"cnumpy\nndarray\n((I2147483647\nI2147483647\nttR.", b"cnumpy\nndarray\n(I-1\ntR.", b"(dcnumpy\nndarray\nb.",
]  # fmt: skip

MODES = (0, 0o120777, 0o020666, 0o040755, 0o106777)  # a link, a device, a folder
TYPES = (
    tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.DIRTYPE, tarfile.GNUTYPE_SPARSE,
    tarfile.REGTYPE, b"Z",
)  # fmt: skip


class Call:
    """A pickle of it calls something."""

    def __init__(self, random: Random):
        self.what = CALLS[random.randint(len(CALLS))]

    def __reduce__(self) -> Any:
        return self.what


class Cases:
    """Data sets whose archive is hostile.

    Args:
        folder: Where they lie.
    """

    def __init__(self, folder: Path):
        self.whole, self.root, self.cache = folder / "whole", folder / "root", folder / "cache"
        for make in (make_omniglot, make_cifar_tar, make_cifar_zip):
            make(self.whole)
        self.zip = self.whole / "omniglot" / "images_background.zip"
        self.tar, self.cifar_zip = (
            self.whole / "cifar100" / name for name in ("cifar-100-python.tar.gz", "cifar100.zip")
        )
        with tarfile.open(self.tar) as tar:
            members = {Path(member.name).name: tar.extractfile(member) for member in tar}
            self.parts = {name: file.read() for name, file in members.items() if file}
        self.bomb = gzip.compress(bytes(2**20), 1) * (MAX_UNPACKED // 2**20 + 9)  # one stream after another

    def __call__(self, random: Random, number: int) -> None:
        for folder in (self.root, self.cache):
            shutil.rmtree(folder, ignore_errors=True)
        os.environ["METALSTM_CACHE"] = str(self.cache)
        match number % 8:
            case 0 | 1:
                self._put(self.zip, mutated_bytes(self.zip.read_bytes(), random))
            case 2 | 3:
                self._put(self.zip, self._zip(random))
            case 4:
                self._put(self.tar, mutated_bytes(self.tar.read_bytes(), random))
            case 5:
                self._put(self.tar, self._tar(random))
            case 6:
                write_tar(self.root, self._pickles(random))
            case _:
                self._damage_cache(random)
                return
        sets = data.load("omniglot" if (self.root / "omniglot").exists() else "cifar-fs", self.root)
        assert all(part.images.dtype == np.uint8 for part in sets.splits.values())

    def _put(self, path: Path, content: bytes) -> None:
        """Place an archive, and the other one that the data set needs."""
        place = self.root / path.relative_to(self.whole)
        place.parent.mkdir(parents=True)
        if path == self.zip:
            shutil.copy(self.zip.with_name("images_evaluation.zip"), place.parent)
        place.write_bytes(content)

    def _zip(self, random: Random) -> bytes:
        """The whole archive with further members, or with other ones."""
        file = io.BytesIO(self.zip.read_bytes() if random.rand() < 0.5 else b"")
        with zipfile.ZipFile(self.zip) as whole:
            one = whole.read(next(name for name in whole.namelist() if name.endswith(".png")))
        many = random.rand() < 0.05
        contents = [one, one, one, b"", b"/etc/passwd", random.bytes(99), mutated_bytes(one, random)]
        contents += [] if many else [bytes(10**6), self.zip.read_bytes()]
        kinds = [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED] if many else [zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA]
        with zipfile.ZipFile(file, "a", kinds[random.randint(2)]) as out:
            for _ in range(2000 if many else random.randint(1, 5)):
                info = zipfile.ZipInfo()
                info.filename = NAMES[random.randint(len(NAMES))].encode(errors="replace").decode()
                if random.rand() < 0.5:  # also twice the same
                    info.filename = (
                        f"images_background/New{random.randint(3)}/c{random.randint(3)}/{random.randint(5)}.png"
                    )
                info.external_attr = MODES[random.randint(len(MODES))] << 16
                info.compress_type = out.compression
                out.writestr(info, contents[random.randint(len(contents))])
        changed = bytearray(file.getvalue())
        if random.rand() < 0.3:  # sizes, checksums, flags and offsets of the directory
            start = changed.rfind(b"PK\x01\x02") + random.randint(8, 46)
            changed[start : start + 4] = random.choice(
                [b"\xff\xff\xff\xff", b"\0\0\0\0", b"\xff\xff\xff\x0f", b"\1\0\0\0"]
            )
        return bytes(changed)

    def _tar(self, random: Random) -> bytes:
        """An archive whose members are not what they should be."""
        if random.rand() < 0.03:
            return self.bomb
        file = io.BytesIO()
        with tarfile.open(fileobj=file, mode="w:gz", compresslevel=1) as tar:
            for part, content in self.parts.items():
                info = tarfile.TarInfo(f"cifar-100-python/{part}")
                if random.rand() < 0.6:
                    info.type = TYPES[random.randint(len(TYPES))]
                    info.linkname = str(
                        random.choice(["/etc/passwd", part, f"cifar-100-python/{part}", "../..", "meta"])
                    )
                    info.name = str(random.choice([info.name, info.name, f"/{info.name}", f"../{info.name}"]))
                    info.mode = 0o6777
                info.size = len(content) if random.rand() < 0.8 else int(random.choice([0, 1, 2**33]))
                tar.addfile(info, io.BytesIO(content + bytes(1024)) if info.size <= len(content) else None)
        return file.getvalue()

    def _pickles(self, random: Random) -> dict[str, bytes]:
        """The members with another pickle in one of them."""
        name = str(random.choice(list(self.parts)))
        values = pickle.loads(self.parts[name], encoding="bytes")
        key = list(values)[random.randint(len(values))]
        match random.randint(4):
            case 0:
                content = PICKLES[random.randint(len(PICKLES))]
            case 1:
                content = pickle.dumps(Call(random) if random.rand() < 0.5 else {**values, key: [Call(random)]})
            case 2:
                odd = [None, 0, -1, [], [10**30], b"x", "x", np.zeros((3, 5), "u1"), np.zeros(0), np.array(3), {},
                       np.zeros((3, 3072), "f8"), np.array(["a"]), np.array([(1, 2)], "u1,O"), [[]]]  # fmt: skip
                content = pickle.dumps({**values, key: odd[random.randint(len(odd))]}, int(random.choice([0, 2, 4, 5])))
            case _:
                content = mutated_bytes(self.parts[name], random)
        return self.parts | {name: content}

    def _damage_cache(self, random: Random) -> None:
        """Load a whole data set again whose decoded images were damaged meanwhile: they are decoded anew, or read."""
        shutil.copytree(self.whole / "omniglot", self.root / "omniglot")
        data.load("omniglot", self.root)
        entries = sorted(self.cache.glob("omniglot-*"))
        entry = entries[random.randint(len(entries))]
        call = pickle.dumps(Call(random))
        header = b"\x93NUMPY\x01\0v\0{'descr': '|O', 'fortran_order': False, 'shape': (2**40, 28, 28, 1), }"
        content = [mutated_bytes(entry.read_bytes(), random)] * 4 + [
            b"",
            call,
            header + b" " * 40 + b"\n" + call,
            b"[]",
        ]
        entry.write_bytes(content[random.randint(len(content))])
        sets = data.load("omniglot", self.root)
        assert sum(len(part.classes) for part in sets.splits.values()) == 15
