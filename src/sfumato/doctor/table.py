"""The modules with the checks, in the order of the table, and the table as a page."""

from collections.abc import Mapping

from sfumato.doctor import on_curve, on_data, on_files, on_levels, on_options, on_samples, on_state, on_trial  # noqa: F401
from sfumato.doctor.check import checks
from sfumato.doctor.plan import Plan

HEAD = """# What `sfumato doctor` checks

`sfumato doctor RECIPE` before a training, `sfumato doctor RUN` during or after one. Each check compares one number with one limit.
"Healthy" is the reading nearest to the limit among the healthy recipes and runs of `tests/doctor`, "planted" that of a planted
fault. `python tests/doctor/margins.py` writes this page. (ddpm-pytorch: lucidrains' denoising-diffusion-pytorch.)

| symptom | most common causes |
| --- | --- |
| black samples, NaN losses (ddpm-pytorch #175, #61, #360, #101) | `rate-too-high`, `steps-rejected`, `samples-not-finite` |
| grey or washed-out samples | `signal-in-noise`, `sliver-of-range`, `few-steps`, `only-gaussian`, `average-worse` |
| colour cast | `colour-shift`, `grey-as-rgb`, `untrained-levels` |
| oversaturated colours | `guidance-too-strong`, `saturated`, `clip-cuts-data` |
| grain | `noise-at-the-end`, `grainy`, `untrained-levels` |
| greyscale and non-square data refused or mangled (ddpm-pytorch #55, #183) | `grey-as-rgb`, `floats-for-images`, `cropped-away` |
| samples that are training images | `training-copies`, `held-out-gap`, `tiny-set`, `copies` |
"""


def page(margins: Mapping[str, tuple[str, str]]) -> str:
    """docs/doctor.md: every check with its limit, the reason for it, and the readings of healthy and of faulty subjects, by id."""
    lines = [HEAD]
    for title, is_plan in (("Before a training (and on a run's recipe and data)", True), ("Of a run", False)):
        lines += [f"\n## {title}\n", "| finding | severity | reading | found if | healthy | planted | reason for the limit |"]
        lines.append("| --- | --- | --- | --- | ---: | ---: | --- |")
        for each in checks():
            if (each.subject is Plan) is is_plan:
                healthy, planted = margins.get(each.id, ("", ""))
                lines.append(
                    f"| `{each.id}` | {each.severity} | {each.what.rstrip('.')} | {each.limit} | {healthy} | {planted} | {each.limit.why} |"
                )
    return "\n".join(lines) + "\n"
