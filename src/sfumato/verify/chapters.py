"""Reads every module of rows, in the order of the notes."""

from sfumato.verify import forward, foundations, guidance, latent, likelihoods, losses, restoration, sampling, scores, tuning

__all__ = ["forward", "foundations", "guidance", "latent", "likelihoods", "losses", "restoration", "sampling", "scores", "tuning"]
