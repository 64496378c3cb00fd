"""What a disk may hold after power was lost, worked out from a recording.

The rules are those that POSIX file systems keep to, and nothing beyond them:

* Until its file was synced, each write is on the disk, or it is not, or any of its blocks
  are, or only the file's length shows it; whatever became of the writes before and after
  it. What was there before is not damaged by a write that did not happen. A write has up to
  four blocks here, however short it is.
* So is each truncation, on its own.
* Until its directory was synced, each name is what it was, or what it became at any time
  since, whatever became of the other names and of the bytes they lead to: a name may lead
  to a file without bytes, and bytes may be there without a name.
* A rename is atomic: the old name does not go before the new one is there. That both are
  there is possible.
* A sync that failed made nothing durable, and a later one that succeeds does not make up
  for it: the kernel considers the pages written. They stay in doubt until something is
  written there anew.

A crash of the process alone loses nothing: the newest state of everything. Power need not
be lost for the rest: a file system that is shut down, or detached and mounted again, loses
what a power loss does. Nothing here tells a store which of them it was.

SQLite's files are files like others. It relies on two things more, which are kept here:
that a write does not damage the bytes next to it, and, in its own words, that a sync is
a barrier.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path

from tests.store.crashes.recording import (
    Call,
    Create,
    Link,
    MakeDirectory,
    Note,
    RemoveDirectory,
    Replace,
    SyncDirectory,
    SyncEverything,
    SyncFile,
    Truncate,
    Unlink,
    Write,
)

__all__ = ["Pick", "Platter", "Remains", "every", "newest", "some"]

_MOST_BLOCKS = 4

Pick = Callable[[int], int]
"""Chooses one of so many outcomes. The first is that nothing is lost."""


@dataclass(frozen=True)
class Remains:
    """What a crash left: directories, files by their names, and the files' bytes."""

    directories: tuple[str, ...]
    names: dict[str, int]
    contents: dict[int, bytes]

    def digest(self) -> bytes:
        hasher = blake2b(repr((self.directories, sorted(self.names.items()))).encode())
        for file, content in sorted(self.contents.items()):
            hasher.update(b"%d %d " % (file, len(content)))
            hasher.update(content)
        return hasher.digest()

    def put_into(self, root: Path) -> None:
        """Make it real in the directory *root*."""
        for directory in self.directories:
            os.mkdir(root / directory)
        places: dict[int, Path] = {}
        for name, file in self.names.items():
            if file in places:
                os.link(places[file], root / name)
            else:
                places[file] = root / name
                places[file].write_bytes(self.contents[file])


@dataclass(eq=False)
class _Change:
    """A write or a truncation, and whether it is on the disk for certain."""

    call: Write | Truncate
    settled: bool = False
    doomed: bool = False


@dataclass(eq=False)
class _File:
    number: int
    settled: bytearray = field(default_factory=bytearray)
    changes: list[_Change] = field(default_factory=list)

    def sync(self, *, failed: bool) -> None:
        for change in self.changes:
            if failed:
                change.doomed = not change.settled
            elif not change.doomed:
                change.settled = True
        while self.changes and self.changes[0].settled:
            _apply(self.changes.pop(0).call, self.settled, 0)

    def content(self, pick: Pick) -> bytes:
        content = bytearray(self.settled)
        for change in self.changes:
            outcomes = 1 if change.settled else _outcomes(change.call)
            _apply(change.call, content, pick(outcomes) if outcomes > 1 else 0)
        return bytes(content)


def _outcomes(call: Write | Truncate) -> int:
    return 2 if isinstance(call, Truncate) else 2 ** _blocks(call) + 1


def _blocks(call: Write) -> int:
    return min(len(call.data), _MOST_BLOCKS)


def _apply(call: Write | Truncate, content: bytearray, outcome: int) -> None:
    """All of it happened; some of its blocks; only the length; nothing."""
    if outcome == _outcomes(call) - 1:
        return
    if isinstance(call, Truncate):
        del content[call.length :]
        content.extend(bytes(call.length - len(content)))
        return
    end = call.at + len(call.data)
    content.extend(bytes(max(0, end - len(content))))
    count = _blocks(call)
    kept = 2**count - 1 - outcome
    for block in range(count):
        if kept & 1 << block:
            start, stop = (len(call.data) * at // count for at in (block, block + 1))
            content[call.at + start : call.at + stop] = call.data[start:stop]


@dataclass(eq=False)
class _Directory:
    names: dict[str, _Name] = field(default_factory=dict)

    def sync(self, *, failed: bool) -> None:
        for name in self.names.values():
            name.sync(failed=failed)
        self.names = {n: name for n, name in self.names.items() if not name.is_nothing}


_Node = _File | _Directory


@dataclass(eq=False)
class _Meaning:
    """What a name stands for, from some moment on."""

    node: _Node | None
    doomed: bool = False
    needs: tuple[_Name, _Meaning] | None = None
    """Of the old name of a rename: the new one, which must be there if this is."""


@dataclass(eq=False)
class _Name:
    meanings: list[_Meaning]
    """The first is settled, the last is the newest."""

    @property
    def newest(self) -> _Node | None:
        return self.meanings[-1].node

    @property
    def is_nothing(self) -> bool:
        return len(self.meanings) == 1 and self.newest is None

    def sync(self, *, failed: bool) -> None:
        if failed:
            for meaning in self.meanings[1:]:
                meaning.doomed = True
            return
        first = max(i for i, m in enumerate(self.meanings) if not (i and m.doomed))
        self.meanings = self.meanings[first:]


class Platter:
    """The disk, while the calls of a recording are played to it one by one.

    It begins with what is under *root*, all of which is on the disk for certain; *adopt*
    gives the number of a file there.
    """

    def __init__(self, root: Path, adopt: Callable[[str], int]) -> None:
        self._root = _Directory()
        self._files: dict[int, _File] = {}
        for at, directories, names in os.walk(root):
            here = os.path.relpath(at, root)
            for name in directories:
                self._set(os.path.join(here, name), _Directory())
            for name in names:
                path = os.path.normpath(os.path.join(here, name))
                number = adopt(path)
                if number not in self._files:
                    content = bytearray((root / path).read_bytes())
                    self._files[number] = _File(number, content)
                self._set(path, self._files[number])
        self._each_directory(lambda directory: directory.sync(failed=False))

    # The newest state, which is what the calls refer to.

    def _directory(self, path: str) -> _Directory:
        node: _Node | None = self._root
        for part in Path(path).parts:
            assert isinstance(node, _Directory)
            node = node.names[part].newest
        assert isinstance(node, _Directory)
        return node

    def _name(self, path: str) -> _Name:
        directory, name = os.path.split(os.path.normpath(path))
        names = self._directory(directory).names
        return names.setdefault(name, _Name([_Meaning(None)]))

    def _set(
        self,
        path: str,
        node: _Node | None,
        needs: tuple[_Name, _Meaning] | None = None,
    ) -> tuple[_Name, _Meaning]:
        name, meaning = self._name(path), _Meaning(node, needs=needs)
        name.meanings.append(meaning)
        return name, meaning

    def _each_directory(self, act: Callable[[_Directory], None]) -> None:
        waiting = [self._root]
        while waiting:
            directory = waiting.pop()
            act(directory)
            for name in directory.names.values():
                nodes = [meaning.node for meaning in name.meanings]
                waiting += [node for node in nodes if isinstance(node, _Directory)]

    def play(self, call: Call) -> None:
        """*call* is made."""
        match call:
            case Create(path, file):
                self._files[file] = _File(file)
                self._set(path, self._files[file])
            case MakeDirectory(path):
                self._set(path, _Directory())
            case Write(file) | Truncate(file):
                self._files[file].changes.append(_Change(call))
            case Link(source, target):
                self._set(target, self._name(source).newest)
            case Unlink(path) | RemoveDirectory(path):
                self._set(path, None)
            case Replace(source, target):
                new = self._set(target, self._name(source).newest)
                self._set(source, None, needs=new)
            case SyncFile(file, failed):
                self._files[file].sync(failed=failed)
            case SyncDirectory(path, failed):
                self._directory(path).sync(failed=failed)
            case SyncEverything(failed):
                for each in self._files.values():
                    each.sync(failed=failed)
                self._each_directory(lambda directory: directory.sync(failed=failed))
            case Note():
                pass

    # What may be left.

    def remains(self, pick: Pick) -> Remains:
        """One of the states that a crash may leave: *pick* chooses."""
        directories: list[str] = []
        names: dict[str, int] = {}
        contents: dict[int, bytes] = {}
        waiting = [("", self._root)]
        while waiting:
            path, directory = waiting.pop()
            for name, node in self._names_left(directory, pick):
                at = os.path.join(path, name)
                if isinstance(node, _Directory):
                    directories.append(at)
                    waiting.append((at, node))
                else:
                    names[at] = node.number
                    if node.number not in contents:
                        contents[node.number] = node.content(pick)
        return Remains(tuple(directories), names, contents)

    def _names_left(
        self, directory: _Directory, pick: Pick
    ) -> Iterator[tuple[str, _Node]]:
        chosen: dict[_Name, int] = {}
        for name in directory.names.values():
            last = len(name.meanings) - 1
            chosen[name] = last - pick(last + 1) if last else 0
        for name, at in chosen.items():
            needs = name.meanings[at].needs
            if needs is not None:
                other, meaning = needs
                # Within one directory; what is settled there is not in question.
                if other in chosen and meaning in other.meanings[chosen[other] + 1 :]:
                    chosen[name] = at - 1
        for text, name in sorted(directory.names.items()):
            node = name.meanings[chosen[name]].node
            if node is not None:
                yield text, node


def newest(outcomes: int) -> int:
    """Nothing is lost."""
    return 0


def every(platter: Platter) -> Iterator[Remains]:
    """All the states that a crash may leave now."""
    picked: list[tuple[int, int]] = []
    while True:
        at = 0

        def pick(outcomes: int) -> int:
            nonlocal at
            if at == len(picked):
                picked.append((0, outcomes))
            at += 1
            return picked[at - 1][0]

        yield platter.remains(pick)
        while picked and picked[-1][0] + 1 == picked[-1][1]:
            picked.pop()
        if not picked:
            return
        choice, outcomes = picked[-1]
        picked[-1] = (choice + 1, outcomes)


def some(platter: Platter, most: int, draw: random.Random) -> Iterable[Remains]:
    """All of the states if they are at most *most*; else so many of them.

    Among these are those in which as much and as little as possible is lost, and those
    in which all but one thing is.
    """
    states: list[Remains] = []
    for state in every(platter):
        states.append(state)
        if len(states) > most:
            return _sample(platter, most, draw)
    return states


def _sample(platter: Platter, most: int, draw: random.Random) -> Iterator[Remains]:
    things = 0

    def count(outcomes: int) -> int:
        nonlocal things
        things += 1
        return 0

    yield platter.remains(count)
    yield platter.remains(lambda outcomes: outcomes - 1)
    yield platter.remains(lambda outcomes: min(1, outcomes - 1))
    singles = [(which, lost) for which in range(things) for lost in (True, False)]
    for which, lost in draw.sample(singles, min(len(singles), most // 3)):
        yield platter.remains(_all_but(which, lost=lost))
    for _ in range(most - 3 - min(len(singles), most // 3)):
        # All levels of loss, not only about half of everything.
        share = draw.random()
        yield platter.remains(
            lambda outcomes, share=share: (  # type: ignore[misc]
                draw.randrange(1, outcomes) if draw.random() < share else 0
            )
        )


def _all_but(which: int, *, lost: bool) -> Pick:
    """The choice by which thing number *which* is lost, or alone is not."""
    seen = -1

    def pick(outcomes: int) -> int:
        nonlocal seen
        seen += 1
        return outcomes - 1 if (seen == which) == lost else 0

    return pick
