"""Documentation and source code of installed packages, parsed without importing them."""

from __future__ import annotations

import ast
import importlib.util
import platform
import sys
import sysconfig
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from tinylib import files, hardware
from tinylib.corpus.documents import Corpus
from tinylib.corpus.questions import harvest_questions
from tinylib.corpus.reading import Document, plain
from tinylib.corpus.split import SPLITS, VALIDATION_SHARE, digest, in_validation

PACKAGES = ("torch", "numpy", "pandas", "matplotlib", "scipy", "networkx", "pyarrow", "huggingface_hub", "fsspec",
            "PIL", "fontTools", "IPython", "jupyter_server", "jupyter_client", "ipykernel", "traitlets", "tornado",
            "prompt_toolkit", "rich", "pygments", "jedi", "setuptools")
"""Packages whose documentation is harvested if they are installed, by the name under which they are imported.

The course's dependencies and theirs; not what only tests need, so that both kinds of installation get the same text.
"""

BUILT_IN = ("pydocs", "pydocs-stdlib", "pysource", "pyqa", "pyqa-stdlib")
_RECIPE = 1    # raise it when the harvest changes, so that older harvests are replaced
_MANIFEST = "manifest.json"
_SKIPPED = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__", "_vendor", "_bundled"}
_REPEATED_CHARS = 40    # shorter paragraphs, such as "Parameters", repeat because they are the form of documentation


def built_in(name: str, folder: Path, refresh: bool) -> Corpus:
    """The built-in corpus `name` in `folder`, harvested if it isn't there whole."""
    known = files.read_json(folder / _MANIFEST)
    if refresh or known is None or known["recipe"] != _RECIPE or any(
            not (folder / file["name"]).is_file() or (folder / file["name"]).stat().st_size != file["bytes"]
            for split in known["splits"].values() for file in split["files"]):
        _harvest_into(folder, name)
    return Corpus(name, (folder / "train.parquet",), (folder / "val.parquet",), manifest_file=folder / _MANIFEST)


def _harvest_into(folder: Path, name: str) -> None:
    """Harvest the built-in corpus `name` into `folder`, atomically."""
    import pyarrow
    import pyarrow.parquet

    sources = installed(with_packages=not name.endswith("-stdlib"))
    if name.startswith("pyqa"):
        documents = harvest_questions(_read(sources, documentation))
    else:
        documents = harvest(sources, source_code if name == "pysource" else documentation)
    facts = {"recipe": _RECIPE, "python": platform.python_version(), "platform": sys.platform,
             "split": f"by hash of the module's name, {VALIDATION_SHARE:.0%} validation",
             "sources": [source.facts() for source in sources]}
    schema = pyarrow.schema([("name", pyarrow.string()), ("text", pyarrow.string())])
    with files.write_folder(folder, ("train.parquet", "val.parquet", _MANIFEST)) as part:
        for split in SPLITS:
            chosen = [vars(document) for document in documents
                      if in_validation(document.name.partition(":")[0]) == (split == "val")]
            pyarrow.parquet.write_table(pyarrow.Table.from_pylist(chosen, schema), part / f"{split}.parquet",
                                        compression="zstd", row_group_size=1024)
        corpus = Corpus(name, (part / "train.parquet",), (part / "val.parquet",), facts)
        files.write_json(part / _MANIFEST, corpus.manifest)


@dataclass(frozen=True)
class Source:
    """A package whose files are harvested; `package` is None for the standard library."""

    folder: Path
    package: str | None = None

    def modules(self) -> list[tuple[str, Path]]:
        """Name and file of each module, without tests and vendored copies, sorted by name."""
        prefix = (self.package,) if self.package else ()
        found = []
        for file in self.folder.rglob("*.py"):
            parts = file.relative_to(self.folder).with_suffix("").parts
            if _SKIPPED.isdisjoint(parts) and not parts[-1].startswith("test_") and not parts[-1].endswith("_test"):
                found.append((".".join(prefix + (parts[:-1] if parts[-1] == "__init__" else parts)), file))
        return sorted(found)

    def facts(self) -> dict[str, str]:
        """Name, version and licence as the package states them."""
        if self.package is None:
            return {"name": "python", "version": platform.python_version(), "licence": "PSF-2.0"}
        try:
            about = metadata.metadata("pillow" if self.package == "PIL" else self.package)
        except metadata.PackageNotFoundError:    # put on the path by hand
            return {"name": self.package, "version": "not stated", "licence": "not stated"}
        classifiers = [line.split(" :: ")[-1] for line in about.get_all("Classifier") or [] if "License ::" in line]
        stated = about["License-Expression"] or "; ".join(classifiers) or about["License"] or "not stated"
        return {"name": self.package, "version": about["Version"], "licence": stated.strip().splitlines()[0]}


def installed(with_packages: bool) -> list[Source]:
    """The standard library and, `with_packages`, those of PACKAGES that are installed."""
    sources = [Source(Path(sysconfig.get_paths()["stdlib"]))]
    for package in sorted(PACKAGES) if with_packages else ():
        found = importlib.util.find_spec(package)
        if found is not None and found.submodule_search_locations:
            sources.append(Source(Path(found.submodule_search_locations[0]), package))
    return sources


Entries = list[tuple[str, str]]    # heading, text


def harvest(sources: Iterable[Source], reader: Callable[[Path], Entries], processes: int | None = None
            ) -> list[Document]:
    """One document a module, read in parallel, without repeated paragraphs and duplicate documents.

    `reader` turns a file into headings and texts; `processes` is one a core by default.  Documents are sorted by a
    hash of their names, so that the first part of the corpus is a fair sample, and don't depend on `processes`.
    """
    seen: set[bytes] = set()
    documents: dict[str, str] = {}
    for name, entries in _read(sources, reader, processes):
        text = "".join(text for _, text in entries)
        if reader is documentation:
            parts = _unrepeated(entries, seen)
            text = "\n\n".join([name, *parts]) if parts else ""
        if text:
            documents.setdefault(name, text)
    unique = {digest(text): Document(name, text) for name, text in reversed(documents.items())}
    return sorted(unique.values(), key=lambda document: digest(document.name))


def _read(sources: Iterable[Source], reader: Callable[[Path], Entries], processes: int | None = None
          ) -> Iterable[tuple[str, Entries]]:
    """Name of each module, and what `reader` finds in its file."""
    from joblib import Parallel, delayed
    from joblib.externals.loky import get_reusable_executor

    modules = [module for source in sources for module in source.modules()]
    workers = processes or (hardware.cores() if len(modules) >= 100 else 1)
    try:
        found = Parallel(n_jobs=workers)(delayed(reader)(file) for _, file in modules)
    finally:
        if workers > 1:
            get_reusable_executor().shutdown(wait=True)
    return zip((name for name, _ in modules), found, strict=True)


def documentation(file: Path) -> Entries:
    """Headings and docstrings of a module, its classes and its functions; none for a file that Python can't parse."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")    # about invalid escapes in other people's code
            return _docstrings(ast.parse(file.read_bytes()), "")
    except (SyntaxError, ValueError, RecursionError, MemoryError, OSError):    # the middle two: nested too deeply
        return []


def _docstrings(node: Any, prefix: str) -> Entries:
    text = ast.get_docstring(node)
    found = [(_heading(node, prefix), plain(text))] if text else []
    if isinstance(node, ast.Module | ast.ClassDef):
        prefix = f"{prefix}{node.name}." if isinstance(node, ast.ClassDef) else ""
        for child in node.body:
            if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                found += _docstrings(child, prefix)
    return found


def _heading(node: Any, prefix: str) -> str:
    """The signature: `class Name(Base)`, `Name.method(self, x=0)`; empty for a module."""
    if isinstance(node, ast.Module):
        return ""
    if isinstance(node, ast.ClassDef):
        bases = ", ".join(map(ast.unparse, node.bases))
        return plain(f"class {prefix}{node.name}({bases})" if bases else f"class {prefix}{node.name}")
    return plain(f"{prefix}{node.name}({ast.unparse(node.args)})")


def source_code(file: Path) -> Entries:
    """The whole file of a module; nothing for a file that is not UTF-8."""
    try:
        return [("", file.read_text(encoding="utf-8"))]
    except (UnicodeDecodeError, OSError):
        return []


def _unrepeated(entries: Entries, seen: set[bytes]) -> list[str]:
    """The parts of a document, without paragraphs in `seen` and headings whose whole text was; adds to `seen`."""
    parts = []
    for heading, text in entries:
        kept = []
        for paragraph in text.split("\n\n"):
            words = " ".join(paragraph.split())
            if words and (len(words) < _REPEATED_CHARS or digest(words) not in seen):
                kept.append(paragraph)
            seen.add(digest(words))
        if kept:
            parts += [heading, *kept] if heading else kept
    return parts
