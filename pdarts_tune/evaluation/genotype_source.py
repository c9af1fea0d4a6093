"""Genotypes by source: a published name, a text, a file, the seed of a random one, or a study's results."""

from __future__ import annotations

import codecs
import os
import random
import re
from collections.abc import Mapping
from pathlib import Path

from pdarts_tune.config.serialize import ConfigError, derive_seed
from pdarts_tune.pdarts.genotype import Genotype, random_genotype
from pdarts_tune.pdarts.published import PUBLISHED, published_name
from pdarts_tune.results.tables import final_genotypes, read_table

MAX_SKIPS = "2"  # the limit of P-DARTS; random genotypes have the same, so that they are a fair control
RANDOM = "random:"


def has_limits(source: str) -> bool:
    """Whether the genotypes of a source depend on skip limits."""
    return source.startswith(RANDOM) or (not _is_text(source) and os.path.isdir(source))  # noqa: PTH112  (unlike Path's, for names of any length)


def _is_text(source: str) -> bool:
    return re.search(r"Genotype\s*\(|^\s*\{", source) is not None


def find_genotypes(source: str, max_skips: str | None = None) -> Mapping[str, Genotype]:
    """The distinct genotypes of `source`, by a label to print.

    A study's results folder gives the final genotypes of its searches at the limits `max_skips` (2, 0,2 or 0..8; by default 2).
    A file with several different genotypes needs a choice: FILE:last, FILE:LINE (a number) or FILE:NAME (a variable).
    `random:SEED` is a draw from all genotypes whose normal cell has no more skip-connects than the limit, one for each limit.

    Raises:
        ConfigError: no such name, file or text; skip limits that are not between 0 and 8, or for a source without any.
    """
    is_text = _is_text(source)
    if max_skips is not None and not has_limits(source):
        raise ConfigError(f"max_skips: {max_skips} is for results folders and random genotypes, and {source[:60]!r} is neither")
    limits = parse_limits(MAX_SKIPS if max_skips is None else max_skips)
    if has_limits(source) and not source.startswith(RANDOM):
        return _from_results(Path(source), limits)
    name = published_name(source)
    if name is not None and (name == source or not Path(source).exists()):
        return {name: PUBLISHED[name].genotype}
    if source.startswith(RANDOM):
        seed = source.removeprefix(RANDOM)
        if not seed.isdecimal():
            raise ConfigError(f"genotype: {source!r} is wrong, it must be random: and a whole number")
        draws = {limit: random_genotype(random.Random(derive_seed(int(seed), "genotype")), limit) for limit in limits}
        return {source if max_skips is None else f"{source} M={limit}": genotype for limit, genotype in draws.items()}
    if is_text:
        label, text, choice = "", source, None
    else:
        path, _, choice = (source, "", None) if os.path.isfile(source) else source.rpartition(":")  # noqa: PTH113
        if not os.path.isfile(path):  # noqa: PTH113
            raise ConfigError(f"genotype: {source[:60]!r} is neither a file nor a published name, known are {', '.join(PUBLISHED)}")
        label, text = Path(source).name, _read_text(Path(path))
    try:
        genotype = Genotype.parse(text, choice)
    except ValueError as error:
        raise ConfigError(str(error) if is_text else f"{path}: {error}") from None
    return {label or genotype.genotype_id: genotype}


def _read_text(path: Path) -> str:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from None
    wide = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))  # as PowerShell writes files
    return content.decode("utf-16" if wide else "utf-8-sig", errors="replace")


def named_genotypes(sources: str) -> dict[str, tuple[str, Genotype]]:
    """Genotypes of several sources (SOURCE or NAME=SOURCE, with commas), by the name of their variant, each with its origin.

    Raises:
        ConfigError: as `find_genotypes`; two have one name, or are one genotype from one source.
    """
    variants: dict[str, tuple[str, Genotype]] = {}
    for item in _split(sources):
        named = re.fullmatch(r"([^=/(\[{]+)=(.*)", item, re.DOTALL)
        name, source = named.groups() if named else ("", item)
        genotypes = find_genotypes(source)
        for label, genotype in genotypes.items():
            parts = [name] if name and len(genotypes) == 1 else [part for part in (name, label.split(" ")[0]) if part]
            variant = re.sub(r"[^A-Za-z0-9_.-]+", "_", ".".join(parts)).strip("_.-")
            if variant in variants:
                raise ConfigError(f"genotypes: two are called {variant}; give each source a name, as in NAME={source}")
            origin = label if label in (source, published_name(source)) else f"{source}: {label}"
            given = ("a text" if _is_text(source) else origin, genotype)
            if twin := next((name for name, other in variants.items() if other == given), None):
                raise ConfigError(f"genotypes: {twin} and {variant} are one genotype from one source; leave out one of the two")
            variants[variant] = given
    return variants


def _split(sources: str) -> list[str]:
    """The parts between commas that are in no bracket: texts of genotypes are full of commas."""
    parts, depth = [""], 0
    for character in sources:
        depth += (character in "([{") - (character in ")]}")
        if character == "," and depth <= 0:
            parts.append("")
        else:
            parts[-1] += character
    return parts


def parse_limits(text: str) -> list[int]:
    """Skip limits: 2, 0,2 or 0..8. Raises ConfigError."""
    limits: list[int] = []
    for part in text.split(","):
        first, dots, last = part.strip().partition("..")
        if not first.isdecimal() or (dots and not last.isdecimal()):
            raise ConfigError(f"max_skips: {text!r} is wrong, it must be like 2, 0,2 or 0..8")
        limits += range(int(first), int(last if dots else first) + 1)
    if not limits or not all(0 <= limit <= 8 for limit in limits):
        raise ConfigError(f"max_skips: {text!r} is wrong, skip limits are between 0 and 8")
    return limits


def _from_results(folder: Path, limits: list[int]) -> Mapping[str, Genotype]:
    trials = read_table(folder, "trials", ["trial_id", "status", "max_skips"])
    rows = final_genotypes(read_table(folder, "genotypes"), trials, limits).sort_values(["trial_id", "max_skips"], kind="stable")
    if rows.empty:
        raise ConfigError(f"genotype: {folder} has no genotype of a finished search with skip limits {limits}")
    genotypes: dict[str, Genotype] = {}
    for text, group in rows.groupby("genotype", sort=False):
        origins = [f"{trial} M={','.join(map(str, part.max_skips))}" for trial, part in group.groupby("trial_id", sort=False)]
        genotypes["; ".join(origins)] = Genotype.parse(str(text))
    return genotypes
