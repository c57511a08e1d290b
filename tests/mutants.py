"""Breaks the mathematics on purpose and counts how often a test notices: `make mutants`.

Cosmic Ray finds and applies the mutations (https://cosmic-ray.readthedocs.io): another operator or sign, a number off by one, a comparison
turned, a branch negated. A seeded sample of them is made, each in a copy of the tree, and the tests of its module are run until one fails.
Operators that mostly end in a type error (bits, shifts, removed decorators) are left out: they die by themselves and prove nothing.

A survivor that no test can kill is listed in tests/equivalent_mutants.toml with its reason; others want a test.

    python tests/mutants.py --count 220 --seed 0 --jobs 2
"""

import argparse
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from queue import Queue

from cosmic_ray.ast import ast_nodes, get_ast_from_path
from cosmic_ray.mutating import mutate_code
from cosmic_ray.plugins import get_operator, operator_names

ROOT = Path(__file__).resolve().parents[1]
ARITHMETIC = ("Add", "Sub", "Mul", "Div", "Pow")
OPERATORS = [
    *(f"core/ReplaceBinaryOperator_{a}_{b}" for a in ARITHMETIC for b in ARITHMETIC if a != b),
    *(name for name in operator_names() if "ReplaceComparisonOperator" in name and "Is" not in name),
    "core/ReplaceUnaryOperator_USub_UAdd",
    "core/ReplaceUnaryOperator_Delete_Not",
    "core/ReplaceTrueWithFalse",
    "core/ReplaceFalseWithTrue",
    "core/ReplaceAndWithOr",
    "core/ReplaceOrWithAnd",
    "core/AddNot",
    "core/NumberReplacer",
    "core/ZeroIterationForLoop",
]
TESTS = {  # by a module's path, the first that fits: chapters of the ledger, which are quick, then files of tests
    "schedule.py": ("forward", ["test_options.py", "test_schedule.py", "test_process.py", "test_verify.py"]),
    "process.py": ("forward or latent", ["test_options.py", "test_process.py", "test_likelihood.py", "test_verify.py"]),
    "prediction.py": ("forward", ["test_options.py", "test_prediction.py", "test_denoiser.py", "test_verify.py"]),
    "loss.py": ("losses", ["test_options.py", "test_loss_weights.py", "test_loss_times.py", "test_loss.py", "test_train.py"]),
    "likelihood/flow.py": ("scores", ["test_options.py", "test_flow_likelihood.py"]),
    "likelihood/": ("likelihoods or losses", ["test_options.py", "test_likelihood.py", "test_tuning.py"]),
    "guide.py": ("guidance", ["test_guide.py"]),
    "sampling/steps/adams.py": ("tuning", ["test_options.py", "test_sample_adams.py"]),
    "sampling/steps/langevin.py": ("sampling", ["test_options.py", "test_sample_steps.py"]),
    "sampling/steps/": ("sampling", ["test_options.py", "test_sample.py", "test_sample_steps.py"]),
    "sampling/spacing.py": ("sampling or likelihoods", ["test_options.py", "test_sample.py", "test_sample_adams.py"]),
    "sampling/": ("sampling", ["test_options.py", "test_sample_path.py", "test_sample.py"]),
}


@dataclass(frozen=True)
class Mutant:
    """One mutation: the file, what is done to which of the places where it can be done."""

    module: str
    operator: str
    occurrence: int

    @cached_property
    def code(self) -> str:
        """The mutated source."""
        changed = mutate_code((ROOT / self.module).read_text(), get_operator(self.operator)(), self.occurrence)
        assert changed is not None
        return changed

    def compiles(self) -> bool:
        """Whether it is Python still: a bare * in a signature is no product."""
        try:
            compile(self.code, self.module, "exec")
        except SyntaxError:
            return False
        return True

    @cached_property
    def change(self) -> str:
        """The lines that differ, before and after."""
        before = (ROOT / self.module).read_text().splitlines()
        return " ; ".join(f"{a.strip()}  →  {b.strip()}" for a, b in zip(before, self.code.splitlines(), strict=False) if a != b)


def every_mutant() -> list[Mutant]:
    """All mutations of the modules under test."""
    found = []
    for module in sorted((ROOT / "src/sfumato").rglob("*.py")):
        if not any(str(module.relative_to(ROOT / "src/sfumato")).startswith(place) for place in TESTS):
            continue
        nodes = list(ast_nodes(get_ast_from_path(module)))
        for name in OPERATORS:
            operator = get_operator(name)()
            places = sum(1 for node in nodes for _ in operator.mutation_positions(node))
            found += [Mutant(str(module.relative_to(ROOT)), name, i) for i in range(places)]
    return found


def passes(tree: Path, tests: list[str], seconds: float) -> bool:
    """Whether pytest passes in this copy of the tree; a run that hangs has not."""
    environment = os.environ | {"PYTHONPATH": str(tree / "src"), "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "-o", "addopts=", *tests]  # without types: quicker
    try:
        code = subprocess.run(command, cwd=tree, env=environment, capture_output=True, timeout=seconds, check=False).returncode
    except subprocess.TimeoutExpired:
        return False
    if code == 5:
        raise RuntimeError(f"no test was collected by {tests}; mend TESTS.")
    return code == 0


def stages(module: str) -> list[list[str]]:
    """What pytest is asked to run for a module, quickest first."""
    chapters, files = next(tests for place, tests in TESTS.items() if module.removeprefix("src/sfumato/").startswith(place))
    return [["tests/test_verify.py", "-k", f"({chapters}) and test_a_row_holds"], [f"tests/{name}" for name in files]]


def survives(tree: Path, mutant: Mutant, seconds: float) -> bool:
    """Whether every test passes on the mutant, made in this copy of the tree."""
    target = tree / mutant.module
    original = target.read_text()
    target.write_text(mutant.code)
    try:
        return all(passes(tree, stage, seconds) for stage in stages(mutant.module))
    finally:
        target.write_text(original)


def main() -> None:
    """Makes the sample, prints one line a mutant, and exits 1 where fewer than nine in ten die or a survivor has no reason."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--count", type=int, default=220)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=300, help="a test run that takes longer counts as failed")
    parser.add_argument("--only", default="", help="only modules whose path contains this")
    args = parser.parse_args()
    reasons = {entry["change"]: entry["reason"] for entry in tomllib.loads((ROOT / "tests/equivalent_mutants.toml").read_text())["mutant"]}
    population = [mutant for mutant in every_mutant() if args.only in mutant.module]
    random.Random(args.seed).shuffle(population)
    sample = list(islice(filter(Mutant.compiles, population), args.count))
    print(f"{len(sample)} of {len(population)} mutants, seed {args.seed}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        trees: Queue[Path] = Queue()
        for job in range(args.jobs):
            tree = Path(folder) / str(job)
            for part in ("src", "tests"):
                shutil.copytree(ROOT / part, tree / part, ignore=shutil.ignore_patterns("__pycache__"))
            for name in ("pyproject.toml", "README.md"):
                shutil.copy(ROOT / name, tree / name)
            trees.put(tree)

        if not passes(Path(folder) / "0", ["tests/test_verify.py"], args.seconds):
            sys.exit("the tests fail on the unbroken tree; mend that first.")

        def kill(mutant: Mutant) -> bool:
            tree, started = trees.get(), time.monotonic()
            try:
                dead = not survives(tree, mutant, args.seconds)
            finally:
                trees.put(tree)
            mark = "dead    " if dead else "SURVIVED"
            print(f"{mark} {time.monotonic() - started:5.0f} s  {mutant.module}  {mutant.change}", flush=True)
            return dead

        with ThreadPoolExecutor(args.jobs) as pool:
            dead = list(pool.map(kill, sample))
    survivors = [mutant for mutant, died in zip(sample, dead, strict=True) if not died]
    unexplained = [mutant for mutant in survivors if mutant.change not in reasons]
    share = sum(dead) / len(sample)
    print(f"\n{sum(dead)} of {len(sample)} died ({share:.1%}); {len(unexplained)} of {len(survivors)} survivors lack a reason")
    for mutant in survivors:
        print(f"  {mutant.module}: {mutant.change}\n      {reasons.get(mutant.change, 'no reason yet: write a test')}")
    sys.exit(share < 0.9 or bool(unexplained))


if __name__ == "__main__":
    main()
