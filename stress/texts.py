"""Random configs: real ones with mistakes in them, random YAML, random `key=value` arguments."""

from __future__ import annotations

import random
import re
from pathlib import Path
from typing import Any, get_args, get_origin

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
FILE = "fuzz.yaml"
TINY = ["run.rounds=1", "run.device=cpu", "log.figures=false", "log.progress=none"]
"""Settings that make a run short, if its config turns out to be valid."""

# None of these paths leads out of the folder of all cases, because some become `run.dir`.
NASTY = (
    "", "~", "null", "true", "no", "-1", "0", "1", "2", "-0.0", "1e999", "1e-400", ".nan", ".inf", "-.inf",
    "0x1F", "0o17", "017", "1:30:00", "2001-12-14", "1_000", "9" * 30, "9" * 5000, "1e400", "1e30", "-1e30",
    "[]", "{}", "[[[]]]", "[1, 2", "{a: 1", "{a: {b: {c: 1}}}", "[a, b]", "[1, two, 3.0, ~]", "{1: 2}",
    "{? [a] : b}", "!!python/object/apply:os.getcwd []", "!!python/name:os.system", "!!binary aGk=",
    "!!set {a, b}", "!!float x", "!!int x", "!!timestamp x", "!x y", "&a [*a]", "*nowhere", "&a {<<: *a}",
    "{<<: 5}", "'a", '"a\\', '"\\0"', '"\\uD800"', '"\\U0001F600"', '"a\\nb"', "a\tb", "%TAG", "@x", "`x`",
    "| x", "> x", "? x", "- x", ": x", "# x", "---", "...", "\ufeff", "\u2028", "\x85", "ä" * 300,
    "../../x", "/dev/null", "/proc/self/mem", "/proc", ".", "..", "~nobody/x",
    "x/y/z", " x ", "x" * 5000,
    "digits", "quadratic", "cross_silo", "language", "cobo", "local", "mixed", "adamw", "resnet9",
    "tiny-gpt2", "gguf", "float64", "bfloat16", "vectorised", "auto", "nccl", "cuda:7", "1000000000", "65536",
)  # fmt: skip


def real_config(rng: random.Random, folder: Path) -> list[str]:
    """Write a config of this repository with one or two mistakes in it; return the arguments."""
    path = rng.choice(sorted(CONFIGS.rglob("*.yaml")))
    text = path.read_text(encoding="utf-8")
    text = "\n".join(line for line in text.splitlines() if not line.startswith("#")) + "\n"
    for _ in range(rng.randint(1, 2)):
        text = _mistaken(text, rng)
    content = bytearray(text.encode("utf-8", "surrogatepass"))
    if rng.random() < 0.1 and content:
        content[rng.randrange(len(content))] = rng.randrange(256)
    (folder / FILE).write_bytes(content)
    # Most configs need CIFAR-100 and stop there. With the digits, later mistakes are reached too.
    digits = ["task.name=digits", "model.name=mlp"] if rng.random() < 0.6 else []
    return ["--config", FILE, *digits, *TINY]


def _mistaken(text: str, rng: random.Random) -> str:
    """Return the text with one more mistake."""
    a, b = sorted((rng.randint(0, len(text)), rng.randint(0, len(text))))
    b = min(b, a + 40)
    lines = text.splitlines(keepends=True) or [""]
    values = list(re.finditer(r"(?<=: )[^,{}\[\]\n]+", text))
    keys = list(re.finditer(r"\w+(?=:)", text))
    kind = rng.randrange(9)
    if kind == 0:
        return text[:a] + text[b:]
    if kind == 1:
        return text[:a] + text[a:b] * rng.randint(2, 5) + text[b:]
    if kind == 2:
        return text[:a] + rng.choice(NASTY) + text[a:]
    if kind == 3:
        rng.shuffle(lines)
        return "".join(lines)
    if kind == 4:
        return text[:a]
    if kind == 5:
        at = rng.randrange(len(lines))
        lines[at] = " " * rng.randint(1, 3) + lines[at]
        return "".join(lines)
    if kind == 6 and keys:
        at = rng.choice(keys)
        word = list(at[0])
        word[rng.randrange(len(word))] = rng.choice("abcxyz_.-0")
        return text[: at.start()] + "".join(word) + text[at.end() :]
    if values:
        at = rng.choice(values)
        return text[: at.start()] + rng.choice(NASTY) + text[at.end() :]
    return text[:a] + chr(rng.randrange(0x3000)) + text[a:]


def random_yaml(rng: random.Random, folder: Path) -> list[str]:
    """Write random YAML; return the arguments."""
    kind = rng.random()
    if kind < 0.15:
        content = rng.randbytes(rng.randint(0, 300))
    elif kind < 0.25:
        depth = rng.choice((50, 500, 5000))
        content = (rng.choice(("[", "{a: ", "- ", "&a [")) * depth).encode()
    else:
        sections = [
            "run",
            "task",
            "model",
            "data",
            "algorithm",
            "optimizer",
            "comm",
            "log",
            "x",
            "1",
        ]
        text = "".join(
            f"{rng.choice(sections)}: {_random_value(rng, 0)}\n" for _ in range(rng.randint(1, 5))
        )
        content = text.encode("utf-8", "surrogatepass")
    (folder / FILE).write_bytes(content)
    return ["--config", FILE, *TINY]


def _random_value(rng: random.Random, depth: int) -> str:
    kind = rng.random()
    if kind < 0.5 or depth > 3:
        return rng.choice(NASTY)
    inside = [_random_value(rng, depth + 1) for _ in range(rng.randint(0, 4))]
    if kind < 0.65:
        return f"[{', '.join(inside)}]"
    names = [
        rng.choice(("name", "rounds", "dir", "seed", "lr", "sampling", "rate", "hidden", "a"))
        for _ in inside
    ]
    return "{" + ", ".join(f"{n}: {v}" for n, v in zip(names, inside, strict=True)) + "}"


def random_arguments(rng: random.Random, folder: Path) -> list[str]:
    """Return one to four arguments, mostly with keys of this run and values of the right type."""
    from cobo_dist.config import VARIANTS, Config, all_keys

    algorithm = rng.choice(sorted(VARIANTS["algorithm"]))
    owners: dict[str, Any] = {
        section: VARIANTS[section][name].section
        for section, name in (("task", "digits"), ("model", "mlp"), ("algorithm", algorithm))
    }
    for section, about in Config.model_fields.items():
        owners.setdefault(section, about.annotation)
    plain = {  # keys of no section
        key for key, about in Config.model_fields.items()
        if key not in VARIANTS and not hasattr(about.annotation, "model_fields")
    }  # fmt: skip
    own = [(key, Config.model_fields[key]) for key in sorted(plain)]
    own += [
        (f"{section}.{field.alias or name}", field)
        for section, owner in owners.items()
        if section not in plain
        for name, field in owner.model_fields.items()
        if name != "name"
    ]
    given = [f"algorithm.name={algorithm}"]
    for _ in range(rng.randint(1, 4)):
        key, field = rng.choice(own)
        kind = rng.random()
        if kind < 0.03:
            given.append(rng.choice(NASTY))
        elif kind < 0.06:
            given.append(f"{rng.choice(NASTY[:60])}={rng.choice(NASTY)}")
        elif kind < 0.09:
            given.append(f"{key}.{rng.choice(('x', 'name', ''))}={rng.choice(NASTY)}")
        elif kind < 0.15:
            key, field = rng.choice(all_keys())
            given.append(f"{key}={_value(field, rng)}")
        else:
            given.append(f"{key}={_value(field, rng)}")
    return [*given, *TINY]


def _value(field: object, rng: random.Random) -> str:
    """Return a value that often has the type of the key."""
    kind = getattr(field, "annotation", None)
    options = [option for option in get_args(kind) if isinstance(option, str)]
    draw = rng.random()
    if draw < 0.2:
        return rng.choice(NASTY)
    if options:
        return rng.choice(options)
    if kind is bool:
        return rng.choice(("true", "false"))
    if kind is int:
        return str(rng.choice((0, 1, 1, 2, 2, 3, 3, 7, 10**6, 2**31, 2**63, 10**20, -5)))
    if kind is float:
        return repr(rng.choice((0.0, 0.1, 0.3, 0.5, 0.9, 1.0, 1.5, 1e-9, 1e9, 1e300, 5e-324, -0.1)))
    if get_origin(kind) is tuple:
        return f"[{', '.join(rng.choice(NASTY) for _ in range(rng.randint(0, 3)))}]"
    return rng.choice(("a", "a b", "ä", "0", "1e3", *NASTY))
