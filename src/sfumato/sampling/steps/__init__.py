"""The methods that move x from a level t to a cleaner level s; each is a frozen dataclass.

All are written in (alpha, sigma) and log-SNR, so they work under every scaling, and at both ends: a step to a level without noise returns
x0, a step from a level without signal is of first order, whatever the method. If a step is too long for a method's order, in itself or
relative to the previous step, the order is lowered, so that no method is much worse than DDIM. `chain` has the reverse chains and
Euler-Maruyama, `ode` multistep and Runge-Kutta solvers of the probability flow, `adams` the one on v, `history` what multistep methods
share, `final` lower orders at the end, `langevin` Langevin dynamics at one level, `singlestep` solvers that evaluate between the levels,
`plms` those with the weights of equal steps, `renoised` methods that add and remove noise, `sde` solvers on a Brownian path (`brownian`),
`adaptive` the solver with adaptive steps.
"""

from sfumato.sampling.steps.adams import Adams
from sfumato.sampling.steps.adaptive import AdaptiveSDE
from sfumato.sampling.steps.brownian import BrownianPath
from sfumato.sampling.steps.chain import DDIM, Ancestral, EulerMaruyama
from sfumato.sampling.steps.final import LowerOrderFinal
from sfumato.sampling.steps.langevin import Corrector, Langevin, PredictorCorrector, langevin
from sfumato.sampling.steps.ode import AdamsBashforth, Heun, Multistep, UniPC
from sfumato.sampling.steps.plms import PLMS
from sfumato.sampling.steps.renoised import EDM, Renoised, Restart
from sfumato.sampling.steps.sde import MultistepSDE, SinglestepSDE
from sfumato.sampling.steps.singlestep import Singlestep

__all__ = [
    "DDIM",
    "EDM",
    "PLMS",
    "Adams",
    "AdamsBashforth",
    "AdaptiveSDE",
    "Ancestral",
    "BrownianPath",
    "Corrector",
    "EulerMaruyama",
    "Heun",
    "Langevin",
    "LowerOrderFinal",
    "Multistep",
    "MultistepSDE",
    "PredictorCorrector",
    "Renoised",
    "Restart",
    "Singlestep",
    "SinglestepSDE",
    "UniPC",
    "langevin",
]
