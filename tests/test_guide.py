from dataclasses import replace

import numpy as np
import pytest
import torch
from problems import every_scales, mixture

import sfumato as sf


@every_scales
def test_classifier_free_is_the_tilted_score(scales):
    """∇ log p(x_t) + γ ∇ log p(y | x_t), by autograd of the exact noisy classifier."""
    x = torch.randn(64, 2, requires_grad=True)
    level = sf.Cosine(scales=scales, log_snr_max=6.0, log_snr_min=-6.0).level(torch.rand(64), like=x)
    labels = torch.randint(0, 3, (64,))
    log_class = mixture.log_class(x, level).gather(1, labels[:, None]).sum()
    (class_score,) = torch.autograd.grad(log_class, x)
    x = x.detach()
    guided = sf.guide.classifier_free(mixture, 2.5)(x, level, {"labels": labels})
    torch.testing.assert_close(guided.score(level), mixture(x, level).score(level) + 2.5 * class_score, rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(level.alpha * guided.x0 + level.sigma * guided.eps, x)


@pytest.mark.parametrize("scale", [0.0, 1.0])
def test_guidance_of_zero_and_one_are_the_two_branches(scale):
    x, level, cond = torch.randn(8, 2), sf.Level(torch.tensor(0.6), torch.tensor(0.8)), {"labels": torch.arange(8) % 3}
    wanted = mixture(x, level, cond if scale else None)
    torch.testing.assert_close(sf.guide.classifier_free(mixture, scale)(x, level, cond).eps, wanted.eps)


def test_without_a_condition_guidance_does_nothing():
    x, level = torch.randn(8, 2), sf.Level(torch.tensor(0.6), torch.tensor(0.8))
    torch.testing.assert_close(sf.guide.classifier_free(mixture, 3.0)(x, level).eps, mixture(x, level).eps)


def test_clip_bounds_x0_and_still_explains_x_t():
    x, level = 3 * torch.randn(64, 2), sf.Level(torch.tensor(0.6), torch.tensor(0.8))
    p = sf.guide.clip(mixture)(x, level)
    assert p.x0.abs().max() <= 1
    torch.testing.assert_close(level.alpha * p.x0 + level.sigma * p.eps, x)
    inside = mixture(x, level).x0.abs().amax(1) <= 1
    torch.testing.assert_close(p.eps[inside], mixture(x, level).eps[inside])


@pytest.mark.parametrize(("t", "inside"), [(0.05, False), (0.5, True), (0.98, False)])
def test_interval_guides_only_between_its_levels(t, inside):
    x, level, cond = torch.randn(8, 2), sf.Cosine().level(t), {"labels": torch.zeros(8, dtype=torch.long)}
    strong = sf.guide.classifier_free(mixture, 3.0)
    p = sf.guide.interval(strong, mixture, -4.0, 4.0)(x, level, cond)
    torch.testing.assert_close(p.eps, (strong if inside else mixture)(x, level, cond).eps)


def test_interval_takes_rows_at_different_levels():
    x, cond = torch.randn(9, 2), {"labels": torch.arange(9) % 3}
    level = sf.Cosine().level(torch.linspace(0.05, 0.95, 9), like=x)
    strong = sf.guide.classifier_free(mixture, 3.0)
    p = sf.guide.interval(strong, mixture, -4.0, 4.0)(x, level, cond)
    inside = level.log_snr.abs() <= 4
    assert 0 < inside.sum() < 9
    torch.testing.assert_close(p.eps, torch.where(inside, strong(x, level, cond).eps, mixture(x, level, cond).eps))
    torch.testing.assert_close(p.x0, torch.where(inside, strong(x, level, cond).x0, mixture(x, level, cond).x0))


def test_interval_keeps_each_rows_variance():
    x, labels = torch.randn(2, 2), torch.arange(2)
    level = sf.Cosine().level(torch.tensor([0.05, 0.5]), like=x)
    p = sf.guide.interval(with_variance, sf.guide.unconditional(with_variance), -4.0, 4.0)(x, level, {"labels": labels})
    torch.testing.assert_close(p.variance_fraction[:, 0], torch.tensor([-1.0, 1.0]))


def test_conditions_of_any_dtype_are_dropped():
    """A predictor of a number (x0 is the number, or 7 where there is none): 7 + 2 (number - 7)."""

    def predict(x_t, level, cond=None):
        number = sf.as_cond(cond)["number"]
        return sf.Prediction.from_x0(number.value.where(number.given[:, None], 7.0), x_t, level)

    p = sf.guide.classifier_free(predict, 2.0)(torch.zeros(3, 1), LEVEL, {"number": torch.tensor([[1.0], [2.0], [3.0]])})
    torch.testing.assert_close(p.x0, torch.tensor([[-5.0], [-3.0], [-1.0]]))


LEVEL = sf.Level(torch.tensor(0.6), torch.tensor(0.8))


def with_variance(x_t, level, cond=None):
    """A predictor whose place of the variance names its condition."""
    one = None if cond is None else sf.as_cond(cond)["labels"]
    labels = torch.full((len(x_t),), -1) if one is None else one.value.where(one.given, -1)
    return sf.Prediction.from_x0(x_t.sin(), x_t, level, labels[:, None].to(x_t).expand_as(x_t))


def test_guidance_keeps_the_variance_of_the_conditional_branch():
    labels = torch.arange(3)
    p = sf.guide.classifier_free(with_variance, 2.0)(torch.randn(3, 2), LEVEL, {"labels": labels})
    torch.testing.assert_close(p.variance_fraction[:, 0], labels.double())


def test_clip_keeps_the_variance():
    x = torch.randn(3, 2)
    assert torch.equal(sf.guide.clip(with_variance)(x, LEVEL).variance_fraction, with_variance(x, LEVEL).variance_fraction)


def test_guidance_of_one_is_one_evaluation_and_needs_no_mark():
    rows = []

    def predict(x_t, level, cond=None):
        rows.append(len(x_t))
        return mixture(x_t, level)

    sf.guide.classifier_free(predict, 1.0)(torch.randn(3, 2), LEVEL, {"text": torch.randn(3, 4)})
    sf.guide.classifier_free(predict, 2.0)(torch.randn(3, 2), LEVEL, {"labels": torch.arange(3)})
    sf.guide.classifier_free(predict, 0.0)(torch.randn(3, 2), LEVEL, {"labels": torch.arange(3)})
    assert rows == [3, 6, 3]


def test_without_guidance_towards_it_no_label_is_seen():
    """At scale 0 the variance too is the unconditional one."""
    p = sf.guide.classifier_free(with_variance, 0.0)(torch.randn(3, 2), LEVEL, {"labels": torch.arange(3)})
    assert (p.variance_fraction == -1).all()


@pytest.mark.parametrize(("low", "high"), [(0.2, 0.6), (-2.0, 0.1)])
def test_clip_has_both_its_bounds(low, high):
    x = 3 * torch.randn(200, 2)
    x0 = sf.guide.clip(mixture, low, high)(x, LEVEL).x0
    assert (x0.min().item(), x0.max().item()) == (low, high)


def test_an_interval_holds_its_ends():
    """log-SNR 0 exactly: alpha = sigma."""
    level, x, cond = sf.Level(torch.tensor(0.5), torch.tensor(0.5)), torch.randn(4, 2), {"labels": torch.zeros(4, dtype=torch.long)}
    strong = sf.guide.classifier_free(mixture, 3.0)
    for ends in ((0.0, 1.0), (-1.0, 0.0)):
        assert torch.equal(sf.guide.interval(strong, mixture, *ends)(x, level, cond).eps, strong(x, level, cond).eps)


@pytest.mark.parametrize("shape", [(), (1,), (1, 1), (5, 1)])
def test_guidance_takes_levels_of_every_shape(shape):
    x, cond = torch.randn(5, 2), {"labels": torch.arange(5) % 3}
    level = sf.Level(torch.full(shape, 0.6), torch.full(shape, 0.8))
    strong = sf.guide.classifier_free(mixture, 3.0)
    torch.testing.assert_close(strong(x, level, cond).eps, strong(x, LEVEL, cond).eps)


exact = sf.guide.label_log_prob(mixture.log_class)
by_bayes = sf.guide.unconditional(mixture)


@every_scales
@pytest.mark.parametrize("scale", [0.0, 0.5, 1.0, 4.0])
def test_classifier_guidance_is_classifier_free_guidance(scales, scale):
    x, cond = torch.randn(64, 2), {"labels": torch.arange(64) % 3}
    level = sf.Cosine(scales=scales, log_snr_max=8.0, log_snr_min=-8.0).level(torch.rand(64), like=x)
    ours = sf.guide.classifier(by_bayes, exact, scale)(x, level, cond)
    theirs = sf.guide.classifier_free(mixture, scale)(x, level, cond)
    torch.testing.assert_close(ours.score(level), theirs.score(level), rtol=1e-7, atol=1e-8)
    torch.testing.assert_close(ours.x0, theirs.x0, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("step", [sf.steps.Multistep(), sf.steps.Heun()])
def test_at_a_scale_of_one_samples_follow_the_class(step):
    levels = sf.grid(sf.Cosine(log_snr_max=9.0, log_snr_min=-9.0), 40, spacing=sf.spacing.log_snr)
    guided, cond = sf.guide.classifier(by_bayes, exact, 1.0), {"labels": torch.zeros(2000, dtype=torch.long)}
    x = sf.sample(guided, torch.randn(2000, 2), levels, step, cond) - mixture.means[0]
    square = torch.einsum("bi,bj->bij", x, x)
    for draws, truth in ((x, torch.zeros(2)), (square, mixture.axes[0] @ mixture.variances[0].diag() @ mixture.axes[0].T)):
        assert ((draws.mean(0) - truth).abs() < 4 * draws.std(0) / 2000**0.5).all()


def test_guidance_tilts_the_flow_of_a_gaussian():
    """p(y | x) ∝ N(y; x, s²) on N(m, c) data: at scale γ the score is that of a Gaussian with γ / s_t² more precision, s_t² exact."""
    m, c, s, y, scale = 0.7, 1.5, 0.6, -1.2, 2.0
    prior = sf.GaussianMixture(torch.ones(1), torch.tensor([[m]]), torch.tensor([[[c]]]))
    x, level = torch.randn(50, 1), sf.Cosine().level(torch.linspace(0.2, 0.8, 50), like=torch.zeros(50, 1))

    def law(x_t, level):
        """Mean and variance of y given x_t."""
        gain = level.alpha * c / (level.alpha.square() * c + level.sigma.square())
        return m + gain * (x_t - level.alpha * m), c * (1 - gain * level.alpha) + s**2, gain

    def log_prob(x_t, level, cond):
        mean, variance, _ = law(x_t, level)
        return -0.5 * ((y - mean).square() / variance)[:, 0]

    mean, variance, gain = law(x, level)
    wanted = -(x - level.alpha * m) / (level.alpha.square() * c + level.sigma.square()) + scale * gain * (y - mean) / variance
    torch.testing.assert_close(sf.guide.classifier(prior, log_prob, scale)(x, level).score(level), wanted)


@pytest.mark.parametrize("rows", [(), (6, 1)])
@pytest.mark.parametrize("t", [0.0, 1.0])
def test_a_classifier_is_safe_at_both_ends(t, rows):
    """On a chain with zero terminal SNR, whose last level has no signal and whose level 0 no noise."""
    chain, x = sf.Discrete.linear(1000).zero_terminal(), torch.randn(6, 2)
    plain = lambda x_t, level, cond=None: sf.Prediction(x_t.sin(), x_t.cos())  # noqa: E731
    tilt = lambda x_t, level, cond: x_t.sum(1)  # noqa: E731
    p = sf.guide.classifier(plain, tilt, 3.0)(x, chain.level(torch.full(rows, t)))
    assert torch.equal(p.x0, x.sin())
    assert torch.equal(p.eps, x.cos())


def test_classifier_guidance_can_be_differentiated():
    """For the flow's likelihood: the divergence of the guided eps by autograd is that by central differences."""
    x, cond = torch.randn(5, 2), {"labels": torch.arange(5) % 3}
    guided = sf.guide.classifier(by_bayes, exact, 2.0)
    leaf = x.clone().requires_grad_()
    (ours,) = torch.autograd.grad(guided(leaf, LEVEL, cond).eps[:, 0].sum(), leaf)
    h = torch.tensor([1e-6, 0.0])
    theirs = (guided(x + h, LEVEL, cond).eps - guided(x - h, LEVEL, cond).eps)[:, 0] / 2e-6
    torch.testing.assert_close(ours[:, 0], theirs, rtol=1e-6, atol=1e-7)


def test_classifier_guidance_leaves_no_graph_behind():
    x, cond = torch.randn(5, 2), {"labels": torch.arange(5) % 3}
    with torch.no_grad():
        assert not sf.guide.classifier(by_bayes, exact, 2.0)(x, LEVEL, cond).eps.requires_grad
    assert not sf.guide.classifier(by_bayes, exact, 2.0)(x, LEVEL, cond).eps.requires_grad
    assert not x.requires_grad


def test_guidance_in_float32_stays_in_float32():
    x = torch.randn(4, 2, dtype=torch.float32)
    p = sf.guide.classifier(by_bayes, exact, 2.0)(x, sf.Cosine().level(0.5), {"labels": torch.arange(4) % 3})
    assert p.x0.dtype == p.eps.dtype == torch.float32


def test_a_label_of_minus_one_is_not_guided():
    x, cond = torch.randn(4, 2), {"labels": torch.tensor([-1, 0, -1, 2])}
    p, free = sf.guide.classifier(by_bayes, exact, 5.0)(x, LEVEL, cond), mixture(x, LEVEL)
    same = (p.eps == free.eps).all(1)
    assert same.tolist() == [True, False, True, False]


REFUSALS = {
    "one number a row": (lambda x, level, cond: mixture.log_class(x, level), {"labels": torch.zeros(4, dtype=torch.long)}),
    "cannot be differentiated": (lambda x, level, cond: x.detach().sum(1), None),
    "needs the class to guide to": (exact, None),
    "labels must be below 3": (exact, {"labels": torch.full((4,), 3)}),
}


@pytest.mark.parametrize("sentence", REFUSALS)
def test_what_cannot_guide_says_why(sentence):
    log_prob, cond = REFUSALS[sentence]
    with pytest.raises(ValueError, match=sentence):
        sf.guide.classifier(lambda x_t, level, cond=None: mixture(x_t, level), log_prob, 2.0)(torch.randn(4, 2), LEVEL, cond)


def test_composition_of_one_part_is_classifier_free():
    x, cond = torch.randn(6, 2), {"labels": torch.arange(6) % 3}
    composed = sf.guide.compose(by_bayes, [(mixture, 2.5)])(x, LEVEL, cond)
    torch.testing.assert_close(composed.eps, sf.guide.classifier_free(mixture, 2.5)(x, LEVEL, cond).eps)
    torch.testing.assert_close(composed.x0, sf.guide.classifier_free(mixture, 2.5)(x, LEVEL, cond).x0)


def test_composition_adds_the_scores_of_its_parts():
    """On top of what the caller asks for, and against a component with a weight below 0."""
    x = torch.randn(6, 2)
    parts = [sf.guide.given(mixture, {"labels": torch.tensor([k])}) for k in range(3)]
    base, a, b = by_bayes(x, LEVEL), parts[0](x, LEVEL, {"labels": torch.full((6,), 1)}), parts[2](x, LEVEL)
    torch.testing.assert_close(a.eps, mixture(x, LEVEL, {"labels": torch.zeros(6, dtype=torch.long)}).eps)
    composed = sf.guide.compose(by_bayes, [(parts[0], 2.0), (parts[2], -0.5)])(x, LEVEL)
    torch.testing.assert_close(composed.eps, base.eps + 2 * (a.eps - base.eps) - 0.5 * (b.eps - base.eps))
    torch.testing.assert_close(LEVEL.alpha * composed.x0 + LEVEL.sigma * composed.eps, x)


@pytest.mark.parametrize("phi", [0.0, 0.3, 1.0])
def test_rescaling_brings_back_the_deviation(phi):
    x, cond = torch.randn(5, 3, 4), {"labels": torch.arange(5)}
    images = lambda gain: lambda x_t, level, cond=None: sf.Prediction.from_x0(gain * x_t.sin() + 0.1, x_t, level)  # noqa: E731
    strong, plain = images(5.0), images(1.0)
    deviation = lambda p: p.v(LEVEL).flatten(1).std(1)  # noqa: E731
    p = sf.guide.rescale(strong, plain, phi)(x, LEVEL, cond)
    mixed = phi * deviation(plain(x, LEVEL)) + (1 - phi) * deviation(strong(x, LEVEL))
    torch.testing.assert_close(deviation(p), mixed)
    torch.testing.assert_close(LEVEL.alpha * p.x0 + LEVEL.sigma * p.eps, x)


@pytest.mark.parametrize("t", [0.0, 1.0])
@pytest.mark.parametrize("wrap", [lambda p: sf.guide.rescale(p, p, 0.7), sf.guide.clip, sf.guide.dynamic_clip])
def test_wrappers_are_finite_at_both_ends(wrap, t):
    level, x = sf.Discrete.linear(1000).zero_terminal().level(t), torch.randn(4, 6)
    p = wrap(lambda x_t, level, cond=None: sf.Prediction(x_t.sin(), x_t))(x, level)
    assert p.x0.isfinite().all()
    assert p.eps.isfinite().all()


@pytest.mark.parametrize("quantile", [0.5, 0.9, 1.0])
def test_dynamic_thresholds_are_each_examples_own(quantile):
    """Against numpy, on one example within [-1, 1], which stays, and two beyond."""
    x0 = torch.randn(3, 2, 20) * torch.tensor([0.1, 1.5, 4.0])[:, None, None]
    x = LEVEL.alpha * x0 + LEVEL.sigma * torch.randn_like(x0)
    p = sf.guide.dynamic_clip(lambda x_t, level, cond=None: sf.Prediction.from_x0(x0, x_t, level), quantile)(x, LEVEL)
    for row, ours in zip(x0.numpy(), p.x0.numpy(), strict=True):
        s = max(1.0, np.quantile(np.abs(row), quantile))
        np.testing.assert_allclose(ours, np.clip(row, -s, s) / s, rtol=1e-12)
    torch.testing.assert_close(LEVEL.alpha * p.x0 + LEVEL.sigma * p.eps, x)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: sf.guide.rescale(mixture, mixture, 1.5), "phi must lie in"),
        (lambda: sf.guide.dynamic_clip(mixture, 0.0), "quantile must lie in"),
        (lambda: sf.guide.rescale(mixture, mixture)(torch.zeros(3, 1), LEVEL), "entries of an example"),
    ],
)
def test_options_out_of_range_are_refused(make, sentence):
    with pytest.raises(ValueError, match=sentence):
        make()


@pytest.fixture
def digits():
    """The zoo's model of digits, whose recipe guides by 1.5 between -3.2 and 4.6 nats."""
    torch.set_default_dtype(torch.float32)
    return sf.load("zoo:digits")


def by_hand(run, guided, label, steps=5):
    """Six samples of one label, or of none (-1), under a predictor of our own choice."""
    levels = run.sampler.plan(steps=steps).levels
    generators = sf.row_generators(0, range(6))
    noise = sf.normal_like(torch.empty(6, *run.spec.sizes), generators)
    x = sf.sample(guided, levels[0].sigma * noise, levels, sf.steps.Adams(), {"labels": torch.full((6,), label)}, generator=generators)
    return run.spec.codec.decode(x).astype(int)


def drawn(run, **options):
    return run.sample(6, steps=5, **options).values.astype(int)


def test_guidance_of_zero_forgets_the_label_at_every_level(digits):
    """Also where the recipe guides between two levels alone."""
    three, five, none = (drawn(digits, guidance=0.0, labels=[label]) for label in (3, 5, -1))
    assert np.array_equal(three, five)
    assert np.array_equal(three, none)
    assert np.abs(three - by_hand(digits, sf.guide.unconditional(digits.network), 3)).max() <= 1


def test_guidance_below_one_weakens_the_label_at_every_level(digits):
    wanted = by_hand(digits, sf.guide.classifier_free(digits.network, 0.25), 3)
    assert np.abs(drawn(digits, guidance=0.25, labels=[3]) - wanted).max() <= 1


def test_guidance_above_one_keeps_to_its_interval(digits):
    strong = sf.guide.classifier_free(digits.network, 3.0)
    wanted = by_hand(digits, sf.guide.interval(strong, digits.network, -3.2, 4.6), 3)
    assert np.abs(drawn(digits, guidance=3.0, labels=[3]) - wanted).max() <= 1
    assert np.abs(by_hand(digits, strong, 3) - wanted).max() > 1


@pytest.mark.parametrize("none", ["none", -1, "-1", "None"])
def test_no_label_is_drawn_without_one(digits, none):
    """Guidance then has nothing to do, and the other samples in the cycle keep theirs."""
    samples = digits.sample(6, steps=5, labels=[none, 4])
    assert samples.labels.tolist() == [-1, 4, -1, 4, -1, 4]
    free = by_hand(digits, sf.guide.unconditional(digits.network), 4)
    assert np.abs(samples.values[::2].astype(int) - free[::2]).max() <= 1
    assert np.abs(samples.values[1::2].astype(int) - free[1::2]).max() > 1


def with_drop(run, share):
    """The run, had its labels been dropped in this share of its training; the recipe guides nowhere."""
    training = run.recipe.training.model_copy(update={"label_drop": share})
    sampling = run.recipe.sampling.model_copy(update={"guidance": 1.0})
    recipe = run.recipe.model_copy(update={"training": training, "sampling": sampling})
    return sf.Model(run.name, recipe, run.spec, run.network)


def with_classes(run, *names):
    conditions = {"labels": sf.Classes(names)} if names else {}
    return sf.Model(run.name, run.recipe, replace(run.spec, conditions=conditions), run.network)


MEANINGLESS = {
    r"was never trained without a label \(training\.label_drop=0\), so guidance": lambda run: with_drop(run, 0.0),
    r"was trained without its labels \(training\.label_drop=1\), so only a classifier": lambda run: with_drop(run, 1.0),
    r"has no classes and no other conditions, so there is nothing to guide with": with_classes,
}


@pytest.mark.parametrize("scale", [0.0, 2.0])
@pytest.mark.parametrize("sentence", MEANINGLESS)
def test_guidance_that_means_nothing_is_refused(digits, sentence, scale):
    run = MEANINGLESS[sentence](digits)
    with pytest.raises(ValueError, match=sentence):
        run.sample(2, steps=2, guidance=scale)
    assert len(run.sample(2, steps=2, guidance=1.0).values) == 2


def test_a_label_that_was_never_learned_is_refused(digits):
    with pytest.raises(ValueError, match="cannot draw without one; name a class"):
        with_drop(digits, 0.0).sample(2, steps=2, labels=["none"])
    with pytest.raises(ValueError, match="so it cannot draw a class"):
        with_drop(digits, 1.0).sample(2, steps=2, labels=[3])


def test_a_model_trained_without_its_labels_is_drawn_without_them(digits):
    """Its embeddings of classes are what they were drawn as; a classifier still takes the classes in turn."""
    run = with_drop(digits, 1.0)
    samples = run.sample(6, steps=5)
    assert samples.labels.tolist() == [-1] * 6
    assert np.abs(samples.values.astype(int) - by_hand(run, sf.guide.unconditional(run.network), 3)).max() <= 1
    lights = lambda x_t, level, cond: (cond["labels"].value - 4.5) * x_t.flatten(1).mean(1)  # noqa: E731
    assert run.sample(6, steps=5, classifier=lights, guidance=2.0).labels.tolist() == list(range(6))


def test_the_recipes_guidance_is_off_where_it_means_nothing(digits):
    """Its own guidance of 1.5, on data that came without classes."""
    run = with_classes(digits)
    assert run.recipe.sampling.guidance == 1.5
    assert np.array_equal(drawn(run), drawn(run, guidance=1.0))


@pytest.mark.parametrize("labels", [[7, 8], ["sneaker", "bag"], ["Sneaker", 8], ("7", "BAG"), np.array([7, 8]), torch.tensor([7, 8])])
def test_classes_go_by_their_names(labels):
    torch.set_default_dtype(torch.float32)
    found = sf.load("zoo:fashion").conditions(range(4), labels)["labels"]
    assert found.value.tolist() == [7, 8, 7, 8]
    assert found.given.all()


def test_text_is_a_name_before_it_is_a_number(digits):
    run = with_classes(digits, "3", "1", "cat", "Cat")
    numbers = lambda *labels: run.conditions(range(len(labels)), labels)["labels"].value.tolist()  # noqa: E731
    assert numbers("3", "1", "2", "cat", "Cat") == [0, 1, 2, 2, 3]
    assert numbers(3, 1) == [3, 1]
    with pytest.raises(ValueError, match='there is no class "CAT"; there are 3, 1, cat, Cat, or their numbers 0 … 3, or none'):
        numbers("CAT")


@pytest.mark.parametrize("count", [9, 64, 100])
@pytest.mark.parametrize("classes", [1, 2, 3, 5, 10, 40])
def test_a_sheet_is_about_square_with_a_class_a_column(digits, classes, count):
    columns = with_classes(digits, *map(str, range(classes))).columns(None, count)
    assert columns % classes == 0
    assert columns == classes or 1 / 2 <= columns / (count / columns) <= 2
    assert digits.columns(list(range(classes)), count) == columns


MEANS = torch.tensor([[2.0, 0.0], [-1.0, 1.0], [0.0, -1.5], [1.0, 1.5], [-2.0, -1.0], [0.5, 0.5]])
SHARES = torch.tensor([0.3, 0.1, 0.2, 0.1, 0.05, 0.25])
COLORS, SIZES = torch.tensor([0, 0, 0, 1, 1, 1]), torch.tensor([0, 1, 2, 0, 1, 2])


def log_joint(x_t, level, color, size):
    """log p(x_t, component) of six round Gaussians of variance 0.25, each of one color and one size; -inf for others than are given."""
    variance = (0.25 * level.alpha**2 + level.sigma**2).reshape(-1, 1)
    squares = (x_t[:, None] - level.alpha.reshape(-1, 1, 1) * MEANS).square().sum(2)
    joint = SHARES.log() - squares / (2 * variance) - variance.log()
    for mine, wanted in ((COLORS, color), (SIZES, size)):
        joint = joint.masked_fill((wanted[:, None] >= 0) & (wanted[:, None] != mine), -torch.inf)
    return joint


def colored(x_t, level, cond=None):
    """The exact predictor: E[x0 | x_t] by the responsibilities of the components."""
    cond = sf.as_cond(cond)
    color, size = (cond[name].value.where(cond[name].given, -1) for name in ("color", "size"))
    variance = 0.25 * level.alpha**2 + level.sigma**2
    each = MEANS + (0.25 * level.alpha / variance)[..., None] * (x_t[:, None] - level.alpha[..., None] * MEANS)
    x0 = (log_joint(x_t, level, color, size).softmax(1)[..., None] * each).sum(1)
    return sf.Prediction.from_x0(x0, x_t, level)


NESTED = [{"color": 3.0, "size": 1.5}, {"size": 1.5, "color": 3.0}, {"color": 0.0, "size": 2.0}, {"color": 2.5}, {"size": -1.0}]


@pytest.mark.parametrize("scales", NESTED, ids=str)
def test_a_scale_for_each_condition_tilts_the_density_one_condition_after_the_other(scales):
    """The score of p_0 Π (p_i / p_{i-1})^s_i by autograd of the log-densities, where p_i knows the first i conditions that are named."""
    x, color, size = torch.randn(60, 2, requires_grad=True), torch.arange(60) % 2, torch.arange(60) % 3
    level = sf.Cosine(log_snr_max=5.0, log_snr_min=-5.0).level(torch.rand(60), like=x)
    shown = {"color": color, "size": size} | {name: torch.full((60,), -1) for name in scales}

    def log_density():
        return (log_joint(x, level, **shown).logsumexp(1)).sum()

    before = tilted = log_density()
    for name, scale in scales.items():
        shown[name] = {"color": color, "size": size}[name]
        now = log_density()
        tilted, before = tilted + scale * (now - before), now
    (score,) = torch.autograd.grad(tilted, x)
    p = sf.guide.classifier_free(colored, scales)(x.detach(), level, {"color": color, "size": size})
    torch.testing.assert_close(p.score(level), score, rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(level.alpha * p.x0 + level.sigma * p.eps, x.detach())


def test_all_branches_go_in_one_call_and_scales_of_one_are_no_guidance():
    rows, x, cond = [], torch.randn(6, 2), {"color": torch.arange(6) % 2, "size": torch.arange(6) % 3}

    def counted(x_t, level, cond=None):
        rows.append(len(x_t))
        return colored(x_t, level, cond)

    plain = sf.guide.classifier_free(counted, {"color": 1.0, "size": 1.0})(x, LEVEL, cond)
    assert torch.equal(plain.x0, colored(x, LEVEL, cond).x0)
    sf.guide.classifier_free(counted, {"color": 2.0, "size": 1.0})(x, LEVEL, cond)
    assert rows == [6, 18]


def test_one_name_is_the_plain_formula():
    x, level, cond = torch.randn(9, 2), sf.Cosine().level(torch.rand(9), like=torch.zeros(9, 2)), {"labels": torch.arange(9) % 3}
    one, all_ = (sf.guide.classifier_free(mixture, scale)(x, level, cond) for scale in ({"labels": 2.5}, 2.5))
    assert torch.equal(one.eps, all_.eps)


def test_a_scale_for_a_condition_that_is_not_there_is_refused():
    with pytest.raises(ValueError, match='no condition "colour"; it has color, size'):
        sf.guide.classifier_free(colored, {"colour": 2.0})(
            torch.zeros(1, 2), LEVEL, {"color": torch.zeros(1).long(), "size": torch.zeros(1).long()}
        )


def test_the_oracles_know_no_condition_but_labels():
    with pytest.raises(ValueError, match='a mixture has no condition "color"; it has labels'):
        mixture(torch.zeros(1, 2), LEVEL, {"color": torch.zeros(1).long()})
