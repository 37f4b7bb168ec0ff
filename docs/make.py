"""Every figure and table of README and docs, the command that makes it, and a check for stale ones.

    python docs/make.py                    list figures and tables, each below its command
    python docs/make.py NAME ...           draw these, and all else that their commands write (takes minutes)
    python docs/make.py --take NAME FILE   store a study's table: a CSV, or the first one of a Markdown file
    python docs/make.py --write            put docs/data into the pages
    python docs/make.py --check            name what is stale; exit code 1 if anything is

`DRAWN` are commands that write their files themselves. `STUDIES` take minutes to days: their tables are kept
as docs/data/NAME.csv, by --take, their figures as the command wrote them. A page has a table or an output
between `<!-- data: NAME -->` and `<!-- end -->`; only this script changes what is there.

Checked: these blocks, cell by cell; that every picture and every file of docs/data is listed here, is shown
by a page, and has a command whose script exists; that the pages `MEASURED` have no other table of numbers
but those of `BY_HAND`. A test draws the pictures that need no training again, and compares pixels.

Typed by hand, and not checked: numbers in sentences, and tables of pages that are not in `MEASURED`, which
state facts (settings, messages, sizes of models). The first numbers of docs/data were taken from the pages.
"""

from __future__ import annotations

import argparse
import csv
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DATA, FIGURES = ROOT / "docs/data", ROOT / "docs/figures"

DRAWN: Mapping[str, str] = {
    "python docs/partition_pictures.py": """
        partition_iid.png partition_quantity.png partition_dirichlet.png partition_pathological.png
        partition_shards.png partition_ring.png partition_disjoint_classes.png structures.png
        partition_pfllib_pathological.png partition_pfllib_dirichlet.png""",
    "RANKS=2 bash launch/quickstart.sh | sed -n '/^final/,$p' >docs/data/quickstart.txt; "
    "cp runs/quickstart/figures/weights_cobo_s0.png docs/figures/quickstart_weights.png": """
        quickstart.txt quickstart_weights.png""",
    "RANKS=2 bash launch/quickstart.sh run.log_weights_every=50; for one in network map tree stability; do "
    "cp runs/quickstart/figures/${one}*.png docs/figures/quickstart_$one.png; done": """
        quickstart_network.png quickstart_map.png quickstart_tree.png quickstart_stability.png""",
    "python docs/rank_spread.py": "ranks.csv",
    "python -m cobo_dist.report --figure-1 --out runs/figure1; "
    "cp runs/figure1/figure1.png docs/figures/client_selection.png": "client_selection.png",
    "python benchmarks/quadratic_problem.py problem.npz; "
    "RANKS=2 bash launch/torchrun.sh --config configs/quadratic.yaml run.dir=runs/quadratic "
    "run.overwrite=true; "
    "cp runs/quadratic/figures/decay.png docs/figures/quadratic_decay.png": """
        quadratic_decay.png""",
    "python -m cobo_dist.train task.clusters=3 clock=virtual clock.policy=bounded clock.staleness=1 "
    "clock.slow_clients=[2] clock.slow_factor=4 run.rounds=16 run.dir=runs/one_slow run.overwrite=true; "
    "cp runs/one_slow/figures/timeline.png docs/figures": "timeline.png",
    "python benchmarks/theory.py --figures docs/figures": """
        theory_rate.png theory_rho.png theory_m.png theory_coupling.png""",
}
"""Command -> the files that it writes into docs/figures (PNG) and docs/data."""

STUDIES: Mapping[str, str] = {
    "python benchmarks/theory.py": "theory_rate.csv theory_conditions.csv",
    "python -m cobo_dist.report runs/digits-* --out report": """
        digits_methods.csv digits_accuracy.png digits_weights.png""",
    "python -m cobo_dist.sweep --config configs/quickstart.yaml run.eval_splits=[validation,test] "
    "algorithm.rho=0.1,0.2,0.5 algorithm.gamma=0.01,0.02,0.05 seed=0,1,2": "digits_tuning.csv",
    "python -m cobo_dist.report runs/silo/*-s? --out report": """
        silo_methods.csv silo_sampling.csv silo_recommended.csv
        cross_silo_accuracy.png cross_silo_weights.png""",
    "python -m cobo_dist.sweep ... algorithm.alignment=inner,cosine algorithm.start=ones,zeros": """
        start_silo.csv start_digits.csv""",
    "python -m cobo_dist.train preset=robust run.threads=1": "robust.csv",
    "python benchmarks/study.py": """
        study_digits.csv study_mnist5k_classes.csv study_mnist5k_dirichlet.csv study_silo.csv study_device.csv
        study_accuracy.png study_device.png""",
    "python -m cobo_dist.report runs/device/*-s? --out report": """
        device_methods.csv cross_device_accuracy.png cross_device_weights.png""",
    "python -m cobo_dist.report runs/language/* --out report": "language_methods.csv language_shares.png",
    "bash benchmarks/short_runs.sh NAME": """
        short_text.csv short_natural.csv short_regression.csv short_mnist5k.csv short_vit.csv
        short_cifar100.csv lstm_accuracy.png""",
    "python -m cobo_dist.prepare --config configs/cpu/vit_dirichlet.yaml task.source.name=mnist5k "
    "--picture docs/figures/mnist5k_labels.png": "mnist5k_labels.png",
    "python benchmarks/structures.py --figures docs/figures": """
        structures.csv structures_gains.csv structures_weights.png""",
    "python benchmarks/bench.py --data DIR": """
        bench.csv bench_digits.csv bench_mnist5k_classes.csv bench_mnist5k_dirichlet.csv bench_cifar100.csv
        bench_ranks.png""",
    "python benchmarks/pfllib.py --data DIR --rounds 2": "pfllib.csv",
    "python benchmarks/sketch.py --figures docs/figures": "sketch.csv sketch.png",
    "python benchmarks/privacy.py": "privacy.csv",
    "python benchmarks/compression.py --figures docs/figures": "compression.csv compression.png",
    "python benchmarks/asynchrony.py --rounds 2000 --seeds 0 --lags 100": "asynchrony.csv",
    "python benchmarks/newcomers.py": "newcomers.csv newcomers_memory.csv",
    "python benchmarks/stragglers.py": "stragglers.csv stragglers.png",
    "python benchmarks/drift.py --rounds 800": "drift_at_once.csv drift_staggered.csv drift_accuracy.png",
    "python benchmarks/floor.py": "floor.csv floor_before.csv",
    "python benchmarks/peers.py": "peers.csv peers_before.csv",
    "python benchmarks/cobo_resnet.py": "authors.csv",
    "python benchmarks/scale.py": "scale.csv",
    "python benchmarks/memory.py": "memory.csv",
    "python benchmarks/placement.py": "placement.csv",
    "mpirun -n 2 python benchmarks/transports.py": "transports.csv",
    "python benchmarks/wire.py": "wire.csv",
    "python benchmarks/allocator.py": "allocator.csv",
    "python benchmarks/gram.py": "gram.csv gram_seconds.csv",
    "python benchmarks/gpu.py": "gpu_ceilings.csv gpu_rounds.csv",
    "python -m pytest tests/integration/test_device_budgets.py": "gpu_waits.csv",
    "python -m stress": """
        stress.csv stress_kills.csv stress_faults.csv stress_owners.csv stress_startup.csv""",
}
"""Command -> the tables (docs/data) and figures (docs/figures) that come from it."""

MEASURED = (
    "README.md",
    *(
        "docs/RESULTS.md",
        "docs/BENCH.md",
        "docs/COBO.md",
        "docs/OPEN_WORLD.md",
        "docs/PERFORMANCE.md",
    ),
    *("docs/GPU.md", "docs/RELIABILITY.md", "docs/DETERMINISM.md"),
)
BY_HAND = {
    "| command | prints | takes |": "benchmarks, and minutes they take",
    "| setting | rule |": "advice, with numbers of the tables below it",
    "| tried | result |": "experiments that were not kept",
    "| | here | paper |": "settings",
    "| `comm.compression` | C | bytes of d numbers of 4 bytes |": "formulas",
}
"""First lines of tables with numbers in the pages `MEASURED` that are typed by hand, and what they have."""

BLOCK = re.compile(
    r"<!-- data: (\w+) -->\n\n(?:((?:(?!<!-- ).)+?)\n\n)?<!-- end -->", re.DOTALL
)  # empty where a page is written before its numbers
TABLE = re.compile(r"(?:^\|.*\n)+", re.MULTILINE)
FENCED = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)


def pages() -> list[Path]:
    """The pages that have figures and tables."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def listed() -> dict[str, str]:
    """Each file of docs/data and docs/figures with its command."""
    return {
        name: command
        for commands in (DRAWN, STUDIES)
        for command, names in commands.items()
        for name in names.split()
    }


def place(name: str) -> Path:
    """Where a listed file is."""
    return (FIGURES if name.endswith(".png") else DATA) / name


def render(name: str, old: str) -> str:
    """Return a block of docs/data as a page shows it. A table keeps the alignments of its old form."""
    if (DATA / f"{name}.txt").exists():
        return f"```text\n{(DATA / f'{name}.txt').read_text().rstrip()}\n```"
    head, *rows = _read_csv(DATA / f"{name}.csv")
    rule = old.splitlines()[1] if old.count("\n") else ""
    if rule.count("|") != len(head) + 1:
        rule = "|---|" + "---:|" * (len(head) - 1)
    return "\n".join([_line(head), rule, *map(_line, rows)])


def rendered(page: str) -> str:
    """Return a page with its blocks as docs/data has them; unknown blocks stay."""

    def block(found: re.Match[str]) -> str:
        name, old = found.groups(default="")
        known = any((DATA / f"{name}{end}").exists() for end in (".csv", ".txt"))
        return (
            f"<!-- data: {name} -->\n\n{render(name, old)}\n\n<!-- end -->" if known else found[0]
        )

    return BLOCK.sub(block, page)


def take(name: str, file: Path) -> None:
    """Store the table of a CSV, or the first one of a Markdown file, as docs/data/NAME.csv."""
    if file.suffix == ".csv":
        rows = _read_csv(file)
    else:
        found = TABLE.search(file.read_text())
        if found is None:
            sys.exit(f"error: {file} has no table; give a Markdown file that has one, or a CSV")
        head, _, *body = found[0].splitlines()
        rows = [_cells(line) for line in (head, *body)]
    DATA.mkdir(exist_ok=True)
    with (DATA / f"{name}.csv").open("w", newline="") as stored:
        csv.writer(stored, lineterminator="\n").writerows(rows)


def stale() -> Iterator[str]:
    """Say, one line each, what is not as its file or its list says."""
    known, shown = listed(), "".join(page.read_text() for page in pages())
    for name, command in known.items():
        if not place(name).exists():
            yield f"{place(name).relative_to(ROOT)} is missing; make it: {command}"
        wanted = (
            f"figures/{name})" if name.endswith(".png") else f"<!-- data: {place(name).stem} -->"
        )
        if wanted not in shown:
            yield f"{name} is shown by no page; show it, or take it off the list in docs/make.py"
        for script in re.findall(r"(?:python|bash) (\S+\.(?:py|sh))", command):
            if not (ROOT / script).exists():
                yield f"{name}: {script} of its command does not exist"
    for file in sorted([*DATA.glob("*"), *FIGURES.glob("*")]):
        if file.name not in known:
            yield f"{file.relative_to(ROOT)} has no command in docs/make.py"
    for page in pages():
        name, text = str(page.relative_to(ROOT)), page.read_text()
        if (new := rendered(text)) != text:
            pairs = zip(text.splitlines(), new.splitlines(), strict=False)
            line = next((f"{a!r} is {b!r} there" for a, b in pairs if a != b), "its length")
            yield f"{name} differs from docs/data: {line}; run python docs/make.py --write"
        for block, _ in BLOCK.findall(text):
            if not {f"{block}.csv", f"{block}.txt"} & known.keys():
                yield f"{name}: block {block} is not in docs/make.py"
        if text.count("<!-- data: ") != len(BLOCK.findall(text)):
            yield f"{name}: a block has no end, or no empty lines around its content"
    typed = {
        one: name for name in MEASURED for one in _typed((ROOT / name).read_text(encoding="utf-8"))
    }
    for one in typed.keys() - BY_HAND.keys():
        yield f"{typed[one]}: a table of numbers typed by hand: {one}"
    for one in BY_HAND.keys() - typed.keys():
        yield f"docs/make.py: BY_HAND names no table of the pages MEASURED: {one}"


def _typed(text: str) -> list[str]:
    """The first lines of tables with numbers that are outside of blocks."""
    tables = (one.splitlines() for one in TABLE.findall(FENCED.sub("", BLOCK.sub("", text))))
    return [
        first for first, *rest in tables if any(re.search(r"\| *[-+]?\d", line) for line in rest)
    ]


def _read_csv(path: Path) -> list[list[str]]:
    with path.open(newline="") as file:
        return list(csv.reader(file))


def _line(cells: Sequence[str]) -> str:
    return "".join(f"| {cell} " if cell else "| " for cell in cells) + "|"


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in re.split(r"(?<!\\)\|", line.strip()[1:-1])]


def main(argv: Sequence[str] | None = None) -> int:
    """Do what the command line says; return the exit code."""
    parser = argparse.ArgumentParser(
        usage="python docs/make.py [NAME ... | --take NAME FILE | --write | --check]",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--take", nargs=2, metavar=("NAME", "FILE"))
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args(argv)
    commands = {name: command for command, names in DRAWN.items() for name in names.split()}
    if unknown := [name for name in options.names if name not in commands]:
        parser.error(f"{unknown[0]} is none of those drawn here: {', '.join(commands)}")
    if options.take and f"{options.take[0]}.csv" not in listed():
        parser.error(
            f"--take {options.take[0]}: there is no such table; add it to STUDIES with its command"
        )
    for command in dict.fromkeys(commands[name] for name in options.names):
        subprocess.run(["bash", "-euo", "pipefail", "-c", command], cwd=ROOT, check=True)
    if options.take:
        take(options.take[0], Path(options.take[1]))
    if options.write or options.names or options.take:
        for page in pages():
            page.write_text(rendered(page.read_text()))
    elif not options.check:
        for title, group in (("drawn here", DRAWN), ("studies", STUDIES)):
            for command, names in group.items():
                print(f"{title}: {command}", *(f"    {name}" for name in names.split()), sep="\n")
    problems = list(stale()) if options.check else []
    print(*problems, sep="\n", end="\n" if problems else "")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
