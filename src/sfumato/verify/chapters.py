"""Reads every module of rows, in the order of the notes."""

from sfumato.verify import forward, foundations, guidance, latent, likelihoods, losses, sampling, scores, tuning

__all__ = ["forward", "foundations", "guidance", "latent", "likelihoods", "losses", "sampling", "scores", "tuning"]
