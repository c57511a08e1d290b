"""The methods that move x from a level t to a cleaner level s; each is one frozen dataclass.

All are written in (alpha, sigma) and log-SNR, so they hold under every scaling, and they are safe at both ends: a step to a level without
noise returns x0, a step from a level without signal is of first order, whatever the method. Where a step is too long for a method's
order, in itself or beside the step before, it is of a lower one, so that no method is much worse than DDIM. `chain` has the reverse chains
and Euler's rule, `ode` the multistep and Runge-Kutta solvers of the probability flow, `adams` the one on v, `known` what those that
remember share, `final` lower orders at the end, `langevin` what walks at one level, `singlestep` the solvers that ask on the way,
`plms` those with the weights of equal steps, `renoised` what adds noise and takes it away again, `sde` the solvers on a path of noise
(`brownian`), `adaptive` the one that chooses its steps.
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
