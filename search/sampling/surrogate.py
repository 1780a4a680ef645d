"""A model of learning curves: what a config would score after how many epochs, and how sure that is.

One Gaussian process over (config, epoch), as in MOBSTER (Klein et al. 2020, arXiv:2003.10865): a trial that was stopped
early says something about the full length, and less the earlier it was stopped. The kernel is a Matern-5/2 over the
config, with a length scale for each key, times a constant plus a squared exponential over the logarithm of the epoch:
curves have a common part, and parts that are alike for neighbouring epochs.

Shape suffixes: N observations or points, D features, K keys.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import minimize
from scipy.stats import norm
from torch import Tensor

MAX_POINTS = 300
"""Observations that the model holds: those of the most epochs, then of the latest trials. Its cost grows with their
cube."""
FIT_POINTS = 100
"""Observations, of these, that the kernel's parameters are fitted to."""
FIT_STEPS = 12
"""Steps of L-BFGS from the prior's centre."""
JITTER = 1e-5
_LENGTHS_AT = 7
"""Keys up to which the prior of the length scales is centred at exp(-0.5); beyond, it grows with the root of their
number (Hvarfner et al. 2024, arXiv:2402.02229)."""


@dataclass(frozen=True, slots=True)
class _Fit:
    """Observations in the model's units, and the kernel that suits them."""

    x: Tensor
    """(N, D) features."""
    t: Tensor
    """(N,) logarithms of the epochs, 1 at full length."""
    y: Tensor
    """(N,) standardised scores."""
    theta: Tensor
    """The kernel's parameters, as the prior holds them."""
    trials: list[int]
    """The trials of these observations, in order."""


class CurveModel:
    """A Gaussian process over (features in [0, 1], log epoch).

    Scores are standardised; predictions are in these units.

    Args:
        key_of_feature: (D,) index of the key of each feature: features of a key share a length scale.
        epochs: full length of a training.
    """

    def __init__(self, key_of_feature: np.ndarray, epochs: int):
        self._key_of_feature = torch.as_tensor(key_of_feature)
        self._num_keys = int(key_of_feature.max()) + 1
        self._log_epochs = math.log(max(epochs, 2))
        center = -0.5 + 0.5 * math.log(max(self._num_keys / _LENGTHS_AT, 1))
        # length scale of each key, of the epoch; variance of the common and of the epochs' part; noise: logarithms
        self._prior = torch.tensor([center] * self._num_keys + [-0.7, 0.0, -1.0, -5.0], dtype=torch.double)
        self._spread = torch.tensor([1.0] * self._num_keys + [1.0, 1.0, 1.0, math.sqrt(2)], dtype=torch.double)
        self._observed: dict[tuple[int, int], tuple[np.ndarray, float]] = {}
        self._fit: _Fit | None = None
        self._believed: Tensor
        """(M, D) features of trials that run."""

    def __len__(self) -> int:
        """Number of observations."""
        return len(self._observed)

    def observe(self, trial: int, epochs: int, features_D: np.ndarray, score: float | None) -> None:
        """Remember that a trial scored so much after so many epochs; larger is better. None: as bad as the worst."""
        # By epochs, then trial: what the model becomes does not depend on the order in which trials ran.
        self._observed[epochs, trial] = features_D, math.nan if score is None else score
        self._fit = None

    def condition(self) -> list[int]:
        """Look at the observations, two or more, and fit the kernel. What :meth:`believe` added is gone.

        The fit, most of the work, is kept until the next observation.

        Returns:
            The trials that the model holds.
        """
        if self._fit is None:
            self._fit = self._fitted()
            self._x, self._t, self._y, self._theta = self._fit.x, self._fit.t, self._fit.y, self._fit.theta
            self._factorize()
        self._believed = self._x[:0]
        return self._fit.trials

    def _fitted(self) -> "_Fit":
        keep = sorted(self._observed, reverse=True)[:MAX_POINTS]
        epochs_N = np.array([epochs for epochs, _ in keep])
        features_ND = np.stack([self._observed[place][0] for place in keep])
        scores_N = np.array([self._observed[place][1] for place in keep])
        known = scores_N[np.isfinite(scores_N)]
        scores_N = np.where(np.isfinite(scores_N), scores_N, known.min() if len(known) else 0.0)
        x = torch.as_tensor(features_ND, dtype=torch.double)
        t = torch.as_tensor(np.log(epochs_N) / self._log_epochs, dtype=torch.double)
        y = torch.as_tensor((scores_N - scores_N.mean()) / (scores_N.std() or 1.0), dtype=torch.double)
        return _Fit(x, t, y, self._most_probable(x, t, y), sorted({trial for _, trial in keep}))

    @torch.no_grad()
    def believe(self, features_MD: np.ndarray) -> None:
        """Take the model's own predictions at full length for observations: of trials that run, M >= 0. Points near
        them then promise nothing new.

        That changes no prediction, only how sure it is. So the observations' factor stays, and what is computed here
        is the factor of what they leave open at the believed points.
        """
        self._believed = torch.as_tensor(features_MD, dtype=torch.double)
        if len(features_MD):
            solved_NM = self._solve(self._believed)
            open_MM = self._cross_full(self._believed, self._believed).addmm_(solved_NM.T, solved_NM, alpha=-1)
            open_MM.diagonal().add_(torch.exp(self._theta[-1]) + JITTER)
            self._believed_factor = torch.linalg.cholesky(open_MM)
            self._believed_solved = solved_NM

    @torch.no_grad()
    def predict(self, features_CD: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation of the score at full length, (C,) each, without what is believed: no belief
        makes a deviation larger."""
        cross_NC = self._cross(self._x, self._t, torch.as_tensor(features_CD, dtype=torch.double))
        solved_NC = torch.linalg.solve_triangular(self._factor, cross_NC, upper=False)
        variance_C = self._theta[-3:-1].exp().sum() - (solved_NC**2).sum(0)
        return (cross_NC.T @ self._weights).numpy(), variance_C.clamp(min=1e-9).sqrt().numpy()

    @torch.no_grad()
    def believed_deviation(self, features_CD: np.ndarray) -> np.ndarray:
        """Standard deviation of the score at full length, (C,), with what is believed."""
        x = torch.as_tensor(features_CD, dtype=torch.double)
        solved_NC = self._solve(x)
        variance_C = self._theta[-3:-1].exp().sum() - (solved_NC**2).sum(0)
        if len(self._believed):
            open_MC = self._cross_full(self._believed, x).addmm_(self._believed_solved.T, solved_NC, alpha=-1)
            variance_C -= (torch.linalg.solve_triangular(self._believed_factor, open_MC, upper=False) ** 2).sum(0)
        return variance_C.clamp(min=1e-9).sqrt().numpy()

    def _solve(self, x: Tensor) -> Tensor:
        """What the observations tell about points at full length, whitened: (N, C)."""
        return torch.linalg.solve_triangular(self._factor, self._cross(self._x, self._t, x), upper=False)

    def _cross(self, x: Tensor, t: Tensor, other_x: Tensor) -> Tensor:
        """Covariances with points at full length."""
        return self._kernel(x, t, other_x, torch.ones(len(other_x), dtype=torch.double), self._theta)

    def _cross_full(self, x: Tensor, other_x: Tensor) -> Tensor:
        """Covariances of points at full length, in as few large matrices as possible."""
        r = _distances(x, other_x, self._inverse_lengths(self._theta)).mul_(math.sqrt(5))
        matern = (r * r).div_(3).add_(r).add_(1).mul_(r.neg_().exp_())
        return matern.mul_(self._theta[-3:-1].exp().sum())

    def _inverse_lengths(self, theta: Tensor) -> Tensor:
        """(D,) inverse length scales of the features."""
        return torch.exp(-theta[: self._num_keys])[self._key_of_feature]

    def _kernel(self, x: Tensor, t: Tensor, other_x: Tensor, other_t: Tensor, theta: Tensor) -> Tensor:
        inverse_D = self._inverse_lengths(theta)
        x, other_x = x * inverse_D, other_x * inverse_D
        square = (x * x).sum(1)[:, None] + (other_x * other_x).sum(1) - 2 * x @ other_x.T
        r = math.sqrt(5) * (square.clamp(min=0) + 1e-12).sqrt()
        matern = (1 + r + r * r / 3) * torch.exp(-r)
        lag = (t[:, None] - other_t) * torch.exp(-theta[-4])
        return matern * (torch.exp(theta[-3]) + torch.exp(theta[-2] - lag * lag / 2))

    def _covariance(self, x: Tensor, t: Tensor, theta: Tensor) -> Tensor:
        noise = (torch.exp(theta[-1]) + JITTER) * torch.eye(len(x), dtype=torch.double)
        return self._kernel(x, t, x, t, theta) + noise

    @torch.no_grad()
    def _factorize(self) -> None:
        self._factor = torch.linalg.cholesky(self._covariance(self._x, self._t, self._theta))
        self._weights = torch.cholesky_solve(self._y[:, None], self._factor)[:, 0]

    def _most_probable(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        """The kernel's most probable parameters, as far as a few steps lead."""
        x, t, y = x[:FIT_POINTS], t[:FIT_POINTS], y[:FIT_POINTS]

        def negative_log_posterior(theta_: np.ndarray) -> tuple[float, np.ndarray]:
            theta = torch.tensor(theta_, requires_grad=True)
            try:
                factor = torch.linalg.cholesky(self._covariance(x, t, theta))
            except torch.linalg.LinAlgError:  # a step too far
                return math.inf, np.zeros_like(theta_)
            fit = 0.5 * y @ torch.cholesky_solve(y[:, None], factor)[:, 0] + factor.diagonal().log().sum()
            value = fit + (((theta - self._prior) / self._spread) ** 2).sum() / 2
            (gradient,) = torch.autograd.grad(value, theta)
            return value.item(), gradient.numpy()

        # scipy's, as the first step of one of torch's optimisers imports its compiler: four seconds
        found = minimize(
            negative_log_posterior, self._prior.numpy(), jac=True, method="L-BFGS-B", options={"maxiter": FIT_STEPS}
        )
        return torch.as_tensor(found.x) if np.isfinite(found.x).all() else self._prior


def _distances(x: Tensor, other_x: Tensor, inverse_D: Tensor) -> Tensor:
    """Distances in length scales, without gradients, in one matrix: allocating more takes longer than arithmetic."""
    x, other_x = x * inverse_D, other_x * inverse_D
    square = torch.addmm((other_x * other_x).sum(1), x, other_x.T, alpha=-2)
    return square.add_((x * x).sum(1)[:, None]).clamp_(min=0).add_(1e-12).sqrt_()


def expected_improvement(mean_N: np.ndarray, deviation_N: np.ndarray, best: float) -> np.ndarray:
    """How far a normally distributed score is expected to exceed ``best``, (N,), 0 where it does not (Jones et al.
    1998)."""
    z_N = (mean_N - best) / deviation_N
    return deviation_N * (z_N * norm.cdf(z_N) + norm.pdf(z_N))
