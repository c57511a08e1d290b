"""Every method on every cell of `oracle`, into results.json, whose records are kept. `python run.py [METHOD …] [--observations N]`."""

import argparse
import json
import time
from pathlib import Path

import torch
from oracle import DRAWS, NOISES, OBSERVATIONS, SHAPE, Problem, mixture, operators

from sfumato import restoration

RESULTS = Path(__file__).with_name("results.json")
METHODS = {
    "true draws": None,
    "moment matching, 40 (the default)": (restoration.MomentMatching(), 40),
    "moment matching, renoise 0, 40": (restoration.MomentMatching(renoise=0.0), 40),
    "particles, 1,024 × 40": (restoration.TwistedSMC(particles=1024, batch=1024), 40),
    "DDRM, 40": (restoration.DDRM(), 40),
    "DDNM+, 40": (restoration.DDNM(), 40),
    "PiGDM, 40": (restoration.PiGDM(data_std=0.75), 40),
    "DiffPIR, 40": (restoration.DiffPIR(), 40),
    "RePaint, 20 × 10": (restoration.RePaint(), 20),
    "DPS, 200": (restoration.DPS(), 200),
    "split Gibbs, 20 × 10": (restoration.SplitGibbs(), 200),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("methods", nargs="*", default=list(METHODS))
    parser.add_argument("--observations", type=int, default=OBSERVATIONS)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    oracle, found = mixture(), json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for name in asked.methods:
        for seed in range(asked.observations):
            for place, operator in operators().items():
                for noise in NOISES:
                    key = f"{name} | {place} | {noise} | {seed}"
                    if key in found:
                        continue
                    problem, started = Problem(oracle, operator, noise, seed), time.process_time()
                    record = run(problem, METHODS[name])
                    record["seconds"] = time.process_time() - started
                    found[key] = record
                    RESULTS.write_text(json.dumps(found, indent=1))
                    print(key, {k: round(v, 3) for k, v in record.items()}, flush=True)


def run(problem: Problem, method: tuple[restoration.Method, int] | None) -> dict[str, float]:
    generator = torch.Generator().manual_seed(1000 + problem.seed)
    if method is None:
        return problem.score(problem.posterior.sample(DRAWS, generator)[0])
    how, steps = method
    drawn = restoration.draw(
        problem.oracle, problem.y, problem.operator, problem.noise_std, method=how, levels=how.levels(steps), count=DRAWS, shape=SHAPE,
        generator=generator,
    )  # fmt: skip
    record = problem.score(drawn.x[:, 0]) | {"chi_squared": float(drawn.chi_squared.mean())}
    if drawn.log_evidence is not None and drawn.ess is not None:
        exact = problem.oracle.observed(problem.operator.at(SHAPE).matrix, problem.noise_std).log_prob(problem.y.flatten(1))
        record |= {"evidence_error": float(drawn.log_evidence - exact), "least_ess": float(drawn.ess.min())}
    return record


if __name__ == "__main__":
    main()
