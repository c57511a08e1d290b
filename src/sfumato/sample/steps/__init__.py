"""The methods that move x from a level t to a cleaner level s; each is one frozen dataclass.

All are written in (alpha, sigma) and log-SNR, so they hold under every scaling, and they are safe at both ends: a step to a level without
noise returns x0, a step from a level without signal is of first order, whatever the method. Where a step is too long for a method's
order, in itself or beside the step before, it is of a lower one, so that no method is much worse than DDIM. `chain` has the reverse chains
and Euler's rule, `ode` the multistep and Runge-Kutta solvers of the probability flow, `adams` the one on v, `known` what those that
remember share, `final` lower orders at the end, `langevin` what walks at one level.
"""

from sfumato.sample.steps.adams import Adams
from sfumato.sample.steps.chain import DDIM, Ancestral, EulerMaruyama
from sfumato.sample.steps.final import LowerOrderFinal
from sfumato.sample.steps.langevin import Corrector, Langevin, PredictorCorrector, langevin
from sfumato.sample.steps.ode import AdamsBashforth, Heun, Multistep, UniPC

__all__ = [
    "DDIM",
    "Adams",
    "AdamsBashforth",
    "Ancestral",
    "Corrector",
    "EulerMaruyama",
    "Heun",
    "Langevin",
    "LowerOrderFinal",
    "Multistep",
    "PredictorCorrector",
    "UniPC",
    "langevin",
]
