"""The modules that hold the checks, in the order of the table."""

from sfumato.doctor import on_data, on_files, on_options, on_trial, on_curve, on_levels, on_samples, on_state  # noqa: F401, I001
