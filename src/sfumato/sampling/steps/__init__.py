"""The methods that move x from a level t to a cleaner level s; each is one frozen dataclass.

All are written in (alpha, sigma) and log-SNR, so they hold under every scaling, and they are safe at both ends: a step to a level without
noise returns x0, a step from a level without signal is of first order, whatever the method. `chain` has the reverse chains and Euler's
rule, `ode` the multistep and Runge-Kutta solvers of the probability flow, `adams` the one on v, `known` what those that remember share,
`langevin` what walks at one level.
"""

from sfumato.sampling.steps.adams import Adams
from sfumato.sampling.steps.chain import DDIM, Ancestral, EulerMaruyama
from sfumato.sampling.steps.langevin import Corrector, Langevin, PredictorCorrector, langevin
from sfumato.sampling.steps.ode import AdamsBashforth, Heun, Multistep, UniPC

__all__ = [
    "DDIM",
    "Adams",
    "AdamsBashforth",
    "Ancestral",
    "Corrector",
    "EulerMaruyama",
    "Heun",
    "Langevin",
    "Multistep",
    "PredictorCorrector",
    "UniPC",
    "langevin",
]
